package storage

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// providerNamed returns what the server says of a provider.
func (w *world) providerNamed(name string) admin.Provider {
	w.t.Helper()
	var all []admin.Provider
	w.read(&all, "providers", "list")
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	w.t.Fatalf("there is no provider %s", name)
	return admin.Provider{}
}

// repaired waits until nothing waits for repair and all providers are believed.
func (w *world) repaired() {
	w.t.Helper()
	nearkeytest.Eventually(w.t, "everything is repaired", func() error {
		var r admin.Repair
		w.read(&r, "repair", "status")
		for _, p := range r.Providers {
			if p.State == "active" && (!p.Up || !p.Trusted) {
				return fmt.Errorf("provider %s is up: %v, believed: %v", p.Name, p.Up, p.Trusted)
			}
		}
		if r.Queue.Depth > 0 || r.Queue.Dirty > 0 {
			return fmt.Errorf("%d keys and %d namespaces wait", r.Queue.Depth, r.Queue.Dirty)
		}
		return nil
	})
}

// TestTwoProviders: one provider away is not seen by clients, and what it missed is
// brought to it.
func TestTwoProviders(t *testing.T) {
	a, b := newProvider(t, "a", 1, true), newProvider(t, "b", 1, true)
	w := newWorld(t, a, b)
	w.settings = fmt.Sprintf("[catalog]\ndatabase_file = %q\n", w.file("catalog.url", a.clusters[0].URL()))
	w.serve()
	s, want := w.create("first"), contents{}
	want.write(s, 0)
	want.check(s)
	w.repaired()
	w.must("providers", "list")
	if out := w.must("repair", "status"); !strings.Contains(out, "queue: empty") || !strings.Contains(out, "comparison: ") {
		t.Errorf("repair status: %s", out)
	}
	// The keys that were written, and what is published: root token and key, the namespace, the subdomain.
	if _, _, stderr := w.nearkey("verify", "--values"); !strings.Contains(stderr, "Compared 24 keys.") || !strings.Contains(stderr, "Nothing differs.") {
		t.Errorf("verify: %s", stderr)
	}

	t.Run("one is away", func(t *testing.T) {
		b.clusters[0].Kill()
		b.blobs.Kill()
		want.write(s, 1)
		want.check(s)
		nearkeytest.Eventually(t, "the server knows that b is down", func() error {
			if p := w.providerNamed("b"); p.Up || p.Error == "" {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		var r admin.Repair
		if w.read(&r, "repair", "status"); r.Queue.Depth == 0 || r.Queue.OldestSeconds <= 0 {
			t.Errorf("the queue is %+v", r.Queue)
		}
		w.must("repair", "status")
		if code, _, stderr := w.nearkey("verify"); code != 5 || !strings.Contains(stderr, "provider b") {
			t.Errorf("verify without b: exit code %d", code)
		}
		b.clusters[0].Restart()
		b.blobs.Restart()
		w.repaired()
		w.must("verify", "--values")
	})
	t.Run("one hangs", func(t *testing.T) {
		a.clusters[0].Stop()
		want.write(s, 2)
		want.check(s)
		a.clusters[0].Cont()
		w.repaired()
		w.must("verify", "--values")
	})
	t.Run("one is damaged", func(t *testing.T) {
		b.blobs.Wipe()
		code, _, stderr := w.nearkey("verify", "--values")
		if code != 1 || !strings.Contains(stderr, "whose value is missing") || !strings.Contains(stderr, "the providers differ in") {
			t.Errorf("verify: exit code %d", code)
		}
		if code, _, _ := w.nearkey("verify"); code != 0 {
			t.Errorf("verify without values: exit code %d", code)
		}
		w.must("verify", "--values", "--repair")
		w.repaired()
		w.must("verify", "--values")
		gone := "with gone as (delete from kv_records where namespace = '" + s.id + "' returning 1) select count(*) from gone"
		if n := strings.TrimSpace(b.clusters[0].Exec(gone)); n != "20" {
			t.Fatalf("%s records were there to be damaged", n)
		}
		var drift admin.Drift
		if code, out, _ := w.nearkey("verify", "--namespace", "first", "--json"); code != 1 || !strings.Contains(out, `"missing": 20`) {
			t.Errorf("verify: exit code %d, %+v", code, drift)
		}
		w.must("repair", "run")
		w.must("verify", "--values")
		want.check(s)
	})
	t.Run("writes that both must have", func(t *testing.T) {
		if out := w.must("namespace", "ack", "first", "both"); out != "both\n" {
			t.Errorf("ack: %q", out)
		}
		s.put("ack", "1")
		b.clusters[0].Kill()
		nearkeytest.Eventually(t, "a write that one cannot have fails", func() error { // what was connected may go on for a moment
			if status, answer, err := s.do("PUT", valuePath("ack"), "2"); err != nil || status < http.StatusInternalServerError {
				return fmt.Errorf("%d %s %w", status, answer, err)
			}
			return nil
		})
		if out := w.must("namespace", "ack", "first", "default"); out != "default\n" {
			t.Errorf("ack: %q", out)
		}
		s.put("ack", "3")
		b.clusters[0].Restart()
		w.repaired()
		if err := s.has("ack", "3"); err != nil {
			t.Error(err)
		}
		s.remove("ack")
		if code, _, stderr := w.nearkey("namespace", "ack", "first", "most"); code != 1 || !strings.Contains(stderr, "want first, both or default") {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("one has lost everything", func(t *testing.T) { // also the mark by which the gateway would know how far it went back
		b.clusters[0].Exec("truncate kv_records")
		nearkeytest.Eventually(t, "b is out of service", func() error {
			if p := w.providerNamed("b"); p.State != "removed" {
				return fmt.Errorf("b is %s", p.State)
			}
			return nil
		})
		want.write(s, 4)
		want.check(s)
		w.must("providers", "list")
		if code, _, stderr := w.nearkey("providers", "promote", "b"); code != 1 || !strings.Contains(stderr, "filled first") {
			t.Errorf("promote: exit code %d", code)
		}
		w.must("providers", "fill", "b")
		w.must("providers", "fill", "b") // is done
		w.must("providers", "promote", "b")
		if code, _, stderr := w.nearkey("providers", "fill", "b"); code != 2 || !strings.Contains(stderr, "Provider b is active") {
			t.Errorf("fill of an active one: exit code %d", code)
		}
		w.repaired()
		w.must("verify", "--values")
	})
	t.Run("the server is killed", func(t *testing.T) {
		want.write(s, 3)
		w.server.Kill()
		w.serve()
		want.check(s)
		w.repaired()
		if err := w.server.Stop(); err != nil {
			t.Fatal(err)
		}
		b.clusters[0].Kill()
		w.serve() // although one is away
		want.check(s)
		b.clusters[0].Restart()
		w.repaired()
		w.must("verify", "--values")
	})
	t.Run("one has an old table of slots", func(t *testing.T) { // the data directory was restored
		table := filepath.Join(w.dir, "data", "shards-a")
		old, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		w.must("shards", "spread", "first", "--buckets", "2", "--provider", "a", "--no-wait")
		nearkeytest.Eventually(t, "the cluster has the new table", func() error {
			var tables []admin.Table
			if w.read(&tables, "shards", "status"); tables[0].Moves[0].Phase != "cut over" {
				return fmt.Errorf("%+v", tables[0].Moves)
			}
			return nil
		})
		if err := w.server.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(table, old, 0o600); err != nil {
			t.Fatal(err)
		}
		w.serve()
		want.write(s, 5)
		want.check(s)
		nearkeytest.Eventually(t, "a is down", func() error {
			if p := w.providerNamed("a"); p.Up {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		w.must("shards", "status", "--provider", "a")
		if err := w.server.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(table); err != nil { // the clusters have copies
			t.Fatal(err)
		}
		w.serve()
		w.repaired()
		want.check(s)
		w.must("verify", "--values")
	})
	w.metricsTell(t, "nearkey_journal_writable 1", `nearkey_provider_up{provider="b"} 1`, "nearkey_repair_queue_keys 0", `nearkey_cluster_slots{cluster="a1",provider="a"} 4096`, `nearkey_blobs_put_total{provider="a"}`)
	if err := w.server.Stop(); err != nil {
		t.Error(err)
	}
}

func (w *world) metricsTell(t *testing.T, lines ...string) {
	t.Helper()
	resp, err := http.Get(w.server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if !strings.Contains(string(text), line) {
			t.Errorf("the metrics have no %s", line)
		}
	}
}

// TestProviderIsReplaced: a second provider is added behind a proxy, filled,
// promoted, and the first is taken away, while the server is written to.
func TestProviderIsReplaced(t *testing.T) {
	a := newProvider(t, "a", 1, false)
	w := newWorld(t, a)
	secret := w.file("secret", "a secret of the fleet\n")
	w.serve()
	s, want := w.create("first"), contents{}
	want.write(s, 0)

	own, socket := newProvider(t, "b", 1, true), filepath.Join(w.dir, "b.sock")
	config := w.file("proxy.toml", fmt.Sprintf("[fleet]\nrole = \"proxy\"\nwire_listen = %q\nsecret_file = %q\n", "unix://"+socket, secret)+w.tables(own))
	data := filepath.Join(w.dir, "proxy")
	behind, err := process.Serve(t.Context(), binary, data, "--config", config)
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Kill()
	w.settings = fmt.Sprintf("[fleet]\nsecret_file = %q\n", secret)
	w.providers = append(w.providers, &provider{name: "b", url: "unix://" + socket})
	w.restart()
	want.check(s)
	if p := w.providerNamed("b"); p.State != "filling" {
		t.Errorf("a new provider is %s", p.State)
	}
	want.write(s, 1)
	w.must("providers", "fill", "b")
	w.must("providers", "list")
	w.must("providers", "promote", "b")
	want.check(s)
	w.repaired()
	w.must("verify", "--values")
	if code, _, stderr := w.nearkey("providers", "remove", "a"); code != 2 || !strings.Contains(stderr, "-y says yes") {
		t.Errorf("remove without a word: exit code %d", code)
	}
	w.must("providers", "remove", "a", "-y")
	if code, _, stderr := w.nearkey("providers", "remove", "b", "-y"); code != 1 || !strings.Contains(stderr, "only active provider") {
		t.Errorf("remove of the last: exit code %d", code)
	}
	want.write(s, 2)
	w.providers = w.providers[1:]
	a.clusters[0].Kill()
	w.restart()
	want.check(s)
	if code, out, _ := w.nearkeyOf(data, "shards", "status"); code != 0 || !strings.Contains(out, "b1") {
		t.Errorf("shards of the proxy: exit code %d", code)
	}
	if code, _, stderr := w.nearkey("shards", "status"); code != 3 || !strings.Contains(stderr, "role proxy") {
		t.Errorf("shards of the centre: exit code %d", code)
	}
	if err := w.server.Stop(); err != nil {
		t.Error(err)
	}
	if err := behind.Stop(); err != nil {
		t.Error(err)
	}
}

// TestClusterIsAdded: a provider gets a second cluster, and keys move to it while
// they are read and written.
func TestClusterIsAdded(t *testing.T) {
	a := newProvider(t, "a", 1, false)
	w := newWorld(t, a)
	w.serve()
	s, want := w.create("first"), contents{}
	want.write(s, 0)
	a.clusters = append(a.clusters, newProvider(t, "a", 1, false).clusters...)
	w.restart()
	if out := w.must("shards", "status"); !strings.Contains(out, "a2\t0.02\t0\t0\t0\tyes") {
		t.Errorf("a new cluster: %s", out)
	}
	const buckets = 8
	w.must("shards", "spread", "first", "--buckets", strconv.Itoa(buckets), "--no-wait")
	w.must("shards", "rebalance", "--no-wait")
	w.must("shards", "status")
	if code, _, _ := w.nearkey("shards", "move", "7", "a3"); code != 3 {
		t.Errorf("a move to nowhere: exit code %d", code)
	}
	if code, _, _ := w.nearkey("shards", "move", "4096", "a2"); code == 0 {
		t.Error("a slot that there is not was moved")
	}
	for round := 1; ; round++ { // while they move
		want.write(s, round)
		want.check(s)
		var tables []admin.Table
		w.read(&tables, "shards", "status")
		cut := 0
		for _, move := range tables[0].Moves {
			if move.Phase == "cut over" || move.Phase == "dropping" {
				cut++
			}
		}
		// A slot that the spread namespace has a bucket in moves when that has ended.
		if cut >= len(tables[0].Moves)-buckets && round > 2 {
			break
		}
		if round == 200 {
			t.Fatalf("%d of %d moves were cut over", cut, len(tables[0].Moves))
		}
	}
	w.must("shards", "status")
	w.restart()
	want.check(s)
}
