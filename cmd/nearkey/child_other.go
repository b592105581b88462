//go:build !linux

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// apart does what can be done on Linux alone; elsewhere the children of a process
// that is killed live on.
func apart(*exec.Cmd) {}

// terminate asks a process to end, or ends it where that cannot be asked.
func terminate(p *os.Process) {
	if p.Signal(syscall.SIGTERM) != nil {
		_ = p.Kill()
	}
}

func killGroup(p *os.Process) { _ = p.Kill() }
