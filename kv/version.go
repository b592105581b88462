package kv

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Version orders the records of a key and names a write. 16 bytes, big-endian,
// ordered bytewise:
//
//	0..7   hybrid logical time, nanoseconds since 1970
//	8..9   node that accepted the write
//	10..15 random nonce
//
// It is stamped once, where the write is accepted, and is the write's
// idempotency key: a retry carries the same version. The zero Version belongs to
// an absent record and is older than all others.
type Version [16]byte

// NewVersion puts a version together from its parts; only the low 48 bits of the
// nonce are used.
func NewVersion(t int64, node uint16, nonce uint64) Version {
	var v Version
	binary.BigEndian.PutUint64(v[0:8], uint64(t))
	binary.BigEndian.PutUint64(v[8:16], uint64(node)<<48|nonce&(1<<48-1))
	return v
}

// ParseVersion reads the 32 hexadecimal digits that Version.String writes.
func ParseVersion(s string) (Version, error) {
	var v Version
	if len(s) != hex.EncodedLen(len(v)) {
		return Version{}, fmt.Errorf("version %q: want 32 hexadecimal digits", s)
	}
	if _, err := hex.Decode(v[:], []byte(s)); err != nil {
		return Version{}, fmt.Errorf("version %q: want 32 hexadecimal digits", s)
	}
	return v, nil
}

// Compare returns -1, 0 or 1.
func (v Version) Compare(o Version) int { return bytes.Compare(v[:], o[:]) }

// UnixNano is the version's hybrid logical time, nanoseconds since 1970.
func (v Version) UnixNano() int64 { return int64(binary.BigEndian.Uint64(v[0:8])) }

// Time is the version's hybrid logical time.
func (v Version) Time() time.Time { return time.Unix(0, v.UnixNano()) }

// Node is the node that stamped the version.
func (v Version) Node() uint16 { return binary.BigEndian.Uint16(v[8:10]) }

func (v Version) String() string { return hex.EncodeToString(v[:]) }

// MaxFuture is how far ahead of the clock a version may be. A version beyond it
// is refused: one poisoned clock must not make a key unwritable for years.
const MaxFuture = 10 * time.Second

// CheckFuture returns an error that wraps ErrFuture if v is more than MaxFuture
// ahead of now. It is called wherever a version from outside is accepted.
func CheckFuture(v Version, now time.Time) error {
	if ahead := v.Time().Sub(now); ahead > MaxFuture {
		return fmt.Errorf("%w: version is %s ahead of this node's clock, at most %s is accepted; compare the clocks",
			ErrFuture, ahead.Round(time.Millisecond), MaxFuture)
	}
	return nil
}

// Stamper gives writes their versions: a hybrid logical clock that never stamps
// the same time twice and never goes back, even when the clock of the machine
// does. All methods may be called at once.
type Stamper struct {
	node uint16
	now  func() time.Time
	last atomic.Int64 // the time of the latest stamp or observed version
}

// NewStamper returns a Stamper for a node. now is the clock, time.Now if nil.
func NewStamper(node uint16, now func() time.Time) *Stamper {
	if now == nil {
		now = time.Now
	}
	return &Stamper{node: node, now: now}
}

// Stamp returns a version newer than all that this Stamper stamped or observed.
// If the clock has fallen more than MaxFuture behind them, the version would be
// refused everywhere, and an older one would lose to records already stored: it
// returns an error that wraps ErrFuture until the clock has caught up.
func (s *Stamper) Stamp() (Version, error) {
	now := s.now().UnixNano()
	for {
		last := s.last.Load()
		next := max(now, last+1)
		if next-now > int64(MaxFuture) {
			return Version{}, fmt.Errorf("%w: the clock of this node is %s behind the newest version that it has seen; writes are refused until it has caught up",
				ErrFuture, time.Duration(next-now).Round(time.Millisecond))
		}
		if s.last.CompareAndSwap(last, next) {
			return NewVersion(next, s.node, rand.Uint64()), nil
		}
	}
}

// Observe makes later stamps newer than v.
func (s *Stamper) Observe(v Version) {
	t := v.UnixNano()
	for {
		last := s.last.Load()
		if t <= last || s.last.CompareAndSwap(last, t) {
			return
		}
	}
}

// contextErr wraps the reason why ctx ended, if it has.
func contextErr(ctx context.Context, doing string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
