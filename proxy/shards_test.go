package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// heldTable is a Keeper in memory that outlives the Shards.
type heldTable struct {
	mu    sync.Mutex // guards text
	text  []byte
	fault func() (before, after error) // nil: none
}

func (k *heldTable) Load() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text, nil
}

func (k *heldTable) Save(text []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var before, after error
	if k.fault != nil {
		before, after = k.fault()
	}
	if before != nil {
		return before
	}
	k.text = text
	return after
}

// quick are options under which moves do not wait.
func quick(keeper Keeper) ShardsOptions {
	return ShardsOptions{Keeper: keeper, Logger: slog.New(slog.DiscardHandler), DropAfter: time.Nanosecond, RetryAfter: time.Millisecond, ProbeEvery: 10 * time.Millisecond}
}

// memories returns n clusters in memory.
func memories(n int) []Cluster {
	clusters := make([]Cluster, n)
	for i := range clusters {
		clusters[i] = Cluster{Name: fmt.Sprintf("c%d", i), Weight: 1, Store: memory.New()}
	}
	return clusters
}

func mustShards(t testing.TB, clusters []Cluster, opts ShardsOptions) *Shards {
	t.Helper()
	s, err := NewShards(clusters, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run lets a Shards carry its moves on until the test or stop ends.
func run(t testing.TB, s *Shards) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// awaitMoves waits until no move is left.
func awaitMoves(t testing.TB, s *Shards) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		changed := s.changed.C()
		status := s.Status()
		if status.Epoch > 0 && len(status.Moves) == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the moves do not end: %+v", status.Moves)
		}
	}
}

func TestShardsLaws(t *testing.T) {
	for _, n := range []int{1, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			kvtest.Run(t, func(t *testing.T) kv.Store { return mustShards(t, memories(n), quick(&heldTable{})) })
		})
	}
}

// restless moves the slots of every namespace that it meets, for as long as it is
// used, and spreads it.
type restless struct {
	*Shards
	mu    sync.Mutex // guards known
	known map[kv.NamespaceID]bool
	moved atomic.Int64
}

func (r *restless) meet(ns kv.NamespaceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[ns] = true
}

func (r *restless) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	r.meet(ref.Namespace)
	return r.Shards.Get(ctx, ref, maxAge)
}

func (r *restless) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	r.meet(ref.Namespace)
	return r.Shards.Put(ctx, ref, rec)
}

func (r *restless) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	r.meet(ns)
	return r.Shards.List(ctx, ns, opts)
}

// stir directs what is not on its way elsewhere.
func (r *restless) stir(ctx context.Context, t *testing.T) {
	for i := 0; ctx.Err() == nil; i++ {
		changed := r.changed.C()
		r.mu.Lock()
		known := keysOf(r.known)
		r.mu.Unlock()
		if len(r.Status().Moves) == 0 {
			for _, ns := range known {
				err := r.Spread(ns, []int{0, 2, 0, 3, 1}[i%5])
				if i%2 == 1 {
					err = r.Move(slotOf(ns, i%4), fmt.Sprintf("c%d", i%4))
				}
				if err != nil {
					t.Error(err)
				}
			}
			r.moved.Add(1)
		}
		select {
		case <-changed:
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func TestShardsLawsWhileMoving(t *testing.T) {
	var moved int64
	kvtest.Run(t, func(t *testing.T) kv.Store {
		s := mustShards(t, memories(4), quick(&heldTable{}))
		if _, err := s.Get(t.Context(), kv.Ref{Key: "k"}, 0); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		r := &restless{Shards: s, known: map[kv.NamespaceID]bool{}}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { r.stir(ctx, t) })
		t.Cleanup(func() { cancel(); wg.Wait(); moved += r.moved.Load() })
		return r
	})
	if moved < 20 {
		t.Errorf("only %d moves were made meanwhile", moved)
	}
}
