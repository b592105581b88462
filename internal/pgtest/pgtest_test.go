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
	var dir string
	segments := func() string {
		text, err := os.ReadFile("/proc/sysvipc/shm")
		if err != nil {
			t.Skipf("shared memory cannot be listed: %v", err)
		}
		return string(text)
	}
	before := strings.Count(segments(), "\n")
	t.Run("killed", func(t *testing.T) {
		s := Start(t)
		dir = s.dir
		s.Kill()
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if after := strings.Count(segments(), "\n"); after > before+2 { // other processes come and go
		t.Errorf("%d segments of shared memory before, %d after", before, after)
	}
}
