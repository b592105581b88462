// Package s3test starts a real S3 server (versitygw, which keeps objects as files)
// for tests and measurements, and kills, freezes and restarts it. `make deps`
// builds the server; without it a test fails and says so.
//
// A server listens on loopback and does not sync to disk: what is tested is the
// loss of processes, not of power. It dies with the process that started it, and
// what it held is lost when the test ends.
package s3test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

const (
	binary       = ".cache/tools/versitygw-v1.8.0" // from the root of the repository; see Makefile
	startTimeout = time.Minute                     // for a server to take connections
	pollEvery    = 5 * time.Millisecond
	minPort      = 33_000 // ports that the system gives to connections are taken at times:
	maxPort      = 60_000 // then another one is tried
)

// Config is what a server may be told. Its zero value is a plain server.
type Config struct {
	Dir               string // where the objects' files are, made if absent; empty: a temporary folder
	VirtualDomain     string // answers requests to BUCKET.VirtualDomain as well
	CertFile, KeyFile string // serves TLS

	// DiskBytes gives the server a disk of its own of so many bytes, which fills up.
	// It is in memory: a killed server has lost all, and File and what uses it see
	// nothing. Only root can do that (CanFill).
	DiskBytes int64
}

// CanFill reports whether a server can have a disk of its own.
func CanFill() bool {
	return exec.Command("unshare", "-m", "sh", "-c", "mount -t tmpfs none /tmp").Run() == nil
}

// Server is an S3 server with one empty bucket. Its methods end the test on a
// failure. They may be called at once.
type Server struct {
	Address       string // host:port
	Endpoint      string // URL
	Region        string
	Bucket        string
	AccessKeyID   string
	SecretKeyFile string

	tb     nearkeytest.TB
	path   string // of the binary
	dir    string // of the objects
	config Config

	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd  // nil: not running
	done chan struct{}
	said *bytes.Buffer // complete when done is closed
}

// Start starts a server.
func Start(tb nearkeytest.TB) *Server {
	tb.Helper()
	return StartConfig(tb, Config{})
}

// StartConfig starts a server that is told something.
func StartConfig(tb nearkeytest.TB, config Config) *Server {
	tb.Helper()
	s := &Server{Region: "us-east-1", Bucket: "blobs", AccessKeyID: "nearkey-test", tb: tb, config: config}
	if err := s.prepare(); err != nil {
		tb.Fatalf("prepare an S3 server: %v", err)
	}
	if err := s.startAnywhere(); err != nil {
		tb.Fatalf("start an S3 server: %v", err)
	}
	return s
}

// prepare finds the binary and makes the files of a server.
func (s *Server) prepare() (err error) {
	if s.path, err = find(binary); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp("", "nearkey-s3-")
	if err != nil {
		return err
	}
	s.tb.Cleanup(func() {
		if err := errors.Join(s.kill(), os.RemoveAll(temporary)); err != nil {
			s.tb.Fatalf("remove an S3 server: %v", err)
		}
	})
	if s.dir = s.config.Dir; s.dir == "" {
		s.dir = filepath.Join(temporary, "objects")
	}
	s.SecretKeyFile = filepath.Join(temporary, "secret-key")
	secret := strconv.FormatUint(rand.Uint64(), 36) + strconv.FormatUint(rand.Uint64(), 36)
	return errors.Join(os.WriteFile(s.SecretKeyFile, []byte(secret+"\n"), 0o600), os.MkdirAll(filepath.Join(s.dir, s.Bucket), 0o700))
}

// find looks for a file of the repository from the working directory upwards.
func find(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("%s is not there: `make deps` builds it", name)
		}
		dir = parent
	}
}

// startAnywhere starts the server on the first free port that it finds.
func (s *Server) startAnywhere() (err error) {
	for range 20 {
		s.Address = net.JoinHostPort("127.0.0.1", strconv.Itoa(minPort+rand.IntN(maxPort-minPort)))
		l, listenErr := net.Listen("tcp", s.Address)
		if listenErr != nil {
			err = listenErr
			continue
		}
		if err := l.Close(); err != nil {
			return err
		}
		if err = s.start(); err == nil {
			s.Endpoint = "http://" + s.Address
			if s.config.CertFile != "" {
				s.Endpoint = "https://" + s.Address
			}
			return nil
		}
	}
	return err
}

// start starts the process and waits until it takes connections.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("it is running")
	}
	secret, err := os.ReadFile(s.SecretKeyFile)
	if err != nil {
		return err
	}
	args := []string{"--port", s.Address, "--region", s.Region, "--quiet", "--keep-alive"}
	if s.config.VirtualDomain != "" {
		args = append(args, "--virtual-domain", s.config.VirtualDomain)
	}
	if s.config.CertFile != "" {
		args = append(args, "--cert", s.config.CertFile, "--key", s.config.KeyFile)
	}
	cmd := exec.Command(s.path, append(args, "posix", s.dir)...)
	if s.config.DiskBytes > 0 {
		mount := `mount -t tmpfs -o size="$1" none "$2" && mkdir "$2/$3" && shift 3 && exec "$@"`
		cmd = exec.Command("unshare", slices.Concat([]string{"-m", "sh", "-c", mount, "sh",
			strconv.FormatInt(s.config.DiskBytes, 10), s.dir, s.Bucket}, cmd.Args)...)
	}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "ROOT_ACCESS_KEY=" + s.AccessKeyID, "ROOT_SECRET_KEY=" + strings.TrimSpace(string(secret)), "GOMAXPROCS=2"}
	said := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in what it printed
		close(done)
	}()
	s.cmd, s.done, s.said = cmd, done, said
	return s.awaitStart()
}

// awaitStart waits until the server takes connections. The caller holds s.mu.
func (s *Server) awaitStart() error {
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		if conn, err := net.DialTimeout("tcp", s.Address, time.Second); err == nil {
			return conn.Close()
		}
		select {
		case <-s.done:
			s.cmd = nil
			return fmt.Errorf("it ended at once and said:\n%s", s.said)
		case <-time.After(pollEvery):
		}
	}
	return fmt.Errorf("it takes no connections after %s", startTimeout)
}

// Kill ends the server as a power switch does, and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	if err := s.kill(); err != nil {
		s.tb.Fatalf("kill the S3 server: %v", err)
	}
}

func (s *Server) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.done
	s.cmd = nil
	return nil
}

// Restart starts the server again at the same address, with what it kept; it is
// killed before, if it runs.
func (s *Server) Restart() {
	s.tb.Helper()
	if err := errors.Join(s.kill(), s.start()); err != nil {
		s.tb.Fatalf("restart the S3 server: %v", err)
	}
}

// Stop freezes the server: connections are taken, by the kernel, and nothing
// answers.
func (s *Server) Stop() { s.tb.Helper(); s.signal(syscall.SIGSTOP) }

// Cont lets a frozen server go on.
func (s *Server) Cont() { s.tb.Helper(); s.signal(syscall.SIGCONT) }

func (s *Server) signal(signal syscall.Signal) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.tb.Fatalf("signal %s to the S3 server: it is not running", signal)
	}
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.tb.Fatalf("signal %s to the S3 server: %v", signal, err)
	}
	for signal == syscall.SIGSTOP && running(s.cmd.Process.Pid) {
		time.Sleep(pollEvery)
	}
}

// running reports whether any thread of a process is not frozen.
func running(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // the thread has ended
		}
		if _, state, ok := strings.Cut(string(text), ") "); ok && !strings.ContainsAny(state[:1], "TtZX") {
			return true
		}
	}
	return false
}

// Running reports whether the server has been started and not killed, frozen or
// not.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil
}

// File is the path of the file that keeps an object of the bucket.
func (s *Server) File(name string) string {
	return filepath.Join(s.dir, s.Bucket, filepath.FromSlash(name))
}

// Objects are the names of all objects of the bucket, in the order of a listing
// if no name is the beginning of another.
func (s *Server) Objects() (names []string) {
	s.tb.Helper()
	root := s.File("")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if name = filepath.ToSlash(name); !strings.HasPrefix(name, ".") { // the server's own
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		s.tb.Fatalf("walk through the S3 server's files: %v", err)
	}
	return names
}

// Corrupt changes a byte in the middle of an object behind the server's back.
func (s *Server) Corrupt(name string) {
	s.tb.Helper()
	data, err := os.ReadFile(s.File(name))
	if err != nil || len(data) == 0 {
		s.tb.Fatalf("corrupt %q of %d bytes: %v", name, len(data), err)
	}
	data[len(data)/2] ^= 0xff
	f, err := os.OpenFile(s.File(name), os.O_WRONLY, 0)
	if err != nil {
		s.tb.Fatalf("corrupt %q: %v", name, err)
	}
	_, err = f.WriteAt(data, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		s.tb.Fatalf("corrupt %q: %v", name, err)
	}
}

// Wipe removes objects behind the server's back, all if none is named.
func (s *Server) Wipe(names ...string) {
	s.tb.Helper()
	if len(names) == 0 {
		names = s.Objects()
	}
	for _, name := range names {
		if err := os.Remove(s.File(name)); err != nil {
			s.tb.Fatalf("wipe %q: %v", name, err)
		}
	}
}
