package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/internal/bounded"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/wire"
)

// The bounds of connections of the wire. The handler bounds calls by their
// deadlines; an idle connection outlives the time after which its client would
// give it up, so that no call meets a connection that has just been closed.
const (
	wireHeaderTimeout = 10 * time.Second
	wireIdleTimeout   = 3 * time.Minute
	wireHeaderBytes   = 8 << 10
)

// openWire opens the wire before a tier: its store, and the feed of a hub.
func (s *service) openWire(ctx context.Context, store kv.Store, hub *feed.Hub) error {
	secret, err := s.secret()
	if err != nil {
		return err
	}
	listener, err := s.listenWire(ctx)
	if err != nil {
		return err
	}
	handler := wire.NewHandler(wire.HandlerConfig{Store: store, Hub: hub, Secret: secret, Logger: s.logger, BodyBytes: s.memory.wire})
	counted := &calls{inner: handler}
	wireMetrics(s.metrics, counted)
	server := s.httpServer(counted)
	server.ReadHeaderTimeout, server.IdleTimeout, server.MaxHeaderBytes = wireHeaderTimeout, wireIdleTimeout, wireHeaderBytes
	server.ReadTimeout, server.WriteTimeout = 0, 0 // the handler sets them by the deadline of each call
	s.enter(listener, httpServer{server, handler.EndFeeds})
	return nil
}

// secret is what the processes of the fleet share, or nil.
func (s *service) secret() ([]byte, error) {
	if s.config.Fleet.SecretFile == "" {
		return nil, nil
	}
	secret, err := wire.ReadSecret(s.config.Fleet.SecretFile)
	if err != nil {
		return nil, usagef("setting fleet.secret_file: %w", err)
	}
	return secret, nil
}

// listenWire opens the address of the wire.
func (s *service) listenWire(ctx context.Context) (net.Listener, error) {
	const flag = "--fleet-wire-listen"
	f := s.config.Fleet
	network, address := wireAddress(f.WireListen)
	if network == "unix" {
		listener, err := listenUnix(ctx, address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w; choose another with %s", f.WireListen, err, flag)
		}
		return bounded.New(listener, maxConnections, s.logger), nil
	}
	var config *tls.Config
	if f.WireCert != "" {
		clients := f.WireCA
		if f.SecretFile != "" {
			clients = "" // the secret says who calls
		}
		var err error
		if config, err = wire.ServerTLS(f.WireCert, f.WireKey, clients); err != nil {
			return nil, usagef("settings fleet.wire_cert, wire_key and wire_ca: %w", err)
		}
	}
	listener, err := listen(ctx, address, flag, "")
	if err != nil {
		return nil, err
	}
	listener = bounded.New(listener, maxConnections, s.logger)
	if config != nil {
		return tls.NewListener(listener, config), nil
	}
	return listener, nil
}

// listenUnix opens a unix socket that only its owner can use. A socket that was
// left by a process which is no more is taken away.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		return nil, errors.Join(errors.New("another process listens there"), c.Close())
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		_ = os.Remove(path) // else listening says why
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// client is the wire of another process: the next towards the centre, or a
// provider.
func (s *service) client(url string) (*wire.Client, error) {
	secret, err := s.secret()
	if err != nil {
		return nil, err
	}
	f := s.config.Fleet
	config, err := wire.ClientTLS(f.WireCA, f.WireCert, f.WireKey)
	if err != nil {
		return nil, usagef("settings fleet.wire_cert, wire_key and wire_ca: %w", err)
	}
	c := wire.ClientConfig{URL: url, Secret: secret, TLS: config}
	if f.PoPShared {
		c.PoP = f.PoP
	}
	client := wire.NewClient(c)
	s.opened = append(s.opened, func() error { client.Close(); return nil })
	return client, nil
}

// calls counts what comes by the wire.
type calls struct {
	inner                    http.Handler
	begun, refused, underWay atomic.Int64
}

// ServeHTTP implements http.Handler.
func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.begun.Add(1)
	c.underWay.Add(1)
	defer c.underWay.Add(-1)
	c.inner.ServeHTTP(&countedAnswer{w, c}, r)
}

// countedAnswer is the answer to a call.
type countedAnswer struct {
	http.ResponseWriter
	calls *calls
}

// WriteHeader begins the answer.
func (w *countedAnswer) WriteHeader(status int) {
	if status != http.StatusOK {
		w.calls.refused.Add(1)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *countedAnswer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
