package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

const (
	tellTiers   = 100
	tellRegions = 2
	tellRate    = 1000 // changes a second
	tellFor     = 5 * time.Second
	fullTellFor = 30 * time.Second
	// Every so many changes one is of a key that each tier has near, and reads as
	// soon as it is told: to read all of them everywhere would be a benchmark of
	// far reads.
	tellSample  = 200
	tellMaxAge  = time.Minute
	awaitTold   = 30 * time.Second
	leastLink   = 20 * time.Millisecond
	mostLink    = 150 * time.Millisecond
	tellSecret  = "a secret of no worth"
	targetTold  = 100.0 // ms
	targetExtra = 50.0  // ms beyond one way
)

func tellRef(i int) kv.Ref { return kv.Ref{Namespace: kv.NamespaceID{1}, Key: strconv.Itoa(i)} }

// telling is a centre and tiers that follow its feed over the wire, all in this
// process, over real connections.
type telling struct {
	store   *memory.Store
	centre  *edge.Tier
	stamp   *kv.Stamper
	places  []*place
	running sync.WaitGroup
	closers []func()
	failed  chan error // the first is kept

	start time.Time      // of the changes
	acked []atomic.Int64 // when each was acknowledged, after start
}

// place is a tier and the sink before it that notes what the tier comes to know.
type place struct {
	*edge.Tier
	t      *telling
	oneWay time.Duration
	began  chan struct{} // closed when the feed has begun
	begin  sync.Once
	probes chan kv.Change // keys that are to be read

	mu      sync.Mutex // guards the rest
	known   []instant
	visible []instant
}

// instant is when a change came to a tier, after the start.
type instant struct {
	change int
	at     time.Duration
}

// Changed implements feed.Sink. When the tier has been told, it no longer answers
// with what was before.
func (p *place) Changed(changes []kv.Change) {
	p.Tier.Changed(changes)
	at := time.Since(p.t.start)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		i, err := strconv.Atoi(c.Ref.Key)
		if err != nil {
			panic("bench: a key that nobody wrote: " + c.Ref.Key)
		}
		p.known = append(p.known, instant{i, at})
		if i%tellSample == 0 {
			p.probes <- c // has room for all
		}
	}
}

// Current implements feed.Sink.
func (p *place) Current(asOf time.Time) {
	p.Tier.Current(asOf)
	p.begin.Do(func() { close(p.began) })
}

// probe reads the sampled keys as they change, until near has them.
func (p *place) probe(ctx context.Context) {
	var reads sync.WaitGroup
	defer reads.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-p.probes:
			reads.Go(func() { p.read(ctx, c) })
		}
	}
}

func (p *place) read(ctx context.Context, c kv.Change) {
	if _, err := p.Get(ctx, c.Ref, tellMaxAge); err != nil {
		p.t.fail(fmt.Errorf("read key %s: %w", c.Ref.Key, err))
		return
	}
	rec, _, ok := p.Near(c.Ref.Namespace, []byte(c.Ref.Key), tellMaxAge)
	if !ok || rec.Version.Compare(c.Version) < 0 {
		p.t.fail(fmt.Errorf("near does not have change %s after it was told and read", c.Ref.Key))
		return
	}
	i, _ := strconv.Atoi(c.Ref.Key) // was checked
	at := time.Since(p.t.start)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.visible = append(p.visible, instant{i, at})
}

func (t *telling) fail(err error) {
	select {
	case t.failed <- err:
	default:
	}
}

// spawn runs long work until ctx ends.
func (t *telling) spawn(ctx context.Context, work func(context.Context) error) {
	t.running.Go(func() {
		if err := work(ctx); err != nil && ctx.Err() == nil {
			t.fail(err)
		}
	})
}

// told is a store whose change log tells the centre's tier before it tells others.
type told struct {
	kv.Store
	tier *edge.Tier
}

func (s told) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	changes, next, err := kv.Changes(ctx, s.Store, after, limit)
	s.tier.Changed(changes)
	return changes, next, err
}

func (s told) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, s.Store, after)
}

// serve lets others reach a store and a hub, and returns where.
func (t *telling) serve(store kv.Store, hub *feed.Hub) (url string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	handler := wire.NewHandler(wire.HandlerConfig{Store: store, Hub: hub, Secret: []byte(tellSecret)})
	server := &http.Server{Handler: handler, ReadHeaderTimeout: startTimeout}
	t.running.Go(func() { _ = server.Serve(listener) }) // until it is closed
	t.closers = append(t.closers, func() { handler.EndFeeds(); _ = server.Close() })
	return "http://" + listener.Addr().String(), nil
}

func (t *telling) client(url string, oneWay time.Duration) *wire.Client {
	config := wire.ClientConfig{URL: url, Secret: []byte(tellSecret)}
	if oneWay > 0 {
		config.Dial = distant(oneWay)
	}
	c := wire.NewClient(config)
	t.closers = append(t.closers, c.Close)
	return c
}

// newTelling builds the tiers: around the centre, or around regional tiers. What
// it returns must be closed, also with an error.
func newTelling(ctx context.Context, changes, regions int, oneWay func(i int) time.Duration) (*telling, error) {
	t := &telling{store: memory.New(), stamp: kv.NewStamper(1, nil), failed: make(chan error, 1), acked: make([]atomic.Int64, changes)}
	t.centre = edge.New(t.store, edge.Options{Sole: true, MaxSkew: -1})
	for i := 0; i < changes; i += tellSample {
		if err := t.put(ctx, i); err != nil {
			return t, err
		}
	}
	hub := feed.NewHub(feed.HubOptions{Log: t.store})
	t.spawn(ctx, feed.NewSource(told{t.store, t.centre}, hub, nil).Run)
	url, err := t.serve(t.centre, hub)
	if err != nil {
		return t, err
	}
	fars := []string{url}
	for range regions {
		client, hub := t.client(url, 0), feed.NewHub(feed.HubOptions{})
		tier := edge.New(client, edge.Options{})
		t.spawn(ctx, tier.Run)
		t.spawn(ctx, feed.NewFollower(client, feed.NewRelay(tier, hub), nil).Run)
		regional, err := t.serve(tier, hub)
		if err != nil {
			return t, err
		}
		fars = append(fars, regional)
	}
	if regions > 0 {
		fars = fars[1:]
	}
	for i := range tellTiers {
		p := &place{t: t, oneWay: oneWay(i), began: make(chan struct{}), probes: make(chan kv.Change, changes/tellSample+1)}
		client := t.client(fars[i%len(fars)], p.oneWay)
		p.Tier = edge.New(client, edge.Options{NearBytes: 8 << 20})
		t.places = append(t.places, p)
		t.spawn(ctx, feed.NewFollower(client, p, nil).Run)
		t.running.Go(func() { p.probe(ctx) })
	}
	return t, t.warm(ctx, changes)
}

func (t *telling) put(ctx context.Context, i int) error {
	version, err := t.stamp.Stamp()
	if err != nil {
		return err
	}
	return t.centre.Put(ctx, tellRef(i), kv.Record{Version: version, Value: []byte(version.String())})
}

// warm waits until every feed has begun, and reads the sampled keys everywhere.
func (t *telling) warm(ctx context.Context, changes int) error {
	var refs []kv.Ref
	for i := 0; i < changes; i += tellSample {
		refs = append(refs, tellRef(i))
	}
	errs := make([]error, len(t.places))
	var all sync.WaitGroup
	for i, p := range t.places {
		all.Go(func() {
			select {
			case <-p.began:
				_, errs[i] = p.GetMany(ctx, refs, tellMaxAge)
			case <-time.After(awaitTold):
				errs[i] = errors.New("a feed does not begin")
			case <-ctx.Done():
				errs[i] = ctx.Err()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// tell makes the changes at their rate and waits until all tiers know of all.
func (t *telling) tell(ctx context.Context) error {
	t.start = time.Now()
	for i := range t.acked {
		time.Sleep(time.Until(t.start.Add(time.Duration(i) * time.Second / tellRate)))
		if err := t.put(ctx, i); err != nil {
			return err
		}
		t.acked[i].Store(int64(time.Since(t.start)))
	}
	deadline := time.Now().Add(awaitTold)
	for _, p := range t.places {
		for !p.complete(len(t.acked)) {
			select {
			case err := <-t.failed:
				return err
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("a tier does not know of every change %s after the last", awaitTold)
			}
		}
	}
	return nil
}

func (p *place) complete(changes int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.known) >= changes && len(p.visible) >= (changes+tellSample-1)/tellSample
}

func (t *telling) close(cancel context.CancelFunc) {
	cancel()
	for _, c := range slices.Backward(t.closers) {
		c()
	}
	t.running.Wait()
}

// since returns how long after their acknowledgement, and the ways in between,
// changes came to tiers. What came before its acknowledgement was in time.
func (t *telling) since(of func(*place) []instant, ways int) []time.Duration {
	var all []time.Duration
	for _, p := range t.places {
		for _, i := range of(p) {
			all = append(all, max(0, i.at-time.Duration(t.acked[i.change].Load())-time.Duration(ways)*p.oneWay))
		}
	}
	slices.Sort(all)
	return all
}
