package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

const waitingForStandbys = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"

// cancelWait has the server give up the synchronous waits of all its sessions, as
// an operator may.
func cancelWait(t *testing.T, primary *pgtest.Server) {
	t.Helper()
	nearkeytest.Until(t, "synchronous wait", func() bool { return primary.Exec(waitingForStandbys) != "0" })
	primary.Exec("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
}

// A commit whose synchronous wait was given up is told as success by the server,
// and must not be by us; nor may a repeated write succeed before a standby has it.
func TestCancelledSynchronousWaitIsUnknown(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{})
	s, trusting := mustOpen(t, c.URL(), Options{}), mustOpen(t, c.URL(), Options{trusting: true})
	if err := s.Put(t.Context(), kv.Ref{Key: "warm"}, kv.Tombstone(kv.NewVersion(1, 1, 1))); err != nil {
		t.Fatal(err)
	}
	db, err := OpenSQL(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `create table t (n int)`); err != nil {
		t.Fatal(err)
	}
	for _, standby := range c.Standbys() {
		standby.Stop()
	}
	rec := kv.Record{Version: kv.NewVersion(2, 1, 1), Value: []byte("v")}
	put := func(s *Store, key string) chan error {
		result := make(chan error, 1)
		go func() { result <- s.Put(context.Background(), kv.Ref{Key: key}, rec) }()
		return result
	}
	cancelled := func(result chan error) error {
		cancelWait(t, c.Primary())
		return <-result
	}
	if err := cancelled(put(s, "k")); !errors.Is(err, kv.ErrUnknown) {
		t.Errorf("put: %v, want %v", err, kv.ErrUnknown)
	}
	if n := s.Stats().Unreplicated; n != 1 {
		t.Errorf("%d unreplicated commits were counted, want 1", n)
	}
	if err := cancelled(put(trusting, "control")); err != nil {
		t.Errorf("control: who does not look at the notice is told %v, not success", err)
	}
	checkSQL(t, cancelled, func(f func() error) chan error {
		result := make(chan error, 1)
		go func() { result <- f() }()
		return result
	}, c.URL())
	if rec, err := s.Get(t.Context(), kv.Ref{Key: "k"}, 0); err != nil || rec.Absent() {
		t.Errorf("the record is not visible: %v, %v: the test shows nothing", rec, err)
	}

	// A write that is skipped because the row is there would be acknowledged at once.
	err = s.once(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `insert into kv_records (namespace, key, version, tombstone, value) select $1, $2, $3, false, ''
			where not exists (select 1 from kv_records where namespace = $1 and key = $2 and version >= $3)`,
			[16]byte{}, []byte("k"), [16]byte(rec.Version))
		return err
	})
	if err != nil {
		t.Errorf("control: a guarded write: %v", err)
	}
	again := put(s, "k")
	nearkeytest.Until(t, "synchronous wait", func() bool { return c.Primary().Exec(waitingForStandbys) != "0" })
	select {
	case err := <-again:
		t.Errorf("the repeated put ended although no standby has it: %v", err)
	default:
	}
	for _, standby := range c.Standbys() {
		standby.Cont()
	}
	if err := <-again; err != nil {
		t.Errorf("the repeated put, when the standbys are there again: %v", err)
	}
}

// checkSQL sees that a database of OpenSQL looks at the notice, with and without a
// transaction.
func checkSQL(t *testing.T, cancelled func(chan error) error, start func(func() error) chan error, url string) {
	t.Helper()
	db, err := OpenSQL(url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := t.Context()
	if err := cancelled(start(func() error { _, err := db.ExecContext(ctx, `insert into t values (1)`); return err })); !errors.Is(err, kv.ErrUnknown) {
		t.Errorf("a statement: %v, want %v", err, kv.ErrUnknown)
	}
	err = cancelled(start(func() error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `insert into t values (2)`); err != nil {
			return err
		}
		return tx.Commit()
	}))
	if !errors.Is(err, kv.ErrUnknown) {
		t.Errorf("a transaction: %v, want %v", err, kv.ErrUnknown)
	}
}

// A caller that gives up waiting for the standbys is told that the outcome is
// unknown, at its deadline.
func TestDeadlineInSynchronousWaitIsUnknown(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{})
	s := mustOpen(t, c.URL(), Options{})
	if err := s.Put(t.Context(), kv.Ref{Key: "warm"}, kv.Tombstone(kv.NewVersion(1, 1, 1))); err != nil {
		t.Fatal(err)
	}
	for _, standby := range c.Standbys() {
		standby.Stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := s.Put(ctx, kv.Ref{Key: "k"}, kv.Tombstone(kv.NewVersion(2, 1, 1)))
	if !errors.Is(err, kv.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v, want %v and the deadline", err, kv.ErrUnknown)
	}
}

// A write whose connection is lost after it was sent, and that cannot be repeated,
// may have been made or not.
func TestConnectionLostInFlightIsUnknown(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{})
	s := mustOpen(t, c.URL(), Options{})
	if err := put(s, "warm", 1); err != nil {
		t.Fatal(err)
	}
	for _, standby := range c.Standbys() {
		standby.Stop()
	}
	result := make(chan error, 1)
	go func() { result <- put(s, "k", 1) }()
	nearkeytest.Until(t, "synchronous wait", func() bool { return c.Primary().Exec(waitingForStandbys) != "0" })
	for _, standby := range c.Standbys() {
		standby.Kill()
	}
	c.KillPrimary()
	if err := <-result; !errors.Is(err, kv.ErrUnknown) || errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("put: %v, want %v", err, kv.ErrUnknown)
	}
	if err := put(s, "k", 1); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("the next put: %v, want %v: it was not sent", err, kv.ErrUnavailable)
	}
}
