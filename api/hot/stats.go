package hot

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Stats are what a Server has counted since it was made.
type Stats struct {
	Accepted uint64 // connections
	Open     int    // connections at this moment, those given away included
	Given    uint64 // connections, to the HTTP server
	Bytes    uint64 // of values that were answered from near

	Hits    uint64                    // requests that were answered from near
	Handled uint64                    // requests that the handler answered on the hot path's connections
	Cache   map[kv.CacheStatus]uint64 // of Handled, those whose answer told a status

	Near    Latency // of Hits: from the bytes of a request to the write of its answer
	Handler Latency // of Handled, likewise
}

// Latency is a distribution of times, exact to one part in subBuckets.
type Latency struct{ buckets [buckets]uint64 }

const (
	// subBuckets is how many buckets there are between a time and its double.
	subBuckets = 16
	// leastBits and mostBits bound the times that are told apart: from 256 ns to
	// about 69 s.
	leastBits, mostBits = 8, 36
	buckets             = (mostBits-leastBits)*subBuckets + 1
)

// bucketOf returns the bucket of a time.
func bucketOf(t time.Duration) int {
	n := uint64(max(t, 0))
	length := bits.Len64(n)
	switch {
	case length <= leastBits:
		return 0
	case length > mostBits:
		return buckets - 1
	}
	// The bits behind the first are the place between a power of two and the next.
	sub := n >> (length - 5) & (subBuckets - 1)
	return (length-1-leastBits)*subBuckets + int(sub) + 1
}

// bucketEnd returns the time at which a bucket ends.
func bucketEnd(i int) time.Duration {
	if i == 0 {
		return 1 << leastBits
	}
	octave, sub := (i-1)/subBuckets, (i-1)%subBuckets
	return time.Duration((subBuckets + sub + 1) << (octave + leastBits - 4))
}

// Count returns how many times there are.
func (l *Latency) Count() (n uint64) {
	for _, c := range l.buckets {
		n += c
	}
	return n
}

// Quantile returns the time that the share q of all does not exceed, at least; 0
// if there are none.
func (l *Latency) Quantile(q float64) time.Duration {
	total := l.Count()
	want := uint64(q*float64(total) + 0.5)
	want = min(max(want, 1), total)
	var seen uint64
	for i, c := range l.buckets {
		if seen += c; seen >= want && total > 0 {
			return bucketEnd(i)
		}
	}
	return 0
}

// Since returns the times that were added to l after earlier was read.
func (l *Latency) Since(earlier *Latency) Latency {
	out := *l
	for i := range out.buckets {
		out.buckets[i] -= earlier.buckets[i]
	}
	return out
}

// stats are counters in shards: a connection counts in one, so that the cores
// seldom meet in a line of memory.
type stats struct {
	shards []shard
	next   atomic.Uint64
}

// statuses are what is counted of a tier's answers by the handler.
var statuses = [...]kv.CacheStatus{kv.Hit, kv.Miss, kv.Expired, kv.Stale}

type shard struct {
	_                               [64]byte
	accepted, given, hits, requests atomic.Uint64
	bytes                           atomic.Uint64
	cache                           [len(statuses)]atomic.Uint64
	near, handler                   [buckets]atomic.Uint64
	_                               [64]byte
}

// newStats returns counters for a number of cores. There are more shards than
// cores, because connections are dealt out without regard to what they will do.
func newStats(cores int) stats {
	return stats{shards: make([]shard, 1<<bits.Len(uint(2*cores-1)))}
}

// accept counts a connection, and returns where it counts.
func (s *stats) accept() *shard {
	sh := &s.shards[s.next.Add(1)%uint64(len(s.shards))]
	sh.accepted.Add(1)
	return sh
}

func (s *shard) hit(hits []hit, took time.Duration) {
	if len(hits) == 0 {
		return
	}
	total := 0
	for i := range hits {
		total += hits[i].bytes
	}
	s.hits.Add(uint64(len(hits)))
	s.bytes.Add(uint64(total))
	s.near[bucketOf(took)].Add(uint64(len(hits)))
}

func (s *shard) handled(status string, took time.Duration) {
	s.requests.Add(1)
	s.handler[bucketOf(took)].Add(1)
	for i, known := range statuses {
		if status == string(known) {
			s.cache[i].Add(1)
		}
	}
}

// Stats returns what was counted until now. Counters that move while they are
// read may not fit each other exactly.
func (s *Server) Stats() Stats {
	out := Stats{Cache: map[kv.CacheStatus]uint64{}}
	s.mu.Lock()
	out.Open = len(s.conns) + len(s.given)
	s.mu.Unlock()
	for i := range s.stats.shards {
		sh := &s.stats.shards[i]
		out.Accepted += sh.accepted.Load()
		out.Given += sh.given.Load()
		out.Bytes += sh.bytes.Load()
		out.Hits += sh.hits.Load()
		out.Handled += sh.requests.Load()
		for j, status := range statuses {
			out.Cache[status] += sh.cache[j].Load()
		}
		for j := range buckets {
			out.Near.buckets[j] += sh.near[j].Load()
			out.Handler.buckets[j] += sh.handler[j].Load()
		}
	}
	return out
}
