package compat

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout = time.Minute // for a server to be ready
	stopTimeout  = time.Minute // for a server to end after SIGTERM
)

// server is a running nearkey and the credentials of its owner.
type server struct {
	endpoint
	profile string
	workers *url.URL // where Workers answer: each under its name and this host
	email   string
	key     string // the legacy global key
	log     string // the file of what it prints
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process has ended
}

// The owner's e-mail in the configuration of every server.
const ownerEmail = "owner@nearkey.test"

// startServer starts the binary on new data in dir, with more arguments, and returns
// when it is ready.
func startServer(dir, profile string, args ...string) (*server, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "nearkey.toml")
	text := fmt.Sprintf("profile = %q\nemail = %q\n", profile, ownerEmail)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s := &server{profile: profile, email: ownerEmail, log: filepath.Join(dir, "log"), done: make(chan struct{})}
	out, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own descriptor
	s.cmd = exec.Command(shared.binary, append([]string{"serve", "--config", config, "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")} // no NEARKEY_ variables of the caller
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in its log
		close(s.done)
	}()
	if err := s.await(data); err != nil {
		_ = s.cmd.Process.Kill()
		<-s.done
		return nil, err
	}
	return s, nil
}

// await polls until the server is ready, and reads its address and credentials.
func (s *server) await(data string) error {
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		select {
		case <-s.done:
			return fmt.Errorf("the server ended at start; it said:\n%s", s.logTail())
		case <-time.After(5 * time.Millisecond):
		}
		address := line(filepath.Join(data, "listen-address"))
		if address == "" {
			continue // not yet written
		}
		res, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			continue
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			continue
		}
		if text := line(filepath.Join(data, "listen-address.workers")); text != "" {
			if s.workers, err = url.Parse(text); err != nil {
				return err
			}
		}
		s.base = "http://" + address + "/client/v4"
		s.account = line(filepath.Join(data, "account-id"))
		s.token = line(filepath.Join(data, "api-token"))
		s.key = line(filepath.Join(data, "api-key"))
		if s.account == "" || s.token == "" || s.key == "" {
			return fmt.Errorf("the server is ready, but a file of its credentials in %s is not", data)
		}
		return nil
	}
	return fmt.Errorf("the server is not ready after %s; it said:\n%s", startTimeout, s.logTail())
}

// line is the text of a file of one line, "" if it cannot be read.
func line(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// stop ends the server in order.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		<-s.done
		return fmt.Errorf("the server with profile %s ended before it was told to", s.profile)
	}
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("the server with profile %s did not end when told to", s.profile)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the server with profile %s ended with status %d", s.profile, code)
	}
	return nil
}

func (s *server) logTail() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-logTailBytes):])
}

// ownServer starts a server for one test alone.
func ownServer(t *testing.T) *server {
	t.Helper()
	s, err := startServer(t.TempDir(), "cloudflare")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the server of this test:\n%s", s.logTail())
		}
	})
	return s
}
