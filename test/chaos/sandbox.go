package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// inside is set in the environment of a program that has mounts of its own.
const inside = "NEARKEY_CHAOS_INSIDE"

// inSandbox runs this program again where what it mounts is seen by nobody else
// and goes with it, and returns its exit code. Only root can do that: otherwise
// done is false and the run does without small disks.
func inSandbox() (code int, done bool) {
	if os.Getenv(inside) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(signals)
	if err == nil {
		return 0, true
	}
	if code := cmd.ProcessState.ExitCode(); code > 0 {
		return code, true
	}
	fmt.Fprintln(os.Stderr, "chaos:", err)
	return exitBroken, true
}

// The size of a small disk: blobs that nothing refers to any more stay for a day.
const (
	diskBytes          = 256 << 20
	diskBytesForSecond = 1 << 20
)

// canMount reports whether small disks can be mounted.
func canMount() bool { return os.Getenv(inside) != "" }

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
