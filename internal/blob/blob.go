// Package blob is what those who keep blobs and those who use them agree on: how
// a blob is listed. It has a bucket in memory as well, the plainest one, against
// which others are compared and that tests and simulations break on purpose.
//
// A bucket has four methods, and each of its users asks for those that it needs
// by an interface of its own:
//
//	Put(ctx, name, data) error
//	Get(ctx, name) ([]byte, error)                              fs.ErrNotExist if it is not there
//	List(ctx, prefix, after, limit) (infos []Info, more bool, err error)
//	Delete(ctx, names) error                                    of what is not there: nothing
//
// The bucket in memory loses everything when the process ends.
package blob

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Info is a blob in a listing. Listings are in byte order of the names.
type Info struct {
	Name     string
	Size     int64
	Modified time.Time // by the clock of whoever keeps it
}

// MaxList is the greatest number of blobs in one page of a listing.
const MaxList = 1000

// Memory is an unbounded bucket in memory. Its zero value is empty and ready to
// use. All methods may be called at once; what was put must not be changed, and
// what Get returned neither.
type Memory struct {
	mu    sync.RWMutex // guards blobs
	blobs map[string]stored
}

type stored struct {
	data     []byte
	modified time.Time
}

// Put stores data by name; what was there is replaced.
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put blob %q: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blobs == nil {
		m.blobs = map[string]stored{}
	}
	m.blobs[name] = stored{data, time.Now()}
	return nil
}

// Get returns what was put by name, or an error that wraps fs.ErrNotExist.
func (m *Memory) Get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get blob %q: %w", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, ok := m.blobs[name]
	if !ok {
		return nil, fmt.Errorf("get blob %q: %w", name, fs.ErrNotExist)
	}
	return b.data, nil
}

// List returns the blobs whose names begin with prefix and are greater than
// after, at most limit of them (1 to MaxList, others are clamped), and whether
// there are more.
func (m *Memory) List(ctx context.Context, prefix, after string, limit int) ([]Info, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, fmt.Errorf("list blobs %q: %w", prefix, err)
	}
	if limit < 1 || limit > MaxList {
		limit = MaxList
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var infos []Info
	for _, name := range slices.Sorted(maps.Keys(m.blobs)) {
		if !strings.HasPrefix(name, prefix) || name <= after {
			continue
		}
		if len(infos) == limit {
			return infos, true, nil
		}
		infos = append(infos, Info{name, int64(len(m.blobs[name].data)), m.blobs[name].modified})
	}
	return infos, false, nil
}

// Delete removes blobs; those that are not there are no error.
func (m *Memory) Delete(ctx context.Context, names []string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete blobs: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.blobs, name)
	}
	return nil
}
