package disk

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/nearkey/nearkey/kv"
)

var crashSeeds = flag.Int("crash-seeds", 200, "seeds of the power-loss test")

// crashFirst is the first seed; a failing seed is repeated with
// -crash-first=N -crash-seeds=1.
var crashFirst = flag.Uint64("crash-first", 1, "first seed of the power-loss test")

const (
	crashRounds  = 3   // power losses of a seed
	crashWriters = 4   // that write at once
	crashWrites  = 100 // of all writers in a round
)

// crashValue is the value that a key has at a version: what is read after a
// crash can be checked without having been remembered.
func crashValue(seed uint64, key string, v kv.Version) []byte {
	rng := rand.New(rand.NewPCG(seed, binary.BigEndian.Uint64(v[8:])))
	n := rng.IntN(300)
	if rng.IntN(12) == 0 {
		n = LargeValueBytes + rng.IntN(1000)
	}
	value := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(value[i:], rng.Uint64()^uint64(len(key)))
	}
	return value
}

// crashWorld is one seed of the power-loss test.
type crashWorld struct {
	seed  uint64
	opts  Options
	mem   *vfs.MemFS
	mu    sync.Mutex // guards the rest
	rng   *rand.Rand
	time  int64
	acked map[string]kv.Record // the newest acknowledged record of a key; values are not kept
}

func (w *crashWorld) next() (key string, rec kv.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.time++
	key = fmt.Sprint("key ", w.rng.IntN(40))
	rec = kv.Record{Version: kv.NewVersion(w.time, 1, w.rng.Uint64())}
	switch w.rng.IntN(6) {
	case 0:
		rec.Tombstone = true
	case 1:
		rec.Expiration = w.time - 5 + w.rng.Int64N(10)
		fallthrough
	default:
		rec.Value = crashValue(w.seed, key, rec.Version)
	}
	return key, rec
}

func (w *crashWorld) ack(key string, rec kv.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rec.Version.Compare(w.acked[key].Version) > 0 {
		rec.Value = nil
		w.acked[key] = rec
	}
}

// round writes to an open store from several goroutines and cuts the power at a
// random moment; it returns the number of acknowledged writes.
func (w *crashWorld) round(s *Store) (acked int, err error) {
	ctx := context.Background()
	type ack struct {
		key string
		rec kv.Record
	}
	acks := make(chan ack, crashWrites*3)
	cutAfter := 1 + w.rng.IntN(crashWrites)
	work := make(chan struct{}, crashWrites)
	for range crashWrites {
		work <- struct{}{}
	}
	close(work)
	var clone *vfs.MemFS
	var cut sync.Once
	var wg sync.WaitGroup
	var mu sync.Mutex // guards count and that a write is counted as acknowledged before the cut or not at all
	count := 0
	for range crashWriters {
		wg.Go(func() {
			for range work {
				if e := w.write(ctx, s, func(key string, rec kv.Record) {
					mu.Lock()
					defer mu.Unlock()
					if clone == nil {
						acks <- ack{key, rec}
					}
				}); e != nil {
					cut.Do(func() { err = e })
					return
				}
				mu.Lock()
				if count++; count == cutAfter {
					clone = w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(w.seed, uint64(cutAfter)))})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(acks)
	for a := range acks {
		w.ack(a.key, a.rec)
		acked++
	}
	if clone != nil {
		w.mem = clone
	}
	return acked, err
}

// write does one random operation and calls ack for each record that it stored.
func (w *crashWorld) write(ctx context.Context, s *Store, ack func(string, kv.Record)) error {
	w.mu.Lock()
	op := w.rng.IntN(20)
	w.mu.Unlock()
	switch {
	case op == 0:
		return s.sweep(ctx, &sweeper{})
	case op < 3:
		var writes []kv.Write
		for range 4 {
			key, rec := w.next()
			writes = append(writes, kv.Write{Ref: kv.Ref{Key: key}, Record: rec})
		}
		if err := s.PutMany(ctx, writes); err != nil {
			return err
		}
		for _, write := range writes {
			ack(write.Ref.Key, write.Record)
		}
		return nil
	}
	key, rec := w.next()
	if err := s.Put(ctx, kv.Ref{Key: key}, rec); err != nil {
		return err
	}
	ack(key, rec)
	return nil
}

// check returns how many acknowledged writes are lost, and an error if something
// is there that nobody wrote or that cannot be read.
func (w *crashWorld) check(s *Store) (lost int, err error) {
	ctx := context.Background()
	for key, want := range w.acked {
		got, err := s.Get(ctx, kv.Ref{Key: key}, 0)
		if err != nil {
			return 0, fmt.Errorf("get %q: %w", key, err)
		}
		if got.Version.Compare(want.Version) < 0 {
			lost++
		}
	}
	page, err := s.List(ctx, kv.NamespaceID{}, kv.ListOptions{})
	if err != nil {
		return 0, err
	}
	for _, k := range page.Keys {
		got, err := s.Get(ctx, kv.Ref{Key: k.Key}, 0)
		if err != nil {
			return 0, fmt.Errorf("get listed %q: %w", k.Key, err)
		}
		if !got.Tombstone && string(got.Value) != string(crashValue(w.seed, k.Key, got.Version)) {
			return 0, fmt.Errorf("%q has a value that nobody wrote at %s", k.Key, got.Version)
		}
	}
	return lost, nil
}

func (w *crashWorld) run() (acked, lost int, err error) {
	opts := w.opts
	for range crashRounds {
		opts.fs = w.mem
		s, err := Open("store", opts)
		if err != nil {
			return acked, lost, err
		}
		n, err := w.round(s)
		acked += n
		if err != nil {
			return acked, lost, err
		}
		// The old store belongs to a machine without power; closing it only gives
		// its goroutines back.
		if err := s.Close(); err != nil {
			return acked, lost, err
		}
		opts.fs = w.mem
		if s, err = Open("store", opts); err != nil {
			return acked, lost, fmt.Errorf("open after power loss: %w", err)
		}
		n, err = w.check(s)
		if lost += n; err != nil {
			return acked, lost, err
		}
		if err := s.Close(); err != nil {
			return acked, lost, err
		}
	}
	return acked, lost, nil
}

func runCrashes(t *testing.T, seeds int, noSync bool) (acked, lost int) {
	t.Helper()
	for seed := *crashFirst; seed < *crashFirst+uint64(seeds); seed++ {
		w := &crashWorld{seed: seed, mem: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(seed, 0)), acked: map[string]kv.Record{},
			opts: Options{MemTableBytes: 64 << 10, CacheBytes: 1 << 20, ChangesKept: 100, noSync: noSync}}
		a, l, err := w.run()
		acked, lost = acked+a, lost+l
		if err != nil && !noSync {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if l > 0 && !noSync {
			t.Errorf("seed %d: %d of %d acknowledged writes are lost", seed, l, a)
		}
	}
	return acked, lost
}

func TestPowerLoss(t *testing.T) {
	acked, lost := runCrashes(t, *crashSeeds, false)
	t.Logf("%d seeds, %d power losses: %d writes acknowledged, %d lost", *crashSeeds, *crashSeeds*crashRounds, acked, lost)
}

// TestPowerLossControl shows that the test above can fail: without waiting for
// the log, acknowledged writes are lost.
func TestPowerLossControl(t *testing.T) {
	acked, lost := runCrashes(t, max(1, *crashSeeds/10), true)
	t.Logf("%d writes acknowledged without a sync, %d lost", acked, lost)
	if lost == 0 {
		t.Error("no acknowledged write was lost although none was synced")
	}
}
