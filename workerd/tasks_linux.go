package workerd

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// spareTasks are the processes and threads that Workers leave to this server: Go ends
// a program that is refused a thread, and a process of a Worker needs some itself.
const spareTasks = 32

// tasksLeft is how many processes and threads the control groups of this process
// still allow, or more than anyone has.
func tasksLeft() int { return tasksLeftAt("/proc/self/cgroup", "/sys/fs/cgroup") }

// tasksLeftAt looks at each group from that of the process to the topmost that can
// be seen. One that cannot be read limits nothing.
func tasksLeftAt(membership, root string) int {
	text, err := os.ReadFile(membership)
	if err != nil {
		return math.MaxInt
	}
	left := math.MaxInt
	for line := range strings.SplitSeq(string(text), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		top := root // of version 2
		if fields[1] == "pids" {
			top = filepath.Join(root, "pids")
		} else if fields[1] != "" {
			continue
		}
		for group := filepath.Clean("/" + fields[2]); ; group = filepath.Dir(group) {
			most, ok := readTasks(filepath.Join(top, group, "pids.max"))
			used, ok2 := readTasks(filepath.Join(top, group, "pids.current"))
			if ok && ok2 {
				left = min(left, most-used)
			}
			if group == "/" {
				break
			}
		}
	}
	return left
}

// readTasks reads a number; "max" is none.
func readTasks(file string) (int, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return n, err == nil
}
