package workers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// metric reads a figure from the page for Prometheus; one that is not there is 0.
func (w *world) metric(name string) float64 {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.URL+"/metrics", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		w.t.Fatal(res.StatusCode, err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				w.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// running returns the processes of Workers.
func (w *world) running() []int {
	w.t.Helper()
	pids, err := process.Children(w.Pid())
	if err != nil {
		w.t.Fatal(err)
	}
	return pids
}

// A load is clients that ask a Worker again and again.
type load struct {
	all        sync.WaitGroup
	stop       context.CancelFunc
	sent, lost atomic.Int64
}

// ask starts clients that send one request after the other; good tells whether an
// answer is what it has to be.
func (w *world) ask(clients int, method, host, path, body string, good func(answer) bool) *load {
	ctx, cancel := context.WithCancel(w.t.Context())
	l := &load{stop: cancel}
	for range clients {
		l.all.Go(func() {
			for ctx.Err() == nil {
				a, err := do(context.WithoutCancel(ctx), method, w.workers, host, path, body)
				l.sent.Add(1)
				if err == nil && good(a) {
					continue
				}
				if l.lost.Add(1) <= 10 {
					w.t.Logf("%s %s%s: %v, %d %.200q", method, host, path, err, a.status, a.body)
				}
			}
		})
	}
	return l
}

// further waits until n more requests were sent.
func (l *load) further(t *testing.T, n int64) {
	t.Helper()
	from := l.sent.Load()
	eventually(t, "requests go on", func() bool { return l.sent.Load() >= from+n })
}

// end ends the clients and returns how many requests were sent, and not answered as
// they should be.
func (l *load) end() (sent, lost int64) {
	l.stop()
	l.all.Wait()
	return l.sent.Load(), l.lost.Load()
}

func is(status int, body string) func(answer) bool {
	return func(a answer) bool { return a.status == status && a.body == body }
}

// A Worker's process that is killed, or stopped for ever, costs at most the requests
// that are in flight in it; those that can be repeated are.
func TestProcessKilledUnderLoad(t *testing.T) {
	w := start(t)
	w.deploy("victim", script{code: `export default { async fetch(request) { return new Response("ok " + await request.text()); } }`})
	w.want("victim", "/", "ok ")
	const clients = 4
	crashes := 0.0
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		pids := w.running()
		if len(pids) != 1 {
			t.Fatalf("processes of Workers: %v", pids)
		}
		host := "victim." + w.domain
		gets := w.ask(clients, http.MethodGet, host, "/", "", is(200, "ok "))
		posts := w.ask(clients, http.MethodPost, host, "/", "body", is(200, "ok body"))
		posts.further(t, 20)
		if err := syscall.Kill(pids[0], signal); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the process is replaced", func() bool { now := w.running(); return len(now) == 1 && now[0] != pids[0] })
		gets.further(t, 40)
		posts.further(t, 40)
		sent, lost := gets.end()
		if lost > clients {
			t.Errorf("%v: %d of %d GETs were lost, at most %d were in flight", signal, lost, sent, clients)
		}
		if sent, lost := posts.end(); lost > clients {
			t.Errorf("%v: %d of %d POSTs were lost, at most %d were in flight", signal, lost, sent, clients)
		}
		crashes++
		if n := w.metric("nearkey_workers_crashes_total"); n != crashes {
			t.Errorf("%v: %v crashes are counted, want %v", signal, n, crashes)
		}
		if n := w.metric(fmt.Sprintf(`nearkey_worker_crashes_total{account="%s",worker="victim"}`, w.AccountID)); n != crashes {
			t.Errorf("%v: %v crashes of the Worker are counted, want %v", signal, n, crashes)
		}
	}
}

// Counters only grow, also when what they counted is gone.
func TestCountersNeverGoBack(t *testing.T) {
	w := start(t)
	name := "nearkey_workers_exceptions_total"
	ofWorker := fmt.Sprintf(`nearkey_worker_exceptions_total{account="%s",worker="throws"}`, w.AccountID)
	for n := 1.0; n <= 3; n++ {
		w.deploy("throws", script{code: fmt.Sprintf(`export default { fetch() { throw new Error("%v"); } }`, n)})
		if a := w.get("throws", "/"); a.status != 500 {
			t.Fatalf("%d %q", a.status, a.body)
		}
		if total, its := w.metric(name), w.metric(ofWorker); total != n || its != n {
			t.Errorf("after %v exceptions the counters have %v and %v", n, total, its)
		}
	}
	w.must(http.MethodDelete, "/workers/scripts/throws", nil, nil)
	eventually(t, "it is gone", func() bool { return w.get("throws", "/").status == 404 })
	if n := w.metric(name); n != 3 {
		t.Errorf("after the Worker was deleted the counter has %v, want 3", n)
	}
}

// files returns the limit on open files that leaves a server so many more.
func (w *world) files(more int) (limit uint64) {
	w.t.Helper()
	for ; more >= 0; limit++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", w.Pid(), limit)); err != nil {
			more--
		}
	}
	return limit - 1
}

// A Worker that cannot be started because this server may open no more files is
// answered for at once, and starts as soon as it may.
func TestNoMoreFiles(t *testing.T) {
	w := start(t)
	w.deploy("starts", script{code: `export default { fetch() { return new Response("ok"); } }`})
	if a := w.get("none", "/"); a.status != 404 { // the connection is kept
		t.Fatal(a)
	}
	prlimit := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "prlimit", append([]string{"--pid", strconv.Itoa(w.Pid())}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	before := prlimit("--nofile", "--output", "SOFT", "--noheadings", "--raw")
	prlimit(fmt.Sprintf("--nofile=%d:", w.files(2)))
	eventually(t, "it says that it cannot be started", func() bool {
		a := w.get("starts", "/")
		return a.status == http.StatusServiceUnavailable && strings.Contains(a.body, "the Worker cannot be started")
	})
	kind, form := script{code: `export default { fetch() { return new Response("new"); } }`}.form(t)
	if status, e := w.call(http.MethodPut, "/workers/scripts/starts", kind, form); e.Success || status < 500 {
		t.Errorf("a deploy that cannot be tried: %d %+v", status, e)
	} else {
		t.Logf("%d %+v", status, e.Errors)
	}
	prlimit("--nofile=" + before + ":")
	nearkeytest.Eventually(t, "it starts", func() error {
		if a := w.get("starts", "/"); a.status != 200 {
			return fmt.Errorf("%d %q", a.status, a.body)
		}
		return nil
	})
	if !strings.Contains(w.Output(), "too many open files") {
		t.Error("the log does not say why it was not started")
	}
	left, err := filepath.Glob(filepath.Join(w.data, "*", "gen-*"))
	if err != nil || len(left) > 1 {
		t.Errorf("folders of processes: %v, %v", left, err)
	}
}

// Where the control group of a server allows no further process, the Worker that was
// idle longest makes room, and the server keeps what it needs itself.
func TestFewProcesses(t *testing.T) {
	t.Parallel()
	group := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(group); err != nil {
		group = "/sys/fs/cgroup"
	}
	group = filepath.Join(group, fmt.Sprintf("nearkey-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o700); err != nil {
		t.Skipf("a control group cannot be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Join(group, "pids.max")); err != nil {
		t.Skipf("the control group does not count processes: %v", err)
	}
	w := start(t)
	const workers = 8
	for i := range workers {
		w.deploy(fmt.Sprint("w", i), says(fmt.Sprint(i), 0))
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for file, n := range map[string]int{"pids.max": len(threads) + 45, "cgroup.procs": w.Pid()} {
		if err := os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(n)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * workers {
		w.want(fmt.Sprint("w", i%workers), "/", strconv.Itoa(i%workers))
	}
	if n := len(w.running()); n >= workers {
		t.Errorf("control: %d processes run, of %d Workers: there was room for all", n, workers)
	}
}
