package rest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/listing"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// pipes is a listener whose connections are pipes, for time that is not real.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial serves the world until the test ends and returns a connection to it.
func (w *world) dial() net.Conn {
	w.t.Helper()
	l := &pipes{make(chan net.Conn), make(chan struct{})}
	server := HTTPServer(w.server)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	client, conn := net.Pipe()
	l.conns <- conn
	w.t.Cleanup(func() {
		client.Close()
		server.Close()
		<-ended
		<-time.After(time.Second) // net/http lingers for a moment, in the bubble's time
	})
	return client
}

// head is the head of a request as it is sent.
func (w *world) head(method, path string, length int, more ...string) string {
	lines := []string{
		method + " " + w.path(path) + " HTTP/1.1", "Host: nearkey", "Authorization: Bearer " + rootToken,
	}
	if length >= 0 {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", length))
	}
	return strings.Join(append(lines, more...), "\r\n") + "\r\n\r\n"
}

// readAnswer reads an answer to its end.
func readAnswer(t *testing.T, from *bufio.Reader) (status int, body string, closes bool) {
	t.Helper()
	res, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Errorf("no answer: %v", err)
		return 0, "", false
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("answer %s cut off: %v", res.Status, err)
	}
	return res.StatusCode, string(text), res.Close
}

// TestSlowBodies: a body may take long if it flows, and no longer if it does not.
func TestSlowBodies(t *testing.T) {
	const length = 1 << 20
	for _, tt := range []struct {
		name     string
		every    time.Duration
		bytes    int
		status   int
		from, to time.Duration // when the answer comes
	}{
		{"nothing comes", time.Hour, 1, 408, bodyStall, bodyStall + time.Second},
		{"a byte now and then", 10 * time.Second, 1, 408, bodyGrace - 10*time.Second, bodyGrace + 2*time.Second},
		{"slower than the least rate", time.Second, bodyRate / 2, 408, 50 * time.Second, 70 * time.Second},
		{"slow, but it flows", time.Second, bodyRate * 3 / 2, 200, 80 * time.Second, 100 * time.Second},
		{"stops after most has come", 31 * time.Second, length - 1, 408, bodyStall, 32 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				conn := w.dial()
				began, answered := time.Now(), make(chan struct{})
				go func() {
					io.WriteString(conn, w.head("PUT", "values/a", length))
					for sent := 0; sent < length; {
						n, err := io.WriteString(conn, strings.Repeat("v", min(tt.bytes, length-sent)))
						if err != nil {
							return
						}
						sent += n
						select {
						case <-time.After(tt.every):
						case <-answered:
							return
						}
					}
				}()
				status, body, _ := readAnswer(t, bufio.NewReader(conn))
				took := time.Since(began)
				close(answered)
				if status != tt.status || took < tt.from || took > tt.to {
					t.Errorf("answer %d %s after %s, want %d after %s to %s", status, body, took, tt.status, tt.from, tt.to)
				}
				if tt.status != 200 {
					if got := w.get("values/a").status; got != 404 {
						t.Errorf("a part was stored: %d", got)
					}
				} else if got := len(w.value("a")); got != length {
					t.Errorf("%d bytes were stored", got)
				}
				conn.Close()
			})
		})
	}
}

// TestSlowReader: who does not take the answer does not hold the door for ever.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(cfg *Config) { cfg.Store = reserving{cfg.Store.(*memory.Store)} })
		w.put("values/a", strings.Repeat("v", 1<<20)).ok()
		conn := w.dial()
		io.WriteString(conn, w.head("GET", "values/a", -1))
		from := bufio.NewReaderSize(conn, 100)
		if _, err := from.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if held := w.server.door.held.Load(); held != 1<<20 {
			t.Errorf("%d bytes are held, want the value's", held)
		}
		time.Sleep(max(writeStall, writeTimeout) + time.Second)
		synctest.Wait()
		if held := w.server.door.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
		if _, err := io.Copy(io.Discard, from); err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			t.Errorf("the connection: %v", err)
		}
		conn.Close()
	})
}

// TestPatientReader: an answer may take long if it flows.
func TestPatientReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		value := strings.Repeat("v", 2<<20)
		w.put("values/a", value).ok()
		conn := w.dial()
		io.WriteString(conn, w.head("GET", "values/a", -1))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, piece := 0, make([]byte, writeChunk/2)
		for got < len(value) {
			time.Sleep(writeStall / 3)
			n, err := io.ReadFull(res.Body, piece)
			if got += n; err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
		}
	})
}

// lazy is a store that takes its time.
type lazy struct {
	*memory.Store
	takes time.Duration
}

func (l lazy) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	select {
	case <-time.After(l.takes):
		return l.Store.Put(ctx, ref, rec)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestLazyStore: once a body is read, its deadline does not end the request, and
// that of the answer begins when there is one.
func TestLazyStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(cfg *Config) { cfg.Store = lazy{cfg.Store.(*memory.Store), 2 * readTimeout} })
		conn := w.dial()
		io.WriteString(conn, w.head("PUT", "values/a", 5)+"value")
		if status, body, _ := readAnswer(t, bufio.NewReader(conn)); status != 200 {
			t.Errorf("answer %d %s", status, body)
		}
		if got := w.value("a"); got != "value" {
			t.Errorf("stored %q", got)
		}
	})
}

// TestRefusedHoldsNothing: what is drained of a refused body is not held.
func TestRefusedHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		conn := w.dial()
		io.WriteString(conn, w.head("PUT", "bulk", 1<<20))
		synctest.Wait()
		if held := w.server.door.held.Load(); held != 1<<20 {
			t.Errorf("%d bytes are held, want what was announced", held)
		}
		io.WriteString(conn, "not JSON")
		if status, body, closes := readAnswer(t, bufio.NewReader(conn)); status != 400 || !closes {
			t.Errorf("answer %d %s", status, body)
		}
		synctest.Wait()
		if held := w.server.door.held.Load(); held != 0 || strings.Contains(w.log.String(), `"msg":"request"`) {
			t.Errorf("%d bytes are held while the rest is drained", held)
		}
	})
}

// TestRefusedBodies: a client that sends all before it reads finds the answer.
func TestRefusedBodies(t *testing.T) {
	w := newWorld(t)
	server := strings.TrimPrefix(w.listen(), "http://")
	over := strings.Repeat("v", 25<<20+1)
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(over), over)
	for _, tt := range []struct {
		name, head, body string
		status           int
		closes           bool
	}{
		{"too large", w.head("PUT", "values/a", len(over)), over, 413, true},
		{"too large, chunked", w.head("PUT", "values/a", -1, "Transfer-Encoding: chunked"), chunked, 413, true},
		{"bad expiration", w.head("PUT", "values/a?expiration_ttl=1", 5<<20), over[:5<<20], 400, true},
		{"small body refused", w.head("PUT", "values/a?expiration_ttl=1", 5), "value", 400, false},
		{"no route", w.head("PUT", "values/", 5<<20), over[:5<<20], 404, true},
		{"unknown token", strings.Replace(w.head("PUT", "values/a", 5<<20), rootToken, "unknown-token-of-the-tests", 1), over[:5<<20], 403, true},
	} {
		conn, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, tt.head+tt.body); err != nil {
			t.Errorf("%s: send: %v", tt.name, err)
		}
		status, body, closes := readAnswer(t, bufio.NewReader(conn))
		if status != tt.status || closes != tt.closes || !strings.HasPrefix(body, `{"success":false,`) {
			t.Errorf("%s: answer %d, closes %v, %s", tt.name, status, closes, body)
		}
		conn.Close()
	}
	nearkeytest.Until(t, "the door is empty", func() bool { return w.server.door.held.Load() == 0 })
}

// TestExpectContinue: who asks first is told before the body is sent.
func TestExpectContinue(t *testing.T) {
	w := newWorld(t)
	server := strings.TrimPrefix(w.listen(), "http://")
	ask := func(head, body string) (status int, asked bool) {
		conn, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, head)
		from := bufio.NewReader(conn)
		res, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 100 {
			return res.StatusCode, false
		}
		io.WriteString(conn, body)
		status, _, _ = readAnswer(t, from)
		return status, true
	}
	for _, tt := range []struct {
		head   string
		status int
		asked  bool
	}{
		{w.head("PUT", "values/a", 5, "Expect: 100-continue"), 200, true},
		{w.head("PUT", "values/a", 25<<20+1, "Expect: 100-continue"), 413, false},
		{w.head("PUT", "values/a?expiration_ttl=1", 5<<20, "Expect: 100-continue"), 400, false},
		{w.head("PUT", "values/"+strings.Repeat("k", 513), 5<<20, "Expect: 100-continue"), 414, false},
		{strings.Replace(w.head("PUT", "values/a", 5<<20, "Expect: 100-continue"), rootToken, "unknown-token-of-the-tests", 1), 403, false},
		{strings.Replace(w.head("PUT", "values/a", 5<<20, "Expect: 100-continue"), w.ns.ID.String(), nsID, 1), 404, false},
		{w.head("PUT", "bulk", bulkBodyBytes+1, "Expect: 100-continue"), 413, false},
	} {
		if status, asked := ask(tt.head, "value"); status != tt.status || asked != tt.asked {
			t.Errorf("%.120s: answer %d, body asked for %v; want %d, %v", tt.head, status, asked, tt.status, tt.asked)
		}
	}
}

// TestClosedBodies: connections that end within a body store nothing.
func TestClosedBodies(t *testing.T) {
	w := newWorld(t)
	server := strings.TrimPrefix(w.listen(), "http://")
	for _, request := range []string{
		w.head("PUT", "values/a", 100000) + "not all of it",
		w.head("PUT", "values/a", -1, "Transfer-Encoding: chunked") + "5\r\nvalue\r\n",
		w.head("PUT", "values/a", -1, "Transfer-Encoding: chunked") + "5\r\nval",
		w.head("PUT", "bulk", 1000) + `[{"key":"a","value":"v"}]`,
	} {
		for range 5 {
			conn, err := net.Dial("tcp", server)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, request)
			conn.Close()
		}
	}
	nearkeytest.Until(t, "all requests have ended", func() bool {
		return strings.Count(w.log.String(), `"msg":"request"`) >= 20 && w.server.door.held.Load() == 0
	})
	if got := w.names(""); len(got) != 0 {
		t.Errorf("stored: %v", got)
	}
}

// TestHeaderBytes: the longest key fits, escaped in full; what is longer is told.
func TestHeaderBytes(t *testing.T) {
	w := newWorld(t)
	url := w.listen()
	for path, want := range map[string]int{
		"values/" + strings.Repeat("%C3%A9", 256):                  404,
		"values/" + strings.Repeat("%C3%A9", 257):                  414,
		"keys?prefix=" + strings.Repeat("k", maxHeaderBytes-1000):  200,
		"keys?prefix=" + strings.Repeat("k", maxHeaderBytes+8<<10): 431,
		"values/a?expiration_ttl=" + strings.Repeat("k", 5000):     404,
		"keys?cursor=" + listing.Cursor(strings.Repeat("k", 512)):  200,
	} {
		req, err := http.NewRequest("GET", url+w.path(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+rootToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%.60s…: %s, want %d", path, res.Status, want)
		}
	}
}
