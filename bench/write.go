package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	importPairs = 1000 // of one bulk write
	importConns = 4
	manyClients = 64
)

// load imports the keys from..to-1 of a keyspace. The operations of the round are
// pairs, its latencies those of the requests.
func (n *nearkey) load(ctx context.Context, path string, keys keyspace, from, to int) (round, error) {
	var next atomic.Int64
	r, err := drive(ctx, n.server, importConns, time.Hour, func(int) op {
		var body, wire []byte
		return func(c *conn) error {
			first := from + int(next.Add(1)-1)*importPairs
			if first >= to {
				return io.EOF
			}
			body = keys.appendPairs(body[:0], first, min(first+importPairs, to))
			wire = n.request(wire[:0], "PUT", path+"/bulk", body)
			status, answer, err := c.do(wire)
			return expect(status, answer, err, func(got []byte) bool { return bytes.Contains(got, []byte(`"unsuccessful_keys":[]`)) })
		}
	})
	r.ops = to - from
	return r, err
}

// puts writes one key a request, each acknowledged when it is on disk.
func (b *bench) puts(ctx context.Context) error {
	n, err := b.startNearkey(ctx, filepath.Join(b.dir, "put"), false)
	if err != nil {
		return err
	}
	defer n.Kill()
	path, err := n.namespace("put")
	if err != nil {
		return err
	}
	var one, many []round
	var disk []time.Duration
	for range b.rounds {
		took, err := syncs(filepath.Join(b.dir, "sync"))
		if err != nil {
			return err
		}
		disk = append(disk, took...)
		r, err := drive(ctx, n.server, 1, b.slice, n.putKeys(path))
		if err != nil {
			return err
		}
		one = append(one, r)
		if r, err = drive(ctx, n.server, manyClients, b.slice, n.putKeys(path)); err != nil {
			return err
		}
		many = append(many, r)
	}
	slices.Sort(disk)
	b.printRounds("put, 1 client", one)
	b.printRounds("put, 64 clients", many)
	b.printf("  %-16s p50 %s, p99 %s: a write of 4 KiB and its sync, straight to the same disk, meanwhile\n", "disk",
		percentile(disk, 50).Round(time.Microsecond), percentile(disk, 99).Round(time.Microsecond))
	return n.stop()
}

func (n *nearkey) putKeys(path string) func(int) op {
	values := keyspace{seed: rand.Uint64(), dirs: keyDirs, binary: true}
	var next atomic.Int64
	return func(int) op {
		var name, value, wire []byte
		return func(c *conn) error {
			i := next.Add(1)
			name = uniqueKey(append(append(name[:0], path...), "/values/"...), values.seed+uint64(i))
			value = values.appendValue(value[:0], int(i))
			wire = n.request(wire[:0], "PUT", string(name), value)
			status, answer, err := c.do(wire)
			return expect(status, answer, err, func(got []byte) bool { return bytes.Contains(got, []byte(`"success":true`)) })
		}
	}
}

// syncs measures what the disk takes for a small write and its sync.
func syncs(name string) ([]time.Duration, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // a file of no use
	took := make([]time.Duration, 100)
	block := make([]byte, 4<<10)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took[i] = time.Since(began)
	}
	return took, nil
}
