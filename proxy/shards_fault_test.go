package proxy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// switched is a cluster with a fault that is switched on and off.
type switched struct {
	kvtest.Faulty
	fault atomic.Int32
	calls atomic.Int64
}

func newSwitched(store kv.Store) *switched {
	s := &switched{}
	s.Store = store
	s.Inject = func(kvtest.Op, kv.Ref) kvtest.Fault { s.calls.Add(1); return kvtest.Fault(s.fault.Load()) }
	return s
}

func (s *switched) set(f kvtest.Fault) { s.fault.Store(int32(f)) }

func (s *switched) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	return ids, s.other(ctx, func() (err error) { ids, err = kv.Namespaces(ctx, s.Store, after, limit); return err })
}

func (s *switched) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return s.other(ctx, func() error { return kv.Forget(ctx, s.Store, tombs) })
}

func (s *switched) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return s.other(ctx, func() error { return kv.Drop(ctx, s.Store, ns) })
}

func (s *switched) other(ctx context.Context, call func() error) error {
	switch kvtest.Fault(s.fault.Load()) {
	case kvtest.Refused:
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, kvtest.ErrInjected)
	case kvtest.Hang:
		<-ctx.Done()
		return ctx.Err()
	}
	return call()
}

// threeClusters are switched clusters in which slots 0, 1 and 2 are at home in
// this order.
func threeClusters(t *testing.T, opts ShardsOptions) (*Shards, []*switched) {
	t.Helper()
	clusters, faults := memories(3), make([]*switched, 3)
	for i := range clusters {
		faults[i] = newSwitched(clusters[i].Store)
		clusters[i].Store = faults[i]
	}
	names := []string{"c0", "c1", "c2"}
	first := newTable(func(slot int) string { return names[slot%3] })
	if err := opts.Keeper.Save(first.encode()); err != nil {
		t.Fatal(err)
	}
	return mustShards(t, clusters, opts), faults
}

func at(slot int, key string) kv.Ref { return kv.Ref{Namespace: namespaceIn(slot, 0), Key: key} }

func some(n int64) kv.Record {
	return kv.Record{Version: kv.NewVersion(n, 0, 0), Value: fmt.Append(nil, n)}
}

// A cluster that refuses or hangs fails what needs it, by name, and nothing else.
func TestAClusterFailsOnlyItsOwnSlots(t *testing.T) {
	for _, fault := range []kvtest.Fault{kvtest.Refused, kvtest.Hang} {
		synctest.Test(t, func(t *testing.T) {
			s, clusters := threeClusters(t, quick(&heldTable{}))
			ctx := t.Context()
			for slot := range 3 {
				if err := s.Put(ctx, at(slot, "k"), some(1)); err != nil {
					t.Fatal(err)
				}
			}
			clusters[1].set(fault)
			begun := time.Now()
			for _, slot := range []int{0, 2} {
				ref := at(slot, "k")
				_, getErr := s.Get(ctx, ref, 0)
				_, listErr := s.List(ctx, ref.Namespace, kv.ListOptions{})
				_, manyErr := s.GetMany(ctx, []kv.Ref{at(0, "k"), at(2, "k")}, 0)
				forgetErr := s.Forget(ctx, []kv.Tomb{{Ref: ref, Version: some(1).Version}})
				if err := errors.Join(s.Put(ctx, ref, some(2)), getErr, listErr, manyErr, forgetErr); err != nil {
					t.Errorf("slot %d: %v", slot, err)
				}
			}
			if waited := time.Since(begun); waited > 0 {
				t.Errorf("the others waited %v", waited)
			}
			err := s.PutMany(ctx, []kv.Write{{Ref: at(0, "k"), Record: some(3)}, {Ref: at(1, "k"), Record: some(3)}, {Ref: at(2, "k"), Record: some(3)}})
			if err == nil || !strings.Contains(err.Error(), "cluster c1") || strings.Contains(err.Error(), "cluster c0") {
				t.Errorf("put many: %v", err)
			}
			for _, slot := range []int{0, 2} {
				if rec, err := s.Get(ctx, at(slot, "k"), 0); err != nil || rec.Version != some(3).Version {
					t.Errorf("slot %d was not written by the call that failed in another: %v", slot, err)
				}
			}
			if _, err := s.GetMany(ctx, []kv.Ref{at(0, "k"), at(1, "k")}, 0); err == nil || !strings.Contains(err.Error(), "cluster c1") {
				t.Errorf("get many: %v", err)
			}
			status := s.Status().Clusters
			if !status[0].Up || status[1].Up || status[1].Error == "" || !status[2].Up {
				t.Errorf("status %+v", status)
			}
			clusters[1].set(kvtest.None)
			if _, err := s.Get(ctx, at(1, "k"), 0); err != nil || !s.Status().Clusters[1].Up {
				t.Errorf("the cluster is back: %v", err)
			}
		})
	}
}

// A call without a deadline gets one; a deadline of its own counts.
func TestACallIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, clusters := threeClusters(t, quick(&heldTable{}))
		clusters[1].set(kvtest.Hang)
		begun := time.Now()
		if _, err := s.Get(t.Context(), at(1, "k"), 0); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != DefaultTimeout {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		begun = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Get(ctx, at(1, "k"), 0); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

// A lost table is taken from the clusters: the newest one, and only if all answer.
func TestALostTableIsFoundInTheClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, clusters := threeClusters(t, quick(&heldTable{}))
		stop := run(t, s)
		for i := range 3 {
			if err := s.Put(t.Context(), at(i, "k"), some(1)); err != nil {
				t.Fatal(err)
			}
		}
		clusters[2].set(kvtest.Refused) // it misses the newest table
		if err := s.Move(0, "c1"); err != nil {
			t.Fatal(err)
		}
		awaitMoves(t, s)
		epoch := s.Status().Epoch
		time.Sleep(time.Second) // of the bubble: every cluster that is up is told
		stop()

		keeper := &heldTable{}
		again := mustShards(t, own(s), quick(keeper))
		if _, err := again.Get(t.Context(), at(0, "k"), 0); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "c2") {
			t.Fatalf("a cluster is down that may have the newest table: %v", err)
		}
		if keeper.text != nil || again.Status().Epoch != 0 || again.Probes() != nil || again.Move(1, "c0") == nil {
			t.Error("a table was made up")
		}
		clusters[2].set(kvtest.None)
		if rec, err := again.Get(t.Context(), at(0, "k"), 0); err != nil || rec.Absent() {
			t.Fatalf("after recovery: %v, %v", rec, err)
		}
		if got := again.Status().Epoch; got != epoch {
			t.Errorf("epoch %d was recovered, want %d", got, epoch)
		}
		if len(keeper.text) == 0 {
			t.Error("the table that was found is not kept")
		}
	})
}

// own returns the clusters of a Shards.
func own(s *Shards) (clusters []Cluster) {
	for _, c := range s.clusters {
		clusters = append(clusters, c.Cluster)
	}
	return clusters
}

// A table older than the clusters' ends all service; so does a second process that
// goes on alone.
func TestAnOldTableIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := &heldTable{}
		s, _ := threeClusters(t, quick(keeper))
		old := keeper.text
		ran := make(chan error, 1)
		go func() { ran <- s.Run(t.Context()) }()
		if err := s.Move(0, "c1"); err != nil {
			t.Fatal(err)
		}
		awaitMoves(t, s)
		time.Sleep(time.Second)

		late := mustShards(t, own(s), quick(&heldTable{text: old}))
		if _, err := late.Get(t.Context(), at(1, "k"), 0); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "epoch") {
			t.Errorf("by an old table: %v", err)
		}
		if err := late.Put(t.Context(), at(2, "k"), some(1)); err == nil {
			t.Error("a write by an old table succeeded")
		}
		if late.Status().Refusal == "" || late.Move(1, "c0") == nil {
			t.Error("the status does not tell, or a slot can be moved")
		}
		if err := late.Run(t.Context()); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("run by an old table: %v", err)
		}

		second := mustShards(t, own(s), quick(&heldTable{text: keeper.text}))
		if err := second.Move(1, "c0"); err != nil {
			t.Fatal(err)
		}
		run(t, second)
		awaitMoves(t, second)
		if err := <-ran; !errors.Is(err, kv.ErrUnavailable) || s.Status().Refusal == "" {
			t.Errorf("the first process goes on beside the second: %v", err)
		}
	})
}

func TestForeignClusters(t *testing.T) {
	clusters := memories(2)
	first := mustShards(t, clusters[:1], quick(&heldTable{}))
	ref := kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}
	if err := first.Put(t.Context(), ref, some(1)); err != nil {
		t.Fatal(err)
	}
	// Another provider's table: the cluster is refused, not the others.
	keeper := &heldTable{text: newTable(func(int) string { return "c0" }).text}
	if _, err := mustShards(t, clusters, quick(keeper)).Get(t.Context(), ref, 0); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "belongs to") {
		t.Errorf("a cluster of another provider: %v", err)
	}
	// A table that speaks of a cluster that is not there.
	keeper.text = sampleTable().text
	if _, err := NewShards(clusters, quick(keeper)); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("an unknown cluster: %v", err)
	}
	keeper.text = keeper.text[1:]
	if _, err := NewShards(clusters, quick(keeper)); !errors.Is(err, errTable) {
		t.Errorf("a damaged table: %v", err)
	}
	other := mustShards(t, []Cluster{{Name: "x", Weight: 1, Store: memory.New()}}, quick(&heldTable{}))
	if err := other.Put(t.Context(), ref, some(1)); err != nil {
		t.Fatal(err)
	}
	mixed := []Cluster{clusters[0], other.clusters[0].Cluster}
	if _, err := mustShards(t, mixed, quick(&heldTable{})).Get(t.Context(), ref, 0); err == nil {
		t.Error("clusters of two providers are taken for one")
	}
}

// Records that are there before the first table are found, or nothing is guessed.
func TestTheFirstTable(t *testing.T) {
	ref := kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}
	for n := range 3 {
		clusters := memories(3)
		for i := range n {
			if err := clusters[i].Store.Put(t.Context(), ref, some(1)); err != nil {
				t.Fatal(err)
			}
		}
		keeper := &heldTable{}
		s := mustShards(t, clusters, quick(keeper))
		rec, err := s.Get(t.Context(), ref, 0)
		counts := map[string]int{}
		for _, c := range s.Status().Clusters {
			counts[c.Name] = c.Slots
		}
		switch n {
		case 0:
			if err != nil || min(counts["c0"], counts["c1"], counts["c2"]) < Slots/4 {
				t.Errorf("empty clusters: %v, %v", counts, err)
			}
		case 1:
			if err != nil || rec.Absent() || counts["c0"] != Slots {
				t.Errorf("one cluster holds records: %v, %v, %v", rec, counts, err)
			}
		case 2:
			if !errors.Is(err, kv.ErrUnavailable) || keeper.text != nil {
				t.Errorf("two clusters hold records: %v", err)
			}
		}
	}
}

func TestConfigurationOfShards(t *testing.T) {
	many := make([]Cluster, MaxClusters+1)
	for i := range many {
		many[i] = Cluster{Name: fmt.Sprint(i), Weight: 1, Store: memory.New()}
	}
	if _, err := NewShards(many[:MaxClusters], quick(&heldTable{})); err != nil {
		t.Errorf("as many clusters as there may be: %v", err)
	}
	for what, clusters := range map[string][]Cluster{
		"too many clusters": many,
		"none":              nil,
		"no name":           {{Weight: 1}},
		"a name twice":      {{Name: "a", Weight: 1}, {Name: "a", Weight: 1}},
		"negative weight":   {{Name: "a", Weight: -1}},
	} {
		if _, err := NewShards(clusters, quick(&heldTable{})); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := NewShards(many[:1], ShardsOptions{}); err == nil {
		t.Error("no keeper: no error")
	}
	weightless := mustShards(t, []Cluster{{Name: "a", Store: memory.New()}}, quick(&heldTable{}))
	if err := weightless.Put(t.Context(), at(0, "k"), some(1)); err == nil {
		t.Error("no weight at all: no error")
	}
	s := mustShards(t, memories(2), quick(FileKeeper(filepath.Join(t.TempDir(), "table"))))
	if err := s.Put(t.Context(), at(0, "k"), some(1)); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"slot -1": s.Move(-1, "c0"), "slot 4096": s.Move(Slots, "c0"), "unknown cluster": s.Move(0, "c9"), "drain unknown": s.Drain("c9"),
		"bits -1": s.Spread(kv.NamespaceID{1}, -1), "bits 9": s.Spread(kv.NamespaceID{1}, MaxSpreadBits+1), "the table's namespace": s.Spread(TableNamespace, 1),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := errors.Join(s.Move(Slots-1, "c0"), s.Spread(kv.NamespaceID{1}, MaxSpreadBits)); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

func TestTheTablesNamespaceIsNotServed(t *testing.T) {
	s := mustShards(t, memories(2), quick(&heldTable{}))
	ctx := t.Context()
	_, getErr := s.Get(ctx, tableRef, 0)
	_, manyErr := s.GetMany(ctx, []kv.Ref{tableRef}, 0)
	_, listErr := s.List(ctx, TableNamespace, kv.ListOptions{})
	for what, err := range map[string]error{
		"get": getErr, "get many": manyErr, "list": listErr, "put": s.Put(ctx, tableRef, some(1)),
		"forget": s.Forget(ctx, []kv.Tomb{{Ref: tableRef}}), "drop": s.Drop(ctx, TableNamespace),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := s.Put(ctx, at(0, "k"), some(1)); err != nil {
		t.Fatal(err)
	}
	ids, err := kv.Namespaces(ctx, s, kv.NamespaceID{}, 10)
	if err != nil || len(ids) != 1 {
		t.Errorf("namespaces %v, %v", ids, err)
	}
}

// A probe asks the cluster that it is for.
func TestProbes(t *testing.T) {
	s, clusters := threeClusters(t, quick(&heldTable{}))
	if err := s.change(func(t *table) error {
		for slot := range t.owners {
			if t.owners[slot] == "c2" {
				t.owners[slot] = "c0"
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	probes := s.Probes()
	if len(probes) != 2 {
		t.Fatalf("%d probes for the two clusters that own slots", len(probes))
	}
	asked := map[int]bool{}
	for _, probe := range probes {
		for i, c := range clusters {
			before := c.calls.Load()
			if _, err := s.Get(t.Context(), kv.Ref{Namespace: probe, Key: "k"}, 0); err != nil {
				t.Fatal(err)
			}
			if c.calls.Load() > before {
				asked[i] = true
			}
		}
	}
	if !asked[0] || !asked[1] || asked[2] {
		t.Errorf("the probes ask clusters %v", asked)
	}
}

// A page of a spread namespace ends in time although its clusters hold much that
// is not at home there.
func TestListingBetweenStrangers(t *testing.T) {
	s, clusters := threeClusters(t, quick(&heldTable{}))
	ns := namespaceIn(0, 0)
	if err := s.change(func(t *table) error { t.spread[ns] = 8; return nil }); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	want := 0
	for i := range 3000 {
		ref := kv.Ref{Namespace: ns, Key: fmt.Sprintf("key %04d", i)}
		home := s.current.Load().place(ns, ref.Key).home
		for _, c := range s.clusters { // every cluster holds every key; the last thousand are nobody's
			if i < 2000 || c != home {
				if err := c.Store.(*switched).Store.Put(ctx, ref, some(1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i < 2000 {
			want++
		}
	}
	before := clusters[0].calls.Load()
	for _, limit := range []int{1, 7, 1000, 10_000} {
		got, pages, after := 0, 0, ""
		for more := true; more; pages++ {
			page, err := s.List(ctx, ns, kv.ListOptions{Limit: limit, After: after})
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Keys) > limit {
				t.Fatalf("%d keys in a page of %d", len(page.Keys), limit)
			}
			got, after, more = got+len(page.Keys), page.Last, page.More
		}
		if got != want {
			t.Errorf("limit %d: %d keys listed, want %d", limit, got, want)
		}
		if most := want/limit + 1 + 1000/8; pages > most {
			t.Errorf("limit %d: %d pages", limit, pages)
		}
	}
	if clusters[0].calls.Load() == before {
		t.Error("the cluster was never asked")
	}
}

// A page that goes back to its clusters too often ends where its keys are known.
func TestListingInRounds(t *testing.T) {
	s, _ := threeClusters(t, quick(&heldTable{}))
	ns := namespaceIn(0, 0)
	if err := s.change(func(t *table) error { t.spread[ns] = 8; return nil }); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for i := range 2000 { // only one in a hundred is at home
		ref := kv.Ref{Namespace: ns, Key: fmt.Sprintf("key %04d", i)}
		home := s.current.Load().place(ns, ref.Key).home
		for _, c := range s.clusters {
			if (c == home) == (i%100 == 50) {
				if err := c.Store.(*switched).Store.Put(ctx, ref, some(1)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	got, short, after := 0, 0, ""
	for more := true; more; {
		page, err := s.List(ctx, ns, kv.ListOptions{Limit: 5, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if page.More && page.Last <= after {
			t.Fatalf("the page after %q ends at %q", after, page.Last)
		}
		if page.More && len(page.Keys) < 5 {
			short++
		}
		got, after, more = got+len(page.Keys), page.Last, page.More
	}
	if got != 20 || short == 0 {
		t.Errorf("%d keys were listed, want 20; %d pages were short", got, short)
	}
}
