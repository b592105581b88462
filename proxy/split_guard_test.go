package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
)

// hangingBlobs say nothing until the context ends, or that there is nothing.
type hangingBlobs struct{ hang atomic.Bool }

func (b *hangingBlobs) do(ctx context.Context) error {
	if b.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return fmt.Errorf("no such blob: %w", fs.ErrNotExist)
}

func (b *hangingBlobs) Put(ctx context.Context, _ string, _ []byte) error { return b.do(ctx) }

func (b *hangingBlobs) Get(ctx context.Context, _ string) ([]byte, error) { return nil, b.do(ctx) }

// A server of blobs that hangs is found out, and costs nothing from then on until
// it is back; that a blob is missing is an answer.
func TestGuardedBlobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs := &hangingBlobs{}
		blobs.hang.Store(true)
		g := Guarded(blobs, guard.Options{Name: "blobs"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		if _, err := g.Get(t.Context(), "a"); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("get from a server that hangs: %v", err)
		}
		began := time.Now()
		if err := g.Put(t.Context(), "a", nil); !errors.Is(err, kv.ErrUnavailable) || time.Since(began) > 0 {
			t.Errorf("put to a server that is down: %v after %v", err, time.Since(began))
		}
		blobs.hang.Store(false)
		for began := time.Now(); !g.Up(); time.Sleep(time.Second) {
			if time.Since(began) > time.Minute {
				t.Fatal("a server that answers stays down")
			}
		}
		for range 10 {
			if _, err := g.Get(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("get of a blob that is missing: %v", err)
			}
		}
		if st := g.Stats(); st.Failures != 1 {
			t.Errorf("%+v", st)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
