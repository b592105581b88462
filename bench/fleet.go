package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	fleetKeys  = 4000 // of each round, read once by each edge
	fleetConns = 16
)

// fleet is a centre, a regional tier and two edges, each its own process.
type fleet struct {
	centre, region, near, other *nearkey
}

func (f *fleet) processes() []*nearkey { return []*nearkey{f.centre, f.region, f.near, f.other} }

func (f *fleet) kill() {
	for _, n := range f.processes() {
		if n != nil {
			n.Kill()
		}
	}
}

// fleetCost is the CPU of each process for one read through an edge, in
// microseconds.
type fleetCost struct{ edge, region, centre float64 }

// fleets measures what a read through an edge costs every process on its way.
func (b *bench) fleets(ctx context.Context) error {
	unpin, pinned, err := b.pinClient()
	if err != nil {
		return err
	}
	defer unpin()
	f := &fleet{}
	defer f.kill()
	if err := b.startFleet(ctx, f, pinned); err != nil {
		return err
	}
	keys := keyspace{seed: 11, dirs: keyDirs}
	path, err := f.centre.namespace("fleet")
	if err != nil {
		return err
	}
	if _, err := f.centre.load(ctx, path, keys, 0, fleetKeys*b.rounds); err != nil {
		return err
	}
	var centre, region, hit []fleetCost
	for r := range b.rounds {
		from := r * fleetKeys
		c, err := f.cost(ctx, f.near, f.near.eachOnce(path, keys, from))
		if err != nil {
			return fmt.Errorf("miss to the centre: %w", err)
		}
		centre = append(centre, c)
		if c, err = f.cost(ctx, f.other, f.other.eachOnce(path, keys, from)); err != nil {
			return fmt.Errorf("regional hit: %w", err)
		}
		region = append(region, c)
		if c, err = b.edgeHits(ctx, f, path, keys, from); err != nil {
			return fmt.Errorf("edge hit: %w", err)
		}
		hit = append(hit, c)
	}
	b.printFleet("edge hit", hit)
	b.printFleet("edge miss, regional hit", region)
	b.printFleet("miss to the centre", centre)
	b.printf("  the centre answers from its own tier: what was just written is in its memory\n")
	return nil
}

// startFleet starts the processes, each when the one before is ready.
func (b *bench) startFleet(ctx context.Context, f *fleet, pinned bool) error {
	dir := filepath.Join(b.dir, "fleet")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("of no worth: it lives for minutes"), 0o600); err != nil {
		return err
	}
	wireCentre, errCentre := freeAddress()
	wireRegion, errRegion := freeAddress()
	if err := errors.Join(errCentre, errRegion); err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	for _, p := range []struct {
		name, role string
		into       **nearkey
		args       []string
	}{
		{"centre", "central", &f.centre, []string{"--data", data, "--fleet-wire-listen", wireCentre}},
		{"region", "regional", &f.region, []string{"--fleet-far", "http://" + wireCentre, "--fleet-wire-listen", wireRegion}},
		{"edge-1", "edge", &f.near, []string{"--fleet-far", "http://" + wireRegion, "--fleet-pop", "one"}},
		{"edge-2", "edge", &f.other, []string{"--fleet-far", "http://" + wireRegion, "--fleet-pop", "two"}},
	} {
		args := append(p.args, "--fleet-role", p.role, "--fleet-secret-file", secret)
		if p.role == "edge" {
			args = append(args, "--fleet-api-far", "http://"+f.centre.addr)
		}
		n, err := b.startProcess(ctx, filepath.Join(dir, p.name), pinned, args)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		*p.into = n
	}
	for _, n := range f.processes() {
		var errAccount, errToken error
		n.account, errAccount = readLine(filepath.Join(data, "account-id"))
		n.token, errToken = readLine(filepath.Join(data, "api-token"))
		if err := errors.Join(errAccount, errToken); err != nil {
			return err
		}
	}
	return nil
}

// startProcess starts one process of a fleet; files of its own begin with name.
func (b *bench) startProcess(ctx context.Context, name string, pinned bool, args []string) (*nearkey, error) {
	binary, err := filepath.Abs(b.nearkey)
	if err != nil {
		return nil, err
	}
	memory := fmt.Sprintf("%dMiB", b.memoryMiB)
	args = append([]string{"serve", "--listen", "127.0.0.1:0", "--address-file", name + ".address", "--memory-bytes", memory}, args...)
	s, err := start(ctx, name+".log", pinned, binary, args...)
	if err != nil {
		return nil, err
	}
	if err := s.await(func() (string, error) { return readLine(name + ".address") }, "/readyz"); err != nil {
		s.Kill()
		return nil, err
	}
	return &nearkey{server: s}, nil
}

// freeAddress is one of loopback that nobody listens on.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// eachOnce reads the keys of a round, each once.
func (n *nearkey) eachOnce(path string, keys keyspace, from int) func(int) op {
	var next atomic.Int64
	return func(int) op {
		var target, want []byte
		return func(c *conn) error {
			i := int(next.Add(1) - 1)
			if i >= fleetKeys {
				return io.EOF
			}
			target = keys.appendKey(append(append(target[:0], path...), "/values/"...), from+i)
			want = keys.appendValue(want[:0], from+i)
			status, body, err := c.do(n.request(nil, "GET", string(target), nil))
			return expect(status, body, err, func(got []byte) bool { return bytes.Equal(got, want) })
		}
	}
}

// cost measures a load of one edge at all processes.
func (f *fleet) cost(ctx context.Context, edge *nearkey, worker func(int) op) (fleetCost, error) {
	return f.metered(func() (round, error) {
		return drive(ctx, edge.server, fleetConns, time.Minute, worker)
	})
}

// edgeHits reads a few keys of a round over and over.
func (b *bench) edgeHits(ctx context.Context, f *fleet, path string, keys keyspace, from int) (fleetCost, error) {
	g, err := newGenerator(f.near.server, getConns, 1, func(i int) (wire, want []byte) {
		target := keys.appendKey([]byte(path+"/values/"), from+i)
		return f.near.request(nil, "GET", string(target), nil), keys.appendValue(nil, from+i)
	})
	if err != nil {
		return fleetCost{}, err
	}
	defer g.close()
	return f.metered(func() (round, error) {
		return metered(f.near.server, func() (int, []time.Duration, error) { return g.closed(ctx, b.slice) })
	})
}

// metered divides what the processes used by the operations of a load.
func (f *fleet) metered(load func() (round, error)) (fleetCost, error) {
	var used [2][2]time.Duration
	look := func(at int) error {
		for i, n := range []*nearkey{f.region, f.centre} {
			cpu, err := process.CPU(n.pids...)
			if err != nil {
				return err
			}
			used[at][i] = cpu
		}
		return nil
	}
	if err := look(0); err != nil {
		return fleetCost{}, err
	}
	r, err := load()
	if err != nil {
		return fleetCost{}, err
	}
	if err := look(1); err != nil {
		return fleetCost{}, err
	}
	each := func(i int) float64 { return micros(used[1][i]-used[0][i]) / float64(r.ops) }
	return fleetCost{r.cost(), each(0), each(1)}, nil
}

// printFleet prints the medians of rounds, and each of them.
func (b *bench) printFleet(name string, costs []fleetCost) {
	middle := func(of func(fleetCost) float64) float64 {
		values := make([]float64, len(costs))
		for i, c := range costs {
			values[i] = of(c)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	b.printf("  %-24s CPU µs/op: edge %6.1f  region %6.1f  centre %6.1f\n", name,
		middle(func(c fleetCost) float64 { return c.edge }), middle(func(c fleetCost) float64 { return c.region }), middle(func(c fleetCost) float64 { return c.centre }))
	b.printf("  %-24s", "")
	for _, c := range costs {
		b.printf(" %.1f/%.1f/%.1f", c.edge, c.region, c.centre)
	}
	b.printf("  (each round)\n")
}
