package workers

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
)

// startOnPostgres runs a server whose catalog is in a PostgreSQL of its own.
func startOnPostgres(t *testing.T) (*world, *pgtest.Server) {
	t.Helper()
	db := pgtest.Start(t)
	url := filepath.Join(t.TempDir(), "catalog.url")
	if err := os.WriteFile(url, []byte(db.URL()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, "--config", configFile(t, fmt.Sprintf("[catalog]\ndatabase_file = %q\n", url))), db
}

const counting = `
	async function count(env) {
		const n = Number(await env.KV.get("n") ?? 0) + 1;
		await env.KV.put("n", String(n));
		return n;
	}
	export default {
		async fetch(request, env) {
			const path = new URL(request.url).pathname;
			return new Response(String(path === "/count" ? await count(env) : await env.KV.get("n")));
		},
		async scheduled(event, env) { if (await count(env) === 1) await scheduler.wait(60000); },
	}`

// While the database of the catalog hangs, Workers go on, those that nobody had asked
// for included; a deploy fails in time, and does what it says once the database goes
// on.
func TestCatalogHangs(t *testing.T) {
	t.Parallel() // it waits, mostly
	w, db := startOnPostgres(t)
	binding := kvBinding("KV", w.namespace("counts"))
	for _, name := range []string{"warm", "cold"} {
		w.deploy(name, script{code: counting, bindings: []map[string]any{binding}})
	}
	w.want("warm", "/count", "1")
	db.Stop()
	stopped := true
	defer func() {
		if stopped {
			db.Cont()
		}
	}()
	w.want("cold", "/count", "2")
	host := "warm." + w.domain
	l := w.ask(2, http.MethodPost, host, "/", "body", is(200, "2"))
	l.further(t, 20)

	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	kind, form := says("new", 0).form(t)
	status, e := w.callWithin(ctx, http.MethodPut, "/workers/scripts/warm", kind, form)
	if e.Success || status < 500 || len(e.Errors) == 0 {
		t.Errorf("a deploy while the catalog hangs: %d %+v", status, e)
	}
	t.Logf("%d %+v", status, e.Errors)
	l.further(t, 20)
	if sent, lost := l.end(); lost > 0 {
		t.Errorf("%d of %d requests were lost while the catalog hung", lost, sent)
	}
	db.Cont()
	stopped = false
	nearkeytest.Eventually(t, "a deploy succeeds", func() error {
		if status, e := w.put("warm", says("new", 0)); !e.Success {
			return fmt.Errorf("%d %+v", status, e.Errors)
		}
		return nil
	})
	w.want("warm", "/", "new")
}

// A cron whose server is killed in the middle is fired again, once, by the next one.
func TestCronKilled(t *testing.T) {
	t.Parallel()
	w, db := startOnPostgres(t)
	w.deploy("ticks", script{code: counting, bindings: []map[string]any{kvBinding("KV", w.namespace("counts"))}})
	w.must(http.MethodPut, "/workers/scripts/ticks/schedules", []map[string]string{{"cron": "0 0 1 1 *"}}, nil)
	fired := make(chan struct{})
	go func() {
		defer close(fired)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.URL+"/client/v4/accounts/"+w.AccountID+"/workers/scripts/ticks/schedules/run", nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+w.Token)
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	eventually(t, "it was fired", func() bool { return w.get("ticks", "/").body == "1" })
	w.Kill()
	<-fired
	// As if a tick had fired it, whose lease is over.
	db.Exec("update worker_runs set manual = 0, lease = 1, at = at - at % 60000000")
	w.begin()
	type run struct {
		Attempt int
		Outcome string
		Ended   *string `json:"ended_on"`
		Retry   *string `json:"retry_on"`
	}
	var runs []run
	eventually(t, "it is fired again", func() bool {
		w.must(http.MethodGet, "/workers/scripts/ticks/schedules/runs", nil, &runs)
		return len(runs) == 1 && runs[0].Ended != nil
	})
	if r := runs[0]; r.Attempt != 2 || r.Outcome != "ok" || r.Retry != nil {
		t.Errorf("%+v, want that the second attempt was the last", r)
	}
	w.want("ticks", "/", "2")
}
