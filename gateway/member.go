package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
)

// mask is a set of members.
type mask uint8

func (m mask) has(o mask) bool { return m&o != 0 }

func (m mask) count() int { return bits.OnesCount8(uint8(m)) }

// State is what a provider is used for.
type State string

// The states of a provider.
const (
	Active  State = "active"  // it answers, and what it has is acknowledged
	Filling State = "filling" // it is written to and filled, and not asked
	Removed State = "removed" // it is not used
)

// The states in a form that is cheap to look at.
const (
	active int32 = iota
	filling
	removed
	leaving // active, but what it acknowledges does not count any more
)

var (
	states = [...]State{active: Active, filling: Filling, removed: Removed, leaving: Active}
	used   = []int32{active, filling, leaving} // written to
	asked  = []int32{active, leaving}          // read from
)

// member is a provider in use.
type member struct {
	name   string
	bit    mask
	store  *guard.Store
	probes func() []kv.NamespaceID

	kept kept // as the journal has it; guarded by Gateway.admin. What follows is of it:

	state      atomic.Int32
	distrusted atomic.Bool   // its answers are not believed alone until a crawl has compared all
	doubted    atomic.Uint64 // counts the times it was distrusted or put to be filled
	filled     atomic.Bool   // a crawl has gone all through since filling began
	probed     atomic.Bool   // it has shown its pulse since this gateway began, or never had to
	repaired   atomic.Uint64 // records put into it by repair

	mu     sync.Mutex // guards pulses
	pulses map[kv.NamespaceID]pulse
}

// with returns the members that are in one of the given states.
func (g *Gateway) with(wanted ...int32) []*member {
	found := make([]*member, 0, len(g.members))
	for _, m := range g.members {
		state := m.state.Load()
		for _, w := range wanted {
			if w == state {
				found = append(found, m)
			}
		}
	}
	return found
}

func (g *Gateway) mask(wanted ...int32) mask { return maskOf(g.with(wanted...)) }

func maskOf(members []*member) (all mask) {
	for _, m := range members {
		all |= m.bit
	}
	return all
}

// upMask is the members in use that are up.
func (g *Gateway) upMask() (up mask) {
	for _, m := range g.with(used...) {
		if m.store.Up() {
			up |= m.bit
		}
	}
	return up
}

// kept is what the journal keeps of a member.
type kept struct {
	Bit        mask  `json:"bit"`
	State      State `json:"state"`
	Distrusted bool  `json:"distrusted,omitempty"`
	Filled     bool  `json:"filled,omitempty"`

	// Joining says that it is to be filled as soon as it is certain to be empty.
	Joining bool `json:"joining,omitempty"`
	// Left is when it was removed, or fell behind before it was, ns since 1970; 0: what
	// it holds is of unknown age.
	Left int64 `json:"left,omitempty"`
}

// keep makes what is kept of a member durable, and then so. It is called with admin
// held.
func (g *Gateway) keep(ctx context.Context, m *member, k kept) error {
	k.Bit = m.bit
	e, err := m.entry(k)
	if err != nil {
		return err
	}
	if err := g.opts.Journal.Apply(ctx, []Entry{e}, true); err != nil {
		return fmt.Errorf("keep the state of provider %s: %w", m.name, err)
	}
	m.is(k)
	g.changed.Fire()
	return nil
}

// entry is how the journal keeps a member.
func (m *member) entry(k kept) (Entry, error) {
	data, err := json.Marshal(k)
	if err != nil {
		return Entry{}, fmt.Errorf("keep the state of provider %s: %w", m.name, err)
	}
	return Entry{Key: keyMember + m.name, Value: data}, nil
}

// is makes the member what is kept of it.
func (m *member) is(k kept) {
	m.kept = k
	switch k.State {
	case Active:
		m.state.Store(active)
	case Filling:
		m.state.Store(filling)
	default:
		m.state.Store(removed)
	}
	m.distrusted.Store(k.Distrusted)
	m.filled.Store(k.Filled)
}

// pulse is a record that the gateway writes into a provider again and again.
type pulse struct {
	Version kv.Version // acknowledged
	written time.Time  // when
}

// pulseNamespace is where the pulse of a provider is that names no places itself.
var pulseNamespace = kv.NamespaceID{
	0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd}

// pulseEvery is how often a pulse is written.
const pulseEvery = time.Second

// hidden reports whether a namespace is of the gateway's own use.
func (g *Gateway) hidden(ns kv.NamespaceID) bool {
	if ns == pulseNamespace {
		return true
	}
	for _, m := range g.members {
		for _, own := range m.probes() {
			if ns == own {
				return true
			}
		}
	}
	return false
}

// probe asks every part of a provider for its pulse, and writes a new one. It
// fails if no part answers: one that fails alone is its own slots' matter.
func (g *Gateway) probe(ctx context.Context, m *member, store kv.Store) error {
	places := m.probes()
	errs := make([]error, len(places))
	var all sync.WaitGroup
	for i, ns := range places {
		all.Go(func() { errs[i] = g.beat(ctx, m, store, ns) })
	}
	all.Wait()
	for _, err := range errs {
		if err == nil {
			if !m.probed.Swap(true) {
				g.changed.Fire()
			}
			return nil
		}
	}
	return errors.Join(errs...)
}

// known is the active members of which it is known that they did not go back in time
// since they last did not answer, or before this gateway began. A provider whose calls
// are refused meanwhile is asked for its pulse first; the last one that there is, and
// one that nobody has asked yet, may answer before it is known.
func (g *Gateway) known() (known mask) {
	for _, m := range g.with(asked...) {
		if m.probed.Load() && m.store.Up() {
			known |= m.bit
		}
	}
	return known
}

// beat reads and writes one pulse.
func (g *Gateway) beat(ctx context.Context, m *member, store kv.Store, ns kv.NamespaceID) error {
	m.mu.Lock()
	last := m.pulses[ns]
	m.mu.Unlock()
	ref := kv.Ref{Namespace: ns, Key: fmt.Sprintf("pulse-%04x", g.opts.Node)}
	rec, err := store.Get(ctx, ref, 0)
	if err != nil {
		return err
	}
	if rec.Version.Compare(last.Version) < 0 {
		if err := g.wentBack(ctx, m, last.Version, rec.Version); err != nil {
			return err
		}
		// And once is enough: one that takes no writes goes on to show this one.
		last = pulse{Version: rec.Version}
		g.keepPulse(ctx, m, ns, last)
	} else if time.Since(last.written) < pulseEvery {
		return nil
	}
	version, err := g.stamp.Stamp()
	if err != nil {
		return err
	}
	next := pulse{Version: version, written: time.Now()}
	if err := store.Put(ctx, ref, kv.Record{Version: next.Version, Value: []byte(next.written.UTC().Format(time.RFC3339Nano))}); err != nil {
		if rec.Version.Compare(last.Version) == 0 { // it answers; that it does not take writes, writes will tell
			return nil
		}
		return err
	}
	g.keepPulse(ctx, m, ns, next)
	return nil
}

// keepPulse remembers what a provider showed. A journal that fails is no fault of
// the provider.
func (g *Gateway) keepPulse(ctx context.Context, m *member, ns kv.NamespaceID, p pulse) {
	m.mu.Lock()
	m.pulses[ns] = p
	m.mu.Unlock()
	err := g.opts.Journal.Apply(ctx, []Entry{{Key: keyPulse + m.name + "/" + string(ns[:]), Value: p.Version[:]}}, true)
	if err != nil && ctx.Err() == nil {
		g.opts.Logger.Error("keep the pulse of a provider; if this process ends before the next one is kept it may not be noticed that the provider goes back in time",
			"provider", m.name, "error", err)
	}
}

// tooOld reports whether records of some time could be of keys whose tombstones have
// been forgotten since, with half of ForgetAfter to spare: clocks of writers differ,
// and what was under way then is older still.
func (g *Gateway) tooOld(t time.Time) bool {
	return g.opts.ForgetAfter > 0 && time.Since(t) > g.opts.ForgetAfter/2
}

// wentBack is called when a provider shows an older pulse than it acknowledged.
func (g *Gateway) wentBack(ctx context.Context, m *member, from, to kv.Version) error {
	g.opts.Logger.Error("a provider has gone back in time: it lacks writes that it had acknowledged",
		"provider", m.name, "from", from.Time(), "to", to.Time())
	if err := g.admin.take(ctx); err != nil { // it stays down until this can be noted
		return err
	}
	defer g.admin.give()
	if m.state.Load() == removed {
		k := m.kept
		k.Left = 0 // what it holds is older than that
		return g.keep(ctx, m, k)
	}
	m.doubted.Add(1)
	if m.state.Load() == filling {
		return g.keep(ctx, m, kept{State: Filling})
	}
	if g.tooOld(to.Time()) && len(g.with(active)) > 1 {
		g.opts.Logger.Error("a provider is so old that it could bring deleted keys back; it is taken out of service and must be filled anew",
			"provider", m.name, "forget_after", g.opts.ForgetAfter)
		return g.keep(ctx, m, kept{State: Removed})
	}
	return g.keep(ctx, m, kept{State: Active, Distrusted: true})
}
