package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func reads(t *testing.T, s kv.Store, ref kv.Ref, want kv.Record) {
	t.Helper()
	if rec, err := s.Get(t.Context(), ref, 0); err != nil || rec.Compare(want) != 0 {
		t.Errorf("%q reads as %v (%v), want %v", ref.Key, rec, err, want)
	}
}

// phaseOf returns the phase of the first move, "" if there is none.
func phaseOf(s *Shards) Phase {
	if moves := s.Status().Moves; len(moves) > 0 {
		return moves[0].Phase
	}
	return ""
}

// awaitPhase waits, in a bubble.
func awaitPhase(t *testing.T, s *Shards, phase Phase) {
	t.Helper()
	for range 10_000 {
		if phaseOf(s) == phase {
			return
		}
		<-time.After(time.Millisecond)
	}
	t.Fatalf("the move does not come to %q: %+v", phase, s.Status().Moves)
}

// A write that began before the copy ends before it: or the copy misses it.
func TestACopyWaitsForWritesUnderWay(t *testing.T) {
	for _, omit := range []omission{0, omitDrain | omitVerify} {
		synctest.Test(t, func(t *testing.T) {
			opts := quick(&heldTable{})
			opts.omit = omit
			s, clusters := threeClusters(t, opts)
			must(t, s.Put(t.Context(), at(0, "other"), some(1)))
			let := make(chan struct{})
			clusters[0].Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
				if op == kvtest.OpPut && ref.Key == "slow" {
					<-let
				}
				return kvtest.None
			}
			done := make(chan error, 1)
			go func() { done <- s.Put(t.Context(), at(0, "slow"), some(2)) }()
			synctest.Wait()
			stop := run(t, s)
			must(t, s.Move(0, "c1"))
			time.Sleep(time.Second)
			if waits := phaseOf(s) == Clearing || phaseOf(s) == Copying; waits != (omit == 0) {
				t.Errorf("the move is in phase %q while a write is under way", phaseOf(s))
			}
			close(let)
			must(t, <-done)
			awaitMoves(t, s)
			stop()
			rec, err := s.Get(t.Context(), at(0, "slow"), 0)
			must(t, err)
			if lost := rec.Absent(); lost != (omit != 0) {
				t.Errorf("lost: %v", lost)
			}
		})
	}
}

// While a slot is copied, the new cluster refuses, or hangs: no call fails, and a
// hang costs those who are there one timeout. In the end nothing is missing.
func TestTheNewClusterFailsWhileCopying(t *testing.T) {
	for _, fault := range []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged, kvtest.Hang} {
		synctest.Test(t, func(t *testing.T) {
			opts := quick(&heldTable{})
			opts.RetryAfter = time.Minute
			s, clusters := threeClusters(t, opts)
			must(t, s.Put(t.Context(), at(0, "before"), some(1)))
			let := make(chan struct{})
			clusters[0].Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
				if op == kvtest.OpGetMany {
					<-let
				}
				return kvtest.None
			}
			run(t, s)
			must(t, s.Move(0, "c1"))
			awaitPhase(t, s, Copying)
			time.Sleep(time.Second)
			clusters[1].set(fault)
			begun := time.Now()
			for i := range 10 {
				must(t, s.Put(t.Context(), at(0, fmt.Sprint("key ", i)), some(2)))
				must(t, kv.PutMany(t.Context(), s, []kv.Write{{Ref: at(0, "before"), Record: some(int64(3 + i))}, {Ref: at(2, "b"), Record: some(2)}}))
				reads(t, s, at(0, "before"), some(int64(3+i)))
			}
			if waited := time.Since(begun); waited > DefaultMirrorTimeout {
				t.Errorf("writes waited %v for the new cluster", waited)
			}
			if err := s.Forget(t.Context(), []kv.Tomb{{Ref: at(0, "never")}}); err == nil {
				t.Error("a tombstone was forgotten that the new cluster may hold")
			}
			close(let)
			time.Sleep(30 * time.Second)
			if phase := phaseOf(s); phase != Copying {
				t.Errorf("the move goes on without the new cluster: %q", phase)
			}
			clusters[1].set(kvtest.None)
			awaitMoves(t, s)
			for i := range 10 {
				reads(t, s, at(0, fmt.Sprint("key ", i)), some(2))
			}
			reads(t, s, at(0, "before"), some(12))
			reads(t, clusters[1].Store, at(0, "before"), some(12))
			reads(t, clusters[0].Store, at(0, "before"), kv.Record{})
		})
	}
}

// After the cut over the old cluster may fail as it likes.
func TestTheOldClusterFailsAfterTheCutOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := quick(&heldTable{})
		opts.DropAfter, opts.RetryAfter, opts.ProbeEvery = time.Hour, time.Minute, time.Minute
		s, clusters := threeClusters(t, opts)
		run(t, s)
		must(t, s.Put(t.Context(), at(0, "k"), some(1)))
		must(t, s.Move(0, "c1"))
		awaitPhase(t, s, CutOver)
		must(t, s.Put(t.Context(), at(0, "k"), some(2)))
		reads(t, clusters[0].Store, at(0, "k"), some(2)) // it follows
		clusters[0].set(kvtest.Hang)
		begun := time.Now()
		for i := range 10 {
			must(t, s.Put(t.Context(), at(0, "k"), some(int64(3+i))))
			reads(t, s, at(0, "k"), some(int64(3+i)))
		}
		if waited := time.Since(begun); waited > DefaultMirrorTimeout {
			t.Errorf("writes waited %v for the old cluster", waited)
		}
		must(t, s.Put(t.Context(), at(0, "t"), kv.Tombstone(some(20).Version)))
		must(t, s.Forget(t.Context(), []kv.Tomb{{Ref: at(0, "t"), Version: some(20).Version}}))
		must(t, s.Drop(t.Context(), at(0, "k").Namespace))
		reads(t, s, at(0, "k"), kv.Record{})
		clusters[0].set(kvtest.None)
		if err := s.Move(0, "c0"); err != nil { // first it must arrive
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if moves := s.Status().Moves; len(moves) != 2 || moves[0].Phase != CutOver || moves[1].Phase != Waiting {
			t.Errorf("the slot moves back before the old copies are gone: %+v", moves)
		}
		awaitPhase(t, s, CutOver)
		time.Sleep(3 * time.Hour)
		awaitMoves(t, s)
		reads(t, s, at(0, "k"), kv.Record{})
		if s.table.owners[0] != "c0" {
			t.Errorf("slot 0 is in %s", s.table.owners[0])
		}
	})
}

// A disk that hangs keeps changes from being made, and nothing else.
func TestAKeeperThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		let := make(chan struct{})
		keeper := &heldTable{}
		s, _ := threeClusters(t, quick(keeper))
		keeper.fault = func() (before, after error) { <-let; return nil, nil }
		moved := make(chan error, 1)
		go func() { moved <- s.Move(0, "c1") }()
		synctest.Wait()
		must(t, s.Put(t.Context(), at(0, "k"), some(1)))
		reads(t, s, at(0, "k"), some(1))
		if n := len(s.Status().Moves); n != 0 {
			t.Errorf("%d moves before the table is kept", n)
		}
		must(t, s.barrier(t.Context()))
		close(let)
		must(t, <-moved)
		if n := len(s.Status().Moves); n != 1 {
			t.Errorf("%d moves", n)
		}
	})
}

// What the new cluster missed is bounded.
func TestMissedKeysAreBounded(t *testing.T) {
	m := newMove(1)
	for i := range MaxMissed {
		m.miss([]kv.Write{{Ref: kv.Ref{Key: fmt.Sprint(i)}}, {Ref: kv.Ref{Key: "0"}}})
	}
	if refs, overflow := m.takeMissed(); len(refs) != MaxMissed || overflow {
		t.Errorf("%d keys are kept, too many: %v", len(refs), overflow)
	}
	for i := range MaxMissed + 1 {
		m.miss([]kv.Write{{Ref: kv.Ref{Key: fmt.Sprint(i)}}})
	}
	if refs, overflow := m.takeMissed(); len(refs) != 0 || !overflow {
		t.Errorf("one more: %d keys are kept, too many: %v", len(refs), overflow)
	}
}

// The Keeper fails at the cut over, before or after it has saved. Until it is known
// which table is kept, writes must reach both sides, so that either will do.
func TestTheKeeperFailsAtTheCutOver(t *testing.T) {
	for _, saved := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			keeper := &heldTable{}
			opts := quick(keeper)
			opts.RetryAfter = time.Minute
			s, clusters := threeClusters(t, opts)
			must(t, s.Put(t.Context(), at(0, "k"), some(1)))
			var broken atomic.Bool
			keeper.fault = func() (before, after error) {
				err := errors.New("disk full")
				switch {
				case !broken.Load():
					return nil, nil
				case saved:
					return nil, err
				}
				return err, nil
			}
			clusters[1].Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
				if op == kvtest.OpList && ref.Namespace != TableNamespace { // the comparison: the next table is the cut over
					broken.Store(true)
				}
				return kvtest.Fault(clusters[1].fault.Load())
			}
			stop := run(t, s)
			must(t, s.Move(0, "c1"))
			for range 1000 {
				<-time.After(time.Millisecond)
				if moves := s.Status().Moves; len(moves) > 0 && moves[0].Error != "" {
					break
				}
			}
			if moves := s.Status().Moves; len(moves) == 0 || moves[0].Phase != Copying || moves[0].Error == "" {
				t.Fatalf("the keeper has failed, and the moves are %+v", moves)
			}
			must(t, s.Put(t.Context(), at(0, "k"), some(2)))
			clusters[1].set(kvtest.Refused)
			if err := s.Put(t.Context(), at(0, "k"), some(3)); !errors.Is(err, kv.ErrUnknown) {
				t.Errorf("a write that only one side has: %v", err)
			}
			clusters[1].set(kvtest.None)

			// By whichever table a next process starts, it has what was acknowledged.
			again := mustShards(t, own(s), quick(&heldTable{text: keeper.text}))
			rec, err := again.Get(t.Context(), at(0, "k"), 0)
			if must(t, err); rec.Version.Compare(some(2).Version) < 0 {
				t.Errorf("after a crash: %v", rec)
			}
			broken.Store(false)
			clusters[1].Inject = func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Fault(clusters[1].fault.Load()) }
			awaitMoves(t, s)
			reads(t, s, at(0, "k"), some(3))
			reads(t, clusters[1].Store, at(0, "k"), some(3))
			stop()
		})
	}
}

// A comparison finds what a copy lacks, what it should not have, and is content
// with what is only newer.
func TestTheComparison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, clusters := threeClusters(t, quick(&heldTable{}))
		ctx := t.Context()
		for i := range 300 {
			must(t, s.Put(ctx, at(0, fmt.Sprintf("key %03d", i)), some(2)))
		}
		expired := some(3)
		expired.Expiration = 1
		must(t, s.Put(ctx, at(0, "swept"), expired))
		var spoil atomic.Int32
		spoil.Store(1)
		clusters[1].Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
			if op != kvtest.OpList || ref.Namespace != at(0, "").Namespace || phaseOf(s) != Copying {
				return kvtest.None
			}
			far := clusters[1].Store
			switch spoil.Swap(0) {
			case 1: // records are lost in the new cluster
				for i := range 200 {
					must(t, far.Put(ctx, at(0, fmt.Sprintf("key %03d", i)), kv.Tombstone(some(2).Version)))
					must(t, kv.Forget(ctx, far, []kv.Tomb{{Ref: at(0, fmt.Sprintf("key %03d", i)), Version: some(2).Version}}))
				}
				must(t, far.Put(ctx, at(0, "a tombstone"), kv.Tombstone(some(2).Version)))
				must(t, far.Put(ctx, at(0, "swept"), kv.Tombstone(some(3).Version))) // its expiry was found there first
			case 2: // it has one that nobody gave it
				must(t, far.Put(ctx, at(0, "key 299"), some(9)))
			}
			return kvtest.None
		}
		stop := run(t, s)
		must(t, s.Move(0, "c1"))
		awaitMoves(t, s)
		stop()
		for i := range 300 {
			reads(t, s, at(0, fmt.Sprintf("key %03d", i)), some(2))
		}
		reads(t, s, at(0, "swept"), kv.Tombstone(some(3).Version))
		reads(t, s, at(0, "a tombstone"), kv.Record{})

		spoil.Store(0)
		must(t, s.Move(0, "c0"))
		stop = run(t, s)
		awaitMoves(t, s)
		spoil.Store(2)
		must(t, s.Move(0, "c1"))
		awaitMoves(t, s)
		stop()
		reads(t, s, at(0, "key 299"), some(2))
		reads(t, s, at(0, "key 007"), some(2))
	})
}

// copying returns shards in the midst of a copy of slot 0 to c1, which goes on when
// let is closed.
func copying(t *testing.T) (s *Shards, clusters []*switched, let chan struct{}) {
	t.Helper()
	s, clusters = threeClusters(t, quick(&heldTable{}))
	for i := range 500 {
		must(t, s.Put(t.Context(), at(0, fmt.Sprint(i)), some(2)))
	}
	copies := 0
	reached := make(chan struct{})
	let = make(chan struct{})
	clusters[1].Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if op == kvtest.OpPutMany {
			if copies++; copies == 2 {
				close(reached)
				<-let
			}
		}
		return kvtest.None
	}
	run(t, s)
	must(t, s.Move(0, "c1"))
	<-reached
	return s, clusters, let
}

// A namespace that is dropped while it is copied stays dropped.
func TestDropWhileCopying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, clusters, let := copying(t)
		dropped := make(chan error, 1)
		ns := at(0, "").Namespace
		go func() { dropped <- kv.Drop(t.Context(), s, ns) }()
		synctest.Wait()
		select {
		case <-dropped:
			t.Error("the drop did not wait for the batch that is being copied")
		default:
		}
		close(let)
		must(t, <-dropped)
		awaitMoves(t, s)
		for _, c := range clusters {
			if ids, err := kv.Namespaces(t.Context(), c.Store, kv.NamespaceID{}, 10); err != nil || slices.Contains(ids, ns) {
				t.Errorf("the namespace came back: %v, %v", ids, err)
			}
		}
	})
}

// A move that is taken back leaves nothing behind, and can be made again.
func TestAMoveIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, clusters, let := copying(t)
		must(t, s.Put(t.Context(), at(0, "new"), some(3)))
		must(t, s.Move(0, "c0"))
		if phase := phaseOf(s); phase != Undoing {
			t.Errorf("the move is in phase %q", phase)
		}
		close(let)
		awaitMoves(t, s)
		if ids, err := kv.Namespaces(t.Context(), clusters[1].Store, kv.NamespaceID{}, 10); err != nil || slices.Contains(ids, at(0, "").Namespace) {
			t.Errorf("copies were left behind: %v, %v", ids, err)
		}
		reads(t, s, at(0, "new"), some(3))
		must(t, s.Move(0, "c2"))
		awaitMoves(t, s)
		reads(t, clusters[2].Store, at(0, "new"), some(3))
	})
}

// Many moves are made a few at a time, and one that cannot go on does not keep
// those of other clusters.
func TestMovesAreBoundedAndIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := quick(&heldTable{})
		opts.Moves, opts.RetryAfter = 3, time.Second
		s, clusters := threeClusters(t, opts)
		for slot := range 60 {
			must(t, s.Put(t.Context(), at(slot, "k"), some(1)))
		}
		var running, most atomic.Int32
		for _, c := range clusters {
			c.Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
				if op == kvtest.OpGetMany {
					most.Store(max(most.Load(), running.Add(1)))
					<-time.After(time.Millisecond)
					running.Add(-1)
				}
				return kvtest.Fault(c.fault.Load())
			}
		}
		run(t, s)
		clusters[2].set(kvtest.Hang)
		for slot := range 60 {
			must(t, s.Move(slot, []string{"c1", "c0", "c0"}[slot%3]))
		}
		time.Sleep(5 * time.Minute)
		left := s.Status().Moves
		for _, m := range left {
			if m.Slot%3 != 2 {
				t.Errorf("slot %d does not need the cluster that hangs, and is %s", m.Slot, m.Phase)
			}
			if m.Phase != Waiting && m.Phase != Clearing && m.Phase != Copying {
				t.Errorf("slot %d is %s without its old cluster", m.Slot, m.Phase)
			}
		}
		if len(left) != 20 {
			t.Errorf("%d moves are left", len(left))
		}
		clusters[2].set(kvtest.None)
		awaitMoves(t, s)
		for slot := range 60 {
			reads(t, s, at(slot, "k"), some(1))
		}
		if n := most.Load(); n != 3 {
			t.Errorf("%d moves copied at once, want 3", n)
		}
	})
}

// A cluster is drained, another one is added and filled, with what they hold.
func TestDrainAndRebalance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := &heldTable{}
		clusters := memories(3)
		clusters[1].Weight = 0.1
		s := mustShards(t, clusters, quick(keeper))
		b := newBooks()
		for slot := range 400 {
			must(t, b.put(t.Context(), s, at(slot, "k"), slot%5 == 0))
		}
		must(t, s.Spread(at(1, "").Namespace, 3))
		stop := run(t, s)
		awaitMoves(t, s)
		for i := range 100 {
			must(t, b.put(t.Context(), s, at(1, fmt.Sprint(i)), false))
		}
		must(t, s.Drain("c1"))
		if status := s.Status().Clusters[1]; status.Leaves != status.Slots || status.Slots == 0 {
			t.Errorf("%+v", status)
		}
		awaitMoves(t, s)
		stop()
		b.audit(t, "drained", s)
		b.tidy(t, "drained", s, clusters)
		if n := s.Status().Clusters[1].Slots; n != 0 {
			t.Errorf("the drained cluster owns %d slots", n)
		}
		before := slices.Clone(s.table.owners)

		clusters = []Cluster{clusters[0], clusters[2], {Name: "c3", Weight: 0.1, Store: memory.New()}}
		s = mustShards(t, clusters, quick(keeper)) // the drained one is taken away
		run(t, s)
		must(t, s.Rebalance())
		awaitMoves(t, s)
		b.audit(t, "rebalanced", s)
		b.tidy(t, "rebalanced", s, clusters)
		b.verdict(t, "in the end")
		for slot, name := range s.table.owners {
			if name != before[slot] && name != "c3" {
				t.Fatalf("slot %d moved from %s to %s because another was added", slot, before[slot], name)
			}
		}
		if n := s.Status().Clusters[2].Slots; n < Slots/40 {
			t.Errorf("the new cluster owns %d slots", n)
		}
		lone := mustShards(t, memories(1), quick(&heldTable{}))
		if err := lone.Drain("c0"); err == nil {
			t.Error("the only cluster is drained")
		}
	})
}

// The old copies stay for the time that they should; a restart begins it anew.
func TestOldCopiesStayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := &heldTable{}
		opts := quick(keeper)
		opts.DropAfter, opts.RetryAfter, opts.ProbeEvery = time.Hour, time.Minute, time.Minute
		s, clusters := threeClusters(t, opts)
		must(t, s.Put(t.Context(), at(0, "k"), some(1)))
		stop := run(t, s)
		must(t, s.Move(0, "c1"))
		awaitPhase(t, s, CutOver)
		time.Sleep(59 * time.Minute)
		reads(t, clusters[0].Store, at(0, "k"), some(1))
		stop()
		s = mustShards(t, own(s), opts)
		stop = run(t, s)
		time.Sleep(59 * time.Minute)
		reads(t, clusters[0].Store, at(0, "k"), some(1))
		time.Sleep(2 * time.Minute)
		reads(t, clusters[0].Store, at(0, "k"), kv.Record{})
		reads(t, s, at(0, "k"), some(1))
		stop()
	})
}

func TestCopyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := quick(&heldTable{})
		opts.CopyRate = 100
		s, _ := threeClusters(t, opts)
		for i := range 10 * batchKeys {
			must(t, s.Put(t.Context(), at(0, fmt.Sprint(i)), some(1)))
		}
		run(t, s)
		begun := time.Now()
		must(t, s.Move(0, "c1"))
		awaitMoves(t, s)
		if took := time.Since(begun); took < 9*batchKeys*time.Second/100 || took > 20*batchKeys*time.Second/100 {
			t.Errorf("%d records were copied in %v at 100 a second", 10*batchKeys, took)
		}
	})
}

// plain is a store without abilities.
type plain struct{ kv.Store }

// A move is not begun between clusters that cannot carry it through.
func TestMovesNeedAbilities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clusters := memories(2)
		clusters[1].Store = plain{clusters[1].Store}
		s := mustShards(t, clusters, quick(&heldTable{}))
		must(t, s.Put(t.Context(), at(0, "k"), some(1)))
		run(t, s)
		must(t, s.Move(0, map[string]string{"c0": "c1", "c1": "c0"}[s.table.owners[0]]))
		time.Sleep(time.Second)
		if moves := s.Status().Moves; len(moves) != 1 || moves[0].Phase != Waiting || moves[0].Error == "" {
			t.Errorf("%+v", moves)
		}
		must(t, s.Move(0, s.table.owners[0]))
		if moves := s.Status().Moves; len(moves) != 0 {
			t.Errorf("the move cannot be taken back: %+v", moves)
		}
		if _, err := kv.Namespaces(t.Context(), s, kv.NamespaceID{}, 1); !errors.Is(err, kv.ErrUnsupported) {
			t.Errorf("namespaces: %v", err)
		}
		if _, _, err := kv.Changes(t.Context(), s, kv.Cursor{}, 1); !errors.Is(err, kv.ErrUnsupported) {
			t.Errorf("changes: %v", err)
		}
	})
}

// thrifty asks for the memory of what it reads.
type thrifty struct {
	*memory.Store
	most int // records in one answer
}

func (s *thrifty) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	recs, err := kv.GetMany(ctx, s.Store, refs, maxAge)
	for _, rec := range recs {
		if err := kv.Reserve(ctx, int64(len(rec.Value))); err != nil {
			return nil, err
		}
	}
	s.most = max(s.most, len(refs))
	return recs, err
}

// Large values are copied in batches that fit.
func TestBatchesOfLargeValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clusters := memories(2)
		store := &thrifty{Store: memory.New()}
		clusters[0].Store = store
		s := mustShards(t, clusters, quick(&heldTable{text: newTable(func(int) string { return "c0" }).text}))
		large := some(1)
		large.Value = make([]byte, batchBytes/4)
		for i := range 10 {
			must(t, s.Put(t.Context(), at(0, fmt.Sprint(i)), large))
		}
		large.Value = make([]byte, batchBytes+1) // alone it is always let through
		must(t, s.Put(t.Context(), at(0, "huge"), large))
		run(t, s)
		must(t, s.Move(0, "c1"))
		awaitMoves(t, s)
		if store.most > 4 || store.most < 2 {
			t.Errorf("up to %d large values were read at once", store.most)
		}
		reads(t, clusters[1].Store, at(0, "huge"), large)
	})
}
