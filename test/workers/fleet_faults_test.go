package workers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// A centre, and what edges need to follow it: its addresses stay when it is started
// again.
type centre struct {
	*world
	api, wire, secret string
}

// startCentre runs a centre that has Workers tried out.
func startCentre(t *testing.T) *centre {
	t.Helper()
	dir, err := os.MkdirTemp("", "nk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &centre{api: freeAddress(t), wire: freeAddress(t), secret: filepath.Join(dir, "secret")}
	if err := os.WriteFile(c.secret, []byte(strings.Repeat("5ecf", 16)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.world = startIn(t, dir, "--listen", c.api, "--fleet-role", "central", "--fleet-secret-file", c.secret, "--fleet-wire-listen", c.wire)
	return c
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// edge runs an edge, of which it waits only until Workers may be asked.
func (c *centre) edge(name string, args ...string) *world {
	c.t.Helper()
	file := filepath.Join(c.data, name+".address")
	if err := os.RemoveAll(file + ".workers"); err != nil {
		c.t.Fatal(err)
	}
	program, err := process.Start(c.edgeCommand(name, args...))
	if err != nil {
		c.t.Fatal(err)
	}
	w := &world{t: c.t, Server: &process.Server{Program: program}}
	c.t.Cleanup(func() {
		if err := program.End(syscall.SIGTERM, nearkeytest.Patience); err != nil {
			c.t.Error(err)
		}
		if c.t.Failed() {
			c.t.Logf("%s:\n%s", name, program.Output())
		}
	})
	nearkeytest.Eventually(c.t, name+" listens", func() error {
		text, err := os.ReadFile(file + ".workers")
		w.domain = strings.TrimPrefix(strings.TrimSpace(string(text)), "http://")
		return err
	})
	_, port, err := net.SplitHostPort(w.domain)
	if err != nil {
		c.t.Fatal(err)
	}
	w.workers = "127.0.0.1:" + port
	return w
}

func (c *centre) edgeCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), binary, append([]string{"serve", "--listen", "127.0.0.1:0",
		"--address-file", filepath.Join(c.data, name+".address"),
		"--fleet-role", "edge", "--fleet-secret-file", c.secret, "--fleet-far", "http://" + c.wire, "--fleet-api-far", "http://" + c.api, "--fleet-pop", name,
		"--workers-listen", "127.0.0.1:0", "--workers-runtime", runtimePath}, args...)...)
	cmd.Env = process.Environ()
	return cmd
}

// answers waits until a Worker answers so.
func (w *world) answers(name string, status int, body string) {
	w.t.Helper()
	nearkeytest.Eventually(w.t, fmt.Sprintf("%s answers %d %q", name, status, body), func() error {
		a, err := do(w.t.Context(), http.MethodGet, w.workers, name+"."+w.domain, "/", "")
		if err != nil || a.status != status || !strings.HasPrefix(a.body, body) {
			return fmt.Errorf("%w, %d %q", err, a.status, a.body)
		}
		return nil
	})
}

// A deploy that was acknowledged is at the edges, although the centre was killed at
// once; what they have answers meanwhile. An edge that starts while the centre is
// away says that it knows nothing, and answers when it is back.
func TestCentreKilled(t *testing.T) {
	c := startCentre(t)
	c.deploy("kept", says("0", 0))
	one := c.edge("one")
	one.answers("kept", 200, "0")
	if out, err := c.edgeCommand("one").CombinedOutput(); err == nil || !strings.Contains(string(out), "another process runs Workers in this folder") {
		t.Errorf("a second process of the same edge: %v, %s", err, out)
	}
	const deploys = 4
	for n := 1; n <= deploys; n++ {
		if status, e := c.put("kept", says(fmt.Sprint(n), 0)); !e.Success {
			t.Fatalf("deploy %d: %d %+v", n, status, e)
		}
		c.Kill()
		for range 20 {
			if a := one.get("kept", "/"); a.status != 200 || a.body != fmt.Sprint(n) && a.body != fmt.Sprint(n-1) {
				t.Fatalf("while the centre is away: %d %q", a.status, a.body)
			}
		}
		if n == deploys {
			break
		}
		c.begin()
		one.answers("kept", 200, fmt.Sprint(n))
	}
	two := c.edge("two")
	two.answers("kept", 503, "what is known of this host cannot be read at the moment")
	c.begin()
	one.answers("kept", 200, fmt.Sprint(deploys))
	two.answers("kept", 200, fmt.Sprint(deploys))
}

// newKey is a line of a key file.
func newKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b) + "\n"
}

func writeKeys(t *testing.T, file string, keys ...string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(strings.Join(keys, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func withSecret(text string) script {
	s := script{code: `export default { fetch(request, env) { return new Response(` + "`" + text + ` ${env.SECRET}` + "`" + `); } }`}
	s.bindings = []map[string]any{{"type": "secret_text", "name": "SECRET", "text": "hush"}}
	return s
}

// An edge without the key of the secrets of a Worker, or with another, refuses its
// requests, says why in its log, and runs the others.
func TestEdgeWithoutKey(t *testing.T) {
	c := startCentre(t)
	c.deploy("secret", withSecret("v1"))
	c.deploy("open", says("open", 0))
	other := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, other, newKey())
	for name, args := range map[string][]string{"without": nil, "wrong": {"--workers-key-file", other}} {
		w := c.edge(name, args...)
		w.answers("open", 200, "open")
		w.answers("secret", 503, "the Worker cannot be started here; the server's log says why")
		eventually(t, "the log says why", func() bool { return strings.Contains(w.Output(), "secret SECRET: ") })
		const requests = 50
		for range requests {
			w.get("secret", "/")
		}
		if n := strings.Count(w.Output(), "secret SECRET: "); n > requests/2 {
			t.Errorf("%s: %d requests are %d lines of log", name, requests, n)
		}
		if strings.Contains(w.Output(), "hush") {
			t.Errorf("%s: the secret is in the log", name)
		}
	}
	c.edge("right", "--workers-key-file", filepath.Join(c.data, "workers-keys")).answers("secret", 200, "v1 hush")
	readable := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(readable, []byte(newKey()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--workers-key-file", readable).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "workers.key_file") {
		t.Errorf("a key file that others may read: %v, %s", err, out)
	}
}

// Keys are changed as the documentation says: the new one first, every Worker with
// secrets deployed anew, and the old one away. A deploy that keeps secrets is enough.
func TestKeyRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	older, newer := newKey(), newKey()
	writeKeys(t, file, older)
	w := start(t, "--workers-key-file", file)
	w.deploy("rotates", withSecret("v1"))
	w.want("rotates", "/", "v1 hush")
	again := func(keys ...string) {
		t.Helper()
		if err := w.Stop(); err != nil {
			t.Fatal(err)
		}
		writeKeys(t, file, keys...)
		w.begin()
	}
	again(newer, older)
	w.want("rotates", "/", "v1 hush")
	s := withSecret("v2")
	s.bindings = nil
	s.keep = []string{"secret_text"}
	w.deploy("rotates", s)
	w.want("rotates", "/", "v2 hush")
	again(newer)
	w.want("rotates", "/", "v2 hush")
	again(newKey())
	if a := w.get("rotates", "/"); a.status != 503 {
		t.Errorf("control: a key that sealed nothing opens it: %d %q", a.status, a.body)
	}
}
