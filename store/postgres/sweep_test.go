package postgres

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

func TestSweep(t *testing.T) {
	now := time.Now()
	s := mustOpen(t, newURL(t), Options{now: func() time.Time { return now }})
	ctx := t.Context()
	const due = expiredAtOnce + 2*expireAtOnce + 7
	record := func(i int, expiration int64) kv.Record {
		return kv.Record{Version: kv.NewVersion(int64(i+1), 1, 1), Value: []byte("v"), Metadata: []byte("1"), Expiration: expiration}
	}
	var writes []kv.Write
	for i := range due {
		writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprint("due ", i)}, Record: record(i, now.Unix()-int64(i%9))})
	}
	writes = append(writes, kv.Write{Ref: kv.Ref{Key: "later"}, Record: record(1, now.Unix()+1)}, kv.Write{Ref: kv.Ref{Key: "never"}, Record: record(1, 0)})
	if err := s.PutMany(ctx, writes); err != nil {
		t.Fatal(err)
	}
	var sweep sweeper
	if err := s.sweep(ctx, &sweep); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().Swept; n != due {
		t.Errorf("%d records were swept, want %d", n, due)
	}
	expect := func(key string, want kv.Record) {
		t.Helper()
		if got, err := s.Get(ctx, kv.Ref{Key: key}, 0); err != nil || got.Compare(want) != 0 {
			t.Errorf("%s is %+v, %v", key, got, err)
		}
	}
	expect("due 8", kv.Tombstone(kv.NewVersion(9, 1, 1)))
	expect("later", record(1, now.Unix()+1))
	expect("never", record(1, 0))
	if err := s.Put(ctx, kv.Ref{Key: "due 8"}, record(8, now.Unix()-8)); err != nil {
		t.Fatal(err)
	}
	expect("due 8", kv.Tombstone(kv.NewVersion(9, 1, 1))) // a late copy of what expired loses to its tombstone
	if err := s.Put(ctx, kv.Ref{Key: "due 8"}, record(9, 0)); err != nil {
		t.Fatal(err)
	}
	expect("due 8", record(9, 0)) // a newer write wins

	// What came when it had long expired waits for the next whole sweep.
	if err := s.Put(ctx, kv.Ref{Key: "late"}, record(1, 5)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if err := s.sweep(ctx, &sweep); err != nil {
		t.Fatal(err)
	}
	expect("later", kv.Tombstone(kv.NewVersion(2, 1, 1)))
	expect("late", record(1, 5))
	now = now.Add(wholeEvery)
	if err := s.sweep(ctx, &sweep); err != nil {
		t.Fatal(err)
	}
	expect("late", kv.Tombstone(kv.NewVersion(2, 1, 1)))
}

// Run sweeps, bears a server that is gone for a while, says that it is, and ends.
func TestRun(t *testing.T) {
	server := pgtest.Start(t)
	s := mustOpen(t, server.URL(), Options{SweepEvery: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	sweeps := func(key string) {
		t.Helper()
		rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Expiration: time.Now().Unix()}
		if err := s.Put(t.Context(), kv.Ref{Key: key}, rec); err != nil {
			t.Fatal(err)
		}
		nearkeytest.Until(t, "sweep", func() bool {
			got, err := s.Get(t.Context(), kv.Ref{Key: key}, 0)
			return err == nil && got.Tombstone
		})
	}
	sweeps("a")
	server.Kill()
	nearkeytest.Until(t, "word that the server is gone", func() bool { return s.Ready() != nil })
	server.Restart()
	nearkeytest.Until(t, "word that the server is back", func() bool { return s.Ready() == nil })
	sweeps("b")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}
