package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// A child that died is started again after restartLeast, doubled each time that
	// it dies within steadyAfter, up to restartMost.
	restartLeast = 200 * time.Millisecond
	restartMost  = 5 * time.Second
	steadyAfter  = 10 * time.Second
	// childGrace is how long a child may take to end after it was asked to: longer
	// than it gives its requests.
	childGrace = 15 * time.Second
	// maxLogBytes is how long a log may become before it is begun anew; the one
	// before is kept.
	maxLogBytes = 16 << 20
	// logTail is how much of a child's log is shown when it cannot run.
	logTail = 2 << 10
)

// child is a process of the fleet, started again whenever it dies.
type child struct {
	name   string
	role   string
	region string // of an edge
	port   string
	url    string   // of its API, or of its health checks
	args   []string // of nearkey

	workers string // the address of its Workers; empty: it runs none

	binary  string
	environ []string
	dir     string // of its log and the file with its process id
	say     func(format string, args ...any)

	mu       sync.Mutex // guards the rest
	restarts int
	ready    bool // once
}

func (c *child) logFile() string { return filepath.Join(c.dir, c.name+".log") }
func (c *child) pidFile() string { return filepath.Join(c.dir, c.name+".pid") }

// run keeps the child running until ctx ends, and then ends it. It returns an
// error if the child cannot be started, or ends before it was ever ready.
func (c *child) run(ctx context.Context) error {
	// The death of the thread that started a process counts as that of its parent.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer os.Remove(c.pidFile())
	log := &logFile{path: c.logFile()}
	if err := log.begin(); err != nil {
		return fmt.Errorf("log of %s: %w", c.name, err)
	}
	defer log.close()
	pause := restartLeast
	for {
		began := time.Now()
		ended, err := c.once(ctx, log)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !c.wasReady():
			return fmt.Errorf("%s does not start: %s; its log, %s, ends with:\n%s", c.name, ended, c.logFile(), c.tail())
		}
		if time.Since(began) > steadyAfter {
			pause = restartLeast
		}
		c.say("%s has died (%s); it is started again in %s", c.name, ended, pause)
		c.note(func() { c.restarts++ })
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, restartMost)
	}
}

// once runs the child to its end, and says how it ended.
func (c *child) once(ctx context.Context, log io.Writer) (ended string, err error) {
	cmd := exec.Command(c.binary, c.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.environ, log, log
	apart(cmd)
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start %s: %w", c.name, err)
	}
	done := make(chan struct{})
	var ending sync.WaitGroup
	ending.Go(func() { endWith(ctx, cmd.Process, done) })
	if err := writeFile(c.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o644); err != nil {
		c.say("process id of %s: %v", c.name, err)
	}
	_ = cmd.Wait() // the state says how it ended
	close(done)
	ending.Wait()
	return cmd.ProcessState.String(), nil
}

// endWith ends a process when ctx ends, unless it is done before.
func endWith(ctx context.Context, p *os.Process, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	terminate(p)
	timer := time.NewTimer(childGrace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		killGroup(p)
	}
}

func (c *child) note(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

func (c *child) wasReady() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

// tail is the end of the child's log.
func (c *child) tail() string {
	f, err := os.Open(c.logFile())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTail {
		_, err = f.Seek(-logTail, io.SeekEnd)
		if err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, logTail))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(text), "?"))
}

// logFile is a log of bounded length. It is written to by one goroutine at a time.
type logFile struct {
	path    string
	file    *os.File
	written int
}

// begin begins the log anew.
func (l *logFile) begin() (err error) {
	l.written = 0
	l.file, err = os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	return err
}

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close() // nothing is lost that matters
	}
}

// Write implements io.Writer. What cannot be written is dropped: a process must
// not end because its log cannot be kept.
func (l *logFile) Write(p []byte) (int, error) {
	if l.written+len(p) > maxLogBytes {
		l.close()
		_ = os.Rename(l.path, l.path+".1") // else it is begun anew without
		if l.begin() != nil {
			l.file = nil
		}
	}
	if l.file != nil {
		n, _ := l.file.Write(p)
		l.written += n
	}
	return len(p), nil
}
