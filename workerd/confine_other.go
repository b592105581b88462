//go:build !linux

package workerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func lockDir(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
}

func onOwnThread(f func()) { go f() }

// confine: only Linux has what isolates a process here.
func confine(command func() *exec.Cmd, _ string, opts *Options, w *walls) (*exec.Cmd, error) {
	if opts.RequireIsolation {
		return nil, fmt.Errorf("isolate a Worker: %w", errors.ErrUnsupported)
	}
	w.shared.Store(true)
	cmd := command()
	return cmd, cmd.Start()
}

func sacrifice(int) {}

func limit(int, int64) {}

func stopped(int) bool { return false }

func usage(int) (time.Duration, int64, error) { return 0, 0, errors.ErrUnsupported }

const spareTasks = 0

func tasksLeft() int { return 1 }
