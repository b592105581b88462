package workers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// put uploads a Worker and returns what was said, or why nothing was.
func (w *world) put(name string, s script) (int, envelope) {
	w.t.Helper()
	kind, form := s.form(w.t)
	return w.call(http.MethodPut, "/workers/scripts/"+name, kind, form)
}

// says is a Worker that answers with a text, and is so many bytes larger than it
// has to be.
func says(text string, padding int) script {
	return script{code: "export default { fetch() { return new Response(" + strconv.Quote(text) + "); } }\n//" + strings.Repeat("x", padding)}
}

// deployments counts the deployments and the versions of a Worker.
func (w *world) deployments(name string) (deployments, versions int) {
	w.t.Helper()
	var d struct{ Deployments []any }
	w.must(http.MethodGet, "/workers/scripts/"+name+"/deployments", nil, &d)
	var v struct{ Items []any }
	w.must(http.MethodGet, "/workers/scripts/"+name+"/versions", nil, &v)
	return len(d.Deployments), len(v.Items)
}

// With a full disk a deploy fails and says so, nothing of it is there, and the
// version before it goes on; with room again it succeeds.
func TestDiskFull(t *testing.T) {
	dir, err := os.MkdirTemp("", "nk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := startIn(t, dir)
	w.deploy("full", says("one", 0))
	w.want("full", "/", "one")
	deployments, versions := w.deployments("full")
	values := "/storage/kv/namespaces/" + w.namespace("full") + "/values/"

	ballast := filepath.Join(dir, "ballast")
	for _, spare := range []int64{64 << 20 /* less than the store keeps free */, 0} {
		fill(t, ballast, dir, spare)
		eventually(t, "the store knows", func() bool {
			status, _ := w.call(http.MethodPut, values+"k", "text/plain", []byte("v"))
			return status == http.StatusInsufficientStorage
		})
		for _, padding := range []int{0, 300 << 10} {
			status, e := w.put("full", says("two", padding))
			if e.Success || status != http.StatusInsufficientStorage || !strings.Contains(e.Errors[0].Message, "out of disk space") {
				t.Errorf("a deploy with %d bytes left: %d %+v", spare, status, e)
			}
			w.want("full", "/", "one")
		}
		if spare > 0 { // there is room to start what is there
			if err := syscall.Kill(w.running()[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.want("full", "/", "one")
		}
	}
	if d, v := w.deployments("full"); d != deployments || v != versions {
		t.Errorf("%d deployments and %d versions, want %d and %d", d, v, deployments, versions)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deploy succeeds", func() bool { _, e := w.put("full", says("three", 300<<10)); return e.Success })
	w.want("full", "/", "three")
}

// fill makes a file take all that is left of a disk but some bytes.
func fill(t *testing.T, path, disk string, spare int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		var left syscall.Statfs_t
		if err := syscall.Statfs(disk, &left); err != nil {
			t.Fatal(err)
		}
		n := min(int64(left.Bavail)*left.Bsize-spare, 1<<20)
		if n <= 0 {
			return
		}
		if _, err := f.Write(make([]byte, n)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// An upload whose connection breaks anywhere changes nothing, and neither does one
// that ends in the middle of its form.
func TestUploadCut(t *testing.T) {
	w := start(t)
	w.deploy("cut", says("one", 0))
	w.want("cut", "/", "one")
	deployments, versions := w.deployments("cut")
	kind, form := says("two", 100<<10).form(t)
	path := "/client/v4/accounts/" + w.AccountID + "/workers/scripts/cut"
	head := func(length int) string {
		return "PUT " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + w.Token + "\r\nContent-Type: " + kind +
			"\r\nContent-Length: " + strconv.Itoa(length) + "\r\n\r\n"
	}
	address := strings.TrimPrefix(w.URL, "http://")
	for _, at := range []int{0, 1, 100, len(form) / 2, len(form) - 1} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, head(len(form))+string(form[:at])); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		status, e := w.call(http.MethodPut, "/workers/scripts/cut", kind, form[:at])
		if e.Success || status != http.StatusBadRequest {
			t.Errorf("a form that ends after %d of %d bytes: %d %+v", at, len(form), status, e)
		}
	}
	w.want("cut", "/", "one")
	if d, v := w.deployments("cut"); d != deployments || v != versions {
		t.Errorf("%d deployments and %d versions, want %d and %d", d, v, deployments, versions)
	}
}

// Deploys of one Worker at once succeed or are refused, each wholly; what answers
// afterwards is one of the acknowledged, and the newest deployment says which.
func TestConcurrentDeploys(t *testing.T) {
	w := start(t)
	w.deploy("race", says("0", 0))
	const deploys = 10
	var (
		all   sync.WaitGroup
		acked sync.Map // text: true
		good  atomic.Int64
	)
	for n := range deploys {
		kind, form := says(strconv.Itoa(n+1), 0).form(t)
		all.Go(func() {
			status, e := w.call(http.MethodPut, "/workers/scripts/race", kind, form)
			switch {
			case e.Success:
				good.Add(1)
				acked.Store(strconv.Itoa(n+1), true)
			case status != http.StatusConflict && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests:
				t.Errorf("deploy %d: %d %+v", n+1, status, e)
			default:
				t.Logf("deploy %d: %d %+v", n+1, status, e.Errors)
			}
		})
	}
	all.Wait()
	t.Logf("%d of %d deploys succeeded", good.Load(), deploys)
	first := w.get("race", "/").body
	if _, ok := acked.Load(first); !ok {
		t.Errorf("%q answers, which was not acknowledged", first)
	}
	for range 20 {
		w.want("race", "/", first)
	}
	if d, v := w.deployments("race"); d != 1+int(good.Load()) && good.Load() < deploys || v != 1+int(good.Load()) {
		t.Errorf("%d deployments and %d versions of %d successes", d, v, good.Load())
	}
	w.deploy("race", says("last", 0))
	w.want("race", "/", "last")
}

// Changes of percentages, routes and the subdomain, and the removal of another
// Worker, cost no request.
func TestChangesUnderLoad(t *testing.T) {
	w := start(t)
	var ids []string
	for _, text := range []string{"one", "two"} {
		w.deploy("busy", says(text, 0))
		var list struct {
			Deployments []struct {
				Versions []struct {
					ID string `json:"version_id"`
				}
			}
		}
		w.must(http.MethodGet, "/workers/scripts/busy/deployments", nil, &list)
		ids = append(ids, list.Deployments[0].Versions[0].ID)
	}
	w.deploy("other", says("other", 0))
	route := func(patterns ...string) {
		t.Helper()
		routes := []map[string]string{}
		for _, p := range patterns {
			routes = append(routes, map[string]string{"pattern": p, "zone_name": "example.test"})
		}
		w.must(http.MethodPut, "/workers/scripts/busy/routes", routes, nil)
	}
	route("a.example.test/*")
	good := func(a answer) bool { return a.status == 200 && (a.body == "one" || a.body == "two") }
	onSubdomain := w.ask(2, http.MethodPost, "busy."+w.domain, "/", "body", good)
	onRoute := w.ask(2, http.MethodGet, "a.example.test", "/x", "", good)
	share := func(first float64) {
		t.Helper()
		versions := []map[string]any{{"version_id": ids[0], "percentage": first}}
		if first < 100 {
			versions = append(versions, map[string]any{"version_id": ids[1], "percentage": 100 - first})
		}
		w.must(http.MethodPost, "/workers/scripts/busy/deployments", map[string]any{"strategy": "percentage", "versions": versions}, nil)
	}
	for i, change := range []func(){
		func() { share(50) },
		func() { share(100) },
		func() { route("a.example.test/*", "b.example.test/*") },
		func() { share(1) },
		func() { route("a.example.test/x*") },
		func() { w.get("other", "/"); w.must(http.MethodDelete, "/workers/scripts/other", nil, nil) },
		func() { w.deploy("busy", says("two", 10)) },
		func() { share(100) },
	} {
		change()
		onSubdomain.further(t, 20)
		onRoute.further(t, 20)
		if onSubdomain.lost.Load()+onRoute.lost.Load() > 0 {
			t.Errorf("change %d lost requests", i)
			break
		}
	}
	onSubdomain.end()
	onRoute.end()

	// One that is deleted ends what it has, and is then not there: nothing else.
	w.deploy("gone", script{code: `export default { async fetch() { await scheduler.wait(20); return new Response("still"); } }`})
	l := w.ask(4, http.MethodPost, "gone."+w.domain, "/", "body", func(a answer) bool {
		return is(200, "still")(a) || a.status == 404 && strings.HasPrefix(a.body, "there is no Worker at ")
	})
	l.further(t, 20)
	w.must(http.MethodDelete, "/workers/scripts/gone", nil, nil)
	if a := w.get("gone", "/"); a.status != 404 {
		t.Errorf("deleted: %d %q", a.status, a.body)
	}
	l.further(t, 20)
	if sent, lost := l.end(); lost > 0 {
		t.Errorf("%d of %d requests to a Worker that was deleted failed", lost, sent)
	}
}

// What a Worker has begun when its server is told to stop is finished, with all the
// KV operations that it needs, and nothing of it is left.
func TestStopUnderLoad(t *testing.T) {
	w := start(t)
	ns := w.namespace("stop")
	w.deploy("slow", script{
		code: `export default { async fetch(request, env) {
			for (let i = 0; i < 4; i++) {
				await scheduler.wait(100);
				await env.KV.put("k" + i, "v");
				if (await env.KV.get("k" + i) !== "v") return new Response("lost", { status: 500 });
			}
			return new Response("done");
		} }`,
		bindings: []map[string]any{kvBinding("KV", ns)},
	})
	w.want("slow", "/", "done")
	pids := w.running()
	const requests = 8
	var all sync.WaitGroup
	var written atomic.Int64
	for range requests {
		all.Go(func() {
			ctx := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+w.workers+"/", nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Host = "slow." + w.domain
			written.Add(1)
			res, err := ctx.Do(req)
			if err != nil {
				t.Errorf("in flight when the server was told to stop: %v", err)
				return
			}
			defer res.Body.Close()
			if text, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || string(text) != "done" {
				t.Errorf("in flight when the server was told to stop: %d %q %v", res.StatusCode, text, err)
			}
		})
	}
	eventually(t, "they are in flight", func() bool { return w.metric("nearkey_workers_requests_total") == 1+requests })
	sockets := w.sockets()
	if len(sockets) == 0 {
		t.Error("control: no sockets of Workers are found")
	}
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if anyRuns(pids) {
		t.Error("processes of Workers are left")
	}
	if left := w.sockets(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	w.begin()
}

// A Worker that does not end, and a process that is stopped, keep no server from
// ending in time.
func TestStopInTime(t *testing.T) {
	t.Parallel() // it waits, mostly
	w := start(t)
	w.deploy("endless", script{code: `export default { async fetch() { await scheduler.wait(3600000); return new Response("late"); } }`})
	w.deploy("stopped", says("ok", 0))
	w.want("stopped", "/", "ok")
	if err := syscall.Kill(w.running()[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if a, err := do(t.Context(), http.MethodGet, w.workers, "endless."+w.domain, "/", ""); err == nil && a.status == 200 {
			t.Errorf("%d %q", a.status, a.body)
		}
	}()
	eventually(t, "it is asked", func() bool { return len(w.running()) == 2 })
	pids := w.running()
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	<-asked
	if anyRuns(pids) {
		t.Error("processes of Workers are left")
	}
	if left := w.sockets(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	w.begin()
}

// sockets finds what the runtime keeps in its folder.
func (w *world) sockets() []string {
	w.t.Helper()
	all, err := filepath.Glob(filepath.Join(w.data, "*", "*.sock"))
	more, err2 := filepath.Glob(filepath.Join(w.data, "*", "gen-*"))
	if err := errors.Join(err, err2); err != nil {
		w.t.Fatal(fmt.Errorf("look for sockets: %w", err))
	}
	return append(all, more...)
}
