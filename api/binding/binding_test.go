package binding

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

const identity = "X-NK-NS: n\r\nX-NK-Token: t\r\n"

// world is a server on a socket, over a tier over memory.
type world struct {
	t      testing.TB
	server *Server
	path   string
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	config := configOf(edge.New(memory.New(), edge.Options{Sole: true, MaxSkew: -1}), time.Now)
	if change != nil {
		change(&config)
	}
	return serve(t, config)
}

// configOf is the configuration of a server over a tier, with one namespace.
func configOf(tier *edge.Tier, clock func() time.Time) Config {
	rules := &kv.Rules{Limits: kv.CloudflareLimits(), Stamp: kv.NewStamper(1, clock), Now: clock}
	id := kv.NamespaceID{1}
	return Config{
		Identify: func(token, binding string) (Space, error) {
			if token != "t" || binding != "n" {
				return Space{}, errors.New("unknown")
			}
			return Space{id, kv.NewNamespace(tier, id, rules)}, nil
		},
		Limits: rules.Limits, Near: tier, MaxAge: time.Minute,
	}
}

func serve(t testing.TB, config Config) *world {
	t.Helper()
	w := &world{t: t, server: New(config), path: filepath.Join(t.TempDir(), "kv.sock")}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(t.Context(), l) }()
	t.Cleanup(func() {
		_ = w.server.Close()
		<-done
		w.server.wait.Wait()
		if held := w.server.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
	})
	return w
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("unix", w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func request(line, fields, body string) string {
	return line + " HTTP/1.1\r\nHost: fake-host\r\n" + identity + fields + "\r\n" + body
}

func sized(line, fields, body string) string {
	return request(line, fmt.Sprintf("%sContent-Length: %d\r\n", fields, len(body)), body)
}

const empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

func refused(status, text string) string {
	return "HTTP/1.1 " + status + " " + text + "\r\nContent-Length: 0\r\n\r\n"
}

// conversation sends each request on one connection and compares the answers, byte
// for byte.
func (w *world) conversation(steps ...[2]string) {
	w.t.Helper()
	c := w.dial()
	for _, step := range steps {
		go func() { _, _ = io.WriteString(c, step[0]) }()
		got := make([]byte, len(step[1]))
		n, err := io.ReadFull(c, got)
		if string(got[:n]) != step[1] {
			w.t.Fatalf("%.200q\n got %.400q (%v)\nwant %.400q", step[0], got[:n], err, step[1])
		}
	}
}

func TestOperations(t *testing.T) {
	newWorld(t, nil).conversation(
		[2]string{request("GET /k?urlencoded=true", "", ""), "HTTP/1.1 404 Not Found\r\nCF-Cache-Status: MISS\r\nContent-Length: 0\r\n\r\n"},
		[2]string{sized("PUT /k?urlencoded=true", "CF-KV-Metadata: {\"a\":\"é\"}\r\n", "value"), empty},
		[2]string{request("GET /k?urlencoded=true&cache_ttl=30", "", ""),
			"HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nCF-KV-Metadata: {\"a\":\"é\"}\r\nContent-Length: 5\r\n\r\nvalue"},
		[2]string{request("GET /", "", ""), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 72\r\n\r\n" +
			`{"keys":[{"name":"k","metadata":"{\"a\":\"é\"}"}],"list_complete":true}`},
		[2]string{sized("PUT /a%2Fb+c%25?urlencoded=true", "", `{"n":1}`), empty},
		[2]string{sized("POST /bulk/get", "", `{"keys":["a/b+c%","none","a/b+c%"],"type":"json","withMetadata":true,"cacheTtl":"90"}`),
			"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 56\r\n\r\n" + `{"a/b+c%":{"value":{"n":1},"metadata":null},"none":null}`},
	)
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	long := strings.Repeat("k", 513)
	for _, step := range [][2]string{
		{sized("PUT /k?urlencoded=true&expiration_ttl=5", "", "v"), refused("400", "Invalid expiration_ttl of 5. Expiration TTL must be at least 60.")},
		{sized("PUT /k?urlencoded=true&expiration_ttl=0", "", "v"), refused("400", "Invalid expiration_ttl of 0. Please specify integer greater than 0.")},
		{sized("PUT /k?urlencoded=true&expiration=1", "", "v"), refused("400", "Invalid expiration of 1. Please specify integer greater than the current number of seconds since the UNIX epoch.")},
		{request("GET /k?urlencoded=true&cache_ttl=29", "", ""), refused("400", "Invalid cache_ttl of 29. Cache TTL must be at least 30.")},
		{request("GET /"+long+"?urlencoded=true", "", ""), refused("414", "UTF-8 encoded length of 513 exceeds key length limit of 512.")},
		{request("GET /%zz?urlencoded=true", "", ""), refused("400", "Could not URL-decode key name")},
		{request("DELETE /?urlencoded=true", "", ""), refused("400", "Key names must not be empty")},
		{request("GET /?key_count_limit=1001", "", ""), refused("400", "Invalid key_count_limit of 1001. Please specify an integer less than 1000.")},
		{request("GET /?key_count_limit=-1", "", ""), refused("400", "Invalid key_count_limit of -1. Please specify an integer greater than 0.")},
		{request("GET /?cursor=x", "", ""), refused("400", "Invalid cursor. Please use the cursor of the previous page, or none to begin anew.")},
		{request("GET /?prefix="+long, "", ""), refused("414", "UTF-8 encoded length of 513 exceeds key length limit of 512.")},
		{sized("POST /bulk/get", "", `{"keys":[]}`), refused("400", "You must request a minimum of 1 key")},
		{sized("POST /bulk/get", "", `{"keys":["`+strings.Repeat(`a","`, 100)+`a"]}`), refused("400", "You can request a maximum of 100 keys")},
		{sized("POST /bulk/get", "", `{"keys":["a"],"type":"stream"}`), refused("400", `"stream" is not a valid type. Use "json" or "text"`)},
		{sized("POST /bulk/get", "", strings.Repeat(" ", bulkBytes+1)), refused("413", "Request body exceeds limit of 1048576.")},
		{sized("PUT /k?urlencoded=true", "CF-KV-Metadata: \""+strings.Repeat("m", 1023)+"\"\r\n", "v"), refused("413", "Metadata length of 1025 exceeds limit of 1024.")},
		{sized("PUT /k?urlencoded=true", "", strings.Repeat("x", kv.MaxValueBytes+1)), refused("413", "Value length of 26214401 exceeds limit of 26214400.")},
		{request("PATCH /k", "", ""), refused("405", "Method Not Allowed")},
		{"GET /k HTTP/1.1\r\nX-NK-NS: n\r\nX-NK-Token: u\r\n\r\n", refused("403", "Forbidden")},
		{"GET /k HTTP/1.1\r\n\r\n", refused("403", "Forbidden")},
	} {
		// The connection goes on after each.
		w.conversation(step, [2]string{sized("PUT /after?urlencoded=true", "", "v"), empty})
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t, nil)
	value := func(text string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
	chunked := "Transfer-Encoding: chunked\r\n"
	most := strings.Repeat("y", kv.MaxValueBytes)
	w.conversation(
		[2]string{request("PUT /c?urlencoded=true", chunked, "5;x=y\r\nhello\r\n1\r\n \r\n0\r\nT: r\r\n\r\n"), empty},
		[2]string{request("GET /c?urlencoded=true", "", ""), value("hello ")},
		[2]string{request("PUT /c?urlencoded=true", chunked, "0\r\n\r\n"), empty},
		[2]string{request("GET /c?urlencoded=true", "", ""), value("")},
		[2]string{request("PUT /c?urlencoded=true", chunked, fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(most), most)), empty},
		[2]string{request("PUT /c?urlencoded=true", chunked, fmt.Sprintf("%x\r\n%sz\r\n0\r\n\r\n", len(most)+1, most)),
			refused("413", "Value length of 26214401 exceeds limit of 26214400.")},
		// Requests that come together are answered in their order.
		[2]string{sized("PUT /p?urlencoded=true", "", "1") + request("GET /p?urlencoded=true", "", "") + request("DELETE /p?urlencoded=true", "", ""),
			empty + value("1") + empty},
	)
}

func TestAdversary(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.HeadTimeout, c.BodyPause = 50*time.Millisecond, 50*time.Millisecond })
	for name, text := range map[string]string{
		"two lengths":         request("PUT /k", "Content-Length: 1\r\nContent-Length: 1\r\n", "v"),
		"length and chunks":   request("PUT /k", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		"negative length":     request("PUT /k", "Content-Length: -1\r\n", ""),
		"identity twice":      request("GET /k", "X-NK-Token: t\r\n", ""),
		"folded header":       request("GET /k", "A: b\r\n c\r\n", ""),
		"space before colon":  request("GET /k", "A : b\r\n", ""),
		"bare line feed":      request("GET /k", "A: b\nC: d\r\n", ""),
		"gzip coding":         request("PUT /k", "Transfer-Encoding: gzip\r\n", ""),
		"absolute target":     request("GET http://x/k", "", ""),
		"version":             "GET /k HTTP/2.0\r\n\r\n",
		"head without end":    "GET /k HTTP/1.1\r\nA: " + strings.Repeat("x", headBytes+1),
		"slow head":           "GET /k HTTP/1.1\r\n",
		"slow body":           request("PUT /k?urlencoded=true", "Content-Length: 9\r\n", "v"),
		"chunk of no size":    request("PUT /k?urlencoded=true", "Transfer-Encoding: chunked\r\n", "\r\n"),
		"chunk of great size": request("PUT /k?urlencoded=true", "Transfer-Encoding: chunked\r\n", "fffffffffffff\r\n"),
		"chunk without end":   request("PUT /k?urlencoded=true", "Transfer-Encoding: chunked\r\n", "1\r\nab\r\n0\r\n\r\n"),
		"long trailer":        request("PUT /k?urlencoded=true", "Transfer-Encoding: chunked\r\n", "0\r\nA: "+strings.Repeat("x", trailerBytes+1)),
	} {
		c := w.dial()
		go func() { _, _ = io.WriteString(c, text) }()
		got, err := io.ReadAll(c)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the connection was kept", name)
		}
		if bytes.Contains(got, []byte(" 200 ")) {
			t.Errorf("%s: was answered with %q", name, got)
		}
	}
	w.conversation([2]string{request("DELETE /k?urlencoded=true", "", ""), empty})
}

// TestCacheStatus: each status is what the tier did, with the clock of the tier and
// a far store that fails.
func TestCacheStatus(t *testing.T) {
	now, fails := time.Now(), false
	far := &kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault {
		if fails {
			return kvtest.Refused
		}
		return kvtest.None
	}}
	clock := func() time.Time { return now }
	w := serve(t, configOf(edge.New(far, edge.Options{MaxSkew: -1, Now: clock}), clock))
	get := request("GET /k?urlencoded=true&cache_ttl=30", "", "")
	found := func(status string) [2]string {
		return [2]string{get, "HTTP/1.1 200 OK\r\nCF-Cache-Status: " + status + "\r\nContent-Length: 1\r\n\r\nv"}
	}
	absent := func(status string) [2]string {
		return [2]string{get, "HTTP/1.1 404 Not Found\r\nCF-Cache-Status: " + status + "\r\nContent-Length: 0\r\n\r\n"}
	}
	put := [2]string{sized("PUT /k?urlencoded=true", "", "v"), empty}
	w.conversation(absent("MISS"), absent("HIT"), put, found("HIT"))
	now = now.Add(31 * time.Second)
	w.conversation(found("EXPIRED"), found("HIT"), [2]string{request("DELETE /k?urlencoded=true", "", ""), empty}, absent("HIT"), put)
	now = now.Add(31 * time.Second)
	fails = true
	w.conversation(found("STALE"))
}

// TestSpend: each operation asks once, whatever comes of it; what may not spend is
// not done, its body is read, and the connection goes on.
func TestSpend(t *testing.T) {
	left, asked := 6, 0
	w := newWorld(t, func(c *Config) {
		c.Spend = func(token string) bool {
			if token != "t" {
				t.Errorf("the token %q", token)
			}
			asked++
			left--
			return left >= 0
		}
	})
	spent := refused("429", "Too many API requests by single Worker invocation.")
	list := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 44\r\n\r\n" + `{"keys":[{"name":"k"}],"list_complete":true}`
	w.conversation(
		[2]string{sized("PUT /k?urlencoded=true", "", "v"), empty},
		[2]string{request("GET /k?urlencoded=true", "", ""), "HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nContent-Length: 1\r\n\r\nv"},
		[2]string{sized("POST /bulk/get", "", `{"keys":["a","b","k"]}`), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n" + `{"a":null,"b":null,"k":"v"}`},
		[2]string{request("GET /", "", ""), list},
		[2]string{request("DELETE /none?urlencoded=true", "", ""), empty},
		[2]string{request("DELETE /%zz?urlencoded=true", "", ""), refused("400", "Could not URL-decode key name")},
		[2]string{sized("PUT /k?urlencoded=true", "", strings.Repeat("w", kv.MaxValueBytes)), spent},
		[2]string{request("PUT /k?urlencoded=true", "Transfer-Encoding: chunked\r\n", "1\r\nw\r\n0\r\n\r\n"), spent},
		[2]string{request("GET /k?urlencoded=true", "", ""), spent},
		[2]string{sized("POST /bulk/get", "", `{"keys":["k"]}`), spent},
		[2]string{request("GET /", "", ""), spent},
		[2]string{request("DELETE /k?urlencoded=true", "", ""), spent},
	)
	left = 1
	w.conversation(
		[2]string{request("PATCH /k", "", ""), refused("405", "Method Not Allowed")},
		[2]string{"GET /k HTTP/1.1\r\nX-NK-NS: n\r\nX-NK-Token: u\r\n\r\n", refused("403", "Forbidden")},
		[2]string{request("GET /", "", ""), list},
	)
	if asked != 13 {
		t.Errorf("asked %d times for 13 operations", asked)
	}
}

func TestMetrics(t *testing.T) {
	metrics := observe.New()
	w := newWorld(t, func(c *Config) {
		c.Metrics = metrics
		c.Spend = func(string) bool { return true }
	})
	w.conversation(
		[2]string{sized("PUT /k?urlencoded=true", "", "value"), empty},
		[2]string{request("GET /k?urlencoded=true", "", ""), "HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nContent-Length: 5\r\n\r\nvalue"},
		[2]string{request("GET /none?urlencoded=true", "", ""), "HTTP/1.1 404 Not Found\r\nCF-Cache-Status: MISS\r\nContent-Length: 0\r\n\r\n"},
		[2]string{sized("POST /bulk/get", "", `{"keys":["k"]}`), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + `{"k":"value"}`},
		[2]string{request("GET /?cursor=x", "", ""), refused("400", "Invalid cursor. Please use the cursor of the previous page, or none to begin anew.")},
		[2]string{request("DELETE /k?urlencoded=true", "", ""), empty},
		[2]string{"GET /k HTTP/1.1\r\nX-NK-NS: n\r\nX-NK-Token: u\r\n\r\n", refused("403", "Forbidden")},
		[2]string{request("PATCH /k", "", ""), refused("405", "Method Not Allowed")},
	)
	c := w.dial()
	_, _ = io.WriteString(c, request("PUT /k?urlencoded=true", "Content-Length: 9\r\n", "half"))
	_ = c.(*net.UnixConn).CloseWrite()
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("half a body was answered with %q", got)
	}
	_ = w.server.Close()
	w.server.wait.Wait()
	page := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`requests_total{namespace="01000000000000000000000000000000",op="put",result="ok",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="put",result="canceled",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="get",result="hit",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="get",result="miss",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="bulk_get",result="ok",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="list",result="invalid",tier="binding"} 1`,
		`requests_total{namespace="01000000000000000000000000000000",op="delete",result="ok",tier="binding"} 1`,
		`requests_total{namespace="none",op="get",result="denied",tier="binding"} 1`,
		`rejected_total{reason="403"} 1`, `cache_hits_total{tier="binding"} 1`, `cache_misses_total{tier="binding"} 1`,
		`request_duration_seconds_count{op="get",tier="binding"} 3`, `read_bytes_total 10`, `written_bytes_total 5`,
	} {
		if !strings.Contains(page.Body.String(), "nearkey_kv_"+want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
}

// TestHotPathAllocatesNothing: of a get of what is near, and of what is known to be
// absent.
func TestHotPathAllocatesNothing(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Metrics = observe.New()
		c.Spend = func(string) bool { return true }
	})
	c := w.dial()
	for _, step := range [][2]string{
		{request("GET /k?urlencoded=true", "", ""), "HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nContent-Length: 1\r\n\r\nv"},
		{request("GET /gone?urlencoded=true&cache_ttl=60", "", ""), "HTTP/1.1 404 Not Found\r\nCF-Cache-Status: HIT\r\nContent-Length: 0\r\n\r\n"},
	} {
		w.conversation([2]string{sized("PUT /k?urlencoded=true", "", "v"), empty}, [2]string{request("DELETE /gone?urlencoded=true", "", ""), empty})
		ask, got := []byte(step[0]), make([]byte, len(step[1]))
		allocs := testing.AllocsPerRun(1000, func() {
			if _, err := c.Write(ask); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, got); err != nil || string(got) != step[1] {
				t.Fatalf("got %q (%v)", got, err)
			}
		})
		if allocs >= 1 {
			t.Errorf("%q: %.1f allocations", step[0], allocs)
		}
	}
}

func TestHeldBytes(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.HeldBytes = 10 })
	w.conversation(
		[2]string{sized("PUT /k?urlencoded=true", "", "0123456789"), empty},
		[2]string{sized("PUT /k?urlencoded=true", "", "0123456789x"), refused("503", "Service Unavailable")},
		[2]string{sized("PUT /k?urlencoded=true", "", "0123456789"), empty},
	)
}

func TestMaxConns(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxConns = 1 })
	first, second := w.dial(), w.dial()
	ask := request("DELETE /k?urlencoded=true", "", "")
	answer := make([]byte, len(empty))
	_, _ = io.WriteString(first, ask)
	if _, err := io.ReadFull(first, answer); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(second, ask)
	_ = second.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, _ := second.Read(answer); n > 0 {
		t.Fatal("more connections than MaxConns")
	}
	_ = first.Close()
	_ = second.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(second, answer); err != nil {
		t.Fatal(err)
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t, nil)
	c := w.dial()
	_, _ = io.WriteString(c, request("DELETE /k?urlencoded=true", "", ""))
	if _, err := io.ReadFull(c, make([]byte, len(empty))); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Fatalf("got %q", got)
	}
}

// What was done is answered, whenever the server is shut down.
func TestShutdownAnswersAll(t *testing.T) {
	const rounds, clients = 30, 8
	for range rounds {
		var done, answered atomic.Int64
		w := newWorld(t, func(c *Config) {
			identify := c.Identify
			c.Identify = func(token, binding string) (Space, error) {
				done.Add(1)
				return identify(token, binding)
			}
		})
		var all sync.WaitGroup
		for range clients {
			c := w.dial()
			all.Go(func() {
				for {
					if _, err := io.WriteString(c, request("DELETE /k?urlencoded=true", "", "")); err != nil {
						return
					}
					answer, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil {
						return
					}
					_ = answer.Body.Close()
					answered.Add(1)
					if answer.Close {
						return
					}
				}
			})
		}
		nearkeytest.Eventually(t, "all are at it", func() error {
			if done.Load() < 5*clients {
				return errors.New("not yet")
			}
			return nil
		})
		if err := w.server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		if done.Load() != answered.Load() {
			t.Fatalf("%d requests were done, %d answered", done.Load(), answered.Load())
		}
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte(request("PUT /k?urlencoded=true", "Content-Length: 3\r\n", "abc")), 7)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 0)
	f.Fuzz(func(t *testing.T, text []byte, split int) {
		var whole, parts head
		size, p := readHead(text, 0, &whole)
		if size > len(text) || size > 0 && !bytes.HasSuffix(text[:size], headEnd) {
			t.Fatalf("size %d of %d", size, len(text))
		}
		if split < 0 || split > len(text) {
			return
		}
		if n, q := readHead(text[:split], 0, &parts); n == 0 && q == nil {
			n, q = readHead(text, split, &parts)
			if n != size || q != p || !bytes.Equal(parts.path, whole.path) || parts.length != whole.length {
				t.Fatal("in two parts a head is another")
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	w := newWorld(b, func(c *Config) { c.Metrics = observe.New() })
	c := w.dial()
	in := bufio.NewReader(c)
	_, _ = io.WriteString(c, sized("PUT /k?urlencoded=true", "", strings.Repeat("v", 288)))
	if _, err := in.Discard(len(empty)); err != nil {
		b.Fatal(err)
	}
	ask := []byte(request("GET /k?urlencoded=true", "CF-KV-FLPROD-405: https://fake-host/k?urlencoded=true\r\n", ""))
	want := len("HTTP/1.1 200 OK\r\nCF-Cache-Status: HIT\r\nContent-Length: 288\r\n\r\n") + 288
	_ = c.SetDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(ask); err != nil {
			b.Fatal(err)
		}
		if _, err := in.Discard(want); err != nil {
			b.Fatal(err)
		}
	}
}
