package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// readKeys is how many records are read at once, and readBytes how much large
	// ones among them may hold: more are then read apart. Of smaller values so many
	// keys have at most readKeys * kv.ReserveBytes.
	readKeys  = 64
	readBytes = 32 << 20
	// readTimeout is how long one such reading may take.
	readTimeout = 30 * time.Second
	// readTries is how often it is tried when the store cannot serve, and readPause
	// how long is waited in between.
	readTries = 5
	readPause = 200 * time.Millisecond
)

// reader reads records, many at once where they are small.
type reader struct {
	store kv.Store
	most  int // keys at once, as many as were not too much; 0: readKeys
}

// read calls each for every key in order. What the store says is damaged goes to
// damaged instead.
func (r *reader) read(ctx context.Context, ns kv.NamespaceID, keys []string, each func(string, kv.Record) error, damaged func(string, error)) error {
	if r.most == 0 {
		r.most = readKeys
	}
	for tries := 1; len(keys) > 0; {
		n := min(r.most, len(keys))
		recs, err := r.some(ctx, ns, keys[:n])
		switch {
		case err == nil:
			for i := range recs {
				if err := each(keys[i], recs[i]); err != nil {
					return err
				}
			}
			keys, tries, r.most = keys[n:], 1, min(2*r.most, readKeys)
		case ctx.Err() != nil:
			return err
		case n > 1 && (errors.Is(err, kv.ErrOverloaded) || errors.Is(err, kv.ErrDamaged)):
			r.most = n / 2
		case errors.Is(err, kv.ErrDamaged):
			damaged(keys[0], err)
			keys, tries = keys[1:], 1
		case tries < readTries && passes(err):
			tries++
			if err := pause(ctx, readPause); err != nil {
				return err
			}
		default:
			return fmt.Errorf("read %d records of namespace %s from key %q on: %w", n, ns, keys[0], err)
		}
	}
	return nil
}

// passes reports whether the same may succeed a little later.
func passes(err error) bool {
	return errors.Is(err, kv.ErrOverloaded) || errors.Is(err, kv.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// some reads records of which the large ones together have at most readBytes.
func (r *reader) some(ctx context.Context, ns kv.NamespaceID, keys []string) ([]kv.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	reserve := all
	if len(keys) > 1 {
		var l limit
		l.left.Store(readBytes)
		reserve = l.reserve
	}
	refs := make([]kv.Ref, len(keys))
	for i, key := range keys {
		refs[i] = kv.Ref{Namespace: ns, Key: key}
	}
	return kv.GetMany(kv.WithReserver(ctx, reserve), r.store, refs, 0)
}

// cursor goes through the keys of a namespace in order.
type cursor struct {
	store kv.Store
	ns    kv.NamespaceID
	page  kv.Page
	begun bool
	limit int // keys in a page
}

const (
	// pageKeys is how many keys are listed at once: with the greatest metadata that
	// are some tens of megabytes.
	pageKeys = 500
	// pageTimeout is how long one page may take.
	pageTimeout = 30 * time.Second
)

func newCursor(store kv.Store, ns kv.NamespaceID) *cursor {
	return &cursor{store: store, ns: ns, limit: pageKeys}
}

// next returns the next page, never empty; nil after the last.
func (c *cursor) next(ctx context.Context) ([]kv.Listed, error) {
	for !c.begun || c.page.More {
		page, err := c.list(ctx)
		if err != nil {
			return nil, fmt.Errorf("list namespace %s after key %q: %w", c.ns, c.page.Last, err)
		}
		c.page, c.begun = page, true
		if len(page.Keys) > 0 {
			return page.Keys, nil
		}
	}
	return nil, nil
}

func (c *cursor) list(ctx context.Context) (page kv.Page, err error) {
	for tries := 1; ; tries++ {
		listing, cancel := context.WithTimeout(ctx, pageTimeout)
		page, err = c.store.List(listing, c.ns, kv.ListOptions{After: c.page.Last, Limit: c.limit})
		cancel()
		if err == nil || tries == readTries || ctx.Err() != nil || !passes(err) {
			return page, err
		}
		if err := pause(ctx, readPause); err != nil {
			return page, err
		}
	}
}

// empty reports whether the namespace has no records, tombstones included.
func empty(ctx context.Context, store kv.Store, ns kv.NamespaceID) (bool, error) {
	keys, err := newCursor(store, ns).next(ctx)
	return len(keys) == 0, err
}
