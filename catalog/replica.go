package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// ReplicaOptions are what may be chosen of a replica. The zero value works.
type ReplicaOptions struct {
	MaxAge     time.Duration    // of a record that is used; 0: CacheFor
	MaxStale   time.Duration    // of one that is used when the store fails; 0: StaleFor, negative: none
	CacheBytes int              // for what tokens, keys and namespaces permit, each; 0: CacheBytes
	Now        func() time.Time // nil: time.Now
}

// Replica answers from published records what every request asks of a catalog,
// with the errors of a Catalog. It has no database; on an edge its store is a
// tier. An answer is at most MaxAge old, and what the tier has been told of is
// seen at once. When the store fails, or does not answer in time, copies up to
// MaxStale old are used if the tier still has them, except those of which it has
// been told that they are superseded.
//
// A token that was revoked or has expired is unknown to a replica, as a record of
// it is no longer published. All methods may be called at once.
type Replica struct {
	records    *reader
	tokens     *parsed[secretHash, *Grant]
	keys       *parsed[secretHash, *Grant]
	namespaces *parsed[kv.NamespaceID, *Namespace]
}

// reader reads the records of a namespace for a replica.
type reader struct {
	namespace kv.NamespaceID
	store     kv.Store
	near      nearer // nil: the store is no tier
	maxAge    time.Duration
	maxStale  time.Duration
	now       func() time.Time
	epoch     atomic.Uint64

	// restUntil is when the store is asked again for what is near but too old: it
	// failed before. Nanoseconds since 1970; 0: it did not fail.
	restUntil atomic.Int64

	// keeps: what was read last is used for maxStale while the store fails, although
	// it is known to be superseded.
	keeps    bool
	failedAt atomic.Int64 // when the store began to fail, as restUntil; 0: it did not
}

// nearer is a tier as far as a replica needs to know it: it tells what it has in
// memory that is at most maxAge old, without waiting. The record is immutable.
type nearer interface {
	Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (rec *kv.Record, age time.Duration, ok bool)
}

// complete returns the options with what is chosen for those that are zero.
func (o ReplicaOptions) complete() ReplicaOptions {
	if o.MaxAge == 0 {
		o.MaxAge = CacheFor
	}
	if o.MaxStale == 0 {
		o.MaxStale = StaleFor
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = CacheBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func newReader(namespace kv.NamespaceID, store kv.Store, opts ReplicaOptions) *reader {
	near, _ := store.(nearer)
	return &reader{namespace: namespace, store: store, near: near, maxAge: opts.MaxAge, maxStale: opts.MaxStale, now: opts.Now}
}

// NewReplica returns a replica on the records in store.
func NewReplica(store kv.Store, opts ReplicaOptions) *Replica {
	opts = opts.complete()
	return &Replica{
		records:    newReader(Reserved, store, opts),
		tokens:     newParsed[secretHash](opts.CacheBytes, (*Grant).bytes),
		keys:       newParsed[secretHash](opts.CacheBytes, (*Grant).bytes),
		namespaces: newParsed[kv.NamespaceID](opts.CacheBytes, (*Namespace).bytes),
	}
}

// Authenticate is Catalog.Authenticate.
func (r *Replica) Authenticate(ctx context.Context, token string) (Grant, error) {
	if token == "" || len(token) > MaxSecretChars {
		return Grant{}, ErrUnauthenticated
	}
	hash := hashSecret(token)
	g, ok := r.tokens.current(r.records, hash)
	if !ok {
		var err error
		if g, err = lookUp(ctx, r.records, r.tokens, hash, tokenKey(hash[:]), parseGrant); err != nil {
			return Grant{}, absentIs(ErrUnauthenticated, failure(ctx, "authenticate", err))
		}
	}
	return g.at(r.records.now())
}

// AuthenticateKey is Catalog.AuthenticateKey.
func (r *Replica) AuthenticateKey(ctx context.Context, email, key string) (Grant, error) {
	if email == "" || key == "" || len(key) > MaxSecretChars {
		return Grant{}, ErrUnauthenticated
	}
	hash := hashSecret(key)
	g, ok := r.keys.current(r.records, hash)
	if !ok {
		var err error
		if g, err = lookUp(ctx, r.records, r.keys, hash, ownerKey(hash[:]), parseGrant); err != nil {
			return Grant{}, absentIs(ErrUnauthenticated, failure(ctx, "authenticate", err))
		}
	}
	if !strings.EqualFold(g.User.Email, email) {
		return Grant{}, ErrUnauthenticated
	}
	return *g, nil
}

// Namespace is Catalog.Namespace.
func (r *Replica) Namespace(ctx context.Context, accountID string, id kv.NamespaceID) (Namespace, error) {
	n, ok := r.namespaces.current(r.records, id)
	if !ok {
		var err error
		n, err = lookUp(ctx, r.records, r.namespaces, id, namespaceKey(id), func(value []byte) (*Namespace, error) { return parseNamespace(id, value) })
		if err != nil {
			return Namespace{}, absentIs(ErrNotFound, failure(ctx, "namespace "+id.String(), err))
		}
	}
	if n.AccountID != accountID || OwnNamespace(id) {
		return Namespace{}, fmt.Errorf("namespace %s: %w", id, ErrNotFound)
	}
	return *n, nil
}

// errAbsent is what lookUp finds no record of.
var errAbsent error = &sentinel{"not published", nil}

// absentIs gives an absent record the meaning that it has for the caller.
func absentIs(kind, err error) error {
	if errors.Is(err, errAbsent) {
		return fmt.Errorf("%w: %w", kind, err)
	}
	return err
}

// lookUp reads and parses a record, and keeps what it says.
func lookUp[K comparable, V any](ctx context.Context, r *reader, c *parsed[K, V], id K, key string, parse func([]byte) (V, error)) (V, error) {
	var none V
	last, known := c.get(id)
	rec, err := r.read(ctx, key, known && r.keeps)
	switch {
	case errors.Is(err, errKept):
		return last.value, nil
	case err != nil:
		return none, err
	}
	if rec.Absent() || rec.Tombstone {
		c.remove(id)
		return none, errAbsent
	}
	if p, ok := c.get(id); ok && p.version == rec.Version {
		return p.value, nil
	}
	value, err := parse(rec.Value)
	if err != nil {
		return none, fmt.Errorf("read what is published: %w", err)
	}
	c.put(id, parsedRecord[V]{key: []byte(key), version: rec.Version, value: value})
	return value, nil
}

// errKept: the store fails, and what was read before may be used.
var errKept error = &sentinel{"superseded", nil}

// read reads a record: one that is fresh enough or, if the store fails, one that
// is near. If neither is there and the caller knows what it said before, that is
// kept: errKept.
func (r *reader) read(ctx context.Context, key string, known bool) (kv.Record, error) {
	if r.rests() {
		if rec, ok := r.stale(key); ok {
			return rec, nil
		}
		if known && r.mayKeep() {
			return kv.Record{}, errKept
		}
	}
	limited, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	a, err := kv.GetAnswer(limited, r.store, kv.Ref{Namespace: r.namespace, Key: key}, r.maxAge)
	switch {
	case err == nil && a.Cache != kv.Stale:
		r.restUntil.Store(0)
		r.failedAt.Store(0)
		return a.Record, nil
	case ctx.Err() != nil:
		return kv.Record{}, ctx.Err()
	}
	r.restUntil.Store(r.now().Add(retryAfter).UnixNano())
	r.failedAt.CompareAndSwap(0, r.now().UnixNano())
	if rec, ok := r.stale(key); ok {
		return rec, nil
	}
	if known && r.mayKeep() {
		return kv.Record{}, errKept
	}
	if err == nil {
		err = errors.New("what is near is too old, or is known to be superseded")
	}
	return kv.Record{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// stale returns a record that is near, if the store failed and it may be used.
func (r *reader) stale(key string) (kv.Record, bool) {
	if r.near == nil || r.maxStale < 0 {
		return kv.Record{}, false
	}
	rec, _, ok := r.near.Near(r.namespace, []byte(key), r.maxStale)
	if !ok {
		return kv.Record{}, false
	}
	return *rec, true
}

// mayKeep reports whether the store has failed for less time than a copy may be old.
func (r *reader) mayKeep() bool {
	at := r.failedAt.Load()
	return at != 0 && r.maxStale >= 0 && r.now().Sub(time.Unix(0, at)) <= r.maxStale
}

// rests reports whether the store failed so shortly ago that it is not asked for
// what is near. When that time is over one caller asks; while it waits for the
// answer the others go on resting.
func (r *reader) rests() bool {
	until := r.restUntil.Load()
	if until == 0 {
		return false
	}
	now := r.now()
	return now.UnixNano() < until || !r.restUntil.CompareAndSwap(until, now.Add(loadTimeout).UnixNano())
}

// Changed tells the replica what its tier was told. It is called after the tier's.
func (r *Replica) Changed(changes []kv.Change) { r.records.changed(changes) }

func (r *reader) changed(changes []kv.Change) {
	for i := range changes {
		if changes[i].Ref.Namespace == r.namespace {
			r.epoch.Add(1)
			return
		}
	}
}

// Epoch is a number that changes when a right may have ended of which Changed has
// told. It is for those who keep what Authenticate and Namespace answered.
func (r *Replica) Epoch() uint64 { return r.records.epoch.Load() }

// parsed keeps what records say, so that each version is parsed once. Only what
// exists is kept: nobody can fill it with made-up keys.
type parsed[K comparable, V any] struct {
	limit int
	weigh func(V) int // memory that a value takes, in bytes

	mu      sync.RWMutex // guards the rest
	entries map[K]parsedRecord[V]
	bytes   int
}

type parsedRecord[V any] struct {
	key     []byte // of the record
	version kv.Version
	value   V
}

func newParsed[K comparable, V any](limit int, weigh func(V) int) *parsed[K, V] {
	return &parsed[K, V]{limit: limit, weigh: weigh, entries: map[K]parsedRecord[V]{}}
}

// current returns what a record says that is near and fresh enough.
func (c *parsed[K, V]) current(r *reader, id K) (V, bool) {
	p, ok := c.get(id)
	if !ok || r.near == nil {
		return p.value, false
	}
	rec, _, ok := r.near.Near(r.namespace, p.key, r.maxAge)
	return p.value, ok && rec.Version == p.version
}

func (c *parsed[K, V]) get(id K) (parsedRecord[V], bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	p, ok := c.entries[id]
	return p, ok
}

// put keeps a record and makes room by removing others, whichever come first.
func (c *parsed[K, V]) put(id K, p parsedRecord[V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(id)
	for other := range c.entries {
		if c.bytes+c.size(p) <= c.limit {
			break
		}
		c.removeLocked(other)
	}
	c.entries[id] = p
	c.bytes += c.size(p)
}

func (c *parsed[K, V]) remove(id K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(id)
}

// removeLocked is called with mu held.
func (c *parsed[K, V]) removeLocked(id K) {
	if p, ok := c.entries[id]; ok {
		c.bytes -= c.size(p)
		delete(c.entries, id)
	}
}

func (c *parsed[K, V]) size(p parsedRecord[V]) int { return c.weigh(p.value) + len(p.key) }
