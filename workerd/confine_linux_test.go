package workerd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// confined runs a command as a Worker's process is run, and returns what it said.
func confined(t *testing.T, opts Options, name string, args ...string) string {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	dir, out := t.TempDir(), make(chan string)
	onOwnThread(func() {
		var buf bytes.Buffer
		var w walls
		cmd, err := confine(func() *exec.Cmd {
			cmd := exec.Command(name, args...)
			cmd.Stdout, cmd.Stderr = &buf, &buf
			return cmd
		}, dir, &opts, &w)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			buf.WriteString(err.Error())
		}
		out <- buf.String()
	})
	return <-out
}

// What a process may not reach, and the control: without confinement it may.
func TestConfinement(t *testing.T) {
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	if open, err := exec.Command(cat, "/etc/passwd").Output(); err != nil || !strings.Contains(string(open), "root") {
		t.Fatalf("control: %q %v", open, err)
	}
	if got := confined(t, Options{}, cat, "/dev/null"); got != "" {
		t.Errorf("a process does not run: %s", got)
	}
	for _, path := range []string{"/etc/passwd", "/proc/self/environ", "/tmp", os.Args[0]} {
		if got := confined(t, Options{}, cat, path); !strings.Contains(got, "Permission denied") {
			t.Errorf("%s can be read: %.100s", path, got)
		}
	}
}

// The thread that was restricted is gone with its process: ours may do all.
// What the server inherited open, from a shell or a supervisor, a Worker's process
// does not get.
func TestNothingIsInherited(t *testing.T) {
	file := filepath.Join(t.TempDir(), "open")
	fd, err := syscall.Open(file, syscall.O_CREAT|syscall.O_WRONLY, 0o600) // not closed on exec
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	write := "echo written >&" + strconv.Itoa(fd)
	if out, err := exec.Command(bash, "-c", write).CombinedOutput(); err != nil {
		t.Fatalf("control: %v %s", err, out)
	}
	if got := confined(t, Options{}, bash, "-c", write); !strings.Contains(got, "Bad file descriptor") {
		t.Errorf("a Worker's process has a file of the server: %q", got)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "written\n" {
		t.Errorf("%q %v", content, err)
	}
}

func TestConfinementIsTheThreads(t *testing.T) {
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		confined(t, Options{}, cat, "/dev/null")
		if _, err := os.ReadFile("/etc/passwd"); err != nil {
			t.Fatal(err)
		}
	}
}

// A kept connection that has ended costs a request that can be repeated nothing,
// and any other one a look.
func TestKeptConnections(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	served := make(chan struct{})
	go func() { // one answer per connection, which then ends without a word
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-NK-OK: 1\r\nContent-Length: 2\r\n\r\nok")
			}
			_ = c.Close()
		}
	}()
	p, door := &process{rt: New(Options{}), dead: make(chan struct{})}, &pool{socket: l.Addr().String()}
	for i := range 20 {
		for _, method := range []string{"GET", "POST"} {
			rec := httptest.NewRecorder()
			x := exchange{p: p, door: door, w: rec, r: httptest.NewRequest(method, "http://a/", nil)}
			if err := x.run(); err != nil || rec.Body.String() != "ok" {
				t.Fatalf("%s %d: %v %q", method, i, err, rec.Body)
			}
			if len(door.idle) != 1 {
				t.Fatalf("%d connections are kept", len(door.idle))
			}
			for deadline := time.Now().Add(10 * time.Second); door.idle[0].quiet(); {
				if time.Now().After(deadline) {
					t.Fatal("the connection does not end")
				}
			}
		}
	}
	// The control: unlooked at, a request that must not be repeated is lost.
	x := exchange{p: p, door: door, w: httptest.NewRecorder(), r: httptest.NewRequest("POST", "http://a/", nil)}
	x.c = door.idle[0]
	if err := x.once(); !errors.Is(err, errStale) {
		t.Errorf("control: %v", err)
	}
	_ = l.Close()
	<-served
}

func TestUsage(t *testing.T) {
	cpu, resident, err := usage(os.Getpid())
	if err != nil || resident < 1<<20 || cpu < 0 {
		t.Errorf("%v %d %v", cpu, resident, err)
	}
}

func TestBackoff(t *testing.T) {
	if backoff(freeCrashes) != 0 || backoff(freeCrashes+1) != firstBackoff || backoff(freeCrashes+2) != 2*firstBackoff || backoff(1000) != maxBackoff {
		t.Error(backoff(freeCrashes), backoff(freeCrashes+1), backoff(freeCrashes+2), backoff(1000))
	}
}

// A process has what the kernel was asked for.
func TestProcessIsConfined(t *testing.T) {
	path, err := find("../test/workerd/node_modules/workerd/bin/workerd")
	if err != nil {
		t.Fatalf("no Workers runtime: run make deps (%v)", err)
	}
	dir, err := os.MkdirTemp("", "wd")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := New(Options{Path: path, Dir: dir})
	p, err := r.launch(t.Context().Done(), &Worker{Name: "a", Main: "a", CompatibilityDate: "2026-08-01",
		Modules: []Module{{Name: "a", Type: ESModule, Content: []byte("export default {}")}}}, extras{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.end("", DefaultStop)
	proc := "/proc/" + strconv.Itoa(p.pid) + "/"
	status, _ := os.ReadFile(proc + "status")
	limits, _ := os.ReadFile(proc + "limits")
	adjusted, _ := os.ReadFile(proc + "oom_score_adj")
	environment, _ := os.ReadFile(proc + "environ")
	if !strings.Contains(string(status), "NoNewPrivs:\t1") || !strings.Contains(string(status), "CapEff:\t0000000000000000") && r.Isolated() {
		t.Errorf("%s", status)
	}
	data := strconv.FormatInt(r.opts.MemoryBytes+reservedBytes, 10)
	if got := strings.Join(strings.Fields(string(limits)), " "); !strings.Contains(got, "Max data size "+data+" "+data) || !strings.Contains(got, "Max core file size 0 0") {
		t.Errorf("%s", limits)
	}
	if string(adjusted) != "500\n" || string(environment) != "TZ=UTC\x00" {
		t.Errorf("oom_score_adj %q, environment %q", adjusted, environment)
	}
	if !r.Isolated() {
		t.Log("the kernel gives no namespaces here")
		return
	}
	for _, kind := range []string{"user", "net", "pid", "mnt", "ipc", "uts"} {
		theirs, err := os.Readlink(proc + "ns/" + kind)
		ours, _ := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || theirs == ours {
			t.Errorf("namespace %s: %q and ours %q (%v)", kind, theirs, ours, err)
		}
	}
}

// Where namespaces are refused from the first, Workers run without, unless that is
// forbidden; where they were given once, a refusal is an error.
func TestRefusedNamespaces(t *testing.T) {
	opts := Options{Logger: slog.New(slog.DiscardHandler)}
	w := walls{}
	if err := w.refused(syscall.ENOMEM, &opts); !errors.Is(err, syscall.ENOMEM) || w.shared.Load() {
		t.Errorf("another error: %v, %v", err, w.shared.Load())
	}
	if err := w.refused(syscall.ENOSPC, &opts); err != nil || !w.shared.Load() {
		t.Errorf("from the first: %v, %v", err, w.shared.Load())
	}
	w = walls{}
	w.given.Store(true)
	if err := w.refused(syscall.ENOSPC, &opts); !errors.Is(err, syscall.ENOSPC) || w.shared.Load() {
		t.Errorf("after they were given: %v, %v", err, w.shared.Load())
	}
	w = walls{}
	opts.RequireIsolation = true
	if err := w.refused(syscall.EPERM, &opts); !errors.Is(err, syscall.EPERM) || w.shared.Load() {
		t.Errorf("required: %v, %v", err, w.shared.Load())
	}
}
