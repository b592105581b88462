package workers

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// run runs a command of nearkey against the server.
func (w *world) run(args ...string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), binary, append(args, "--data", w.data)...)
	cmd.Env = process.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("nearkey %v: %v\n%s", args, err, out)
	}
}

var storing = `export default { async fetch(request, env) {
	if (request.method === "PUT") await env.KV.put("k", await request.text());
	return new Response(await env.KV.get("k"));
} }`

// A backup has the data of Workers and not the Workers: on a new server, and on one
// that has lost its store, they answer when they were deployed again.
func TestRestore(t *testing.T) {
	w := start(t)
	id := w.namespace("data")
	s := script{code: storing, bindings: []map[string]any{kvBinding("KV", id)}}
	w.deploy("keeps", s)
	if a, err := do(t.Context(), http.MethodPut, w.workers, "keeps."+w.domain, "/", "value"); err != nil || a.body != "value" {
		t.Fatal(err, a)
	}
	place := t.TempDir()
	w.run("backup", "--to", place)

	fresh := start(t)
	fresh.run("restore", "--from", place)
	if a := fresh.get("keeps", "/"); a.status != 404 {
		t.Errorf("a Worker that was not deployed there: %d %q", a.status, a.body)
	}
	fresh.deploy("keeps", s)
	fresh.want("keeps", "/", "value")

	// The store is lost, the catalog is not.
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.data, "store")); err != nil {
		t.Fatal(err)
	}
	w.begin()
	if a := w.get("keeps", "/"); a.status < 400 || a.status == 500 {
		t.Errorf("a Worker whose modules are lost: %d %q", a.status, a.body)
	}
	w.run("restore", "--from", place)
	w.deploy("keeps", s)
	nearkeytest.Eventually(t, "it answers", func() error {
		if a := w.get("keeps", "/"); a.status != 200 || a.body != "value" {
			return fmt.Errorf("%d %q", a.status, a.body)
		}
		return nil
	})
}
