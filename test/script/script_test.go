// Package script_test runs the real binary as a person would: each file of
// testdata is a scenario, a text of commands and what they must print.
//
// It keeps nothing; a scenario's directory goes when the scenario ends.
package script_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
	"github.com/rogpeppe/go-internal/testscript"
)

const (
	patience = 60 * time.Second      // for whatever a scenario waits for
	interval = 10 * time.Millisecond // between two looks at it
	latency  = 60 * time.Millisecond // of the network that 'slow' makes
)

// TestMain puts the binary at the front of the path.
func TestMain(m *testing.M) {
	os.Exit(nearkeytest.Main(context.Background(), m, func(binary string) {
		os.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
	}))
}

func TestScenarios(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":      cmdCode,
			"serve":     cmdServe,
			"stop":      cmdStop,
			"crash":     cmdCrash,
			"slow":      cmdSlow,
			"generate":  cmdGenerate,
			"await":     cmdAwait,
			"interrupt": cmdInterrupt,
			"evaluate":  cmdEvaluate,
			"mode":      cmdMode,
		},
		Setup: func(env *testscript.Env) error {
			env.Values[serversKey{}] = &servers{byName: map[string]*process.Program{}}
			return nil
		},
	})
}

type serversKey struct{}

// servers are those that run in the background.
type servers struct {
	mu     sync.Mutex // guards byName
	byName map[string]*process.Program
}

func (s *servers) take(name string) *process.Program {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.byName[name]
	delete(s.byName, name)
	return found
}

// until looks until ok, and fails the scenario if that takes too long.
func until(ts *testscript.TestScript, what string, ok func() bool) {
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			ts.Fatalf("waited %s for %s", patience, what)
		}
		<-time.After(interval)
	}
}

// environment is that of the scenario, for a process that ts does not start.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "NEARKEY_API_TOKEN", "NEARKEY_ACCOUNT_ID", "NEARKEY_API_BASE_URL", "NEARKEY_DATA"} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// cmdCode runs a command that must exit with a code: code 3 nearkey kv get a b
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdServe starts a server and waits until it listens: serve NAME DATA [flags...]
// Its output is in NAME.log.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: serve NAME DATA [flags...]")
	}
	name, data := args[0], ts.MkAbs(args[1])
	address := filepath.Join(data, "listen-address")
	_ = os.Remove(address) // of a server that crashed
	log, err := os.OpenFile(ts.MkAbs(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	flags := append([]string{"serve", "--data", data}, args[2:]...)
	if !strings.Contains(strings.Join(flags, " "), "--listen") {
		flags = append(flags, "--listen", "127.0.0.1:0")
	}
	cmd := exec.Command("nearkey", flags...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), environment(ts), log, log
	s, err := process.Start(cmd)
	ts.Check(err)
	all := ts.Value(serversKey{}).(*servers)
	all.mu.Lock()
	all.byName[name] = s
	all.mu.Unlock()
	ts.Defer(func() {
		if s := all.take(name); s != nil {
			s.Kill()
		}
	})
	until(ts, "the server to listen", func() bool {
		select {
		case <-s.Done():
			ts.Fatalf("the server ended: %v\n%s", s.Err(), ts.ReadFile(name+".log"))
		default:
		}
		_, err := os.Stat(address)
		return err == nil
	})
	text, err := os.ReadFile(address)
	ts.Check(err)
	ts.Setenv("ADDRESS", strings.TrimSpace(string(text)))
}

// serverOf takes a server out of those that run.
func serverOf(ts *testscript.TestScript, name string) *process.Program {
	s := ts.Value(serversKey{}).(*servers).take(name)
	if s == nil {
		ts.Fatalf("there is no server %q", name)
	}
	return s
}

// cmdStop ends a server with SIGTERM; it must end without an error.
func cmdStop(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: stop NAME")
	}
	if err := serverOf(ts, args[0]).End(syscall.SIGTERM, patience); err != nil {
		ts.Fatalf("the server ended with %v\n%s", err, ts.ReadFile(args[0]+".log"))
	}
}

// cmdCrash kills a server.
func cmdCrash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: crash NAME")
	}
	serverOf(ts, args[0]).Kill()
}

// cmdSlow puts a slow network before the server at $ADDRESS and sets SLOW to the
// base URL of the API through it.
func cmdSlow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: slow")
	}
	target := &url.URL{Scheme: "http", Host: ts.Getenv("ADDRESS")}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(latency):
		}
		proxy.ServeHTTP(w, r)
	}))
	ts.Defer(server.Close)
	ts.Setenv("SLOW", server.URL)
}

// cmdGenerate writes an export of n records: generate FILE N [text]. Every kind
// of record is in it, unless only text is wanted: text and bytes, empty values,
// metadata, expirations.
func cmdGenerate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: generate FILE N [text]")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	w := client.NewRecordWriter(f)
	expiration := time.Now().Add(24 * time.Hour).Unix()
	for i := range n {
		rec := client.Record{Key: fmt.Sprintf("key/%07d é?#%%2F", i), Value: fmt.Appendf(nil, "value <%d>\n", i)}
		switch i % 10 {
		case 1:
			if len(args) == 3 {
				break
			}
			rec.Value = []byte{byte(i), 0xff, 0, byte(i >> 8)}
		case 2:
			rec.Value = nil
		case 3:
			rec.Metadata = fmt.Appendf(nil, `{"i":%d,"html":"<&>"}`, i)
		case 4:
			rec.Expiration = expiration
		case 5:
			rec.Metadata, rec.Expiration = []byte(`"text"`), expiration
		}
		ts.Check(w.Write(rec))
	}
	ts.Check(w.Close())
}

// someDone reports whether a journal says that some items are done.
func someDone(journal string) bool {
	text, err := os.ReadFile(journal)
	var state struct{ Items int64 }
	return err == nil && json.Unmarshal(text, &state) == nil && state.Items > 0
}

// cmdAwait waits until a journal says that some items are done: await JOURNAL
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await JOURNAL")
	}
	journal := ts.MkAbs(args[0])
	until(ts, "some items to be done", func() bool { return someDone(journal) })
}

// cmdInterrupt runs a command, waits until its journal says that some items are
// done, and kills it: interrupt JOURNAL nearkey import ...
func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupt JOURNAL command [args...]")
	}
	journal := ts.MkAbs(args[0])
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environment(ts)
	running, err := process.Start(cmd)
	ts.Check(err)
	ts.Defer(running.Kill)
	until(ts, "some items to be done", func() bool {
		select {
		case <-running.Done():
			ts.Fatalf("it ended before it was interrupted: %v\n%s", running.Err(), running.Output())
		default:
		}
		return someDone(journal)
	})
	running.Kill()
}

// cmdEvaluate sets the variables that the last output of 'nearkey env --json' named.
func cmdEvaluate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: evaluate")
	}
	variables := map[string]string{}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &variables))
	for name, value := range variables {
		ts.Setenv(name, value)
	}
}

// cmdMode checks the permissions of a file: mode 0600 FILE
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode MODE FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
