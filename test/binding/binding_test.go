// Package binding_test runs the conformance Worker, worker.mjs, on the real
// runtime against the real server of KV bindings.
package binding_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/binding"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/store/memory"
)

const runtime = "../workerd/node_modules/@cloudflare/workerd-linux-64/bin/workerd"

const config = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .main),
    (name = "kv0", external = (address = "unix:kv.sock", http = (injectRequestHeaders = [(name = "X-NK-NS", value = "one"), (name = "X-NK-Token", value = "secret")]))),
    (name = "kv1", external = (address = "unix:kv.sock", http = (injectRequestHeaders = [(name = "X-NK-NS", value = "two"), (name = "X-NK-Token", value = "secret")]))),
    (name = "kv2", external = (address = "unix:kv.sock", http = (injectRequestHeaders = [(name = "X-NK-NS", value = "one"), (name = "X-NK-Token", value = "guessed")]))),
  ],
  sockets = [(name = "http", address = "unix:http.sock", http = (), service = "main")],
);
const main :Workerd.Worker = (
  modules = [(name = "worker.mjs", esModule = embed "worker.mjs")],
  compatibilityDate = "2026-08-01",
  bindings = [(name = "KV", kvNamespace = "kv0"), (name = "OTHER", kvNamespace = "kv1"), (name = "FORGED", kvNamespace = "kv2")],
);
`

func TestConformance(t *testing.T) {
	t.Run("memory", func(t *testing.T) { conform(t, memory.New()) })
	t.Run("disk", func(t *testing.T) {
		store, err := disk.Open(t.TempDir(), disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		conform(t, store)
	})
}

func conform(t *testing.T, store kv.Store) {
	dir := t.TempDir()
	serve(t, store, filepath.Join(dir, "kv.sock"))
	start(t, dir)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "http.sock"))
		},
	}}
	resp, err := client.Get("http://worker/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var results []struct{ Name, Error string }
	if err := json.NewDecoder(resp.Body).Decode(&results); err != nil || len(results) == 0 {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	for _, r := range results {
		t.Run(r.Name, func(t *testing.T) {
			if r.Error != "" {
				t.Error(r.Error)
			}
		})
	}
}

// serve starts the server of bindings over a tier over store.
func serve(t *testing.T, store kv.Store, path string) {
	t.Helper()
	tier := edge.New(store, edge.Options{Sole: true, MaxSkew: -1})
	rules := &kv.Rules{Limits: kv.CloudflareLimits(), Stamp: kv.NewStamper(1, time.Now)}
	server := binding.New(binding.Config{
		Identify: func(token, name string) (binding.Space, error) {
			id := map[string]kv.NamespaceID{"one": {1}, "two": {2}}[name]
			if token != "secret" || id == (kv.NamespaceID{}) {
				return binding.Space{}, errors.New("unknown binding")
			}
			return binding.Space{ID: id, Namespace: kv.NewNamespace(tier, id, rules)}, nil
		},
		Limits: rules.Limits, Near: tier, MaxAge: time.Minute,
	})
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(t.Context(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// start starts workerd in dir and waits until it listens.
func start(t *testing.T, dir string) {
	t.Helper()
	path, err := filepath.Abs(runtime)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("no workerd: run `make deps` (%v)", err)
	}
	worker, err := os.ReadFile("worker.mjs")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"worker.mjs": worker, "config.capnp": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, "serve", "config.capnp")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Env = &stderr, []string{"TZ=UTC"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("unix", filepath.Join(dir, "http.sock"))
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-exited:
			exited <- err
			t.Fatal(fmt.Errorf("workerd ended: %w: %s", err, stderr.String()))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("workerd does not listen")
		}
	}
}
