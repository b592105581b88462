package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/memory"
)

// nothing is a journal that keeps nothing.
type nothing struct{}

func (nothing) Apply(context.Context, []gateway.Entry, bool) error { return nil }
func (nothing) Load(func(gateway.Entry) error) error               { return nil }

// BenchmarkOverhead is what gateway and proxies cost themselves: their clusters are
// maps in memory.
func BenchmarkOverhead(b *testing.B) {
	stores := map[string]kv.Store{}
	var providers []gateway.Provider
	for _, name := range []string{"a", "b"} {
		var clusters []proxy.Cluster
		for _, shard := range []string{"s1", "s2", "s3", "s4"} {
			clusters = append(clusters, proxy.Cluster{Name: shard, Weight: 1, Store: memory.New()})
		}
		shards, err := proxy.NewShards(clusters, proxy.ShardsOptions{Keeper: proxy.FileKeeper(filepath.Join(b.TempDir(), name))})
		if err != nil {
			b.Fatal(err)
		}
		blobs := &blob.Memory{}
		split := proxy.NewSplit(shards, blobs, blobs, proxy.SplitOptions{})
		stores["proxy"] = split
		providers = append(providers, gateway.Provider{Name: name, Store: split, Probes: shards.Probes})
	}
	for name, of := range map[string][]gateway.Provider{"gateway of one": providers[:1], "gateway of two": providers} {
		g, err := gateway.New(of, gateway.Options{Journal: nothing{}})
		if err != nil {
			b.Fatal(err)
		}
		stores[name] = g
	}
	p := &plane{stamp: kv.NewStamper(1, nil), keys: keyspace{seed: 5, dirs: keyDirs, binary: true}}
	for i := range chunkPairs {
		for _, s := range stores {
			if err := p.put(b.Context(), s, i); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, name := range []string{"proxy", "gateway of one", "gateway of two"} {
		store := stores[name]
		b.Run("get/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if _, err := store.Get(b.Context(), p.ref(i%chunkPairs), 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("put/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if err := p.put(b.Context(), store, i%chunkPairs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
