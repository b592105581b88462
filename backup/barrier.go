package backup

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// MaxNoted is the greatest number of keys that are noted at once while a
	// namespace is read. More keys are read again before that many have gathered.
	MaxNoted = 200_000
	// maxSuspects is how many keys are remembered of writes that ended in an error,
	// and so may be done later.
	maxSuspects = 1024
)

// Barrier is a store before the one that holds the records: all writes pass it, so
// that a snapshot learns what is written while it reads, and can hold the writes
// of one namespace back for a moment. Without a snapshot it only counts the writes
// under way.
type Barrier struct {
	far kv.Store

	mu     sync.Mutex // guards the rest and all that hangs on it
	spaces map[kv.NamespaceID]*space
	failed []kv.Ref // of the latest writes that ended in an error, a ring
	at     int      // where the next one goes
}

// space is a namespace with writes under way or a watch.
type space struct {
	writes int           // under way
	cohort *cohort       // of the writes that begin now
	watch  *watch        // nil: nobody reads the namespace
	hold   chan struct{} // closed when writes may go on; nil: they may
}

// cohort is the writes that began between two moments.
type cohort struct {
	before *cohort // nil: those that began earlier have ended
	writes int
	ended  chan struct{} // closed when no more can come and none is under way
	closed bool          // no more can come
}

func newCohort() *cohort { return &cohort{ended: make(chan struct{})} }

// close ends a cohort; the barrier is locked.
func (c *cohort) close() {
	c.closed = true
	if c.writes == 0 {
		close(c.ended)
	}
}

func (c *cohort) leave() {
	c.writes--
	if c.closed && c.writes == 0 {
		close(c.ended)
	}
}

// watch is the interest of a snapshot in the writes of a namespace.
type watch struct {
	barrier  *Barrier
	ns       kv.NamespaceID
	space    *space
	written  map[string]struct{} // keys to be read again
	suspects map[string]struct{} // keys whose write may be done later: read again in every round
	full     bool                // more keys were written than can be noted
	gone     bool                // the namespace was dropped
}

var _ kv.Store = (*Barrier)(nil)

// NewBarrier returns a barrier before far.
func NewBarrier(far kv.Store) *Barrier {
	return &Barrier{far: far, spaces: map[kv.NamespaceID]*space{}}
}

// Get implements kv.Store.
func (b *Barrier) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	return b.far.Get(ctx, ref, maxAge)
}

// GetAnswer implements the ability of kv.GetAnswer.
func (b *Barrier) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
	return kv.GetAnswer(ctx, b.far, ref, maxAge)
}

// GetMany implements the ability of kv.GetMany.
func (b *Barrier) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	return kv.GetMany(ctx, b.far, refs, maxAge)
}

// GetAnswers implements the ability of kv.GetAnswers.
func (b *Barrier) GetAnswers(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Answer, error) {
	return kv.GetAnswers(ctx, b.far, refs, maxAge)
}

// List implements kv.Store.
func (b *Barrier) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	return b.far.List(ctx, ns, opts)
}

// Namespaces implements the ability of kv.Namespaces.
func (b *Barrier) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	return kv.Namespaces(ctx, b.far, after, limit)
}

// Changes implements the ability of kv.Changes.
func (b *Barrier) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	return kv.Changes(ctx, b.far, after, limit)
}

// AwaitChange implements the ability of kv.AwaitChange.
func (b *Barrier) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, b.far, after)
}

// Forget implements the ability of kv.Forget. What a snapshot has read of a
// deletion stays in it.
func (b *Barrier) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return kv.Forget(ctx, b.far, tombs)
}

// Put implements kv.Store.
func (b *Barrier) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	writes := [1]kv.Write{{Ref: ref, Record: rec}}
	p, err := b.enter(ctx, writes[:])
	if err != nil {
		return err
	}
	err = b.far.Put(ctx, ref, rec)
	b.leave(p, writes[:], err)
	return err
}

// PutMany implements the ability of kv.PutMany.
func (b *Barrier) PutMany(ctx context.Context, writes []kv.Write) error {
	p, err := b.enter(ctx, writes)
	if err != nil {
		return err
	}
	err = kv.PutMany(ctx, b.far, writes)
	b.leave(p, writes, err)
	return err
}

// Drop implements the ability of kv.Drop. A snapshot of the namespace ends without
// one.
func (b *Barrier) Drop(ctx context.Context, ns kv.NamespaceID) error {
	b.mu.Lock()
	if s := b.spaces[ns]; s != nil && s.watch != nil {
		s.watch.gone = true
	}
	b.mu.Unlock()
	return kv.Drop(ctx, b.far, ns)
}

// passage is what a call has entered.
type passage struct {
	ids     []kv.NamespaceID
	cohorts []*cohort // by ids
	// They back ids and cohorts of most calls.
	oneID     [1]kv.NamespaceID
	oneCohort [1]*cohort
}

// enter waits until no namespace of the writes is held back, and counts them.
func (b *Barrier) enter(ctx context.Context, writes []kv.Write) (*passage, error) {
	p := &passage{}
	p.ids, p.cohorts = p.oneID[:0], p.oneCohort[:0]
	var seen map[kv.NamespaceID]bool // if there are several
	for i := range writes {
		ns := writes[i].Ref.Namespace
		switch {
		case len(p.ids) > 0 && p.ids[len(p.ids)-1] == ns || seen[ns]:
			continue
		case len(p.ids) == 1:
			seen = map[kv.NamespaceID]bool{p.ids[0]: true}
		}
		if seen != nil {
			seen[ns] = true
		}
		p.ids = append(p.ids, ns)
	}
	for {
		hold := b.tryEnter(p, writes)
		if hold == nil {
			return p, nil
		}
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, fmt.Errorf("put: wait for the end of a snapshot: %w", ctx.Err())
		}
	}
}

// tryEnter enters unless a namespace is held back: then it returns what to wait for.
func (b *Barrier) tryEnter(p *passage, writes []kv.Write) (hold chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	watched := false
	for _, ns := range p.ids {
		if s := b.spaces[ns]; s != nil {
			if s.hold != nil {
				return s.hold
			}
			watched = watched || s.watch != nil
		}
	}
	for _, ns := range p.ids {
		s := b.space(ns)
		s.writes++
		s.cohort.writes++
		p.cohorts = append(p.cohorts, s.cohort)
	}
	if watched {
		for i := range writes {
			if w := b.spaces[writes[i].Ref.Namespace].watch; w != nil {
				w.note(writes[i].Ref.Key)
			}
		}
	}
	return nil
}

// space returns the space of a namespace; the barrier is locked.
func (b *Barrier) space(ns kv.NamespaceID) *space {
	s := b.spaces[ns]
	if s == nil {
		s = &space{cohort: newCohort()}
		b.spaces[ns] = s
	}
	return s
}

// leave counts writes that have ended. One that ended in an error may be done
// later all the same.
func (b *Barrier) leave(p *passage, writes []kv.Write, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, ns := range p.ids {
		p.cohorts[i].leave()
		b.spaces[ns].writes--
		b.tidy(ns)
	}
	if err == nil {
		return
	}
	for i := range writes {
		ref := writes[i].Ref
		b.suspect(ref)
		if s := b.spaces[ref.Namespace]; s != nil && s.watch != nil {
			s.watch.suspect(ref.Key)
		}
	}
}

func (b *Barrier) suspect(ref kv.Ref) {
	if len(b.failed) < maxSuspects {
		b.failed = append(b.failed, ref)
		return
	}
	b.failed[b.at] = ref
	b.at = (b.at + 1) % maxSuspects
}

// tidy forgets a namespace that nothing is known of; the barrier is locked.
func (b *Barrier) tidy(ns kv.NamespaceID) {
	if s := b.spaces[ns]; s != nil && s.watch == nil && s.hold == nil && s.writes == 0 {
		delete(b.spaces, ns)
	}
}

// watch begins to note the keys of ns that are written. What was under way before
// has ended when it returns.
func (b *Barrier) watch(ctx context.Context, ns kv.NamespaceID) (*watch, error) {
	b.mu.Lock()
	s := b.space(ns)
	if s.watch != nil {
		b.mu.Unlock()
		return nil, fmt.Errorf("namespace %s: %w: it is being backed up already", ns, ErrRefused)
	}
	w := &watch{barrier: b, ns: ns, space: s, written: map[string]struct{}{}, suspects: map[string]struct{}{}}
	s.watch = w
	for _, ref := range b.failed {
		if ref.Namespace == ns {
			w.suspects[ref.Key] = struct{}{}
		}
	}
	before := w.turn()
	b.mu.Unlock()
	if err := w.settled(ctx, before); err != nil {
		w.close()
		return nil, fmt.Errorf("namespace %s: %w", ns, err)
	}
	return w, nil
}

// turn begins a new cohort and returns the one before; the barrier is locked.
func (w *watch) turn() *cohort {
	before := w.space.cohort
	w.space.cohort = newCohort()
	w.space.cohort.before = before
	before.close()
	return before
}

// wait returns when the writes of the cohort and of all before it have ended.
func (c *cohort) wait(ctx context.Context) error {
	for ; c != nil; c = c.before {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return fmt.Errorf("wait for the writes that are under way: %w", ctx.Err())
		}
	}
	return nil
}

// note has a key read again; the barrier is locked.
func (w *watch) note(key string) {
	if _, ok := w.written[key]; !ok && len(w.written) >= MaxNoted {
		w.full = true
		return
	}
	w.written[key] = struct{}{}
}

func (w *watch) suspect(key string) {
	if len(w.suspects) < maxSuspects {
		w.suspects[key] = struct{}{}
		return
	}
	w.note(key)
}

// noted is how many keys are to be read again, beside the suspects.
func (w *watch) noted() int {
	w.barrier.mu.Lock()
	defer w.barrier.mu.Unlock()
	return len(w.written)
}

// check returns why the snapshot cannot be had.
func (w *watch) check() error {
	w.barrier.mu.Lock()
	defer w.barrier.mu.Unlock()
	switch {
	case w.gone:
		return errGone
	case w.full:
		return fmt.Errorf("%w: more than %d keys were written while they were read", ErrBusy, MaxNoted)
	}
	return nil
}

// take returns the keys that are to be read again once the writes that noted them
// have ended, and starts anew.
func (w *watch) take(ctx context.Context) ([]string, error) {
	w.barrier.mu.Lock()
	keys := w.drain()
	before := w.turn()
	w.barrier.mu.Unlock()
	return keys, w.settled(ctx, before)
}

// settled waits for a cohort and all before it, which then need not be known any
// more.
func (w *watch) settled(ctx context.Context, c *cohort) error {
	if err := c.wait(ctx); err != nil {
		return err
	}
	w.barrier.mu.Lock()
	defer w.barrier.mu.Unlock()
	c.before = nil
	return nil
}

// drain empties what was noted; the barrier is locked.
func (w *watch) drain() []string {
	keys := make([]string, 0, len(w.written)+len(w.suspects))
	for key := range w.written {
		keys = append(keys, key)
	}
	for key := range w.suspects {
		if _, ok := w.written[key]; !ok {
			keys = append(keys, key)
		}
	}
	w.written = map[string]struct{}{}
	return keys
}

// finish holds the writes of the namespace back, calls read with the keys that
// were noted, and ends the watch. If that takes longer than most, the writes go on
// and finish reports false: the keys are still noted. The cut is a moment at which
// the writes were held back.
func (w *watch) finish(ctx context.Context, most time.Duration, now func() time.Time, read func(context.Context, []string) error) (cut time.Time, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	b, held := w.barrier, make(chan struct{})
	b.mu.Lock()
	keys := w.drain()
	before := w.turn()
	w.space.hold = held
	b.mu.Unlock()
	// Whatever becomes of this goroutine, the writes go on in time.
	stop := time.AfterFunc(most, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		w.release(held)
	})
	defer stop.Stop()
	if err = w.settled(ctx, before); err == nil {
		err = read(ctx, keys)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && w.space.hold == held {
		cut = now()
		w.release(held)
		w.end()
		return cut, true, nil
	}
	late := ctx.Err() != nil || w.space.hold != held
	w.release(held)
	for _, key := range keys {
		w.note(key)
	}
	if late {
		err = nil
	}
	return time.Time{}, false, err
}

// release lets the writes go on, once; the barrier is locked.
func (w *watch) release(held chan struct{}) {
	if w.space.hold == held {
		w.space.hold = nil
		close(held)
		w.barrier.tidy(w.ns)
	}
}

// end ends the watch; the barrier is locked.
func (w *watch) end() {
	if w.space.watch == w {
		w.space.watch = nil
		w.barrier.tidy(w.ns)
	}
}

func (w *watch) close() {
	w.barrier.mu.Lock()
	defer w.barrier.mu.Unlock()
	w.end()
}
