package backup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
)

// world is a store with a barrier, and an archive in memory.
type world struct {
	t       testing.TB
	store   kv.Store
	barrier *Barrier
	bucket  *blob.Memory
	archive *Archive
	stamp   *kv.Stamper
	clock   time.Time // zero: the real one
	take    Snapshotter
	restore Restorer
}

func newWorld(t testing.TB, store kv.Store) *world {
	w := &world{t: t, store: store, barrier: NewBarrier(store), bucket: &blob.Memory{}}
	w.archive = NewArchive(w.bucket)
	w.stamp = kv.NewStamper(1, w.now)
	w.take = Snapshotter{Barrier: w.barrier, Origin: "here", Retention: 24 * time.Hour, Now: w.now, MaxPause: 10 * time.Second}
	w.restore = Restorer{Barrier: w.barrier, Front: w.barrier, Stamp: w.stamp, Retention: 24 * time.Hour, Now: w.now}
	return w
}

func (w *world) now() time.Time {
	if w.clock.IsZero() {
		return time.Now()
	}
	w.clock = w.clock.Add(time.Microsecond)
	return w.clock
}

var (
	nsA = kv.NamespaceID{1}
	nsB = kv.NamespaceID{2}
)

func (w *world) version() kv.Version {
	w.t.Helper()
	v, err := w.stamp.Stamp()
	w.check(err)
	return v
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(ns kv.NamespaceID, key, value string) {
	w.t.Helper()
	w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: ns, Key: key}, kv.Record{Version: w.version(), Value: []byte(value)}))
}

func (w *world) delete(ns kv.NamespaceID, key string) {
	w.t.Helper()
	w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: ns, Key: key}, kv.Tombstone(w.version())))
}

func (w *world) stream(wanted []Wanted) *bytes.Buffer {
	var b bytes.Buffer
	w.check(w.take.Run(context.Background(), wanted, &b))
	return &b
}

func fulls(ids ...kv.NamespaceID) (wanted []Wanted) {
	for _, id := range ids {
		wanted = append(wanted, Wanted{Namespace: Namespace{ID: id.String(), Title: "title " + id.String()[:2]}})
	}
	return wanted
}

// full takes a full snapshot of namespaces.
func (w *world) full(ids ...kv.NamespaceID) *Manifest {
	w.t.Helper()
	m, err := w.archive.Save(context.Background(), w.stream(fulls(ids...)), SaveOptions{Whole: true})
	w.check(err)
	return m
}

// more continues what there is.
func (w *world) more(ids ...kv.NamespaceID) *Manifest {
	w.t.Helper()
	var namespaces []Namespace
	for _, f := range fulls(ids...) {
		namespaces = append(namespaces, f.Namespace)
	}
	wanted, parents, origin, err := w.archive.Parents(context.Background(), namespaces)
	w.check(err)
	m, err := w.archive.Save(context.Background(), w.stream(wanted), SaveOptions{Whole: true, Parents: parents, Origin: origin})
	w.check(err)
	return m
}

// bring puts back what opts ask for, into the namespaces that it came from or
// that to names.
func (w *world) bring(opts PlanOptions, target Target, to map[string]kv.NamespaceID) ([]Result, error) {
	w.t.Helper()
	plan, err := w.archive.Plan(context.Background(), opts)
	w.check(err)
	var results []Result
	for _, r := range plan {
		target.Namespace = r.Content.Namespace
		if id, ok := to[r.Content.ID]; ok {
			target.ID = id.String()
		}
		body, feed := io.Pipe()
		go func() { _ = feed.CloseWithError(w.archive.Send(context.Background(), feed, r, target, nil)) }()
		in, err := Receive(body)
		w.check(err)
		result, err := w.restore.Restore(context.Background(), in, nil)
		_ = body.CloseWithError(err)
		if err != nil {
			return results, err
		}
		results = append(results, result)
	}
	return results, nil
}

// records are all of a namespace.
func records(t testing.TB, store kv.Store, ns kv.NamespaceID) map[string]kv.Record {
	t.Helper()
	all := map[string]kv.Record{}
	c := newCursor(store, ns)
	for {
		page, err := c.next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if page == nil {
			return all
		}
		for _, k := range page {
			rec, err := store.Get(context.Background(), kv.Ref{Namespace: ns, Key: k.Key}, 0)
			if err != nil {
				t.Fatal(err)
			}
			all[k.Key] = rec
		}
	}
}

// namespaces are those that hold records, but for the notes.
func (w *world) namespaces() (ids []kv.NamespaceID) {
	w.t.Helper()
	all, err := kv.Namespaces(context.Background(), w.store, kv.NamespaceID{}, 10)
	w.check(err)
	for _, id := range all {
		if id != noteRef(nsA).Namespace {
			ids = append(ids, id)
		}
	}
	return ids
}

// equal reports how two namespaces differ.
func equal(got, want map[string]kv.Record) error {
	for key, w := range want {
		if g, ok := got[key]; !ok || g.Compare(w) != 0 {
			return fmt.Errorf("key %q: got %v, want %v", key, brief(g), brief(w))
		}
	}
	for key, g := range got {
		if _, ok := want[key]; !ok {
			return fmt.Errorf("key %q: got %v, want nothing", key, brief(g))
		}
	}
	return nil
}

// visible are the values that a user sees.
func visible(all map[string]kv.Record) map[string]string {
	values := map[string]string{}
	for key, rec := range all {
		if !rec.Tombstone {
			values[key] = string(rec.Value)
		}
	}
	return values
}

func brief(r kv.Record) string {
	return fmt.Sprintf("{%s tombstone=%t expiration=%d metadata=%q %.20q (%d bytes)}", r.Version, r.Tombstone, r.Expiration, r.Metadata, r.Value, len(r.Value))
}

// random fills a namespace with records of every kind.
func (w *world) random(ns kv.NamespaceID, rng *rand.Rand, writes int) {
	for range writes {
		key := awkward[rng.IntN(len(awkward))]
		if rng.IntN(2) == 0 {
			key = fmt.Sprint("key ", rng.IntN(writes))
		}
		rec := kv.Record{Version: w.version(), Value: make([]byte, rng.IntN(200))}
		for i := range rec.Value {
			rec.Value[i] = byte(rng.Uint32())
		}
		switch rng.IntN(6) {
		case 0:
			rec = kv.Tombstone(rec.Version)
		case 1:
			rec.Expiration = w.now().Unix() + 1000 + rng.Int64N(1000)
		case 2:
			rec.Metadata = []byte(fmt.Sprintf(`{"n":%d}`, rng.IntN(1000)))
		case 3:
			rec.Value = nil
		}
		w.check(w.barrier.Put(context.Background(), kv.Ref{Namespace: ns, Key: key}, rec))
	}
}

var awkward = []string{"\x00", "\xff\xff", "a", "a\x00", "ab", "é", string(bytes.Repeat([]byte("k"), kv.MaxKeyBytes)), "key"}
