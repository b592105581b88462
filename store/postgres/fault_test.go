package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

func put(s *Store, key string, time int64) error {
	return s.Put(context.Background(), kv.Ref{Key: key}, kv.Record{Version: kv.NewVersion(time, 1, 1), Value: []byte("v")})
}

// calls are one of each kind.
func calls(s *Store) map[string]func(context.Context) error {
	ref, rec := kv.Ref{Key: "k"}, kv.Record{Version: kv.NewVersion(9, 1, 1), Value: []byte("v")}
	return map[string]func(context.Context) error{
		"get":        func(ctx context.Context) error { _, err := s.Get(ctx, ref, 0); return err },
		"get many":   func(ctx context.Context) error { _, err := s.GetMany(ctx, []kv.Ref{ref, ref}, 0); return err },
		"list":       func(ctx context.Context) error { _, err := s.List(ctx, ref.Namespace, kv.ListOptions{}); return err },
		"namespaces": func(ctx context.Context) error { _, err := s.Namespaces(ctx, ref.Namespace, 1); return err },
		"put":        func(ctx context.Context) error { return s.Put(ctx, ref, rec) },
		"put many":   func(ctx context.Context) error { return s.PutMany(ctx, []kv.Write{{Ref: ref, Record: rec}}) },
		"forget":     func(ctx context.Context) error { return s.Forget(ctx, []kv.Tomb{{Ref: ref}}) },
		"drop":       func(ctx context.Context) error { return s.Drop(ctx, kv.NamespaceID{1}) },
	}
}

func TestServerThatIsDownWhenOpened(t *testing.T) {
	server := pgtest.Start(t)
	server.Kill()
	s := mustOpen(t, server.URL(), Options{})
	for what, call := range calls(s) {
		if err := call(t.Context()); !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) {
			t.Errorf("%s: %v, want %v: nothing was sent", what, err, kv.ErrUnavailable)
		}
	}
	if s.Ready() == nil {
		t.Error("ready without a server")
	}
	server.Restart()
	if err := put(s, "k", 1); err != nil {
		t.Errorf("put, when the server is there: %v", err)
	}
	if err := s.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

func TestServerThatIsRestarted(t *testing.T) {
	server := pgtest.Start(t)
	s := mustOpen(t, server.URL(), Options{})
	for _, stop := range []func(){server.Kill, server.Shutdown} {
		var wg sync.WaitGroup
		for i := range 50 { // so that the pool has many connections that are about to die
			wg.Go(func() {
				if err := put(s, fmt.Sprint(i), 1); err != nil {
					t.Errorf("put: %v", err)
				}
			})
		}
		wg.Wait()
		stop()
		server.Restart()
		for what, call := range calls(s) {
			if err := call(t.Context()); err != nil {
				t.Errorf("%s, at once after a restart: %v", what, err)
			}
		}
	}
}

// A server that hangs costs every call its own deadline; the pool is neither
// exhausted nor poisoned, and works when the server goes on.
func TestServerThatHangs(t *testing.T) {
	server := pgtest.Start(t)
	s := mustOpen(t, server.URL(), Options{MaxConns: 4, Timeout: time.Second})
	if err := put(s, "k", 1); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	var wg sync.WaitGroup
	for range 10 {
		for what, call := range calls(s) {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v, want the deadline", what, err)
				}
			})
		}
	}
	wg.Wait()
	if err := put(s, "k", 1); !errors.Is(err, kv.ErrUnknown) && !errors.Is(err, kv.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put without a deadline: %v, want a timeout of our own, told by kind", err)
	}
	if n := s.Stats().Conns; n > 4 {
		t.Errorf("%d connections, at most 4 were to be", n)
	}
	server.Cont()
	nearkeytest.Until(t, "call that succeeds", func() bool { return put(s, "k", 2) == nil })
	for what, call := range calls(s) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s, when the server goes on: %v", what, err)
		}
	}
	if n := server.Exec("select count(*) <= 4 from pg_stat_activity where application_name = 'nearkey'"); n != "t" {
		t.Error("the server has more than 4 connections of the store")
	}
}

func TestPoolIsBounded(t *testing.T) {
	server := pgtest.Start(t)
	s := mustOpen(t, server.URL(), Options{MaxConns: 3, alone: true})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for n := range 10 {
				if err := put(s, fmt.Sprint(i), int64(n+1)); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
	}
	most := "select count(*) from pg_stat_activity where application_name = 'nearkey'"
	if n := server.Exec(most); n > "3" {
		t.Errorf("%s connections, at most 3 were to be", n)
	}
	wg.Wait()
	if stats := s.Stats(); stats.ConnsMost != 3 || stats.Conns > 3 {
		t.Errorf("%+v", stats)
	}
}

// A disk that is full is told as such, nothing is half stored, and what is there
// can be read; when there is space again, writes succeed.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small disk is mounted by root alone")
	}
	server := pgtest.Start(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m,mode=0777"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for parent := filepath.Dir(dir); len(parent) > len(os.TempDir()); parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil { // for the server's user
			t.Fatal(err)
		}
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/server", 0o700); err != nil { // a tablespace is empty
		t.Fatal(err)
	}
	server.OwnDir(dir + "/server")
	server.Exec("create tablespace small location '"+dir+"/server'", "create database small tablespace small")
	t.Cleanup(func() { server.Exec("drop database small with (force)", "drop tablespace small") })
	s := mustOpen(t, strings.Replace(server.URL(), "/postgres?", "/small?", 1), Options{})
	value := bytes.Repeat([]byte("v"), 64<<10)
	record := func(i int) kv.Record { return kv.Record{Version: kv.NewVersion(int64(i+1), 1, 1), Value: value} }
	n := 0
	var err error
	for ; n < 1000 && err == nil; n++ {
		err = s.Put(t.Context(), kv.Ref{Key: fmt.Sprint(n)}, record(n))
	}
	if !errors.Is(err, kv.ErrFull) || errors.Is(err, kv.ErrUnknown) {
		t.Fatalf("put %d: %v, want %v", n, err, kv.ErrFull)
	}
	if rec, err := s.Get(t.Context(), kv.Ref{Key: fmt.Sprint(n - 1)}, 0); err != nil || !rec.Absent() {
		t.Errorf("the record for which there was no space: %v, %v", rec.Version, err)
	}
	if rec, err := s.Get(t.Context(), kv.Ref{Key: "0"}, 0); err != nil || rec.Compare(record(0)) != 0 {
		t.Errorf("a record from before: %v, %v", rec.Version, err)
	}
	if err := s.Ready(); err != nil {
		t.Errorf("a store that can be read is not ready: %v", err)
	}
	if err := s.Drop(t.Context(), kv.NamespaceID{}); err != nil {
		t.Errorf("drop on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), kv.Ref{Key: "again"}, record(0)); err != nil {
		t.Errorf("put, when there is space again: %v", err)
	}
}

// Passwords come from a file or the URL, and are in no error and no log.
func TestPasswords(t *testing.T) {
	server := pgtest.Start(t)
	const secret = "correct-horse-battery"
	server.RequirePassword(secret)
	var logged bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&logged, nil))
	without := strings.Replace(server.URL(), ":"+secret, "", 1)
	file := filepath.Join(t.TempDir(), "passwords")
	if err := os.WriteFile(file, []byte("*:*:*:postgres:"+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{"URL": server.URL(), "file": without + "&passfile=" + file} {
		if err := put(mustOpen(t, url, Options{Logger: logger}), name, 1); err != nil {
			t.Errorf("password in the %s: %v", name, err)
		}
	}
	wrong := strings.Replace(server.URL(), secret, secret+"-not", 1)
	if err := put(mustOpen(t, wrong, Options{Logger: logger}), "k", 1); !errors.Is(err, kv.ErrUnavailable) || strings.Contains(err.Error(), secret) {
		t.Errorf("a wrong password: %v", err)
	}
	for _, malformed := range []string{"postgres://postgres:" + secret + "@host:port/x", "postgres://postgres:" + secret + "@[::1/x", wrong + "&sslmode=none", wrong + "&connect_timeout=x"} {
		_, err := Open(t.Context(), malformed, Options{Logger: logger})
		_, sqlErr := OpenSQL(malformed)
		if err == nil || sqlErr == nil || strings.Contains(err.Error()+sqlErr.Error(), secret) {
			t.Errorf("a malformed URL: %v; %v", err, sqlErr)
		}
	}
	if strings.Contains(logged.String(), secret) {
		t.Errorf("the password is in the log: %s", &logged)
	}
}

func TestRefusals(t *testing.T) {
	s := mustOpen(t, newURL(t), Options{})
	v := kv.NewVersion(1, 1, 1)
	for what, c := range map[string]struct {
		key   string
		value int
		ok    bool
	}{
		"longest key":          {strings.Repeat("k", kv.MaxKeyBytes), 1, true},
		"a byte more":          {strings.Repeat("k", kv.MaxKeyBytes+1), 1, false},
		"largest value":        {"k", kv.MaxValueBytes, true},
		"a byte more in value": {"k", kv.MaxValueBytes + 1, false},
	} {
		w := kv.Write{Ref: kv.Ref{Key: c.key}, Record: kv.Record{Version: v, Value: make([]byte, c.value)}}
		if err := s.Put(t.Context(), w.Ref, w.Record); (err == nil) != c.ok {
			t.Errorf("put of the %s: %v", what, err)
		}
		if err := s.PutMany(t.Context(), []kv.Write{w}); (err == nil) != c.ok {
			t.Errorf("put many of the %s: %v", what, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for what, call := range calls(s) {
		if err := call(t.Context()); !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("%s after close: %v", what, err)
		}
	}
	if _, err := Open(t.Context(), "postgres://localhost/x", Options{Portable: true, Outbox: true}); err == nil {
		t.Error("a portable store with a change log was opened")
	}
}

func TestLargeReadAsksTheDoor(t *testing.T) {
	s := mustOpen(t, newURL(t), Options{})
	ref := kv.Ref{Key: "k"}
	if err := s.Put(t.Context(), ref, kv.Record{Version: kv.NewVersion(1, 1, 1), Value: make([]byte, kv.ReserveBytes)}); err != nil {
		t.Fatal(err)
	}
	var asked int64
	ctx := kv.WithReserver(t.Context(), func(n int64) error {
		asked += n
		return kv.ErrOverloaded
	})
	if _, err := s.Get(ctx, ref, 0); !errors.Is(err, kv.ErrOverloaded) || asked != kv.ReserveBytes {
		t.Errorf("get behind a full door: %v, asked for %d bytes", err, asked)
	}
	if _, err := s.GetMany(ctx, []kv.Ref{ref}, 0); !errors.Is(err, kv.ErrOverloaded) {
		t.Errorf("get many behind a full door: %v", err)
	}
}
