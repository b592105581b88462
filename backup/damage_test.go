package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/internal/s3test"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/store/s3"
)

func (w *world) names(prefix string) []string {
	infos, _, err := w.bucket.List(context.Background(), prefix, "", 0)
	w.check(err)
	var names []string
	for _, info := range infos {
		names = append(names, info.Name)
	}
	return names
}

// A stream that ends early, wherever, leaves nothing: no manifest and no segments.
func TestCutStreamLeavesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.put(nsA, "large", string(make([]byte, SegmentBytes+SegmentBytes/2)))
	w.random(nsB, rng, 50)
	whole := w.stream(fulls(nsA, nsB)).Bytes()
	cuts := []int{0, 1, len(streamMagic), len(streamMagic) + 5, len(whole) - 1, len(whole) - 12}
	for range 20 {
		cuts = append(cuts, rng.IntN(len(whole)))
	}
	for _, n := range cuts {
		if _, err := w.archive.Save(context.Background(), bytes.NewReader(whole[:n]), SaveOptions{}); !errors.Is(err, ErrCut) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(whole), err)
		}
	}
	if left := append(w.names(manifestPrefix), w.names(segmentPrefix)...); left != nil {
		t.Errorf("it left %q", left)
	}
	// Control: uncut it is a snapshot.
	if _, err := w.archive.Save(context.Background(), bytes.NewReader(whole), SaveOptions{}); err != nil {
		t.Error(err)
	}
}

// A server that fails says so in the stream, with its reason.
func TestServerThatFailsSaysWhy(t *testing.T) {
	store := memory.New()
	fail := false
	w := newWorld(t, &kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if fail && op == kvtest.OpList && ref.Namespace == nsB {
			return kvtest.Refused
		}
		return kvtest.None
	}})
	w.put(nsA, "a", "1")
	fail = true
	var stream bytes.Buffer
	if err := w.take.Run(context.Background(), fulls(nsA, nsB), &stream); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	_, err := w.archive.Save(context.Background(), &stream, SaveOptions{})
	if err == nil || !strings.Contains(err.Error(), nsB.String()) || !strings.Contains(err.Error(), kvtest.ErrInjected.Error()) {
		t.Errorf("%v", err)
	}
	if left := append(w.names(manifestPrefix), w.names(segmentPrefix)...); left != nil {
		t.Errorf("it left %q", left)
	}
}

// fullBucket has room for so many puts.
type fullBucket struct {
	*blob.Memory
	room int
}

func (b *fullBucket) Put(ctx context.Context, name string, data []byte) error {
	if b.room--; b.room < 0 {
		return fmt.Errorf("write %s: %w", name, syscall.ENOSPC)
	}
	return b.Memory.Put(ctx, name, data)
}

// When there is no room for a segment or for the manifest there is no snapshot, and
// what was stored of it is removed.
func TestNoRoomForTheSnapshot(t *testing.T) {
	w := newWorld(t, memory.New())
	w.put(nsA, "large", string(make([]byte, SegmentBytes+SegmentBytes/2)))
	whole := w.stream(fulls(nsA)).Bytes()
	for room := range 4 {
		archive := NewArchive(&fullBucket{w.bucket, room})
		_, err := archive.Save(context.Background(), bytes.NewReader(whole), SaveOptions{})
		if full := errors.Is(err, syscall.ENOSPC); full != (room < 3) || err != nil && !full {
			t.Errorf("room for %d: %v", room, err)
		}
		if left := append(w.names(manifestPrefix), w.names(segmentPrefix)...); (left == nil) != (room < 3) {
			t.Errorf("room for %d: it left %q", room, left)
		}
	}
}

// Whatever byte of a backup changes, and whatever part of it is lost, is noticed and
// named, and not restored.
func TestDamageIsFoundAndNamed(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.archive.segment = MaxFrameBytes + 1<<10
	w.random(nsA, rng, 300)
	w.put(nsB, "large", string(make([]byte, 5*MaxFrameBytes/2)))
	w.random(nsB, rng, 20)
	m := w.full(nsA, nsB)
	names := append(w.names(segmentPrefix), manifestName(m.ID))
	if len(names) < 3 {
		t.Fatalf("stored: %q", names)
	}
	harm := func(name string, data []byte, what string) {
		t.Helper()
		ctx := context.Background()
		good, err := w.bucket.Get(ctx, name)
		w.check(err)
		if data == nil {
			w.check(w.bucket.Delete(ctx, []string{name}))
		} else {
			w.check(w.bucket.Put(ctx, name, data))
		}
		defer func() { w.check(w.bucket.Put(ctx, name, good)) }()
		_, wrong := w.archive.Verify(ctx, m.ID, nil)
		text := fmt.Sprint(wrong)
		kind := errors.Is(errors.Join(wrong...), ErrDamaged) || errors.Is(errors.Join(wrong...), ErrMissing)
		if !kind || !strings.Contains(text, name) && !strings.Contains(text, m.ID) {
			t.Errorf("%s of %s: %v", what, name, wrong)
		}
		other := newWorld(t, memory.New())
		other.archive = w.archive
		plan, err := w.archive.Plan(ctx, PlanOptions{})
		for _, r := range plan {
			var out bytes.Buffer
			err = errors.Join(err, w.archive.Send(ctx, &out, r, Target{Namespace: r.Content.Namespace}, nil))
		}
		if err == nil {
			t.Errorf("%s of %s: it can be restored", what, name)
		}
	}
	for _, name := range names {
		data, err := w.bucket.Get(context.Background(), name)
		w.check(err)
		harm(name, nil, "loss")
		harm(name, data[:len(data)-1], "shortening")
		harm(name, []byte{}, "emptying")
		for range 4 {
			changed := slices.Clone(data)
			at := rng.IntN(len(changed))
			changed[at] ^= 1 << rng.IntN(8)
			harm(name, changed, fmt.Sprintf("change at %d", at))
		}
	}
	// Control: whole, nothing is wrong.
	if _, wrong := w.archive.Verify(context.Background(), m.ID, nil); wrong != nil {
		t.Error(wrong)
	}
}

// A change on the way to the bucket is noticed by the checksums of the server.
func TestDamageOnTheWay(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.random(nsA, rng, 200)
	whole := w.stream(fulls(nsA)).Bytes()
	for range 200 {
		changed := slices.Clone(whole)
		at := rng.IntN(len(changed))
		changed[at] ^= 1 << rng.IntN(8)
		if _, err := w.archive.Save(context.Background(), bytes.NewReader(changed), SaveOptions{}); err == nil {
			t.Errorf("a change at %d of %d is not noticed", at, len(changed))
		}
	}
}

// What is restored and cut off is told to be, and leaves a live namespace as it is.
func TestCutRestore(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, memory.New())
	w.random(nsA, rng, 200)
	w.full(nsA)
	plan, err := w.archive.Plan(context.Background(), PlanOptions{})
	w.check(err)
	var whole bytes.Buffer
	w.check(w.archive.Send(context.Background(), &whole, plan[0], Target{Namespace: plan[0].Content.Namespace, Rewind: true}, nil))
	w.random(nsA, rng, 200)
	want := records(t, w.store, nsA)
	for range 50 {
		n := rng.IntN(whole.Len())
		in, err := Receive(bytes.NewReader(whole.Bytes()[:n]))
		if err == nil {
			_, err = w.restore.Restore(context.Background(), in, nil)
		}
		if !errors.Is(err, ErrCut) {
			t.Errorf("cut after %d of %d bytes: %v", n, whole.Len(), err)
		}
	}
	if err := equal(records(t, w.store, nsA), want); err != nil {
		t.Error(err)
	}
	if ids := w.namespaces(); len(ids) != 1 {
		t.Errorf("it left namespaces %v", ids)
	}
}

// An incremental snapshot is refused when deletions since the last one may be
// forgotten, at the limit and not before, also when that happens while it is taken.
func TestTooOldToContinue(t *testing.T) {
	w := newWorld(t, memory.New())
	w.take.Margin = time.Hour
	w.put(nsA, "a", "1")
	m := w.full(nsA)
	cut := m.Contents[0].CutTime()
	wanted := []Wanted{{Namespace: fulls(nsA)[0].Namespace, Since: m.Contents[0].Cut}}
	w.take.Now = func() time.Time { return cut.Add(23*time.Hour - 1) }
	if err := w.take.Check(wanted); err != nil {
		t.Errorf("just before: %v", err)
	}
	w.take.Now = func() time.Time { return cut.Add(23 * time.Hour) }
	if err := w.take.Check(wanted); !errors.Is(err, ErrTooOld) {
		t.Errorf("at the limit: %v", err)
	}
	if err := w.take.Check(fulls(nsA)); err != nil {
		t.Errorf("a full one: %v", err)
	}
	calls := 0
	w.take.Now = func() time.Time { // the scan takes hours
		calls++
		return cut.Add(time.Duration(min(calls, 10)) * 5 * time.Hour)
	}
	if err := w.take.Run(context.Background(), wanted, io.Discard); !errors.Is(err, ErrTooOld) {
		t.Errorf("while it is taken: %v", err)
	}
}

// A value that the store has lost is left out, counted and named; the rest is there.
func TestDamagedRecordsAreNamed(t *testing.T) {
	w := newWorld(t, damagedStore{memory.New(), "b"})
	for _, key := range []string{"a", "b", "c"} {
		w.put(nsA, key, "1")
	}
	m := w.full(nsA)
	if c := m.Contents[0]; c.Damaged != 1 || string(c.Examples[0]) != "b" || c.Records != 2 || m.Damaged() != 1 {
		t.Errorf("%+v", c)
	}
	if _, wrong := w.archive.Verify(context.Background(), m.ID, nil); wrong != nil {
		t.Error(wrong)
	}
}

type damagedStore struct {
	*memory.Store
	key string
}

func (s damagedStore) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if ref.Key == s.key {
		return kv.Record{}, fmt.Errorf("get: %w", kv.ErrDamaged)
	}
	return s.Store.Get(ctx, ref, maxAge)
}

// nearkey's own namespaces are neither backed up nor restored.
func TestReservedNamespaces(t *testing.T) {
	w := newWorld(t, memory.New())
	own := []kv.NamespaceID{{}, newStaging(time.Now())}
	for _, b := range []byte{0xfc, 0xfd, 0xfe, 0xff} {
		own = append(own, kv.NamespaceID(bytes.Repeat([]byte{b}, 16)))
	}
	own = append(own, kv.NamespaceID(append(bytes.Repeat([]byte{0xff}, 15), 0xfe))) // of Workers
	for _, id := range own {
		if err := w.take.Check(fulls(id)); !errors.Is(err, ErrRefused) {
			t.Errorf("backup of %s: %v", id, err)
		}
		stream := append([]byte(streamMagic), jsonFrame(frameTarget, Target{Namespace: Namespace{ID: id.String()}, Cut: w.version().String()})...)
		if _, err := Receive(bytes.NewReader(stream)); !errors.Is(err, ErrRefused) {
			t.Errorf("restore of %s: %v", id, err)
		}
	}
	for _, id := range []kv.NamespaceID{nsA, {0xff}, {0xfb, 0xfb, 0xfb}, {15: 1}, kv.NamespaceID(append(bytes.Repeat([]byte{0xff}, 15), 0xfb))} {
		if Reserved(id) {
			t.Errorf("%s is reserved", id)
		}
	}
}

// What a restore that crashed has left is swept when nobody can still be at it.
func TestAbandonedStagingIsSwept(t *testing.T) {
	w := newWorld(t, memory.New())
	w.put(nsA, "a", "1")
	w.full(nsA)
	now := time.Now()
	old, young := newStaging(now.Add(-stagingAge)), newStaging(now.Add(-stagingAge+time.Minute))
	for _, ns := range []kv.NamespaceID{old, young} {
		w.put(ns, "a", "1")
	}
	if _, err := w.bring(PlanOptions{}, Target{}, nil); err != nil {
		t.Fatal(err)
	}
	if ids := w.namespaces(); !slices.Equal(ids, []kv.NamespaceID{nsA, young}) {
		t.Errorf("there are %v", ids)
	}
}

// A version from the far future would make its key unwritable: it is not restored.
func TestVersionsFromTheFutureAreRefused(t *testing.T) {
	w := newWorld(t, memory.New())
	w.put(nsA, "a", "1")
	w.full(nsA)
	other := newWorld(t, memory.New())
	other.archive = w.archive
	other.restore.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	if _, err := other.bring(PlanOptions{}, Target{}, nil); !errors.Is(err, kv.ErrFuture) {
		t.Errorf("%v", err)
	}
}

// A store that is away for a moment does not end a restore.
func TestRestoreIsTriedAgain(t *testing.T) {
	for _, fault := range []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged} {
		w := newWorld(t, memory.New())
		w.put(nsA, "a", "1")
		w.full(nsA)
		failed := false
		other := newWorld(t, &kvtest.Faulty{Store: memory.New(), Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
			if op == kvtest.OpPutMany && !failed {
				failed = true
				return fault
			}
			return kvtest.None
		}})
		other.archive = w.archive
		if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil || !failed {
			t.Errorf("fault %d: %v", fault, err)
		}
		if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
			t.Error(err)
		}
	}
}

// Snapshots that no moment since then needs are removed, and what failed ones left.
func TestPrune(t *testing.T) {
	w := newWorld(t, memory.New())
	w.clock = time.Unix(1_800_000_000, 0)
	var ids []string
	var moments []time.Time
	for i := range 8 {
		w.clock = w.clock.Add(time.Hour)
		w.put(nsA, "a", fmt.Sprint(i))
		if i%3 == 0 { // full ones: 0, 3, 6
			ids = append(ids, w.full(nsA).ID)
		} else {
			ids = append(ids, w.more(nsA).ID)
		}
		moments = append(moments, w.clock)
	}
	w.check(w.bucket.Put(context.Background(), segmentName(newID(w.clock, 7, nil), 0), []byte("left")))
	// The state at moment 4 is that of snapshot 4, which continues 3.
	for _, dry := range []bool{true, false} {
		pruned, err := w.archive.Prune(context.Background(), moments[4], time.Now().Add(OrphanAge+time.Second), dry)
		w.check(err)
		slices.Sort(pruned.Snapshots)
		if !slices.Equal(pruned.Snapshots, ids[:3]) || len(pruned.Orphans) != 1 {
			t.Errorf("dry %t: %+v, want %v", dry, pruned, ids[:3])
		}
	}
	left, err := w.archive.IDs(context.Background())
	if w.check(err); !slices.Equal(left, ids[3:]) || len(w.names(segmentPrefix)) != 5 {
		t.Errorf("left: %v and %q", left, w.names(segmentPrefix))
	}
	for i := 4; i < 8; i++ {
		other := newWorld(t, memory.New())
		other.archive, other.clock = w.archive, w.clock
		if _, err := other.bring(PlanOptions{Moment: moments[i]}, Target{}, nil); err != nil {
			t.Fatal(err)
		}
		if got := visible(records(t, other.store, nsA))["a"]; got != fmt.Sprint(i) {
			t.Errorf("moment %d: %q", i, got)
		}
	}
	pruned, err := w.archive.Prune(context.Background(), moments[0], time.Now(), true)
	if w.check(err); pruned.Snapshots != nil || pruned.Orphans != nil {
		t.Errorf("nothing is to be pruned, but %+v", pruned)
	}
}

// A directory is a bucket that keeps what the bucket in memory does.
func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	w := newWorld(t, memory.New())
	w.archive = NewArchive(OpenDir(dir))
	ctx := context.Background()
	if ids, err := w.archive.IDs(ctx); err != nil || ids != nil {
		t.Errorf("of a directory that does not exist: %v, %v", ids, err)
	}
	w.put(nsA, "large", string(make([]byte, SegmentBytes+1)))
	first := w.full(nsA)
	w.put(nsA, "b", "2")
	w.take.Margin = time.Nanosecond
	w.more(nsA)
	other := newWorld(t, memory.New())
	other.archive = w.archive
	if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
		t.Error(err)
	}
	d := OpenDir(dir)
	var names []string
	for after, more := "", true; more; { // a name at a time
		infos, m, err := d.List(ctx, segmentPrefix, after, 1)
		if err != nil || len(infos) != 1 {
			t.Fatal(infos, err)
		}
		names, after, more = append(names, infos[0].Name), infos[0].Name, m
	}
	if len(names) != 3 || !slices.IsSorted(names) || names[0] != segmentName(first.ID, 0) {
		t.Errorf("listed: %q", names)
	}
	for _, name := range []string{"../x", "/x", "", "a/../../x"} {
		if err := d.Put(ctx, name, nil); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if err := d.Delete(ctx, append(names, "segments/x/never")); err != nil {
		t.Error(err)
	}
	if infos, _, err := d.List(ctx, segmentPrefix, "", 0); err != nil || infos != nil {
		t.Errorf("after their removal: %v, %v", infos, err)
	}
}

func FuzzReceive(f *testing.F) {
	w := newWorld(f, memory.New())
	w.put(nsA, "a", "1")
	w.delete(nsA, "b")
	w.full(nsA)
	plan, err := w.archive.Plan(context.Background(), PlanOptions{})
	w.check(err)
	var whole bytes.Buffer
	w.check(w.archive.Send(context.Background(), &whole, plan[0], Target{Namespace: plan[0].Content.Namespace}, nil))
	f.Add(whole.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := Receive(bytes.NewReader(data))
		if err != nil {
			return
		}
		other := newWorld(t, memory.New())
		_, _ = other.restore.Restore(t.Context(), in, nil) // it must not panic
	})
}

// flaky is a bucket whose every second call fails.
type flaky struct {
	*blob.Memory
	calls int
}

func (f *flaky) fail() error {
	if f.calls++; f.calls%2 == 1 {
		return fmt.Errorf("the bucket: %w", kv.ErrUnavailable)
	}
	return nil
}

func (f *flaky) Put(ctx context.Context, name string, data []byte) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.Memory.Put(ctx, name, data)
}

func (f *flaky) Get(ctx context.Context, name string) ([]byte, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.Memory.Get(ctx, name)
}

// A bucket that is away for a moment ends neither a backup nor a restore.
func TestBucketIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memory.New())
		w.archive = NewArchive(&flaky{Memory: w.bucket})
		w.put(nsA, "a", "1")
		w.full(nsA)
		other := newWorld(t, memory.New())
		other.archive = w.archive
		if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
			t.Error(err)
		}
	})
}

// A bucket of a real S3 server serves as a directory does.
func TestS3(t *testing.T) {
	server := s3test.Start(t)
	bucket, err := s3.Open(s3.Options{Endpoint: server.Endpoint, Bucket: server.Bucket, Prefix: "deep/er", AccessKeyID: server.AccessKeyID, SecretKeyFile: server.SecretKeyFile, PathStyle: true})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, memory.New())
	w.take.Margin = time.Nanosecond
	w.archive = NewArchive(bucket)
	w.put(nsA, "large", string(make([]byte, SegmentBytes+1)))
	w.full(nsA)
	w.put(nsA, "b", "2")
	m := w.more(nsA)
	other := newWorld(t, memory.New())
	other.archive = w.archive
	if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := equal(records(t, other.store, nsA), records(t, w.store, nsA)); err != nil {
		t.Error(err)
	}
	if _, wrong := w.archive.Verify(t.Context(), m.ID, nil); wrong != nil {
		t.Error(wrong)
	}
	server.Corrupt("deep/er/" + segmentName(m.ID, 0))
	if _, wrong := w.archive.Verify(t.Context(), m.ID, nil); wrong == nil || !strings.Contains(fmt.Sprint(wrong), segmentName(m.ID, 0)) {
		t.Errorf("damaged: %v", wrong)
	}
}
