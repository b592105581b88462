package kv

import (
	"bytes"
	"context"
	"encoding/json"
	"time"
)

// Rules are what all namespaces of a process have in common. The zero value of
// Now and Rate works; Limits and Stamp must be set.
type Rules struct {
	Limits Limits
	Stamp  *Stamper
	Rate   *WriteRate       // nil: writes of one key are not limited
	Now    func() time.Time // nil: time.Now
}

func (r *Rules) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

// Namespace is one namespace as a user sees it: a Store with the rules of the
// product. It checks names, sizes and expirations, stamps writes, and hides
// tombstones and expired records. Errors of its own are RuleErrors.
type Namespace struct {
	id    NamespaceID
	store Store
	rules *Rules
}

// NewNamespace returns the namespace with the given id on store.
func NewNamespace(store Store, id NamespaceID, rules *Rules) Namespace {
	return Namespace{id: id, store: store, rules: rules}
}

// Get returns the record of key, or the absent Record if there is none to be
// seen. maxAge is the staleness that the reader accepts.
func (n Namespace) Get(ctx context.Context, key string, maxAge time.Duration) (Record, error) {
	a, err := n.GetAnswer(ctx, key, maxAge)
	return a.Record, err
}

// GetAnswer reads as Get does and tells how old the answer is and how the nearest
// tier came by it.
func (n Namespace) GetAnswer(ctx context.Context, key string, maxAge time.Duration) (Answer, error) {
	if err := CheckKey(key); err != nil {
		return Answer{}, err
	}
	a, err := GetAnswer(ctx, n.store, Ref{n.id, key}, maxAge)
	if err != nil {
		return Answer{}, err
	}
	a.Record = *n.Shown(&a.Record)
	return a, nil
}

// absent is what is shown of a record that is not to be seen.
var absent = new(Record)

// Shown returns what a reader is shown who came by a record of the namespace in
// another way than through Get: rec itself, or the absent Record if it is not to
// be seen. Neither may be changed. It allocates nothing.
func (n Namespace) Shown(rec *Record) *Record {
	now := n.rules.now()
	n.seen(rec.Version, now)
	if !rec.Visible(now) {
		return absent
	}
	return rec
}

// seen makes what is written through this process from now on newer than a record
// that it has shown, whatever the clock of the node that stamped it. One from the
// far future is not believed.
func (n Namespace) seen(v Version, now time.Time) {
	if v != (Version{}) && CheckFuture(v, now) == nil {
		n.rules.Stamp.Observe(v)
	}
}

// GetMany returns the records of keys, in their order, absent where there is
// none to be seen. Together the values may have Limits.GetManyBytes.
func (n Namespace) GetMany(ctx context.Context, keys []string, maxAge time.Duration) ([]Record, error) {
	limits := n.rules.Limits
	if len(keys) == 0 {
		return nil, broken(RuleGetManyKeys, "You must request a minimum of 1 key")
	}
	if len(keys) > limits.GetManyKeys {
		return nil, broken(RuleGetManyKeys, "You can request a maximum of %d keys", limits.GetManyKeys)
	}
	refs := make([]Ref, len(keys))
	for i, key := range keys {
		if err := CheckKey(key); err != nil {
			return nil, err
		}
		refs[i] = Ref{n.id, key}
	}
	recs, err := GetMany(ctx, n.store, refs, maxAge)
	if err != nil {
		return nil, err
	}
	now, total := n.rules.now(), 0
	for i := range recs {
		n.seen(recs[i].Version, now)
		if !recs[i].Visible(now) {
			recs[i] = Record{}
		}
		if total += len(recs[i].Value); total > limits.GetManyBytes {
			return nil, broken(RuleGetManyBytes, "Total size of request exceeds the limit of %dMB", limits.GetManyBytes>>20)
		}
	}
	return recs, nil
}

// PutOptions are what a client may say beside the value. The empty value of each
// means none: a put without metadata or expiration clears those of the key.
type PutOptions struct {
	Expiration string // seconds since 1970, a decimal number
	TTL        string // seconds from now, a decimal number; it wins over Expiration
	Metadata   []byte // JSON text
}

// Put writes a key. The value must not be changed afterwards.
func (n Namespace) Put(ctx context.Context, key string, value []byte, opts PutOptions) error {
	rec, err := n.record(key, value, opts)
	if err != nil {
		return err
	}
	if !n.allow(key) {
		return tooFast(n.rules.Limits.WriteInterval)
	}
	if rec.Version, err = n.rules.Stamp.Stamp(); err != nil {
		return err
	}
	return n.store.Put(ctx, Ref{n.id, key}, rec)
}

// CheckPut returns the error that Put would return for what is known of a write
// before its value is: the key and the options. A server calls it to refuse a
// bad request without reading its body.
func (n Namespace) CheckPut(key string, opts PutOptions) error {
	_, err := n.record(key, nil, opts)
	return err
}

// record is the record of a put, yet to be stamped.
func (n Namespace) record(key string, value []byte, opts PutOptions) (Record, error) {
	limits := n.rules.Limits
	if err := CheckKey(key); err != nil {
		return Record{}, err
	}
	expiration, err := limits.CheckExpiration(n.rules.now(), opts.Expiration, opts.TTL)
	if err != nil {
		return Record{}, err
	}
	metadata, err := limits.CheckMetadata(opts.Metadata)
	if err != nil {
		return Record{}, err
	}
	if err := limits.CheckValue(int64(len(value))); err != nil {
		return Record{}, err
	}
	return Record{Expiration: expiration, Metadata: metadata, Value: value}, nil
}

func (n Namespace) allow(key string) bool {
	return n.rules.Rate == nil || n.rules.Rate.Allow(Ref{n.id, key}, n.rules.now())
}

func tooFast(interval time.Duration) error {
	return broken(RuleWriteRate, "KV PUT failed: 429 Too Many Requests: a key may be written once in %s", interval)
}

// Delete removes a key. Deleting a key that does not exist succeeds.
func (n Namespace) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if !n.allow(key) {
		return tooFast(n.rules.Limits.WriteInterval)
	}
	v, err := n.rules.Stamp.Stamp()
	if err != nil {
		return err
	}
	return n.store.Put(ctx, Ref{n.id, key}, Tombstone(v))
}

// Pair is one item of a bulk write.
type Pair struct {
	Key     string
	Value   []byte
	Options PutOptions
}

// Bulk writes go to the store in chunks of at most so many writes or bytes: what
// one commit carries, and what fails together.
const (
	chunkWrites = 1000
	chunkBytes  = 4 << 20
)

// PutMany writes all pairs; of two with the same key the later wins. A pair that
// breaks a rule fails the whole call and nothing is written. If the store then
// fails for some of the pairs, their keys are returned as failed, each once, and
// may be repeated; if it fails for all, the error is returned.
func (n Namespace) PutMany(ctx context.Context, pairs []Pair) (failed []string, err error) {
	if most := n.rules.Limits.PutManyPairs; len(pairs) > most {
		return nil, broken(RulePutManyPairs, "A bulk write has at most %d pairs, this one has %d", most, len(pairs))
	}
	writes := make([]Write, len(pairs))
	for i, p := range pairs {
		rec, err := n.record(p.Key, p.Value, p.Options)
		if err != nil {
			return nil, err
		}
		writes[i] = Write{Ref{n.id, p.Key}, rec}
	}
	for i := range writes {
		if writes[i].Record.Version, err = n.rules.Stamp.Stamp(); err != nil {
			return nil, err
		}
	}
	return n.putChunks(ctx, writes)
}

// DeleteMany removes all keys, as PutMany writes pairs.
func (n Namespace) DeleteMany(ctx context.Context, keys []string) (failed []string, err error) {
	if most := n.rules.Limits.DeleteManyKeys; len(keys) > most {
		return nil, broken(RuleDeleteManyKeys, "A bulk delete has at most %d keys, this one has %d", most, len(keys))
	}
	writes := make([]Write, len(keys))
	for i, key := range keys {
		if err := CheckKey(key); err != nil {
			return nil, err
		}
		v, err := n.rules.Stamp.Stamp()
		if err != nil {
			return nil, err
		}
		writes[i] = Write{Ref{n.id, key}, Tombstone(v)}
	}
	return n.putChunks(ctx, writes)
}

// putChunks puts writes chunk by chunk and goes on after a chunk that failed.
func (n Namespace) putChunks(ctx context.Context, writes []Write) (failed []string, err error) {
	seen, stored := map[string]bool{}, false
	for rest := writes; len(rest) > 0; {
		size := chunkLen(rest)
		chunk := rest[:size]
		rest = rest[size:]
		chunkErr := PutMany(ctx, n.store, chunk)
		if chunkErr == nil {
			stored = true
			continue
		}
		err = chunkErr
		for _, w := range chunk {
			if !seen[w.Ref.Key] {
				seen[w.Ref.Key] = true
				failed = append(failed, w.Ref.Key)
			}
		}
	}
	if !stored {
		return nil, err
	}
	return failed, nil
}

// chunkLen is the number of writes, at least one, that go into the next chunk.
func chunkLen(writes []Write) int {
	total := 0
	for i, w := range writes {
		total += w.Record.Bytes()
		if i > 0 && (i == chunkWrites || total > chunkBytes) {
			return i
		}
	}
	return len(writes)
}

// Keys is a page of a listing as a user sees it. Unlike a Store's Page it is
// never empty while there are More keys.
type Keys struct {
	Keys []Listed
	More bool
}

// List returns the visible keys after opts.After that begin with opts.Prefix, at
// most opts.Limit of them (0: Limits.ListKeys).
func (n Namespace) List(ctx context.Context, opts ListOptions) (Keys, error) {
	limit := opts.Limit
	if limit == 0 {
		limit = n.rules.Limits.ListKeys
	}
	if limit < 0 || limit > n.rules.Limits.ListKeys {
		return Keys{}, broken(RuleListLimit, "Invalid limit of %d. Please specify an integer between 1 and %d.", opts.Limit, n.rules.Limits.ListKeys)
	}
	now := n.rules.now()
	keys := Keys{Keys: make([]Listed, 0, limit+1)}
	opts.Limit = limit + 1
	for {
		page, err := n.store.List(ctx, n.id, opts)
		if err != nil {
			return Keys{}, err
		}
		for _, k := range page.Keys {
			if !k.Record.Visible(now) {
				continue
			}
			if len(keys.Keys) == limit {
				keys.More = true
				return keys, nil
			}
			keys.Keys = append(keys.Keys, k)
		}
		if !page.More {
			return keys, nil
		}
		if err := contextErr(ctx, "list keys"); err != nil {
			return Keys{}, err
		}
		opts.After, opts.Limit = page.Last, min(2*opts.Limit, MaxListLimit)
	}
}

// compactJSON is valid JSON text without insignificant space.
func compactJSON(text []byte) []byte {
	var buf bytes.Buffer
	if err := json.Compact(&buf, text); err != nil {
		panic("kv: compacting valid JSON: " + err.Error())
	}
	return buf.Bytes()
}
