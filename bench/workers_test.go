package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// TestWorkersParts runs the parts of Workers, small, on the real binary: each checks
// what it is answered. The newer workerd is the benchmark's alone.
func TestWorkersParts(t *testing.T) {
	binary, err := process.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nk") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var out strings.Builder
	b := &bench{dir: dir, out: &out, workers: workersScale{deploys: 2, idle: 2, redeploys: 3}}
	b.rounds, b.slice, b.memoryMiB = 1, 100*time.Millisecond, 192
	b.nearkey, b.workerd = binary, nearkeytest.NeedWorkerd(t)
	b.miniflare = filepath.Join("..", "test", "compat", "node_modules", "miniflare")
	for _, part := range []struct {
		run  func(*bench, context.Context) error
		want []string
	}{
		{(*bench).workerRates, []string{"nearkey, hello", "nearkey, no Worker", "workerd alone, hello", "Miniflare, get", "ratio get, Miniflare", "one get", "one request"}},
		{(*bench).deploys, []string{"upload to first answer", "tried before, to answer", "2 Workers, idle", "2 processes of workerd", "GET and POST: 0 errors"}},
	} {
		out.Reset()
		if err := part.run(b, t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range part.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, &out)
			}
		}
	}
	if len(b.verdicts) != 6 {
		t.Errorf("verdicts: %v", b.verdicts)
	}
	t.Logf("%s", &out)
}

func TestParsePss(t *testing.T) {
	kb, err := parsePss("00400000-7fff [rollup]\nRss:   3000 kB\nPss:   1500 kB\nPss_Dirty:  7 kB\n")
	if err != nil || kb != 1500 {
		t.Errorf("got %d, %v", kb, err)
	}
	if kb, err := parsePss("Rss: 1 kB\n"); err == nil {
		t.Errorf("no Pss is %d", kb)
	}
}
