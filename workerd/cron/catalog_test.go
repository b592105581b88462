package cron

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// The same with the real catalog: it implements what the ledger of the other
// tests does.
func TestRealCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cat.Close() })
		cat.UseWorkers(memory.New(), kv.NewStamper(1, time.Now))
		if _, err := cat.EnsureRoot(t.Context(), catalog.Root{AccountID: account, Token: catalog.NewSecret()}); err != nil {
			t.Fatal(err)
		}
		hashes, err := cat.PutModules(t.Context(), [][]byte{[]byte("export default {}")})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := cat.AddVersion(t.Context(), account, "shop", catalog.NewVersion{Create: true, Deploy: true, Manifest: catalog.Manifest{
			Main: "a.js", CompatibilityDate: "2026-01-01", Modules: []catalog.WorkerModule{{Name: "a.js", Type: "application/javascript+module", Hash: hashes[0], Size: 17}},
		}}); err != nil {
			t.Fatal(err)
		}
		if _, err := cat.ReplaceSchedules(t.Context(), account, "shop", []string{"* * * * *", "*/2 * * * *"}); err != nil {
			t.Fatal(err)
		}
		w.catalog = cat
		for range 3 {
			w.start()
		}
		time.Sleep(6 * time.Minute)
		if all := doubles(w); all != nil || len(w.ticks()) != 6+3 {
			t.Errorf("%d ticks, doubles %v", len(w.ticks()), all)
		}
		run, err := w.processes[0].Fire(t.Context(), account, "shop", "any")
		if err != nil || run.Outcome != "ok" {
			t.Errorf("%+v, %v", run, err)
		}
		if _, err := w.processes[0].Fire(t.Context(), account, "none", "any"); !errors.Is(err, catalog.ErrWorkerNotFound) {
			t.Errorf("a Worker that is not there: %v", err)
		}
		runs, err := cat.CronRuns(t.Context(), account, "shop", 100)
		if err != nil || len(runs) != 10 || !runs[0].Manual || runs[0].Outcome != "ok" {
			t.Errorf("%d runs, %v; the last: %+v", len(runs), err, runs[0])
		}
		for _, p := range w.processes { // before the catalog is closed
			p.end()
		}
	})
}
