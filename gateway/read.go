package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/stack"
	"github.com/nearkey/nearkey/kv"
)

// Get implements kv.Store.
func (g *Gateway) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := g.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

// GetAnswer implements the ability of kv.GetAnswer. An answer that is known to be
// older than what was acknowledged is kv.Stale, of the age since then; so is one that
// may be, since those who would know do not answer.
func (g *Gateway) GetAnswer(ctx context.Context, ref kv.Ref, _ time.Duration) (kv.Answer, error) {
	answers, err := g.read(ctx, "get", []kv.Ref{ref})
	if err != nil {
		return kv.Answer{}, err
	}
	return answers[0], nil
}

// GetMany implements the ability of kv.GetMany.
func (g *Gateway) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	answers, err := g.GetAnswers(ctx, refs, maxAge)
	if err != nil {
		return nil, err
	}
	recs := make([]kv.Record, len(answers))
	for i := range answers {
		recs[i] = answers[i].Record
	}
	return recs, nil
}

// GetAnswers implements the ability of kv.GetAnswers.
func (g *Gateway) GetAnswers(ctx context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Answer, error) {
	if len(refs) == 0 {
		return nil, ctx.Err()
	}
	return g.read(ctx, "get many", refs)
}

func (g *Gateway) read(ctx context.Context, doing string, refs []kv.Ref) ([]kv.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	r := g.newReading(ctx, refs)
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer g.compareRest(ctx, r, cancel)
	r.ask(own)
	var hedge, patience <-chan time.Time
	if len(r.unasked) > 0 {
		timer := time.NewTimer(g.opts.Hedge)
		defer timer.Stop()
		hedge = timer.C
	}
	for !r.conclusive() {
		if r.left == 0 && !r.askAgain(ctx, own) {
			break
		}
		select {
		case a := <-r.results:
			r.take(a)
			if patience == nil && r.refused != 0 {
				timer := time.NewTimer(claimFor)
				defer timer.Stop()
				patience = timer.C
			}
		case <-hedge:
			r.askAll(own)
		case <-patience:
			r.askAgain(ctx, own)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
		}
	}
	if r.answered == 0 {
		return nil, fmt.Errorf("%s: %w", doing, r.err())
	}
	return r.answers(), nil
}

// reading is a read under way.
type reading struct {
	g       *Gateway
	refs    []kv.Ref
	claim   *claim
	results chan result
	unasked []*member
	members []*member
	refused mask // did not read since another one had the claim

	lacking  []mask // for each ref, who is not believed alone
	doubtful []mask // and among these, about whom nothing more is known
	want     []kv.Version
	since    []time.Time
	best     []kv.Record
	settled  []bool
	open     int // refs that are not settled
	left     mask
	answered mask
	recs     map[mask][]kv.Record
	failures map[mask]error
}

// result is what one member answered.
type result struct {
	m    *member
	recs []kv.Record
	err  error
}

func (g *Gateway) newReading(ctx context.Context, refs []kv.Ref) *reading {
	n := len(refs)
	r := &reading{g: g, refs: refs, members: g.with(asked...), claim: newClaim(ctx), open: n,
		lacking: make([]mask, n), doubtful: make([]mask, n), want: make([]kv.Version, n), since: make([]time.Time, n),
		best: make([]kv.Record, n), settled: make([]bool, n),
		recs: map[mask][]kv.Record{}, failures: map[mask]error{}}
	r.results = make(chan result, 2*len(r.members))
	distrusted := maskOf(r.members) &^ g.known()
	for _, m := range r.members {
		if m.distrusted.Load() {
			distrusted |= m.bit
		}
	}
	for i, ref := range refs {
		r.lacking[i], r.want[i], r.since[i] = g.queue.lacks(ref)
		r.doubtful[i] = distrusted | g.doubt.of(ref.Namespace)
		r.lacking[i] |= r.doubtful[i]
	}
	r.unasked = r.members
	if g.opts.Hedge > 0 {
		r.unasked = slices.Clone(r.members)
		slices.SortStableFunc(r.unasked, func(a, b *member) int {
			return cmp.Or(cmp.Compare(r.lacking[0]&a.bit, r.lacking[0]&b.bit), cmp.Compare(a.store.Stats().Latency, b.store.Stats().Latency))
		})
	}
	return r
}

// ask asks the first, or all if there is no hedging.
func (r *reading) ask(ctx context.Context) {
	if r.g.opts.Hedge == 0 {
		r.askAll(ctx)
		return
	}
	r.askOne(ctx, r.unasked[0], r.refs)
	r.unasked = r.unasked[1:]
}

func (r *reading) askAll(ctx context.Context) {
	for _, m := range r.unasked {
		r.askOne(ctx, m, r.refs)
	}
	r.unasked = nil
}

func (r *reading) askOne(ctx context.Context, m *member, refs []kv.Ref) {
	if err := m.store.Refused(); err != nil { // which is known without asking
		r.failures[m.bit] = err
		return
	}
	r.left |= m.bit
	ctx = r.claim.context(ctx, m.bit)
	r.g.late.begin()
	go func() {
		defer r.g.late.end()
		stack.Grow()
		if len(refs) == 1 {
			rec, err := m.store.Get(ctx, refs[0], 0)
			r.results <- result{m, []kv.Record{rec}, err}
			return
		}
		recs, err := m.store.GetMany(ctx, refs, 0)
		r.results <- result{m, recs, err}
	}()
}

// askAgain asks who has not been asked, or was kept from reading large values
// since somebody else was reading them. It reports whether there was anybody.
func (r *reading) askAgain(caller, own context.Context) bool {
	if len(r.unasked) > 0 {
		r.askAll(own)
		return true
	}
	if r.refused == 0 {
		return false
	}
	for _, m := range r.members {
		if r.refused.has(m.bit) {
			r.refused &^= m.bit
			r.claim = newClaim(caller)
			r.askOne(own, m, r.refs)
			return true
		}
	}
	return false
}

// take notes what a member answered.
func (r *reading) take(a result) {
	r.left &^= a.m.bit
	if errors.Is(a.err, errClaimed) {
		r.refused |= a.m.bit
		return
	}
	if a.err != nil {
		r.failures[a.m.bit] = a.err
		return
	}
	r.answered |= a.m.bit
	r.recs[a.m.bit] = a.recs
	for i, rec := range a.recs {
		if r.settled[i] {
			continue
		}
		r.best[i] = kv.Merge(r.best[i], rec)
		if !rec.Absent() && !rec.Tombstone && !r.lacking[i].has(a.m.bit) {
			r.settled[i] = true
			r.open--
		}
	}
}

func (r *reading) conclusive() bool { return r.open == 0 }

// answers is what the caller gets.
func (r *reading) answers() []kv.Answer {
	all := make([]kv.Answer, len(r.refs))
	doubted := r.doubted()
	for i, rec := range r.best {
		all[i].Record = rec
		if rec.Version.Compare(r.want[i]) < 0 {
			all[i].Cache, all[i].Age = kv.Stale, max(0, time.Since(r.since[i]))
		}
		believed := r.answered &^ (r.doubtful[i] | doubted | r.g.doubt.of(r.refs[i].Namespace))
		if believed == 0 && r.g.mask(used...)&^r.answered != 0 { // if all have answered nobody knows better
			all[i].Cache, all[i].Age = kv.Stale, max(all[i].Age, ageOf(rec))
		}
	}
	return all
}

// doubted is the members that are not believed alone any more, or not yet.
func (r *reading) doubted() mask {
	doubted := maskOf(r.members) &^ r.g.known()
	for _, m := range r.members {
		if m.distrusted.Load() {
			doubted |= m.bit
		}
	}
	return doubted
}

// ageOf bounds the age of a record of which it is not known whether there are newer
// ones: those that came before it are older.
func ageOf(rec kv.Record) time.Duration {
	if rec.Absent() {
		return time.Since(time.Unix(0, 0))
	}
	return max(0, time.Since(rec.Version.Time()))
}

func isDamaged(err error) bool { return errors.Is(err, kv.ErrDamaged) }

// err is why nobody answered.
func (r *reading) err() error {
	var errs []error
	damaged := 0
	for _, err := range r.failures {
		errs = append(errs, err)
		if errors.Is(err, kv.ErrDamaged) {
			damaged++
		}
	}
	all := errors.Join(errs...)
	if errors.Is(all, kv.ErrUnavailable) || damaged == len(errs) || r.refused != 0 {
		return all
	}
	return fmt.Errorf("%w: %w", kv.ErrUnavailable, all)
}

// maxComparing bounds the reads that go on after their answer.
const maxComparing = 1024

// compareRest hears of the members that are slower than the answer, and has the
// key repaired if they differ.
func (g *Gateway) compareRest(ctx context.Context, r *reading, cancel context.CancelFunc) {
	if r.left == 0 {
		cancel()
		r.compare()
		return
	}
	if ctx.Err() != nil || g.opts.Off.ReadRepair {
		cancel()
		return
	}
	if g.comparing.Add(1) > maxComparing {
		g.comparing.Add(-1)
		cancel()
		return
	}
	g.late.begin()
	r.claim.close()
	go func() {
		defer g.late.end()
		defer g.comparing.Add(-1)
		for r.left != 0 {
			r.take(<-r.results)
		}
		cancel()
		r.compare()
	}()
}

// compare notes the keys in which the answers differ, or that somebody has lost.
func (r *reading) compare() {
	if r.g.opts.Off.ReadRepair || r.answered == 0 {
		return
	}
	var damaged mask
	for bit, err := range r.failures {
		if errors.Is(err, kv.ErrDamaged) && len(r.refs) == 1 {
			damaged |= bit
		}
	}
	if r.answered.count() < 2 && damaged == 0 {
		return
	}
	b := r.g.queue.batch()
	defer b.end()
	for i, ref := range r.refs {
		newest, lacking := kv.Record{}, damaged
		for _, recs := range r.recs {
			newest = kv.Merge(newest, recs[i])
		}
		for bit, recs := range r.recs {
			if recs[i].Compare(newest) != 0 {
				lacking |= bit
			}
		}
		if lacking != 0 && !newest.Absent() {
			r.g.differ(b, ref, newest.Version, lacking)
		}
	}
}

// settleAfter is the age of a version from which on members that differ in it are
// not just being written to.
const settleAfter = time.Second

// differ notes a key that members lack, unless they are just being written to.
func (g *Gateway) differ(b *batch, ref kv.Ref, v kv.Version, lacking mask) {
	known, want, _ := g.queue.lacks(ref)
	if known&lacking == lacking && want.Compare(v) >= 0 || time.Since(v.Time()) < settleAfter {
		return
	}
	b.differ(ref, v, lacking)
	g.changes.add([]kv.Write{{Ref: ref, Record: kv.Record{Version: v}}})
}

// claimFor is how long a member may take for large values before another one is
// asked for them as well.
const claimFor = 250 * time.Millisecond

// claim sees to it that a large value is held in memory once, whoever reads it
// first, and that the request's memory is not asked for after the request ended.
type claim struct {
	reserve func(n int64) error // of the request
	mu      sync.Mutex          // guards owner and closed
	owner   mask
	closed  bool
}

var errClaimed = errors.New("another provider is reading the large values already")

func newClaim(request context.Context) *claim {
	return &claim{reserve: func(n int64) error { return kv.Reserve(request, n) }}
}

// context is ctx, in which a member asks the claim before it takes memory.
func (c *claim) context(ctx context.Context, who mask) context.Context {
	return kv.WithReserver(ctx, func(n int64) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed || c.owner != 0 && c.owner != who {
			return errClaimed
		}
		c.owner = who
		return c.reserve(n)
	})
}

func (c *claim) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}
