package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
)

// measure is what readers at several edges see while providers fail.
type measure struct {
	reads, failed int
	stale, marked int // older than what was acknowledged anywhere before the read began; and said to be
	wrong         int // of those not marked, that wanted the newest
	broken        int // older than what was acknowledged at the same edge, and not marked
	drift         int // keys that the providers still differ in after a minute of rest
	keys          int
}

func (m *measure) add(o measure) {
	m.reads, m.failed, m.stale, m.marked = m.reads+o.reads, m.failed+o.failed, m.stale+o.stale, m.marked+o.marked
	m.wrong, m.broken, m.drift, m.keys = m.wrong+o.wrong, m.broken+o.broken, m.drift+o.drift, m.keys+o.keys
}

// The adversary of the measure: few keys, and providers that fail in turn.
const (
	measureEdges  = 4
	measureKeys   = 5
	measureReads  = 20.0 // a second, at each edge
	measureWrites = 2.0
	measureLasts  = 60 * time.Second
	measureFault  = 2 * time.Second // how long a provider fails; a second later the other one does
)

// front is the way from an edge to the gateway.
type front struct {
	g     *shift
	delay time.Duration
}

func (f *front) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := f.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

func (f *front) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
	time.Sleep(f.delay)
	a, err := f.g.GetAnswer(ctx, ref, maxAge)
	time.Sleep(f.delay)
	return a, err
}

func (f *front) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	time.Sleep(f.delay)
	err := f.g.Put(ctx, ref, rec)
	time.Sleep(f.delay)
	return err
}

func (f *front) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	return f.g.List(ctx, ns, opts)
}

// seat is an edge and the clients who sit there.
type seat struct {
	p     *plane
	tier  *edge.Tier
	rng   *rand.Rand
	stamp *client
	mine  map[kv.Ref]kv.Version // acknowledged here; guarded by plane.mu
	seen  *measure              // guarded by plane.mu
}

func (s *seat) read(ref kv.Ref, maxAge time.Duration) {
	p := s.p
	p.mu.Lock()
	mine := s.mine[ref]
	p.mu.Unlock()
	newest := p.floor(ref)
	ctx, cancel := context.WithTimeout(context.Background(), planePatience)
	defer cancel()
	a, err := s.tier.GetAnswer(ctx, ref, maxAge)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.seen.reads++
	switch {
	case err != nil:
		s.seen.failed++
	case a.Version.Compare(newest) < 0:
		s.seen.stale++
		if a.Cache == kv.Stale {
			s.seen.marked++
			return
		}
		if maxAge == 0 {
			s.seen.wrong++
		}
		if a.Version.Compare(mine) < 0 {
			s.seen.broken++
		}
	}
}

func (s *seat) write(ref kv.Ref) {
	w := kv.Write{Ref: ref, Record: s.p.recordOf(ref, s.stamp.stamp(), s.rng.IntN(6))}
	w.Record.Expiration = 0
	s.p.sends([]kv.Write{w})
	ctx, cancel := context.WithTimeout(context.Background(), planePatience)
	defer cancel()
	if s.tier.Put(ctx, ref, w.Record) != nil {
		return
	}
	s.p.acked([]kv.Write{w})
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if w.Record.Version.Compare(s.mine[ref]) > 0 {
		s.mine[ref] = w.Record.Version
	}
}

// use reads and writes until the chaos ends.
func (s *seat) use(wg *sync.WaitGroup) {
	for {
		time.Sleep(1 + exponential(s.rng, measureReads+measureWrites))
		if !s.p.chaos() {
			return
		}
		ref := kv.Ref{Namespace: either, Key: fmt.Sprint("k/", s.rng.IntN(measureKeys))}
		if s.rng.Float64()*(measureReads+measureWrites) < measureWrites {
			s.write(ref) // one after the other: a client's next write is newer
			continue
		}
		maxAge := time.Duration(s.rng.IntN(2)) * time.Second
		wg.Go(func() { s.read(ref, maxAge) })
	}
}

// measureOne runs one seed with some ways of repair switched off.
func measureOne(t *testing.T, seed uint64, off gateway.Mechanisms) (m measure) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, planeConfig{Seed: seed, Providers: 2, ForgetAfter: time.Hour, CrawlEvery: 10 * time.Second})
		end := func(g *shift) {
			g.cancel()
			if err := <-g.done; err != nil {
				t.Error(err)
			}
		}
		g := p.begin()
		time.Sleep(10 * time.Second) // until it trusts the providers, which takes a crawl
		end(g)
		p.config.Off, p.ends = off, time.Now().Add(measureLasts)
		g = p.begin()
		ctx, cancel := context.WithCancel(context.Background())
		hub := feed.NewHub(feed.HubOptions{Log: g})
		var background, users, calls sync.WaitGroup
		background.Go(func() { _ = feed.NewSource(g, hub, nil).Run(ctx) }) // nil, at the end of ctx
		for i := range measureEdges {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			s := &seat{p: p, rng: rng, stamp: &client{p: p, id: i, rng: rng}, mine: map[kv.Ref]kv.Version{}, seen: &m,
				tier: edge.New(&front{g, between(rng, time.Millisecond, 20*time.Millisecond)}, edge.Options{MaxSkew: -1, FarTimeout: 2 * planeDeadline, Random: rand.New(rand.NewPCG(seed, 77)).Float64})}
			background.Go(func() { _ = s.tier.Run(ctx) })
			background.Go(func() { _ = feed.NewFollower(feed.Local{Hub: hub}, s.tier, nil).Run(ctx) })
			users.Go(func() { s.use(&calls) })
		}
		users.Go(func() { failInTurn(p, rand.New(rand.NewPCG(seed, 9))) })
		users.Wait()
		calls.Wait()
		time.Sleep(time.Minute)
		for i := range measureKeys {
			ref := kv.Ref{Namespace: either, Key: fmt.Sprint("k/", i)}
			m.keys++
			if p.sites[0].record(ref).Compare(p.sites[1].record(ref)) != 0 {
				m.drift++
			}
		}
		cancel()
		background.Wait()
		end(g)
		p.flying.Wait()
	})
	return m
}

// failInTurn lets one provider fail after the other, each in its own way.
func failInTurn(p *plane, r *rand.Rand) {
	for i := 0; p.chaos(); i++ {
		time.Sleep(between(r, measureFault/4, measureFault))
		s := p.sites[i%len(p.sites)]
		lasts := between(r, measureFault/2, 2*measureFault)
		s.set(slow+condition(r.IntN(int(conditions-slow))), false, time.Now().Add(lasts))
		time.Sleep(lasts)
		s.set(well, false, time.Time{})
	}
}

// TestGatewayConsistency prints what each way of repair is worth to readers.
func TestGatewayConsistency(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-24s %8s %8s %8s %8s %10s %10s %8s\n", "", "reads", "failed", "older", "marked", "unmarked*", "own write", "differ")
	runs := uint64(max(1, *seeds/40))
	for _, c := range []struct {
		name string
		off  gateway.Mechanisms
	}{
		{"all", gateway.Mechanisms{}},
		{"without write repair", gateway.Mechanisms{WriteRepair: true}},
		{"without read repair", gateway.Mechanisms{ReadRepair: true}},
		{"without the crawl", gateway.Mechanisms{Crawl: true}},
		{"write repair alone", gateway.Mechanisms{ReadRepair: true, Crawl: true}},
		{"read repair alone", gateway.Mechanisms{WriteRepair: true, Crawl: true}},
		{"the crawl alone", gateway.Mechanisms{WriteRepair: true, ReadRepair: true}},
		{"none", gateway.Mechanisms{WriteRepair: true, ReadRepair: true, Crawl: true}},
	} {
		var m measure
		for seed := *first; seed < *first+runs; seed++ {
			m.add(measureOne(t, seed, c.off))
		}
		share := func(n int) string { return fmt.Sprintf("%.3f %%", 100*float64(n)/float64(max(1, m.reads-m.failed))) }
		fmt.Fprintf(&table, "%-24s %8d %8s %8s %8s %10s %10s %8s\n", c.name, m.reads, fmt.Sprintf("%.2f %%", 100*float64(m.failed)/float64(m.reads)),
			share(m.stale), share(m.marked), share(m.wrong), share(m.broken), fmt.Sprintf("%d/%d", m.drift, m.keys))
		if !c.off.WriteRepair && m.wrong+m.broken > 0 {
			t.Errorf("%s: %d answers were older than acknowledged and did not say so, %d of them older than the reader's own write", c.name, m.wrong, m.broken)
		}
		if c.off == (gateway.Mechanisms{WriteRepair: true, ReadRepair: true, Crawl: true}) && (m.wrong == 0 || m.drift == 0) {
			t.Error("that nothing is repaired is not noticed")
		}
	}
	t.Logf("%d runs of %s, %d edges, %d keys, %.0f reads and %.0f writes a second at each edge%s* of reads with maxAge 0, and not marked",
		runs, measureLasts, measureEdges, measureKeys, measureReads, measureWrites, table.String())
}
