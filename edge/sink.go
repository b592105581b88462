package edge

import (
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/nearkey/nearkey/kv"
)

// Changed implements feed.Sink: copies older than the changes are superseded.
func (t *Tier) Changed(changes []kv.Change) {
	t.stats.notices.Add(uint64(len(changes)))
	for _, c := range changes {
		t.supersede(c.Ref, c.Version, kv.Version{})
	}
}

// Told is Changed for writes that another tier of this point of presence is about
// to acknowledge: less must not be served, not even when far fails.
func (t *Tier) Told(changes []kv.Change) {
	for _, c := range changes {
		t.supersede(c.Ref, c.Version, c.Version)
	}
}

// supersede applies a notice to what is under way and to the copy.
func (t *Tier) supersede(ref kv.Ref, known, promised kv.Version) {
	s := t.shard(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raise(ref, known, promised)
	t.near.Compute(ref, func(old *copied, found bool) (*copied, otter.ComputeOp) {
		if !found {
			raiseTo(&t.heard, known)
			raiseTo(&t.lost, promised)
			return nil, otter.CancelOp
		}
		if old.held && old.rec.Version.Compare(known) >= 0 {
			return nil, otter.CancelOp
		}
		t.stats.superseded.Add(1)
		c := &copied{rec: old.rec, asOf: old.asOf, held: old.held, deaf: old.deaf}
		c.floor = old.floor.raise(known, promised)
		return c, otter.WriteOp
	})
}

// Current implements feed.Sink: all that happened up to asOf has been told. The
// feed must come from the process that far leads to: what is told has then been
// told there before.
func (t *Tier) Current(asOf time.Time) {
	if t.since.Load() == forever {
		t.since.Store(t.moment()) // the feed has begun, not later than now
	}
	if moment := int64(asOf.Sub(t.start)); moment > t.current.Load() {
		t.current.Store(moment)
	}
}

// Broken implements feed.Sink: the copies stay, but each is only as fresh as when
// it was fetched.
func (t *Tier) Broken() {
	t.since.Store(forever)
	t.current.Store(never)
}

// Lease allows the use of copies until a moment, if the point of presence is
// shared.
func (t *Tier) Lease(until time.Time) {
	if moment := int64(until.Sub(t.start)); moment > t.lease.Load() {
		t.lease.Store(moment)
	}
}
