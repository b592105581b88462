package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

func TestLaws(t *testing.T) {
	for name, opts := range map[string]Options{"sole": {Sole: true}, "tier": {}, "tiny near": {NearBytes: 2000}, "nothing near": {MaxValueBytes: -1}} {
		t.Run(name, func(t *testing.T) {
			kvtest.Run(t, func(*testing.T) kv.Store { return New(memory.New(), opts) })
		})
	}
	t.Run("tier behind tier", func(t *testing.T) {
		kvtest.Run(t, func(*testing.T) kv.Store { return New(New(memory.New(), Options{}), Options{}) })
	})
}

// counted is a far store that counts its reads and can be stopped.
type counted struct {
	kv.Store
	reads atomic.Int64
	gate  chan struct{} // nil: open; a read waits for it
	fail  atomic.Bool
}

func (c *counted) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	c.reads.Add(1)
	if c.gate != nil {
		select {
		case <-c.gate:
		case <-ctx.Done():
			return kv.Record{}, ctx.Err()
		}
	}
	if c.fail.Load() {
		return kv.Record{}, fmt.Errorf("far: %w", kv.ErrUnavailable)
	}
	return c.Store.Get(ctx, ref, maxAge)
}

func (c *counted) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return kv.Drop(ctx, c.Store, ns)
}

func (c *counted) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return kv.Forget(ctx, c.Store, tombs)
}

var ref = kv.Ref{Key: "k"}

// version n of a time when a tier that began with synctest's clock has settled.
func version(n int64) kv.Version {
	begun := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	return kv.NewVersion(begun.Add(kv.MaxFuture).UnixNano()+n, 1, 1)
}

func record(n int64, value string) kv.Record {
	return kv.Record{Version: version(n), Value: []byte(value)}
}

func mustPut(t *testing.T, s kv.Store, rec kv.Record) {
	t.Helper()
	if err := s.Put(context.Background(), ref, rec); err != nil {
		t.Fatal(err)
	}
}

// expectGet reads and compares the value ("" for absent), the cache status and
// the number of far reads so far.
func expectGet(t *testing.T, tier *Tier, far *counted, maxAge time.Duration, value string, status kv.CacheStatus, reads int64) {
	t.Helper()
	a, err := tier.GetAnswer(context.Background(), ref, maxAge)
	if err != nil || string(a.Value) != value || a.Cache != status || far.reads.Load() != reads {
		t.Fatalf("got %q, %s after %d far reads, %v; want %q, %s after %d", a.Value, a.Cache, far.reads.Load(), err, value, status, reads)
	}
	if a.Age > maxAge && status != kv.Stale {
		t.Fatalf("age %s, at most %s was asked for", a.Age, maxAge)
	}
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		mustPut(t, far.Store, record(2, "two")) // elsewhere
		time.Sleep(30 * time.Second)
		expectGet(t, tier, far, time.Minute, "one", kv.Hit, 1)
		expectGet(t, tier, far, 30*time.Second, "one", kv.Hit, 1)
		expectGet(t, tier, far, 30*time.Second-1, "two", kv.Expired, 2) // a lower maxAge shortens what is cached
		expectGet(t, tier, far, time.Minute, "two", kv.Hit, 2)
		time.Sleep(time.Minute + 1)
		expectGet(t, tier, far, time.Minute, "two", kv.Expired, 3)
		time.Sleep(time.Nanosecond)
		expectGet(t, tier, far, 0, "two", kv.Expired, 4)
	})
}

func TestAbsenceIsCachedAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		expectGet(t, tier, far, time.Minute, "", kv.Miss, 1)
		expectGet(t, tier, far, time.Minute, "", kv.Hit, 1)
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "", kv.Hit, 1)
		tier.Changed([]kv.Change{{Ref: ref, Version: version(1)}})
		expectGet(t, tier, far, time.Minute, "one", kv.Expired, 2)
	})
}

func TestAgesAddUpBehindTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		regional := New(far, Options{})
		tier := New(regional, Options{})
		mustPut(t, far.Store, record(1, "one"))
		if _, err := regional.Get(context.Background(), ref, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Second)
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1) // from regional, 40 s old
		mustPut(t, far.Store, record(2, "two"))
		time.Sleep(20 * time.Second)
		expectGet(t, tier, far, time.Minute, "one", kv.Hit, 1)
		time.Sleep(time.Nanosecond)
		expectGet(t, tier, far, time.Minute, "two", kv.Expired, 2)
	})
}

func TestUnbrokenFeedKeepsCopiesFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		mustPut(t, far.Store, record(1, "one"))
		tier.Current(time.Now())
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		for range 100 {
			time.Sleep(time.Minute)
			tier.Current(time.Now())
			expectGet(t, tier, far, time.Second, "one", kv.Hit, 1)
		}
		mustPut(t, far.Store, record(2, "two"))
		tier.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
		tier.Current(time.Now())
		expectGet(t, tier, far, time.Hour, "two", kv.Expired, 2)
		tier.Changed([]kv.Change{{Ref: ref, Version: version(1)}, {Ref: ref, Version: version(2)}}) // late and repeated
		expectGet(t, tier, far, time.Hour, "two", kv.Hit, 2)

		time.Sleep(2 * time.Minute) // the feed is silent: its knowledge stands still
		expectGet(t, tier, far, time.Minute, "two", kv.Expired, 3)
		time.Sleep(time.Second)
		tier.Current(time.Now())
		expectGet(t, tier, far, 0, "two", kv.Hit, 3)
		time.Sleep(time.Second)
		tier.Broken() // only what the copy itself was fetched at counts
		expectGet(t, tier, far, 2*time.Second, "two", kv.Hit, 3)
		expectGet(t, tier, far, 2*time.Second-1, "two", kv.Expired, 4)
	})
}

func TestACopyOlderThanTheFeedIsNotHelpedByIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		regional := New(far, Options{})
		tier := New(regional, Options{})
		mustPut(t, far.Store, record(1, "one"))
		if _, err := regional.Get(context.Background(), ref, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		mustPut(t, far.Store, record(2, "two")) // nobody is told
		time.Sleep(10 * time.Second)
		tier.Current(time.Now()) // the feed begins at the head, behind "two"
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		time.Sleep(time.Minute)
		tier.Current(time.Now())
		expectGet(t, tier, far, time.Minute, "two", kv.Expired, 2)
	})
}

func TestTenThousandWaitingReadersAreOneFarRead(t *testing.T) {
	far := &counted{Store: memory.New(), gate: make(chan struct{})}
	tier := New(far, Options{})
	mustPut(t, far.Store, record(1, "one"))
	const readers = 10_000
	var wg sync.WaitGroup
	var wrong atomic.Int64
	for range readers {
		wg.Go(func() {
			if a, err := tier.GetAnswer(context.Background(), ref, time.Minute); err != nil || string(a.Value) != "one" {
				wrong.Add(1)
			}
		})
	}
	for tier.Stats().Coalesced < readers-1 {
		time.Sleep(time.Millisecond) // between two looks
	}
	close(far.gate)
	wg.Wait()
	if wrong.Load() != 0 || far.reads.Load() != 1 {
		t.Errorf("%d wrong answers, %d far reads", wrong.Load(), far.reads.Load())
	}
}

func TestACancelledReaderDoesNotCancelTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New(), gate: make(chan struct{})}
		tier := New(far, Options{})
		mustPut(t, far.Store, record(1, "one"))
		ctx, cancel := context.WithCancel(context.Background())
		first, second, many := make(chan error), make(chan error), make(chan error)
		go func() { _, err := tier.GetMany(ctx, []kv.Ref{ref}, time.Minute); first <- err }()
		synctest.Wait()
		go func() { _, err := tier.Get(context.Background(), ref, time.Minute); second <- err }()
		go func() { _, err := tier.Get(ctx, ref, time.Minute); many <- err }()
		synctest.Wait()
		cancel()
		if err := errors.Join(<-first, <-many); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled readers: %v", err)
		}
		close(far.gate)
		if err := <-second; err != nil {
			t.Errorf("the other reader: %v", err)
		}
		if n := far.reads.Load(); n != 1 {
			t.Errorf("%d far reads", n)
		}
	})
}

func TestHungFarCostsTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New(), gate: make(chan struct{})}
		tier := New(far, Options{FarTimeout: 3 * time.Second})
		start := time.Now()
		_, err := tier.Get(context.Background(), ref, time.Minute)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestAHungFarCostsOneTimeoutNotOneForEachReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{FarTimeout: 5 * time.Second})
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		time.Sleep(2 * time.Minute)
		far.gate = make(chan struct{})
		took := func() time.Duration {
			t.Helper()
			start := time.Now()
			a, err := tier.GetAnswer(context.Background(), ref, time.Minute)
			if err != nil || a.Cache != kv.Stale {
				t.Errorf("%s, %v", a.Cache, err)
			}
			return time.Since(start)
		}
		if d := took(); d != 5*time.Second {
			t.Errorf("the first reader waited %s", d)
		}
		for range 10 {
			if d := took(); d > hungWait {
				t.Errorf("a later reader waited %s", d)
			}
		}
		if _, err := tier.Get(context.Background(), kv.Ref{Key: "without a copy"}, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a reader who cannot be served a copy: %v", err)
		}
		close(far.gate)
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		if a, err := tier.GetAnswer(context.Background(), ref, time.Minute); err != nil || a.Cache != kv.Expired {
			t.Errorf("after far is back: %s, %v", a.Cache, err)
		}
	})
}

func TestStaleWhenFarFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{MaxStale: time.Hour})
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		far.fail.Store(true)
		time.Sleep(10 * time.Minute)
		expectGet(t, tier, far, time.Minute, "one", kv.Stale, 2)
		tier.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
		expectGet(t, tier, far, time.Minute, "one", kv.Stale, 3) // superseded, but better than nothing
		if _, err := tier.Get(context.Background(), kv.Ref{Key: "other"}, time.Minute); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("without a copy: %v", err)
		}
		tier.Told([]kv.Change{{Ref: ref, Version: version(3)}})
		if _, err := tier.Get(context.Background(), ref, time.Minute); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("a copy below what was acknowledged here: %v", err)
		}
		far.fail.Store(false)
		mustPut(t, far.Store, record(3, "three"))
		expectGet(t, tier, far, time.Minute, "three", kv.Expired, 6)
		far.fail.Store(true)
		time.Sleep(time.Hour + 1)
		if _, err := tier.Get(context.Background(), ref, time.Minute); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("a copy older than the bound: %v", err)
		}
	})
}

func TestASupersededCopyIsAsOldAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		mustPut(t, far.Store, record(1, "one"))
		tier.Current(time.Now())
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		time.Sleep(time.Minute)
		tier.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
		tier.Current(time.Now())
		far.fail.Store(true)
		a, err := tier.GetAnswer(context.Background(), ref, time.Second)
		if err != nil || a.Cache != kv.Stale || a.Age != time.Minute {
			t.Errorf("%s, age %s, %v", a.Cache, a.Age, err)
		}
	})
}

func TestStaleOfFarIsMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		regional := New(far, Options{})
		tier := New(regional, Options{})
		mustPut(t, far.Store, record(1, "one"))
		if _, err := regional.Get(context.Background(), ref, time.Minute); err != nil {
			t.Fatal(err)
		}
		far.fail.Store(true)
		time.Sleep(5 * time.Minute)
		a, err := tier.GetAnswer(context.Background(), ref, time.Minute)
		if err != nil || a.Cache != kv.Stale || a.Age != 5*time.Minute {
			t.Errorf("%q, %s, age %s, %v", a.Value, a.Cache, a.Age, err)
		}
	})
}

// The feed has told of what superseded a stale answer before the answer was here:
// it does not vouch for it.
func TestAStaleAnswerOfFarIsNotHelpedByTheFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		regional := New(far, Options{})
		tier := New(regional, Options{})
		regional.Current(time.Now())
		tier.Current(time.Now())
		mustPut(t, far.Store, record(1, "one"))
		if _, err := regional.Get(context.Background(), ref, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		far.fail.Store(true)
		for _, sink := range []*Tier{regional, tier} {
			sink.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
			sink.Current(time.Now())
		}
		for range 3 {
			a, err := tier.GetAnswer(context.Background(), ref, time.Second)
			if err != nil || a.Cache != kv.Stale || a.Age != time.Minute {
				t.Errorf("%q, %s, age %s, %v", a.Value, a.Cache, a.Age, err)
			}
		}
		mustPut(t, far.Store, record(2, "two"))
		far.fail.Store(false)
		expectGet(t, tier, far, time.Second, "two", kv.Expired, 5)
	})
}

func TestHotCopiesAreRefreshedBehindTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tier.Run(ctx) }()
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		waited := 0
		for range 600 {
			time.Sleep(time.Second)
			a, err := tier.GetAnswer(ctx, ref, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if a.Cache != kv.Hit {
				waited++
			}
			synctest.Wait()
		}
		reads := far.reads.Load()
		if waited != 0 || reads < 10 || reads > 25 {
			t.Errorf("%d readers waited, %d far reads in ten minutes", waited, reads)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAFarReadThatAWriteOvertookIsNotServed(t *testing.T) {
	for name, write := range map[string]func(tier *Tier) error{
		"put": func(tier *Tier) error { return tier.Put(context.Background(), ref, record(2, "two")) },
		"put many": func(tier *Tier) error {
			return tier.PutMany(context.Background(), []kv.Write{{Ref: ref, Record: record(2, "two")}})
		},
		"large": func(tier *Tier) error {
			tier.opts.MaxValueBytes = 2
			return tier.Put(context.Background(), ref, record(2, "two"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := memory.New()
				mustPut(t, inner, record(1, "one"))
				gate := make(chan struct{})
				tier := New(&late{Store: inner, gate: gate}, Options{})
				first := make(chan string)
				get := func() { rec, _ := tier.Get(context.Background(), ref, time.Minute); first <- string(rec.Value) }
				go get()
				synctest.Wait() // the far read has seen "one" and is on its way back
				if err := write(tier); err != nil {
					t.Fatal(err)
				}
				go get() // a reader after the write was acknowledged
				synctest.Wait()
				close(gate)
				if a, b := <-first, <-first; a != "two" || b != "two" {
					t.Errorf("read %q and %q after \"two\" was acknowledged", a, b)
				}
			})
		})
	}
}

// late is a far store whose reads see the present and arrive late.
type late struct {
	kv.Store
	gate chan struct{}
}

func (l *late) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	rec, err := l.Store.Get(ctx, ref, maxAge)
	<-l.gate
	return rec, err
}

func TestANoticeDuringAFarReadIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.New()
		mustPut(t, inner, record(1, "one"))
		gate := make(chan struct{})
		tier := New(&late{Store: inner, gate: gate}, Options{})
		done := make(chan string)
		go func() { rec, _ := tier.Get(context.Background(), ref, time.Hour); done <- string(rec.Value) }()
		synctest.Wait()
		mustPut(t, inner, record(2, "two"))
		tier.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
		tier.Current(time.Now())
		close(gate)
		if got := <-done; got != "two" {
			t.Errorf("read %q", got)
		}
	})
}

func TestSharedTierNeedsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{Shared: true})
		mustPut(t, far.Store, record(1, "one"))
		expectGet(t, tier, far, time.Minute, "one", kv.Miss, 1)
		expectGet(t, tier, far, time.Minute, "one", kv.Expired, 2)
		tier.Lease(time.Now().Add(time.Second))
		expectGet(t, tier, far, time.Minute, "one", kv.Expired, 3) // of before the feed began
		tier.Current(time.Now())
		expectGet(t, tier, far, time.Minute, "one", kv.Hit, 3)
		time.Sleep(time.Second)
		expectGet(t, tier, far, time.Minute, "one", kv.Expired, 4)
		tier.Lease(time.Now().Add(time.Second))
		expectGet(t, tier, far, time.Minute, "one", kv.Hit, 4)
		tier.Broken()
		expectGet(t, tier, far, time.Minute, "one", kv.Expired, 5)
		far.fail.Store(true)
		if _, err := tier.Get(context.Background(), ref, time.Minute); err == nil {
			t.Error("without its lease a shared tier served a stale copy")
		}
	})
}

func TestGetMany(t *testing.T) {
	far := &counted{Store: memory.New()}
	tier := New(far, Options{})
	ctx := context.Background()
	refs := make([]kv.Ref, 20)
	for i := range refs {
		refs[i] = kv.Ref{Key: fmt.Sprint(i % 15)} // some twice
		if i%2 == 0 {
			if err := far.Put(ctx, refs[i], record(int64(i+1), refs[i].Key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		answers, err := kv.GetAnswers(ctx, tier, refs, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range answers {
			want, err := far.Store.Get(ctx, refs[i], 0)
			if err != nil || a.Compare(want) != 0 {
				t.Errorf("%q: %+v, want %+v, %v", refs[i].Key, a.Record, want, err)
			}
		}
	}
	if far.reads.Load() != 15 {
		t.Errorf("%d far reads", far.reads.Load())
	}
}

func TestLargeValuesGoPastMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{MaxValueBytes: 10})
		mustPut(t, tier, record(1, "0123456789"))
		expectGet(t, tier, far, time.Minute, "0123456789", kv.Hit, 0)
		mustPut(t, tier, record(2, "0123456789a"))
		expectGet(t, tier, far, time.Minute, "0123456789a", kv.Expired, 1)
		expectGet(t, tier, far, time.Minute, "0123456789a", kv.Miss, 2)
		time.Sleep(time.Nanosecond)
		mustPut(t, tier, record(3, "small"))
		expectGet(t, tier, far, time.Minute, "small", kv.Hit, 2)
	})
}

// TestAnOvertakenPutIsNotServed: a put is stamped and then held up, while a newer
// one is acknowledged and forgotten, or another place's is told.
func TestAnOvertakenPutIsNotServed(t *testing.T) {
	for name, overtake := range map[string]func(t *testing.T, tier *Tier, far *counted){
		"forgotten": func(t *testing.T, tier *Tier, far *counted) {
			mustPut(t, tier, record(2, "two"))
			tier.near.InvalidateAll()
		},
		"told": func(t *testing.T, tier *Tier, far *counted) {
			mustPut(t, far.Store, record(2, "two"))
			tier.Told([]kv.Change{{Ref: ref, Version: version(2)}})
		},
		"before a restart": func(t *testing.T, tier *Tier, far *counted) {
			mustPut(t, tier, record(2, "two"))
			*tier = *New(far, Options{})
		},
		"changed": func(t *testing.T, tier *Tier, far *counted) {
			mustPut(t, far.Store, record(2, "two"))
			tier.Changed([]kv.Change{{Ref: ref, Version: version(2)}})
			time.Sleep(2 * time.Minute)
			tier.Current(time.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				far := &counted{Store: memory.New()}
				tier := New(far, Options{})
				time.Sleep(kv.MaxFuture)
				overtake(t, tier, far)
				mustPut(t, tier, record(1, "one"))
				expectGet(t, tier, far, time.Minute, "two", kv.Expired, 1)
			})
		})
	}
}

func TestNearIsBoundedByBytes(t *testing.T) {
	const bound = 4 << 20
	tier := New(memory.New(), Options{NearBytes: bound, MaxSkew: -1})
	ctx := context.Background()
	for i := range 2000 {
		rec := kv.Record{Version: kv.NewVersion(time.Now().UnixNano(), 1, 1), Value: bytes.Repeat([]byte("v"), 10_000)}
		if err := tier.Put(ctx, kv.Ref{Key: fmt.Sprint(i)}, rec); err != nil {
			t.Fatal(err)
		}
	}
	tier.near.CleanUp()
	if s := tier.Stats(); s.Bytes > bound || s.Copies < 200 {
		t.Errorf("%d copies of %d bytes, the bound is %d", s.Copies, s.Bytes, bound)
	}
}

func TestDroppedNamespaceIsForgotten(t *testing.T) {
	far := &counted{Store: memory.New()}
	tier := New(far, Options{Sole: true})
	mustPut(t, tier, record(1, "one"))
	if err := tier.Drop(context.Background(), ref.Namespace); err != nil {
		t.Fatal(err)
	}
	expectGet(t, tier, far, time.Minute, "", kv.Miss, 1)
}

func TestForgottenTombstoneBecomesAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &counted{Store: memory.New()}
		tier := New(far, Options{})
		tomb := kv.Tombstone(version(1))
		mustPut(t, tier, tomb)
		time.Sleep(time.Minute)
		if err := far.Forget(context.Background(), []kv.Tomb{{Ref: ref, Version: tomb.Version}}); err != nil {
			t.Fatal(err)
		}
		expectGet(t, tier, far, time.Second, "", kv.Expired, 1)
		expectGet(t, tier, far, time.Second, "", kv.Hit, 1)
	})
}

func TestNearDoesNotAllocate(t *testing.T) {
	tier := New(memory.New(), Options{Sole: true, MaxSkew: -1})
	mustPut(t, tier, kv.Record{Version: kv.NewVersion(time.Now().UnixNano(), 1, 1), Value: []byte("one")})
	key := []byte("k")
	if n := testing.AllocsPerRun(1000, func() {
		if rec, _, ok := tier.Near(ref.Namespace, key, 0); !ok || string(rec.Value) != "one" {
			t.Fatal("not near")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNear(b *testing.B) {
	tier := New(memory.New(), Options{Sole: true, MaxSkew: -1})
	if err := tier.Put(context.Background(), ref, kv.Record{Version: kv.NewVersion(time.Now().UnixNano(), 1, 1), Value: []byte("one")}); err != nil {
		b.Fatal(err)
	}
	key := []byte("k")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := tier.Near(ref.Namespace, key, 0); !ok {
			b.Fatal("not near")
		}
	}
}
