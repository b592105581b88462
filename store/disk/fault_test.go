package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
)

// faultSeeds is the number of places in a run at which one operation on the disk
// fails.
const faultSeeds = 150

// TestIOErrors fails one write-like operation of the disk, a different one for
// each seed. Every call must end, with an error or without, and after a crash and
// a reopening every acknowledged write must be there.
func TestIOErrors(t *testing.T) {
	failures, fatal := 0, 0
	for seed := range uint64(faultSeeds) {
		rng := rand.New(rand.NewPCG(seed, 0))
		mem := vfs.NewCrashableMem()
		var armed atomic.Bool
		var left atomic.Int64
		left.Store(1 + rng.Int64N(400))
		inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && left.Add(-1) == 0 {
				return fmt.Errorf("%s: %w", op.Path, syscall.EIO)
			}
			return nil
		})
		opts := Options{MemTableBytes: 32 << 10, CacheBytes: 1 << 20, fs: errorfs.Wrap(mem, inject)}
		s, err := Open("store", opts)
		if err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		acked, failed := writeUntilFailure(s, rng)
		if failed != nil {
			failures++
		}
		if s.Ready() != nil {
			fatal++
			if !errors.Is(s.Ready(), kv.ErrUnavailable) {
				t.Errorf("seed %d: not ready: %v", seed, s.Ready())
			}
			if err := s.Run(context.Background()); err == nil {
				t.Errorf("seed %d: Run goes on with a store that cannot be written", seed)
			}
		}
		armed.Store(false)
		crashed := mem.CrashClone(vfs.CrashCloneCfg{})
		if err := s.Close(); err != nil {
			t.Logf("seed %d: close: %v", seed, err)
		}
		checkAcked(t, seed, crashed, acked)
	}
	t.Logf("%d runs: a call failed in %d, the store gave up in %d", faultSeeds, failures, fatal)
	if failures == 0 || fatal == 0 || failures == faultSeeds {
		t.Error("the faults did not reach what they were meant for")
	}
}

// writeUntilFailure writes a bounded number of records and returns those that
// were acknowledged, and the first failure.
func writeUntilFailure(s *Store, rng *rand.Rand) (acked map[string]kv.Version, failed error) {
	acked = map[string]kv.Version{}
	for i := range 400 {
		ref, v := kv.Ref{Key: fmt.Sprint(rng.IntN(50))}, kv.NewVersion(int64(i+1), 1, rng.Uint64())
		n := rng.IntN(2000)
		if rng.IntN(20) == 0 {
			n = LargeValueBytes
		}
		value := make([]byte, n)
		if n >= 8 {
			binary.BigEndian.PutUint64(value, uint64(i))
		}
		err := s.Put(context.Background(), ref, kv.Record{Version: v, Value: value})
		if err == nil {
			acked[ref.Key] = v
			continue
		}
		failed = errors.Join(failed, err)
		if s.failure() != nil {
			return acked, failed
		}
	}
	return acked, failed
}

func checkAcked(t *testing.T, seed uint64, fs vfs.FS, acked map[string]kv.Version) {
	t.Helper()
	s, err := Open("store", Options{fs: fs})
	if err != nil {
		t.Fatalf("seed %d: reopen: %v", seed, err)
	}
	defer s.Close()
	for key, v := range acked {
		rec, err := s.Get(context.Background(), kv.Ref{Key: key}, 0)
		if err != nil || rec.Version.Compare(v) < 0 {
			t.Errorf("seed %d: %q is %s after the reopening, %s was acknowledged (%v)", seed, key, rec.Version, v, err)
		}
	}
}

func TestLargeValueThatCannotBeWrittenLeavesNothing(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpRename, errorfs.OpMkdirAll} {
		var armed atomic.Bool
		inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind == kind && strings.Contains(op.Path, "values") {
				return syscall.ENOSPC
			}
			return nil
		})
		s := mustOpen(t, "store", Options{fs: errorfs.Wrap(vfs.NewMem(), inject)})
		ref := kv.Ref{Key: "k"}
		old := kv.Record{Version: kv.NewVersion(1, 1, 1), Value: []byte("old")}
		if err := s.Put(context.Background(), ref, old); err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		large := kv.Record{Version: kv.NewVersion(2, 1, 1), Value: make([]byte, LargeValueBytes)}
		if err := s.Put(context.Background(), ref, large); !errors.Is(err, kv.ErrFull) {
			t.Errorf("operation %d fails: %v", kind, err)
		}
		if got, err := s.Get(context.Background(), ref, 0); err != nil || got.Compare(old) != 0 {
			t.Errorf("operation %d fails: the key has %s, %v", kind, got.Version, err)
		}
		armed.Store(false)
		if err := s.Put(context.Background(), ref, large); err != nil {
			t.Errorf("after operation %d failed: %v", kind, err)
		}
		if n := len(s.values.pending); n != 0 {
			t.Errorf("operation %d fails: %d files are still pending", kind, n)
		}
	}
}

// smallDisk mounts a file system of the given size.
func smallDisk(t *testing.T, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file that takes all of the disk but the given bytes.
func fill(t *testing.T, path string, spare uint64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 256<<10)
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(path, &st); err != nil {
			t.Fatal(err)
		}
		avail := st.Bavail * uint64(st.Bsize)
		if avail <= spare {
			return
		}
		if _, err := f.Write(chunk[:min(uint64(len(chunk)), avail-spare)]); err != nil {
			return // somebody else took the rest
		}
	}
}

func TestFullDisk(t *testing.T) {
	mount := smallDisk(t, 96)
	s := mustOpen(t, filepath.Join(mount, "store"), Options{MinFreeBytes: 16 << 20, MemTableBytes: 1 << 20})
	ctx, hog := context.Background(), filepath.Join(mount, "hog")
	put := func(i int, n int) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return s.Put(ctx, kv.Ref{Key: fmt.Sprint(i)}, kv.Record{Version: kv.NewVersion(int64(i+1), 1, 1), Value: make([]byte, n)})
	}
	stored := 0
	for ; stored < 20; stored++ {
		if err := put(stored, 100<<10); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, hog, 12<<20)
	refused := func() bool { return errors.Is(put(stored, 10), kv.ErrFull) }
	nearkeytest.Until(t, "writes are refused", refused)
	if err := s.Ready(); !errors.Is(err, kv.ErrFull) || !strings.Contains(err.Error(), "bytes are free at") {
		t.Errorf("ready: %v", err)
	}
	if err := s.Put(ctx, kv.Ref{Key: "0"}, kv.Tombstone(kv.NewVersion(100, 1, 1))); err != nil {
		t.Errorf("a delete, which makes room, is refused: %v", err)
	}
	fill(t, hog, 0)
	if rec, err := s.Get(ctx, kv.Ref{Key: "1"}, 0); err != nil || len(rec.Value) != 100<<10 {
		t.Errorf("get on a full disk: %v", err)
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	nearkeytest.Until(t, "writes are taken again", func() bool { return put(stored, 10) == nil })
	if err := s.Ready(); err != nil {
		t.Errorf("ready after space returned: %v", err)
	}
}

// TestDiskFilledByOthersUnderLoad lets the disk run full between two looks at it,
// so that Pebble itself meets the end of the disk while it writes.
func TestDiskFilledByOthersUnderLoad(t *testing.T) {
	mount := smallDisk(t, 96)
	dir := filepath.Join(mount, "store")
	s := mustOpen(t, dir, Options{MinFreeBytes: 4 << 20, MemTableBytes: 1 << 20})
	hog := filepath.Join(mount, "hog")
	stop, done := make(chan struct{}), make(chan map[string]kv.Version)
	var failures atomic.Int64
	go func() {
		acked := map[string]kv.Version{}
		defer func() { done <- acked }()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			key, v := fmt.Sprint(i%100), kv.NewVersion(int64(i+1), 1, 1)
			err := s.Put(ctx, kv.Ref{Key: key}, kv.Record{Version: v, Value: make([]byte, 60<<10)})
			cancel()
			if err == nil {
				acked[key] = v
				continue
			}
			failures.Add(1)
		}
	}()
	for range 5 {
		fill(t, hog, 0)
		before := failures.Load()
		nearkeytest.Until(t, "writes fail", func() bool { return failures.Load() > before })
		if err := os.Remove(hog); err != nil {
			t.Fatal(err)
		}
		nearkeytest.Until(t, "the store is ready again", func() bool { return s.Ready() == nil })
	}
	close(stop)
	acked := <-done
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{})
	for key, v := range acked {
		if rec, err := s.Get(context.Background(), kv.Ref{Key: key}, 0); err != nil || rec.Version.Compare(v) < 0 {
			t.Errorf("%q is %s, %s was acknowledged (%v)", key, rec.Version, v, err)
		}
	}
}
