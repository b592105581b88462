package workerd

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
)

// confined runs a command as a Worker's process is run, and returns what it said.
func confined(t *testing.T, opts Options, name string, args ...string) string {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	dir, out := t.TempDir(), make(chan string)
	onOwnThread(func() {
		var buf bytes.Buffer
		var shared atomic.Bool
		cmd, err := confine(func() *exec.Cmd {
			cmd := exec.Command(name, args...)
			cmd.Stdout, cmd.Stderr = &buf, &buf
			return cmd
		}, dir, &opts, &shared)
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
