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
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func (m *Main) serveCommand() *cobra.Command {
	var (
		flags configFlags
		print bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `Run a durable Workers KV on this machine until it is told to stop (SIGINT or
SIGTERM). The first start creates the data directory, an account and a root API
token, which is kept in the file api-token of that directory.

Without TLS (--tls-cert, --tls-key) the server is meant for a loopback address.`,
		Example: `  nearkey serve
  nearkey serve --data /var/lib/nearkey --listen :8790 --tls-cert cert.pem --tls-key key.pem
  nearkey serve --config nearkey.toml --limits-min-ttl 1s`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.load(m, cmd)
			if err != nil {
				return err
			}
			if print {
				return printConfig(m.Stdout, config)
			}
			return m.serve(cmd.Context(), config)
		},
	}
	flags.flags(cmd)
	cmd.Flags().BoolVar(&print, "print-config", false, "print the configuration, as 'nearkey config' does, and stop")
	return cmd
}

func (m *Main) serve(ctx context.Context, config Config) (err error) {
	logger := m.logger(config)
	for _, text := range m.unknownVariables() {
		logger.Warn(text)
	}
	certificate, err := config.certificate()
	if err != nil {
		return err
	}
	memory := divideMemory(int64(config.MemoryBytes), pebbleOffHeap())
	debug.SetMemoryLimit(memory.heap)
	if err := prepareData(config.Data); err != nil {
		return err
	}
	store, err := openStore(config, memory, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	cat, err := catalog.Open(ctx, filepath.Join(config.Data, "catalog.db"))
	if err != nil {
		return fmt.Errorf("open the catalog: %w", err)
	}
	defer func() { err = errors.Join(err, cat.Close()) }()
	account, err := m.ensureRoot(ctx, config, cat)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, config.Listen)
	if err != nil {
		return err
	}
	if certificate != nil {
		listener = tls.NewListener(listener, certificate)
	}
	janitor := catalog.NewJanitor(cat, store, logger)
	handler := rest.New(m.restConfig(config, memory, store, cat, janitor, logger))
	s := &service{
		config: config, logger: logger, listener: listener, server: rest.HTTPServer(handler),
		work: []func(context.Context) error{store.Run, janitor.Run},
	}
	s.server.ErrorLog = slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
	m.greet(config, s, account)
	if err := s.announce(); err != nil { // from here on others find it
		return errors.Join(err, listener.Close())
	}
	defer os.Remove(s.addressFile())
	return s.run(ctx)
}

// logger writes to standard error.
func (m *Main) logger(config Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: config.logLevel()}
	var handler slog.Handler = slog.NewTextHandler(m.Stderr, options)
	if config.Log.Format == "json" {
		handler = slog.NewJSONHandler(m.Stderr, options)
	}
	return slog.New(observe.LogHandler{Handler: handler})
}

// prepareData makes the data directory, readable by its owner alone, and takes
// away the address of a server that did not end well.
func prepareData(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return usagef("data directory: %w; name another with --data", err)
	}
	if err := os.Remove(filepath.Join(dir, addressFileName)); errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return usagef("data directory %s cannot be written: %w; give it to the user that runs nearkey, or name another with --data", dir, err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return usagef("data directory %s cannot be written: %w; give it to the user that runs nearkey, or name another with --data", dir, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func openStore(config Config, memory memory, logger *slog.Logger) (*disk.Store, error) {
	store, err := disk.Open(filepath.Join(config.Data, "store"), disk.Options{
		CacheBytes:    memory.cache,
		MemTableBytes: int(memory.memTable),
		ForgetAfter:   time.Duration(config.TombstoneRetention),
		Logger:        logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", config.Data, err)
	}
	return store, nil
}

func (m *Main) restConfig(config Config, memory memory, store *disk.Store, cat *catalog.Catalog, janitor *catalog.Janitor, logger *slog.Logger) rest.Config {
	limits := config.limits()
	rules := &kv.Rules{Limits: limits, Stamp: kv.NewStamper(0, nil)}
	rules.Stamp.Observe(store.Newest())
	if limits.WriteInterval > 0 {
		rules.Rate = kv.NewWriteRate(limits.WriteInterval)
	}
	metrics := observe.New()
	storeGauges(metrics, store)
	return rest.Config{
		Store: store, Catalog: cat, Rules: rules, Logger: logger, Metrics: metrics,
		Ready: store.Ready, Dropped: janitor.Wake, BodyBytes: memory.door,
		Namespaces: int(*config.effectiveLimits().Namespaces), Version: buildVersion(),
	}
}

// listen opens the address, and says what to do when it cannot.
func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the address is in use, perhaps by another nearkey; stop it, or choose another with --listen (port 0: any)", address)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: not permitted; choose a port above 1023 with --listen", address)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w; choose another address with --listen", address, err)
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

// service is a server that has opened everything and can run.
type service struct {
	config   Config
	logger   *slog.Logger
	listener net.Listener
	server   *http.Server
	work     []func(context.Context) error // in the background, until the context ends
}

func (s *service) addressFile() string { return filepath.Join(s.config.Data, addressFileName) }

// announce writes where the server listens for clients on this machine to read.
func (s *service) announce() error {
	address := s.listener.Addr().String()
	if s.config.TLS.Cert != "" {
		address = "https://" + address
	}
	return writeFile(s.addressFile(), []byte(address+"\n"), 0o644)
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
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(s.listener) }()
	var err error
	select {
	case <-ctx.Done():
		s.logger.Info("stopping", "grace", time.Duration(s.config.ShutdownGrace))
	case <-failed.Done():
		s.logger.Error("a part failed; stopping")
	case err = <-served:
		served <- err
	}
	err = s.drain(context.WithoutCancel(ctx))
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(fmt.Errorf("serve: %w", serveErr), err)
	}
	stop()
	err = errors.Join(workers.Wait(), err)
	if err == nil {
		s.logger.Info("stopped")
	}
	return err
}

// drain ends the server: first by letting requests end, then by cutting them off.
func (s *service) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.config.ShutdownGrace))
	defer cancel()
	err := s.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.logger.Warn("requests were still in progress after the grace period and are cut off")
		return s.server.Close()
	}
	return err
}

// greet tells a person where the server is and how to use it.
func (m *Main) greet(config Config, s *service, account string) {
	scheme, data := "http", ""
	if config.TLS.Cert != "" {
		scheme = "https"
	}
	if config.Data != defaultData {
		data = " --data '" + strings.ReplaceAll(config.Data, "'", `'\''`) + "'"
	}
	fmt.Fprintf(m.Stdout, `nearkey %s listens on %s://%s (data in %s, account %s).

Point wrangler and other clients at it:

  eval "$(nearkey env%s)"
  wrangler kv namespace list

`, buildVersion(), scheme, s.listener.Addr(), config.Data, account, data)
	s.logger.Info("listening", "address", s.listener.Addr().String(), "tls", config.TLS.Cert != "", "data", config.Data, "version", buildVersion())
	if host, ok := s.listener.Addr().(*net.TCPAddr); ok && !host.IP.IsLoopback() && config.TLS.Cert == "" {
		s.logger.Warn("listening without TLS on an address that other machines reach: API tokens and values travel in the clear; set tls.cert and tls.key, or put a proxy that encrypts before it")
	}
}
