package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
)

// GuardedBlobs are blobs behind a guard: a server of blobs that hangs costs those
// who wait for it a moment, and those who come later nothing. Run, which a Guard
// has, brings it back.
type GuardedBlobs struct {
	*guard.Guard
	blobs Blobs
}

var _ Blobs = (*GuardedBlobs)(nil)

// Guarded returns blobs behind a guard. Its probe asks for a blob that does not
// exist.
func Guarded(blobs Blobs, opts guard.Options) *GuardedBlobs {
	opts.Probe = func(ctx context.Context) error {
		if _, err := blobs.Get(ctx, blobRoot+"probe"); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return &GuardedBlobs{guard.New(opts), blobs}
}

// Put implements Blobs.
func (g *GuardedBlobs) Put(ctx context.Context, name string, data []byte) error {
	return g.Do(ctx, kv.ErrUnknown, func(ctx context.Context) error { return g.blobs.Put(ctx, name, data) })
}

// Get implements Blobs.
func (g *GuardedBlobs) Get(ctx context.Context, name string) (data []byte, err error) {
	missing := false
	err = g.Do(ctx, kv.ErrUnavailable, func(ctx context.Context) (err error) {
		data, err = g.blobs.Get(ctx, name)
		if missing = errors.Is(err, fs.ErrNotExist); missing { // which is an answer
			return nil
		}
		return err
	})
	if missing {
		return nil, fmt.Errorf("blob %s: %w", name, fs.ErrNotExist)
	}
	return data, err
}
