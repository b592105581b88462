package workerd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// experimental are the flags of the pinned release that only its makers may use.
const experimental = `allow_insecure_inefficient_logged_eval auto_grpc_convert cache_reload_enabled connect_pass_through
	d1_binding_jsrpc durable_object_get_existing durable_object_rename enable_abortsignal_rpc enable_ctx_version_metadata
	enable_d1_with_sessions_api enable_nodejs_inspector_local_dev enable_version_api enable_web_file_system experimental
	expose_draining_reader increase_websocket_message_size js_rpc kv_direct_binding memory_cache_delete new_module_registry
	precise_timers python_workers_development python_workers_durable_objects replica_routing rtti_api
	service_binding_extra_handlers spec_compliant_property_attributes streaming_tail_worker
	streams_no_default_auto_allocate_chunk_size tail_worker_user_spans typescript_implemented_streams
	typescript_strip_types unsafe_module unsupported_process_actual_platform wasm_memory_discard webgpu
	workflows_bindings_rpc workflows_step_rollback`

// What is experimental is refused wherever a Worker could get it, above all in a
// process that is allowed it for what is ours.
func TestExperimentalFlags(t *testing.T) {
	w := start(t, workerd.Options{})
	for flag := range strings.FieldsSeq(experimental) {
		v := worker("a", "1", answering(`"ok"`))
		v.Flags = []string{"nodejs_compat", flag}
		_, err := w.rt.Check(t.Context(), v)
		var fault *workerd.StartError
		if !errors.As(err, &fault) || !strings.Contains(fault.Text, "experimental") ||
			!strings.HasSuffix(fault.Text, " and cannot yet be used in deployed Workers.") || !strings.HasPrefix(fault.Text, "The ") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	v := worker("a", "1", `export default {scheduled() {}}`)
	v.Flags = []string{"unsafe_module"}
	if err := w.rt.Load(v); err != nil {
		t.Fatal(err)
	}
	var fault *workerd.StartError
	if _, err := w.rt.Scheduled(t.Context(), "a", "* * * * *", time.Now()); !errors.As(err, &fault) || !strings.Contains(fault.Text, "unsafe_module is experimental") {
		t.Errorf("a cron: %v", err)
	}
	// The control: with the flags that all may use it is called.
	v.Version, v.Flags = "2", []string{"nodejs_compat"}
	w.deploy(v)
	if outcome, err := w.rt.Scheduled(t.Context(), "a", "* * * * *", time.Now()); err != nil || outcome.Outcome != "ok" {
		t.Errorf("control: %v %v", outcome, err)
	}
	for date, want := range map[string]string{
		"2026-8-1":   "Invalid compatibility date: 2026-8-1",
		"":           "Invalid compatibility date: ",
		"2999-01-01": "Can't set compatibility date in the future: 2999-01-01",
		time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly): "Can't set compatibility date in the future: ",
	} {
		v := worker("a", "1", answering(`"ok"`))
		v.CompatibilityDate = date
		if _, err := w.rt.Check(t.Context(), v); !errors.As(err, &fault) || !strings.Contains(fault.Text, want) {
			t.Errorf("date %s: %v", date, err)
		}
	}
	v = worker("a", "1", answering(`"ok"`))
	v.Flags = []string{"no_such_flag"}
	if _, err := w.rt.Check(t.Context(), v); !errors.As(err, &fault) || fault.Text != "No such compatibility flag: no_such_flag" {
		t.Errorf("no such flag: %v", err)
	}
}

const cronScript = `export default {
	fetch(r) { return new Response("ok") },
	async scheduled(c, env, ctx) {
		switch (c.cron) {
		case "throw": throw new Error("boom");
		case "no retry": c.noRetry(); throw new Error("boom");
		case "spin": for (;;);
		case "heap": { const a = []; for (;;) a.push(new Array(1000).fill(a.length)) }
		case "hang": await scheduler.wait(60000);
		case "work": { let n = 0; for (let i = 0; i < 3e7; i++) n = (n + i) % 7; return n }
		}
		ctx.waitUntil(scheduler.wait(20).then(() => fetch("http://x/" + encodeURIComponent(c.cron) + "/" + c.scheduledTime)));
	} }`

func TestScheduled(t *testing.T) {
	var calls sync.Map
	w := start(t, workerd.Options{CPU: time.Second, HeapBytes: 32 << 20,
		Egress: service(t, func(_ http.ResponseWriter, r *http.Request) { calls.Store(r.URL.Path, true) })})
	if _, err := w.rt.Scheduled(t.Context(), "a", "x", time.Now()); !errors.Is(err, workerd.ErrNotFound) {
		t.Errorf("no such Worker: %v", err)
	}
	w.deploy(worker("a", "1", cronScript))
	w.want("a", "/", 200, "ok")
	plain := w.status("a").PID
	at := time.UnixMilli(1_700_000_040_000)
	call := func(cron string) workerd.Outcome {
		t.Helper()
		outcome, err := w.rt.Scheduled(t.Context(), "a", cron, at)
		if err != nil {
			t.Fatalf("%s: %v", cron, err)
		}
		return outcome
	}
	// It returns when what was left to waitUntil has ended.
	if got := call("*/5 * * * mon"); got != (workerd.Outcome{Outcome: "ok"}) {
		t.Errorf("%+v", got)
	}
	if _, ok := calls.Load("/*/5 * * * mon/1700000040000"); !ok {
		t.Error("the Worker was told another cron or time, or waitUntil was not awaited")
	}
	w.want("a", "/", 200, "ok")
	with := w.status("a").PID
	if call("again"); with == plain || w.status("a").PID != with {
		t.Error("the process was not replaced once and kept then")
	}
	if got := call("throw"); got != (workerd.Outcome{Outcome: "exception"}) {
		t.Errorf("%+v", got)
	}
	if got := call("no retry"); got != (workerd.Outcome{Outcome: "exception", NoRetry: true}) {
		t.Errorf("%+v", got)
	}
	if got := call("spin"); got.Outcome != "exceededCpu" {
		t.Errorf("%+v", got)
	}
	if got := call("heap"); got.Outcome != "exceededMemory" {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.rt.Scheduled(ctx, "a", "hang", at); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	// Service workers have crons as well, and one that does not run is started.
	sw := worker("sw", "1", `addEventListener("scheduled", e => e.waitUntil(fetch("http://x/" + e.cron)))`)
	sw.ServiceWorker = true
	_ = w.rt.Load(sw)
	if outcome, err := w.rt.Scheduled(t.Context(), "sw", "sw", at); err != nil || outcome.Outcome != "ok" {
		t.Errorf("%v %v", outcome, err)
	}
	if _, ok := calls.Load("/sw"); !ok || w.status("sw").Starts != 1 {
		t.Errorf("a service worker: %v, %+v", ok, w.status("sw"))
	}
}

// Each call has all of its CPU time, although nothing else shows that the Worker
// is alive.
func TestScheduledCPU(t *testing.T) {
	const limit = 400 * time.Millisecond
	w := start(t, workerd.Options{CPU: limit})
	w.deploy(worker("a", "1", cronScript))
	for w.status("a").CPU < limit*3/2 {
		if outcome, err := w.rt.Scheduled(t.Context(), "a", "work", time.Now()); err != nil || outcome.Outcome != "ok" {
			t.Fatalf("%+v %v", outcome, err)
		}
	}
}

// Clients of a Worker notice nothing when it is followed or its first cron fires.
func TestExtrasUnderLoad(t *testing.T) {
	events := make(chan string, 100)
	w := start(t, workerd.Options{Linger: 50 * time.Millisecond, Events: service(t, func(http.ResponseWriter, *http.Request) {
		select {
		case events <- "":
		default:
		}
	})})
	w.deploy(worker("a", "1", cronScript))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					w.want("a", "/", 200, "ok")
				}
			}
		})
	}
	for i := range 6 {
		if err := w.rt.Trace(t.Context(), "a", i%2 == 0); err != nil {
			t.Error(err)
		}
		if i == 3 {
			if _, err := w.rt.Scheduled(t.Context(), "a", "throw", time.Now()); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	clients.Wait()
	until(t, "the old ones have ended", func() bool { return w.rt.Processes() == 1 })
}

// A traced is an event, as far as the tests look at it.
type traced struct {
	Outcome string
	Logs    []struct {
		Level   string
		Message []any
	}
	Truncated  bool
	Exceptions []struct{ Name, Message string }
	Event      struct {
		Request struct {
			URL, Method string
			Headers     map[string]string
		}
		Response struct{ Status int }
		Cron     string
	}
}

// startTraced starts a world whose events come one by one.
func startTraced(t *testing.T) (*world, <-chan traced) {
	got := make(chan traced, 10)
	var w *world
	w = start(t, workerd.Options{Events: service(t, func(_ http.ResponseWriter, r *http.Request) {
		if caller, ok := w.rt.Identify(r.Header.Get(workerd.HeaderToken), ""); !ok || caller.Name != "a" || r.Method != "POST" {
			t.Errorf("%s of %v %v", r.Method, caller, ok)
		}
		var all []traced
		if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
			t.Error(err)
		}
		for _, e := range all {
			got <- e
		}
	})})
	return w, got
}

func TestTrace(t *testing.T) {
	w, got := startTraced(t)
	script := `export default {
		fetch(r) { console.log("hello", {a: 1}); if (r.url.endsWith("/throw")) throw new TypeError("boom"); return new Response("ok", {status: 202}) },
		scheduled() { console.warn("tick") } }`
	w.deploy(worker("a", "1", script))
	w.want("a", "/before", 202, "ok")
	if err := w.rt.Trace(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	r := w.request("GET", "a", "/x?y", nil)
	r.Header.Set("X-Own", "mine")
	w.do(r)
	e := <-got
	if e.Outcome != "ok" || len(e.Logs) != 1 || e.Logs[0].Message[0] != "hello" || e.Event.Request.URL != "http://a.dev.localhost/x?y" ||
		e.Event.Request.Headers["x-own"] != "mine" || e.Event.Response.Status != 202 {
		t.Errorf("%+v", e)
	}
	for name := range e.Event.Request.Headers {
		if strings.HasPrefix(name, "x-nk") {
			t.Errorf("an event tells %s", name)
		}
	}
	if status, _ := w.get("a", "/throw"); status != 500 {
		t.Error(status)
	}
	if e := <-got; e.Outcome != "exception" || len(e.Exceptions) != 1 || e.Exceptions[0].Message != "boom" {
		t.Errorf("%+v", e)
	}
	// It stays so when a version follows, and when a cron needs another process.
	w.deploy(worker("a", "2", script))
	if _, err := w.rt.Scheduled(t.Context(), "a", "1 * * * *", time.Now()); err != nil {
		t.Fatal(err)
	}
	if e := <-got; e.Outcome != "ok" || e.Event.Cron != "1 * * * *" || e.Logs[0].Level != "warn" {
		t.Errorf("%+v", e)
	}
	if err := w.rt.Trace(t.Context(), "a", false); err != nil {
		t.Fatal(err)
	}
	w.want("a", "/after", 202, "ok")
	if err := w.rt.Trace(t.Context(), "nobody", true); !errors.Is(err, workerd.ErrNotFound) {
		t.Error(err)
	}
}

func TestTraceOfScript(t *testing.T) {
	w, got := startTraced(t)
	sw := worker("a", "1", `addEventListener("fetch", e => { console.log("from a script"); e.respondWith(new Response("sw")) })`)
	sw.ServiceWorker = true
	_ = w.rt.Load(sw)
	if err := w.rt.Trace(t.Context(), "a", true); err != nil || w.status("a").PID != 0 {
		t.Fatalf("one that does not run was started: %v", err)
	}
	w.want("a", "/", 200, "sw")
	if e := <-got; e.Logs[0].Message[0] != "from a script" {
		t.Errorf("%+v", e)
	}
	// What a request logs is told up to 256 KiB; a last line says that more was said.
	w.deploy(worker("a", "3", `export default {fetch(r) {
		const size = Number(new URL(r.url).search.slice(1));
		for (let i = 0; i < 10; i++) console.log("x".repeat(size));
		return new Response("ok") }}`))
	for size, want := range map[int]int{20 << 10: 10, 40 << 10: 7} {
		w.want("a", fmt.Sprint("/?", size), 200, "ok")
		if e := <-got; len(e.Logs) != want || e.Truncated != (want < 10) {
			t.Errorf("10 lines of %d bytes: %d, truncated %v", size, len(e.Logs), e.Truncated)
		}
	}
}

// Each request may use so much and no more; requests at once share what they
// brought, and nothing is left over for the next.
func TestSpend(t *testing.T) {
	var w *world
	arrived, goOn := make(chan string), make(chan struct{})
	left := make(chan int, 10)
	socket := service(t, func(rw http.ResponseWriter, r *http.Request) {
		token := r.Header.Get(workerd.HeaderToken)
		arrived <- token
		<-goOn
		n := 0
		for ; w.rt.Spend(token, workerd.Subrequest); n++ {
			if n == 0 && !w.rt.Spend(token, workerd.KVOperation) {
				t.Error("one resource was spent with the other")
			}
		}
		left <- n
	})
	w = start(t, workerd.Options{Egress: socket})
	w.deploy(worker("a", "1", `export default {async fetch(r, env, ctx) {
		if (r.url.endsWith("/later")) { ctx.waitUntil(scheduler.wait(50).then(() => fetch("http://x/"))); return new Response("ok") }
		await fetch("http://x/"); return new Response("ok") }}`))
	if w.rt.Spend("", workerd.KVOperation) || w.rt.Spend("forged", workerd.Subrequest) {
		t.Error("anybody may spend")
	}
	var clients sync.WaitGroup
	get := func(path string) { clients.Go(func() { w.want("a", path, 200, "ok") }) }
	for range 2 { // nothing is carried over
		get("/")
		<-arrived
		goOn <- struct{}{}
		if n := <-left; n != workerd.MaxSpend {
			t.Errorf("one alone spent %d", n)
		}
		clients.Wait()
	}
	get("/")
	get("/")
	<-arrived
	token := <-arrived
	if w.rt.Spend(token, workerd.Resource(-1)) || w.rt.Spend(token, workerd.Resource(2)) {
		t.Error("there is no such resource")
	}
	goOn <- struct{}{}
	goOn <- struct{}{}
	if n := <-left + <-left; n != 2*workerd.MaxSpend {
		t.Errorf("two at once spent %d", n)
	}
	clients.Wait()
	// What is left to waitUntil uses what was left.
	get("/later")
	clients.Wait()
	<-arrived
	for range 10 {
		w.rt.Spend(token, workerd.Subrequest)
	}
	goOn <- struct{}{}
	if n := <-left; n != workerd.MaxSpend-10 {
		t.Errorf("waitUntil spent %d", n)
	}
}

func TestVersionMetadata(t *testing.T) {
	w := start(t, workerd.Options{})
	v := worker("a", "5e3f", answering(`JSON.stringify([env.GIVEN, env.OWN, env.PART])`))
	v.Bindings = []workerd.Binding{
		{Name: "GIVEN", Kind: workerd.BindVersion, Value: `{"id":"x","tag":"t","timestamp":"2026-01-01T00:00:00Z"}`},
		{Name: "OWN", Kind: workerd.BindVersion},
		{Name: "PART", Kind: workerd.BindVersion, Value: `{"tag":"t"}`},
	}
	w.deploy(v)
	w.want("a", "/", 200, `[{"id":"x","tag":"t","timestamp":"2026-01-01T00:00:00Z"},{"id":"5e3f","tag":"","timestamp":""},{"id":"5e3f","tag":"t","timestamp":""}]`)
}

// What a Worker uses is told, over all its processes.
func TestUsage(t *testing.T) {
	w := start(t, workerd.Options{Linger: time.Millisecond})
	w.deploy(worker("a", "1", `export default {fetch() { let n = 0; for (let i = 0; i < 1e8; i++) n += i % 7; return new Response(String(n > 0)) }}`))
	w.want("a", "/", 200, "true")
	s := w.status("a")
	if s.MemoryBytes < 10<<20 || s.CPU < 30*time.Millisecond {
		t.Errorf("%+v", s)
	}
	w.deploy(worker("a", "2", answering(`"ok"`)))
	until(t, "the first has ended", func() bool { return w.rt.Processes() == 1 })
	until(t, "its CPU counts", func() bool { return w.status("a").CPU >= s.CPU })
	_ = w.rt.Load(worker("b", "1", answering(`"ok"`)))
	if s := w.status("b"); s.MemoryBytes != 0 || s.CPU != 0 {
		t.Errorf("%+v", s)
	}
}

// Serve leaves alone what is not there.
func TestServe(t *testing.T) {
	w := start(t, workerd.Options{})
	rec, r := &discard{header: http.Header{}}, w.request("GET", "a", "/", nil)
	if w.rt.Serve(rec, r, "a") || rec.status != 0 || len(rec.header) > 0 {
		t.Errorf("answered %d %v", rec.status, rec.header)
	}
	w.deploy(worker("a", "1", answering(`"ok"`)))
	if !w.rt.Serve(rec, r, "a") || rec.status != 200 {
		t.Errorf("status %d", rec.status)
	}
	w.rt.Remove("a")
	if w.rt.Serve(rec, r, "a") {
		t.Error("removed, and found")
	}
}

// A service binding may name an export other than the default one.
func TestEntrypoints(t *testing.T) {
	var w *world
	services := service(t, func(rw http.ResponseWriter, r *http.Request) {
		name, entrypoint := r.Header.Get(workerd.HeaderService), r.Header.Get(workerd.HeaderEntrypoint)
		if !w.rt.ServeEntrypoint(rw, r, name, entrypoint) {
			rw.WriteHeader(404)
		}
	})
	w = start(t, workerd.Options{Services: services, Linger: time.Millisecond})
	b := worker("b", "1", `import {WorkerEntrypoint, DurableObject} from "cloudflare:workers";
		export default {fetch() { return new Response("default") }};
		export const Plain = {fetch() { return new Response("plain") }};
		export class Class extends WorkerEntrypoint { fetch() { return new Response("class") } };
		export class Throws extends WorkerEntrypoint { fetch() { throw new Error("boom") } };
		export class Object_ extends DurableObject {}`)
	_ = w.rt.Load(b)
	a := worker("a", "1", answering(`await env[r.url.split("/").pop()].fetch("http://x/").then(async r => r.status + " " + await r.text())`))
	for _, name := range []string{"", "Plain", "Class", "Throws", "Nobody", "Object_"} {
		a.Bindings = append(a.Bindings, workerd.Binding{Name: "to" + name, Kind: workerd.BindService, Value: "b", Entrypoint: name})
	}
	w.deploy(a)
	for _, c := range []struct{ path, want string }{
		{"/toNobody", "404 error: the Worker has no such entrypoint: Nobody\n"}, // nothing runs yet
		{"/to", "200 default"}, {"/toPlain", "200 plain"}, {"/toClass", "200 class"},
		{"/toThrows", "500 error code: 1101\n"},
		{"/toNobody", "404 error: the Worker has no such entrypoint: Nobody\n"},
		{"/toObject_", "500 error code: 1101\n"}, // not one of these
		{"/to", "200 default"}, {"/toClass", "200 class"}, {"/toPlain", "200 plain"},
	} {
		w.want("a", c.path, 200, c.want)
	}
	starts := w.status("b").Starts
	w.want("a", "/toClass", 200, "200 class")
	if s := w.status("b"); s.Starts != starts || s.Crashes != 0 {
		t.Errorf("%+v, %d starts before", s, starts)
	}
	// A version without one of those that were asked for is deployed all the same.
	w.deploy(worker("b", "2", `export const Plain = {fetch() { return new Response("new") }}; export default {fetch() { return new Response("new default") }}`))
	w.want("a", "/to", 200, "200 new default")
	w.want("a", "/toPlain", 200, "200 new")
	w.want("a", "/toClass", 200, "404 error: the Worker has no such entrypoint: Class\n")
	w.want("a", "/toPlain", 200, "200 new")
}
