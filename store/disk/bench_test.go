package disk

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

func benchStore(b *testing.B, keys int) *Store {
	b.Helper()
	s, err := Open(b.TempDir(), Options{MinFreeBytes: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	var writes []kv.Write
	for i := range keys {
		writes = append(writes, kv.Write{Ref: benchRef(uint64(i)), Record: benchRecord(int64(i + 1))})
		if len(writes) == 1000 || i == keys-1 {
			if err := s.PutMany(context.Background(), writes); err != nil {
				b.Fatal(err)
			}
			writes = writes[:0]
		}
	}
	return s
}

func benchRef(i uint64) kv.Ref {
	return kv.Ref{Key: fmt.Sprintf("d%05d/%032x", i%1000, i*0x9e3779b97f4a7c15)}
}

func benchRecord(time int64) kv.Record {
	value := make([]byte, 288)
	for i := 0; i < 144; i += 8 {
		binary.LittleEndian.PutUint64(value[i:], rand.Uint64())
	}
	return kv.Record{Version: kv.NewVersion(time, 1, rand.Uint64()), Value: value}
}

func BenchmarkPut(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			s := benchStore(b, 0)
			var n atomic.Int64
			b.SetParallelism(clients / 2)
			if clients == 1 {
				for b.Loop() {
					i := n.Add(1)
					if err := s.Put(context.Background(), benchRef(uint64(i)), benchRecord(i)); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := n.Add(1)
					if err := s.Put(context.Background(), benchRef(uint64(i)), benchRecord(i)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkGet(b *testing.B) {
	const keys = 200_000
	s := benchStore(b, keys)
	b.ReportAllocs()
	for b.Loop() {
		if rec, err := s.Get(context.Background(), benchRef(rand.Uint64N(keys)), 0); err != nil || rec.Absent() {
			b.Fatal(rec, err)
		}
	}
}

func BenchmarkList1000(b *testing.B) {
	for _, keys := range []int{10_000, 200_000} {
		b.Run(fmt.Sprint("keys=", keys), func(b *testing.B) {
			s := benchStore(b, keys)
			b.ReportAllocs()
			for b.Loop() {
				page, err := s.List(context.Background(), kv.NamespaceID{}, kv.ListOptions{Limit: 1000, After: benchRef(rand.Uint64N(uint64(keys / 2))).Key})
				if err != nil || len(page.Keys) == 0 {
					b.Fatal(len(page.Keys), err)
				}
			}
		})
	}
}

func BenchmarkPutMany1000(b *testing.B) {
	s := benchStore(b, 0)
	var n int64
	writes := make([]kv.Write, 1000)
	for b.Loop() {
		for i := range writes {
			n++
			writes[i] = kv.Write{Ref: benchRef(uint64(n)), Record: benchRecord(n)}
		}
		if err := s.PutMany(context.Background(), writes); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "pairs/s")
}
