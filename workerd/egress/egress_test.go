package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestKindsOfAddress(t *testing.T) {
	for text, want := range map[string]string{
		"8.8.8.8": "", "1.1.1.1": "", "100.63.255.255": "", "100.128.0.0": "", "172.15.255.255": "", "172.32.0.0": "", "192.0.1.0": "",
		"198.17.255.255": "", "198.20.0.0": "", "223.255.255.255": "", "11.0.0.0": "", "1.0.0.0": "", "169.253.0.1": "",
		"2606:4700::1111": "", "2a00::1": "", "::ffff:8.8.8.8": "", "64:ff9b::8.8.8.8": "", "2001:200::1": "", "2001:4860:4860::8888": "",

		"0.0.0.0": "unspecified", "0.0.0.1": "reserved", "0.255.255.255": "reserved", "127.0.0.1": "loopback", "127.255.255.255": "loopback",
		"10.0.0.0": "private", "10.255.255.255": "private", "172.16.0.0": "private", "172.31.255.255": "private", "192.168.0.0": "private",
		"169.254.0.0": "link-local", "169.254.169.254": "link-local", "100.64.0.0": "reserved", "100.127.255.255": "reserved",
		"192.0.0.1": "reserved", "192.0.2.1": "reserved", "192.88.99.1": "reserved", "198.18.0.0": "reserved", "198.19.255.255": "reserved",
		"198.51.100.1": "reserved", "203.0.113.1": "reserved", "224.0.0.0": "multicast", "239.255.255.255": "multicast",
		"240.0.0.0": "reserved", "255.255.255.255": "reserved",

		"::": "unspecified", "::1": "loopback", "::127.0.0.1": "reserved", "::ffff:127.0.0.1": "loopback", "::ffff:0.0.0.0": "unspecified",
		"::ffff:10.0.0.1": "private", "::ffff:0:7f00:1": "reserved", "64:ff9b::127.0.0.1": "loopback", "64:ff9b::a9fe:a9fe": "link-local",
		"64:ff9b:1::1": "reserved", "100::1": "reserved", "2001::1": "reserved", "2001:1ff::1": "reserved", "2001:db8::1": "reserved",
		"2002:7f00:1::": "reserved", "3fff::1": "reserved", "4000::1": "reserved", "5f00::1": "reserved", "fc00::1": "private", "fdff::1": "private",
		"fe80::1": "link-local", "fe80::1%eth0": "link-local", "fec0::1": "reserved", "ff02::1": "multicast", "ff0e::1": "multicast",
	} {
		if got := kindOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if kindOf(netip.Addr{}) == "" {
		t.Error("no address is a public one")
	}
}

func TestPolicy(t *testing.T) {
	some := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("9.9.9.9/32")}
	for _, c := range []struct {
		kind  Policy
		allow []netip.Prefix
		open  string // addresses that may be reached
		shut  string
	}{
		{Public, nil, "8.8.8.8 2606:4700::1111", "10.1.0.1 127.0.0.1 ::1"},
		{Public, some, "8.8.8.8 10.1.255.255 ::ffff:10.1.0.1 64:ff9b::10.1.0.1 fd00::1", "10.2.0.0 10.0.255.255 fc00::1"},
		{None, nil, "", "8.8.8.8 10.1.0.1 2606:4700::1111"},
		{None, some, "9.9.9.9 10.1.0.1", "9.9.9.8 9.9.9.10 127.0.0.1"},
		{All, nil, "8.8.8.8 127.0.0.1 169.254.169.254 ::", ""},
	} {
		p := policy{kind: c.kind, allow: c.allow}
		for _, a := range strings.Fields(c.open) {
			if no := p.refuse(netip.MustParseAddr(a)); no != nil {
				t.Errorf("%s %v: %s is %s", c.kind, c.allow, a, no.kind)
			}
		}
		for _, a := range strings.Fields(c.shut) {
			if p.refuse(netip.MustParseAddr(a)) == nil {
				t.Errorf("%s %v: %s is open", c.kind, c.allow, a)
			}
		}
	}
}

func TestNamed(t *testing.T) {
	list := []string{"api.internal", "*.Wild.test", "dotted.test."}
	for host, want := range map[string]bool{
		"api.internal": true, "API.internal": true, "x.api.internal": false, "xapi.internal": false, "internal": false,
		"a.wild.test": true, "a.b.WILD.test": true, "wild.test": false, ".wild.test": false, "awild.test": false, "dotted.test": true, "": false,
	} {
		if got := named(list, host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func TestNextHop(t *testing.T) {
	for _, c := range []struct {
		lines []string
		next  string
		hops  int
	}{
		{nil, "nearkey; hops=1", 1},
		{[]string{"nearkey; hops=15"}, "nearkey; hops=16", 16},
		{[]string{"nearkey; hops=16"}, "nearkey; hops=17", 17},
		{[]string{"cloudflare; subreqs=1, fastly"}, "cloudflare; subreqs=1, fastly, nearkey; hops=1", 1},
		{[]string{"a", "nearkey;hops=2,b"}, "a, b, nearkey; hops=3", 3},
		{[]string{"nearkey", ",,"}, "nearkey; hops=2", 2},
		{[]string{"nearkey; hops=1, NEARKEY; hops=4"}, "nearkey; hops=5", 5},
		{[]string{"nearkey; hops=99999999999999999999"}, "nearkey; hops=17", 17},
		{[]string{"nearkey; hops=-3"}, "nearkey; hops=17", 17},
		{[]string{"nearkeys; hops=3"}, "nearkeys; hops=3, nearkey; hops=1", 1},
	} {
		if next, hops := nextHop(c.lines); next != c.next || hops != c.hops {
			t.Errorf("%q: %q %d", c.lines, next, hops)
		}
	}
}

// running is a server on a socket.
type running struct {
	*Server
	path string
	over chan error
}

func run(t *testing.T, config Config) *running {
	t.Helper()
	if config.Identify == nil {
		config.Identify = func(token string) (string, bool) { return "w", token == "known" }
	}
	r := &running{New(config), filepath.Join(t.TempDir(), "s"), make(chan error, 1)}
	l, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		r.over <- r.Serve(ctx, l)
		close(r.over)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.over
	})
	return r
}

// dial connects as workerd does.
func (r *running) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

func (r *running) ask(t *testing.T, request string) (int, string) {
	t.Helper()
	c, in := r.dial(t)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick, end := time.NewTicker(time.Millisecond), time.NewTimer(10*time.Second)
	defer tick.Stop()
	defer end.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatal(what)
		}
	}
}

// echo is a server that says what it hears, until it hears no more.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func TestRequestsThatNobodySends(t *testing.T) {
	r := run(t, Config{Policy: All})
	const known = "X-NK-Token: known\r\n"
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET / HTTP/1.1\r\nHost: x\r\nX-NK-Proto: http\r\n\r\n", 403},
		{"GET / HTTP/1.1\r\nHost: x\r\nX-NK-Token: other\r\nX-NK-Proto: http\r\n\r\n", 403},
		{"GET / HTTP/1.1\r\nHost: x\r\nX-NK-Token: \r\nX-NK-Proto: http\r\n\r\n", 403},
		{"GET / HTTP/1.1\r\nHost: x\r\n" + known + "\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: x\r\nX-NK-Proto: file\r\n" + known + "\r\n", 400},
		{"GET http://x/ HTTP/1.1\r\nHost: x\r\nX-NK-Proto: http\r\n" + known + "\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: \r\nX-NK-Proto: http\r\n" + known + "\r\n", 400},
		{"CONNECT nowhere HTTP/1.1\r\nHost: nowhere\r\n\r\n", 523},
	} {
		if status, text := r.ask(t, c.request); status != c.status {
			t.Errorf("%q: %d %s", c.request, status, text)
		}
	}
}

func TestHeadLimit(t *testing.T) {
	r := run(t, Config{Policy: None, MaxHeaderBytes: 8 << 10})
	ask := func(n int) int {
		status, _ := r.ask(t, "GET / HTTP/1.1\r\nHost: 10.0.0.1\r\nX-NK-Proto: http\r\nX-NK-Token: known\r\nLarge: "+strings.Repeat("x", n)+"\r\n\r\n")
		return status
	}
	if status := ask(7 << 10); status != 403 {
		t.Errorf("a head of 7 KiB: %d", status)
	}
	if status := ask(16 << 10); status != 431 {
		t.Errorf("a head of 16 KiB: %d", status)
	}
}

// socket opens a socket to an echo and tries it.
func (r *running) socket(t *testing.T, at string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, in := r.dial(t)
	// What comes with the request, before the answer, is not lost.
	if _, err := io.WriteString(c, "CONNECT "+at+" HTTP/1.1\r\nHost: "+at+"\r\n\r\nearly "); err != nil {
		t.Fatal(err)
	}
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Fatal(line, err)
	}
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "late\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := in.ReadString('\n'); err != nil || line != "early late\n" {
		t.Fatalf("%q %v", line, err)
	}
	return c, in
}

func TestCloseEndsSockets(t *testing.T) {
	r := run(t, Config{Policy: All})
	_, in := r.socket(t, echo(t))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-r.over; !errors.Is(err, ErrClosed) {
		t.Errorf("serve: %v", err)
	}
	if _, err := in.ReadByte(); err == nil {
		t.Error("the socket goes on")
	}
	if n := r.Stats().Conns; n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestShutdownWaitsForSockets(t *testing.T) {
	r := run(t, Config{Policy: All})
	c, in := r.socket(t, echo(t))
	down := make(chan error, 1)
	go func() { down <- r.Shutdown(context.Background()) }()
	eventually(t, "it still accepts", func() bool {
		c, err := net.Dial("unix", r.path)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	if _, err := io.WriteString(c, "still\n"); err != nil {
		t.Error(err)
	}
	if line, err := in.ReadString('\n'); err != nil || line != "still\n" {
		t.Errorf("%q %v", line, err)
	}
	select {
	case err := <-down:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	_ = c.Close()
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-r.over; !errors.Is(err, ErrClosed) {
		t.Errorf("serve: %v", err)
	}
}

func TestShutdownInTime(t *testing.T) {
	r := run(t, Config{Policy: All})
	r.socket(t, echo(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	<-r.over
}

func TestConnsAtOnce(t *testing.T) {
	r := run(t, Config{Policy: All, MaxConns: 2})
	at := echo(t)
	first, _ := r.socket(t, at)
	r.socket(t, at)
	c, in := r.dial(t)
	if _, err := io.WriteString(c, "CONNECT "+at+" HTTP/1.1\r\nHost: "+at+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if line, err := in.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more than two is served: %q %v", line, err)
	}
	_ = first.Close()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Errorf("%q %v", line, err)
	}
}

func TestThePeerIsAsked(t *testing.T) {
	if !peerKnown {
		t.Skip("the kernel does not tell")
	}
	var asked int
	r := run(t, Config{Policy: All, Peer: func(pid int) (string, bool) { asked = pid; return "other", true }})
	at := echo(t)
	if status, _ := r.ask(t, "CONNECT "+at+" HTTP/1.1\r\nHost: "+at+"\r\nX-NK-Token: known\r\n\r\n"); status != 403 || asked == 0 {
		t.Errorf("%d after process %d", status, asked)
	}
}

// slow is a resolver that never finds anything.
type slow struct{}

func (slow) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestDNSThatHangs(t *testing.T) {
	r := run(t, Config{Resolver: slow{}, DialTimeout: 50 * time.Millisecond})
	status, text := r.ask(t, "GET / HTTP/1.1\r\nHost: x.test\r\nX-NK-Proto: http\r\nX-NK-Token: known\r\n\r\n")
	if status != 530 || !strings.Contains(text, "error code: 1016") || !strings.Contains(text, "cannot be looked up") {
		t.Errorf("%d %s", status, text)
	}
}

func TestSecondAddress(t *testing.T) {
	_, text, _ := net.SplitHostPort(echo(t))
	port, _ := strconv.Atoi(text)
	s := New(Config{Policy: All, Resolver: list{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.1")}})
	c, err := s.dialOutside(t.Context(), "tcp", net.JoinHostPort("x.test", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// list is a resolver that always finds the same.
type list []netip.Addr

func (l list) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return l, nil }

func TestNoAddresses(t *testing.T) {
	r := run(t, Config{Resolver: list{}})
	if status, _ := r.ask(t, "GET / HTTP/1.1\r\nHost: x.test\r\nX-NK-Proto: http\r\nX-NK-Token: known\r\n\r\n"); status != 530 {
		t.Error(status)
	}
}

func TestPublicAmongPrivate(t *testing.T) {
	s := New(Config{Resolver: list{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.7")}, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, DialTimeout: time.Millisecond})
	_, err := s.dialOutside(t.Context(), "tcp", "x.test:80")
	var denied *deniedError
	if err == nil || errors.As(err, &denied) || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("the private one was tried: %v", err)
	}
}

func TestRequestsThatAreCut(t *testing.T) {
	heard := make(chan error, 2)
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		heard <- err
	}))
	t.Cleanup(origin.Close)
	r := run(t, Config{Policy: All})
	at := strings.TrimPrefix(origin.URL, "http://")
	for _, rest := range []string{"Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		c, _ := r.dial(t)
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+at+"\r\nX-NK-Proto: http\r\nX-NK-Token: known\r\n"+rest); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if err := <-heard; err == nil {
			t.Errorf("%q looks complete", rest)
		}
	}
}

func TestPlainPrefixes(t *testing.T) {
	p := policy{allow: plainPrefixes([]netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104"), netip.MustParsePrefix("fd00::/8")})}
	for text, want := range map[string]bool{"10.255.0.1": true, "::ffff:10.0.0.1": true, "fd00::1": true, "172.16.0.1": false} {
		if got := p.refuse(netip.MustParseAddr(text)) == nil; got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestLocalSeesNothingOfOurs(t *testing.T) {
	r := run(t, Config{Local: func(_ context.Context, scheme, host, path, from string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, "%s %s %s %s %v %d", scheme, host, path, from, r.TLS != nil, len(r.Header))
		})
	}})
	status, text := r.ask(t, "GET /a%20b?c HTTP/1.1\r\nHost: x.test:8\r\nX-NK-Proto: https\r\nX-NK-Token: known\r\nX-NK-CF: {}\r\n\r\n")
	if status != 200 || text != "https x.test:8 /a%20b w true 1" { // Cdn-Loop
		t.Errorf("%d %s", status, text)
	}
}
