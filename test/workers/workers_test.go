package workers

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/internal/process"
)

// A Worker is there when its deploy is acknowledged, with variables, secrets, JSON
// and KV; what it writes it reads.
func TestDeploy(t *testing.T) {
	w := start(t)
	ns := w.namespace("counts")
	w.deploy("count", script{
		code: `export default { async fetch(request, env) {
			const n = Number(await env.KV.get("n") ?? 0) + 1;
			await env.KV.put("n", String(n), { metadata: { n } });
			const { value, metadata } = await env.KV.getWithMetadata("n");
			return new Response([value, metadata.n, env.TEXT, env.OBJECT.a, env.SECRET].join(" "));
		} }`,
		bindings: []map[string]any{
			kvBinding("KV", ns),
			{"type": "plain_text", "name": "TEXT", "text": "t"},
			{"type": "json", "name": "OBJECT", "json": map[string]int{"a": 7}},
			{"type": "secret_text", "name": "SECRET", "text": "s"},
		},
	})
	for n := 1; n <= 3; n++ {
		w.want("count", "/", fmt.Sprintf("%d %d t 7 s", n, n))
	}
}

// After each acknowledged deploy only the new version answers, and no request is
// lost meanwhile, neither of those that read nor of those that send.
func TestRedeployUnderLoad(t *testing.T) {
	w := start(t)
	code := func(n int) script {
		return script{code: fmt.Sprintf(`export default { async fetch(request) {
			return new Response("%d " + (await request.text()).length);
		} }`, n)}
	}
	const deploys, clients = 6, 4
	w.deploy("loaded", code(0))
	var (
		all   sync.WaitGroup
		stop  = make(chan struct{})
		known atomic.Int64
		sent  atomic.Int64
	)
	host := "loaded." + w.domain
	for i := range clients {
		method, body := http.MethodGet, ""
		if i%2 == 0 {
			method, body = http.MethodPost, strings.Repeat("x", 1000)
		}
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := known.Load()
				a, err := do(t.Context(), method, w.workers, host, "/", body)
				version, length, _ := strings.Cut(a.body, " ")
				n, bad := strconv.ParseInt(version, 10, 64)
				if err != nil || a.status != http.StatusOK || bad != nil || length != strconv.Itoa(len(body)) {
					t.Errorf("%s: %v, %d %.100q", method, err, a.status, a.body)
					return
				}
				if n < least {
					t.Errorf("version %d answered after the deploy of %d", n, least)
					return
				}
				sent.Add(1)
			}
		})
	}
	for n := 1; n <= deploys; n++ {
		before := sent.Load()
		w.deploy("loaded", code(n))
		known.Store(int64(n))
		eventually(t, "requests go on", func() bool { return sent.Load() > before+50 || t.Failed() })
	}
	close(stop)
	all.Wait()
	t.Logf("%d requests during %d deploys", sent.Load(), deploys)
}

// What does not start is refused with workerd's own words, and the version before
// it goes on.
func TestBadDeploy(t *testing.T) {
	w := start(t)
	w.deploy("solid", script{code: `export default { fetch() { return new Response("one"); } }`})
	for name, code := range map[string]string{
		"syntax":         `export default { fetch() { return new Response("two" } }`,
		"throws":         `throw new Error("not today"); export default { fetch() {} }`,
		"missing module": `import x from "./there.mjs"; export default { fetch() { return x; } }`,
	} {
		kind, form := script{code: code}.form(t)
		status, e := w.call(http.MethodPut, "/workers/scripts/solid", kind, form)
		if e.Success || status != http.StatusBadRequest || len(e.Errors) == 0 || e.Errors[0].Code != 10021 {
			t.Errorf("%s: %d %+v, want 400 and code 10021", name, status, e)
		}
		w.want("solid", "/", "one")
	}
}

// Two versions share the requests of a Worker as their percentages say; a client
// may name the version that answers, or a key that always gets the same one.
func TestPercentages(t *testing.T) {
	w := start(t)
	var ids []string
	for _, text := range []string{"one", "two"} {
		w.deploy("shared", script{code: `export default { fetch() { return new Response("` + text + `"); } }`})
		var list struct {
			Deployments []struct {
				Versions []struct {
					ID string `json:"version_id"`
				}
			}
		}
		w.must(http.MethodGet, "/workers/scripts/shared/deployments", nil, &list)
		ids = append(ids, list.Deployments[0].Versions[0].ID)
	}
	w.must(http.MethodPost, "/workers/scripts/shared/deployments", map[string]any{
		"strategy": "percentage",
		"versions": []map[string]any{{"version_id": ids[0], "percentage": 30}, {"version_id": ids[1], "percentage": 70}},
	}, nil)
	counts := map[string]int{}
	const requests = 200
	for range requests {
		counts[w.get("shared", "/").body]++
	}
	if counts["one"]+counts["two"] != requests || counts["one"] < 20 || counts["two"] < 80 {
		t.Errorf("%v of %d requests, want about 60 and 140", counts, requests)
	}
	for range 20 {
		if a := w.get("shared", "/", "Cloudflare-Workers-Version-Overrides", `shared="`+ids[0]+`"`); a.body != "one" {
			t.Fatalf("the version that was named did not answer: %q", a.body)
		}
		if a, b := w.get("shared", "/", "Cloudflare-Workers-Version-Key", "me"), w.get("shared", "/", "Cloudflare-Workers-Version-Key", "me"); a.body != b.body {
			t.Fatal("one key got two versions")
		}
	}
}

// A Worker on a route stands before the origin of its host: its own fetch goes
// there, what no route matches goes there by itself, and so does the request of a
// Worker that passes through on an exception.
func TestRouteBeforeOrigin(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(strings.ToLower(name), "x-nk-") {
				t.Errorf("the origin was sent %s", name)
			}
		}
		fmt.Fprintf(w, "origin of %s%s", r.Host, r.URL.Path)
	}))
	defer origin.Close()
	w := start(t, "--config", configFile(t, "[[origin]]\nhost = \"*.example.test\"\nurl = \""+origin.URL+"\"\n"))
	w.deploy("front", script{code: `export default { async fetch(request, env, ctx) {
		const path = new URL(request.url).pathname;
		if (path === "/w/throws") { ctx.passThroughOnException(); throw new Error("no"); }
		const answer = await fetch(request);
		return new Response("[" + await answer.text() + "]");
	} }`})
	w.must(http.MethodPut, "/workers/scripts/front/routes", []map[string]string{{"pattern": "shop.example.test/w/*", "zone_name": "example.test"}}, nil)
	for path, body := range map[string]string{
		"/w/a":      "[origin of shop.example.test/w/a]",
		"/w/throws": "origin of shop.example.test/w/throws",
		"/other":    "origin of shop.example.test/other",
	} {
		a, err := do(t.Context(), http.MethodGet, w.workers, "shop.example.test", path, "")
		if err != nil || a.status != http.StatusOK || a.body != body {
			t.Errorf("%s: %v, %d %q, want %q", path, err, a.status, a.body, body)
		}
	}
}

// A Worker reaches another through a binding, and neither the server itself nor
// anything else of this machine by the network.
func TestServicesAndIsolation(t *testing.T) {
	w := start(t)
	w.deploy("behind", script{code: `export default { async fetch(request) {
		return new Response(request.method + " " + new URL(request.url).pathname + " " + await request.text());
	} }`})
	w.deploy("before", script{
		code: `export default { async fetch(request, env) {
			const url = new URL(request.url);
			if (url.pathname === "/reach") {
				try { return new Response(String((await fetch(url.searchParams.get("url"))).status)); }
				catch (e) { return new Response("threw " + e.message); }
			}
			return env.BEHIND.fetch("https://any.host/path", { method: "POST", body: "hello" });
		} }`,
		bindings: []map[string]any{{"type": "service", "name": "BEHIND", "service": "behind"}},
	})
	w.want("before", "/", "POST /path hello")
	w.deploy("behind", script{code: `import { WorkerEntrypoint } from "cloudflare:workers";
		export class Admin extends WorkerEntrypoint { fetch() { return new Response("by the side door"); } }
		export default { fetch() { return new Response("by the front door"); } }`})
	w.deploy("side", script{
		code:     `export default { async fetch(request, env) { return env.ADMIN.fetch(request); } }`,
		bindings: []map[string]any{{"type": "service", "name": "ADMIN", "service": "behind", "entrypoint": "Admin"}},
	})
	w.want("side", "/", "by the side door")
	kind, form := script{code: "export default { fetch() {} }", bindings: []map[string]any{{"type": "service", "name": "X", "service": "behind", "entrypoint": "None"}}}.form(t)
	if status, e := w.call(http.MethodPut, "/workers/scripts/wrong", kind, form); e.Success || status != http.StatusBadRequest {
		t.Errorf("an entrypoint that is not there: %d %+v", status, e)
	}
	for _, url := range []string{w.URL + "/healthz", "http://" + w.workers + "/", "http://localhost:1/", "http://169.254.169.254/"} {
		if a := w.get("before", "/reach?url="+url); a.status != http.StatusOK || a.body == "200" {
			t.Errorf("the Worker reached %s: %d %s", url, a.status, a.body)
		}
	}
}

// After kill -9 Workers answer again without a deploy, and nothing of the runtime is
// left over.
func TestKilled(t *testing.T) {
	w := start(t)
	ns := w.namespace("kept")
	w.deploy("kept", script{
		code:     `export default { async fetch(request, env) { await env.KV.put("k", "v"); return new Response(await env.KV.get("k")); } }`,
		bindings: []map[string]any{kvBinding("KV", ns)},
	})
	w.want("kept", "/", "v")
	before, err := process.Children(w.Pid())
	if err != nil || len(before) == 0 {
		t.Fatalf("processes of Workers: %v, %v", before, err)
	}
	w.Kill()
	eventually(t, "the processes of Workers end with their server", func() bool { return !anyRuns(before) })
	w.begin()
	w.want("kept", "/", "v")
}

// Without a runtime KV works, a deploy is refused and says why, and so does the log.
func TestNoRuntime(t *testing.T) {
	w := start(t, "--workers-runtime", "/nowhere/workerd")
	kind, form := script{code: `export default { fetch() { return new Response("one"); } }`}.form(t)
	status, e := w.call(http.MethodPut, "/workers/scripts/none", kind, form)
	if e.Success || status != http.StatusNotImplemented || !strings.Contains(e.Errors[0].Message, "runtime is not installed") {
		t.Errorf("%d %+v, want 501 and the reason", status, e)
	}
	if strings.Contains(w.Output(), "Workers answer") || !strings.Contains(w.Output(), "Workers do not run") {
		t.Errorf("says %s", w.Output())
	}
	ns := w.namespace("works")
	if status, e := w.call(http.MethodPut, "/storage/kv/namespaces/"+ns+"/values/k", "text/plain", []byte("v")); !e.Success {
		t.Errorf("put: %d %+v", status, e)
	}
}

// A server whose own address is taken says that, and nothing of what would be if it were
// not.
func TestAddressTaken(t *testing.T) {
	w := start(t)
	address := strings.TrimPrefix(w.URL, "http://")
	cmd := exec.CommandContext(t.Context(), binary, "serve", "--data", t.TempDir(), "--listen", address)
	cmd.Env = process.Environ()
	said, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(said), "the address is in use") || strings.Contains(string(said), "everything else does") {
		t.Errorf("%v: %s", err, said)
	}
}
