package hot

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/kv"
)

// The differential test sends the same bytes to the hot path and to net/http with
// the same handler, and compares every byte that comes back, and whether the
// connection was closed. It runs in a bubble of testing/synctest over pipes: when
// all goroutines wait, all that will come has come.

// pipes is a listener of one connection in memory.
type pipes struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conn: make(chan net.Conn, 1), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// transcript is what a client saw.
type transcript struct {
	answers string
	closed  bool // by the server
}

// converse sends pieces, each when the server has done what it can with those
// before, and returns what came back.
func converse(l *pipes, pieces [][]byte) transcript {
	client, server := net.Pipe()
	l.conn <- server
	var got bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&got, client)
	}()
	for _, piece := range pieces {
		written := make(chan struct{})
		go func() {
			defer close(written)
			_, _ = client.Write(piece)
		}()
		synctest.Wait()
	}
	closed := false
	select {
	case <-read:
		closed = true
	default:
	}
	_ = client.Close()
	<-read
	return transcript{normal(got.String()), closed}
}

var madeID = regexp.MustCompile(`(X-Request-Id|Cf-Ray): [0-9a-f]{16}\r\n`)

// normal takes out of answers what differs between any two: the ids that the
// server makes. Time stands still, and the Date with it.
func normal(answers string) string { return madeID.ReplaceAllString(answers, "$1: (made)\r\n") }

// compare has the same conversation with both servers. rewrite is what a control
// does to the bytes before the hot path sees them.
func (w *world) compare(t *testing.T, pieces [][]byte, rewrite func([]byte) []byte) (hot, plain transcript, stats Stats) {
	synctest.Test(t, func(t *testing.T) {
		var done sync.WaitGroup
		defer done.Wait()
		plainPipes, hotPipes := newPipes(), newPipes()
		httpServer := rest.HTTPServer(w.handler)
		done.Go(func() { _ = httpServer.Serve(plainPipes) })
		plain = converse(plainPipes, pieces)
		_ = httpServer.Close()

		server := New(w.config())
		done.Go(func() { _ = server.Serve(t.Context(), hotPipes) })
		seen := pieces
		if rewrite != nil {
			seen = [][]byte{rewrite(bytes.Join(pieces, nil))}
		}
		hot = converse(hotPipes, seen)
		stats = server.Stats()
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // net/http lingers before it closes after some errors
		if left := server.Stats().Open; left != 0 {
			t.Errorf("%d connections are left", left)
		}
	})
	return hot, plain, stats
}

// exchange is one conversation of the table.
type exchange struct {
	name string
	sent string
	hits int // how many of the requests must have been answered from near; -1: any
	kept int // how many by the handler on the hot path's connection; -1: any
}

// differentialWorld has keys of several kinds. Time in a bubble is that of the
// year 2000.
func differentialWorld(t testing.TB) *world {
	w := newWorld(t)
	for _, key := range []string{"key", "a b", "a/b", "ü", "a+b", "a%b", "%2F", "x..", "\x00", strings.Repeat("k", kv.MaxKeyBytes)} {
		w.put(key, kv.Record{Value: []byte("value of " + key)})
	}
	w.put("empty", kv.Record{})
	w.put("expires", kv.Record{Value: []byte("soon"), Expiration: 4102444800})
	w.put("expired", kv.Record{Value: []byte("gone"), Expiration: 1})
	w.put("deleted", kv.Tombstone(w.version()))
	w.put("meta", kv.Record{Value: []byte("v"), Metadata: []byte(`{"a":1}`)})
	w.put("copied", kv.Record{Value: bytes.Repeat([]byte("c"), copiedBytes)})
	w.put("appended", kv.Record{Value: bytes.Repeat([]byte("p"), copiedBytes+1)})
	w.put("large", kv.Record{Value: bytes.Repeat([]byte("l"), nearBytes)})
	w.put("larger", kv.Record{Value: bytes.Repeat([]byte("L"), nearBytes+1)})
	w.put("huge", kv.Record{Value: bytes.Repeat([]byte("H"), 1<<20)})
	w.far("far", kv.Record{Value: []byte("far away")})
	w.far("farexp", kv.Record{Value: []byte("far away"), Expiration: 4102444800})
	// The catalog's answers are cached, and for as long as time stands still.
	for _, key := range []string{"key", "far"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://h"+w.path(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+rootToken)
		w.handler.ServeHTTP(discard{}, r)
	}
	return w
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// with is a GET of a key with more lines in its head.
func (w *world) with(key string, lines ...string) string {
	return "GET " + w.path(key) + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + rootToken + "\r\n" +
		strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

// target is a GET of any target.
func target(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + rootToken + "\r\n\r\n"
}

// exchanges is the table.
func (w *world) exchanges() (all []exchange) {
	add := func(hits, kept int, name, sent string) { all = append(all, exchange{name, sent, hits, kept}) }
	w.valueExchanges(add)
	w.keyExchanges(add)
	w.targetExchanges(add)
	w.fieldExchanges(add)
	w.smugglingExchanges(add)
	w.authorizationExchanges(add)
	w.lengthExchanges(add)
	w.pipelineExchanges(add)
	return all
}

type adder = func(hits, kept int, name, sent string)

func (w *world) valueExchanges(add adder) {
	for _, key := range []string{"key", "empty", "expires", "meta", "copied", "appended", "large"} {
		add(1, 0, "near "+key, w.get(key))
	}
	for _, key := range []string{"expired", "deleted", "larger", "huge", "far", "farexp", "missing"} {
		add(0, 1, "not near "+key, w.get(key))
		add(0, 2, "not near twice "+key, w.get(key)+w.get(key))
		add(1, 1, "not near, then near "+key, w.get(key)+w.get("key"))
	}
}

func (w *world) keyExchanges(add adder) {
	for _, key := range []string{"%6bey", "%6Bey", "ke%79", "a%20b", "a%2Fb", "a%2fb", "a/b", "%C3%BC", "%c3%bc", "a+b", "a%2Bb", "a%25b", "%252F", "x..", "%00",
		strings.Repeat("k", kv.MaxKeyBytes), strings.Repeat("%6b", kv.MaxKeyBytes)} {
		add(1, 0, "key "+key, w.get(key))
	}
	for _, key := range []string{"a;b", "a,b", "a=b", "a@b", "a:b", "a!b", "a$b", "a&b", "a'b", "(a)", "a*b", "a~b", "a_b", "a-b", "a.b", "/", "//", "//a", "a//b", "a/",
		"../a", "a/../key", "./key", "...", "%2E%2E/a", "%2F%2F"} {
		add(0, 1, "key "+key, w.get(key))
	}
	for _, key := range []string{"", ".", "..", "%2e", "%2E%2E", "%", "%4", "%zz", "%4z", "a%", "a%6", "%ff", "%c3", "%C0%AF", "%ED%A0%80", "ü", "\xff", "a b", "a\tb", "a\x00b", "a\x7fb",
		"a#b", "a?b", "a?", "?", "key?x=1", "key?", "a[b", "a]b", "a\"b", "a<b", "a>b", "a\\b", "a^b", "a`b", "a{b", "a|b", "a}b",
		strings.Repeat("k", kv.MaxKeyBytes+1), strings.Repeat("%6b", kv.MaxKeyBytes+1), strings.Repeat("%C3%BC", kv.MaxKeyBytes/2+1)} {
		add(0, 0, "key "+key, w.get(key))
	}
}

func (w *world) targetExchanges(add adder) {
	path := w.path("key")
	for _, to := range []string{
		"*", "/", "//", "/client/v4", "http://localhost" + path, "http://other" + path, "HTTP://localhost" + path, "//localhost" + path, "localhost:80", "localhost" + path,
		strings.TrimPrefix(path, "/"), "/" + path, path + "#f", "/client/v4/" + strings.TrimPrefix(path, "/client/v4"),
		strings.Replace(path, "accounts", "Accounts", 1), strings.Replace(path, "accounts", "%61ccounts", 1), strings.Replace(path, "/storage/kv", "/workers", 1),
		strings.Replace(path, "/values/", "/metadata/", 1), strings.Replace(path, "/values/", "/values", 1), strings.Replace(path, "/values/", "/Values/", 1), strings.Replace(path, "/values/", "//values/", 1),
		strings.Replace(path, "/values/key", "/keys", 1), strings.Replace(path, accountID, strings.ToUpper(accountID), 1), strings.Replace(path, accountID, accountID[1:], 1),
		strings.Replace(path, accountID, accountID+"0", 1), strings.Replace(path, accountID, strings.Repeat("g", 32), 1), strings.Replace(path, accountID, strings.Repeat("f", 31)+"\x00", 1),
		strings.Replace(path, w.space.String(), strings.ToUpper(w.space.String()), 1), strings.Replace(path, w.space.String(), w.space.String()[1:], 1),
		strings.Replace(path, w.space.String(), strings.Repeat("-", 32), 1), strings.Replace(path, w.space.String(), uuid(w.space), 1),
		"/healthz", "/readyz",
	} {
		add(0, 0, "target "+to, target(to))
	}
	other := strings.Repeat("e", 32)
	add(0, 1, "other account", target(strings.Replace(path, accountID, other, 1)))
	add(0, 1, "other namespace", target(strings.Replace(path, w.space.String(), other, 1)))
	fields := " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + rootToken + "\r\n\r\n"
	for _, method := range []string{"HEAD", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "Get", "GETS", "GE", "", "G\x00T", "GET\t", " GET", "\r\nGET", "\nGET", "CONNECT"} {
		add(0, 0, "method "+method, method+" "+w.path("missing")+fields)
	}
	for _, version := range []string{"HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/1.", "HTTP/1.1 ", " HTTP/1.1", "HTTP/1.1\t", "http/1.1", "HTTP/11", "HTTP/1.10", "HTTP/1.1\r", "HTTP /1.1", "HTTPS/1.1", ""} {
		add(0, 0, "version "+version, "GET "+path+" "+version+"\r\nHost: localhost\r\nAuthorization: Bearer "+rootToken+"\r\n\r\n")
	}
	add(0, 0, "version missing", "GET "+path+"\r\n\r\n")
	add(0, 0, "two spaces", "GET  "+path+fields)
	add(0, 0, "tab", "GET\t"+path+fields)
	add(0, 0, "HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	add(0, 0, "TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n")
	add(0, 0, "nothing", "")
	add(0, 0, "a line end", "\r\n")
	add(0, 0, "a line end before", "\r\n"+w.get("key"))
	for _, rest := range []string{"\n", "\r\n", "\r\n\r", "\r\n\r\n", "x", "x\n\n", "x\n\n\n"} {
		add(1, 0, "few bytes behind", w.get("key")+rest)
	}
	add(0, 0, "HTTP/1.0 kept alive", "GET "+path+" HTTP/1.0\r\nConnection: keep-alive\r\nAuthorization: Bearer "+rootToken+"\r\n\r\n"+w.get("key"))
}

func uuid(id kv.NamespaceID) string {
	s := id.String()
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func (w *world) fieldExchanges(add adder) {
	for _, line := range []string{
		"Accept: */*", "accept-encoding: gzip, deflate, br", "ACCEPT: text/plain", "Accept:", "Accept: ", "Accept:  two ", "User-Agent: curl/8.5.0", "Connection: keep-alive", "Connection: Keep-Alive",
		"Content-Type: application/json", "Cookie: a=b", "X-Stainless-Lang: js", "X-Stainless-: ", "Sec-Fetch-Mode: cors", "Traceparent: 00-1-2-3", "X-Forwarded-For: 10.0.0.1",
		"X-Request-Id: mine-and-sane_1", "X-Request-Id: short", "X-Request-Id: " + strings.Repeat("i", maxRequestIDBytes), "X-Request-Id: " + strings.Repeat("i", maxRequestIDBytes+1),
		"X-Request-Id: " + strings.Repeat("i", minRequestIDBytes), "X-Request-Id: " + strings.Repeat("i", minRequestIDBytes-1), "X-Request-Id: with space", "X-Request-Id: a,b,c,d,e,f", "X-Request-Id:",
		"Accept: a\r\nAccept: b", "Accept: " + strings.Repeat("a", 2000),
	} {
		add(1, 0, "field "+line, w.with("key", line))
		add(0, 1, "field far "+line, w.with("far", line))
		add(2, 0, "field again "+line, w.with("key", line)+w.with("key", line))
	}
	for _, line := range []string{
		"Cache-Control: no-cache", "cache-control: max-age=0", "Host: other", "Host: localhost", "host: localhost", "Accept : */*", "Accept\t: */*", " Accept: */*", "\tAccept: */*", "Accept", ":", ": value", "Accept: a\r\n b", "Accept: a\r\n\tb", "Accept: a\r\n ",
		"Accept: a\rb", "Accept: a\r", "Accept: a\x00b", "Accept: a\x01b", "Accept: a\x7fb", "Accept: a\tb", "Accept:\ta", "Accept: \xff", "Accept: ü", "Accept: a\nUser-Agent: b", "Acc\x00ept: a", "Acc ept: a", "Acc\"ept: a", "Äccept: a", "(Accept): a",
		"Connection: close", "Connection: Close", "connection: close", "Connection: keep-alive, close", "Connection: upgrade", "Connection: ", "Connection: te", "Connection: keep-alive\r\nConnection: close",
		"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", "Upgrade: websocket", "Expect: 100-continue", "Expect: something", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: trailers", "Trailer: X",
		"Range: bytes=0-1", "If-None-Match: *", "If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT", "X-Auth-Email: owner@example.com", "X-Auth-Key: x", "X-Unknown: 1", "Max-Forwards: 0",
		"X-Request-Id: mine-and-sane-1\r\nX-Request-Id: mine-and-sane-2", "Authorization: Bearer " + rootToken, "authorization: Bearer other", "Proxy-Authorization: Bearer x", "X-HTTP-Method-Override: DELETE",
		"X-" + strings.Repeat("n", maxNameBytes) + ": 1", "X-Stainless-" + strings.Repeat("n", maxNameBytes) + ": 1",
	} {
		add(0, 0, "field "+line, w.with("key", line))
		add(1, 0, "field second "+line, w.get("key")+w.with("key", line))
	}
	path := "GET " + w.path("key") + " HTTP/1.1\r\n"
	auth := "Authorization: Bearer " + rootToken + "\r\n\r\n"
	for _, host := range []string{"localhost:8790", "LOCALHOST", "127.0.0.1", "[::1]:80", "a-b.c_d"} {
		add(1, 0, "host "+host, path+"Host: "+host+"\r\n"+auth)
	}
	for _, host := range []string{"", " ", "a b", "a/b", "a@b", "a,b", "ü", "a\x00", "\"a\"", "a%41", "<a>"} {
		add(0, 0, "host "+host, path+"Host: "+host+"\r\n"+auth)
	}
	add(0, 0, "no host", path+auth)
	add(0, 0, "bare LF", strings.ReplaceAll(w.get("key"), "\r\n", "\n"))
	add(0, 0, "bare LF at the end", strings.TrimSuffix(w.get("key"), "\r\n")+"\n")
	add(0, 0, "bare LF after the request line", strings.Replace(w.get("key"), "\r\n", "\n", 1))
	add(0, 0, "bare CR", strings.ReplaceAll(w.get("key"), "\r\n", "\r"))
	add(0, 0, "CR CR LF", strings.ReplaceAll(w.get("key"), "\r\n", "\r\r\n"))
	add(0, 0, "LF ends the head, another follows", "GET "+w.path("key")+" HTTP/1.1\nHost: localhost\n\n"+w.get("key"))
}

func (w *world) smugglingExchanges(add adder) {
	inner := w.get("key")
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)
	for _, lines := range []string{
		"Content-Length: 0", fmt.Sprintf("Content-Length: %d", len(inner)), "Content-Length: 5", "content-length: 5", "Content-Length: +5", "Content-Length: -1", "Content-Length: 0x5", "Content-Length: 5, 5", "Content-Length: 5,6", "Content-Length:", "Content-Length: 05", "Content-Length: 5 ", "Content-Length : 5", "Content-Length\t: 5", "Content-Length\x00: 5", "Content_Length: 5", "Content-Length: 99999999999999999999",
		"Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 0\r\nContent-Length: 5",
		"Transfer-Encoding: chunked", "transfer-encoding: chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding:chunked", "Transfer-Encoding: chunked ", "Transfer-Encoding:\tchunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", " Transfer-Encoding: chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding: identity", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding:", "Transfer-Encoding\r\n: chunked", "Transfer-Encoding:\r\n chunked", "Transfer_Encoding: chunked",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "Foo: bar\rTransfer-Encoding: chunked", "Foo: bar\nTransfer-Encoding: chunked", "Foo: bar\n\nTransfer-Encoding: chunked",
		"Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5", "Transfer-Encoding: identity\r\nContent-Length: 5", "Accept: a\r\n Content-Length: 5", "Accept: a\r\n\tTransfer-Encoding: chunked",
		"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5", "Expect: 100-continue\r\nContent-Length: 5", "Connection: Content-Length\r\nContent-Length: 5",
	} {
		add(0, 0, "smuggled in length "+lines, w.with("key", lines)+inner+inner)
		add(0, 0, "smuggled in chunks "+lines, w.with("key", lines)+chunked+inner)
		add(1, 0, "smuggled later "+lines, w.get("key")+w.with("key", lines)+"0\r\n\r\n"+inner)
		add(0, 0, "smuggled with PUT "+lines, strings.Replace(w.with("written", lines), "GET", "PUT", 1)+chunked+inner)
	}
}

func (w *world) authorizationExchanges(add adder) {
	head := "GET " + w.path("key") + " HTTP/1.1\r\nHost: localhost\r\n"
	for _, line := range []string{
		"Authorization: Bearer " + rootToken, "authorization: bearer " + rootToken, "Authorization: BEARER " + rootToken, "Authorization:Bearer " + rootToken, "Authorization:   Bearer " + rootToken + "  ",
	} {
		add(1, 0, "token "+line, head+line+"\r\n\r\n")
	}
	for _, line := range []string{
		"Authorization: Bearer  " + rootToken, "Authorization: Bearer", "Authorization: Bearer ", "Authorization:", "Authorization: Basic YTpi", "Authorization: " + rootToken, "Authorization: Bearer " + rootToken + " x", "Authorization: Bearer " + rootToken[1:], "Authorization: Bearer " + rootToken + "x", "Authorization: Bearer a,b",
		"Authorization: Bearer " + strings.Repeat("t", maxTokenBytes), "Authorization: Bearer " + strings.Repeat("t", maxTokenBytes+1), "Accept: a",
	} {
		add(0, 1, "token "+line, head+line+"\r\n\r\n")
		add(1, 1, "token after a good one "+line, w.get("key")+head+line+"\r\n\r\n")
		add(1, 1, "token before a good one "+line, head+line+"\r\n\r\n"+w.get("key"))
	}
	for _, line := range []string{"Authorization: Bearer\t" + rootToken, "Authorization: Bearer " + rootToken + "\r\nAuthorization: Bearer " + rootToken, "X-Auth-Email: owner@example.com\r\nX-Auth-Key: root-key-of-the-tests-0123"} {
		add(0, 0, "token "+line, head+line+"\r\n\r\n")
	}
}

// lengthExchanges have heads at limits and one byte past them.
func (w *world) lengthExchanges(add adder) {
	long := func(size int) string {
		base := w.with("key", "Accept: ")
		return strings.Replace(base, "Accept: ", "Accept: "+strings.Repeat("a", size-len(base)), 1)
	}
	add(1, 0, "head of the greatest size", long(headBytes))
	add(2, 0, "two heads of the greatest size", long(headBytes)+long(headBytes))
	add(2, 0, "head of the greatest size after another", w.get("key")+long(headBytes))
	add(0, 0, "head one byte past it", long(headBytes+1))
	add(1, 0, "head one byte past it after another", w.get("key")+long(headBytes+1))
	add(2, 0, "fields that are remembered no more", long(rememberedBytes+200)+long(rememberedBytes+200))
	const most = 32<<10 + 4096 // what net/http reads of a head: MaxHeaderBytes, and some slack
	for _, size := range []int{8 << 10, 32 << 10, most - 2, most - 1, most, most + 1, most + 2, 64 << 10} {
		add(0, 0, fmt.Sprintf("head of %d bytes", size), long(size)+w.get("key"))
	}
	add(0, 0, "endless line", "GET "+w.path(strings.Repeat("a", 80<<10)))
	add(0, 0, "endless fields", "GET "+w.path("key")+" HTTP/1.1\r\nHost: localhost\r\n"+strings.Repeat("Accept: a\r\n", 8000))
	add(0, 0, "much without a line", strings.Repeat("a", headBytes))
}

// pipelineExchanges have several requests, of any kind, at once.
func (w *world) pipelineExchanges(add adder) {
	for _, n := range []int{2, 3, 10, 20, 50, batchRequests - 1, batchRequests, batchRequests + 1, 300} {
		add(n, 0, fmt.Sprintf("%d at once", n), strings.Repeat(w.get("key"), n))
		add(n, n, fmt.Sprintf("%d at once, every other far", n), strings.Repeat(w.get("key")+w.get("far"), n))
	}
	for _, n := range []int{1, 5, 20} {
		add(n, 0, fmt.Sprintf("%d large at once", n), strings.Repeat(w.get("large"), n))
		add(2*n, 0, fmt.Sprintf("%d at the limit of copying at once", n), strings.Repeat(w.get("copied")+w.get("appended"), n))
		add(n, n, fmt.Sprintf("%d huge in turn", n), strings.Repeat(w.get("huge")+w.get("key"), n))
	}
	put := strings.Replace(w.with("written", "Content-Length: 3"), "GET", "PUT", 1) + "abc"
	del := strings.Replace(w.get("written"), "GET", "DELETE", 1)
	head := strings.Replace(w.get("key"), "GET", "HEAD", 1)
	gone := w.with("key", "Connection: close")
	for name, others := range map[string]string{"a write": put, "a delete": del, "a head": head, "an end": gone, "rubbish": "rubbish\r\n\r\n", "health": target("/healthz"), "a part": w.get("key")[:100]} {
		for _, n := range []int{0, 1, 2, 19, 40} {
			add(n, 0, fmt.Sprintf("%s after %d", name, n), strings.Repeat(w.get("key"), n)+others+w.get("key")+w.get("far"))
		}
	}
	random := rand.New(rand.NewPCG(1, 2)) // the table is always the same
	kinds := []string{w.get("key"), w.get("far"), w.get("a%2Fb"), w.get("missing"), w.get("expires"), w.with("key", "Accept: */*"), w.with("key", "X-Request-Id: chosen-by-me"), w.get("larger"), put, del, head, w.get("%zz"), gone}
	for i := range 200 {
		var sent strings.Builder
		for range 1 + random.IntN(12) {
			sent.WriteString(kinds[min(random.IntN(len(kinds)), random.IntN(len(kinds)))])
		}
		add(-1, -1, fmt.Sprintf("mixture %d", i), sent.String())
	}
}

func (e exchange) check(t *testing.T, hot, plain transcript, stats Stats, pieces [][]byte) {
	t.Helper()
	if hot != plain {
		t.Errorf("%s: sent %q\nhot path (closed: %v)\n%q\nnet/http (closed: %v)\n%q", shorten(e.name), shorten(string(bytes.Join(pieces, []byte("|")))),
			hot.closed, shorten(hot.answers), plain.closed, shorten(plain.answers))
	}
	if e.hits >= 0 && int(stats.Hits) != e.hits || e.kept >= 0 && int(stats.Handled) != e.kept {
		t.Errorf("%s: %d answered from near and %d by the handler, want %d and %d", shorten(e.name), stats.Hits, stats.Handled, e.hits, e.kept)
	}
}

func shorten(s string) string {
	const most = 600
	if len(s) > most {
		return s[:most/2] + "…" + s[len(s)-most/2:]
	}
	return s
}

// TestDifferential sends the whole table, each exchange at once.
func TestDifferential(t *testing.T) {
	w := differentialWorld(t)
	all := w.exchanges()
	for _, e := range all {
		pieces := [][]byte{[]byte(e.sent)}
		hot, plain, stats := w.compare(t, pieces, nil)
		e.check(t, hot, plain, stats, pieces)
	}
	t.Logf("%d exchanges", len(all))
}

// TestDifferentialSplit sends requests in two pieces, cut at every byte, and byte
// by byte.
func TestDifferentialSplit(t *testing.T) {
	w := differentialWorld(t)
	put := strings.Replace(w.with("written", "Content-Length: 3"), "GET", "PUT", 1) + "abc"
	for _, e := range []exchange{
		{"near", w.with("key", "Accept: */*"), 1, 0},
		{"two", w.get("key") + w.get("far"), 1, 1},
		{"then a write", w.get("key") + put, 1, 0},
		{"bare LF", strings.ReplaceAll(w.get("key"), "\r\n", "\n"), 0, 0},
		{"bare LF at the end", strings.TrimSuffix(w.get("key"), "\r\n") + "\n", 0, 0},
		{"fold", w.with("key", "Accept: a\r\n b"), 0, 0},
		{"rubbish", "rubbish\r\n\r\n", 0, 0},
		{"chunked", w.with("key", "Transfer-Encoding: chunked") + "1\r\na\r\n0\r\n\r\n" + w.get("key"), 0, 0},
	} {
		for cut := 1; cut < len(e.sent); cut++ {
			pieces := [][]byte{[]byte(e.sent[:cut]), []byte(e.sent[cut:])}
			hot, plain, stats := w.compare(t, pieces, nil)
			e.check(t, hot, plain, stats, pieces)
		}
		var single [][]byte
		for i := range len(e.sent) {
			single = append(single, []byte(e.sent[i:i+1]))
		}
		hot, plain, stats := w.compare(t, single, nil)
		e.check(t, hot, plain, stats, single)
	}
}

// TestDifferentialControl: a reader that is lenient in one of many ways is found
// out by the table.
func TestDifferentialControl(t *testing.T) {
	w := differentialWorld(t)
	replace := func(pattern, by string) func([]byte) []byte {
		re := regexp.MustCompile(pattern)
		return func(b []byte) []byte { return re.ReplaceAll(b, []byte(by)) }
	}
	lenient := map[string]func([]byte) []byte{
		"ignores Content-Length":         replace(`(?i)\r\ncontent-length:[^\r\n]*`, ""),
		"ignores Transfer-Encoding":      replace(`(?i)\r\ntransfer-encoding:[^\r\n]*`, ""),
		"ignores Connection":             replace(`(?i)\r\nconnection:[^\r\n]*`, ""),
		"ignores Expect":                 replace(`(?i)\r\nexpect:[^\r\n]*`, ""),
		"ignores a second Host":          replace(`(?i)(\r\nhost:[^\r\n]+)((?:\r\n[^\r\n]+)*)\r\nhost:[^\r\n]*`, "$1$2"),
		"takes the second Authorization": replace(`\r\nAuthorization: [^\r\n]*(\r\n(?i:authorization): [^\r\n]*)`, "$1"),
		"ignores space before a colon":   replace(`\r\n([A-Za-z-]+)[ \t]+:`, "\r\n$1:"),
		"takes CR for a line end":        replace(`\r([^\n])`, "\r\n$1"),
		"ignores NUL":                    replace(`\x00`, ""),
		"folds the case of the method":   replace(`(?i)get /`, "GET /"),
		"ignores the version":            replace(`HTTP/\d\.\d`, "HTTP/1.1"),
		"skips line ends before":         replace(`^[\r\n]+`, ""),
		"decodes a key twice":            replace(`%25`, "%"),
		"keeps what is not encoded":      replace(`%(z)`, "%25$1"),
		"cleans paths":                   replace(`/[^/]+/\.\./`, "/"),
		"reads + as a space":             replace(`a\+b`, "a%20b"),
		"needs no Host":                  replace(`HTTP/1.1\r\nAuthorization`, "HTTP/1.1\r\nHost: x\r\nAuthorization"),
		"cuts a long head":               replace(`a{1000,}`, "a"),
	}
	found := map[string]string{}
	for _, e := range w.exchanges() {
		for name, rewrite := range lenient {
			if found[name] != "" || bytes.Equal(rewrite([]byte(e.sent)), []byte(e.sent)) {
				continue
			}
			if hot, plain, _ := w.compare(t, [][]byte{[]byte(e.sent)}, rewrite); hot != plain {
				found[name] = e.name
			}
		}
	}
	for name := range lenient {
		if found[name] == "" {
			t.Errorf("a reader that %s is not found out", name)
		}
	}
}

// FuzzDifferential compares the two with any bytes, cut anywhere.
func FuzzDifferential(f *testing.F) {
	w := differentialWorld(f)
	// A corpus outlives the namespace, whose id is another each time.
	id, fixed := []byte(w.space.String()), bytes.Repeat([]byte("ab"), 16)
	for i, e := range w.exchanges() {
		if len(e.sent) < 8<<10 {
			f.Add(bytes.ReplaceAll([]byte(e.sent), id, fixed), uint16(i*37), uint16(i))
		}
	}
	f.Fuzz(func(t *testing.T, sent []byte, first, second uint16) {
		if len(sent) > 64<<10 {
			return
		}
		sent = bytes.ReplaceAll(sent, fixed, id)
		pieces := cut(sent, int(first), int(second))
		hot, plain, _ := w.compare(t, pieces, nil)
		if hot != plain {
			t.Errorf("sent %q\nhot path (closed: %v)\n%q\nnet/http (closed: %v)\n%q", pieces, hot.closed, hot.answers, plain.closed, plain.answers)
		}
	})
}

// cut cuts bytes in up to three pieces.
func cut(b []byte, first, second int) (pieces [][]byte) {
	if len(b) == 0 {
		return nil
	}
	first %= len(b)
	second = first + second%(len(b)-first)
	for _, piece := range [][]byte{b[:first], b[first:second], b[second:]} {
		if len(piece) > 0 {
			pieces = append(pieces, piece)
		}
	}
	return pieces
}
