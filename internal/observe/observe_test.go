package observe

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		t.Fatalf("metrics: %d %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

func id(n int) (space [16]byte) {
	binary.BigEndian.PutUint64(space[:], uint64(n))
	return space
}

func TestCount(t *testing.T) {
	m := New()
	r := m.Requests("rest")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				r.Count(id(1), OpGet, Hit, time.Millisecond)
				r.Count([16]byte{}, OpPut, Denied, time.Millisecond)
			}
		})
	}
	all.Wait()
	r.Count(id(1), OpNone, OK, time.Millisecond)
	m.Requests("edge").Count(id(1), OpGet, Miss, time.Second)
	text := scrape(t, m)
	name := hex.EncodeToString(func() []byte { b := id(1); return b[:] }())
	for _, want := range []string{
		`nearkey_kv_requests_total{namespace="` + name + `",op="get",result="hit",tier="rest"} 8000`,
		`nearkey_kv_requests_total{namespace="none",op="put",result="denied",tier="rest"} 8000`,
		`nearkey_kv_requests_total{namespace="` + name + `",op="get",result="miss",tier="edge"} 1`,
		`nearkey_kv_request_duration_seconds_count{op="get",tier="rest"} 8000`,
		`nearkey_kv_request_duration_seconds_bucket{op="get",tier="rest",le="0.001"} 8000`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if strings.Contains(text, `op="none"`) {
		t.Error("what is no operation was counted")
	}
}

// TestManyNamespaces: those beyond the limit share a label, and room that becomes
// free is used.
func TestStatus(t *testing.T) {
	for status, want := range map[int]struct {
		result Result
		reason string
	}{
		200: {OK, ""}, 204: {OK, ""}, 400: {Invalid, ""}, 401: {Denied, "403"}, 403: {Denied, "403"}, 404: {Invalid, ""}, 413: {Invalid, "413"},
		414: {Invalid, ""}, 429: {Rejected, "429"}, 500: {Failed, ""}, 502: {Failed, ""}, 503: {Rejected, "503"}, 507: {Rejected, "507"},
	} {
		if result, reason := ResultOf(status), Rejection(status); result != want.result || reason != want.reason {
			t.Errorf("%d is %s %q, want %s %q", status, result, reason, want.result, want.reason)
		}
	}
}

func TestManyNamespaces(t *testing.T) {
	m := New()
	r := m.Requests("rest")
	for i := range MaxNamespaces + 5 {
		r.Count(id(i+1), OpGet, Hit, 0)
	}
	text := scrape(t, m)
	if got := strings.Count(text, "nearkey_kv_requests_total{"); got != MaxNamespaces+1 {
		t.Errorf("%d series, want %d", got, MaxNamespaces+1)
	}
	if !strings.Contains(text, `{namespace="other",op="get",result="hit",tier="rest"} 5`) {
		t.Error("the namespaces beyond the limit are not under other")
	}
	r.Forget(id(1))
	r.Forget([16]byte{})
	r.Count(id(MaxNamespaces+1), OpGet, Hit, 0)
	text = scrape(t, m)
	gone, come := id(1), id(MaxNamespaces+1)
	if strings.Contains(text, hex.EncodeToString(gone[:])) || !strings.Contains(text, hex.EncodeToString(come[:])) {
		t.Error("the room of a namespace that was forgotten is not used")
	}
	r.Count([16]byte{}, OpGet, Denied, 0)
	if !strings.Contains(scrape(t, m), `{namespace="none",`) {
		t.Error("forgetting no namespace has an effect")
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for op := range ops {
		seen[op.String()] = true
	}
	for result := range results {
		seen[result.String()] = true
	}
	if seen[""] || len(seen) != int(ops)+int(results) {
		t.Errorf("names: %v", seen)
	}
}

func TestOthers(t *testing.T) {
	m := New()
	m.Build("v1.2.3")
	m.Gauge("test_gauge", "A gauge.", func() float64 { return 7 })
	m.Counter("test_total", "A counter.", func() float64 { return 8 })
	for i, name := range []string{"a", "b"} {
		of := m.With(map[string]string{"provider": name})
		of.Gauge("test_of_gauge", "A gauge.", func() float64 { return float64(i) })
		of.Counter("test_of_total", "A counter.", func() float64 { return float64(i) })
	}
	m.Rejected("429")
	m.Written(3)
	m.Read(4)
	m.Panicked()
	text := scrape(t, m)
	for _, want := range []string{`nearkey_build_info{goversion="go`, `version="v1.2.3"} 1`, "test_gauge 7", "test_total 8",
		`test_of_gauge{provider="a"} 0`, `test_of_gauge{provider="b"} 1`, `test_of_total{provider="b"} 1`,
		`nearkey_kv_rejected_total{reason="429"} 1`, "nearkey_kv_written_bytes_total 3", "nearkey_kv_read_bytes_total 4", "nearkey_panics_total 1", "process_open_fds"} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}
}

func TestNone(t *testing.T) {
	var m *Metrics
	m.Build("v")
	m.Gauge("g", "", nil)
	m.Counter("c", "", nil)
	m.With(nil).Gauge("g", "", nil)
	m.With(nil).Counter("c", "", nil)
	m.Rejected("x")
	m.Written(1)
	m.Read(1)
	m.Panicked()
	r := m.Requests("rest")
	r.Count(id(1), OpGet, Hit, 0)
	r.Forget(id(1))
	rec := httptest.NewRecorder()
	if m.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil)); rec.Code != 404 {
		t.Errorf("no metrics: %d", rec.Code)
	}
}

func TestCountAllocatesNothing(t *testing.T) {
	r := New().Requests("rest")
	space := id(1)
	r.Count(space, OpGet, Hit, time.Millisecond)
	if got := testing.AllocsPerRun(1000, func() { r.Count(space, OpGet, Hit, time.Millisecond) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkCount(b *testing.B) {
	r := New().Requests("rest")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Count([16]byte{1}, OpGet, Hit, time.Millisecond)
		}
	})
}

func TestRequestID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewRequestID()
		if !SaneRequestID(id) || len(id) != 16 || seen[id] {
			t.Fatalf("request id %q", id)
		}
		seen[id] = true
	}
	for id, want := range map[string]bool{"1234567": false, "12345678": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false, "abcd\nefgh": false, "abcdéfgh": false, "abcd efgh": false, "": false} {
		if SaneRequestID(id) != want {
			t.Errorf("SaneRequestID(%q) is %v", id, !want)
		}
	}
}

func TestLogHandler(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(LogHandler{slog.NewTextHandler(&buf, nil)})
	ctx := WithRequestID(t.Context(), "the-request")
	if RequestID(ctx) != "the-request" || RequestID(context.WithoutCancel(ctx)) != "the-request" || RequestID(t.Context()) != "" {
		t.Error("the context does not keep the id")
	}
	log.InfoContext(ctx, "one")
	log.With("a", 1).InfoContext(ctx, "two")
	log.WithGroup("g").InfoContext(ctx, "three")
	log.InfoContext(t.Context(), "four")
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 4 {
		t.Fatal(fmt.Sprint(lines))
	}
	for i, line := range lines {
		if strings.Contains(line, "request_id=the-request") != (i < 3) {
			t.Errorf("line %d: %s", i, line)
		}
	}
}
