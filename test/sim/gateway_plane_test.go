package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// planeConfig is everything about a run of a storage plane that can be chosen.
type planeConfig struct {
	Seed        uint64
	Providers   int
	Clients     int
	Keys        int
	Chaos       time.Duration
	Rate        float64 // of operations a second, of each client
	Skew        time.Duration
	Calm        bool // the first provider is always well
	Losses      bool // providers go back in time, or are emptied
	Crashes     bool // of the gateway
	Rollouts    bool // providers are removed, filled and promoted
	ForgetAfter time.Duration
	CrawlEvery  time.Duration
	Hedge       time.Duration
	MaxQueued   int
	MaxLate     int64
	Off         gateway.Mechanisms

	Breaks breakage
	Keep   bool // the trace's lines
}

// breakage is what is broken on purpose, for a control.
type breakage string

const (
	writesVanish   breakage = "a provider loses what it acknowledged"
	olderWins      breakage = "of two records a provider keeps the older one"
	valuesChange   breakage = "values change on the way"
	listsOmit      breakage = "listings leave out a key"
	sweepsEarly    breakage = "what has not expired is swept"
	dropsIgnored   breakage = "a provider does not drop"
	ledgerForgets  breakage = "a crash is told to have been an end in order"
	ledgerKeepsAll breakage = "the journal removes nothing"
	forgetsAtOnce  breakage = "tombstones are forgotten at once"
	nothingRepairs breakage = "nothing is repaired"
	firstForAll    breakage = "one acknowledgement counts for all"
	allForFirst    breakage = "the first acknowledgement is not enough"
	lies           breakage = "what was done is said to be certain not to be"
	repeatsAll     breakage = "a write that is repeated is another one"
	pulsesStay     breakage = "a provider that goes back shows the newest pulse"
	edits          breakage = "a provider changes what it holds"
)

// everything that takes time in a storage plane.
const (
	planeDeadline = 2 * time.Second
	planePatience = 5 * time.Second
	// convergeWithin is how long after all was healed the providers are equal.
	convergeWithin = 2 * time.Minute
	// settled is for how long a site must have been well to be expected to be used.
	settled = 4 * time.Second
)

// The namespaces of a storage plane.
var (
	either = kv.NamespaceID{1} // one acknowledgement is enough
	both   = kv.NamespaceID{2} // all active providers acknowledge
)

// planeOf draws a run from a seed.
func planeOf(seed uint64) planeConfig {
	r := rand.New(rand.NewPCG(seed, 5))
	c := planeConfig{Seed: seed, Providers: 2, Clients: 2 + r.IntN(2), Keys: 4 + r.IntN(8), Chaos: between(r, 20*time.Second, 70*time.Second),
		Rate: 4, Skew: time.Duration(r.IntN(3)) * 400 * time.Millisecond,
		Calm: r.IntN(4) == 0, Losses: r.IntN(3) > 0, Crashes: r.IntN(3) > 0, Rollouts: r.IntN(2) == 0,
		ForgetAfter: 30 * time.Second, CrawlEvery: between(r, 5*time.Second, 15*time.Second)}
	if r.IntN(4) == 0 {
		c.Providers = 3
	}
	if r.IntN(3) == 0 {
		c.Hedge = 3 * time.Millisecond
	}
	if r.IntN(4) == 0 {
		c.MaxQueued = 1 + r.IntN(5)
	}
	if r.IntN(4) == 0 {
		c.MaxLate = 300
	}
	return c
}

// plane is one run: a gateway over providers, and clients.
type plane struct {
	config planeConfig
	t      *testing.T
	dice   *dice
	trace  *trace
	sites  []*site
	flying sync.WaitGroup // what is on its way over wires
	ends   time.Time      // of the chaos
	wish   chan struct{}  // for a restart in order

	mu     sync.Mutex // guards the rest
	ledger *ledger
	shift  *shift // nil: no gateway runs
	busy   int    // changes of providers under way
	busied time.Time
	forced bool // a provider is being removed by force
	states map[string]gateway.State
	books  map[kv.Ref]*book
	sent   map[kv.Version]*sending
	seen   planeResults
}

// shift is a gateway from its start to its end.
type shift struct {
	*gateway.Gateway
	ctx     context.Context
	cancel  context.CancelFunc
	over    chan struct{} // closed when it crashes
	done    chan error    // of Run
	began   time.Time
	ops     sync.WaitGroup // of clients
	closing bool           // guarded by plane.mu
}

func (s *shift) dead() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

func newPlane(t *testing.T, c planeConfig) *plane {
	p := &plane{config: c, t: t, dice: &dice{seed: c.Seed, asked: map[uint64]uint64{}}, trace: &trace{began: time.Now(), keep: c.Keep},
		ends: time.Now().Add(c.Chaos), wish: make(chan struct{}, 1), states: map[string]gateway.State{},
		books: map[kv.Ref]*book{}, sent: map[kv.Version]*sending{}, seen: planeResults{broken: map[string]int{}, counts: map[string]int{}}}
	for i := range c.Providers {
		s := &site{p: p, name: string(rune('a' + i)), store: memory.New(), wellSince: time.Now(), held: map[kv.Ref]kv.Version{}, lost: map[kv.Ref]kv.Version{}}
		p.sites = append(p.sites, s)
		p.states[s.name] = gateway.Active
	}
	p.ledger = newLedger(p)
	return p
}

func (p *plane) chaos() bool { return time.Now().Before(p.ends) }

// count counts something of note.
func (p *plane) count(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.counts[what]++
}

func (p *plane) pulse(name string) kv.Version {
	p.mu.Lock()
	l := p.ledger
	p.mu.Unlock()
	return l.pulse(name)
}

func (p *plane) options() gateway.Options {
	c := p.config
	opts := gateway.Options{Hedge: c.Hedge, Deadline: planeDeadline, ListWait: planeDeadline, ForgetAfter: c.ForgetAfter, CrawlEvery: c.CrawlEvery, CrawlRate: -1,
		MaxQueued: c.MaxQueued, MaxLate: c.MaxLate, Off: c.Off, Both: func(ns kv.NamespaceID) bool { return ns == both }}
	switch c.Breaks {
	case forgetsAtOnce:
		opts.ForgetAfter = time.Millisecond
	case nothingRepairs:
		opts.Off = gateway.Mechanisms{WriteRepair: true, ReadRepair: true, Crawl: true}
	case firstForAll:
		opts.Both = nil
	case allForFirst:
		opts.Both = func(kv.NamespaceID) bool { return true }
	}
	return opts
}

// begin starts a gateway on what the journal has.
func (p *plane) begin() *shift {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &shift{over: make(chan struct{}), done: make(chan error, 1), began: time.Now()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	p.ledger = p.ledger.of(s)
	var providers []gateway.Provider
	for _, at := range p.sites {
		providers = append(providers, gateway.Provider{Name: at.name, Store: &wire{shift: s, site: at}})
	}
	opts := p.options()
	opts.Journal = p.ledger
	g, err := gateway.New(providers, opts)
	if err != nil {
		p.t.Fatalf("seed %d: %v: %q", p.config.Seed, err, p.ledger.entries)
	}
	s.Gateway = g
	go func() { s.done <- g.Run(s.ctx) }()
	p.shift = s
	p.noteStates(g.Status())
	return s
}

// lottery lets the gateway crash now and then, a moment after one of its steps.
func (p *plane) lottery(s *shift, r *rand.Rand) {
	if !p.config.Crashes || !p.chaos() || time.Since(s.began) < time.Second || r.IntN(700) != 0 {
		return
	}
	time.AfterFunc(between(r, 1, 5*time.Millisecond), func() { p.crash(s) })
}

// crash ends a gateway at once.
func (p *plane) crash(s *shift) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.dead() {
		return
	}
	p.trace.add("crash")
	p.seen.counts["crashes"]++
	close(s.over)
	s.cancel()
}

// keep runs gateways, one after the other, until ctx ends.
func (p *plane) keep(ctx context.Context) {
	for {
		s := p.begin()
		select {
		case err := <-s.done: // it could not begin
			p.crash(s)
			s.done <- err
		case <-s.over:
		case <-p.wish:
			p.close(s)
		case <-ctx.Done():
			p.close(s)
		}
		err := <-s.done
		p.trace.add(fmt.Sprintf("gateway ended: %v", err != nil))
		p.mu.Lock()
		p.shift = nil
		if s.dead() {
			p.ledger = p.ledger.crashed(p.dice.about("crash"))
		}
		p.mu.Unlock()
		if ctx.Err() != nil {
			if err != nil {
				p.violate(resources, "the gateway did not end in order: %v", err)
			}
			return
		}
		time.Sleep(between(p.dice.about("downtime"), time.Millisecond, 3*time.Second))
	}
}

// close ends a gateway in order: it is asked no more, then ended.
func (p *plane) close(s *shift) {
	p.mu.Lock()
	s.closing = true
	p.mu.Unlock()
	s.ops.Wait()
	time.Sleep(time.Microsecond + 1) // not at the moment of the last answer
	s.cancel()
}

// enter is the gateway to ask; nil: there is none now. Who asks says when he is done.
func (p *plane) enter() *shift {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shift == nil || p.shift.closing || p.shift.dead() {
		return nil
	}
	p.shift.ops.Add(1)
	return p.shift
}

// noteStates is called with mu held.
func (p *plane) noteStates(st gateway.Status) {
	for _, pr := range st.Providers {
		p.states[pr.Name] = pr.State
	}
}

func (p *plane) inUse(s *site) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shift == nil {
		return false
	}
	p.noteStates(p.shift.Status())
	return p.busy == 0 && p.states[s.name] != gateway.Removed
}

// isActive reports whether the gateway counts on a site, as far as is known.
func (p *plane) isActive(s *site) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shift != nil {
		p.noteStates(p.shift.Status())
	}
	return p.states[s.name] == gateway.Active
}

// misfortune lets providers lose data, one after the other.
func (p *plane) misfortune(r *rand.Rand) {
	for {
		time.Sleep(between(r, 3*time.Second, 30*time.Second))
		if !p.chaos() {
			return
		}
		s := p.sites[r.IntN(len(p.sites))]
		if p.config.Calm && s == p.sites[0] {
			continue
		}
		s.mu.Lock()
		copies := slices.Clone(s.copies)
		s.mu.Unlock()
		to := copied{time.Time{}, memory.New()} // emptied
		switch kind := r.IntN(8); {
		case kind < 2: // to a replica that was a little behind
			to = s.keepCopy()
			time.Sleep(between(r, time.Millisecond, 900*time.Millisecond))
		case kind < 7 && len(copies) > 0:
			to = copies[r.IntN(len(copies))]
		}
		p.trace.add("outage of " + s.name)
		c, wakes := s.now()
		s.set(c, true, wakes)
		time.Sleep(between(r, 3500*time.Millisecond, 6*time.Second))
		s.goBack(to)
		p.trace.add(fmt.Sprintf("%s went back %s", s.name, time.Since(to.at)))
		s.mu.Lock()
		c, wakes = s.condition, s.wakes
		s.mu.Unlock()
		s.set(c, false, wakes)
	}
}
