package kv

import (
	"hash/maphash"
	"sync"
	"time"
)

// WriteRate remembers for a short time when keys were written, to hold clients
// to one write of a key in each interval (Limits.WriteInterval). It remembers at
// most maxRateKeys keys of an interval and lets the others pass.
type WriteRate struct {
	interval time.Duration
	seed     maphash.Seed

	mu       sync.Mutex // guards the rest
	began    time.Time  // when recent was begun
	recent   map[uint64]time.Time
	previous map[uint64]time.Time
}

// maxRateKeys bounds the memory of a WriteRate to some tens of megabytes.
const maxRateKeys = 1 << 20

// NewWriteRate returns a WriteRate for an interval greater than 0.
func NewWriteRate(interval time.Duration) *WriteRate {
	return &WriteRate{interval: interval, seed: maphash.MakeSeed(), recent: map[uint64]time.Time{}}
}

// Allow reports whether ref may be written at now, and if so remembers it.
func (r *WriteRate) Allow(ref Ref, now time.Time) bool {
	h := maphash.Comparable(r.seed, ref)
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.began) >= r.interval || now.Before(r.began) {
		r.began, r.previous, r.recent = now, r.recent, map[uint64]time.Time{}
	}
	if r.within(r.recent, h, now) || r.within(r.previous, h, now) {
		return false
	}
	if len(r.recent) < maxRateKeys {
		r.recent[h] = now
	}
	return true
}

func (r *WriteRate) within(written map[uint64]time.Time, h uint64, now time.Time) bool {
	last, ok := written[h]
	return ok && now.Sub(last) < r.interval && !now.Before(last)
}
