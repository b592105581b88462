// Package storage runs the real binary on providers of real PostgreSQL and S3
// servers, stops some of them, and does with its commands what an operator does.
// It keeps nothing and has nothing to lose.
package storage

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
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/internal/process"
	"github.com/nearkey/nearkey/internal/s3test"
)

// binary is the nearkey that is tested.
var binary string

func TestMain(m *testing.M) {
	os.Exit(nearkeytest.Main(context.Background(), m, func(built string) { binary = built }))
}

// provider is a provider of PostgreSQL servers, each a cluster, and perhaps a bucket.
type provider struct {
	name     string
	clusters []*pgtest.Server
	blobs    *s3test.Server
	url      string // of the wire, instead
}

// world is a server and what it stands on.
type world struct {
	t         *testing.T
	dir       string
	providers []*provider
	settings  string // before the tables of providers
	server    *process.Server
}

func newWorld(t *testing.T, providers ...*provider) *world {
	w := &world{t: t, dir: t.TempDir(), providers: providers}
	t.Cleanup(func() {
		if w.server == nil {
			return
		}
		w.server.Kill()
		if t.Failed() {
			t.Logf("the server said:\n%s", w.server.Output())
		}
	})
	return w
}

// newProvider starts the servers of a provider.
func newProvider(t *testing.T, name string, clusters int, blobs bool) *provider {
	p := &provider{name: name}
	for range clusters {
		p.clusters = append(p.clusters, pgtest.Start(t))
	}
	if blobs {
		p.blobs = s3test.Start(t)
	}
	return p
}

func (w *world) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// tables are those of a provider in a configuration.
func (w *world) tables(p *provider) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n[[provider]]\nname = %q\n", p.name)
	if p.url != "" {
		fmt.Fprintf(&b, "url = %q\n", p.url)
		return b.String()
	}
	for i, cluster := range p.clusters {
		name := fmt.Sprint(p.name, i+1)
		weight := 1.0
		if i > 0 {
			weight = 0.02 // so that few slots move
		}
		fmt.Fprintf(&b, "[[provider.cluster]]\nname = %q\nweight = %g\npostgres_file = %q\nconnections = 4\n", name, weight, w.file(name+".url", cluster.URL()+"\n"))
	}
	if p.blobs != nil {
		fmt.Fprintf(&b, "[provider.blobs]\nendpoint = %q\nbucket = %q\nregion = %q\naccess_key_id = %q\nsecret_key_file = %q\npath_style = true\n",
			p.blobs.Endpoint, p.blobs.Bucket, p.blobs.Region, p.blobs.AccessKeyID, p.blobs.SecretKeyFile)
	}
	return b.String()
}

// serve starts the server, with the providers as they are now.
func (w *world) serve() {
	w.t.Helper()
	text := w.settings
	for _, p := range w.providers {
		text += w.tables(p)
	}
	data := filepath.Join(w.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if w.server, err = process.Serve(context.Background(), binary, data, "--config", w.file("nearkey.toml", text)); err != nil {
		w.t.Fatal(err)
	}
}

// restart ends the server in order and starts it with what there is now.
func (w *world) restart() {
	w.t.Helper()
	if err := w.server.Stop(); err != nil {
		w.t.Fatal(err)
	}
	w.serve()
}

// nearkey runs a command against the server and returns its exit code and what it
// printed.
func (w *world) nearkey(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	return w.nearkeyOf(filepath.Join(w.dir, "data"), args...)
}

func (w *world) nearkeyOf(data string, args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*nearkeytest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = []string{"NEARKEY_DATA=" + data, "PATH=" + os.Getenv("PATH")}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			w.t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	if args[len(args)-1] != "--json" {
		w.t.Logf("$ nearkey %s  (exit code %d)\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	}
	return code, out.String(), errs.String()
}

// must runs a command that must succeed and returns what it printed on stdout.
func (w *world) must(args ...string) string {
	w.t.Helper()
	code, stdout, _ := w.nearkey(args...)
	if code != 0 {
		w.t.Fatalf("nearkey %s: exit code %d", strings.Join(args, " "), code)
	}
	return stdout
}

// read runs a command with --json and reads what it printed.
func (w *world) read(into any, args ...string) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.must(append(args, "--json")...)), into); err != nil {
		w.t.Fatal(err)
	}
}

// space is a namespace as a client of the API has it.
type space struct {
	w  *world
	id string
}

func (w *world) create(title string) space {
	w.t.Helper()
	return space{w, strings.TrimSpace(w.must("namespace", "create", title))}
}

// do makes a request about a namespace.
func (s space) do(method, path, body string) (status int, answer string, err error) {
	address := fmt.Sprintf("%s/client/v4/accounts/%s/storage/kv/namespaces/%s%s", s.w.server.URL, s.w.server.AccountID, s.id, path)
	ctx, cancel := context.WithTimeout(s.w.t.Context(), nearkeytest.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+s.w.server.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func (s space) ok(method, path, body string) string {
	s.w.t.Helper()
	status, answer, err := s.do(method, path, body)
	if err != nil || status != http.StatusOK {
		s.w.t.Fatalf("%s %s: %d %.500s %v", method, path, status, answer, err)
	}
	return answer
}

func valuePath(key string) string { return "/values/" + url.PathEscape(key) }

func (s space) put(key, value string) { s.w.t.Helper(); s.ok("PUT", valuePath(key), value) }

func (s space) remove(key string) { s.w.t.Helper(); s.ok("DELETE", valuePath(key), "") }

// has checks that a key has a value; empty: that it does not exist.
func (s space) has(key, value string) error {
	status, answer, err := s.do("GET", valuePath(key), "")
	switch {
	case err != nil:
		return err
	case value == "" && status == http.StatusNotFound:
		return nil
	case status != http.StatusOK || answer != value:
		return fmt.Errorf("%q: %d, %d bytes %.100q, want %d bytes %.100q", key, status, len(answer), answer, len(value), value)
	}
	return nil
}

// keys are the names of a listing.
func (s space) keys() (names []string) {
	s.w.t.Helper()
	var page struct{ Result []struct{ Name string } }
	if err := json.Unmarshal([]byte(s.ok("GET", "/keys?limit=1000", "")), &page); err != nil {
		s.w.t.Fatal(err)
	}
	for _, k := range page.Result {
		names = append(names, k.Name)
	}
	return names
}

// contents is what a namespace must have.
type contents map[string]string

// write writes keys of all sizes and deletes some; what it writes differs by round.
func (c contents) write(s space, round int) {
	s.w.t.Helper()
	for i := range 20 {
		key := fmt.Sprintf("key/%02d %%", i)
		value := fmt.Sprintf("value %d of round %d", i, round)
		if i%5 == 0 {
			value += strings.Repeat(" and more", 20_000/9*(1+i/5)) // a blob
		}
		s.put(key, value)
		c[key] = value
	}
	gone := fmt.Sprintf("key/%02d %%", round%20)
	s.remove(gone)
	delete(c, gone)
}

// check checks all that is written, and the listing.
func (c contents) check(s space) {
	s.w.t.Helper()
	names := s.keys()
	if len(names) != len(c) {
		s.w.t.Errorf("%d keys are listed, want %d: %q", len(names), len(c), names)
	}
	for i := range 20 {
		key := fmt.Sprintf("key/%02d %%", i)
		if err := s.has(key, c[key]); err != nil {
			s.w.t.Error(err)
		}
	}
}
