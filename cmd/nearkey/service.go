package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/internal/bounded"
	"github.com/nearkey/nearkey/internal/observe"
	"golang.org/x/sync/errgroup"
)

// service is a process that has opened everything and can run.
type service struct {
	config  Config
	logger  *slog.Logger
	metrics *observe.Metrics
	memory  memory
	account string // of the centre

	certificate *tls.Config // of the API; nil: none
	workers     *workers    // nil: none run here

	entrances []entrance                    // the first is the one that is announced
	endings   []func()                      // called when the entrances are to shut down
	work      []func(context.Context) error // in the background, until the context ends
	opened    []func() error                // closes what was opened, in the order of opening
}

// entrance is a listener with who answers there.
type entrance struct {
	listener net.Listener
	server   answerer
}

// answerer answers what comes by a listener until it is shut down, and then returns
// http.ErrServerClosed.
type answerer interface {
	Serve(ctx context.Context, l net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}

// enter adds an entrance.
func (s *service) enter(l net.Listener, server answerer) {
	s.entrances = append(s.entrances, entrance{l, server})
}

// refuse closes the listeners of a service that will not run.
func (s *service) refuse() error {
	var errs []error
	for _, e := range s.entrances {
		errs = append(errs, e.listener.Close())
	}
	return errors.Join(errs...)
}

// close closes what was opened, the last first.
func (s *service) close() error {
	var errs []error
	for i := len(s.opened) - 1; i >= 0; i-- {
		errs = append(errs, s.opened[i]())
	}
	return errors.Join(errs...)
}

// addressFile is where the address of the server is written; empty: nowhere.
func (c *Config) addressFile() string {
	switch {
	case c.AddressFile != "":
		return c.AddressFile
	case c.Fleet.Role == roleSingle || c.Fleet.Role == roleCentral || c.Fleet.Role == roleProxy:
		return filepath.Join(c.Data, addressFileName)
	}
	return ""
}

// workersSuffix is what the name of the file that tells where Workers answer ends
// in, after that of the file with the address of the API.
const workersSuffix = ".workers"

// announce writes where the server listens for clients on this machine to read.
func (s *service) announce() error {
	file := s.config.addressFile()
	if file == "" {
		return nil
	}
	address := s.entrances[0].listener.Addr().String()
	if s.config.TLS.Cert != "" {
		address = "https://" + address
	}
	if err := writeFile(file, []byte(address+"\n"), 0o644); err != nil {
		return fmt.Errorf("write the address of the server: %w", err)
	}
	if s.workers == nil || s.workers.listener == nil {
		return nil
	}
	if err := writeFile(file+workersSuffix, []byte(s.workers.url("dev")+"\n"), 0o644); err != nil {
		return fmt.Errorf("write the address of Workers: %w", err)
	}
	return nil
}

// renounce takes back what announce wrote.
func (s *service) renounce() {
	if file := s.config.addressFile(); file != "" {
		_ = os.Remove(file) // a client that reads it finds nobody
		_ = os.Remove(file + workersSuffix)
	}
}

// listenAPI opens the address of the API, for at most so many connections at once;
// 0: whoever serves it sees to that.
func (s *service) listenAPI(ctx context.Context, most int) (net.Listener, error) {
	listener, err := listen(ctx, s.config.Listen, "--listen", " (port 0: any)")
	if err != nil {
		return nil, err
	}
	if most > 0 {
		listener = bounded.New(listener, most, s.logger)
	}
	if s.certificate != nil {
		return tls.NewListener(listener, s.certificate), nil
	}
	return listener, nil
}

// listen opens an address, and says what to do when it cannot: flag names another.
func listen(ctx context.Context, address, flag, hint string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the address is in use, perhaps by another nearkey; stop it, or choose another with %s%s", address, flag, hint)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: not permitted; choose a port above 1023 with %s", address, flag)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w; choose another address with %s", address, err, flag)
	}
	return listener, nil
}

// certificate is the TLS configuration, or nil for none.
func (c *Config) certificate() (*tls.Config, error) {
	if c.TLS.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return nil, usagef("settings tls.cert and tls.key: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
	}, nil
}

// run serves until ctx ends or a part fails, lets requests in progress end
// within the grace period, and only then stops the work in the background.
func (s *service) run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	workers, failed := errgroup.WithContext(background)
	for _, work := range s.work {
		workers.Go(func() error { return work(background) })
	}
	served := make(chan error, len(s.entrances))
	for _, e := range s.entrances {
		go func() { served <- e.server.Serve(background, e.listener) }()
	}
	var err error
	left := len(s.entrances)
	select {
	case <-ctx.Done():
		s.logger.Info("stopping", "grace", time.Duration(s.config.ShutdownGrace))
	case <-failed.Done():
		s.logger.Error("a part failed; stopping")
	case ended := <-served:
		left--
		err = unlessClosed(ended)
	}
	err = errors.Join(err, s.drain(context.WithoutCancel(ctx)))
	for range left {
		err = errors.Join(err, unlessClosed(<-served))
	}
	stop()
	err = errors.Join(workers.Wait(), err)
	if err == nil {
		s.logger.Info("stopped")
	}
	return err
}

// unlessClosed is the error of a server that was not told to end.
func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// drain ends the servers: first by letting requests end, then by cutting them off.
func (s *service) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.config.ShutdownGrace))
	defer cancel()
	for _, end := range s.endings {
		end()
	}
	errs := make([]error, len(s.entrances))
	var all sync.WaitGroup
	for i, e := range s.entrances {
		all.Go(func() {
			errs[i] = e.server.Shutdown(ctx)
			if errors.Is(errs[i], context.DeadlineExceeded) {
				s.logger.Warn("requests were still in progress after the grace period and are cut off", "address", e.listener.Addr().String())
				errs[i] = e.server.Close()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// httpServer is an http.Server as an entrance has it.
type httpServer struct {
	*http.Server
	ending func() // called before it shuts down; nil: nothing
}

// Serve implements answerer.
func (h httpServer) Serve(_ context.Context, l net.Listener) error { return h.Server.Serve(l) }

// Shutdown implements answerer.
func (h httpServer) Shutdown(ctx context.Context) error {
	if h.ending != nil {
		h.ending()
	}
	return h.Server.Shutdown(ctx)
}

// maxConnections is how many connections a listener before net/http has at once;
// further ones wait to be accepted. Callers of the wire have some hundred each.
const maxConnections = 16384
