// Package fleet runs the real fleet of 'nearkey dev', and fleets of processes that
// it starts itself, writes through some edges and reads through others while
// processes are killed, stopped and started again. It keeps nothing and has
// nothing to lose.
package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// binary is the nearkey that is tested.
var binary string

func TestMain(m *testing.M) {
	os.Exit(nearkeytest.Main(context.Background(), m, func(built string) { binary = built }))
}

// start runs nearkey. It does not outlive the test.
func start(t *testing.T, environ []string, args ...string) *process.Program {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(process.Environ(), environ...)
	p, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		sound(t, strings.Join(args, " "), p.Output())
		if t.Failed() {
			t.Logf("nearkey %s:\n%s", strings.Join(args, " "), p.Output())
		}
	})
	return p
}

// sound complains if what a process printed tells of a bug.
func sound(t *testing.T, what, text string) {
	t.Helper()
	for _, sign := range []string{"panic", "DATA RACE", "fatal error", "goroutine "} {
		if strings.Contains(text, sign) {
			t.Errorf("%s: it says %q:\n%s", what, sign, text)
			return
		}
	}
}

// fleet is a running fleet with credentials for it.
type fleet struct {
	edges          []*edge
	account, token string
}

// edge is where clients come in.
type edge struct {
	*fleet
	name string
	url  string
	http http.Client
}

func (f *fleet) add(name, address string) {
	f.edges = append(f.edges, &edge{fleet: f, name: name, url: "http://" + address, http: http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: nearkeytest.Patience,
	}})
}

// credentials are those in a data directory.
func (f *fleet) credentials(t *testing.T, data string) {
	t.Helper()
	f.account, f.token = line(t, filepath.Join(data, "account-id")), line(t, filepath.Join(data, "api-token"))
}

// line is the text of a file of one line.
func line(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// answer is what an edge answered.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string {
	return fmt.Sprintf("%d %s %.200q", a.status, a.header.Get("Cf-Cache-Status"), a.body)
}

// cache is the cache status of the answer.
func (a answer) cache() string { return a.header.Get("Cf-Cache-Status") }

// ask makes a request of the API with a token.
func (e *edge) ask(token, method, path string, body []byte) (answer, error) {
	req, err := http.NewRequest(method, e.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body == nil {
		req.Body, req.ContentLength = nil, 0
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, text}, err
}

// must makes a request that has to succeed, and decodes the result.
func (e *edge) must(t *testing.T, method, path string, body, result any) answer {
	t.Helper()
	text, isBytes := body.([]byte)
	if !isBytes && body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	a, err := e.ask(e.token, method, path, text)
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("%s: %s %s: %v, %v", e.name, method, path, a, err)
	}
	if result != nil {
		if err := json.Unmarshal(a.body, &struct{ Result any }{result}); err != nil {
			t.Fatalf("%s: %s %s: %v in %s", e.name, method, path, err, a)
		}
	}
	return a
}

func (f *fleet) path() string { return "/client/v4/accounts/" + f.account }

// space is a namespace.
type space string

func (f *fleet) spacePath(s space) string {
	return f.path() + "/storage/kv/namespaces/" + string(s)
}

func (f *fleet) valuePath(s space, key string) string {
	return f.spacePath(s) + "/values/" + url.PathEscape(key)
}

// createSpace creates a namespace through the edge.
func (e *edge) createSpace(t *testing.T, title string) space {
	t.Helper()
	var created struct{ ID string }
	e.must(t, "POST", e.path()+"/storage/kv/namespaces", map[string]string{"title": title}, &created)
	return space(created.ID)
}

func (e *edge) put(t *testing.T, s space, key, value string) {
	t.Helper()
	e.must(t, "PUT", e.valuePath(s, key), []byte(value), nil)
}

func (e *edge) get(s space, key string) (answer, error) {
	return e.ask(e.token, "GET", e.valuePath(s, key), nil)
}

// reads is nil if the edge answers a get with a value.
func (e *edge) reads(s space, key, want string) error {
	a, err := e.get(s, key)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK || string(a.body) != want {
		return fmt.Errorf("%s: %s is %s, want %q", e.name, key, a, want)
	}
	return nil
}

// misses is nil if the edge answers that there is no such key.
func (e *edge) misses(s space, key string) error {
	a, err := e.get(s, key)
	if err == nil && a.status != http.StatusNotFound {
		err = fmt.Errorf("%s: %s is %s, want none", e.name, key, a)
	}
	return err
}

// warm reads a value until the edge answers from near.
func (e *edge) warm(t *testing.T, s space, key, want string) {
	t.Helper()
	nearkeytest.Eventually(t, e.name+" has "+key+" near", func() error {
		a, err := e.get(s, key)
		if err == nil && (a.cache() != "HIT" || string(a.body) != want) {
			err = errors.New(a.String())
		}
		return err
	})
}

// ready is nil if the edge says that it can serve.
func (e *edge) ready() error {
	a, err := e.ask("", "GET", "/readyz", nil)
	if err == nil && a.status != http.StatusOK {
		err = errors.New(a.String())
	}
	return err
}

// alive reports whether a process runs; one that nobody has waited for does not.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, ok := strings.Cut(string(text), ") ")
	return ok && !strings.HasPrefix(state, "Z")
}
