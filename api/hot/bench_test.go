package hot

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// loop is a connection whose client sends the same again and again.
type loop struct {
	request []byte
	left    int // requests yet to come
	rest    []byte
	wrote   int
}

func (l *loop) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.left == 0 {
			return 0, io.EOF
		}
		l.left--
		l.rest = l.request
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

func (l *loop) Write(p []byte) (int, error)      { l.wrote += len(p); return len(p), nil }
func (l *loop) Close() error                     { return nil }
func (l *loop) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (l *loop) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (l *loop) SetDeadline(time.Time) error      { return nil }
func (l *loop) SetReadDeadline(time.Time) error  { return nil }
func (l *loop) SetWriteDeadline(time.Time) error { return nil }

// looped returns a connection of s that is not yet run.
func looped(s *Server, l *loop) *conn {
	s.slots <- struct{}{}
	c := &conn{server: s, net: l, shard: s.stats.accept(), now: time.Now()}
	c.buf = make([]byte, headBytes)
	return c
}

// turn answers the next bytes of a connection.
func (c *conn) turn(t testing.TB) {
	if !c.fill() || c.answer(t.Context()) != goesOn {
		t.Fatal("the connection ended")
	}
}

const curlFields = "Host: 127.0.0.1:8790\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"

func benchWorld(t testing.TB) (*world, *Server, []byte) {
	w := newWorld(t)
	w.put("some-key-of-usual-length", kv.Record{Value: make([]byte, 288), Expiration: time.Now().Add(time.Hour).Unix()})
	request := "GET " + w.path("some-key-of-usual-length") + " HTTP/1.1\r\n" + curlFields + "Authorization: Bearer " + rootToken + "\r\n\r\n"
	return w, New(w.config()), []byte(request)
}

// TestAllocations: an answer from near costs none, whatever it looks like.
func TestAllocations(t *testing.T) {
	w, s, request := benchWorld(t)
	id := bytes.Replace(request, []byte("\r\n\r\n"), []byte("\r\nX-Request-Id: of-a-client-1\r\n\r\n"), 1)
	_, narrow := w.token(catalogScope(w.space, "some-"))
	escaped := bytes.Replace(request, []byte("/some-key"), []byte("/s%6fme-key"), 1)
	for name, bytes := range map[string][]byte{
		"one":       request,
		"with id":   id,
		"escaped":   escaped,
		"in turn":   append(bytes.Clone(request), escaped...),
		"by prefix": bytes.Replace(request, []byte(rootToken), []byte(narrow), 1),
		"ten":       bytes.Repeat(request, 10),
		"changing":  append(bytes.Clone(request), id...),
	} {
		l := &loop{request: bytes, left: 1 << 20}
		c := looped(s, l)
		c.turn(t)
		if got := testing.AllocsPerRun(1000, func() { c.turn(t) }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
		if s.Stats().Handled != 0 {
			t.Fatalf("%s: was not answered from near", name)
		}
	}
}

func benchmarkTurn(b *testing.B, s *Server, request []byte) {
	c := looped(s, &loop{request: request, left: 1 << 62})
	c.turn(b)
	b.ReportAllocs()
	for b.Loop() {
		c.turn(b)
	}
}

func BenchmarkHit(b *testing.B) {
	_, s, request := benchWorld(b)
	benchmarkTurn(b, s, request)
}

// BenchmarkHitOther has header fields that differ from those before.
func BenchmarkHitOther(b *testing.B) {
	_, s, request := benchWorld(b)
	other := bytes.Replace(request, []byte("*/*"), []byte("text/plain"), 1)
	benchmarkTurn(b, s, append(request, other...))
}

func BenchmarkHitPipelined(b *testing.B) {
	_, s, request := benchWorld(b)
	benchmarkTurn(b, s, bytes.Repeat(request, 10))
}

func BenchmarkMiss(b *testing.B) {
	w, s, request := benchWorld(b)
	w.far("some-key-of-usual-lengtf", kv.Record{Value: make([]byte, 288)})
	benchmarkTurn(b, s, bytes.Replace(request, []byte("length "), []byte("lengtf "), 1))
}

// BenchmarkMissWithoutReader is a request that near has, answered by the handler.
func BenchmarkMissWithoutReader(b *testing.B) {
	_, s, request := benchWorld(b)
	c := looped(s, &loop{request: request, left: 1 << 62})
	c.verbose = true
	b.ReportAllocs()
	for b.Loop() {
		c.turn(b)
	}
}
