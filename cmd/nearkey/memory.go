package main

import (
	"runtime/debug"

	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/store/disk"
)

// memory is how memory_bytes is divided.
type memory struct {
	cache    int64 // blocks of the store
	memTable int64 // one of the store's tables of recent writes
	door     int64 // values of requests in progress
	heap     int64 // what Go's collector keeps all of its own below
}

// memTables is how many tables of recent writes the store may have at once.
const memTables = 4

// divideMemory gives a quarter to the cache, an eighth to recent writes and a
// quarter to values; what is left is for the rest. Go is to stay an eighth below
// the whole, which is what stacks, code and the kernel take. offHeap says that
// the store's memory is not Go's.
func divideMemory(total int64, offHeap bool) memory {
	m := memory{cache: total / 4, memTable: total / 8 / memTables, door: total / 4, heap: total - total/8}
	if offHeap {
		m.heap -= m.cache + memTables*m.memTable
	}
	return m
}

// pebbleOffHeap reports whether Pebble keeps its cache outside of Go's memory,
// which it does if the program was built with cgo.
func pebbleOffHeap() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" {
			return s.Value == "1"
		}
	}
	return false
}

// storeGauges shows the figures of the store as metrics.
func storeGauges(metrics *observe.Metrics, store *disk.Store) {
	for _, g := range []struct {
		name, help string
		read       func(disk.Stats) float64
	}{
		{"nearkey_store_disk_bytes", "Bytes of records on disk, without large values.", func(s disk.Stats) float64 { return float64(s.DiskBytes) }},
		{"nearkey_store_free_bytes", "Bytes free on the disk of the store.", func(s disk.Stats) float64 { return float64(s.FreeBytes) }},
		{"nearkey_store_full", "1 while writes are refused for lack of space.", func(s disk.Stats) float64 { return number(s.Full) }},
		{"nearkey_store_failed", "1 when nothing can be written until the process starts again.", func(s disk.Stats) float64 { return number(s.Failed) }},
		{"nearkey_store_cache_bytes", "Bytes in the block cache.", func(s disk.Stats) float64 { return float64(s.CacheBytes) }},
		{"nearkey_store_compaction_debt_bytes", "Bytes that compactions will have to move.", func(s disk.Stats) float64 { return float64(s.CompactionDebt) }},
		{"nearkey_store_l0_files", "Files that no compaction has sorted yet.", func(s disk.Stats) float64 { return float64(s.L0Files) }},
		{"nearkey_store_changes", "Changes in the change log.", func(s disk.Stats) float64 { return float64(s.Changes) }},
		{"nearkey_store_writes_under_way", "Writes that were begun and are not acknowledged.", func(s disk.Stats) float64 { return float64(s.WritesUnderWay) }},
	} {
		metrics.Gauge(g.name, g.help, func() float64 { return g.read(store.Stats()) })
	}
	for _, c := range []struct {
		name, help string
		read       func(disk.Stats) float64
	}{
		{"nearkey_store_cache_hits_total", "Blocks found in the block cache.", func(s disk.Stats) float64 { return float64(s.CacheHits) }},
		{"nearkey_store_cache_misses_total", "Blocks read from disk.", func(s disk.Stats) float64 { return float64(s.CacheMisses) }},
		{"nearkey_store_compactions_total", "Compactions done.", func(s disk.Stats) float64 { return float64(s.Compactions) }},
	} {
		metrics.Counter(c.name, c.help, func() float64 { return c.read(store.Stats()) })
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
