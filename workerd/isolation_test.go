package workerd_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// neighbour asks a Worker without end and fails the test if it does not answer, or
// if it did not stay in its process, until the returned function is called.
func (w *world) neighbour(name string) (stop func()) {
	w.tb.Helper()
	w.deploy(worker(name, "1", answering(`"good"`)))
	pid := w.status(name).PID
	ended := make(chan struct{})
	var client sync.WaitGroup
	var answers atomic.Int64
	client.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
			}
			res, body := w.do(w.request("GET", name, "/", nil))
			if res.StatusCode != 200 || body != "good" {
				w.tb.Errorf("the neighbour: %d %q", res.StatusCode, body)
			}
			answers.Add(1)
		}
	})
	return func() {
		w.tb.Helper()
		seen := answers.Load()
		until(w.tb, "the neighbour answers", func() bool { return answers.Load() > seen })
		close(ended)
		client.Wait()
		if s := w.status(name); s.PID != pid || s.Crashes != 0 || s.Exceptions != 0 {
			w.tb.Errorf("the neighbour: %+v", s)
		}
	}
}

// A request that forks into thousands of subrequests gets as many as it may, and
// an error for the rest; nobody else notices, and the next request is answered.
func TestSubrequestFork(t *testing.T) {
	var w *world
	var passed atomic.Int64
	socket := service(t, func(rw http.ResponseWriter, r *http.Request) {
		if !w.rt.Spend(r.Header.Get(workerd.HeaderToken), workerd.Subrequest) {
			rw.WriteHeader(429)
			return
		}
		passed.Add(1)
	})
	w = start(t, workerd.Options{Egress: socket})
	w.deploy(worker("bad", "1", `export default {async fetch(r) {
		const all = await Promise.allSettled(Array.from({length: Number(new URL(r.url).search.slice(1))}, () => fetch("http://x/")));
		const count = status => all.filter(x => x.value?.status == status).length;
		return new Response(count(200) + " " + count(429)) }}`))
	stop := w.neighbour("good")
	w.want("bad", "/?1000", 200, "1000 0")
	w.want("bad", "/?1500", 200, "1000 500")
	// One that takes all files that its process may have harms itself.
	if status, body := w.get("bad", "/?6000"); status == 200 && !strings.HasPrefix(body, "1000 ") {
		t.Errorf("%d %s", status, body)
	}
	until(t, "it answers again", func() bool { _, body := w.get("bad", "/?0"); return body == "0 0" })
	stop()
	if n := passed.Load(); n > 3000 {
		t.Errorf("%d subrequests passed", n)
	}
}

// What a Worker cannot answer goes where its requests go without it, if it said so.
func TestPassThroughOnException(t *testing.T) {
	var w *world
	socket := service(t, func(rw http.ResponseWriter, r *http.Request) {
		caller, ok := w.rt.Identify(r.Header.Get(workerd.HeaderToken), "")
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("X-Origin", "yes")
		rw.WriteHeader(203)
		_, _ = fmt.Fprintf(rw, "%s %v %s %s://%s%s %s %s", caller.Name, ok, r.Method, r.Header.Get(workerd.HeaderProto), r.Host, r.RequestURI, r.Header.Get("X-Own"), body)
	})
	w = start(t, workerd.Options{Egress: socket})
	w.deploy(worker("a", "1", `export default {async fetch(r, env, ctx) {
		if (new URL(r.url).pathname != "/without") ctx.passThroughOnException();
		throw new Error("boom") }}`))
	r := w.request("POST", "a", "/p%2Fq?x=1", strings.NewReader("the body"))
	r.Header.Set("X-Own", "mine")
	res, body := w.do(r)
	if want := "a true POST http://a.dev.localhost/p%2Fq?x=1 mine the body"; res.StatusCode != 203 || body != want || res.Header.Get("X-Origin") != "yes" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
	w.want("a", "/without", 500, "error code: 1101\n")
	sw := worker("sw", "1", `addEventListener("fetch", e => { e.passThroughOnException(); throw new Error("boom") })`)
	sw.ServiceWorker = true
	w.deploy(sw)
	w.want("sw", "/y", 203, "sw true GET http://sw.dev.localhost/y  ")
}

// A Worker that does nothing but log has its log cut, and the rest arrives.
func TestLogFlood(t *testing.T) {
	var lines, told, last atomic.Int64
	w := start(t, workerd.Options{Output: func(_, _ string, line []byte) {
		switch text := string(line); {
		case strings.Contains(text, "were dropped"):
			told.Add(1)
		case strings.Contains(text, "the last"):
			last.Add(1)
		default:
			lines.Add(1)
		}
	}})
	stop := w.neighbour("good")
	w.deploy(worker("bad", "1", `export default {async fetch(r) {
		for (let i = 0; i < 50000; i++) console.log("line", i);
		await scheduler.wait(1100); console.log("the last"); return new Response("ok") }}`))
	w.want("bad", "/", 200, "ok")
	until(t, "the last line has come", func() bool { return last.Load() == 1 && told.Load() > 0 })
	stop()
	if n := lines.Load(); n >= 50000 {
		t.Errorf("%d lines", n)
	}
}

// Whatever a Worker tries, it reaches the way out that is ours, and nothing else:
// no file, no process, no socket, no variable of this server.
func TestReach(t *testing.T) {
	var out sync.Map
	socket := service(t, func(rw http.ResponseWriter, r *http.Request) {
		out.Store(r.Method+" "+r.Host, true)
		rw.WriteHeader(403)
	})
	t.Setenv("NEARKEY_TEST_SECRET", "hush")
	w := start(t, workerd.Options{Egress: socket})
	v := worker("a", "1", `import fs from "node:fs"; import net from "node:net"; import os from "node:os"; import process from "node:process";
	import child from "node:child_process"; import { connect } from "cloudflare:sockets";
	const attempts = {
		passwd: () => fs.readFileSync("/etc/passwd", "utf8"),
		proc: () => fs.readdirSync("/proc/self"),
		root: () => fs.readdirSync("/").join(),
		env: () => JSON.stringify(process.env),
		argv: () => process.argv.join(),
		host: () => os.hostname(),
		pid: () => String(process.pid),
		spawn: () => String(child.execSync("id")),
		eval: () => new Function("return 'evaluated'")(),
		file: () => fetch("file:///etc/passwd").then(r => r.text()),
		loopback: () => fetch("http://127.0.0.1:80/").then(r => "status " + r.status),
		metadata: () => fetch("http://169.254.169.254/").then(r => "status " + r.status),
		unix: () => fetch("http://unix:/tmp/s/").then(r => "status " + r.status),
		tcp: async () => { const s = connect("127.0.0.1:22"); await s.opened; return "opened" },
		node: () => new Promise((ok, no) => { const s = net.connect(22, "127.0.0.1", () => ok("opened")); s.on("error", no) }),
	};
	export default {async fetch(r, env) {
		const results = {};
		for (const name in attempts) results[name] = await Promise.resolve().then(attempts[name]).catch(e => "error: " + e);
		return Response.json(results) }}`)
	v.Flags = []string{"nodejs_compat"}
	w.deploy(v)
	_, body := w.get("a", "/")
	var got map[string]string
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	for name, result := range got {
		switch name {
		case "loopback", "metadata", "unix": // ours to refuse
			if result != "status 403" {
				t.Errorf("%s: %s", name, result)
			}
		case "root": // of the Worker's own, in its memory
			if result != "bundle,tmp,dev" {
				t.Errorf("%s: %s", name, result)
			}
		case "env", "argv", "host", "pid":
			if strings.Contains(result, "hush") || strings.Contains(result, "/") {
				t.Errorf("%s: %s", name, result)
			}
		default:
			if !strings.HasPrefix(result, "error: ") {
				t.Errorf("%s: %s", name, result)
			}
		}
	}
	for _, want := range []string{"CONNECT 127.0.0.1:22", "GET 127.0.0.1", "GET 169.254.169.254"} {
		if _, ok := out.Load(want); !ok || len(got) != 15 {
			t.Errorf("%s did not come to us (%d results)", want, len(got))
		}
	}
}
