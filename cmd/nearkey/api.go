package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/api/hot"
	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// openAPI opens the API before a tier, with the hot path in front of it. around,
// unless nil, wraps the API.
func (s *service) openAPI(ctx context.Context, tier *edge.Tier, authority authority, config rest.Config, around func(http.Handler) http.Handler) error {
	config.Store, config.Logger, config.Metrics = tier, s.logger, s.metrics
	config.BodyBytes, config.Version, config.MaxAge = s.memory.door, buildVersion(), time.Duration(s.config.Fleet.MaxAge)
	listener, err := s.listenAPI(ctx, 0)
	if err != nil {
		return err
	}
	var api http.Handler = rest.New(config)
	if around != nil {
		api = around(api)
	}
	expired := &expired{inner: api}
	requests, cache := s.metrics.Requests("rest"), s.metrics.Cache("rest")
	server := hot.New(hot.Config{
		HTTP: s.httpServer(expired), Values: tier, Rights: rights{authority},
		MaxAge: config.MaxAge, Told: hot.CacheHeaders, Logger: s.logger,
		Served: func(ns kv.NamespaceID, bytes int, took time.Duration) {
			requests.Count(ns, observe.OpGet, observe.Hit, took)
			cache.Count(kv.Hit)
			s.metrics.Read(int64(bytes))
		},
	})
	hotMetrics(s.metrics, server)
	s.metrics.Counter("nearkey_kv_cache_expired_total", "Misses of what was near, but too old or superseded.",
		func() float64 { return float64(expired.count.Load()) })
	s.enter(listener, server)
	s.workers.enter()
	return nil
}

// httpServer is the HTTP server of a handler, with what it has to say in the log.
func (s *service) httpServer(handler http.Handler) *http.Server {
	server := rest.HTTPServer(handler)
	server.ErrorLog = slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn)
	return server
}

// authority knows whose a token is and which namespaces exist. Epoch changes when
// what it answered may no longer be so.
type authority interface {
	Authenticate(ctx context.Context, token string) (catalog.Grant, error)
	Namespace(ctx context.Context, accountID string, id kv.NamespaceID) (catalog.Namespace, error)
	Epoch() uint64
}

// rights tell the hot path what a token may read.
type rights struct{ authority }

// errNoRight: the handler finds out again, and says why.
var errNoRight = errors.New("the token gives no right to the namespace")

// Read implements hot.Authorizer.
func (r rights) Read(ctx context.Context, token, accountID string, ns kv.NamespaceID) (hot.Right, error) {
	grant, err := r.Authenticate(ctx, token)
	if err != nil {
		return hot.Right{}, err
	}
	right := hot.Right{Until: grant.Token.Expires}
	for _, scope := range grant.Scopes {
		if (catalog.Grant{Scopes: []catalog.Scope{scope}}).Namespace(accountID, ns, catalog.Read) {
			right.Prefixes = append(right.Prefixes, scope.Prefix)
		}
	}
	if len(right.Prefixes) == 0 {
		return hot.Right{}, errNoRight
	}
	_, err = r.Namespace(ctx, accountID, ns)
	return right, err
}

// expired counts the answers of an API that a tier had, but too old.
type expired struct {
	inner http.Handler
	count atomic.Uint64
}

// ServeHTTP implements http.Handler.
func (e *expired) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.inner.ServeHTTP(w, r)
	if kv.CacheStatus(w.Header().Get("Cf-Cache-Status")) == kv.Expired {
		e.count.Add(1)
	}
}
