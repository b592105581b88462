package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// bucket is a bucket in memory that fails on demand, and fails the test when a
// name is put with other bytes than before.
type bucket struct {
	blob.Memory
	t testing.TB

	mu     sync.Mutex // guards what follows
	puts   int
	onPut  func(ctx context.Context, name string) error // before the put, nil: nothing
	onGet  func(ctx context.Context, name string) error // before the get, nil: nothing
	onList func(ctx context.Context, prefix, after string) error
}

func (b *bucket) Put(ctx context.Context, name string, data []byte) error {
	b.mu.Lock()
	hook := b.onPut
	b.puts++
	b.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, name); err != nil {
			return err
		}
	}
	if was, err := b.Memory.Get(ctx, name); err == nil && len(was) == len(data) && !bytes.Equal(was, data) && !slices.Contains(was, damage) {
		b.t.Errorf("%s was put with other bytes", name)
	}
	return b.Memory.Put(ctx, name, data)
}

func (b *bucket) Get(ctx context.Context, name string) ([]byte, error) {
	b.mu.Lock()
	hook := b.onGet
	b.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, name); err != nil {
			return nil, err
		}
	}
	return b.Memory.Get(ctx, name)
}

func (b *bucket) List(ctx context.Context, prefix, after string, limit int) ([]blob.Info, bool, error) {
	b.mu.Lock()
	hook := b.onList
	b.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, prefix, after); err != nil {
			return nil, false, err
		}
	}
	return b.Memory.List(ctx, prefix, after, limit)
}

// names are the names of all blobs, in order.
func (b *bucket) names() (names []string) {
	for after := ""; ; {
		infos, more, err := b.Memory.List(context.Background(), "", after, 0)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, info := range infos {
			names, after = append(names, info.Name), info.Name
		}
		if !more {
			return names
		}
	}
}

// damage is a byte that damaged blobs are made of, and no value of these tests.
const damage = 0xda

// fixture is a Split over rows and blobs in memory.
type fixture struct {
	*Split
	t      testing.TB
	rows   *kvtest.Faulty
	bucket *bucket

	mu     sync.Mutex                           // guards what follows
	inject func(kvtest.Op, kv.Ref) kvtest.Fault // nil: none
	missed []kv.Ref
	time   int64
}

func newFixture(t testing.TB, opts SplitOptions) *fixture {
	f := &fixture{t: t, bucket: &bucket{t: t}, time: time.Now().UnixNano()}
	f.rows = &kvtest.Faulty{Store: memory.New(), Inject: func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		f.mu.Lock()
		inject := f.inject
		f.mu.Unlock()
		if inject == nil {
			return kvtest.None
		}
		return inject(op, ref)
	}}
	opts.Missing = func(ref kv.Ref) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.missed = append(f.missed, ref)
	}
	f.Split = NewSplit(namespacing{f.rows}, f.bucket, f.bucket, opts)
	return f
}

// namespacing passes the one ability on that a Faulty store lacks.
type namespacing struct{ *kvtest.Faulty }

func (n namespacing) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	return kv.Namespaces(ctx, n.Store, after, limit)
}

func (f *fixture) next() kv.Version {
	f.time++
	return kv.NewVersion(f.time, 1, 1)
}

var testNamespace = kv.NamespaceID{1, 2, 3}

func testRef(key string) kv.Ref { return kv.Ref{Namespace: testNamespace, Key: key} }

// large is a value of n bytes that begins with text.
func large(text string, n int) []byte {
	value := bytes.Repeat([]byte("."), n)
	copy(value, text)
	return value
}

func (f *fixture) put(key string, value []byte) kv.Record {
	f.t.Helper()
	rec := kv.Record{Version: f.next(), Value: value, Metadata: []byte(`{"of":"` + key + `"}`)}
	if err := f.Put(f.t.Context(), testRef(key), rec); err != nil {
		f.t.Fatalf("put %q: %v", key, err)
	}
	return rec
}

func (f *fixture) mustGet(key string, want kv.Record) {
	f.t.Helper()
	got, err := f.Get(f.t.Context(), testRef(key), 0)
	if err != nil {
		f.t.Fatalf("get %q: %v", key, err)
	}
	if got.Compare(want) != 0 {
		f.t.Fatalf("get %q: version %s and %d bytes, want version %s and %d bytes", key, got.Version, len(got.Value), want.Version, len(want.Value))
	}
}

func (f *fixture) mustBeDamaged(key string) {
	f.t.Helper()
	if _, err := f.Get(f.t.Context(), testRef(key), 0); !errors.Is(err, kv.ErrDamaged) {
		f.t.Fatalf("get %q: %v, want ErrDamaged", key, err)
	}
}

func (f *fixture) fail(inject func(kvtest.Op, kv.Ref) kvtest.Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inject = inject
}

// refuse is a fault of one operation.
func refuse(op kvtest.Op, fault kvtest.Fault) func(kvtest.Op, kv.Ref) kvtest.Fault {
	return func(got kvtest.Op, _ kv.Ref) kvtest.Fault {
		if got == op {
			return fault
		}
		return kvtest.None
	}
}

// lawThresholds are those that the laws are checked with. In between, where the
// random law would mix values in rows with values in blobs under one version, a
// tie is broken by what the rows show of them (see split_row.go).
var lawThresholds = map[string]int{"very large values are blobs": 2 * kv.ReserveBytes, "all values are blobs": -1}

func TestSplitLaws(t *testing.T) {
	for name, inline := range lawThresholds {
		t.Run(name, func(t *testing.T) {
			kvtest.Run(t, func(t *testing.T) kv.Store { return newFixture(t, SplitOptions{InlineBytes: inline}) })
		})
	}
}

func TestThreshold(t *testing.T) {
	for _, c := range []struct{ option, limit int }{{0, InlineBytes}, {1, 1}, {5000, 5000}, {-1, -1}} {
		f := newFixture(t, SplitOptions{InlineBytes: c.option})
		at, past := kv.Record{}, f.put("past", large("b", c.limit+1))
		if c.limit >= 0 {
			at = f.put("at", large("a", c.limit))
		}
		f.must(f.Put(t.Context(), testRef("gone"), kv.Tombstone(f.next())))
		if names := f.bucket.names(); len(names) != 1 || !strings.Contains(names[0], past.Version.String()) {
			t.Errorf("limit %d: blobs %v, want that of version %s alone", c.limit, names, past.Version)
		}
		f.mustGet("at", at)
		f.mustGet("past", past)
	}
}

func TestListShowsTheMetadataOfTheRecord(t *testing.T) {
	f := newFixture(t, SplitOptions{})
	metadata := [][]byte{nil, []byte(`{"n":1}`), {0}, {1}, {2}, []byte("m\x00"), []byte("m\x01"), []byte("m\x02"), []byte("m\x00\x00"), bytes.Repeat([]byte{1}, 60)}
	for i, m := range metadata {
		for size, value := range map[string][]byte{"empty": {}, "small": []byte("v"), "inline": large("v", InlineBytes), "blob": large("v", InlineBytes+1)} {
			rec := kv.Record{Version: f.next(), Metadata: m, Value: value}
			key := fmt.Sprint(i, " ", size)
			if err := f.Put(t.Context(), testRef(key), rec); err != nil {
				t.Fatal(err)
			}
			f.mustGet(key, rec)
			page, err := f.List(t.Context(), testNamespace, kv.ListOptions{Prefix: key})
			if err != nil || len(page.Keys) != 1 || !bytes.Equal(page.Keys[0].Record.Metadata, m) {
				t.Errorf("metadata %q of %s is listed as %+v, %v", m, size, page.Keys, err)
			}
		}
	}
}

func TestCrashBetweenBlobAndRow(t *testing.T) {
	for _, fault := range []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, SplitOptions{})
			kept := f.put("kept", large("kept", InlineBytes+1))
			f.fail(refuse(kvtest.OpPut, fault))
			lost := kv.Record{Version: f.next(), Value: large("lost", InlineBytes+1)}
			if err := f.Put(t.Context(), testRef("lost"), lost); !errors.Is(err, kvtest.ErrInjected) {
				t.Fatalf("put: %v", err)
			}
			f.fail(nil)
			if n := len(f.bucket.names()); n != 2 {
				t.Fatalf("%d blobs, want 2", n)
			}
			time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + OrphanAge - 1)))
			f.mustSweep(SweepReport{Namespaces: 1, Rows: 1 + int(fault-kvtest.Refused), Blobs: 2, Young: int(kvtest.Unacknowledged - fault)})
			if n := len(f.bucket.names()); n != 2 {
				t.Fatalf("a moment before OrphanAge %d blobs are left, want 2", n)
			}
			time.Sleep(time.Nanosecond)
			f.mustSweep(SweepReport{Namespaces: 1, Rows: 1 + int(fault-kvtest.Refused), Blobs: 2, Orphans: int(kvtest.Unacknowledged - fault)})
			f.mustGet("kept", kept)
			if fault == kvtest.Unacknowledged {
				f.mustGet("lost", lost)
			}
			if n := len(f.bucket.names()); n != 1+int(fault-kvtest.Refused) {
				t.Fatalf("at OrphanAge %d blobs are left", n)
			}
		})
	}
}

func TestMissingBlobIsRepairedByPuttingTheRecordAgain(t *testing.T) {
	for name, ruin := range map[string]func(f *fixture, blob string){
		"missing":  func(f *fixture, blob string) { f.must(f.bucket.Delete(f.t.Context(), []string{blob})) },
		"empty":    func(f *fixture, blob string) { f.must(f.bucket.Memory.Put(f.t.Context(), blob, nil)) },
		"altered":  func(f *fixture, blob string) { f.alter(blob) },
		"refused":  func(f *fixture, blob string) { f.refuseGet(fmt.Errorf("hash: %w", kv.ErrDamaged)) },
		"vanished": func(f *fixture, blob string) { f.refuseGet(fmt.Errorf("gone: %w", fs.ErrNotExist)) },
	} {
		for _, later := range []time.Duration{0, 2 * time.Hour} {
			t.Run(fmt.Sprint(name, " ", later), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, SplitOptions{})
					rec := f.put("k", large("value", InlineBytes+1))
					ruin(f, f.bucket.names()[0])
					f.mustBeDamaged("k")
					if _, err := f.GetMany(t.Context(), []kv.Ref{testRef("absent"), testRef("k")}, 0); !errors.Is(err, kv.ErrDamaged) {
						t.Fatalf("get many: %v, want ErrDamaged", err)
					}
					if n := f.Stats().Damaged; n != 2 {
						t.Errorf("%d damaged reads are counted, want 2", n)
					}
					time.Sleep(later)
					f.refuseGet(nil)
					if err := f.Put(t.Context(), testRef("k"), rec); err != nil {
						t.Fatal(err)
					}
					f.mustGet("k", rec)
				})
			})
		}
	}
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// alter keeps a blob's size and not its bytes.
func (f *fixture) alter(name string) {
	f.t.Helper()
	data, err := f.bucket.Memory.Get(f.t.Context(), name)
	f.must(err)
	data = bytes.Clone(data)
	data[len(data)/2] = damage
	f.must(f.bucket.Memory.Put(f.t.Context(), name, data))
}

func (f *fixture) refuseGet(err error) {
	f.bucket.mu.Lock()
	defer f.bucket.mu.Unlock()
	f.bucket.onGet = nil
	if err != nil {
		f.bucket.onGet = func(context.Context, string) error { return err }
	}
}

// A lost blob is repaired even when its value would no longer be a blob, whether a
// read has found the loss or a sweep.
func TestRepairAfterTheThresholdWasRaised(t *testing.T) {
	for _, metadata := range []string{"", `{"m":1}`, "1", "\x01"} {
		for name, put := range map[string]func(*fixture, kv.Write) error{
			"put":      func(f *fixture, w kv.Write) error { return f.Put(f.t.Context(), w.Ref, w.Record) },
			"put many": func(f *fixture, w kv.Write) error { return f.PutMany(f.t.Context(), []kv.Write{w}) },
		} {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, SplitOptions{InlineBytes: 1000})
				w := kv.Write{Ref: testRef("k"), Record: kv.Record{Version: f.next(), Value: large("v", 1001), Metadata: []byte(metadata)}}
				f.must(put(f, w))
				f.must(f.bucket.Delete(t.Context(), f.bucket.names()))
				if name == "put" {
					f.mustBeDamaged("k")
				} else {
					later()
					f.mustSweep(SweepReport{Namespaces: 1, Rows: 1, Missing: 1})
				}
				f.opts.InlineBytes = 2000
				f.must(put(f, w))
				f.mustGet("k", w.Record)
				if f.broken.Load() != 0 || len(f.lost) != 0 {
					t.Error("what was repaired is still remembered as lost")
				}
			})
		}
	}
}

// Remembering what was lost is bounded; what was not remembered is found again.
func TestLostIsBounded(t *testing.T) {
	f := newFixture(t, SplitOptions{InlineBytes: 1000})
	recs := make([]kv.Record, maxLost+1)
	for i := range recs {
		recs[i] = f.put(fmt.Sprint(i), large("v", 1001))
	}
	f.must(f.bucket.Delete(t.Context(), f.bucket.names()))
	for i := range recs {
		f.mustBeDamaged(fmt.Sprint(i))
	}
	if n := len(f.lost); n != maxLost {
		t.Errorf("%d lost records are remembered, want %d", n, maxLost)
	}
	f.opts.InlineBytes = 2000
	for i, rec := range recs {
		f.must(f.Put(t.Context(), testRef(fmt.Sprint(i)), rec))
	}
	f.mustBeDamaged(fmt.Sprint(maxLost))
	f.must(f.Put(t.Context(), testRef(fmt.Sprint(maxLost)), recs[maxLost]))
	for i, rec := range recs {
		f.mustGet(fmt.Sprint(i), rec)
	}
}

func TestRowSupersededWhileItsBlobIsRead(t *testing.T) {
	for name, newer := range map[string]kv.Record{
		"by a blob": {Value: large("newer", InlineBytes+1)}, "by a small value": {Value: []byte("newer")}, "by a tombstone": {Tombstone: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, SplitOptions{})
			f.put("k", large("older", InlineBytes+1))
			f.bucket.onGet = func(ctx context.Context, name string) error {
				f.refuseGet(nil)
				newer.Version = f.next()
				f.must(f.Put(ctx, testRef("k"), newer))
				return f.bucket.Delete(ctx, []string{name})
			}
			f.bucket.mu.Lock()
			hook := f.bucket.onGet
			f.bucket.mu.Unlock()
			got, err := f.Get(t.Context(), testRef("k"), 0)
			if err != nil || hook == nil || got.Compare(newer) != 0 {
				t.Fatalf("get: %v, version %s, want version %s", err, got.Version, newer.Version)
			}
		})
	}
}

func TestReserve(t *testing.T) {
	f := newFixture(t, SplitOptions{})
	f.put("below", large("v", kv.ReserveBytes-1))
	f.put("at", large("v", kv.ReserveBytes))
	var asked []int64
	ctx := kv.WithReserver(t.Context(), func(n int64) error { asked = append(asked, n); return kv.ErrOverloaded })
	if _, err := f.Get(ctx, testRef("below"), 0); err != nil {
		t.Errorf("get of a value too small to ask for: %v", err)
	}
	gets := f.Stats().Gets
	if _, err := f.Get(ctx, testRef("at"), 0); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("get without memory: %v, want ErrOverloaded", err)
	}
	if _, err := f.GetMany(ctx, []kv.Ref{testRef("at")}, 0); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("get many without memory: %v, want ErrOverloaded", err)
	}
	if !slices.Equal(asked, []int64{kv.ReserveBytes, kv.ReserveBytes}) || f.Stats().Gets != gets {
		t.Errorf("asked for %v and read %d blobs", asked, f.Stats().Gets-gets)
	}
}

func TestPutManyWritesNoRowWhenABlobFails(t *testing.T) {
	f := newFixture(t, SplitOptions{})
	full := fmt.Errorf("bucket: %w", kv.ErrFull)
	f.bucket.onPut = func(ctx context.Context, name string) error { return full }
	err := f.PutMany(t.Context(), []kv.Write{
		{Ref: testRef("small"), Record: kv.Record{Version: f.next(), Value: []byte("v")}},
		{Ref: testRef("large"), Record: kv.Record{Version: f.next(), Value: large("v", InlineBytes+1)}}})
	if !errors.Is(err, kv.ErrFull) {
		t.Errorf("put many: %v, want ErrFull", err)
	}
	f.mustGet("small", kv.Record{})
	f.mustGet("large", kv.Record{})
	if len(f.pending) != 0 {
		t.Errorf("%d blobs are pending after all puts", len(f.pending))
	}
}

func TestPutManyWritesOnlyTheNewestBlobOfAKey(t *testing.T) {
	f := newFixture(t, SplitOptions{})
	var writes []kv.Write
	for i := range 5 {
		writes = append(writes, kv.Write{Ref: testRef("k"), Record: kv.Record{Version: f.next(), Value: large(fmt.Sprint(i), InlineBytes+1)}})
	}
	newest := writes[4]
	gone := kv.Write{Ref: testRef("gone"), Record: kv.Record{Version: f.next(), Value: large("gone", InlineBytes+1)}}
	tomb := kv.Write{Ref: testRef("gone"), Record: kv.Tombstone(f.next())}
	slices.Reverse(writes)
	f.must(f.PutMany(t.Context(), append(writes, tomb, gone)))
	f.mustGet("k", newest.Record)
	f.mustGet("gone", tomb.Record)
	if f.bucket.puts != 1 {
		t.Errorf("%d blobs were written, want 1", f.bucket.puts)
	}
}

func TestBlobsOfACallMoveTogetherAndNotAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3 * blobsAtOnce
		f := newFixture(t, SplitOptions{})
		now, most := 0, 0
		slow := func(ctx context.Context, _ string) error {
			f.mu.Lock()
			now++
			most = max(most, now)
			f.mu.Unlock()
			time.Sleep(time.Second)
			f.mu.Lock()
			now--
			f.mu.Unlock()
			return nil
		}
		f.bucket.onPut, f.bucket.onGet = slow, slow
		var writes []kv.Write
		var refs []kv.Ref
		for i := range n {
			refs = append(refs, testRef(fmt.Sprint(i)))
			writes = append(writes, kv.Write{Ref: refs[i], Record: kv.Record{Version: f.next(), Value: large(fmt.Sprint(i), InlineBytes+1)}})
		}
		began := time.Now()
		f.must(f.PutMany(t.Context(), writes))
		recs, err := f.GetMany(t.Context(), refs, 0)
		f.must(err)
		for i := range recs {
			if recs[i].Compare(writes[i].Record) != 0 {
				t.Fatalf("record %d differs", i)
			}
		}
		if took := time.Since(began); most != blobsAtOnce || took != 6*time.Second {
			t.Errorf("at most %d blobs moved at once, in %s; want %d in 6s", most, took, blobsAtOnce)
		}
	})
}

func TestFirstFailureEndsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		bad := errors.New("bad")
		err := eachBlob(t.Context(), 100, func(ctx context.Context, i int) error {
			if i == blobsAtOnce-1 {
				time.Sleep(time.Second)
				return bad
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, bad) {
			t.Errorf("each blob: %v, want the first failure", err)
		}
		_ = f
	})
}

// A bucket that hangs costs the caller's deadline, and if there is none MaxPut.
func TestPutEndsAtMaxPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, SplitOptions{})
		f.bucket.onPut = func(ctx context.Context, _ string) error { <-ctx.Done(); return fmt.Errorf("bucket: %w", ctx.Err()) }
		w := kv.Write{Ref: testRef("k"), Record: kv.Record{Version: f.next(), Value: large("v", InlineBytes+1)}}
		for name, put := range map[string]func(context.Context) error{
			"put":      func(ctx context.Context) error { return f.Put(ctx, w.Ref, w.Record) },
			"put many": func(ctx context.Context) error { return f.PutMany(ctx, []kv.Write{w, w}) },
		} {
			began := time.Now()
			err := put(t.Context())
			if took := time.Since(began); took != MaxPut || !errors.Is(err, kv.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s without a deadline took %s: %v; want %s and ErrUnknown", name, took, err, MaxPut)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began = time.Now()
			err = put(ctx)
			cancel()
			if took := time.Since(began); took != time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s with a deadline took %s: %v", name, took, err)
			}
		}
		if len(f.pending) != 0 {
			t.Errorf("%d blobs are pending after all puts", len(f.pending))
		}
	})
}

func TestDrop(t *testing.T) {
	f := newFixture(t, SplitOptions{})
	other := kv.Ref{Namespace: kv.NamespaceID{1, 2, 4}, Key: "k"}
	kept := kv.Record{Version: f.next(), Value: large("v", InlineBytes+1)}
	f.must(f.Put(t.Context(), other, kept))
	for i := range blobPage + 1 {
		f.put(fmt.Sprint(i), large("v", InlineBytes+1))
	}
	lists := 0
	f.bucket.onList = func(context.Context, string, string) error {
		if lists++; lists == 2 {
			return fmt.Errorf("bucket: %w", kv.ErrUnavailable)
		}
		return nil
	}
	if err := f.Drop(t.Context(), testNamespace); !errors.Is(err, kv.ErrUnavailable) {
		t.Fatalf("drop while the bucket fails: %v", err)
	}
	f.mustGet("0", kv.Record{})
	if n := len(f.bucket.names()); n != 2 {
		t.Errorf("%d blobs are left after half a drop, want 2", n)
	}
	f.must(f.Drop(t.Context(), testNamespace))
	if n := len(f.bucket.names()); n != 1 {
		t.Errorf("%d blobs are left after the drop, want 1", n)
	}
	if got, err := f.Get(t.Context(), other, 0); err != nil || got.Compare(kept) != 0 {
		t.Errorf("the other namespace: %v", err)
	}
}
