package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// tells measures how long after its acknowledgement a change is known at tiers.
func (b *bench) tells(ctx context.Context) error {
	length := tellFor
	if b.full {
		length = fullTellFor
	}
	b.printf("  %d tiers, each with connections of its own, in this process; %d changes/s for %s\n", tellTiers, tellRate, length)
	b.printf("  known: the tier no longer answers with what was before. visible: a read that came at once is over, and near has the new value\n")
	none := func(int) time.Duration { return 0 }
	links := func(i int) time.Duration { return leastLink + time.Duration(i)*(mostLink-leastLink)/(tellTiers-1) }
	for _, s := range []struct {
		name    string
		regions int
		oneWay  func(int) time.Duration
	}{
		{"direct", 0, none},
		{fmt.Sprintf("through %d regional tiers", tellRegions), tellRegions, none},
		{fmt.Sprintf("links of %s to %s", leastLink, mostLink), 0, links},
	} {
		if err := b.tellOne(ctx, s.name, int(length.Seconds()*tellRate), s.regions, s.oneWay); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (b *bench) tellOne(ctx context.Context, name string, changes, regions int, oneWay func(int) time.Duration) error {
	running, cancel := context.WithCancel(ctx)
	t, err := newTelling(running, changes, regions, oneWay)
	defer t.close(cancel)
	if err != nil {
		return err
	}
	before, err := ownCPU()
	if err != nil {
		return err
	}
	waited := waitOf([]int{os.Getpid()})
	if err := t.tell(running); err != nil {
		return err
	}
	took := time.Since(t.start)
	waited = waitOf([]int{os.Getpid()}) - waited
	after, err := ownCPU()
	if err != nil {
		return err
	}
	known := func(p *place) []instant { return p.known }
	visible := func(p *place) []instant { return p.visible }
	busy := (after - before).Seconds() / took.Seconds()
	b.printf("  %-24s %.0f changes/s, %.2f cores busy in this process, whose threads were ready without one for %s in %s\n", name,
		float64(changes)/took.Seconds(), busy, waited.Round(time.Millisecond), took.Round(time.Millisecond))
	why := fmt.Sprintf("all share this machine's cores, %.2f of them busy with it; in %s its threads were ready without one for %s",
		busy, took.Round(time.Millisecond), waited.Round(time.Millisecond))
	far := oneWay(tellTiers-1) > 0
	if !far {
		b.printTold("known", t.since(known, 0))
		all := t.since(visible, 0)
		b.printTold("visible", all)
		b.atMost("acknowledged to visible, "+name+": p99", milliseconds(percentile(all, 99)), targetTold, "ms", why)
		return nil
	}
	beyond := t.since(known, 1)
	b.printTold("known, beyond one way", beyond)
	b.printTold("visible, beyond one way", t.since(visible, 1))
	b.printTold("visible, beyond three", t.since(visible, 3))
	b.printf("  %-24s the feed brings versions, not values: the first read after a change takes a round trip\n", "")
	b.atMost("acknowledged to known beyond one way, "+name+": p99", milliseconds(percentile(beyond, 99)), targetExtra, "ms", why)
	return nil
}

func (b *bench) printTold(what string, all []time.Duration) {
	round := func(p float64) time.Duration { return percentile(all, p).Round(10 * time.Microsecond) }
	b.printf("    %-24s p50 %-9s p99 %-9s max %-9s of %d\n", what, round(50), round(99), round(100), len(all))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
