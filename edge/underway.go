package edge

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"github.com/nearkey/nearkey/kv"
)

// underShards is the number of locks that the keys with something under way are
// spread over.
const underShards = 64

// underWay is what happens at this moment to a part of the keys. Whatever changes
// a copy from what it learned earlier, a far read or a write, is registered here
// while it is under way, so that what is learned meanwhile is not lost: near may
// have forgotten it by then.
type underWay struct {
	mu     sync.Mutex // guards the rest, the floors in it, and changes of copies from what is in it
	reads  map[kv.Ref]*flight
	writes map[kv.Ref]*writing
}

// writing is the writes of one key that are under way.
type writing struct {
	count int
	floor floor
}

var shardSeed = maphash.MakeSeed()

func (t *Tier) shard(ref kv.Ref) *underWay {
	return &t.under[maphash.Comparable(shardSeed, ref)%underShards]
}

// beginWrite registers a write of ref. Up to the moment of the view no newer write
// was acknowledged.
func (t *Tier) beginWrite(ref kv.Ref) view {
	s := t.shard(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.writes[ref]
	if w == nil {
		w = &writing{}
		s.writes[ref] = w
	}
	w.count++
	return t.view()
}

// endWrite ends the registration of a write and, if far has accepted it, keeps it
// near.
func (t *Tier) endWrite(ref kv.Ref, rec kv.Record, v view, accepted bool) {
	s := t.shard(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.writes[ref]
	if accepted && !t.opts.forgetful {
		t.keep(ref, rec, v, w.floor)
		s.raise(ref, rec.Version, rec.Version)
	}
	if w.count--; w.count == 0 {
		delete(s.writes, ref)
	}
}

// keep puts near what far has accepted; the shard's lock is held.
//
// The write may have been overtaken between its stamp and its begin, by one that
// near has forgotten. A version newer than all that was forgotten was not; of an
// older one only the floor is kept, and one that was only not heard of is kept as
// if there were no feed.
func (t *Tier) keep(ref kv.Ref, rec kv.Record, v view, above floor) {
	stamped := rec.Version.UnixNano()
	late := max(0, t.opts.Now().UnixNano()-stamped) - (t.moment() - v.now)
	t.near.Compute(ref, func(old *copied, found bool) (*copied, otter.ComputeOp) {
		if found && old.held && old.rec.Compare(rec) >= 0 {
			return nil, otter.CancelOp // near has it, or a newer one; its floor, if any, stands
		}
		c := &copied{rec: rec, asOf: v.now - max(0, late), held: true, deaf: !t.opts.Sole && stamped <= t.heard.Load() && (!found || old.deaf)}
		all := &above
		if found && old.floor != nil {
			all = all.raise(old.floor.known, old.floor.promised)
		}
		c.floor = all.above(rec.Version)
		overtaken := stamped <= t.lost.Load() || all.reaches(rec.Version)
		if len(rec.Value) > t.opts.MaxValueBytes || overtaken && !(found && old.held) {
			c.rec, c.held = kv.Record{}, false
			c.floor = all.raise(rec.Version, rec.Version)
		}
		return c, otter.WriteOp
	})
}

// forgotten is told of every copy that near gives up, under the lock of its key.
func (t *Tier) forgotten(e otter.DeletionEvent[kv.Ref, *copied]) {
	if e.Cause == otter.CauseReplacement {
		return
	}
	raiseTo(&t.lost, e.Value.rec.Version)
	if f := e.Value.floor; f != nil {
		raiseTo(&t.lost, newer(f.known, f.promised))
	}
}

func raiseTo(mark *atomic.Int64, v kv.Version) {
	for {
		last := mark.Load()
		if v.UnixNano() <= last || mark.CompareAndSwap(last, v.UnixNano()) {
			return
		}
	}
}

// raise raises the floors of all that is under way for ref; the lock is held.
func (s *underWay) raise(ref kv.Ref, known, promised kv.Version) {
	if f := s.reads[ref]; f != nil {
		f.floor = *f.floor.raise(known, promised)
	}
	if w := s.writes[ref]; w != nil {
		w.floor = *w.floor.raise(known, promised)
	}
}
