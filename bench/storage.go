package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/postgres"
)

// The storage plane is measured in this process, which holds the load generator,
// the gateway and the proxies; each provider is a PostgreSQL server of its own.
const (
	storeNamespaces = 64   // over which keys are spread; each lives in one shard
	chunkPairs      = 1000 // consecutive keys are of one namespace: those of a bulk write
	bulkLoaders     = 4
	settleWithin    = 10 * time.Minute // for a plane to have everything in both providers
	settleLook      = time.Millisecond // at first: a look through a long queue costs
	settleLookMost  = 50 * time.Millisecond
	maxUnderWay     = 4096 // reads of a fixed rate at once
	hedge           = 5 * time.Millisecond
)

// shardCounts are the shards of a provider that are compared: schemas of its server.
var shardCounts = []int{1, 4}

// scale is how much the storage parts do.
type scale struct {
	keys    int           // that reads and upserts go to
	pairs   int           // of a bulk load
	drifted int           // keys to be reconciled
	frozen  time.Duration // how long a provider stays frozen, at least
}

var (
	quickScale = scale{keys: 20_000, pairs: 200_000, drifted: 100_000, frozen: 4 * time.Second}
	fullScale  = scale{keys: 200_000, pairs: 1_000_000, drifted: 100_000, frozen: 10 * time.Second}
)

// storageServers are those of two providers, and what is to be cleaned up.
type storageServers struct {
	servers  []*pgtest.Server
	cleanups []func()
}

// serverFailure is how a server tells that it cannot go on.
type serverFailure string

func (s *storageServers) Helper()          {}
func (s *storageServers) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }
func (s *storageServers) Fatalf(format string, args ...any) {
	panic(serverFailure(fmt.Sprintf(format, args...)))
}

// withPlanes runs a part on two servers and a plane for each number of shards.
func (b *bench) withPlanes(ctx context.Context, part func(ctx context.Context, planes []*plane) error) (err error) {
	s := &storageServers{}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case serverFailure:
			err = errors.Join(err, errors.New(string(r)))
		default:
			panic(r)
		}
	}()
	defer func() {
		for _, f := range slices.Backward(s.cleanups) {
			f()
		}
	}()
	for range 2 {
		// As an operator would have them, but small: every commit is on disk.
		s.servers = append(s.servers, pgtest.Start(s, "fsync=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB"))
	}
	b.printf("  two providers, each one PostgreSQL server on this disk, with a schema for each shard; gateway, proxies and load in this process\n")
	var planes []*plane
	defer func() {
		for _, p := range planes {
			err = errors.Join(err, p.close())
		}
	}()
	for _, shards := range shardCounts {
		p, err := b.openPlane(ctx, s.servers, shards)
		if p != nil {
			planes = append(planes, p)
		}
		if err != nil {
			return err
		}
	}
	return part(ctx, planes)
}

// plane is a storage plane of two providers, and what it is compared with.
type plane struct {
	shards    int
	servers   []*pgtest.Server
	stores    [][]*postgres.Store  // by provider and shard
	providers []kv.Store           // proxies
	gateway   *gateway.Gateway     // of both providers
	sole      *gateway.Gateway     // of the first one
	hedged    *gateway.Gateway     // of both; it asks the second when the first takes long
	databases [][]*sql.DB          // the same, for plain SQL
	home      [storeNamespaces]int // the shard of each namespace in the first one
	stamp     *kv.Stamper
	keys      keyspace

	stop    context.CancelFunc
	running sync.WaitGroup
	closers []func() error

	mu  sync.Mutex // guards err
	err error      // of what ran
}

func (b *bench) openPlane(ctx context.Context, servers []*pgtest.Server, shards int) (*plane, error) {
	p := &plane{shards: shards, servers: servers, stamp: kv.NewStamper(9, nil), keys: keyspace{seed: 5, dirs: keyDirs, binary: true}}
	own, stop := context.WithCancel(ctx)
	p.stop = stop
	dir, err := os.MkdirTemp(b.dir, "plane-")
	if err != nil {
		return p, err
	}
	var both []gateway.Provider
	for i, server := range servers {
		name := string("ab"[i])
		provider, err := p.openProvider(own, filepath.Join(dir, name), server)
		if err != nil {
			return p, fmt.Errorf("provider %s: %w", name, err)
		}
		provider.Name = name
		both = append(both, provider)
		p.providers = append(p.providers, provider.Store)
	}
	for i, g := range []struct {
		into      **gateway.Gateway
		providers []gateway.Provider
		hedge     time.Duration
	}{{&p.gateway, both, 0}, {&p.sole, both[:1], 0}, {&p.hedged, both, hedge}} {
		options := gateway.Options{Node: uint16(i + 1), Hedge: g.hedge, CrawlEvery: -1, CrawlRate: -1}
		if *g.into, err = p.openGateway(own, filepath.Join(dir, fmt.Sprint(i)), g.providers, options); err != nil {
			return p, err
		}
	}
	return p, p.await(ctx, "trust both providers", func() bool {
		all := slices.Concat(p.gateway.Status().Providers, p.hedged.Status().Providers)
		return !slices.ContainsFunc(all, func(s gateway.ProviderStatus) bool { return !s.Trusted || !s.Up })
	})
}

// openProvider opens what cmd/nearkey opens for a provider, with a schema of the
// server for each shard and blobs that are never used: all values are small.
func (p *plane) openProvider(ctx context.Context, name string, server *pgtest.Server) (gateway.Provider, error) {
	var clusters []proxy.Cluster
	var stores []*postgres.Store
	var databases []*sql.DB
	for i := range p.shards {
		schema := fmt.Sprintf("shard_%d_of_%d", i+1, p.shards)
		server.Exec("create schema " + schema)
		at := server.URL() + "&search_path=" + schema
		store, err := postgres.Open(ctx, at, postgres.Options{})
		if err != nil {
			return gateway.Provider{}, err
		}
		p.closers = append(p.closers, store.Close)
		p.run(ctx, store.Run)
		db, err := postgres.OpenSQL(at)
		if err != nil {
			return gateway.Provider{}, err
		}
		p.closers = append(p.closers, db.Close)
		db.SetMaxOpenConns(manyClients / p.shards)
		db.SetMaxIdleConns(manyClients / p.shards)
		stores, databases = append(stores, store), append(databases, db)
		clusters = append(clusters, proxy.Cluster{Name: fmt.Sprint("s", i+1), Weight: 1, Store: store})
	}
	p.stores, p.databases = append(p.stores, stores), append(p.databases, databases)
	shards, err := proxy.NewShards(clusters, proxy.ShardsOptions{Keeper: proxy.FileKeeper(name)})
	if err != nil {
		return gateway.Provider{}, err
	}
	p.run(ctx, shards.Run)
	blobs := &blob.Memory{}
	return gateway.Provider{Store: proxy.NewSplit(shards, blobs, blobs, proxy.SplitOptions{}), Probes: shards.Probes}, nil
}

func (p *plane) openGateway(ctx context.Context, dir string, providers []gateway.Provider, options gateway.Options) (*gateway.Gateway, error) {
	journal, err := disk.OpenJournal(dir, disk.Options{})
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, journal.Close)
	options.Journal = journal
	g, err := gateway.New(providers, options)
	if err != nil {
		return nil, err
	}
	p.run(ctx, g.Run)
	return g, nil
}

// run runs f until the plane is closed.
func (p *plane) run(ctx context.Context, f func(context.Context) error) {
	p.running.Go(func() {
		err := f(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = errors.Join(p.err, err)
	})
}

// close ends the plane and returns what went wrong in the background.
func (p *plane) close() error {
	p.stop()
	p.running.Wait()
	for _, f := range slices.Backward(p.closers) {
		p.err = errors.Join(p.err, f())
	}
	return p.err
}

// await polls for a condition.
func (p *plane) await(ctx context.Context, what string, met func() bool) error {
	look := settleLook
	for deadline := time.Now().Add(settleWithin); !met(); look = min(2*look, settleLookMost) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(look):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not so after %s: %+v", what, settleWithin, p.gateway.Status())
		}
	}
	return nil
}

// settled waits until both providers have all that was written.
func (p *plane) settled(ctx context.Context) error {
	return p.await(ctx, "bring all writes to both providers", func() bool {
		s := p.gateway.Status()
		late := slices.ContainsFunc(s.Providers, func(s gateway.ProviderStatus) bool { return s.Late > 0 || !s.Up })
		return !late && s.Queue.Depth == 0
	})
}

// ref is key number i.
func (p *plane) ref(i int) kv.Ref {
	return kv.Ref{Namespace: namespaceOf(i), Key: string(p.keys.appendKey(nil, i))}
}

// number of the namespace of key number i.
func numberOf(i int) int { return i / chunkPairs % storeNamespaces }

// namespaceOf is the namespace of key number i. Ids are spread as random ones are.
func namespaceOf(i int) (ns kv.NamespaceID) {
	for n := range ns {
		ns[n] = byte(mix(uint64(numberOf(i))) >> (n % 8 * 8))
	}
	ns[0] = 1
	return ns
}

// write is a new version of key number i.
func (p *plane) write(i int) (kv.Write, error) {
	version, err := p.stamp.Stamp()
	return kv.Write{Ref: p.ref(i), Record: kv.Record{Version: version, Value: p.keys.appendValue(nil, i)}}, err
}

// check reports an error unless rec is a version of key number i.
func (p *plane) check(i int, rec kv.Record, err error) error {
	if err == nil && !bytes.Equal(rec.Value, p.keys.appendValue(nil, i)) {
		return fmt.Errorf("key %d: not its value but %d bytes, version %s", i, len(rec.Value), rec.Version)
	}
	return err
}

// bulk writes the keys from..to-1 to a store, a chunk at a time. A latency is that
// of a chunk.
func (p *plane) bulk(ctx context.Context, store kv.Store, from, to int) (took []time.Duration, err error) {
	var next atomic.Int64
	return callers(ctx, bulkLoaders, time.Now().Add(time.Hour), func(int) func() error {
		return func() error {
			first := from + int(next.Add(1)-1)*chunkPairs
			if first >= to {
				return errDone
			}
			writes := make([]kv.Write, 0, chunkPairs)
			for i := first; i < min(first+chunkPairs, to); i++ {
				w, err := p.write(i)
				if err != nil {
					return err
				}
				writes = append(writes, w)
			}
			return kv.PutMany(ctx, store, writes)
		}
	})
}

// errDone ends the loop of a caller.
var errDone = errors.New("done")

// callers runs a closed loop in so many goroutines until a moment, or until each
// has returned errDone, and joins them.
func callers(ctx context.Context, n int, deadline time.Time, caller func(i int) func() error) ([]time.Duration, error) {
	latencies, errs := make([][]time.Duration, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		do := caller(i)
		all.Go(func() {
			for now := time.Now(); now.Before(deadline) && ctx.Err() == nil; {
				if errs[i] = do(); errs[i] != nil {
					return
				}
				then := now
				now = time.Now()
				latencies[i] = append(latencies[i], now.Sub(then))
			}
		})
	}
	all.Wait()
	for _, err := range append(errs, ctx.Err()) {
		if err != nil && err != errDone {
			return nil, err // the others will say the same
		}
	}
	return slices.Concat(latencies...), nil
}

// paced calls do at a fixed rate, whatever the answers do. A latency counts from the
// moment at which the call was due; late is how late it was begun.
func paced(ctx context.Context, rate float64, length time.Duration, do func(i int) error) (latencies, late []time.Duration, err error) {
	total := int(rate * length.Seconds())
	latencies, late = make([]time.Duration, total), make([]time.Duration, total)
	errs := make(chan error, total)
	room := make(chan struct{}, maxUnderWay)
	runtime.LockOSThread() // for sleeps that the runtime would round to a millisecond
	defer runtime.UnlockOSThread()
	began := time.Now()
	var all sync.WaitGroup
	for i := range total {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			rest := syscall.NsecToTimespec(int64(wait))
			_ = syscall.Nanosleep(&rest, nil) // a signal may end it early
		}
		if ctx.Err() != nil {
			break
		}
		room <- struct{}{}
		all.Go(func() {
			late[i] = time.Since(due)
			if err := do(i); err != nil {
				errs <- err
			}
			latencies[i] = time.Since(due)
			<-room
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return nil, nil, err
	default:
		slices.Sort(late)
		return latencies, late, ctx.Err()
	}
}

// metered measures what a load costs: the servers, and this process. With settle
// the round ends when both providers have everything.
func (p *plane) metered(ctx context.Context, settle bool, load func() (ops int, latencies []time.Duration, err error)) (r round, err error) {
	servers := func() (sum time.Duration) {
		for _, s := range p.servers {
			sum += s.CPU()
		}
		return sum
	}
	server := servers()
	client, err := ownCPU()
	if err != nil {
		return round{}, err
	}
	began := time.Now()
	r.ops, r.latencies, err = load()
	if err == nil && settle {
		err = p.settled(ctx)
	}
	if err != nil {
		return round{}, err
	}
	r.elapsed = time.Since(began)
	r.server = servers() - server
	used, err := ownCPU()
	r.client = used - client
	if r.ops == 0 && err == nil {
		err = errors.New("no operation ended in time")
	}
	slices.Sort(r.latencies)
	return r, err
}

// each counts an operation for each latency.
func each(latencies []time.Duration, err error) (int, []time.Duration, error) {
	return len(latencies), latencies, err
}

// total is the CPU of an operation in all processes.
func (r round) total() float64 { return r.cost() + r.clientCost() }

// series is the rounds of one thing that is measured.
type series struct {
	name   string
	rounds []round
}

// printStorage prints the medians of the rounds, and each of them.
func (b *bench) printStorage(s series, unit string) {
	b.printf("  %-30s %8.0f %s/s  CPU µs/%-4s PostgreSQL %6.1f  here %6.1f  p50 %-9s p99 %-9s\n", s.name,
		median(s.rounds, round.rate), unit, unit+":", median(s.rounds, round.cost), median(s.rounds, round.clientCost),
		medianPercentile(s.rounds, 50), medianPercentile(s.rounds, 99))
	if len(s.rounds) == 1 {
		return
	}
	each := make([]string, len(s.rounds))
	for i, r := range s.rounds {
		each[i] = fmt.Sprintf("%.0f/%.0f+%.0f", r.rate(), r.cost(), r.clientCost())
	}
	b.printf("  %-30s %s  (each round: rate / CPU µs)\n", "", strings.Join(each, " "))
}

// shardsOf names a number of shards.
func shardsOf(n int) string {
	if n == 1 {
		return "1 shard"
	}
	return fmt.Sprintf("%d shards", n)
}
