package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// brokenDrops is a memory store whose drops can fail, before or after they were
// done, and are counted.
type brokenDrops struct {
	*memory.Store
	refuseID kv.NamespaceID // fails always

	mu      sync.Mutex // guards the rest
	refuse  error
	unacked error
	drops   int
}

func (s *brokenDrops) fail(refuse, unacked error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse, s.unacked = refuse, unacked
}

func (s *brokenDrops) Drop(ctx context.Context, ns kv.NamespaceID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	if s.refuse != nil {
		return s.refuse
	}
	if ns == s.refuseID {
		return errors.New("this one is stuck")
	}
	if err := s.Store.Drop(ctx, ns); err != nil {
		return err
	}
	return s.unacked
}

func putKey(t *testing.T, s kv.Store, ns kv.NamespaceID, key string) {
	t.Helper()
	rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Value: []byte("v")}
	if err := s.Put(t.Context(), kv.Ref{Namespace: ns, Key: key}, rec); err != nil {
		t.Fatal(err)
	}
}

func countKeys(t *testing.T, s kv.Store, ns kv.NamespaceID) int {
	t.Helper()
	page, err := s.List(t.Context(), ns, kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(page.Keys)
}

func countDropped(t *testing.T, c *Catalog) (n int) {
	t.Helper()
	if err := c.db.read.QueryRowContext(t.Context(), `select count(*) from dropped_namespaces`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestJanitorSweep(t *testing.T) {
	c, _ := newCatalog(t)
	store := &brokenDrops{Store: memory.New()}
	j := NewJanitor(c, store, nil)
	start := time.Now().Truncate(time.Microsecond)
	c.at(start)
	gone, kept := createNamespace(t, c, "gone"), createNamespace(t, c, "kept")
	putKey(t, store, gone.ID, "k")
	putKey(t, store, kept.ID, "k")
	if err := c.DeleteNamespace(t.Context(), testAccount, gone.ID); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		after       time.Duration
		drops, rows int
	}{
		{0, 1, 1},
		{time.Second, 1, 1},
		{DropGrace - time.Microsecond, 1, 1},
		{DropGrace, 2, 0},
		{DropGrace + time.Hour, 2, 0},
	}
	for _, step := range steps {
		c.at(start.Add(step.after))
		if err := j.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if store.drops != step.drops || countDropped(t, c) != step.rows {
			t.Errorf("after %s: %d drops, %d rows, want %d and %d", step.after, store.drops, countDropped(t, c), step.drops, step.rows)
		}
		if n := countKeys(t, store, gone.ID); n != 0 && step.after == 0 {
			t.Errorf("%d keys are left", n)
		}
		if step.rows == 1 {
			putKey(t, store, gone.ID, "late") // a write that was under way
		}
	}
	if n := countKeys(t, store, gone.ID); n != 0 {
		t.Errorf("%d keys that were written late are left", n)
	}
	if n := countKeys(t, store, kept.ID); n != 1 {
		t.Errorf("%d keys in the namespace that was kept, want 1", n)
	}
}

func TestJanitorSurvivesFailures(t *testing.T) {
	store := &brokenDrops{Store: memory.New()}
	c, path := newCatalog(t)
	start := time.Now()
	n := createNamespace(t, c, "a")
	putKey(t, store, n.ID, "k")
	if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for name, fail := range map[string]func(*Catalog){
		"refused":                   func(*Catalog) { store.fail(boom, nil) },
		"done but not acknowledged": func(*Catalog) { store.fail(nil, boom) },
		"the note cannot be made":   func(c *Catalog) { _ = c.db.write.Close() },
	} {
		for _, after := range []time.Duration{0, 2 * DropGrace} {
			crashed := openAt(t, path)
			crashed.at(start.Add(after))
			fail(crashed)
			if err := NewJanitor(crashed, store, nil).sweep(t.Context()); err == nil {
				t.Errorf("%s: no error", name)
			}
			if countDropped(t, c) != 1 {
				t.Fatalf("%s: the deletion was forgotten", name)
			}
			store.fail(nil, nil)
		}
	}
	putKey(t, store, n.ID, "late")
	after := openAt(t, path)
	after.at(start.Add(2 * DropGrace))
	if err := NewJanitor(after, store, nil).sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if countDropped(t, c) != 0 || countKeys(t, store, n.ID) != 0 {
		t.Error("the restarted janitor has not finished")
	}
}

func TestJanitorGoesOnPastTheStuck(t *testing.T) {
	c, _ := newCatalog(t)
	store := &brokenDrops{Store: memory.New(), refuseID: kv.NamespaceID{15: 1}} // the first of all
	err := c.change(t.Context(), "fill", nil, func(tx *sql.Tx) error {
		for i := range 2*dropBatch + 5 {
			if _, err := tx.ExecContext(t.Context(), `insert into dropped_namespaces (id, dropped, drops) values ($1, 0, 0)`,
				fmt.Sprintf("%032x", i+1)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := NewJanitor(c, store, nil).sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("error %v, want that of the stuck one", err)
	}
	if n := countDropped(t, c); n != 1 {
		t.Errorf("%d deletions are left, want the stuck one", n)
	}
	if store.drops != 2*dropBatch+5 {
		t.Errorf("%d drops, want %d", store.drops, 2*dropBatch+5)
	}
}

// lockedBuffer is a log that a test reads while others write it.
type lockedBuffer struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestJanitorRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCatalog(t)
		var log lockedBuffer
		store := &brokenDrops{Store: memory.New(), refuse: errors.New("boom")}
		j := NewJanitor(c, store, slog.New(slog.NewTextHandler(&log, nil)))
		n := createNamespace(t, c, "a")
		putKey(t, store, n.ID, "k")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := j.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			j.Wake()
		}
		waitFor(t, "the failure in the log", func() bool { return strings.Contains(log.String(), "boom") })
		synctest.Wait()
		store.fail(nil, nil)
		time.Sleep(dropEvery) // without being told
		waitFor(t, "the first drop", func() bool { return countKeys(t, store, n.ID) == 0 })
		putKey(t, store, n.ID, "late")
		time.Sleep(DropGrace)
		waitFor(t, "the last drop", func() bool { return countDropped(t, c) == 0 })
		if got := countKeys(t, store, n.ID); got != 0 {
			t.Errorf("%d keys are left", got)
		}
		cancel()
		wg.Wait()
	})
}

// waitFor waits for a condition that others bring about.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); {
		if time.Since(start) > 10*time.Second {
			t.Fatal(fmt.Errorf("waited in vain for %s", what))
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
	}
}
