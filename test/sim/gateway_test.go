package sim

import (
	"context"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// run lets a plane live: chaos, then everything is healed, then it must be in order.
func (p *plane) run() {
	ctx, cancel := context.WithCancel(context.Background())
	keeping, keep := context.WithCancel(context.Background())
	var gateways, background, chaos, clients sync.WaitGroup
	gateways.Go(func() { p.keep(keeping) })
	source := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(p.config.Seed, n)) }
	time.Sleep(between(source(1), 0, 3*time.Second))
	for i := range p.config.Clients {
		c := &client{p: p, id: i + 1, rng: source(uint64(100 + i))}
		if p.config.Skew > 0 {
			c.skew = between(c.rng, -p.config.Skew, p.config.Skew)
		}
		chaos.Go(func() { c.run(&clients) })
	}
	chaos.Go((&client{p: p, id: 99, rng: source(99)}).dropper)
	for i, s := range p.sites {
		chaos.Go(func() { s.suffer(source(uint64(200+i)), p.config.Calm && i == 0) })
		chaos.Go(func() { s.keepHouse(source(uint64(300 + i))) })
	}
	if p.config.Losses {
		chaos.Go(func() { p.misfortune(source(2)) })
	}
	background.Go(func() { p.operator(ctx, source(3)) })
	chaos.Wait()
	clients.Wait()
	for _, s := range p.sites {
		s.set(well, false, time.Time{})
	}
	time.Sleep(16 * time.Second) // until what was written has expired
	for _, s := range p.sites {
		s.sweep(0)
	}
	p.final(ctx)
	cancel()
	background.Wait()
	keep()
	gateways.Wait()
	p.flying.Wait()
	if n := len(p.ledger.entries); n > 4*len(p.sites) {
		p.violate(resources, "the journal holds %d entries when nothing is to be done: %q", n, slices.Sorted(maps.Keys(p.ledger.entries)))
	}
	p.seen.trace, p.seen.events, p.seen.lines = p.trace.sum, p.trace.n, p.trace.lines
}

// simulatePlane runs one configuration in simulated time.
func simulatePlane(t *testing.T, c planeConfig) planeResults {
	t.Helper()
	var r planeResults
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, c)
		p.run()
		r = p.seen
	})
	return r
}

// told is what a run has to tell of a key, or of all.
var told = flag.String("sim-tell", "", "print what happened to keys that contain this, of the first seed")

func tell(t *testing.T, lines []string) {
	slices.Sort(lines)
	for _, line := range lines {
		if strings.Contains(line, *told) || !strings.Contains(line, "/") {
			t.Log(line)
		}
	}
}

func TestGatewaySeeds(t *testing.T) {
	sum := planeResults{counts: map[string]int{}}
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		c := planeOf(seed)
		c.Keep = *told != "" && seed == *first
		r := simulatePlane(t, c)
		if c.Keep {
			tell(t, r.lines)
		}
		if len(r.violations) > 0 {
			t.Errorf("seed %d: %+v: %v\n%s", seed, c, r.broken, strings.Join(r.violations, "\n"))
		}
		sum.reads, sum.writes, sum.stale = sum.reads+r.reads, sum.writes+r.writes, sum.stale+r.stale
		sum.excused, sum.lost, sum.events = sum.excused+r.excused, sum.lost+r.lost, sum.events+r.events
		sum.converged = max(sum.converged, r.converged)
		for what, n := range r.counts {
			sum.counts[what] += n
		}
	}
	t.Logf("%d seeds: %d reads checked, %d of them marked stale, %d excused; %d writes acknowledged, %d lost with the only provider that had them; converged within %s; %d events; %v",
		*seeds, sum.reads, sum.stale, sum.excused, sum.writes, sum.lost, sum.converged, sum.events, sum.counts)
}

// keptSeeds once showed something that the first ones do not.
var keptSeeds = []uint64{292, 334, 385, 629, 700, 979, 1131, 1161, 3193, 4065, 5438, 660, 1474, 1924, 2370, 1665}

func TestGatewayKeptSeeds(t *testing.T) {
	for _, seed := range keptSeeds {
		if r := simulatePlane(t, planeOf(seed)); len(r.violations) > 0 {
			t.Errorf("seed %d: %v\n%s", seed, r.broken, strings.Join(r.violations, "\n"))
		}
	}
}

// differMost is how many of the seeds, one in so many, may differ when they are run
// again: Go's scheduler still decides what comes first of two things that the gateway
// does at one moment. Some one in two hundred do.
const differMost = 20

// TestGatewayReplays runs seeds twice: the same must happen, to the nanosecond.
func TestGatewayReplays(t *testing.T) {
	differ := 0
	for seed := *first; seed < *first+uint64(*seeds); seed += 5 {
		c := planeOf(seed)
		c.Keep = true
		one, two := simulatePlane(t, c), simulatePlane(t, c)
		if one.trace == two.trace && one.events == two.events {
			continue
		}
		differ++
		slices.Sort(one.lines)
		slices.Sort(two.lines)
		for i := range min(len(one.lines), len(two.lines)) {
			if one.lines[i] != two.lines[i] {
				t.Logf("seed %d: event %d of %d: %s\nthe second time, of %d: %s", seed, i, one.events, one.lines[i], two.events, two.lines[i])
				break
			}
		}
	}
	t.Logf("%d of %d seeds did not replay", differ, (*seeds+4)/5)
	if differ > 1+*seeds/5/differMost {
		t.Error("that is too many")
	}
}

// TestGatewayControls breaks something on purpose and expects the checker of each
// invariant to notice.
func TestGatewayControls(t *testing.T) {
	for _, control := range []struct {
		breaks    breakage
		invariant string
		faults    bool
	}{
		{nothingRepairs, convergence, true},
		{writesVanish, durability, true},
		{writesVanish, acknowledgedR, false},
		{olderWins, monotone, true},
		{valuesChange, invention, false},
		{listsOmit, listing, false},
		{sweepsEarly, expiry, false},
		{dropsIgnored, dropped, false},
		{ledgerForgets, acknowledgedR, true},
		{ledgerKeepsAll, resources, true},
		{forgetsAtOnce, removal, true},
		{pulsesStay, resurrection, true},
		{firstForAll, allHave, true},
		{allForFirst, availability, true},
		{lies, honesty, false},
		{edits, invention, false},
		{repeatsAll, idempotence, false},
	} {
		t.Run(string(control.breaks)+"/"+control.invariant, func(t *testing.T) {
			for seed := range uint64(30) {
				c := planeOf(seed)
				if control.faults {
					c.Calm, c.Crashes, c.Losses = seed%2 == 0, true, seed%3 == 0
				} else {
					c.Calm, c.Crashes, c.Losses, c.Rollouts = true, false, false, false
				}
				if control.breaks == pulsesStay {
					c.Losses, c.Chaos = true, 90*time.Second
				}
				c.Breaks = control.breaks
				if r := simulatePlane(t, c); r.broken[control.invariant] > 0 {
					t.Logf("seed %d: %v", seed, r.broken)
					return
				}
			}
			t.Errorf("%s is not noticed", control.invariant)
		})
	}
}
