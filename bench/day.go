package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

const (
	dayLength = 24 * time.Hour
	dayKeys   = 10_000
	dayZipf   = 1.1
	dayMaxAge = time.Minute
	dayReads  = 10.0 // a second
	fullReads = 50.0 // with -full

	// A changed key is read anew at most once for each change, if it is read at all.
	targetFarReads = 1.0
)

// day is a tier's day in simulated time.
type day struct {
	length        time.Duration
	reads, writes float64 // a second
	fed           bool    // by an unbroken feed; otherwise maxAge alone counts
	deaf          bool    // the feed leaves changes out: the control of the comparison

	now     time.Time
	tier    *edge.Tier
	far     *memory.Store
	stamp   *kv.Stamper
	random  *rand.Rand
	popular *rand.Zipf

	answered, changed int
}

// dayResult is what a day came to.
type dayResult struct {
	hits      float64 // share of the reads
	far       int     // far reads
	first     int     // of them, the first of each key
	changes   int
	perChange float64 // far reads beyond the first, for each change
}

// days compares a tier that is told of changes with one that is not.
func (b *bench) days(ctx context.Context) error {
	reads := dayReads
	if b.full {
		reads = fullReads
	}
	b.printf("  %d keys, %.0f reads/s of one tier, keys read and changed alike by Zipf %.1f, maxAge %s\n", dayKeys, reads, dayZipf, dayMaxAge)
	for _, writes := range []float64{0, 0.1, 1} {
		var results [2]dayResult
		for i, fed := range []bool{true, false} {
			r, err := newDay(dayLength, reads, writes, fed).run(ctx)
			if err != nil {
				return err
			}
			results[i] = r
		}
		with, without := results[0], results[1]
		b.printf("  %3.1f changes/s    with the feed:  %6.2f %% hits, %7d far reads: %d first of a key, %.2f more for each of %d changes\n",
			writes, 100*with.hits, with.far, with.first, with.perChange, with.changes)
		b.printf("  %-16s maxAge alone:   %6.2f %% hits, %7d far reads: %.1f times as many\n", "", 100*without.hits, without.far, float64(without.far)/float64(with.far))
		if writes > 0 {
			b.atMost(fmt.Sprintf("far reads for each change, %.1f changes/s", writes), with.perChange, targetFarReads, "", "copies were read anew that had not changed")
		}
		if extra := with.far - with.first; writes == 0 {
			b.atMost("far reads of a day without changes, beyond the first", float64(extra), 0, "", "copies were read anew that had not changed")
		}
	}
	return nil
}

func newDay(length time.Duration, reads, writes float64, fed bool) *day {
	d := &day{length: length, reads: reads, writes: writes, fed: fed, now: time.Now(), far: memory.New(), random: rand.New(rand.NewPCG(1, 2))}
	d.popular = rand.NewZipf(d.random, dayZipf, 1, dayKeys-1)
	clock := func() time.Time { return d.now }
	d.stamp = kv.NewStamper(1, clock)
	d.tier = edge.New(d.far, edge.Options{Now: clock})
	return d
}

// run lets the day pass, from one read or change to the next.
func (d *day) run(ctx context.Context) (dayResult, error) {
	began := d.now
	if d.fed {
		d.tier.Broken() // the first call of all
	}
	seen := map[uint64]bool{}
	for key := range uint64(dayKeys) {
		if err := d.change(ctx, key); err != nil {
			return dayResult{}, err
		}
	}
	d.changed = 0
	for d.now.Sub(began) < d.length {
		d.now = d.now.Add(time.Duration(d.random.ExpFloat64() / (d.reads + d.writes) * float64(time.Second)))
		if d.fed {
			d.tier.Current(began.Add(d.now.Sub(began).Truncate(feed.HeartbeatEvery)))
		}
		key := d.popular.Uint64()
		if d.random.Float64()*(d.reads+d.writes) < d.writes {
			if err := d.change(ctx, key); err != nil {
				return dayResult{}, err
			}
			continue
		}
		a, err := d.tier.GetAnswer(ctx, dayRef(key), dayMaxAge)
		if err != nil {
			return dayResult{}, err
		}
		if d.fed && string(a.Value) != d.newest(ctx, key) {
			return dayResult{}, fmt.Errorf("key %d was read as it was before a change that was told", key)
		}
		d.answered++
		seen[key] = true
	}
	s := d.tier.Stats()
	r := dayResult{hits: float64(s.Hits) / float64(d.answered), far: int(s.FarReads), first: len(seen), changes: d.changed}
	r.perChange = float64(r.far-r.first) / float64(max(1, r.changes))
	return r, nil
}

func dayRef(key uint64) kv.Ref {
	return kv.Ref{Namespace: kv.NamespaceID{1}, Key: fmt.Sprintf("key %06d", key)}
}

// change writes a key elsewhere, of which the feed tells.
func (d *day) change(ctx context.Context, key uint64) error {
	version, err := d.stamp.Stamp()
	if err != nil {
		return err
	}
	ref := dayRef(key)
	if err := d.far.Put(ctx, ref, kv.Record{Version: version, Value: []byte(version.String())}); err != nil {
		return err
	}
	if d.fed && !d.deaf {
		d.tier.Changed([]kv.Change{{Ref: ref, Version: version}})
	}
	d.changed++
	return nil
}

// newest is the value that far has.
func (d *day) newest(ctx context.Context, key uint64) string {
	rec, err := d.far.Get(ctx, dayRef(key), 0)
	if err != nil {
		return err.Error()
	}
	return string(rec.Value)
}
