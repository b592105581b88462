package egress_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/websocket"
	"github.com/nearkey/nearkey/workerd/egress"
)

func TestSockets(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	echo := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c); _ = c.Close() })
	w.want(step{"op": "socket", "address": "here.test:" + echo, "send": "hello", "want": 5}, `{"value":"hello"}`)
	w.want(step{"op": "socket", "address": "here.test:" + echo, "send": "hello", "want": 100, "half": true, "options": step{"allowHalfOpen": true}}, `{"value":"hello<end>"}`)
	if n := w.server.Stats().Sockets; n != 2 {
		t.Errorf("%d sockets were opened", n)
	}
	const refused = "Error: proxy request failed, cannot connect to the specified address"
	for _, address := range []string{"127.0.0.1:" + echo, "here.test:25", "169.254.169.254:80", "[::ffff:127.0.0.1]:" + echo} {
		if got := w.do(step{"op": "socket", "address": address, "send": "hello", "want": 5}); !strings.Contains(got, refused) {
			t.Errorf("%s: %s", address, got)
		}
	}
	if n := w.server.Stats().Denied; n != 4 {
		t.Errorf("%d were denied", n)
	}
	if got := w.do(step{"op": "socket", "address": "nowhere.test:80", "send": "hello", "want": 5}); !strings.Contains(got, refused) {
		t.Error(got)
	}
}

// seen is an origin that answers with what it saw.
func seen(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "target": r.RequestURI, "host": r.Host, "headers": r.Header, "body": string(body), "tls": r.TLS != nil, "proto": r.Proto,
	})
}

type sight struct {
	Method, Target, Host, Body, Proto string
	Headers                           http.Header
	TLS                               bool
}

func (w *world) see(url string, init step) sight {
	w.tb.Helper()
	got := w.fetch(url, init)
	var s sight
	if err := json.Unmarshal([]byte(got.Body), &s); err != nil || got.Status != 200 {
		w.tb.Fatalf("%s: %d %s", url, got.Status, got.Body)
	}
	return s
}

func TestFetch(t *testing.T) {
	t.Parallel()
	secure := httptest.NewUnstartedServer(http.HandlerFunc(seen))
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	t.Cleanup(secure.Close)
	w := start(t, func(w *world, c *egress.Config) {
		w.names.set("example.com", []string{"127.0.0.1"}) // the name in the certificate of httptest
		c.AllowHosts, c.Roots = []string{"*.test", "example.com"}, pool(secure)
	})
	plain := serve(t, seen)
	at := "http://here.test:" + port(t, plain.URL)
	s := w.see(at+"/a%20b|c;d'?x=1;y=%zz&&+", step{"method": "PUT", "body": "text", "headers": step{
		"X-NK-Token": "forged", "x-nk-proto": "gopher", "X-NK-CF": "{}", "X-NK-Anything": "1", "X-NK-OK": "1",
		"X-Forwarded-For": "192.0.2.1", "Own": "mine", "CF-Connecting-IP": "192.0.2.1"}, "cf": step{"cacheTtl": 60}})
	if s.Method != "PUT" || s.Target != "/a%20b|c;d'?x=1;y=%zz&&+" || s.Host != strings.TrimPrefix(at, "http://") || s.Body != "text" {
		t.Errorf("the origin saw %+v", s)
	}
	for name := range s.Headers {
		if strings.HasPrefix(name, "X-Nk-") {
			t.Errorf("%s got out: %q", name, s.Headers[name])
		}
	}
	if s.Headers.Get("Own") != "mine" || s.Headers.Get("X-Forwarded-For") != "192.0.2.1" || s.Headers.Get("Cdn-Loop") != "nearkey; hops=1" ||
		s.Headers.Get("Cf-Connecting-Ip") != "2a06:98c0:3600::103" || s.Headers.Get("User-Agent") != "" {
		t.Errorf("the origin saw headers %q", s.Headers)
	}
	if s := w.see("https://example.com:"+port(t, secure.URL)+"//two?", nil); !s.TLS || s.Target != "//two?" && s.Target != "//two" || s.Proto != "HTTP/2.0" {
		t.Errorf("the origin saw %+v", s)
	}
	w.wantFault("https://here.test:"+port(t, secure.URL), 526, `certificate of "here.test" is not valid`)
	w.wantFault("https://here.test:"+port(t, plain.URL), 525, "TLS")
	w.wantFault("http://nowhere.test/", 530, "error code: 1016\n", `"nowhere.test" does not resolve`)
}

func TestRedirectsAreTheWorkersOwn(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	origin := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/there":
			_, _ = io.WriteString(w, "there")
		case "/inside":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		default:
			http.Redirect(w, r, "/there", http.StatusFound)
		}
	})
	at := "http://here.test:" + port(t, origin.URL)
	if got := w.fetch(at+"/", nil); got.Body != "there" || !got.Redirected || got.URL != at+"/there" {
		t.Errorf("got %+v", got)
	}
	if got := w.fetch(at+"/", step{"redirect": "manual"}); got.Status != 302 || got.Headers["location"] != "/there" {
		t.Errorf("got %+v", got)
	}
	w.wantFault(at+"/inside", 403, "link-local", "169.254.169.254", "workers.egress_allow")
}

func TestNowhereElse(t *testing.T) {
	t.Parallel()
	visited := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a server on loopback was reached") })
	at := port(t, visited.URL)
	w := start(t, func(w *world, c *egress.Config) {
		c.DenyHosts = []string{"*.evil.test"}
		w.names.set("inside.test", []string{"127.0.0.1"})
		w.names.set("mixed.test", []string{"10.0.0.1", "::1"})
		w.names.set("localhost", []string{"127.0.0.1"})
	})
	for _, host := range []string{
		"127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
		"[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "169.254.169.254", "[fe80::1]", "[fd00::1]", "10.0.0.1", "172.16.0.1", "192.168.1.1",
		"100.64.0.1", "224.0.0.1", "[ff02::1]", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "[2001:db8::1]",
		"inside.test", "inside.test.", "INSIDE.test", "mixed.test", "localhost", "localhost.",
	} {
		w.wantFault("http://"+host+":"+at+"/", 403, "egress denied", "workers.egress_allow")
	}
	w.wantFault("http://x.evil.test:"+at+"/", 403, `"x.evil.test" may not be reached`)
	w.wantFault("http://x.evil.test.:"+at+"/", 403, `"x.evil.test" may not be reached`)
	w.wantFault("http://here.test:25/", 403, "port 25")
	if got := w.do(step{"url": "http://user:pass@127.0.0.1:" + at + "/"}); !strings.Contains(got, "egress denied") && !strings.Contains(got, "threw") {
		t.Error(got)
	}
}

func TestNamesAreLookedUpOnce(t *testing.T) {
	t.Parallel()
	visited := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a server on loopback was reached") })
	w := start(t, func(w *world, c *egress.Config) {
		c.DialTimeout = 50 * time.Millisecond
		w.names.set("rebind.test", []string{"192.0.2.1"}, []string{"127.0.0.1"})
		c.Allow = append(c.Allow, netip.MustParsePrefix("192.0.2.0/24")) // nobody is there
	})
	got := w.fetch("http://rebind.test:"+port(t, visited.URL)+"/", nil)
	if n := w.names.times("rebind.test"); got.Status/10 != 52 || n != 1 {
		t.Errorf("%d look-ups, then %+v", n, got)
	}
	w.wantFault("http://rebind.test:"+port(t, visited.URL)+"/", 403, "loopback")
}

func TestOriginsAndRoutes(t *testing.T) {
	t.Parallel()
	origin := serve(t, seen)
	var w *world
	w = start(t, func(_ *world, c *egress.Config) {
		c.Origin = func(host string) (*url.URL, bool) {
			u, err := url.Parse(origin.URL)
			return u, host == "a.shop.test" && err == nil
		}
		c.Local = func(_ context.Context, scheme, host, path, from string) http.Handler {
			if (host == "b.workers.test" || host == "b.workers.test:8080") && from == "a" {
				return w.runner.Handler("b")
			}
			return nil
		}
	})
	pass := func(host, path string) sight {
		t.Helper()
		status, text := w.send("POST", host, path, []byte("body"), "Own", "mine", "X-NK-Token", "forged", "Cdn-Loop", "other; x=1")
		var s sight
		if err := json.Unmarshal([]byte(text), &s); err != nil || status != 200 {
			t.Fatalf("%d %s", status, text)
		}
		return s
	}
	for _, path := range []string{"/pass?q=1", "/throw/x"} { // fetch(request), and passThroughOnException
		for _, host := range []string{"a.shop.test", "a.shop.test:8791"} {
			s := pass(host, path)
			if s.Host != host || s.Target != path || s.Method != "POST" || s.Body != "body" || s.Headers.Get("Own") != "mine" ||
				s.Headers.Get("Cf-Connecting-Ip") != "127.0.0.1" || s.Headers.Get("Cdn-Loop") != "other; x=1, nearkey; hops=1" || s.Headers["X-Nk-Token"] != nil {
				t.Errorf("%s%s: the origin saw %+v", host, path, s)
			}
		}
	}
	// The connection to the origin that is kept is for nobody else.
	w.wantFault(origin.URL, 403, "loopback")

	got := w.fetch("https://b.workers.test/seen?x", step{"headers": step{"X-NK-CF": "{}", "CF-Connecting-IP": "192.0.2.1"}})
	var local struct {
		URL     string
		Headers map[string]string
	}
	if err := json.Unmarshal([]byte(got.Body), &local); err != nil || local.URL != "https://b.workers.test/seen?x" ||
		local.Headers["cf-connecting-ip"] != "2a06:98c0:3600::103" || local.Headers["x-nk-cf"] != "" || local.Headers["cdn-loop"] != "nearkey; hops=1" {
		t.Errorf("the other Worker saw %+v (%v)", got, err)
	}
	w.want(step{"op": "webSocket", "url": "https://b.workers.test/echo-ws", "send": []string{"x"}}, `{"value":[{"message":"local x"}]}`)
	if s := w.server.Stats(); s.Origins != 4 || s.Local != 2 || s.Failed != 0 || s.Denied != 1 {
		t.Errorf("%+v", s)
	}
}

func TestLoops(t *testing.T) {
	t.Parallel()
	var w *world
	w = start(t, func(_ *world, c *egress.Config) {
		c.Local = func(_ context.Context, _, _, _, from string) http.Handler {
			return w.runner.Handler(map[string]string{"a": "b", "b": "a"}[from])
		}
	})
	status, text := w.send("GET", "a.shop.test", "/pass", nil)
	if status != 508 || !strings.Contains(text, "error code: 1019") {
		t.Errorf("%d %s", status, text)
	}
	if s := w.server.Stats(); s.Local != egress.MaxHops || s.Requests != egress.MaxHops+1 {
		t.Errorf("%+v", s)
	}
}

func TestStreamsBothWays(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	origin := serve(t, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		buf := make([]byte, 1024)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = control.Flush()
			if err != nil {
				return
			}
		}
	})
	at := "http://here.test:" + port(t, origin.URL)
	w.want(step{"op": "echo", "url": at, "parts": []string{"one", "two", "three"}}, `{"value":["one","two","three",true]}`)
	count := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, err)
	})
	w.want(step{"op": "upload", "url": "http://here.test:" + port(t, count.URL), "size": 20 << 20}, `{"value":"20971520 <nil>"}`)
}

func TestAnswersBeforeTheEndOfARequest(t *testing.T) {
	t.Parallel()
	w := start(t, func(_ *world, c *egress.Config) { c.BodyPause = 300 * time.Millisecond })
	origin := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	})
	w.want(step{"op": "upload", "url": "http://here.test:" + port(t, origin.URL), "size": 20 << 20}, `{"value":"too large\n"}`)
	if got := w.do(step{"op": "upload", "url": origin.URL, "size": 20 << 20}); !strings.Contains(got, "egress denied") {
		t.Error(got)
	}
	hung := listen(t, func(net.Conn) {})
	if got := w.do(step{"op": "upload", "url": "http://here.test:" + hung, "size": 20 << 20}); !strings.Contains(got, "does not answer in time") {
		t.Error(got)
	}
}

func TestInterimAnswersAndTrailers(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	origin := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "Sum")
		w.Header()["Content-Type"], w.Header()["Date"] = nil, nil
		w.Header().Set("X-NK-OK", "1")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "<html>")
		w.Header().Set("Sum", "1")
		w.Header().Set(http.TrailerPrefix+"Other", "1")
	})
	for range 3 {
		got := w.fetch("http://here.test:"+port(t, origin.URL), nil)
		if got.Status != 202 || got.Body != "<html>" || got.Headers["content-type"] != "" || got.Headers["date"] != "" || got.Headers["x-nk-ok"] != "" {
			t.Errorf("got %+v", got)
		}
	}
}

func TestWebSockets(t *testing.T) {
	t.Parallel()
	ends := make(chan error, 8)
	talk := func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Upgrade(w, r, "talk", websocket.Options{})
		if err != nil {
			http.Error(w, "no WebSocket here", http.StatusTeapot)
			return
		}
		defer func() { _ = c.Close() }()
		for {
			m, err := c.Read()
			if err != nil {
				ends <- err
				return
			}
			if string(m) == "bye" {
				_ = c.WriteClose(4001, "bye")
				continue
			}
			if err := c.WriteText([]byte("heard " + string(m))); err != nil {
				return
			}
		}
	}
	secure := httptest.NewUnstartedServer(http.HandlerFunc(talk))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	w := start(t, func(w *world, c *egress.Config) {
		w.names.set("example.com", []string{"127.0.0.1"})
		c.AllowHosts, c.Roots = []string{"here.test", "example.com"}, pool(secure)
	})
	plain := serve(t, talk)
	const want = `{"value":[{"message":"heard x"},{"message":"heard y"},{"close":4001,"reason":"bye"}]}`
	send := []string{"x", "y", "bye"}
	w.want(step{"op": "webSocket", "protocol": "talk", "url": "http://here.test:" + port(t, plain.URL), "send": send}, want)
	w.want(step{"op": "webSocket", "protocol": "talk", "url": "https://example.com:" + port(t, secure.URL), "send": send}, want)
	w.want(step{"op": "webSocket", "protocol": "talk", "constructed": true, "url": "wss://example.com:" + port(t, secure.URL), "send": send}, want)
	for range 3 {
		<-ends
	}
	// A close of the Worker's own reaches the server. What the Worker sees of it is
	// workerd's: now and then it takes the end of the connection for its loss.
	w.want(step{"op": "webSocket", "protocol": "talk", "url": "http://here.test:" + port(t, plain.URL), "send": []string{"x"}, "close": "enough"}, `{"value":[{"message":"heard x"}]}`)
	var closed *websocket.CloseError
	if err := <-ends; !errors.As(err, &closed) || closed.Code != 1000 || closed.Reason != "enough" {
		t.Errorf("the server saw %v", err)
	}
	w.want(step{"op": "webSocket", "url": "http://here.test:" + port(t, plain.URL), "send": send}, `{"value":[{"status":418,"body":"no WebSocket here\n"}]}`)
	if got := w.do(step{"op": "webSocket", "url": "http://127.0.0.1:" + port(t, plain.URL), "send": send}); !strings.Contains(got, `"status":403`) {
		t.Error(got)
	}
}

func TestServersThatFail(t *testing.T) {
	t.Parallel()
	w := start(t, func(w *world, c *egress.Config) {
		c.DialTimeout, c.TLSTimeout, c.AnswerTimeout, c.BodyPause = time.Second, 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
		c.MaxHeaderBytes = 64 << 10
	})
	answering := func(parts ...string) string {
		return listen(t, func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				return
			}
			for _, part := range parts {
				_, _ = io.WriteString(c, part)
			}
			if parts[len(parts)-1] != "" {
				_ = c.Close()
			}
		})
	}
	const head = "HTTP/1.1 200 OK\r\n"
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	silent := listen(t, func(net.Conn) {})
	for _, c := range []struct {
		url    string
		status int
		says   string
	}{
		{"http://here.test:" + fmt.Sprint(gone.Addr().(*net.TCPAddr).Port), 521, "refuses connections"},
		{"http://here.test:" + silent, 524, "does not answer in time"},
		{"https://here.test:" + silent, 525, "TLS"},
		{"http://here.test:" + listen(t, func(c net.Conn) { _ = c.Close() }), 520, "closed the connection"},
		{"http://here.test:" + answering("rubbish\r\n\r\n"), 520, "not HTTP"},
		{"http://here.test:" + answering(head+"Large: "+strings.Repeat("x", 80<<10)+"\r\nContent-Length: 0\r\n\r\n"), 520, ""},
	} {
		w.wantFault(c.url, c.status, c.says)
	}
	whole := answering(head + "Large: " + strings.Repeat("x", 60<<10) + "\r\nContent-Length: 2\r\n\r\nok")
	if got := w.fetch("http://here.test:"+whole, nil); got.Body != "ok" || len(got.Headers["large"]) != 60<<10 {
		t.Errorf("got %d %s", got.Status, got.Body)
	}
	for name, port := range map[string]string{
		"a body cut":           answering(head + "Content-Length: 100\r\n\r\nhalf"),
		"a chunked body cut":   answering(head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
		"a body that stops":    answering(head+"Content-Length: 100\r\n\r\nhalf", ""),
		"chunks that stop":     answering(head+"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", ""),
		"a chunk that is none": answering(head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n"),
	} {
		if got := w.do(step{"url": "http://here.test:" + port}); !strings.Contains(got, "threw") {
			t.Errorf("%s looks complete: %s", name, got)
		}
	}
}

func TestSubrequests(t *testing.T) {
	t.Parallel()
	left := 3
	w := start(t, func(_ *world, c *egress.Config) {
		c.Spend = func(string) bool { left--; return left >= 0 }
	})
	origin := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	w.want(step{"op": "many", "url": "http://here.test:" + port(t, origin.URL), "n": 4},
		`{"value":["200 ok","200 ok","200 ok","429 Too many subrequests.\n"]}`)
	got := w.do(step{"op": "socket", "address": "here.test:" + port(t, origin.URL), "send": "hello", "want": 5})
	if s := w.server.Stats(); s.Spent != 2 || !strings.Contains(got, "threw") {
		t.Errorf("%+v, and the socket: %s", s, got)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	origin := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	all := start(t, func(_ *world, c *egress.Config) { c.Policy = egress.All })
	if got := all.fetch(origin.URL, nil); got.Body != "ok" {
		t.Errorf("all: %+v", got)
	}
	none := start(t, func(w *world, c *egress.Config) {
		c.Policy = egress.None
		w.names.set("public.test", []string{"8.8.8.8"})
	})
	none.wantFault("http://public.test/", 403, "workers.egress is \"none\"")
	none.wantFault(origin.URL, 403, "loopback")
	if got := none.fetch("http://here.test:"+port(t, origin.URL), nil); got.Body != "ok" {
		t.Errorf("none, but allowed: %+v", got)
	}
}

// workerd itself speaks TLS over a socket only to networks of its own, so it refuses:
// nothing must get out in the clear instead.
func TestTLSOfSocketsIsRefused(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 1)
	at := listen(t, func(c net.Conn) {
		all, _ := io.ReadAll(c)
		heard <- string(all)
	})
	w := start(t, nil)
	got := w.do(step{"op": "socket", "address": "here.test:" + at, "send": "secret", "want": 1, "options": step{"secureTransport": "on"}})
	if !strings.Contains(got, "threw") || w.server.Stats().Sockets != 0 {
		t.Errorf("%s, %+v", got, w.server.Stats())
	}
	select {
	case text := <-heard:
		t.Errorf("the server heard %q", text)
	default:
	}
}
