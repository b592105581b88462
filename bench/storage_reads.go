package main

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	readRate = 1000 // a second

	targetRead   = 5.0 // ms, the p99 of a read with both providers up
	targetFrozen = 2.0 // times that, with one of them frozen
)

const sqlPlainRead = `select version, expiration, tombstone, metadata, value from kv_records where namespace = $1 and key = $2`

// fixedRate is the rounds of reads at a fixed rate through one thing.
type fixedRate struct {
	series
	late   []time.Duration // how late reads were begun, of all rounds
	waited time.Duration   // of threads of this process for a core
}

// pointReads measures reads that come at a fixed rate, with both providers up and
// with one frozen, beside PostgreSQL alone.
func (b *bench) pointReads(ctx context.Context) error {
	defer b.goFirst()()
	return b.withPlanes(ctx, func(ctx context.Context, planes []*plane) error {
		b.printf("  %d reads/s of %d keys, each %s from the moment at which it was due; frozen: from the SIGSTOP of one server on\n", readRate, b.scale.keys, b.slice)
		results := map[*plane][]*fixedRate{}
		for _, p := range planes {
			if err := p.prepare(ctx, b.scale.keys); err != nil {
				return err
			}
		}
		for n := range 1 + b.rounds { // the first one warms up and is not counted
			for _, p := range planes {
				if n <= 1 {
					results[p] = waysToRead(p)
				}
				if err := b.readRound(ctx, p, results[p]); err != nil {
					return err
				}
			}
		}
		for _, p := range planes {
			b.printReads(p, results[p])
		}
		return nil
	})
}

// goFirst has this process, and the servers that it starts, run before all that the
// machine does besides, until it is undone: a server takes a core for a tenth of a
// millisecond here, and would wait for one for fifty. Where that is not allowed,
// nothing changes and the table says so.
func (b *bench) goFirst() (undo func()) {
	if !b.first {
		return func() {}
	}
	set := func(policy, priority string) error {
		out, err := exec.Command("chrt", "--all-tasks", policy, "--pid", priority, strconv.Itoa(os.Getpid())).CombinedOutput()
		if err != nil {
			return fmt.Errorf("chrt: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	if err := set("--rr", "5"); err != nil {
		b.printf("  beside all else that the machine does (%v)\n", err)
		return func() {}
	}
	b.printf("  before all else that the machine does (chrt --rr; -first=false: beside it)\n")
	return func() {
		if err := set("--other", "0"); err != nil {
			b.printf("  still before all else: %v\n", err)
		}
	}
}

func waysToRead(p *plane) (all []*fixedRate) {
	for _, name := range []string{"plain SQL", "store/postgres", "proxy", "gateway", "gateway, one frozen"} {
		all = append(all, &fixedRate{series: series{name: name + ", " + shardsOf(p.shards)}})
	}
	return all
}

// readRound adds a round of each way to read.
func (b *bench) readRound(ctx context.Context, p *plane, into []*fixedRate) error {
	ways := []func(i int) error{
		func(i int) error { return p.plainRead(ctx, i) },
		func(i int) error { return p.get(ctx, p.stores[0][p.home[numberOf(i)]], i) },
		func(i int) error { return p.get(ctx, p.providers[0], i) },
		func(i int) error { return p.get(ctx, p.gateway, i) },
	}
	for n, way := range ways {
		if err := b.readAtRate(ctx, p, into[n], b.slice, way); err != nil {
			return fmt.Errorf("%s: %w", into[n].name, err)
		}
	}
	frozen := p.servers[len(p.servers)-1]
	frozen.Stop()
	err := b.readAtRate(ctx, p, into[len(ways)], max(b.slice, b.scale.frozen), ways[len(ways)-1])
	frozen.Cont()
	if err != nil {
		return fmt.Errorf("%s: %w", into[len(ways)].name, err)
	}
	return p.settled(ctx)
}

// readAtRate adds a round of one way to read.
func (b *bench) readAtRate(ctx context.Context, p *plane, into *fixedRate, length time.Duration, read func(i int) error) error {
	own := []int{os.Getpid()}
	waited := waitOf(own)
	r, err := p.metered(ctx, false, func() (int, []time.Duration, error) {
		took, late, err := paced(ctx, readRate, length, func(int) error { return read(rand.IntN(b.scale.keys)) })
		into.late = append(into.late, late...)
		return each(took, err)
	})
	into.waited += waitOf(own) - waited
	into.rounds = append(into.rounds, r)
	return err
}

// get reads key number i from a store, and checks what it gets.
func (p *plane) get(ctx context.Context, store kv.Store, i int) error {
	rec, err := store.Get(ctx, p.ref(i), 0)
	return p.check(i, rec, err)
}

// plainRead does the same with one statement of SQL and nothing else.
func (p *plane) plainRead(ctx context.Context, i int) error {
	var rec kv.Record
	var version string
	var expiration sql.NullInt64
	ref := p.ref(i)
	row := p.databases[0][p.home[numberOf(i)]].QueryRowContext(ctx, sqlPlainRead, [16]byte(ref.Namespace), []byte(ref.Key))
	err := row.Scan(&version, &expiration, &rec.Tombstone, &rec.Metadata, &rec.Value)
	return p.check(i, rec, err)
}

// prepare writes so many keys to both providers.
func (p *plane) prepare(ctx context.Context, keys int) error {
	_, err := p.bulk(ctx, p.gateway, 0, keys)
	return cmp.Or(err, p.settled(ctx), p.findHomes(ctx, min(storeNamespaces, keys/chunkPairs)))
}

// findHomes notes in which shard of the first provider the first namespaces live.
func (p *plane) findHomes(ctx context.Context, namespaces int) error {
	for n := range namespaces {
		ns := namespaceOf(n * chunkPairs)
		found := slices.IndexFunc(p.databases[0], func(db *sql.DB) bool {
			var one int
			return db.QueryRowContext(ctx, `select 1 from kv_records where namespace = $1 limit 1`, [16]byte(ns)).Scan(&one) == nil
		})
		if found < 0 {
			return fmt.Errorf("namespace %s is in no shard", ns)
		}
		p.home[n] = found
	}
	return nil
}

func (b *bench) printReads(p *plane, all []*fixedRate) {
	p99 := func(f *fixedRate) float64 {
		return milliseconds(time.Duration(median(f.rounds, func(r round) float64 { return float64(r.percentile(99)) })))
	}
	for _, f := range all {
		b.printStorage(f.series, "op")
		slices.Sort(f.late)
		b.printf("  %-30s sent late: p50 %s, p99 %s; ready without a core: %s in %d rounds; p99 of each round, ms:", "",
			percentile(f.late, 50).Round(time.Microsecond), percentile(f.late, 99).Round(time.Microsecond), f.waited.Round(time.Millisecond), len(f.rounds))
		for _, r := range f.rounds {
			b.printf(" %.1f", milliseconds(r.percentile(99)))
		}
		b.printf("\n")
	}
	plain, up, frozen := all[0], all[len(all)-2], all[len(all)-1]
	b.printf("  %-30s gateway's p50 / plain SQL's %.2f, CPU of all processes %.2f; p99 with one frozen / both up %.2f\n", "ratio, "+shardsOf(p.shards),
		median(up.rounds, func(r round) float64 { return float64(r.percentile(50)) })/median(plain.rounds, func(r round) float64 { return float64(r.percentile(50)) }),
		median(up.rounds, round.total)/median(plain.rounds, round.total), p99(frozen)/p99(up))
	why := fmt.Sprintf("plain SQL has %.1f ms in the same minutes, the load was sent up to %s late (p99), and threads of this process were ready without a core for %s",
		p99(plain), percentile(up.late, 99).Round(10*time.Microsecond), up.waited.Round(time.Millisecond))
	b.atMost("gateway, "+shardsOf(p.shards)+": p99 of 1,000 reads/s", p99(up), targetRead, "ms", why)
	b.atMost("gateway, "+shardsOf(p.shards)+": p99 with one frozen, by both up", p99(frozen)/p99(up), targetFrozen, "", why)
}
