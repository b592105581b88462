package observe

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearkey/nearkey/kv"
)

// Cache counts how the nearest tier came by the answers to readers who enter by
// one tier. All methods may be called at once, and on a nil *Cache do nothing.
type Cache struct {
	hits, misses, stale prometheus.Counter
}

// Cache returns the counters of a tier.
func (m *Metrics) Cache(tier string) *Cache {
	if m == nil {
		return nil
	}
	return &Cache{
		hits:   m.cacheHits.WithLabelValues(tier),
		misses: m.cacheMisses.WithLabelValues(tier),
		stale:  m.staleServed.WithLabelValues(tier),
	}
}

// Count counts one answer. One that no tier gave is not counted.
func (c *Cache) Count(status kv.CacheStatus) {
	if c == nil {
		return
	}
	switch status {
	case kv.Hit:
		c.hits.Inc()
	case kv.Miss, kv.Expired:
		c.misses.Inc()
	case kv.Stale:
		c.stale.Inc()
	}
}
