package guard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

func TestLaws(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return guard.Before(memory.New(), guard.Options{}) })
}

// hung is a store that says nothing while it is stopped.
type hung struct {
	*memory.Store
	mu      sync.Mutex // guards stopped
	stopped chan struct{}
}

func (h *hung) stop(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if yes {
		h.stopped = make(chan struct{})
	} else if h.stopped != nil {
		close(h.stopped)
		h.stopped = nil
	}
}

func (h *hung) wait(ctx context.Context) error {
	h.mu.Lock()
	stopped := h.stopped
	h.mu.Unlock()
	if stopped == nil {
		return nil
	}
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait: %w", ctx.Err())
	}
}

func (h *hung) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if err := h.wait(ctx); err != nil {
		return kv.Record{}, err
	}
	return h.Store.Get(ctx, ref, maxAge)
}

func (h *hung) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if err := h.wait(ctx); err != nil {
		return err
	}
	return h.Store.Put(ctx, ref, rec)
}

// Drop implements the ability of kv.Drop.
func (h *hung) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := h.wait(ctx); err != nil {
		return err
	}
	return h.Store.Drop(ctx, ns)
}

var (
	ref = kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}
	rec = kv.Record{Version: kv.NewVersion(1, 1, 1), Value: []byte("v")}
)

// running runs f in a bubble with a guard that runs.
func running(t *testing.T, f func(t *testing.T, h *hung, g *guard.Store, told *[]bool)) {
	synctest.Test(t, func(t *testing.T) {
		h, told := &hung{Store: memory.New()}, []bool{}
		g := guard.Before(h, guard.Options{Name: "a", Changed: func(up bool) { told = append(told, up) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		f(t, h, g, &told)
		h.stop(false)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// A store that hangs costs those who wait for it about two seconds, those who come
// later nothing, and is used again when it is back.
func TestHung(t *testing.T) {
	running(t, func(t *testing.T, h *hung, g *guard.Store, told *[]bool) {
		h.stop(true)
		began := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if _, err := g.Get(t.Context(), ref, 0); !errors.Is(err, kv.ErrUnavailable) {
					t.Errorf("get from a store that hangs: %v", err)
				}
			})
			all.Go(func() {
				if err := g.Put(t.Context(), ref, rec); !errors.Is(err, kv.ErrUnknown) {
					t.Errorf("put to a store that hangs: %v", err)
				}
			})
		}
		all.Wait()
		if d := time.Since(began); d > 2500*time.Millisecond {
			t.Errorf("they waited for %v", d)
		}
		began = time.Now()
		var down *guard.DownError
		if _, err := g.Get(t.Context(), ref, 0); !errors.As(err, &down) || time.Since(began) > 0 {
			t.Errorf("get from a store that is down: %v after %v", err, time.Since(began))
		}
		h.stop(false)
		time.Sleep(1100 * time.Millisecond)
		if err := g.Put(t.Context(), ref, rec); err != nil {
			t.Errorf("put to a store that is back: %v", err)
		}
		synctest.Wait()
		if len(*told) != 2 || (*told)[0] || !(*told)[1] {
			t.Errorf("told %v, want down and up", *told)
		}
	})
}

// A store that hangs while nobody asks is found out all the same, and one that is
// slow but answers is not taken for hung.
func TestProbes(t *testing.T) {
	running(t, func(t *testing.T, h *hung, g *guard.Store, _ *[]bool) {
		h.stop(true)
		time.Sleep(3 * time.Second)
		if g.Up() {
			t.Error("a store that hangs is up")
		}
		h.stop(false)
		time.Sleep(1100 * time.Millisecond)
		if !g.Up() {
			t.Error("a store that answers is down")
		}
		slow := &slow{Store: memory.New(), by: 3 * time.Second}
		own := guard.Before(slow, guard.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go own.Run(ctx)
		if _, err := own.Get(t.Context(), ref, 0); err != nil {
			t.Errorf("a slow get, while probes are answered: %v", err)
		}
	})
}

// slow takes its time for the keys of users.
type slow struct {
	*memory.Store
	by time.Duration
}

func (s *slow) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if ref.Namespace != (kv.NamespaceID{}) {
		time.Sleep(s.by)
	}
	return s.Store.Get(ctx, ref, maxAge)
}

// A call that reaches the deadline alone brings the store down even if nothing
// probes; a caller that gives up does not.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hung{Store: memory.New()}
		g := guard.Before(h, guard.Options{Deadline: 2 * time.Second})
		h.stop(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.Get(ctx, ref, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller's own deadline: %v", err)
		}
		if !g.Up() {
			t.Error("a caller that gave up brought the store down")
		}
		if _, err := g.Get(t.Context(), ref, 0); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("the deadline: %v", err)
		}
		if g.Up() {
			t.Error("a store that let a call reach the deadline is up")
		}
		h.stop(false)
	})
}

// A store that refuses is asked again and again.
func TestRefusals(t *testing.T) {
	g := guard.Before(&kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Refused }}, guard.Options{})
	for range 100 {
		if _, err := g.Get(t.Context(), ref, 0); err == nil {
			t.Fatal("a store that refuses was read")
		}
	}
	if st := g.Stats(); !st.Up || st.Failures != 100 || st.Skipped != 0 {
		t.Errorf("%+v", st)
	}
}

// A Drop may take long, and does not if the store is down.
func TestDrop(t *testing.T) {
	running(t, func(t *testing.T, h *hung, g *guard.Store, _ *[]bool) {
		h.stop(true)
		began := time.Now()
		if err := g.Drop(t.Context(), ref.Namespace); !errors.Is(err, kv.ErrUnknown) || time.Since(began) > 3*time.Second {
			t.Errorf("drop of a store that hangs: %v after %v", err, time.Since(began))
		}
		var down *guard.DownError
		if err := g.Drop(t.Context(), ref.Namespace); !errors.As(err, &down) {
			t.Errorf("drop of a store that is down: %v", err)
		}
		h.stop(false)
		time.Sleep(3 * time.Second)
		if err := g.Drop(t.Context(), ref.Namespace); err != nil {
			t.Errorf("drop: %v", err)
		}
	})
}

// What must not fall goes on to be asked while it hangs, is not taken for well, and
// falls when it may.
func TestMayNotFall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hung{Store: memory.New()}
		var may atomic.Bool
		var risen atomic.Int32
		g := guard.Before(h, guard.Options{MayFall: may.Load, Risen: func() { risen.Add(1) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		h.stop(true)
		answered := make(chan error, 1)
		go func() {
			_, err := g.Get(t.Context(), ref, 0)
			answered <- err
		}()
		time.Sleep(5 * time.Second)
		if g.Up() {
			t.Error("what hangs is up")
		}
		h.stop(false)
		if err := <-answered; err != nil {
			t.Errorf("a call of what must not fall: %v", err)
		}
		time.Sleep(2 * time.Second)
		if !g.Up() || risen.Load() != 0 {
			t.Errorf("up %v, risen %d times", g.Up(), risen.Load())
		}
		h.stop(true)
		may.Store(true)
		var down *guard.DownError
		if _, err := g.Get(t.Context(), ref, 0); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("a call of what may fall: %v", err)
		}
		if _, err := g.Get(t.Context(), ref, 0); !errors.As(err, &down) {
			t.Errorf("a call of what fell: %v", err)
		}
		h.stop(false)
		time.Sleep(2 * time.Second)
		if !g.Up() || risen.Load() != 1 {
			t.Errorf("up %v, risen %d times", g.Up(), risen.Load())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
