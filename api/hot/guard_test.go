package hot

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
)

// everyone is an Authorizer that lets every token read everything.
type everyone struct{}

func (everyone) Epoch() uint64 { return 1 }
func (everyone) Read(context.Context, string, string, kv.NamespaceID) (Right, error) {
	return Right{Prefixes: []string{""}}, nil
}

// one is near memory that has one value under every key but "far".
type one struct{ rec kv.Record }

func (o *one) Near(_ kv.NamespaceID, key []byte, _ time.Duration) (*kv.Record, time.Duration, bool) {
	return &o.rec, 0, string(key) != "far"
}

func small() *one { return &one{kv.Record{Version: kv.NewVersion(1, 1, 1), Value: []byte("near")}} }

// bubble is a server over pipes within a bubble, whose handler is the test's.
func bubble(t *testing.T, values Values, handler http.HandlerFunc, change func(*Config)) (*Server, *pipes) {
	cfg := Config{
		HTTP: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
			IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10},
		Values: values, Rights: everyone{},
	}
	if change != nil {
		change(&cfg)
	}
	s, l := New(cfg), newPipes()
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		synctest.Wait()
		if open := s.Stats().Open; open != 0 {
			t.Errorf("%d connections are left", open)
		}
	})
	return s, l
}

func dial(l *pipes) net.Conn {
	client, server := net.Pipe()
	l.conn <- server
	return client
}

func simple(key string) string {
	return "GET " + pathAccount + accountID + pathNamespace + accountID + pathValue + key + " HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n"
}

// ask sends a request and returns the body of the answer.
func ask(t *testing.T, c net.Conn, request string) string {
	t.Helper()
	go func() { _, _ = io.WriteString(c, request) }()
	body, err := hear(c)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func hear(c net.Conn) (string, error) {
	var got []byte
	b := make([]byte, 1)
	for !bytes.HasSuffix(got, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, b); err != nil {
			return "", fmt.Errorf("after %q: %w", got, err)
		}
		got = append(got, b[0])
	}
	_, rest, _ := strings.Cut(string(got), "Content-Length: ")
	var length int
	if _, err := fmt.Sscanf(rest, "%d", &length); err != nil {
		return "", fmt.Errorf("answer %q: %w", got, err)
	}
	body := make([]byte, length)
	_, err := io.ReadFull(c, body)
	return string(body), err
}

func skipHead(c net.Conn) {
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte("\r\n\r\n")); got = append(got, b...) {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
	}
}

// closes tells how long it takes until the server closes the connection.
func closes(c net.Conn) time.Duration {
	began := time.Now()
	_, _ = io.Copy(io.Discard, c)
	return time.Since(began)
}

func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s: closed after %s, want %s to %s", what, got, least, most)
	}
}

func TestIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), nil, nil)
		within(t, "nothing sent", closes(dial(l)), 10*time.Second, 10*time.Second)
		c := dial(l)
		for range 5 {
			if body := ask(t, c, simple("a")); body != "near" {
				t.Errorf("got %q", body)
			}
			time.Sleep(2*time.Minute - time.Second)
		}
		if body := ask(t, c, simple("a")); body != "near" {
			t.Errorf("got %q", body)
		}
		within(t, "idle", closes(c), 2*time.Minute, 2*time.Minute+maxCoarse)

		// A busy connection, whose deadline is not moved with every request.
		c = dial(l)
		for range 5000 {
			ask(t, c, simple("a"))
			time.Sleep(100 * time.Millisecond)
		}
		within(t, "idle after work", closes(c), 2*time.Minute, 2*time.Minute+maxCoarse)
	})
}

// TestSlowHead: the time of a head is that of the whole, however it arrives.
func TestSlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), nil, nil)
		for _, before := range []int{0, 1, 3} {
			c := dial(l)
			for range before {
				ask(t, c, simple("a"))
				time.Sleep(30 * time.Second)
			}
			var sender sync.WaitGroup
			sender.Go(func() {
				for _, b := range []byte(simple("a")) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			within(t, fmt.Sprintf("slow head after %d", before), closes(c), 10*time.Second, 10*time.Second)
			sender.Wait()
		}
	})
}

// TestSteadyPipeline: a client whose bytes always end within a head is not slow.
func TestSteadyPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), nil, nil)
		c := dial(l)
		half := len(simple("a")) / 2
		go func() { _, _ = io.WriteString(c, simple("a")[:half]) }()
		synctest.Wait()
		for range 60 {
			if body := ask(t, c, simple("a")[half:]+simple("a")[:half]); body != "near" {
				t.Fatalf("got %q", body)
			}
			time.Sleep(time.Second)
		}
		within(t, "then nothing", closes(c), 8*time.Second, 10*time.Second)
	})
}

// TestSlowReader: who does not take an answer is cut off.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := &one{kv.Record{Version: kv.NewVersion(1, 1, 1), Value: make([]byte, 100<<10)}}
		s, l := bubble(t, large, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(make([]byte, 200<<10))
		}, nil)
		for _, request := range []string{simple("a"), simple("far"), simple("a") + simple("a")} {
			c := dial(l)
			began := time.Now()
			_, _ = io.WriteString(c, request)
			_, _ = io.ReadFull(c, make([]byte, 100)) // and no more
			for s.Stats().Open > 0 {
				time.Sleep(100 * time.Millisecond)
			}
			within(t, "slow reader", time.Since(began), time.Minute, time.Minute+2*maxCoarse)
		}
	})
}

// TestHandlerDeadline: a handler that writes for long sets the deadlines itself.
func TestHandlerDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4000000")
			for range 4 {
				if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
				_, _ = w.Write(make([]byte, 1000000))
			}
		}, nil)
		c := dial(l)
		_, _ = io.WriteString(c, simple("far"))
		skipHead(c)
		for range 40 { // two minutes: longer than the server's own time
			if _, err := io.ReadFull(c, make([]byte, 100000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
		}
		if body := ask(t, c, simple("a")); body != "near" {
			t.Errorf("got %q", body)
		}
	})
}

// TestConnections: at the limit further ones wait, whoever has the others.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := bubble(t, small(), func(http.ResponseWriter, *http.Request) {}, func(cfg *Config) { cfg.Connections = 2 })
		first, second := dial(l), net.Conn(nil)
		ask(t, first, simple("a"))
		second = dial(l)
		ask(t, second, "GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
		if got := s.Stats(); got.Given != 1 || got.Open != 2 || got.Accepted != 2 {
			t.Errorf("%+v", got)
		}
		third := dial(l)
		go func() { _, _ = io.WriteString(third, simple("a")) }()
		synctest.Wait()
		if got := s.Stats(); got.Open != 2 || got.Accepted != 2 {
			t.Errorf("one past the limit: %+v", got)
		}
		_ = second.Close()
		if body, err := hear(third); err != nil || body != "near" {
			t.Errorf("after one went: %q, %v", body, err)
		}
		_ = first.Close()
		ask(t, dial(l), simple("a"))
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		s, l := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) {
			<-goOn
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "done")
		}, nil)
		silent, idle, part, working, given := dial(l), dial(l), dial(l), dial(l), dial(l)
		ask(t, idle, simple("a"))
		_, _ = io.WriteString(part, simple("a")[:50])
		_, _ = io.WriteString(working, simple("far"))
		_, _ = io.WriteString(given, "GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
		synctest.Wait()
		ended := make(chan error, 1)
		go func() { ended <- s.Shutdown(t.Context()) }()
		for name, c := range map[string]net.Conn{"silent": silent, "idle": idle, "part": part} {
			within(t, name, closes(c), 0, 0)
		}
		select {
		case err := <-ended:
			t.Fatalf("shut down with requests under way (%v)", err)
		default:
		}
		close(goOn)
		for name, c := range map[string]net.Conn{"working": working, "given": given} {
			answer, _ := io.ReadAll(c)
			if !strings.HasSuffix(string(answer), "\r\nConnection: close\r\n\r\ndone") {
				t.Errorf("%s: %q", name, answer)
			}
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.Serve(t.Context(), newPipes()); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve after that: %v", err)
		}
	})
}

// TestShutdownInTime: what does not end in time is cut off by Close, or when the
// context of Serve ends, and the handler's context ends with it.
func TestShutdownInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
		c := dial(l)
		_, _ = io.WriteString(c, simple("far"))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		within(t, "cut off", closes(c), 0, 0)
	})
}

// failing is a listener whose Accept fails a few times.
type failing struct {
	*pipes
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return f.pipes.Accept()
}

// TestAccept: an error that passes is waited for, another one ends Serve.
func TestAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := bubble(t, small(), nil, nil)
		l := &failing{newPipes(), slices.Repeat([]error{syscall.EMFILE}, 10)}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(t.Context(), l) }()
		began := time.Now()
		c := dial(l.pipes)
		if body := ask(t, c, simple("a")); body != "near" {
			t.Errorf("got %q", body)
		}
		within(t, "patience", time.Since(began), time.Second, 10*time.Second)
		_ = c.Close()
		synctest.Wait()
		broken := &failing{newPipes(), []error{syscall.EBADF}}
		if err := s.Serve(t.Context(), broken); !errors.Is(err, syscall.EBADF) {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestContext: when the context of Serve ends all is cut off.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
		ctx, cancel := context.WithCancel(t.Context())
		l := newPipes()
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()
		c := dial(l)
		_, _ = io.WriteString(c, simple("far"))
		cancel()
		within(t, "cut off", closes(c), 0, 0)
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			_, _ = io.WriteString(w, "do")
			panic(http.ErrAbortHandler)
		}, nil)
		c := dial(l)
		_, _ = io.WriteString(c, simple("far"))
		if answer, _ := io.ReadAll(c); len(answer) != 0 {
			t.Errorf("a panic was answered with %q", answer)
		}
		_, l = bubble(t, nil, nil, nil) // no near memory: a bug of the wiring
		within(t, "panic of near", func() time.Duration {
			c := dial(l)
			_, _ = io.WriteString(c, simple("a"))
			return closes(c)
		}(), 0, 0)
	})
}

// TestReply: what a handler may do besides what the API does, against net/http.
func TestReply(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"nothing":      func(http.ResponseWriter, *http.Request) {},
		"status":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		"odd status":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(599); w.WriteHeader(200) },
		"no length":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"no content":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); _, _ = io.WriteString(w, "x") },
		"not modified": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Etag", "x"); w.WriteHeader(304) },
		"closing":      func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") },
		"own date":     func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", "today") },
		"too long": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "ab")
			if _, err := io.WriteString(w, "c"); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
		},
		"late header": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			w.Header().Set("Late", "x")
			w.Header()["A"] = []string{"1\n2", " 3 "}
		},
		"two pieces": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "20002")
			_, _ = w.Write(bytes.Repeat([]byte("a"), 20000))
			_, _ = io.WriteString(w, "bc")
		},
		"asks": func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprint(w, r.Method, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.Body == http.NoBody, r.TLS, r.RemoteAddr, r.URL,
				r.Context().Value(http.LocalAddrContextKey), r.Context().Value(http.ServerContextKey) != nil, r.Close, r.Form, r.TransferEncoding)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, l := bubble(t, small(), handler, nil)
			hot := converse(l, [][]byte{[]byte(simple("far") + simple("far"))})
			l = newPipes()
			server := &http.Server{Handler: handler}
			var done sync.WaitGroup
			done.Go(func() { _ = server.Serve(l) })
			plain := converse(l, [][]byte{[]byte(simple("far") + simple("far"))})
			_ = server.Close()
			done.Wait()
			if hot != plain {
				t.Errorf("%s:\nhot path %v %q\nnet/http %v %q", name, hot.closed, hot.answers, plain.closed, plain.answers)
			}
		})
	}
}

// TestReplyShort: an answer that is not complete does not look complete.
func TestReplyShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := bubble(t, small(), func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.RequestURI, "far") {
				w.Header().Set("Content-Length", "4")
				_, _ = io.WriteString(w, "do")
			}
		}, nil)
		if hot := converse(l, [][]byte{[]byte(simple("far") + simple("a"))}); !hot.closed || !strings.HasSuffix(hot.answers, "\r\n\r\ndo") {
			t.Errorf("%+v", hot)
		}
	})
}

// TestGathered: a body of unknown length is gathered up to a limit.
func TestGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{gatheredBytes, gatheredBytes + 1} {
			_, l := bubble(t, small(), func(w http.ResponseWriter, _ *http.Request) {
				for left := size; left > 0; left -= 1000 {
					_, _ = w.Write(make([]byte, min(left, 1000)))
				}
			}, nil)
			hot := converse(l, [][]byte{[]byte(simple("far"))})
			if complete := strings.Contains(hot.answers, fmt.Sprintf("Content-Length: %d\r\n", size)) && !hot.closed; complete != (size == gatheredBytes) {
				t.Errorf("%d bytes: %d came, closed: %v", size, len(hot.answers), hot.closed)
			}
		}
	})
}

// TestNetworks: over TCP, a unix socket and TLS, with a real client.
func TestNetworks(t *testing.T) {
	w := newWorld(t)
	w.put("near", kv.Record{Value: []byte("near")})
	w.far("far", kv.Record{Value: []byte("far")})
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	socket := filepath.Join(t.TempDir(), "s")
	for _, network := range []string{"tcp", "unix", "tls", "h2"} {
		t.Run(network, func(t *testing.T) {
			s := New(w.config())
			transport := certified.Client().Transport.(*http.Transport).Clone()
			defer transport.CloseIdleConnections()
			scheme := "https://"
			switch network {
			case "tcp", "unix":
				scheme = "http://"
				address := map[string]string{"tcp": "127.0.0.1:0", "unix": socket}[network]
				to := serve(t, s, network, address)
				transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, to.Network(), to.String())
				}
			default:
				config := &tls.Config{Certificates: certified.TLS.Certificates}
				transport.ForceAttemptHTTP2 = network == "h2"
				if network == "h2" {
					config.NextProtos = []string{"h2", "http/1.1"}
				}
				l, err := tls.Listen("tcp", "127.0.0.1:0", config)
				if err != nil {
					t.Fatal(err)
				}
				go func() { _ = s.Serve(context.WithoutCancel(t.Context()), l) }()
				t.Cleanup(func() { _ = s.Close() })
				transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
				}
			}
			client := &http.Client{Transport: transport}
			for _, key := range []string{"near", "far", "near"} {
				if got := get(t, client, scheme+"example.com"+w.path(key)); got != key {
					t.Errorf("got %q", got)
				}
			}
			if got := get(t, client, scheme+"example.com/healthz"); got == "" {
				t.Error("healthz is empty")
			}
			if got := get(t, client, scheme+"example.com"+w.path("near")); got != "near" {
				t.Errorf("got %q", got)
			}
			got, want := s.Stats(), Stats{Hits: 2, Handled: 1, Given: 1, Accepted: 1}
			if network == "h2" {
				want = Stats{Given: 1, Accepted: 1}
			}
			if got.Hits != want.Hits || got.Handled != want.Handled || got.Given != want.Given || got.Accepted != want.Accepted || got.Open != 1 {
				t.Errorf("%d hits, %d handled, %d given, %d accepted, %d open", got.Hits, got.Handled, got.Given, got.Accepted, got.Open)
			}
			transport.CloseIdleConnections()
			nearkeytest.Until(t, "closed", func() bool { return s.Stats().Open == 0 })
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+rootToken)
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestNotTLS: who does not speak TLS is answered as by net/http.
func TestNotTLS(t *testing.T) {
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certified.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	s := New(w.config())
	go func() { _ = s.Serve(context.WithoutCancel(t.Context()), l) }()
	defer s.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, w.get("key"))
	answer, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(answer), "HTTP/1.0 400 Bad Request\r\n\r\nClient sent") {
		t.Errorf("got %q", answer)
	}
}
