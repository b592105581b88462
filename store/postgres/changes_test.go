package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

func openLog(t *testing.T, url string, opts Options) (*Store, kv.Cursor) {
	t.Helper()
	opts.Outbox, opts.PollEvery = true, time.Millisecond
	s := mustOpen(t, url, opts)
	_, head, err := s.Changes(t.Context(), kv.Cursor{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return s, head
}

// A transaction that commits late is told before those that began after it, and a
// reader who waits for a later one waits for it.
func TestLateCommitIsNotMissed(t *testing.T) {
	url := newURL(t)
	s, head := openLog(t, url, Options{})
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	late := kv.Write{Ref: kv.Ref{Key: "late"}, Record: kv.Tombstone(kv.NewVersion(1, 1, 1))}
	if _, err := tx.Exec(t.Context(), logged(sqlPut), putArguments(late)...); err != nil {
		t.Fatal(err)
	}
	if err := put(s, "early", 2); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if changes, _, err := s.Changes(ctx, head, 10); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("while an older transaction runs: %d changes, %v; want %v", len(changes), err, kv.ErrUnavailable)
	}
	type answer struct {
		changes []kv.Change
		err     error
	}
	waiting := make(chan answer, 1)
	go func() {
		changes, _, err := s.Changes(context.Background(), head, 10)
		waiting <- answer{changes, err}
	}()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := <-waiting
	if got.err != nil || len(got.changes) != 2 || got.changes[0].Ref.Key != "late" || got.changes[1].Ref.Key != "early" {
		t.Errorf("changes %v, %v", got.changes, got.err)
	}
}

func TestOnlyWhatChangedIsTold(t *testing.T) {
	s, head := openLog(t, newURL(t), Options{})
	var writes []kv.Write
	for i := range 2000 {
		writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprintf("%04d", i)}, Record: kv.Tombstone(kv.NewVersion(2, 1, 1))})
	}
	for range 2 { // the second time nothing changes
		if err := s.PutMany(t.Context(), writes); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(s, "0000", 1); err != nil { // older
		t.Fatal(err)
	}
	told := 0
	for {
		changes, next, err := s.Changes(t.Context(), head, 700)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			if c.Ref.Key != writes[told].Ref.Key || c.Version != kv.NewVersion(2, 1, 1) {
				t.Fatalf("change %d is of %q", told, c.Ref.Key)
			}
			told++
		}
		if len(changes) == 0 {
			break
		}
		head = next
	}
	if told != len(writes) {
		t.Errorf("%d changes were told, want %d", told, len(writes))
	}
}

func TestChangesAreTrimmed(t *testing.T) {
	s, start := openLog(t, newURL(t), Options{ChangesKept: 80, alone: true})
	var head kv.Cursor
	for i := range 200 {
		if err := put(s, fmt.Sprint(i), 1); err != nil {
			t.Fatal(err)
		}
		if i == 180 {
			var err error
			if _, head, err = s.Changes(t.Context(), kv.Cursor{}, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.trimChanges(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Changes(t.Context(), start, 10); !errors.Is(err, kv.ErrCursorGone) {
		t.Errorf("changes that were trimmed: %v", err)
	}
	if err := s.AwaitChange(t.Context(), start); err != nil {
		t.Errorf("await behind a cursor that is gone: %v", err)
	}
	if changes, _, err := s.Changes(t.Context(), head, 100); err != nil || len(changes) != 19 {
		t.Errorf("%d changes behind the 181st, %v", len(changes), err)
	}
}

// Of a log that was lost, or may lack what was told, no cursor holds.
func TestChangeLogAfterAFailover(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{})
	s := mustOpen(t, c.URL(), Options{Outbox: true})
	if err := put(s, "a", 1); err != nil {
		t.Fatal(err)
	}
	_, head, err := s.Changes(t.Context(), kv.Cursor{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	c.KillPrimary()
	c.Promote()
	if err := put(s, "b", 2); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Changes(t.Context(), head, 1); !errors.Is(err, kv.ErrCursorGone) {
		t.Errorf("a cursor from before the fail-over: %v", err)
	}
}
