// Package sim runs a whole fleet in one process, on simulated networks and
// simulated time: the real tiers, the real feed, links that are slow and fail,
// tiers that crash, clocks that are off. Every read is checked against everything
// that was ever acknowledged. A seed decides all that is random. It keeps nothing
// and has nothing to lose.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// Config is everything about a run that can be chosen.
type Config struct {
	Seed     uint64
	Regions  int
	Places   int // points of presence, over the regions in turn
	Keys     int
	Duration time.Duration
	Reads    float64         // a second, at each place
	Writes   float64         // a second, at each place
	MaxAges  []time.Duration // that readers accept, each equally often
	Skew     time.Duration
	Faults   bool

	// Deliberate breakages, for the controls.
	Deaf      bool // tiers are told that they are current, but not of changes
	TwoMinded bool // a place has two tiers that know nothing of each other
	Garbled   bool // links change a byte of a value now and then
	Forgets   bool // the centre forgets a key now and then
}

var namespace = kv.NamespaceID{1}

func keyName(i int) string { return fmt.Sprintf("key %04d", i) }

// valueOf is what every record of a key and version has as its value: what is read
// anywhere can be checked against nothing but itself.
func valueOf(key string, v kv.Version) []byte {
	return fmt.Appendf(nil, "%s at %s", key, v)
}

// link is a way between two processes.
type link struct {
	w     *world
	delay time.Duration // one way
	down  atomic.Bool   // calls fail at once
	hung  atomic.Bool   // calls are never answered
	far   func() *life

	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

// life is a process between its start and its crash, which ends all that others
// have under way with it.
type life struct {
	ctx  context.Context
	tier kv.Store
	hub  *feed.Hub
}

var errCrashed = errors.New("the process has crashed")

// jittered is a delay with up to a tenth more.
func (l *link) jittered(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d + time.Duration(l.rng.Int64N(int64(d)/10+1000))
}

func (l *link) random() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.Float64()
}

func (l *link) chance(oneIn int) bool { return l.intN(oneIn) == 0 }

func (l *link) intN(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.IntN(n)
}

// trip makes a call over the link: there, the work, and back.
func (l *link) trip(ctx context.Context, work func(ctx context.Context, far kv.Store) error) error {
	if err := l.travel(ctx); err != nil {
		return err
	}
	far := l.far()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(far.ctx, func() { cancel(errCrashed) })()
	if err := work(ctx, far.tier); err != nil {
		return err
	}
	if err := l.travel(ctx); err != nil {
		return err
	}
	return far.ctx.Err()
}

func (l *link) travel(ctx context.Context) error {
	if l.down.Load() {
		return fmt.Errorf("link: %w", kv.ErrUnavailable)
	}
	if l.hung.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(l.jittered(l.delay)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *link) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := l.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

func (l *link) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (a kv.Answer, err error) {
	err = l.trip(ctx, func(ctx context.Context, far kv.Store) error {
		a, err = kv.GetAnswer(ctx, far, ref, maxAge)
		return err
	})
	if err != nil {
		return kv.Answer{}, err
	}
	if l.w.Garbled && len(a.Value) > 0 && l.chance(100) {
		a.Value = append([]byte("x"), a.Value[1:]...)
	}
	return a, nil
}

func (l *link) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return l.trip(ctx, func(ctx context.Context, far kv.Store) error { return far.Put(ctx, ref, rec) })
}

func (l *link) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	err = l.trip(ctx, func(ctx context.Context, far kv.Store) error { page, err = far.List(ctx, ns, opts); return err })
	return page, err
}

// stream brings a hub's messages over a link: late, and now and then not, twice,
// or in another order.
type stream struct{ l *link }

func (s stream) Follow(ctx context.Context, after kv.Cursor, each func(feed.Message) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.l.travel(ctx); err != nil {
		return err
	}
	far := s.l.far()
	defer context.AfterFunc(far.ctx, cancel)()
	type parcel struct {
		m   feed.Message
		due time.Time
	}
	const inFlight = 4096
	parcels := make(chan parcel, inFlight)
	failed := make(chan error, 1)
	go func() {
		defer close(parcels)
		failed <- feed.Local{Hub: far.hub}.Follow(ctx, after, func(m feed.Message) error {
			select {
			case parcels <- parcel{m, time.Now().Add(s.l.jittered(s.l.delay))}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	var held *feed.Message
	for p := range parcels {
		time.Sleep(time.Until(p.due))
		if s.l.down.Load() {
			return errors.New("the link is cut")
		}
		if s.l.hung.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		for _, m := range s.l.spoil(p.m, &held) {
			if err := each(m); err != nil {
				return err
			}
		}
	}
	return <-failed
}

// spoil is what becomes of a message on its way.
func (l *link) spoil(m feed.Message, held **feed.Message) []feed.Message {
	if *held != nil { // in the wrong order
		earlier := **held
		*held = nil
		return []feed.Message{m, earlier}
	}
	if !l.w.Faults || !l.chance(200) {
		return []feed.Message{m}
	}
	switch l.intN(3) {
	case 0:
		return nil
	case 1:
		return []feed.Message{m, m}
	}
	*held = &m
	return nil
}

// process is a tier that can crash: what runs in it ends, and it begins empty.
type process struct {
	w      *world
	parent *link
	relay  bool
	tier   atomic.Pointer[edge.Tier]
	life   atomic.Pointer[life]
	stop   context.CancelFunc
	done   sync.WaitGroup
}

func (p *process) start(ctx context.Context) {
	ctx, p.stop = context.WithCancel(ctx)
	tier := edge.New(p.parent, edge.Options{NearBytes: p.w.nearBytes(), FarTimeout: 2 * time.Second, MaxStale: 10 * time.Minute, MaxSkew: max(1, 2*p.w.Skew), Random: p.parent.random})
	hub := feed.NewHub(feed.HubOptions{})
	var sink feed.Sink = &watched{Tier: tier, w: p.w, last: !p.relay}
	if p.relay {
		sink = feed.NewRelay(sink, hub)
	}
	p.tier.Store(tier)
	p.life.Store(&life{ctx, tier, hub})
	follower := feed.NewFollower(stream{p.parent}, sink, nil)
	follower.UseRandom(p.parent.random)
	p.done.Go(func() { _ = follower.Run(ctx) }) // nil, at the end of ctx
	p.done.Go(func() { _ = tier.Run(ctx) })
}

func (p *process) crash(ctx context.Context) {
	p.stop()
	p.done.Wait()
	p.w.keepStats(p)
	p.start(ctx)
}

// watched is a tier's sink; it measures how late the news is.
type watched struct {
	*edge.Tier
	w    *world
	last bool
}

func (s *watched) Changed(changes []kv.Change) {
	if s.w.Deaf {
		return
	}
	s.Tier.Changed(changes)
	if s.last {
		s.w.heard(changes)
	}
}

// place is a point of presence: where clients are.
type place struct {
	*process
	second *process // of a place that is of two minds
	stamp  *kv.Stamper
	acked  []kv.Version // by key, the newest that was acknowledged here
}

// world is one run.
type world struct {
	Config
	t       *testing.T
	began   time.Time
	store   *memory.Store
	central *edge.Tier
	hub     *feed.Hub
	regions []*process
	places  []*place
	links   []*link

	mu      sync.Mutex // guards the rest
	rng     *rand.Rand
	history [][]acknowledged // by key, in the order of acknowledgement
	stamped map[kv.Version]bool
	results results
}

// acknowledged is a write and when it was acknowledged.
type acknowledged struct {
	at      time.Time
	newest  kv.Version // of this and all before it
	version kv.Version
}

func (w *world) intN(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) chance(oneIn int) bool { return w.intN(oneIn) == 0 }

// exponential is the time until the next of events of the given rate a second.
func exponential(rng *rand.Rand, rate float64) time.Duration {
	return time.Duration(rng.ExpFloat64() / rate * float64(time.Second))
}

func (w *world) nearBytes() int64 {
	if w.Faults && w.chance(4) {
		return 4000 // a tier that forgets almost at once
	}
	return 64 << 20
}

// oneWay are the delays between the centre and the regions.
var oneWay = []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 45 * time.Millisecond, 75 * time.Millisecond, 110 * time.Millisecond, 150 * time.Millisecond}

func newWorld(t *testing.T, c Config) *world {
	w := &world{Config: c, t: t, began: time.Now(), store: memory.New(), rng: rand.New(rand.NewPCG(c.Seed, 7)),
		history: make([][]acknowledged, c.Keys), stamped: map[kv.Version]bool{}}
	w.central = edge.New(w.store, edge.Options{Sole: true})
	w.hub = feed.NewHub(feed.HubOptions{Log: w.store})
	centre := &life{context.Background(), w.central, w.hub}
	for i := range c.Regions {
		l := w.link(oneWay[i%len(oneWay)], func() *life { return centre })
		w.regions = append(w.regions, &process{w: w, parent: l, relay: true})
	}
	for i := range c.Places {
		region := w.regions[i%c.Regions]
		p := &place{process: w.edge(region), acked: make([]kv.Version, c.Keys)}
		if c.TwoMinded {
			p.second = w.edge(region)
		}
		skew := time.Duration(0)
		if c.Skew > 0 {
			skew = time.Duration(w.rng.Int64N(int64(2*c.Skew))) - c.Skew
		}
		p.stamp = kv.NewStamper(uint16(i), func() time.Time { return time.Now().Add(skew) })
		w.places = append(w.places, p)
	}
	return w
}

func (w *world) link(delay time.Duration, far func() *life) *link {
	l := &link{w: w, delay: delay, far: far, rng: rand.New(rand.NewPCG(w.Seed, uint64(1_000_000+len(w.links))))}
	w.links = append(w.links, l)
	return l
}

func (w *world) edge(region *process) *process {
	l := w.link(time.Duration(1+w.rng.IntN(20))*time.Millisecond, region.life.Load)
	return &process{w: w, parent: l}
}
