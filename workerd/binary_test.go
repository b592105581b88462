package workerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearkey/nearkey/workerd"
)

// When the runtime is removed from under a server what runs goes on, and what is to
// be started says so; when it is back, or another one is in its place, it is used.
func TestBinaryReplaced(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "workerd")
	put := func(target string) {
		t.Helper()
		if err := errors.Join(os.Symlink(target, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	real, err := filepath.Abs(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	put(real)
	w := start(t, workerd.Options{Path: link})
	w.deploy(worker("runs", "1", answering(`"ok"`)))
	if err := w.rt.Load(worker("starts", "1", answering(`"ok"`))); err != nil {
		t.Fatal(err)
	}

	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	w.want("runs", "/", 200, "ok")
	w.want("starts", "/", 503, "error: the Workers runtime is not installed: the server's log and documentation say how it gets there\n")
	if err := w.rt.Deploy(t.Context(), worker("runs", "2", answering(`"new"`))); !errors.Is(err, workerd.ErrMissing) {
		t.Errorf("deploy: %v", err)
	}
	w.want("runs", "/", 200, "ok")

	put(real)
	w.want("starts", "/", 200, "ok")

	// Another release, at another path, as npm puts it there.
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	put(other)
	if err := w.rt.Deploy(t.Context(), worker("runs", "3", answering(`"new"`))); err == nil {
		t.Error("control: what is no program was started")
	}
	w.want("runs", "/", 200, "ok")
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	put(real)
	w.deploy(worker("runs", "4", answering(`"new"`)))
	w.want("runs", "/", 200, "new")
}
