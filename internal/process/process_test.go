package process

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const stat = "4711 (a ) (b) S 17 4711 4711 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 100 1000 50 18446744073709551615\n"
	s, err := parseStat([]byte(stat))
	if want := (Stat{17, 2500 * time.Millisecond, 500 * time.Millisecond}); err != nil || s != want {
		t.Errorf("got %v, %v, want %v", s, err, want)
	}
	if _, err := parseStat([]byte("4711 (cut")); err == nil {
		t.Error("a stat that was cut short is accepted")
	}
}

func TestCPU(t *testing.T) {
	if _, err := CPU(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := CPU(os.Getpid(), 1<<30); err == nil {
		t.Error("a process that does not exist has used CPU")
	}
}

func startShell(t *testing.T, script string) *Program {
	t.Helper()
	p, err := Start(exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestProgram(t *testing.T) {
	p := startShell(t, "echo out; trap 'echo told; exit 0' TERM; echo err >&2; while :; do sleep 0.01; done")
	for !strings.Contains(p.Output(), "err") {
		time.Sleep(time.Millisecond)
	}
	if children, err := Children(os.Getpid()); err != nil || !slices.Contains(children, p.Pid()) {
		t.Errorf("children %v, %v", children, err)
	}
	if err := p.End(syscall.SIGTERM, time.Minute); err != nil || p.Output() != "out\nerr\ntold\n" {
		t.Errorf("it ended with %v, and said %q", err, p.Output())
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal to what has ended: %v", err)
	}
	if err := startShell(t, "exit 3").Err(); err == nil || !strings.Contains(err.Error(), "3") {
		t.Errorf("exit code 3: %v", err)
	}
	deaf := startShell(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	for !strings.Contains(deaf.Output(), "ready") {
		time.Sleep(time.Millisecond)
	}
	if err := deaf.End(syscall.SIGTERM, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end") {
		t.Errorf("it does not listen, and ended with %v", err)
	}
	select {
	case <-deaf.Done():
	default:
		t.Error("it was not killed")
	}
	if _, err := Start(exec.Command("/none")); err == nil {
		t.Error("what does not exist was started")
	}
}
