package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

// systemShare is the part of a process's CPU time since its start that it spent in
// the system's calls.
func systemShare(pid int) (float64, error) {
	s, err := process.ReadStat(pid)
	return float64(s.System) / float64(max(s.User+s.System, process.Tick)), err
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

// proportional is the memory of processes, in bytes: what several share is divided
// among them.
func proportional(pids []int) (sum int64, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		kb, err := parsePss(string(text))
		if err != nil {
			return 0, err
		}
		sum += kb << 10
	}
	return sum, nil
}

// parsePss finds the line "Pss: N kB".
func parsePss(text string) (kb int64, err error) {
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(line, ":"); name == "Pss" {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	return 0, errors.New("smaps of a process: no Pss")
}
