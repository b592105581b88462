// Package gateway makes several independent providers one store: what one of them
// has acknowledged is acknowledged, what one of them still has can be read, and
// what they differ in is found and repaired.
//
// # Writes
//
// A write goes to all providers at once and succeeds when the first has it (or
// when all have it, for namespaces that want that). Before the answer is given the
// key is noted as lacking at the others. The slower ones go on after the answer;
// what fails, or is cut off to bound memory, stays in the repair queue, which the
// journal keeps over a restart.
//
// # Reads
//
// A read asks all active providers at once. A value is returned from the first that
// has it and is believed; a miss or a tombstone only when all have answered or
// failed. A provider is not believed alone about a key that the queue says it
// lacks, about a namespace that waits for a crawl (the gateway was not stopped in
// order, or the queue overflowed), or about anything after it has gone back in
// time. If answers differ the newest wins and the others are repaired. If all that
// can be had is known to be older than what was acknowledged, the answer says so:
// it is marked stale, with its age.
//
// # Repair
//
// Three mechanisms, each of which covers for the one before: the queue (writes that
// did not reach a provider), reads (answers that differ), and the crawl, which
// compares the providers in the order of keys. The crawl also removes tombstones: when all
// hold them, unchanged, and they are older than ForgetAfter, so that neither queue
// nor retry nor backup can still carry an older write.
//
// # Providers that come back
//
// The gateway writes a pulse into each provider. One that shows an older pulse than
// it has acknowledged has gone back in time: it was restored, or failed over to a
// replica that lagged. It is distrusted until a crawl has compared everything. One
// that went back further than ForgetAfter could bring deleted keys back to life: it
// is taken out of service until it is filled again from nothing.
//
// A gateway may lose its journal: keys that only differ there wait for the crawl.
// Requests under way are lost with it, acknowledged writes are not.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// Provider is one of the stores that a gateway stands on.
type Provider struct {
	Name  string // 1 to MaxNameBytes of a-z, 0-9 and "-"; the journal knows it by this
	Store kv.Store

	// Probes returns namespaces of the gateway's own use, one in each part of the
	// provider that may fail or go back in time by itself. nil: there is one part.
	Probes func() []kv.NamespaceID
}

// Limits of a gateway.
const (
	MaxProviders = 8
	MaxNameBytes = 32
)

// Entry is what a Journal keeps. The type has no name of its own, so that what
// keeps entries need not know of gateways.
type Entry = struct {
	Key   string
	Value []byte // nil: removes the entry
}

// Journal keeps small entries over a restart.
type Journal interface {
	// Apply stores and removes entries in one atomic step, after all that were
	// applied before. If durable they are on stable storage when it returns, and
	// so is all that was applied before.
	Apply(ctx context.Context, entries []Entry, durable bool) error
	// Load calls each for every entry, in the order of keys.
	Load(each func(Entry) error) error
}

// Mechanisms names ways of repair.
type Mechanisms struct {
	WriteRepair, ReadRepair, Crawl bool
}

// Options are what may be chosen of a gateway. All but Journal may be left zero.
type Options struct {
	Journal Journal

	// Both reports whether a write of a namespace is acknowledged only when all
	// active providers have it. nil: none is.
	Both func(kv.NamespaceID) bool

	// Hedge is how long a read waits for the provider that was fastest before it
	// asks the others; 0: it asks all at once.
	Hedge time.Duration

	Deadline    time.Duration // of one call of a provider; 0: 10 s
	ListWait    time.Duration // how long a listing waits for others after the first has answered; 0: 1 s
	ForgetAfter time.Duration // age from which on tombstones are removed; 0: 7 days, negative: never
	CrawlEvery  time.Duration // from the end of a crawl to the next; 0: 1 h, negative: only when needed
	CrawlRate   int           // keys a second; 0: 20,000, negative: as fast as it goes
	MaxQueued   int           // keys in the repair queue; 0: 500,000
	MaxLate     int64         // bytes of writes that go on after the answer; 0: 256 MiB

	Node   uint16 // the node of the versions that the gateway stamps itself
	Logger *slog.Logger

	// Off switches ways of repair off, for measurements of what each one is worth.
	Off Mechanisms
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.Deadline, 10*time.Second)
	set(&o.ListWait, time.Second)
	set(&o.ForgetAfter, 7*24*time.Hour)
	set(&o.CrawlEvery, time.Hour)
	if o.CrawlRate == 0 {
		o.CrawlRate = 20_000
	}
	if o.MaxQueued == 0 {
		o.MaxQueued = 500_000
	}
	if o.MaxLate == 0 {
		o.MaxLate = 256 << 20
	}
	if o.Both == nil {
		o.Both = func(kv.NamespaceID) bool { return false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Gateway is a kv.Store of several providers.
type Gateway struct {
	opts    Options
	members []*member
	queue   *queue
	doubt   *doubt
	changes *changes
	stamp   *kv.Stamper
	crawl   crawl

	late      underWay // calls of members, some of which go on after their answer
	lateBytes atomic.Int64
	comparing atomic.Int64
	open      atomic.Uint32 // the members whose calls are not refused, a mask

	writesMu sync.Mutex            // guards writes
	writes   map[*written]struct{} // under way, some of them answered

	changed signal.Signal // something happened that repair or crawl may wait for
	admin   lock          // guards changes of the members' states
}

var _ kv.Store = (*Gateway)(nil)

// New returns a gateway of 1 to MaxProviders providers, in the states that the
// journal tells. Providers that a journal does not know yet are active if it knows
// none at all, and are to be filled otherwise. Calls work before Run, but a
// provider that went down then stays so.
func New(providers []Provider, opts Options) (*Gateway, error) {
	if len(providers) == 0 || len(providers) > MaxProviders {
		return nil, fmt.Errorf("a gateway of %d providers: it has 1 to %d", len(providers), MaxProviders)
	}
	if opts.Journal == nil {
		return nil, errors.New("a gateway needs a journal")
	}
	g := &Gateway{opts: opts.withDefaults(), changes: newChanges(), writes: map[*written]struct{}{}, admin: newLock()}
	g.crawl.one = newLock()
	g.stamp = kv.NewStamper(g.opts.Node, nil)
	g.doubt = newDoubt(g.opts.Journal)
	g.queue = newQueue(g.opts, g.doubt, g.changed.Fire)
	seen := map[string]bool{}
	for _, p := range providers {
		if !validName(p.Name) {
			return nil, fmt.Errorf("provider %q: a name has 1 to %d of the characters a-z, 0-9 and -", p.Name, MaxNameBytes)
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("provider %q is there twice", p.Name)
		}
		seen[p.Name] = true
		g.members = append(g.members, g.newMember(p))
	}
	if err := g.load(); err != nil {
		return nil, fmt.Errorf("load the journal of the gateway: %w", err)
	}
	for _, m := range g.members {
		g.open.Or(uint32(m.bit))
	}
	return g, nil
}

func validName(name string) bool {
	if name == "" || len(name) > MaxNameBytes {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// newMember returns a member without a place among the others yet.
func (g *Gateway) newMember(p Provider) *member {
	m := &member{name: p.Name, probes: p.Probes, pulses: map[kv.NamespaceID]pulse{}}
	if m.probes == nil {
		m.probes = func() []kv.NamespaceID { return []kv.NamespaceID{pulseNamespace} }
	}
	m.store = guard.Before(p.Store, guard.Options{
		Name: "provider " + p.Name, Deadline: g.opts.Deadline, Logger: g.opts.Logger,
		Probe: func(ctx context.Context) error { return g.probe(ctx, m, p.Store) },
		Changed: func(up bool) {
			if up {
				g.queue.hasten()
			}
			g.changed.Fire()
		},
		MayFall: func() bool { return g.mayFall(m) },
		Risen:   func() { g.open.Or(uint32(m.bit)) },
	})
	return m
}

// mayFall reports whether calls of a provider that does not answer are refused from
// now on. They are not while no other one could be asked: it may be the machine
// that is slow.
func (g *Gateway) mayFall(m *member) bool {
	for {
		open := g.open.Load()
		rest := open &^ uint32(m.bit)
		if state := m.state.Load(); (state == active || state == leaving) && rest&uint32(g.mask(asked...)) == 0 {
			return false
		}
		if g.open.CompareAndSwap(open, rest) {
			return true
		}
	}
}

// Run probes the providers, repairs and crawls until ctx ends. It returns when
// nothing that the gateway began is under way any more; then the journal says that
// it ended in order.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.begun(ctx); err != nil {
		return err
	}
	var all sync.WaitGroup
	for _, m := range g.members {
		all.Go(func() { _ = m.store.Run(ctx) }) // it only ends with ctx, without an error
	}
	for range repairers {
		all.Go(func() { g.repairLoop(ctx) })
	}
	all.Go(func() { g.crawlLoop(ctx) })
	all.Go(func() { g.queue.keep(ctx) })
	all.Wait()
	g.late.wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.opts.Deadline)
	defer cancel()
	if err := g.queue.flush(last); err != nil {
		return fmt.Errorf("keep the repair queue: %w", err)
	}
	return g.doubt.endedInOrder(last)
}

// lock is held over calls that take long: who waits for it can give up.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another one: %w", ctx.Err())
	}
}

func (l lock) give() { <-l }

// underWay counts what is under way.
type underWay struct {
	mu   sync.Mutex // guards the rest
	n    int
	none chan struct{} // closed when n is 0; nil: nobody waits
}

func (u *underWay) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
}

func (u *underWay) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n--
	if u.n == 0 && u.none != nil {
		close(u.none)
		u.none = nil
	}
}

// wait returns when nothing is under way.
func (u *underWay) wait() {
	u.mu.Lock()
	if u.n == 0 {
		u.mu.Unlock()
		return
	}
	if u.none == nil {
		u.none = make(chan struct{})
	}
	none := u.none
	u.mu.Unlock()
	<-none
}

// Ready returns nil if writes can be taken: one active provider is up.
func (g *Gateway) Ready() error {
	var errs []error
	for _, m := range g.with(active) {
		if m.store.Up() {
			return nil
		}
		errs = append(errs, fmt.Errorf("provider %s: %w", m.name, m.store.Stats().Err))
	}
	return errors.Join(errs...)
}

// Repair says that the providers may differ in a key.
func (g *Gateway) Repair(ref kv.Ref) {
	b := g.queue.batch()
	b.unsure(ref, kv.Version{}, g.mask(used...))
	b.end()
}
