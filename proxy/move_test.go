package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// books keeps what was written, so that every read can be judged.
type books struct {
	mu    sync.Mutex // guards the rest
	time  int64
	keys  map[kv.Ref]*entry
	wrong []string
}

type entry struct {
	acked  kv.Record // the newest that was acknowledged
	tried  map[kv.Version]kv.Record
	forgot kv.Version // the tombstone of an acknowledged Forget
	asked  kv.Version // the tombstone of a Forget that was tried
	seen   kv.Version // the newest that was read
}

func newBooks() *books { return &books{keys: map[kv.Ref]*entry{}, time: 1e9} }

func (b *books) entry(ref kv.Ref) *entry {
	e := b.keys[ref]
	if e == nil {
		e = &entry{tried: map[kv.Version]kv.Record{}}
		b.keys[ref] = e
	}
	return e
}

// record makes a new record of a key; its value says what it is.
func (b *books) record(ref kv.Ref, tombstone bool) kv.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.time++
	rec := kv.Record{Version: kv.NewVersion(b.time, 1, 0)}
	rec.Tombstone = tombstone
	if !tombstone {
		rec.Value = fmt.Appendf(nil, "%s %s %s", ref.Namespace, ref.Key, rec.Version)
	}
	b.entry(ref).tried[rec.Version] = rec
	return rec
}

func (b *books) ack(ref kv.Ref, rec kv.Record, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entry(ref); err == nil {
		e.acked = kv.Merge(e.acked, rec)
	}
}

// known is what was known when a read began.
type known struct {
	floor  kv.Version // nothing older may be read
	forgot kv.Version // nor this tombstone
}

func (b *books) floor(ref kv.Ref) known {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(ref)
	k := known{e.acked.Version, e.forgot}
	if k.floor.Compare(e.seen) < 0 {
		k.floor = e.seen
	}
	return k
}

func (b *books) blame(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, fmt.Sprintf(format, args...))
}

// read judges what a read returned by what was known when it began.
func (b *books) read(ref kv.Ref, rec kv.Record, k known) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(ref)
	bad := ""
	switch tried, ok := e.tried[rec.Version]; {
	case rec.Absent():
		if k.floor.Compare(e.asked) > 0 { // what was known is no tombstone that was to be forgotten
			bad = "absent"
		}
	case !ok || tried.Compare(rec) != 0:
		bad = "nobody wrote that"
	case rec.Version.Compare(k.floor) < 0:
		bad = "older than was known"
	case rec.Version == k.forgot:
		bad = "it was forgotten"
	}
	if bad != "" {
		b.wrong = append(b.wrong, fmt.Sprintf("%s %q reads as %s %q, at least %s was expected (acknowledged %s, forgotten %s): %s",
			ref.Namespace, ref.Key, rec.Version, rec.Value, k.floor, e.acked.Version, e.forgot, bad))
	}
	if rec.Version.Compare(e.seen) > 0 {
		e.seen = rec.Version
	}
}

func (b *books) refs() []kv.Ref {
	b.mu.Lock()
	defer b.mu.Unlock()
	return keysOf(b.keys)
}

func (b *books) put(ctx context.Context, s kv.Store, ref kv.Ref, tombstone bool) error {
	rec := b.record(ref, tombstone)
	err := s.Put(ctx, ref, rec)
	b.ack(ref, rec, err)
	return err
}

func (b *books) get(ctx context.Context, s kv.Store, ref kv.Ref) error {
	floor := b.floor(ref)
	rec, err := s.Get(ctx, ref, 0)
	if err == nil {
		b.read(ref, rec, floor)
	}
	return err
}

// forget forgets the tombstone of a key if that is its newest record. Nobody may
// write the key meanwhile.
func (b *books) forget(ctx context.Context, s kv.Store, ref kv.Ref) error {
	b.mu.Lock()
	e := b.entry(ref)
	v := e.acked.Version
	for tried := range e.tried {
		if tried.Compare(v) > 0 {
			v = tried
		}
	}
	possible := e.acked.Tombstone && e.acked.Version == v
	if possible {
		e.asked = v
	}
	b.mu.Unlock()
	if !possible {
		return nil
	}
	err := kv.Forget(ctx, s, []kv.Tomb{{Ref: ref, Version: v}})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		e.forgot = v
	}
	return err
}

// audit reads every key in every way.
func (b *books) audit(t testing.TB, what string, s *Shards) {
	t.Helper()
	ctx := context.Background()
	got := map[kv.Ref]kv.Record{}
	spaces := map[kv.NamespaceID]bool{}
	for _, ref := range b.refs() {
		floor := b.floor(ref)
		rec, err := s.Get(ctx, ref, 0)
		if err != nil {
			t.Fatalf("%s: get: %v", what, err)
		}
		b.read(ref, rec, floor)
		if !rec.Absent() {
			got[ref] = rec
			spaces[ref.Namespace] = true
		}
	}
	listed := 0
	for ns := range spaces {
		for opts := (kv.ListOptions{Limit: 7}); ; {
			page, err := s.List(ctx, ns, opts)
			if err != nil {
				t.Fatalf("%s: list: %v", what, err)
			}
			for _, k := range page.Keys {
				listed++
				if rec := got[kv.Ref{Namespace: ns, Key: k.Key}]; rec.Version != k.Record.Version {
					b.blame("%s: %s %q reads as %s and lists as %s", what, ns, k.Key, rec.Version, k.Record.Version)
				}
			}
			if opts.After = page.Last; !page.More {
				break
			}
		}
	}
	if listed != len(got) {
		b.blame("%s: %d keys are listed, %d are there", what, listed, len(got))
	}
	named := 0
	for from := (kv.NamespaceID{}); ; {
		ids, err := kv.Namespaces(ctx, s, from, 2)
		if err != nil {
			t.Fatalf("%s: namespaces: %v", what, err)
		}
		if len(ids) == 0 {
			break
		}
		for _, id := range ids {
			if !spaces[id] {
				b.blame("%s: namespace %s is listed and holds nothing", what, id)
			}
		}
		named, from = named+len(ids), ids[len(ids)-1]
	}
	if named != len(spaces) {
		b.blame("%s: %d namespaces are listed, %d hold records", what, named, len(spaces))
	}
}

// tidy checks that every record lies in the cluster that owns it and nowhere else.
func (b *books) tidy(t testing.TB, what string, s *Shards, clusters []Cluster) {
	t.Helper()
	v := s.current.Load()
	for _, ref := range b.refs() {
		if len(b.entry(ref).tried) == 0 {
			continue // of earlier times, in a cluster that no move has touched
		}
		home := v.place(ref.Namespace, ref.Key).home.Name
		for _, c := range clusters {
			rec, err := c.Store.Get(context.Background(), ref, 0)
			if err != nil {
				t.Fatal(err)
			}
			if c.Name != home && !rec.Absent() {
				b.blame("%s: %s %q lives in %s, and %s still holds %s", what, ref.Namespace, ref.Key, home, c.Name, rec.Version)
			}
		}
	}
}

func (b *books) verdict(t testing.TB, what string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, wrong := range b.wrong {
		if i == 5 {
			break
		}
		t.Errorf("%s: %s", what, wrong)
	}
}

// fate is the life of one process: it ends at a step, before or after that step is
// done. At each step of the process itself, its clients do something.
type fate struct {
	mu      sync.Mutex // guards the rest
	steps   int
	end     int // 0: never
	acted   bool
	dead    chan struct{}
	ended   bool
	inside  bool
	clients func(step int)
}

var errCrash = fmt.Errorf("%w: the process has crashed", kv.ErrUnavailable)

// do runs one step.
func (f *fate) do(step func() error) error {
	f.mu.Lock()
	f.steps++
	n, crash := f.steps, f.steps == f.end
	act, skip := crash && f.acted, f.ended || crash
	if crash {
		f.ended = true
		close(f.dead)
	}
	call := !skip && !f.inside && f.clients != nil
	if call {
		f.inside = true
	}
	f.mu.Unlock()
	if call {
		f.clients(n)
		f.mu.Lock()
		f.inside = false
		skip = f.ended
		f.mu.Unlock()
	}
	if skip && !act {
		return errCrash
	}
	if err := step(); err != nil || skip {
		return errors.Join(err, errCrash)
	}
	return nil
}

// mortal is a store as a process with a fate sees it.
type mortal struct {
	store kv.Store
	fate  *fate
}

func (m *mortal) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (rec kv.Record, err error) {
	if ref.Namespace == TableNamespace { // the clusters' copies of the table are written at any time
		return m.store.Get(ctx, ref, maxAge)
	}
	err = m.fate.do(func() (err error) { rec, err = m.store.Get(ctx, ref, maxAge); return err })
	return rec, err
}

func (m *mortal) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (recs []kv.Record, err error) {
	err = m.fate.do(func() (err error) { recs, err = kv.GetMany(ctx, m.store, refs, maxAge); return err })
	return recs, err
}

func (m *mortal) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if ref.Namespace == TableNamespace {
		return m.store.Put(ctx, ref, rec)
	}
	return m.fate.do(func() error { return m.store.Put(ctx, ref, rec) })
}

func (m *mortal) PutMany(ctx context.Context, writes []kv.Write) error {
	return m.fate.do(func() error { return kv.PutMany(ctx, m.store, writes) })
}

func (m *mortal) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	if ns == TableNamespace {
		return m.store.List(ctx, ns, opts)
	}
	opts.Limit = min(opts.PageLimit(), 3)
	err = m.fate.do(func() (err error) { page, err = m.store.List(ctx, ns, opts); return err })
	return page, err
}

func (m *mortal) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return m.fate.do(func() error { return kv.Forget(ctx, m.store, tombs) })
}

func (m *mortal) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return m.fate.do(func() error { return kv.Drop(ctx, m.store, ns) })
}

func (m *mortal) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	err = m.fate.do(func() (err error) { ids, err = kv.Namespaces(ctx, m.store, after, limit); return err })
	return ids, err
}

// mortalKeeper is a Keeper as a process with a fate sees it.
type mortalKeeper struct {
	Keeper
	fate *fate
}

func (m mortalKeeper) Save(text []byte) error {
	return m.fate.do(func() error { return m.Keeper.Save(text) })
}

// process opens the clusters in a process with a fate.
func process(t testing.TB, f *fate, clusters []Cluster, keeper Keeper) (*Shards, error) {
	t.Helper()
	own := slices.Clone(clusters)
	for i := range own {
		own[i].Store = &mortal{own[i].Store, f}
	}
	opts := quick(mortalKeeper{keeper, f})
	opts.ProbeEvery = time.Hour
	return NewShards(own, opts)
}

// namespaceIn returns the i-th namespace that has bucket 0 in a slot.
func namespaceIn(slot, i int) kv.NamespaceID {
	wanted := [2]int{slot, i}
	if ns, ok := foundIn.Load(wanted); ok {
		return ns.(kv.NamespaceID)
	}
	for n := 0; ; n++ {
		ns := kv.NamespaceID{1, byte(n >> 16), byte(n >> 8), byte(n)}
		if slotOf(ns, 0) == slot {
			if i == 0 {
				foundIn.Store(wanted, ns)
				return ns
			}
			i--
		}
	}
}

var foundIn sync.Map

// crashes are what a process is about when it crashes.
var crashes = []struct {
	name string
	move func(s *Shards, ns kv.NamespaceID) error
	done func(s *Shards, ns kv.NamespaceID) bool
}{
	{"move", func(s *Shards, ns kv.NamespaceID) error { return s.Move(slotOf(ns, 0), "c1") },
		func(s *Shards, ns kv.NamespaceID) bool { return s.table.owners[slotOf(ns, 0)] == "c1" }},
	{"spread", func(s *Shards, ns kv.NamespaceID) error { return s.Spread(ns, 2) },
		func(s *Shards, ns kv.NamespaceID) bool { return s.table.spread[ns] == 2 }},
	{"gather", func(s *Shards, ns kv.NamespaceID) error {
		return s.Spread(namespaceIn(slotOf(ns, 0), 1), 0)
	}, func(s *Shards, ns kv.NamespaceID) bool { return s.table.spread[namespaceIn(slotOf(ns, 0), 1)] == 0 }},
}

// A crash before or after any step of a move leaves what the next process carries
// on: nothing acknowledged is lost, nothing comes back, and in the end the old
// copies are gone.
func TestMoveSurvivesACrashAtEveryStep(t *testing.T) {
	for _, kind := range crashes {
		for _, acted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", kind.name, acted), func(t *testing.T) {
				n := 1
				for ; !t.Failed(); n++ {
					if !crashAt(t, n, acted, kind.move, kind.done) {
						break
					}
				}
				if n < 50 {
					t.Errorf("only %d steps", n)
				}
				t.Logf("%d steps", n)
			})
		}
	}
}

// crashAt runs a process that crashes at a step and another one that goes on. It
// returns false if the first came to its end.
func crashAt(t *testing.T, step int, acted bool, move func(*Shards, kv.NamespaceID) error, done func(*Shards, kv.NamespaceID) bool) (crashed bool) {
	what := fmt.Sprintf("crash at step %d", step)
	ctx := context.Background()
	clusters, keeper, b := memories(3), &heldTable{}, newBooks()
	ns, spread := namespaceIn(7, 0), namespaceIn(7, 1)
	setUp(t, clusters, keeper, b, ns, spread)

	f := &fate{end: step, acted: acted, dead: make(chan struct{})}
	s, err := process(t, f, clusters, keeper)
	if err != nil {
		t.Fatal(err)
	}
	f.clients = func(n int) { client(ctx, b, s, ns, spread, n) }
	if err := move(s, ns); err == nil {
		stop := run(t, s)
		for finished := false; !finished; {
			changed := s.changed.C()
			select {
			case <-f.dead:
				finished = true
			default:
				if finished = len(s.Status().Moves) == 0; !finished {
					select {
					case <-changed:
					case <-f.dead:
					}
				}
			}
		}
		stop()
	}
	f.mu.Lock()
	crashed = f.ended
	f.ended, f.clients = true, nil
	f.mu.Unlock()

	s = mustShards(t, clusters, quick(keeper))
	b.audit(t, what+", at once", s)
	stop := run(t, s)
	defer stop()
	awaitMoves(t, s)
	if !done(s, ns) {
		if err := move(s, ns); err != nil {
			t.Fatal(err)
		}
		awaitMoves(t, s)
	}
	b.audit(t, what+", in the end", s)
	b.tidy(t, what, s, clusters)
	b.verdict(t, what)
	return crashed
}

// firstTable is of three clusters: slot 7 is in the first one, and the second
// namespace of it is spread.
var firstTable = sync.OnceValue(func() []byte {
	shares := []share{{"c0", 1}, {"c1", 1}, {"c2", 1}}
	first := newTable(func(slot int) string { return propose(shares, slot) })
	first.owners[7] = "c0"
	first.spread[namespaceIn(7, 1)] = 2
	return first.encode()
})

// setUp fills two namespaces of one slot, of which one is spread, and leaves in the
// other clusters what they may still hold from earlier times.
func setUp(t *testing.T, clusters []Cluster, keeper Keeper, b *books, ns, spread kv.NamespaceID) {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(keeper.Save(firstTable()))
	s := mustShards(t, clusters, quick(keeper))
	must(b.put(ctx, s, kv.Ref{Namespace: namespaceIn(9, 0), Key: "elsewhere"}, false))
	for i := range 8 {
		for _, ns := range []kv.NamespaceID{ns, spread} {
			ref := kv.Ref{Namespace: ns, Key: fmt.Sprint("key ", i)}
			must(b.put(ctx, s, ref, false))
			if i%3 == 0 {
				must(b.put(ctx, s, ref, true))
			}
			stale := kv.Record{Version: kv.NewVersion(1, 0, 0), Value: []byte("of earlier times")}
			ghost := kv.Ref{Namespace: ns, Key: fmt.Sprint("ghost ", i)}
			b.floor(ghost) // nobody wrote it
			for _, c := range clusters[1:] {
				if home := s.current.Load().place(ns, ghost.Key).home; home.Name != c.Name {
					must(c.Store.Put(ctx, ghost, stale))
				}
			}
		}
	}
}

// client does one thing at a step of the process.
func client(ctx context.Context, b *books, s *Shards, ns, spread kv.NamespaceID, n int) {
	ref := kv.Ref{Namespace: []kv.NamespaceID{ns, spread}[n/8%2], Key: fmt.Sprint("key ", n%11)}
	switch n % 7 {
	case 0, 1, 2:
		_ = b.put(ctx, s, ref, false)
	case 3, 4:
		_ = b.put(ctx, s, ref, true)
	case 5:
		// The step may be one of a batch, for whose end a forgetting waits.
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		for i := range 11 {
			_ = b.forget(ctx, s, kv.Ref{Namespace: ref.Namespace, Key: fmt.Sprint("key ", i)})
		}
	}
	if n%3 == 0 {
		_ = b.get(ctx, s, kv.Ref{Namespace: ref.Namespace, Key: fmt.Sprint("key ", n/3%11)})
	}
}
