package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/websocket"
)

// fakeWorkers is a server with a Worker named shop.
type fakeWorkers struct {
	*httptest.Server
	tail func(n int, c *websocket.Conn) // serves the nth follower

	mu        sync.Mutex // guards the rest
	asked     []string   // method, path after …/workers/scripts, body
	followers int
	runs      []string // what the history tells when it is asked for, one after the other
	run       string
}

func newFakeWorkers(t *testing.T) *fakeWorkers {
	f := &fakeWorkers{}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeWorkers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, path, _ := strings.Cut(r.URL.RequestURI(), "/workers/scripts")
	f.mu.Lock()
	f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+path+" "+string(body)))
	f.mu.Unlock()
	if r.Header.Get("Upgrade") != "" {
		conn, err := websocket.Upgrade(w, r, "trace-v1", websocket.Options{})
		if err != nil {
			return
		}
		defer conn.Close()
		f.mu.Lock()
		f.followers++
		n := f.followers
		f.mu.Unlock()
		f.tail(n, conn)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	path, _, _ = strings.Cut(path, "?")
	result := ""
	switch path {
	case "":
		result = `[{"id":"shop","handlers":["fetch","scheduled"],"created_on":"2026-01-01T00:00:00Z","modified_on":"2026-01-02T03:04:05.6Z","last_deployed_from":"wrangler"}]`
	case "/shop/schedules":
		result = `{"schedules":[{"cron":"0 0 1 1 *","created_on":"2026-01-01T00:00:00Z"}]}`
	case "/shop/schedules/run":
		result = f.run
	case "/shop/schedules/runs":
		f.mu.Lock()
		result, f.runs = f.runs[0], append(f.runs[1:], f.runs[len(f.runs)-1])
		f.mu.Unlock()
	case "/shop/tails":
		result = fmt.Sprintf(`{"id":"1","url":"ws://%s/socket"}`, r.Host)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"success":false,"errors":[{"code":10007,"message":"This Worker does not exist on your account."}]}`)
		return
	}
	fmt.Fprintf(w, `{"success":true,"errors":[],"messages":[],"result":%s}`, result)
}

func (f *fakeWorkers) exec(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	m := Main{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Environ: []string{
		"NEARKEY_API_BASE_URL=" + f.URL, "NEARKEY_API_TOKEN=secret", "NEARKEY_ACCOUNT_ID=" + fakeAccount}}
	code = m.Run(ctx, args)
	return code, out.String(), errs.String()
}

func TestWorkersList(t *testing.T) {
	f := newFakeWorkers(t)
	if code, out, _ := f.exec(t.Context(), "workers", "list"); code != exitOK || out != "shop\tfetch scheduled\t2026-01-02T03:04:05Z\twrangler\n" {
		t.Errorf("%d %q", code, out)
	}
	var list []workerJSON
	code, out, _ := f.exec(t.Context(), "workers", "ls", "--json")
	if err := json.Unmarshal([]byte(out), &list); code != exitOK || err != nil || len(list) != 1 || list[0].Name != "shop" {
		t.Errorf("%d %q %v", code, out, err)
	}
}

func TestCronCommands(t *testing.T) {
	f := newFakeWorkers(t)
	code, out, _ := f.exec(t.Context(), "cron", "list")
	next := fmt.Sprintf("%d-01-01T00:00:00Z", time.Now().UTC().Year()+1)
	if want := "shop\t0 0 1 1 *\t" + next + "\n"; code != exitOK || out != want {
		t.Errorf("%d %q, want %q", code, out, want)
	}
	if code, _, errs := f.exec(t.Context(), "cron", "list", "none"); code != exitNotFound || !strings.Contains(errs, `Worker "none"`) {
		t.Errorf("%d %q", code, errs)
	}
	if code, out, _ := f.exec(t.Context(), "cron", "list", "shop", "--json"); code != exitOK || !strings.Contains(out, `"next": "`+next+`"`) {
		t.Errorf("%d %q", code, out)
	}

	ended := func(outcome, text string) string {
		return fmt.Sprintf(`{"id":7,"cron":"0 0 1 1 *","scheduled_time":"2026-01-01T00:00:00Z","started_on":"2026-01-01T00:00:00Z","ended_on":"2026-01-01T00:00:01.5Z","attempt":2,"outcome":%q,"error":%q,"manual":true}`, outcome, text)
	}
	running := `{"id":7,"cron":"0 0 1 1 *","scheduled_time":"2026-01-01T00:00:00Z","started_on":"2026-01-01T00:00:00Z","ended_on":null,"attempt":1,"outcome":"","manual":false}`
	f.run = ended("ok", "")
	if code, _, errs := f.exec(t.Context(), "cron", "run", "shop", "--cron", "now"); code != exitOK || !strings.Contains(errs, "ok, after 1.5s") {
		t.Errorf("%d %q", code, errs)
	}
	if !slices.Contains(f.asked, `POST /shop/schedules/run {"cron":"now"}`) {
		t.Errorf("asked %q", f.asked)
	}
	f.run = ended("exception", "")
	if code, out, errs := f.exec(t.Context(), "cron", "run", "shop", "--json"); code != exitFailed || !strings.Contains(out, `"outcome": "exception"`) || !strings.Contains(errs, `exception`) {
		t.Errorf("%d %q %q", code, out, errs)
	}
	f.run, f.runs = running, []string{"[" + running + "]", "[" + ended("ok", "") + "]"}
	if code, _, errs := f.exec(t.Context(), "cron", "run", "shop"); code != exitOK || !strings.Contains(errs, "waiting") {
		t.Errorf("%d %q", code, errs)
	}
	if code, _, _ := f.exec(t.Context(), "cron", "run", "none"); code != exitNotFound {
		t.Errorf("a Worker that is not there: %d", code)
	}

	f.runs = []string{"[" + running + "," + ended("canceled", "it took longer") + "]"}
	code, out, _ = f.exec(t.Context(), "cron", "history", "shop", "--limit", "5")
	want := "2026-01-01T00:00:00Z\t0 0 1 1 *\t1\t2026-01-01T00:00:00Z\t\trunning\n" +
		"2026-01-01T00:00:00Z\t0 0 1 1 * (by hand)\t2\t2026-01-01T00:00:00Z\t1.5s\tcanceled: it took longer\n"
	if code != exitOK || out != want {
		t.Errorf("%d %q", code, out)
	}
	for limit, want := range map[string]int{"0": exitUsage, "1": exitOK, "100": exitOK, "101": exitUsage} {
		if code, _, _ := f.exec(t.Context(), "cron", "history", "shop", "--limit", limit); code != want {
			t.Errorf("--limit %s: %d", limit, code)
		}
	}
}

const (
	tailRequest = `{"outcome":"ok","scriptName":"shop","exceptions":[],"logs":[{"message":["hello",{"a":1}],"level":"log","timestamp":1767225600000}],"eventTimestamp":1767225600000,"event":{"request":{"url":"https://shop/?a","method":"GET"},"response":{"status":200}}}`
	tailCron    = `{"outcome":"exception","exceptions":[{"name":"Error","message":"bad\u001b[31m","stack":"    at index.js:1:1\n    at index.js:2:2"}],"logs":[],"eventTimestamp":1767225600000,"event":{"cron":"* * * * *","scheduledTime":1}}`
	tailLine    = `{"outcome":null,"exceptions":[],"logs":[{"message":["kept"],"level":"warn","timestamp":1767225600000}],"eventTimestamp":1767225600000,"event":null}`
	tailBusy    = `{"outcome":"ok","exceptions":[],"logs":[],"event":{"type":"overload","message":"too much"}}`
)

const tailPretty = `GET https://shop/?a - 200 - Ok @ 2026-01-01T00:00:00Z
  (log) hello {"a":1}
"* * * * *" - Exception Thrown @ 2026-01-01T00:00:00Z
  Error: bad\x1b[31m
      at index.js:1:1
      at index.js:2:2
2026-01-01T00:00:00Z  (warn) kept
too much
`

// A tail shows what comes, is opened anew when it breaks, and ends with the server's
// word, or when it is interrupted.
func TestTailCommand(t *testing.T) {
	f := newFakeWorkers(t)
	f.tail = func(n int, c *websocket.Conn) {
		if n == 1 {
			_ = c.WriteText([]byte(tailRequest))
			return // cut off
		}
		for _, event := range []string{tailCron, tailLine, tailBusy} {
			_ = c.WriteText([]byte(event))
		}
		_ = c.WriteClose(websocket.CloseNormal, "the tail has expired")
	}
	code, out, errs := f.exec(t.Context(), "tail", "shop", "--status", "error,ok", "--method", "GET", "--header", "X-A: b", "--ip", "self",
		"--search", "x", "--version-id", "v", "--sampling-rate", "0.5", "--since", "10m")
	if code != exitFailed || out != tailPretty || !strings.Contains(errs, "the tail has expired") || !strings.Contains(errs, "trying again in 1s") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	var filters struct{ Filters []map[string]any }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(f.asked[0], "POST /shop/tails ")), &filters); err != nil || len(filters.Filters) != 7 {
		t.Errorf("asked %s", f.asked[0])
	}
	if want := "[exception exceededCpu exceededMemory unknown ok]"; fmt.Sprint(filters.Filters[1]["outcome"]) != want {
		t.Errorf("the outcomes are %v", filters.Filters[1])
	}

	ctx, interrupt := context.WithCancel(t.Context())
	f.tail = func(_ int, c *websocket.Conn) {
		_ = c.WriteText([]byte(tailRequest))
		interrupt()
		_, _ = c.Read()
	}
	if code, out, errs := f.exec(ctx, "tail", "shop", "--json"); code != exitOK || out != "" && out != tailRequest+"\n" {
		t.Errorf("interrupted: %d %q %q", code, out, errs)
	}
}

func TestTailUsage(t *testing.T) {
	f := newFakeWorkers(t)
	for _, args := range [][]string{
		{}, {"a", "b"}, {"shop", "--format", "xml"}, {"shop", "--json", "--format", "pretty"}, {"shop", "--status", "bad"},
		{"shop", "--sampling-rate", "1"}, {"shop", "--since", "yesterday"},
	} {
		if code, _, errs := f.exec(t.Context(), append([]string{"tail"}, args...)...); code != exitUsage {
			t.Errorf("%q: %d %s", args, code, errs)
		}
	}
	if code, _, _ := f.exec(t.Context(), "tail", "none"); code != exitNotFound {
		t.Errorf("a Worker that is not there: %d", code)
	}
	f.Close()
	if code, _, _ := f.exec(t.Context(), "tail", "shop"); code != exitUnreachable {
		t.Errorf("a server that is not there: %d", code)
	}
}
