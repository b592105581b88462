package disk

import "math"

// Stats are figures of a store, for metrics.
type Stats struct {
	DiskBytes       uint64 // that the records occupy, without large values
	FreeBytes       uint64 // on the disk; 0 if unknown
	Full            bool   // writes are refused for lack of space
	Failed          bool   // nothing can be written until the process starts again
	MemTableBytes   uint64
	CacheBytes      int64
	CacheHits       int64
	CacheMisses     int64
	Compactions     int64
	CompactionDebt  uint64 // bytes that compactions will have to move
	L0Files         int64  // a growing number means that compactions do not keep up
	Changes         uint64 // in the change log
	WritesUnderWay  int
	WriteAheadBytes uint64
}

// Stats returns the figures of now.
func (s *Store) Stats() Stats {
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed || s.failure() != nil { // Pebble may hold its lock for ever
		return Stats{Failed: s.failure() != nil}
	}
	m := s.db.Metrics()
	free := s.space.measure()
	if free == math.MaxUint64 {
		free = 0
	}
	return Stats{
		DiskBytes: m.DiskSpaceUsage(), FreeBytes: free, Full: s.space.check(false) != nil,
		MemTableBytes: m.MemTable.Size, CacheBytes: m.BlockCache.Size, CacheHits: m.BlockCache.Hits, CacheMisses: m.BlockCache.Misses,
		Compactions: m.Compact.Count, CompactionDebt: m.Compact.EstimatedDebt, L0Files: m.Levels[0].TablesCount,
		Changes: s.synced.Load() + 1 - s.oldest.Load(), WritesUnderWay: len(s.writes), WriteAheadBytes: m.WAL.Size,
	}
}
