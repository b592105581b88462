// Package binding_test runs the conformance Worker, worker.mjs, on the real
// runtime against the real server of KV bindings:
//
//	go test -v ./test/binding
//
// prints every case.
package binding_test

import (
	"testing"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/memory"
)

// small are limits of another profile: none is Cloudflare's.
func small() kv.Limits {
	return kv.Limits{
		ValueBytes: 256 << 10, MetadataBytes: 200, MinTTL: 3 * time.Second, MinCacheTTL: 2 * time.Second,
		ListKeys: 10, GetManyKeys: 7, GetManyBytes: 512 << 10, PutManyPairs: 100, DeleteManyKeys: 100,
	}
}

func TestConformance(t *testing.T) {
	apart := edge.Options{MaxSkew: -1} // as an edge of a fleet has it
	t.Run("edge", func(t *testing.T) {
		conform(t, parts{limits: kv.CloudflareLimits(), store: memory.New(), tier: apart})
	})
	t.Run("single", func(t *testing.T) {
		store, err := disk.Open(t.TempDir(), disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		conform(t, parts{limits: kv.CloudflareLimits(), store: store, tier: edge.Options{Sole: true, MaxSkew: -1}})
	})
	t.Run("profile", func(t *testing.T) {
		conform(t, parts{limits: small(), store: memory.New(), tier: apart})
	})
}

func conform(t *testing.T, p parts) {
	w := newWorld(t, p)
	for _, c := range w.cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			wrong, skipped := w.run(t, c)
			if wrong != "" {
				t.Error(wrong)
			}
			if skipped != "" {
				t.Skip(skipped)
			}
		})
	}
}
