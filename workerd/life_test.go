package workerd_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// Not one request is lost while versions replace each other, and none sees an
// older version than one that it knows to be deployed.
func TestSwapUnderLoad(t *testing.T) {
	w := start(t, workerd.Options{Linger: 50 * time.Millisecond})
	version := func(i int) workerd.Worker {
		return worker("a", strconv.Itoa(i), answering(fmt.Sprintf(`"%d:" + await r.text()`, i)))
	}
	w.deploy(version(0))
	var deployed, requests atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	for range 4 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				known := deployed.Load()
				body := strconv.Itoa(i)
				res, err := client.Do(w.request("POST", "a", "/", strings.NewReader(body)))
				if err != nil {
					t.Error(err)
					return
				}
				text, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				at, rest, _ := strings.Cut(string(text), ":")
				if n, _ := strconv.Atoi(at); err != nil || res.StatusCode != 200 || rest != body || int64(n) < known {
					t.Errorf("status %d %q %v, known %d", res.StatusCode, text, err, known)
				}
				requests.Add(1)
			}
		})
	}
	for i := 1; i <= 10; i++ {
		w.deploy(version(i))
		deployed.Store(int64(i))
		before := requests.Load()
		until(t, "requests go on", func() bool { return requests.Load() > before+20 || t.Failed() })
	}
	close(stop)
	clients.Wait()
	until(t, "the old ones have ended", func() bool { return w.rt.Processes() == 1 })
}

// What a request left to waitUntil is done although its version was replaced.
func TestLinger(t *testing.T) {
	called := make(chan struct{})
	socket := service(t, func(http.ResponseWriter, *http.Request) { close(called) })
	w := start(t, workerd.Options{Egress: socket, Linger: time.Second})
	w.deploy(worker("a", "1", `export default {fetch(r, env, ctx) { ctx.waitUntil(scheduler.wait(200).then(() => fetch("http://x/"))); return new Response("ok") }}`))
	w.want("a", "/", 200, "ok")
	w.deploy(worker("a", "2", answering(`"two"`)))
	w.want("a", "/", 200, "two")
	select {
	case <-called:
	case <-time.After(10 * time.Second):
		t.Fatal("waitUntil was cut off")
	}
	until(t, "the old one has ended", func() bool { return w.rt.Processes() == 1 })
}

// Many that want a Worker that does not run start it once; when nobody wants it,
// it costs no process.
func TestDemandAndIdle(t *testing.T) {
	w := start(t, workerd.Options{Idle: 200 * time.Millisecond})
	for i := range 50 {
		if err := w.rt.Load(worker(fmt.Sprint("w", i), "1", answering(`"ok"`))); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.rt.Processes(); n != 0 {
		t.Fatalf("%d processes", n)
	}
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() { w.want("w7", "/", 200, "ok") })
	}
	all.Wait()
	if s := w.status("w7"); s.Starts != 1 || s.Requests != 30 {
		t.Errorf("%+v", s)
	}
	until(t, "it is idle", func() bool { return w.rt.Processes() == 0 })
	w.want("w7", "/", 200, "ok")
	if s := w.status("w7"); s.Starts != 2 || s.Crashes != 0 {
		t.Errorf("%+v", s)
	}
	// The same version again changes nothing, another one is started on demand.
	pid := w.status("w7").PID
	_ = w.rt.Load(worker("w7", "1", answering(`"ok"`)))
	if s := w.status("w7"); s.PID != pid {
		t.Errorf("%+v", s)
	}
	_ = w.rt.Load(worker("w7", "2", answering(`"new"`)))
	w.want("w7", "/", 200, "new")
	w.rt.Remove("w7")
	if status, _ := w.get("w7", "/"); status != 404 {
		t.Errorf("removed: status %d", status)
	}
}

func TestProcessLimit(t *testing.T) {
	w := start(t, workerd.Options{Processes: 2, Requests: 1})
	for _, name := range []string{"a", "b", "c"} {
		_ = w.rt.Load(worker(name, "1", `export default {async fetch(r) { if (r.url.endsWith("/hold")) await scheduler.wait(30000); return new Response("ok") }}`))
	}
	for _, name := range []string{"a", "b", "a", "c"} { // b was used longest ago
		w.want(name, "/", 200, "ok")
	}
	if w.status("a").PID == 0 || w.status("b").PID != 0 || w.status("c").PID == 0 {
		t.Errorf("%+v", w.rt.Statuses())
	}
	host := strings.TrimPrefix(w.url, "http://")
	hold := func(name string) {
		c := dial(t, host)
		_, _ = io.WriteString(c, "GET /hold HTTP/1.1\r\nHost: "+name+".x\r\n\r\n")
		until(t, name+" is busy", func() bool { return w.status(name).InFlight == 1 })
	}
	hold("a")
	if res, _ := w.do(w.request("GET", "a", "/", nil)); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("one past the requests of a process: %d", res.StatusCode)
	}
	hold("c")
	if status, _ := w.get("b", "/"); status != 503 {
		t.Errorf("no place is left: status %d", status)
	}
	if n := w.rt.Processes(); n != 2 {
		t.Errorf("%d processes", n)
	}
}

// Each limit ends the Worker that exceeds it, tells its clients, and nobody else
// notices.
func TestLimits(t *testing.T) {
	w := start(t, workerd.Options{CPU: time.Second, HeapBytes: 32 << 20, MemoryBytes: 200 << 20})
	w.deploy(worker("bad", "1", `export default {async fetch(r) {
		switch (new URL(r.url).pathname) {
		case "/loop": for (;;);
		case "/heap": { const a = []; for (;;) a.push(new Array(1000).fill(a.length)) }
		case "/buffers": { const a = []; for (;;) { const b = new Uint8Array(8 << 20); b.fill(1); a.push(b); await scheduler.wait(1) } }
		}
		return new Response("ok") }}`))
	stop := w.neighbour("good")
	for i, c := range []struct{ path, limit string }{{"/loop", "CPU"}, {"/heap", "memory"}, {"/buffers", "memory"}} {
		r := w.request("GET", "bad", c.path, nil)
		r.Header.Set("Accept", "text/html")
		res, body := w.do(r)
		if res.StatusCode != 503 || !strings.Contains(body, "Error 1102") || !strings.Contains(body, "("+c.limit+")") {
			t.Errorf("%s: %d %q", c.path, res.StatusCode, body)
		}
		w.want("bad", "/", 200, "ok")
		if s := w.status("bad"); s.Crashes != int64(i+1) {
			t.Errorf("%s: %+v", c.path, s)
		}
	}
	stop()
}

// A Worker may ask for less CPU than others have, not for more, and its start is
// not counted.
func TestOwnCPU(t *testing.T) {
	w := start(t, workerd.Options{CPU: time.Second})
	for name, asked := range map[string]time.Duration{"less": time.Millisecond, "more": time.Hour} {
		v := worker(name, "1", `let n = 0; for (let i = 0; i < 3e7; i++) n = (n + i) % 7;
			export default {fetch(r) { if (r.url.endsWith("/loop")) for (;;); return new Response("ok") }}`)
		v.CPU = asked
		_ = w.rt.Load(v)
		w.want(name, "/", 200, "ok")
		before := w.status(name)
		w.want(name, "/loop", 503, "error code: 1102\n")
		until(t, "its end and its CPU count", func() bool { s := w.status(name); return s.Crashes == 1 && s.CPU > before.CPU })
		if s := w.status(name); s.Crashes != 1 || name == "less" && s.CPU-before.CPU > 900*time.Millisecond {
			t.Errorf("%s: %+v before %+v", name, s, before)
		}
	}
}

// A Worker that crashes again and again is held back, and only it.
func TestCrashesAreHeldBack(t *testing.T) {
	w := start(t, workerd.Options{})
	w.deploy(worker("a", "1", answering(`"ok"`)))
	for i := 0; ; i++ {
		status, _ := w.get("a", "/")
		if status == 503 {
			break
		}
		if status != 200 || i > 20 {
			t.Fatalf("crash %d: status %d", i, status)
		}
		s := w.status("a")
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the crash is noticed", func() bool { return w.status("a").Crashes == s.Crashes+1 })
	}
	w.deploy(worker("a", "2", answering(`"repaired"`)))
	w.want("a", "/", 200, "repaired")
}

func TestMissingRuntime(t *testing.T) {
	w := start(t, workerd.Options{Path: "/nowhere/workerd"})
	if err := w.rt.Ready(); !errors.Is(err, workerd.ErrMissing) {
		t.Errorf("ready: %v", err)
	}
	if err := w.rt.Deploy(t.Context(), worker("a", "1", "")); !errors.Is(err, workerd.ErrMissing) {
		t.Errorf("deploy: %v", err)
	}
	if err := w.rt.Load(worker("a", "1", answering(`"ok"`))); err != nil {
		t.Fatal(err)
	}
	if status, body := w.get("a", "/"); status != 503 || !strings.Contains(body, "not installed") {
		t.Errorf("%d %q", status, body)
	}
}

// npm's workerd is a script; what it stands for is found beside it.
func TestScriptIsNotStarted(t *testing.T) {
	shim, err := filepath.Abs("../test/workerd/node_modules/workerd/bin/workerd")
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, workerd.Options{Path: shim})
	w.deploy(worker("a", "1", answering(`"ok"`)))
	w.want("a", "/", 200, "ok")
}

func TestFolderIsOurs(t *testing.T) {
	w := start(t, workerd.Options{})
	if err := w.rt.Ready(); err != nil {
		t.Fatal(err)
	}
	other := workerd.New(workerd.Options{Path: binary(t), Dir: w.dir})
	if err := other.Ready(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two share a folder: %v", err)
	}
	if info, err := os.Stat(w.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// At the end requests in flight are answered, a spinning Worker is killed, and
// nothing is left: no process, no file, no goroutine.
func TestEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	w := start(t, workerd.Options{Stop: 500 * time.Millisecond})
	w.deploy(worker("a", "1", answering(`"ok"`)))
	w.deploy(worker("a", "2", answering(`"ok"`))) // the first one lingers
	w.deploy(worker("spin", "1", `export default {fetch() { for (;;); }}`))
	c := dial(t, strings.TrimPrefix(w.url, "http://"))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: spin.x\r\n\r\n")
	until(t, "it spins", func() bool { return w.status("spin").InFlight == 1 })
	pids := []int{w.status("a").PID, w.status("spin").PID}
	w.end()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d lives", pid)
		}
	}
	if err := w.rt.Deploy(t.Context(), worker("a", "3", answering(`"ok"`))); !errors.Is(err, workerd.ErrClosed) {
		t.Errorf("deploy after the end: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// A server that is killed takes its Workers with it.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("WORKERD_TEST_CHILD"); dir != "" {
		rt := workerd.New(workerd.Options{Path: binary(t), Dir: dir})
		if err := rt.Deploy(t.Context(), worker("a", "1", answering(`"ok"`))); err != nil {
			t.Fatal(err)
		}
		fmt.Println("pid", rt.Statuses()[0].PID)
		select {}
	}
	dir, err := os.MkdirTemp("", "wd")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	child := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	child.Env = append(os.Environ(), "WORKERD_TEST_CHILD="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	until(t, "the Worker's process has ended", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") // nobody may reap it here
	})
	// The next server cleans up.
	rt := workerd.New(workerd.Options{Path: binary(t), Dir: dir})
	if err := rt.Ready(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "gen-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
