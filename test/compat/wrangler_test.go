package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wrangler runs wrangler with a home and a folder of its own: it keeps caches,
// logs and consent in both.
type wrangler struct {
	program []string // with its first arguments
	stdin   string   // what commands read
	dir     string   // where it runs
	env     []string // all of its environment
}

// newWrangler is wrangler at an endpoint.
func newWrangler(t *testing.T, e endpoint) *wrangler {
	t.Helper()
	w := bareWrangler(t)
	w.env = append(w.env, "CLOUDFLARE_API_BASE_URL="+e.base, "CLOUDFLARE_API_TOKEN="+e.token, "CLOUDFLARE_ACCOUNT_ID="+e.account)
	return w
}

// bareWrangler is wrangler without credentials.
func bareWrangler(t *testing.T) *wrangler {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("node_modules", ".bin", "wrangler"))
	check(t, err)
	home := t.TempDir()
	dir := filepath.Join(home, "work")
	check(t, os.Mkdir(dir, 0o700))
	return &wrangler{program: []string{program}, dir: dir, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + home, "CI=1", "FORCE_COLOR=0",
		"WRANGLER_SEND_METRICS=false", "WRANGLER_HIDE_BANNER=true",
	}}
}

// outcome is how a command ended.
type outcome struct {
	stdout, stderr []byte
	code           int
}

func (o outcome) text() string { return string(o.stdout) + string(o.stderr) }

// wranglerTimeout is the longest that a command may take on a busy machine.
const wranglerTimeout = 3 * time.Minute

// run runs wrangler. That it fails is an outcome, not an error.
func (w *wrangler) run(ctx context.Context, args ...string) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, wranglerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.program[0], append(slices.Clone(w.program[1:]), args...)...)
	cmd.Stdin = strings.NewReader(w.stdin)
	cmd.Dir, cmd.Env = w.dir, w.env
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		err = nil
	}
	return outcome{out.Bytes(), complaints.Bytes(), cmd.ProcessState.ExitCode()}, err
}

// ok runs a command that must succeed and say all of these.
func (w *wrangler) ok(t *testing.T, args []string, says ...string) outcome {
	t.Helper()
	o, err := w.run(t.Context(), args...)
	check(t, err)
	if o.code != 0 {
		t.Fatalf("wrangler %q ended with status %d:\n%s", args, o.code, o.text())
	}
	return said(t, o, args, says)
}

// fails runs a command that must not succeed, and must say all of these.
func (w *wrangler) fails(t *testing.T, args []string, says ...string) outcome {
	t.Helper()
	o, err := w.run(t.Context(), args...)
	check(t, err)
	if o.code == 0 {
		t.Fatalf("wrangler %q did not fail:\n%s", args, o.text())
	}
	return said(t, o, args, says)
}

func said(t *testing.T, o outcome, args, says []string) outcome {
	t.Helper()
	for _, text := range says {
		if !strings.Contains(o.text(), text) {
			t.Fatalf("wrangler %q does not say %q:\n%s", args, text, o.text())
		}
	}
	return o
}

// file writes a file into wrangler's folder and returns its name.
func (w *wrangler) file(t *testing.T, name string, content []byte) string {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(w.dir, name), content, 0o600))
	return name
}

// jsonFile writes v as JSON into wrangler's folder and returns the file's name.
func (w *wrangler) jsonFile(t *testing.T, name string, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	check(t, err)
	return w.file(t, name, text)
}

// key is a command of "kv key" on a namespace.
func key(ns namespace, args ...string) []string {
	return append(append([]string{"kv", "key"}, args...), "--remote", "--namespace-id", ns.id)
}

// bulk is a command of "kv bulk" on a namespace.
func bulk(ns namespace, args ...string) []string {
	return append(append([]string{"kv", "bulk"}, args...), "--remote", "--namespace-id", ns.id)
}

// driver is wrangler with files as values.
func (w *wrangler) driver(ns namespace) driver {
	succeed := func(ctx context.Context, args []string) (outcome, error) {
		o, err := w.run(ctx, args...)
		if err == nil && o.code != 0 {
			err = fmt.Errorf("wrangler %q ended with status %d: %s", args, o.code, o.text())
		}
		return o, err
	}
	return driver{
		put: func(ctx context.Context, k string, value []byte) error {
			name := filepath.Join(w.dir, "value")
			if err := os.WriteFile(name, value, 0o600); err != nil {
				return err
			}
			_, err := succeed(ctx, key(ns, "put", k, "--path", name))
			return err
		},
		get: func(ctx context.Context, k string) ([]byte, bool, error) {
			o, err := w.run(ctx, key(ns, "get", k)...)
			switch {
			case err != nil:
				return nil, false, err
			case o.code == 0:
				return o.stdout, true, nil
			case strings.Contains(o.text(), "404: Not Found"):
				return nil, false, nil
			}
			return nil, false, fmt.Errorf("wrangler kv key get ended with status %d: %s", o.code, o.text())
		},
		keys: func(ctx context.Context, prefix string) ([]string, error) {
			args := []string{"list"}
			if prefix != "" {
				args = append(args, "--prefix", prefix)
			}
			o, err := succeed(ctx, key(ns, args...))
			if err != nil {
				return nil, err
			}
			var keys []listed
			err = json.Unmarshal(o.stdout, &keys)
			return names(keys), err
		},
		remove: func(ctx context.Context, k string) error {
			_, err := succeed(ctx, key(ns, "delete", k))
			return err
		},
	}
}

// TestWranglerWhoami: with a token, with the global key and an e-mail, and with a
// token that nobody knows.
func TestWranglerWhoami(t *testing.T) {
	t.Parallel()
	s := shared.server
	newWrangler(t, s.endpoint).ok(t, []string{"whoami"}, ownerEmail, s.account)
	newerWrangler(t, s.endpoint).ok(t, []string{"whoami"}, ownerEmail, s.account)
	w := bareWrangler(t)
	w.env = append(w.env, "CLOUDFLARE_API_BASE_URL="+s.base, "CLOUDFLARE_API_KEY="+s.key, "CLOUDFLARE_EMAIL="+s.email)
	w.ok(t, []string{"whoami"}, ownerEmail, s.account)
	// Without an account id wrangler asks for the memberships. The base URL may end
	// in a slash.
	w = bareWrangler(t)
	w.env = append(w.env, "CLOUDFLARE_API_BASE_URL="+s.base+"/", "CLOUDFLARE_API_TOKEN="+s.token)
	ns := newNamespace(t)
	w.ok(t, []string{"kv", "namespace", "list"}, ns.id)
	newWrangler(t, endpoint{s.base, s.account, "not-a-token"}).fails(t, key(ns, "put", "k", "v"), "Authentication error [code: 10000]")
}

var hexID = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

// create makes a namespace with wrangler and returns it.
func (w *wrangler) create(t *testing.T, title string, args ...string) namespace {
	t.Helper()
	o := w.ok(t, append([]string{"kv", "namespace", "create"}, args...), "Success!")
	id := hexID.FindString(o.text())
	if id == "" {
		t.Fatalf("no id in:\n%s", o.text())
	}
	ns := namespace{shared.server.endpoint, id}
	check(t, ns.titled(t.Context(), title))
	return ns
}

// TestWranglerNamespaces: create with all of its flags, rename and delete by name
// and by id, and the failures.
func TestWranglerNamespaces(t *testing.T) {
	t.Parallel()
	w := newWrangler(t, shared.server.endpoint)
	w.file(t, "wrangler.toml", []byte("name = \"worker\"\ncompatibility_date = \"2026-01-01\"\n[env.staging]\n"))
	ns := w.create(t, "WRANGLER", "WRANGLER")
	w.fails(t, []string{"kv", "namespace", "create", "WRANGLER"}, "already exists") // what it makes of code 10014
	preview := w.create(t, "WRANGLER_preview", "WRANGLER", "--preview")
	staging := w.create(t, "staging-WRANGLER", "WRANGLER", "--env", "staging")
	both := w.create(t, "staging-WRANGLER_preview", "WRANGLER", "--env", "staging", "--preview")
	var all []jsSpace
	check(t, json.Unmarshal(w.ok(t, []string{"kv", "namespace", "list"}).stdout, &all))
	for _, made := range []namespace{ns, preview, staging, both} {
		if !slices.ContainsFunc(all, func(s jsSpace) bool { return s.ID == made.id && s.SupportsURLEncoding }) {
			t.Errorf("%s is not in the list %+v", made.id, all)
		}
	}
	w.ok(t, []string{"kv", "namespace", "rename", "WRANGLER", "--new-name", "WRANGLER renamed"}, "WRANGLER renamed")
	check(t, ns.titled(t.Context(), "WRANGLER renamed"))
	w.ok(t, []string{"kv", "namespace", "rename", "--namespace-id", ns.id, "--new-name", "WRANGLER again"}, "WRANGLER again")
	check(t, ns.titled(t.Context(), "WRANGLER again"))
	w.fails(t, []string{"kv", "namespace", "rename", "--namespace-id", ns.id, "--new-name", "WRANGLER_preview"}, "[code: 10014]")
	w.ok(t, []string{"kv", "namespace", "delete", "--namespace-id", ns.id, "-y"}, "Deleted KV namespace")
	w.fails(t, []string{"kv", "namespace", "delete", "--namespace-id", ns.id, "-y"}, "namespace not found", "[code: 10013]")
	w.ok(t, []string{"kv", "namespace", "delete", "WRANGLER_preview", "-y"}, "Deleted KV namespace")
	for _, gone := range []namespace{ns, preview} {
		a, err := gone.do(t.Context(), "GET", gone.path(), nil)
		check(t, err)
		check(t, wantFailure(a, 404, 10013, "namespace not found"))
	}
}

// TestWranglerBindings: the namespace and its preview by the binding of a
// configuration.
func TestWranglerBindings(t *testing.T) {
	t.Parallel()
	ns, preview := newNamespace(t), newNamespaceTitled(t, t.Name()+"_preview")
	w := newWrangler(t, ns.endpoint)
	w.file(t, "wrangler.toml", fmt.Appendf(nil, "name = \"worker\"\ncompatibility_date = \"2026-01-01\"\n"+
		"[[kv_namespaces]]\nbinding = \"KV\"\nid = %q\npreview_id = %q\n", ns.id, preview.id))
	w.ok(t, []string{"kv", "key", "put", "k", "live", "--remote", "--binding", "KV", "--preview", "false"})
	w.ok(t, []string{"kv", "key", "put", "k", "preview", "--remote", "--binding", "KV", "--preview"})
	check(t, ns.stored(t.Context(), "k", []byte("live"), "null"))
	check(t, preview.stored(t.Context(), "k", []byte("preview"), "null"))
	w.ok(t, []string{"kv", "namespace", "delete", "--binding", "KV", "--preview", "-y"}, "Deleted KV namespace")
	a, err := preview.do(t.Context(), "GET", preview.path(), nil)
	check(t, err)
	check(t, wantFailure(a, 404, 10013, "namespace not found"))
}

// TestWranglerKeys: every flag of put, get as text, and the listing.
func TestWranglerKeys(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	w := newWrangler(t, ns.endpoint)
	binary := w.file(t, "f.bin", everyByte())
	began := time.Now().Unix()
	w.ok(t, key(ns, "put", oddKey, "a value, ünïcode"), "Writing the value")
	check(t, ns.stored(ctx, oddKey, []byte("a value, ünïcode"), "null"))
	w.ok(t, key(ns, "put", "flags", "v", "--metadata", `{"a": [1, "ü"]}`, "--ttl", "60"))
	check(t, ns.stored(ctx, "flags", []byte("v"), `{"a":[1,"ü"]}`))
	w.ok(t, key(ns, "put", "expiration", "v", "--expiration", "4102444800"))
	w.ok(t, key(ns, "put", "both", "v", "--expiration", "4102444800", "--ttl", "3600"))
	w.ok(t, key(ns, "put", "path", "--path", binary, "--metadata", `{"b":null}`, "--expiration", "4102444800"))
	check(t, ns.stored(ctx, "path", everyByte(), `{"b":null}`))
	w.ok(t, key(ns, "put", "empty", "--path", w.file(t, "empty", nil)))
	check(t, ns.stored(ctx, "empty", nil, "null"))
	if got := w.ok(t, key(ns, "get", oddKey, "--text")).stdout; string(bytes.TrimSuffix(got, []byte("\n"))) != "a value, ünïcode" {
		t.Errorf("get --text: %q", got)
	}
	ended := time.Now().Unix()
	var keys []listed
	check(t, json.Unmarshal(w.ok(t, key(ns, "list")).stdout, &keys))
	check(t, wantKeys(names(keys), []string{oddKey, "both", "empty", "expiration", "flags", "path"}))
	for _, k := range keys {
		var least, most int64
		switch k.Name {
		case "expiration", "path":
			least, most = 4102444800, 4102444800
		case "flags":
			least, most = began+60, ended+60
		case "both":
			least, most = began+3600, ended+3600
		}
		if k.Expiration < least || k.Expiration > most {
			t.Errorf("%s expires at %d: want %d to %d", k.Name, k.Expiration, least, most)
		}
	}
	w.ok(t, key(ns, "delete", oddKey), "Deleting the key")
	w.ok(t, key(ns, "delete", oddKey)) // a missing key is no failure
	w.fails(t, key(ns, "get", oddKey), "404: Not Found")
}

// TestWranglerFailures: keys that the client's URL turns into other paths, and
// what the server refuses.
func TestWranglerFailures(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	w := newWrangler(t, ns.endpoint)
	for _, degenerate := range []string{".", "..", ""} {
		w.fails(t, key(ns, "put", degenerate, `{"title":"renamed"}`), "Could not route")
	}
	check(t, ns.titled(t.Context(), t.Name()))
	w.fails(t, key(ns, "put", "k", "v", "--ttl", "1"), "put: 'Invalid expiration_ttl of 1. Expiration TTL must be at least 60.' [code: 10034]")
	w.fails(t, key(ns, "put", "k", "v", "--expiration", "1"), "Invalid expiration of 1.", "[code: 10033]")
	w.fails(t, key(ns, "put", strings.Repeat("k", 513), "v"), "UTF-8 encoded length of 513 exceeds key length limit of 512.")
	nowhere := ns
	nowhere.id = strings.Repeat("0", 32)
	w.fails(t, key(nowhere, "list"), "namespace not found", "[code: 10013]")
	keys, err := ns.list(t.Context(), "", 1000)
	check(t, err)
	check(t, wantKeys(names(keys), nil))
}

// TestWranglerBulk: 2,500 pairs written, listed, read and deleted.
func TestWranglerBulk(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	w := newWrangler(t, ns.endpoint)
	const count = 2500
	pairs := make([]pair, count)
	want := make([]string, count)
	for i := range pairs {
		want[i] = fmt.Sprintf("key/%04d", i)
		pairs[i] = pair{Key: want[i], Value: "value " + strconv.Itoa(i)}
		switch i % 5 {
		case 1:
			pairs[i].Base64, pairs[i].Value = true, "AP+A"
		case 2:
			pairs[i].Metadata = js{"i": i}
		case 3:
			pairs[i].Expiration = 4102444800
		}
	}
	w.ok(t, bulk(ns, "put", w.jsonFile(t, "pairs.json", pairs)), "Success!")
	check(t, lists(ctx, w.driver(ns), want))
	check(t, ns.stored(ctx, "key/2496", []byte{0, 255, 128}, "null"))
	check(t, ns.stored(ctx, "key/2497", []byte("value 2497"), `{"i":2497}`))
	texts := make([]string, 0, 101)
	for i := 0; len(texts) < 101; i += 5 {
		texts = append(texts, want[i])
	}
	o := w.ok(t, bulk(ns, "get", w.jsonFile(t, "get.json", texts[:100])))
	for i, key := range texts[:100] {
		if line := fmt.Sprintf("%q: \"value %d\"", key, 5*i); !strings.Contains(o.text(), line) {
			t.Fatalf("bulk get does not print %s:\n%.500s", line, o.text())
		}
	}
	w.fails(t, bulk(ns, "get", w.jsonFile(t, "get101.json", texts)), "You can request a maximum of 100 keys", "[code: 10029]")
	w.fails(t, bulk(ns, "put", w.jsonFile(t, "bad.json", []pair{{Key: "new", Value: "v"}, {Key: "k", Value: "v", TTL: 1}})), "[code: 10034]")
	w.ok(t, bulk(ns, "delete", w.jsonFile(t, "delete.json", want[1:]), "--force"), "Success!")
	check(t, lists(ctx, rawDriver(ns), want[:1]))
}
