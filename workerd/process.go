package workerd

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxLine   = 64 << 10 // of a Worker's log; the rest is dropped
	maxLines  = 2000     // of a Worker's log, per second
	maxErrors = 8 << 10  // of what workerd says against a Worker
)

const startTooLong = "Script startup exceeded CPU time limit."

// Why a process was killed, or died.
const (
	overCPU    = "CPU"
	overMemory = "memory"
)

// A process is one workerd, of one version of one Worker.
type process struct {
	rt      *Runtime
	worker  *Worker
	token   string // what workerd adds to each request to our services
	dir     string // of its own; removed when it has ended
	more    extras
	sockets map[string]*net.UnixListener // by name; ours: workerd only accepts from them
	config  files
	handle  *os.Process
	pid     int
	started time.Time
	doors   map[string]*pool // connections, by entrypoint
	gone    bool             // has ended; guarded by the Runtime's mu

	owner    atomic.Pointer[script]
	progress atomic.Int64  // signs of life
	dead     chan struct{} // closed once it has ended and was waited for

	mu       sync.Mutex // guards what follows
	inFlight int
	left     [resources]int // what the requests in flight may spend
	lastUsed time.Time
	retired  bool          // takes no further request
	ending   bool          // is to end
	reason   string        // why it was killed
	complain []byte        // what it said against the Worker, bounded
	drained  chan struct{} // closed when retired and nothing is in flight
}

// find returns the binary. npm's workerd is a script that starts another process;
// what it would start is used in its place.
func find(path string) (string, error) {
	if path == "" {
		path = "workerd"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if found, err = filepath.Abs(found); err == nil {
		found, err = filepath.EvalSymlinks(found)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if !isScript(found) {
		return found, nil
	}
	arch := map[string]string{"amd64": "64", "arm64": "arm64"}[runtime.GOARCH]
	native := filepath.Join(filepath.Dir(found), "..", "..", "@cloudflare", "workerd-"+runtime.GOOS+"-"+arch, "bin", "workerd")
	if _, err := os.Stat(native); err != nil {
		return "", fmt.Errorf("%w: %s is a script, and %w", ErrMissing, found, err)
	}
	return native, nil
}

func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 2)
	_, _ = io.ReadFull(f, head)
	return string(head) == "#!"
}

// launch starts a process and returns it when it is ready.
func (r *Runtime) launch(cancel <-chan struct{}, w *Worker, more extras) (*process, error) {
	if err := validate(w, &r.opts); err != nil {
		return nil, err
	}
	release, err := r.prepare()
	if err != nil {
		return nil, err
	}
	if more.scheduled {
		if err := r.vet(cancel, w); err != nil {
			return nil, err
		}
	}
	p, err := r.reserve(w, more)
	if err != nil {
		return nil, err
	}
	ready, err := p.begin(release)
	r.mu.Lock()
	r.starting--
	if err == nil && !p.gone {
		r.processes[p] = struct{}{}
	}
	closed := r.closed
	r.mu.Unlock()
	if err != nil {
		p.clean()
		r.running.Done()
		return nil, fmt.Errorf("start workerd: %w", err)
	}
	if closed {
		p.kill("")
	}
	if err := p.await(ready, cancel); err != nil {
		p.kill("")
		<-p.dead
		return nil, err
	}
	if !more.scheduled {
		r.passed(w)
	}
	return p, nil
}

// reserve waits for a place among the processes, at the cost of the one that was
// not used for the longest time.
func (r *Runtime) reserve(w *Worker, more extras) (*process, error) {
	for {
		left := tasksLeft()
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			return nil, ErrClosed
		}
		if left > spareTasks && len(r.processes)+r.starting < r.opts.Processes {
			defer r.mu.Unlock()
			r.starting++
			r.serial++
			r.running.Add(1) // until its thread has ended
			return &process{
				rt:     r,
				worker: w,
				more:   more,
				token:  rand.Text(),
				dir:    filepath.Join(r.opts.Dir, "gen-"+strconv.Itoa(r.serial)),
				dead:   make(chan struct{}),

				sockets: map[string]*net.UnixListener{},
				doors:   map[string]*pool{},
				drained: make(chan struct{}),
			}, nil
		}
		all := r.list()
		r.mu.Unlock()
		victim := oldest(all)
		if victim == nil {
			if left <= spareTasks {
				r.complain("start a Worker: the control group of this server allows too few processes and threads more", ErrBusy, "left", left, "needed", spareTasks+1)
			}
			return nil, ErrBusy
		}
		if victim.owner.Load().evict(victim) || victim.lingers() {
			victim.end("", r.opts.Stop)
		}
	}
}

// oldest returns the process whose place costs least: one that lingers before one
// that answers, then the one that was used longest ago. Nil: all are busy.
func oldest(all []*process) (best *process) {
	var bestRetired bool
	var bestUsed time.Time
	for _, p := range all {
		p.mu.Lock()
		idle, retired, used := p.inFlight == 0 && !p.ending, p.retired, p.lastUsed
		p.mu.Unlock()
		if !idle || p.owner.Load() == nil {
			continue
		}
		if best == nil || retired && !bestRetired || retired == bestRetired && used.Before(bestUsed) {
			best, bestRetired, bestUsed = p, retired, used
		}
	}
	return best
}

// begin writes the configuration and starts the process. ready is closed when it
// listens.
func (p *process) begin(from *release) (ready chan struct{}, err error) {
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	p.config = configure(p.worker, p.token, p.more, &p.rt.opts, from.newest)
	if err := p.config.write(p.dir); err != nil {
		return nil, err
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	args := []string{"serve", "--control-fd=3"}
	if p.more.scheduled {
		args = append(args, "--experimental") // for what is ours: vet has looked at the user's
	}
	var passed []*os.File
	for i, name := range p.more.sockets() {
		f, err := p.open(name)
		if err != nil {
			return nil, err
		}
		open, passed = append(open, f), append(passed, f)
		args = append(args, "--socket-fd", name+"="+strconv.Itoa(4+i))
	}
	p.doors[""] = &pool{socket: p.path("http")}
	for i, name := range p.more.named() {
		p.doors[name] = &pool{socket: p.path(entrySocket(i))}
	}
	control, controlEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	open = append(open, controlEnd)
	output, outputEnd, err := os.Pipe()
	if err != nil {
		_ = control.Close()
		return nil, err
	}
	open = append(open, outputEnd)
	command := func() *exec.Cmd {
		cmd := exec.Command(from.path, append(args, configFile)...)
		cmd.Dir, cmd.Env = p.dir, []string{"TZ=UTC"}
		cmd.Stdout, cmd.Stderr = outputEnd, outputEnd
		cmd.ExtraFiles = append([]*os.File{controlEnd}, passed...)
		return cmd
	}
	p.started, p.lastUsed = time.Now(), time.Now()
	p.rt.tokens.Store(p.token, p)
	said := make(chan struct{})
	if err := p.spawn(command, said); err != nil {
		p.rt.tokens.Delete(p.token)
		_, _ = control.Close(), output.Close()
		return nil, err
	}
	sacrifice(p.pid)
	ready = make(chan struct{})
	p.rt.running.Go(func() { p.listening(control, ready) })
	p.rt.running.Go(func() { p.output(output, said) })
	return ready, nil
}

// path is where a socket of the process is.
func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// open listens on a socket and returns what the process is given of it.
func (p *process) open(name string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.path(name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	p.sockets[name] = l
	return l.File()
}

// spawn starts the command on a thread of its own, which lives as long as the
// process: what the thread may not do the process may not do either, and the
// kernel kills the process when the thread is gone.
func (p *process) spawn(command func() *exec.Cmd, said <-chan struct{}) error {
	started := make(chan error, 1)
	onOwnThread(func() {
		cmd, err := confine(command, p.dir, &p.rt.opts, &p.rt.walls)
		if err == nil {
			p.handle, p.pid = cmd.Process, cmd.Process.Pid
			p.rt.peers.Store(p.pid, p.token)
			limit(p.pid, p.rt.opts.MemoryBytes)
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		go func() { // this thread may not touch files
			<-said
			p.ended(cmd.ProcessState)
		}()
	})
	return <-started
}

// ended is the end of a process that was waited for.
func (p *process) ended(state *os.ProcessState) {
	r := p.rt
	p.mu.Lock()
	unasked := !p.ending || p.reason != ""
	if p.reason == "" && unasked && outOfMemory(p.complain) {
		p.reason = overMemory
	}
	reason := p.reason
	p.retired = true
	p.mu.Unlock()
	p.clean()
	r.tokens.Delete(p.token)
	r.peers.CompareAndDelete(p.pid, p.token) // the id may be another's by now
	r.mu.Lock()
	delete(r.processes, p)
	p.gone = true
	r.mu.Unlock()
	close(p.dead)
	if s := p.owner.Load(); s != nil {
		s.count(tallyCPU, int64(state.UserTime()+state.SystemTime()))
		if unasked {
			r.opts.Logger.Warn("a Worker's process ended", "worker", p.worker.label(), "version", p.worker.Version, "limit", reason, "state", state.String())
		}
		s.lost(p)
	}
	r.running.Done()
}

// outOfMemory: V8 says so before it ends the process.
func outOfMemory(said []byte) bool {
	return bytes.Contains(said, []byte("out of memory")) || bytes.Contains(said, []byte("heap limit")) ||
		bytes.Contains(said, []byte("OOM"))
}

// clean removes what a process leaves behind.
func (p *process) clean() {
	for _, door := range p.doors {
		door.close()
	}
	for _, l := range p.sockets {
		_ = l.Close()
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.rt.opts.Logger.Error("remove a Worker's folder", "error", err)
	}
}

// listening waits for the lines on the control channel that say that the sockets
// are open.
func (p *process) listening(control *os.File, ready chan<- struct{}) {
	defer func() { _ = control.Close() }()
	lines, left := bufio.NewScanner(control), len(p.sockets)
	for lines.Scan() {
		var event struct{ Event, Socket string }
		if json.Unmarshal(lines.Bytes(), &event) == nil && event.Event == "listen" && p.sockets[event.Socket] != nil {
			if left--; left > 0 {
				continue
			}
			close(ready)
			_, _ = io.Copy(io.Discard, control)
			return
		}
	}
}

// await waits until the process is ready, has ended, or has had its time.
func (p *process) await(ready <-chan struct{}, cancel <-chan struct{}) error {
	deadline := time.NewTimer(p.rt.opts.Start)
	defer deadline.Stop()
	select {
	case <-ready:
		if err := p.config.remove(p.dir); err != nil {
			return fmt.Errorf("remove a Worker's secrets: %w", err)
		}
		p.config = nil
		return nil
	case <-p.dead:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ending && p.reason == "" {
			return ErrClosed
		}
		return &StartError{Text: startText(p.complain, p.reason)}
	case <-deadline.C:
		return &StartError{Text: startTooLong}
	case <-cancel:
		return errors.New("the start of a Worker was given up")
	}
}

func startText(said []byte, reason string) string {
	switch reason {
	case overMemory:
		return "Script startup exceeded memory limits."
	case overCPU:
		return startTooLong
	}
	if text := reword(string(said)); text != "" {
		return text
	}
	return "The Worker ended while it started."
}

// output reads what the process writes: console lines of the Worker, and
// complaints of workerd. A Worker that logs more than it may has its lines thrown
// away unread, so that it keeps only itself busy.
func (p *process) output(from *os.File, said chan<- struct{}) {
	defer close(said)
	defer func() { _ = from.Close() }()
	in := bufio.NewReaderSize(from, maxLine)
	rate := lineRate{}
	for {
		line, err := in.ReadSlice('\n')
		long := err == bufio.ErrBufferFull
		line = bytes.TrimRight(line, "\n")
		allowed, dropped := rate.allow(time.Now())
		if dropped > 0 {
			p.line(droppedLine(dropped))
		}
		if allowed || ofRuntime(line) {
			p.line(line)
		}
		for long {
			_, err = in.ReadSlice('\n')
			long = err == bufio.ErrBufferFull
		}
		if err != nil {
			return
		}
	}
}

// ofRuntime reports whether a line is workerd's own: the Worker's are objects
// without a source, and cannot have one, since quotes within them are escaped.
func ofRuntime(line []byte) bool {
	return len(line) > 0 && (line[0] != '{' || bytes.Contains(line, []byte(`"source":"`)))
}

// A lineRate counts lines by the second.
type lineRate struct {
	began time.Time
	lines int
}

// allow reports whether one more line is within the limit, and, when a second is
// over, how many were not.
func (r *lineRate) allow(now time.Time) (ok bool, dropped int) {
	if now.Sub(r.began) >= time.Second {
		dropped = max(r.lines-maxLines, 0)
		r.began, r.lines = now, 0
	}
	r.lines++
	return r.lines <= maxLines, dropped
}

func droppedLine(n int) []byte {
	return fmt.Appendf(nil, `{"timestamp":"%d","level":"warn","message":"%d lines were dropped: a Worker logs at most %d per second"}`,
		time.Now().UnixMilli(), n, maxLines)
}

func (p *process) line(line []byte) {
	var entry struct{ Level, Source, Message string }
	structured := len(line) > 0 && line[0] == '{' && json.Unmarshal(line, &entry) == nil
	if len(line) == 0 {
		return
	}
	if !structured {
		entry.Message = string(line)
	}
	if !structured || entry.Source != "" { // workerd's own
		p.mu.Lock()
		text := strings.TrimPrefix(entry.Message, "service user: ")
		if room := maxErrors - len(p.complain); room > 0 {
			p.complain = append(p.complain, (text + "\n")[:min(room, len(text)+1)]...)
		} else { // the newest tells how it ended
			p.complain = append(p.complain[len(p.complain)/2:], (text + "\n")[:min(maxErrors/2, len(text)+1)]...)
		}
		p.mu.Unlock()
	}
	if p.rt.opts.Output != nil && structured && !p.more.report {
		p.rt.opts.Output(p.worker.Name, p.worker.Version, line)
	}
}

// enter counts a request in, unless the process takes none.
func (p *process) enter(limit int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return false, nil
	}
	if p.inFlight >= limit {
		return false, ErrBusy
	}
	p.inFlight++
	p.bring()
	return true, nil
}

func (p *process) leave() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	p.take()
	p.lastUsed = now
	p.settle()
}

// settle tells those who wait that nothing is in flight; p.mu is held.
func (p *process) settle() {
	if p.retired && p.inFlight == 0 {
		select {
		case <-p.drained:
		default:
			close(p.drained)
		}
	}
}

func (p *process) busy() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight
}

// retire lets no further request in; with idle, only if none is in flight.
func (p *process) retire(idle bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if idle && p.inFlight > 0 {
		return false
	}
	p.retired = true
	p.settle()
	return true
}

// replaced lets a process finish what it has and end.
func (p *process) replaced() {
	p.retire(false)
	_ = p.rt.begin(p.drain) // closed: everything ends
}

func (p *process) drain() {
	opts := &p.rt.opts
	drain := time.NewTimer(opts.Drain)
	defer drain.Stop()
	select {
	case <-p.drained:
	case <-drain.C:
	case <-p.dead:
	case <-p.rt.closing:
	}
	linger := time.NewTimer(opts.Linger)
	defer linger.Stop()
	select {
	case <-linger.C:
	case <-p.dead:
	case <-p.rt.closing:
	}
	p.end("", opts.Stop)
}

// lingers reports whether the process only lives on for waitUntil.
func (p *process) lingers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.retired && p.inFlight == 0
}

func (p *process) crashed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ending || p.reason != ""
}

// end asks the process to finish what it has and to end, kills it if it does
// not, and returns when it has ended.
func (p *process) end(reason string, patience time.Duration) {
	p.mark(reason)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.dead:
		return
	case <-time.After(patience):
	}
	p.signal(syscall.SIGKILL)
	<-p.dead
}

// kill ends the process at once.
func (p *process) kill(reason string) {
	p.mark(reason)
	p.signal(syscall.SIGKILL)
}

func (p *process) mark(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired, p.ending = true, true
	if p.reason == "" {
		p.reason = reason
	}
	p.settle()
}

// signal sends a signal to the process, unless it was waited for: its number may
// be another's by then.
func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.dead:
	default:
		_ = p.handle.Signal(s)
	}
}
