package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// TestStorageParts runs every part of the storage plane, small: each checks what it
// reads, and that the providers are equal when it says so.
func TestStorageParts(t *testing.T) {
	var out strings.Builder
	b := &bench{dir: t.TempDir(), out: &out, scale: scale{keys: 2 * chunkPairs, pairs: 4 * chunkPairs, drifted: 2 * chunkPairs}}
	b.rounds, b.slice = 1, 50*time.Millisecond
	for _, part := range []struct {
		run  func(*bench, context.Context) error
		want []string
	}{
		{(*bench).pointReads, []string{"plain SQL, 1 shard", "gateway, one frozen, 4 shards", "ratio, 4 shards"}},
		{(*bench).upserts, []string{"store/postgres, 1 shard", "ratio, gateway, 4 shards"}},
		{(*bench).second, []string{"get, 1 shard, 1 caller", "put, 4 shards, 16 callers, two", "two / one", "hedged / one"}},
		{(*bench).bulks, []string{"bytes per row", "crawl, no drift, 4 shards", "2000 of 5000 keys differed", "catch up by queue, 4 shards", "bulk load, one provider"}},
	} {
		out.Reset()
		if err := part.run(b, t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range part.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, &out)
			}
		}
	}
	if len(b.verdicts) != 2*len(shardCounts) {
		t.Errorf("verdicts: %v", b.verdicts)
	}
}

func TestStorageKeys(t *testing.T) {
	p := &plane{keys: keyspace{seed: 5, dirs: keyDirs, binary: true}}
	namespaces := map[kv.NamespaceID]bool{}
	for i := range 2 * storeNamespaces * chunkPairs {
		namespaces[namespaceOf(i)] = true
	}
	if len(namespaces) != storeNamespaces {
		t.Errorf("%d namespaces, want %d", len(namespaces), storeNamespaces)
	}
	if err := p.check(1, kv.Record{Value: p.keys.appendValue(nil, 1)}, nil); err != nil {
		t.Error(err)
	}
	if err := p.check(1, kv.Record{Value: p.keys.appendValue(nil, 2)}, nil); err == nil {
		t.Error("the value of another key is taken")
	}
}

// TestPaced: what waits for the one before it counts from the moment it was due.
func TestPaced(t *testing.T) {
	const stall = 50 * time.Millisecond
	latencies, late, err := paced(t.Context(), 100, 100*time.Millisecond, func(i int) error {
		if i == 3 {
			<-time.After(stall)
		}
		return nil
	})
	if err != nil || len(latencies) != 10 || len(late) != 10 || latencies[3] < stall {
		t.Errorf("latencies %v, late %v, %v", latencies, late, err)
	}
	failed := errors.New("failed")
	if _, _, err := paced(t.Context(), 100, 50*time.Millisecond, func(int) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("an error is told as %v", err)
	}
}

func TestCallers(t *testing.T) {
	latencies, err := callers(t.Context(), 3, time.Now().Add(time.Hour), func(int) func() error {
		n := 0
		return func() error {
			if n++; n > 4 {
				return errDone
			}
			return nil
		}
	})
	if err != nil || len(latencies) != 12 {
		t.Errorf("%d latencies, %v", len(latencies), err)
	}
	failed := errors.New("failed")
	if _, err := callers(t.Context(), 3, time.Now().Add(time.Hour), func(int) func() error { return func() error { return failed } }); !errors.Is(err, failed) {
		t.Errorf("an error is told as %v", err)
	}
}
