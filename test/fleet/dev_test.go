package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// devFleet is the fleet of a 'nearkey dev'.
type devFleet struct {
	*fleet
	*process.Program
	data string
}

// startDev starts a fleet and waits until it says that it is ready.
func startDev(t *testing.T, edges, regions int, args ...string) *devFleet {
	t.Helper()
	f := &devFleet{fleet: &fleet{}, data: t.TempDir()}
	f.Program = start(t, nil, append([]string{"dev", "--data", f.data, "--listen", "127.0.0.1:0",
		"--edges", strconv.Itoa(edges), "--regions", strconv.Itoa(regions)}, args...)...)
	t.Cleanup(func() { f.logs(t) })
	nearkeytest.Eventually(t, "the fleet is ready", func() error {
		select {
		case <-f.Done():
			t.Fatalf("the fleet ended: %s", f.Output())
		default:
		}
		if !strings.Contains(f.Output(), "nearkey dev: ready") {
			return errors.New(f.Output())
		}
		return nil
	})
	f.credentials(t, f.data)
	for i := range edges {
		file := filepath.Join(f.data, "listen-address")
		if i > 0 {
			file = filepath.Join(f.data, "fleet", fmt.Sprintf("edge-%d.address", i+1))
		}
		f.add("edge-"+strconv.Itoa(i+1), line(t, file))
	}
	return f
}

// logs looks through the logs of the processes.
func (f *devFleet) logs(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.data, "fleet", "*.log"))
	if err != nil || len(files) == 0 {
		t.Errorf("logs: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		sound(t, file, string(text))
		if t.Failed() {
			t.Logf("%s:\n%s", file, text)
		}
	}
}

// pid is the process id of a process of the fleet.
func (f *devFleet) pid(t *testing.T, name string) int {
	t.Helper()
	pid, err := strconv.Atoi(line(t, filepath.Join(f.data, "fleet", name+".pid")))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// signalTo sends a signal to a process of the fleet.
func (f *devFleet) signalTo(t *testing.T, name string, s syscall.Signal) {
	t.Helper()
	pid := f.pid(t, name)
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("send %s to %s: %v", s, name, err)
	}
	if s == syscall.SIGSTOP { // each thread stops when it is next looked at
		nearkeytest.Eventually(t, name+" has stopped", func() error { return allStopped(pid) })
	}
}

// allStopped returns an error while a thread of a process still runs.
func allStopped(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		return fmt.Errorf("threads of process %d: %d, %w", pid, len(threads), err)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(rest, "T") {
			return fmt.Errorf("%s: %.1s", path, rest)
		}
	}
	return nil
}

// pids are the process ids of all processes of the fleet.
func (f *devFleet) pids(t *testing.T) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.data, "fleet", "*.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".pid")
		pids[name] = f.pid(t, name)
	}
	return pids
}

// gone waits until none of the processes runs.
func gone(t *testing.T, pids map[string]int) {
	t.Helper()
	nearkeytest.Eventually(t, "all processes are gone", func() error {
		for name, pid := range pids {
			if alive(pid) {
				return fmt.Errorf("%s, process %d, still runs", name, pid)
			}
		}
		return nil
	})
}

// TestDev is one fleet of three edges in two regions: edges 1 and 3 follow
// region 1, edge 2 follows region 2.
func TestDev(t *testing.T) {
	f := startDev(t, 3, 2)
	s := f.edges[1].createSpace(t, "first")
	f.edges[1].put(t, s, "at once", "1") // through the edge that created the namespace
	for _, step := range []struct {
		name string
		test func(t *testing.T, f *devFleet, s space)
	}{
		{"every edge reads what any has written", everyEdge},
		{"a writer reads its own writes", ownWrites},
		{"the checker finds what is stale", staleWrites},
		{"other points of presence lag", othersLag},
		{"what was not there is seen when it is", notThere},
		{"tokens", tokens},
		{"namespaces", namespaces},
		{"copies", copies},
		{"the command line", commandLine},
		{"a regional tier hangs", regionalHangs},
		{"the centre is killed", centreKilled},
		{"an edge is killed", edgeKilled},
		{"everything is killed", everythingKilled},
		{"it stops", stops},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, f, s) }) {
			t.FailNow()
		}
	}
}

func everyEdge(t *testing.T, f *devFleet, s space) {
	for i, writer := range f.edges {
		key, value := fmt.Sprintf("from %d", i), fmt.Sprintf("written by %s", writer.name)
		writer.put(t, s, key, value)
		began := time.Now()
		for _, reader := range f.edges {
			nearkeytest.Eventually(t, "what "+writer.name+" has written", func() error { return reader.reads(s, key, value) })
		}
		writer.put(t, s, key, "2 "+value)
		for _, reader := range f.edges {
			nearkeytest.Eventually(t, "what "+writer.name+" has overwritten", func() error { return reader.reads(s, key, "2 "+value) })
		}
		t.Logf("%s: both writes were seen everywhere after %s", writer.name, time.Since(began).Round(time.Millisecond))
	}
}

func ownWrites(t *testing.T, f *devFleet, s space) {
	for _, e := range f.edges {
		c := newChecker(t, e, e, s)
		c.run(t, 100)
		if len(c.violations) > 0 {
			t.Errorf("%s: %d reads were stale, such as\n%s", e.name, len(c.violations), strings.Join(c.violations[:min(5, len(c.violations))], "\n"))
		}
	}
}

// staleWrites is the control of the checker: behind a regional tier that hangs an
// edge cannot know what others write.
func staleWrites(t *testing.T, f *devFleet, s space) {
	const key = "control"
	f.edges[0].put(t, s, key, "old")
	nearkeytest.Eventually(t, "the key behind region 2", func() error { return f.edges[1].reads(s, key, "old") })
	f.edges[1].warm(t, s, key, "old")
	f.signalTo(t, "region-2", syscall.SIGSTOP)
	defer f.signalTo(t, "region-2", syscall.SIGCONT)
	c := newChecker(t, f.edges[0], f.edges[1], s)
	f.edges[0].put(t, s, key, "new")
	c.checkValue(t, key, expected{value: "new", exists: true})
	if len(c.violations) != 1 {
		t.Errorf("the checker found %d violations, want 1", len(c.violations))
	}
}

// othersLag is the control of TestShared: an edge of another point of presence is
// told of a write after it was acknowledged.
func othersLag(t *testing.T, f *devFleet, s space) {
	c := newChecker(t, f.edges[0], f.edges[2], s)
	c.run(t, 100)
	if len(c.violations) == 0 {
		t.Error("no read was stale: either nothing was near, or the checker sees nothing")
	}
	t.Logf("%d reads were stale", len(c.violations))
}

func notThere(t *testing.T, f *devFleet, s space) {
	for range 3 {
		for _, e := range f.edges {
			if err := e.misses(s, "not there"); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.edges[0].put(t, s, "not there", "now it is")
	if err := f.edges[0].reads(s, "not there", "now it is"); err != nil {
		t.Error(err)
	}
	began := time.Now()
	for _, e := range f.edges {
		nearkeytest.Eventually(t, "the key that was not there", func() error { return e.reads(s, "not there", "now it is") })
	}
	t.Logf("seen everywhere after %s", time.Since(began).Round(time.Millisecond))
}

// tokenOf creates a token for a namespace through an edge.
func tokenOf(t *testing.T, e *edge, s space) (id, secret string) {
	t.Helper()
	var made struct{ ID, Value string }
	e.must(t, "POST", e.path()+"/tokens", map[string]any{"name": "reader", "policies": []any{map[string]any{
		"effect": "allow", "permission_groups": []any{map[string]string{"name": "Workers KV Storage Read"}},
		"resources": map[string]string{"com.nearkey.kv.namespace." + string(s): "*"},
	}}}, &made)
	return made.ID, made.Value
}

func tokens(t *testing.T, f *devFleet, s space) {
	f.edges[0].put(t, s, "guarded", "value")
	id, secret := tokenOf(t, f.edges[2], s)
	path := f.valuePath(s, "guarded")
	for _, e := range f.edges {
		if a, err := e.ask(secret+"x", "GET", path, nil); err != nil || a.status != http.StatusForbidden && a.status != http.StatusUnauthorized {
			t.Errorf("%s: a token that was never made: %v, %v", e.name, a, err)
		}
		for range 3 { // the hot path, too
			nearkeytest.Eventually(t, "the token at "+e.name, func() error { return statusOf(e, secret, "GET", path, http.StatusOK) })
		}
		if err := statusOf(e, secret, "PUT", path, http.StatusForbidden); err != nil {
			t.Errorf("a write by a token that may read: %v", err)
		}
	}
	f.edges[1].must(t, "DELETE", f.path()+"/tokens/"+id, nil, nil)
	began := time.Now()
	for _, e := range f.edges {
		nearkeytest.Eventually(t, "the revoked token at "+e.name, func() error { return statusOf(e, secret, "GET", path, http.StatusForbidden) })
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a revoked token was accepted for %s", took)
	}
}

func statusOf(e *edge, token, method, path string, want int) error {
	a, err := e.ask(token, method, path, nil)
	if err == nil && a.status != want {
		err = fmt.Errorf("%s: %s, want %d", e.name, a, want)
	}
	return err
}

func namespaces(t *testing.T, f *devFleet, _ space) {
	s := f.edges[2].createSpace(t, "second")
	for i, e := range f.edges {
		key := "of " + e.name
		nearkeytest.Eventually(t, "the namespace at "+e.name, func() error {
			return statusOf(e, e.token, "PUT", f.valuePath(s, key), http.StatusOK)
		})
		nearkeytest.Eventually(t, "the key of "+e.name, func() error { return f.edges[(i+1)%3].reads(s, key, "") })
	}
	f.edges[0].must(t, "DELETE", f.spacePath(s), nil, nil)
	for _, e := range f.edges {
		nearkeytest.Eventually(t, "the deleted namespace at "+e.name, func() error { return e.misses(s, "of edge-1") })
	}
}

// copies: an answer from near says so, and how old it is; both paths agree.
func copies(t *testing.T, f *devFleet, s space) {
	f.edges[0].put(t, s, "copied", "value")
	for _, e := range f.edges {
		nearkeytest.Eventually(t, e.name+" knows the key", func() error { return e.reads(s, "copied", "value") })
		e.warm(t, s, "copied", "value")
		hot, err := e.get(s, "copied")
		if err != nil {
			t.Fatal(err)
		}
		cold, err := e.ask(e.token, "GET", f.valuePath(s, "copied")+"?cacheTtl=60", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"Cf-Cache-Status", "Content-Type", "Content-Length", "X-Content-Type-Options"} {
			if hot.header.Get(name) != cold.header.Get(name) || hot.header.Get(name) == "" {
				t.Errorf("%s: %s is %q on one path and %q on the other", e.name, name, hot.header.Get(name), cold.header.Get(name))
			}
		}
		if hot.header.Get("Age") == "" || cold.header.Get("Age") == "" || !bytes.Equal(hot.body, cold.body) {
			t.Errorf("%s: %s with age %q, %s with age %q", e.name, hot, hot.header.Get("Age"), cold, cold.header.Get("Age"))
		}
	}
}

// commandLine: 'nearkey env' of the data directory leads to the first edge.
func commandLine(t *testing.T, f *devFleet, _ space) {
	out, err := exec.Command(binary, "env", "--json", "--data", f.data).Output()
	var variables map[string]string
	if err == nil {
		err = json.Unmarshal(out, &variables)
	}
	if want := f.edges[0].url + "/client/v4"; err != nil || variables["CLOUDFLARE_API_BASE_URL"] != want || variables["CLOUDFLARE_ACCOUNT_ID"] != f.account {
		t.Errorf("%v, %v; want %s", variables, err, want)
	}
	list, err := exec.Command(binary, "namespace", "list", "--data", f.data).Output()
	if err != nil || !strings.Contains(string(list), "first") {
		t.Errorf("namespaces: %s, %v", list, err)
	}
}

func regionalHangs(t *testing.T, f *devFleet, s space) {
	behind, others := f.edges[1], []*edge{f.edges[0], f.edges[2]}
	f.edges[0].put(t, s, "before", "1")
	nearkeytest.Eventually(t, "the key behind region 2", func() error { return behind.reads(s, "before", "1") })
	behind.warm(t, s, "before", "1")
	f.signalTo(t, "region-2", syscall.SIGSTOP)
	stopped := true
	defer func() {
		if stopped {
			f.signalTo(t, "region-2", syscall.SIGCONT)
		}
	}()
	f.edges[0].put(t, s, "before", "2")
	for _, e := range others {
		nearkeytest.Eventually(t, "a write while region 2 hangs", func() error { return e.reads(s, "before", "2") })
	}
	if a, err := behind.get(s, "before"); err != nil || a.status != http.StatusOK || a.cache() != "HIT" && a.cache() != "STALE" {
		t.Errorf("%s: a hot copy behind a regional tier that hangs: %v, %v", behind.name, a, err)
	}
	written := make(chan error, 1)
	go func() { written <- statusOf(behind, behind.token, "PUT", f.valuePath(s, "meanwhile"), http.StatusOK) }()
	f.signalTo(t, "region-2", syscall.SIGCONT)
	stopped = false
	if err := <-written; err != nil {
		t.Errorf("a write that waited for the regional tier: %v", err)
	} else if err := behind.reads(s, "meanwhile", ""); err != nil {
		t.Error(err)
	}
	nearkeytest.Eventually(t, "what was written while region 2 hung", func() error { return behind.reads(s, "before", "2") })
}

// restarted waits until a process that was killed runs again.
func (f *devFleet) restarted(t *testing.T, name string, old int) {
	t.Helper()
	nearkeytest.Eventually(t, name+" runs again", func() error {
		if pid := f.pid(t, name); pid == old || !alive(pid) {
			return fmt.Errorf("process %d", pid)
		}
		return nil
	})
}

func centreKilled(t *testing.T, f *devFleet, s space) {
	f.edges[0].put(t, s, "hot", "value")
	for _, e := range f.edges {
		nearkeytest.Eventually(t, e.name+" knows the key", func() error { return e.reads(s, "hot", "value") })
		e.warm(t, s, "hot", "value")
	}
	old := f.pid(t, "central")
	f.signalTo(t, "central", syscall.SIGKILL)
	served := 0
	for back := false; !back; {
		for _, e := range f.edges {
			a, err := e.get(s, "hot")
			if err != nil || a.status != http.StatusOK || string(a.body) != "value" || a.cache() != "HIT" && a.cache() != "STALE" {
				t.Fatalf("%s, while the centre is away: %v, %v", e.name, a, err)
			}
			served++
		}
		back = f.pid(t, "central") != old
	}
	t.Logf("%d reads were served while the centre was away", served)
	f.restarted(t, "central", old)
	recovers(t, f.fleet, s, "after the centre came back")
}

// recovers: a write through each edge is seen through all others.
func recovers(t *testing.T, f *fleet, s space, when string) {
	t.Helper()
	for i, e := range f.edges {
		nearkeytest.Eventually(t, "a write "+when, func() error { return statusOf(e, e.token, "PUT", f.valuePath(s, when+strconv.Itoa(i)), http.StatusOK) })
	}
	for i := range f.edges {
		for _, e := range f.edges {
			nearkeytest.Eventually(t, "a read "+when, func() error { return e.reads(s, when+strconv.Itoa(i), "") })
		}
	}
	for _, e := range f.edges {
		nearkeytest.Eventually(t, e.name+" is ready "+when, e.ready)
	}
}

func edgeKilled(t *testing.T, f *devFleet, s space) {
	old := f.pid(t, "edge-2")
	f.signalTo(t, "edge-2", syscall.SIGKILL)
	f.edges[0].put(t, s, "while edge 2 is dead", "1")
	f.restarted(t, "edge-2", old)
	nearkeytest.Eventually(t, "edge 2 is ready again", f.edges[1].ready)
	if err := f.edges[1].reads(s, "while edge 2 is dead", "1"); err != nil {
		t.Error(err)
	}
}

// everythingKilled: all processes die at once and come back in whatever order.
func everythingKilled(t *testing.T, f *devFleet, s space) {
	f.edges[0].put(t, s, "acknowledged", "kept")
	pids := f.pids(t)
	for name := range pids {
		f.signalTo(t, name, syscall.SIGKILL)
	}
	for name, pid := range pids {
		f.restarted(t, name, pid)
	}
	recovers(t, f.fleet, s, "after all had died")
	for _, e := range f.edges {
		if err := e.reads(s, "acknowledged", "kept"); err != nil {
			t.Error(err)
		}
	}
}

// stops: told to stop, the fleet ends without an error and leaves nothing behind.
func stops(t *testing.T, f *devFleet, _ space) {
	pids := f.pids(t)
	if len(pids) != 6 {
		t.Errorf("processes: %v", pids)
	}
	if err := f.End(syscall.SIGINT, nearkeytest.Patience); err != nil {
		t.Error(err)
	}
	for name, pid := range pids {
		if alive(pid) {
			t.Errorf("%s, process %d, still runs", name, pid)
		}
	}
	if left := f.pids(t); len(left) > 0 {
		t.Errorf("process ids are left: %v", left)
	}
}

// TestShared: two edges behind one address. What one has acknowledged the other
// knows, also after it hung.
func TestShared(t *testing.T) {
	f := startDev(t, 2, 1, "--shared")
	s := f.edges[0].createSpace(t, "first")
	for i, e := range f.edges {
		c := newChecker(t, e, f.edges[1-i], s)
		c.run(t, 100)
		if len(c.violations) > 0 {
			t.Errorf("written through %s: %d reads were stale, such as\n%s", e.name, len(c.violations), strings.Join(c.violations[:min(5, len(c.violations))], "\n"))
		}
	}
	f.edges[0].put(t, s, "key", "1")
	f.edges[1].warm(t, s, "key", "1")
	f.signalTo(t, "edge-2", syscall.SIGSTOP)
	began := time.Now()
	f.edges[0].put(t, s, "key", "2")
	took := time.Since(began)
	f.signalTo(t, "edge-2", syscall.SIGCONT)
	if err := f.edges[1].reads(s, "key", "2"); err != nil {
		t.Errorf("after it hung: %v", err)
	}
	if took > 10*time.Second {
		t.Errorf("a member that hung held a write up for %s", took)
	}
	t.Logf("a member that hung held a write up for %s", took.Round(time.Millisecond))
	// Killed outright, the parent leaves nothing behind either.
	pids := f.pids(t)
	f.Kill()
	gone(t, pids)
}
