package sim

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

var (
	seeds = flag.Int("sim-seeds", 200, "seeds of the short simulations")
	first = flag.Uint64("sim-first", 1, "first seed; a failing one is repeated with -sim-first=N -sim-seeds=1")
	fleet = flag.Bool("sim-fleet", false, "simulate 300 points of presence and print what they see and cost")
)

// results is what a run has shown.
type results struct {
	violations  []string
	broken      map[string]int // violations by invariant
	reads       int
	failed      int
	byStatus    map[kv.CacheStatus]int
	staleReads  int             // answers that were older than the newest acknowledged
	staleness   []time.Duration // of those, by how much
	latency     []time.Duration // of reads
	propagation []time.Duration // from acknowledgement to the notice at an edge
	writes      int
	farReads    uint64 // at the centre
	regionReads uint64 // at the regions, by edges
	lists       int
}

func (w *world) violate(invariant, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.results.broken == nil {
		w.results.broken = map[string]int{}
	}
	w.results.broken[invariant]++
	if len(w.results.violations) < 10 {
		w.results.violations = append(w.results.violations, fmt.Sprintf("%s at %s: %s", invariant, time.Since(w.began), fmt.Sprintf(format, args...)))
	}
}

// run lets the world live for its duration.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var background, clients sync.WaitGroup
	source := feed.NewSource(w.store, w.hub, nil)
	background.Go(func() { _ = source.Run(ctx) })
	for _, r := range w.regions {
		r.start(ctx)
	}
	for _, p := range w.places {
		p.start(ctx)
		if p.second != nil {
			p.second.start(ctx)
		}
	}
	end := w.began.Add(w.Duration)
	for i, p := range w.places {
		rng := rand.New(rand.NewPCG(w.Seed, uint64(100+i)))
		zipf := rand.NewZipf(rng, 1.1, 1, uint64(w.Keys-1))
		clients.Go(func() {
			w.every(end, rng, w.Reads, func(inner *sync.WaitGroup) { w.read(ctx, inner, p, int(zipf.Uint64()), rng) })
		})
		writer := rand.New(rand.NewPCG(w.Seed, uint64(10_000+i)))
		clients.Go(func() {
			w.every(end, writer, w.Writes, func(inner *sync.WaitGroup) { w.write(ctx, inner, p, writer.IntN(w.Keys), writer.IntN(5)) })
		})
	}
	if w.Faults || w.Forgets {
		clients.Go(func() { w.misfortune(ctx, end) })
	}
	clients.Wait()
	w.heal(ctx)
	cancel()
	for _, p := range w.processes() {
		p.done.Wait()
		w.keepStats(p)
	}
	background.Wait()
}

func (w *world) processes() []*process {
	all := slices.Clone(w.regions)
	for _, p := range w.places {
		all = append(all, p.process)
		if p.second != nil {
			all = append(all, p.second)
		}
	}
	return all
}

// every begins an operation at random moments of a rate until the end.
func (w *world) every(end time.Time, rng *rand.Rand, rate float64, begin func(*sync.WaitGroup)) {
	var inner sync.WaitGroup
	defer inner.Wait()
	for {
		time.Sleep(exponential(rng, rate))
		if time.Now().After(end) {
			return
		}
		begin(&inner)
	}
}

// patience is how long a client waits for an answer.
const patience = 5 * time.Second

// anyAge is what readers of the short simulations accept.
var anyAge = []time.Duration{0, time.Second, 30 * time.Second, 60 * time.Second, 60 * time.Second, time.Hour}

func (w *world) read(ctx context.Context, wg *sync.WaitGroup, p *place, key int, rng *rand.Rand) {
	maxAge := w.MaxAges[rng.IntN(len(w.MaxAges))]
	if rng.IntN(200) == 0 {
		wg.Go(func() { w.list(ctx, p) })
	}
	at := p.life.Load()
	if p.second != nil && rng.IntN(2) == 0 {
		at = p.second.life.Load()
	}
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		start := time.Now()
		w.mu.Lock()
		mine := p.acked[key]
		w.mu.Unlock()
		bound := w.newestAt(key, start.Add(-maxAge-2*w.Skew))
		newest := w.newestAt(key, start)
		a, err := kv.GetAnswer(ctx, at.tier, kv.Ref{Namespace: namespace, Key: keyName(key)}, maxAge)
		if err == nil {
			err = at.ctx.Err() // a process that has crashed does not answer
		}
		w.record(a, err, time.Since(start), key, newest, start)
		if err != nil {
			return
		}
		w.checkAnswer(a, key)
		if a.Version.Compare(mine) < 0 {
			w.violate("read your write", "%s is %s (%s), %s was acknowledged here", keyName(key), a.Version, a.Cache, mine)
		}
		if a.Cache != kv.Stale && a.Version.Compare(bound) < 0 {
			w.violate("bounded staleness", "%s is %s (%s, age %s), %s was acknowledged %s ago or more", keyName(key), a.Version, a.Cache, a.Age, bound, maxAge)
		}
	})
}

// checkAnswer checks what holds of a record by itself.
func (w *world) checkAnswer(a kv.Answer, key int) {
	w.mu.Lock()
	known := a.Absent() || w.stamped[a.Version]
	w.mu.Unlock()
	if !known || !a.Absent() && !a.Tombstone && string(a.Value) != string(valueOf(keyName(key), a.Version)) {
		w.violate("no invention", "%s is %q at %s", keyName(key), a.Value, a.Version)
	}
	if now := time.Now(); a.Visible(now) && a.Expiration != 0 && a.Expiration <= now.Unix() {
		w.violate("expiration", "%s is visible at %d, its expiration", keyName(key), now.Unix())
	}
}

// newestAt is the newest version of a key that was acknowledged by a moment.
func (w *world) newestAt(key int, at time.Time) kv.Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.history[key]
	n := sort.Search(len(h), func(i int) bool { return h[i].at.After(at) })
	if n == 0 {
		return kv.Version{}
	}
	return h[n-1].newest
}

// record counts a read. An answer is as stale as the time since the first newer
// version was acknowledged.
func (w *world) record(a kv.Answer, err error, took time.Duration, key int, newest kv.Version, start time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &w.results
	r.reads++
	if err != nil {
		r.failed++
		return
	}
	if r.byStatus == nil {
		r.byStatus = map[kv.CacheStatus]int{}
	}
	r.byStatus[a.Cache]++
	r.latency = append(r.latency, took)
	if a.Version.Compare(newest) >= 0 {
		return
	}
	r.staleReads++
	for _, h := range w.history[key] {
		if h.version.Compare(a.Version) > 0 {
			r.staleness = append(r.staleness, start.Sub(h.at))
			return
		}
	}
}

func (w *world) write(ctx context.Context, wg *sync.WaitGroup, p *place, key, kind int) {
	at := p.life.Load()
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		v, err := p.stamp.Stamp()
		if err != nil {
			w.t.Error(err)
			return
		}
		rec := kv.Record{Version: v, Value: valueOf(keyName(key), v)}
		switch kind {
		case 0:
			rec = kv.Tombstone(v)
		case 1:
			rec.Expiration = time.Now().Unix() + 5
		}
		w.mu.Lock()
		w.stamped[v] = true
		w.mu.Unlock()
		if at.tier.Put(ctx, kv.Ref{Namespace: namespace, Key: keyName(key)}, rec) == nil && at.ctx.Err() == nil {
			w.ack(p, key, v)
		}
	})
}

func (w *world) ack(p *place, key int, v kv.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.results.writes++
	newest := v
	if h := w.history[key]; len(h) > 0 && h[len(h)-1].newest.Compare(v) > 0 {
		newest = h[len(h)-1].newest
	}
	w.history[key] = append(w.history[key], acknowledged{at: time.Now(), newest: newest, version: v})
	if v.Compare(p.acked[key]) > 0 {
		p.acked[key] = v
	}
}

// heard measures how late a notice is at an edge. One that comes before the
// acknowledgement is in time.
func (w *world) heard(changes []kv.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		var key int
		if _, err := fmt.Sscanf(c.Ref.Key, "key %d", &key); err != nil {
			continue
		}
		late := time.Duration(0)
		for _, h := range w.history[key] {
			if h.version == c.Version {
				late = time.Since(h.at)
			}
		}
		w.results.propagation = append(w.results.propagation, late)
	}
}

// list checks that a listing is sorted, and has every key whose newest write is
// long ago and visible.
func (w *world) list(ctx context.Context, p *place) {
	start := time.Now()
	before := make([]kv.Version, w.Keys)
	for key := range before {
		before[key] = w.newestAt(key, start)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	page, err := p.tier.Load().List(ctx, namespace, kv.ListOptions{Limit: kv.MaxListLimit})
	if err != nil {
		return
	}
	w.mu.Lock()
	w.results.lists++
	w.mu.Unlock()
	listed := map[string]kv.Version{}
	for i, k := range page.Keys {
		if i > 0 && page.Keys[i-1].Key >= k.Key {
			w.violate("list", "%q after %q", k.Key, page.Keys[i-1].Key)
		}
		listed[k.Key] = k.Record.Version
	}
	for key, v := range before {
		if listed[keyName(key)].Compare(v) < 0 {
			w.violate("list", "%s is listed at %s, %s was acknowledged before", keyName(key), listed[keyName(key)], v)
		}
	}
}

// misfortune lets things go wrong, one after the other, and right again.
func (w *world) misfortune(ctx context.Context, end time.Time) {
	rng := rand.New(rand.NewPCG(w.Seed, 9))
	for {
		time.Sleep(exponential(rng, 2))
		if time.Now().After(end) {
			return
		}
		if w.Forgets {
			if err := w.store.Drop(ctx, namespace); err != nil {
				w.t.Error(err)
			}
			continue
		}
		l := w.links[rng.IntN(len(w.links))]
		lasts := exponential(rng, 0.5)
		switch rng.IntN(4) {
		case 0:
			l.down.Store(true)
			time.AfterFunc(lasts, func() { l.down.Store(false) })
		case 1:
			l.hung.Store(true)
			time.AfterFunc(lasts, func() { l.hung.Store(false) })
		case 2:
			w.regions[rng.IntN(len(w.regions))].crash(ctx)
		case 3:
			w.places[rng.IntN(len(w.places))].crash(ctx)
		}
	}
}

// heal mends everything, waits until news has travelled, and expects every place
// to answer every key with the newest, from memory fetched anew or kept fresh.
func (w *world) heal(ctx context.Context) {
	for _, l := range w.links {
		l.down.Store(false)
		l.hung.Store(false)
	}
	time.Sleep(time.Minute)
	for _, p := range w.places {
		for key := range w.Keys {
			want := w.newestAt(key, time.Now())
			a, err := p.tier.Load().GetAnswer(ctx, kv.Ref{Namespace: namespace, Key: keyName(key)}, time.Second)
			if err != nil || a.Version.Compare(want) < 0 {
				w.violate("convergence", "%s is %s (%s, age %s) a minute after all was healed, %s was acknowledged (%v)", keyName(key), a.Version, a.Cache, a.Age, want, err)
			}
		}
	}
}

func (w *world) keepStats(p *process) {
	s := p.tier.Load().Stats()
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.relay {
		w.results.farReads += s.FarReads
		return
	}
	w.results.regionReads += s.FarReads
}

// simulate runs one configuration in simulated time.
func simulate(t *testing.T, c Config) results {
	t.Helper()
	var r results
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		w.run()
		r = w.results
	})
	return r
}

func short(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 3))
	return Config{Seed: seed, Regions: 1 + rng.IntN(3), Places: 2 + rng.IntN(4), Keys: 3 + rng.IntN(10), Duration: 20 * time.Second,
		Reads: 15, Writes: 2, MaxAges: anyAge, Skew: time.Duration(rng.IntN(3)) * 200 * time.Millisecond, Faults: seed%4 != 0}
}

func TestSeeds(t *testing.T) {
	var reads, writes, stale, lists int
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		r := simulate(t, short(seed))
		reads, writes, stale, lists = reads+r.reads, writes+r.writes, stale+r.staleReads, lists+r.lists
		if len(r.violations) > 0 {
			t.Fatalf("seed %d: %v\n%s", seed, r.broken, strings.Join(r.violations, "\n"))
		}
	}
	t.Logf("%d seeds: %d reads, %d writes, %d listings; %d reads within their maxAge, but not the newest", *seeds, reads, writes, lists, stale)
}

// TestControls breaks something on purpose and expects the checker of each
// invariant to notice.
func TestControls(t *testing.T) {
	for name, c := range map[string]struct {
		invariant string
		breakIt   func(*Config)
	}{
		"a feed that does not tell": {"bounded staleness", func(c *Config) { c.Deaf = true }},
		"two tiers of one place":    {"read your write", func(c *Config) { c.TwoMinded = true }},
		"bytes change on the way":   {"no invention", func(c *Config) { c.Garbled = true }},
		"the centre forgets":        {"list", func(c *Config) { c.Forgets = true }},
		"nothing converges":         {"convergence", func(c *Config) { c.Deaf = true }},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				config := short(4 * (seed + 1)) // without faults
				config.Reads, config.Writes = 40, 4
				c.breakIt(&config)
				if r := simulate(t, config); r.broken[c.invariant] > 0 {
					t.Logf("seed %d: %v", config.Seed, r.broken)
					return
				}
			}
			t.Errorf("%s is not noticed", c.invariant)
		})
	}
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))].Round(100 * time.Microsecond)
}

// TestFleetOf300 prints what a fleet of 300 points of presence would see and cost.
func TestFleetOf300(t *testing.T) {
	if !*fleet {
		t.Skip("minutes of work: -sim-fleet")
	}
	c := Config{Seed: *first, Regions: 6, Places: 300, Keys: 500, Duration: 5 * time.Minute, Reads: 10, Writes: 0.02,
		MaxAges: []time.Duration{time.Minute}}
	r := simulate(t, c)
	if len(r.violations) > 0 {
		t.Errorf("%v\n%s", r.broken, strings.Join(r.violations, "\n"))
	}
	answered := float64(r.reads - r.failed)
	share := func(n int) float64 { return math.Round(float64(n)/answered*10000) / 100 }
	t.Logf("\n%d places in %d regions, %s, %d keys (Zipf 1.1): %d reads, %d writes\n"+
		"from memory at the place      %6.2f %%\n"+
		"from far                      %6.2f %%, of which the regional tier answered %.2f %%\n"+
		"reads of the centre           %6.2f a second, %.4f for each read\n"+
		"latency of a read             p50 %s, p90 %s, p99 %s\n"+
		"answers that were not newest  %6.4f %%; by p50 %s, p99 %s, at most %s\n"+
		"a change is known at a place  p50 %s, p99 %s, at most %s after its acknowledgement",
		c.Places, c.Regions, c.Duration, c.Keys, r.reads, r.writes,
		share(r.byStatus[kv.Hit]), share(r.byStatus[kv.Miss]+r.byStatus[kv.Expired]), 100*(1-float64(r.farReads)/float64(r.regionReads)),
		float64(r.farReads)/c.Duration.Seconds(), float64(r.farReads)/float64(r.reads),
		quantile(r.latency, 0.5), quantile(r.latency, 0.9), quantile(r.latency, 0.99),
		share(r.staleReads), quantile(r.staleness, 0.5), quantile(r.staleness, 0.99), quantile(r.staleness, 1),
		quantile(r.propagation, 0.5), quantile(r.propagation, 0.99), quantile(r.propagation, 1))
}
