package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

func mustOpen(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	if opts.MinFreeBytes == 0 {
		opts.MinFreeBytes = 1 << 20
	}
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestLaws(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store { return mustOpen(t, t.TempDir(), Options{}) })
}

func TestLawsOfStoreWithTinyMemory(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store {
		return mustOpen(t, "store", Options{fs: vfs.NewMem(), CacheBytes: 1 << 10, MemTableBytes: 256 << 10, ChangesKept: 100})
	})
}

// reopened closes and opens its store before each read.
type reopened struct {
	t   *testing.T
	dir string
	*Store
}

func (r *reopened) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
	var err error
	if r.Store, err = Open(r.dir, Options{MinFreeBytes: 1}); err != nil {
		return kv.Record{}, err
	}
	return r.Store.Get(ctx, ref, maxAge)
}

func TestWhatWasPutIsThereAfterReopening(t *testing.T) {
	for _, law := range kvtest.Laws()[:11] {
		t.Run(law.Name, func(t *testing.T) {
			r := &reopened{t: t, dir: t.TempDir()}
			var err error
			if r.Store, err = Open(r.dir, Options{MinFreeBytes: 1}); err != nil {
				t.Fatal(err)
			}
			defer func() { r.Close() }()
			if law.Name == "awkward keys" {
				t.Skip("five hundred reopenings show no more than twenty")
			}
			law.Check(t, kvtest.NewSubject(r, 1))
		})
	}
}

func TestUnknownFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, filepath.Join(dir, "new"), Options{}).Close()
	if err := os.WriteFile(filepath.Join(dir, "new", "FORMAT"), []byte("nearkey disk store, format 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(filepath.Join(dir, "new"), Options{})
	if err == nil || !strings.Contains(err.Error(), "format 7") || !strings.Contains(err.Error(), "format 1") {
		t.Errorf("open of format 7: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "foreign"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("open of a directory with other things: %v", err)
	}
}

func TestCrashWhileTheFormatIsWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "FORMAT.tmp"), []byte("near"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir, Options{})
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second open in one process: %v", err)
	}
	if os.Getenv("NEARKEY_TEST_OPEN") != "" {
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenInChild$", "-test.v")
	cmd.Env = append(os.Environ(), "NEARKEY_TEST_OPEN="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "in use by another process") {
		t.Errorf("second open in another process: %v\n%s", err, out)
	}
}

// TestOpenInChild is the other process of TestSecondOpenIsRefused.
func TestOpenInChild(t *testing.T) {
	dir := os.Getenv("NEARKEY_TEST_OPEN")
	if dir == "" {
		t.Skip("only as a child")
	}
	_, err := Open(dir, Options{})
	if err == nil {
		t.Fatal("opened a store that another process has open")
	}
	t.Log(err)
}

func TestCallsAfterCloseFail(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, ref := context.Background(), kv.Ref{Key: "k"}
	_, getErr := s.Get(ctx, ref, 0)
	_, listErr := s.List(ctx, ref.Namespace, kv.ListOptions{})
	for what, err := range map[string]error{"get": getErr, "list": listErr, "put": s.Put(ctx, ref, kv.Tombstone(kv.NewVersion(1, 1, 1))), "drop": s.Drop(ctx, ref.Namespace)} {
		if !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("%s after close: %v", what, err)
		}
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	ctx, v := context.Background(), kv.NewVersion(1, 1, 1)
	if err := s.Put(ctx, kv.Ref{Key: strings.Repeat("k", kv.MaxKeyBytes+1)}, kv.Tombstone(v)); err == nil {
		t.Error("a key one byte too long was stored")
	}
	if err := s.Put(ctx, kv.Ref{Key: "k"}, kv.Record{Version: v, Value: make([]byte, kv.MaxValueBytes+1)}); err == nil {
		t.Error("a value one byte too long was stored")
	}
}

func TestNewestSurvivesAClockSetBack(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	written := kv.NewVersion(time.Now().Add(time.Hour).UnixNano(), 1, 1)
	if err := s.Put(context.Background(), kv.Ref{Key: "k"}, kv.Tombstone(written)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{})
	if s.Newest().Compare(written) < 0 {
		t.Errorf("newest is %s, %s was written", s.Newest().Time(), written.Time())
	}
	if ahead := s.Newest().Time().Sub(written.Time()); ahead > 2*time.Second {
		t.Errorf("newest is %s ahead of what was written", ahead)
	}
}

// largeFiles are the files of large values under a store's directory.
func largeFiles(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Join(dir, "values"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestReplacedFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	ctx, ref := context.Background(), kv.Ref{Key: "k"}
	put := func(time int64, n int) {
		t.Helper()
		if err := s.Put(ctx, ref, kv.Record{Version: kv.NewVersion(time, 1, 1), Value: bytes.Repeat([]byte{byte(time)}, n)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		time   int64
		bytes  int
		expect int
	}{{1, LargeValueBytes - 1, 0}, {2, LargeValueBytes, 1}, {3, LargeValueBytes + 9, 1}, {3, LargeValueBytes + 9, 1}, {2, LargeValueBytes, 1}, {4, 5, 0}, {3, LargeValueBytes, 0}} {
		put(step.time, step.bytes)
		if n := len(largeFiles(t, dir)); n != step.expect {
			t.Errorf("after a value of %d bytes at time %d: %d files, want %d", step.bytes, step.time, n, step.expect)
		}
	}
}

func TestDamagedFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{})
	ctx, ref := context.Background(), kv.Ref{Key: "k"}
	if err := s.Put(ctx, ref, kv.Record{Version: kv.NewVersion(1, 1, 1), Value: make([]byte, LargeValueBytes)}); err != nil {
		t.Fatal(err)
	}
	path := largeFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, ref, 0); !errors.Is(err, errCorrupt) {
		t.Errorf("get of a damaged value: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, ref, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("get of a lost value: %v", err)
	}
}

func TestLargeReadAsksTheDoor(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	ref := kv.Ref{Key: "k"}
	if err := s.Put(context.Background(), ref, kv.Record{Version: kv.NewVersion(1, 1, 1), Value: make([]byte, LargeValueBytes)}); err != nil {
		t.Fatal(err)
	}
	var asked int64
	ctx := kv.WithReserver(context.Background(), func(n int64) error {
		asked += n
		return kv.ErrOverloaded
	})
	if _, err := s.Get(ctx, ref, 0); !errors.Is(err, kv.ErrOverloaded) || asked != LargeValueBytes {
		t.Errorf("get behind a full door: %v, asked for %d bytes", err, asked)
	}
}

func TestListDoesNotCarryLargeValues(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	ctx := context.Background()
	for i := range 20 {
		rec := kv.Record{Version: kv.NewVersion(int64(i+1), 1, 1), Value: make([]byte, LargeValueBytes), Metadata: []byte(`1`)}
		if err := s.Put(ctx, kv.Ref{Key: fmt.Sprint(i)}, rec); err != nil {
			t.Fatal(err)
		}
	}
	if used := s.Stats().DiskBytes; used > 20*LargeValueBytes/10 {
		t.Errorf("the records occupy %d bytes", used)
	}
	page, err := s.List(ctx, kv.NamespaceID{}, kv.ListOptions{})
	if err != nil || len(page.Keys) != 20 || string(page.Keys[0].Record.Metadata) != "1" {
		t.Errorf("%d keys listed, %v", len(page.Keys), err)
	}
}

func TestChangesAreTrimmedAndSurviveReopening(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s := mustOpen(t, dir, Options{ChangesKept: 80})
	_, start, err := kv.Changes(ctx, s, kv.Cursor{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) {
		t.Helper()
		for range n {
			if err := s.Put(ctx, kv.Ref{Key: "k"}, kv.Tombstone(kv.NewVersion(time.Now().UnixNano(), 1, 1))); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.sweep(ctx, &sweeper{}); err != nil {
			t.Fatal(err)
		}
	}
	put(89)
	if got, _, err := kv.Changes(ctx, s, start, 1000); err != nil || len(got) != 89 {
		t.Fatalf("before trimming: %d changes, %v", len(got), err)
	}
	put(2)
	if _, _, err := kv.Changes(ctx, s, start, 1000); !errors.Is(err, kv.ErrCursorGone) {
		t.Errorf("a cursor before the oldest change: %v", err)
	}
	if got := s.Stats().Changes; got != 80 {
		t.Errorf("%d changes are kept, want 80", got)
	}
	_, head, err := kv.Changes(ctx, s, kv.Cursor{}, 1)
	if err != nil || head.Seq != 91 {
		t.Fatalf("head %v, %v", head, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{ChangesKept: 80})
	put(1)
	got, next, err := kv.Changes(ctx, s, head, 10)
	if err != nil || len(got) != 1 || next.Seq != 92 || next.Epoch != head.Epoch {
		t.Errorf("after reopening: %d changes, next %v, %v", len(got), next, err)
	}
	if got, _, err := kv.Changes(ctx, s, kv.Cursor{Epoch: head.Epoch, Seq: 11}, 1000); err != nil || len(got) != 81 {
		t.Errorf("from the oldest kept change: %d changes, %v", len(got), err)
	}
}
