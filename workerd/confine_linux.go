package workerd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// namespaces are what a process has for itself: no network, none of our
// processes in sight, and no rights over anything.
const namespaces = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS |
	syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// reservedBytes is address space that workerd counts as data before it holds any.
const reservedBytes = 640 << 20

const maxFiles = 4096 // of a process: a connection is one

// lockDir holds a folder for this process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the folder of Workers: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if err == syscall.EWOULDBLOCK {
			err = ErrInUse
		}
		return nil, fmt.Errorf("lock the folder of Workers: %w", err)
	}
	return f, nil
}

// onOwnThread runs f on a thread that does nothing else and ends with it. The
// first thread of a program cannot end, so it is not taken.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() == syscall.Getpid() {
			other := make(chan struct{})
			go func() {
				defer close(other)
				runtime.LockOSThread()
				f()
			}()
			<-other
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
}

// confine starts the command with as little as the kernel lets us give it. It
// restricts the thread that it runs on for ever.
func confine(command func() *exec.Cmd, dir string, opts *Options, w *walls) (*exec.Cmd, error) {
	disinherit()
	cmd := command()
	if err := restrict(cmd.Path, dir); err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if w.shared.Load() && !opts.RequireIsolation {
		return cmd, cmd.Start()
	}
	cmd.SysProcAttr.Cloneflags = namespaces
	err := cmd.Start()
	if err == nil {
		w.given.Store(true)
		return cmd, nil
	}
	if err := w.refused(err, opts); err != nil {
		return nil, err
	}
	cmd = command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// refused decides what to do when a start failed that asked for namespaces: nil is
// to do without. Where the kernel gave them before, it has too many at the moment:
// that is no reason to take a wall down for ever.
func (w *walls) refused(err error, opts *Options) error {
	switch {
	case !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EUSERS):
		return err
	case opts.RequireIsolation:
		return fmt.Errorf("give a Worker its own namespaces, which are required: %w", err)
	case w.given.Load():
		return fmt.Errorf("give a Worker its own namespaces, as others have: %w", err)
	}
	if !w.shared.Swap(true) {
		opts.Logger.Warn("Workers run without namespaces of their own: the kernel refuses them", "error", err)
	}
	return nil
}

// disinherit keeps what this process got open from whoever started it, and what a
// library opened carelessly, from those that it starts. Kernels before 5.11 cannot.
func disinherit() {
	const closeRange, onExec = 436, 1 << 2
	_, _, _ = syscall.RawSyscall(closeRange, 3, math.MaxInt32, onExec)
}

// What the kernel's Landlock calls rights, and its calls.
const (
	landCreate, landAdd, landRestrict = 444, 445, 446

	landExecute, landWrite, landRead, landList = 1 << 0, 1 << 1, 1 << 2, 1 << 3

	landNetABI, landScopeABI = 4, 6
	landTCP                  = 1<<0 | 1<<1 // bind, connect
	landAbstract             = 1 << 0      // abstract unix sockets
)

// landRights are all rights over files, by version of Landlock.
var landRights = []uint64{0, 1<<13 - 1, 1<<14 - 1, 1<<15 - 1, 1<<15 - 1, 1<<16 - 1}

// restrict takes from this thread, and from what it starts, all files but those
// that a process needs to start, and all TCP. Where the kernel has no Landlock,
// files are as open as their permissions.
func restrict(program, dir string) error {
	const noNewPrivileges = 38
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivileges, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("renounce new privileges: %w", e)
	}
	abi, _, e := syscall.RawSyscall(landCreate, 0, 0, 1)
	if e != 0 {
		return nil
	}
	rules := struct{ files, net, scope uint64 }{files: landRights[min(int(abi), len(landRights)-1)]}
	size := uintptr(8)
	if abi >= landNetABI {
		rules.net, size = landTCP, 16
	}
	if abi >= landScopeABI {
		rules.scope, size = landAbstract, 24
	}
	set, _, e := syscall.RawSyscall(landCreate, uintptr(unsafe.Pointer(&rules)), size, 0)
	if e != 0 {
		return fmt.Errorf("make a rule set of Landlock: %w", e)
	}
	defer func() { _ = syscall.Close(int(set)) }()
	allowed := []struct {
		path   string
		rights uint64
	}{
		{program, landExecute | landRead},
		{dir, landRead | landList},
		{"/lib", landExecute | landRead | landList},
		{"/lib64", landExecute | landRead | landList},
		{"/usr/lib", landExecute | landRead | landList},
		{"/usr/lib64", landExecute | landRead | landList},
		{"/nix/store", landExecute | landRead | landList},
		{"/etc/ld.so.cache", landRead},
		{"/dev/null", landRead | landWrite},
		{"/dev/urandom", landRead},
		{"/sys/devices/system/cpu", landRead | landList},
	}
	for _, a := range allowed {
		if err := allow(int(set), a.path, a.rights); err != nil {
			return err
		}
	}
	if _, _, e := syscall.RawSyscall(landRestrict, set, 0, 0); e != 0 {
		return fmt.Errorf("restrict a thread by Landlock: %w", e)
	}
	return nil
}

// allow adds a path to a rule set; one that does not exist is no loss.
func allow(set int, path string, rights uint64) error {
	const openPath = 0x200000 // O_PATH
	fd, err := syscall.Open(path, openPath|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = syscall.Close(fd) }()
	rule := [12]byte{} // packed: the rights, then the file
	binary.NativeEndian.PutUint64(rule[:], rights)
	binary.NativeEndian.PutUint32(rule[8:], uint32(fd))
	if _, _, e := syscall.RawSyscall6(landAdd, uintptr(set), 1, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return fmt.Errorf("allow %s by Landlock: %w", path, e)
	}
	return nil
}

// sacrifice makes a process one of the first to go when the machine has no memory
// left; where that is refused, the kernel chooses.
func sacrifice(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("500"), 0)
}

// limit bounds what a process may take, as a second wall: the watch is the first.
func limit(pid int, memory int64) {
	const core, files, data = 4, 7, 2
	for resource, value := range map[uintptr]uint64{data: uint64(memory) + reservedBytes, core: 0, files: maxFiles} {
		rlimit := syscall.Rlimit{Cur: value, Max: value}
		_, _, _ = syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), resource, uintptr(unsafe.Pointer(&rlimit)), 0, 0, 0)
	}
}

// stopped reports whether a signal has stopped a process. One that a debugger holds
// is none.
func stopped(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" T"))
}

// usage returns the CPU time that a process has used and its resident memory.
func usage(pid int) (cpu time.Duration, resident int64, err error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	const ticks = 100 // per second, on every Linux that Go runs on
	// The name, in brackets, may hold anything; fields count from the state, 3.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 22 {
		return 0, 0, fmt.Errorf("read what process %d uses: %d fields", pid, len(fields))
	}
	var values [3]int64
	for i, field := range []int{14, 15, 24} {
		if values[i], err = strconv.ParseInt(string(fields[field-3]), 10, 64); err != nil {
			return 0, 0, fmt.Errorf("read what process %d uses: %w", pid, err)
		}
	}
	return time.Duration(values[0]+values[1]) * time.Second / ticks, values[2] * int64(os.Getpagesize()), nil
}
