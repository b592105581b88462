package workers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// startFleet runs a centre, a regional tier and edges that run Workers, and returns
// a world for each edge.
func startFleet(t *testing.T, edges int) (worlds []*world, central func(syscall.Signal)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cmd := exec.CommandContext(context.Background(), binary, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--workers-listen", "127.0.0.1:0",
		"--edges", strconv.Itoa(edges), "--regions", "1", "--table=false")
	cmd.Env = append(process.Environ(), "NEARKEY_WORKERS_RUNTIME="+runtimePath)
	program, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := program.End(syscall.SIGTERM, nearkeytest.Patience); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(program.Output())
			logs, _ := filepath.Glob(filepath.Join(dir, "fleet", "*.log"))
			for _, file := range logs {
				t.Logf("%s:\n%s", filepath.Base(file), read(t, file))
			}
		}
	})
	nearkeytest.Eventually(t, "the fleet is ready", func() error {
		if !strings.Contains(program.Output(), "nearkey dev: ready") {
			return errors.New(program.Output())
		}
		return nil
	})
	for i := range edges {
		file := filepath.Join(dir, "listen-address")
		if i > 0 {
			file = filepath.Join(dir, "fleet", fmt.Sprintf("edge-%d.address", i+1))
		}
		w := &world{t: t, data: dir, Server: &process.Server{
			URL: "http://" + read(t, file), AccountID: read(t, filepath.Join(dir, "account-id")), Token: read(t, filepath.Join(dir, "api-token")),
		}}
		w.domain = strings.TrimPrefix(read(t, file+".workers"), "http://")
		_, port, err := net.SplitHostPort(w.domain)
		if err != nil {
			t.Fatal(err)
		}
		w.workers = "127.0.0.1:" + port
		if told := "Workers: http://NAME." + w.domain + "\n"; !strings.Contains(program.Output(), told) {
			t.Errorf("%q is not among what it says: %s", told, program.Output())
		}
		worlds = append(worlds, w)
	}
	return worlds, func(s syscall.Signal) {
		t.Helper()
		pid, err := strconv.Atoi(read(t, filepath.Join(dir, "fleet", "central.pid")))
		if err == nil {
			err = syscall.Kill(pid, s)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// read is a file of one line.
func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// A Worker that is deployed through one edge is at all of them, with its secrets; what
// it writes at one is read at the other; and with the centre hung they go on.
func TestFleet(t *testing.T) {
	edges, central := startFleet(t, 2)
	one, two := edges[0], edges[1]
	ns := one.namespace("fleet")
	s := script{
		code: `export default { async fetch(request, env) {
			const url = new URL(request.url);
			if (request.method === "PUT") { await env.KV.put(url.pathname, await request.text()); return new Response("put"); }
			return new Response("v1 " + env.SECRET + " " + await env.KV.get(url.pathname));
		} }`,
		bindings: []map[string]any{kvBinding("KV", ns), {"type": "secret_text", "name": "SECRET", "text": "hush"}},
	}
	one.deploy("spread", s)
	answers := func(w *world, path, body string) {
		t.Helper()
		nearkeytest.Eventually(t, "the Worker answers "+body, func() error {
			a, err := do(t.Context(), http.MethodGet, w.workers, "spread."+w.domain, path, "")
			if err != nil || a.status != http.StatusOK || a.body != body {
				return fmt.Errorf("%w, %d %q", err, a.status, a.body)
			}
			return nil
		})
	}
	for _, w := range edges {
		answers(w, "/k", "v1 hush null")
	}
	if a, err := do(t.Context(), http.MethodPut, one.workers, "spread."+one.domain, "/k", "there"); err != nil || a.body != "put" {
		t.Fatal(err, a)
	}
	one.want("spread", "/k", "v1 hush there") // a place reads what it wrote
	answers(two, "/k", "v1 hush there")

	s.code = strings.Replace(s.code, "v1", "v2", 1)
	two.deploy("spread", s)
	for _, w := range edges {
		answers(w, "/k", "v2 hush there")
	}

	central(syscall.SIGSTOP)
	for _, w := range edges {
		for range 20 {
			w.want("spread", "/k", "v2 hush there")
		}
	}
	central(syscall.SIGCONT)
	s.code = strings.Replace(s.code, "v2", "v3", 1)
	one.deploy("spread", s)
	for _, w := range edges {
		answers(w, "/k", "v3 hush there")
	}
}
