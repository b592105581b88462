package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

const (
	seqWriters = 3
	seqKeys    = 23
)

// slow is a store between whose reads others get to work.
type slow struct{ *memory.Store }

func (s slow) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	runtime.Gosched()
	return s.Store.Get(ctx, ref, maxAge)
}

// write has each writer number its writes and spread them over its keys, until
// stop: the states that a writer was ever in are those in which every key has the
// last of its numbers up to some number.
func (w *world) write(stop <-chan struct{}) (wait func()) {
	var all sync.WaitGroup
	for writer := range seqWriters {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("w%d/%02d", writer, i%seqKeys)
				rec := kv.Record{Version: w.version(), Value: []byte(strconv.Itoa(i))}
				var err error
				if i%2 == 0 {
					err = w.barrier.Put(context.Background(), kv.Ref{Namespace: nsA, Key: key}, rec)
				} else {
					err = kv.PutMany(context.Background(), w.barrier, []kv.Write{
						{Ref: kv.Ref{Namespace: nsB, Key: key}, Record: rec}, {Ref: kv.Ref{Namespace: nsA, Key: key}, Record: rec}})
				}
				if err != nil {
					w.t.Error(err)
					return
				}
			}
		})
	}
	return all.Wait
}

// oneMoment returns an error if the records are of no moment of the writers.
func oneMoment(all map[string]kv.Record) error {
	for writer := range seqWriters {
		prefix, last, has := fmt.Sprintf("w%d/", writer), -1, map[int]bool{}
		for key, rec := range all {
			if strings.HasPrefix(key, prefix) {
				i, err := strconv.Atoi(string(rec.Value))
				if err != nil {
					return err
				}
				has[i], last = true, max(last, i)
			}
		}
		for i := max(0, last-seqKeys+1); i <= last; i++ {
			if !has[i] {
				return fmt.Errorf("writer %d: write %d is there, but write %d is not", writer, last, i)
			}
		}
	}
	return nil
}

// snapshots takes snapshots while writers write, until check has an answer.
func (w *world) snapshots(most int, check func(map[string]kv.Record, *Manifest) (enough bool)) {
	stop := make(chan struct{})
	wait := w.write(stop)
	defer wait()
	defer close(stop)
	for range most {
		m := w.full(nsA)
		other := newWorld(w.t, memory.New())
		other.archive = w.archive
		if _, err := other.bring(PlanOptions{}, Target{}, nil); err != nil {
			w.t.Fatal(err)
		}
		if check(records(w.t, other.store, nsA), m) {
			return
		}
	}
}

func consistencyWorld(t *testing.T) *world {
	w := newWorld(t, slow{memory.New()})
	w.take.page = 50
	for i := range 1000 {
		w.put(nsA, fmt.Sprintf("v%04d", i), "still")
	}
	return w
}

// A snapshot that is taken while it is written is the state of one moment.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	w := consistencyWorld(t)
	rounds, seen := 0, 0
	w.snapshots(20, func(all map[string]kv.Record, m *Manifest) bool {
		if err := oneMoment(all); err != nil {
			t.Error(err)
		}
		for key, rec := range all {
			if rec.Version.Compare(m.Contents[0].CutVersion()) > 0 {
				t.Errorf("key %q is newer than the cut", key)
			}
		}
		rounds, seen = rounds+m.Contents[0].Rounds, seen+len(all)
		return t.Failed()
	})
	t.Logf("20 snapshots, %d rounds, %d records", rounds, seen)
	if seen <= 20*1000 {
		t.Error("the writers did not get to write")
	}
}

// Without the last round in which writes are held back, or without any round, a
// snapshot is not of one moment.
func TestSnapshotIsOfOneMomentControl(t *testing.T) {
	for name, weaken := range map[string]func(*Snapshotter){
		"no rounds":      func(s *Snapshotter) { s.noRounds = true },
		"nobody is held": func(s *Snapshotter) { s.noHold = true },
	} {
		w := consistencyWorld(t)
		weaken(&w.take)
		tries, found := 0, error(nil)
		w.snapshots(3000, func(all map[string]kv.Record, _ *Manifest) bool {
			tries++
			found = oneMoment(all)
			return found != nil
		})
		if found == nil {
			t.Errorf("%s: nothing is wrong with %d snapshots", name, tries)
		}
		t.Logf("%s: snapshot %d: %v", name, tries, found)
	}
}

// hanging is a store whose reads of values hang from the moment that it is told to.
func hanging(store kv.Store) (*kvtest.Faulty, *bool) {
	hangs := new(bool)
	return &kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if *hangs && op == kvtest.OpGetMany {
			return kvtest.Hang
		}
		return kvtest.None
	}}, hangs
}

// Writes are held back no longer than MaxPause, even if the store hangs while they
// are; then they go on, and the snapshot is tried again.
func TestWritesAreHeldBackForMaxPauseAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, hangs := hanging(memory.New())
		w := newWorld(t, store)
		watch, err := w.barrier.watch(t.Context(), nsA)
		w.check(err)
		defer watch.close()
		w.put(nsA, "a", "1")
		*hangs = true
		finished := make(chan bool)
		go func() {
			_, done, err := watch.finish(t.Context(), time.Second, time.Now, func(ctx context.Context, keys []string) error {
				_, err := store.GetMany(ctx, []kv.Ref{{Namespace: nsA, Key: keys[0]}}, 0)
				return err
			})
			if err != nil {
				t.Error(err)
			}
			finished <- done
		}()
		synctest.Wait()
		began := time.Now()
		w.put(nsB, "b", "2")
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a write of another namespace was held back for %s", waited)
		}
		w.put(nsA, "b", "2")
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("a write was held back for %s, want a second", waited)
		}
		if <-finished {
			t.Error("the snapshot was finished without having read anything")
		}
		if got := watch.noted(); got != 2 { // what was not read, and what was written then
			t.Errorf("%d keys are still to be read, want 2", got)
		}
	})
}

// A held write that is given up was not made, and says so.
func TestHeldWriteCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memory.New())
		watch, err := w.barrier.watch(t.Context(), nsA)
		w.check(err)
		defer watch.close()
		var held error
		_, done, err := watch.finish(t.Context(), time.Hour, time.Now, func(context.Context, []string) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			held = w.barrier.Put(ctx, kv.Ref{Namespace: nsA, Key: "a"}, kv.Record{Version: w.version()})
			return nil
		})
		if !done || err != nil || !errors.Is(held, context.DeadlineExceeded) {
			t.Errorf("%t, %v; the write: %v", done, err, held)
		}
		if all := records(t, w.store, nsA); len(all) != 0 {
			t.Errorf("it was made: %v", all)
		}
	})
}

// A snapshot waits for the writes that began before it, also when an earlier
// snapshot has given up waiting for them.
func TestSnapshotWaitsForWritesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under := &stuck{Store: memory.New(), release: make(chan struct{})}
		w := newWorld(t, under)
		put := make(chan struct{})
		go func() {
			w.put(nsA, "a", "1")
			close(put)
		}()
		synctest.Wait()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := w.barrier.watch(ctx, nsA); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it did not wait for the write: %v", err)
			}
			cancel()
		}
		close(under.release)
		<-put
		watch, err := w.barrier.watch(t.Context(), nsA)
		w.check(err)
		watch.close()
		if n := len(w.barrier.spaces); n != 0 {
			t.Errorf("%d namespaces are remembered when nothing is under way", n)
		}
	})
}

// stuck is a store whose writes wait.
type stuck struct {
	*memory.Store
	release chan struct{}
}

func (s *stuck) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	<-s.release
	return s.Store.Put(ctx, ref, rec)
}

// A write that ended in an error may be done later: it is looked for until the cut.
func TestWriteOfUnknownOutcomeIsLookedFor(t *testing.T) {
	for name, during := range map[string]bool{"before": false, "during": true} {
		store := memory.New()
		fail := kvtest.None
		w := newWorld(t, &kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
			if op == kvtest.OpPut {
				return fail
			}
			return kvtest.None
		}})
		rec := kv.Record{Version: w.version(), Value: []byte("late")}
		ref := kv.Ref{Namespace: nsA, Key: "a"}
		write := func() {
			fail = kvtest.Refused
			if err := w.barrier.Put(t.Context(), ref, rec); err == nil {
				t.Fatal("the write did not fail")
			}
			fail = kvtest.None
		}
		if !during {
			write()
		}
		watch, err := w.barrier.watch(t.Context(), nsA)
		w.check(err)
		if during {
			write()
		}
		for range 2 { // in every round
			keys, err := watch.take(t.Context())
			if err != nil || !slices.Equal(keys, []string{"a"}) {
				t.Errorf("%s: to be read again: %q, %v", name, keys, err)
			}
		}
		watch.close()
	}
}

// A namespace that is deleted while it is read is in no snapshot, and the others are.
func TestNamespaceThatIsDeletedMeanwhile(t *testing.T) {
	store := memory.New()
	w := newWorld(t, nil)
	dropping := &kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if op == kvtest.OpList && ref.Namespace == nsA && len(records(t, store, nsA)) > 0 {
			if err := w.barrier.Drop(t.Context(), nsA); err != nil {
				t.Error(err)
			}
		}
		return kvtest.None
	}}
	*w = *newWorld(t, dropping)
	w.put(nsA, "a", "1")
	w.put(nsB, "b", "1")
	m := w.full(nsA, nsB)
	if m.Content(nsA.String()) != nil || m.Content(nsB.String()) == nil {
		t.Errorf("the snapshot has %+v", m.Contents)
	}
	if _, wrong := w.archive.Verify(t.Context(), m.ID, nil); wrong != nil {
		t.Error(wrong)
	}
}

// More keys than can be noted are an end, not a hole in the snapshot.
func TestNotedKeysAreBounded(t *testing.T) {
	w := newWorld(t, memory.New())
	watch, err := w.barrier.watch(t.Context(), nsA)
	w.check(err)
	defer watch.close()
	for i := range MaxNoted {
		watch.note(strconv.Itoa(i))
	}
	watch.note("0")
	if err := watch.check(); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	watch.note("one more")
	if err := watch.check(); !errors.Is(err, ErrBusy) {
		t.Errorf("one past the limit: %v", err)
	}
}

// While a namespace is read for the first time, what is written is read again
// before too much has gathered.
func TestNotedKeysAreReadAgainMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	store, done := memory.New(), false
	writing := &kvtest.Faulty{Store: store, Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if op != kvtest.OpGetMany || done {
			return kvtest.None
		}
		done = true
		writes := make([]kv.Write, drainAt)
		for i := range writes {
			writes[i] = kv.Write{Ref: kv.Ref{Namespace: nsA, Key: fmt.Sprintf("new %d", i)}, Record: kv.Record{Version: w.version()}}
		}
		w.check(kv.PutMany(t.Context(), w.barrier, writes))
		return kvtest.None
	}}
	*w = *newWorld(t, writing)
	w.put(nsA, "zero", "1")
	m := w.full(nsA)
	if c := m.Contents[0]; c.Rounds < 2 || c.Records < drainAt {
		t.Errorf("%d rounds, %d records", c.Rounds, c.Records)
	}
}

// Who writes faster than can be read gets no snapshot, and is not held back for ever.
func TestSnapshotGivesUpWhenItCannotCatchUp(t *testing.T) {
	w := newWorld(t, nil)
	n := 0
	endless := &kvtest.Faulty{Store: memory.New(), Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if op == kvtest.OpGetMany && n%(1+lastKeys/readKeys) == 0 { // once in a round
			writes := make([]kv.Write, lastKeys+1)
			for i := range writes {
				writes[i] = kv.Write{Ref: kv.Ref{Namespace: nsA, Key: fmt.Sprint(i)}, Record: kv.Record{Version: w.version()}}
			}
			w.check(kv.PutMany(t.Context(), w.barrier, writes))
		}
		if op == kvtest.OpGetMany {
			n++
		}
		return kvtest.None
	}}
	*w = *newWorld(t, endless)
	w.put(nsA, "a", "1")
	err := w.take.Run(t.Context(), fulls(nsA), io.Discard)
	if !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	w.put(nsA, "a", "2")
}

// The stream tells that its sender lives while there is nothing else to tell.
func TestHeart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &kvtest.Faulty{Store: memory.New(), Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
			if op == kvtest.OpList {
				<-time.After(3*heartEvery + heartEvery/2)
			}
			return kvtest.None
		}})
		frames, err := newFrameReader(w.stream(fulls(nsA)), streamMagic)
		w.check(err)
		kinds := map[byte]int{}
		for {
			f, err := frames.next()
			if err == io.EOF {
				break
			}
			w.check(err)
			kinds[f.kind()]++
		}
		if want := (map[byte]int{frameBegin: 1, frameNamespace: 1, frameHeart: 2, frameCut: 1, frameEnd: 1}); !maps.Equal(kinds, want) {
			t.Errorf("frames %v, want %v", kinds, want)
		}
	})
}
