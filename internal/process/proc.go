package process

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tick is the unit of CPU time in /proc: USER_HZ is 100 on every Linux that Go
// runs on.
const Tick = 10 * time.Millisecond

// Stat is what the system tells of a process.
type Stat struct {
	Parent       int           // its process id
	User, System time.Duration // CPU time of all its threads together
}

// ReadStat reads the Stat of a process.
func ReadStat(pid int) (Stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, err
	}
	return parseStat(text)
}

// parseStat reads /proc/PID/stat. The second field is the command in parentheses,
// which may hold spaces and parentheses.
func parseStat(text []byte) (s Stat, err error) {
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return Stat{}, fmt.Errorf("stat of a process: %q", text)
	}
	parent, errParent := strconv.Atoi(fields[1])
	user, errUser := strconv.ParseInt(fields[11], 10, 64)
	system, errSystem := strconv.ParseInt(fields[12], 10, 64)
	if errUser != nil || errSystem != nil || errParent != nil {
		return Stat{}, fmt.Errorf("stat of a process: %q", text)
	}
	return Stat{parent, time.Duration(user) * Tick, time.Duration(system) * Tick}, nil
}

// CPU is the CPU time that processes have used.
func CPU(pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		s, err := ReadStat(pid)
		if err != nil {
			return 0, err
		}
		sum += s.User + s.System
	}
	return sum, nil
}

// Children are the processes whose parent is pid.
func Children(pid int) (children []int, err error) {
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, folder := range folders {
		child, err := strconv.Atoi(filepath.Base(folder))
		if err != nil {
			return nil, err
		}
		// One that cannot be read has ended meanwhile.
		if s, err := ReadStat(child); err == nil && s.Parent == pid {
			children = append(children, child)
		}
	}
	return children, nil
}
