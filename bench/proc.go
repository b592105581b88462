package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on every Linux that Go
// runs on.
const tick = 10 * time.Millisecond

// cpuOf is the CPU time that processes have used, all their threads together.
func cpuOf(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		used, _, err := parseStat(text)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// systemShare is the part of a process's CPU time since its start that it spent in
// the system's calls.
func systemShare(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	all, _, err := parseStat(text)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return float64(system) * float64(tick) / float64(max(all, tick)), err
}

// waitOf is how long the threads of processes, all together, were ready to run
// while something else had the core: another process, or another of them. It is
// zero where the system does not count it.
func waitOf(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/schedstat", pid)) // the pattern is right
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // the thread ended meanwhile, or the system does not count
			}
			if fields := strings.Fields(string(text)); len(fields) == 3 {
				waited, _ := strconv.ParseInt(fields[1], 10, 64) // the system's own
				sum += time.Duration(waited)
			}
		}
	}
	return sum
}

// parseStat reads the CPU time and the parent from /proc/PID/stat. The second
// field is the command in parentheses, which may hold spaces and parentheses.
func parseStat(text []byte) (used time.Duration, parent int, err error) {
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("stat of a process: %q", text)
	}
	user, errUser := strconv.ParseInt(fields[11], 10, 64)
	system, errSystem := strconv.ParseInt(fields[12], 10, 64)
	parent, errParent := strconv.Atoi(fields[1])
	if errUser != nil || errSystem != nil || errParent != nil {
		return 0, 0, fmt.Errorf("stat of a process: %q", text)
	}
	return time.Duration(user+system) * tick, parent, nil
}

// childrenOf returns the processes whose parent is pid.
func childrenOf(pid int) ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		if _, parent, err := parseStat(text); err == nil && parent == pid {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				return nil, err
			}
			children = append(children, child)
		}
	}
	return children, nil
}

// usage is the memory that a process occupies, in bytes.
type usage struct{ resident, peak int64 }

func memoryOf(pid int) (usage, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, err
	}
	return parseStatus(string(text))
}

func parseStatus(text string) (usage, error) {
	var m usage
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmRSS": &m.resident, "VmHWM": &m.peak}[name]
		if into == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("status of a process: %w", err)
		}
		*into = kb << 10
	}
	if m.resident == 0 || m.peak == 0 {
		return usage{}, fmt.Errorf("status of a process: no VmRSS or VmHWM")
	}
	return m, nil
}

// ownCPU is the CPU time that this process, the client, has used.
func ownCPU() (time.Duration, error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// diskBytes is the space that the files of a folder occupy.
func diskBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil // removed by a compaction meanwhile
		}
		if err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return sum, err
}
