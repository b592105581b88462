package main

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"
)

// op is a write of a key. The value, the metadata and their sizes are functions of
// (seed, key, seq): what is read anywhere can be checked against nothing but itself.
type op struct {
	seq     int // from 1
	remove  bool
	expires int64     // seconds since 1970; 0: never
	sent    time.Time // before it was
	acked   time.Time // zero: it was not, and it is unknown whether it was made
}

// key is what is known of a key. It has one writer, who writes through one entry.
type key struct {
	name string
	home *entry

	mu  sync.Mutex // guards ops
	ops []op       // the n-th has seq n+1
}

// begin notes a write that is about to be sent.
func (k *key) begin(remove bool, expires int64) op {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ops = append(k.ops, op{seq: len(k.ops) + 1, remove: remove, expires: expires, sent: time.Now()})
	return k.ops[len(k.ops)-1]
}

// acknowledged notes that a write was.
func (k *key) acknowledged(seq int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ops[seq-1].acked = time.Now()
}

// metadataEvery: every so many-th write has metadata.
const metadataEvery = 4

func (o *op) metadata() string {
	if o.seq%metadataEvery != 0 {
		return ""
	}
	return fmt.Sprintf(`{"n":%d}`, o.seq)
}

// The sizes of values: those of 16 KiB and more are blobs.
const (
	inlineBytes = 16 << 10
	largeBytes  = 64 << 10
	hugeBytes   = 1 << 20
)

// value is the value of a write.
func value(seed uint64, key string, seq int) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // it never fails
	rng := rand.New(rand.NewPCG(seed^h.Sum64(), uint64(seq)))
	size := rng.IntN(1500)
	switch n := rng.IntN(1000); {
	case n < 2:
		size = hugeBytes
	case n < 70:
		size = inlineBytes + rng.IntN(largeBytes)
	case n < 85:
		size = inlineBytes - 1 + rng.IntN(3) // at the limit
	}
	v := fmt.Appendf(make([]byte, 0, size+64), "%d of %s\n", seq, key)
	for len(v) < size {
		v = append(v, byte(rng.Uint32()))
	}
	return v
}

// seqOf is the write that a value is of; 0: nobody wrote it.
func seqOf(seed uint64, key string, text []byte) int {
	var seq int
	if _, err := fmt.Sscanf(string(text[:min(len(text), 32)]), "%d of ", &seq); err != nil || seq < 1 {
		return 0
	}
	if !bytes.Equal(text, value(seed, key, seq)) {
		return 0
	}
	return seq
}

// sight is what somebody saw of a key.
type sight struct {
	seq        int // the write that it shows; 0: the key is not there
	listed     bool
	begin, end time.Time
	bound      time.Duration // how old it may be
}

// What may be wrong with a sight.
const (
	invented    = "a value that nobody wrote"
	stale       = "older than it may be"
	missing     = "not there although it was acknowledged"
	resurrected = "there although its removal was acknowledged"
	expired     = "there after its expiration"
	expiredSoon = "gone before its expiration"
)

// secondsTold is the precision of expirations.
const secondsTold = time.Second

// judge returns what is wrong with a sight, or nothing. Writes that were sent
// before the sight's end may show; the newest that was acknowledged at its
// beginning less its bound, or a later one, must.
func (k *key) judge(s sight) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	floor := k.floor(s.begin.Add(-s.bound))
	if s.seq > len(k.ops) || s.seq > 0 && (k.ops[s.seq-1].remove || k.ops[s.seq-1].sent.After(s.end)) {
		return invented
	}
	if s.seq == 0 {
		return k.judgeAbsence(floor, s)
	}
	if o := k.ops[s.seq-1]; o.expires != 0 && !s.begin.Before(time.Unix(o.expires, 0).Add(secondsTold)) {
		return expired
	}
	if s.seq >= floor {
		return ""
	}
	for _, o := range k.ops[s.seq:floor] {
		if o.remove && !o.acked.IsZero() {
			return resurrected
		}
	}
	return stale
}

// floor is the newest write that was acknowledged at a moment; 0: none.
func (k *key) floor(at time.Time) int {
	for i := len(k.ops) - 1; i >= 0; i-- {
		if acked := k.ops[i].acked; !acked.IsZero() && !acked.After(at) {
			return i + 1
		}
	}
	return 0
}

func (k *key) judgeAbsence(floor int, s sight) string {
	if floor == 0 {
		return ""
	}
	verdict := missing
	for _, o := range k.ops[floor-1:] {
		if o.sent.After(s.end) {
			break
		}
		if o.remove || o.expires != 0 && !time.Unix(o.expires, 0).After(s.end) {
			return ""
		}
		if o.expires != 0 && o.seq == floor {
			verdict = expiredSoon
		}
	}
	return verdict
}

// judgeListed judges whether the key may be in a listing, or may not be.
func (k *key) judgeListed(s sight) string {
	if !s.listed {
		return k.judge(s)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	floor := k.floor(s.begin.Add(-s.bound))
	verdict := resurrected
	for i := max(floor, 1) - 1; i < len(k.ops); i++ {
		o := k.ops[i]
		if o.sent.After(s.end) {
			break
		}
		if o.remove {
			continue
		}
		if o.expires == 0 || time.Unix(o.expires, 0).Add(secondsTold).After(s.begin) {
			return ""
		}
		verdict = expired
	}
	return verdict
}

// newest reports whether a sight shows what was the newest acknowledged write when
// it began, or a later one.
func (k *key) newest(s sight) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return s.seq >= k.floor(s.begin)
}
