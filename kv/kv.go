// Package kv is the vocabulary of nearkey: the record, the one law that orders
// records, and the one interface that everything on the path of a key implements.
//
// A Record is one version of one key: a value, a tombstone, or absent ("never
// written"). The law is Merge: of two copies of a record the newer survives.
// Merge is commutative, associative and idempotent, so a copy is only ever
// replaced by a newer one: a write may be retried, raced, reordered or repeated,
// and all stores still end equal.
//
// A Store keeps or forwards records and hides nothing. A Namespace stands on a
// Store and owns the rules of the product: limits, expiry, what a reader sees.
//
// The package keeps no state but the time of the last stamp, and may lose it: a
// store that rests on disk gives it back at start (Stamper.Observe).
package kv

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"time"
)

// Store is anything that keeps or forwards records: a leaf on disk, a cache
// before another store, two providers as one.
//
// Consistency: a Get through the same Store that follows a successful Put
// returns that record or a newer one. Durability: when Put returns nil the
// record survives whatever the implementation's package comment says it
// survives; when Put returns an error the record is stored or not stored, never
// half stored, and the caller may repeat it unchanged. Concurrency: all methods
// may be called at once from many goroutines. A cancelled context ends a call
// with an error that wraps ctx.Err().
//
// Bytes: the caller must not change a Record's Value and Metadata after passing
// them to Put; the Store may keep them. The Store must not change what it
// returned; the caller may keep but not change it.
//
// A Store hides nothing: tombstones and expired records are returned as they
// are, so that a Store needs no clock and merging is exact.
type Store interface {
	// Get returns the record of ref. A key that was never written is answered by
	// the zero Record and no error: absent is an answer. maxAge is the staleness
	// that the caller accepts; a leaf is never stale and ignores it.
	Get(ctx context.Context, ref Ref, maxAge time.Duration) (Record, error)

	// Put stores rec unless the store already has a record that Merge prefers, in
	// which case it does nothing and reports success. A delete is a Put of a
	// Tombstone. Putting an absent record is a bug of the caller.
	Put(ctx context.Context, ref Ref, rec Record) error

	// List returns one page of the keys of a namespace, in byte order.
	List(ctx context.Context, ns NamespaceID, opts ListOptions) (Page, error)
}

// Record is one version of one key. The zero Record is absent. A tombstone
// carries its version and nothing else.
type Record struct {
	Version    Version
	Tombstone  bool
	Expiration int64  // seconds since 1970 from which on the record is not served; 0: never
	Metadata   []byte // JSON text; empty: none
	Value      []byte // at most MaxValueBytes; empty is a value
}

// Tombstone returns the record of a deletion with the given version.
func Tombstone(v Version) Record { return Record{Version: v, Tombstone: true} }

// Absent reports whether the key was never written.
func (r Record) Absent() bool { return r.Version == Version{} }

// Expired reports whether the record has an expiration and now has reached it.
func (r Record) Expired(now time.Time) bool {
	return r.Expiration != 0 && now.Unix() >= r.Expiration
}

// Visible reports whether a reader of the product sees the record at now: it is
// a value that has not expired.
func (r Record) Visible(now time.Time) bool {
	return !r.Absent() && !r.Tombstone && !r.Expired(now)
}

// Bytes is the memory that the record's variable parts occupy.
func (r Record) Bytes() int { return len(r.Value) + len(r.Metadata) }

// Compare orders the copies of one key: by version, and copies of equal version
// (a retried write, an expiry sweep, a duplicated id) by content, a tombstone
// last, so that every store breaks the tie in the same way.
func (r Record) Compare(o Record) int {
	if c := r.Version.Compare(o.Version); c != 0 {
		return c
	}
	if r.Tombstone != o.Tombstone {
		if r.Tombstone {
			return 1
		}
		return -1
	}
	return cmp.Or(
		cmp.Compare(r.Expiration, o.Expiration),
		bytes.Compare(r.Metadata, o.Metadata),
		bytes.Compare(r.Value, o.Value))
}

// Merge is the law: of two copies of a record the newer survives.
func Merge(a, b Record) Record {
	if a.Compare(b) >= 0 {
		return a
	}
	return b
}

// NamespaceID identifies a namespace; its text form is 32 hexadecimal digits.
type NamespaceID [16]byte

func (id NamespaceID) String() string { return hex.EncodeToString(id[:]) }

// ParseNamespaceID reads the 32 hexadecimal digits of a namespace id.
func ParseNamespaceID(s string) (NamespaceID, error) {
	var id NamespaceID
	if len(s) != hex.EncodedLen(len(id)) {
		return NamespaceID{}, fmt.Errorf("namespace id %q: want 32 hexadecimal digits", s)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return NamespaceID{}, fmt.Errorf("namespace id %q: want 32 hexadecimal digits", s)
	}
	return id, nil
}

// Ref names a key in a namespace. A Store takes any Key of 1 to MaxKeyBytes
// bytes; what a user may choose is decided by Namespace.
type Ref struct {
	Namespace NamespaceID
	Key       string
}

// ListOptions says which keys a page holds.
type ListOptions struct {
	Prefix string // only keys that begin with it
	After  string // only keys greater than it; empty: from the beginning
	Limit  int    // at most so many keys; 1 to MaxListLimit, others are clamped

	// MaxAge is the staleness that the caller accepts, as in Store.Get.
	MaxAge time.Duration
}

// MaxListLimit is the greatest number of keys in one Page.
const MaxListLimit = 10_000

// PageLimit is the limit clamped to what a Store serves.
func (o ListOptions) PageLimit() int {
	if o.Limit < 1 || o.Limit > MaxListLimit {
		return MaxListLimit
	}
	return o.Limit
}

// Page is a part of a listing. Keys are in byte order, each once. A page may
// hold fewer keys than the limit, or none, and still have More behind it; the
// listing then continues after Last.
type Page struct {
	Keys []Listed
	Last string // the place to continue after; set whenever More is
	More bool
}

// Listed is a key of a Page with its record, but without the record's Value.
type Listed struct {
	Key    string
	Record Record
}

// PrefixSuccessor returns the least string greater than every string that begins
// with prefix, or "" if there is none (prefix is empty or all 0xff).
func PrefixSuccessor(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if c := prefix[i]; c != 0xff {
			return prefix[:i] + string([]byte{c + 1})
		}
	}
	return ""
}
