package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

func TestSweepTurnsExpiredIntoTombstonesOfTheirVersion(t *testing.T) {
	clock := time.Unix(1_000_000, 0)
	s := mustOpen(t, t.TempDir(), Options{now: func() time.Time { return clock }})
	ctx := context.Background()
	var sweep sweeper
	rec := func(time, expiration int64, n int) kv.Record {
		return kv.Record{Version: kv.NewVersion(time, 1, 1), Expiration: expiration, Value: make([]byte, n), Metadata: []byte("1")}
	}
	put := func(key string, rec kv.Record) {
		t.Helper()
		if err := s.Put(ctx, kv.Ref{Key: key}, rec); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 * sweepBatch { // more than one batch
		put(fmt.Sprint("many ", i), rec(1, clock.Unix()+1, 1))
	}
	put("exact", rec(1, clock.Unix()+1, 1))
	put("later", rec(1, clock.Unix()+2, 1))
	put("never", rec(1, 0, 1))
	put("large", rec(1, clock.Unix()+1, LargeValueBytes))
	put("prolonged", rec(1, clock.Unix()+1, 1))
	put("prolonged", rec(2, clock.Unix()+9, 1))
	put("made permanent", rec(1, clock.Unix()+1, 1))
	put("made permanent", rec(2, 0, 1))
	check := func(key string, want kv.Record) {
		t.Helper()
		got, err := s.Get(ctx, kv.Ref{Key: key}, 0)
		if err != nil || got.Compare(want) != 0 {
			t.Errorf("%q is %+v, want %+v (%v)", key, got, want, err)
		}
	}
	run := func() {
		t.Helper()
		if err := s.sweep(ctx, &sweep); err != nil {
			t.Fatal(err)
		}
	}
	run()
	check("exact", rec(1, clock.Unix()+1, 1))
	clock = clock.Add(time.Second)
	run()
	tomb := kv.Tombstone(kv.NewVersion(1, 1, 1))
	check("exact", tomb)
	check("large", tomb)
	check(fmt.Sprint("many ", 3*sweepBatch-1), tomb)
	check("later", rec(1, clock.Unix()+1, 1))
	check("never", rec(1, 0, 1))
	check("prolonged", rec(2, clock.Unix()+8, 1))
	check("made permanent", rec(2, 0, 1))
	if n := len(largeFiles(t, s.dir)); n != 0 {
		t.Errorf("%d files are left of a large value that expired", n)
	}
	put("exact", rec(2, 0, 1)) // the sweep kept the version: any newer write wins
	check("exact", rec(2, 0, 1))
	clock = clock.Add(time.Second)
	run()
	check("later", tomb)
}

func TestForgetAfter(t *testing.T) {
	clock := time.Unix(1_000_000, 0)
	s := mustOpen(t, t.TempDir(), Options{now: func() time.Time { return clock }, ForgetAfter: time.Hour})
	ctx := context.Background()
	old, fresh := kv.Tombstone(kv.NewVersion(clock.UnixNano(), 1, 1)), kv.Tombstone(kv.NewVersion(clock.Add(time.Minute).UnixNano(), 1, 1))
	for key, rec := range map[string]kv.Record{"old": old, "fresh": fresh} {
		if err := s.Put(ctx, kv.Ref{Key: key}, rec); err != nil {
			t.Fatal(err)
		}
	}
	clock = clock.Add(time.Hour + time.Second)
	if err := s.sweep(ctx, &sweeper{}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]kv.Record{"old": {}, "fresh": fresh} {
		if got, err := s.Get(ctx, kv.Ref{Key: key}, 0); err != nil || got.Compare(want) != 0 {
			t.Errorf("%q is %+v, want %+v (%v)", key, got, want, err)
		}
	}
}

func TestEntriesOfDroppedNamespacesAreSwept(t *testing.T) {
	clock := time.Unix(1_000_000, 0)
	s := mustOpen(t, t.TempDir(), Options{now: func() time.Time { return clock }, ForgetAfter: time.Hour})
	ctx := context.Background()
	writes := []kv.Write{{Ref: kv.Ref{Key: "expires"}, Record: kv.Record{Version: kv.NewVersion(1, 1, 1), Expiration: clock.Unix() + 1}},
		{Ref: kv.Ref{Key: "tomb"}, Record: kv.Tombstone(kv.NewVersion(1, 1, 1))}}
	if err := errors.Join(s.PutMany(ctx, writes), s.Drop(ctx, kv.NamespaceID{})); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Second)
	if err := s.sweep(ctx, &sweeper{}); err != nil {
		t.Fatal(err)
	}
	for _, space := range []byte{spaceExpirations, spaceTombstones} {
		if keys, err := s.indexKeys([]byte{space}, []byte{space + 1}); err != nil || len(keys) != 0 {
			t.Errorf("index %c: %d entries, %v", space, len(keys), err)
		}
	}
	if page, err := s.List(ctx, kv.NamespaceID{}, kv.ListOptions{}); err != nil || len(page.Keys) != 0 {
		t.Errorf("the sweep brought back %d keys, %v", len(page.Keys), err)
	}
}

func TestSweepRemovesFilesThatNoRowNames(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	ctx, ref := context.Background(), kv.Ref{Key: "k"}
	rec := kv.Record{Version: kv.NewVersion(2, 1, 1), Value: make([]byte, LargeValueBytes)}
	if err := s.Put(ctx, ref, rec); err != nil {
		t.Fatal(err)
	}
	needed := largeFiles(t, s.dir)[0]
	orphan, err := s.values.write(ref, kv.NewVersion(1, 1, 1), rec.Value)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(filepath.Dir(needed), "cut")
	half := filepath.Join(filepath.Dir(needed), "half"+temporary)
	for _, path := range []string{cut, half} {
		if err := os.WriteFile(path, []byte("nkv1\x00\x09k"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(path string) bool {
		_, err := os.Stat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	if err := s.sweep(ctx, &sweeper{}); err != nil {
		t.Fatal(err)
	}
	if path := s.values.path(ref.Namespace, orphan); !exists(path) {
		t.Error("the file of a write under way was removed")
	}
	s.values.settle(orphan)
	if err := s.sweep(ctx, &sweeper{}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{s.values.path(ref.Namespace, orphan), cut, half} {
		if exists(path) {
			t.Errorf("%s was not removed", filepath.Base(path))
		}
	}
	if got, err := s.Get(ctx, ref, 0); err != nil || got.Compare(rec) != 0 {
		t.Errorf("a needed file was removed: %v", err)
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{SweepEvery: time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.Put(ctx, kv.Ref{Key: "k"}, kv.Record{Version: kv.NewVersion(1, 1, 1), Expiration: 1}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for {
		if rec, err := s.Get(ctx, kv.Ref{Key: "k"}, 0); err != nil || rec.Tombstone {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
