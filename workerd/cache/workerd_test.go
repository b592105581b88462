package cache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/cache"
)

// program is a Worker that does the steps it is sent, one after the other, and
// answers with what came of each.
const program = `
const out = async (r) => r === undefined ? null : {status: r.status, statusText: r.statusText, headers: Object.fromEntries(r.headers), body: await r.text()};
const stream = (parts, fail) => { let i = 0; return new ReadableStream({async pull(c) {
  if (i < parts.length) { c.enqueue(new TextEncoder().encode(parts[i++])); await scheduler.wait(2); }
  else if (fail) c.error(new Error("the stream broke"));
  else c.close(); }}) };
async function gzip(text) { return new Response(new Response(text).body.pipeThrough(new CompressionStream("gzip"))).arrayBuffer() }
async function step(s) {
  const cache = s.cache === undefined ? caches.default : await caches.open(s.cache);
  const key = s.plain ? s.url : new Request(s.url, {method: s.method || "GET", headers: s.headers || {}, cf: s.cf});
  if (s.op === "match") return out(await cache.match(key, s.options));
  if (s.op === "delete") return cache.delete(key, s.options);
  let body = s.parts ? stream(s.parts, s.fail) : s.size ? new Uint8Array(s.size).fill(97) : s.body === undefined ? null : s.body;
  const init = {status: s.status || 200, statusText: s.statusText, headers: s.response || {}};
  if (s.gzip) { body = await gzip(s.gzip); init.encodeBody = "manual"; }
  if (s.fixed) body = body.pipeThrough(new FixedLengthStream(s.fixed));
  const response = s.fetch ? await fetch(s.fetch, {method: s.fetchMethod || "GET"}) : new Response(body, init);
  if (!s.clone) return (await cache.put(key, response)) === undefined ? "put" : "?";
  const copy = response.clone();
  const [, text] = await Promise.all([cache.put(key, response), copy.text()]);
  return text.length;
}
export default {async fetch(r) {
  const results = [];
  for (const s of await r.json()) {
    try { results.push(await step(s)) } catch (e) { results.push("throws " + e.message) }
  }
  return Response.json(results);
}}`

type step map[string]any

// found is what a match found.
type found struct {
	Status     int
	StatusText string
	Headers    map[string]string
	Body       string
}

// world is a cache behind the real workerd.
type world struct {
	tb     testing.TB
	server *cache.Server
	runner *workerd.Runtime
	url    string
	ahead  atomic.Int64 // of the clock
}

func start(tb testing.TB, config cache.Config) *world {
	tb.Helper()
	dir, err := os.MkdirTemp("", "wc")
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{tb: tb}
	socket, origin := filepath.Join(dir, "cache"), httptest.NewUnstartedServer(http.HandlerFunc(serveOrigin))
	_ = origin.Listener.Close()
	if origin.Listener, err = net.Listen("unix", filepath.Join(dir, "origin")); err != nil {
		tb.Fatal(err)
	}
	origin.Start()
	w.runner = workerd.New(workerd.Options{
		Path: nearkeytest.NeedWorkerd(tb), Dir: filepath.Join(dir, "run"), Cache: socket, Egress: filepath.Join(dir, "origin"), Logger: slog.New(slog.DiscardHandler),
	})
	config.Identify = func(token string) (string, bool) {
		caller, ok := w.runner.Identify(token, "")
		return caller.Name, ok
	}
	config.Now = func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.server = cache.New(config)
	l, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { _ = w.server.Serve(ctx, l) })
	wait.Go(func() { _ = w.runner.Run(ctx) })
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.runner.Handler(r.Header.Get("Worker")).ServeHTTP(rw, r)
	}))
	w.url = front.URL
	tb.Cleanup(func() {
		front.Close()
		cancel()
		wait.Wait()
		origin.Close()
		_ = os.RemoveAll(dir)
	})
	for _, name := range []string{"a", "b"} {
		if err := w.runner.Deploy(tb.Context(), workerd.Worker{
			Name: name, Version: "1", Main: "a.js", CompatibilityDate: "2026-08-01",
			Modules: []workerd.Module{{Name: "a.js", Type: workerd.ESModule, Content: []byte(program)}},
		}); err != nil {
			tb.Fatal(err)
		}
	}
	return w
}

// serveOrigin is what a Worker fetches.
func serveOrigin(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "max-age=60")
	switch r.URL.Path {
	case "/known":
		w.Header().Set("Content-Length", "6")
		_, _ = io.WriteString(w, "origin")
	case "/unknown":
		_, _ = io.WriteString(w, "ori")
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "gin")
	case "/old":
		w.Header().Set("Age", "59")
		w.Header().Set("Cache-Control", "max-age=59")
	case "/cut", "/cut-chunked":
		if r.URL.Path == "/cut" {
			w.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(w, "ori")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// do has a Worker do the steps.
func (w *world) do(worker string, steps ...step) []json.RawMessage {
	w.tb.Helper()
	text, err := json.Marshal(steps)
	if err != nil {
		w.tb.Fatal(err)
	}
	r, err := http.NewRequestWithContext(w.tb.Context(), "POST", w.url, bytes.NewReader(text))
	if err != nil {
		w.tb.Fatal(err)
	}
	r.Header.Set("Worker", worker)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		w.tb.Fatalf("%d %s (%v)", res.StatusCode, answer, err)
	}
	var results []json.RawMessage
	if err := json.Unmarshal(answer, &results); err != nil || len(results) != len(steps) {
		w.tb.Fatalf("%s: %v", answer, err)
	}
	return results
}

// match returns what one match finds; nil: nothing.
func (w *world) match(worker string, s step) *found {
	w.tb.Helper()
	s["op"] = "match"
	var f *found
	if err := json.Unmarshal(w.do(worker, s)[0], &f); err != nil {
		w.tb.Fatal(err)
	}
	return f
}

// want checks that a step comes to this, as JSON.
func (w *world) want(s step, want string) {
	w.tb.Helper()
	if got := string(w.do("a", s)[0]); got != want {
		w.tb.Errorf("%v: got %s, want %s", s, got, want)
	}
}

func (w *world) wantBody(s step, status int, body string) *found {
	w.tb.Helper()
	f := w.match("a", s)
	switch {
	case status == 0 && f == nil:
	case f == nil || f.Status != status || f.Body != body:
		w.tb.Errorf("%v: got %+v, want %d %q", s, f, status, body)
	}
	if f == nil {
		return &found{Headers: map[string]string{}}
	}
	return f
}

func put(url string, more step) step {
	s := step{"op": "put", "url": url, "body": "body", "response": map[string]string{"Cache-Control": "max-age=60"}}
	for name, value := range more {
		s[name] = value
	}
	return s
}

func TestWorker(t *testing.T) {
	w := start(t, cache.Config{})
	const u = "https://a.example/x?b=2&a=1"
	w.wantBody(step{"url": u}, 0, "")
	w.want(put(u, step{"response": map[string]string{"Cache-Control": "max-age=60", "X-Own": "ü", "ETag": `"1"`}, "statusText": "Fine"}), `"put"`)
	f := w.wantBody(step{"url": u}, 200, "body")
	for name, want := range map[string]string{"cache-control": "max-age=60", "x-own": "ü", "etag": `"1"`, "age": "0", "cf-cache-status": "HIT", "content-length": "4", "content-type": "text/plain;charset=UTF-8"} {
		if f.Headers[name] != want {
			t.Errorf("%s: got %q, want %q", name, f.Headers[name], want)
		}
	}
	for name := range f.Headers {
		if strings.HasPrefix(name, "x-nk") || name == "connection" || name == "transfer-encoding" {
			t.Errorf("the Worker saw %s: %s", name, f.Headers[name])
		}
	}
	if f.Headers["date"] == "" {
		t.Error("no date")
	}
	w.wantBody(step{"url": u, "plain": true}, 200, "body")
	w.wantBody(step{"url": "http://a.example/x?b=2&a=1"}, 0, "")
	w.wantBody(step{"url": "https://b.example/x?b=2&a=1"}, 0, "")
	w.wantBody(step{"url": "https://a.example/x?a=1&b=2"}, 0, "")
	w.wantBody(step{"url": "https://A.example:443/x?b=2&a=1"}, 200, "body")
	w.wantBody(step{"url": u, "method": "HEAD"}, 0, "")
	w.wantBody(step{"url": u, "method": "POST", "options": step{"ignoreMethod": true}}, 200, "body")
	if f := w.match("b", step{"url": u}); f != nil {
		t.Errorf("another scope found %+v", f)
	}
	w.want(step{"op": "delete", "url": u}, "true")
	w.want(step{"op": "delete", "url": u}, "false")
	w.wantBody(step{"url": u}, 0, "")
}

func TestWorkerPuts(t *testing.T) {
	w := start(t, cache.Config{MaxObject: 1 << 20})
	const u = "https://a.example/"
	long := map[string]string{"Cache-Control": "max-age=60"}
	for name, c := range map[string]struct {
		put    step
		status int
		body   string
	}{
		"stream":         {step{"parts": []string{"one", "two", "three"}}, 200, "onetwothree"},
		"broken stream":  {step{"parts": []string{"one", "two"}, "fail": true}, 0, ""},
		"short fixed":    {step{"parts": []string{"one"}, "fixed": 10}, 0, ""},
		"empty":          {step{"body": ""}, 200, ""},
		"null body":      {step{"body": nil}, 200, ""},
		"no content":     {step{"body": nil, "status": 204}, 204, ""},
		"gzip":           {step{"gzip": "squeezed", "response": map[string]string{"Cache-Control": "max-age=60", "Content-Encoding": "gzip"}}, 200, "squeezed"},
		"own length":     {step{"response": map[string]string{"Cache-Control": "max-age=60", "Content-Length": "9"}}, 200, "body"},
		"cookie":         {step{"response": map[string]string{"Cache-Control": "max-age=60", "Set-Cookie": "a=b"}}, 0, ""},
		"private cookie": {step{"response": map[string]string{"Cache-Control": "max-age=60, private=Set-Cookie", "Set-Cookie": "a=b"}}, 200, "body"},
		"no-store":       {step{"response": map[string]string{"Cache-Control": "max-age=60, no-store"}}, 0, ""},
		"says nothing":   {step{"response": map[string]string{}}, 200, "body"},
		"500":            {step{"response": map[string]string{}, "status": 500}, 0, ""},
		"500 fresh":      {step{"response": long, "status": 500}, 500, "body"},
		"504 fresh":      {step{"response": long, "status": 504}, 504, "body"},
		"redirect":       {step{"response": map[string]string{"Location": "/y"}, "status": 302, "body": nil}, 302, ""},
		"expect":         {step{"headers": map[string]string{"Expect": "100-continue"}}, 200, "body"},
		"at the limit":   {step{"size": 1 << 20}, 200, strings.Repeat("a", 1<<20)},
		"above it":       {step{"size": 1<<20 + 1}, 0, ""},
		"304":            {step{"status": 304, "body": nil}, 0, ""},
		"cloned":         {step{"parts": []string{"one", "two"}, "clone": true}, 200, "onetwo"},
	} {
		url := u + strings.ReplaceAll(name, " ", "-")
		s := put(url, c.put)
		if c.put["fail"] != nil || c.put["fixed"] != nil {
			w.do("a", s) // it may throw or not
		} else if want := map[bool]string{true: `6`, false: `"put"`}[c.put["clone"] != nil]; string(w.do("a", s)[0]) != want {
			t.Errorf("%s: put: %s", name, w.do("a", s)[0])
		}
		f := w.match("a", step{"url": url})
		switch {
		case c.status == 0 && f == nil:
		case f == nil || f.Status != c.status || f.Body != c.body:
			t.Errorf("%s: got %.200s, want %d %.20q", name, marshal(f), c.status, c.body)
		case f.Headers["set-cookie"] != "":
			t.Errorf("%s: the cookie was kept", name)
		}
	}
	w.want(put(u, step{"status": 206}), `"throws Cannot cache response to a range request (206 Partial Content)."`)
	w.want(put(u, step{"response": map[string]string{"Vary": "*"}}), `"throws Cannot cache response with 'Vary: *' header."`)
	w.want(put(u, step{"method": "POST"}), `"throws Cannot cache response to non-GET request."`)
	if s := w.server.Stats(); s.Held != 0 || s.TooLarge != 1 || s.Incomplete < 1 {
		t.Errorf("%+v", s)
	}
}

func marshal(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

func TestWorkerPutsWhatItFetched(t *testing.T) {
	w := start(t, cache.Config{})
	for path, want := range map[string]int{"known": 200, "unknown": 200, "old": 0, "cut": 0, "cut-chunked": 0} {
		s := put("https://a.example/"+path, step{"fetch": "https://o.example/" + path})
		delete(s, "body")
		w.do("a", s)
		w.wantBody(step{"url": s["url"]}, want, "origin")
	}
	s := put("https://a.example/head", step{"fetch": "https://o.example/known", "fetchMethod": "HEAD"})
	delete(s, "body")
	w.do("a", s)
	w.wantBody(step{"url": s["url"]}, 200, "") // nothing that workerd sends tells it from an empty one
	if held := w.server.Stats().Held; held != 0 {
		t.Errorf("%d bytes are held", held)
	}
}

func TestWorkerNamedCaches(t *testing.T) {
	w := start(t, cache.Config{})
	const u = "https://a.example/"
	w.want(put(u, step{"cache": "one", "body": "1"}), `"put"`)
	w.want(put(u, step{"cache": "ü/ %,", "body": "2"}), `"put"`)
	w.want(put(u, step{"cache": "default", "body": "3"}), `"put"`)
	w.wantBody(step{"url": u}, 0, "")
	w.wantBody(step{"url": u, "cache": "two"}, 0, "")
	w.wantBody(step{"url": u, "cache": "one"}, 200, "1")
	w.wantBody(step{"url": u, "cache": "ü/ %,"}, 200, "2")
	w.wantBody(step{"url": u, "cache": "default"}, 200, "3")
	w.want(step{"op": "delete", "url": u, "cache": "two"}, "false")
	w.want(step{"op": "delete", "url": u, "cache": "one"}, "true")
	w.wantBody(step{"url": u, "cache": "one"}, 0, "")
	w.wantBody(step{"url": u, "cache": "default"}, 200, "3")
	w.want(put(u, step{"cache": "", "body": "4"}), `"put"`) // workerd sends no name
	w.wantBody(step{"url": u}, 200, "4")
}

func TestWorkerCacheKey(t *testing.T) {
	w := start(t, cache.Config{})
	key := step{"cacheKey": "https://key.example/\"ü"}
	w.want(put("https://a.example/1", step{"cf": key}), `"put"`)
	w.wantBody(step{"url": "https://a.example/1"}, 0, "")
	w.wantBody(step{"url": "https://a.example/2", "cf": key}, 200, "body")
	w.wantBody(step{"url": "https://a.example/2", "cf": step{"cacheKey": "other"}}, 0, "")
	w.wantBody(step{"url": "https://key.example/\"ü"}, 0, "")
	w.want(step{"op": "delete", "url": "https://a.example/3", "cf": key}, "true")
	w.wantBody(step{"url": "https://a.example/2", "cf": key}, 0, "")
}

func TestWorkerVary(t *testing.T) {
	w := start(t, cache.Config{})
	const u = "https://a.example/"
	accept := func(language string) map[string]string { return map[string]string{"Accept-Language": language} }
	vary := map[string]string{"Cache-Control": "max-age=60", "Vary": "Accept-Language, X-Absent"}
	w.want(put(u, step{"headers": accept("de"), "response": vary, "body": "Haus"}), `"put"`)
	w.want(put(u, step{"headers": accept("en"), "response": vary, "body": "house"}), `"put"`)
	w.wantBody(step{"url": u, "headers": accept("de")}, 200, "Haus")
	w.wantBody(step{"url": u, "headers": accept("en")}, 200, "house")
	w.wantBody(step{"url": u, "headers": accept("fr")}, 0, "")
	w.wantBody(step{"url": u}, 0, "")
	w.wantBody(step{"url": u, "headers": map[string]string{"Accept-Language": "de", "X-Absent": ""}}, 0, "")
	w.want(put(u, step{"headers": accept("en"), "response": vary, "body": "home"}), `"put"`)
	w.wantBody(step{"url": u, "headers": accept("en")}, 200, "home")
	w.want(step{"op": "delete", "url": u}, "true") // with all its variants
	w.wantBody(step{"url": u, "headers": accept("de")}, 0, "")
	if n := w.server.Stats(); n.Entries != 0 || n.Bytes != 0 {
		t.Errorf("%+v", n)
	}
}

func TestWorkerConditionsAndRanges(t *testing.T) {
	w := start(t, cache.Config{})
	const u = "https://a.example/"
	w.want(put(u, step{"body": "0123456789", "response": map[string]string{
		"Cache-Control": "max-age=60", "ETag": `"1"`, "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT", "Content-Type": "text/x",
	}}), `"put"`)
	header := func(name, value string) step { return step{"url": u, "headers": map[string]string{name: value}} }
	f := w.wantBody(header("If-None-Match", `"0", W/"1"`), 304, "")
	if f.Headers["etag"] != `"1"` || f.Headers["content-type"] != "" || f.Headers["cache-control"] == "" {
		t.Errorf("304: %v", f.Headers)
	}
	w.wantBody(header("If-None-Match", `"2"`), 200, "0123456789")
	w.wantBody(header("If-Modified-Since", "Sun, 01 Nov 2026 00:00:00 GMT"), 304, "")
	w.wantBody(header("If-Modified-Since", "Sat, 31 Oct 2026 23:59:59 GMT"), 200, "0123456789")
	f = w.wantBody(header("Range", "bytes=2-4"), 206, "234")
	if f.Headers["content-range"] != "bytes 2-4/10" || f.Headers["content-type"] != "text/x" || f.Headers["content-length"] != "3" {
		t.Errorf("206: %v", f.Headers)
	}
	f = w.wantBody(header("Range", "bytes=10-"), 416, "")
	if f.Headers["content-range"] != "bytes */10" {
		t.Errorf("416: %v", f.Headers)
	}
	f = w.match("a", header("Range", "bytes=0-1,-2"))
	if f == nil || f.Status != 206 || !strings.HasPrefix(f.Headers["content-type"], "multipart/byteranges; boundary=") ||
		!strings.Contains(f.Body, "Content-Range: bytes 0-1/10\r\nContent-Type: text/x\r\n\r\n01\r\n--") || !strings.Contains(f.Body, "bytes 8-9/10") {
		t.Errorf("two ranges: %+v", f)
	}
}

// Nothing stale is served, and delete tells of nothing that match would not have found.
func TestWorkerStale(t *testing.T) {
	w := start(t, cache.Config{})
	const u = "https://a.example/"
	w.want(put(u, step{"response": map[string]string{"Cache-Control": "max-age=10, s-maxage=60"}}), `"put"`)
	w.ahead.Store(int64(50 * time.Second))
	if f := w.wantBody(step{"url": u}, 200, "body"); f.Headers["age"] != "50" {
		t.Errorf("age %q", f.Headers["age"])
	}
	w.ahead.Store(int64(time.Minute))
	w.want(step{"op": "delete", "url": u}, "false")
	w.want(put(u, nil), `"put"`)
	w.ahead.Store(int64(2 * time.Minute))
	w.wantBody(step{"url": u}, 0, "")
	if s := w.server.Stats(); s.Expired != 1 || s.Entries != 0 {
		t.Errorf("%+v", s)
	}
}
