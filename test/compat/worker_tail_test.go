package compat

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// following is a wrangler that follows a Worker.
type following struct {
	cmd  *exec.Cmd
	out  string // the file of what it prints
	done chan struct{}
}

// follow starts 'wrangler tail'. It is ended with the test, if not before.
func (w *wrangler) follow(t *testing.T, args ...string) *following {
	t.Helper()
	f := &following{out: filepath.Join(w.dir, "tail-"+fmt.Sprint(len(args))+".out"), done: make(chan struct{})}
	file, err := os.Create(f.out)
	check(t, err)
	defer file.Close() // the child has its own descriptor
	f.cmd = exec.Command(w.program[0], slices.Concat(w.program[1:], []string{"tail"}, args)...)
	f.cmd.Dir, f.cmd.Env, f.cmd.Stdout, f.cmd.Stderr = w.dir, w.env, file, file
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	check(t, f.cmd.Start())
	go func() {
		_ = f.cmd.Wait() // how it ended is not asked for
		close(f.done)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL) // what it started, too
		<-f.done
	})
	return f
}

func (f *following) text(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(f.out)
	check(t, err)
	return string(text)
}

// await asks the Worker for paths that each have a number, until the follower has
// shown one of those that were asked for so long after the first.
func (f *following) await(t *testing.T, host, prefix string, after time.Duration) {
	t.Helper()
	began, asked, wanted := time.Now(), 0, 0
	for time.Since(began) < after+liveTimeout {
		asked++
		_, _, err := fetch(t.Context(), host, fmt.Sprintf("/%s-%d.", prefix, asked))
		check(t, err)
		if wanted == 0 && time.Since(began) >= after {
			wanted = asked
		}
		text := f.text(t)
		for n := wanted; wanted > 0 && n <= asked; n++ {
			if strings.Contains(text, fmt.Sprintf("/%s-%d.", prefix, n)) {
				return
			}
		}
		select {
		case <-f.done:
			t.Fatalf("wrangler ended after %v:\n%s", time.Since(began), text)
		default:
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("wrangler shows nothing of %s after %v:\n%.3000s", host, after, f.text(t))
}

// openTails are the open tails of a Worker.
func openTails(t *testing.T, name string) string {
	t.Helper()
	e := shared.server.endpoint
	a, err := e.call(t.Context(), http.MethodGet, "/accounts/"+e.account+"/workers/scripts/"+name+"/tails", nil)
	check(t, err)
	return string(a.Result)
}

// TestWorkerTail: wrangler stays attached for longer than two of its pings, shows
// what the Worker does, filters it, and leaves nothing behind.
func TestWorkerTail(t *testing.T) {
	const longerThanPings = 25 * time.Second // it pings every 10 s and waits for the pong until the next
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		w.project(t, name, `export default {
	async fetch(request) {
		const path = new URL(request.url).pathname;
		console.log("asked for", path, { deep: [1, 2] });
		if (path.startsWith("/bad")) throw new Error("thrown for " + path);
		return new Response("fine");
	},
};`, "")
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		serves(t, hostOf(name), "fine")
		all := w.follow(t, name, "--format", "json")
		errs := w.follow(t, name, "--format", "pretty", "--status", "error")
		errs.await(t, hostOf(name), "bad", 0)
		all.await(t, hostOf(name), "bad", 0)
		all.await(t, hostOf(name), "good", longerThanPings)

		text := all.text(t)
		for _, want := range []string{`"outcome": "ok"`, `"outcome": "exception"`, `"scriptName": "` + name + `"`, `"asked for"`, `"deep"`, `"thrown for /bad-`} {
			if !strings.Contains(text, want) {
				t.Errorf("wrangler does not show %s:\n%.3000s", want, text)
			}
		}
		if text = errs.text(t); !strings.Contains(text, "thrown for /bad-") || strings.Contains(text, "/good-") {
			t.Errorf("wrangler shows other than what its filter says:\n%.3000s", text)
		}
		for _, f := range []*following{all, errs} {
			check(t, syscall.Kill(-f.cmd.Process.Pid, syscall.SIGINT)) // as a terminal does
			<-f.done
		}
		for deadline := time.Now().Add(liveTimeout); openTails(t, name) != "[]"; {
			if time.Now().After(deadline) {
				t.Fatalf("tails are left open: %s", openTails(t, name))
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}
