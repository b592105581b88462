package workerd

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// The tightest of all groups around a process counts.
func TestTasksLeft(t *testing.T) {
	for name, c := range map[string]struct {
		membership string
		files      map[string]string
		want       int
	}{
		"version 2":     {"0::/a/b\n", map[string]string{"a/b/pids.max": "100\n", "a/b/pids.current": "30\n"}, 70},
		"the one above": {"0::/a/b\n", map[string]string{"a/b/pids.max": "100\n", "a/b/pids.current": "30\n", "a/pids.max": "40\n", "a/pids.current": "35\n"}, 5},
		"a container":   {"0::/\n", map[string]string{"pids.max": "50\n", "pids.current": "50\n"}, 0},
		"version 1":     {"8:pids:/x\n7:blkio:/\n0::/\n", map[string]string{"pids/x/pids.max": "20\n", "pids/x/pids.current": "12\n"}, 8},
		"no limit":      {"0::/a\n", map[string]string{"a/pids.max": "max\n", "a/pids.current": "30\n"}, math.MaxInt},
		"no groups":     {"", nil, math.MaxInt},
		"out of sight":  {"0::/../../x\n", nil, math.MaxInt},
	} {
		t.Run(name, func(t *testing.T) {
			root, membership := t.TempDir(), filepath.Join(t.TempDir(), "cgroup")
			err := os.WriteFile(membership, []byte(c.membership), 0o600)
			for file, text := range c.files {
				file = filepath.Join(root, file)
				err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := tasksLeftAt(membership, root); n != c.want {
				t.Errorf("%d, want %d", n, c.want)
			}
		})
	}
	if n := tasksLeftAt("/nowhere/cgroup", "/"); n != math.MaxInt {
		t.Errorf("nothing to read: %d", n)
	}
}
