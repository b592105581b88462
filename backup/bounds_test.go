package backup

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// vast is a store of many records that exist only while they are read. It asks for
// the memory of large ones, as a store should.
type vast struct {
	*memory.Store
	records int
	bytes   int
	most    atomic.Int64 // bytes of values in one answer
}

func (v *vast) key(i int) string { return fmt.Sprintf("key %09d", i) }

func (v *vast) record(i int) kv.Record {
	return kv.Record{Version: kv.NewVersion(int64(i+1), 1, 1), Metadata: []byte(`{"n":1}`)}
}

func (v *vast) List(_ context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	first := 0
	if ns != nsA {
		return kv.Page{}, nil
	}
	if opts.After != "" {
		after, err := strconv.Atoi(opts.After[len("key "):])
		if err != nil {
			return page, err
		}
		first = after + 1
	}
	for i := first; i < v.records; i++ {
		if len(page.Keys) == opts.PageLimit() {
			page.Last, page.More = page.Keys[len(page.Keys)-1].Key, true
			break
		}
		page.Keys = append(page.Keys, kv.Listed{Key: v.key(i), Record: v.record(i)})
	}
	return page, nil
}

func (v *vast) GetMany(ctx context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Record, error) {
	recs := make([]kv.Record, len(refs))
	total := int64(0)
	for n, ref := range refs {
		i, err := strconv.Atoi(ref.Key[len("key "):])
		if err != nil {
			return nil, err
		}
		if v.bytes >= kv.ReserveBytes {
			if err := kv.Reserve(ctx, int64(v.bytes)); err != nil {
				return nil, err
			}
		}
		recs[n] = v.record(i)
		recs[n].Value = make([]byte, v.bytes)
		total += int64(v.bytes)
	}
	v.most.Store(max(v.most.Load(), total))
	return recs, nil
}

// forgetful is a bucket that only counts, and notes how much memory is in use.
type forgetful struct {
	blob.Memory
	stored, heap int64
}

func (f *forgetful) Put(ctx context.Context, name string, data []byte) error {
	f.stored += int64(len(data))
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap = max(f.heap, int64(m.HeapAlloc))
	if len(data) > SegmentBytes && name[:len(segmentPrefix)] == segmentPrefix {
		return fmt.Errorf("a segment of %d bytes", len(data))
	}
	return nil
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// pipe takes a snapshot and stores it at once, as a server and its caller do.
func (w *world) pipe(archive *Archive, wanted []Wanted) (*Manifest, error) {
	r, feed := io.Pipe()
	go func() { _ = feed.CloseWithError(w.take.Run(context.Background(), wanted, feed)) }()
	m, err := archive.Save(context.Background(), r, SaveOptions{})
	_ = r.CloseWithError(err)
	return m, err
}

// Half a gigabyte of values of the greatest size, and a hundred thousand of small ones,
// pass through memory that is bounded.
func TestMemoryIsBounded(t *testing.T) {
	const bound = 400 << 20 // the collector lets garbage gather to as much as is in use
	for name, v := range map[string]*vast{
		"large": {Store: memory.New(), records: 24, bytes: kv.MaxValueBytes},
		"small": {Store: memory.New(), records: 100_000, bytes: 100},
	} {
		w := newWorld(t, v)
		bucket := &forgetful{}
		before := heap()
		m, err := w.pipe(NewArchive(bucket), fulls(nsA))
		if err != nil {
			t.Fatal(err)
		}
		if m.Records != int64(v.records) || bucket.stored < int64(v.records*v.bytes) {
			t.Errorf("%s: %d records, %d bytes stored", name, m.Records, bucket.stored)
		}
		if used := bucket.heap - before; used > bound {
			t.Errorf("%s: %d MiB were in use", name, used>>20)
		}
		if most := v.most.Load(); most > max(readBytes, kv.MaxValueBytes) {
			t.Errorf("%s: %d bytes were read at once", name, most)
		}
		t.Logf("%s: %d MiB stored, %d MiB in use at most, %d KiB read at once", name, bucket.stored>>20, (bucket.heap-before)>>20, v.most.Load()>>10)
	}
}

// A hundred thousand keys are restored into a live namespace, compared key by key,
// and rewound.
func TestManyKeys(t *testing.T) {
	v := &vast{Store: memory.New(), records: 100_000, bytes: 20}
	w := newWorld(t, v)
	if _, err := w.pipe(w.archive, fulls(nsA)); err != nil {
		t.Fatal(err)
	}
	other := newWorld(t, memory.New())
	other.archive = w.archive
	other.restore.Retention = 0
	other.put(nsA, "own", "1")
	results, err := other.bring(PlanOptions{}, Target{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := results[0]; got.Received != 100_000 || got.Written != 100_000 {
		t.Errorf("restored: %+v", got)
	}
	other.put(nsA, v.key(50_000), "changed")
	if results, err = other.bring(PlanOptions{}, Target{Rewind: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got := results[0]; got.Written != 1 || got.Deleted != 1 || got.Unchanged != 99_999 {
		t.Errorf("rewound: %+v", got)
	}
}
