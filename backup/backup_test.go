package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/memory"
)

func TestBarrierIsAStore(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return NewBarrier(memory.New()) })
}

// What is restored into an empty system is what was backed up, byte for byte.
func TestRestoreIntoAnEmptySystem(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, memory.New())
	w.random(nsA, rand.New(rand.NewPCG(seed, 1)), 3000)
	w.random(nsB, rand.New(rand.NewPCG(seed, 2)), 10)
	m := w.full(nsA, nsB)
	if _, wrong := w.archive.Verify(context.Background(), m.ID, nil); wrong != nil {
		t.Error(wrong)
	}
	other := newWorld(t, memory.New())
	other.archive = w.archive
	if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []kv.NamespaceID{nsA, nsB} {
		if err := equal(records(t, other.store, ns), records(t, w.store, ns)); err != nil {
			t.Errorf("namespace %s: %v", ns, err)
		}
	}
}

// A chain of incremental snapshots puts back what a full one would, at each of its
// links, by way of an empty and of a live namespace.
func TestChainEqualsFull(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.take.Margin = time.Nanosecond
	type state struct {
		id      string
		records map[string]kv.Record
	}
	var states []state
	note := func(m *Manifest) { states = append(states, state{m.ID, records(t, w.store, nsA)}) }
	w.random(nsA, rng, 500)
	note(w.full(nsA))
	for range 6 {
		w.random(nsA, rng, rng.IntN(200))
		m := w.more(nsA)
		if m.Full() || m.Records > 200 {
			t.Errorf("snapshot %s is of %d records, full: %t", m.ID, m.Records, m.Full())
		}
		note(m)
	}
	for i, s := range states {
		m, err := w.archive.Manifest(context.Background(), s.id)
		w.check(err)
		for _, live := range []bool{false, true} {
			other := newWorld(t, memory.New())
			other.archive, other.stamp = w.archive, w.stamp
			if live { // it has what came before
				if i == 0 {
					continue
				}
				before, err := w.archive.Manifest(context.Background(), states[i-1].id)
				w.check(err)
				if _, err := other.bring(PlanOptions{Moment: before.Cut()}, Target{}, nil); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := other.bring(PlanOptions{Moment: m.Cut()}, Target{}, nil); err != nil {
				t.Fatal(err)
			}
			if err := equal(records(t, other.store, nsA), s.records); err != nil {
				t.Errorf("link %d, live %t: %v", i, live, err)
			}
			if ids := other.namespaces(); len(ids) != 1 {
				t.Errorf("link %d: it left namespaces %v", i, ids)
			}
		}
	}
}

// A record that arrives late, with a version from before the last cut, is taken by
// the margin; without it, it would be missed.
func TestLateWritesAreWithinTheMargin(t *testing.T) {
	for _, margin := range []time.Duration{time.Hour, time.Nanosecond} {
		w := newWorld(t, memory.New())
		w.take.Margin = margin
		w.put(nsA, "a", "1")
		late := w.version()
		w.full(nsA)
		w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: nsA, Key: "late"}, kv.Record{Version: late}))
		w.more(nsA)
		other := newWorld(t, memory.New())
		other.archive = w.archive
		_, err := other.bring(PlanOptions{}, Target{}, nil)
		w.check(err)
		if _, there := records(t, other.store, nsA)["late"]; there != (margin == time.Hour) {
			t.Errorf("margin %s: the late record is there: %t", margin, there)
		}
	}
}

// Records that were put back have versions of long ago: the next incremental
// snapshot has them all the same, also while or after a restore that was cut off.
func TestRestoredRecordsAreInTheNextSnapshot(t *testing.T) {
	w := newWorld(t, memory.New())
	w.take.Margin = time.Nanosecond
	w.put(nsA, "a", "1")
	w.put(nsA, "b", "1")
	w.put(nsB, "own", "1")
	w.full(nsA, nsB)
	state := func() string {
		t.Helper()
		other := newWorld(t, memory.New())
		other.archive = w.archive
		if _, err := other.bring(PlanOptions{Namespaces: []string{nsB.String()}}, Target{}, nil); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(visible(records(t, other.store, nsB)))
	}
	plan, err := w.archive.Plan(context.Background(), PlanOptions{Namespaces: []string{nsA.String()}})
	w.check(err)
	var whole bytes.Buffer
	w.check(w.archive.Send(context.Background(), &whole, plan[0], Target{Namespace: Namespace{ID: nsB.String()}}, nil))
	for _, n := range []int{whole.Len() - 1, whole.Len()} {
		in, err := Receive(bytes.NewReader(whole.Bytes()[:n]))
		w.check(err)
		if _, err := w.restore.Restore(context.Background(), in, nil); (err == nil) != (n == whole.Len()) {
			t.Fatal(err)
		}
		m := w.more(nsA, nsB)
		if m.Contents[0].Full() || !m.Contents[1].Full() {
			t.Errorf("after %d of %d bytes: full snapshots: %t and %t", n, whole.Len(), m.Contents[0].Full(), m.Contents[1].Full())
		}
	}
	if got := state(); got != "map[a:1 b:1 own:1]" {
		t.Errorf("the chain ends with %s", got)
	}
	if m := w.more(nsA, nsB); m.Contents[1].Full() {
		t.Error("the restore has ended, but there was no incremental snapshot after it")
	}
	// One that begins while a snapshot is taken ends the snapshot.
	restoring := false
	store := w.store
	*w.barrier = *NewBarrier(&kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if op == kvtest.OpList && !restoring {
			restoring = true
			w.check(w.restore.note(context.Background(), nsB, noteOpen))
		}
		return kvtest.None
	}})
	wanted, _, _, err := w.archive.Parents(context.Background(), []Namespace{{ID: nsB.String()}})
	w.check(err)
	if err := w.take.Run(context.Background(), wanted, io.Discard); !errors.Is(err, ErrRefused) {
		t.Errorf("a restore began meanwhile: %v", err)
	}
}

// A state can be had of every cut, of moments between them that of the cut before,
// and nearer ones with what is known of them.
func TestMoments(t *testing.T) {
	w := newWorld(t, memory.New())
	w.clock = time.Unix(1_800_000_000, 0)
	minute := func() time.Time { w.clock = w.clock.Add(time.Minute); return w.clock }
	w.put(nsA, "kept", "1")
	w.put(nsA, "again", "1")
	w.put(nsB, "b", "1")
	before := w.clock.Add(-time.Hour)
	w.full(nsA, nsB)
	first := minute()
	w.put(nsA, "again", "2")
	w.put(nsA, "new", "2")
	w.delete(nsA, "kept")
	between := minute()
	w.put(nsA, "again", "3")
	w.more(nsA) // nsB was deleted
	last := minute()

	restored := func(opts PlanOptions) (a, b string) {
		t.Helper()
		other := newWorld(t, memory.New())
		other.archive, other.clock = w.archive, w.clock
		if _, err := other.bring(opts, Target{}, nil); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(visible(records(t, other.store, nsA))), fmt.Sprint(visible(records(t, other.store, nsB)))
	}
	for name, c := range map[string]struct {
		opts PlanOptions
		a, b string
	}{
		"newest":           {PlanOptions{}, "map[again:3 new:2]", "map[]"},
		"last":             {PlanOptions{Moment: last}, "map[again:3 new:2]", "map[]"},
		"first":            {PlanOptions{Moment: first}, "map[again:1 kept:1]", "map[b:1]"},
		"between":          {PlanOptions{Moment: between}, "map[again:1 kept:1]", "map[b:1]"},
		"between, nearer":  {PlanOptions{Moment: between, WithLater: true}, "map[again:1 new:2]", "map[b:1]"},
		"one":              {PlanOptions{Namespaces: []string{nsA.String()}}, "map[again:3 new:2]", "map[]"},
		"one that is gone": {PlanOptions{Namespaces: []string{"title 02"}}, "map[]", "map[b:1]"},
	} {
		if a, b := restored(c.opts); a != c.a || b != c.b {
			t.Errorf("%s: %s and %s, want %s and %s", name, a, b, c.a, c.b)
		}
	}
	for _, opts := range []PlanOptions{{Moment: before}, {Namespaces: []string{"other"}}, {Moment: before, Namespaces: []string{"title 01"}}} {
		if _, err := w.archive.Plan(context.Background(), opts); !errors.Is(err, ErrMissing) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}

// Into a live system a restore brings what is lost, and nothing else.
func TestRestoreIntoALiveSystem(t *testing.T) {
	w := newWorld(t, memory.New())
	for _, key := range []string{"same", "newer", "deleted", "lost"} {
		w.put(nsA, key, "1")
	}
	w.delete(nsA, "gone")
	w.full(nsA)
	other := newWorld(t, memory.New())
	other.archive, other.stamp = w.archive, w.stamp
	for key, rec := range records(t, w.store, nsA) {
		if key != "lost" {
			w.check(other.store.Put(context.Background(), kv.Ref{Namespace: nsA, Key: key}, rec))
		}
	}
	other.put(nsA, "newer", "2")
	other.put(nsA, "own", "2")
	other.delete(nsA, "deleted")
	want := records(t, other.store, nsA)
	want["lost"] = records(t, w.store, nsA)["lost"]
	for range 2 {
		results, err := other.bring(PlanOptions{}, Target{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := equal(records(t, other.store, nsA), want); err != nil {
			t.Error(err)
		}
		t.Logf("%+v", results[0])
	}
}

// A state that is older than deletions are remembered does not go into a namespace
// with records: what was deleted, and forgotten, would come back.
func TestForgottenDeletionsDoNotComeBack(t *testing.T) {
	w := newWorld(t, memory.New())
	w.clock = time.Unix(1_800_000_000, 0)
	w.put(nsA, "deleted", "1")
	w.put(nsA, "kept", "1")
	m := w.full(nsA)
	w.delete(nsA, "deleted")
	w.check(kv.Forget(context.Background(), w.store, []kv.Tomb{{Ref: kv.Ref{Namespace: nsA, Key: "deleted"}, Version: records(t, w.store, nsA)["deleted"].Version}}))
	want := records(t, w.store, nsA)

	cut := m.Contents[0].CutTime()
	w.restore.Now = func() time.Time { return cut.Add(w.restore.Retention) }
	if _, err := w.bring(PlanOptions{}, Target{}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("at the retention: %v", err)
	}
	if err := equal(records(t, w.store, nsA), want); err != nil {
		t.Error(err)
	}
	if _, err := w.bring(PlanOptions{}, Target{}, map[string]kv.NamespaceID{nsA.String(): nsB}); err != nil {
		t.Errorf("into an empty namespace: %v", err)
	}
	if got := fmt.Sprint(visible(records(t, w.store, nsB))); got != "map[deleted:1 kept:1]" {
		t.Errorf("into an empty namespace: %s", got)
	}
	if _, err := w.bring(PlanOptions{}, Target{BringBack: true}, nil); err != nil {
		t.Errorf("asked to bring it back: %v", err)
	}
	if got := fmt.Sprint(visible(records(t, w.store, nsA))); got != "map[deleted:1 kept:1]" {
		t.Errorf("brought back: %s", got)
	}
	w.restore.Now = func() time.Time { return cut.Add(w.restore.Retention - 1) }
	if _, err := w.bring(PlanOptions{}, Target{}, nil); err != nil {
		t.Errorf("just before the retention: %v", err)
	}
}

// A rewind makes a namespace what it was, by writes that are newer than all.
func TestRewind(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.random(nsA, rng, 500)
	m := w.full(nsA)
	want := records(t, w.store, nsA)
	w.random(nsA, rng, 500)
	before := records(t, w.store, nsA)
	// The clock of who wrote this was ahead.
	ahead := kv.NewVersion(w.now().Add(5*time.Second).UnixNano(), 9, 9)
	w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: nsA, Key: "ahead"}, kv.Record{Version: ahead, Value: []byte("x")}))
	// Written again, but the same.
	for key, rec := range want {
		if !rec.Tombstone {
			rec.Version = w.version()
			w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: nsA, Key: key}, rec))
			before[key] = rec
			break
		}
	}
	results, err := w.bring(PlanOptions{Moment: m.Cut()}, Target{Rewind: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", results[0])
	got := records(t, w.store, nsA)
	for key, g := range got {
		there, wanted := !g.Tombstone, !want[key].Tombstone && !want[key].Absent()
		if there != wanted || there && (string(g.Value) != string(want[key].Value) || string(g.Metadata) != string(want[key].Metadata) || g.Expiration != want[key].Expiration) {
			t.Errorf("key %q: %s, want what was in %s", key, brief(g), brief(want[key]))
		}
		if c := g.Version.Compare(before[key].Version); c < 0 || c == 0 && g.Compare(before[key]) != 0 {
			t.Errorf("key %q: its version went back", key)
		}
	}
	for key, rec := range want {
		if _, ok := got[key]; !ok && !rec.Tombstone {
			t.Errorf("key %q is missing", key)
		}
	}
	again, err := w.bring(PlanOptions{Moment: m.Cut()}, Target{Rewind: true}, nil)
	if err != nil || again[0].Written != 0 || again[0].Deleted != 0 {
		t.Errorf("rewound again: %+v, %v", again, err)
	}
}

// The same with the store that a single machine runs on.
func TestOnDisk(t *testing.T) {
	open := func() kv.Store {
		s, err := disk.Open(t.TempDir(), disk.Options{MinFreeBytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	w := newWorld(t, open())
	w.put(nsA, "large", string(make([]byte, 3*disk.LargeValueBytes)))
	w.put(nsA, "small", "1")
	w.delete(nsA, "gone")
	w.full(nsA)
	w.put(nsA, "small", "2")
	w.more(nsA)
	other := newWorld(t, open())
	other.archive, other.stamp = w.archive, w.stamp
	for range 2 { // into an empty system, and into a live one
		if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
			t.Error(err)
		}
	}
	other.put(nsA, "small", "3")
	other.delete(nsA, "large")
	if _, err := other.bring(PlanOptions{}, Target{Rewind: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got := visible(records(t, other.store, nsA)); len(got) != 2 || got["small"] != "2" || len(got["large"]) != 3*disk.LargeValueBytes {
		t.Errorf("rewound to %d keys, small: %q", len(got), got["small"])
	}
}
