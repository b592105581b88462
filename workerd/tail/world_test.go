package tail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/websocket"
)

const (
	account = "0123456789abcdef0123456789abcdef"
	name    = "shop"
)

// register is a catalog of tails that fails on demand.
type register struct {
	mu      sync.Mutex
	open    map[string]time.Time
	renewed int
	fault   error
}

func (r *register) RenewTail(_ context.Context, _, _, id string, life time.Duration) (catalog.Tail, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault != nil {
		return catalog.Tail{}, r.fault
	}
	if _, ok := r.open[id]; !ok {
		return catalog.Tail{}, fmt.Errorf("tail %q: %w", id, catalog.ErrTailNotFound)
	}
	r.renewed++
	r.open[id] = time.Now().Add(life)
	return catalog.Tail{}, nil
}

func (r *register) CloseTail(_ context.Context, _, _, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, id)
	return r.fault
}

func (r *register) add(filters string) catalog.Tail {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := fmt.Sprintf("tail-%d", len(r.open))
	r.open[id] = time.Now().Add(Lease)
	return catalog.Tail{ID: id, AccountID: account, Worker: name, Filters: json.RawMessage(filters), Created: time.Now(), Expires: r.open[id]}
}

func (r *register) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// pipes is a listener in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// world is a Hub behind an HTTP server in memory.
type world struct {
	t        *testing.T
	hub      *Hub
	register *register
	listener pipes
	client   *http.Client

	mu    sync.Mutex
	tails map[string]catalog.Tail // by path
	since time.Time
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, register: &register{open: map[string]time.Time{}}, listener: make(pipes), tails: map[string]catalog.Tail{}}
	w.hub = NewHub(Options{Tails: w.register})
	server := &http.Server{Handler: w, ReadTimeout: time.Minute, WriteTimeout: time.Minute}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		w.listener <- theirs
		return ours, nil
	}}
	w.client = &http.Client{Transport: transport}
	served := make(chan error)
	go func() { served <- server.Serve(w.listener) }()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- w.hub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
		close(w.listener)
		server.Close()
		<-served
		if s := w.hub.Stats(); s.Sessions != 0 || len(w.hub.byWorker) != 0 || w.hub.watched.Load() != 0 {
			t.Errorf("left behind: %+v, %d", s, len(w.hub.byWorker))
		}
		if n := w.register.count(); n != 0 {
			t.Errorf("%d tails are still open", n)
		}
	})
	return w
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	t, since := w.tails[r.URL.Path], w.since
	w.mu.Unlock()
	err := w.hub.Serve(rw, r, t, since)
	var refusal *websocket.HandshakeError
	if errors.As(err, &refusal) {
		http.Error(rw, refusal.Text, refusal.Status)
		return
	}
	if err != nil {
		w.t.Error(err)
	}
}

// follower reads what a tail sends.
type follower struct {
	t    *testing.T
	conn *websocket.Conn
	tail catalog.Tail
}

func (w *world) follow(filters string) *follower { return w.attach(w.register.add(filters)) }

func (w *world) attach(t catalog.Tail) *follower {
	w.t.Helper()
	w.mu.Lock()
	w.tails["/"+t.ID] = t
	w.mu.Unlock()
	conn, err := websocket.Dial(w.t.Context(), w.client, "http://hub/"+t.ID, nil, Protocol, websocket.Options{Limit: 1 << 20, Idle: 10 * time.Hour})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	_ = conn.WriteText([]byte(`{"debug":false}`)) // which a session that is refused does not take
	return &follower{w.t, conn, t}
}

// next is the next event, in short.
func (f *follower) next() string {
	f.t.Helper()
	text, err := f.conn.Read()
	if err != nil {
		f.t.Fatalf("read an event: %v", err)
	}
	return short(text)
}

// ends is the code and the reason with which the session ends.
func (f *follower) ends() string {
	f.t.Helper()
	for {
		_, err := f.conn.Read()
		var end *websocket.CloseError
		if errors.As(err, &end) {
			return fmt.Sprintf("%d %s", end.Code, end.Reason)
		}
		if err != nil {
			return err.Error()
		}
	}
}

// short is the kind of an event and what was logged.
func short(text []byte) string {
	var e struct {
		Outcome string
		Logs    []struct{ Message []any }
		Event   struct{ Type, Message, Cron string }
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return err.Error()
	}
	out := e.Outcome + e.Event.Type
	for _, l := range e.Logs {
		out += fmt.Sprint(" ", l.Message)
	}
	return out
}

// request is an event of a request that logged a text.
func request(outcome, method, said string) json.RawMessage {
	return fmt.Appendf(nil, `{"outcome":%q,"scriptName":"shop","scriptVersion":{"id":"v1"},"exceptions":[],"logs":[{"message":[%q,{"a":1}],"level":"log","timestamp":1}],
		"eventTimestamp":1,"event":{"request":{"url":"https://shop/","method":%q,"headers":{"cf-connecting-ip":"203.0.113.7","x-test":"some value"}},"response":{"status":200}}}`, outcome, said, method)
}
