// Package pgtest starts real PostgreSQL servers for tests and measurements, and
// kills, freezes and restarts them: a single server, and a cluster of three with
// quorum synchronous standbys. It installs nothing: `make deps` does.
//
// Servers listen on loopback, believe every local user, and do not sync to disk:
// what is tested is the loss of processes, not of power. Their files lie in one
// folder for all servers of the process. A small shell script outlives the
// process and removes servers and folder, so that nothing is left behind even
// when a test is killed. What a server held is lost with it, by design.
package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
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
	startTimeout = time.Minute      // for a server to take connections
	stopTimeout  = 30 * time.Second // for a server to end, and for all its processes to freeze
	queryTimeout = time.Minute      // for one Exec
	pollEvery    = 5 * time.Millisecond
	minPort      = 15_000 // ports below those that the system gives to connections,
	maxPort      = 32_000 // so that a server finds its own free again
)

// Server is a PostgreSQL server. Its methods end the test on a failure. They may
// be called at once.
type Server struct {
	tb       nearkeytest.TB
	dir      string // holds data and log
	port     int
	settings []string // of the command line

	mu       sync.Mutex // guards what follows
	cmd      *exec.Cmd  // nil: not running
	done     chan struct{}
	password string // of the user postgres; empty: not asked for
}

// Start starts an empty server. Settings are name=value, as in postgresql.conf.
func Start(tb nearkeytest.TB, settings ...string) *Server {
	tb.Helper()
	s, err := create("", settings)
	if err == nil {
		err = s.start()
	}
	if err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	s.adopt(tb)
	return s
}

// adopt has the server removed when the test ends.
func (s *Server) adopt(tb nearkeytest.TB) {
	s.tb = tb
	tb.Cleanup(func() {
		if err := s.remove(); err != nil {
			tb.Fatalf("remove PostgreSQL: %v", err)
		}
	})
}

// create makes the files of a server from the template.
func create(name string, settings []string) (*Server, error) {
	t, err := template()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(t.root, "server-"+name)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, settings: settings}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	return s, errors.Join(t.own(dir), t.copyTo(s.data()))
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// freePort returns a port that nobody listens on.
func freePort() (int, error) {
	for range 1000 {
		port := minPort + rand.IntN(maxPort-minPort)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port")
}

// URL is the server's connection URL, with the password if there is one.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := "postgres"
	if s.password != "" {
		who += ":" + s.password
	}
	return fmt.Sprintf("postgres://%s@%s/postgres?sslmode=disable", who, s.Address())
}

// Address is the server's host and port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Exec executes statements, each in a transaction of its own, and returns what
// they answer: rows as lines, columns separated by |.
func (s *Server) Exec(statements ...string) string {
	s.tb.Helper()
	out, err := s.exec(statements...)
	if err != nil {
		s.tb.Fatalf("%v", err)
	}
	return out
}

func (s *Server) exec(statements ...string) (string, error) {
	t, err := template()
	if err != nil {
		return "", err
	}
	args := []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres", "postgres"}
	for _, statement := range statements {
		args = append(args, "-c", statement)
	}
	cmd := exec.Command(filepath.Join(t.bin, "psql"), args...)
	s.mu.Lock()
	cmd.Env = append(cleanEnv(), "PGPASSWORD="+s.password, "PGCONNECT_TIMEOUT=10")
	s.mu.Unlock()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(queryTimeout, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("execute %q: %w: %s", statements, err, &out)
	}
	return strings.TrimSpace(out.String()), nil
}

// RequirePassword makes the server ask for a password, which URL then holds.
func (s *Server) RequirePassword(password string) {
	s.tb.Helper()
	s.Exec("alter role postgres password '"+password+"'", "checkpoint")
	hba := "host all all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		s.tb.Fatalf("write pg_hba.conf: %v", err)
	}
	s.Exec("select pg_reload_conf()")
	s.mu.Lock()
	s.password = password
	s.mu.Unlock()
}

// OwnDir gives a folder to the user that runs the server, for a tablespace.
func (s *Server) OwnDir(dir string) {
	s.tb.Helper()
	t, err := template()
	if err == nil {
		err = t.own(dir)
	}
	if err != nil {
		s.tb.Fatalf("give a folder to PostgreSQL: %v", err)
	}
}

// start starts the server and waits until it takes connections.
func (s *Server) start() error {
	t, err := template()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("it is running")
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"-D", s.data()}
	for _, setting := range append(defaultSettings(s.port), s.settings...) {
		args = append(args, "-c", setting)
	}
	cmd := t.command("postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(done)
	}()
	s.cmd, s.done = cmd, done
	if err := s.awaitStart(); err != nil {
		return fmt.Errorf("%w; its log ends:\n%s", err, s.logTail())
	}
	return nil
}

func defaultSettings(port int) []string {
	return []string{"port=" + strconv.Itoa(port), "listen_addresses=127.0.0.1", "unix_socket_directories=",
		"fsync=off", "full_page_writes=off", "shared_buffers=64MB", "dynamic_shared_memory_type=mmap", "log_min_messages=warning", "max_connections=200"}
}

// awaitStart waits for the word that the postmaster writes into its pid file. The
// caller holds s.mu.
func (s *Server) awaitStart() error {
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		lines := s.pidFile()
		if len(lines) >= 8 && lines[0] == strconv.Itoa(s.cmd.Process.Pid) && (lines[7] == "ready" || lines[7] == "standby") {
			return nil
		}
		select {
		case <-s.done:
			s.cmd = nil
			return errors.New("it ended at once")
		case <-time.After(pollEvery):
		}
	}
	return fmt.Errorf("it is not ready after %s", startTimeout)
}

func (s *Server) pidFile() []string {
	text, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

func (s *Server) logTail() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// Log is what the server has logged: warnings and errors.
func (s *Server) Log() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		s.tb.Fatalf("read the server's log: %v", err)
	}
	return string(text)
}

// Running reports whether the server has been started and not ended, frozen or not.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil
}

// Kill ends all processes of the server as one, as a power switch does. Killing
// the postmaster alone would leave backends that commit and answer for a moment.
func (s *Server) Kill() {
	s.tb.Helper()
	if err := s.kill(); err != nil {
		s.tb.Fatalf("kill PostgreSQL: %v", err)
	}
}

func (s *Server) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.signalAll(syscall.SIGSTOP); err != nil { // so that none sees another die
		return err
	}
	all := children(s.cmd.Process.Pid)
	if err := s.signalAll(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.done
	s.cmd = nil
	return until("its processes are gone", func() bool { return !slices.ContainsFunc(all, alive) })
}

// Stop freezes all processes of the server: connections stay and nothing answers.
func (s *Server) Stop() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.signalAll(syscall.SIGSTOP); err != nil {
		s.tb.Fatalf("freeze PostgreSQL: %v", err)
	}
}

// Cont lets a frozen server go on.
func (s *Server) Cont() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.signalAll(syscall.SIGCONT); err != nil {
		s.tb.Fatalf("thaw PostgreSQL: %v", err)
	}
}

// signalAll sends a signal to the postmaster and to its children, which have
// sessions of their own. The caller holds s.mu.
func (s *Server) signalAll(signal syscall.Signal) error {
	if s.cmd == nil {
		return errors.New("it is not running")
	}
	pid := s.cmd.Process.Pid
	if signal == syscall.SIGKILL { // the postmaster is frozen and last
		for _, child := range children(pid) {
			_ = syscall.Kill(child, signal) // it may have ended
		}
		return syscall.Kill(pid, signal)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return err
	}
	return until("its processes are frozen", func() bool {
		all := append(children(pid), pid)
		for _, child := range all {
			_ = syscall.Kill(child, signal)
		}
		return signal != syscall.SIGSTOP || !slices.ContainsFunc(all, running)
	})
}

// until polls for a condition.
func until(what string, met func() bool) error {
	deadline := time.Now().Add(stopTimeout)
	for !met() {
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s it is not so that %s", stopTimeout, what)
		}
		time.Sleep(pollEvery)
	}
	return nil
}

// children are the processes that pid has forked.
func children(pid int) (pids []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// running reports whether a process exists and is neither frozen nor ended.
func running(pid int) bool { return alive(pid) && !strings.ContainsAny(state(pid), "tT") }

// alive reports whether a process exists and has not ended.
func alive(pid int) bool { return !strings.ContainsAny(state(pid), "ZX") }

// state is the letter of a process's state, X if there is none.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, state, ok := strings.Cut(string(text), ") "); err == nil && ok {
		return state[:1]
	}
	return "X"
}

// Shutdown ends the server in order: open transactions are undone.
func (s *Server) Shutdown() {
	s.tb.Helper()
	if err := s.shutdown(syscall.SIGINT); err != nil {
		s.tb.Fatalf("shut PostgreSQL down: %v", err)
	}
}

func (s *Server) shutdown(signal syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := errors.Join(s.signalAll(syscall.SIGCONT), s.cmd.Process.Signal(signal)); err != nil {
		return err
	}
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		return fmt.Errorf("it has not ended after %s; its log ends:\n%s", stopTimeout, s.logTail())
	}
	s.cmd = nil
	return nil
}

// Restart starts the server, after it was shut down or killed; a running one is
// shut down first.
func (s *Server) Restart() {
	s.tb.Helper()
	if err := errors.Join(s.shutdown(syscall.SIGINT), s.start()); err != nil {
		s.tb.Fatalf("restart PostgreSQL: %v", err)
	}
}

// remove ends the server and removes its files, and the little shared memory that
// a killed server leaves behind.
func (s *Server) remove() error {
	lines := s.pidFile()
	if err := s.shutdown(syscall.SIGQUIT); err != nil {
		if err := s.kill(); err != nil {
			return err
		}
	}
	if len(lines) >= 7 {
		if fields := strings.Fields(lines[6]); len(fields) == 2 {
			if id, err := strconv.Atoi(fields[1]); err == nil {
				removeSharedMemory(id)
			}
		}
	}
	return os.RemoveAll(s.dir)
}

// removeSharedMemory removes a System V segment, if it is still there: a server
// that ended in order has removed it.
func removeSharedMemory(id int) {
	const ipcRemove = 0 // IPC_RMID
	_, _, _ = syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), ipcRemove, 0)
}

// installation is where PostgreSQL's programs are, who runs them, and a folder
// with an empty cluster to copy.
type installation struct {
	bin   string
	root  string // of all files
	owner *syscall.Credential
	alive io.Closer // the input of the reaper; it ends with this process
}

// template finds PostgreSQL and makes an empty cluster, once in a process.
var template = sync.OnceValues(newInstallation)

func newInstallation() (*installation, error) {
	t := &installation{}
	var err error
	if t.bin, err = findPrograms(); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // postgres refuses to run as root
		if t.owner, err = postgresUser(); err != nil {
			return nil, err
		}
	}
	if t.root, err = os.MkdirTemp("", "nearkey-pgtest-"); err != nil {
		return nil, err
	}
	if err := errors.Join(t.own(t.root), t.startReaper()); err != nil {
		return nil, err
	}
	cmd := t.command("initdb", "-D", filepath.Join(t.root, "template"), "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--locale=C", "--data-checksums", "--no-sync", "--no-instructions", "--wal-segsize=4")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return t, nil
}

// findPrograms returns the folder of PostgreSQL's server programs: Debian keeps
// them out of the path, a folder for each version.
func findPrograms() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.Reverse(dirs)
	for _, dir := range append(dirs, filepath.SplitList(os.Getenv("PATH"))...) {
		missing := slices.ContainsFunc([]string{"postgres", "initdb", "psql", "pg_rewind"}, func(name string) bool {
			_, err := exec.LookPath(filepath.Join(dir, name))
			return err != nil
		})
		if !missing {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL is not installed; make deps installs it")
}

func postgresUser() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// command is one of PostgreSQL's programs, run as its user.
func (t *installation) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(t.bin, name), args...)
	cmd.Dir, cmd.Env = t.root, cleanEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: t.owner}
	return cmd
}

// cleanEnv is the environment without what would change PostgreSQL's programs.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") })
}

// own gives a file to the user that runs PostgreSQL.
func (t *installation) own(path string) error {
	if t.owner == nil {
		return nil
	}
	return os.Lchown(path, int(t.owner.Uid), int(t.owner.Gid))
}

// copyTo copies the empty cluster. It was shut down: the copies may stream from
// one another.
func (t *installation) copyTo(dir string) error {
	from := filepath.Join(t.root, "template")
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return errors.Join(os.Mkdir(to, 0o700), t.own(to))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(to, data, 0o600), t.own(to))
	})
}

// reaper waits for the end of its input, which is the end of the process that
// started it. It then kills what is left of the servers, frozen ones too, frees
// their shared memory and removes the folder.
const reaper = `read -r _
for f in "$1"/server-*/data/postmaster.pid; do
	[ -f "$f" ] || continue
	pid=$(sed -n 1p "$f")
	[ "$(readlink "/proc/$pid/cwd")" = "$(dirname "$f")" ] && kill -KILL $(cat "/proc/$pid/task/$pid/children") "$pid"
	ipcrm -m "$(sed -n 7p "$f" | awk '{print $2}')"
done
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" && exit; sleep 0.3; done`

func (t *installation) startReaper() error {
	cmd := exec.Command("sh", "-c", reaper, "sh", t.root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	t.alive = in
	return cmd.Start() // it ends after this process
}

// CPU is the processor time that the server's processes have used so far.
func (s *Server) CPU() time.Duration {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	pid := s.cmd.Process.Pid
	sum, err := cpuOfEnded(pid)
	for _, p := range append(children(pid), pid) {
		// One that has just ended is among the ended ones at the next look.
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", p)) // ns on a core, ns waiting for one, times
		if fields := strings.Fields(string(text)); len(fields) > 0 {
			ns, _ := strconv.ParseInt(fields[0], 10, 64) // the system's own
			sum += time.Duration(ns)
		}
	}
	if err != nil {
		s.tb.Fatalf("processor time of PostgreSQL: %v", err)
	}
	return sum
}

// cpuOfEnded is the processor time of a process's children that have ended.
func cpuOfEnded(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, fmt.Errorf("stat of process %d: %q", pid, text)
	}
	user, errUser := strconv.Atoi(fields[13])
	system, errSystem := strconv.Atoi(fields[14])
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(user+system) * tick, errors.Join(errUser, errSystem)
}
