package edge

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/nearkey/nearkey/kv"
)

// flight is one read of far for all who wait for the same key.
type flight struct {
	ref     kv.Ref
	started view
	maxAge  time.Duration

	floor floor // guarded by the shard's lock; raised by writes and notices while the read is under way

	done  chan struct{} // closed when the rest is set
	rec   kv.Record
	cache kv.CacheStatus // of far
	asOf  int64
	below bool // rec is below the floor: newer versions are known to exist
	err   error
}

// join returns the far read of ref that is under way, or begins one. It goes on
// whatever becomes of ctx: others may wait for it, and near keeps what it brings.
func (t *Tier) join(ctx context.Context, ref kv.Ref, maxAge time.Duration) *flight {
	s := t.shard(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.reads[ref]; f != nil {
		t.stats.coalesced.Add(1)
		return f
	}
	f := &flight{ref: ref, started: t.view(), maxAge: maxAge, done: make(chan struct{})}
	s.reads[ref] = f
	go t.fly(context.WithoutCancel(ctx), f)
	return f
}

// fly reads far and lands.
func (t *Tier) fly(ctx context.Context, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.FarTimeout)
	defer cancel()
	ctx, release := t.withFarBytes(ctx)
	defer release()
	a, err := kv.Answer{}, errFlight
	defer func() { t.land(f, a, err) }()
	t.stats.farReads.Add(1)
	a, err = kv.GetAnswer(ctx, t.far, f.ref, f.maxAge)
	if err == nil && t.isBelow(f, a.Version) && f.maxAge > 0 {
		// A tier on the way answered from a copy that we know to be superseded.
		t.stats.farReads.Add(1)
		a, err = kv.GetAnswer(ctx, t.far, f.ref, 0)
	}
}

// answers reports whether what a far read brought will do for a reader who asked
// at a moment for no more than maxAge. What far itself could only serve stale does.
func (f *flight) answers(asked int64, maxAge time.Duration) bool {
	return !f.below && (f.asOf >= asked-int64(maxAge) || f.cache == kv.Stale)
}

func (t *Tier) isBelow(f *flight, v kv.Version) bool {
	s := t.shard(f.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.floor.above(v) != nil
}

// land gives the answer to near and to those who wait. The lock is held from the
// look at the floor until the copy is in near: a notice or a write comes before,
// and raises the floor, or after, and finds the copy.
func (t *Tier) land(f *flight, a kv.Answer, err error) {
	s := t.shard(f.ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.rec, f.cache, f.err = a.Record, a.Cache, err
	t.hung.Store(never)
	if errors.Is(err, context.DeadlineExceeded) {
		t.hung.Store(t.moment() + hungTimeouts*int64(t.opts.FarTimeout))
	}
	f.asOf = f.started.now - int64(a.Age)
	if a.Cache != kv.Stale {
		// Far met maxAge when it was asked, which was after the start; the rest of
		// the age it took to answer.
		f.asOf = max(f.asOf, f.started.now-int64(f.maxAge))
	}
	if err == nil {
		f.below = f.floor.above(a.Version) != nil
		t.fill(f)
	}
	delete(s.reads, f.ref)
	close(f.done)
}

// fill keeps near what a far read brought.
func (t *Tier) fill(f *flight) {
	t.near.Compute(f.ref, func(old *copied, found bool) (*copied, otter.ComputeOp) {
		c := &copied{rec: f.rec, asOf: f.asOf, held: true, deaf: f.cache == kv.Stale}
		above := (*floor)(nil).raise(f.floor.known, f.floor.promised)
		if found && old.floor != nil {
			above = above.raise(old.floor.known, old.floor.promised)
		}
		c.floor = above.above(f.rec.Version)
		if found && old.held && !supersedes(c, old) {
			if old.rec.Compare(f.rec) != 0 || old.asOf >= c.asOf {
				return nil, otter.CancelOp
			}
		}
		if len(f.rec.Value) > t.opts.MaxValueBytes {
			if !found {
				return nil, otter.CancelOp
			}
			return nil, otter.InvalidateOp // a floor is of no more use: far has shown what is above it
		}
		return c, otter.WriteOp
	})
}

// supersedes reports whether what far brought takes the place of a copy: it is
// newer; or far has forgotten a tombstone since, and absence says the same.
func supersedes(c, old *copied) bool {
	if c.rec.Absent() && old.rec.Tombstone {
		return c.asOf > old.asOf
	}
	return c.rec.Compare(old.rec) > 0
}

// withFarBytes gives a far read its own bound on large values: it outlives the
// reader who began it, and that reader's door. Each reader asks his own door for
// what he gets.
func (t *Tier) withFarBytes(ctx context.Context) (_ context.Context, release func()) {
	var held atomic.Int64
	reserve := func(n int64) error {
		if t.farHeld.Add(n) > t.opts.FarBytes {
			t.farHeld.Add(-n)
			return fmt.Errorf("%w: the far reads under way hold %d bytes, their bound", kv.ErrOverloaded, t.opts.FarBytes)
		}
		held.Add(n)
		return nil
	}
	return kv.WithReserver(ctx, reserve), func() { t.farHeld.Add(-held.Load()) }
}

// GetAnswers implements the ability of kv.GetAnswers: near for what it has, one
// far read for the rest.
func (t *Tier) GetAnswers(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get many: %w", err)
	}
	answers := make([]kv.Answer, len(refs))
	var missing []int
	for i, ref := range refs {
		a, _, ok := t.lookUp(ref, maxAge)
		if !ok {
			missing = append(missing, i)
			continue
		}
		t.stats.hits.Add(1)
		answers[i] = a
	}
	if len(missing) == 0 {
		return answers, nil
	}
	return answers, t.fetchMany(ctx, refs, missing, maxAge, answers)
}

// fetchMany reads refs[missing...] from far together. Each counts as a far read
// of its key under way, so that writes and notices meanwhile are not missed, and
// others may wait for it; a key that somebody else reads already is waited for.
func (t *Tier) fetchMany(ctx context.Context, refs []kv.Ref, missing []int, maxAge time.Duration, answers []kv.Answer) error {
	own := map[int]*flight{}
	var batch []*flight
	asked := t.moment()
	for _, i := range missing {
		if f := t.begin(refs[i], maxAge); f != nil {
			own[i] = f
			batch = append(batch, f)
		}
	}
	if len(batch) > 0 {
		go t.flyMany(context.WithoutCancel(ctx), batch, maxAge)
	}
	for _, i := range missing {
		if f := own[i]; f != nil {
			select {
			case <-f.done:
			case <-ctx.Done():
				return fmt.Errorf("get many: %w", ctx.Err())
			}
		}
	}
	for _, i := range missing {
		var err error
		if f := own[i]; f != nil && f.err == nil && f.answers(asked, maxAge) {
			answers[i], err = t.deliver(ctx, f, kv.Miss)
		} else {
			answers[i], err = t.GetAnswer(ctx, refs[i], maxAge)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin registers a far read that the caller sees to, or returns nil if one is
// under way.
func (t *Tier) begin(ref kv.Ref, maxAge time.Duration) *flight {
	s := t.shard(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads[ref] != nil {
		return nil
	}
	f := &flight{ref: ref, started: t.view(), maxAge: maxAge, done: make(chan struct{})}
	s.reads[ref] = f
	return f
}

// flyMany makes the far reads of a batch with one call, and lands them.
func (t *Tier) flyMany(ctx context.Context, batch []*flight, maxAge time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.FarTimeout)
	defer cancel()
	ctx, release := t.withFarBytes(ctx)
	defer release()
	t.stats.farReads.Add(1)
	found, err := make([]kv.Answer, len(batch)), errFlight
	defer func() {
		for i, f := range batch {
			t.land(f, found[i], err)
		}
	}()
	refs := make([]kv.Ref, len(batch))
	for i, f := range batch {
		refs[i] = f.ref
	}
	var got []kv.Answer
	if got, err = kv.GetAnswers(ctx, t.far, refs, maxAge); err == nil {
		copy(found, got)
	}
}
