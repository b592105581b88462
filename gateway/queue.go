package gateway

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// entry is what the queue knows of a key in which providers differ, or may.
type entry struct {
	want    kv.Version          // the newest version that is known to be somewhere; zero: none is
	unsure  kv.Version          // the newest version of which it is not known whether it is anywhere
	lacking mask                // who may not have want
	late    [MaxProviders]uint8 // for each of them, writes of want under way: several, of equal version, if it was repeated
	failed  mask                // at whom one of these failed
	since   time.Time           // when the oldest of what is lacking was acknowledged

	parked bool      // for the repairers; otherwise its writes are still under way
	busy   bool      // a repairer has it
	told   uint64    // when something was learnt of the key last, in the queue's own count
	tries  int       // of the repairers, in vain
	due    time.Time // not before this
}

// queueParts is the number of parts of the queue, each with its lock.
const queueParts = 64

// queue is the keys in which providers differ, each once. Entries come with every
// write and go when the slower provider has it too; those that are parked are
// repaired, and kept by the journal.
type queue struct {
	opts  Options
	doubt *doubt
	wake  func()
	parts [queueParts]queuePart

	told   atomic.Uint64
	depth  atomic.Int64 // parked
	counts [MaxProviders]atomic.Int64

	enqueued, repaired, dropped atomic.Uint64

	journal lock       // guards the order of what is written to the journal
	taking  sync.Mutex // guards next, and that there is one take at a time
	next    int        // the part that is looked into first
	mu      sync.Mutex // guards unkept
	unkept  map[kv.Ref]struct{}
	unkeptC chan struct{} // there is something in unkept
}

type queuePart struct {
	mu      sync.Mutex // guards entries
	entries map[kv.Ref]*entry
}

func newQueue(opts Options, doubt *doubt, wake func()) *queue {
	q := &queue{opts: opts, doubt: doubt, wake: wake, journal: newLock(),
		unkept: map[kv.Ref]struct{}{}, unkeptC: make(chan struct{}, 1)}
	for i := range q.parts {
		q.parts[i].entries = map[kv.Ref]*entry{}
	}
	return q
}

func (q *queue) part(ref kv.Ref) *queuePart {
	return &q.parts[hash(ref)%queueParts]
}

// hash is FNV-1a: the same in every process, so that what happened can be made to
// happen again.
func hash(ref kv.Ref) uint64 {
	const start, prime = 14695981039346656037, 1099511628211
	h := uint64(start)
	for _, b := range ref.Namespace {
		h = (h ^ uint64(b)) * prime
	}
	for i := range len(ref.Key) {
		h = (h ^ uint64(ref.Key[i])) * prime
	}
	return h ^ h>>32
}

// lacks tells who may lack a key's newest version, which that is, and since when.
func (q *queue) lacks(ref kv.Ref) (lacking mask, want kv.Version, since time.Time) {
	p := q.part(ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[ref]; e != nil {
		return e.lacking, e.want, e.since
	}
	return 0, kv.Version{}, time.Time{}
}

// acked notes that members have a version and others lack it: late ones are still
// being written to, failed ones are not.
func (b *batch) acked(ref kv.Ref, v kv.Version, have, late, failed mask) {
	if b.q.opts.Off.WriteRepair {
		failed = 0
	}
	b.change(ref, func(e *entry) {
		switch c := v.Compare(e.want); {
		case c < 0:
			return
		case c > 0:
			e.want, e.late, e.failed = v, [MaxProviders]uint8{}, 0
			e.lacking &^= have
		}
		for i := range e.late {
			if late.has(1<<i) && e.late[i] < math.MaxUint8 {
				e.late[i]++
			}
		}
		e.lacking |= late | failed
		e.failed |= failed
		e.parked = e.parked || failed != 0
	})
}

// has notes that a member has a version that was late.
func (b *batch) has(ref kv.Ref, v kv.Version, who mask) {
	b.change(ref, func(e *entry) {
		if v != e.want || v.Compare(e.unsure) < 0 {
			return
		}
		if late := &e.late[bitIndex(who)]; *late > 0 {
			*late--
		}
		if e.late[bitIndex(who)] == 0 && !e.failed.has(who) {
			e.lacking &^= who
		}
	})
}

// brought notes that a member was brought a version, the newest that was found.
func (b *batch) brought(ref kv.Ref, v kv.Version, who mask) {
	b.change(ref, func(e *entry) {
		if v.Compare(e.want) < 0 || v.Compare(e.unsure) < 0 {
			return
		}
		e.failed &^= who
		if e.late[bitIndex(who)] == 0 || v != e.want {
			e.lacking &^= who
		}
	})
}

// fails notes that a late write did not reach a member.
func (b *batch) fails(ref kv.Ref, v kv.Version, who mask) {
	b.change(ref, func(e *entry) {
		if v != e.want {
			return
		}
		if late := &e.late[bitIndex(who)]; *late > 0 {
			*late--
		}
		if b.q.opts.Off.WriteRepair {
			e.lacking &^= who
			return
		}
		e.failed |= who
		e.parked = e.parked || e.lacking.has(who)
	})
}

// missing notes that members do not have what they were thought to have.
func (b *batch) missing(t task, who mask) {
	b.change(t.ref, func(e *entry) {
		if t.want == e.want && t.unsure == e.unsure {
			e.lacking |= who
			e.failed |= who
			e.parked = true
		}
	})
}

// unsure notes a version of which it is not known who has it, if anybody.
func (b *batch) unsure(ref kv.Ref, v kv.Version, all mask) {
	b.change(ref, func(e *entry) {
		if v.Compare(e.unsure) > 0 {
			e.unsure = v
		}
		e.lacking |= all
		e.failed |= all
		e.parked = true
	})
}

// differ notes that members lack a version that others have.
func (b *batch) differ(ref kv.Ref, v kv.Version, lacking mask) {
	b.change(ref, func(e *entry) {
		switch c := v.Compare(e.want); {
		case c < 0:
			return
		case c > 0:
			e.want, e.late, e.failed = v, [MaxProviders]uint8{}, 0
		}
		e.lacking |= lacking
		e.failed |= lacking
		e.parked = true
	})
}

// change changes the entry of a key, which is made if there is none and removed
// if nothing is lacking any more.
func (b *batch) change(ref kv.Ref, f func(e *entry)) {
	q := b.q
	p := q.part(ref)
	p.mu.Lock()
	e, was := p.entries[ref], entry{}
	if e == nil {
		e = &entry{since: time.Now()}
	} else {
		was = *e
	}
	f(e)
	e.told = q.told.Add(1)
	wake := e.parked && e.lacking != 0 && !was.parked
	if wake && q.depth.Load() >= int64(q.opts.MaxQueued) {
		q.dropped.Add(1)
		q.doubt.overflow(ref.Namespace, e.lacking)
		e.lacking = 0
	}
	if e.lacking == 0 {
		delete(p.entries, ref)
		e.parked = false
	} else {
		p.entries[ref] = e
	}
	q.count(was, *e)
	kept := was.parked || e.parked
	p.mu.Unlock()
	if kept {
		b.unkept = append(b.unkept, ref)
	}
	if wake {
		b.parked++
	}
}

// batch is what changes together: the journal and the repairers see all of it or
// nothing.
type batch struct {
	q      *queue
	unkept []kv.Ref
	parked uint64 // entries that were not
}

func (q *queue) batch() *batch { return &batch{q: q} }

func (b *batch) end() {
	b.q.unkeep(b.unkept...)
	if b.parked > 0 {
		b.q.enqueued.Add(b.parked)
		b.q.wake()
	}
}

// count keeps the numbers of parked entries.
func (q *queue) count(was, is entry) {
	before, after := mask(0), mask(0)
	if was.parked {
		before = was.lacking
	}
	if is.parked {
		after = is.lacking
	}
	if before == after {
		return
	}
	for i := range q.counts {
		bit := mask(1) << i
		switch {
		case before.has(bit) && !after.has(bit):
			q.counts[i].Add(-1)
		case !before.has(bit) && after.has(bit):
			q.counts[i].Add(1)
		}
	}
	switch {
	case before == 0:
		q.depth.Add(1)
	case after == 0:
		q.depth.Add(-1)
	}
}

// task is an entry in the hands of a repairer.
type task struct {
	ref          kv.Ref
	want, unsure kv.Version
	lacking      mask
	told         uint64
	since        time.Time
}

// take returns at most n entries of one kind that a repairer can do something
// about: somebody who lacks the key is up, and somebody to read it from. They are
// the oldest ones of as many parts of the queue as it takes.
func (q *queue) take(now time.Time, up, used mask, n int) (tasks []task) {
	if !q.promising(up, used) {
		return nil
	}
	q.taking.Lock()
	defer q.taking.Unlock()
	for range queueParts {
		tasks = q.parts[q.next].take(tasks, now, up, used, n)
		q.next = (q.next + 1) % queueParts
		if len(tasks) == n {
			break
		}
	}
	return tasks
}

// promising reports whether something could be done about any key. While a
// provider is down the queue may be long, and looking through it for nothing costs.
func (q *queue) promising(up, used mask) bool {
	for i := range q.counts {
		if bit := mask(1) << i; q.counts[i].Load() > 0 && (up.has(bit) || !used.has(bit)) {
			return true
		}
	}
	return false
}

// take adds entries of the part to tasks, which are of one kind, until there are n.
func (p *queuePart) take(tasks []task, now time.Time, up, used mask, n int) []task {
	p.mu.Lock()
	defer p.mu.Unlock()
	var due []task
	for ref, e := range p.entries {
		if e.parked && !e.busy && !now.Before(e.due) && repairable(e.lacking&used, up, used) {
			due = append(due, task{ref: ref, want: e.want, unsure: e.unsure, lacking: e.lacking, told: e.told, since: e.since})
		}
	}
	slices.SortFunc(due, func(a, b task) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.ref.Key, b.ref.Key), bytes.Compare(a.ref.Namespace[:], b.ref.Namespace[:]))
	})
	for _, t := range due {
		if len(tasks) == n {
			break
		}
		if len(tasks) == 0 || t.lacking == tasks[0].lacking {
			p.entries[t.ref].busy = true
			tasks = append(tasks, t)
		}
	}
	return tasks
}

// repairable reports whether something can be done about a key: some who lack it
// are up and somebody who has it is, or all are up.
func repairable(lacking, up, used mask) bool {
	return lacking == 0 || lacking.has(up) && (used&^lacking).has(up) || up == used
}

// gone takes back what a repairer had, together: done says that all who are in use
// have the same; nil: nothing is done.
func (q *queue) gone(tasks []task, done []bool) {
	q.taking.Lock()
	defer q.taking.Unlock()
	var removed []kv.Ref
	for i, t := range tasks {
		if q.goneOne(t, done != nil && done[i]) {
			removed = append(removed, t.ref)
		}
	}
	q.unkeep(removed...)
}

// goneOne reports whether there is no entry of the key any more.
func (q *queue) goneOne(t task, done bool) (removed bool) {
	p := q.part(t.ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[t.ref]
	if e == nil {
		return false
	}
	was := *e
	e.busy = false
	if done && e.told == t.told {
		e.lacking = 0
	}
	if e.lacking == 0 {
		delete(p.entries, t.ref)
		e.parked = false
	} else if !done {
		e.tries++
		e.due = time.Now().Add(backOff(t.ref, e.tries))
	}
	q.count(was, *e)
	return e.lacking == 0
}

// The times between attempts to repair a key.
const (
	backOffLeast = 100 * time.Millisecond
	backOffMost  = 30 * time.Second
)

// backOff spreads the attempts at many keys over time.
func backOff(ref kv.Ref, tries int) time.Duration {
	d := min(backOffMost, backOffLeast<<min(tries, 10))
	return d/2 + time.Duration((hash(ref)+uint64(tries)*0x9e3779b97f4a7c15)%uint64(d))
}

// hasten makes all entries due: something has changed.
func (q *queue) hasten() {
	q.taking.Lock() // all of them together
	defer q.taking.Unlock()
	for i := range q.parts {
		p := &q.parts[i]
		p.mu.Lock()
		for _, e := range p.entries {
			e.due, e.tries = time.Time{}, 0
		}
		p.mu.Unlock()
	}
}

// without takes members out of all entries: they are not used any more.
func (q *queue) without(gone mask) {
	b := q.batch()
	defer b.end()
	for i := range q.parts {
		p := &q.parts[i]
		var refs []kv.Ref
		p.mu.Lock()
		for ref, e := range p.entries {
			if e.lacking.has(gone) {
				refs = append(refs, ref)
			}
		}
		p.mu.Unlock()
		for _, ref := range refs {
			b.change(ref, func(e *entry) { e.lacking &^= gone })
		}
	}
}

// forgetAll forgets the keys of a namespace that was dropped.
func (q *queue) forgetAll(ns kv.NamespaceID) {
	b := q.batch()
	defer b.end()
	for i := range q.parts {
		p := &q.parts[i]
		var refs []kv.Ref
		p.mu.Lock()
		for ref, e := range p.entries {
			if ref.Namespace == ns && e.parked {
				refs = append(refs, ref)
			}
		}
		p.mu.Unlock()
		for _, ref := range refs {
			b.change(ref, func(e *entry) { e.lacking = 0 })
		}
	}
}

// only reports the parked keys that some lack and that only who is in have can give.
func (q *queue) only(have, used mask) (keys int) {
	q.each(func(_ kv.Ref, e *entry) {
		if (used&^e.lacking)&^have == 0 {
			keys++
		}
	})
	return keys
}

// oldest is since when the oldest parked entry waits; zero: there is none.
func (q *queue) oldest() (since time.Time) {
	q.each(func(_ kv.Ref, e *entry) {
		if since.IsZero() || e.since.Before(since) {
			since = e.since
		}
	})
	return since
}

// each calls f for every parked entry, with its part locked.
func (q *queue) each(f func(ref kv.Ref, e *entry)) {
	for i := range q.parts {
		p := &q.parts[i]
		p.mu.Lock()
		for ref, e := range p.entries {
			if e.parked {
				f(ref, e)
			}
		}
		p.mu.Unlock()
	}
}
