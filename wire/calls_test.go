package wire_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

var k = kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}

func record(n int) kv.Record {
	return kv.Record{Version: kv.NewVersion(time.Now().UnixNano(), 1, uint64(n)), Value: bytes.Repeat([]byte("v"), n)}
}

func TestFaultsCrossAsWhatTheyAre(t *testing.T) {
	for fault, want := range map[kvtest.Fault]error{kvtest.Refused: kv.ErrUnavailable, kvtest.Unacknowledged: kv.ErrUnknown, kvtest.Hang: context.DeadlineExceeded} {
		inner := memory.New()
		client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: &kvtest.Faulty{Store: inner, Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return fault }}})})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if fault != kvtest.Hang {
			ctx = t.Context()
		}
		rec := record(1)
		many := []kv.Write{{Ref: kv.Ref{Key: "m"}, Record: rec}}
		for what, err := range map[string]error{"put": client.Put(ctx, k, rec), "put many": client.PutMany(ctx, many)} {
			if !errors.Is(err, want) {
				t.Errorf("%s under fault %d: %v", what, fault, err)
			}
		}
		_, getErr := client.Get(ctx, k, 0)
		_, manyErr := client.GetMany(ctx, []kv.Ref{k}, 0)
		_, listErr := client.List(ctx, k.Namespace, kv.ListOptions{})
		for what, err := range map[string]error{"get": getErr, "get many": manyErr, "list": listErr} {
			if !errors.Is(err, want) {
				t.Errorf("%s under fault %d: %v", what, fault, err)
			}
		}
		for _, ref := range []kv.Ref{k, many[0].Ref} {
			if got, err := inner.Get(t.Context(), ref, 0); err != nil || got.Absent() == (fault == kvtest.Unacknowledged) {
				t.Errorf("%q under fault %d is stored as %+v, %v", ref.Key, fault, got, err)
			}
		}
	}
}

// answering is a store whose answers are made up.
type answering struct {
	kv.Store
	answer func(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error)
}

func (a answering) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
	return a.answer(ctx, ref, maxAge)
}

func TestAnswersCross(t *testing.T) {
	want := kv.Answer{Record: record(3), Age: 1234567 * time.Microsecond, Cache: kv.Stale}
	store := answering{memory.New(), func(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
		until, ok := ctx.Deadline()
		if left := time.Until(until); !ok || left > 5*time.Second || left < 4*time.Second {
			t.Errorf("a call with 5 s left reaches the store with %s", left)
		}
		if ref != k || maxAge != 77*time.Second {
			t.Errorf("asked for %+v of age %s", ref, maxAge)
		}
		return want, nil
	}}
	client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: store})})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got, err := kv.GetAnswer(ctx, client, k, 77*time.Second)
	if err != nil || got.Compare(want.Record) != 0 || got.Age != want.Age || got.Cache != want.Cache {
		t.Errorf("%+v, %v", got, err)
	}
	all, err := kv.GetAnswers(ctx, dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: memory.New()})}), []kv.Ref{k, k}, 0)
	if err != nil || len(all) != 2 || all[0].Age != 0 || all[0].Cache != kv.NoCache {
		t.Errorf("%+v, %v", all, err)
	}
}

// listen accepts connections and does with each what it is told to.
func listen(t *testing.T, each func(n int, conn net.Conn)) (url string, accepted *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n := accepted.Add(1)
			go func() {
				defer func() { _ = conn.Close() }()
				each(int(n), conn)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return "http://" + l.Addr().String(), accepted
}

// request reads a request with its body, as a server would before it answers.
func request(conn net.Conn) {
	if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

func TestAnswerThatEndsEarlyIsAnError(t *testing.T) {
	want := record(1000)
	whole := recorded(t, want)
	for _, n := range []int{0, 1, 20, len(whole) / 2, len(whole) - 1} {
		url, accepted := listen(t, func(_ int, conn net.Conn) {
			request(conn)
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nNearkey-Wire: 1\r\nContent-Length: %d\r\n\r\n%s", len(whole), whole[:n])
		})
		rec, err := dial(t, wire.ClientConfig{URL: url}).Get(t.Context(), k, 0)
		if !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, io.ErrUnexpectedEOF) || !rec.Absent() {
			t.Errorf("%d of %d bytes: %+v, %v", n, len(whole), rec.Version, err)
		}
		if accepted.Load() != 2 {
			t.Errorf("%d of %d bytes: %d attempts", n, len(whole), accepted.Load())
		}
	}
}

// recorded returns the body of the answer that is rec.
func recorded(t *testing.T, rec kv.Record) string {
	t.Helper()
	store := memory.New()
	if err := store.Put(t.Context(), k, rec); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	var body []byte
	url, _ := listen(t, func(_ int, conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err == nil {
			body, _ = io.ReadAll(req.Body)
			auth := req.Header.Get("Authorization")
			again := httptest.NewRequest(http.MethodPost, req.URL.Path, bytes.NewReader(body))
			again.Header.Set("Authorization", auth)
			wire.NewHandler(wire.HandlerConfig{Store: store, Secret: secret}).ServeHTTP(w, again)
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nNearkey-Wire: 1\r\nContent-Length: %d\r\n\r\n%s", w.Body.Len(), w.Body)
	})
	got, err := dial(t, wire.ClientConfig{URL: url}).Get(t.Context(), k, 0)
	if err != nil || got.Compare(rec) != 0 {
		t.Fatalf("recorded answer: %v", err)
	}
	return w.Body.String()
}

func TestConnectionThatFailsIsReplacedOnce(t *testing.T) {
	store := memory.New()
	backend := serve(t, wire.HandlerConfig{Store: store})
	forward := func(failures int) (string, *atomic.Int64) {
		return listen(t, func(n int, conn net.Conn) {
			if n <= failures {
				request(conn)
				return
			}
			up, err := net.Dial("tcp", strings.TrimPrefix(backend, "http://"))
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			go func() { _, _ = io.Copy(up, conn) }()
			_, _ = io.Copy(conn, up)
		})
	}
	url, accepted := forward(1)
	if err := dial(t, wire.ClientConfig{URL: url}).Put(t.Context(), k, record(1)); err != nil || accepted.Load() != 2 {
		t.Errorf("one connection that fails: %d attempts, %v", accepted.Load(), err)
	}
	url, accepted = forward(2)
	if err := dial(t, wire.ClientConfig{URL: url}).Put(t.Context(), k, record(1)); !errors.Is(err, kv.ErrUnknown) || accepted.Load() != 2 {
		t.Errorf("two connections that fail: %d attempts, %v", accepted.Load(), err)
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	err = dial(t, wire.ClientConfig{URL: url}).Put(t.Context(), k, record(1))
	if !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("a write that was certainly not done: %v", err)
	}
}

// A process that hangs costs the deadline: it accepts and never answers.
func TestHungServerCostsTheDeadline(t *testing.T) {
	release := make(chan struct{})
	url, _ := listen(t, func(int, net.Conn) { <-release })
	defer close(release)
	client := dial(t, wire.ClientConfig{URL: url, Timeout: 200 * time.Millisecond})
	begun := time.Now()
	if err := client.Put(t.Context(), k, record(1)); !errors.Is(err, kv.ErrUnknown) {
		t.Errorf("a write to a hung process: %v", err)
	}
	if _, err := client.Get(t.Context(), k, 0); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("a read from a hung process: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.Put(ctx, k, record(1)); !errors.Is(err, kv.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a write with a deadline: %v", err)
	}
	if d := time.Since(begun); d < 500*time.Millisecond || d > 5*time.Second {
		t.Errorf("three calls to a hung process with deadlines of 0.5 s in all took %s", d)
	}
}

func TestWhoIsLetIn(t *testing.T) {
	url := serve(t, wire.HandlerConfig{Store: memory.New()})
	for name, s := range map[string][]byte{"another secret": []byte("another secret of enough bytes"), "a part of the secret": secret[:len(secret)-1], "no secret": {}} {
		if _, err := dial(t, wire.ClientConfig{URL: url, Secret: s}).Get(t.Context(), k, 0); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	open := httptest.NewServer(wire.NewHandler(wire.HandlerConfig{Store: memory.New()}))
	defer open.Close()
	if _, err := dial(t, wire.ClientConfig{URL: open.URL}).Get(t.Context(), k, 0); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("a handler that was given no secret lets in whoever comes without a certificate: %v", err)
	}
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusBadGateway) }))
	defer foreign.Close()
	if _, err := dial(t, wire.ClientConfig{URL: foreign.URL}).Get(t.Context(), k, 0); !errors.Is(err, kv.ErrUnavailable) || !strings.Contains(err.Error(), "502") {
		t.Errorf("something else answers: %v", err)
	}
}

// authorization is the header that shows the secret.
const authorization = "Bearer YSBzZWNyZXQgb2YgZW5vdWdoIGJ5dGVz"

// post sends a request by hand and returns the status and the body.
func post(t *testing.T, method, url string, length int64, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = length
	req.Header.Set("Authorization", authorization)
	req.Header.Set("Expect", "100-continue")
	resp, err := (&http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute, DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestRequestsThatAreNotServed(t *testing.T) {
	url := serve(t, wire.HandlerConfig{Store: memory.New()})
	for _, c := range []struct {
		method, path string
		length       int64
		status       int
		text         string
	}{
		{"POST", "/wire/v2/get", 0, http.StatusNotFound, "speaks /wire/v1/"},
		{"POST", "/wire/v1/compress", 0, http.StatusNotImplemented, "not supported"},
		{"POST", "/wire/v1/feed", 0, http.StatusNotImplemented, "not supported"},
		{"GET", "/wire/v1/get", 0, http.StatusBadRequest, "POST"},
		{"POST", "/wire/v1/put", wire.MaxBodyBytes + 1, http.StatusBadRequest, "a body of"},
		{"POST", "/wire/v1/put", -1, http.StatusBadRequest, "a body of"},
	} {
		body := io.Reader(bytes.NewReader(make([]byte, max(0, c.length))))
		if c.length < 0 {
			body = struct{ io.Reader }{strings.NewReader("x")}
		}
		if status, text := post(t, c.method, url+c.path, c.length, body); status != c.status || !strings.Contains(text, c.text) {
			t.Errorf("%s %s of %d bytes: %d %q", c.method, c.path, c.length, status, text)
		}
	}
	// At the limit a body is read, and found to be nothing.
	req := httptest.NewRequest(http.MethodPost, "/wire/v1/put", bytes.NewReader(make([]byte, wire.MaxBodyBytes)))
	req.Header.Set("Authorization", authorization)
	w := httptest.NewRecorder()
	wire.NewHandler(wire.HandlerConfig{Store: memory.New(), Secret: secret}).ServeHTTP(w, req)
	if w.Code != http.StatusBadRequest || strings.Contains(w.Body.String(), "a body of") {
		t.Errorf("a body at the limit: %d %q", w.Code, w.Body)
	}
}

// uvarint writes a number below 16,384 in two bytes.
func uvarint(n int) string { return string([]byte{byte(n) | 0x80, byte(n >> 7)}) }

func TestKeysOfACallLimit(t *testing.T) {
	url := serve(t, wire.HandlerConfig{Store: memory.New()})
	for n, want := range map[int]int{wire.MaxBatchKeys: http.StatusOK, wire.MaxBatchKeys + 1: http.StatusBadRequest} {
		ref := "\x12" + strings.Repeat("n", 16) + "\x01k"
		body := "\x03\x00" + uvarint(n) + strings.Repeat(ref, n)
		if status, text := post(t, "POST", url+"/wire/v1/getmany", int64(len(body)), strings.NewReader(body)); status != want {
			t.Errorf("%d keys: %d %q", n, status, text[:min(len(text), 100)])
		}
	}
}

func TestManyAreSplit(t *testing.T) {
	store := memory.New()
	client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: store})})
	var writes []kv.Write
	var refs []kv.Ref
	for i := range 2*wire.MaxBatchKeys + 1 {
		size := 10
		if i%500 == 7 {
			size = 20 << 20 // two do not fit one call
		}
		ref := kv.Ref{Namespace: k.Namespace, Key: fmt.Sprint(i)}
		refs, writes = append(refs, ref), append(writes, kv.Write{Ref: ref, Record: record(size)})
	}
	if err := client.PutMany(t.Context(), writes); err != nil {
		t.Fatal(err)
	}
	recs, err := client.GetMany(t.Context(), refs, 0)
	if err != nil || len(recs) != len(refs) {
		t.Fatalf("%d of %d records, %v", len(recs), len(refs), err)
	}
	for i, rec := range recs {
		if rec.Compare(writes[i].Record) != 0 {
			t.Fatalf("record %d is another", i)
		}
	}
	var tombs []kv.Tomb
	for i := range writes {
		writes[i].Record = kv.Tombstone(record(i).Version)
		tombs = append(tombs, kv.Tomb{Ref: refs[i], Version: writes[i].Record.Version})
	}
	if err := errors.Join(client.PutMany(t.Context(), writes), client.Forget(t.Context(), tombs)); err != nil {
		t.Fatal(err)
	}
	if page, err := store.List(t.Context(), k.Namespace, kv.ListOptions{}); err != nil || len(page.Keys) != 0 {
		t.Errorf("%d keys remain, %v", len(page.Keys), err)
	}
}

func TestPageIsCutWhereTheAnswerEnds(t *testing.T) {
	store := memory.New()
	const n = wire.MaxAnswerBytes/kv.MaxMetadataBytes + 10
	for i := range n {
		rec := record(0)
		rec.Metadata = bytes.Repeat([]byte("1"), kv.MaxMetadataBytes)
		if err := store.Put(t.Context(), kv.Ref{Key: fmt.Sprintf("%05d", i)}, rec); err != nil {
			t.Fatal(err)
		}
	}
	client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: store})})
	first, err := client.List(t.Context(), kv.NamespaceID{}, kv.ListOptions{})
	if err != nil || !first.More || len(first.Keys) >= n || first.Last != first.Keys[len(first.Keys)-1].Key {
		t.Fatalf("%d of %d keys, more %v, %v", len(first.Keys), n, first.More, err)
	}
	rest, err := client.List(t.Context(), kv.NamespaceID{}, kv.ListOptions{After: first.Last})
	if err != nil || rest.More || len(first.Keys)+len(rest.Keys) != n {
		t.Errorf("%d keys and %d more of %d, %v", len(first.Keys), len(rest.Keys), n, err)
	}
}

func TestWhatNoHandlerAcceptsIsNotSent(t *testing.T) {
	client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: memory.New()})})
	long := kv.Ref{Key: strings.Repeat("k", kv.MaxKeyBytes)}
	metadata := record(1)
	metadata.Metadata = bytes.Repeat([]byte("1"), kv.MaxMetadataBytes)
	if err := errors.Join(client.Put(t.Context(), long, record(1)), client.Put(t.Context(), k, metadata)); err != nil {
		t.Errorf("at the limits: %v", err)
	}
	long.Key += "k"
	metadata.Metadata = append(metadata.Metadata, '1')
	for _, w := range []kv.Write{{Ref: long, Record: record(1)}, {Ref: kv.Ref{}, Record: record(1)}, {Ref: k, Record: metadata}, {Ref: k, Record: record(kv.MaxValueBytes + 1)}} {
		if client.Put(t.Context(), w.Ref, w.Record) == nil || client.PutMany(t.Context(), []kv.Write{w}) == nil {
			t.Errorf("a key of %d bytes, metadata of %d and a value of %d are accepted", len(w.Ref.Key), len(w.Record.Metadata), len(w.Record.Value))
		}
	}
	future := record(1)
	future.Version = kv.NewVersion(time.Now().Add(2*kv.MaxFuture).UnixNano(), 1, 1)
	if err := client.Put(t.Context(), k, future); !errors.Is(err, kv.ErrFuture) {
		t.Errorf("a version from the future: %v", err)
	}
}

func TestMemoryOfAllCallsIsBounded(t *testing.T) {
	store := memory.New()
	url := serve(t, wire.HandlerConfig{Store: store, BodyBytes: 2 << 20})
	client := dial(t, wire.ClientConfig{URL: url})
	if err := client.Put(t.Context(), k, record(1<<20)); err != nil {
		t.Errorf("what fits: %v", err)
	}
	if err := client.Put(t.Context(), k, record(3<<20)); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("a body that does not fit: %v", err)
	}
	if err := client.Put(t.Context(), k, record(1<<20)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	reserving := answering{store, func(ctx context.Context, _ kv.Ref, _ time.Duration) (kv.Answer, error) {
		return kv.Answer{}, kv.Reserve(ctx, 2<<20+1)
	}}
	client = dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: reserving, BodyBytes: 2 << 20})})
	if _, err := client.Get(t.Context(), k, 0); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("a value that does not fit: %v", err)
	}
	// The door of the caller's own request is asked as well.
	ctx := kv.WithReserver(t.Context(), func(int64) error { return kv.ErrOverloaded })
	if _, err := dial(t, wire.ClientConfig{URL: url}).Get(ctx, k, 0); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("a value that does not fit where it goes: %v", err)
	}
}

func TestCallsAtOnceAreBounded(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	slow := answering{memory.New(), func(context.Context, kv.Ref, time.Duration) (kv.Answer, error) {
		entered <- struct{}{}
		<-release
		return kv.Answer{}, nil
	}}
	client := dial(t, wire.ClientConfig{URL: serve(t, wire.HandlerConfig{Store: slow, Calls: 1})})
	first := make(chan error, 1)
	go func() {
		_, err := client.Get(t.Context(), k, 0)
		first <- err
	}()
	<-entered
	if err := client.Put(t.Context(), k, record(1)); !errors.Is(err, kv.ErrOverloaded) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("one call more than may be under way: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestURLs(t *testing.T) {
	for url, good := range map[string]bool{
		"http://127.0.0.1:80": true, "http://h:1/": true, "https://h": true, "unix:///a/socket": true,
		"": false, "h:1": false, "ftp://h": false, "http://": false, "http://h/path": false, "http://user:pw@h": false, "http://h?q": false, "unix://h/s": false, "unix:": false, "http://h:x": false,
	} {
		if err := wire.CheckURL(url); (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		} else if !good && (dial(t, wire.ClientConfig{URL: url}).Put(t.Context(), k, record(1)) == nil || strings.Contains(err.Error(), "pw")) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	socket := t.TempDir() + "/s"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: wire.NewHandler(wire.HandlerConfig{Store: memory.New(), Secret: secret})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	client := dial(t, wire.ClientConfig{URL: "unix://" + socket})
	if err := client.Put(t.Context(), k, record(1)); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

// A call takes its connection from the one before.
func TestConnectionsAreUsedAgain(t *testing.T) {
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(wire.NewHandler(wire.HandlerConfig{Store: memory.New(), Secret: secret}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	client := dial(t, wire.ClientConfig{URL: server.URL})
	for i := range 50 {
		if err := client.Put(t.Context(), k, record(i*10_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Get(t.Context(), k, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Get(t.Context(), kv.Ref{Key: strings.Repeat("x", 600)}, 0); err == nil {
			t.Fatal("a key of 600 bytes is answered")
		}
	}
	if opened.Load() > 2 {
		t.Errorf("%d connections for calls one after the other", opened.Load())
	}
}

func FuzzHandler(f *testing.F) {
	operations := []string{"get", "put", "list", "getmany", "putmany", "forget", "drop", "ack"}
	for i := range operations {
		f.Add(i, []byte("\x03\x00\x02"+strings.Repeat("\x12"+strings.Repeat("n", 16)+"\x01k", 2)))
	}
	h := wire.NewHandler(wire.HandlerConfig{Store: memory.New(), Secret: secret})
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		req := httptest.NewRequest(http.MethodPost, "/wire/v1/"+operations[max(0, i)%len(operations)], bytes.NewReader(body))
		req.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
	})
}
