package rest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

var errTimeout = fmt.Errorf("read: %w", os.ErrDeadlineExceeded)

func TestHealth(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := w.do(request{method: "GET", path: path, token: "none"}); a.status != 200 || a.body != `{"status":"ok"}` {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for err, text := range map[error]string{
		fmt.Errorf("/secret/path: %w", kv.ErrFull): "not ready: store is out of space",
		errors.New("/secret/path"):                 "not ready",
	} {
		w.ready.Store(&err)
		w.do(request{method: "GET", path: "/readyz", token: "none"}).fails(503, 7010, text)
	}
	if a := w.do(request{method: "GET", path: "/healthz", token: "none"}); a.status != 200 {
		t.Errorf("not ready is not dead: %d", a.status)
	}
	if !strings.Contains(w.log.String(), "/secret/path") {
		t.Error("the log does not say why it was not ready")
	}
}

func TestMetricsAccess(t *testing.T) {
	w := newWorld(t)
	w.secondAccount()
	scrape := func(token, peer string, header ...string) int {
		req := w.request(request{method: "GET", path: "/metrics", token: token})
		req.RemoteAddr = peer
		for _, name := range header {
			req.Header.Set(name, "203.0.113.9")
		}
		return recordOf(w, req).Code
	}
	one := w.token(catalog.Scope{Permission: catalog.Read})
	for _, tt := range []struct {
		token, peer string
		header      []string
		want        int
	}{
		{"none", "127.0.0.1:5000", nil, 200}, {"none", "[::1]:5000", nil, 200}, {"none", "[::ffff:127.0.0.1]:5000", nil, 200},
		{"none", "192.0.2.1:5000", nil, 400}, {"none", "", nil, 400}, {"none", "@", nil, 400},
		{"none", "127.0.0.1:5000", []string{"X-Forwarded-For"}, 400}, {"none", "127.0.0.1:5000", []string{"Forwarded"}, 400}, {"none", "127.0.0.1:5000", []string{"Via"}, 400},
		{rootToken, "192.0.2.1:5000", nil, 200}, {one, "192.0.2.1:5000", nil, 403}, {"unknown-token-of-the-tests", "192.0.2.1:5000", nil, 403},
	} {
		if got := scrape(tt.token, tt.peer, tt.header...); got != tt.want {
			t.Errorf("%s from %s %v: %d, want %d", tt.token, tt.peer, tt.header, got, tt.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.put("values/a", "hello").ok()
	w.get("values/a").ok()
	w.get("values/none")
	w.get("metadata/a").ok()
	w.put("values/a?expiration_ttl=1", "v")
	w.post("bulk/get", `{"keys":["a"]}`).ok()
	w.do(request{method: "GET", path: "values/a", token: "unknown-token-of-the-tests"})
	w.get(in("/storage/kv/namespaces/" + nsID + "/values/a"))
	req := w.request(request{method: "GET", path: "/metrics"})
	text := recordOf(w, req).Body.String()
	ns := w.ns.ID.String()
	for _, want := range []string{
		`nearkey_kv_requests_total{namespace="` + ns + `",op="put",result="ok",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="` + ns + `",op="get",result="hit",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="` + ns + `",op="get",result="miss",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="` + ns + `",op="metadata",result="hit",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="` + ns + `",op="put",result="invalid",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="` + ns + `",op="bulk_get",result="ok",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="none",op="get",result="denied",tier="rest"} 1`,
		`nearkey_kv_requests_total{namespace="none",op="get",result="invalid",tier="rest"} 1`,
		`nearkey_kv_request_duration_seconds_count{op="put",tier="rest"} 2`,
		`nearkey_kv_rejected_total{reason="403"} 1`,
		`nearkey_kv_written_bytes_total 5`, `nearkey_kv_read_bytes_total 10`,
		`nearkey_door_bytes 0`, `nearkey_door_limit_bytes 1.34217728e+08`,
		`nearkey_build_info{goversion="go1.`, `go_goroutines `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}
	w.delete(in("/storage/kv/namespaces/" + ns)).ok()
	if text := recordOf(w, req).Body.String(); strings.Contains(text, ns) {
		t.Error("the series of a deleted namespace are still there")
	}
	none := New(Config{Store: w.store, Catalog: w.catalog, Rules: w.rules})
	w.server = none
	if rec := recordOf(w, req); rec.Code != 404 {
		t.Errorf("without metrics: %d", rec.Code)
	}
	w.put("values/a", "v")
}
