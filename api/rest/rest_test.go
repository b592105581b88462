package rest

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

const (
	accountID = "0123456789abcdef0123456789abcdef"
	rootToken = "root-token-of-the-tests-0123456789abcdef"
	rootEmail = "owner@example.com"
	rootKey   = "root-key-of-the-tests-0123456789abcdefgh"
)

// world is a server with what it stands on, all real but the clock.
type world struct {
	t       testing.TB
	server  *Server
	catalog *catalog.Catalog
	store   *memory.Store
	rules   *kv.Rules
	metrics *observe.Metrics
	log     *safeBuffer
	ns      catalog.Namespace
	clock   atomic.Int64 // nanoseconds added to the real time
	dropped atomic.Int64
	ready   atomic.Pointer[error]
}

// safeBuffer is a log that may be read while it is written.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newWorld returns a world with one namespace; change may alter the Config.
func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, store: memory.New(), metrics: observe.New(), log: &safeBuffer{}}
	var err error
	if w.catalog, err = catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.catalog.Close() })
	if _, err := w.catalog.EnsureRoot(t.Context(), catalog.Root{AccountID: accountID, AccountName: "Tests", Token: rootToken, Email: rootEmail, Key: rootKey}); err != nil {
		t.Fatal(err)
	}
	if w.ns, err = w.catalog.CreateNamespace(t.Context(), accountID, "first", "", 0); err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) }
	w.rules = &kv.Rules{Limits: kv.CloudflareLimits(), Stamp: kv.NewStamper(1, now), Now: now}
	cfg := Config{
		Store: w.store, Catalog: w.catalog, Rules: w.rules, Metrics: w.metrics, Version: "test",
		Logger:  slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Dropped: func() { w.dropped.Add(1) },
		Ready: func() error {
			if err := w.ready.Load(); err != nil {
				return *err
			}
			return nil
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	w.server = New(cfg)
	return w
}

// request is a request of a test. Paths that begin with "/" are whole; others are
// below the namespace of the world.
type request struct {
	method, path string
	body         string
	header       map[string]string
	token        string // "": the root token; "none": no credentials
}

// answer is an answer taken apart.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   string

	Success bool
	Errors  []struct {
		Code       int
		Message    string
		ErrorChain []struct {
			Code    int
			Message string
		} `json:"error_chain"`
	}
	Messages   []json.RawMessage
	Result     json.RawMessage
	ResultInfo struct {
		Page, Count int
		PerPage     int `json:"per_page"`
		TotalCount  int `json:"total_count"`
		TotalPages  int `json:"total_pages"`
		Cursor      string
		Cursors     struct{ After string }
	} `json:"result_info"`
}

func (w *world) path(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return basePath + "/accounts/" + accountID + "/storage/kv/namespaces/" + w.ns.ID.String() + "/" + path
}

// in is a path below the account.
func in(path string) string { return basePath + "/accounts/" + accountID + path }

func (w *world) request(r request) *http.Request {
	req := httptest.NewRequest(r.method, w.path(r.path), strings.NewReader(r.body))
	switch r.token {
	case "":
		req.Header.Set("Authorization", "Bearer "+rootToken)
	case "none":
	default:
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	return req
}

func (w *world) do(r request) answer {
	w.t.Helper()
	return w.doHolding(r, 0)
}

// doHolding does a request while others hold a part of the door.
func (w *world) doHolding(r request, others int64) answer {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, w.request(r))
	a := answer{t: w.t, status: rec.Code, header: rec.Header(), body: rec.Body.String()}
	if rec.Header().Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil {
			w.t.Fatalf("%s %s: answer %q: %v", r.method, r.path, a.body, err)
		}
	}
	if held := w.server.door.held.Load(); held != others {
		w.t.Errorf("%s %s: %d bytes are held at the door, want %d", r.method, r.path, held, others)
	}
	return a
}

func (w *world) get(path string) answer {
	w.t.Helper()
	return w.do(request{method: "GET", path: path})
}
func (w *world) put(path, body string) answer {
	w.t.Helper()
	return w.do(request{method: "PUT", path: path, body: body})
}
func (w *world) post(path, body string) answer {
	w.t.Helper()
	return w.do(request{method: "POST", path: path, body: body})
}
func (w *world) delete(path string, body ...string) answer {
	w.t.Helper()
	return w.do(request{method: "DELETE", path: path, body: strings.Join(body, "")})
}

// ok demands a success.
func (a answer) ok() answer {
	a.t.Helper()
	if a.status != 200 || a.header.Get("Content-Type") == "application/json" && (!a.Success || len(a.Errors) != 0 || a.Messages == nil) {
		a.t.Fatalf("answer %d %s, want a success", a.status, a.body)
	}
	return a
}

// fails demands an error with a status, a code and a message.
func (a answer) fails(status, code int, message string) {
	a.t.Helper()
	if a.Success || len(a.Errors) == 0 || string(a.Result) != "null" || a.Messages == nil {
		a.t.Fatalf("answer %d %s is not the envelope of a failure", a.status, a.body)
	}
	if a.status != status || a.Errors[0].Code != code || a.Errors[0].Message != message {
		a.t.Errorf("answer %d %s\nwant %d, %d %q", a.status, a.body, status, code, message)
	}
}

func (a answer) result(v any) {
	a.t.Helper()
	a.ok()
	if err := json.Unmarshal(a.Result, v); err != nil {
		a.t.Fatalf("result %s: %v", a.Result, err)
	}
}

// is demands a result.
func (a answer) is(result string) {
	a.t.Helper()
	a.ok()
	if string(a.Result) != result {
		a.t.Errorf("result %s\nwant   %s", a.Result, result)
	}
}

func (w *world) value(key string) string {
	w.t.Helper()
	return w.get("values/" + key).ok().body
}

func (w *world) names(query string) []string {
	w.t.Helper()
	var keys []struct{ Name string }
	w.get("keys" + query).result(&keys)
	names := []string{}
	for _, k := range keys {
		names = append(names, k.Name)
	}
	return names
}

// token makes a token with scopes.
func (w *world) token(scopes ...catalog.Scope) string {
	w.t.Helper()
	for i := range scopes {
		if scopes[i].AccountID == "" {
			scopes[i].AccountID = accountID
		}
	}
	_, secret, err := w.catalog.CreateToken(w.t.Context(), catalog.Token{AccountID: scopes[0].AccountID, Name: "of a test", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

func TestRoundTrip(t *testing.T) {
	w := newWorld(t)
	w.put("values/a", "hello").is("null")
	a := w.get("values/a").ok()
	if a.body != "hello" || a.header.Get("Content-Type") != "application/octet-stream" || a.header.Get("Content-Length") != "5" {
		t.Errorf("got %q with %v", a.body, a.header)
	}
	if !slices.Equal(w.names(""), []string{"a"}) {
		t.Errorf("listing: %v", w.names(""))
	}
	w.delete("values/a").is("null")
	w.delete("values/a").is("null")
	w.get("values/a").fails(404, 10009, "get: 'key not found'")
	if id := a.header.Get("X-Request-Id"); len(id) != 16 {
		t.Errorf("request id %q", id)
	}
}

func ref(w *world, key string) kv.Ref { return kv.Ref{Namespace: w.ns.ID, Key: key} }

func recordOf(w *world, req *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, req)
	return rec
}

// listen serves the world on loopback and returns its URL.
func (w *world) listen() string {
	w.t.Helper()
	server := httptest.NewUnstartedServer(w.server)
	bounds := HTTPServer(w.server)
	server.Config.ReadHeaderTimeout, server.Config.ReadTimeout = bounds.ReadHeaderTimeout, bounds.ReadTimeout
	server.Config.WriteTimeout, server.Config.IdleTimeout = bounds.WriteTimeout, bounds.IdleTimeout
	server.Config.MaxHeaderBytes = bounds.MaxHeaderBytes
	server.Start()
	w.t.Cleanup(server.Close)
	return server.URL
}
