package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

func (f *fixture) mustSweep(want SweepReport) {
	f.t.Helper()
	got, err := f.Sweep(f.t.Context())
	if err != nil {
		f.t.Fatalf("sweep: %v", err)
	}
	if got != want {
		f.t.Fatalf("sweep: %+v, want %+v", got, want)
	}
}

// later waits until blobs put now are old enough.
func later() { time.Sleep(OrphanAge + time.Hour) }

func TestSweepTellsOfMissingBlobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		for i := range 5 {
			f.put(fmt.Sprint(i), large(fmt.Sprint(i), InlineBytes+1))
		}
		f.put("small", []byte("v"))
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 6, Blobs: 5})
		names := f.bucket.names()
		f.must(f.bucket.Delete(t.Context(), names[1:2]))
		f.must(f.bucket.Memory.Put(t.Context(), names[3], []byte("cut")))
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 6, Blobs: 4, Missing: 1}) // the other one may have been put meanwhile
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + MaxPut)))
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 6, Blobs: 4, Missing: 1})
		time.Sleep(time.Nanosecond)
		f.missed = nil
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 6, Blobs: 4, Missing: 2})
		if len(f.missed) != 2 || f.Stats().Missing != 4 {
			t.Errorf("told of %v, counted %d", f.missed, f.Stats().Missing)
		}
		for _, ref := range f.missed {
			f.mustBeDamaged(ref.Key)
		}
	})
}

func TestSweepOfAnEmptiedBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		f.put("k", large("v", InlineBytes+1))
		f.must(f.bucket.Delete(t.Context(), f.bucket.names()))
		later()
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 1, Missing: 1})
	})
}

func TestSweepLeavesTheBlobsOfEmptyRowsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		f.fail(refuse(kvtest.OpPut, kvtest.Refused))
		_ = f.Put(t.Context(), testRef("k"), kv.Record{Version: f.next(), Value: large("v", InlineBytes+1)})
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + EmptyAge - 1)))
		f.mustSweep(SweepReport{Namespaces: 1, Blobs: 1, Young: 1})
		time.Sleep(time.Nanosecond)
		f.mustSweep(SweepReport{Namespaces: 1, Blobs: 1, Orphans: 1})
		f.mustSweep(SweepReport{})
	})
}

func TestSweepLeavesWhatIsNotOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		f.put("k", large("v", InlineBytes+1))
		foreign := []string{"a", "v1/", "v1/x", "v1/" + testNamespace.String() + "/x", "v1/" + testNamespace.String() + "/zzz", "v1/zzz", "v2/x",
			strings.ToUpper(f.bucket.names()[0])}
		for _, name := range foreign {
			f.must(f.bucket.Memory.Put(t.Context(), name, []byte("foreign")))
		}
		later()
		report, err := f.Sweep(t.Context())
		if err != nil || report.Orphans != 0 || report.Missing != 0 {
			t.Errorf("sweep: %+v, %v", report, err)
		}
		if n := len(f.bucket.names()); n != len(foreign)+1 {
			t.Errorf("%d blobs are left, want %d", n, len(foreign)+1)
		}
	})
}

// However many blobs fit into a pass, a sweep comes to the same end.
func TestSweepInPasses(t *testing.T) {
	for _, most := range []int{1, 2, 7, 39, 40, 41, 1000} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, SplitOptions{SweepBlobs: most, SweepRate: 1 << 30})
			want := map[string]kv.Record{}
			for i := range 30 {
				key := fmt.Sprint(i % 20) // 10 of 30 blobs are superseded
				want[key] = f.put(key, large(fmt.Sprint(i), InlineBytes+1))
			}
			f.fail(refuse(kvtest.OpPut, kvtest.Refused))
			for i := range 10 {
				_ = f.Put(t.Context(), testRef(fmt.Sprint(i)), kv.Record{Version: f.next(), Value: large("lost", InlineBytes+1)})
			}
			f.fail(nil)
			later()
			passes := 1 + 40/most
			if 40%most == 0 {
				passes--
			}
			if most == 1 { // each page is a pass of its own, also the last one
				passes = 40
			}
			f.mustSweep(SweepReport{Namespaces: 1, Rows: 20 * passes, Blobs: 40, Orphans: 20})
			f.mustSweep(SweepReport{Namespaces: 1, Rows: 20 * max(1, (20+most-1)/most), Blobs: 20})
			for key, rec := range want {
				f.mustGet(key, rec)
			}
		})
	}
}

func TestSweepRemovesMoreThanAPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		last := kv.Record{}
		for range 2*blobPage + 2 {
			last = f.put("k", large("v", InlineBytes+1))
		}
		later()
		f.mustSweep(SweepReport{Namespaces: 1, Rows: 1, Blobs: 2*blobPage + 2, Orphans: 2*blobPage + 1})
		f.mustGet("k", last)
	})
}

// Namespaces with rows alone, with blobs alone and with both are all swept.
func TestSweepOfManyNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{SweepRate: 1 << 30})
		const n = kv.MaxNamespaces + 50
		for i := range n {
			ref := kv.Ref{Namespace: kv.NamespaceID{1, byte(i >> 8), byte(i)}, Key: "k"}
			rec := kv.Record{Version: f.next(), Value: []byte("small")}
			if i%3 > 0 {
				rec.Value = large("v", InlineBytes+1)
			}
			if i%3 == 1 { // its row is never written
				f.fail(refuse(kvtest.OpPut, kvtest.Refused))
			}
			_ = f.Put(t.Context(), ref, rec)
			f.fail(nil)
		}
		later()
		f.mustSweep(SweepReport{Namespaces: n, Rows: n * 2 / 3, Blobs: n * 2 / 3, Young: n / 3})
		time.Sleep(EmptyAge)
		f.mustSweep(SweepReport{Namespaces: n, Rows: n * 2 / 3, Blobs: n * 2 / 3, Orphans: n / 3})
		f.mustSweep(SweepReport{Namespaces: n * 2 / 3, Rows: n * 2 / 3, Blobs: n / 3})
	})
}

// An error ends a sweep, and nothing is removed on the strength of half a look.
func TestSweepEndsOnErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		for i := range rowPage + 1 {
			f.put(fmt.Sprintf("%04d", i), []byte("v"))
		}
		rec := f.put("zz", large("v", InlineBytes+1)) // on the second page of the rows
		later()
		lists := 0
		f.fail(func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
			if op == kvtest.OpList {
				if lists++; lists == 2 {
					return kvtest.Refused
				}
			}
			return kvtest.None
		})
		if _, err := f.Sweep(t.Context()); !errors.Is(err, kvtest.ErrInjected) {
			t.Fatalf("sweep: %v", err)
		}
		f.fail(nil)
		f.mustGet("zz", rec)
		f.bucket.onList = func(context.Context, string, string) error { return kv.ErrUnavailable }
		if _, err := f.Sweep(t.Context()); !errors.Is(err, kv.ErrUnavailable) {
			t.Fatalf("sweep: %v", err)
		}
		if !f.Stats().SweptAt.IsZero() {
			t.Error("a sweep that failed is reported as one that came to its end")
		}
	})
}

// backwards lists blobs in the wrong order.
type backwards struct{ *bucket }

func (b backwards) List(ctx context.Context, prefix, after string, limit int) ([]blob.Info, bool, error) {
	infos, more, err := b.bucket.List(ctx, prefix, after, limit)
	slices.Reverse(infos)
	return infos, more, err
}

func TestSweepRefusesAListingOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		for i := range 5 {
			f.put(fmt.Sprint(i), large("v", InlineBytes+1))
		}
		later()
		f.index = backwards{f.bucket}
		if report, err := f.Sweep(t.Context()); err == nil || report.Orphans > 0 || len(f.bucket.names()) != 5 {
			t.Errorf("sweep: %+v, %v", report, err)
		}
	})
}

func TestRunSweepsNowAndThenAtARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{SweepEvery: time.Hour, SweepRate: 10})
		for i := range 3 * rowPage {
			f.put(fmt.Sprint(i), []byte("v"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- f.Run(ctx) }()
		time.Sleep(sweepDelay + 201*time.Second - time.Nanosecond)
		if !f.Stats().SweptAt.IsZero() {
			t.Error("3,000 rows were looked at in less than 201 s at 10 in a second")
		}
		time.Sleep(2 * time.Nanosecond)
		first := f.Stats().SweptAt
		if first.IsZero() {
			t.Error("3,000 rows were not looked at in 201 s at 10 in a second")
		}
		time.Sleep(time.Until(began.Add(sweepDelay + time.Hour + 402*time.Second + 2)))
		if f.Stats().SweptAt.Equal(first) {
			t.Error("there was no second sweep")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// sweepWorld is writers and sweepers of the same rows and blobs, for days.
type sweepWorld struct {
	*fixture
	rng    *rand.Rand
	mu     sync.Mutex           // guards what follows
	wanted map[string]kv.Record // acknowledged
	broken map[string]bool      // keys whose value could not be read, at any time
}

func (w *sweepWorld) chance(n int) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.rng.IntN(n) == 0 }

func (w *sweepWorld) pause(most time.Duration) {
	w.mu.Lock()
	d := time.Duration(w.rng.Int64N(int64(most)))
	w.mu.Unlock()
	time.Sleep(d)
}

func newSweepWorld(t *testing.T, seed uint64) *sweepWorld {
	w := &sweepWorld{fixture: newFixture(t, SplitOptions{SweepBlobs: 7, SweepRate: 50}), rng: rand.New(rand.NewPCG(seed, 1)), wanted: map[string]kv.Record{}, broken: map[string]bool{}}
	w.bucket.onPut = func(ctx context.Context, _ string) error {
		w.pause(30 * time.Second)
		if w.chance(10) {
			return kv.ErrUnavailable
		}
		return nil
	}
	w.fail(func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if op != kvtest.OpPut {
			return kvtest.None
		}
		w.pause(10 * time.Second)
		switch {
		case w.chance(10):
			return kvtest.Refused
		case w.chance(10):
			return kvtest.Unacknowledged
		}
		return kvtest.None
	})
	return w
}

// write puts records of few keys, some again after a failure, until the end.
func (w *sweepWorld) write(ctx context.Context) {
	for ctx.Err() == nil {
		w.mu.Lock()
		key := fmt.Sprint(w.rng.IntN(20))
		rec := kv.Record{Version: w.next(), Value: large(fmt.Sprint(w.rng.Uint64()), InlineBytes+w.rng.IntN(2))}
		w.mu.Unlock()
		for err := error(kv.ErrUnknown); err != nil && ctx.Err() == nil; {
			if err = w.Put(ctx, testRef(key), rec); err == nil {
				w.mu.Lock()
				w.wanted[key] = kv.Merge(w.wanted[key], rec)
				w.mu.Unlock()
			}
			w.pause(time.Hour)
		}
	}
}

// read reads all keys now and then until the end, and once more.
func (w *sweepWorld) read(ctx context.Context) {
	for last := false; !last; w.pause(10 * time.Minute) {
		last = ctx.Err() != nil
		for i := range 20 {
			key := fmt.Sprint(i)
			w.mu.Lock()
			want := w.wanted[key]
			w.mu.Unlock()
			got, err := w.Get(w.t.Context(), testRef(key), 0)
			switch {
			case errors.Is(err, kv.ErrDamaged):
				w.mu.Lock()
				w.broken[key] = true
				w.mu.Unlock()
			case err != nil || got.Compare(want) < 0:
				w.t.Errorf("key %s: %v, version %s, acknowledged was %s", key, err, got.Version, want.Version)
			}
		}
	}
}

// runWorld runs writers, a reader and a sweeper. It returns how many keys could not
// be read at some time, and the orphans that are left when all have become old.
func runWorld(t *testing.T, seed uint64, long, pause time.Duration, tune func(w *sweepWorld) (sweeper *Split)) (broken, orphans int) {
	synctest.Test(t, func(t *testing.T) {
		w := newSweepWorld(t, seed)
		sweeper := tune(w)
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { w.write(ctx) })
		}
		wg.Go(func() { w.read(ctx) })
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := sweeper.Sweep(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("sweep: %v", err)
				}
				w.pause(pause)
			}
		})
		wg.Wait()
		later()
		if _, err := sweeper.Sweep(t.Context()); err != nil {
			t.Errorf("sweep: %v", err)
		}
		w.read(ctx)
		broken, orphans = len(w.broken), len(w.bucket.names())
		for i := range 20 {
			row, err := w.rows.Get(t.Context(), testRef(fmt.Sprint(i)), 0)
			if _, _, isBlob := openRow(row); isBlob && err == nil {
				orphans--
			}
		}
	})
	return broken, orphans
}

func TestSweepBesideWriters(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	t.Run("for days", func(t *testing.T) {
		broken, orphans := runWorld(t, seed, 3*24*time.Hour, time.Hour, func(w *sweepWorld) *Split { return w.Split })
		if broken > 0 || orphans != 0 {
			t.Errorf("%d keys were swept too early, %d orphans are left", broken, orphans)
		}
	})
	// A clock that jumps makes new blobs look old. What is under way is still safe.
	t.Run("all blobs look old", func(t *testing.T) {
		broken, orphans := runWorld(t, seed, 24*time.Hour, time.Minute, func(w *sweepWorld) *Split {
			w.orphanAge, w.emptyAge = -2*time.Hour, -2*time.Hour
			return w.Split
		})
		if broken > 0 || orphans != 0 {
			t.Errorf("%d keys were swept too early, %d orphans are left", broken, orphans)
		}
	})
	// The control: a sweeper that takes no blob for young and knows of no put.
	t.Run("control", func(t *testing.T) {
		broken, _ := runWorld(t, seed, 3*24*time.Hour, time.Minute, func(w *sweepWorld) *Split {
			other := NewSplit(w.Split.rows, w.bucket, w.bucket, w.opts)
			other.orphanAge, other.emptyAge = -2*time.Hour, -2*time.Hour
			return other
		})
		if broken == 0 {
			t.Error("a sweeper without care damages nothing: the test is blind")
		}
	})
}
