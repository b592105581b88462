// Package cache is the server behind the Cache API of Workers: what workerd sends
// when a Worker calls match, put or delete of caches.default or of a named cache, as
// HTTP/1.1 on a socket of our own. It is a shared cache by the rules of RFC 9111,
// with conditions and ranges by RFC 9110, and nothing stale ever leaves it.
//
// A request says which Worker it comes from with a header that workerd adds and that
// the Worker cannot forge; workers of one scope share what they cache, and no others
// see it. Responses live in memory, in one number of bytes for all: what is read most
// stays, however much else is put. It is the cache of one point of presence and knows
// nothing of others; whatever is in it can be lost at any time.
package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/bounded"
)

// HeaderToken says which process of workerd a request comes from.
const HeaderToken = "X-NK-Token"

// Limits and waits, for a Config that leaves them zero.
const (
	DefaultBytes     = 256 << 20
	DefaultMaxObject = 64 << 20
	DefaultConns     = 4096
)

// Config is what a Server needs. Identify must be set.
type Config struct {
	// Identify finds whose cache a request is for by its token: Workers with the same
	// scope share it. It is called for every request, concurrently. false: there is no
	// such process, and the request is answered with 403.
	Identify func(token string) (scope string, ok bool)

	// Spend is called once for every operation, before anything is done, and may be
	// called by many at once. false: what started the operation has had all that it may
	// have, and it is answered with 429. nil: no limit.
	Spend func(token string) bool

	Bytes     int64 // of all that is kept, heads and keys included; 0: DefaultBytes
	MaxObject int64 // the greatest body that is kept, at most a quarter of Bytes; 0: DefaultMaxObject
	HeldBytes int64 // of what is being received, beside Bytes; 0: twice MaxObject
	MaxConns  int   // connections at once, more wait to be accepted; 0: DefaultConns

	HeadTimeout time.Duration // for the head of a request; 0: 10 s
	BodyPause   time.Duration // the longest pause within a body; 0: 30 s
	BodyTimeout time.Duration // for a whole body; 0: 5 min
	WriteTime   time.Duration // for each MiB of an answer; 0: 1 min
	IdleTimeout time.Duration // between requests: workerd closes after 5 s, we never first; 0: 10 min

	Now    func() time.Time
	Logger *slog.Logger // nil: none
}

func (c Config) withDefaults() Config {
	if c.Spend == nil {
		c.Spend = func(string) bool { return true }
	}
	if c.Bytes <= 0 {
		c.Bytes = DefaultBytes
	}
	if c.MaxObject <= 0 {
		c.MaxObject = DefaultMaxObject
	}
	c.MaxObject = min(c.MaxObject, c.Bytes/4)
	if c.HeldBytes <= 0 {
		c.HeldBytes = 2*c.MaxObject + 2*maxHead
	}
	if c.MaxConns <= 0 {
		c.MaxConns = DefaultConns
	}
	orElse(&c.HeadTimeout, 10*time.Second)
	orElse(&c.BodyPause, 30*time.Second)
	orElse(&c.BodyTimeout, 5*time.Minute)
	orElse(&c.WriteTime, time.Minute)
	orElse(&c.IdleTimeout, 10*time.Minute)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func orElse(d *time.Duration, standard time.Duration) {
	if *d <= 0 {
		*d = standard
	}
}

// Stats are what happened since the server was made, and what is there now.
type Stats struct {
	Hits, Misses    int64 // of match; Misses with those that found only what was stale
	NotModified     int64 // hits that were answered with 304
	Partial         int64 // hits that were answered with 206
	Stored          int64 // of put
	Refused         int64 // of put: by the rules of HTTP
	TooLarge        int64 // of put: beyond MaxObject
	NoRoom          int64 // of put: too much was being received, or all that is kept was being read
	Incomplete      int64 // of put: cut off, or no HTTP
	Purged, Unknown int64 // of delete: there was one, or none
	Denied          int64 // no token that is known, or nothing left to spend
	Evicted         int64 // entries that went for others
	Expired         int64 // entries that were found to be stale
	Entries         int64 // now
	Bytes           int64 // now, of Config.Bytes
	Held            int64 // now, of Config.HeldBytes
	Conns           int64 // now
}

// Server answers what workerd sends for the Cache API.
type Server struct {
	config  Config
	store   *store
	http    *http.Server
	readers readers
	held    atomic.Int64
	conns   atomic.Int64
	wait    sync.WaitGroup // of connections
	counts  counts
}

// counts are the parts of Stats that count up.
type counts struct {
	hits, misses, notModified, partial, stored, refused, tooLarge, noRoom, incomplete, purged, unknown, denied atomic.Int64
}

// New returns a server; it does nothing until Serve is called.
func New(config Config) *Server {
	config = config.withDefaults()
	s := &Server{
		config: config,
		store:  newStore(config.Bytes),
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: config.HeadTimeout,
		IdleTimeout:       config.IdleTimeout,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          slog.NewLogLogger(config.Logger.Handler(), slog.LevelWarn),
		ConnState:         s.connState,
	}
	return s
}

// connState counts connections: a new one begins before its goroutine does, and is
// closed when that ends.
func (s *Server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.wait.Add(1)
		s.conns.Add(1)
	case http.StateClosed:
		s.conns.Add(-1)
		s.wait.Done()
	}
}

// ErrClosed is what Serve returns after Shutdown or Close.
var ErrClosed = errors.New("cache: server closed")

// Serve accepts connections until the server is closed, or ctx ends, which closes it.
// When it returns the requests that were under way have ended. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err := s.http.Serve(bounded.New(l, s.config.MaxConns, s.config.Logger))
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, http.ErrServerClosed):
		err = ErrClosed
	default:
		_ = s.Close()
		err = fmt.Errorf("accept from a Worker: %w", err)
	}
	s.wait.Wait()
	return err
}

// Shutdown lets requests under way be answered, and returns when the last
// connection is closed. When ctx ends it closes those that are left.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	return err
}

// Close closes all connections.
func (s *Server) Close() error {
	return s.http.Close()
}

// Stats returns what was counted.
func (s *Server) Stats() Stats {
	c := &s.counts
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), NotModified: c.notModified.Load(), Partial: c.partial.Load(),
		Stored: c.stored.Load(), Refused: c.refused.Load(), TooLarge: c.tooLarge.Load(), NoRoom: c.noRoom.Load(), Incomplete: c.incomplete.Load(),
		Purged: c.purged.Load(), Unknown: c.unknown.Load(), Denied: c.denied.Load(),
		Evicted: s.store.evicted.Load(), Expired: s.store.expired.Load(),
		Entries: s.store.entries(), Bytes: s.store.used.Load(), Held: s.held.Load(), Conns: s.conns.Load(),
	}
}

// hold is what a request holds in memory while it is received.
type hold struct {
	server *Server
	bytes  int64
}

// use adds n bytes; false: all may not hold so much together, and none were added.
func (h *hold) use(n int64) bool {
	if h.server.held.Add(n) > h.server.config.HeldBytes {
		h.server.held.Add(-n)
		return false
	}
	h.bytes += n
	return true
}

func (h *hold) free() {
	h.server.held.Add(-h.bytes)
	h.bytes = 0
}
