package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// journal is a gateway.Journal in memory that can lose what is not durable.
type journal struct {
	mu      sync.Mutex // guards the rest
	entries map[string][]byte
	durable map[string][]byte
}

func newJournal() *journal {
	return &journal{entries: map[string][]byte{}, durable: map[string][]byte{}}
}

func (j *journal) Apply(ctx context.Context, entries []gateway.Entry, durable bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range entries {
		if e.Value == nil {
			delete(j.entries, e.Key)
		} else {
			j.entries[e.Key] = slices.Clone(e.Value)
			if j.entries[e.Key] == nil {
				j.entries[e.Key] = []byte{}
			}
		}
	}
	if durable {
		j.durable = maps.Clone(j.entries)
	}
	return nil
}

func (j *journal) Load(each func(gateway.Entry) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(j.entries)) {
		if err := each(gateway.Entry{Key: key, Value: j.entries[key]}); err != nil {
			return err
		}
	}
	return nil
}

// crashed is the journal as a crash would leave it.
func (j *journal) crashed() *journal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return &journal{entries: maps.Clone(j.durable), durable: maps.Clone(j.durable)}
}

// provider is a memory store that can be refused, hung and rolled back.
type provider struct {
	mu    sync.Mutex // guards the rest
	store *memory.Store
	fault kvtest.Fault
	full  bool // takes no writes
	slow  time.Duration
	calls int
}

func newProvider() *provider { return &provider{store: memory.New()} }

func (p *provider) set(fault kvtest.Fault, slow time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.slow = fault, slow
}

func (p *provider) fill(full bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.full = full
}

func (p *provider) refusesWrites() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.full {
		return kv.ErrFull
	}
	return nil
}

// under is the store itself.
func (p *provider) under() *memory.Store {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.store
}

// replace puts another store in the place of the provider's.
func (p *provider) replace(s *memory.Store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store = s
}

func (p *provider) do(ctx context.Context, f func(s *memory.Store) error) error {
	p.mu.Lock()
	fault, slow, store := p.fault, p.slow, p.store
	p.calls++
	p.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch fault {
	case kvtest.Refused:
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, kvtest.ErrInjected)
	case kvtest.Unacknowledged:
		if err := f(store); err != nil {
			return err
		}
		return fmt.Errorf("%w: %w", kv.ErrUnknown, kvtest.ErrInjected)
	case kvtest.Hang:
		<-ctx.Done()
		return ctx.Err()
	}
	return f(store)
}

func (p *provider) Get(ctx context.Context, ref kv.Ref, _ time.Duration) (rec kv.Record, err error) {
	err = p.do(ctx, func(s *memory.Store) (err error) { rec, err = s.Get(ctx, ref, 0); return err })
	return rec, err
}

func (p *provider) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return p.do(ctx, func(s *memory.Store) error {
		if err := p.refusesWrites(); err != nil {
			return err
		}
		return s.Put(ctx, ref, rec)
	})
}

func (p *provider) PutMany(ctx context.Context, writes []kv.Write) error {
	return p.do(ctx, func(s *memory.Store) error { return s.PutMany(ctx, writes) })
}

func (p *provider) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	err = p.do(ctx, func(s *memory.Store) (err error) { page, err = s.List(ctx, ns, opts); return err })
	return page, err
}

func (p *provider) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	err = p.do(ctx, func(s *memory.Store) (err error) { ids, err = s.Namespaces(ctx, after, limit); return err })
	return ids, err
}

func (p *provider) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return p.do(ctx, func(s *memory.Store) error { return s.Forget(ctx, tombs) })
}

func (p *provider) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return p.do(ctx, func(s *memory.Store) error { return s.Drop(ctx, ns) })
}

// world is a gateway of providers a and b that runs in a bubble.
type world struct {
	*gateway.Gateway
	t       *testing.T
	a, b    *provider
	journal *journal
	opts    gateway.Options
	stop    func()
}

var ns = kv.NamespaceID{7}

func ref(key string) kv.Ref { return kv.Ref{Namespace: ns, Key: key} }

// at is a version of a time.
func at(t time.Time) kv.Version { return kv.NewVersion(t.UnixNano(), 1, 1) }

func value(v kv.Version, text string) kv.Record { return kv.Record{Version: v, Value: []byte(text)} }

func inWorld(t *testing.T, opts gateway.Options, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, a: newProvider(), b: newProvider(), journal: newJournal(), opts: opts}
		w.start()
		f(w)
		w.stop()
	})
}

func (w *world) providers() []gateway.Provider {
	return []gateway.Provider{{Name: "a", Store: w.a}, {Name: "b", Store: w.b}}
}

// start begins a gateway and waits until it believes both.
func (w *world) start() {
	w.t.Helper()
	var err error
	w.opts.Journal = w.journal
	if w.Gateway, err = gateway.New(w.providers(), w.opts); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func(g *gateway.Gateway) { done <- g.Run(ctx) }(w.Gateway)
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	}
	time.Sleep(5100 * time.Millisecond) // and not when probes are made
}

// crash begins another gateway with what the journal has kept for certain.
func (w *world) crash() {
	w.t.Helper()
	w.journal = w.journal.crashed()
	w.stop()
	w.start()
}

func (w *world) put(key string, rec kv.Record) {
	w.t.Helper()
	if err := w.Put(w.t.Context(), ref(key), rec); err != nil {
		w.t.Fatalf("put %q: %v", key, err)
	}
	synctest.Wait() // until all providers have been heard of that say anything
}

// has checks what a store has of a key.
func (w *world) has(store kv.Store, key string, want kv.Record) {
	w.t.Helper()
	got, err := store.Get(w.t.Context(), ref(key), 0)
	if err != nil || got.Compare(want) != 0 {
		w.t.Errorf("key %q: %+v, %v; want %+v", key, got, err, want)
	}
}

func TestLaws(t *testing.T) {
	for n := 1; n <= 3; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			kvtest.Run(t, func(t *testing.T) kv.Store { return openGateway(t, n, gateway.Options{}) })
		})
	}
	t.Run("both", func(t *testing.T) {
		kvtest.Run(t, func(t *testing.T) kv.Store {
			return openGateway(t, 2, gateway.Options{Both: func(kv.NamespaceID) bool { return true }})
		})
	})
	t.Run("hedged", func(t *testing.T) {
		kvtest.Run(t, func(t *testing.T) kv.Store { return openGateway(t, 2, gateway.Options{Hedge: time.Millisecond}) })
	})
}

// openGateway returns a running gateway of n memory stores.
func openGateway(t *testing.T, n int, opts gateway.Options) *gateway.Gateway {
	var providers []gateway.Provider
	for i := range n {
		providers = append(providers, gateway.Provider{Name: fmt.Sprint("p", i), Store: memory.New()})
	}
	opts.Journal = newJournal()
	g, err := gateway.New(providers, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return g
}

// A write succeeds while one provider refuses or hangs, costs no more than the
// other one takes, and reaches the first one when it is back.
func TestOneProviderFails(t *testing.T) {
	for _, fault := range []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged, kvtest.Hang} {
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			inWorld(t, gateway.Options{}, func(w *world) {
				w.b.set(fault, 0)
				first := time.Now()
				for i := range 100 {
					w.put(fmt.Sprint(i), value(at(first), "new"))
				}
				for i := range 100 {
					w.has(w.Gateway, fmt.Sprint(i), value(at(first), "new"))
				}
				if d := time.Since(first); d != 0 {
					t.Errorf("100 puts and reads took %v", d)
				}
				for i := range 100 { // misses wait for b until it is known to be down
					w.has(w.Gateway, fmt.Sprint("none ", i), kv.Record{})
				}
				if d := time.Since(first); d > 3*time.Second {
					t.Errorf("100 misses took %v", d)
				}
				page, err := w.List(w.t.Context(), ns, kv.ListOptions{})
				if err != nil || len(page.Keys) != 100 {
					t.Errorf("list: %d keys, %v", len(page.Keys), err)
				}
				time.Sleep(3 * time.Second)
				if s := w.Status(); s.Queue.Depth != 100 || s.Providers[1].Queued != 100 || s.Queue.Oldest < 3*time.Second {
					t.Errorf("%+v", s)
				}
				w.b.set(kvtest.None, 0)
				time.Sleep(time.Minute)
				for i := range 100 {
					w.has(w.b.under(), fmt.Sprint(i), value(at(first), "new"))
				}
				if s := w.Status(); s.Queue.Depth != 0 || s.Queue.Repaired == 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// If all fail the error says whether the write may have been stored, and what
// became of it is settled when they are back.
func TestAllFail(t *testing.T) {
	inWorld(t, gateway.Options{}, func(w *world) {
		v := value(at(time.Now()), "v")
		w.a.set(kvtest.Refused, 0)
		w.b.set(kvtest.Unacknowledged, 0)
		if err := w.Put(w.t.Context(), ref("k"), v); !errors.Is(err, kv.ErrUnknown) {
			t.Errorf("put that may be stored: %v", err)
		}
		w.a.set(kvtest.None, 0)
		w.b.set(kvtest.None, 0)
		time.Sleep(time.Minute)
		w.has(w.a.under(), "k", v)
		w.has(w.b.under(), "k", v)
		w.a.set(kvtest.Hang, 0)
		w.b.set(kvtest.Hang, 0)
		time.Sleep(3 * time.Second)
		began := time.Now() // one of them is asked, until the deadline: there is nothing better
		if err := w.Put(w.t.Context(), ref("k"), v); !errors.Is(err, kv.ErrUnknown) || time.Since(began) != 10*time.Second {
			t.Errorf("put with both down: %v after %v", err, time.Since(began))
		}
		if _, err := w.Get(w.t.Context(), ref("k"), 0); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("get with both down: %v", err)
		}
		if w.Ready() == nil {
			t.Error("ready with both down")
		}
	})
}

// The read that follows a write sees it, though the slower provider still has the
// older record and answers first.
func TestReadAfterWrite(t *testing.T) {
	inWorld(t, gateway.Options{}, func(w *world) {
		older := value(at(time.Now()), "older")
		w.put("k", older)
		time.Sleep(time.Second)
		for _, rec := range []kv.Record{value(at(time.Now()), "newer"), kv.Tombstone(at(time.Now().Add(time.Second)))} {
			w.b.set(kvtest.Refused, 0)
			w.put("k", rec)
			w.b.set(kvtest.None, 0)
			w.a.set(kvtest.None, 50*time.Millisecond)
			w.has(w.Gateway, "k", rec)
			page, err := w.List(w.t.Context(), ns, kv.ListOptions{})
			if err != nil || len(page.Keys) != 1 || page.Keys[0].Record.Version != rec.Version {
				t.Errorf("list: %+v, %v", page, err)
			}
			many, err := w.GetMany(w.t.Context(), []kv.Ref{ref("k"), ref("none")}, 0)
			if err != nil || many[0].Compare(rec) != 0 || !many[1].Absent() {
				t.Errorf("get many: %+v, %v", many, err)
			}
			w.a.set(kvtest.None, 0)
			time.Sleep(time.Minute)
		}
	})
}

// What is known to be older than what was acknowledged is marked.
func TestStale(t *testing.T) {
	inWorld(t, gateway.Options{}, func(w *world) {
		older := value(at(time.Now()), "older")
		w.put("k", older)
		w.b.set(kvtest.Refused, 0)
		w.put("k", value(at(time.Now().Add(1)), "newer"))
		w.b.set(kvtest.None, 0)
		w.a.set(kvtest.Hang, 0)
		time.Sleep(3 * time.Second)
		a, err := w.GetAnswer(w.t.Context(), ref("k"), 0)
		if err != nil || a.Compare(older) != 0 || a.Cache != kv.Stale || a.Age < 3*time.Second {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// A namespace may want all providers.
func TestBoth(t *testing.T) {
	inWorld(t, gateway.Options{Both: func(id kv.NamespaceID) bool { return id == ns }}, func(w *world) {
		w.b.set(kvtest.None, 300*time.Millisecond)
		began := time.Now()
		w.put("k", value(at(time.Now()), "v"))
		if time.Since(began) < 300*time.Millisecond {
			t.Error("acknowledged before b had it")
		}
		w.b.set(kvtest.Refused, 0)
		if err := w.Put(w.t.Context(), ref("k"), value(at(time.Now().Add(1)), "w")); !errors.Is(err, kv.ErrUnknown) {
			t.Errorf("put with one provider down: %v", err)
		}
	})
}

// The queue survives a crash; so does the knowledge that its last notes may not have.
func TestCrash(t *testing.T) {
	inWorld(t, gateway.Options{CrawlEvery: -1}, func(w *world) {
		older := value(at(time.Now()), "older")
		w.put("late", older)
		time.Sleep(time.Second)
		w.b.set(kvtest.Refused, 0)
		newer := value(at(time.Now()), "newer")
		w.put("noted", newer)
		time.Sleep(time.Second)
		w.put("late", newer) // and the crash comes before the journal has it
		w.journal = w.journal.crashed()
		w.stop()
		w.b.set(kvtest.None, 0)
		w.a.set(kvtest.None, 10*time.Millisecond)
		var err error
		w.opts.Journal = w.journal
		if w.Gateway, err = gateway.New(w.providers(), w.opts); err != nil {
			t.Fatal(err)
		}
		w.has(w.Gateway, "late", newer) // b has the older one and answers first
		w.start()
		time.Sleep(time.Minute)
		w.has(w.b.under(), "noted", newer)
		w.has(w.b.under(), "late", newer)
		if s := w.Status(); s.Queue.Depth != 0 || s.Queue.Dirty != 0 {
			t.Errorf("%+v", s.Queue)
		}
	})
}

// Each of the ways of repair finds what the others were not there for; with all
// of them off the difference stays.
func TestMechanisms(t *testing.T) {
	off := func(wr, rr, c bool) gateway.Mechanisms {
		return gateway.Mechanisms{WriteRepair: wr, ReadRepair: rr, Crawl: c}
	}
	for _, test := range []struct {
		name string
		off  gateway.Mechanisms
		heal bool
	}{
		{"write repair", off(false, true, true), true},
		{"read repair", off(true, false, true), true},
		{"crawl", off(true, true, false), true},
		{"none", off(true, true, true), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, gateway.Options{Off: test.off, CrawlEvery: time.Minute}, func(w *world) {
				w.b.set(kvtest.Refused, 0)
				v := value(at(time.Now()), "v")
				w.put("k", v)
				w.b.set(kvtest.None, 0)
				time.Sleep(2 * time.Second)
				w.has(w.Gateway, "k", v)
				time.Sleep(3 * time.Minute)
				got, err := w.b.under().Get(w.t.Context(), ref("k"), 0)
				if err != nil || got.Absent() == test.heal {
					t.Errorf("%+v, %v; healed: want %v", got, err, test.heal)
				}
			})
		})
	}
}

// Tombstones are removed when all have them and they are old enough, and not before.
func TestForget(t *testing.T) {
	inWorld(t, gateway.Options{CrawlEvery: time.Minute, ForgetAfter: time.Hour}, func(w *world) {
		dead := kv.Tombstone(at(time.Now()))
		w.put("k", value(at(time.Now().Add(-time.Hour)), "v"))
		w.put("k", dead)
		time.Sleep(50 * time.Minute)
		w.has(w.a.under(), "k", dead)
		w.has(w.b.under(), "k", dead)
		w.b.set(kvtest.Hang, 0)
		time.Sleep(30 * time.Minute)
		w.has(w.a.under(), "k", dead)
		w.b.set(kvtest.None, 0)
		time.Sleep(5 * time.Minute)
		w.has(w.a.under(), "k", kv.Record{})
		w.has(w.b.under(), "k", kv.Record{})
	})
}

// clone is a copy of what a store has now.
func (w *world) clone(p *provider) *memory.Store {
	w.t.Helper()
	from, to := p.under(), memory.New()
	ids, err := from.Namespaces(w.t.Context(), kv.NamespaceID{}, kv.MaxNamespaces)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, id := range ids {
		page, err := from.List(w.t.Context(), id, kv.ListOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, k := range page.Keys {
			at := kv.Ref{Namespace: id, Key: k.Key}
			rec, err := from.Get(w.t.Context(), at, 0)
			if err == nil {
				err = to.Put(w.t.Context(), at, rec)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
	return to
}

// A provider that is restored from an old copy is found out by its pulse. It is not
// believed alone, loses nothing for others and brings nothing back to life.
func TestRestored(t *testing.T) {
	inWorld(t, gateway.Options{ForgetAfter: 24 * time.Hour, CrawlEvery: time.Hour}, func(w *world) {
		w.put("deleted", value(at(time.Now()), "old"))
		w.put("changed", value(at(time.Now()), "old"))
		old := w.clone(w.b)
		time.Sleep(time.Hour)
		dead, newer := kv.Tombstone(at(time.Now())), value(at(time.Now()), "new")
		w.put("deleted", dead)
		w.put("changed", newer)
		w.put("added", newer)
		time.Sleep(time.Minute)
		w.b.set(kvtest.Refused, 0)
		time.Sleep(time.Minute)
		w.b.replace(old)
		w.b.set(kvtest.None, 0)
		w.a.set(kvtest.None, 10*time.Millisecond)
		for range 600 { // from the moment at which it is back
			w.has(w.Gateway, "changed", newer)
			w.has(w.Gateway, "added", newer)
			w.has(w.Gateway, "deleted", dead)
			time.Sleep(10 * time.Millisecond)
		}
		w.a.set(kvtest.None, 0)
		time.Sleep(time.Minute)
		w.has(w.b.under(), "changed", newer)
		w.has(w.b.under(), "added", newer)
		w.has(w.b.under(), "deleted", dead)
		if s := w.Status(); !s.Providers[1].Trusted || s.Providers[1].State != gateway.Active {
			t.Errorf("%+v", s.Providers[1])
		}
	})
}

// A provider that is restored from a copy older than tombstones are kept is taken
// out of service, is refused to be filled as it is, and is filled from nothing.
func TestRestoredTooOld(t *testing.T) {
	inWorld(t, gateway.Options{ForgetAfter: 24 * time.Hour, CrawlEvery: time.Hour}, func(w *world) {
		w.put("deleted", value(at(time.Now()), "old"))
		kept := value(at(time.Now()), "kept")
		w.put("kept", kept)
		old := w.clone(w.b)
		time.Sleep(time.Hour)
		w.put("deleted", kv.Tombstone(at(time.Now())))
		time.Sleep(72 * time.Hour)
		w.has(w.a.under(), "deleted", kv.Record{})
		w.b.set(kvtest.Refused, 0)
		time.Sleep(time.Minute)
		w.b.replace(old)
		w.b.set(kvtest.None, 0)
		time.Sleep(2 * time.Hour)
		w.has(w.Gateway, "deleted", kv.Record{})
		w.has(w.a.under(), "deleted", kv.Record{})
		if s := w.Status(); s.Providers[1].State != gateway.Removed {
			t.Fatalf("%+v", s.Providers[1])
		}
		if err := w.Fill(w.t.Context(), "b", false); !errors.Is(err, gateway.ErrRefused) {
			t.Errorf("fill with what it has: %v", err)
		}
		if err := w.Fill(w.t.Context(), "b", true); err != nil {
			t.Fatalf("fill: %v", err)
		}
		time.Sleep(time.Minute)
		if err := w.Promote(w.t.Context(), "b"); err != nil {
			t.Errorf("promote: %v", err)
		}
		w.has(w.b.under(), "deleted", kv.Record{})
		w.has(w.b.under(), "kept", kept)
	})
}

// A second provider is added, filled while writes go on, compared, promoted; the
// first one is removed.
func TestRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, a: newProvider(), b: newProvider(), journal: newJournal()}
		one, err := gateway.New(w.providers()[:1], gateway.Options{Journal: w.journal})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- one.Run(ctx) }()
		rec := value(at(time.Now()), "v")
		for i := range 3000 {
			if err := one.Put(t.Context(), ref(fmt.Sprint("k", i)), rec); err != nil {
				t.Fatal(err)
			}
		}
		if err := one.Remove(t.Context(), "a", true); !errors.Is(err, gateway.ErrRefused) {
			t.Errorf("remove the only provider: %v", err)
		}
		time.Sleep(time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := gateway.New(w.providers()[1:], gateway.Options{Journal: w.journal}); err == nil {
			t.Error("a gateway without any provider that was active")
		}
		if w.Gateway, err = gateway.New(w.providers(), gateway.Options{Journal: w.journal}); err != nil {
			t.Fatal(err)
		}
		if err := w.Promote(t.Context(), "b"); !errors.Is(err, gateway.ErrRefused) {
			t.Errorf("promote what is not filled: %v", err)
		}
		w.has(w.Gateway, "k1", rec)
		w.start()
		w.put("more", rec)
		w.has(w.b.under(), "more", rec)
		time.Sleep(time.Minute)
		if drift, err := w.Verify(t.Context(), gateway.VerifyOptions{Values: true}, nil); err != nil || drift.Total() != 0 || drift.Compared != 3001 {
			t.Errorf("%+v, %v", drift, err)
		}
		if err := w.Promote(t.Context(), "b"); err != nil {
			t.Errorf("promote: %v", err)
		}
		if err := w.Remove(t.Context(), "a", false); err != nil {
			t.Errorf("remove: %v", err)
		}
		w.a.set(kvtest.Hang, 0)
		w.has(w.Gateway, "k2999", rec)
		w.put("last", rec)
		w.stop()
		w.start()
		w.has(w.Gateway, "last", rec)
		w.stop()
	})
}

// A provider that alone has what waits in the queue is not let go.
func TestRemoveRefused(t *testing.T) {
	inWorld(t, gateway.Options{}, func(w *world) {
		w.b.set(kvtest.Refused, 0)
		w.put("k", value(at(time.Now()), "v"))
		if err := w.Remove(w.t.Context(), "a", false); !errors.Is(err, gateway.ErrRefused) {
			t.Errorf("remove a: %v", err)
		}
		if err := w.Remove(w.t.Context(), "b", false); err != nil {
			t.Errorf("remove b: %v", err)
		}
		if s := w.Status(); s.Queue.Depth != 0 {
			t.Errorf("%+v", s.Queue)
		}
	})
}

// A provider that had fallen behind before it was removed is not as new as it was
// then: what it lacked may be forgotten by the others. Nor is one that goes back
// while it is removed.
func TestRemovedWhileBehind(t *testing.T) {
	behind := func(w *world) {
		w.b.set(kvtest.Refused, 0)
		w.put("k", kv.Tombstone(at(time.Now())))
		time.Sleep(20 * time.Minute)
	}
	wentBack := func(w *world) { w.put("k", kv.Tombstone(at(time.Now()))) }
	for name, before := range map[string]func(*world){"behind": behind, "went back": wentBack, "neither": func(*world) {}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, gateway.Options{ForgetAfter: 24 * time.Minute, CrawlEvery: time.Minute}, func(w *world) {
				w.put("k", value(at(time.Now()), "v"))
				time.Sleep(time.Minute)
				old := w.clone(w.b)
				before(w)
				time.Sleep(time.Minute)
				if err := w.Remove(w.t.Context(), "b", false); err != nil {
					t.Fatal(err)
				}
				w.b.set(kvtest.None, 0)
				if name == "went back" {
					w.b.replace(old)
				}
				time.Sleep(8 * time.Minute)
				if err := w.Fill(w.t.Context(), "b", false); errors.Is(err, gateway.ErrRefused) != (name != "neither") {
					t.Errorf("fill with what it has: %v", err)
				}
			})
		})
	}
}

// A provider that went back and takes no writes is found out once, and not again and
// again with a pulse that grows old, until it is taken out of service.
func TestRestoredAndFull(t *testing.T) {
	inWorld(t, gateway.Options{ForgetAfter: 10 * time.Minute, CrawlEvery: time.Minute}, func(w *world) {
		v := value(at(time.Now()), "v")
		w.put("k", v)
		old := w.clone(w.b)
		time.Sleep(time.Minute)
		w.b.set(kvtest.Refused, 0)
		time.Sleep(5 * time.Second)
		w.b.replace(old)
		w.b.set(kvtest.None, 0)
		w.b.fill(true)
		time.Sleep(10 * time.Minute)
		if s := w.Status().Providers[1]; s.State != gateway.Active || !s.Trusted {
			t.Errorf("%+v", s)
		}
		w.b.fill(false)
		w.has(w.Gateway, "k", v)
	})
}

// A namespace that is dropped while a provider is down does not come back.
func TestDrop(t *testing.T) {
	inWorld(t, gateway.Options{CrawlEvery: time.Minute}, func(w *world) {
		w.put("k", value(at(time.Now()), "v"))
		time.Sleep(time.Second)
		w.b.set(kvtest.Hang, 0)
		time.Sleep(5 * time.Second)
		if err := w.Drop(w.t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		w.crash()
		time.Sleep(time.Hour)
		w.b.set(kvtest.None, 0)
		time.Sleep(time.Hour)
		w.has(w.a.under(), "k", kv.Record{})
		w.has(w.b.under(), "k", kv.Record{})
	})
}

// A queue that is full gives whole namespaces to the crawl, and until then
// providers that may lack keys of them are not believed alone.
func TestOverflow(t *testing.T) {
	for _, n := range []int{100, 101} {
		inWorld(t, gateway.Options{MaxQueued: 100, CrawlEvery: -1}, func(w *world) {
			older, newer := value(at(time.Now()), "older"), value(at(time.Now().Add(time.Second)), "newer")
			for i := range n {
				w.put(fmt.Sprint(i), older)
			}
			time.Sleep(2 * time.Second)
			w.b.set(kvtest.Refused, 0)
			for i := range n {
				w.put(fmt.Sprint(i), newer)
			}
			synctest.Wait()
			if s := w.Status().Queue; s.Depth != 100 || s.Dirty != n-100 || s.Dropped != uint64(n-100) {
				t.Errorf("%d keys: %+v", n, s)
			}
			w.b.set(kvtest.None, 0)
			w.a.set(kvtest.None, 10*time.Millisecond)
			for i := range n {
				w.has(w.Gateway, fmt.Sprint(i), newer)
			}
			time.Sleep(5 * time.Minute)
			for i := range n {
				w.has(w.b.under(), fmt.Sprint(i), newer)
			}
			if s := w.Status().Queue; s.Depth != 0 || s.Dirty != 0 {
				t.Errorf("%d keys: %+v", n, s)
			}
		})
	}
}

// Verify tells what differs, and how.
func TestVerify(t *testing.T) {
	inWorld(t, gateway.Options{CrawlEvery: -1}, func(w *world) {
		now := time.Now()
		same := value(at(now), "same")
		for i := range 2500 {
			w.put(fmt.Sprintf("%04d", i), same)
		}
		time.Sleep(time.Minute)
		put := func(p *provider, key string, rec kv.Record) {
			if err := p.under().Put(w.t.Context(), ref(key), rec); err != nil {
				t.Fatal(err)
			}
		}
		put(w.a, "1000", value(at(now.Add(1)), "newer"))
		put(w.b, "extra", same)
		put(w.a, "meta", kv.Record{Version: at(now), Metadata: []byte("1")})
		put(w.b, "meta", kv.Record{Version: at(now), Metadata: []byte("2")})
		put(w.a, "value", value(at(now), "1"))
		put(w.b, "value", value(at(now), "2"))
		calls := 0
		drift, err := w.Verify(w.t.Context(), gateway.VerifyOptions{Values: true, Repair: true}, func(gateway.VerifyProgress) { calls++ })
		if err != nil || drift.Compared != 2503 || drift.Missing != 1 || drift.Older != 1 || drift.Content != 1 || drift.Values != 1 || len(drift.Examples) != 4 || calls < 3 {
			t.Errorf("%+v, %v, %d calls", drift, err, calls)
		}
		time.Sleep(time.Minute)
		if drift, err = w.Verify(w.t.Context(), gateway.VerifyOptions{}, nil); err != nil || drift.Total() != 0 {
			t.Errorf("%+v, %v", drift, err)
		}
	})
}

// The rest of what New refuses.
func TestNew(t *testing.T) {
	p := func(names ...string) (all []gateway.Provider) {
		for _, name := range names {
			all = append(all, gateway.Provider{Name: name, Store: memory.New()})
		}
		return all
	}
	long := "a234567890123456789012345678901"
	for _, test := range []struct {
		providers []gateway.Provider
		ok        bool
	}{
		{nil, false},
		{p("1", "2", "3", "4", "5", "6", "7", "8"), true},
		{p("1", "2", "3", "4", "5", "6", "7", "8", "9"), false},
		{p(long + "b"), true},
		{p(long + "bc"), false},
		{p("A"), false},
		{p(""), false},
		{p("a", "a"), false},
	} {
		if _, err := gateway.New(test.providers, gateway.Options{Journal: newJournal()}); (err == nil) != test.ok {
			t.Errorf("%d providers: %v", len(test.providers), err)
		}
	}
	if _, err := gateway.New(p("a"), gateway.Options{}); err == nil {
		t.Error("a gateway without a journal")
	}
}

// large is a provider whose values ask for memory, and then take their time.
type large struct {
	*provider
	take time.Duration
}

func (l *large) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if ref.Namespace == ns {
		if err := kv.Reserve(ctx, kv.ReserveBytes); err != nil {
			return kv.Record{}, err
		}
		select {
		case <-time.After(l.take):
		case <-ctx.Done():
			return kv.Record{}, ctx.Err()
		}
	}
	return l.provider.Get(ctx, ref, maxAge)
}

// A large value is read from one provider, which asks for memory once; if that one
// takes long the other is asked as well. When the request is over no memory is
// asked for.
func TestLargeValues(t *testing.T) {
	for _, test := range []struct {
		a, b, within time.Duration
		reserved     int64
	}{
		{0, 0, 0, kv.ReserveBytes},
		{time.Hour, 0, 300 * time.Millisecond, 2 * kv.ReserveBytes},
		{0, time.Hour, 300 * time.Millisecond, 2 * kv.ReserveBytes},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := &large{newProvider(), test.a}, &large{newProvider(), test.b}
			rec := value(at(time.Now().Add(-time.Hour)), "large")
			for _, l := range []*large{a, b} {
				if err := l.under().Put(t.Context(), ref("k"), rec); err != nil {
					t.Fatal(err)
				}
			}
			g, err := gateway.New([]gateway.Provider{{Name: "a", Store: a}, {Name: "b", Store: b}}, gateway.Options{Journal: newJournal()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- g.Run(ctx) }()
			time.Sleep(5100 * time.Millisecond)
			var reserved int64
			over := false
			began := time.Now()
			request := kv.WithReserver(t.Context(), func(n int64) error {
				if over {
					t.Error("memory is asked for after the answer")
				}
				reserved += n
				return nil
			})
			got, err := g.Get(request, ref("k"), 0)
			over = true
			if err != nil || got.Compare(rec) != 0 || time.Since(began) > test.within || reserved > test.reserved {
				t.Errorf("%+v, %v after %v, %d bytes reserved; want %+v", got.Version, err, time.Since(began), reserved, test)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
