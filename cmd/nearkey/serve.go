package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/nearkey/nearkey/internal/observe"
	"github.com/spf13/cobra"
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

Workers are served on the next port (--workers-listen), if workerd is found
(--workers-runtime).

Without TLS (--tls-cert, --tls-key) the server is meant for a loopback address.

With --fleet-role it is one process of a fleet: the centre, which holds the
records, a regional tier, or an edge, which answers clients near to them.
'nearkey dev' runs a whole fleet on this machine.`,
		Example: `  nearkey serve
  nearkey serve --data /var/lib/nearkey --listen :8790 --tls-cert cert.pem --tls-key key.pem
  nearkey serve --config nearkey.toml --limits-min-ttl 1s
  nearkey serve --fleet-role central --fleet-wire-listen 127.0.0.1:8700 --fleet-secret-file secret
  nearkey serve --fleet-role edge --listen 127.0.0.1:8795 --fleet-far http://127.0.0.1:8700 \
    --fleet-api-far http://127.0.0.1:8790 --fleet-secret-file secret`,
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
	s := &service{config: config, logger: m.logger(config), metrics: observe.New()}
	if config.Fleet.PoP != "" {
		s.logger = s.logger.With("pop", config.Fleet.PoP)
	}
	for _, text := range m.unknownVariables() {
		s.logger.Warn(text)
	}
	if s.certificate, err = config.certificate(); err != nil {
		return err
	}
	s.memory = divideMemory(config.Fleet.Role, config.MemoryBytes, config.Fleet.NearBytes, pebbleOffHeap())
	debug.SetMemoryLimit(s.memory.heap)
	defer func() { err = errors.Join(err, s.close()) }()
	if err := m.openRole(ctx, s); err != nil {
		return errors.Join(err, s.refuse())
	}
	m.greet(config, s)
	if err := s.announce(); err != nil { // from here on others find it
		return errors.Join(err, s.refuse())
	}
	defer s.renounce()
	return s.run(ctx)
}

// openRole opens what the role of the process needs.
func (m *Main) openRole(ctx context.Context, s *service) error {
	switch s.config.Fleet.Role {
	case roleRegional:
		return s.openRegional(ctx)
	case roleEdge:
		return s.openEdge(ctx)
	case roleProxy:
		return m.openProxy(ctx, s)
	}
	return m.openCentre(ctx, s)
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
func prepareData(config Config) error {
	dir := config.Data
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return usagef("data directory: %w; name another with --data", err)
	}
	if err := os.Remove(config.addressFile()); errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return usagef("data directory %s cannot be written: %w; give it to the user that runs nearkey, or name another with --data", dir, err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return usagef("data directory %s cannot be written: %w; give it to the user that runs nearkey, or name another with --data", dir, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// greet tells a person where the server is and how to use it.
func (m *Main) greet(config Config, s *service) {
	scheme, data := "http", ""
	if config.TLS.Cert != "" {
		scheme = "https"
	}
	if config.Data != defaultData {
		data = " --data " + quoted(config.Data)
	}
	address := s.entrances[0].listener.Addr()
	switch config.Fleet.Role {
	case roleRegional:
		fmt.Fprintf(m.Stdout, "nearkey %s, regional tier, takes the wire at %s and health checks at %s://%s; far is %s.\n",
			buildVersion(), config.Fleet.WireListen, scheme, address, config.Fleet.Far)
	case roleEdge:
		fmt.Fprintf(m.Stdout, "nearkey %s, edge, listens on %s://%s; far is %s.\n", buildVersion(), scheme, address, config.Fleet.Far)
	case roleProxy:
		fmt.Fprintf(m.Stdout, "nearkey %s, proxy of the provider %s, takes the wire at %s, administration and health checks at %s://%s (data in %s).\n",
			buildVersion(), config.Providers[0].Name, config.Fleet.WireListen, scheme, address, config.Data)
	default:
		fmt.Fprintf(m.Stdout, `nearkey %s listens on %s://%s (data in %s, account %s).

Point wrangler and other clients at it:

  eval "$(%s env%s)"
  wrangler kv namespace list
%s
`, buildVersion(), scheme, address, config.Data, s.account, m.called(), data, s.workers.greeting())
	}
	s.logger.Info("listening", "role", config.Fleet.Role, "address", address.String(), "tls", config.TLS.Cert != "", "version", buildVersion())
	if host, ok := address.(*net.TCPAddr); ok && !host.IP.IsLoopback() && config.TLS.Cert == "" {
		s.logger.Warn("listening without TLS on an address that other machines reach: API tokens and values travel in the clear; set tls.cert and tls.key, or put a proxy that encrypts before it")
	}
}

// quoted is a text as a word of a shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
