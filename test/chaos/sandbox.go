package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// inside is set in the environment of a program that runs in a sandbox, to what it
// can do there.
const (
	inside  = "NEARKEY_CHAOS_INSIDE"
	mounts  = "mounts" // small disks
	nothing = "nothing"
)

// inSandbox runs this program again with a temporary directory of its own, which
// goes with it however it ends, and, as root, where what it mounts is seen by
// nobody else. It returns the exit code; done is false in the sandbox.
func inSandbox() (code int, done bool) {
	if os.Getenv(inside) != "" {
		return 0, false
	}
	code, err := runInSandbox(mounts)
	if err != nil {
		code, err = runInSandbox(nothing)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return exitBroken, true
	}
	return code, true
}

// reaper waits for the end of its input, which is the end of the process that
// started it, and removes a directory that others may just be leaving.
const reaper = `read -r _; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" && exit; sleep 0.3; done`

// runInSandbox returns the exit code of the program in the sandbox, or an error if
// it cannot be started there.
func runInSandbox(can string) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	temporary, err := os.MkdirTemp("", "nearkey-chaos-")
	if err != nil {
		return 0, err
	}
	end, err := reap(temporary)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(temporary))
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := os.Chmod(temporary, 0o755); err != nil { // the user that runs PostgreSQL goes through
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+can, "TMPDIR="+temporary)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if can == mounts {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended
		case <-ended:
			if code := cmd.ProcessState.ExitCode(); code >= 0 {
				return code, nil
			}
			return exitBroken, nil // by a signal
		}
	}
}

// reap has a directory removed when end is called or this process has ended.
func reap(dir string) (end func() error, err error) {
	cmd := exec.Command("sh", "-c", reaper, "sh", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error { return errors.Join(in.Close(), cmd.Wait()) }, nil
}

// The size of a small disk: blobs that nothing refers to any more stay for a day.
const (
	diskBytes          = 256 << 20
	diskBytesForSecond = 1 << 20
)

// canMount reports whether small disks can be mounted.
func canMount() bool { return os.Getenv(inside) == mounts }

// disk is a small disk, which somebody else can fill.
type disk struct{ dir string }

// mount mounts a small disk, in memory, until the site is closed.
func (s *site) mount(dir string, bytes int64) (*disk, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0777", bytes)); err != nil {
		return nil, fmt.Errorf("mount a small disk: %w", err)
	}
	s.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			s.Fatalf("unmount a small disk: %v", err)
		}
	})
	return &disk{dir}, nil
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill takes the space that is left.
func (d *disk) fill() error {
	f, err := os.Create(d.filler())
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2] // to the last byte
		}
	}
	return nil
}

// free gives the space back.
func (d *disk) free() error { return os.Remove(d.filler()) }
