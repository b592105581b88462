package backup

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
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
