// Package rest speaks Cloudflare's v4 dialect of HTTP, so that wrangler, the SDKs,
// Terraform and curl work against nearkey with nothing changed but the base URL.
//
// It routes on the path as it was sent: no cleaning, no redirects; a key is all
// that follows /values/ or /metadata/, decoded once. The rules of the product are
// kv.Namespace's; this package turns their errors into the codes and words of the
// real service. All bytes of values that requests hold at once pass one door,
// which is what bounds the memory of the process.
//
// Before a tier (package edge) a GET of a value or its metadata tells with
// CF-Cache-Status and Age how the tier came by the answer and how old it is.
// Readers may say how old it may be: see freshness.go.
//
// On an edge, which has no catalog, requests about keys and values are answered
// with the rights and namespaces that an Authority knows, and all others go, as
// they are, to a server that has one.
//
// A version of a Worker is started once by Workers.Check, whole, before anything of
// it is stored: one that does not start changes nothing. Modules then go to the
// store, and at last one transaction of the catalog makes the version; another
// change that comes between has all of it begin anew. Secrets are sealed before
// they leave this package and are in no answer.
//
// Beside the dialect it serves /healthz (the process lives), /readyz (it can
// serve) and /metrics. /metrics asks no credentials of a peer on the loopback
// interface that no proxy speaks for; everyone else needs a token that may read
// every account.
//
// Codes. Where the code of the real service is not known, these are used:
// 10022 for a key and for too many items, 10024 for a value, 10030 for metadata,
// 10012 for anything else that is wrong with a request, 10018 for too many
// namespaces, 10035 for a title that is too long, 10429 for the write rate, 1001
// for a token that cannot be made, 1003 for one that does not exist, 7010 for
// what may succeed later; of Workers 10020 for a route that is taken, 10037 for too
// many of anything, 10064 for a Worker that others are bound to, 1061 for a zone of
// another account.
//
// The package keeps nothing but requests under way, and may lose them: a client
// that got no answer repeats its request.
package rest

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// DefaultBodyBytes is the door of a Config that names none.
const DefaultBodyBytes = 128 << 20

// Authority knows whose request it is, what they may do, and which namespaces
// exist: what every request about values and keys needs. *catalog.Catalog and
// *catalog.Replica are authorities; each says how old its answers may be. All
// methods may be called at once. What they return is shared and must not be
// changed.
type Authority interface {
	Authenticate(ctx context.Context, token string) (catalog.Grant, error)
	AuthenticateKey(ctx context.Context, email, key string) (catalog.Grant, error)
	Namespace(ctx context.Context, accountID string, id kv.NamespaceID) (catalog.Namespace, error)
}

// Config says what a Server stands on. Store, Rules, and Catalog or Authority must
// be set.
type Config struct {
	Store     kv.Store
	Catalog   *catalog.Catalog // nil, on an edge: requests about what is in it go to Forward
	Authority Authority        // nil: Catalog
	Forward   http.Handler     // a server with a catalog; nil: there is none
	Rules     *kv.Rules

	// MaxAge is the staleness that readers of values and metadata accept who do not
	// say otherwise. It makes a difference if Store is a tier.
	MaxAge time.Duration

	Logger  *slog.Logger     // nil: nothing is logged
	Metrics *observe.Metrics // nil: none
	Ready   func() error     // for /readyz; nil: always ready
	Dropped func()           // called after a namespace was deleted; nil: nothing

	// BodyBytes is the door: the bytes of values that all requests together may
	// hold; 0: DefaultBodyBytes. A request that needs more than the whole door is
	// refused for good, so a door under 128 MiB refuses some bulk writes of legal
	// size, one under 48 MiB some values that are sent without their length, and one
	// of 128 MiB no Worker of legal size.
	BodyBytes int64

	Workers *Workers // nil: there is nothing at the paths of Workers

	Namespaces int    // most namespaces of an account; 0: no limit
	Version    string // of the binary
}

// Server serves the API. It is an http.Handler.
type Server struct {
	store      kv.Store
	catalog    *catalog.Catalog // nil: an edge
	authority  Authority
	forward    http.Handler
	rules      *kv.Rules
	accepts    time.Duration // the staleness that readers accept
	log        *slog.Logger
	metrics    *observe.Metrics
	requests   *observe.Requests
	cache      *observe.Cache
	scrape     http.Handler
	ready      func() error
	dropped    func()
	door       *door
	workers    *workers // nil: none
	namespaces int
	endpoints  endpoints
	unrouted   operation
	buffers    sync.Pool // of *[]byte
}

// New returns a Server. It starts nothing.
func New(cfg Config) *Server {
	if cfg.BodyBytes == 0 {
		cfg.BodyBytes = DefaultBodyBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Dropped == nil {
		cfg.Dropped = func() {}
	}
	if cfg.Authority == nil {
		cfg.Authority = cfg.Catalog
	}
	s := &Server{
		store:      cfg.Store,
		catalog:    cfg.Catalog,
		authority:  cfg.Authority,
		forward:    cfg.Forward,
		rules:      cfg.Rules,
		accepts:    cfg.MaxAge,
		log:        cfg.Logger,
		metrics:    cfg.Metrics,
		requests:   cfg.Metrics.Requests("rest"),
		cache:      cfg.Metrics.Cache("rest"),
		scrape:     cfg.Metrics.Handler(),
		ready:      cfg.Ready,
		dropped:    cfg.Dropped,
		door:       &door{size: cfg.BodyBytes},
		workers:    newWorkers(cfg.Workers),
		namespaces: cfg.Namespaces,
		endpoints:  newEndpoints(),
	}
	cfg.Metrics.Build(cfg.Version)
	cfg.Metrics.Gauge("nearkey_door_bytes", "Bytes of values that requests hold at this moment.",
		func() float64 { return float64(s.door.held.Load()) })
	cfg.Metrics.Gauge("nearkey_door_limit_bytes", "Bytes of values that all requests together may hold.",
		func() float64 { return float64(s.door.size) })
	return s
}

// call is one request on its way through the server.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	began time.Time
	id    string

	route route
	op    *operation
	grant catalog.Grant
	space kv.NamespaceID // known to exist and to be open to the grant; else zero
	keys  []string       // of the request, or the prefix of a listing; kept out of the log

	hold hold
	body body

	status int   // of the answer; 0: not begun
	sent   int64 // bytes of the answer's body
	code   int   // of the first error in the answer
	cause  error // what is behind an answer of 500 and up

	oneKey [1]string // backs keys
	// They back headers.
	idHeader, lengthHeader, ageHeader, cacheHeader [1]string
}

func (c *call) ns(s *Server) kv.Namespace { return kv.NewNamespace(s.store, c.space, s.rules) }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r, began: time.Now(), op: &s.unrouted}
	c.hold.door = s.door
	c.body.begin(c)
	if c.id = r.Header.Get("X-Request-Id"); !observe.SaneRequestID(c.id) {
		c.id = observe.NewRequestID()
	}
	c.idHeader[0] = c.id
	w.Header()["X-Request-Id"] = c.idHeader[:]
	defer s.end(c)

	ctx := observe.WithRequestID(r.Context(), c.id)
	if err := s.serve(ctx, c); err != nil {
		s.fail(ctx, c, err)
	}
}

// serve finds the operation that a request asks for, and its right to it.
func (s *Server) serve(ctx context.Context, c *call) error {
	path := sentPath(c.r.URL)
	var ok bool
	if c.route, ok = parseRoute(path); !ok {
		if product := otherProduct(path); product != "" {
			return noProduct(product)
		}
		return noRoute(path)
	}
	if s.catalog == nil && c.route.kind.ofCatalog() {
		return s.passOn(ctx, c)
	}
	if s.workers == nil && c.route.kind.ofWorkers() {
		return noRoute(path)
	}
	op := s.endpoints[c.route.kind].operation(c.r.Method)
	if op == nil {
		return s.endpoints[c.route.kind].notAllowed(c)
	}
	c.op = op
	if op.access != accessOpen {
		if err := s.authenticate(ctx, c); err != nil {
			return err
		}
		if err := s.authorize(ctx, c); err != nil {
			return err
		}
	}
	return op.serve(s, ctx, c)
}

// end closes the books of a request, whatever became of it.
func (s *Server) end(c *call) {
	if p := recover(); p != nil {
		s.panicked(c, p)
	}
	c.hold.close()
	took := time.Since(c.began)
	result := c.result()
	s.requests.Count(c.space, c.op.metric, result, took)
	if reason := observe.Rejection(c.status); reason != "" {
		s.metrics.Rejected(reason)
	}
	s.logEnd(c, took)
	if p := c.aborted(); p != nil {
		panic(p)
	}
}

// result is what came of a request, for the metrics.
func (c *call) result() observe.Result {
	switch {
	case c.status == statusCanceled:
		return observe.Canceled
	case c.status < 300 && (c.op.metric == observe.OpGet || c.op.metric == observe.OpMetadata):
		return observe.Hit
	case c.status == http.StatusNotFound && c.code == codeKeyNotFound:
		return observe.Miss
	}
	return observe.ResultOf(c.status)
}

// statusCanceled stands for no answer at all: the client went away.
const statusCanceled = 499

// aborted is the panic by which net/http is told to cut the connection: an
// answer that was begun cannot be finished, and must not look finished.
func (c *call) aborted() any {
	if c.status == statusAborted {
		return http.ErrAbortHandler
	}
	return nil
}

const statusAborted = 599

// isCanceled reports whether the client went away, which is nobody's fault.
func (c *call) isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) && c.r.Context().Err() != nil
}
