package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// The defaults of ShardsOptions.
const (
	DefaultTimeout       = 30 * time.Second
	DefaultMirrorTimeout = 2 * time.Second
	DefaultDropAfter     = time.Minute
	DefaultRetryAfter    = 5 * time.Second
	DefaultProbeEvery    = 5 * time.Second
	DefaultMoves         = 4
)

// Cluster is a store of record that holds some of the slots. Its store must be
// able to list its namespaces and to forget tombstones if slots are to be moved.
type Cluster struct {
	Name   string  // for ever: the table knows the cluster by it
	Weight float64 // its share of the slots, relative to the others'; 0: none
	Store  kv.Store
}

// ShardsOptions are the choices of a Shards. Keeper must be set.
type ShardsOptions struct {
	Keeper Keeper
	Logger *slog.Logger // nil: slog.Default

	CopyRate      int           // records a second that moves copy or remove; 0: unlimited
	Moves         int           // moves that are worked on at once; 0: DefaultMoves
	Timeout       time.Duration // of a call whose context has no deadline; 0: DefaultTimeout
	MirrorTimeout time.Duration // of the second write while a slot moves; 0: DefaultMirrorTimeout
	DropAfter     time.Duration // from the cut over to the removal of the old copies; 0: DefaultDropAfter
	RetryAfter    time.Duration // of a move that met an error; 0: DefaultRetryAfter
	ProbeEvery    time.Duration // a look at each cluster; 0: DefaultProbeEvery

	omit omission // what a control leaves out, to show that it is missed
}

// omission is the parts of a move that the controls of the tests leave out.
type omission int

const (
	omitClear  omission = 1 << iota // the new cluster keeps what it had
	omitMirror                      // writes go to the old cluster alone
	omitCopy                        // nothing is copied
	omitMissed                      // what the mirror missed is not made good
	omitVerify                      // both sides are not compared
	omitDrain                       // writes that are under way are not waited for
)

func (s *Shards) omits(part omission) bool { return s.opts.omit&part != 0 }

func (o ShardsOptions) withDefaults() ShardsOptions {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Moves <= 0 {
		o.Moves = DefaultMoves
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&o.Timeout, DefaultTimeout}, {&o.MirrorTimeout, DefaultMirrorTimeout}, {&o.DropAfter, DefaultDropAfter},
		{&o.RetryAfter, DefaultRetryAfter}, {&o.ProbeEvery, DefaultProbeEvery},
	} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	return o
}

// Shards is many clusters as one store. Keys fall into slots by hash, and a table
// says which cluster owns a slot: a namespace is one bucket in one slot, or, when
// it outgrows that, is spread over many. Slots are moved while they are served.
//
// Consistency and durability are those of the cluster that owns the key. A
// cluster that is down or hangs fails the calls that need it, and no others. All
// methods may be called at once. There must be one Shards for a set of clusters at
// a time; one that finds a newer table than its own in a cluster serves no more.
type Shards struct {
	clusters []*cluster // as configured
	byName   map[string]*cluster
	opts     ShardsOptions
	log      *slog.Logger

	known    slotCache
	current  atomic.Pointer[view]  // nil: no table is known yet
	refusal  atomic.Pointer[error] // not nil: why nothing is served any more
	starting chan struct{}         // whoever fills it looks for the table

	changing sync.Mutex // guards the Keeper, and the replacement of table; taken before mu

	mu      sync.Mutex // guards the rest; never held while the Keeper or a cluster is waited for
	table   *table
	moves   map[uint64]*move
	retired []*view // of which operations may still be under way

	changed signal.Signal // fires with each table
	pace    pacer
}

var _ kv.Store = (*Shards)(nil)

// NewShards returns a Shards on clusters with the table that the Keeper has. If it
// has none, the first operation or Run takes the newest that is found in the
// clusters, all of which must answer; and if there is none either, it makes one,
// by weighted rendezvous hashing over empty clusters or in favour of the only one
// that holds records.
func NewShards(clusters []Cluster, opts ShardsOptions) (*Shards, error) {
	s := &Shards{byName: map[string]*cluster{}, opts: opts.withDefaults(), starting: make(chan struct{}, 1), moves: map[uint64]*move{}}
	s.log = s.opts.Logger
	if len(clusters) == 0 || len(clusters) > MaxClusters {
		return nil, fmt.Errorf("shards: %d clusters, want 1 to %d", len(clusters), MaxClusters)
	}
	for _, c := range clusters {
		if c.Name == "" || s.byName[c.Name] != nil {
			return nil, fmt.Errorf("shards: cluster %q: names must be given, each once", c.Name)
		}
		if !(c.Weight >= 0 && c.Weight < 1e9) {
			return nil, fmt.Errorf("shards: cluster %s has weight %v", c.Name, c.Weight)
		}
		own := &cluster{Cluster: c, since: time.Now(), shards: s}
		s.byName[c.Name] = own
		s.clusters = append(s.clusters, own)
	}
	if opts.Keeper == nil {
		return nil, errors.New("shards: the table of slots needs a Keeper")
	}
	text, err := opts.Keeper.Load()
	if err != nil {
		return nil, fmt.Errorf("shards: %w", err)
	}
	if text == nil {
		return s, nil
	}
	t, err := decodeTable(text)
	if err != nil {
		return nil, fmt.Errorf("shards: %w; if it cannot be restored, remove it: the clusters have copies", err)
	}
	if err := s.knows(t); err != nil {
		return nil, err
	}
	s.table = t
	s.install()
	return s, nil
}

// knows returns an error if the table speaks of clusters that are not configured.
func (s *Shards) knows(t *table) error {
	for _, name := range t.names() {
		if s.byName[name] == nil {
			return fmt.Errorf("shards: the table of slots speaks of cluster %q, which is not configured; drain a cluster before it is taken away", name)
		}
	}
	return nil
}

// bound gives a call without a deadline one: a cluster that hangs must not keep
// it, and the moves that wait for it, for ever.
func (s *Shards) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.opts.Timeout)
}

// served refuses the one namespace that is the clusters' own.
func served(ns kv.NamespaceID) error {
	if ns == TableNamespace {
		return fmt.Errorf("namespace %s holds the table of slots and is not served", ns)
	}
	return nil
}

// Get implements kv.Store.
func (s *Shards) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (rec kv.Record, err error) {
	if err := served(ref.Namespace); err != nil {
		return kv.Record{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return kv.Record{}, err
	}
	defer v.leave()
	home := v.place(ref.Namespace, ref.Key).home
	err = home.call(ctx, func(store kv.Store) (err error) { rec, err = store.Get(ctx, ref, maxAge); return err })
	return rec, err
}

// GetMany implements the ability of kv.GetMany: the clusters are asked at once.
// When one of them fails, so does the call, without waiting for the others.
func (s *Shards) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer v.leave()
	places := map[*cluster][]int{} // of refs
	for i, ref := range refs {
		if err := served(ref.Namespace); err != nil {
			return nil, err
		}
		home := v.place(ref.Namespace, ref.Key).home
		places[home] = append(places[home], i)
	}
	recs := make([]kv.Record, len(refs))
	err = together(ctx, keysOf(places), func(ctx context.Context, home *cluster) error {
		its := make([]kv.Ref, len(places[home]))
		for i, place := range places[home] {
			its[i] = refs[place]
		}
		got, err := home.getMany(ctx, its, maxAge)
		if err != nil {
			return err
		}
		for i, place := range places[home] {
			recs[place] = got[i]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return recs, nil
}

// Put implements kv.Store.
func (s *Shards) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return s.PutMany(ctx, []kv.Write{{Ref: ref, Record: rec}})
}

// PutMany implements the ability of kv.PutMany: the clusters store their parts at
// once, and when one fails the others go on. The error tells which.
func (s *Shards) PutMany(ctx context.Context, writes []kv.Write) error {
	for _, w := range writes {
		if w.Record.Absent() {
			panic("proxy: put of an absent record")
		}
		if err := served(w.Ref.Namespace); err != nil {
			return err
		}
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer v.leave()
	if len(writes) == 1 {
		p := v.place(writes[0].Ref.Namespace, writes[0].Ref.Key)
		return p.put(ctx, writes)
	}
	parts := map[place][]kv.Write{}
	for _, w := range writes {
		p := v.place(w.Ref.Namespace, w.Ref.Key)
		parts[p] = append(parts[p], w)
	}
	return apart(keysOf(parts), func(p place) error { return p.put(ctx, parts[p]) })
}

// Forget implements the ability of kv.Forget.
func (s *Shards) Forget(ctx context.Context, tombs []kv.Tomb) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer v.leave()
	parts := map[place][]kv.Tomb{}
	for _, tomb := range tombs {
		if err := served(tomb.Ref.Namespace); err != nil {
			return err
		}
		p := v.place(tomb.Ref.Namespace, tomb.Ref.Key)
		parts[p] = append(parts[p], tomb)
	}
	if len(parts) == 0 { // only asked whether it could
		return s.clusters[0].call(ctx, func(store kv.Store) error { return kv.Forget(ctx, store, nil) })
	}
	return apart(keysOf(parts), func(p place) error { return p.forget(ctx, parts[p]) })
}

// Drop implements the ability of kv.Drop. While a slot of the namespace moves, the
// cluster that it moves to is emptied before the one that it is read from: what
// is on its way must not come back.
func (s *Shards) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := served(ns); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer v.leave()
	homes, mirrors, moves := v.holders(ns)
	for _, m := range moves {
		unlock, err := m.lock(ctx)
		if err != nil {
			return fmt.Errorf("drop namespace %s: %w", ns, err)
		}
		defer unlock()
	}
	for _, holders := range [][]*cluster{mirrors, homes} {
		err := apart(holders, func(c *cluster) error {
			return c.call(ctx, func(store kv.Store) error { return kv.Drop(ctx, store, ns) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// together calls f for every item at once; the first error ends the others.
func together[T any](ctx context.Context, items []T, f func(context.Context, T) error) error {
	if len(items) == 1 {
		return f(ctx, items[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for _, item := range items {
		wg.Go(func() {
			if err := f(ctx, item); err != nil {
				once.Do(func() { first = err; cancel() })
			}
		})
	}
	wg.Wait()
	return first
}

// apart calls f for every item at once and returns all their errors.
func apart[T any](items []T, f func(T) error) error {
	if len(items) == 1 {
		return f(items[0])
	}
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() { errs[i] = f(item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func keysOf[K comparable, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// add appends an item that is not there yet.
func add[T comparable](items []T, item T) []T {
	if slices.Contains(items, item) {
		return items
	}
	return append(items, item)
}
