package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
)

// upserts measures how many writes in a second 64 callers have acknowledged.
func (b *bench) upserts(ctx context.Context) error {
	return b.withPlanes(ctx, func(ctx context.Context, planes []*plane) error {
		results := map[*plane][]*series{}
		for _, p := range planes {
			if err := p.prepare(ctx, b.scale.keys); err != nil {
				return err
			}
		}
		b.printf("  %d callers, keys at random of %d; a round of the gateway ends when both providers have all of it\n", manyClients, b.scale.keys)
		for n := range 1 + b.rounds { // the first one warms up and is not counted
			for _, p := range planes {
				if n <= 1 {
					results[p] = waysToWrite(p)
				}
				if err := b.upsertRound(ctx, p, results[p]); err != nil {
					return err
				}
			}
		}
		for _, p := range planes {
			b.printUpserts(p, results[p])
		}
		return nil
	})
}

func waysToWrite(p *plane) (all []*series) {
	for _, name := range []string{"plain SQL", "store/postgres", "proxy", "gateway"} {
		all = append(all, &series{name: name + ", " + shardsOf(p.shards)})
	}
	return all
}

func (b *bench) upsertRound(ctx context.Context, p *plane, into []*series) error {
	for n, put := range []func(i int) error{
		func(i int) error { return p.plainPut(ctx, i) },
		func(i int) error { return p.put(ctx, p.stores[0][p.home[numberOf(i)]], i) },
		func(i int) error { return p.put(ctx, p.providers[0], i) },
		func(i int) error { return p.put(ctx, p.gateway, i) },
	} {
		r, err := p.metered(ctx, true, func() (int, []time.Duration, error) {
			return each(callers(ctx, manyClients, time.Now().Add(b.slice), func(int) func() error {
				return func() error { return put(rand.IntN(b.scale.keys)) }
			}))
		})
		if err != nil {
			return fmt.Errorf("%s: %w", into[n].name, err)
		}
		into[n].rounds = append(into[n].rounds, r)
	}
	return nil
}

// sqlPlainPut asks for no order of versions: the last one wins.
const sqlPlainPut = `insert into kv_records (namespace, key, version, expiration, tombstone, metadata, value) values ($1, $2, $3, null, false, null, $4)
	on conflict (namespace, key) do update set version = excluded.version, expiration = excluded.expiration,
	tombstone = excluded.tombstone, metadata = excluded.metadata, value = excluded.value`

// plainPut writes key number i with one statement of SQL and nothing else.
func (p *plane) plainPut(ctx context.Context, i int) error {
	w, err := p.write(i)
	if err != nil {
		return err
	}
	_, err = p.databases[0][p.home[numberOf(i)]].ExecContext(ctx, sqlPlainPut, [16]byte(w.Ref.Namespace), []byte(w.Ref.Key), [16]byte(w.Record.Version), w.Record.Value)
	return err
}

func (b *bench) printUpserts(p *plane, all []*series) {
	for _, s := range all {
		b.printStorage(*s, "op")
	}
	plain := all[0]
	for _, s := range all[1:] {
		b.printf("  %-30s by plain SQL: rate %.2f, CPU of all processes %.2f\n", "ratio, "+s.name,
			median(s.rounds, round.rate)/median(plain.rounds, round.rate), median(s.rounds, round.total)/median(plain.rounds, round.total))
	}
}

// put writes a new version of key number i to a store.
func (p *plane) put(ctx context.Context, store kv.Store, i int) error {
	w, err := p.write(i)
	if err != nil {
		return err
	}
	return store.Put(ctx, w.Ref, w.Record)
}

// second measures what the second provider costs those who read and write.
func (b *bench) second(ctx context.Context) error {
	return b.withPlanes(ctx, func(ctx context.Context, planes []*plane) error {
		for _, p := range planes {
			if err := p.prepare(ctx, b.scale.keys); err != nil {
				return err
			}
			if _, err := p.bulk(ctx, p.sole, soleKeys, soleKeys+b.scale.keys); err != nil {
				return err
			}
		}
		var rows []*priceRow
		for _, p := range planes {
			for _, n := range []int{1, secondCallers} {
				rows = append(rows, &priceRow{p: p, op: "get", callers: n}, &priceRow{p: p, op: "put", callers: n})
			}
		}
		for n := range 1 + b.rounds { // the first one warms up and is not counted
			for _, row := range rows {
				if n == 1 {
					row.ways = nil
				}
				if err := b.priceRound(ctx, row); err != nil {
					return fmt.Errorf("%s: %w", row.op, err)
				}
			}
		}
		for _, row := range rows {
			b.printPrice(row)
		}
		return nil
	})
}

const (
	secondCallers = 16
	soleKeys      = 64 * chunkPairs * 1000 // the first of the keys that only one provider has
)

// priceRow is what is compared: an operation at a number of callers.
type priceRow struct {
	p       *plane
	op      string
	callers int
	ways    []*series // with one provider, with two, and for reads with two of which one is asked
}

func (b *bench) priceRound(ctx context.Context, row *priceRow) error {
	ways := []struct {
		name    string
		gateway *gateway.Gateway
		first   int
	}{{"one", row.p.sole, soleKeys}, {"two", row.p.gateway, 0}, {"hedged", row.p.hedged, 0}}
	if row.op == "put" {
		ways = ways[:2]
	}
	for n, way := range ways {
		do := func(i int) error { return row.p.get(ctx, way.gateway, i) }
		if row.op == "put" {
			do = func(i int) error { return row.p.put(ctx, way.gateway, i) }
		}
		r, err := row.p.metered(ctx, true, func() (int, []time.Duration, error) {
			return each(callers(ctx, row.callers, time.Now().Add(b.slice/2), func(int) func() error {
				return func() error { return do(way.first + rand.IntN(b.scale.keys)) }
			}))
		})
		if err != nil {
			return err
		}
		if n == len(row.ways) {
			name := fmt.Sprintf("%s, %s, %d callers, %s", row.op, shardsOf(row.p.shards), row.callers, way.name)
			row.ways = append(row.ways, &series{name: name})
		}
		row.ways[n].rounds = append(row.ways[n].rounds, r)
	}
	return nil
}

func (b *bench) printPrice(row *priceRow) {
	for _, s := range row.ways {
		b.printStorage(*s, "op")
	}
	one := row.ways[0].rounds
	for i, s := range row.ways[1:] {
		by := func(of func(round) float64) float64 { return median(s.rounds, of) / median(one, of) }
		b.printf("  %-30s %s / one: p50 %.2f, p99 %.2f, CPU of PostgreSQL %.2f, CPU here %.2f, of all %.2f\n", "", []string{"two", "hedged"}[i],
			by(func(r round) float64 { return float64(r.percentile(50)) }), by(func(r round) float64 { return float64(r.percentile(99)) }),
			by(round.cost), by(round.clientCost), by(round.total))
	}
}
