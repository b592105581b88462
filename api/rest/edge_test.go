package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

// point is a point of presence: a server before a tier, without a catalog. The
// world that it is in the place of is its centre.
type point struct {
	*world
	centre  *world
	far     *kvtest.Faulty
	fault   atomic.Int64 // of every call of the far store
	tier    *edge.Tier
	replica *catalog.Replica
	cursor  kv.Cursor
	late    atomic.Int64 // nanoseconds added to the tier's clock
}

// newPoint returns a point of presence of a new centre, in whose store everything
// is published; change may alter its Config.
func newPoint(t testing.TB, change ...func(*Config)) *point {
	t.Helper()
	centre := newWorld(t)
	p := &point{centre: centre}
	publish(t, centre)
	p.far = &kvtest.Faulty{Store: centre.store, Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Fault(p.fault.Load()) }}
	now := func() time.Time { return time.Now().Add(time.Duration(p.late.Load())) }
	p.tier = edge.New(p.far, edge.Options{Now: now})
	p.replica = catalog.NewReplica(p.tier, catalog.ReplicaOptions{})
	_, head, err := centre.store.Changes(t.Context(), kv.Cursor{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	p.cursor = head
	w := &world{t: t, catalog: centre.catalog, store: centre.store, rules: centre.rules, ns: centre.ns, metrics: observe.New(), log: &safeBuffer{}}
	cfg := Config{Store: p.tier, Authority: p.replica, Rules: w.rules, Metrics: w.metrics, MaxAge: time.Minute,
		Logger: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&cfg)
	}
	w.server = New(cfg)
	p.world = w
	return p
}

// publish publishes the catalog of a centre, once and then with each change.
func publish(t testing.TB, centre *world) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	publisher := catalog.NewPublisher(centre.catalog, centre.store, centre.rules.Stamp, nil)
	done := make(chan error, 1)
	go func() { done <- publisher.Run(ctx) }()
	nearkeytest.Until(t, "the catalog is published", func() bool {
		page, err := centre.store.List(t.Context(), catalog.Reserved, kv.ListOptions{})
		return err == nil && len(page.Keys) == 3
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// notice tells the tier of all changes since it was last told, as the feed does.
func (p *point) notice() {
	p.t.Helper()
	changes, next, err := p.centre.store.Changes(p.t.Context(), p.cursor, kv.MaxChanges)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cursor = next
	p.tier.Changed(changes)
	p.replica.Changed(changes)
}

// passing passes requests on to the centre, over a real connection.
func (p *point) passing() {
	target, err := url.Parse(p.centre.listen())
	if err != nil {
		p.t.Fatal(err)
	}
	p.server.forward = &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

// TestPointWithoutCatalog: keys and values are served while the database is gone.
func TestPointWithoutCatalog(t *testing.T) {
	p := newPoint(t)
	token := p.token(catalog.Scope{Permission: catalog.Write, Namespace: p.ns.ID, Prefix: "a"})
	if err := p.centre.catalog.Close(); err != nil {
		t.Fatal(err)
	}
	p.put("values/a?metadata=", "v").ok()
	p.get("values/a").ok()
	p.do(request{method: "GET", path: "values/a", token: token}).ok()
	p.do(request{method: "GET", path: "values/b", token: token}).fails(403, 10000, "Authentication error")
	p.do(request{method: "GET", path: "values/a", token: "none", header: map[string]string{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey}}).ok()
	p.do(request{method: "GET", path: "values/a", token: "unknown-token-of-the-tests"}).fails(403, 10000, "Authentication error")
	p.get(in("/storage/kv/namespaces/"+nsID+"/values/a")).fails(404, 10013, "get: 'namespace not found'")
	p.get(basePath+"/accounts/"+otherAccount+"/storage/kv/namespaces/"+p.ns.ID.String()+"/values/a").fails(404, 10013, "get: 'namespace not found'")
	p.put("bulk", `[{"key":"b","value":"w"}]`).ok()
	p.post("bulk/get", `{"keys":["a","b"]}`).is(`{"values":{"a":"v","b":"w"}}`)
	p.get("metadata/a").is("null")
	if !slices.Equal(p.names(""), []string{"a", "b"}) {
		t.Error(p.names(""))
	}
	p.delete("values/a").ok()
	p.get("values/a").fails(404, 10009, "get: 'key not found'")
	p.post("bulk/delete", `["b"]`).ok()
	p.get("values/b").fails(404, 10009, "get: 'key not found'")
}

// TestPassedOn: what is in the catalog is answered as the centre answers it.
func TestPassedOn(t *testing.T) {
	p := newPoint(t)
	p.passing()
	limited := p.token(catalog.Scope{Permission: catalog.Read, Namespace: p.ns.ID})
	space := "/storage/kv/namespaces/" + p.ns.ID.String()
	for _, r := range []request{
		{method: "GET", path: basePath + "/user"},
		{method: "GET", path: "/client/v4//user"},
		{method: "GET", path: basePath + "/user", token: limited},
		{method: "GET", path: basePath + "/user", token: "none"},
		{method: "GET", path: basePath + "/user", token: "unknown-token-of-the-tests"},
		{method: "GET", path: basePath + "/user/tokens/verify"},
		{method: "GET", path: basePath + "/user/tokens/verify", token: "unknown-token-of-the-tests"},
		{method: "GET", path: basePath + "/memberships?page=1"},
		{method: "GET", path: basePath + "/accounts?per_page=5"},
		{method: "GET", path: basePath + "/accounts?per_page=none"},
		{method: "PATCH", path: basePath + "/accounts"},
		{method: "GET", path: in("")},
		{method: "GET", path: in("/tokens")},
		{method: "GET", path: in("/tokens/verify")},
		{method: "GET", path: in("/tokens/0123")},
		{method: "POST", path: in("/tokens"), body: `{"name":""}`},
		{method: "GET", path: in("/storage/kv/namespaces")},
		{method: "GET", path: in("/workers/namespaces?order=id")},
		{method: "GET", path: in("/storage/kv/namespaces"), token: limited},
		{method: "DELETE", path: in("/storage/kv/namespaces/")},
		{method: "GET", path: in(space)},
		{method: "GET", path: in("/workers/namespaces/" + p.ns.ID.String())},
		{method: "PUT", path: in(space), body: `{"title":"é <renamed>"}`},
		{method: "PUT", path: in(space), body: `{`},
		{method: "PUT", path: in("/storage/kv/namespaces/%2e%2e"), body: `{"title":"x"}`},
	} {
		want := p.centre.do(r)
		got := p.do(r)
		if got.status != want.status || got.body != want.body || got.header.Get("Content-Type") != want.header.Get("Content-Type") {
			t.Errorf("%s %s:\npassed on %d %s\ncentre    %d %s", r.method, r.path, got.status, got.body, want.status, want.body)
		}
		if len(got.header.Values("X-Request-Id")) != 1 || got.header.Get("Allow") != want.header.Get("Allow") {
			t.Errorf("%s %s: header %v", r.method, r.path, got.header)
		}
	}
	head := recordOf(p.world, p.request(request{method: "HEAD", path: basePath + "/accounts"}))
	if whole := p.get(basePath + "/accounts").ok().header; head.Code != 200 || head.Header().Get("Content-Length") != whole.Get("Content-Length") {
		t.Errorf("HEAD: %d with %v", head.Code, head.Header())
	}
	id := "an-id-of-the-client"
	p.do(request{method: "GET", path: in("/tokens"), header: map[string]string{"X-Request-Id": id}}).ok()
	if !strings.Contains(p.log.String(), id) || !strings.Contains(p.centre.log.String(), id) {
		t.Error("the id of the request is not in both logs")
	}
}

// TestPassedOnChanges: a namespace and a token that were made through a point of
// presence can be used through it at once, and not after they were removed.
func TestPassedOnChanges(t *testing.T) {
	p := newPoint(t)
	p.passing()
	var made struct{ ID, Value string }
	p.post(in("/storage/kv/namespaces"), `{"title":"made"}`).result(&made)
	space := in("/storage/kv/namespaces/" + made.ID)
	p.put(space+"/values/k", "v").ok()

	var token struct{ ID, Value string }
	p.post(in("/tokens"), `{"name":"t","policies":[{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.nearkey.kv.namespace.`+made.ID+`":"*"}}]}`).result(&token)
	use := request{method: "GET", path: space + "/values/k", token: token.Value}
	p.do(use).ok()
	p.delete(in("/tokens/" + token.ID)).ok()
	before := p.replica.Epoch()
	p.do(use).ok() // it is not known here yet
	p.notice()
	p.do(use).fails(403, 10000, "Authentication error")
	if p.replica.Epoch() == before {
		t.Error("the end of a right did not change the epoch")
	}
	p.get(space + "/values/k").ok()
	p.delete(space).ok()
	p.notice()
	p.get(space+"/values/k").fails(404, 10013, "get: 'namespace not found'")
}

// TestRevocationInTime: without word of it a revocation is seen after CacheFor.
func TestRevocationInTime(t *testing.T) {
	p := newPoint(t)
	token, secret, err := p.catalog.CreateToken(t.Context(), catalog.Token{AccountID: accountID, Name: "a", Scopes: []catalog.Scope{{Permission: catalog.Write}}})
	if err != nil {
		t.Fatal(err)
	}
	use := request{method: "PUT", path: "values/k", body: "v", token: secret}
	p.do(use).ok()
	if err := p.catalog.RevokeToken(t.Context(), accountID, token.ID); err != nil {
		t.Fatal(err)
	}
	p.do(use).ok()
	p.late.Store(int64(catalog.CacheFor + time.Second))
	p.do(use).fails(403, 10000, "Authentication error")
}

// TestPointWithoutCentre: what is near is served, marked, and the rest says why
// it is not.
func TestPointWithoutCentre(t *testing.T) {
	p := newPoint(t)
	token := p.token(catalog.Scope{Permission: catalog.Write})
	p.centre.put("values/k", "v").ok()
	p.get("values/k").ok()
	p.fault.Store(int64(kvtest.Refused))
	p.late.Store(int64(10 * time.Minute))
	a := p.get("values/k").ok()
	if a.body != "v" || a.header.Get("Cf-Cache-Status") != "STALE" || a.header.Get("Age") != "600" {
		t.Errorf("%q with %v", a.body, a.header)
	}
	const later = "The service is not available at this moment. Please try again."
	p.get("values/other").fails(503, 7010, later)
	p.do(request{method: "GET", path: "values/k", token: token}).fails(503, 7010, later)
	p.fault.Store(int64(kvtest.None))
	p.do(request{method: "GET", path: "values/k", token: token}).ok()
}

// TestReservedNamespace: nobody reaches what is published, not even with the root
// token, at the centre or elsewhere.
func TestReservedNamespace(t *testing.T) {
	p := newPoint(t)
	p.passing()
	for _, w := range []*world{p.world, p.centre} {
		for _, id := range []string{catalog.Reserved.String(), strings.ToUpper(catalog.Reserved.String()), "ffffffff-ffff-ffff-ffff-ffffffffffff",
			catalog.Workers.String(), strings.ToUpper(catalog.Workers.String())} {
			for _, r := range []request{
				{method: "GET", path: ""}, {method: "PUT", path: "", body: `{"title":"mine"}`}, {method: "DELETE", path: ""},
				{method: "GET", path: "/keys"}, {method: "GET", path: "/values/token"}, {method: "PUT", path: "/values/token", body: "v"}, {method: "DELETE", path: "/values/token"},
				{method: "GET", path: "/metadata/token"}, {method: "PUT", path: "/bulk", body: `[{"key":"k","value":"v"}]`}, {method: "DELETE", path: "/bulk", body: `["k"]`},
				{method: "POST", path: "/bulk/delete", body: `["k"]`}, {method: "POST", path: "/bulk/get", body: `{"keys":["k"]}`},
			} {
				r.path = in("/storage/kv/namespaces/" + id + r.path)
				if a := w.do(r); a.status != 404 || a.Errors[0].Code != codeNamespaceNotFound {
					t.Errorf("%s %s: %d %s", r.method, r.path, a.status, a.body)
				}
			}
		}
	}
	if spaces := p.get(in("/storage/kv/namespaces")).ok().body; strings.Contains(spaces, catalog.Reserved.String()) || strings.Contains(spaces, catalog.Workers.String()) {
		t.Error("it is listed")
	}
}

// TestPassedBody: bodies are passed on as they come, up to a limit.
func TestPassedBody(t *testing.T) {
	p := newPoint(t)
	p.passing()
	base := p.listen()
	post := func(n int, chunked bool) (int, string) {
		t.Helper()
		text := `{"title":""` + strings.Repeat(" ", n-12) + `}`
		var body io.Reader = strings.NewReader(text)
		if chunked {
			body = io.MultiReader(body) // of which net/http knows no length
		}
		req, err := http.NewRequestWithContext(t.Context(), "POST", base+in("/storage/kv/namespaces"), body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+rootToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(answer)
	}
	for _, chunked := range []bool{false, true} {
		if status, text := post(controlBodyBytes, chunked); status != 400 || !strings.Contains(text, "10019") {
			t.Errorf("a body at the limit (chunked: %v): %d %s", chunked, status, text)
		}
		if status, text := post(controlBodyBytes+1, chunked); status != 413 || !strings.Contains(text, "too large") {
			t.Errorf("a body past the limit (chunked: %v): %d %s", chunked, status, text)
		}
	}
}

// TestPassedAnswers: what is not an answer of the API becomes one.
func TestPassedAnswers(t *testing.T) {
	p := newPoint(t)
	const text = "Accounts, namespaces and tokens cannot be reached at this moment. Please try again."
	answering := func(status int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("X-Of-The-Proxy", "1")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	path := in("/tokens")
	for name, forward := range map[string]http.Handler{
		"none":    nil,
		"gateway": answering(502, "", ""),
		"page":    answering(504, "text/html", "<html>"),
		"silent":  http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
	} {
		p.server.forward = forward
		a := p.get(path)
		a.fails(503, 7010, text)
		if a.header.Get("Retry-After") == "" || a.header.Get("X-Of-The-Proxy") != "" || len(a.header.Values("X-Request-Id")) != 1 {
			t.Errorf("%s: header %v", name, a.header)
		}
	}
	const failed = `{"success":false,"errors":[{"code":1,"message":"m"}],"messages":[],"result":null}`
	for _, status := range []int{200, 404, 500, 503} {
		p.server.forward = answering(status, "application/json", failed)
		if a := p.get(path); a.status != status || a.body != failed || a.header.Get("X-Of-The-Proxy") != "1" {
			t.Errorf("%d: %d %s", status, a.status, a.body)
		}
	}
	p.server.forward = answering(404, "text/plain", "no")
	if a := p.get(path); a.status != 404 || a.body != "no" {
		t.Errorf("%d %s", a.status, a.body)
	}
	p.server.forward = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	func() {
		defer func() {
			if recover() != http.ErrAbortHandler {
				t.Error("an answer that was cut off is not cut off")
			}
		}()
		p.get(path)
	}()
	if text := p.log.String(); strings.Contains(text, rootToken) || !strings.Contains(text, "status 502") {
		t.Error("the log")
	}
}

// TestPassedOnHung: a centre that does not answer costs a bounded time.
func TestPassedOnHung(t *testing.T) {
	p := newPoint(t)
	p.server.forward = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		w.WriteHeader(http.StatusBadGateway)
	})
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		rec := httptest.NewRecorder()
		p.server.ServeHTTP(rec, p.request(request{method: "GET", path: in("/tokens")}))
		if took := time.Since(began); took != forwardTimeout || rec.Code != 503 {
			t.Errorf("%d after %s", rec.Code, took)
		}
	})
}

// TestPassedBodyEnds: nobody reads a body after its request was answered.
func TestPassedBodyEnds(t *testing.T) {
	p := newPoint(t)
	var body io.ReadCloser
	p.server.forward = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body = r.Body
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, nothing)
	})
	p.post(in("/tokens"), "{}").ok()
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("reading after the answer: %v", err)
	}
}

func TestMetricsOfAPoint(t *testing.T) {
	p := newPoint(t)
	one := p.token(catalog.Scope{Permission: catalog.Write})
	for token, want := range map[string]int{rootToken: 200, one: 403, "none": 400} {
		req := p.request(request{method: "GET", path: "/metrics", token: token})
		req.RemoteAddr = "192.0.2.1:5000"
		if got := recordOf(p.world, req).Code; got != want {
			t.Errorf("%s: %d, want %d", token, got, want)
		}
	}
}

// TestCacheStatus: how a tier came by an answer, and how old it is.
func TestCacheStatus(t *testing.T) {
	p := newPoint(t)
	expect := func(path, status, age string) {
		t.Helper()
		a := p.get(path)
		if a.header.Get("Cf-Cache-Status") != status || a.header.Get("Age") != age {
			t.Errorf("%s: %v, want %s and %s", path, a.header, status, age)
		}
	}
	p.centre.put("values/k?expiration_ttl=600", "v").ok()
	expect("values/k", "MISS", "0")
	expect("values/k", "HIT", "0")
	p.late.Store(int64(59*time.Second + 999*time.Millisecond))
	expect("values/k", "HIT", "59")
	expect("metadata/k", "HIT", "59")
	expect("values/none", "MISS", "0")
	expect("values/none", "HIT", "0")
	p.late.Store(int64(61 * time.Second))
	expect("values/k", "EXPIRED", "0")
	p.centre.put("values/k", "w").ok()
	p.notice()
	expect("values/k", "EXPIRED", "0")
	p.late.Store(int64(200 * time.Second))
	p.fault.Store(int64(kvtest.Refused))
	expect("values/k", "STALE", "139")
	expect("values/unknown", "", "")
	p.fault.Store(int64(kvtest.None))

	text := recordOf(p.world, p.request(request{method: "GET", path: "/metrics"})).Body.String()
	for _, want := range []string{`nearkey_kv_cache_hits_total{tier="rest"} 4`, `nearkey_kv_cache_misses_total{tier="rest"} 4`, `nearkey_kv_stale_served_total{tier="rest"} 1`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if a := p.centre.get("values/k").ok(); a.header.Get("Age") != "" || a.header.Get("Cf-Cache-Status") != "" {
		t.Errorf("a store that is no tier: %v", a.header)
	}
}

// TestCacheTTL: readers say how old an answer may be.
func TestCacheTTL(t *testing.T) {
	p := newPoint(t)
	p.centre.put("values/k", "old").ok()
	bulk := func(more string) string {
		t.Helper()
		return p.post("bulk/get", `{"keys":["k"]`+more+`}`).ok().body
	}
	aged := func() {
		p.centre.put("values/k", "old").ok()
		p.do(request{method: "GET", path: "values/k", header: map[string]string{"Cache-Control": "no-cache"}}).ok()
		p.centre.put("values/k", "new").ok()
		p.late.Add(int64(40 * time.Second))
	}
	for path, want := range map[string]string{
		"values/k": "old", "values/k?cacheTtl=41": "old", "values/k?cache_ttl=41": "old", "values/k?cacheTtl=9007199254740991": "old",
		"values/k?cacheTtl=39": "new", "values/k?cache_ttl=30": "new", "values/k?a=b&cache%54tl=30": "new",
	} {
		aged()
		if got := p.get(path).ok().body; got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for more, want := range map[string]string{
		``: "old", `,"cacheTtl":41`: "old", `,"cacheTtl":"41"`: "old", `,"cacheTtl":null`: "old", `,"cacheTtl":39`: "new", `,"cacheTtl":"30"`: "new",
	} {
		aged()
		if got := bulk(more); !strings.Contains(got, want) {
			t.Errorf("bulk get with %s: %s, want %s", more, got, want)
		}
	}
	for header, want := range map[string]string{"no-cache": "new", "No-Cache": "new", "max-age=9, no-cache": "new", "max-age=0": "old", "no-cache=x": "old", "": "old"} {
		for _, r := range []request{{method: "GET", path: "values/k?cacheTtl=60"}, {method: "POST", path: "bulk/get", body: `{"keys":["k"],"cacheTtl":60}`}} {
			aged()
			r.header = map[string]string{"Cache-Control": header}
			if got := p.do(r).ok().body; !strings.Contains(got, want) {
				t.Errorf("%s with %q: %s, want %s", r.path, header, got, want)
			}
		}
	}
	for text, message := range map[string]string{
		"29": "Invalid cache_ttl of 29. Cache TTL must be at least 30.", "-1": "Invalid cache_ttl of -1. Cache TTL must be at least 30.",
		"1e3": "Invalid cache_ttl of 1e3. Please specify an integer.", "99999999999999999999": "Invalid cache_ttl of 99999999999999999999. Please specify an integer.",
	} {
		for _, path := range []string{"values/k?cacheTtl=" + text, "metadata/k?cacheTtl=" + text, "values/k?cache_ttl=" + text} {
			p.get(path).fails(400, codeInvalid, "get: '"+message+"'")
		}
		if text[0] != '9' {
			p.post("bulk/get", `{"keys":["k"],"cacheTtl":`+text+`}`).fails(400, codeInvalid, "bulk get keys: '"+message+"'")
		}
	}
	p.get("values/k?cacheTtl=%").fails(400, codeInvalid, "get: 'Could not URL-decode the query parameter cacheTtl'")
	p.post("bulk/get", `{"keys":["k"],"cacheTtl":true}`).fails(400, codeInvalid, "bulk get keys: 'A cacheTtl must be a number'")
	p.rules.Limits.MinCacheTTL = 0
	aged()
	if got := p.get("values/k?cacheTtl=0").ok().body; got != "new" {
		t.Errorf("a cacheTtl of 0 where it is allowed: %s", got)
	}
}

// TestStrongByDefault: without Config.MaxAge nothing stale is served.
func TestStrongByDefault(t *testing.T) {
	p := newPoint(t, func(cfg *Config) { cfg.MaxAge = 0 })
	for i := range 3 {
		p.centre.put("values/k", fmt.Sprint(i)).ok()
		p.late.Add(1)
		if got := p.value("k"); got != fmt.Sprint(i) {
			t.Errorf("got %s, want %d", got, i)
		}
	}
}

func BenchmarkGetAtPoint(b *testing.B) {
	p := newPoint(b, quiet)
	p.put("values/some-key-of-usual-length", string(make([]byte, 288))).ok()
	benchmark(b, p.world, request{method: "GET", path: "values/some-key-of-usual-length"})
}

func BenchmarkRightsAtPoint(b *testing.B) {
	p := newPoint(b, quiet)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.replica.Authenticate(b.Context(), rootToken); err != nil {
			b.Fatal(err)
		}
		if _, err := p.replica.Namespace(b.Context(), accountID, p.ns.ID); err != nil {
			b.Fatal(err)
		}
	}
}
