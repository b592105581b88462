package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Phase is how far a move has come. Every phase is durable before it takes effect,
// and is begun anew after a crash.
//
//	Waiting   nothing has happened
//	Clearing  the new cluster is rid of what it may hold of the slot from earlier times
//	Copying   writes go to the old cluster and then to the new one; reads to the old
//	          one. Everything is copied in key order, and both sides are compared.
//	CutOver   reads go to the new cluster; writes to the new one and then to the old.
//	          The old copies stay for a while.
//	Dropping  the old copies are removed; nothing goes there any more
//	Undoing   a move that was taken back while copying: what was copied is removed
type Phase string

// The phases of a move.
const (
	Waiting  Phase = "waiting"
	Clearing Phase = "clearing"
	Copying  Phase = "copying"
	CutOver  Phase = "cut over"
	Dropping Phase = "dropping"
	Undoing  Phase = "undoing"
)

// MaxMissed is how many keys that the new cluster missed are kept in mind while a
// slot is copied; beyond it the copy begins anew.
const MaxMissed = 10_000

// move is the part of a move that a crash loses.
type move struct {
	id   uint64
	data chan struct{} // whoever fills it moves or forgets records of the move

	down   atomic.Bool // the mirror does not answer: writes do not wait for it
	behind atomic.Bool // after the cut over the old cluster missed a write

	copied, compared, differences, removed atomic.Int64

	missedMu sync.Mutex // guards missed and overflow
	missed   map[kv.Ref]struct{}
	overflow bool

	// Shards.mu guards the rest.
	strict  bool // writes must reach both clusters
	running bool
	err     error // of the last attempt
	phase   Phase // that since belongs to
	since   time.Time
	retryAt time.Time
	dropAt  time.Time
}

func newMove(id uint64) *move {
	return &move{id: id, data: make(chan struct{}, 1), missed: map[kv.Ref]struct{}{}}
}

// lock keeps others from moving or forgetting records of the move: a tombstone
// must not be forgotten between the reading of a copy and its writing.
func (m *move) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case m.data <- struct{}{}:
		return func() { <-m.data }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a batch of a move: %w", ctx.Err())
	}
}

// miss notes keys whose write the mirror does not have, or may not have.
func (m *move) miss(writes []kv.Write) {
	m.missedMu.Lock()
	defer m.missedMu.Unlock()
	for _, w := range writes {
		if m.overflow {
			return
		}
		m.missed[w.Ref] = struct{}{}
		if len(m.missed) > MaxMissed {
			m.missed, m.overflow = map[kv.Ref]struct{}{}, true
		}
	}
}

// takeMissed returns the keys that were noted, and whether they were too many.
func (m *move) takeMissed() (refs []kv.Ref, overflow bool) {
	m.missedMu.Lock()
	defer m.missedMu.Unlock()
	refs, overflow = keysOf(m.missed), m.overflow
	m.missed, m.overflow = map[kv.Ref]struct{}{}, false
	return refs, overflow
}

// put stores writes of one place.
func (p place) put(ctx context.Context, writes []kv.Write) error {
	err := p.home.putMany(ctx, writes)
	if p.move == nil || p.home.shards.omits(omitMirror) {
		return err
	}
	if p.mode == after {
		p.follow(ctx, writes, err)
		return err
	}
	if err != nil || p.mode == lenient && p.move.down.Load() {
		p.move.miss(writes) // home may have them all the same
		return err
	}
	limited, cancel := context.WithTimeout(ctx, p.home.shards.opts.MirrorTimeout)
	defer cancel()
	mirrorErr := p.mirror.putMany(limited, writes)
	if mirrorErr == nil {
		return nil
	}
	p.move.miss(writes)
	if p.mode == strict {
		return fmt.Errorf("the slot moves, and only one side has the write: %w: %w", kv.ErrUnknown, mirrorErr)
	}
	if ctx.Err() == nil {
		p.move.down.Store(true)
	}
	return nil
}

// follow keeps the old cluster's copy good for as long as that is no trouble.
func (p place) follow(ctx context.Context, writes []kv.Write, err error) {
	if err != nil || p.move.behind.Load() {
		return
	}
	limited, cancel := context.WithTimeout(ctx, p.home.shards.opts.MirrorTimeout)
	defer cancel()
	if err := p.mirror.putMany(limited, writes); err != nil {
		p.move.behind.Store(true)
	}
}

// forget removes tombstones of one place. While they are being copied, the mirror
// must first have them too: what it holds instead could be older, and would come
// back to life at the cut over.
func (p place) forget(ctx context.Context, tombs []kv.Tomb) error {
	if p.move == nil {
		return p.home.forget(ctx, tombs)
	}
	unlock, err := p.move.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if p.mode == after {
		return p.home.forget(ctx, tombs)
	}
	writes := make([]kv.Write, len(tombs))
	for i, tomb := range tombs {
		writes[i] = kv.Write{Ref: tomb.Ref, Record: kv.Tombstone(tomb.Version)}
	}
	if err := p.mirror.putMany(ctx, writes); err != nil {
		return err
	}
	if err := p.home.forget(ctx, tombs); err != nil {
		return err
	}
	return p.mirror.forget(ctx, tombs)
}

// Move has a slot moved to a cluster. If it is on its way elsewhere and has not
// been cut over, that is taken back; after the cut over it first arrives.
func (s *Shards) Move(slot int, to string) error {
	if slot < 0 || slot >= Slots {
		return fmt.Errorf("move slot %d: there are slots 0 to %d", slot, Slots-1)
	}
	if s.byName[to] == nil {
		return fmt.Errorf("move slot %d: there is no cluster %q", slot, to)
	}
	return s.change(func(t *table) error { t.direct(slot, to); return nil })
}

// Drain has every slot of a cluster moved to the others.
func (s *Shards) Drain(name string) error {
	if s.byName[name] == nil {
		return fmt.Errorf("drain: there is no cluster %q", name)
	}
	others := slices.DeleteFunc(s.shares(), func(c share) bool { return c.name == name })
	if propose(others, 0) == "" {
		return fmt.Errorf("drain cluster %s: no other cluster has any weight", name)
	}
	return s.change(func(t *table) error {
		for slot := range t.owners {
			if t.destination(slot) == name {
				t.direct(slot, propose(others, slot))
			}
		}
		return nil
	})
}

// Rebalance has the slots moved to the clusters that weighted rendezvous hashing
// gives them to. That is few if a cluster was added, or a weight changed.
func (s *Shards) Rebalance() error {
	shares := s.shares()
	if propose(shares, 0) == "" {
		return errors.New("rebalance: no cluster has any weight")
	}
	return s.change(func(t *table) error {
		for slot := range t.owners {
			t.direct(slot, propose(shares, slot))
		}
		return nil
	})
}

func (s *Shards) shares() (shares []share) {
	for _, c := range s.clusters {
		shares = append(shares, share{c.Name, c.Weight})
	}
	return shares
}

// Spread has a namespace divided into 2^bits buckets, 0 to MaxSpreadBits.
func (s *Shards) Spread(ns kv.NamespaceID, bits int) error {
	if bits < 0 || bits > MaxSpreadBits {
		return fmt.Errorf("spread namespace %s over 2^%d buckets: 0 to %d bits are possible", ns, bits, MaxSpreadBits)
	}
	if err := served(ns); err != nil {
		return err
	}
	return s.change(func(t *table) error { return t.divide(ns, bits) })
}

// destination returns where a slot will be when its moves are done.
func (t *table) destination(slot int) string {
	to := t.owners[slot]
	for _, tr := range t.moves {
		if tr.Slot == slot && tr.arrives() {
			to = tr.To
		}
	}
	return to
}

// arrives reports whether what the transfer moves has yet to be read at its end.
func (tr transfer) arrives() bool {
	return tr.Phase == Waiting || tr.Phase == Clearing || tr.Phase == Copying
}

// direct edits the moves so that a slot ends in a cluster.
func (t *table) direct(slot int, to string) {
	t.moves = slices.DeleteFunc(t.moves, func(tr transfer) bool { return tr.Slot == slot && tr.Phase == Waiting })
	for i := range t.moves {
		tr := &t.moves[i]
		if tr.Slot != slot || tr.Phase != Clearing && tr.Phase != Copying {
			continue
		}
		if tr.To == to {
			return
		}
		tr.Phase = Undoing
	}
	if t.owners[slot] != to {
		t.add(transfer{Slot: slot, To: to})
	}
}

// divide edits the moves so that a namespace ends in 2^bits buckets.
func (t *table) divide(ns kv.NamespaceID, bits int) error {
	t.moves = slices.DeleteFunc(t.moves, func(tr transfer) bool { return tr.Slot < 0 && tr.ns == ns && tr.Phase == Waiting })
	spread := len(t.spread)
	for i := range t.moves {
		tr := &t.moves[i]
		if tr.Slot >= 0 {
			continue
		}
		if _, counted := t.spread[tr.ns]; !counted {
			spread++
		}
		if tr.ns != ns || tr.Phase != Clearing && tr.Phase != Copying {
			continue
		}
		if tr.ToBits == bits {
			return nil
		}
		tr.Phase = Undoing
	}
	if t.spread[ns] == bits {
		return nil
	}
	if _, already := t.spread[ns]; !already && spread >= MaxSpread {
		return fmt.Errorf("spread namespace %s: %d namespaces are spread, at most %d can be", ns, spread, MaxSpread)
	}
	t.add(transfer{Slot: -1, Namespace: ns.String(), ToBits: bits, ns: ns})
	return nil
}

// Run carries moves on from where they were left, looks at the clusters now and
// then, and gives them copies of the table. It returns nil when ctx ends, and an
// error when a cluster knows a newer table.
func (s *Shards) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	if !s.awaitTable(ctx) {
		return nil
	}
	for _, c := range s.clusters {
		wg.Go(func() { s.watch(ctx, c) })
	}
	for {
		changed := s.changed.C()
		if refusal := s.refusal.Load(); refusal != nil {
			cancel()
			return *refusal
		}
		due, wait := s.due(time.Now())
		for _, m := range due {
			wg.Go(func() { s.carry(ctx, m) })
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// awaitTable returns when there is a table, or false when ctx has ended.
func (s *Shards) awaitTable(ctx context.Context) bool {
	for s.current.Load() == nil {
		limited, cancel := context.WithTimeout(ctx, s.opts.Timeout)
		err := s.start(limited)
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			s.log.Warn("shards: there is no table of slots yet", "error", err)
		}
		if pause(ctx, s.opts.RetryAfter) != nil {
			return false
		}
	}
	return true
}

// watch looks at a cluster now and then, and gives it each new table.
func (s *Shards) watch(ctx context.Context, c *cluster) {
	var told uint64
	for {
		changed := s.changed.C()
		epoch := s.current.Load().table.epoch
		limited, cancel := context.WithTimeout(ctx, s.opts.ProbeEvery)
		err := c.publish(limited)
		cancel()
		if err == nil {
			told = epoch
		}
		timer := time.NewTimer(s.opts.ProbeEvery)
		for waiting := true; waiting; {
			select {
			case <-changed:
				changed = s.changed.C()
				waiting = err != nil || s.current.Load().table.epoch == told
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		timer.Stop()
	}
}

// due returns the moves to be carried on now, and how long until others are. Moves
// that are under way come first. A move that waits for its turn is not begun while
// another is at work on one of its slots, and none goes on without its clusters: it
// would keep a place in vain.
func (s *Shards) due(now time.Time) (due []*move, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = s.opts.RetryAfter
	running, claimed := 0, map[int]bool{}
	for _, m := range s.moves {
		if m.running {
			running++
		}
	}
	for _, waiting := range []bool{false, true} {
		for _, tr := range s.table.moves {
			m := s.moves[tr.ID]
			begun := tr.Phase != Waiting || m.running
			if begun == waiting {
				continue
			}
			m.enter(tr.Phase, now, s.opts.DropAfter)
			free := begun || s.free(tr, claimed)
			for _, slot := range s.table.slots(tr) {
				claimed[slot] = true // those behind a move that waits, wait as well
			}
			at := m.retryAt
			if tr.Phase == CutOver && m.dropAt.After(at) {
				at = m.dropAt
			}
			if now.Before(at) {
				wait = min(wait, at.Sub(now))
			} else if free && !m.running && running < s.opts.Moves && s.reachable(tr) {
				m.running = true
				running++
				due = append(due, m)
			}
		}
	}
	return due, wait
}

// free reports whether no other move is at work on a slot of this one.
func (s *Shards) free(tr transfer, claimed map[int]bool) bool {
	return !slices.ContainsFunc(s.table.slots(tr), func(slot int) bool { return claimed[slot] })
}

// reachable is called with mu held. It reports whether all clusters of a move are
// up, as far as is known.
func (s *Shards) reachable(tr transfer) bool {
	if tr.Phase == Waiting {
		tr.FromBits = s.table.spread[tr.ns]
		if tr.Slot >= 0 {
			tr.From = s.table.owners[tr.Slot]
		}
	}
	from, to := s.ends(s.current.Load().layout, tr)
	return !slices.ContainsFunc(append(from, to...), (*cluster).isDown)
}

// enter notes since when the move is in its phase.
func (m *move) enter(phase Phase, now time.Time, dropAfter time.Duration) {
	if m.phase == phase {
		return
	}
	m.phase, m.since = phase, now
	if phase == CutOver {
		m.dropAt = now.Add(dropAfter)
	}
}

// carry takes a move as far as it goes now.
func (s *Shards) carry(ctx context.Context, m *move) {
	err := errMoved
	for errors.Is(err, errMoved) && ctx.Err() == nil {
		err = s.step(ctx, m)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("shards: a move met an error and will be tried again", "move", m.id, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m.running, m.err = false, err
	if err != nil {
		m.retryAt = time.Now().Add(s.opts.RetryAfter)
	}
	s.changed.Fire()
}

// errMoved ends a step because the move is in another phase now.
var errMoved = errors.New("the move is in another phase")

// step does what the phase of a move asks for. It returns errMoved when there is
// more to do, and nil when there is not, for now or for ever.
func (s *Shards) step(ctx context.Context, m *move) error {
	s.mu.Lock()
	tr, l := s.table.transfer(m.id), s.current.Load().layout
	if tr != nil {
		m.enter(tr.Phase, time.Now(), s.opts.DropAfter)
	}
	wait := tr != nil && tr.Phase == CutOver && time.Now().Before(m.dropAt)
	s.mu.Unlock()
	if tr == nil || wait {
		return nil
	}
	if tr.Phase != Waiting { // what was begun in the phase before has ended
		if err := s.drain(ctx); err != nil {
			return err
		}
	}
	w := &mover{shards: s, move: m, tr: *tr, layout: l}
	w.from, w.to = s.ends(l, *tr)
	switch tr.Phase {
	case Waiting:
		return w.begin(ctx)
	case Clearing:
		return w.clear(ctx)
	case Copying:
		return w.copy(ctx)
	case CutOver:
		return w.release(ctx)
	case Dropping:
		return w.drop(ctx)
	case Undoing:
		return w.undo(ctx)
	}
	panic("proxy: a move in phase " + tr.Phase)
}

// pause waits, or returns an error when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait: %w", ctx.Err())
	}
}

// pacer lets at most a rate of things through, whoever they belong to.
type pacer struct {
	mu   sync.Mutex // guards next
	next time.Time
}

// pass waits until n more may be done.
func (p *pacer) pass(ctx context.Context, n, rate int) error {
	if rate <= 0 || n == 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(rate))
	p.mu.Unlock()
	if wait == 0 {
		return nil
	}
	return pause(ctx, wait)
}
