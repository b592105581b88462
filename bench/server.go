package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	startTimeout = 2 * time.Minute // for a server to answer
	stopTimeout  = time.Minute     // for a server to end after SIGTERM
)

// server is a process that serves HTTP on loopback.
type server struct {
	*process.Program
	path string
	addr string
	log  string // the file of what it prints
	pids []int  // it and its workers
}

// start runs a program until stop or kill is called. With pinned it gets the
// first core for itself; the client then keeps to the others.
func start(ctx context.Context, log string, pinned bool, program string, args ...string) (*server, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own descriptor
	if pinned {
		args = append([]string{"-c", "0", program}, args...)
		program = "taskset"
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if pinned {
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // idle Ps would spin, and count
	}
	running, err := process.Start(cmd)
	if err != nil {
		return nil, err
	}
	return &server{Program: running, path: cmd.Path, log: log, pids: []int{running.Pid()}}, nil
}

// stop ends the server in order, and returns when it is gone.
func (s *server) stop() error {
	if err := s.End(syscall.SIGTERM, stopTimeout); err != nil {
		return s.failed(err.Error())
	}
	return nil
}

// failed is an error with the end of what the server printed.
func (s *server) failed(what string) error {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %s; it said:\n%s", s.path, what, text[max(0, len(text)-2000):])
}

// await tries until a request is answered with 200.
func (s *server) await(addr func() (string, error), path string) error {
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		select {
		case <-s.Done():
			return s.failed("it ended at start")
		case <-time.After(2 * time.Millisecond):
		}
		at, err := addr()
		if err != nil {
			continue // not yet written
		}
		if status, err := once(at, path); err == nil && status == 200 {
			s.addr = at
			return nil
		}
	}
	return s.failed("it does not answer " + path)
}

// once is the status of one GET on a connection of its own.
func once(addr, path string) (int, error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	status, _, err := c.do([]byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n"))
	return status, err
}

// nearkey is a running nearkey and the credentials of its root.
type nearkey struct {
	*server
	data, account, token string
	opened               time.Duration // from exec to the first ready answer
}

// startNearkey runs the binary on a data folder. Port 0 lets it choose one, which
// it writes to the folder.
func (b *bench) startNearkey(ctx context.Context, data string, pinned bool, more ...string) (*nearkey, error) {
	binary, err := filepath.Abs(b.nearkey)
	if err != nil {
		return nil, err
	}
	addrFile := filepath.Join(data, "listen-address")
	if err := os.Remove(addrFile); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	config := filepath.Join(b.dir, "nearkey.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "memory_bytes = \"%dMiB\"\n", b.memoryMiB), 0o600); err != nil {
		return nil, err
	}
	began := time.Now()
	args := append([]string{"serve", "--config", config, "--data", data, "--listen", "127.0.0.1:0"}, more...)
	s, err := start(ctx, filepath.Join(b.dir, "nearkey.log"), pinned, binary, args...)
	if err != nil {
		return nil, err
	}
	n := &nearkey{server: s, data: data}
	if err := s.await(func() (string, error) { return readLine(addrFile) }, "/readyz"); err != nil {
		s.Kill()
		return nil, err
	}
	n.opened = time.Since(began)
	var errAccount, errToken error
	n.account, errAccount = readLine(filepath.Join(data, "account-id"))
	n.token, errToken = readLine(filepath.Join(data, "api-token"))
	if err := errors.Join(errAccount, errToken); err != nil {
		s.Kill()
		return nil, err
	}
	return n, nil
}

func readLine(name string) (string, error) {
	text, err := os.ReadFile(name)
	line := strings.TrimSpace(string(text))
	if err == nil && line == "" {
		err = fmt.Errorf("%s is empty", name)
	}
	return line, err
}

// request is an HTTP request to nearkey as bytes.
func (n *nearkey) request(b []byte, method, path string, body []byte) []byte {
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, n.addr...)
	b = append(b, "\r\nAuthorization: Bearer "...)
	b = append(b, n.token...)
	if method != "GET" {
		b = append(b, "\r\nContent-Type: application/json\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(body)), 10)
	}
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

func (n *nearkey) namespacesPath() string {
	return "/client/v4/accounts/" + n.account + "/storage/kv/namespaces"
}

// namespace creates a namespace and returns its path.
func (n *nearkey) namespace(title string) (path string, err error) {
	body, err := json.Marshal(map[string]string{"title": title})
	if err != nil {
		return "", err
	}
	c, err := dial(n.addr)
	if err != nil {
		return "", err
	}
	defer c.close()
	status, answer, err := c.do(n.request(nil, "POST", n.namespacesPath(), body))
	if err != nil {
		return "", err
	}
	var created struct{ Result struct{ ID string } }
	if err := json.Unmarshal(answer, &created); err != nil || status != 200 || created.Result.ID == "" {
		return "", fmt.Errorf("create namespace %s: status %d, %.300s", title, status, answer)
	}
	return n.namespacesPath() + "/" + created.Result.ID, nil
}

// startNginx serves the files of root under prefix, as a person who cares for
// speed would: one worker, open files cached, no access log. headers are
// directives that add fields to the answers.
func (b *bench) startNginx(ctx context.Context, root, prefix, headers string, pinned bool) (*server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, err
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // the files are in a folder that only we can read
	}
	home := filepath.Join(b.dir, "nginx")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(home, "nginx.conf")
	text := fmt.Sprintf(nginxConfig, user, home, addr, prefix, root, headers)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s, err := start(ctx, filepath.Join(b.dir, "nginx.log"), pinned, b.nginx, "-p", home, "-e", "stderr", "-c", config)
	if err != nil {
		return nil, err
	}
	if err := s.await(func() (string, error) { return addr, nil }, "/ready"); err != nil {
		s.Kill()
		return nil, err
	}
	workers, err := process.Children(s.pids[0])
	if err != nil || len(workers) == 0 {
		s.Kill()
		return nil, fmt.Errorf("nginx has no workers (%v)", err)
	}
	s.pids = append(s.pids, workers...)
	return s, nil
}

const nginxConfig = `%[1]s
daemon off;
worker_processes 1;
worker_rlimit_nofile 12000;
pid %[2]s/pid;
error_log stderr;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	tcp_nodelay on;
	keepalive_requests 1000000000;
	keepalive_timeout 600s;
	open_file_cache max=10000 inactive=600s;
	open_file_cache_valid 600s;
	default_type application/octet-stream;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen %[3]s backlog=1024;
		location = /ready { return 200; }
		location ^~ %[4]s { alias %[5]s; %[6]s}
	}
}
`
