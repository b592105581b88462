package pgtest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestServer(t *testing.T) {
	s := Start(t, "work_mem=5MB")
	if got := s.Exec("show work_mem"); got != "5MB" {
		t.Errorf("work_mem is %q", got)
	}
	s.Exec("create table t (n int)", "insert into t values (1), (2)")
	s.Kill()
	if conn, err := net.DialTimeout("tcp", s.Address(), time.Second); err == nil {
		conn.Close()
		t.Error("a killed server takes connections")
	}
	s.Restart()
	if got := s.Exec("select n, 'x' from t order by n"); got != "1|x\n2|x" {
		t.Errorf("after a kill: %q", got)
	}
	s.Restart()
	s.RequirePassword("secret")
	if got := s.Exec("select count(*) from t"); got != "2" || !strings.Contains(s.URL(), "secret") {
		t.Errorf("with a password: %q", got)
	}
}

func TestFrozenServerDoesNotAnswer(t *testing.T) {
	s := Start(t)
	s.Stop()
	answer := make(chan error, 1)
	go func() {
		_, err := s.exec("select 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Errorf("a frozen server answered: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	s.Cont()
	if err := <-answer; err != nil {
		t.Errorf("after it was thawed: %v", err)
	}
	s.Stop() // the end of the test finds it frozen
}

func TestNothingIsLeftBehind(t *testing.T) {
	var dir, segment string
	t.Run("killed", func(t *testing.T) {
		s := Start(t)
		dir, segment = s.dir, strings.Fields(s.pidFile()[6])[1]
		if !shared(t, segment) {
			t.Fatalf("a running server has no segment %s of shared memory: the test shows nothing", segment)
		}
		s.Kill()
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if shared(t, segment) {
		t.Errorf("segment %s of shared memory is left", segment)
	}
}

// shared reports whether there is a segment of shared memory with this id.
func shared(t *testing.T, id string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Skipf("shared memory cannot be listed: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == id {
			return true
		}
	}
	return false
}

// A process that is killed takes its servers with it, a frozen one too.
func TestKilledProcessLeavesNothing(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestServersOfChild$")
	cmd.Env = append(os.Environ(), childVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(line)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	root, pids := fields[0], fields[1:]
	gone := until("nothing is left", func() bool {
		_, err := os.Stat(root)
		return os.IsNotExist(err) && !slices.ContainsFunc(pids, func(pid string) bool {
			n, err := strconv.Atoi(pid)
			return err != nil || alive(n)
		})
	})
	if gone != nil || len(pids) != 2 {
		t.Errorf("folder %s, servers %v: %v", root, pids, gone)
	}
}

const childVariable = "NEARKEY_TEST_PGTEST_CHILD"

// TestServersOfChild is the process of TestKilledProcessLeavesNothing.
func TestServersOfChild(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		t.Skip("only as a child")
	}
	running, frozen := Start(t), Start(t)
	frozen.Stop()
	fmt.Println(filepath.Dir(running.dir), running.pidFile()[0], frozen.pidFile()[0])
	select {} // until it is killed
}
