package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// ProviderStatus tells of one provider.
type ProviderStatus struct {
	Name    string
	State   State
	Up      bool
	Since   time.Time // of being up or down; zero: since the gateway began
	Error   string    // of the last failure
	Trusted bool      // its answers are believed alone
	Filled  bool      // filling has come to its end
	Queued  int       // keys that wait to be brought to it

	Calls, Failures, Timeouts, Skipped uint64
	Repaired                           uint64 // records brought to it
	Late                               int    // calls under way
	Latency                            time.Duration
}

// QueueStatus tells of the repair queue.
type QueueStatus struct {
	Depth  int
	Oldest time.Duration // since the oldest entry's write was acknowledged; 0: there is none
	Dirty  int           // namespaces that wait for a crawl

	Enqueued, Repaired, Dropped uint64
}

// Status tells how the gateway is.
type Status struct {
	Providers []ProviderStatus
	Queue     QueueStatus
	Crawl     CrawlStatus
}

// Status tells how the gateway is. It looks through the whole queue.
func (g *Gateway) Status() Status {
	var s Status
	for i, m := range g.members {
		st := m.store.Stats()
		p := ProviderStatus{
			Name: m.name, State: states[m.state.Load()], Up: st.Up, Since: st.Since, Trusted: !m.distrusted.Load(),
			Filled: m.filled.Load(), Queued: int(g.queue.counts[bitIndex(g.members[i].bit)].Load()),
			Calls: st.Calls, Failures: st.Failures, Timeouts: st.Timeouts, Skipped: st.Skipped,
			Repaired: m.repaired.Load(), Late: st.UnderWay, Latency: st.Latency,
		}
		if st.Err != nil {
			p.Error = st.Err.Error()
		}
		s.Providers = append(s.Providers, p)
	}
	q := g.queue
	s.Queue = QueueStatus{Depth: int(q.depth.Load()), Dirty: len(g.doubt.waiting()),
		Enqueued: q.enqueued.Load(), Repaired: q.repaired.Load(), Dropped: q.dropped.Load()}
	if oldest := q.oldest(); !oldest.IsZero() {
		s.Queue.Oldest = time.Since(oldest)
	}
	g.crawl.mu.Lock()
	s.Crawl = g.crawl.status
	g.crawl.mu.Unlock()
	return s
}

func bitIndex(bit mask) (i int) {
	for bit > 1 {
		bit >>= 1
		i++
	}
	return i
}

// ErrRefused: what was asked of a provider would endanger data; the text says why.
var ErrRefused = errors.New("refused")

func (g *Gateway) member(name string) (*member, error) {
	var names []string
	for _, m := range g.members {
		if m.name == name {
			return m, nil
		}
		names = append(names, m.name)
	}
	return nil, fmt.Errorf("there is no provider %q, there are: %s", name, strings.Join(names, ", "))
}

// Fill puts a provider to be filled from the others: it is written to, and not
// asked. If wipe is set it is emptied first. Without it a provider is refused that
// holds records which may be older than tombstones are kept: they would come back
// to life.
func (g *Gateway) Fill(ctx context.Context, name string, wipe bool) error {
	if err := g.admin.take(ctx); err != nil {
		return fmt.Errorf("fill %s: %w", name, err)
	}
	defer g.admin.give()
	m, err := g.member(name)
	if err != nil {
		return err
	}
	if rest := g.mask(active) &^ m.bit; rest == 0 {
		return fmt.Errorf("fill %s: %w: no other provider is active", name, ErrRefused)
	}
	stay, err := g.leave(ctx, m)
	if err != nil {
		return fmt.Errorf("fill %s: %w", name, err)
	}
	defer stay()
	if m.state.Load() == removed && !wipe {
		if err := g.recent(ctx, m); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
	}
	m.doubted.Add(1)
	if wipe {
		if err := g.keep(ctx, m, kept{State: Removed}); err != nil {
			return err
		}
		if err := g.wipe(ctx, m); err != nil {
			return fmt.Errorf("empty %s: %w", name, err)
		}
	}
	g.queue.without(m.bit)
	return g.filling(ctx, m)
}

// filling has a provider written to and filled. Writes that began before are not sent
// to it and are not in the queue for it, so only a crawl that begins after they are
// over has seen all. It is called with admin held.
func (g *Gateway) filling(ctx context.Context, m *member) error {
	if err := g.keep(ctx, m, kept{State: Filling}); err != nil {
		return err
	}
	g.settle(ctx, nil)
	m.doubted.Add(1)
	return nil
}

// empty reports whether a provider holds nothing but what is of the gateway's own.
func (g *Gateway) empty(ctx context.Context, m *member) (bool, error) {
	held, err := m.store.Namespaces(ctx, kv.NamespaceID{}, kv.MaxNamespaces)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(held, func(ns kv.NamespaceID) bool { return !g.hidden(ns) }), nil
}

// recent returns nil if a provider was removed not so long ago that tombstones may
// have been forgotten since, or is empty.
func (g *Gateway) recent(ctx context.Context, m *member) error {
	empty, err := g.empty(ctx, m)
	switch left := time.Unix(0, m.kept.Left); {
	case err != nil:
		return err
	case empty || g.opts.ForgetAfter <= 0:
		return nil
	case m.kept.Left == 0:
		return fmt.Errorf("%w: it holds records of unknown age, which could bring deleted keys back; have it emptied first", ErrRefused)
	case g.tooOld(left):
		return fmt.Errorf("%w: it was last in use at %s and could bring deleted keys back; have it emptied first",
			ErrRefused, left.UTC().Format(time.RFC3339))
	}
	return nil
}

// wipe drops all namespaces from a provider that is not in use.
func (g *Gateway) wipe(ctx context.Context, m *member) error {
	for {
		held, err := m.store.Namespaces(ctx, kv.NamespaceID{}, kv.MaxNamespaces)
		if err != nil {
			return err
		}
		left := 0
		for _, ns := range held {
			if g.hidden(ns) {
				continue
			}
			left++
			if err := m.store.Drop(ctx, ns); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
	}
}

// leave ends that a member's acknowledgements count, and returns nil if all that it
// has acknowledged can be had without it. stay takes that back, unless the member's
// state was changed meanwhile.
func (g *Gateway) leave(ctx context.Context, m *member) (stay func(), err error) {
	if !m.state.CompareAndSwap(active, leaving) {
		return func() {}, nil
	}
	stay = func() { m.state.CompareAndSwap(leaving, active) }
	g.settle(ctx, nil)
	if err := g.spare(m); err != nil {
		stay()
		return nil, err
	}
	return stay, nil
}

// spare returns nil if all that a member has acknowledged can be had from others:
// neither the queue nor a doubt says that they may lack it.
func (g *Gateway) spare(m *member) error {
	all := g.mask(asked...)
	if n := g.queue.only(m.bit, all); n > 0 {
		return fmt.Errorf("%w: %d keys of the repair queue are there alone; wait until the queue is empty", ErrRefused, n)
	}
	believed := all &^ m.bit
	for _, o := range g.members {
		if o.distrusted.Load() {
			believed &^= o.bit
		}
	}
	if believed == 0 {
		return fmt.Errorf("%w: the others are not trusted; wait until a crawl has compared everything", ErrRefused)
	}
	if n := g.doubt.only(believed); n > 0 {
		return fmt.Errorf("%w: %d namespaces wait for a crawl, and the others may lack what is there; wait until it is done", ErrRefused, n)
	}
	return nil
}

// Promote makes a provider active that has been filled.
func (g *Gateway) Promote(ctx context.Context, name string) error {
	if err := g.admin.take(ctx); err != nil {
		return fmt.Errorf("promote %s: %w", name, err)
	}
	defer g.admin.give()
	m, err := g.member(name)
	if err != nil {
		return err
	}
	switch queued := g.queue.counts[bitIndex(m.bit)].Load(); {
	case m.state.Load() == active:
		return nil
	case m.state.Load() == removed:
		return fmt.Errorf("promote %s: %w: it is removed; have it filled first", name, ErrRefused)
	case !m.filled.Load():
		return fmt.Errorf("promote %s: %w: it is not filled yet; the crawl has not come to its end", name, ErrRefused)
	case queued > 0:
		return fmt.Errorf("promote %s: %w: %d keys wait in the repair queue to be brought to it", name, ErrRefused, queued)
	case !m.store.Up():
		return fmt.Errorf("promote %s: %w: it is down", name, ErrRefused)
	}
	return g.keep(ctx, m, kept{State: Active})
}

// Remove takes a provider out of use. Unless forced, it is refused while keys wait
// in the repair queue that only this provider has.
func (g *Gateway) Remove(ctx context.Context, name string, force bool) error {
	if err := g.admin.take(ctx); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	defer g.admin.give()
	m, err := g.member(name)
	if err != nil {
		return err
	}
	if g.mask(active)&^m.bit == 0 {
		return fmt.Errorf("remove %s: %w: it is the only active provider", name, ErrRefused)
	}
	if !force {
		stay, err := g.leave(ctx, m)
		if err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		defer stay()
	}
	m.doubted.Add(1)
	if err := g.keep(ctx, m, kept{State: Removed, Left: g.completeUntil(m)}); err != nil {
		return err
	}
	g.queue.without(m.bit)
	g.doubt.without(m.bit)
	return nil
}

// completeUntil is up to when a member certainly has all that was acknowledged, ns
// since 1970; 0: that is not known.
func (g *Gateway) completeUntil(m *member) int64 {
	if m.distrusted.Load() || m.state.Load() == filling || m.state.Load() == removed || g.doubt.about(m.bit) {
		return 0
	}
	until := time.Now()
	g.queue.each(func(_ kv.Ref, e *entry) {
		if e.lacking.has(m.bit) && e.since.Before(until) {
			until = e.since
		}
	})
	return until.UnixNano()
}

// Distrust says that a provider may have gone back in time, for example because it
// was restored. Until a crawl has compared everything its answers are not believed
// alone.
func (g *Gateway) Distrust(ctx context.Context, name string) error {
	if err := g.admin.take(ctx); err != nil {
		return fmt.Errorf("distrust %s: %w", name, err)
	}
	defer g.admin.give()
	m, err := g.member(name)
	if err != nil {
		return err
	}
	if m.state.Load() != active {
		return fmt.Errorf("distrust %s: %w: it is not active", name, ErrRefused)
	}
	m.doubted.Add(1)
	return g.keep(ctx, m, kept{State: Active, Distrusted: true})
}

// CrawlSoon has the background crawl begin.
func (g *Gateway) CrawlSoon() {
	g.crawl.mu.Lock()
	g.crawl.asked = true
	g.crawl.mu.Unlock()
	g.changed.Fire()
}
