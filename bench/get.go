package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	getConns = 32
	getKeys  = 20_000
	hotKeys  = getConns // one for each connection
	getDirs  = 1000     // nginx's files are spread over so many folders
)

// gets reads the same values from nearkey and from nginx, in turns. Hot: a few
// keys over and over. Cold: after a start of both, each key once.
func (b *bench) gets(ctx context.Context) error {
	unpin, pinned, err := b.pinClient()
	if err != nil {
		return err
	}
	defer unpin()
	keys := keyspace{seed: 1, dirs: getDirs}
	data := filepath.Join(b.dir, "get")
	n, err := b.startNearkey(ctx, data, pinned)
	if err != nil {
		return err
	}
	defer func() { n.Kill() }()
	path, err := n.namespace("get")
	if err != nil {
		return err
	}
	if _, err := n.load(ctx, path, keys, 0, getKeys); err != nil {
		return err
	}
	root := filepath.Join(b.dir, "files")
	if b.nginx != "" {
		if err := writeFiles(root, keys, getKeys); err != nil {
			return err
		}
	}
	var hot, hotNginx, cold, coldNginx []round
	for range b.rounds {
		if err := b.getRound(ctx, n, nil, path, keys, &hot, nil); err != nil {
			return err
		}
		if err := n.stop(); err != nil {
			return err
		}
		again, err := b.startNearkey(ctx, data, pinned)
		if err != nil {
			return err
		}
		n = again
		if err := b.getRound(ctx, n, nil, path, keys, nil, &cold); err != nil {
			return err
		}
		if b.nginx == "" {
			continue
		}
		web, err := b.startNginx(ctx, root+"/", path+"/values/", "", pinned)
		if err != nil {
			return err
		}
		err = b.getRound(ctx, n, web, path, keys, &hotNginx, &coldNginx)
		web.Kill()
		if err != nil {
			return err
		}
	}
	b.printGets("hot", hot, hotNginx)
	b.printGets("cold", cold, coldNginx)
	return nil
}

// getRound adds a cold and a hot round of a server, nginx or else nearkey, to
// what is asked for: cold first, since it only is so before anything was read.
func (b *bench) getRound(ctx context.Context, n *nearkey, web *server, path string, keys keyspace, hot, cold *[]round) error {
	s := n.server
	if web != nil {
		s = web
	}
	request := func(buf []byte, i int) []byte {
		return n.request(buf, "GET", string(keys.appendKey([]byte(path+"/values/"), i)), nil)
	}
	if cold != nil {
		r, err := drive(ctx, s, getConns, time.Minute, coldGets(keys, request))
		if err != nil {
			return err
		}
		*cold = append(*cold, r)
	}
	if hot != nil {
		r, err := drive(ctx, s, getConns, b.slice, hotGets(keys, request))
		if err != nil {
			return err
		}
		*hot = append(*hot, r)
	}
	return nil
}

func hotGets(keys keyspace, request func([]byte, int) []byte) func(int) op {
	return func(worker int) op {
		wire, want := request(nil, worker%hotKeys), keys.appendValue(nil, worker%hotKeys)
		return func(c *conn) error {
			status, body, err := c.do(wire)
			return expect(status, body, err, func(got []byte) bool { return bytes.Equal(got, want) })
		}
	}
}

func coldGets(keys keyspace, request func([]byte, int) []byte) func(int) op {
	order := rand.New(rand.NewPCG(1, 2)).Perm(getKeys)
	wires := make([][]byte, getKeys) // prepared: the client's own work must not slow the loop
	for i := range wires {
		wires[i] = request(nil, i)
	}
	var next atomic.Int64
	return func(int) op {
		var want []byte
		return func(c *conn) error {
			at := next.Add(1) - 1
			if at >= getKeys {
				return io.EOF
			}
			status, body, err := c.do(wires[order[at]])
			want = keys.appendValue(want[:0], order[at])
			return expect(status, body, err, func(got []byte) bool { return bytes.Equal(got, want) })
		}
	}
}

// writeFiles writes what nginx serves: a file for each key.
func writeFiles(root string, keys keyspace, n int) error {
	for i := range n {
		name := filepath.Join(root, string(keys.appendKey(nil, i)))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(name, keys.appendValue(nil, i), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) printGets(kind string, ours, nginx []round) {
	b.printRounds("nearkey "+kind, ours)
	if len(nginx) == 0 {
		return
	}
	b.printRounds("nginx   "+kind, nginx)
	b.printf("  %-16s nginx's CPU / nearkey's %.2f, nearkey's rate / nginx's %.2f\n", "ratio "+kind,
		median(nginx, round.cost)/median(ours, round.cost), median(ours, round.rate)/median(nginx, round.rate))
}

// printRounds prints the medians of rounds, and each of them.
func (b *bench) printRounds(name string, rounds []round) {
	b.printf("  %-16s %8.0f op/s  %7.1f CPU µs/op  client %6.1f µs/op  p50 %-8s p99 %-8s\n", name,
		median(rounds, round.rate), median(rounds, round.cost), median(rounds, round.clientCost),
		medianPercentile(rounds, 50), medianPercentile(rounds, 99))
	b.printf("  %-16s", "")
	for _, r := range rounds {
		b.printf(" %.0f/%.1f", r.rate(), r.cost())
	}
	b.printf("  (each round: op/s / CPU µs)\n")
}

func medianPercentile(rounds []round, p float64) time.Duration {
	return time.Duration(median(rounds, func(r round) float64 { return float64(r.percentile(p)) })).Round(time.Microsecond)
}

// pinClient keeps this process off the first core, which the servers of a
// comparison have for themselves. On one core, or without taskset, nothing is
// pinned, and the table says so.
func (b *bench) pinClient() (unpin func(), pinned bool, err error) {
	cores := runtime.NumCPU()
	if _, err := exec.LookPath("taskset"); err != nil || cores < 2 {
		b.printf("  not pinned: server and client share all cores\n")
		return func() {}, false, nil
	}
	set := func(list string) error {
		out, err := exec.Command("taskset", "-apc", list, strconv.Itoa(os.Getpid())).CombinedOutput()
		if err != nil {
			return fmt.Errorf("taskset: %w: %s", err, out)
		}
		return nil
	}
	if err := set(fmt.Sprintf("1-%d", cores-1)); err != nil {
		return nil, false, err
	}
	procs := runtime.GOMAXPROCS(cores - 1)
	b.printf("  servers on core 0, client on the others; connections are kept alive\n")
	return func() {
		runtime.GOMAXPROCS(procs)
		if err := set(fmt.Sprintf("0-%d", cores-1)); err != nil {
			b.printf("  still pinned: %v\n", err)
		}
	}, true, nil
}
