package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

// A storm is a random run in simulated time: clients write, read, list and forget
// few keys, while slots move, namespaces are spread, and moves are taken back.
type storm struct {
	seed    uint64
	omit    omission
	faults  int           // of 1,000 calls of a cluster
	rounds  int           // of each client
	latency time.Duration // the longest
}

// restOfStorm is what the parts of a storm share.
type restOfStorm struct {
	storm
	t        *testing.T
	mu       sync.Mutex // guards rng and failures
	rng      *rand.Rand
	failures []error
	books    *books
	shards   *Shards
	clusters []Cluster // without faults
	spaces   []kv.NamespaceID
}

func (r *restOfStorm) intn(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.IntN(n)
}

// slow answers after a while, and sometimes with a fault.
type slow struct {
	kvtest.Faulty
	storm *restOfStorm
}

func (s *slow) wait() { <-time.After(time.Duration(s.storm.intn(int(s.storm.latency)))) }

func (s *slow) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	s.wait()
	defer s.wait()
	return s.Faulty.Get(ctx, ref, maxAge)
}

func (s *slow) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	s.wait()
	defer s.wait()
	return s.Faulty.GetMany(ctx, refs, maxAge)
}

func (s *slow) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	s.wait()
	defer s.wait()
	return s.Faulty.Put(ctx, ref, rec)
}

func (s *slow) PutMany(ctx context.Context, writes []kv.Write) error {
	for _, w := range writes {
		if err := s.Put(ctx, w.Ref, w.Record); err != nil {
			return err
		}
	}
	return nil
}

func (s *slow) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	s.wait()
	defer s.wait()
	opts.Limit = min(opts.PageLimit(), 4)
	return s.Faulty.List(ctx, ns, opts)
}

func (s *slow) Forget(ctx context.Context, tombs []kv.Tomb) error {
	s.wait()
	defer s.wait()
	if s.storm.intn(1000) < s.storm.faults {
		return kv.ErrUnavailable
	}
	return kv.Forget(ctx, s.Store, tombs)
}

func (s *slow) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	s.wait()
	return kv.Namespaces(ctx, s.Store, after, limit)
}

// run runs the storm within a bubble and returns what was wrong.
func (st storm) run(t *testing.T) (wrong []string, failures []error) {
	r := &restOfStorm{storm: st, t: t, rng: rand.New(rand.NewPCG(st.seed, 0)), books: newBooks(), clusters: memories(4)}
	own := memories(4)
	for i := range own {
		own[i].Store = &slow{kvtest.Faulty{Store: r.clusters[i].Store, Inject: r.inject}, r}
	}
	opts := quick(&heldTable{})
	opts.Moves, opts.omit, opts.DropAfter, opts.ProbeEvery = 3, st.omit, 20*time.Millisecond, time.Second
	var err error
	if r.shards, err = NewShards(own, opts); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r.spaces = append(r.spaces, namespaceIn(40+i/2, i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := r.shards.start(ctx); err != nil {
		t.Fatal(err)
	}
	r.haunt(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.shards.Run(ctx) }()
	var clients, stirrer sync.WaitGroup
	for i := range 6 {
		clients.Go(func() { r.client(ctx, i) })
	}
	stirring, stop := context.WithCancel(ctx)
	stirrer.Go(func() { r.stir(stirring) })
	clients.Wait()
	stop()
	stirrer.Wait()

	r.mu.Lock()
	r.faults = 0
	r.mu.Unlock()
	awaitMoves(t, r.shards)
	r.books.audit(t, "in the end", r.shards)
	if st.omit == 0 {
		r.books.tidy(t, "in the end", r.shards, r.clusters)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	return r.books.wrong, r.failures
}

// haunt leaves in every cluster but its own what a key was in earlier times.
func (r *restOfStorm) haunt(ctx context.Context) {
	for _, ns := range r.spaces {
		for i := range 8 {
			ref := kv.Ref{Namespace: ns, Key: fmt.Sprint("ghost ", i)}
			r.books.floor(ref) // nobody wrote it
			for _, c := range r.clusters {
				if r.shards.current.Load().place(ns, ref.Key).home.Name == c.Name {
					continue
				}
				if err := c.Store.Put(ctx, ref, kv.Record{Version: kv.NewVersion(1, 0, 0)}); err != nil {
					r.t.Error(err)
				}
			}
		}
	}
}

func (r *restOfStorm) inject(op kvtest.Op, ref kv.Ref) kvtest.Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ref.Namespace == TableNamespace || r.rng.IntN(1000) >= r.faults {
		return kvtest.None
	}
	return []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged}[r.rng.IntN(2)]
}

func (r *restOfStorm) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, err)
}

// client works on keys of its own and reads those of all.
func (r *restOfStorm) client(ctx context.Context, who int) {
	for range r.rounds {
		ns := r.spaces[r.intn(len(r.spaces))]
		own := kv.Ref{Namespace: ns, Key: fmt.Sprintf("key %d of %d", r.intn(6), who)}
		any := kv.Ref{Namespace: ns, Key: fmt.Sprintf("key %d of %d", r.intn(6), r.intn(6))}
		switch r.intn(10) {
		case 0, 1, 2:
			r.fail(r.books.put(ctx, r.shards, own, false))
		case 3:
			r.fail(r.books.put(ctx, r.shards, own, true))
		case 4:
			r.fail(r.books.forget(ctx, r.shards, own))
		case 5:
			r.fail(r.putMany(ctx, own))
		case 6:
			r.fail(r.list(ctx, ns))
		case 7:
			r.fail(r.getMany(ctx, any, own))
		default:
			r.fail(r.books.get(ctx, r.shards, any))
		}
	}
}

func (r *restOfStorm) putMany(ctx context.Context, own kv.Ref) error {
	var writes []kv.Write
	for _, ns := range r.spaces {
		ref := kv.Ref{Namespace: ns, Key: own.Key}
		writes = append(writes, kv.Write{Ref: ref, Record: r.books.record(ref, r.intn(3) == 0)})
	}
	err := r.shards.PutMany(ctx, writes)
	for _, w := range writes {
		r.books.ack(w.Ref, w.Record, err)
	}
	return err
}

func (r *restOfStorm) getMany(ctx context.Context, refs ...kv.Ref) error {
	floors := make([]known, len(refs))
	for i, ref := range refs {
		floors[i] = r.books.floor(ref)
	}
	recs, err := r.shards.GetMany(ctx, refs, 0)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		r.books.read(ref, recs[i], floors[i])
	}
	return nil
}

// list checks that no key is missing, wrong or out of order.
func (r *restOfStorm) list(ctx context.Context, ns kv.NamespaceID) error {
	floors := map[string]known{}
	for _, ref := range r.books.refs() {
		if ref.Namespace == ns {
			floors[ref.Key] = r.books.floor(ref)
		}
	}
	last := ""
	for opts := (kv.ListOptions{Limit: 5}); ; {
		page, err := r.shards.List(ctx, ns, opts)
		if err != nil {
			return err
		}
		for _, k := range page.Keys {
			if k.Key <= last {
				r.books.blame("listing %s: %q after %q", ns, k.Key, last)
			}
			last = k.Key
			if k.Record.Version.Compare(floors[k.Key].floor) < 0 {
				r.books.blame("listing %s: %q is listed as %s, at least %s was expected", ns, k.Key, k.Record.Version, floors[k.Key].floor)
			}
			delete(floors, k.Key)
		}
		if opts.After = page.Last; !page.More {
			break
		}
	}
	for key, floor := range floors {
		ref := kv.Ref{Namespace: ns, Key: key}
		r.books.read(ref, kv.Record{}, floor)
	}
	return nil
}

// stir directs slots and namespaces here and there, at random.
func (r *restOfStorm) stir(ctx context.Context) {
	for ctx.Err() == nil {
		ns := r.spaces[r.intn(len(r.spaces))]
		switch r.intn(4) {
		case 0:
			r.fail(r.shards.Spread(ns, r.intn(4)))
		default:
			r.fail(r.shards.Move(slotOf(ns, r.intn(4)), fmt.Sprint("c", r.intn(4))))
		}
		select {
		case <-time.After(time.Duration(r.intn(int(300 * time.Millisecond)))):
		case <-ctx.Done():
		}
	}
}

// seeds are those of the random runs: SHARDS_SEED repeats one.
func seeds(t *testing.T, n int) (list []uint64) {
	t.Helper()
	if text := os.Getenv("SHARDS_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	for range n {
		list = append(list, rand.Uint64())
	}
	return list
}

// Slots move under load: no call fails, no write is lost, no read is wrong.
func TestMovesUnderLoad(t *testing.T) {
	for _, seed := range seeds(t, 6) {
		synctest.Test(t, func(t *testing.T) {
			wrong, failures := storm{seed: seed, rounds: 300, latency: 5 * time.Millisecond}.run(t)
			for _, w := range wrong[:min(len(wrong), 5)] {
				t.Errorf("SHARDS_SEED=%d: %s", seed, w)
			}
			if len(failures) > 0 {
				t.Errorf("SHARDS_SEED=%d: %d calls failed: %v", seed, len(failures), failures[0])
			}
		})
	}
}

// With clusters that refuse calls, or do not acknowledge what they did, calls fail;
// what was acknowledged holds all the same.
func TestMovesOverFailingClusters(t *testing.T) {
	for _, seed := range seeds(t, 6) {
		synctest.Test(t, func(t *testing.T) {
			wrong, failures := storm{seed: seed, rounds: 300, latency: 5 * time.Millisecond, faults: 20}.run(t)
			for _, w := range wrong[:min(len(wrong), 5)] {
				t.Errorf("SHARDS_SEED=%d: %s", seed, w)
			}
			if len(failures) == 0 {
				t.Errorf("SHARDS_SEED=%d: nothing failed", seed)
			}
			for _, err := range failures {
				if !errors.Is(err, kvtest.ErrInjected) && !errors.Is(err, kv.ErrUnavailable) {
					t.Errorf("SHARDS_SEED=%d: %v", seed, err)
				}
			}
		})
	}
}

// The storm finds what is missing when a part of a move is left out.
func TestMovesUnderLoadControl(t *testing.T) {
	for name, st := range map[string]storm{
		"clear":  {omit: omitClear | omitVerify},
		"mirror": {omit: omitMirror | omitVerify},
		"copy":   {omit: omitCopy | omitVerify},
		"missed": {omit: omitMissed | omitVerify, faults: 50},
	} {
		t.Run(name, func(t *testing.T) {
			st.rounds, st.latency = 300, 5*time.Millisecond
			for st.seed = range uint64(20) {
				found := 0
				synctest.Test(t, func(t *testing.T) {
					wrong, _ := st.run(t)
					found = len(wrong)
				})
				if found > 0 {
					t.Logf("seed %d: %d", st.seed, found)
					return
				}
			}
			t.Error("nothing was missed")
		})
	}
}
