package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"
)

func TestKeys(t *testing.T) {
	const n = 100_000
	keys := keyspace{seed: 7, dirs: keyDirs}
	seen, total := map[string]bool{}, 0
	for i := range n {
		key := string(keys.appendKey(nil, i))
		if len(key) < minKeyBytes || len(key) > maxKeyBytes || key[0] != 'd' || key[6] != '/' || seen[key] {
			t.Fatalf("key %d: %q", i, key)
		}
		seen[key] = true
		total += len(key)
	}
	if mean := float64(total) / n; mean < 43.9 || mean > 44.1 {
		t.Errorf("keys have %.2f bytes in the mean, want 44", mean)
	}
	if a, b := uniqueKey(nil, 1), uniqueKey(nil, 2); bytes.Equal(a, b) {
		t.Errorf("two unique keys are %q", a)
	}
}

func TestValues(t *testing.T) {
	for _, binary := range []bool{false, true} {
		keys := keyspace{seed: 7, dirs: keyDirs, binary: binary}
		one, two := keys.appendValue(nil, 1), keys.appendValue(nil, 2)
		if len(one) != valueBytes || bytes.Equal(one, two) || !bytes.Equal(one, keys.appendValue(nil, 1)) {
			t.Errorf("values of 1 and 2: %q, %q", one, two)
		}
		if utf8.Valid(one) == binary {
			t.Errorf("a value of binary %v: %q", binary, one)
		}
	}
}

func TestPairs(t *testing.T) {
	keys := keyspace{seed: 7, dirs: keyDirs, binary: true}
	body := keys.appendPairs(nil, 0, 3)
	if got := strings.Count(string(body), `"base64":true`); got != 3 {
		t.Errorf("a body of 3 pairs has %d: %s", got, body)
	}
}

// stream is a connection whose other side has already said everything.
type stream struct {
	io.Reader
	io.Writer
}

func (stream) Close() error { return nil }

func TestAnswers(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	for _, c := range []struct{ name, answer, want string }{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 hello"},
		{"case of names", "HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello", "200 hello"},
		{"no body", "HTTP/1.1 204 No Content\r\n\r\n", "204 "},
		{"empty body", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 "},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "200 hello"},
		{"longer than the buffer", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(big), big), "200 " + big},
		{"no length", "HTTP/1.1 200 OK\r\n\r\nhello", "an answer without a length"},
		{"cut short", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "read the body of an answer: unexpected EOF"},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", `status line "SSH-2.0-OpenSSH"`},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", `read the body of an answer: size of a chunk: strconv.ParseUint: parsing "zz": invalid syntax`},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, reader := range map[string]io.Reader{
				"at once":     strings.NewReader(c.answer),
				"by the byte": iotest.OneByteReader(strings.NewReader(c.answer)),
			} {
				status, body, err := newConn(stream{reader, io.Discard}).do(nil)
				got := fmt.Sprintf("%d %s", status, body)
				if err != nil {
					got = err.Error()
				}
				if got != c.want {
					t.Errorf("%s: got %.100q, want %.100q", name, got, c.want)
				}
			}
		})
	}
}

// Several requests on one connection to a real server, both ways to say how long
// an answer is.
func TestKeepAlive(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path)
		if r.URL.Path == "/chunked" {
			w.(http.Flusher).Flush()
			io.WriteString(w, "!")
		}
	}))
	defer server.Close()
	raw, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(raw)
	defer c.close()
	for path, want := range map[string]string{"/a": "/a", "/chunked": "/chunked!", "/b": "/b"} {
		status, body, err := c.do([]byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n"))
		if err != nil || status != 200 || string(body) != want {
			t.Errorf("%s: %d %q %v", path, status, body, err)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tnearkey\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
	if want := (usage{resident: 1 << 20, peak: 2 << 20}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := parseStatus("Name:\tzombie\n"); err == nil {
		t.Error("a process without memory is accepted")
	}
}

func TestOwnProcess(t *testing.T) {
	if m, err := memoryOf(os.Getpid()); err != nil || m.resident > m.peak {
		t.Error(m, err)
	}
}

func TestMedian(t *testing.T) {
	rate := func(ops ...int) float64 {
		var rounds []round
		for _, n := range ops {
			rounds = append(rounds, round{ops: n, elapsed: time.Second})
		}
		return median(rounds, round.rate)
	}
	if got := rate(9, 1, 5); got != 5 {
		t.Errorf("of three: %f", got)
	}
	if got := rate(9, 1, 5, 7); got != 6 {
		t.Errorf("of four: %f", got)
	}
	sorted := []time.Duration{1, 2, 3, 4}
	for p, want := range map[float64]time.Duration{0: 1, 50: 3, 99: 4, 100: 4} {
		if got := percentile(sorted, p); got != want {
			t.Errorf("percentile %v: %d, want %d", p, got, want)
		}
	}
}

func TestCursorOf(t *testing.T) {
	for body, want := range map[string]string{
		`{"result":[{"name":"\"cursor\":\""}],"result_info":{"count":1,"cursor":"abc"}}`: "abc",
		`{"result":[],"result_info":{"count":0,"cursor":""}}`:                            "",
		`{}`: "",
	} {
		if got := string(cursorOf([]byte(body))); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"-parts get,nothing": `no part "nothing"`,
		"-rounds 0":          "at least one round",
		"-nearkey no/such":   "make build",
		"argument":           "no arguments",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
}
