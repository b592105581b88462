package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nearkey/nearkey/kv"
)

// The bounds of a move's work.
const (
	batchKeys  = 128      // records that are copied, compared or removed in one go
	batchBytes = 64 << 20 // of their values, unless a single one is larger
	maxPasses  = 10       // over a slot, until both sides are equal or one is empty
)

// mover does the work of one step of a move.
type mover struct {
	shards   *Shards
	move     *move
	tr       transfer
	layout   *layout    // of the step's phase: no other move touches its slots
	from, to []*cluster // that the records leave, that they go to
}

// turn takes the move from one phase to the next. It returns errMoved, also when
// somebody else was faster, or why the table could not be kept.
func (w *mover) turn(next Phase, edit func(t *table)) error {
	err := w.shards.change(func(t *table) error {
		tr := t.transfer(w.tr.ID)
		if tr == nil || tr.Phase != w.tr.Phase {
			return errMoved
		}
		tr.Phase = next
		if edit != nil {
			edit(t)
		}
		return nil
	})
	if err == nil {
		return errMoved
	}
	return err
}

// finish takes the move off the table.
func (w *mover) finish() error {
	return w.turn(w.tr.Phase, func(t *table) {
		t.moves = slices.DeleteFunc(t.moves, func(tr transfer) bool { return tr.ID == w.tr.ID })
	})
}

// current returns errMoved if the move has been taken back.
func (w *mover) current() error {
	w.shards.mu.Lock()
	defer w.shards.mu.Unlock()
	if tr := w.shards.table.transfer(w.tr.ID); tr == nil || tr.Phase != w.tr.Phase {
		return errMoved
	}
	return nil
}

// begin takes a waiting move up, if its clusters can do what it will need.
func (w *mover) begin(ctx context.Context) error {
	t := w.layout.table
	w.tr.From, w.tr.FromBits = "", t.spread[w.tr.ns]
	same := w.tr.Slot < 0 && w.tr.FromBits == w.tr.ToBits
	if w.tr.Slot >= 0 {
		w.tr.From, w.tr.FromBits = t.owners[w.tr.Slot], 0
		same = w.tr.From == w.tr.To
	}
	if same {
		return w.finish()
	}
	from, to := w.shards.ends(w.layout, w.tr)
	for _, c := range append(from, to...) {
		if err := w.able(ctx, c); err != nil {
			return err
		}
	}
	return w.turn(Clearing, func(t *table) {
		tr := t.transfer(w.tr.ID)
		tr.From, tr.FromBits = w.tr.From, w.tr.FromBits
	})
}

func (w *mover) able(ctx context.Context, c *cluster) error {
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	if _, err := c.namespaces(ctx, kv.NamespaceID{}, 1); err != nil {
		return err
	}
	return c.forget(ctx, nil)
}

// clear removes what the new clusters hold from earlier times: a slot that came
// back must not find its past.
func (w *mover) clear(ctx context.Context) error {
	if !w.shards.omits(omitClear) {
		if err := w.remove(ctx, w.to); err != nil {
			return err
		}
	}
	return w.turn(Copying, nil)
}

// copy makes the new clusters equal to the old ones and cuts over. Whatever was
// copied before an error or a crash is copied again: what was missed is not known
// any more.
func (w *mover) copy(ctx context.Context) error {
	s, m := w.shards, w.move
	if err := w.relax(); err != nil {
		return err
	}
	m.takeMissed() // the copy brings them
	m.down.Store(false)
	m.copied.Store(0)
	if err := w.copyAll(ctx); err != nil {
		return err
	}
	if err := w.verify(ctx); err != nil {
		return err
	}
	s.setStrict(m, true)
	err := s.drain(ctx)
	if err == nil {
		err = w.settle(ctx)
	}
	if err != nil {
		s.setStrict(m, false)
		return err
	}
	// From here on every write that succeeds is on both sides. If the Keeper fails,
	// a crash may leave either table, so it stays like this until one is known.
	err = w.turn(CutOver, func(t *table) {
		if w.tr.Slot >= 0 {
			t.owners[w.tr.Slot] = w.tr.To
			return
		}
		if t.spread[w.tr.ns] = w.tr.ToBits; w.tr.ToBits == 0 {
			delete(t.spread, w.tr.ns)
		}
	})
	if !errors.Is(err, errMoved) {
		return err
	}
	// A write that failed meanwhile may be on the old side alone. Nobody was promised
	// it, but somebody may have read it.
	late := s.drain(ctx)
	if late == nil {
		late = w.settle(ctx)
	}
	if late != nil {
		s.log.Warn("shards: writes that failed at the cut over stay behind", "move", m.id, "error", late)
	}
	return err
}

// relax makes sure that the durable table is not one of a cut over that the Keeper
// reported as failed, and lets writes go on without the mirror.
func (w *mover) relax() error {
	s := w.shards
	s.mu.Lock()
	strict := w.move.strict
	s.mu.Unlock()
	if !strict {
		return nil
	}
	if err := w.turn(Copying, nil); !errors.Is(err, errMoved) {
		return err
	}
	s.setStrict(w.move, false)
	return w.current()
}

func (s *Shards) setStrict(m *move, strict bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.strict = strict
	s.install()
}

// release ends the time in which the old clusters follow. Their copies may go once
// they and the new ones know that they are old.
func (w *mover) release(ctx context.Context) error {
	for _, c := range append(slices.Clone(w.from), w.to...) {
		limited, cancel := w.shards.bound(ctx)
		err := c.publish(limited)
		cancel()
		if err != nil {
			return err
		}
	}
	return w.turn(Dropping, nil)
}

// drop removes the old copies. Only then can the slot move back.
func (w *mover) drop(ctx context.Context) error {
	if err := w.remove(ctx, w.from); err != nil {
		return err
	}
	return w.finish()
}

// undo removes what was copied before the move was taken back.
func (w *mover) undo(ctx context.Context) error {
	if err := w.remove(ctx, w.to); err != nil {
		return err
	}
	return w.finish()
}

// covers reports whether the move is of this key.
func (w *mover) covers(ns kv.NamespaceID, key string) bool {
	if w.tr.Slot < 0 {
		return ns == w.tr.ns
	}
	return slotOf(ns, bucketOf(key, w.layout.table.spread[ns])) == w.tr.Slot
}

// namespaces returns those of which the clusters may hold keys of the move.
func (w *mover) namespaces(ctx context.Context, clusters []*cluster) (found []kv.NamespaceID, err error) {
	if w.tr.Slot < 0 {
		return []kv.NamespaceID{w.tr.ns}, nil
	}
	for _, c := range clusters {
		for from := (kv.NamespaceID{}); ; {
			limited, cancel := w.shards.bound(ctx)
			ids, err := c.namespaces(limited, from, kv.MaxNamespaces)
			cancel()
			if err != nil {
				return nil, err
			}
			if len(ids) == 0 {
				break
			}
			for _, ns := range ids {
				if ns != TableNamespace && slices.Contains(slotsOf(ns, w.layout.table.spread[ns]), w.tr.Slot) {
					found = append(found, ns)
				}
			}
			from = ids[len(ids)-1]
		}
	}
	slices.SortFunc(found, func(a, b kv.NamespaceID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(found), nil
}

// fill reads on in a stream of the move's own.
func (w *mover) fill(ctx context.Context, st *stream, keep func(c *cluster, key string) bool) error {
	if err := w.current(); err != nil {
		return err
	}
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	return st.fill(ctx, keep)
}

// batches reads a namespace from clusters and calls do with the keys to be kept.
func (w *mover) batches(ctx context.Context, ns kv.NamespaceID, clusters []*cluster, keep func(c *cluster, key string) bool, do func([]kv.Listed) error) error {
	st := newStream(ns, kv.ListOptions{Limit: batchKeys}, clusters)
	var batch []kv.Listed
	for {
		if st.dry() {
			if err := w.fill(ctx, st, keep); err != nil {
				return err
			}
			continue
		}
		k, _, ok := st.next()
		if ok {
			batch = append(batch, k)
		}
		if len(batch) == batchKeys || !ok && len(batch) > 0 {
			if err := do(batch); err != nil {
				return err
			}
			batch = nil
		}
		if !ok {
			return nil
		}
	}
}

// leaving and arriving say which keys of a cluster are the move's on either side.
func (w *mover) leaving(ns kv.NamespaceID) func(*cluster, string) bool {
	return func(c *cluster, key string) bool {
		p := w.layout.place(ns, key)
		return p.move == w.move && p.home == c
	}
}

func (w *mover) arriving(ns kv.NamespaceID) func(*cluster, string) bool {
	return func(c *cluster, key string) bool {
		p := w.layout.place(ns, key)
		return p.move == w.move && p.mirror == c
	}
}

// copyAll copies every record of the move, tombstones included.
func (w *mover) copyAll(ctx context.Context) error {
	if w.shards.omits(omitCopy) {
		return nil
	}
	namespaces, err := w.namespaces(ctx, w.from)
	if err != nil {
		return err
	}
	for _, ns := range namespaces {
		err := w.batches(ctx, ns, w.from, w.leaving(ns), func(keys []kv.Listed) error {
			refs := make([]kv.Ref, len(keys))
			for i, k := range keys {
				refs[i] = kv.Ref{Namespace: ns, Key: k.Key}
			}
			return w.copyRefs(ctx, refs)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyRefs copies what the old clusters have of some keys.
func (w *mover) copyRefs(ctx context.Context, refs []kv.Ref) error {
	parts := map[place][]kv.Ref{}
	for _, ref := range refs {
		if p := w.layout.place(ref.Namespace, ref.Key); p.move == w.move {
			parts[p] = append(parts[p], ref)
		}
	}
	for p, its := range parts {
		for batch := range slices.Chunk(its, batchKeys) {
			if err := w.shards.pace.pass(ctx, len(batch), w.shards.opts.CopyRate); err != nil {
				return err
			}
			if err := w.copyBatch(ctx, p, batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyBatch copies keys of one place. Values that together are too large for the
// memory of a batch are copied in smaller ones.
func (w *mover) copyBatch(ctx context.Context, p place, refs []kv.Ref) error {
	err := w.copyLocked(ctx, p, refs)
	if !errors.Is(err, kv.ErrOverloaded) || len(refs) == 1 {
		return err
	}
	half := len(refs) / 2
	if err := w.copyBatch(ctx, p, refs[:half]); err != nil {
		return err
	}
	return w.copyBatch(ctx, p, refs[half:])
}

func (w *mover) copyLocked(ctx context.Context, p place, refs []kv.Ref) error {
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	unlock, err := w.move.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	recs, err := p.home.getMany(within(ctx, len(refs)), refs, 0)
	if err != nil {
		return err
	}
	var writes []kv.Write
	for i, rec := range recs {
		if !rec.Absent() {
			writes = append(writes, kv.Write{Ref: refs[i], Record: rec})
		}
	}
	if len(writes) == 0 {
		return nil
	}
	if err := p.mirror.putMany(ctx, writes); err != nil {
		return err
	}
	w.move.down.Store(false)
	w.move.copied.Add(int64(len(writes)))
	return nil
}

// within bounds the bytes of a batch of more than one record.
func within(ctx context.Context, records int) context.Context {
	if records == 1 {
		return ctx
	}
	left := int64(batchBytes)
	return kv.WithReserver(ctx, func(n int64) error {
		if left -= n; left < 0 {
			return fmt.Errorf("a batch of %d bytes: %w", batchBytes, kv.ErrOverloaded)
		}
		return nil
	})
}

// settle copies the keys that the mirror missed, until none are left.
func (w *mover) settle(ctx context.Context) error {
	if w.shards.omits(omitMissed) {
		return nil
	}
	for {
		refs, overflow := w.move.takeMissed()
		if overflow {
			return fmt.Errorf("more than %d keys were missed while the slot was copied: %w", MaxMissed, kv.ErrOverloaded)
		}
		if len(refs) == 0 {
			return nil
		}
		if err := w.copyRefs(ctx, refs); err != nil {
			writes := make([]kv.Write, len(refs))
			for i, ref := range refs {
				writes[i].Ref = ref
			}
			w.move.miss(writes)
			return err
		}
	}
}

// verify compares both sides until they are equal, and copies what is not.
func (w *mover) verify(ctx context.Context) error {
	w.move.compared.Store(0)
	for range maxPasses {
		if err := w.settle(ctx); err != nil {
			return err
		}
		if w.shards.omits(omitVerify) {
			return nil
		}
		differences, err := w.compare(ctx)
		if errors.Is(err, errExtra) {
			w.shards.log.Warn("shards: the new cluster holds what the old one does not; the copy begins anew", "move", w.tr.ID, "error", err)
			return w.turn(Clearing, nil)
		}
		if differences == 0 || err != nil {
			return err
		}
		w.move.differences.Add(int64(differences))
		w.shards.log.Warn("shards: a copy was not equal and was made so", "move", w.tr.ID, "records", differences)
	}
	return fmt.Errorf("both sides still differ after %d passes: %w", maxPasses, kv.ErrUnavailable)
}

// errExtra: the new cluster holds a record that the old one does not.
var errExtra = errors.New("a record that did not come from the old cluster")

// doubt is a key that the two listings do not show alike; a write may have come
// between them.
type doubt struct {
	ref kv.Ref
	old kv.Record // as the old side listed it; absent if it did not
	new kv.Record // as the new side did
}

// compare goes through both sides in key order, and returns how many records were
// not equal.
func (w *mover) compare(ctx context.Context) (differences int, err error) {
	namespaces, err := w.namespaces(ctx, append(slices.Clone(w.from), w.to...))
	if err != nil {
		return 0, err
	}
	for _, ns := range namespaces {
		n, err := w.compareNamespace(ctx, ns)
		differences += n
		if err != nil {
			return differences, err
		}
	}
	return differences, nil
}

func (w *mover) compareNamespace(ctx context.Context, ns kv.NamespaceID) (differences int, err error) {
	left := newStream(ns, kv.ListOptions{Limit: 8 * batchKeys}, w.from)
	right := newStream(ns, kv.ListOptions{Limit: 8 * batchKeys}, w.to)
	var doubts []doubt
	for {
		if left.dry() {
			if err := w.fill(ctx, left, w.leaving(ns)); err != nil {
				return differences, err
			}
			continue
		}
		if right.dry() {
			if err := w.fill(ctx, right, w.arriving(ns)); err != nil {
				return differences, err
			}
			continue
		}
		d, same, ok := pair(ns, left, right)
		if ok && !same {
			doubts = append(doubts, d)
		}
		if same {
			w.move.compared.Add(1)
		}
		if len(doubts) == batchKeys || !ok && len(doubts) > 0 {
			n, err := w.examine(ctx, doubts)
			differences += n
			if err != nil {
				return differences, err
			}
			doubts = nil
		}
		if !ok {
			return differences, nil
		}
	}
}

// pair takes the next key of either side or of both.
func pair(ns kv.NamespaceID, left, right *stream) (d doubt, same, ok bool) {
	l, r := left.least(), right.least()
	if l == nil && r == nil {
		return doubt{}, false, false
	}
	inOld := l != nil && (r == nil || l.keys[0].Key <= r.keys[0].Key)
	inNew := r != nil && (l == nil || r.keys[0].Key <= l.keys[0].Key)
	d.ref.Namespace = ns
	if inOld {
		k, _, _ := left.next()
		d.ref.Key, d.old = k.Key, k.Record
	}
	if inNew {
		k, _, _ := right.next()
		d.ref.Key, d.new = k.Key, k.Record
	}
	return d, inOld && inNew && d.old.Compare(d.new) == 0, true
}

// examine looks again at keys in doubt, when the writes that were under way have
// ended: the new side must have at least what the old one listed. It copies what
// it has not.
func (w *mover) examine(ctx context.Context, doubts []doubt) (differences int, err error) {
	if err := w.shards.barrier(ctx); err != nil {
		return 0, err
	}
	parts := map[place][]doubt{}
	for _, d := range doubts {
		p := w.layout.place(d.ref.Namespace, d.ref.Key)
		parts[p] = append(parts[p], d)
	}
	var missing []kv.Ref
	for p, its := range parts {
		refs, err := w.examinePlace(ctx, p, its)
		if err != nil {
			return differences, err
		}
		missing = append(missing, refs...)
	}
	return len(missing), w.copyRefs(ctx, missing)
}

func (w *mover) examinePlace(ctx context.Context, p place, doubts []doubt) (missing []kv.Ref, err error) {
	missing, err = w.examineLocked(ctx, p, doubts)
	if !errors.Is(err, kv.ErrOverloaded) || len(doubts) == 1 {
		return missing, err
	}
	half := len(doubts) / 2
	first, err := w.examinePlace(ctx, p, doubts[:half])
	if err != nil {
		return nil, err
	}
	second, err := w.examinePlace(ctx, p, doubts[half:])
	return append(first, second...), err
}

// examineLocked reads the new side before the old one: whatever the new one has,
// the old one had before.
func (w *mover) examineLocked(ctx context.Context, p place, doubts []doubt) (missing []kv.Ref, err error) {
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	unlock, err := w.move.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	refs := make([]kv.Ref, len(doubts))
	for i, d := range doubts {
		refs[i] = d.ref
	}
	ctx = within(ctx, len(refs))
	copies, err := p.mirror.getMany(ctx, refs, 0)
	if err != nil {
		return nil, err
	}
	heads(copies)
	olds, err := p.home.getMany(ctx, refs, 0)
	if err != nil {
		return nil, err
	}
	var forgotten []kv.Tomb
	for i, d := range doubts {
		now, copied := olds[i], copies[i]
		switch {
		case now.Absent() && copied.Tombstone: // the forgetting had only half succeeded
			forgotten = append(forgotten, kv.Tomb{Ref: d.ref, Version: copied.Version})
		case copied.Version.Compare(now.Version) > 0:
			return nil, fmt.Errorf("%w: %s %q", errExtra, d.ref.Namespace, d.ref.Key)
		case !now.Absent() && copied.Compare(d.old) < 0:
			missing = append(missing, d.ref)
		}
	}
	if len(forgotten) == 0 {
		return missing, nil
	}
	return missing, p.mirror.forget(ctx, forgotten)
}

// heads takes the values off: a listing has none.
func heads(recs []kv.Record) {
	for i := range recs {
		recs[i].Value = nil
	}
}

// remove removes every key of the move from clusters in which it has neither its
// home nor its mirror.
func (w *mover) remove(ctx context.Context, clusters []*cluster) error {
	w.move.removed.Store(0)
	for _, c := range clusters {
		removed := -1
		for pass := 0; removed != 0; pass++ {
			if pass == maxPasses {
				return fmt.Errorf("cluster %s still holds records of the move after %d passes: %w", c.Name, maxPasses, kv.ErrUnavailable)
			}
			var err error
			if removed, err = w.removeFrom(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *mover) removeFrom(ctx context.Context, c *cluster) (removed int, err error) {
	namespaces, err := w.namespaces(ctx, []*cluster{c})
	if err != nil {
		return 0, err
	}
	for _, ns := range namespaces {
		if w.whole(ns, c) {
			dropped, err := w.dropWhole(ctx, c, ns)
			if err != nil {
				return removed, err
			}
			if dropped {
				continue
			}
		}
		keep := func(c *cluster, key string) bool {
			p := w.layout.place(ns, key)
			return w.covers(ns, key) && p.home != c && p.mirror != c
		}
		err := w.batches(ctx, ns, []*cluster{c}, keep, func(keys []kv.Listed) error {
			removed += len(keys)
			return w.removeBatch(ctx, c, ns, keys)
		})
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// whole reports whether all that a cluster holds of a namespace is the move's to
// remove. No other move can change that: all the namespace's slots are this one's.
func (w *mover) whole(ns kv.NamespaceID, c *cluster) bool {
	_, spreading := w.layout.spreads[ns]
	alone := w.tr.Slot < 0 || w.layout.table.spread[ns] == 0 && !spreading
	return alone && !w.layout.touches(ns, c)
}

// dropWhole drops a namespace if the cluster can.
func (w *mover) dropWhole(ctx context.Context, c *cluster, ns kv.NamespaceID) (dropped bool, err error) {
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	err = c.call(ctx, func(store kv.Store) error { return kv.Drop(ctx, store, ns) })
	if errors.Is(err, kv.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}

// removeBatch removes records in two durable steps: each becomes the tombstone of
// its own version, which wins over it, and the tombstones are forgotten. A crash
// in between leaves tombstones, which are removed like all others.
func (w *mover) removeBatch(ctx context.Context, c *cluster, ns kv.NamespaceID, keys []kv.Listed) error {
	if err := w.shards.pace.pass(ctx, len(keys), w.shards.opts.CopyRate); err != nil {
		return err
	}
	ctx, cancel := w.shards.bound(ctx)
	defer cancel()
	var writes []kv.Write
	tombs := make([]kv.Tomb, len(keys))
	for i, k := range keys {
		tombs[i] = kv.Tomb{Ref: kv.Ref{Namespace: ns, Key: k.Key}, Version: k.Record.Version}
		if !k.Record.Tombstone {
			writes = append(writes, kv.Write{Ref: tombs[i].Ref, Record: kv.Tombstone(k.Record.Version)})
		}
	}
	if len(writes) > 0 {
		if err := c.putMany(ctx, writes); err != nil {
			return err
		}
	}
	if err := c.forget(ctx, tombs); err != nil {
		return err
	}
	w.move.removed.Add(int64(len(keys)))
	return nil
}
