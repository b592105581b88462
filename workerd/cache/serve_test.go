package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// world is a server on a socket, without workerd.
type world struct {
	t      *testing.T
	server *Server
	socket string
	ctx    context.Context
	end    func()
	served chan error
}

func start(t *testing.T, config Config) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "wc")
	if err != nil {
		t.Fatal(err)
	}
	if config.Identify == nil {
		config.Identify = func(token string) (string, bool) { return "zone of " + token, token != "unknown" }
	}
	w := &world{t: t, server: New(config), socket: filepath.Join(dir, "s"), served: make(chan error, 1)}
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	w.ctx, w.end = context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { w.served <- w.server.Serve(w.ctx, l) })
	t.Cleanup(func() {
		w.end()
		wait.Wait()
		if s := w.server.Stats(); s.Conns != 0 || s.Held != 0 {
			t.Errorf("left behind: %+v", s)
		}
		_ = os.RemoveAll(dir)
	})
	return w
}

// line is a connection.
type line struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (w *world) dial() *line {
	w.t.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return &line{c, w.t, bufio.NewReader(c)}
}

func (l *line) send(text string) {
	l.t.Helper()
	if _, err := io.WriteString(l, text); err != nil {
		l.t.Fatal(err)
	}
}

// begin sends a part of something to a server that may already have had enough of the
// wait for it.
func (l *line) begin(text string) { _, _ = io.WriteString(l, text) }

func (l *line) receive(method string) (*http.Response, string) {
	l.t.Helper()
	res, err := http.ReadResponse(l.in, &http.Request{Method: method})
	if err != nil {
		l.t.Fatalf("%s: %v", method, err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatalf("%s: %v", method, err)
	}
	return res, string(body)
}

func (l *line) do(method, path, lines, body string) (*http.Response, string) {
	l.t.Helper()
	l.send(request(method, path, lines, body))
	return l.receive(method)
}

// request is one as text, with headers each ended by CRLF.
func request(method, path, lines, body string) string {
	if !strings.Contains(lines, "X-NK-Token") {
		lines += "X-NK-Token: t\r\n"
	}
	if body != "" {
		lines += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return method + " " + path + " HTTP/1.1\r\nHost: a.example\r\n" + lines + "\r\n" + body
}

// sized is a response as workerd sends it.
func sized(body string, lines ...string) string {
	return "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n" + strings.Join(append(lines, ""), "\r\n") + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
}

func (w *world) want(method, path, lines, body string, status int) string {
	w.t.Helper()
	l := w.dial()
	defer func() { _ = l.Close() }()
	res, got := l.do(method, path, lines, body)
	if res.StatusCode != status {
		w.t.Errorf("%s %s %s: got %d, want %d", method, path, lines, res.StatusCode, status)
	}
	return got
}

func TestMethods(t *testing.T) {
	w := start(t, Config{})
	l := w.dial() // one connection for all
	res, _ := l.do("GET", "/", "", "")
	if res.StatusCode != 504 || res.Header.Get("CF-Cache-Status") != "MISS" {
		t.Errorf("miss: %v", res)
	}
	if res, _ := l.do("PUT", "/", "", sized("body")); res.StatusCode != 204 {
		t.Errorf("put: %v", res)
	}
	if res, body := l.do("GET", "/", "", ""); res.StatusCode != 200 || body != "body" || res.Header.Get("CF-Cache-Status") != "HIT" || res.Header["Content-Type"] != nil {
		t.Errorf("hit: %v %q", res, body)
	}
	if res, body := l.do("HEAD", "/", "Range: bytes=0-1\r\n", ""); res.StatusCode != 200 || body != "" || res.ContentLength != 4 || res.Header.Get("CF-Cache-Status") != "HIT" {
		t.Errorf("head: %v %q", res, body)
	}
	if res, _ := l.do("PURGE", "/", "", ""); res.StatusCode != 200 {
		t.Errorf("purge: %v", res)
	}
	if res, _ := l.do("PURGE", "/", "", ""); res.StatusCode != 404 {
		t.Errorf("second purge: %v", res)
	}
	for _, method := range []string{"POST", "DELETE", "OPTIONS", "CONNECT"} {
		if res, _ := w.dial().do(method, "/", "", ""); res.StatusCode < 400 || res.Header.Get("CF-Cache-Status") != "" {
			t.Errorf("%s: %v", method, res)
		}
	}
}

func TestIdentity(t *testing.T) {
	spent := map[string]int{}
	var mu sync.Mutex // guards spent
	w := start(t, Config{Spend: func(token string) bool {
		mu.Lock()
		defer mu.Unlock()
		spent[token]++
		return spent[token] <= 5
	}})
	w.want("PUT", "/", "X-NK-Token: t1\r\n", sized("body"), 204)
	w.want("GET", "/", "X-NK-Token: t1\r\n", "", 200)
	w.want("GET", "/", "X-NK-Token: t2\r\n", "", 504)
	w.want("PURGE", "/", "X-NK-Token: t2\r\n", "", 404)
	for _, token := range []string{"unknown", ""} {
		for _, method := range []string{"GET", "PURGE", "PUT"} {
			body := map[bool]string{true: sized("evil")}[method == "PUT"]
			if got := w.want(method, "/", "X-NK-Token: "+token+"\r\n", body, 403); got != "" {
				t.Errorf("%s was told %q", method, got)
			}
		}
	}
	for range 3 {
		w.want("GET", "/", "X-NK-Token: t1\r\n", "", 200)
	}
	for _, method := range []string{"GET", "PURGE", "PUT"} {
		w.want(method, "/", "X-NK-Token: t1\r\n", "", 429)
	}
	w.want("GET", "http://a.example/", "X-NK-Token: t3\r\n", "", 400)
}

// No key is another's, however names are cut.
func TestKeys(t *testing.T) {
	keys := map[string]string{}
	for _, scope := range []string{"a", "ab", ""} {
		for _, lines := range []string{"", "CF-Cache-Namespace: \r\n", "CF-Cache-Namespace: default\r\n", "CF-Cache-Namespace: bdefault\r\n", "X-NK-Proto: https\r\n",
			`X-NK-CF: {"cacheKey":"x"}` + "\r\n", `X-NK-CF: {"cacheKey":"/"}` + "\r\n"} {
			for _, path := range []string{"/", "/?", "/%2F", "/a", "//"} {
				if strings.Contains(lines, "cacheKey") && path != "/" {
					continue
				}
				r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request("GET", path, lines, ""))))
				if err != nil {
					t.Fatal(err)
				}
				key := string(keyOf(scope, r))
				if other, ok := keys[key]; ok {
					t.Errorf("%q %q %q has the key of %s", scope, lines, path, other)
				}
				keys[key] = fmt.Sprintf("%q %q %q", scope, lines, path)
			}
		}
	}
	upper, lower := httptest.NewRequest("GET", "/", nil), httptest.NewRequest("GET", "/", nil)
	if upper.Host, lower.Host = "A.example", "a.example"; string(keyOf("", upper)) != string(keyOf("", lower)) {
		t.Error("a host is a host, in whatever case")
	}
	for cf, want := range map[string]string{
		"": "", "{": "", `{"cacheKey":1}`: "", `{"cacheKey":null}`: "", `{"cacheKey":""}`: "", `{"cacheKey":"ü"}`: "ü", `["cacheKey"]`: "",
	} {
		if got, ok := cacheKey(cf); got != want || ok != (want != "") {
			t.Errorf("%s: %q %v", cf, got, ok)
		}
	}
}

func TestInnerFraming(t *testing.T) {
	w := start(t, Config{})
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"chunked is not chunked": {ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 204, "4\r\nbody\r\n0\r\n\r\n"},
		"no length":              {ok + "\r\nbody", 204, "body"},
		"no reason":              {"HTTP/1.1 200\r\n\r\nbody", 204, "body"},
		"too short":              {ok + "Content-Length: 5\r\n\r\nbody", 413, ""},
		"too long":               {ok + "Content-Length: 3\r\n\r\nbody", 413, ""},
		"two lengths":            {ok + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", 413, ""},
		"both":                   {ok + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nbody", 413, ""},
		"other coding":           {ok + "Transfer-Encoding: gzip\r\n\r\nbody", 413, ""},
		"negative length":        {ok + "Content-Length: -4\r\n\r\nbody", 413, ""},
		"great length":           {ok + "Content-Length: 99999999999999999999\r\n\r\nbody", 413, ""},
		"empty":                  {"x", 413, ""},
		"head without end":       {ok + "A: b\r\n", 413, ""},
		"bare newline":           {"HTTP/1.1 200 OK\nA: b\n\n", 413, ""},
		"folded":                 {ok + "A: b\r\n c\r\n\r\nbody", 413, ""},
		"space before colon":     {ok + "A : b\r\n\r\nbody", 413, ""},
		"carriage return":        {ok + "A: b\rc\r\n\r\nbody", 413, ""},
		"no content with body":   {"HTTP/1.1 204 No\r\nCache-Control: max-age=9\r\n\r\nbody", 413, ""},
		"HTTP/2":                 {"HTTP/2 200 OK\r\n\r\nbody", 413, ""},
		"status 20":              {"HTTP/1.1 20 OK\r\n\r\nbody", 413, ""},
		"status +20":             {"HTTP/1.1 +20 OK\r\n\r\nbody", 413, ""},
	} {
		path := "/" + strings.ReplaceAll(name, " ", "-")
		w.want("PUT", path, "", c.body, c.status)
		if c.status != 204 {
			w.want("GET", path, "", "", 504)
		} else if got := w.want("GET", path, "", "", 200); got != c.want {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestLimits(t *testing.T) {
	const most = 100 << 10
	w := start(t, Config{Bytes: 1 << 20, MaxObject: most})
	for _, chunked := range []bool{false, true} {
		for size, status := range map[int]int{most: 204, most + 1: 413, 3 * most: 413} {
			text := sized(strings.Repeat("x", size))
			if chunked {
				text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("x", size)
				l := w.dial()
				l.send(fmt.Sprintf("PUT /%d HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, len(text), text))
				if res, _ := l.receive("PUT"); res.StatusCode != status {
					t.Errorf("%d bytes in chunks: %v", size, res)
				}
			} else {
				w.want("PUT", fmt.Sprintf("/%d", size), "", text, status)
			}
			if status == 204 {
				if got := w.want("GET", fmt.Sprintf("/%d", size), "", "", 200); len(got) != size {
					t.Errorf("%d bytes of %d", len(got), size)
				}
			}
		}
	}
	for size, status := range map[int]int{maxHead: 204, maxHead + 1: 413} {
		text := "HTTP/1.1 200 OK\r\nA: \r\n\r\n"
		text = strings.Replace(text, "A: ", "A: "+strings.Repeat("a", size-len(text)), 1)
		w.want("PUT", "/head", "", text, status)
	}
	for lines, status := range map[int]int{maxFields: 204, maxFields + 1: 413} {
		w.want("PUT", "/lines", "", "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", lines)+"\r\n", status)
	}
	if s := w.server.Stats(); s.TooLarge != 5 || s.Bytes > 1<<20 {
		t.Errorf("%+v", s)
	}
	if c := (Config{Bytes: 100, MaxObject: 50}).withDefaults(); c.MaxObject != 25 {
		t.Errorf("%d bytes of an object are a quarter of 100", c.MaxObject)
	}
}

// What is cut off is not kept, and nothing is held for it.
func TestCut(t *testing.T) {
	w := start(t, Config{})
	for _, text := range []string{
		request("PUT", "/", "", sized("body"))[:90],
		"PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nContent-Length: 100\r\n\r\n" + sized("body"),
		"PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nTransfer-Encoding: chunked\r\n\r\n13\r\nHTTP/1.1 200 OK\r\n\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nTransfer-Encoding: chunked\r\n\r\n17\r\nHTTP/1.1 200 OK\r\n\r\nbody\r\n",
	} {
		l := w.dial()
		l.send(text)
		_ = l.Close()
	}
	until(t, "all four are known to be incomplete", func() bool { return w.server.Stats().Incomplete == 4 })
	w.want("GET", "/", "", "", 504)
	until(t, "nothing is held", func() bool { return w.server.Stats().Held == 0 })
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

// A client that stops sending, or reading, is let go of, and what it held with it.
func TestHungClients(t *testing.T) {
	w := start(t, Config{Bytes: 16 << 20, MaxObject: 4 << 20, HeadTimeout: 50 * time.Millisecond, BodyPause: 50 * time.Millisecond, WriteTime: 50 * time.Millisecond})
	head := w.dial()
	head.begin("GET / HTTP/1.1\r\nHo")
	body := w.dial()
	body.begin("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nContent-Length: 1000000\r\n\r\n" + sized(strings.Repeat("x", 10_000))[:9_000])
	if _, err := io.ReadAll(head.in); err != nil {
		t.Errorf("after a part of a head: %v", err)
	}
	until(t, "the other is let go of, too", func() bool { s := w.server.Stats(); return s.Incomplete == 1 && s.Conns == 0 && s.Held == 0 })
	w.want("PUT", "/big", "", sized(strings.Repeat("x", 4<<20)), 204)
	deaf := w.dial()
	deaf.begin(request("GET", "/big", "", ""))
	until(t, "it is let go of", func() bool { s := w.server.Stats(); return s.Hits == 1 && s.Conns == 0 })
	w.want("PURGE", "/big", "", "", 200)
	if s := w.server.Stats(); s.Bytes != 0 {
		t.Errorf("%d bytes are still held", s.Bytes)
	}
}

// A body that never ends is let go of, though it goes on.
func TestEndlessBody(t *testing.T) {
	w := start(t, Config{BodyTimeout: 100 * time.Millisecond})
	l := w.dial()
	l.send("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nTransfer-Encoding: chunked\r\n\r\n13\r\nHTTP/1.1 200 OK\r\n\r\n\r\n")
	until(t, "it is let go of", func() bool {
		_, _ = io.WriteString(l, "1\r\nx\r\n") // fails in the end
		s := w.server.Stats()
		return s.Incomplete == 1 && s.Conns == 0
	})
	w.want("GET", "/", "", "", 504)
}

// A body that comes slowly, but comes, is kept.
func TestSlowBody(t *testing.T) {
	w := start(t, Config{BodyPause: 300 * time.Millisecond})
	l := w.dial()
	l.send("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nTransfer-Encoding: chunked\r\n\r\n13\r\nHTTP/1.1 200 OK\r\n\r\n\r\n")
	began := time.Now()
	until(t, "it took longer than a pause", func() bool {
		l.send("1\r\nx\r\n")
		return time.Since(began) > 500*time.Millisecond
	})
	l.send("0\r\n\r\n")
	if res, _ := l.receive("PUT"); res.StatusCode != 204 {
		t.Errorf("put: %v", res)
	}
}

// Nothing is held for a body that is refused, though it still comes.
func TestRefusedBodyHoldsNothing(t *testing.T) {
	w := start(t, Config{MaxObject: 100 << 10})
	l := w.dial()
	l.send("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nContent-Length: 1000000\r\n\r\nHTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 100<<10))
	until(t, "the head is held", func() bool { return w.server.Stats().Held >= 96<<10 })
	l.send("\r\n\r\n" + strings.Repeat("x", 200<<10))
	until(t, "nothing is", func() bool { s := w.server.Stats(); return s.TooLarge == 1 && s.Held == 0 && s.Conns == 1 })
}

// What is being received is bounded, however much is begun at once; what does not
// fit is refused and read to its end.
func TestHeldBytes(t *testing.T) {
	w := start(t, Config{Bytes: 8 << 20, MaxObject: 1 << 20, HeldBytes: 1 << 20})
	text := request("PUT", "/", "", sized(strings.Repeat("x", 700<<10)))
	first, second := w.dial(), w.dial()
	first.send(text[:600<<10])
	until(t, "the first is held", func() bool { return w.server.Stats().Held > 500<<10 })
	second.send(text)
	if res, _ := second.receive("PUT"); res.StatusCode != 413 {
		t.Errorf("the second: %v", res)
	}
	if res, _ := second.do("GET", "/", "", ""); res.StatusCode != 504 {
		t.Errorf("the connection goes on: %v", res)
	}
	first.send(text[600<<10:])
	if res, _ := first.receive("PUT"); res.StatusCode != 204 {
		t.Errorf("the first: %v", res)
	}
	if s := w.server.Stats(); s.NoRoom != 1 || s.Stored != 1 {
		t.Errorf("%+v", s)
	}
}

func TestManyPutsStayWithinTheBound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const bytes, held = 4 << 20, 1 << 20
	w := start(t, Config{Bytes: bytes, MaxObject: 512 << 10, HeldBytes: held})
	var wait sync.WaitGroup
	for client := range 6 {
		l := w.dial()
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(client)))
			for range 60 {
				path := fmt.Sprintf("/%d", rng.IntN(30))
				if rng.IntN(3) == 0 {
					if _, body := l.do("GET", path, "", ""); body != strings.Repeat(path, len(body)/len(path)) {
						t.Errorf("%s has %.40q", path, body)
					}
					continue
				}
				l.do("PUT", path, "", sized(strings.Repeat(path, rng.IntN(500<<10)/len(path))))
				if s := w.server.Stats(); s.Bytes > bytes || s.Held > held {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	wait.Wait()
	w.server.store.check(t)
	if s := w.server.Stats(); s.Stored == 0 || s.Evicted == 0 {
		t.Errorf("nothing happened: %+v", s)
	}
}

func TestManyConnections(t *testing.T) {
	w := start(t, Config{MaxConns: 2})
	lines := []*line{w.dial(), w.dial(), w.dial()}
	for _, l := range lines[:2] {
		l.do("GET", "/", "", "")
	}
	lines[2].send(request("GET", "/", "", ""))
	if conns := w.server.Stats().Conns; conns != 2 {
		t.Errorf("%d connections", conns)
	}
	_ = lines[0].Close()
	if res, _ := lines[2].receive("GET"); res.StatusCode != 504 {
		t.Errorf("the third: %v", res)
	}
}

func TestMultipart(t *testing.T) {
	w := start(t, Config{})
	w.want("PUT", "/", "", sized("0123456789", "Content-Type: text/x"), 204)
	res, body := w.dial().do("GET", "/", "Range: bytes=0-1,8-\r\n", "")
	kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" || res.ContentLength != int64(len(body)) || res.StatusCode != 206 {
		t.Fatalf("%v %v", res, err)
	}
	parts := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for _, want := range [][2]string{{"bytes 0-1/10", "01"}, {"bytes 8-9/10", "89"}} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(part)
		if part.Header.Get("Content-Range") != want[0] || part.Header.Get("Content-Type") != "text/x" || string(text) != want[1] {
			t.Errorf("got %v %q, want %v", part.Header, text, want)
		}
	}
	if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
		t.Errorf("one more: %v", err)
	}
}

func TestNotModified(t *testing.T) {
	w := start(t, Config{})
	w.want("PUT", "/", "", sized("body", "ETag: \"1\"", "Content-Type: a/b", "Content-Encoding: gzip", "Content-Language: de", "Content-Location: /x", "X-Own: y"), 204)
	res, body := w.dial().do("GET", "/", "If-None-Match: \"1\"\r\n", "")
	if res.StatusCode != 304 || body != "" {
		t.Errorf("%v %q", res, body)
	}
	for name, want := range map[string]string{"Content-Type": "", "Content-Encoding": "", "Content-Language": "", "Content-Length": "", "Content-Location": "/x", "X-Own": "y", "Etag": `"1"`} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// An answer is of its time: the age grows, the rest stays.
func TestAge(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex // guards now
	w := start(t, Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	w.want("PUT", "/", "", sized("body", "Age: 10", "Date: "+now.UTC().Format(http.TimeFormat)), 204)
	for _, c := range []struct {
		later  time.Duration
		status int
		age    string
	}{{0, 200, "10"}, {49 * time.Second, 200, "59"}, {2 * time.Second, 504, ""}} {
		mu.Lock()
		now = now.Add(c.later)
		mu.Unlock()
		if res, _ := w.dial().do("GET", "/", "", ""); res.StatusCode != c.status || res.Header.Get("Age") != c.age {
			t.Errorf("%v later: %v", c.later, res)
		}
	}
}

func TestEnd(t *testing.T) {
	t.Run("shutdown", func(t *testing.T) {
		w := start(t, Config{})
		idle, busy := w.dial(), w.dial()
		idle.do("GET", "/", "", "")
		text := request("PUT", "/", "", sized("body"))
		busy.send(text[:len(text)-1])
		until(t, "it is under way", func() bool { return w.server.Stats().Held > 0 })
		done := make(chan error, 1)
		go func() { done <- w.server.Shutdown(t.Context()) }()
		if _, err := idle.in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("the idle one: %v", err)
		}
		busy.send(text[len(text)-1:])
		if res, _ := busy.receive("PUT"); res.StatusCode != 204 {
			t.Errorf("the busy one: %v", res)
		}
		if err := <-done; err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-w.served; !errors.Is(err, ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		w := start(t, Config{})
		busy := w.dial()
		busy.send("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nContent-Length: 1000\r\n\r\n" + sized("body"))
		until(t, "it is under way", func() bool { return w.server.Stats().Held > 0 })
		w.end()
		if err := <-w.served; !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Run("impatient", func(t *testing.T) {
		w := start(t, Config{})
		busy := w.dial()
		busy.send("PUT / HTTP/1.1\r\nHost: a.example\r\nX-NK-Token: t\r\nContent-Length: 1000\r\n\r\n" + sized("body"))
		until(t, "it is under way", func() bool { return w.server.Stats().Held > 0 })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.server.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-w.served; !errors.Is(err, ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Run("before it began", func(t *testing.T) {
		s := New(Config{})
		_ = s.Close()
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(t.Context(), l); !errors.Is(err, ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
}

// discard is a client that takes everything.
type discard struct{ header http.Header }

func (d discard) Header() http.Header              { return d.header }
func (d discard) Write(b []byte) (int, error)      { return len(b), nil }
func (d discard) WriteHeader(int)                  {}
func (d discard) SetWriteDeadline(time.Time) error { return nil }
func (d discard) SetReadDeadline(time.Time) error  { return nil }

// BenchmarkMatch is a hit without the HTTP around it.
func BenchmarkMatch(b *testing.B) {
	s := New(Config{Identify: func(string) (string, bool) { return "scope", true }})
	read := func(text string) *http.Request {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	s.serve(discard{http.Header{}}, read(request("PUT", "/", "", sized(strings.Repeat("x", 10_000), "ETag: \"1\"", "Vary: Accept", "Content-Type: text/html"))))
	r, d := read(request("GET", "/", "", "")), discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(d.header)
		s.serve(d, r)
	}
	if s.Stats().Hits == 0 {
		b.Error("no hits")
	}
}

// BenchmarkSocket is a hit over a socket, with the client's share.
func BenchmarkSocket(b *testing.B) {
	s := New(Config{Identify: func(string) (string, bool) { return "scope", true }})
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = s.Serve(b.Context(), l) })
	defer wait.Wait()
	defer func() { _ = s.Close() }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	exchange := func(text []byte, most int) {
		if _, err := c.Write(text); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < most; {
			m, err := c.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
	exchange([]byte(request("PUT", "/", "", sized(strings.Repeat("x", 1000)))), 1)
	get := []byte(request("GET", "/", "", ""))
	b.ReportAllocs()
	for b.Loop() {
		exchange(get, 1000)
	}
	if s.Stats().Hits == 0 {
		b.Error("no hits")
	}
}

// FuzzResponse: what is put in whatever pieces is refused or kept in the same way,
// and what is kept comes back as it was.
func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		sized("body"), sized("body", "ETag: \"1\"", "Vary: a, b"), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nbody",
		"HTTP/1.1 204\r\nCache-Control: s-maxage=\"5\", private=\"a,b\"\r\n\r\n", "HTTP/1.0 404 \r\nExpires: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n: \r\n\r\n",
	} {
		f.Add([]byte(seed), "bytes=1-2", `"1"`)
	}
	f.Fuzz(func(t *testing.T, data []byte, ranges, tag string) {
		s := New(Config{Bytes: 1 << 20, Now: func() time.Time { return moment }})
		whole, err := s.readWhole(strings.NewReader(string(data)))
		pieces, err2 := s.readWhole(iotest.OneByteReader(strings.NewReader(string(data))))
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("whole: %v, in pieces: %v", err, err2)
		}
		if s.held.Load() != 0 {
			t.Fatalf("%d bytes are held", s.held.Load())
		}
		if err != nil {
			return
		}
		if string(whole.body) != string(pieces.body) || !strings.HasSuffix(string(data), string(whole.body)) || whole.status != pieces.status {
			t.Fatalf("whole %q, in pieces %q", whole.body, pieces.body)
		}
		if !whole.fresh(moment) || whole.fields["Set-Cookie"] != nil || whole.fields["Connection"] != nil {
			t.Fatalf("kept %v", whole.fields)
		}
		// What is answered is a response that net/http would accept, of the same body.
		rec := httptest.NewRecorder()
		status, parts := whole.plan(&http.Request{Method: "GET", Header: http.Header{"Range": {ranges}, "If-Range": {tag}}})
		for _, piece := range whole.answer(rec.Header(), status, parts, moment) {
			_, _ = rec.Body.Write(piece)
		}
		if status == 200 && rec.Body.String() != string(whole.body) || len(parts) == 1 && !strings.Contains(string(whole.body), rec.Body.String()) {
			t.Fatalf("answered %d %q", status, rec.Body)
		}
		for name, values := range rec.Header() {
			for _, value := range values {
				if !isToken(name) || !isValue(value) {
					t.Fatalf("answered %q: %q", name, value)
				}
			}
		}
	})
}

// readWhole reads a response as put does.
func (s *Server) readWhole(body io.Reader) (*response, error) {
	hold := &hold{server: s}
	defer hold.free()
	from := s.readers.get(body)
	defer s.readers.put(from)
	h, err := readHead(from, hold)
	if err != nil {
		return nil, err
	}
	r := &response{status: h.status, fields: h.fields}
	if err := r.admit(headers{}, moment); err != nil {
		return nil, err
	}
	pieces, total, err := readBody(from, h.length, s.config.MaxObject, hold)
	r.body = join(pieces, total)
	return r, err
}
