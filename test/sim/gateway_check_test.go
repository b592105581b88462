package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
)

// The invariants of a storage plane.
const (
	durability    = "durability"
	convergence   = "convergence"
	invention     = "no invention"
	monotone      = "monotone storage"
	resurrection  = "no resurrection"
	removal       = "removal of tombstones"
	idempotence   = "idempotence"
	acknowledgedR = "read after acknowledged write"
	staleAge      = "age of stale answers"
	listing       = "list"
	expiry        = "expiry"
	availability  = "availability"
	honesty       = "honest errors"
	resources     = "bounded resources"
	allHave       = "acknowledged by both"
	dropped       = "drop"
)

// planeResults is what a run has shown.
type planeResults struct {
	violations []string
	broken     map[string]int // violations by invariant
	counts     map[string]int
	reads      int // answers that were checked, each key of each page and batch
	stale      int // of them, marked stale
	excused    int // of them, older than acknowledged since a provider went back unknowably
	writes     int // acknowledged
	lost       int // acknowledged writes that only a provider had that lost them
	converged  time.Duration
	trace      uint64
	events     int
	lines      []string
}

func (p *plane) violate(invariant, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.broken[invariant]++
	if len(p.seen.violations) < 10 {
		p.seen.violations = append(p.seen.violations, fmt.Sprintf("%s at %s: %s", invariant, time.Since(p.trace.began), fmt.Sprintf(format, args...)))
	}
}

// book is what is known of a key.
type book struct {
	floor kv.Version // the newest acknowledged; less if all who had it lost it
	acks  []acknowledged
	ends  []kv.Version // of deletions and of what expires
}

// sending is a write that a client made.
type sending struct {
	ref    kv.Ref
	rec    kv.Record
	stored bool // some provider was given it
	never  bool // the client was told that it is not stored
	again  bool // it was tried again
}

// recordOf is the record of a version: all of it follows from seed, key and version.
func (p *plane) recordOf(ref kv.Ref, v kv.Version, kind int) kv.Record {
	switch kind {
	case 0:
		return kv.Tombstone(v)
	case 1:
		return kv.Record{Version: v, Expiration: v.Time().Unix() + 3 + int64(v[15]%15), Value: p.valueOf(ref, v)}
	case 2:
		return kv.Record{Version: v, Metadata: fmt.Appendf(nil, "%q", v), Value: p.valueOf(ref, v)}
	}
	return kv.Record{Version: v, Value: p.valueOf(ref, v)}
}

func (p *plane) valueOf(ref kv.Ref, v kv.Version) []byte {
	return fmt.Appendf(nil, "%d %s at %s", p.config.Seed, refName(ref), v)
}

// stored is called when a provider is given a write.
func (p *plane) stored(w kv.Write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sent[w.Record.Version]; s != nil {
		s.stored = true
	}
}

// sends notes writes before they are made.
func (p *plane) sends(writes []kv.Write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range writes {
		if s := p.sent[w.Record.Version]; s != nil {
			s.again = true
		} else {
			p.sent[w.Record.Version] = &sending{ref: w.Ref, rec: w.Record}
			if w.Record.Tombstone || w.Record.Expiration != 0 {
				b := p.bookOf(w.Ref)
				b.ends = append(b.ends, w.Record.Version)
			}
		}
	}
}

// bookOf is called with mu held.
func (p *plane) bookOf(ref kv.Ref) *book {
	b := p.books[ref]
	if b == nil {
		b = &book{}
		p.books[ref] = b
	}
	return b
}

// acked notes that writes are acknowledged.
func (p *plane) acked(writes []kv.Write) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.writes += len(writes)
	for _, w := range writes {
		b := p.bookOf(w.Ref)
		if w.Record.Version.Compare(b.floor) > 0 {
			b.floor = w.Record.Version
		}
		b.acks = append(b.acks, acknowledged{at: time.Now(), version: w.Record.Version})
	}
}

func (p *plane) floor(ref kv.Ref) kv.Version {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.books[ref]; b != nil {
		return b.floor
	}
	return kv.Version{}
}

// forgive lowers what is expected of each key to what the providers still have that
// count. It is called when one of them has lost what it had: that is the one way in
// which what was acknowledged may be lost. If it was alone it has lost deletions as
// well that it had forgotten.
func (p *plane) forgive(alone bool, counts func(*site) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ref, b := range p.books {
		var newest kv.Version
		for _, s := range p.sites {
			if v := s.record(ref).Version; p.states[s.name] == gateway.Active && counts(s) && v.Compare(newest) > 0 {
				newest = v
			}
		}
		if b.floor.Compare(newest) > 0 && (alone || !p.forgettable(ref, b.floor)) {
			b.floor = newest
			p.seen.lost++
		}
	}
}

// forgettable reports whether a record may be gone for good: it is a tombstone, or
// one of a client who was not told what became of it came after it. It is called
// with mu held.
func (p *plane) forgettable(ref kv.Ref, v kv.Version) bool {
	b := p.books[ref]
	return b != nil && slices.ContainsFunc(b.ends, func(end kv.Version) bool {
		s := p.sent[end]
		return end.Compare(v) >= 0 && s.stored && (s.rec.Tombstone || s.rec.Expired(time.Now())) && time.Since(end.Time()) >= p.config.ForgetAfter
	})
}

// question is a read under way: what was acknowledged when it began.
type question struct {
	ref   kv.Ref
	floor kv.Version
}

func (p *plane) ask(refs ...kv.Ref) []question {
	all := make([]question, len(refs))
	for i, ref := range refs {
		all[i] = question{ref, p.floor(ref)}
	}
	return all
}

// checkAnswer checks one answer to a question.
func (p *plane) checkAnswer(q question, a kv.Answer, how string) {
	p.mu.Lock()
	p.seen.reads++
	if a.Cache == kv.Stale {
		p.seen.stale++
	}
	want := q.floor
	if b := p.books[q.ref]; b != nil && b.floor.Compare(want) < 0 {
		want = b.floor // it was lost meanwhile
	}
	gone, forced := p.forgettable(q.ref, want), p.forced
	p.mu.Unlock()
	p.checkRecord(q.ref, a.Record, how != listing)
	if a.Version.Compare(want) >= 0 || a.Absent() && gone {
		return
	}
	if a.Cache == kv.Stale {
		p.checkAge(q, a, want)
		return
	}
	if forced || p.excused(q.ref) {
		p.mu.Lock()
		p.seen.excused++
		p.mu.Unlock()
		return
	}
	invariant := acknowledgedR
	p.mu.Lock()
	s := p.sent[want]
	p.mu.Unlock()
	switch {
	case s != nil && s.rec.Tombstone && !a.Absent() && !a.Tombstone:
		invariant = resurrection
	case how == listing:
		invariant = listing
	}
	p.violate(invariant, "%s of %s is %s, %s was acknowledged before", how, refName(q.ref), a.Version, want)
}

// excused reports whether a provider went back so little that nobody could know.
func (p *plane) excused(ref kv.Ref) bool {
	for _, s := range p.sites {
		s.mu.Lock()
		_, lost := s.lost[ref]
		s.mu.Unlock()
		if lost {
			return true
		}
	}
	return false
}

// checkAge checks that a stale answer is as old as it says: of what it does not
// have nothing was acknowledged before.
func (p *plane) checkAge(q question, a kv.Answer, want kv.Version) {
	p.mu.Lock()
	var unseen time.Duration
	for _, k := range p.books[q.ref].acks {
		if k.version.Compare(a.Version) > 0 && k.version.Compare(want) <= 0 {
			unseen = max(unseen, time.Since(k.at))
		}
	}
	p.mu.Unlock()
	if unseen > a.Age {
		p.count("stale answers that say too little of their age")
	}
}

// checkRecord checks what holds of a record by itself.
func (p *plane) checkRecord(ref kv.Ref, rec kv.Record, values bool) {
	if rec.Absent() {
		return
	}
	p.mu.Lock()
	s := p.sent[rec.Version]
	p.mu.Unlock()
	if s == nil || s.ref != ref {
		p.violate(invention, "%s has a version that was never written: %s", refName(ref), rec.Version)
		return
	}
	want := s.rec
	if rec.Tombstone && want.Expired(time.Now()) {
		want = kv.Tombstone(rec.Version) // swept
	}
	if rec.Tombstone && !want.Tombstone && want.Expiration != 0 {
		p.violate(expiry, "%s is gone at %d, it expires at %d", refName(ref), time.Now().Unix(), want.Expiration)
		return
	}
	if !values {
		want.Value = nil
	}
	if rec.Compare(want) != 0 {
		p.violate(invention, "%s is %+v, %+v was written", refName(ref), rec, want)
	}
}

// unlike says in what two sites differ; empty: in nothing.
func (p *plane) unlike() string {
	first := p.sites[0].all()
	for _, s := range p.sites[1:] {
		all := s.all()
		for ref, rec := range all {
			if !own(ref.Namespace) && rec.Compare(first[ref]) != 0 {
				return fmt.Sprintf("%s: %s has %s %v, %s has %s %v", refName(ref), s.name, rec.Version, rec.Tombstone, p.sites[0].name, first[ref].Version, first[ref].Tombstone)
			}
		}
		for ref, rec := range first {
			if !own(ref.Namespace) && all[ref].Absent() {
				return fmt.Sprintf("%s: %s has nothing, %s has %s", refName(ref), s.name, p.sites[0].name, rec.Version)
			}
		}
	}
	return ""
}

// unsettled says what is not as it should be when all is well; empty: nothing.
func (p *plane) unsettled(g *shift) string {
	st := g.Status()
	for _, pr := range st.Providers {
		if pr.State != gateway.Active || !pr.Up || !pr.Trusted || pr.Queued > 0 {
			return fmt.Sprintf("%+v", pr)
		}
	}
	if st.Queue.Depth != 0 || st.Queue.Dirty != 0 || st.Queue.Oldest != 0 {
		return fmt.Sprintf("%+v", st.Queue)
	}
	return p.unlike()
}

// converge waits until the providers are equal and nothing is left to be done.
func (p *plane) converge() *shift {
	began, why := time.Now(), "no gateway runs"
	for time.Since(began) < convergeWithin {
		time.Sleep(time.Second + 7)
		p.mu.Lock()
		g := p.shift
		p.mu.Unlock()
		if g == nil {
			continue
		}
		if why = p.unsettled(g); why == "" {
			p.seen.converged = time.Since(began)
			return g
		}
	}
	p.violate(convergence, "after %s: %s", convergeWithin, why)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shift
}

// final checks what must hold when all is healed.
func (p *plane) final(ctx context.Context) {
	g := p.converge()
	if g == nil {
		return
	}
	p.checkAll(ctx, g)
	p.checkReplay(ctx, g)
	p.checkDrops(ctx, g)
	// And when no tombstone needs to be kept any more.
	time.Sleep(p.config.ForgetAfter + 2*p.config.CrawlEvery + 20*time.Second)
	for _, s := range p.sites {
		for ref, rec := range s.all() {
			if rec.Tombstone {
				p.violate(resources, "%s still has the tombstone %s of %s", s.name, rec.Version, refName(ref))
			}
		}
	}
	p.checkAll(ctx, g)
	busy := func() bool {
		return slices.ContainsFunc(g.Status().Providers, func(s gateway.ProviderStatus) bool { return s.Late > 0 })
	}
	for range 10 { // but for a crawl
		if !busy() {
			return
		}
		time.Sleep(101 * time.Millisecond)
	}
	p.violate(resources, "calls are under way when nothing is to be done: %+v", g.Status().Providers)
}

// checkAll reads every key, and checks what the providers have of it.
func (p *plane) checkAll(ctx context.Context, g *shift) {
	p.mu.Lock()
	var refs []kv.Ref
	for ref := range p.books {
		refs = append(refs, ref)
	}
	p.mu.Unlock()
	slices.SortFunc(refs, func(a, b kv.Ref) int { return strings.Compare(refName(a), refName(b)) })
	for _, ref := range refs {
		var newest kv.Record
		for _, s := range p.sites {
			newest = kv.Merge(newest, s.record(ref))
			p.checkRecord(ref, s.record(ref), true)
		}
		p.mu.Lock()
		floor := p.bookOf(ref).floor
		gone := p.forgettable(ref, floor)
		p.mu.Unlock()
		if newest.Version.Compare(floor) < 0 && !(newest.Absent() && gone) {
			p.violate(durability, "%s is %s at all providers, %s was acknowledged", refName(ref), newest.Version, floor)
		}
		p.get(ctx, g, ref)
	}
	p.list(ctx, g, either, "", 3)
	p.list(ctx, g, both, "", 1000)
	p.mu.Lock()
	defer p.mu.Unlock()
	for v, s := range p.sent {
		if s.never && s.stored && !s.again {
			p.seen.broken[honesty]++
			p.seen.violations = append(p.seen.violations, fmt.Sprintf("%s: %s of %s was said not to be stored", honesty, v, refName(s.ref)))
		}
	}
}

// checkReplay has every write arrive once more that was not lost, and
// everything repaired and compared again: nothing may change.
func (p *plane) checkReplay(ctx context.Context, g *shift) {
	before := p.sites[0].all()
	p.mu.Lock()
	var writes []kv.Write
	for _, s := range p.sent {
		is := before[s.ref]
		forgotten := is.Tombstone && time.Since(is.Version.Time()) > p.config.ForgetAfter/2 // or may be, before this arrives
		if s.stored && s.rec.Version.Compare(is.Version) <= 0 && !forgotten {
			writes = append(writes, kv.Write{Ref: s.ref, Record: s.rec})
		}
	}
	p.mu.Unlock()
	slices.SortFunc(writes, func(a, b kv.Write) int { return b.Record.Version.Compare(a.Record.Version) }) // the newest first
	for _, s := range p.sites {
		if err := s.put(writes...); err != nil {
			p.violate(idempotence, "%v", err)
		}
	}
	refs := slices.SortedFunc(maps.Keys(before), func(a, b kv.Ref) int { return strings.Compare(refName(a), refName(b)) })
	for _, ref := range refs {
		if !own(ref.Namespace) {
			g.Repair(ref)
			time.Sleep(time.Millisecond + 1)
		}
	}
	if err := g.Crawl(ctx); err != nil {
		p.violate(availability, "crawl when all is well: %v", err)
	}
	for range 2 { // a queue of long ago, as a crash may leave it, is repaired
		time.Sleep(10*time.Second + 11)
		if drift, err := g.Verify(ctx, gateway.VerifyOptions{Values: true, Repair: true}, nil); err != nil || drift.Total() > 0 {
			p.violate(idempotence, "verify: %+v, %v", drift, err)
		}
	}
	after := p.sites[0].all()
	for ref, rec := range before {
		p.mu.Lock()
		gone := p.forgettable(ref, rec.Version)
		p.mu.Unlock()
		if is := after[ref]; !own(ref.Namespace) && is.Compare(rec) != 0 && !(is.Absent() && (gone || rec.Tombstone)) {
			p.violate(idempotence, "%s was %+v and is %+v, though nothing was written", refName(ref), rec, is)
		}
	}
	if why := p.unsettled(g); why != "" {
		p.violate(idempotence, "%s", why)
	}
}

// checkDrops drops once more what was dropped, when no write can be under way.
func (p *plane) checkDrops(ctx context.Context, g *shift) {
	for i := range p.seen.counts["drops"] {
		ns := droppedNamespace(i)
		if err := g.Drop(ctx, ns); err != nil {
			p.violate(availability, "drop when all is well: %v", err)
		}
		for _, s := range p.sites {
			for ref := range s.all() {
				if ref.Namespace == ns {
					p.violate(dropped, "%s still has %s", s.name, refName(ref))
				}
			}
		}
	}
}

// unknown reports whether an error leaves open what became of a write.
func unknown(err error) bool {
	return errors.Is(err, kv.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
