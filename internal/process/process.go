// Package process builds the real nearkey and runs it as a process of its own,
// for the tests and programs that watch it from outside and kill it. It keeps
// nothing; what a killed process loses is what its user wants to see.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	readyTimeout = 2 * time.Minute // for a server to answer
	stopTimeout  = time.Minute     // for a server to end after SIGTERM
	readyEvery   = 5 * time.Millisecond
)

// Build compiles the module's cmd/nearkey into dir and returns the path of the
// binary, or returns NEARKEY_BIN, an absolute path, if that is set.
func Build(ctx context.Context, dir string) (string, error) {
	if binary := os.Getenv("NEARKEY_BIN"); binary != "" {
		return binary, nil
	}
	binary := filepath.Join(dir, "nearkey")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "github.com/nearkey/nearkey/cmd/nearkey")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nearkey: %w\n%s", err, out)
	}
	return binary, nil
}

// Server is a running nearkey and the credentials of its root.
type Server struct {
	URL       string // http://host:port
	AccountID string
	Token     string

	cmd  *exec.Cmd
	out  *bytes.Buffer // what it prints; complete when done is closed
	done chan struct{} // closed when the process has ended
}

// Serve starts `nearkey serve` on a data directory and a port that it chooses,
// and waits until it is ready. The process does not outlive its starter.
func Serve(ctx context.Context, binary, data string, args ...string) (*Server, error) {
	address := filepath.Join(data, "listen-address")
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s := &Server{out: &bytes.Buffer{}, done: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, binary, append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	s.cmd.Env = withoutSettings(os.Environ())
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		_ = s.cmd.Wait() // how it ended is in what it printed
		close(s.done)
	}()
	if err := s.awaitReady(ctx, address); err != nil {
		s.Kill()
		return nil, fmt.Errorf("start nearkey: %w; it said:\n%s", err, s.out)
	}
	for file, to := range map[string]*string{"api-token": &s.Token, "account-id": &s.AccountID} {
		text, err := os.ReadFile(filepath.Join(data, file))
		if err != nil && !(errors.Is(err, os.ErrNotExist) && to == &s.AccountID) { // a proxy has no account
			s.Kill()
			return nil, err
		}
		*to = strings.TrimSpace(string(text))
	}
	return s, nil
}

// withoutSettings is an environment in which no variable changes a server.
func withoutSettings(env []string) (clean []string) {
	for _, v := range env {
		if !strings.HasPrefix(v, "NEARKEY_") && !strings.HasPrefix(v, "CLOUDFLARE_") {
			clean = append(clean, v)
		}
	}
	return clean
}

func (s *Server) awaitReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		if at, err := os.ReadFile(address); err == nil && s.ready(ctx, strings.TrimSpace(string(at))) {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *Server) ready(ctx context.Context, at string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	s.URL = "http://" + at
	return resp.StatusCode == http.StatusOK
}

// Kill ends the process as a power switch does, and returns when it is gone.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended already
	<-s.done
}

// Stop tells the process to end, and returns when it is gone.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop nearkey: %w", err)
	}
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		s.Kill()
		return fmt.Errorf("nearkey did not stop in %s", stopTimeout)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("nearkey stopped with exit code %d; it said:\n%s", code, s.out)
	}
	return nil
}

// Pid is the process's id.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Output is what the process printed; call it only after it has ended.
func (s *Server) Output() string {
	<-s.done
	return s.out.String()
}
