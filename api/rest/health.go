package rest

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// getHealth serves GET /healthz: the process lives.
func (s *Server) getHealth(_ context.Context, c *call) error {
	return c.send(http.StatusOK, typeJSON, []byte(`{"status":"ok"}`))
}

// getReady serves GET /readyz: the process can serve. Why it cannot is told as
// the kind of error alone; the rest is in the log.
func (s *Server) getReady(_ context.Context, c *call) error {
	err := s.ready()
	if err == nil {
		return c.send(http.StatusOK, typeJSON, []byte(`{"status":"ok"}`))
	}
	text := "not ready"
	for _, kind := range []error{kv.ErrFull, kv.ErrOverloaded, catalog.ErrUnavailable, kv.ErrUnavailable} {
		if errors.Is(err, kind) {
			text += ": " + kind.Error()
			break
		}
	}
	return later(http.StatusServiceUnavailable, text, err)
}

// getMetrics serves GET /metrics: to a peer on this machine, and to tokens that
// may read every account, as the numbers are of all of them.
func (s *Server) getMetrics(ctx context.Context, c *call) error {
	if !isLocal(c.r) {
		if err := s.authenticate(ctx, c); err != nil {
			return err
		}
		if err := s.mayReadAll(ctx, c); err != nil {
			return err
		}
	}
	c.status = http.StatusOK
	s.scrape.ServeHTTP(c.w, c.r)
	return nil
}

// mayReadAll checks that the grant may read every account.
func (s *Server) mayReadAll(ctx context.Context, c *call) error {
	const every = "" // as scopes have it
	if c.grant.Account(every, catalog.Read) {
		return nil
	}
	if s.catalog == nil {
		return errUnauthorized // which accounts there are is not known here
	}
	all, err := s.catalog.Accounts(ctx)
	if err != nil {
		return err
	}
	for _, a := range all {
		if !c.grant.Account(a.ID, catalog.Read) {
			return errUnauthorized
		}
	}
	return nil
}

// isLocal reports whether the peer is on the loopback interface, and is not a
// proxy that speaks for someone else.
func isLocal(r *http.Request) bool {
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "Cf-Connecting-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}
