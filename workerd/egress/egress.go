// Package egress is the only way out of a Worker: what workerd sends when a Worker
// calls fetch, opens a WebSocket or connects a socket, as HTTP/1.1 on a socket of our
// own. It decides where each may go, and goes there.
//
// A request says which Worker it comes from with a header that workerd adds and that
// the Worker cannot forge. A URL that another Worker of ours answers is answered here;
// a host that has an origin goes there; all else is looked up once, and only the
// addresses that were judged are dialled, whatever the name becomes later. What goes
// wrong is an answer with the status that Cloudflare has for it, and a text.
//
// It keeps connections, and nothing else; all of it can be lost, which costs what was
// under way.
package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/bounded"
)

// HeaderToken says which process of workerd a request comes from.
const HeaderToken = "X-NK-Token"

// Limits and waits, for a Config that leaves them zero.
const (
	DefaultConns          = 4096
	DefaultDialTimeout    = 10 * time.Second
	DefaultTLSTimeout     = 10 * time.Second
	DefaultAnswerTimeout  = 100 * time.Second
	DefaultBodyPause      = 5 * time.Minute
	DefaultConnIdle       = time.Minute
	DefaultMaxHeaderBytes = 256 << 10

	// MaxHops is how often a request may come by here.
	MaxHops = 16
	// serverIdle is far more than the 5 s after which workerd closes: we never first.
	serverIdle = 10 * time.Minute
	// headTimeout is for the head of a request from workerd.
	headTimeout = 10 * time.Second
	// maxIdle and maxIdlePerHost bound the connections that are kept for the next request.
	maxIdle        = 1024
	maxIdlePerHost = 64
)

// A Policy says what may be reached beside what is allowed by name or range.
type Policy string

// The policies. The empty one is Public.
const (
	Public Policy = "public" // what is in nobody's private, local or reserved range
	None   Policy = "none"
	All    Policy = "all"
)

// A Resolver finds the addresses of a name. *net.Resolver is one. It is called by
// many at once.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config is what a Server needs. Identify must be set. The functions are called by
// many at once.
type Config struct {
	// Identify finds the Worker that a request comes from. false: there is no such
	// process, and the request is answered with 403.
	Identify func(token string) (worker string, ok bool)

	// Peer finds the token of a process by its id, for what bears none: workerd adds no
	// header to connect(). false: there is no such process, and it is refused. nil, or
	// where the kernel does not tell: sockets are nobody's, and nothing is spent for them.
	Peer func(pid int) (token string, ok bool)

	// Spend is called once for every request, before anything is done. false: what
	// started it has had all that it may have, and it is answered with 429. nil: no limit.
	Spend func(token string) bool

	// Local finds the Worker of ours that answers a URL which the Worker from fetches,
	// by its host (as sent, with a port if there is one) and escaped path; nil: none
	// does, such as for a Worker's own routes. Local itself may be nil.
	Local func(ctx context.Context, scheme, host, path, from string) http.Handler

	// Origin tells where the server of a host lives, if the host has routes here. It is
	// reached wherever that is. May be nil.
	Origin func(host string) (*url.URL, bool)

	Policy     Policy
	Allow      []netip.Prefix // may be reached under every policy
	AllowHosts []string       // so may these, wherever they live: "api.internal", or "*.internal" for all below
	DenyHosts  []string       // under no policy, except for what is Local or has an Origin; written as AllowHosts

	Resolver Resolver       // nil: the system's
	Roots    *x509.CertPool // that certificates are verified against; nil: the system's

	MaxConns       int           // connections from workerd at once, more wait to be accepted; 0: DefaultConns
	MaxHeaderBytes int           // of a request's head and of an answer's; 0: DefaultMaxHeaderBytes
	DialTimeout    time.Duration // until a name is found and a connection is made; 0: DefaultDialTimeout
	TLSTimeout     time.Duration // for a handshake; 0: DefaultTLSTimeout
	AnswerTimeout  time.Duration // from the end of a request to the head of its answer; 0: DefaultAnswerTimeout
	BodyPause      time.Duration // the longest pause within the body of an answer, or for which a server takes nothing; 0: DefaultBodyPause
	ConnIdle       time.Duration // for which a connection is kept for the next request; 0: DefaultConnIdle

	Logger *slog.Logger // nil: none
}

func (c Config) withDefaults() Config {
	if c.Spend == nil {
		c.Spend = func(string) bool { return true }
	}
	if c.Local == nil {
		c.Local = func(context.Context, string, string, string, string) http.Handler { return nil }
	}
	if c.Origin == nil {
		c.Origin = func(string) (*url.URL, bool) { return nil, false }
	}
	if c.Policy == "" {
		c.Policy = Public
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	orElse(&c.MaxConns, DefaultConns)
	orElse(&c.MaxHeaderBytes, DefaultMaxHeaderBytes)
	orElse(&c.DialTimeout, DefaultDialTimeout)
	orElse(&c.TLSTimeout, DefaultTLSTimeout)
	orElse(&c.AnswerTimeout, DefaultAnswerTimeout)
	orElse(&c.BodyPause, DefaultBodyPause)
	orElse(&c.ConnIdle, DefaultConnIdle)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func orElse[N int | time.Duration](n *N, standard N) {
	if *n <= 0 {
		*n = standard
	}
}

// Stats are what happened since the server was made, and what is there now.
type Stats struct {
	Requests int64 // that came
	Local    int64 // that a Worker of ours answered
	Origins  int64 // that went to the origin of a host of ours
	Sockets  int64 // of connect() that were opened
	Denied   int64 // by the policy, or because nobody knows the token
	Spent    int64 // refused, because nothing was left to spend
	Failed   int64 // that were answered with an error of the way
	Conns    int64 // now
}

// Server passes on what workerd sends.
type Server struct {
	config  Config
	policy  policy
	http    *http.Server
	outside *http.Transport // dials what the policy allows
	origins *http.Transport // dials what the operator named: no connection is ever shared with outside
	proxy   *httputil.ReverseProxy
	killed  chan struct{} // closed when what is under way is to end
	kill    sync.Once
	conns   sync.WaitGroup // of connections, those that became something else included
	open    atomic.Int64   // the same as a number
	counts  counts
}

// counts are the parts of Stats that count up.
type counts struct {
	requests, local, origins, sockets, denied, spent, failed atomic.Int64
}

// New returns a server; it does nothing until Serve is called, once.
func New(config Config) *Server {
	config = config.withDefaults()
	s := &Server{
		config: config,
		policy: policy{kind: config.Policy, allow: plainPrefixes(config.Allow), allowHosts: config.AllowHosts, denyHosts: config.DenyHosts},
		killed: make(chan struct{}),
	}
	s.outside, s.origins = s.transport(s.dialOutside), s.transport(s.dialOrigin)
	s.proxy = s.newProxy()
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: headTimeout,
		IdleTimeout:       serverIdle,
		MaxHeaderBytes:    config.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(config.Logger.Handler(), slog.LevelWarn),
		ConnState:         s.connState,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },

		DisableGeneralOptionsHandler: true,
	}
	return s
}

// ErrClosed is what Serve returns after Shutdown or Close.
var ErrClosed = errors.New("egress: server closed")

// Serve accepts connections until the server is closed, or ctx ends, which closes it.
// When it returns all that was under way has ended. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	under, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	s.http.BaseContext = func(net.Listener) context.Context { return under }
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.killed:
			cancel() // ends what has taken over its connection, which http.Server forgets
		case <-under.Done():
		}
	})
	err := s.http.Serve(clients{bounded.New(l, s.config.MaxConns, s.config.Logger)})
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, http.ErrServerClosed):
		err = ErrClosed
	default:
		_ = s.Close()
		err = fmt.Errorf("accept from a Worker: %w", err)
	}
	s.conns.Wait()
	cancel()
	watch.Wait()
	s.outside.CloseIdleConnections()
	s.origins.CloseIdleConnections()
	return err
}

// A client is a connection from workerd.
type client struct {
	net.Conn
	taken atomic.Bool // a WebSocket or a socket has it: http.Server knows no more of it
}

type connKey struct{}

// CloseWrite tells workerd that no more comes.
func (c *client) CloseWrite() error {
	return closeWrite(c.Conn)
}

// connState counts connections: a new one begins before its goroutine does, and is
// closed when that ends, or when the request ends that took it over.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
		s.open.Add(1)
	case http.StateHijacked:
		c.(*client).taken.Store(true)
	case http.StateClosed:
		s.leave()
	}
}

func (s *Server) leave() {
	s.open.Add(-1)
	s.conns.Done()
}

// clients makes the connections that are accepted clients.
type clients struct{ net.Listener }

func (l clients) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &client{Conn: conn}, nil
}

// Shutdown lets what is under way come to its end, WebSockets and sockets included,
// and returns when the last connection is closed. When ctx ends it closes those that
// are left.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for err == nil && s.open.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = s.Close()
	}
	return err
}

// drainPoll is how often Shutdown looks whether sockets are left.
const drainPoll = 20 * time.Millisecond

// Close ends all that is under way.
func (s *Server) Close() error {
	s.kill.Do(func() { close(s.killed) })
	return s.http.Close()
}

// Stats returns what was counted.
func (s *Server) Stats() Stats {
	c := &s.counts
	return Stats{
		Requests: c.requests.Load(), Local: c.local.Load(), Origins: c.origins.Load(), Sockets: c.sockets.Load(),
		Denied: c.denied.Load(), Spent: c.spent.Load(), Failed: c.failed.Load(), Conns: s.open.Load(),
	}
}
