package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// mode is what a write does while its key is on the move.
type mode int

const (
	still   mode = iota // the key is at home and nowhere else
	lenient             // home decides; what the mirror misses is noted and copied
	strict              // home and mirror must both have it
	after               // home decides, which is the new cluster; the old one follows as long as it can
)

// place says where a key is: it is read at home; a write goes home first, then to
// the mirror if there is one.
type place struct {
	home   *cluster
	mirror *cluster // nil if still
	move   *move    // nil if still
	mode   mode
}

// layout is a table with the clusters that it speaks of and the moves that have
// an effect on writes.
type layout struct {
	table   *table
	home    [Slots]*cluster
	slots   map[int]mirroring            // moving slots
	spreads map[kv.NamespaceID]mirroring // namespaces that are being spread
	known   *slotCache
}

// mirroring is where the second write goes: to a cluster, or to the cluster of the
// key's bucket by another number of buckets.
type mirroring struct {
	cluster *cluster
	bits    int
	move    *move
	mode    mode
}

func (l *layout) place(ns kv.NamespaceID, key string) place {
	slot := l.slot(ns, key, l.table.spread[ns])
	home := l.home[slot]
	if m, ok := l.slots[slot]; ok {
		return place{home, m.cluster, m.move, m.mode}
	}
	if m, ok := l.spreads[ns]; ok {
		if mirror := l.home[l.slot(ns, key, m.bits)]; mirror != home {
			return place{home, mirror, m.move, m.mode}
		}
	}
	return place{home: home}
}

// slot returns the slot of a key in a namespace of 2^bits buckets.
func (l *layout) slot(ns kv.NamespaceID, key string, bits int) int {
	if bits == 0 {
		return l.known.of(ns)
	}
	return slotOf(ns, bucketOf(key, bits))
}

// holders returns the clusters that records of a namespace are read from, those
// that they are being copied to, and the moves that do so, by age.
func (l *layout) holders(ns kv.NamespaceID) (homes, mirrors []*cluster, moves []*move) {
	for _, slot := range slotsOf(ns, l.table.spread[ns]) {
		homes = add(homes, l.home[slot])
		if m, ok := l.slots[slot]; ok {
			moves = add(moves, m.move)
			if m.mode != after {
				mirrors = add(mirrors, m.cluster)
			}
		}
	}
	if m, ok := l.spreads[ns]; ok {
		moves = add(moves, m.move)
		if m.mode != after {
			for _, c := range l.homes(ns, m.bits) {
				mirrors = add(mirrors, c)
			}
		}
	}
	slices.SortFunc(moves, func(a, b *move) int { return int(a.id) - int(b.id) })
	return homes, mirrors, moves
}

// homes returns the clusters of a namespace of 2^bits buckets.
func (l *layout) homes(ns kv.NamespaceID, bits int) (homes []*cluster) {
	for _, slot := range slotsOf(ns, bits) {
		homes = add(homes, l.home[slot])
	}
	return homes
}

// touches reports whether any key of the namespace has its home or its mirror in
// the cluster.
func (l *layout) touches(ns kv.NamespaceID, c *cluster) bool {
	for _, slot := range slotsOf(ns, l.table.spread[ns]) {
		if l.home[slot] == c || l.slots[slot].cluster == c {
			return true
		}
	}
	m, ok := l.spreads[ns]
	return ok && slices.Contains(l.homes(ns, m.bits), c)
}

// ends returns the clusters that a transfer takes records from, and those that it
// takes them to.
func (s *Shards) ends(l *layout, tr transfer) (from, to []*cluster) {
	if tr.Slot >= 0 {
		return []*cluster{s.byName[tr.From]}, []*cluster{s.byName[tr.To]}
	}
	return l.homes(tr.ns, tr.FromBits), l.homes(tr.ns, tr.ToBits)
}

// layout is called with mu held.
func (s *Shards) layout() *layout {
	l := &layout{table: s.table, slots: map[int]mirroring{}, spreads: map[kv.NamespaceID]mirroring{}, known: &s.known}
	for slot, name := range s.table.owners {
		l.home[slot] = s.byName[name]
	}
	for _, tr := range s.table.moves {
		if tr.Phase != Copying && tr.Phase != CutOver {
			continue
		}
		m := mirroring{cluster: s.byName[tr.To], bits: tr.ToBits, move: s.moves[tr.ID], mode: lenient}
		if m.move.strict {
			m.mode = strict
		}
		if tr.Phase == CutOver {
			m.cluster, m.bits, m.mode = s.byName[tr.From], tr.FromBits, after
		}
		if tr.Slot >= 0 {
			l.slots[tr.Slot] = m
		} else {
			l.spreads[tr.ns] = m
		}
	}
	return l
}

// view is a layout with the operations that are under way by it. When a layout is
// replaced, what was begun by the old one is waited for before anything relies on
// the new one.
type view struct {
	*layout
	underway atomic.Int64
	idle     chan struct{} // holds a token when underway may have come down to 0
}

// enter returns the view for an operation, which must leave it.
func (s *Shards) enter(ctx context.Context) (*view, error) {
	for {
		if refusal := s.refusal.Load(); refusal != nil {
			return nil, *refusal
		}
		v := s.current.Load()
		if v == nil {
			if err := s.start(ctx); err != nil {
				return nil, err
			}
			continue
		}
		v.underway.Add(1)
		if s.current.Load() == v {
			return v, nil
		}
		v.leave()
	}
}

func (v *view) leave() {
	if v.underway.Add(-1) == 0 {
		select {
		case v.idle <- struct{}{}:
		default:
		}
	}
}

// install makes the table and the modes of its moves take effect. It is called
// with mu held, or before anyone else can.
func (s *Shards) install() {
	moves := make(map[uint64]*move, len(s.table.moves))
	for _, tr := range s.table.moves {
		if moves[tr.ID] = s.moves[tr.ID]; moves[tr.ID] == nil {
			moves[tr.ID] = newMove(tr.ID)
		}
	}
	s.moves = moves
	s.retired = slices.DeleteFunc(s.retired, func(v *view) bool { return v.underway.Load() == 0 })
	v := &view{layout: s.layout(), idle: make(chan struct{}, 1)}
	if old := s.current.Swap(v); old != nil {
		s.retired = append(s.retired, old)
	}
	s.changed.Fire()
}

// drain waits for every operation that was begun before the current view was
// installed.
func (s *Shards) drain(ctx context.Context) error {
	if s.omits(omitDrain) {
		return nil
	}
	s.mu.Lock()
	retired := slices.Clone(s.retired)
	s.mu.Unlock()
	for _, v := range retired {
		for v.underway.Load() != 0 {
			select {
			case <-v.idle:
				if v.underway.Load() == 0 { // others may wait as well
					select {
					case v.idle <- struct{}{}:
					default:
					}
				}
			case <-ctx.Done():
				return fmt.Errorf("wait for operations under way: %w", ctx.Err())
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = slices.DeleteFunc(s.retired, func(v *view) bool { return slices.Contains(retired, v) })
	return nil
}

// barrier waits for every operation that is under way.
func (s *Shards) barrier(ctx context.Context) error {
	s.mu.Lock()
	s.install()
	s.mu.Unlock()
	return s.drain(ctx)
}

// change replaces the table by one that edit makes of it: it is durable before it
// takes effect. A crash in between leaves a table whose every phase holds for what
// was done under its predecessor. When the Keeper fails, either table may be there.
func (s *Shards) change(edit func(t *table) error) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.current.Load() == nil {
		return fmt.Errorf("shards: %w: no table of slots is known yet", kv.ErrUnavailable)
	}
	if refusal := s.refusal.Load(); refusal != nil {
		return *refusal
	}
	t := s.current.Load().table.next()
	if err := edit(t); err != nil {
		return err
	}
	t.text = t.encode()
	return s.replace(t)
}

// replace is called with changing held.
func (s *Shards) replace(t *table) error {
	if err := s.opts.Keeper.Save(t.text); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = t
	s.install()
	return nil
}

// refuse ends all service.
func (s *Shards) refuse(err error) {
	if s.refusal.CompareAndSwap(nil, &err) {
		s.log.Error("shards: nothing is served any more", "error", err)
	}
	s.changed.Fire()
}

// start looks for the table in the clusters when the Keeper had none.
func (s *Shards) start(ctx context.Context) error {
	select {
	case s.starting <- struct{}{}:
		defer func() { <-s.starting }()
	case <-ctx.Done():
		return fmt.Errorf("look for the table of slots: %w", ctx.Err())
	}
	if s.current.Load() != nil {
		return nil
	}
	t, err := s.find(ctx)
	if err != nil {
		return fmt.Errorf("no table of slots is known, so every cluster must answer: %w", err)
	}
	s.changing.Lock()
	err = s.replace(t)
	s.changing.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	err = apart(s.clusters, func(c *cluster) error { return c.publish(ctx) })
	if err != nil { // Run repeats it
		s.log.Warn("shards: not every cluster has a copy of the table of slots yet", "error", err)
	}
	return nil
}

// find returns the newest table of all clusters, or the first one if none has any.
func (s *Shards) find(ctx context.Context) (newest *table, err error) {
	found := make([]*table, len(s.clusters))
	holds := make([]bool, len(s.clusters))
	var mu sync.Mutex // guards both
	err = together(ctx, s.clusters, func(ctx context.Context, c *cluster) error {
		t, ids, err := c.past(ctx)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		ids = slices.DeleteFunc(ids, func(id kv.NamespaceID) bool { return id == TableNamespace })
		mu.Lock()
		defer mu.Unlock()
		i := slices.Index(s.clusters, c)
		found[i], holds[i] = t, len(ids) > 0
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, t := range found {
		if t != nil && newest != nil && t.id != newest.id {
			return nil, fmt.Errorf("%w: cluster %s belongs to provider %s, another to %s", kv.ErrUnavailable, s.clusters[i].Name, t.id, newest.id)
		}
		if t != nil && (newest == nil || t.epoch > newest.epoch) {
			newest = t
		}
	}
	if newest != nil {
		s.log.Warn("shards: the table of slots was taken from the clusters", "epoch", newest.epoch)
		return newest, s.knows(newest)
	}
	return s.first(holds)
}

// past returns the table that a cluster keeps, or nil, and the first of its
// namespaces.
func (c *cluster) past(ctx context.Context) (t *table, ids []kv.NamespaceID, err error) {
	rec, err := c.Store.Get(ctx, tableRef, 0)
	c.note(err)
	if err != nil {
		return nil, nil, fmt.Errorf("read its table of slots: %w", err)
	}
	if !rec.Absent() {
		if t, err = decodeTable(rec.Value); err != nil {
			return nil, nil, err
		}
	}
	ids, err = kv.Namespaces(ctx, c.Store, kv.NamespaceID{}, 2)
	if errors.Is(err, kv.ErrUnsupported) {
		return t, nil, nil
	}
	return t, ids, err
}

// first makes the first table. Records that are there already must be found.
func (s *Shards) first(holds []bool) (*table, error) {
	var shares []share
	sole := ""
	for i, c := range s.clusters {
		shares = append(shares, share{c.Name, c.Weight})
		if !holds[i] {
			continue
		}
		if sole != "" {
			return nil, fmt.Errorf("%w: clusters %s and %s hold records, and none has a table of slots that says which", kv.ErrUnavailable, sole, c.Name)
		}
		sole = c.Name
	}
	if sole != "" {
		s.log.Info("shards: one cluster holds records and owns every slot; rebalance to use the others", "cluster", sole)
		return newTable(func(int) string { return sole }), nil
	}
	if propose(shares, 0) == "" {
		return nil, errors.New("shards: no cluster has any weight")
	}
	return newTable(func(slot int) string { return propose(shares, slot) }), nil
}
