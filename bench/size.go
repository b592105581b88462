package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	readConns     = 32
	settleTimeout = 2 * time.Minute
	settleQuiet   = 2 * time.Second // of hardly any CPU: compactions are done
)

// sizes loads millions of keys and reports what they occupy, what the process
// does while they are loaded and read, and how long it takes to open them.
func (b *bench) sizes(ctx context.Context) error {
	data := filepath.Join(b.dir, "size")
	n, err := b.startNearkey(ctx, data, false)
	if err != nil {
		return err
	}
	defer func() { n.Kill() }()
	keys := keyspace{seed: 7, dirs: keyDirs, binary: true}
	path, err := n.namespace("size")
	if err != nil {
		return err
	}
	loaded := 0
	for _, size := range b.keyCounts() {
		r, err := n.load(ctx, path, keys, loaded, size)
		if err != nil {
			return err
		}
		loaded = size
		if err := b.weigh(ctx, n, path, keys, size, r); err != nil {
			return err
		}
		if n, err = b.reopen(ctx, n, path, keys, size); err != nil {
			return err
		}
	}
	return n.stop()
}

func (b *bench) keyCounts() []int {
	if b.full {
		return []int{1_000_000, 5_000_000}
	}
	return []int{1_000_000}
}

// weigh reads and lists at random among size keys, and prints what was used.
func (b *bench) weigh(ctx context.Context, n *nearkey, path string, keys keyspace, size int, load round) error {
	name := millions(size)
	b.printImport(name, load)
	if err := b.printMemory(n, name+", loaded"); err != nil {
		return err
	}
	if err := n.settle(ctx); err != nil {
		return err
	}
	if err := b.printDisk(n, name, size); err != nil {
		return err
	}
	r, err := drive(ctx, n.server, readConns, 2*b.slice, n.randomGets(path, keys, size))
	if err != nil {
		return err
	}
	b.printRounds("get in "+name, []round{r})
	if _, err := drive(ctx, n.server, listConns, b.slice, n.walk(path)); err != nil {
		return err
	}
	return b.printMemory(n, name+", read")
}

func (b *bench) printDisk(n *nearkey, name string, size int) error {
	disk, err := diskBytes(n.data)
	if err != nil {
		return err
	}
	b.printf("  %-16s %8.0f bytes on disk for each key, %.0f MiB in all\n", "disk "+name, float64(disk)/float64(size), mebi(disk))
	return nil
}

func (b *bench) printMemory(n *nearkey, name string) error {
	m, err := memoryOf(n.pids[0])
	if err != nil {
		return err
	}
	b.printf("  %-16s %8.0f MiB resident, %.0f MiB at most so far (bound: %d MiB)\n", name, mebi(m.resident), mebi(m.peak), b.memoryMiB)
	return nil
}

// reopen measures starts after an orderly end and after a kill, each followed by
// a read that shows the keys.
func (b *bench) reopen(ctx context.Context, n *nearkey, path string, keys keyspace, size int) (*nearkey, error) {
	var clean, killed []time.Duration
	for i := range 6 {
		if i%2 == 0 {
			if err := n.stop(); err != nil {
				return n, err
			}
		} else {
			if _, err := drive(ctx, n.server, manyClients, b.slice/4, n.putKeys(path)); err != nil {
				return n, err
			}
			n.Kill()
		}
		next, err := b.startNearkey(ctx, n.data, false)
		if err != nil {
			return n, err
		}
		n = next
		if i%2 == 0 {
			clean = append(clean, n.opened.Round(time.Millisecond))
		} else {
			killed = append(killed, n.opened.Round(time.Millisecond))
		}
		if _, err := drive(ctx, n.server, 1, b.slice/4, n.randomGets(path, keys, size)); err != nil {
			return n, err
		}
	}
	b.printf("  %-16s %v after an orderly end, %v after kill -9 (from exec to ready)\n", "open "+millions(size), clean, killed)
	if err := n.settle(ctx); err != nil {
		return n, err
	}
	if err := b.printDisk(n, "reopened", size); err != nil {
		return n, err
	}
	return n, b.printMemory(n, millions(size)+", opened")
}

func (n *nearkey) randomGets(path string, keys keyspace, size int) func(int) op {
	return func(worker int) op {
		random := rand.New(rand.NewPCG(uint64(worker), rand.Uint64()))
		var target, wire, want []byte
		return func(c *conn) error {
			i := random.IntN(size)
			target = keys.appendKey(append(append(target[:0], path...), "/values/"...), i)
			wire = n.request(wire[:0], "GET", string(target), nil)
			status, body, err := c.do(wire)
			want = keys.appendValue(want[:0], i)
			return expect(status, body, err, func(got []byte) bool { return bytes.Equal(got, want) })
		}
	}
}

// settle waits until the server is idle: what it does by itself is done.
func (n *nearkey) settle(ctx context.Context) error {
	deadline := time.Now().Add(settleTimeout)
	for time.Now().Before(deadline) {
		before, err := process.CPU(n.pids...)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleQuiet):
		}
		after, err := process.CPU(n.pids...)
		if err != nil {
			return err
		}
		if after-before < settleQuiet/50 {
			return nil
		}
	}
	return nil // busy for minutes: the figures show it
}

func millions(keys int) string { return fmt.Sprintf("%d M", keys/1_000_000) }

func mebi(bytes int64) float64 { return float64(bytes) / (1 << 20) }
