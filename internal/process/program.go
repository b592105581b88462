package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Program is a process that was started.
type Program struct {
	cmd  *exec.Cmd
	out  output
	done chan struct{} // closed when it has ended
}

// Start starts a process, which does not outlive its starter. What it prints is
// kept, unless cmd says where else it goes.
func Start(cmd *exec.Cmd) (*Program, error) {
	p := &Program{cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.out
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // Err tells how it ended
		close(p.done)
	}()
	return p, nil
}

// Pid is the process's id.
func (p *Program) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Output is what the process has printed so far.
func (p *Program) Output() string { return p.out.String() }

// Err waits for the end of the process, and is nil if it exited with code 0.
func (p *Program) Err() error {
	<-p.done
	if !p.cmd.ProcessState.Success() {
		return errors.New(p.cmd.ProcessState.String())
	}
	return nil
}

// Signal sends a signal, if the process still runs.
func (p *Program) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", s, p.cmd.Path, err)
	}
	return nil
}

// End sends a signal and returns when the process is gone, with Err. One that does
// not end in time is killed, which is an error.
func (p *Program) End(s os.Signal, timeout time.Duration) error {
	if err := p.Signal(s); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.Err()
	case <-time.After(timeout):
		p.Kill()
		return fmt.Errorf("%s did not end within %s of %s", p.cmd.Path, timeout, s)
	}
}

// Kill ends the process as a power switch does, and returns when it is gone.
func (p *Program) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// output is what a process prints.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
