package backup

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/memory"
)

// Snapshots of a gateway are taken, and put back, with one of its providers away.
func TestThroughAGateway(t *testing.T) {
	var away atomic.Bool
	providers := func() []gateway.Provider {
		flaky := &kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault {
			if away.Load() {
				return kvtest.Refused
			}
			return kvtest.None
		}}
		return []gateway.Provider{{Name: "a", Store: memory.New()}, {Name: "b", Store: flaky}}
	}
	open := func() kv.Store {
		journal, err := disk.OpenJournal(t.TempDir(), disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = journal.Close() })
		g, err := gateway.New(providers(), gateway.Options{Journal: journal})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return g
	}
	w, other := newWorld(t, open()), newWorld(t, open())
	other.archive, other.stamp = w.archive, w.stamp
	for _, gone := range []bool{false, true} {
		away.Store(gone)
		for range 2 {
			w.put(nsA, "a", "1")
			w.put(nsA, "b", "1")
			w.delete(nsA, "a")
			w.full(nsA)
			if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
				t.Fatalf("a provider is away: %t: %v", gone, err)
			}
			if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
				t.Errorf("a provider is away: %t: %v", gone, err)
			}
		}
	}
	other.put(nsA, "c", "1")
	if _, err := other.bring(PlanOptions{}, Target{Rewind: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got := visible(records(t, other.store, nsA)); len(got) != 1 || got["b"] != "1" {
		t.Errorf("rewound to %v", got)
	}
}
