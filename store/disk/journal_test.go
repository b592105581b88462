package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/kv"
)

func mustOpenJournal(t *testing.T, dir string, opts Options) *Journal {
	t.Helper()
	if opts.MinFreeBytes == 0 {
		opts.MinFreeBytes = 1 << 20
	}
	j, err := OpenJournal(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// entries are what a journal holds, as a caller would write it: key=value.
func entries(t *testing.T, j *Journal) []string {
	t.Helper()
	var all []string
	err := j.Load(func(e JournalEntry) error {
		all = append(all, e.Key+"="+string(e.Value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestJournal(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	j := mustOpenJournal(t, dir, Options{})
	value := []byte("1")
	apply := func(durable bool, list ...JournalEntry) {
		t.Helper()
		if err := j.Apply(ctx, list, durable); err != nil {
			t.Fatal(err)
		}
	}
	apply(true, JournalEntry{"b", value}, JournalEntry{"a\x00\xff", []byte("2")}, JournalEntry{"a", []byte{}})
	value[0] = 'x' // is the caller's again
	apply(false, JournalEntry{"c", []byte("3")}, JournalEntry{"c", nil}, JournalEntry{"d", nil}, JournalEntry{"d", []byte("4")})
	want := []string{"a=", "a\x00\xff=2", "b=1", "d=4"}
	if got := entries(t, j); !slices.Equal(got, want) {
		t.Errorf("the journal has %q, want %q", got, want)
	}
	apply(true) // waits for what was applied before
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Apply(ctx, []JournalEntry{{"e", value}}, true); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("apply to a closed journal: %v", err)
	}
	if err := j.Load(func(JournalEntry) error { return nil }); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("load a closed journal: %v", err)
	}
	if got := entries(t, mustOpenJournal(t, dir, Options{})); !slices.Equal(got, want) {
		t.Errorf("opened again the journal has %q, want %q", got, want)
	}
}

func TestJournalLoadEndsWithAnError(t *testing.T) {
	j := mustOpenJournal(t, t.TempDir(), Options{})
	if err := j.Apply(context.Background(), []JournalEntry{{"a", []byte{}}, {"b", []byte{}}}, false); err != nil {
		t.Fatal(err)
	}
	enough, seen := errors.New("enough"), 0
	if err := j.Load(func(JournalEntry) error { seen++; return enough }); !errors.Is(err, enough) || seen != 1 {
		t.Errorf("after %d entries: %v", seen, err)
	}
}

func TestJournalLimits(t *testing.T) {
	ctx, j := context.Background(), mustOpenJournal(t, t.TempDir(), Options{})
	many := make([]JournalEntry, MaxJournalEntries+1)
	for i := range many {
		many[i] = JournalEntry{fmt.Sprint(i), []byte{}}
	}
	key, value := strings.Repeat("k", MaxJournalKeyBytes+1), make([]byte, MaxJournalValueBytes+1)
	for _, c := range []struct {
		what    string
		entries []JournalEntry
		ok      bool
	}{
		{"most entries", many[1:], true},
		{"one entry more", many, false},
		{"the longest key", []JournalEntry{{key[1:], []byte{}}}, true},
		{"a longer key", []JournalEntry{{"fine", []byte{}}, {key, []byte{}}}, false},
		{"no key", []JournalEntry{{"", []byte{}}}, false},
		{"the largest value", []JournalEntry{{"k", value[1:]}}, true},
		{"a larger value", []JournalEntry{{"k", value}}, false},
	} {
		if err := j.Apply(ctx, c.entries, false); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if slices.Contains(entries(t, j), "fine=") {
		t.Error("half of what was refused is there")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := j.Apply(ended, []JournalEntry{{"k", nil}}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("apply with a context that ended: %v", err)
	}
}

func TestJournalAndStoreRefuseEachOther(t *testing.T) {
	dir := t.TempDir()
	j := mustOpenJournal(t, dir, Options{})
	if _, err := OpenJournal(dir, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened a second time: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a store opens the directory of a journal")
	}
	other := t.TempDir()
	mustOpen(t, other, Options{})
	if _, err := OpenJournal(other, Options{}); err == nil {
		t.Error("a journal opens the directory of a store")
	}
}

// TestJournalHungDisk hangs the disk: a call costs no more than its context, and
// what was under way is applied in its order when the disk goes on.
func TestJournalHungDisk(t *testing.T) {
	var hung atomic.Bool
	release := make(chan struct{})
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if hung.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			<-release
		}
		return nil
	})
	j := mustOpenJournal(t, "journal", Options{fs: errorfs.Wrap(vfs.NewMem(), inject)})
	hung.Store(true)
	for i := range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- j.Apply(ctx, []JournalEntry{{"k", fmt.Append(nil, i)}}, true) }()
		nearkeytest.Until(t, "the call is under way", func() bool { return len(j.store.writes) > i })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("apply to a hung disk: %v", err)
		}
	}
	hung.Store(false)
	close(release)
	nearkeytest.Until(t, "no call is under way", func() bool { return len(j.store.writes) == 0 })
	if got := entries(t, j); !slices.Equal(got, []string{"k=2"}) {
		t.Errorf("the journal has %q", got)
	}
}

func TestJournalFullDisk(t *testing.T) {
	var full atomic.Bool
	fs := tightFS{vfs.NewMem(), &full}
	j := mustOpenJournal(t, "journal", Options{fs: fs, MinFreeBytes: 100})
	apply := func(value []byte) error {
		return j.Apply(context.Background(), []JournalEntry{{"k", value}}, true)
	}
	full.Store(true)
	nearkeytest.Until(t, "entries are refused", func() bool { return errors.Is(apply([]byte("v")), kv.ErrFull) })
	if err := j.Ready(); !errors.Is(err, kv.ErrFull) {
		t.Errorf("ready: %v", err)
	}
	if err := apply(nil); err != nil {
		t.Errorf("a removal, which makes room, is refused: %v", err)
	}
	full.Store(false)
	nearkeytest.Until(t, "entries are taken again", func() bool { return apply([]byte("v")) == nil })
}

// tightFS has little space while full.
type tightFS struct {
	vfs.FS
	full *atomic.Bool
}

func (fs tightFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	if fs.full.Load() {
		return vfs.DiskUsage{AvailBytes: 60}, nil
	}
	return vfs.DiskUsage{AvailBytes: 1 << 30}, nil
}

// TestJournalIOErrors fails one write of the disk, a different one for each seed:
// every call ends, and after a crash what was durable is there.
func TestJournalIOErrors(t *testing.T) {
	failures := 0
	for seed := range uint64(50) {
		mem, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(seed, 0))
		var armed atomic.Bool
		var left atomic.Int64
		left.Store(1 + rng.Int64N(150))
		inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if armed.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && left.Add(-1) == 0 {
				return fmt.Errorf("%s: %w", op.Path, syscall.EIO)
			}
			return nil
		})
		w := &journalWorld{seed: seed, mem: mem, rng: rng}
		j, err := OpenJournal("journal", Options{fs: errorfs.Wrap(mem, inject), MemTableBytes: 32 << 10})
		if err != nil {
			t.Fatal(err)
		}
		armed.Store(true)
		var failed error
		for failed == nil && w.count < 200 {
			failed = w.write(j, w.rng.IntN(journalGroups))
		}
		if failed != nil {
			failures++
			if err := j.Ready(); !errors.Is(err, kv.ErrUnavailable) {
				t.Errorf("seed %d: ready after %v: %v", seed, failed, err)
			}
		}
		armed.Store(false)
		w.mem = mem.CrashClone(vfs.CrashCloneCfg{})
		if err := j.Close(); err != nil {
			t.Errorf("seed %d: close: %v", seed, err)
		}
		if lost, err := w.check(); lost > 0 || err != nil {
			t.Errorf("seed %d: %d lost: %v", seed, lost, err)
		}
	}
	t.Logf("50 runs, a call failed in %d", failures)
	if failures == 0 {
		t.Error("the faults did not reach what they were meant for")
	}
}

const (
	journalGroups = 8   // of keys that are always written together
	journalCalls  = 120 // of all writers before the power is cut
)

// journalWorld is one seed of the power-loss test. Each call writes the keys of
// one group, all of which then say its number, or are gone but for the first.
type journalWorld struct {
	seed   uint64
	noSync bool
	mem    *vfs.MemFS

	mu      sync.Mutex // guards the rest
	rng     *rand.Rand
	count   uint64
	applied [journalGroups]uint64 // the last number that a call which returned has given
	durable [journalGroups]uint64 // what must be there
	cutAt   uint64
	clone   *vfs.MemFS
}

// write writes a group with the next number. A group has one writer at a time.
func (w *journalWorld) write(j *Journal, group int) error {
	w.mu.Lock()
	w.count++
	n, durable, remove := w.count, w.rng.IntN(3) == 0, w.rng.IntN(4) == 0
	before := w.applied
	w.mu.Unlock()
	number := binary.BigEndian.AppendUint64(nil, n)
	list := []JournalEntry{{fmt.Sprintf("%d/0", group), number}}
	for i := range 3 {
		e := JournalEntry{Key: fmt.Sprintf("%d/%d", group, i+1)}
		if !remove {
			e.Value = number
		}
		list = append(list, e)
	}
	err := j.Apply(context.Background(), list, durable)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return err
	}
	w.applied[group] = n
	if w.clone != nil {
		return nil
	}
	if durable {
		before[group] = n
		for g := range before {
			w.durable[g] = max(w.durable[g], before[g])
		}
	}
	if n == w.cutAt {
		w.clone = w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(w.seed, n))})
	}
	return nil
}

// round writes from several goroutines and cuts the power on the way.
func (w *journalWorld) round() error {
	j, err := OpenJournal("journal", Options{fs: w.mem, MemTableBytes: 32 << 10, noSync: w.noSync})
	if err != nil {
		return err
	}
	w.clone, w.cutAt = nil, w.count+1+w.rng.Uint64N(journalCalls)
	errs := make([]error, journalGroups)
	var all sync.WaitGroup
	for group := range journalGroups {
		all.Go(func() {
			for range journalCalls / journalGroups {
				if errs[group] = w.write(j, group); errs[group] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	if w.clone != nil { // else the power goes after the orderly end
		w.mem = w.clone
	}
	return errors.Join(append(errs, j.Close())...)
}

// check returns how many groups have lost what was durable, and an error if a
// call was applied in half.
func (w *journalWorld) check() (lost int, err error) {
	j, err := OpenJournal("journal", Options{fs: w.mem})
	if err != nil {
		return 0, err
	}
	groups := map[byte]map[string]uint64{}
	err = j.Load(func(e JournalEntry) error {
		if groups[e.Key[0]] == nil {
			groups[e.Key[0]] = map[string]uint64{}
		}
		groups[e.Key[0]][e.Key[1:]] = binary.BigEndian.Uint64(e.Value)
		return nil
	})
	if err := errors.Join(err, j.Close()); err != nil {
		return 0, err
	}
	for g, want := range w.durable {
		keys := groups['0'+byte(g)]
		n := keys["/0"]
		if n < want {
			lost++
		}
		whole := map[string]uint64{"/0": n, "/1": n, "/2": n, "/3": n}
		if len(keys) > 1 && !maps.Equal(keys, whole) {
			return lost, fmt.Errorf("group %d has half of a call: %v", g, keys)
		}
		w.durable[g], w.applied[g] = n, n // has been seen, so it stays
	}
	return lost, nil
}

func runJournalCrashes(t *testing.T, seeds int, noSync bool) (lost int) {
	t.Helper()
	for seed := *crashFirst; seed < *crashFirst+uint64(seeds); seed++ {
		w := &journalWorld{seed: seed, noSync: noSync, mem: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(seed, 1))}
		for range crashRounds {
			if err := w.round(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			n, err := w.check()
			if lost += n; err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if n > 0 && !noSync {
				t.Errorf("seed %d: %d groups have lost what was durable", seed, n)
			}
		}
	}
	return lost
}

func TestJournalPowerLoss(t *testing.T) { runJournalCrashes(t, *crashSeeds/2, false) }

// TestJournalPowerLossControl shows that the test above can fail.
func TestJournalPowerLossControl(t *testing.T) {
	if lost := runJournalCrashes(t, max(1, *crashSeeds/10), true); lost == 0 {
		t.Error("nothing was lost although nothing was synced")
	}
}
