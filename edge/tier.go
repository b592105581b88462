// Package edge is the caching tier: a store with a near copy of what was read
// before a far store. The same type is the edge, the regional and the central
// tier, and the memory of a single process.
//
// A put goes far, then near, and only then answers, so that a point of presence
// reads its own writes. Absence is cached like a value. A near copy is only ever
// replaced by a newer one. How old a copy may be is each reader's own choice
// (maxAge); how old it is, is known: a copy is as fresh as the moment at which
// far was asked for it, or, while the changefeed is unbroken, as the last moment
// of which the feed has told everything.
//
// # Why a reader never sees less than was acknowledged to its point of presence
//
// After Put(v) has returned, near has v or newer, or a floor that says that less
// than v must not be served, or nothing; and far has v or newer. A later Get
// finds the copy, or asks far. A far read that was under way during the put may
// bring an older record: the put has raised that read's floor, and a record below
// it is neither kept nor returned.
//
// A tier may lose all its copies; that costs latency until it is warm, and
// nothing else.
package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/maypok86/otter/v2"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// Options are what may be chosen of a tier. The zero value works.
type Options struct {
	NearBytes     int64         // memory for copies, their overhead included; 0: 64 MiB
	MaxValueBytes int           // values above it are not kept near; 0: 1 MiB
	MaxStale      time.Duration // copies up to this age are served when far fails; 0: 1 h, negative: none
	FarTimeout    time.Duration // for one read of far; 0: 10 s
	FarBytes      int64         // of large values that far reads under way may hold; 0: 128 MiB

	// MaxSkew is how far the clocks of those who stamp writes may be apart. A tier
	// that has just begun does not know what its forerunner acknowledged: of writes
	// stamped up to its start, and this time after it, it keeps no copies. 0:
	// kv.MaxFuture; negative: none.
	MaxSkew time.Duration

	// Sole says that all writes of the far store go through this tier. Its copies
	// are then always current, whatever maxAge a reader asks for.
	Sole bool

	// Shared says that other tiers of the same point of presence answer the same
	// clients. Copies are then served only while a lease is held (Lease).
	Shared bool

	Now    func() time.Time // nil: time.Now
	Random func() float64   // 0 to 1, which itself it is not; nil: math/rand

	forgetful bool // puts do not go near: the control of the read-your-write test
}

func (o Options) withDefaults() Options {
	if o.NearBytes == 0 {
		o.NearBytes = 64 << 20
	}
	if o.MaxValueBytes == 0 {
		o.MaxValueBytes = 1 << 20
	}
	if o.MaxStale == 0 {
		o.MaxStale = time.Hour
	}
	if o.FarTimeout == 0 {
		o.FarTimeout = 10 * time.Second
	}
	if o.MaxSkew == 0 {
		o.MaxSkew = kv.MaxFuture
	}
	if o.FarBytes == 0 {
		o.FarBytes = 128 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return o
}

// Tier is a kv.Store that keeps near copies of what is far. It is told of changes
// as a feed.Sink.
type Tier struct {
	far   kv.Store
	opts  Options
	start time.Time // moments are counted from it, by the monotonic clock
	near  *otter.Cache[kv.Ref, *copied]
	stats counters

	// Near forgets. What it has forgotten is remembered for all keys together: the
	// time of the newest version among them (Version.UnixNano).
	lost  atomic.Int64 // versions that copies and floors had
	heard atomic.Int64 // versions of notices for keys without a copy

	since   atomic.Int64 // the feed has told all that happened from this moment
	current atomic.Int64 // up to this one
	lease   atomic.Int64 // until this moment near may be used, if Shared

	under   [underShards]underWay
	hung    atomic.Int64 // until this moment far is taken to hang
	farHeld atomic.Int64 // bytes of large values that far reads under way hold
	refresh chan refresh
}

var (
	_ kv.Store       = (*Tier)(nil)
	_ feed.Sink      = (*Tier)(nil)
	_ feed.ToldSink  = (*Tier)(nil)
	_ feed.LeaseSink = (*Tier)(nil)
)

// copied is a near copy. It is not changed once it is in the cache; a newer one
// takes its place.
type copied struct {
	rec   kv.Record
	asOf  int64  // the moment at which rec was known to be the newest
	held  bool   // rec is here; otherwise only its floor is
	deaf  bool   // the feed may have told of newer versions before the copy was here
	floor *floor // nil: rec is not below anything
	asked atomic.Bool
}

// floor says that newer versions of a key exist than the copy that is here.
type floor struct {
	known    kv.Version // was told by the feed: the copy is superseded, but better than nothing if far fails
	promised kv.Version // was acknowledged to this point of presence: less must not be served at all
}

func (f *floor) raise(known, promised kv.Version) *floor {
	if f != nil {
		known, promised = newer(known, f.known), newer(promised, f.promised)
	}
	return &floor{known: known, promised: promised}
}

// above returns f if it is above v, nil otherwise.
func (f *floor) above(v kv.Version) *floor {
	if f == nil || f.known.Compare(v) <= 0 && f.promised.Compare(v) <= 0 {
		return nil
	}
	return f
}

// reaches reports whether f is at v or above it.
func (f *floor) reaches(v kv.Version) bool {
	return f != nil && newer(f.known, f.promised).Compare(v) >= 0
}

func newer(a, b kv.Version) kv.Version {
	if a.Compare(b) >= 0 {
		return a
	}
	return b
}

// New returns a tier before far.
func New(far kv.Store, opts Options) *Tier {
	opts = opts.withDefaults()
	t := &Tier{far: far, opts: opts, start: opts.Now(), refresh: make(chan refresh, maxRefreshes)}
	t.lost.Store(t.start.Add(max(0, opts.MaxSkew)).UnixNano())
	t.since.Store(forever)
	t.current.Store(never)
	t.lease.Store(never)
	t.hung.Store(never)
	t.near = otter.Must(&otter.Options[kv.Ref, *copied]{
		MaximumWeight: uint64(opts.NearBytes), Weigher: weigh, OnAtomicDeletion: t.forgotten})
	for i := range t.under {
		t.under[i].reads, t.under[i].writes = map[kv.Ref]*flight{}, map[kv.Ref]*writing{}
	}
	return t
}

// never is a moment before all others, forever one after them.
const (
	never   = -1 << 62
	forever = 1 << 62
)

// copyOverhead is the memory of a copy beside its key, value and metadata: 220
// bytes as measured with ten million of them (make bench), and what rounding to
// the allocator's sizes adds.
const copyOverhead = 256

func weigh(ref kv.Ref, c *copied) uint32 {
	return uint32(copyOverhead + len(ref.Key) + c.rec.Bytes())
}

// moment is the present, counted from the tier's start.
func (t *Tier) moment() int64 { return int64(t.opts.Now().Sub(t.start)) }

// view is what a reader must know before it looks at a copy. It is taken first:
// what the feed told up to that moment has then been applied to the copies.
type view struct {
	now            int64
	since, current int64 // what the feed has told
	least          int64 // the oldest copies that may be used at all
	usable         bool
}

func (t *Tier) view() view {
	v := view{current: t.current.Load(), since: t.since.Load(), now: t.moment(), least: never, usable: true}
	if t.opts.Sole {
		v.since, v.current = never, v.now
	}
	if t.opts.Shared { // what was told before the feed began may have been missed
		v.usable, v.least = v.now < t.lease.Load(), v.since
	}
	return v
}

// age of a copy. What the feed has told helps a copy that was the newest when the
// feed began, or later, and of which it has told nothing.
func (v view) age(c *copied) time.Duration {
	asOf := c.asOf
	if !c.deaf && c.floor == nil && asOf >= v.since {
		asOf = max(asOf, v.current)
	}
	return time.Duration(max(0, v.now-asOf))
}

// fresh reports whether a copy may answer a reader that accepts maxAge.
func (v view) fresh(c *copied, maxAge time.Duration) (time.Duration, bool) {
	if !v.usable || !c.held || c.floor != nil || c.asOf < v.least {
		return 0, false
	}
	age := v.age(c)
	return age, age <= maxAge
}

// Near returns the record of a key if a copy that is fresh enough is in memory;
// it never waits and does not allocate. The record must not be changed.
func (t *Tier) Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (rec *kv.Record, age time.Duration, ok bool) {
	if len(key) == 0 {
		return nil, 0, false
	}
	var v view
	if !t.opts.Sole { // whose copies are current without a look at the clock
		v = t.view()
	}
	// The cache does not keep the key of a look-up.
	c, ok := t.near.GetIfPresent(kv.Ref{Namespace: ns, Key: unsafe.String(&key[0], len(key))})
	if !ok {
		return nil, 0, false
	}
	if t.opts.Sole {
		return &c.rec, 0, c.held && c.floor == nil
	}
	age, ok = v.fresh(c, maxAge)
	if !ok {
		return nil, 0, false
	}
	if t.refreshDue(c, age, maxAge) {
		t.refreshLater(kv.Ref{Namespace: ns, Key: string(key)}, c, maxAge)
	}
	return &c.rec, age, true
}

// Get implements kv.Store.
func (t *Tier) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := t.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

// GetAnswer implements the ability of kv.GetAnswer.
func (t *Tier) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
	if err := ctx.Err(); err != nil {
		return kv.Answer{}, fmt.Errorf("get: %w", err)
	}
	a, c, ok := t.lookUp(ref, maxAge)
	if ok {
		t.stats.hits.Add(1)
		return a, nil
	}
	return t.fetch(ctx, ref, maxAge, c)
}

// lookUp answers from near, or returns the copy that is not fresh enough, if any.
func (t *Tier) lookUp(ref kv.Ref, maxAge time.Duration) (kv.Answer, *copied, bool) {
	v := t.view()
	c, ok := t.near.GetIfPresent(ref)
	if !ok {
		return kv.Answer{}, nil, false
	}
	age, ok := v.fresh(c, maxAge)
	if !ok {
		return kv.Answer{}, c, false
	}
	if t.refreshDue(c, age, maxAge) {
		t.refreshLater(ref, c, maxAge)
	}
	return kv.Answer{Record: c.rec, Age: age, Cache: kv.Hit}, c, true
}

// maxRounds is how often a reader waits for a far read before it gives up: one
// that was under way when it came, and one of its own. More are needed only when
// writes overtake each of them.
const maxRounds = 10

// fetch asks far, together with all who ask for the same key.
func (t *Tier) fetch(ctx context.Context, ref kv.Ref, maxAge time.Duration, c *copied) (kv.Answer, error) {
	status := kv.Miss
	if c != nil {
		status = kv.Expired
	}
	asked := t.moment()
	for range maxRounds {
		f := t.join(ctx, ref, maxAge)
		if err := t.await(ctx, f); err != nil {
			if a, staleErr := t.stale(ctx, ref, err); staleErr == nil {
				return a, nil
			}
			select { // there is nothing to serve: the answer is worth the wait
			case <-f.done:
			case <-ctx.Done():
				return kv.Answer{}, fmt.Errorf("get: %w", ctx.Err())
			}
		}
		if f.err != nil {
			return t.stale(ctx, ref, f.err)
		}
		if f.answers(asked, maxAge) {
			return t.deliver(ctx, f, status)
		}
		// The read began before a write that this reader must see, or was asked for
		// by a less demanding reader.
		if a, _, ok := t.lookUp(ref, maxAge); ok {
			t.stats.hits.Add(1)
			return a, nil
		}
	}
	return kv.Answer{}, fmt.Errorf("get: %w: writes overtook %d reads", kv.ErrUnavailable, maxRounds)
}

// A far store of which a read has ended in a timeout is taken to hang for
// hungTimeouts times as long, unless a read is answered before: those under way
// renew it. A reader who could be served a stale copy waits only hungWait for it.
const (
	hungWait     = 100 * time.Millisecond
	hungTimeouts = 2
)

var errHung = fmt.Errorf("%w: the far store does not answer", kv.ErrUnavailable)

// await waits for a far read, but for one of a far store that hangs not long: then
// it returns errHung.
func (t *Tier) await(ctx context.Context, f *flight) error {
	if t.moment() >= t.hung.Load() {
		select {
		case <-f.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("get: %w", ctx.Err())
		}
	}
	timer := time.NewTimer(hungWait)
	defer timer.Stop()
	select {
	case <-f.done:
		return nil
	case <-timer.C:
		return errHung
	case <-ctx.Done():
		return fmt.Errorf("get: %w", ctx.Err())
	}
}

// deliver gives a reader what a far read brought.
func (t *Tier) deliver(ctx context.Context, f *flight, status kv.CacheStatus) (kv.Answer, error) {
	if n := int64(len(f.rec.Value)); n >= kv.ReserveBytes {
		if err := kv.Reserve(ctx, n); err != nil {
			return kv.Answer{}, fmt.Errorf("get a value of %d bytes: %w", n, err)
		}
	}
	if f.cache == kv.Stale {
		status = kv.Stale
	}
	t.stats.count(status)
	return kv.Answer{Record: f.rec, Age: time.Duration(max(0, t.moment()-f.asOf)), Cache: status}, nil
}

// stale answers with what near has when far failed, if it may.
func (t *Tier) stale(ctx context.Context, ref kv.Ref, cause error) (kv.Answer, error) {
	v := t.view()
	c, ok := t.near.GetIfPresent(ref)
	if ok && v.usable && c.held && c.asOf >= v.least && ctx.Err() == nil {
		promised := c.floor != nil && c.floor.promised.Compare(c.rec.Version) > 0
		if age := v.age(c); !promised && age <= t.opts.MaxStale {
			t.stats.stale.Add(1)
			return kv.Answer{Record: c.rec, Age: age, Cache: kv.Stale}, nil
		}
	}
	return kv.Answer{}, cause
}

// GetMany implements the ability of kv.GetMany.
func (t *Tier) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	answers, err := t.GetAnswers(ctx, refs, maxAge)
	if err != nil {
		return nil, err
	}
	recs := make([]kv.Record, len(answers))
	for i, a := range answers {
		recs[i] = a.Record
	}
	return recs, nil
}

// Put implements kv.Store: far, then near.
func (t *Tier) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	v := t.beginWrite(ref)
	err := t.far.Put(ctx, ref, rec)
	t.endWrite(ref, rec, v, err == nil)
	return err // if it is not nil near keeps what it has: the write is refused, or unknown to all
}

// PutMany implements the ability of kv.PutMany.
func (t *Tier) PutMany(ctx context.Context, writes []kv.Write) error {
	views := make([]view, len(writes))
	for i, w := range writes {
		views[i] = t.beginWrite(w.Ref)
	}
	err := kv.PutMany(ctx, t.far, writes)
	for i, w := range writes {
		t.endWrite(w.Ref, w.Record, views[i], err == nil)
	}
	return err
}

// List implements kv.Store. Listings are not kept near: far sees every write that
// was acknowledged anywhere.
func (t *Tier) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	return t.far.List(ctx, ns, opts)
}

// Forget implements the ability of kv.Forget.
func (t *Tier) Forget(ctx context.Context, tombs []kv.Tomb) error {
	err := kv.Forget(ctx, t.far, tombs)
	for _, tomb := range tombs {
		t.near.ComputeIfPresent(tomb.Ref, func(old *copied) (*copied, otter.ComputeOp) {
			if old.rec.Tombstone && old.rec.Version == tomb.Version {
				return nil, otter.InvalidateOp
			}
			return nil, otter.CancelOp
		})
	}
	return err
}

// Drop implements the ability of kv.Drop; it forgets the copies of the namespace.
func (t *Tier) Drop(ctx context.Context, ns kv.NamespaceID) error {
	err := kv.Drop(ctx, t.far, ns)
	for ref := range t.near.Keys() {
		if ref.Namespace == ns {
			t.near.Invalidate(ref)
		}
	}
	return err
}

// Changes implements the ability of kv.Changes: those of far.
func (t *Tier) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	return kv.Changes(ctx, t.far, after, limit)
}

// AwaitChange implements the ability of kv.AwaitChange.
func (t *Tier) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, t.far, after)
}

// errFlight is what waiters see of a far read that ended without an answer.
var errFlight = errors.New("the read of the far store ended without an answer")
