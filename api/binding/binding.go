// Package binding is the server behind the KV binding of a Worker: what workerd
// sends when a Worker calls env.KV.get, put, delete or list, as HTTP/1.1 on a
// socket of our own. The loop is written by hand, because workerd makes the text
// of an error from the reason phrase, which net/http cannot set, and because most
// requests are a GET of a value that is near.
//
// A request says which binding it comes from with two headers that workerd adds
// and that a Worker cannot forge. It keeps nothing: losing it costs the requests
// that are under way, of which a put may have been done.
package binding

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// The headers that say which binding a request comes from.
const (
	HeaderBinding = "X-NK-NS"
	HeaderToken   = "X-NK-Token"
)

// Near answers from memory, as edge.Tier does: it never waits. The record is not
// the caller's to change. It may be called at any time.
type Near interface {
	Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (rec *kv.Record, age time.Duration, ok bool)
}

// Space is the namespace behind a binding.
type Space struct {
	ID kv.NamespaceID
	kv.Namespace
}

// Config is what a Server needs. Identify and Limits must be set.
type Config struct {
	// Identify finds the namespace of a request by its headers; it is called for
	// every request, concurrently. An error that is no kv.ErrUnavailable is answered
	// with 403.
	Identify func(token, binding string) (Space, error)

	// Spend is called once for every operation, a bulk get included, before anything
	// is done, and may be called by many at once. false: what started the operation
	// has had all that it may have, and it is answered with 429. nil: no limit.
	Spend func(token string) bool

	Limits  kv.Limits        // those of the namespaces
	Near    Near             // nil: every read goes through the namespace
	MaxAge  time.Duration    // the staleness that a get without cacheTtl accepts
	Logger  *slog.Logger     // nil: none
	Metrics *observe.Metrics // nil: none

	MaxConns  int   // connections at once, more wait to be accepted; 0: 4096
	HeldBytes int64 // of bodies and large values in memory at once; 0: 256 MiB

	HeadTimeout time.Duration // from the first byte of a head to its last; 0: 10 s
	BodyPause   time.Duration // the longest pause within a body; 0: 30 s
	BodyTimeout time.Duration // for a whole body; 0: 5 min
	WriteTime   time.Duration // for writing an answer; 0: 1 min
	IdleTimeout time.Duration // between requests: workerd closes after 5 s, we never first; 0: 10 min
	Timeout     time.Duration // for an operation of the store; 0: 30 s
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Spend == nil {
		c.Spend = func(string) bool { return true }
	}
	if c.MaxConns <= 0 {
		c.MaxConns = 4096
	}
	if c.HeldBytes <= 0 {
		c.HeldBytes = 256 << 20
	}
	orElse(&c.HeadTimeout, 10*time.Second)
	orElse(&c.BodyPause, 30*time.Second)
	orElse(&c.BodyTimeout, 5*time.Minute)
	orElse(&c.WriteTime, time.Minute)
	orElse(&c.IdleTimeout, 10*time.Minute)
	orElse(&c.Timeout, 30*time.Second)
	return c
}

func orElse(d *time.Duration, standard time.Duration) {
	if *d <= 0 {
		*d = standard
	}
}

// ErrClosed is what Serve returns after Shutdown or Close.
var ErrClosed = errors.New("binding: server closed")

// Server answers what workerd sends for KV bindings.
type Server struct {
	config   Config
	requests *observe.Requests
	cache    *observe.Cache

	held    atomic.Int64 // bytes of bodies and large values
	closing atomic.Bool
	slots   chan struct{} // one for each connection
	ended   chan struct{} // closed when closing begins

	mu        sync.Mutex // guards listeners and conns
	listeners map[net.Listener]bool
	conns     map[*conn]bool
	wait      sync.WaitGroup // of connections; added to under mu, while not closing
}

// New returns a server; it does nothing until Serve is called.
func New(config Config) *Server {
	config = config.withDefaults()
	return &Server{
		config:    config,
		requests:  config.Metrics.Requests("binding"),
		cache:     config.Metrics.Cache("binding"),
		slots:     make(chan struct{}, config.MaxConns),
		ended:     make(chan struct{}),
		listeners: map[net.Listener]bool{},
		conns:     map[*conn]bool{},
	}
}

// acceptPause is waited after an accept that failed, such as for want of files.
const acceptPause = 20 * time.Millisecond

// Serve accepts connections until the server or the listener is closed, or ctx
// ends, with which operations that are under way end as well. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listeners[l] = true
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, l)
	}()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.ended:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
		raw, err := l.Accept()
		if err == nil {
			s.start(ctx, raw)
			continue
		}
		<-s.slots
		switch {
		case s.closing.Load():
			return ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept from a Worker: %w", err)
		}
		s.config.Logger.WarnContext(ctx, "accept from a Worker", "error", err)
		select {
		case <-time.After(acceptPause):
		case <-s.ended:
		case <-ctx.Done():
		}
	}
}

func (s *Server) start(ctx context.Context, raw net.Conn) {
	c := &conn{server: s, net: raw}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		_ = raw.Close()
		<-s.slots
		return
	}
	s.conns[c] = true
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		defer s.forget(c)
		c.run(ctx)
	}()
}

func (s *Server) forget(c *conn) {
	_ = c.net.Close()
	<-s.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// close stops accepting and closes connections: all, or those between requests.
func (s *Server) close(all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing.Swap(true) {
		close(s.ended)
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		if all || c.state.CompareAndSwap(idle, closed) {
			_ = c.net.Close()
		}
	}
}

// Shutdown lets requests under way be answered, and returns when the last
// connection is closed. When ctx ends it closes those that are left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.close(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wait.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.close(true)
		return ctx.Err()
	}
}

// Close closes all connections.
func (s *Server) Close() error {
	s.close(true)
	return nil
}

// hold is what a request holds in memory, of what all may hold together.
type hold struct {
	server *Server
	bytes  int64
}

// use adds n bytes, or fails with kv.ErrOverloaded and adds none.
func (h *hold) use(n int64) error {
	if h.server.held.Add(n) > h.server.config.HeldBytes {
		h.server.held.Add(-n)
		return fmt.Errorf("hold %d bytes more: %w", n, kv.ErrOverloaded)
	}
	h.bytes += n
	return nil
}

func (h *hold) free() {
	h.server.held.Add(-h.bytes)
	h.bytes = 0
}
