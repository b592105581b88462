package rest

import (
	"log/slog"
	"net/http"
	"testing"
)

// discard is a ResponseWriter that costs nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func benchmark(b *testing.B, w *world, r request) {
	req := w.request(r)
	out := &discard{http.Header{}}
	w.server.ServeHTTP(out, req)
	b.ReportAllocs()
	for b.Loop() {
		clear(out.header)
		w.server.ServeHTTP(out, req)
	}
}

func quiet(cfg *Config) { cfg.Logger = slog.New(slog.DiscardHandler) }

func BenchmarkGet(b *testing.B) {
	w := newWorld(b, quiet)
	w.put("values/some-key-of-usual-length", string(make([]byte, 288))).ok()
	benchmark(b, w, request{method: "GET", path: "values/some-key-of-usual-length"})
}

func BenchmarkGetMissing(b *testing.B) {
	w := newWorld(b, quiet)
	benchmark(b, w, request{method: "GET", path: "values/some-key-of-usual-length"})
}

func BenchmarkList(b *testing.B) {
	w := newWorld(b, quiet)
	w.fill(2000)
	benchmark(b, w, request{method: "GET", path: "keys"})
}

// TestAllocations holds the hot paths to what they cost.
func TestAllocations(t *testing.T) {
	w := newWorld(t, quiet)
	w.fill(2000)
	for _, tt := range []struct {
		path string
		most float64
	}{{"values/k0001", 20}, {"keys", 60}} {
		req := w.request(request{method: "GET", path: tt.path})
		out := &discard{http.Header{}}
		if got := testing.AllocsPerRun(200, func() {
			clear(out.header)
			w.server.ServeHTTP(out, req)
		}); got > tt.most {
			t.Errorf("%s: %.0f allocations, at most %.0f are meant to be", tt.path, got, tt.most)
		}
	}
}
