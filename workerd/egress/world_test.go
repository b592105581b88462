package egress_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/egress"
)

// program is a Worker that does what the body of a request says, and answers with
// what came of it.
const program = `
import { connect } from "cloudflare:sockets";
const shown = async (r) => ({status: r.status, redirected: r.redirected, url: r.url, headers: Object.fromEntries(r.headers), body: await r.text()});
const next = (ws) => new Promise((resolve) => {
  ws.addEventListener("message", (e) => resolve({message: typeof e.data === "string" ? e.data : "binary"}), {once: true});
  ws.addEventListener("close", (e) => resolve({close: e.code, reason: e.reason}), {once: true});
  ws.addEventListener("error", (e) => resolve({error: e.message}), {once: true});
});
async function socket(s) {
  const c = connect(s.address, s.options);
  await c.opened;
  const w = c.writable.getWriter();
  await w.write(new TextEncoder().encode(s.send));
  if (s.half) await w.close();
  const r = c.readable.getReader();
  let got = "";
  while (got.length < s.want) {
    const {value, done} = await r.read();
    if (done) { got += "<end>"; break; }
    got += new TextDecoder().decode(value);
  }
  return got;
}
async function webSocket(s) {
  let ws;
  if (s.constructed) {
    ws = new WebSocket(s.url, s.protocol);
    const opened = await new Promise((resolve) => {
      ws.addEventListener("open", () => resolve({open: true}), {once: true});
      ws.addEventListener("error", (e) => resolve({error: e.message}), {once: true});
    });
    if (!opened.open) return [opened];
  } else {
    const r = await fetch(s.url, {headers: {Upgrade: "websocket", ...s.protocol && {"Sec-WebSocket-Protocol": s.protocol}}});
    if (!r.webSocket) return [{status: r.status, body: await r.text()}];
    ws = r.webSocket; ws.accept();
  }
  const got = [];
  for (const m of s.send) { const n = next(ws); ws.send(m); got.push(await n); }
  if (s.close) ws.close(1000, s.close);
  return got;
}
async function echo(s) { // each part is sent when the one before has come back
  const {readable, writable} = new TransformStream();
  const w = writable.getWriter(), e = new TextEncoder();
  const first = w.write(e.encode(s.parts[0]));
  const r = (await fetch(s.url, {method: "POST", body: readable})).body.getReader();
  await first;
  const got = [];
  for (let i = 0; i < s.parts.length; i++) {
    if (i > 0) await w.write(e.encode(s.parts[i]));
    let part = "";
    while (part.length < s.parts[i].length) part += new TextDecoder().decode((await r.read()).value);
    got.push(part);
  }
  await w.close();
  got.push((await r.read()).done);
  return got;
}
async function step(s) {
  switch (s.op) {
  case "socket": return socket(s);
  case "webSocket": return webSocket(s);
  case "echo": return echo(s);
  case "head": { const r = await fetch(s.url); return r.status; }
  case "many": { const out = []; for (let i = 0; i < s.n; i++) { const r = await fetch(s.url); out.push(r.status + " " + await r.text()); } return out; }
  case "upload": { const r = await fetch(s.url, {method: "PUT", body: new Uint8Array(s.size)}); return r.text(); }
  default: return shown(await fetch(s.url, s.init));
  }
}
export default {async fetch(r, env, ctx) {
  const path = new URL(r.url).pathname;
  if (path.startsWith("/pass")) return fetch(r);
  if (path.startsWith("/throw")) { ctx.passThroughOnException(); throw new Error("thrown"); }
  if (path.startsWith("/echo-ws")) {
    const [a, b] = Object.values(new WebSocketPair());
    b.accept(); b.addEventListener("message", (e) => b.send("local " + e.data));
    b.addEventListener("close", (e) => b.close(1000));
    return new Response(null, {status: 101, webSocket: a});
  }
  if (path.startsWith("/seen")) return Response.json({url: r.url, headers: Object.fromEntries(r.headers)});
  const s = await r.json();
  try { return Response.json({value: await step(s)}) } catch (e) { return Response.json({threw: String(e)}) }
}}`

// names is a resolver with the addresses of names; a name with more than one list
// has another one at each look-up.
type names struct {
	mu    sync.Mutex // guards lists, asked
	lists map[string][][]string
	asked map[string]int
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	host = strings.TrimSuffix(host, ".")
	lists := n.lists[host]
	if len(lists) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	list := lists[min(n.asked[host], len(lists)-1)]
	n.asked[host]++
	var all []netip.Addr
	for _, text := range list {
		all = append(all, netip.MustParseAddr(text))
	}
	return all, nil
}

func (n *names) set(host string, lists ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lists[host], n.asked[host] = lists, 0
}

func (n *names) times(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[host]
}

// world is the way out of Workers a and b on the real workerd.
type world struct {
	tb     testing.TB
	server *egress.Server
	runner *workerd.Runtime
	names  *names
	url    string
}

func start(tb testing.TB, change func(w *world, c *egress.Config)) *world {
	tb.Helper()
	dir, err := os.MkdirTemp("", "we")
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{tb: tb, names: &names{lists: map[string][][]string{}, asked: map[string]int{}}}
	w.names.set("here.test", []string{"127.0.0.1"})
	socket := filepath.Join(dir, "egress")
	w.runner = workerd.New(workerd.Options{Path: nearkeytest.NeedWorkerd(tb), Dir: filepath.Join(dir, "run"), Egress: socket, Logger: slog.New(slog.DiscardHandler)})
	config := egress.Config{
		Identify: func(token string) (string, bool) {
			caller, ok := w.runner.Identify(token, "")
			return caller.Name, ok
		},
		Peer:       w.runner.Peer,
		Spend:      func(token string) bool { return w.runner.Spend(token, workerd.Subrequest) },
		AllowHosts: []string{"here.test"},
		Resolver:   w.names,
	}
	if change != nil {
		change(w, &config)
	}
	w.server = egress.New(config)
	l, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { _ = w.server.Serve(ctx, l) })
	wait.Go(func() { _ = w.runner.Run(ctx) })
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(r.Host, ".")
		w.runner.Handler(name).ServeHTTP(rw, r)
	}))
	w.url = front.URL
	tb.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		cancel()
		wait.Wait()
		_ = os.RemoveAll(dir)
	})
	for _, name := range []string{"a", "b"} {
		if err := w.runner.Load(workerd.Worker{
			Name: name, Version: "1", Main: "a.js", CompatibilityDate: "2026-08-01",
			Modules: []workerd.Module{{Name: "a.js", Type: workerd.ESModule, Content: []byte(program)}},
		}); err != nil {
			tb.Fatal(err)
		}
	}
	return w
}

// get sends a request to the Worker that the host begins with.
func (w *world) send(method, host, path string, body []byte, header ...string) (int, string) {
	w.tb.Helper()
	r, err := http.NewRequestWithContext(w.tb.Context(), method, w.url+path, bytes.NewReader(body))
	if err != nil {
		w.tb.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.tb.Fatal(err)
	}
	return res.StatusCode, string(text)
}

type step map[string]any

// do has Worker a do something, and returns what came of it as JSON: {"value": …}, or
// {"threw": …}.
func (w *world) do(s step) string {
	w.tb.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		w.tb.Fatal(err)
	}
	status, answer := w.send("POST", "a.workers.test", "/", text)
	if status != 200 {
		w.tb.Fatalf("%v: %d %s", s, status, answer)
	}
	return answer
}

// answer is what a Worker saw of a fetch.
type answer struct {
	Status     int
	Redirected bool
	URL        string
	Headers    map[string]string
	Body       string
}

func (w *world) fetch(url string, init step) answer {
	w.tb.Helper()
	text := w.do(step{"url": url, "init": init})
	var got struct {
		Value *answer
		Threw string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Value == nil {
		w.tb.Fatalf("fetch %s: %s (%v)", url, text, err)
	}
	return *got.Value
}

func (w *world) want(s step, want string) {
	w.tb.Helper()
	if got := w.do(s); got != want {
		w.tb.Errorf("%v: got %s, want %s", s, got, want)
	}
}

// wantFault checks the answer to a fetch: its status, and what its text says.
func (w *world) wantFault(url string, status int, says ...string) {
	w.tb.Helper()
	got := w.fetch(url, nil)
	if got.Status != status {
		w.tb.Errorf("%s: got %d %s, want %d", url, got.Status, got.Body, status)
	}
	for _, part := range says {
		if !strings.Contains(got.Body, part) {
			w.tb.Errorf("%s: %q does not say %q", url, got.Body, part)
		}
	}
}

// port is that of a server on this machine.
func port(tb testing.TB, serverURL string) string {
	tb.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		tb.Fatal(err)
	}
	return u.Port()
}

func serve(tb testing.TB, h http.HandlerFunc) *httptest.Server {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// listen has a function talk to everyone who connects.
func listen(tb testing.TB, talk func(net.Conn)) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wait.Go(func() { talk(c) })
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wait.Wait()
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func pool(s *httptest.Server) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.Certificate())
	return p
}

// quiet is for servers whose errors a test wants.
var quiet = log.New(io.Discard, "", 0)
