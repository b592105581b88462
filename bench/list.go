package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
)

const (
	listConns = 2
	listLimit = 1000
	listPages = 10 // of a walk: as many as the smallest namespace has
	bulkConns = 8
	bulkKeys  = 100
)

// sized is a namespace with so many keys.
type sized struct {
	name, path string
	size       int
	keys       keyspace
	rounds     []round
}

// lists imports three namespaces, then lists them and reads from them in bulk.
func (b *bench) lists(ctx context.Context) error {
	n, err := b.startNearkey(ctx, filepath.Join(b.dir, "list"), false)
	if err != nil {
		return err
	}
	defer n.Kill()
	namespaces := []*sized{{name: "10 k", size: 10_000}, {name: "100 k", size: 100_000}, {name: "1 M", size: 1_000_000}}
	for i, ns := range namespaces {
		ns.keys = keyspace{seed: uint64(100 + i), dirs: keyDirs}
		if ns.path, err = n.namespace("list " + ns.name); err != nil {
			return err
		}
		r, err := n.load(ctx, ns.path, ns.keys, 0, ns.size)
		if err != nil {
			return err
		}
		b.printImport(ns.name, r)
	}
	if err := n.settle(ctx); err != nil {
		return err
	}
	var bulk []round
	for range b.rounds {
		for _, ns := range namespaces {
			r, err := drive(ctx, n.server, listConns, b.slice/2, n.walk(ns.path))
			if err != nil {
				return err
			}
			ns.rounds = append(ns.rounds, r)
		}
		r, err := drive(ctx, n.server, bulkConns, b.slice/2, n.bulkGets(namespaces[1]))
		if err != nil {
			return err
		}
		bulk = append(bulk, r)
	}
	for _, ns := range namespaces {
		b.printRounds("list in "+ns.name, ns.rounds)
	}
	b.printf("  %-16s CPU of a page in 1 M keys / in 10 k: %.2f\n", "ratio",
		median(namespaces[2].rounds, round.cost)/median(namespaces[0].rounds, round.cost))
	b.printRounds("bulk get of 100", bulk)
	return n.stop()
}

// printImport prints the rate of an import.
func (b *bench) printImport(name string, r round) {
	b.printf("  %-16s %8.0f pairs/s %6.1f CPU µs/pair  client %6.1f µs/pair  %d pairs a request, p99 of a request %s\n",
		"import "+name, r.rate(), r.cost(), r.clientCost(), importPairs, r.percentile(99).Round(1e6))
}

// walk lists the first pages of a namespace over and over, by the cursor.
func (n *nearkey) walk(path string) func(int) op {
	return func(int) op {
		var cursor []byte
		var wire []byte
		pages := 0
		return func(c *conn) error {
			target := fmt.Sprintf("%s/keys?limit=%d", path, listLimit)
			if pages > 0 {
				target += "&cursor=" + string(cursor)
			}
			wire = n.request(wire[:0], "GET", target, nil)
			status, body, err := c.do(wire)
			if err := expect(status, body, err, isPage); err != nil {
				return err
			}
			cursor = append(cursor[:0], cursorOf(body)...)
			if pages++; pages == listPages || len(cursor) == 0 {
				pages = 0
			}
			return nil
		}
	}
}

func isPage(body []byte) bool { return bytes.Contains(body, fmt.Appendf(nil, `"count":%d`, listLimit)) }

// cursorOf finds the cursor in the answer of a listing.
func cursorOf(body []byte) []byte {
	const name = `"cursor":"`
	at := bytes.LastIndex(body, []byte(name))
	if at < 0 {
		return nil
	}
	cursor, _, _ := bytes.Cut(body[at+len(name):], []byte(`"`))
	return cursor
}

func (n *nearkey) bulkGets(ns *sized) func(int) op {
	return func(worker int) op {
		random := rand.New(rand.NewPCG(uint64(worker), rand.Uint64()))
		var body, wire []byte
		return func(c *conn) error {
			body = ns.keys.appendKeys(body[:0], bulkKeys, func() int { return random.IntN(ns.size) })
			wire = n.request(wire[:0], "POST", ns.path+"/bulk/get", body)
			status, answer, err := c.do(wire)
			return expect(status, answer, err, func(got []byte) bool {
				return len(got) > (bulkKeys-5)*valueBytes && !bytes.Contains(got, []byte(`":null,"d`))
			})
		}
	}
}
