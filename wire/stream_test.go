package wire_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

// network is one without buffers and in memory, so that time can be the test's:
// who does not read holds up who writes at once.
type network struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	hung   atomic.Bool // connections made from now on are never served
}

func newNetwork() *network {
	return &network{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case conn := <-n.conns:
		return conn, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error   { n.once.Do(func() { close(n.closed) }); return nil }
func (n *network) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	if n.hung.Load() {
		return near, nil
	}
	select {
	case n.conns <- far:
		return near, nil
	case <-n.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// centre is a process with a store that serves it over a network in memory.
type centre struct {
	store   *memory.Store
	hub     *feed.Hub
	handler *wire.Handler
	net     *network
	client  func(pop string) *wire.Client
}

// begin returns a centre that has been running for some time. It is for a test in
// a bubble of its own time, at whose end everything that was started must have
// ended.
func begin(t *testing.T) (context.Context, *centre) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &centre{store: memory.New(), net: newNetwork()}
	c.hub = feed.NewHub(feed.HubOptions{Log: c.store})
	c.handler = wire.NewHandler(wire.HandlerConfig{Store: c.store, Hub: c.hub, Secret: secret})
	server := &http.Server{Handler: c.handler}
	var wg sync.WaitGroup
	wg.Go(func() { _ = feed.NewSource(c.store, c.hub, nil).Run(ctx) })
	wg.Go(func() { _ = server.Serve(c.net) })
	c.client = func(pop string) *wire.Client {
		client := wire.NewClient(wire.ClientConfig{URL: "http://centre", Secret: secret, PoP: pop, Dial: c.net.dial})
		t.Cleanup(client.Close)
		return client
	}
	t.Cleanup(func() {
		cancel()
		c.handler.EndFeeds()
		_ = server.Close()
		wg.Wait()
	})
	<-time.After(2 * feed.Lease)
	return ctx, c
}

// edge is what a follower tells, and a lease.
type edge struct {
	mu    sync.Mutex // guards the rest
	known map[string]kv.Version
	lease time.Time
	asOf  time.Time
	hold  chan struct{} // if set, Told waits for it
}

func newEdge() *edge { return &edge{known: map[string]kv.Version{}} }

func (e *edge) Changed(changes []kv.Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range changes {
		if c.Version.Compare(e.known[c.Ref.Key]) > 0 {
			e.known[c.Ref.Key] = c.Version
		}
	}
}

func (e *edge) Told(changes []kv.Change) {
	if e.hold != nil {
		<-e.hold
	}
	e.Changed(changes)
}

func (e *edge) Lease(until time.Time)  { e.mu.Lock(); e.lease = until; e.mu.Unlock() }
func (e *edge) Current(asOf time.Time) { e.mu.Lock(); e.asOf = asOf; e.mu.Unlock() }
func (e *edge) Broken()                {}

// mayAnswer reports whether the edge may answer from its copies, and what it
// knows of a key.
func (e *edge) mayAnswer(key string) (bool, kv.Version) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Before(e.lease), e.known[key]
}

// follow runs a follower until stop is called.
func follow(ctx context.Context, client *wire.Client, sink feed.Sink) (stop func(), f *feed.Follower) {
	ctx, cancel := context.WithCancel(ctx)
	f = feed.NewFollower(client, sink, nil)
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}, f
}

func TestChangesReachAFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		e, client := newEdge(), c.client("")
		stop, f := follow(ctx, client, e)
		defer stop()
		time.Sleep(time.Second)
		rec := record(1)
		if err := client.Put(ctx, k, rec); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, known := e.mayAnswer(k.Key); known != rec.Version {
			t.Errorf("a put is not known at once: %s", known)
		}
		time.Sleep(10 * feed.SessionLimit)
		if st := f.Status(); !st.Connected || time.Since(st.AsOf) > feed.HeartbeatEvery+feed.SessionLimit/1000 || st.Silences+st.Gaps+st.Gone > 0 {
			t.Errorf("after a long time of peace: %+v, current as of %s ago", st, time.Since(st.AsOf))
		}
	})
}

func TestCursorGoneCrosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		err := c.client("").Follow(ctx, kv.Cursor{Epoch: 12345, Seq: 1}, func(feed.Message) error { return nil })
		if !errors.Is(err, kv.ErrCursorGone) {
			t.Errorf("a cursor of another epoch: %v", err)
		}
		mine := errors.New("mine")
		if err := c.client("").Follow(ctx, kv.Cursor{}, func(feed.Message) error { return mine }); !errors.Is(err, mine) {
			t.Errorf("an error of the receiver: %v", err)
		}
	})
}

// A reader of the feed that hangs is dropped; others do not notice.
func TestHungReaderIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		e, client := newEdge(), c.client("")
		stop, f := follow(ctx, client, e)
		defer stop()
		conn, err := c.net.dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		body := "\x13\x00\x00\x00" + strings.Repeat("\x00", 16)
		if _, err := fmt.Fprintf(conn, "POST /wire/v1/feed HTTP/1.1\r\nHost: h\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n%s", authorization, len(body), body); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for range 40 {
			if err := client.Put(ctx, k, record(1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			if behind := time.Since(f.Status().AsOf); behind > 2*feed.HeartbeatEvery {
				t.Fatalf("another reader is %s behind", behind)
			}
		}
		text, err := io.ReadAll(conn) // what was written before the reader was dropped
		if len(text) > 0 && !strings.HasPrefix(string(text), "HTTP/1.1 200") {
			t.Errorf("the hung reader was given %q, %v", text, err)
		}
		if time.Since(begun) > 5*time.Second {
			t.Errorf("the connection lives %s later", time.Since(begun))
		}
	})
}

// Two processes of one point of presence: a write through one is answered when the
// other knows, and at the latest when the other may no longer answer.
func TestSharedPointOfPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		a, b := newEdge(), newEdge()
		clientA, clientB := c.client("here"), c.client("here")
		stopA, _ := follow(ctx, clientA, a)
		stopB, _ := follow(ctx, clientB, b)
		defer stopA()
		defer stopB()
		time.Sleep(time.Second)
		for range 100 {
			rec := record(1)
			begun := time.Now()
			if err := clientA.Put(ctx, k, rec); err != nil || time.Since(begun) > 0 {
				t.Fatalf("a put took %s, %v", time.Since(begun), err)
			}
			if may, known := b.mayAnswer(k.Key); !may || known != rec.Version {
				t.Fatalf("after a put through a, b may answer %v and knows %s of %s", may, known, rec.Version)
			}
			time.Sleep(7 * time.Millisecond)
		}
		many := []kv.Write{{Ref: kv.Ref{Key: "m1"}, Record: record(1)}, {Ref: kv.Ref{Key: "m2"}, Record: kv.Tombstone(record(2).Version)}}
		if err := clientB.PutMany(ctx, many); err != nil {
			t.Fatal(err)
		}
		for _, w := range many {
			if _, known := a.mayAnswer(w.Ref.Key); known != w.Record.Version {
				t.Errorf("after putting many, a knows %s of %s", known, w.Record.Version)
			}
		}
	})
}

func TestHungMemberCostsOneLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		a, b := newEdge(), newEdge()
		clientA, clientB := c.client("here"), c.client("here")
		stopA, _ := follow(ctx, clientA, a)
		stopB, fb := follow(ctx, clientB, b)
		defer stopA()
		defer stopB()
		time.Sleep(time.Second)
		b.hold = make(chan struct{}) // b stops when it is told, and acknowledges nothing
		rec := record(1)
		begun := time.Now()
		if err := clientA.Put(ctx, k, rec); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begun); d < feed.Lease-feed.HeartbeatEvery || d > feed.Lease+feed.LeaseSlack {
			t.Errorf("a put while another hangs took %s", d)
		}
		// It may have heard of the write by the feed before it was told.
		if may, known := b.mayAnswer(k.Key); may {
			t.Errorf("the hung one may answer, and knows %s", known)
		}
		begun = time.Now()
		// Rarely b was cut off before it was told, came back, and hangs only now.
		if err := clientA.Put(ctx, k, record(2)); err != nil || time.Since(begun) > feed.Lease+feed.LeaseSlack {
			t.Errorf("the next put took %s, %v", time.Since(begun), err)
		}
		close(b.hold)
		synctest.Wait()
		if may, known := b.mayAnswer(k.Key); may && known.Compare(rec.Version) < 0 {
			t.Errorf("the hung one may answer, and knows %s of %s", known, rec.Version)
		}
		time.Sleep(feed.SilentAfter + feed.Lease)
		if may, known := b.mayAnswer(k.Key); !may || known.Compare(rec.Version) < 0 {
			t.Errorf("the one that hung is back: may answer %v, knows %s; %+v", may, known, fb.Status())
		}
	})
}

// A write whose caller does not wait for as long as a lease is not acknowledged.
func TestDeadlineShorterThanALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		b := newEdge()
		stopB, _ := follow(ctx, c.client("here"), b)
		defer stopB()
		time.Sleep(time.Second)
		b.hold = make(chan struct{})
		defer close(b.hold)
		short, cancel := context.WithTimeout(ctx, feed.Lease/4)
		defer cancel()
		if err := c.client("here").Put(short, k, record(1)); !errors.Is(err, kv.ErrUnknown) {
			t.Errorf("a write that others do not know of: %v", err)
		}
	})
}

// A process that hangs ends neither a call nor a follower's patience.
func TestHungCentre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		c.net.hung.Store(true)
		begun := time.Now()
		if err := c.client("").Put(ctx, k, record(1)); !errors.Is(err, kv.ErrUnknown) || time.Since(begun) != wire.DefaultTimeout {
			t.Errorf("a write to a hung process took %s: %v", time.Since(begun), err)
		}
		stop, f := follow(ctx, c.client(""), newEdge())
		time.Sleep(feed.SilentAfter + time.Second)
		c.net.hung.Store(false)
		time.Sleep(2 * feed.SilentAfter)
		if st := f.Status(); st.Silences == 0 || !st.Connected {
			t.Errorf("after a hung process is back: %+v", st)
		}
		stop()
	})
}

// A process that is shut down ends its feeds, and followers are told at once.
func TestEndFeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		ended := make(chan error, 1)
		go func() { ended <- c.client("").Follow(ctx, kv.Cursor{}, func(feed.Message) error { return nil }) }()
		time.Sleep(time.Second)
		begun := time.Now()
		c.handler.EndFeeds()
		if err := <-ended; err == nil || time.Since(begun) != 0 {
			t.Errorf("a feed ended after %s, %v", time.Since(begun), err)
		}
	})
}

func TestSubscriptionsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, c := begin(t)
		inner := wire.NewHandler(wire.HandlerConfig{Store: c.store, Hub: c.hub, Secret: secret, Subscriptions: 2})
		n := newNetwork()
		server := &http.Server{Handler: inner}
		var wg sync.WaitGroup
		wg.Go(func() { _ = server.Serve(n) })
		client := wire.NewClient(wire.ClientConfig{URL: "http://centre", Secret: secret, Dial: n.dial})
		for range 2 {
			wg.Go(func() { _ = client.Follow(ctx, kv.Cursor{}, func(feed.Message) error { return nil }) })
		}
		time.Sleep(time.Second)
		if err := client.Follow(ctx, kv.Cursor{}, func(feed.Message) error { return nil }); !errors.Is(err, kv.ErrOverloaded) {
			t.Errorf("one reader of the feed more than there may be: %v", err)
		}
		if err := client.Put(ctx, k, record(1)); err != nil {
			t.Errorf("a call beside them: %v", err)
		}
		inner.EndFeeds()
		client.Close()
		_ = server.Close()
		wg.Wait()
	})
}
