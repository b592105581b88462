package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

const (
	nearCopies     = 1_000_000
	fullCopies     = 10_000_000
	nearValueBytes = 32
	nearBatch      = 1000
	nearCycles     = 5   // collections that are watched
	copyBytes      = 400 // what a copy is expected to occupy at most, all in all
	collectorRoom  = 2   // times that, before the collector has run

	targetPause = 1.0 // ms; the issue of a pause is that every reader waits
)

// plenty is an empty store, but for reads: every key has a value made from its
// name.
type plenty struct{ *memory.Store }

func (plenty) GetMany(_ context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Record, error) {
	recs := make([]kv.Record, len(refs))
	for i, ref := range refs {
		recs[i] = plentyOf(ref.Key)
	}
	return recs, nil
}

func (plenty) Get(_ context.Context, ref kv.Ref, _ time.Duration) (kv.Record, error) {
	return plentyOf(ref.Key), nil
}

func plentyOf(key string) kv.Record {
	value := make([]byte, 0, nearValueBytes)
	return kv.Record{Version: kv.NewVersion(1, 1, 1), Value: append(append(value, key...), key...)[:nearValueBytes]}
}

// appendNearKey appends a key of 16 bytes or more.
func appendNearKey(b []byte, i int) []byte { return fmt.Appendf(b, "key-%012d", i) }

// nears measures what a tier of many small copies occupies beside what they say,
// and how long the garbage collector stops it.
func (b *bench) nears(ctx context.Context) error {
	copies := nearCopies
	if b.full {
		copies = fullCopies
	}
	if free, err := availableMemory(); err != nil || free < int64(copies)*copyBytes*collectorRoom {
		b.printf("  left out: %d copies may need %.0f MiB, %.0f MiB are free (%v)\n", copies, mebi(int64(copies)*copyBytes*collectorRoom), mebi(free), err)
		return nil
	}
	before := liveHeap()
	tier := edge.New(plenty{memory.New()}, edge.Options{NearBytes: int64(copies) * 4 * copyBytes, MaxSkew: -1})
	began := time.Now()
	if err := fillNear(ctx, tier, copies); err != nil {
		return err
	}
	filled := time.Since(began)
	after := liveHeap()
	content := int64(len(appendNearKey(nil, 0)) + nearValueBytes)
	s := tier.Stats()
	if s.Copies != copies {
		return fmt.Errorf("of %d copies the tier has %d", copies, s.Copies)
	}
	overhead := float64(after-before)/float64(copies) - float64(content)
	counted := float64(s.Bytes)/float64(copies) - float64(content)
	b.printf("  %d copies of %d bytes, filled in %s: %.0f MiB of heap; overhead of a copy %.0f bytes, counted as %.0f\n",
		copies, content, filled.Round(time.Millisecond), mebi(after-before), overhead, counted)
	b.atMost("near: overhead of a copy, by what the tier counts", overhead/counted, 1, "", "a tier holds more memory than it was given; its copyOverhead is too small")
	if err := b.pauses(ctx, tier, copies); err != nil {
		return err
	}
	runtime.KeepAlive(tier)
	return nil
}

// liveHeap is what is in use of the heap after a collection.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // what the first one only marked for finalizers and pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func fillNear(ctx context.Context, tier *edge.Tier, copies int) error {
	for from := 0; from < copies; from += nearBatch {
		refs := make([]kv.Ref, 0, nearBatch)
		for i := from; i < min(from+nearBatch, copies); i++ {
			refs = append(refs, kv.Ref{Namespace: kv.NamespaceID{1}, Key: string(appendNearKey(nil, i))})
		}
		if _, err := tier.GetMany(ctx, refs, time.Hour); err != nil {
			return err
		}
	}
	return nil
}

// pauses reads from near, while copies are superseded and fetched anew, until the
// collector has run some times.
func (b *bench) pauses(ctx context.Context, tier *edge.Tier, copies int) error {
	var stats debug.GCStats
	debug.ReadGCStats(&stats)
	first, stopped := stats.NumGC, stops()
	stop, collected := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(collected)
		for range nearCycles {
			runtime.GC()
		}
		close(stop)
	}()
	began := time.Now()
	reads, longestRead, err := readNear(ctx, tier, copies, stop)
	<-collected
	if err != nil {
		return err
	}
	debug.ReadGCStats(&stats)
	cycles := int(stats.NumGC - first)
	pauses := slices.Clone(stats.Pause[:min(cycles, len(stats.Pause))])
	slices.Sort(pauses)
	longest, stopping := pauses[len(pauses)-1], longestStop(stopped, stops())
	b.printf("  %d collections in %s: the world stood still for %s in the longest, %s in the median; to stop the threads took up to %s\n", cycles,
		time.Since(began).Round(time.Millisecond), longest, pauses[len(pauses)/2], stopping)
	b.printf("  near reads meanwhile: %d, p50 %s, p99.9 %s, longest %s (what else had the core included)\n", len(reads),
		percentile(reads, 50), percentile(reads, 99.9), longestRead)
	b.atMost("near: longest pause of the collector", float64(longest)/float64(time.Millisecond), targetPause, "ms",
		fmt.Sprintf("to stop the threads alone took up to %s: one that is to stop must first have a core", stopping))
	return nil
}

// stops is how often it took how long until all threads had stopped for the
// collector.
func stops() *metrics.Float64Histogram {
	sample := []metrics.Sample{{Name: "/sched/pauses/stopping/gc:seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64Histogram()
}

// longestStop is the upper bound of the longest stop between two looks.
func longestStop(before, after *metrics.Float64Histogram) time.Duration {
	for i := len(after.Counts) - 1; i >= 0; i-- {
		if after.Counts[i] > before.Counts[i] {
			seconds := after.Buckets[i+1]
			if math.IsInf(seconds, 1) {
				seconds = after.Buckets[i]
			}
			return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond)
		}
	}
	return 0
}

// readNear reads random keys, and takes every hundredth through a change, until it
// is told to stop. It returns how long the first reads took, in order of length,
// and the longest of all.
func readNear(ctx context.Context, tier *edge.Tier, copies int, stop <-chan struct{}) (took []time.Duration, longest time.Duration, err error) {
	const most = 4 << 20
	random := rand.New(rand.NewPCG(3, 4))
	took = make([]time.Duration, 0, most)
	var key []byte
	for n := 0; ; n++ {
		select {
		case <-stop:
			slices.Sort(took)
			return took, longest, nil
		default:
		}
		key = appendNearKey(key[:0], random.IntN(copies))
		if n%100 == 0 {
			ref := kv.Ref{Namespace: kv.NamespaceID{1}, Key: string(key)}
			tier.Changed([]kv.Change{{Ref: ref, Version: kv.NewVersion(1, 1, 1)}})
			if _, err := tier.Get(ctx, ref, 0); err != nil {
				return nil, 0, err
			}
		}
		began := time.Now()
		rec, _, ok := tier.Near(kv.NamespaceID{1}, key, time.Hour)
		last := time.Since(began)
		if !ok || !bytes.HasPrefix(rec.Value, key) {
			return nil, 0, fmt.Errorf("near does not have %s", key)
		}
		longest = max(longest, last)
		if len(took) < most {
			took = append(took, last)
		}
	}
}

// availableMemory is what the machine can give without swapping.
func availableMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no MemAvailable in /proc/meminfo")
}
