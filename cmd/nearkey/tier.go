package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"time"

	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// openRegional opens a tier between two wires.
func (s *service) openRegional(ctx context.Context) error {
	client, err := s.client(s.config.Fleet.Far)
	if err != nil {
		return err
	}
	tier, hub := s.newTier(client, edge.Options{}), feed.NewHub(feed.HubOptions{})
	follower := feed.NewFollower(client, feed.NewRelay(tier, hub), s.logger)
	feedMetrics(s.metrics, follower)
	s.work = append(s.work, tier.Run, follower.Run)
	listener, err := s.listenAPI(ctx, maxConnections)
	if err != nil {
		return err
	}
	s.metrics.Build(buildVersion())
	s.enter(listener, httpServer{s.httpServer(health(s.farReady(follower), s.metrics)), nil})
	return s.openWire(ctx, tier, hub)
}

// openEdge opens a tier between the wire and the API.
func (s *service) openEdge(ctx context.Context) error {
	client, err := s.client(s.config.Fleet.Far)
	if err != nil {
		return err
	}
	forward, err := s.forward()
	if err != nil {
		return err
	}
	tier := s.newTier(client, edge.Options{Shared: bool(s.config.Fleet.PoPShared)})
	replica := catalog.NewReplica(tier, catalog.ReplicaOptions{MaxStale: tierStale(s.config)})
	rules := s.rules(uint16(rand.Uint32()))
	workers, err := s.openWorkers(ctx, tier, replica, nil, rules)
	if err != nil {
		return err
	}
	follower := feed.NewFollower(client, heard{Tier: tier, replica: replica, stamp: rules.Stamp, workers: workers}, s.logger)
	feedMetrics(s.metrics, follower)
	s.work = append(s.work, tier.Run, follower.Run)
	ready := s.farReady(follower)
	return s.openAPI(ctx, tier, replica, rest.Config{
		Authority: replica, Forward: forward, Rules: rules, Ready: ready,
	}, func(api http.Handler) http.Handler { return readiness{api, ready} })
}

// heard is the sink of an edge: the tier, those who rely on what the tier was
// told, and the clock by which the edge stamps. A write that is made by someone
// who has seen a change must be newer than it, whatever the clocks of the two
// machines say.
type heard struct {
	*edge.Tier
	replica *catalog.Replica
	stamp   *kv.Stamper
	workers *workers
}

// Changed implements feed.Sink.
func (h heard) Changed(changes []kv.Change) {
	h.Tier.Changed(changes)
	h.pass(changes)
}

// Told implements feed.ToldSink.
func (h heard) Told(changes []kv.Change) {
	h.Tier.Told(changes)
	h.pass(changes)
}

func (h heard) pass(changes []kv.Change) {
	h.replica.Changed(changes)
	h.workers.changed(changes)
	for i := range changes {
		h.stamp.Observe(changes[i].Version)
	}
}

// farReady tells whether a process that keeps nothing can serve: it has followed
// the centre, and not so long ago that its copies may not be used any more.
func (s *service) farReady(follower *feed.Follower) func() error {
	most := max(time.Duration(s.config.Fleet.MaxStale), time.Duration(s.config.Fleet.MaxAge))
	return func() error {
		asOf := follower.Status().AsOf
		switch age := time.Since(asOf); {
		case asOf.IsZero():
			return fmt.Errorf("%w: nothing was heard of the centre yet", kv.ErrUnavailable)
		case age > most:
			return fmt.Errorf("%w: nothing was heard of the centre for %s", kv.ErrUnavailable, age.Round(time.Second))
		}
		return nil
	}
}

// The bounds of what is forwarded to the centre, which answers at once or not.
const (
	forwardConnect     = 2 * time.Second
	forwardAnswer      = 30 * time.Second
	forwardIdle        = time.Minute
	forwardConnections = 64
)

// forward hands requests of the API to the centre.
func (s *service) forward() (http.Handler, error) {
	target, err := apiFarURL(s.config.Fleet.APIFar)
	if err != nil {
		return nil, usagef("setting fleet.api_far: %w", err)
	}
	return &httputil.ReverseProxy{
		Transport: s.apiTransport(),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				s.logger.WarnContext(r.Context(), "forward a request to the centre", "error", err)
			}
			w.WriteHeader(http.StatusBadGateway) // the API makes its own answer of it
		},
	}, nil
}

// apiTransport carries requests to the API of the centre.
func (s *service) apiTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: forwardConnect}).DialContext,
		TLSHandshakeTimeout: forwardConnect, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13},
		ResponseHeaderTimeout: forwardAnswer, IdleConnTimeout: forwardIdle,
		MaxConnsPerHost: forwardConnections, MaxIdleConnsPerHost: forwardConnections,
	}
}

// readiness is an API whose /readyz says why it is not ready: of an edge that is
// nothing that has to be kept in the log alone.
type readiness struct {
	inner http.Handler
	ready func() error
}

// ServeHTTP implements http.Handler.
func (h readiness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" && r.Method == http.MethodGet {
		answerHealth(w, h.ready())
		return
	}
	h.inner.ServeHTTP(w, r)
}

// health serves /healthz and /readyz to everyone, and /metrics to this machine.
func health(ready func() error, metrics *observe.Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, ready()) })
	scrape := metrics.Handler()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !peer.Addr().Unmap().IsLoopback() {
			http.Error(w, "metrics are for this machine", http.StatusForbidden)
			return
		}
		scrape.ServeHTTP(w, r)
	})
	return mux
}

func answerHealth(w http.ResponseWriter, err error) {
	status := struct {
		Status string `json:"status"`
		Reason string `json:"reason,omitempty"`
	}{Status: "ok"}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status.Status, status.Reason = "not ready", err.Error()
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(status) // a prober that is gone
}
