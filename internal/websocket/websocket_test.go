package websocket

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// frame is a frame as a client sends it, masked or not.
func frame(first byte, masked bool, payload []byte) []byte {
	out := []byte{first}
	bit := byte(0)
	if masked {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		out = append(out, bit|byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, bit|126), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, bit|127), uint64(n))
	}
	if !masked {
		return append(out, payload...)
	}
	mask := [4]byte{1, 2, 3, 4}
	out = append(append(out, mask[:]...), payload...)
	apply(mask, out[len(out)-len(payload):])
	return out
}

// pair is a server's connection and the wire to it.
func pair(t *testing.T, opts Options) (*Conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := newConn(ours, bufio.NewReader(ours), false, opts)
	t.Cleanup(func() { c.Close(); theirs.Close() })
	return c, theirs
}

// What clients send, and what is made of it. Most is sent masked and not masked.
func TestRead(t *testing.T) {
	long, most := bytes.Repeat([]byte("é"), 150), bytes.Repeat([]byte("x"), 1<<16)
	for _, c := range []struct {
		name   string
		sent   func(masked bool) []byte
		want   []string // messages
		answer []byte   // how what the client gets begins
		err    string
	}{
		{"text", func(m bool) []byte { return frame(0x81, m, []byte(`{"debug":false}`)) }, []string{`{"debug":false}`}, nil, "EOF"},
		{"binary", func(m bool) []byte { return frame(0x82, m, []byte{0xff}) }, []string{"\xff"}, nil, "EOF"},
		{"empty", func(m bool) []byte { return frame(0x81, m, nil) }, []string{""}, nil, "EOF"},
		{"two lengths", func(m bool) []byte {
			return append(frame(0x81, m, long), frame(0x82, m, most)...)
		}, []string{string(long), string(most)}, nil, "EOF"},
		{"fragments around a ping", func(m bool) []byte {
			return slices.Concat(frame(0x01, m, []byte("\xc3")), frame(0x89, m, []byte("wrangler tail ping")), frame(0x00, m, nil), frame(0x80, m, []byte("\xa9")))
		}, []string{"é"}, append([]byte{0x8a, 18}, "wrangler tail ping"...), "EOF"},
		{"pong", func(m bool) []byte { return frame(0x8a, m, []byte("any")) }, nil, nil, "EOF"},
		{"close", func(m bool) []byte { return frame(0x88, m, []byte("\x03\xe8bye")) }, nil, []byte{0x88, 2, 3, 0xe8}, "code 1000 bye"},
		{"close without a code", func(m bool) []byte { return frame(0x88, m, nil) }, nil, []byte{0x88, 0}, "code 1005"},
		{"close of one byte", func(m bool) []byte { return frame(0x88, m, []byte{3}) }, nil, []byte{0x88, 0, 3, 0xea}, "close frame"},
		{"too large", func(m bool) []byte { return frame(0x81, m, append(most, 'x')) }, nil, []byte{0x88, 0, 3, 0xf1}, "too large"},
		{"too large in parts", func(m bool) []byte {
			return append(frame(0x01, m, most), frame(0x80, m, []byte("x"))...)
		}, nil, []byte{0x88, 0, 3, 0xf1}, "too large"},
		{"length of 64 bits", func(bool) []byte { return append([]byte{0x81, 127}, bytes.Repeat([]byte{0xff}, 8)...) }, nil, []byte{0x88, 0, 3, 0xea}, "63 bits"},
		{"not UTF-8", func(m bool) []byte { return frame(0x81, m, []byte{0xff}) }, nil, []byte{0x88, 0, 3, 0xef}, "UTF-8"},
		{"extension", func(m bool) []byte { return frame(0xc1, m, nil) }, nil, []byte{0x88}, "extension"},
		{"unknown kind", func(m bool) []byte { return frame(0x83, m, nil) }, nil, []byte{0x88}, "unknown kind"},
		{"unknown control", func(m bool) []byte { return frame(0x8b, m, nil) }, nil, []byte{0x88}, "unknown kind"},
		{"fragmented ping", func(m bool) []byte { return frame(0x09, m, nil) }, nil, []byte{0x88}, "control frame"},
		{"large ping", func(m bool) []byte { return frame(0x89, m, make([]byte, 126)) }, nil, []byte{0x88}, "control frame"},
		{"continuation of nothing", func(m bool) []byte { return frame(0x80, m, nil) }, nil, []byte{0x88}, "mixed up"},
		{"text within text", func(m bool) []byte { return append(frame(0x01, m, nil), frame(0x81, m, nil)...) }, nil, []byte{0x88}, "mixed up"},
		{"cut in the head", func(m bool) []byte { return frame(0x81, m, long)[:3] }, nil, nil, "unexpected EOF"},
		{"cut in the content", func(m bool) []byte { return frame(0x81, m, long)[:20] }, nil, nil, "unexpected EOF"},
	} {
		for _, masked := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				conn, wire := pair(t, Options{})
				answered := make(chan []byte)
				go func() {
					sent := c.sent(masked)
					done := make(chan struct{})
					go func() { defer close(done); wire.Write(sent) }()
					buf := make([]byte, 1<<10)
					n, _ := io.ReadAtLeast(wire, buf, len(c.answer))
					if len(c.answer) == 0 {
						n = 0
					}
					<-done
					wire.Close()
					answered <- buf[:n]
				}()
				var got []string
				var err error
				for err == nil {
					var message []byte
					if message, err = conn.Read(); err == nil {
						got = append(got, string(message))
					}
				}
				conn.Close()
				if !slices.Equal(got, c.want) || !strings.Contains(err.Error(), c.err) {
					t.Errorf("masked %v: got %.40q, %v; want %.40q, %s", masked, got, err, c.want, c.err)
				}
				answer := <-answered
				if len(c.answer) > 2 && c.answer[1] == 0 { // the text of a code may be any
					answer[1] = 0
				}
				if !bytes.HasPrefix(answer, c.answer) {
					t.Errorf("masked %v: answered with %q, want %q", masked, answer, c.answer)
				}
			})
		}
	}
}

// A client that says nothing, and one that takes nothing, are cut off in time.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, wire := pair(t, Options{})
		began := time.Now()
		go conn.Read()
		for range 3 { // signs of life
			time.Sleep(DefaultIdle - time.Second)
			if _, err := wire.Write(frame(0x8a, true, nil)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		_, err := wire.Read(make([]byte, 1))
		if took := time.Since(began); err == nil || took != 3*(DefaultIdle-time.Second)+DefaultIdle {
			t.Errorf("a silent client was cut off after %v (%v)", took, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		conn, _ := pair(t, Options{})
		began := time.Now()
		if err := conn.WriteText([]byte("x")); err == nil || time.Since(began) != DefaultStall {
			t.Errorf("a write that nobody takes ended after %v: %v", time.Since(began), err)
		}
	})
}

// serve serves one handler at /, with the wrong way to ask answered as a failure.
func serve(t *testing.T, handle func(*Conn)) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, "trace-v1", Options{})
		var refusal *HandshakeError
		if errors.As(err, &refusal) {
			http.Error(w, refusal.Text, refusal.Status)
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		handle(c)
	}))
	t.Cleanup(s.Close)
	return s
}

// Our client and our server understand each other, in both directions.
func TestDial(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, func(c *Conn) {
		for {
			message, err := c.Read()
			if err != nil {
				ended <- err
				return
			}
			if err := errors.Join(c.Ping(), c.WriteText(message)); err != nil {
				t.Error(err)
			}
		}
	})
	c, err := Dial(t.Context(), s.Client(), s.URL, http.Header{"X-Test": {"1"}}, "trace-v1", Options{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"", "é", strings.Repeat("x", 126), strings.Repeat("y", 1<<16)} {
		if err := c.WriteText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := c.Read()
		if err != nil || string(got) != text {
			t.Fatalf("got %d bytes (%v), want %d", len(got), err, len(text))
		}
	}
	if err := c.WriteClose(CloseNormal, "enough"); err != nil {
		t.Fatal(err)
	}
	var end *CloseError
	if _, err := c.Read(); !errors.As(err, &end) || end.Code != CloseNormal {
		t.Errorf("the end is %v", err)
	}
	if err := c.WriteText(nil); err != errEnded {
		t.Errorf("writing after the end: %v", err)
	}
	if err := <-ended; !errors.As(err, &end) || end.Reason != "enough" {
		t.Errorf("the server's end is %v", err)
	}
}

func TestHandshake(t *testing.T) {
	s := serve(t, func(c *Conn) { t.Error("a connection") })
	good := http.Header{
		"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"WebSocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Sec-Websocket-Protocol": {"other, trace-v1"},
	}
	for name, c := range map[string]struct {
		header, value string
		status        int
	}{
		"no upgrade":     {"Upgrade", "", http.StatusUpgradeRequired},
		"no connection":  {"Connection", "close", http.StatusUpgradeRequired},
		"old version":    {"Sec-Websocket-Version", "8", http.StatusUpgradeRequired},
		"no key":         {"Sec-Websocket-Key", "", http.StatusBadRequest},
		"short key":      {"Sec-Websocket-Key", "YWJj", http.StatusBadRequest},
		"other protocol": {"Sec-Websocket-Protocol", "chat", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
			r.Header = good.Clone()
			r.Header.Set(c.header, c.value)
			res, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != c.status {
				t.Errorf("status %d, want %d", res.StatusCode, c.status)
			}
		})
	}
	if got := accept("dGhlIHNhbXBsZSBub25jZQ=="); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // of the RFC
		t.Errorf("the proof is %s", got)
	}
	if _, err := Dial(t.Context(), s.Client(), s.URL, nil, "chat", Options{}); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a protocol that the server does not speak: %v", err)
	}
}

// What a client sends together with its handshake is not lost.
func TestEager(t *testing.T) {
	got := make(chan string, 1)
	s := serve(t, func(c *Conn) {
		message, err := c.Read()
		got <- string(message)
		if err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: trace-v1\r\n\r\n"+string(frame(0x81, false, []byte("early"))))
	if text := <-got; text != "early" {
		t.Errorf("got %q", text)
	}
}

// Whatever a client sends, reading ends, and no message is larger than allowed.
func FuzzRead(f *testing.F) {
	f.Add(frame(0x81, true, []byte("text")))
	f.Add(slices.Concat(frame(0x01, false, []byte("a")), frame(0x89, true, nil), frame(0x80, false, []byte("b"))))
	f.Add([]byte{0x88, 2, 3, 0xe8})
	f.Fuzz(func(t *testing.T, sent []byte) {
		stream := &recorded{Reader: bytes.NewReader(sent)}
		c := newConn(stream, bufio.NewReader(stream), false, Options{Limit: 100})
		defer c.Close()
		for {
			message, err := c.Read()
			if err != nil {
				return
			}
			if len(message) > 100 {
				t.Fatalf("a message of %d bytes", len(message))
			}
		}
	})
}

// recorded is a stream that ends.
type recorded struct {
	io.Reader
	bytes.Buffer
}

func (r *recorded) Read(p []byte) (int, error)  { return r.Reader.Read(p) }
func (r *recorded) Write(p []byte) (int, error) { return r.Buffer.Write(p) }
func (r *recorded) Close() error                { return nil }
