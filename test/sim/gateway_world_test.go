package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// dice decide all that is random in a storage plane, by what they are asked about
// and how often they were asked that before: not by the order in which goroutines
// come to ask. So a seed is one story, whatever the scheduler does.
type dice struct {
	seed uint64

	mu    sync.Mutex // guards asked
	asked map[uint64]uint64
}

func hashOf(text string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, text) // it returns no error
	return h.Sum64()
}

// about is what chance says about something.
func (d *dice) about(what string) *rand.Rand {
	id := hashOf(what)
	d.mu.Lock()
	n := d.asked[id]
	d.asked[id]++
	d.mu.Unlock()
	return rand.New(rand.NewPCG(d.seed, id+n*0x9e3779b97f4a7c15))
}

// between is a time of its own: two events do not happen in the same nanosecond.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// trace is what happened, in a form in which two runs can be compared.
type trace struct {
	mu    sync.Mutex // guards the rest
	began time.Time
	keep  bool
	sum   uint64 // of the hashes of all lines: what happens at one moment has no order
	n     int
	lines []string
}

func (t *trace) add(what string) {
	line := fmt.Sprintf("%012d %s", time.Since(t.began), what)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sum += hashOf(line)
	t.n++
	if t.keep {
		t.lines = append(t.lines, line)
	}
}

// condition is how a site is.
type condition int

const (
	well     condition = iota
	slow               // answers take up to seconds
	flaky              // each call fails in its own way, or not
	refusing           // it says that it cannot, and does nothing
	erring             // it does what it is asked, and says that it may have failed
	mute               // it does what it is asked, and says nothing
	hung               // it says nothing, and does what it was asked when it wakes up
	full               // it does not take writes
	dead               // nothing reaches it
	conditions
)

// site is a provider: a store, in some condition.
type site struct {
	p    *plane
	name string

	mu        sync.Mutex // guards the rest
	store     *memory.Store
	condition condition
	outage    bool      // dead, whatever the condition
	wellSince time.Time // zero: it is not
	wakes     time.Time // if it is hung
	held      map[kv.Ref]kv.Version
	lost      map[kv.Ref]kv.Version // what it had before it went back so little that nobody can know
	copies    []copied
	back      time.Time // when it last went back
}

// copied is what a site held at some time.
type copied struct {
	at    time.Time
	store *memory.Store
}

func (s *site) now() (c condition, wakes time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outage {
		return dead, time.Time{}
	}
	return s.condition, s.wakes
}

// set changes the condition of a site, for some time.
func (s *site) set(c condition, outage bool, wakes time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condition, s.outage, s.wakes = c, outage, wakes
	switch {
	case c != well || outage:
		s.wellSince = time.Time{}
	case s.wellSince.IsZero():
		s.wellSince = time.Now()
	}
}

// fate is what becomes of a call.
type fate struct {
	out, back time.Duration
	again     time.Duration // after which a write happens once more; 0: it does not
	refused   error
	lost      bool  // it never arrives
	failed    error // the answer, though it was done
	mute      bool  // there is no answer
	cut       bool  // it does not arrive if the gateway has crashed meanwhile
}

// lateMost is how late a write may arrive, other than at a site that hangs.
const lateMost = 12 * time.Second

// fate throws the dice for a call. Calls that drop are not repeated, or late: they
// are not made to be.
func (s *site) fate(r *rand.Rand, kind callKind) fate {
	c, _ := s.now()
	f := fate{out: between(r, 100*time.Microsecond, 4*time.Millisecond), back: between(r, 100*time.Microsecond, 4*time.Millisecond), cut: r.IntN(2) == 0}
	if c == flaky {
		c = []condition{well, well, well, well, slow, refusing, erring, mute, full, dead}[r.IntN(10)]
		if kind == writing && r.IntN(4) == 0 {
			f.again = between(r, time.Millisecond, lateMost)
		}
		if kind == writing && r.IntN(20) == 0 {
			f.out = between(r, time.Second, lateMost)
		}
	}
	switch c {
	case slow:
		f.out = min(lateMost, f.out+between(r, 10*time.Millisecond, 800*time.Millisecond))
		f.back = between(r, 10*time.Millisecond, 800*time.Millisecond)
	case refusing:
		f.refused = errRefused
	case erring:
		f.failed = errFailed
		if kind != reading {
			f.failed = errUnsure
		}
	case mute:
		f.mute = kind != dropping
		if kind == dropping { // it is told: a drop has ten minutes
			f.failed = errUnsure
		}
	case full:
		if kind != reading {
			f.refused = errFull
		}
	case dead:
		f.lost = true
		if r.IntN(2) == 0 || kind == dropping {
			f.refused = errRefused
		}
	}
	return f
}

var (
	errInjected = errors.New("injected")
	errCut      = fmt.Errorf("the process has crashed: %w", errInjected)
	errRefused  = fmt.Errorf("%w: %w", kv.ErrUnavailable, errInjected)
	errFailed   = fmt.Errorf("%w: answer lost: %w", kv.ErrUnavailable, errInjected)
	errUnsure   = fmt.Errorf("%w: %w", kv.ErrUnknown, errInjected)
	errFull     = fmt.Errorf("%w: %w", kv.ErrFull, errInjected)
)

type callKind int

const (
	reading callKind = iota
	writing
	dropping
)

// wire is the way from a gateway to a site.
type wire struct {
	shift *shift
	site  *site
}

var _ kv.Store = (*wire)(nil)

// call makes a call over a wire: there, the work, and back. All of it happens at
// moments of its own.
func call[T any](ctx context.Context, l *wire, kind callKind, what string, work func(s *site) (T, error)) (T, error) {
	type answer struct {
		got T
		err error
	}
	var none T
	if l.shift.dead() { // and the dice are not thrown: whether it still tries is chance
		return none, errCut
	}
	if err := ctx.Err(); err != nil && l.shift.ctx.Err() != nil {
		return none, err
	}
	what = l.site.name + " " + what
	p, r := l.site.p, l.site.p.dice.about(what)
	p.trace.add("call " + what)
	p.lottery(l.shift, r)
	f := l.site.fate(r, kind)
	edge := between(r, 1, time.Millisecond)
	if f.refused != nil {
		return none, cmp.Or(l.pause(ctx, f.out, edge), f.refused)
	}
	answers := make(chan answer, 2) // a write may be done twice
	arrive := func(after time.Duration) {
		time.Sleep(after)
		if c, wakes := l.site.now(); c == hung && kind != dropping {
			time.Sleep(time.Until(wakes) + edge)
		} else if c == dead || c == hung {
			if kind == dropping { // it is told: a drop has ten minutes
				answers <- answer{none, errRefused}
			}
			return
		}
		if f.cut && l.shift.dead() {
			return
		}
		got, err := work(l.site)
		p.trace.add(fmt.Sprintf("done %s: %v", what, err))
		answers <- answer{got, err}
	}
	if !f.lost {
		p.flying.Go(func() { arrive(f.out) })
		if f.again > 0 {
			p.flying.Go(func() { arrive(f.out + f.again) })
		}
	}
	hear := answers
	if f.mute {
		hear = nil
	}
	select {
	case a := <-hear:
		if err := l.pause(ctx, f.back, edge); err != nil {
			return none, err
		}
		return a.got, cmp.Or(a.err, f.failed)
	case <-ctx.Done():
	case <-l.shift.over:
	}
	return none, l.pause(ctx, 0, edge)
}

// pause waits on the way, and then a moment that is nobody else's.
func (l *wire) pause(ctx context.Context, d, edge time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-l.shift.over:
	}
	if l.shift.dead() || ctx.Err() != nil {
		time.Sleep(edge)
	}
	if l.shift.dead() {
		return errCut
	}
	return ctx.Err()
}

// write names a write; pulses are told by their place alone, since a part of their
// version is random.
func writeName(w kv.Write) string {
	if w.Ref.Namespace[0] == 0xfd {
		return refName(w.Ref)
	}
	return fmt.Sprint(refName(w.Ref), " ", w.Record.Version, " ", w.Record.Tombstone)
}

func refName(ref kv.Ref) string { return fmt.Sprintf("%x/%s", ref.Namespace[:2], ref.Key) }

// names are in order: it means nothing in which a batch has them.
func names[T any](of []T, name func(T) string) string {
	all := make([]string, len(of))
	for i := range of {
		all[i] = name(of[i])
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (l *wire) Get(ctx context.Context, ref kv.Ref, _ time.Duration) (kv.Record, error) {
	return call(ctx, l, reading, "get "+refName(ref), func(s *site) (kv.Record, error) { return s.get(ref), nil })
}

func (l *wire) GetMany(ctx context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Record, error) {
	return call(ctx, l, reading, "get many "+names(refs, refName), func(s *site) ([]kv.Record, error) {
		recs := make([]kv.Record, len(refs))
		for i, ref := range refs {
			recs[i] = s.get(ref)
		}
		return recs, nil
	})
}

func (l *wire) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	w := kv.Write{Ref: ref, Record: rec}
	_, err := call(ctx, l, writing, "put "+writeName(w), func(s *site) (struct{}, error) { return struct{}{}, s.put(w) })
	return err
}

func (l *wire) PutMany(ctx context.Context, writes []kv.Write) error {
	_, err := call(ctx, l, writing, "put many "+names(writes, writeName), func(s *site) (struct{}, error) {
		return struct{}{}, s.put(writes...)
	})
	return err
}

func (l *wire) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	what := fmt.Sprintf("list %x after %x %q limit %d", ns[:2], hashOf(opts.After), opts.Prefix, opts.Limit)
	return call(ctx, l, reading, what, func(s *site) (kv.Page, error) { return s.list(ns, opts) })
}

func (l *wire) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	return call(ctx, l, reading, fmt.Sprintf("namespaces after %x", after[:2]), func(s *site) ([]kv.NamespaceID, error) {
		return s.under().Namespaces(context.Background(), after, limit)
	})
}

func (l *wire) Forget(ctx context.Context, tombs []kv.Tomb) error {
	name := func(t kv.Tomb) string { return fmt.Sprint(refName(t.Ref), " ", t.Version) }
	_, err := call(ctx, l, writing, "forget "+names(tombs, name), func(s *site) (struct{}, error) { return struct{}{}, s.forget(tombs) })
	return err
}

func (l *wire) Drop(ctx context.Context, ns kv.NamespaceID) error {
	_, err := call(ctx, l, dropping, fmt.Sprintf("drop %x", ns[:2]), func(s *site) (struct{}, error) { return struct{}{}, s.drop(ns) })
	return err
}

// ledger is the journal of a gateway. What is not durable when the gateway crashes
// is there afterwards up to some point, or not at all.
type ledger struct {
	p     *plane
	shift *shift

	mu      sync.Mutex // guards the rest
	entries map[string][]byte
	durable map[string][]byte
	later   [][]gateway.Entry // applied, and not durable yet
}

func newLedger(p *plane) *ledger {
	return &ledger{p: p, entries: map[string][]byte{}, durable: map[string][]byte{}}
}

// of is the ledger in the hands of a shift.
func (l *ledger) of(s *shift) *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledger{p: l.p, shift: s, entries: maps.Clone(l.entries), durable: maps.Clone(l.durable), later: l.later}
}

func entryName(e gateway.Entry) string {
	if strings.HasPrefix(e.Key, keyOfPulses) {
		return e.Key[:len(keyOfPulses)+1]
	}
	return fmt.Sprintf("%x=%x", hashOf(e.Key), e.Value)
}

// keyOfPulses is how the gateway's journal keeps what each provider showed last.
const keyOfPulses = "p/"

// Apply implements gateway.Journal.
func (l *ledger) Apply(ctx context.Context, entries []gateway.Entry, durable bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.shift.dead() {
		return errCut
	}
	what := fmt.Sprint("apply ", durable, " ", names(entries, entryName))
	r := l.p.dice.about(what)
	l.p.trace.add(what)
	l.p.lottery(l.shift, r)
	if durable {
		time.Sleep(between(r, 100*time.Microsecond, 3*time.Millisecond))
	} else {
		time.Sleep(between(r, time.Microsecond, 100*time.Microsecond))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shift.dead() {
		return errCut
	}
	if l.p.chaos() && r.IntN(500) == 0 {
		return errFull
	}
	change(l.entries, entries, l.p.config.Breaks == ledgerKeepsAll)
	l.later = append(l.later, entries)
	if durable {
		l.durable, l.later = maps.Clone(l.entries), nil
	}
	return nil
}

func change(kept map[string][]byte, entries []gateway.Entry, keepAll bool) {
	for _, e := range entries {
		switch {
		case e.Value != nil:
			kept[e.Key] = append([]byte{}, e.Value...)
		case !keepAll:
			delete(kept, e.Key)
		}
	}
}

// Load implements gateway.Journal.
func (l *ledger) Load(each func(gateway.Entry) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(l.entries)) {
		if err := each(gateway.Entry{Key: key, Value: l.entries[key]}); err != nil {
			return err
		}
	}
	return nil
}

// crashed is what a crash leaves of the ledger.
func (l *ledger) crashed(r *rand.Rand) *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := newLedger(l.p)
	next.durable = maps.Clone(l.durable)
	for _, entries := range l.later[:r.IntN(len(l.later)+1)] {
		change(next.durable, entries, false)
	}
	if l.p.config.Breaks == ledgerForgets {
		maps.DeleteFunc(next.durable, func(key string, _ []byte) bool { return strings.HasPrefix(key, "q/") || strings.HasPrefix(key, "w/") })
	}
	next.entries = maps.Clone(next.durable)
	return next
}

// pulse is the last pulse of a site that is certain to be remembered.
func (l *ledger) pulse(name string) (last kv.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, value := range l.durable {
		if strings.HasPrefix(key, keyOfPulses+name+"/") {
			last = kv.Version(value)
		}
	}
	return last
}
