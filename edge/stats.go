package edge

import (
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// counters are counted where reads and writes happen.
type counters struct {
	hits, misses, expired, stale, coalesced, farReads, refreshes, notices, superseded atomic.Uint64
}

func (c *counters) count(status kv.CacheStatus) {
	switch status {
	case kv.Miss:
		c.misses.Add(1)
	case kv.Stale:
		c.stale.Add(1)
	default:
		c.expired.Add(1)
	}
}

// Stats are figures of a tier since its start. Reads through Near are not in
// them: whoever calls it counts.
type Stats struct {
	Hits, Misses, Expired, Stale uint64 // answers by cache status
	Coalesced                    uint64 // reads that waited for another's far read
	FarReads                     uint64
	Refreshes                    uint64 // far reads behind the reader
	Notices, Superseded          uint64 // changes that the feed told, and copies that they made useless
	Copies                       int
	Bytes                        uint64
	Age                          int64 // ns since the moment of which the feed has told everything; -1: no feed
}

// Stats returns the figures of now.
func (t *Tier) Stats() Stats {
	age := int64(-1)
	if current := t.current.Load(); current != never {
		age = t.moment() - current
	}
	c := &t.stats
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Expired: c.expired.Load(), Stale: c.stale.Load(), Coalesced: c.coalesced.Load(),
		FarReads: c.farReads.Load(), Refreshes: c.refreshes.Load(), Notices: c.notices.Load(), Superseded: c.superseded.Load(),
		Copies: t.near.EstimatedSize(), Bytes: t.near.WeightedSize(), Age: age,
	}
}
