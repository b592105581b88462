package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
)

// bulks loads many pairs, weighs them, and compares and reconciles the providers.
func (b *bench) bulks(ctx context.Context) error {
	return b.withPlanes(ctx, func(ctx context.Context, planes []*plane) error {
		for _, step := range []func(context.Context, *plane) error{b.loadBoth, b.crawl, b.reconcile, b.catchUp, b.loadOne} {
			for _, p := range planes {
				if err := step(ctx, p); err != nil {
					return fmt.Errorf("%s: %w", shardsOf(p.shards), err)
				}
			}
		}
		return nil
	})
}

// meteredPairs measures what is done to so many pairs.
func (p *plane) meteredPairs(ctx context.Context, pairs int, load func() ([]time.Duration, error)) (round, error) {
	return p.metered(ctx, true, func() (int, []time.Duration, error) {
		took, err := load()
		return pairs, took, err
	})
}

// loadBoth loads pairs into both providers and weighs their rows.
func (b *bench) loadBoth(ctx context.Context, p *plane) error {
	pairs := b.scale.pairs
	r, err := p.meteredPairs(ctx, pairs, func() ([]time.Duration, error) { return p.bulk(ctx, p.gateway, 0, pairs) })
	if err != nil {
		return err
	}
	b.printStorage(series{"bulk load, " + shardsOf(p.shards), []round{r}}, "pair")
	loaded, err := p.weigh(ctx)
	if err != nil {
		return err
	}
	var content int
	for i := range min(pairs, keyDirs) {
		content += len(p.keys.appendKey(nil, i)) + valueBytes
	}
	b.printf("  %-30s %.0f bytes per row: heap %.0f, indexes %.0f; key and value are %d; %d rows\n", "size, "+shardsOf(p.shards),
		loaded.total/loaded.rows, loaded.heap/loaded.rows, loaded.index/loaded.rows, content/min(pairs, keyDirs), int(loaded.rows))
	if err := p.overwrite(ctx, pairs); err != nil {
		return err
	}
	after, err := p.weigh(ctx)
	if err != nil {
		return err
	}
	b.printf("  %-30s %.0f bytes per row after %d overwrites at random\n", "", after.total/after.rows, pairs)
	return nil
}

const sqlWeigh = `select (select count(*) from kv_records), pg_table_size('kv_records'), pg_indexes_size('kv_records'), pg_total_relation_size('kv_records')`

// weight is what the rows of a provider occupy, in bytes.
type weight struct{ rows, heap, index, total float64 }

// weigh weighs the rows of the second provider.
func (p *plane) weigh(ctx context.Context) (sum weight, err error) {
	for _, db := range p.databases[1] {
		var w weight
		if err := db.QueryRowContext(ctx, sqlWeigh).Scan(&w.rows, &w.heap, &w.index, &w.total); err != nil {
			return sum, fmt.Errorf("weigh the rows: %w", err)
		}
		sum = weight{sum.rows + w.rows, sum.heap + w.heap, sum.index + w.index, sum.total + w.total}
	}
	return sum, nil
}

// overwrite writes n new versions of keys at random of the first n.
func (p *plane) overwrite(ctx context.Context, n int) error {
	var left atomic.Int64
	left.Store(int64(n))
	_, err := callers(ctx, bulkLoaders, time.Now().Add(time.Hour), func(int) func() error {
		return func() error {
			if left.Add(-chunkPairs) < 0 {
				return errDone
			}
			writes := make([]kv.Write, chunkPairs)
			for i := range writes {
				var err error
				if writes[i], err = p.write(rand.IntN(n)); err != nil {
					return err
				}
			}
			return p.gateway.PutMany(ctx, writes)
		}
	})
	if err != nil {
		return err
	}
	return p.settled(ctx)
}

// crawl compares providers that do not differ.
func (b *bench) crawl(ctx context.Context, p *plane) error {
	s := series{name: "crawl, no drift, " + shardsOf(p.shards)}
	for range b.rounds {
		r, err := p.metered(ctx, true, func() (int, []time.Duration, error) {
			err := p.gateway.Crawl(ctx)
			status := p.gateway.Status().Crawl
			if err == nil && status.Drift > 0 {
				err = fmt.Errorf("providers that should not differ do in %d keys", status.Drift)
			}
			return int(status.Compared), nil, err
		})
		if err != nil {
			return err
		}
		s.rounds = append(s.rounds, r)
	}
	b.printStorage(s, "key")
	return nil
}

// reconcile has the crawl find and repair keys of which one provider lacks the
// newest version, or any.
func (b *bench) reconcile(ctx context.Context, p *plane) error {
	drifted, pairs := b.scale.drifted, b.scale.pairs
	for _, from := range []int{0, pairs} { // half of them older, half of them missing
		if _, err := p.bulk(ctx, p.providers[0], from, from+drifted/2); err != nil {
			return err
		}
	}
	r, err := p.meteredPairs(ctx, drifted, func() ([]time.Duration, error) { return nil, p.gateway.Crawl(ctx) })
	if err != nil {
		return err
	}
	if drift := p.gateway.Status().Crawl.Drift; drift != uint64(drifted) {
		return fmt.Errorf("the crawl found %d keys that differ, there are %d", drift, drifted)
	}
	b.printStorage(series{"reconcile by crawl, " + shardsOf(p.shards), []round{r}}, "key")
	b.printf("  %-30s %d of %d keys differed, half of them missing; found and repaired in %s\n", "", drifted, pairs+drifted/2, r.elapsed.Round(time.Millisecond))
	return p.verify(ctx)
}

// verify reports an error if the providers differ.
func (p *plane) verify(ctx context.Context) error {
	drift, err := p.gateway.Verify(ctx, gateway.VerifyOptions{}, nil)
	if err == nil && drift.Total() > 0 {
		err = fmt.Errorf("providers differ after they were reconciled: %+v", drift)
	}
	return err
}

// catchUp has the repair queue bring what was written while a provider was frozen.
func (b *bench) catchUp(ctx context.Context, p *plane) error {
	frozen := p.servers[1]
	frozen.Stop()
	err := p.await(ctx, "notice that a server is frozen", func() bool { return !p.gateway.Status().Providers[1].Up })
	if err == nil {
		_, err = p.bulk(ctx, p.gateway, 0, b.scale.drifted)
	}
	if err != nil {
		frozen.Cont()
		return err
	}
	queued := p.gateway.Status().Queue.Depth
	r, err := p.meteredPairs(ctx, b.scale.drifted, func() ([]time.Duration, error) {
		frozen.Cont()
		return nil, p.settled(ctx)
	})
	if err != nil {
		return err
	}
	b.printStorage(series{"catch up by queue, " + shardsOf(p.shards), []round{r}}, "key")
	b.printf("  %-30s %d keys written while a server was frozen, %d of them parked; all there %s after it went on\n", "", b.scale.drifted, queued, r.elapsed.Round(time.Millisecond))
	return p.verify(ctx)
}

// loadOne loads pairs into one provider, for comparison. It comes last: after it the
// providers differ.
func (b *bench) loadOne(ctx context.Context, p *plane) error {
	pairs := b.scale.pairs / 2
	one, err := p.meteredPairs(ctx, pairs, func() ([]time.Duration, error) { return p.bulk(ctx, p.sole, soleKeys, soleKeys+pairs) })
	if err != nil {
		return err
	}
	b.printStorage(series{"bulk load, one provider, " + shardsOf(p.shards), []round{one}}, "pair")
	return nil
}
