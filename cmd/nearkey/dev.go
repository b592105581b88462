package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/wire"
	"github.com/spf13/cobra"
)

// Most processes of a kind on one machine.
const (
	maxEdges   = 64
	maxRegions = 16
)

// devMemory is the memory_bytes of each process of a fleet on one machine.
const devMemory Size = 512 << 20

// fleetDir is where the fleet keeps its secret, logs and process ids, under the
// data directory.
const fleetDir = "fleet"

// dev says which fleet is to run.
type dev struct {
	edges, regions int
	listen         string
	workers        string // address of the first edge's Workers; empty: none run
	data           string
	shared         bool
	table          string
	memory         string
}

func (m *Main) devCommand() *cobra.Command {
	var d dev
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a fleet on this machine: a centre, regional tiers and edges",
		Long: `Run a whole fleet on this machine until it is told to stop: a central process with
the store, regional tiers, and edges that answer clients, each its own process.
Edges listen on consecutive ports; edge i belongs to region i modulo --regions.
Write through any of them and read through all.

The data directory is that of 'nearkey serve' with the same --data. Under it, in
fleet/, are the log and the process id of each process, and the secret that they
share. A process that dies is started again: kill some and see.

With --workers-listen every edge runs Workers too. They are deployed through any of
them and answer at all.

The variables NEARKEY_PROFILE, NEARKEY_LIMITS_..., NEARKEY_LOG_... and
NEARKEY_WORKERS_RUNTIME hold for all processes, NEARKEY_EMAIL, NEARKEY_API_TOKEN
and NEARKEY_API_KEY for the centre.`,
		Example: `  nearkey dev
  nearkey dev --edges 5 --regions 1 --listen 127.0.0.1:9000
  nearkey dev --edges 2 --workers-listen 127.0.0.1:8891
  kill -9 "$(cat nearkey-data/fleet/central.pid)"   # in another terminal`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return m.dev(cmd.Context(), d) },
	}
	fs := cmd.Flags()
	fs.IntVar(&d.edges, "edges", 3, "`NUMBER` of edges")
	fs.IntVar(&d.regions, "regions", 2, "`NUMBER` of regional tiers; 0: the edges follow the centre")
	fs.StringVar(&d.listen, "listen", defaultListen, "`ADDRESS` of the first edge; the others have the next ports (port 0: any)")
	fs.StringVar(&d.workers, "workers-listen", "", "`ADDRESS` of the Workers of the first edge; the others have the next ports (port 0: any; default: no Workers)")
	fs.StringVar(&d.data, "data", firstNonEmpty(m.getenv("NEARKEY_DATA"), defaultData), "`DIR` of the data")
	fs.BoolVar(&d.shared, "shared", false, "put the edges of a region into one point of presence")
	fs.StringVar(&d.table, "table", "", "`true` shows a live table of the edges, false none (default: a table on a terminal, lines elsewhere)")
	fs.Lookup("table").NoOptDefVal = "true"
	fs.StringVar(&d.memory, "memory-bytes", sizeText(devMemory), "memory that each process may use")
	return cmd
}

func sizeText(s Size) string {
	text, err := s.MarshalText()
	if err != nil {
		panic("nearkey: size: " + err.Error())
	}
	return string(text)
}

func (d dev) check() error {
	switch {
	case d.edges < 1 || d.edges > maxEdges:
		return usagef("--edges %d: want 1 to %d", d.edges, maxEdges)
	case d.regions < 0 || d.regions > maxRegions:
		return usagef("--regions %d: want 0 to %d", d.regions, maxRegions)
	case d.data == "":
		return usagef("--data: want a directory")
	case d.table != "" && d.table != "true" && d.table != "false":
		return usagef("--table=%s: want true or false", d.table)
	}
	var memory Size
	if err := memory.UnmarshalText([]byte(d.memory)); err != nil {
		return usagef("--memory-bytes: %w", err)
	}
	if least := leastMemory(roleCentral); memory < least {
		return usagef("--memory-bytes %s is too little; want at least %s", d.memory, sizeText(least))
	}
	return nil
}

// dev runs a fleet.
func (m *Main) dev(ctx context.Context, d dev) error {
	if err := d.check(); err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if d.data, err = filepath.Abs(d.data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	dir := filepath.Join(d.data, fleetDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return usagef("data directory: %w; name another with --data", err)
	}
	if err := ensureSecret(filepath.Join(dir, secretName)); err != nil {
		return err
	}
	if d.workers != "" {
		if _, err := catalog.CreateKeys(d.keyFile()); err != nil {
			return fmt.Errorf("keys of secrets: %w", err)
		}
	}
	children, err := d.plan(ctx)
	if err != nil {
		return err
	}
	f := &fleet{dev: d, called: m.called(), children: children, screen: newScreen(m.Stdout, d.table)}
	for _, c := range children {
		c.binary, c.environ, c.dir, c.say = binary, m.childEnviron(), dir, f.screen.say
	}
	return f.run(ctx)
}

const secretName = "secret"

// ensureSecret makes the secret of the fleet, once.
func ensureSecret(file string) error {
	_, err := wire.ReadSecret(file)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := writeFile(file, []byte(catalog.NewSecret()+"\n"), 0o600); err != nil {
		return fmt.Errorf("secret of the fleet: %w", err)
	}
	return nil
}

// childEnviron is the environment of the processes of a fleet: none of ours but
// what holds for all of them alike.
func (m *Main) childEnviron() []string {
	var environ []string
	for _, v := range m.Environ {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case !strings.HasPrefix(name, "NEARKEY_"), strings.HasPrefix(name, "NEARKEY_LIMITS_"), strings.HasPrefix(name, "NEARKEY_LOG_"),
			name == "NEARKEY_WORKERS_RUNTIME", name == "NEARKEY_PROFILE", name == "NEARKEY_EMAIL", name == "NEARKEY_API_TOKEN", name == "NEARKEY_API_KEY":
			environ = append(environ, v)
		}
	}
	return environ
}

// plan says which processes there are and how they find each other: the centre,
// then the regional tiers, then the edges.
func (d dev) plan(ctx context.Context) ([]*child, error) {
	var ports ports
	edges, err := ports.consecutive(ctx, "--listen", d.listen, d.edges)
	if err != nil {
		return nil, err
	}
	var workers []string
	central := []string{"--workers-listen", workersOff}
	if d.workers != "" {
		central = nil
		if workers, err = ports.consecutive(ctx, "--workers-listen", d.workers, d.edges); err != nil {
			return nil, err
		}
	}
	centre, centralWire := ports.free(ctx), ports.free(ctx)
	children := []*child{d.child("central", roleCentral, centre, append(central,
		"--data", d.data, "--address-file", d.file("central.address"), "--fleet-wire-listen", centralWire)...)}
	fars := []string{"http://" + centralWire}
	for i := range d.regions {
		address, regional := ports.free(ctx), ports.free(ctx)
		name := "region-" + strconv.Itoa(i+1)
		children = append(children, d.child(name, roleRegional, address, "--fleet-far", "http://"+centralWire, "--fleet-wire-listen", regional))
		fars = append(fars, "http://"+regional)
	}
	if d.regions > 0 {
		fars = fars[1:]
	}
	for i, address := range edges {
		name, addressFile := "edge-"+strconv.Itoa(i+1), d.file("edge-"+strconv.Itoa(i+1)+".address")
		if i == 0 {
			addressFile = filepath.Join(d.data, addressFileName)
		}
		region := i % len(fars)
		args := []string{"--address-file", addressFile, "--fleet-far", fars[region], "--fleet-api-far", "http://" + centre, "--fleet-pop", name}
		if d.shared {
			args[len(args)-1] = "pop-" + strconv.Itoa(region+1)
			args = append(args, "--fleet-pop-shared")
		}
		if workers != nil {
			args = append(args, "--workers-listen", workers[i], "--workers-key-file", d.keyFile())
		}
		c := d.child(name, roleEdge, address, args...)
		if workers != nil {
			c.workers = workers[i]
		}
		if d.regions > 0 {
			c.region = "region-" + strconv.Itoa(region+1)
		}
		children = append(children, c)
	}
	return children, ports.err
}

// keyFile holds the keys of the secrets of Workers: the centre's own.
func (d dev) keyFile() string { return filepath.Join(d.data, workerKeysName) }

func (d dev) file(name string) string { return filepath.Join(d.data, fleetDir, name) }

// child is a process of the fleet that listens on an address.
func (d dev) child(name, role, address string, args ...string) *child {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return &child{
		name: name, role: role, port: port, url: "http://" + net.JoinHostPort(host, port),
		args: append([]string{"serve", "--listen", address, "--memory-bytes", d.memory, "--fleet-role", role, "--fleet-secret-file", d.file(secretName)}, args...),
	}
}

// ports finds addresses that nobody listens on. They may be taken before they are
// used; whoever is to listen there then says so.
type ports struct {
	given map[string]bool // ports
	err   error           // the first
}

// take finds out whether an address is free, and what it is in full.
func (p *ports) take(ctx context.Context, address string) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	found := l.Addr().String()
	return found, l.Close()
}

// free returns an address of this machine alone.
func (p *ports) free(ctx context.Context) string {
	address, err := p.any(ctx, "127.0.0.1")
	p.err = errors.Join(p.err, err)
	return address
}

// any returns a free address of a host that was not given before.
func (p *ports) any(ctx context.Context, host string) (string, error) {
	const attempts = 100
	for range attempts {
		found, err := p.take(ctx, net.JoinHostPort(host, "0"))
		if err != nil {
			return "", fmt.Errorf("find a free port: %w", err)
		}
		_, port, _ := net.SplitHostPort(found) // of a listener
		if !p.given[port] {
			p.give(port)
			return net.JoinHostPort(host, port), nil
		}
	}
	return "", errors.New("find a free port: there is none")
}

func (p *ports) give(port string) {
	if p.given == nil {
		p.given = map[string]bool{}
	}
	p.given[port] = true
}

// consecutive returns n addresses that begin with the one that a flag gives.
func (p *ports) consecutive(ctx context.Context, flag, first string, n int) ([]string, error) {
	host, text, err := net.SplitHostPort(first)
	if err != nil {
		return nil, usagef("%s: %w; want host:port, such as %s", flag, err, defaultListen)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port != 0 && int(port)+n > 1<<16 {
		return nil, usagef("%s: port %q: want a number from 0 (any), with %d ports from there on", flag, text, n)
	}
	addresses := make([]string, n)
	for i := range addresses {
		if port == 0 {
			if addresses[i], err = p.any(ctx, host); err != nil {
				return nil, err
			}
			continue
		}
		text := strconv.Itoa(int(port) + i)
		addresses[i] = net.JoinHostPort(host, text)
		if p.given[text] {
			return nil, usagef("%s: port %s is given to another process already; choose other ports", flag, text)
		}
		if _, err := p.take(ctx, addresses[i]); err != nil {
			return nil, fmt.Errorf("listen on %s: %w; choose other addresses with %s", addresses[i], err, flag)
		}
		p.give(text)
	}
	return addresses, nil
}
