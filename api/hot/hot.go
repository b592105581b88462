// Package hot answers the request that is asked most, a GET of a value that is
// near, for what the kernel charges: one read, one write, no allocation.
//
// It stands before net/http on the same connections. Its reader is strict: it
// takes a request only if it understands every byte of it, and the answer is, but
// for what differs between any two answers, the one that the HTTP server's handler
// would give. A request that it understands but cannot answer from near memory is
// answered by that handler, on the connection's own goroutine, and the connection
// stays. With anything else the connection is given to the HTTP server, together
// with the bytes already read, and does not come back. When in doubt it is given
// away: that costs microseconds, a wrong guess is request smuggling.
//
// On a connection, idle time, the time of a head, the time of a write and the
// number of connections are bounded as the HTTP server bounds them.
//
// The package keeps rights of tokens for RightFor, counters, and requests under
// way, and may lose them all: a client that got no answer repeats its request.
package hot

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Values is the memory next to the reader.
//
// Near returns the record of a key if a copy is at hand that is no staler than
// maxAge, and its age; it does not block, and keeps nothing of key. The record is
// never changed afterwards. Near may be called from many goroutines at once.
type Values interface {
	Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (rec *kv.Record, age time.Duration, ok bool)
}

// Authorizer knows what the holder of a token may read.
//
// Read returns the right to a namespace that exists in the account. An error means
// that the token gives no such right, or that it is not known: the handler then
// finds out what to answer. Epoch changes, before the change is acknowledged,
// whenever a right that Read has told may have ended; it is asked with every
// request and must not block. Both may be called from many goroutines at once.
type Authorizer interface {
	Read(ctx context.Context, token, accountID string, ns kv.NamespaceID) (Right, error)
	Epoch() uint64
}

// Right is what a token may read in a namespace: the keys that begin with one of
// Prefixes, of which the empty one stands for all keys.
type Right struct {
	Prefixes []string
	Until    time.Time // when it ends by itself; zero: it does not
}

// DefaultConnections is the limit of a Config that names none.
const DefaultConnections = 16384

// Config says what a Server stands on. HTTP, Values and Rights must be set.
type Config struct {
	// HTTP gets the connections that the strict reader gives away, and its handler
	// the requests that are not near. Its ReadHeaderTimeout, IdleTimeout,
	// WriteTimeout and ErrorLog hold here as well. The Server takes it over: it
	// serves and ends it, and chains its ConnState.
	HTTP   *http.Server
	Values Values
	Rights Authorizer

	// MaxAge is the staleness that a reader accepts: what the handler asks for.
	MaxAge time.Duration
	// Told appends the header lines that the handler's answers carry because they
	// come from near memory; they must sort before Content-Length. nil: none.
	Told func(dst []byte, age time.Duration) []byte
	// Served is told of every answer that was given from near; nil: nobody is.
	Served func(ns kv.NamespaceID, bytes int, took time.Duration)
	// Connections is how many may be open at once, those that were given away
	// included; 0: DefaultConnections. Further ones wait to be accepted.
	Connections int
	// Logger is the handler's. While it is enabled for Debug the handler answers
	// every request, so that each has its line. nil: nothing is logged.
	Logger *slog.Logger
}

// Server accepts connections and answers what it understands.
type Server struct {
	http   *http.Server
	values Values
	auth   Authorizer
	maxAge time.Duration
	told   func(dst []byte, age time.Duration) []byte
	served func(ns kv.NamespaceID, bytes int, took time.Duration)
	log    *slog.Logger
	rights rights
	date   date
	stats  stats
	slots  chan struct{} // one token for each open connection
	coarse time.Duration // how exactly deadlines of idle connections are kept

	heads   sync.Pool // of *[headBytes]byte
	batches sync.Pool // of *batch

	closing atomic.Bool   // no request is begun any more
	stop    chan struct{} // closed with it

	mu        sync.Mutex // guards the rest
	listeners map[net.Listener]context.CancelFunc
	conns     map[*conn]struct{}
	given     map[net.Conn]http.ConnState // to the HTTP server
	changed   chan struct{}               // closed when conns or given change; nil: nobody waits
	serving   sync.WaitGroup              // the HTTP server's Serve, for each listener
}

// New returns a Server. It starts nothing.
func New(cfg Config) *Server {
	if cfg.Connections == 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		http:      cfg.HTTP,
		values:    cfg.Values,
		auth:      cfg.Rights,
		maxAge:    cfg.MaxAge,
		told:      cfg.Told,
		served:    cfg.Served,
		log:       cfg.Logger,
		stats:     newStats(runtime.GOMAXPROCS(0)),
		slots:     make(chan struct{}, cfg.Connections),
		coarse:    coarse(cfg.HTTP.IdleTimeout, cfg.HTTP.WriteTimeout),
		stop:      make(chan struct{}),
		listeners: map[net.Listener]context.CancelFunc{},
		conns:     map[*conn]struct{}{},
		given:     map[net.Conn]http.ConnState{},
	}
	s.heads.New = func() any { return new([headBytes]byte) }
	s.batches.New = func() any { return &batch{out: make([]byte, 0, batchBytes)} }
	inner := cfg.HTTP.ConnState
	cfg.HTTP.ConnState = func(c net.Conn, state http.ConnState) {
		if inner != nil {
			inner(c, state)
		}
		s.moved(c, state)
	}
	return s
}

// maxCoarse is how much longer than it must a connection may be idle or write:
// its deadlines are moved only so often.
const maxCoarse = time.Second

func coarse(timeouts ...time.Duration) time.Duration {
	least := maxCoarse
	for _, t := range timeouts {
		if t > 0 {
			least = min(least, t/8)
		}
	}
	return least
}
