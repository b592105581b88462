package binding_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/binding"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
	"github.com/nearkey/nearkey/kv"
)

// The names of bindings, as the Worker knows them, with their sockets and tokens.
var bindings = []struct{ name, socket, token string }{
	{"KV", "kv.sock", "secret"},
	{"OTHER", "kv.sock", "secret"},
	{"FAR", "kv.sock", "secret"},
	{"PAGES", "kv.sock", "secret"},
	{"FORGED", "kv.sock", "guessed"},
	{"SPENT", "kv.sock", "counted"},
	{"CUT", "cut.sock", "secret"},
}

// capnp is the configuration of the runtime.
func capnp(limits kv.Limits) string {
	var services, names strings.Builder
	for _, b := range bindings {
		fmt.Fprintf(&services, `    (name = %q, external = (address = "unix:%s", http = (injectRequestHeaders = [(name = "X-NK-NS", value = %q), (name = "X-NK-Token", value = %q)]))),`+"\n",
			b.name, b.socket, b.name, b.token)
		fmt.Fprintf(&names, "(name = %q, kvNamespace = %q), ", b.name, b.name)
	}
	rules, err := json.Marshal(map[string]any{
		"value": limits.ValueBytes, "metadata": limits.MetadataBytes, "ttl": limits.MinTTL / time.Second, "cacheTtl": limits.MinCacheTTL / time.Second,
		"list": limits.ListKeys, "bulk": limits.GetManyKeys, "bulkBytes": limits.GetManyBytes,
	})
	if err != nil {
		panic(err)
	}
	return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .main), (name = "sw", worker = .serviceWorker),
` + services.String() + `  ],
  sockets = [(name = "http", address = "unix:http.sock", http = (), service = "main")],
);
const main :Workerd.Worker = (
  modules = [(name = "worker.mjs", esModule = embed "worker.mjs")],
  compatibilityDate = "2026-08-01",
  bindings = [` + names.String() + `(name = "LIMITS", json = ` + fmt.Sprintf("%q", rules) + `), (name = "SERVICE_WORKER", service = "sw")],
);
const serviceWorker :Workerd.Worker = (
  serviceWorkerScript = embed "service_worker.js",
  compatibilityDate = "2026-08-01",
  bindings = [(name = "KV", kvNamespace = "KV")],
);
`
}

// world is the runtime with the conformance Worker, before a server of bindings
// before a tier before a store.
type world struct {
	dir    string
	client *http.Client
}

// parts are what a world is made of; a control breaks one of them.
type parts struct {
	limits kv.Limits
	store  kv.Store
	tier   edge.Options
	rules  func(*kv.Rules)       // changes the rules that are kept; nil: they are those of limits
	server func(*binding.Config) // changes what the server is; nil: nothing
	bare   bool                  // there is no tier
	whole  bool                  // no connection is dropped
}

func newWorld(t *testing.T, p parts) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	p.serve(t, filepath.Join(w.dir, "kv.sock"))
	listen(t, filepath.Join(w.dir, "cut.sock"), &http.Server{Handler: cutter(filepath.Join(w.dir, "kv.sock"), p.whole)})
	start(t, w.dir, p.limits)
	w.client = &http.Client{Timeout: time.Minute, Transport: through(filepath.Join(w.dir, "http.sock"))}
	return w
}

// through is a transport whose connections all lead to a socket, each for one
// request.
func through(path string) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
}

// spentOperations is what the binding SPENT may do.
const spentOperations = 1000

// serve starts the server of bindings.
func (p parts) serve(t *testing.T, path string) {
	t.Helper()
	tier := edge.New(p.store, p.tier)
	front, near := kv.Store(tier), binding.Near(tier)
	if p.bare {
		front, near = p.store, nil
	}
	rules := &kv.Rules{Limits: p.limits, Stamp: kv.NewStamper(1, time.Now)}
	if p.rules != nil {
		p.rules(rules)
	}
	spaces := map[string]binding.Space{}
	for name, id := range map[string]kv.NamespaceID{"KV": {1}, "CUT": {1}, "OTHER": {2}, "PAGES": {3}, "FORGED": {1}, "SPENT": {4}} {
		spaces[name] = binding.Space{ID: id, Namespace: kv.NewNamespace(front, id, rules)}
	}
	spaces["FAR"] = binding.Space{ID: kv.NamespaceID{0xff}, Namespace: kv.NewNamespace(p.store, kv.NamespaceID{1}, rules)}
	fillPages(t, spaces["PAGES"], p.limits.ListKeys)
	var spent atomic.Int64
	config := binding.Config{
		Identify: func(token, name string) (binding.Space, error) {
			space, ok := spaces[name]
			if !ok || token != "secret" && token != "counted" {
				return binding.Space{}, errors.New("unknown binding")
			}
			return space, nil
		},
		Spend:  func(token string) bool { return token != "counted" || spent.Add(1) <= spentOperations },
		Limits: rules.Limits, Near: near, MaxAge: time.Minute,
	}
	if p.server != nil {
		p.server(&config)
	}
	server := binding.New(config)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(t.Context(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// fillPages writes as many keys as a page has, and one more.
func fillPages(t *testing.T, ns binding.Space, page int) {
	t.Helper()
	pairs := []kv.Pair{{Key: "b"}}
	for i := range page {
		pairs = append(pairs, kv.Pair{Key: fmt.Sprintf("a/%04d", i)})
	}
	if failed, err := ns.PutMany(t.Context(), pairs); err != nil || len(failed) > 0 {
		t.Fatal(failed, err)
	}
}

func listen(t *testing.T, path string, server *http.Server) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// cutter passes requests on to a server and drops the connection of those whose
// key says when.
func cutter(path string, whole bool) http.Handler {
	far := through(path)
	pass := &httputil.ReverseProxy{Transport: far, Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "kv" }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		when, ok := strings.CutPrefix(r.URL.Path, "/cut-")
		if !ok || whole {
			pass.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var answer []byte
		if when != "before" {
			answer = ask(far, r, body)
		}
		head := bytes.Index(answer, []byte("\r\n\r\n")) + 4
		switch when {
		case "head":
			answer = answer[:head/2]
		case "body":
			answer = answer[:(head+len(answer))/2]
		case "idle": // the whole answer, and no word that it was the last
		default:
			answer = nil
		}
		conn, out, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = out.Write(answer)
		_ = out.Flush()
	})
}

// ask passes a request on and returns the bytes of the answer.
func ask(far http.RoundTripper, r *http.Request, body []byte) []byte {
	r.URL.Scheme, r.URL.Host, r.Body = "http", "kv", io.NopCloser(bytes.NewReader(body))
	resp, err := far.RoundTrip(r)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	resp.Close = false
	resp.Header.Del("Connection")
	answer, err := httputil.DumpResponse(resp, true)
	if err != nil {
		return nil
	}
	return answer
}

// start starts workerd in dir and waits until it listens.
func start(t *testing.T, dir string, limits kv.Limits) {
	t.Helper()
	path := nearkeytest.NeedWorkerd(t)
	for _, name := range []string{"worker.mjs", "service_worker.js"} {
		text, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "config.capnp"), []byte(capnp(limits)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "serve", "config.capnp")
	cmd.Dir, cmd.Env = dir, []string{"TZ=UTC"}
	running, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		running.Kill()
		if t.Failed() {
			t.Log(running.Output())
		}
	})
	nearkeytest.Eventually(t, "workerd listens", func() error {
		select {
		case <-running.Done():
			t.Fatalf("workerd ended: %v: %s", running.Err(), running.Output())
		default:
		}
		c, err := net.Dial("unix", filepath.Join(dir, "http.sock"))
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// one is a case of the Worker.
type one struct {
	Name  string
	Local bool // the runtime answers by itself
}

// cases are all that the Worker knows.
func (w *world) cases(t *testing.T) (all []one) {
	t.Helper()
	w.get(t, "", &all)
	if len(all) == 0 {
		t.Fatal("the Worker knows no case")
	}
	return all
}

// run runs one case and returns what is wrong, or why it was not run.
func (w *world) run(t *testing.T, c one) (wrong, skipped string) {
	t.Helper()
	var result struct{ Error, Skipped string }
	w.get(t, "?case="+url.QueryEscape(c.Name), &result)
	return result.Error, result.Skipped
}

func (w *world) get(t *testing.T, query string, answer any) {
	t.Helper()
	resp, err := w.client.Get("http://worker/" + query)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(bufio.NewReader(resp.Body)).Decode(answer); err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
}
