package pgtest

import (
	"net"
	"os"
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
