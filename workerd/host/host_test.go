package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/host"
)

// world is a control plane, and a host that reads what it publishes through a tier.
type world struct {
	t       *testing.T
	catalog *catalog.Catalog
	account string
	runtime *workerd.Runtime
	host    *host.Host
	keys    *catalog.Keys
	records *catalog.WorkerReplica
	down    atomic.Bool // the control plane
	log     logs        // of the runtime
}

// logs are lines of a log.
type logs struct {
	mu   sync.Mutex
	text strings.Builder // mu
}

func (l *logs) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func start(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "nk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t}
	far := &kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault {
		if w.down.Load() {
			return kvtest.Refused
		}
		return kvtest.None
	}}
	tier := edge.New(far, edge.Options{MaxSkew: -1})
	if w.catalog, err = catalog.Open(t.Context(), filepath.Join(dir, "catalog.db")); err != nil {
		t.Fatal(err)
	}
	stamp := kv.NewStamper(1, nil)
	w.catalog.UseWorkers(tier, stamp)
	catalog.NewPublisher(w.catalog, tier, stamp, nil)
	account, err := w.catalog.EnsureRoot(t.Context(), catalog.Root{Token: catalog.NewSecret(), Email: "owner@localhost"})
	if err != nil {
		t.Fatal(err)
	}
	w.account = account.ID
	if w.keys, err = catalog.CreateKeys(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	w.runtime = workerd.New(workerd.Options{
		Path: nearkeytest.NeedWorkerd(t), Dir: filepath.Join(dir, "run"), Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	w.records = catalog.NewWorkerReplica(tier, catalog.ReplicaOptions{MaxAge: time.Hour})
	w.host = host.New(host.Config{
		Records: w.records, Runtime: w.runtime, Keys: w.keys,
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- w.runtime.Run(ctx) }()
	go func() { ended <- w.host.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, <-ended, w.catalog.Close()); err != nil {
			t.Error(err)
		}
		if n := w.runtime.Processes(); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	})
	return w
}

// deploy adds a version of a Worker to which all requests go, and returns its id.
func (w *world) deploy(name, code string, bindings ...catalog.WorkerBinding) string {
	w.t.Helper()
	ctx := w.t.Context()
	hashes, err := w.catalog.PutModules(ctx, [][]byte{[]byte(code)})
	if err != nil {
		w.t.Fatal(err)
	}
	base := ""
	if latest, err := w.catalog.LatestVersion(ctx, w.account, name); err == nil {
		base = latest.ID
	}
	_, version, err := w.catalog.AddVersion(ctx, w.account, name, catalog.NewVersion{
		Base: base, Create: true, Deploy: true,
		Manifest: catalog.Manifest{
			Main: "index.js", CompatibilityDate: "2026-01-01", Bindings: bindings,
			Modules: []catalog.WorkerModule{{Name: "index.js", Type: "application/javascript+module", Hash: hashes[0], Size: len(code)}},
		},
	})
	if err == nil {
		_, err = w.catalog.SetWorkerSubdomain(ctx, w.account, name, true, false)
	}
	if err == nil {
		_, err = w.catalog.Subdomain(ctx, w.account)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.tell()
	return version.ID
}

// tell tells the host that something has changed.
func (w *world) tell() { w.host.Changed([]kv.Change{{Ref: kv.Ref{Namespace: catalog.Workers}}}) }

func (w *world) ask(host, path string, header ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	r := httptest.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+host+path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.host.ServeHTTP(rec, r)
	return rec
}

func (w *world) want(host, path string, status int, body string) {
	w.t.Helper()
	if rec := w.ask(host, path); rec.Code != status || !strings.Contains(rec.Body.String(), body) {
		w.t.Fatalf("%s%s: %d %q, want %d %q", host, path, rec.Code, rec.Body, status, body)
	}
}

// code is a module Worker that answers with a text.
func code(text string) string {
	return fmt.Sprintf("export default { fetch() { return new Response(%q); } }", text)
}

const site = "hello.dev.workers.localhost:8791"

// A deploy is seen by the next request, a Worker that is gone by the one after.
func TestDeployReplaceDelete(t *testing.T) {
	w := start(t)
	w.want(site, "/", http.StatusNotFound, "no Worker at hello.dev.workers.localhost")
	for _, text := range []string{"one", "two", "three"} {
		w.deploy("hello", code(text))
		w.want(site, "/", http.StatusOK, text)
	}
	if err := w.catalog.DeleteWorker(t.Context(), w.account, "hello"); err != nil {
		t.Fatal(err)
	}
	w.want(site, "/", http.StatusNotFound, "no Worker")
	w.deploy("hello", code("again"))
	w.want("HELLO.dev.Workers.localhost.", "/", http.StatusOK, "again")
}

// A version that does not start here leaves the one before it where it is, and does
// not hold every request up.
func TestVersionThatDoesNotStart(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("one"))
	w.want(site, "/", http.StatusOK, "one")
	w.deploy("hello", "throw new Error('not here')")
	for range 3 {
		w.want(site, "/", http.StatusOK, "one")
	}
	w.deploy("hello", code("two"))
	w.want(site, "/", http.StatusOK, "two")
}

// Without the control plane what is loaded goes on, and so does what was read.
func TestControlPlaneDown(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("one"))
	w.want(site, "/", http.StatusOK, "one")
	w.down.Store(true)
	w.want(site, "/", http.StatusOK, "one")
	w.want("never.dev.workers.localhost", "/", http.StatusServiceUnavailable, "cannot be read")
}

// Secrets reach the Worker; one that cannot be opened does not start, and says why
// in the log, not to the client.
func TestSecrets(t *testing.T) {
	w := start(t)
	sealed, err := w.keys.Seal(w.account, "hello", "S", "it's secret")
	if err != nil {
		t.Fatal(err)
	}
	show := `export default { fetch(request, env) { return new Response(env.S); } }`
	w.deploy("hello", show, catalog.WorkerBinding{Name: "S", Type: "secret_text", Sealed: sealed})
	w.want(site, "/", http.StatusOK, "it's secret")
	w.deploy("other", show, catalog.WorkerBinding{Name: "S", Type: "secret_text", Sealed: sealed}) // sealed for another Worker
	w.want("other.dev.workers.localhost", "/", http.StatusServiceUnavailable, "cannot be started here")
}

// Who answers for a URL: a name on the subdomain, the most specific route, a custom
// domain, in this order.
func TestPrecedence(t *testing.T) {
	w := start(t)
	for _, name := range []string{"all", "api", "deep", "whole"} {
		w.deploy(name, code(name))
	}
	ctx := t.Context()
	routes := func(name string, patterns ...string) {
		t.Helper()
		var inputs []catalog.RouteInput
		for _, p := range patterns {
			inputs = append(inputs, catalog.RouteInput{Pattern: p, ZoneName: "example.com"})
		}
		if _, err := w.catalog.ReplaceWorkerRoutes(ctx, w.account, name, inputs); err != nil {
			t.Fatal(err)
		}
	}
	routes("all", "*.example.com/*", "example.com/*")
	routes("api", "shop.example.com/api/*")
	routes("deep", "shop.example.com/api/v2/*")
	if _, err := w.catalog.ReplaceWorkerDomains(ctx, w.account, "whole", []string{"whole.test"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ host, path, body string }{
		{"example.com", "/", "all"},
		{"a.b.example.com", "/x", "all"},
		{"shop.example.com:8791", "/", "all"},
		{"shop.example.com", "/api/v1", "api"},
		{"shop.example.com", "/api/v2/x", "deep"},
		{"SHOP.EXAMPLE.COM", "/api/v1", "api"},
		{"whole.test", "/any", "whole"},
	} {
		w.want(c.host, c.path, http.StatusOK, c.body)
	}
	w.want("notexample.com", "/", http.StatusNotFound, "no Worker answers for notexample.com: no route matches this address, and the host has no origin")
	for _, host := range []string{"notexample.com", "com", "sub.whole.test", "localhost", "dev.workers.localhost", "a.b.dev.workers.localhost"} {
		if rec := w.ask(host, "/"); rec.Code != http.StatusNotFound {
			t.Errorf("%s: %d %q, want 404", host, rec.Code, rec.Body)
		}
	}
}

// A Worker that is not on the subdomain does not answer there.
func TestNotOnSubdomain(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("one"))
	if _, err := w.catalog.SetWorkerSubdomain(t.Context(), w.account, "hello", false, false); err != nil {
		t.Fatal(err)
	}
	w.want(site, "/", http.StatusNotFound, "no Worker")
}

// The limit of a body whose length is told.
func TestBodyLimit(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("one"))
	for length, status := range map[int64]int{host.MaxBodyBytes: http.StatusOK, host.MaxBodyBytes + 1: http.StatusRequestEntityTooLarge} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+site+"/", io.LimitReader(zeros{}, length))
		r.ContentLength = length
		rec := httptest.NewRecorder()
		w.host.ServeHTTP(rec, r)
		if rec.Code != status {
			t.Errorf("a body of %d bytes: %d, want %d", length, rec.Code, status)
		}
	}
}

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Who reads the log knows Workers by their names.
func TestLogNamesTheWorker(t *testing.T) {
	w := start(t)
	version := w.deploy("shop", code("ok"))
	w.want("shop.dev.workers.localhost", "/", http.StatusOK, "ok")
	if err := syscall.Kill(w.runtime.Statuses()[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := "worker=shop version=" + version
	nearkeytest.Eventually(t, "the log names it", func() error {
		if text := w.log.String(); !strings.Contains(text, want) {
			return fmt.Errorf("no %q in %q", want, text)
		}
		return nil
	})
}

// A request that read the record of a Worker before a deploy, and comes to it after,
// does not bring the old version back.
func TestOldRecord(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("one"))
	w.want(site, "/", http.StatusOK, "one")
	old, err := w.records.Worker(t.Context(), w.account, "hello")
	if err != nil {
		t.Fatal(err)
	}
	second := w.deploy("hello", code("two"))
	w.want(site, "/", http.StatusOK, "two")
	if err := w.host.Prepare(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.runtime.Statuses() {
		if s.Name != second {
			t.Errorf("version %s is loaded, want %s alone", s.Name, second)
		}
	}
}

// Who asks after a deploy is answered by its version even if the start of one before
// it is still under way.
func TestDeployDuringAnother(t *testing.T) {
	w := start(t)
	w.deploy("hello", code("version 0"))
	w.want(site, "/", http.StatusOK, "version 0")
	for n := 1; n <= 10; n += 2 {
		w.deploy("hello", code(fmt.Sprintf("version %d", n)))
		w.deploy("hello", code(fmt.Sprintf("version %d", n+1)))
		w.want(site, "/", http.StatusOK, fmt.Sprintf("version %d", n+1))
	}
}
