package workerd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/workerd"
)

// binary is the real workerd.
func binary(tb testing.TB) string {
	tb.Helper()
	return nearkeytest.NeedWorkerd(tb)
}

// A world is a running Runtime with a web server before it: the first label of
// the host is the Worker's name.
type world struct {
	tb  testing.TB
	rt  *workerd.Runtime
	dir string
	url string
	end func()
}

func start(tb testing.TB, opts workerd.Options) *world {
	tb.Helper()
	if opts.Path == "" {
		opts.Path = nearkeytest.NeedWorkerd(tb)
	}
	dir, err := os.MkdirTemp("", "wd")
	if err != nil {
		tb.Fatal(err)
	}
	opts.Dir = dir
	opts.Logger = slog.New(slog.NewTextHandler(testWriter{tb}, nil))
	w := &world{tb: tb, rt: workerd.New(opts), dir: dir}
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan error, 1)
	go func() { done <- w.rt.Run(ctx) }()
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(r.Host, ".")
		w.rt.Handler(name).ServeHTTP(rw, r)
	}))
	w.url = server.URL
	w.end = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("run: %v", err)
		}
		left, _ := filepath.Glob(filepath.Join(dir, "gen-*"))
		if len(left) > 0 || w.rt.Processes() > 0 {
			tb.Errorf("left behind: %v, %d processes", left, w.rt.Processes())
		}
		_ = os.RemoveAll(dir)
	})
	tb.Cleanup(w.end)
	return w
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.tb.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func worker(name, version, script string) workerd.Worker {
	return workerd.Worker{
		Name: name, Version: version, Main: "a.js", CompatibilityDate: "2026-08-01",
		Modules: []workerd.Module{{Name: "a.js", Type: workerd.ESModule, Content: []byte(script)}},
	}
}

// answering is a module that answers with an expression of request r, env and ctx.
func answering(expression string) string {
	return "export default {async fetch(r, env, ctx) { return new Response(" + expression + ") }}"
}

func (w *world) deploy(v workerd.Worker) {
	w.tb.Helper()
	if err := w.rt.Deploy(w.tb.Context(), v); err != nil {
		w.tb.Fatalf("deploy %s %s: %v", v.Name, v.Version, err)
	}
}

func (w *world) request(method, name, path string, body io.Reader) *http.Request {
	w.tb.Helper()
	r, err := http.NewRequestWithContext(w.tb.Context(), method, w.url+path, body)
	if err != nil {
		w.tb.Fatal(err)
	}
	r.Host = name + ".dev.localhost"
	return r
}

func (w *world) do(r *http.Request) (*http.Response, string) {
	w.tb.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.tb.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.tb.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return res, string(body)
}

func (w *world) get(name, path string) (int, string) {
	w.tb.Helper()
	res, body := w.do(w.request("GET", name, path, nil))
	return res.StatusCode, body
}

func (w *world) want(name, path string, status int, body string) {
	w.tb.Helper()
	if s, b := w.get(name, path); s != status || b != body {
		w.tb.Fatalf("%s%s: got %d %q, want %d %q", name, path, s, b, status, body)
	}
}

func (w *world) status(name string) workerd.Status {
	w.tb.Helper()
	for _, s := range w.rt.Statuses() {
		if s.Name == name {
			return s
		}
	}
	w.tb.Fatalf("no status of %s", name)
	return workerd.Status{}
}

func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// service is one of our services on a unix socket.
func service(tb testing.TB, handler http.HandlerFunc) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "wd")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		tb.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	tb.Cleanup(func() { _ = server.Close(); <-done })
	return l.Addr().String()
}

func TestRequest(t *testing.T) {
	w := start(t, workerd.Options{Place: "TST"})
	w.deploy(worker("a", "1", answering(`JSON.stringify([r.method, r.url, r.cf, Object.fromEntries(r.headers), await r.text()])`)))
	r := w.request("POST", "a", "/x/%2e%2F?q=%20+", strings.NewReader("body"))
	for _, name := range []string{"CF-Connecting-IP", "CF-Ray", "X-NK-CF", "x-nk-proto", "X-NK-Other", "X-Real-IP"} {
		r.Header.Set(name, "spoofed")
	}
	r.Header.Set("X-Own", "mine")
	r.Header.Set("X-Hop", "hop")
	r.Header.Set("Connection", "X-Hop")
	res, body := w.do(r)
	for _, part := range []string{`"POST"`, `"http://a.dev.localhost/x/%2e%2F?q=%20+"`, `"colo":"TST"`, `"httpProtocol":"HTTP/1.1"`, `"x-own":"mine"`, `"cf-connecting-ip":"127.0.0.1"`, `-TST"`, `"body"]`} {
		if !strings.Contains(body, part) {
			t.Errorf("the Worker did not see %s: %s", part, body)
		}
	}
	for _, part := range []string{"spoofed", "x-nk", "x-hop"} {
		if strings.Contains(body, part) {
			t.Errorf("the Worker saw %s: %s", part, body)
		}
	}
	for name := range res.Header {
		if strings.HasPrefix(name, "X-Nk-") {
			t.Errorf("the client saw %s", name)
		}
	}
	if !strings.HasSuffix(res.Header.Get("Cf-Ray"), "-TST") || res.Header.Get("Content-Type") != "text/plain;charset=UTF-8" {
		t.Errorf("headers %v", res.Header)
	}
	if status, _ := w.get("nobody", "/"); status != 404 {
		t.Errorf("no such Worker: status %d", status)
	}
}

// A request that would be two must not be passed on.
func TestRequestSmuggling(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", answering(`"ok"`)))
	for _, spoil := range []func(*http.Request){
		func(r *http.Request) { r.Header["X-A"] = []string{"1\r\nX-NK-CF: {}"} },
		func(r *http.Request) { r.Header["X-A: 1\r\nB"] = []string{"1"} },
		func(r *http.Request) { r.RequestURI = "/ HTTP/1.1\r\nA: b" },
		func(r *http.Request) { r.Host = "a\r\nX: y" },
		func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\n\r\nGET" },
		func(r *http.Request) { r.Method = "CONNECT" },
		func(r *http.Request) { r.Host = "" },
	} {
		r := httptest.NewRequest("GET", "http://a.dev.localhost/", nil)
		spoil(r)
		rec := httptest.NewRecorder()
		w.rt.Handler("a").ServeHTTP(rec, r)
		if rec.Code != 400 {
			t.Errorf("%q %q %v: status %d", r.Method, r.RequestURI, r.Header, rec.Code)
		}
	}
	w.want("a", "/", 200, "ok")
}

func TestBindingsAndModules(t *testing.T) {
	awkward := "\"quote\" \\ € \x00 \n\r\t', ),(name = \"x\""
	v := worker("a", "1", `
import text from "dir/t.txt"; import data from "d.bin"; import json from "j.json"; import cjs from "c.cjs"; import wasm from "w.wasm";
export default {async fetch(r, env) { return Response.json([env["it's\"me"], env.S, env.J, [...new Uint8Array(env.D)], text, [...new Uint8Array(data)], json, cjs.x, wasm instanceof WebAssembly.Module]) }}`)
	v.Modules = append([]workerd.Module{
		{Name: "dir/t.txt", Type: workerd.Text, Content: []byte("tä\"xt\n")},
		{Name: "d.bin", Type: workerd.Data, Content: []byte{0, 255, 10}},
		{Name: "j.json", Type: workerd.JSON, Content: []byte(`{"a":[1]}`)},
		{Name: "c.cjs", Type: workerd.CommonJS, Content: []byte(`module.exports = {x: 7}`)},
		{Name: "w.wasm", Type: workerd.Wasm, Content: []byte("\x00asm\x01\x00\x00\x00")},
	}, v.Modules...)
	v.Bindings = []workerd.Binding{
		{Name: `it's"me`, Kind: workerd.BindText, Value: awkward},
		{Name: "S", Kind: workerd.BindSecret, Value: "hush"},
		{Name: "J", Kind: workerd.BindJSON, Value: `{"n":1}`},
		{Name: "D", Kind: workerd.BindData, Value: "\x00\x80"},
	}
	w := start(t, workerd.Options{})
	w.deploy(v)
	w.want("a", "/", 200, `["\"quote\" \\ € \u0000 \n\r\t', ),(name = \"x\"","hush",{"n":1},[0,128],"tä\"xt\n",[0,255,10],{"a":[1]},7,true]`)
	// No secret stays on the disk.
	_ = filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if text, _ := os.ReadFile(path); strings.Contains(string(text), "hush") {
				t.Errorf("%s holds the secret", path)
			}
		}
		return err
	})
	sw := worker("sw", "1", `addEventListener("fetch", e => e.respondWith(new Response("sw " + V + " " + (W instanceof WebAssembly.Module))))`)
	sw.ServiceWorker = true
	sw.Bindings = []workerd.Binding{{Name: "V", Kind: workerd.BindText, Value: "v"}, {Name: "W", Kind: workerd.BindWasm, Value: "\x00asm\x01\x00\x00\x00"}}
	w.deploy(sw)
	w.want("sw", "/", 200, "sw v true")
}

// What a Worker sends to our services bears whose it is, whatever it says itself.
func TestIdentity(t *testing.T) {
	var w *world
	handler := func(rw http.ResponseWriter, r *http.Request) {
		caller, ok := w.rt.Identify(r.Header.Get(workerd.HeaderToken), r.Header.Get(workerd.HeaderNamespace))
		_, other := w.rt.Identify(r.Header.Get(workerd.HeaderToken), "other")
		_, forged := w.rt.Identify("", "")
		_, _ = fmt.Fprintln(rw, caller.Name, caller.Version, ok, other, forged, r.Header.Get(workerd.HeaderNamespace), r.Header.Get(workerd.HeaderService), r.Header.Get(workerd.HeaderProto), r.Host, r.RequestURI)
	}
	socket := service(t, handler)
	w = start(t, workerd.Options{KV: socket, Egress: socket, Services: socket})
	v := worker("a", "7", answering(`await env.KV.get("k&1") + await (await fetch("https://else.where/p", {headers: {"X-NK-Token": "x", "X-NK-NS": "other"}})).text() + await (await env.OTHER.fetch("http://o/q")).text()`))
	v.Bindings = []workerd.Binding{{Name: "KV", Kind: workerd.BindKV, Value: "n5"}, {Name: "OTHER", Kind: workerd.BindService, Value: "b"}}
	w.deploy(v)
	_, body := w.get("a", "/")
	want := "a 7 true false false n5  https fake-host /k&1?urlencoded=true\na 7 false false false other  https else.where /p\na 7 true false false  b http o /q\n"
	if body != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
	w.rt.Remove("a")
	w.deploy(worker("b", "1", answering(`await fetch("http://x/").then(r => r.text())`)))
	if _, body := w.get("b", "/"); !strings.HasPrefix(body, "b 1 true false false") {
		t.Error(body)
	}
}

func TestCheckTellsWhy(t *testing.T) {
	w := start(t, workerd.Options{Start: 700 * time.Millisecond})
	for _, c := range []struct{ script, want string }{
		{"let let", "Uncaught SyntaxError: Unexpected strict mode reserved word\n  at a.js:1:4"},
		{`throw new Error("boom")`, "Uncaught Error: boom\n  at a.js:1:7"},
		{`import "b.js"`, `No such module "b.js".`},
		{"await new Promise(() => {})", "Top-level await in module is unsettled."},
		{"for (;;);", "Script startup exceeded CPU time limit."},
		{"const a = []; for (;;) a.push(new Array(1000).fill(a.length));", "Script startup exceeded"},
	} {
		var fault *workerd.StartError
		_, err := w.rt.Check(t.Context(), worker("a", "1", c.script))
		if !errors.As(err, &fault) || !strings.Contains(fault.Text, c.want) || strings.Contains(fault.Text, "service ") || strings.Count(fault.Text, c.want) != 1 {
			t.Errorf("%s: got %v, want %s", c.script, err, c.want)
		}
	}
	future := worker("a", "1", answering(`"ok"`))
	future.CompatibilityDate = "2099-01-01"
	if _, err := w.rt.Check(t.Context(), future); err == nil || !strings.Contains(err.Error(), "2099-01-01") {
		t.Errorf("a future date: %v", err)
	}
	for name, spoil := range map[string]func(*workerd.Worker){
		"no modules":      func(v *workerd.Worker) { v.Modules = nil },
		"no name":         func(v *workerd.Worker) { v.Name = "" },
		"no main":         func(v *workerd.Worker) { v.Main = "b.js" },
		"a strange kind":  func(v *workerd.Worker) { v.Bindings = []workerd.Binding{{Name: "A", Kind: "d1"}} },
		"KV without KV":   func(v *workerd.Worker) { v.Bindings = []workerd.Binding{{Name: "A", Kind: workerd.BindKV}} },
		"a strange type":  func(v *workerd.Worker) { v.Modules[0].Type = "py" },
		"no date":         func(v *workerd.Worker) { v.CompatibilityDate = "" },
		"an unknown flag": func(v *workerd.Worker) { v.Flags = []string{"no_such_flag"} },
	} {
		v := worker("a", "1", answering(`"ok"`))
		spoil(&v)
		if _, err := w.rt.Check(t.Context(), v); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := w.rt.Check(t.Context(), worker("a", "1", answering(`"ok"`))); err != nil {
		t.Error(err)
	}
	// A version that does not start leaves the one before it.
	w.deploy(worker("a", "1", answering(`"one"`)))
	if err := w.rt.Deploy(t.Context(), worker("a", "2", "let let")); err == nil {
		t.Error("deployed")
	}
	w.want("a", "/", 200, "one")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.rt.Check(ctx, worker("a", "1", "for(;;);")); err == nil {
		t.Error("a start that was given up succeeded")
	}
}

func TestExceptions(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", `export default {async fetch(r) {
		switch (new URL(r.url).pathname) {
		case "/throw": throw new Error("boom");
		case "/hang": return new Promise(() => {});
		case "/own": return new Response("own", {status: 500});
		case "/cut": return new Response(new ReadableStream({start(c) { c.enqueue(new TextEncoder().encode("part")) }, async pull(c) { await scheduler.wait(30000) }}));
		}
		return new Response("ok") }}`))
	w.want("a", "/own", 500, "own")
	for _, path := range []string{"/throw", "/hang"} {
		w.want("a", path, 500, "error code: 1101\n")
	}
	r := w.request("GET", "a", "/throw", nil)
	r.Header.Set("Accept", "text/html")
	r.Host = "a.d&v.localhost"
	if res, body := w.do(r); res.StatusCode != 500 || !strings.Contains(body, "Error 1101") || !strings.Contains(body, "wrangler tail") ||
		!strings.HasSuffix(res.Header.Get("Cf-Ray"), "-LOC") || !strings.Contains(body, "a.d&amp;v.localhost · Ray ID: "+res.Header.Get("Cf-Ray")) {
		t.Errorf("page: %d %q %s", res.StatusCode, res.Header, body)
	}
	w.want("a", "/", 200, "ok")
	if s := w.status("a"); s.Exceptions != 3 || s.Requests != 5 || s.Crashes != 0 {
		t.Errorf("%+v", s)
	}
	// An answer that breaks off must not look whole.
	res, err := http.DefaultClient.Do(w.request("GET", "a", "/cut", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.ReadFull(res.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(w.status("a").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("an answer that broke off looks whole")
	}
	w.want("a", "/", 200, "ok")
}

func TestStreams(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", `export default {async fetch(r) {
		switch (new URL(r.url).pathname) {
		case "/echo": return new Response(r.body);
		case "/early": return new Response("early");
		case "/length": return new Response(String((await r.arrayBuffer()).byteLength));
		case "/none": return new Response(null, {status: 204});
		case "/ticks": { const {readable, writable} = new TransformStream(); const w = writable.getWriter();
			(async () => { for (let i = 0; i < 3; i++) { await w.write(new TextEncoder().encode("tick\n")); await scheduler.wait(30) } await w.close() })();
			return new Response(readable) }
		}
		return new Response("x".repeat(200000), {headers: [["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["X-Long", "y".repeat(30000)]]}) }}`))
	big := strings.Repeat("0123456789abcdef", 1<<18)
	for _, body := range []io.Reader{strings.NewReader(big), struct{ io.Reader }{strings.NewReader(big)}} {
		if _, got := w.do(w.request("POST", "a", "/echo", body)); got != big {
			t.Errorf("echo of %d bytes: %d", len(big), len(got))
		}
	}
	if _, got := w.do(w.request("POST", "a", "/length", struct{ io.Reader }{strings.NewReader(big)})); got != fmt.Sprint(len(big)) {
		t.Errorf("length %s", got)
	}
	res, got := w.do(w.request("GET", "a", "/", nil))
	if len(got) != 200000 || len(res.Header["Set-Cookie"]) != 2 || len(res.Header.Get("X-Long")) != 30000 || res.ContentLength != 200000 {
		t.Errorf("%d bytes, %v", len(got), res.Header["Set-Cookie"])
	}
	if res, got := w.do(w.request("HEAD", "a", "/", nil)); got != "" || res.ContentLength != 200000 {
		t.Errorf("HEAD: %d bytes, length %d", len(got), res.ContentLength)
	}
	w.want("a", "/none", 204, "")
	// A body that nobody reads, and that does not end, does not hold the answer up.
	pr, pw := io.Pipe()
	go func() { _, _ = pw.Write([]byte("begun")) }()
	if _, got := w.do(w.request("POST", "a", "/early", pr)); got != "early" {
		t.Errorf("early: %q", got)
	}
	_ = pw.Close()
	// Both directions at once: each part is echoed before the next is sent.
	in, out := io.Pipe()
	go func() { _, _ = out.Write([]byte("1")) }()
	res, err := http.DefaultClient.Do(w.request("POST", "a", "/echo", in))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	for i := range 3 {
		if _, err := io.ReadFull(res.Body, b); err != nil || b[0] != byte('1'+i) {
			t.Fatalf("%q %v", b, err)
		}
		if i < 2 {
			_, _ = out.Write([]byte{byte('2' + i)})
		}
	}
	_ = out.Close()
	if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	_ = res.Body.Close()
	res, err = http.DefaultClient.Do(w.request("GET", "a", "/ticks", nil))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := res.Body.Read(make([]byte, 100))
	if n != 5 {
		t.Errorf("the first tick came with the next: %d bytes", n)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	until(t, "nothing is in flight", func() bool { return w.status("a").InFlight == 0 })
}

// Clients that go away in the middle leave nothing behind, and requests after
// them are answered.
func TestClientGone(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", `export default {async fetch(r) {
		if (r.method == "POST") return new Response((await r.text()).length);
		await scheduler.wait(r.url.endsWith("/slow") ? 5000 : 0); return new Response("ok") }}`))
	host := strings.TrimPrefix(w.url, "http://")
	for _, text := range []string{
		"GET /slow HTTP/1.1\r\nHost: a.x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a.x\r\nContent-Length: 100\r\n\r\nhalf",
		"POST / HTTP/1.1\r\nHost: a.x\r\nContent-Length: 1000000\r\n\r\nhalf",
		"POST / HTTP/1.1\r\nHost: a.x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		until(t, "it is in flight", func() bool { return w.status("a").InFlight == 1 })
		_ = c.Close()
		until(t, "nothing is in flight", func() bool { return w.status("a").InFlight == 0 })
	}
	w.want("a", "/", 200, "ok")
}

const socketScript = `export default {fetch(r) {
	if (r.headers.get("Upgrade") != "websocket") return new Response("VERSION");
	const [client, server] = Object.values(new WebSocketPair()); server.accept();
	server.addEventListener("message", e => server.send("VERSION:" + e.data));
	return new Response(null, {status: 101, webSocket: client}) }}`

// A WebSocket stays with the version that it began with.
func TestWebSocket(t *testing.T) {
	w := start(t, workerd.Options{Linger: time.Millisecond})
	w.deploy(worker("a", "1", strings.ReplaceAll(socketScript, "VERSION", "one")))
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%v %v", res, err)
	}
	say := func(text, want string) {
		t.Helper()
		frame := append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...) // masked with zeros
		if _, err := c.Write(frame); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2+len(want))
		if _, err := io.ReadFull(in, got); err != nil || string(got[2:]) != want {
			t.Fatalf("%q %v", got, err)
		}
	}
	say("hi", "one:hi")
	w.deploy(worker("a", "2", strings.ReplaceAll(socketScript, "VERSION", "two")))
	w.want("a", "/", 200, "two")
	say("again", "one:again")
	if n := w.rt.Processes(); n != 2 {
		t.Errorf("%d processes", n)
	}
	_ = c.Close()
	until(t, "the old version has ended", func() bool { return w.rt.Processes() == 1 })
}

func dial(tb testing.TB, host string) net.Conn {
	tb.Helper()
	c, err := net.Dial("tcp", host)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// A head may be long, up to a limit.
func TestLongHeads(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", `export default {fetch(r) { return new Response("ok", {headers: {"X-Long": "y".repeat(Number(new URL(r.url).search.slice(1)))}}) }}`))
	head := len("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain;charset=UTF-8\r\nX-Long: \r\nX-NK-OK: 1\r\n\r\n")
	for length, want := range map[int]int{256<<10 - head: 200, 256<<10 - head + 1: 500} {
		if status, _ := w.get("a", fmt.Sprint("/?", length)); status != want {
			t.Errorf("a header of %d bytes: status %d", length, status)
		}
	}
}

// What a Worker logs is told, with whose it is.
func TestOutput(t *testing.T) {
	var lines sync.Map
	w := start(t, workerd.Options{Output: func(name, version string, line []byte) { lines.Store(name+version, string(line)) }})
	w.deploy(worker("a", "3", `export default {fetch() { console.warn("careful", {a: 1}); return new Response("ok") }}`))
	w.want("a", "/", 200, "ok")
	until(t, "the line has come", func() bool {
		line, _ := lines.Load("a3")
		text, _ := line.(string)
		return strings.Contains(text, "careful") && strings.Contains(text, `"level":"warn"`)
	})
}

// A connection that does not end does not keep an old version for ever.
func TestDrainEnds(t *testing.T) {
	w := start(t, workerd.Options{Drain: 100 * time.Millisecond, Linger: time.Millisecond, Stop: 100 * time.Millisecond})
	w.deploy(worker("a", "1", `export default {async fetch() { await scheduler.wait(60000); return new Response("late") }}`))
	c := dial(t, strings.TrimPrefix(w.url, "http://"))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.x\r\nConnection: close\r\n\r\n")
	until(t, "it is in flight", func() bool { return w.status("a").InFlight == 1 })
	w.deploy(worker("a", "2", answering(`"two"`)))
	until(t, "the old version has ended", func() bool { return w.rt.Processes() == 1 })
	w.want("a", "/", 200, "two")
}

// What a Worker has is found out by starting it.
func TestCheckReports(t *testing.T) {
	w := start(t, workerd.Options{})
	for script, want := range map[string]string{
		answering(`"ok"`): "[fetch] []",
		`export default {fetch() {}, async scheduled() {}, other() {}}`: "[fetch scheduled] []",
		`export default {}`:      "[] []",
		`export function f() {}`: "[] [f]",
		`export const a = {tail() {}}, b = {}; export default {queue: async () => {}, fetch: 1}`: "[queue] [a]",
		`import {WorkerEntrypoint, env} from "cloudflare:workers"; if (env.V != "v") throw 1;
		class Base extends WorkerEntrypoint { fetch() {} };
		export default class extends Base { scheduled() {} helper() {} }; export class Named extends WorkerEntrypoint {}`: "[fetch scheduled] [Named]",
	} {
		v := worker("a", "1", script)
		v.Bindings = []workerd.Binding{{Name: "V", Kind: workerd.BindText, Value: "v"}}
		report, err := w.rt.Check(t.Context(), v)
		if got := fmt.Sprint(report.Handlers, report.NamedHandlers); err != nil || got != want || report.Took <= 0 {
			t.Errorf("%s: %s %v, want %s", script, got, err, want)
		}
	}
	for _, name := range []string{"dir/sub/main.mjs", "./a.js", "nearkey-report.js", "dir/it's \"the\" m%20ain#?.js", "ä.js", "a:b.js"} {
		v := worker("a", "1", `import x from "./b.js"; export default {fetch() { return x }}`)
		v.Main, v.Modules[0].Name = name, name
		v.Modules = append(v.Modules, workerd.Module{Name: filepath.Join(filepath.Dir(name), "b.js"), Type: workerd.ESModule, Content: []byte("export default 1")})
		if report, err := w.rt.Check(t.Context(), v); err != nil || fmt.Sprint(report.Handlers) != "[fetch]" {
			t.Errorf("a main module called %s: %v %v", name, report, err)
		}
	}
	// A Worker that lies harms itself.
	for _, script := range []string{
		`Response.json = () => new Response("x".repeat(1e6)); export default {fetch() {}}`,
		`Response.json = () => { throw 1 }; export default {fetch() {}}`,
		`Response.json = () => new Response("nonsense"); export default {fetch() {}}`,
	} {
		var fault *workerd.StartError
		if report, err := w.rt.Check(t.Context(), worker("a", "1", script)); !errors.As(err, &fault) {
			t.Errorf("%s: %v %v", script, report, err)
		}
	}
	sw := worker("a", "1", `"use strict"; addEventListener("fetch", e => e.respondWith(new Response("x"))); addEventListener("scheduled", () => {})`)
	sw.ServiceWorker = true
	if report, err := w.rt.Check(t.Context(), sw); err != nil || fmt.Sprint(report.Handlers) != "[fetch scheduled]" {
		t.Errorf("a service worker: %v %v", report, err)
	}
}
