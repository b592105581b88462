package main

import (
	"os"
	"os/exec"
	"syscall"
)

// apart makes a command the leader of a process group of its own, so that a key
// pressed in the terminal does not reach it, and has it killed should this process
// die without ending it.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// terminate asks a process to end, also one that was stopped.
func terminate(p *os.Process) {
	_ = p.Signal(syscall.SIGTERM)
	_ = p.Signal(syscall.SIGCONT)
}

// killGroup ends a process and whatever it started.
func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
