// Package process builds the real nearkey and runs it as a process of its own,
// for the tests and programs that watch it from outside and kill it. It keeps
// nothing; what a killed process loses is what its user wants to see.
package process

import (
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
	*Program
	URL       string // http://host:port
	AccountID string
	Token     string
}

// Serve starts `nearkey serve` on a data directory and a port that it chooses,
// and waits until it is ready. The process does not outlive its starter.
func Serve(ctx context.Context, binary, data string, args ...string) (*Server, error) {
	address := filepath.Join(data, "listen-address")
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = Environ()
	program, err := Start(cmd)
	if err != nil {
		return nil, err
	}
	s := &Server{Program: program}
	if err := s.awaitReady(ctx, address); err != nil {
		s.Kill()
		return nil, fmt.Errorf("start nearkey: %w; it said:\n%s", err, s.Output())
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

// Environ is the environment without the variables that change what nearkey does.
func Environ() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NEARKEY_") && !strings.HasPrefix(v, "CLOUDFLARE_") {
			env = append(env, v)
		}
	}
	return env
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
		case <-s.Done():
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

// Stop tells the process to end, and returns when it is gone.
func (s *Server) Stop() error {
	if err := s.End(syscall.SIGTERM, stopTimeout); err != nil {
		return fmt.Errorf("stop nearkey: %w; it said:\n%s", err, s.Output())
	}
	return nil
}
