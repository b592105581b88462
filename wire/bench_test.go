package wire_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

// timing is a sink that notes how long each change was on its way. Versions carry
// the moment of publication.
type timing struct {
	mu    sync.Mutex // guards the rest
	delay []time.Duration
	ready func()
}

func (s *timing) Changed(changes []kv.Change) {
	now := time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		s.delay = append(s.delay, time.Duration(now-c.Version.UnixNano()))
	}
}
func (s *timing) Current(time.Time) { s.ready() }
func (s *timing) Broken()           {}

func (s *timing) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.delay)
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// number reads a setting of a benchmark.
func number(b *testing.B, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkPropagation publishes changes at a fixed rate to followers over real
// loopback connections, all in this process, and reports how long a change takes
// from Hub.Publish to a follower's sink, and what one delivery costs in CPU on
// both sides together. FEED_FOLLOWERS, FEED_RATE (changes a second) and
// FEED_GATHER_US change the setting.
func BenchmarkPropagation(b *testing.B) {
	followers, rate := number(b, "FEED_FOLLOWERS", 100), number(b, "FEED_RATE", 1000)
	gather := time.Duration(number(b, "FEED_GATHER_US", int(feed.DefaultGather/time.Microsecond))) * time.Microsecond
	if gather == 0 {
		gather = -1
	}
	hub := feed.NewHub(feed.HubOptions{Gather: gather})
	hub.Open(kv.Cursor{Epoch: 1}, time.Now())
	handler := wire.NewHandler(wire.HandlerConfig{Store: memory.New(), Hub: hub, Secret: secret})
	server := httptest.NewServer(handler)
	ctx, cancel := context.WithCancel(context.Background())
	var running, ready sync.WaitGroup
	sinks := make([]*timing, followers)
	for i := range sinks {
		ready.Add(1)
		sinks[i] = &timing{ready: sync.OnceFunc(ready.Done)}
		client := wire.NewClient(wire.ClientConfig{URL: server.URL, Secret: secret})
		defer client.Close()
		running.Go(func() { _ = feed.NewFollower(client, sinks[i], nil).Run(ctx) })
	}
	ready.Wait()
	before := cpu(b)
	b.ResetTimer()
	publish(hub, b.N, rate)
	for _, s := range sinks {
		for s.count() < b.N {
			time.Sleep(time.Millisecond)
		}
	}
	b.StopTimer()
	spent := cpu(b) - before
	report(b, sinks, spent)
	cancel()
	handler.EndFeeds()
	running.Wait()
	server.Close()
}

// publish publishes n changes of keys of their own, evenly at a rate; when it is
// late it catches up.
func publish(hub *feed.Hub, n, rate int) {
	begun := time.Now()
	for i := range n {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		for time.Until(due) > 0 {
			time.Sleep(100 * time.Microsecond)
		}
		now := time.Now()
		cursor := kv.Cursor{Epoch: 1, Seq: uint64(i + 1)}
		hub.Publish([]kv.Change{{Cursor: cursor, Ref: kv.Ref{Key: fmt.Sprintf("a key of some length %08d", i)}, Version: kv.NewVersion(now.UnixNano(), 1, 1)}}, cursor, now)
	}
}

func report(b *testing.B, sinks []*timing, spent time.Duration) {
	var all []time.Duration
	for _, s := range sinks {
		all = append(all, s.delay...)
	}
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
	b.ReportMetric(float64(spent.Nanoseconds())/float64(len(all)), "cpu-ns/delivery")
	b.ReportMetric(spent.Seconds()/b.Elapsed().Seconds()*100, "cpu-%")
}

// BenchmarkGet reads one small record over loopback and one connection.
func BenchmarkGet(b *testing.B) {
	store := memory.New()
	rec := record(288)
	if err := store.Put(b.Context(), k, rec); err != nil {
		b.Fatal(err)
	}
	client := dial(b, wire.ClientConfig{URL: serve(b, wire.HandlerConfig{Store: store})})
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		if _, err := client.Get(b.Context(), k, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}
