package hot

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
)

// TestBuckets: every time is in the bucket that says so, and none is further from
// its bucket's end than the buckets are wide.
func TestBuckets(t *testing.T) {
	last := -1
	for n := time.Duration(1); n < 1<<40; n += n/50 + 1 {
		i := bucketOf(n)
		if i < last {
			t.Fatalf("%s is in bucket %d, a lesser time in %d", n, i, last)
		}
		last = i
		if i == buckets-1 {
			continue
		}
		if end := bucketEnd(i); n >= end && n > 1<<leastBits || n > 1<<leastBits && float64(end) > float64(n)*(1+1.0/subBuckets)+1 {
			t.Fatalf("%d is in bucket %d, which ends at %d", n, i, end)
		}
	}
	if bucketOf(-1) != 0 || bucketOf(0) != 0 || bucketOf(1<<62) != buckets-1 || last != buckets-1 {
		t.Error("times beyond the bounds are not in the outer buckets")
	}
}

func TestQuantile(t *testing.T) {
	var l Latency
	if l.Quantile(0.5) != 0 {
		t.Error("no times have a median")
	}
	for i := 1; i <= 1000; i++ {
		l.buckets[bucketOf(time.Duration(i)*time.Microsecond)]++
	}
	for q, want := range map[float64]time.Duration{0: time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := l.Quantile(q); got < want || float64(got) > float64(want)*1.08 {
			t.Errorf("quantile %v: %s, want %s", q, got, want)
		}
	}
	later := l
	later.buckets[bucketOf(time.Second)]++
	if since := later.Since(&l); since.Count() != 1 || since.Quantile(0.5) < time.Second {
		t.Errorf("since: %d times", since.Count())
	}
}

func TestStats(t *testing.T) {
	w := newWorld(t)
	w.put("near", kv.Record{Value: []byte("12345")})
	cfg := w.config()
	handler := cfg.HTTP.Handler
	cfg.HTTP.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("CF-Cache-Status", "MISS")
		handler.ServeHTTP(rw, r)
	})
	type told struct {
		ns    kv.NamespaceID
		bytes int
	}
	served := map[told]int{}
	cfg.Served = func(ns kv.NamespaceID, bytes int, took time.Duration) {
		if took <= 0 {
			t.Errorf("took %s", took)
		}
		served[told{ns, bytes}]++
	}
	s := New(cfg)
	c := looped(s, &loop{request: []byte(strings.Repeat(w.get("near"), 7) + w.get("far")), left: 2})
	c.turn(t)
	c.turn(t)
	got := s.Stats()
	if got.Hits != 14 || got.Handled != 2 || got.Bytes != 70 || got.Accepted != 1 || got.Cache[kv.Miss] != 2 || got.Cache[kv.Hit] != 0 || got.Near.Count() != 14 || got.Handler.Count() != 2 {
		t.Errorf("%d hits, %d handled, %d bytes, %d accepted, %v, %d and %d times", got.Hits, got.Handled, got.Bytes, got.Accepted, got.Cache, got.Near.Count(), got.Handler.Count())
	}
	if got.Near.Quantile(0.99) <= 0 || got.Near.Quantile(0.99) > time.Minute {
		t.Errorf("p99 %s", got.Near.Quantile(0.99))
	}
	if len(served) != 1 || served[told{w.space, 5}] != 14 {
		t.Errorf("served: %v", served)
	}
}

// TestStatsAtOnce: counting and reading may happen at once, and nothing is lost.
func TestStatsAtOnce(t *testing.T) {
	w, s, request := benchWorld(t)
	_ = w
	const connections, turns = 8, 500
	var done sync.WaitGroup
	for range connections {
		c := looped(s, &loop{request: request, left: turns})
		done.Go(func() {
			for range turns {
				c.turn(t)
			}
		})
	}
	for s.Stats().Hits < connections*turns/2 {
		time.Sleep(time.Millisecond)
	}
	done.Wait()
	if got := s.Stats(); got.Hits != connections*turns || got.Near.Count() != connections*turns {
		t.Errorf("%d hits, %d times", got.Hits, got.Near.Count())
	}
}

// TestDebug: each request has its line in the log if the log wants it.
func TestDebug(t *testing.T) {
	w := newWorld(t)
	w.put("near", kv.Record{Value: []byte("near")})
	for level, hits := range map[slog.Level]uint64{slog.LevelDebug: 0, slog.LevelInfo: 1} {
		cfg := w.config()
		cfg.Logger = slog.New(slog.NewTextHandler(&bytes.Buffer{}, &slog.HandlerOptions{Level: level}))
		s := New(cfg)
		l := newPipes()
		go func() { _ = s.Serve(t.Context(), l) }()
		c := dial(l)
		if body := ask(t, c, w.get("near")); body != "near" {
			t.Errorf("got %q", body)
		}
		_ = c.Close()
		nearkeytest.Until(t, "counted", func() bool { got := s.Stats(); return got.Hits == hits && got.Handled == 1-hits })
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTold: what a handler before a tier says besides.
func TestTold(t *testing.T) {
	w := newWorld(t)
	w.put("near", kv.Record{Value: []byte("near")})
	w.near.age = 7 * time.Second
	cfg := w.config()
	cfg.Told, cfg.MaxAge = CacheHeaders, 7*time.Second
	s := New(cfg)
	var out bytes.Buffer
	c := looped(s, &loop{request: []byte(w.get("near")), left: 2})
	c.net = &tee{c.net.(*loop), &out}
	c.turn(t)
	if !strings.HasPrefix(out.String(), "HTTP/1.1 200 OK\r\nAge: 7\r\nCf-Cache-Status: HIT\r\nContent-Length: 4\r\n") {
		t.Errorf("got %q", out.String())
	}
	w.near.age++
	c.turn(t)
	if got := s.Stats(); got.Hits != 1 || got.Handled != 1 {
		t.Errorf("one past the staleness that is accepted: %d hits, %d handled", got.Hits, got.Handled)
	}
}

// tee is a loop that keeps what is written.
type tee struct {
	*loop
	out *bytes.Buffer
}

func (t *tee) Write(p []byte) (int, error) { return t.out.Write(p) }

func TestDate(t *testing.T) {
	var d date
	for _, seconds := range []int64{0, 951826554, 4102444799, 951826554} {
		now := time.Unix(seconds, 999999999)
		if got, want := string(d.at(now)[:]), now.UTC().Format(http.TimeFormat); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
