package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// newerWrangler is the newer wrangler at an endpoint, run by the Node.js that comes
// with it, or else by the one of the machine.
func newerWrangler(t *testing.T, e endpoint) *wrangler {
	t.Helper()
	w := newWrangler(t, e)
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	node, err := filepath.Abs(filepath.Join(newerDir, "node_modules", "node-"+runtime.GOOS+"-"+arch, "bin", "node"))
	check(t, err)
	if _, err := os.Stat(node); errors.Is(err, os.ErrNotExist) {
		node, err = exec.LookPath("node")
		check(t, err)
	}
	script, err := filepath.Abs(filepath.Join(newerDir, "node_modules", "wrangler", "bin", "wrangler.js"))
	check(t, err)
	w.program = []string{node, script}
	return w
}

// eachWrangler runs a test with both of them. The name is one for a Worker.
func eachWrangler(t *testing.T, test func(t *testing.T, w *wrangler, name string)) {
	t.Parallel()
	for version, open := range map[string]func(*testing.T, endpoint) *wrangler{"4.86": newWrangler, "4.164": newerWrangler} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			top, _, _ := strings.Cut(t.Name(), "/")
			test(t, open(t, shared.server.endpoint), strings.ToLower(top)+strings.ReplaceAll(version, ".", ""))
		})
	}
}

// project writes the configuration of a Worker and its main module.
func (w *wrangler) project(t *testing.T, name, module, config string) {
	t.Helper()
	w.file(t, "wrangler.toml", fmt.Appendf(nil, "name = %q\nmain = \"index.js\"\ncompatibility_date = \"2026-01-01\"\n%s\n", name, config))
	w.file(t, "index.js", []byte(module))
}

// liveTimeout is how long a deployed Worker may take to answer on a busy machine.
const liveTimeout = 30 * time.Second

// fetch asks a Worker at a host.
func fetch(ctx context.Context, host, path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+shared.server.workers.Port()+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// hostOf is the host at which a Worker answers under the account's subdomain.
func hostOf(name string) string { return name + "." + shared.server.workers.Hostname() }

// serves waits until a Worker answers so.
func serves(t *testing.T, host, want string) {
	t.Helper()
	answers(t, host, "200 "+want, func(status int, body string) bool { return status == http.StatusOK && body == want })
}

// gone waits until no Worker answers at a host.
func gone(t *testing.T, host string) {
	t.Helper()
	answers(t, host, "404", func(status int, _ string) bool { return status == http.StatusNotFound })
}

func answers(t *testing.T, host, want string, is func(status int, body string) bool) {
	t.Helper()
	for deadline := time.Now().Add(liveTimeout); ; {
		status, body, err := fetch(t.Context(), host, "/")
		check(t, err)
		if is(status, body) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s answers %d %q, want %q", host, status, body, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

var uuid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// lastID is the last id of a version that a command has printed.
func lastID(t *testing.T, o outcome) string {
	t.Helper()
	ids := uuid.FindAllString(o.text(), -1)
	if ids == nil {
		t.Fatalf("no id of a version in:\n%s", o.text())
	}
	return ids[len(ids)-1]
}

// answering is a module that answers with a text and what its bindings hold.
func answering(text string) string {
	return `export default {
	async fetch(request, env) {
		return new Response([` + fmt.Sprintf("%q", text) + `, env.A, env.B, env.VAR].filter((v) => v).join(" "));
	},
	async scheduled() {},
};`
}

// TestWorkerDeploys: a first deploy, another one, and a namespace that the
// configuration does not name.
func TestWorkerDeploys(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		module := func(n int) string {
			return fmt.Sprintf(`import { text } from "./sub/text.mjs";
export default {
	async fetch(request, env) {
		const before = await env.STORE.get("deploys");
		await env.STORE.put("deploys", %q);
		return new Response([text, env.VAR, env.OBJ.a, before, %d].join(" "));
	},
};`, fmt.Sprint(n), n)
		}
		check(t, os.Mkdir(filepath.Join(w.dir, "sub"), 0o700))
		w.file(t, "sub/text.mjs", []byte(`export const text = "text"`))
		config := "kv_namespaces = [{ binding = \"STORE\" }]\nrules = [{ type = \"ESModule\", globs = [\"**/*.mjs\"] }]\n[vars]\nVAR = \"v\"\nOBJ = { a = 1 }\n"
		w.project(t, name, module(1), config)
		o := w.ok(t, []string{"deploy"}, "Uploaded "+name, "Deployed "+name+" triggers", "Current Version ID:")
		if w.isNewer() && !strings.Contains(o.text(), hostOf(name)) {
			t.Errorf("deploy does not say where the Worker answers:\n%s", o.text())
		}
		serves(t, hostOf(name), "text v 1  1")
		w.project(t, name, module(2), config)
		// Not bundled: names of modules with folders in them.
		w.ok(t, []string{"deploy", "--no-bundle", "--message", "another"}, "Uploaded "+name, "Current Version ID:")
		serves(t, hostOf(name), "text v 1 1 2")
		w.ok(t, []string{"delete", "--force"}, "Successfully deleted "+name)
		gone(t, hostOf(name))
	})
}

// isNewer reports whether it is the newer wrangler.
func (w *wrangler) isNewer() bool { return len(w.program) > 1 }

// TestWorkerSecrets: put, list, bulk and delete; secrets survive a deploy, and none
// is ever printed. The first one makes the Worker.
func TestWorkerSecrets(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		const a, b = "secret-a-0123456789", "secret-b-0123456789"
		never := func(o outcome) {
			t.Helper()
			if strings.Contains(o.text(), a) || strings.Contains(o.text(), b) {
				t.Errorf("a secret is printed:\n%s", o.text())
			}
		}
		config := "[vars]\nVAR = \"v\"\n"
		w.project(t, name, answering("1"), config)
		w.stdin = a
		never(w.ok(t, []string{"secret", "put", "A"}, "Success! Uploaded secret A"))
		w.stdin = ""
		never(w.ok(t, []string{"deploy"}, "Current Version ID:"))
		serves(t, hostOf(name), "1 "+a+" v")
		never(w.ok(t, []string{"secret", "bulk", w.jsonFile(t, "secrets.json", js{"B": b, "C": "c"})}, "successfully"))
		serves(t, hostOf(name), "1 "+a+" "+b+" v")
		o := w.ok(t, []string{"secret", "list"}, `"A"`, `"B"`, `"C"`, "secret_text")
		never(o)
		w.project(t, name, answering("2"), config)
		never(w.ok(t, []string{"deploy"}, "Current Version ID:"))
		serves(t, hostOf(name), "2 "+a+" "+b+" v")
		never(w.ok(t, []string{"secret", "delete", "B"}, "Success! Deleted secret B"))
		serves(t, hostOf(name), "2 "+a+" v")
		w.fails(t, []string{"secret", "delete", "B"}, "[code: 10056]")
		w.stdin = "x"
		w.fails(t, []string{"secret", "put", "VAR"}, "Binding name 'VAR' already in use. Please use a different name and try again. [code: 10053]")
		// On the disk, in the control plane's database and the log, there is none.
		files, err := filepath.Glob(filepath.Join(filepath.Dir(shared.server.log), "data", "catalog.db*"))
		check(t, err)
		if len(files) == 0 {
			t.Fatal("no database is found")
		}
		for _, file := range append(files, shared.server.log) {
			content, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a database's journal comes and goes
				t.Fatal(err)
			}
			if bytes.Contains(content, []byte(a)) || bytes.Contains(content, []byte(b)) {
				t.Errorf("a secret is in %s", file)
			}
		}
	})
}

// TestWorkerVersions: versions that are uploaded, listed, viewed and deployed,
// wholly or in part, and a rollback.
func TestWorkerVersions(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		w.project(t, name, answering("1"), "")
		first := lastID(t, w.ok(t, []string{"deploy"}))
		w.project(t, name, answering("2"), "")
		second := lastID(t, w.ok(t, []string{"versions", "upload", "--tag", "two", "--message", "the second"}, "Worker Version ID:"))
		serves(t, hostOf(name), "1")
		w.stdin = "x"
		w.fails(t, []string{"secret", "put", "A"}, "the latest version of your Worker isn't currently deployed")
		w.stdin = ""
		w.ok(t, []string{"versions", "list"}, first, second, "the second", "two")
		w.ok(t, []string{"versions", "view", second}, second, "the second", "fetch")
		w.fails(t, []string{"versions", "view", "00000000-0000-4000-8000-000000000000"}, "[code: 10222]")
		w.ok(t, []string{"versions", "deploy", second + "@100%", "-y"}, "SUCCESS")
		serves(t, hostOf(name), "2")
		w.ok(t, []string{"versions", "deploy", first + "@50%", second + "@50%", "-y"}, "SUCCESS")
		serves(t, hostOf(name), "1")
		serves(t, hostOf(name), "2")
		w.ok(t, []string{"deployments", "list"}, first, second, "(50%)")
		w.ok(t, []string{"deployments", "status"}, first, second, "(50%)")
		w.ok(t, []string{"versions", "deploy", second + "@100%", "-y"}, "SUCCESS")
		w.ok(t, []string{"rollback", first, "-y", "--message", "back"}, "SUCCESS")
		serves(t, hostOf(name), "1")
		w.ok(t, []string{"deployments", "status"}, first, "back")
		w.stdin = "x"
		third := lastID(t, w.ok(t, []string{"versions", "secret", "put", "A"}, "Success!"))
		w.stdin = ""
		serves(t, hostOf(name), "1")
		w.ok(t, []string{"versions", "deploy", third + "@100%", "-y"}, "SUCCESS")
		serves(t, hostOf(name), "2 x")
	})
}

// TestWorkerTriggers: routes and crons, with a deploy and by themselves, in a zone
// that is not made before.
func TestWorkerTriggers(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		zone := name + ".example.com"
		w.project(t, name, answering("1"), fmt.Sprintf("workers_dev = false\nroutes = [{ pattern = \"%[1]s/*\", zone_name = %[1]q }]\n[triggers]\ncrons = [\"*/5 * * * *\"]\n", zone))
		w.ok(t, []string{"deploy"}, zone+"/*", "schedule: */5 * * * *")
		serves(t, zone, "1")
		gone(t, hostOf(name))
		gone(t, "other."+zone)
		w.project(t, name, answering("never deployed"), fmt.Sprintf("workers_dev = true\nroutes = [\"other.%[1]s/*\", { pattern = \"own.%[1]s\", custom_domain = true }]\n[triggers]\ncrons = [\"0 0 * * 7\", \"1 2 3 * *\"]\n", zone))
		w.ok(t, []string{"triggers", "deploy"}, "other."+zone, "own."+zone, "0 0 * * 7")
		serves(t, "other."+zone, "1")
		serves(t, "own."+zone, "1")
		serves(t, hostOf(name), "1")
		gone(t, zone)
		a, err := shared.server.call(t.Context(), http.MethodGet, "/accounts/"+shared.server.account+"/workers/scripts/"+name+"/schedules", nil)
		check(t, err)
		var crons struct{ Schedules []struct{ Cron string } }
		check(t, json.Unmarshal(a.Result, &crons))
		if len(crons.Schedules) != 2 || crons.Schedules[0].Cron != "0 0 * * 7" {
			t.Errorf("schedules %s", a.Result)
		}
		w.project(t, name, answering("1"), "[triggers]\ncrons = [\"61 * * * *\"]\n")
		w.fails(t, []string{"triggers", "deploy"}, "[code: 10005]")
		w.project(t, name+"-other", answering("2"), fmt.Sprintf("workers_dev = false\nroutes = [{ pattern = \"other.%[1]s/*\", zone_name = %[1]q }]\n", zone))
		w.fails(t, []string{"deploy"}, "already assigned to routes")
		serves(t, "other."+zone, "1")
	})
}

// TestWorkerFormats: the service worker format with a module of text, and a site of
// files that is deployed twice.
func TestWorkerFormats(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		ns := newNamespaceTitled(t, t.Name())
		w.file(t, "words.txt", []byte("words"))
		w.project(t, name, `import words from "./words.txt";
addEventListener("fetch", (event) => event.respondWith(answer()));
async function answer() {
	await STORE.put("k", "kept");
	return new Response([words, VAR, await STORE.get("k")].join(" "));
}`, fmt.Sprintf("kv_namespaces = [{ binding = \"STORE\", id = %q }]\n[vars]\nVAR = \"v\"\n", ns.id))
		for range 2 { // a redeploy of this format is a PUT again
			w.ok(t, []string{"deploy"}, "Current Version ID:")
			serves(t, hostOf(name), "words v kept")
		}
		check(t, ns.stored(t.Context(), "k", []byte("kept"), "null"))

		check(t, os.Mkdir(filepath.Join(w.dir, "public"), 0o700))
		site := name + "-site"
		w.project(t, site, `import manifest from "__STATIC_CONTENT_MANIFEST";
const paths = JSON.parse(manifest);
export default {
	async fetch(request, env) {
		const names = Object.keys(paths).sort();
		const texts = await Promise.all(names.map((name) => env.__STATIC_CONTENT.get(paths[name])));
		return new Response(names.map((name, i) => name + "=" + texts[i]).join(" "));
	},
};`, "[site]\nbucket = \"./public\"\n")
		w.file(t, "public/a.txt", []byte("a"))
		w.file(t, "public/b.txt", []byte("b"))
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		serves(t, hostOf(site), "a.txt=a b.txt=b")
		w.file(t, "public/b.txt", []byte("another"))
		check(t, os.Remove(filepath.Join(w.dir, "public/a.txt")))
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		serves(t, hostOf(site), "b.txt=another")
		w.ok(t, []string{"delete", "--force"}, "Successfully deleted "+site, "Deleted asset namespace")
		gone(t, hostOf(site))
	})
}

// uploadError is a project that must be refused.
type uploadError struct {
	name, module, config string
	newer                bool // it is enough to see the newer wrangler show it
	bytes                int  // of a module that does not compress
	args                 []string
	says                 []string // what wrangler shows
}

// noise are bytes that do not compress.
func noise(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	bytes := make([]byte, n)
	for i := range bytes {
		bytes[i] = byte(random.Uint32())
	}
	return bytes
}

// uploadErrors are what may be wrong with an upload. What wrangler finds out by
// itself is not here.
func uploadErrors() []uploadError {
	none := strings.Repeat("a", 32)
	return []uploadError{
		{name: "syntax error", newer: true, module: "export default { fetch() { return /(/ } }", args: []string{"--no-bundle"}, says: []string{"SyntaxError: Invalid regular expression", "[code: 10021]"}},
		{name: "throw at start", module: "throw new Error('thrown at start'); export default { fetch() {} }", says: []string{"Uncaught Error: thrown at start", "index.js:1", "[code: 10021]"}},
		{name: "missing module", newer: true, module: "import './missing.js'; export default { fetch() {} }", args: []string{"--no-bundle"}, says: []string{`No such module "missing.js"`, "[code: 10021]"}},
		{name: "no handlers", module: "export default {}", says: []string{"No event handlers were registered. This script does nothing. [code: 10068]"}},
		{name: "unknown namespace", newer: true, config: "kv_namespaces = [{ binding = \"KV\", id = \"" + none + "\" }]", says: []string{"KV namespace '" + none + "' not found. [code: 10041]"}},
		{name: "unsupported binding", config: "[ai]\nbinding = \"AI\"", says: []string{"binding AI of type ai is not supported by this server. It supports plain_text,", "[code: 10021]"}},
		{name: "unsupported product", config: "r2_buckets = [{ binding = \"BUCKET\", bucket_name = \"bucket\" }]", says: []string{"This server has no R2.", "kv_namespace", "[code: 7003]"}},
		{name: "unknown service", newer: true, config: "services = [{ binding = \"OTHER\", service = \"nowhere\" }]", says: []string{"Could not resolve service binding 'OTHER'. Target script 'nowhere' not found.", "[code: 10143]"}},
		{name: "experimental flag", newer: true, config: "compatibility_flags = [\"unsafe_module\"]", says: []string{"unsafe_module", "experimental", "[code: 10021]"}},
		{name: "unknown flag", newer: true, config: "compatibility_flags = [\"no_such_flag\"]", says: []string{"No such compatibility flag: no_such_flag", "[code: 10021]"}},
		{name: "future date", newer: true, args: []string{"--compatibility-date", "2999-01-01"}, says: []string{"compatibility date in the future: 2999-01-01 [code: 10021]"}},
		{name: "size", bytes: 11 << 20, module: "import big from './big.bin'; export default { fetch() { return new Response(big) } }", says: []string{"exceeded", "10 MiB after compression", "[code: 10027]"}},
	}
}

// TestWorkerUploadErrors: what is wrong with an upload is shown by wrangler, and what
// was deployed goes on.
func TestWorkerUploadErrors(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		good := answering("good")
		w.project(t, name, good, "")
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		for _, e := range uploadErrors() {
			if e.newer && !w.isNewer() {
				continue
			}
			module := e.module
			if module == "" {
				module = good
			}
			w.project(t, name, module, e.config)
			if e.bytes > 0 {
				w.file(t, "big.bin", noise(e.bytes))
			}
			o := w.fails(t, append([]string{"deploy"}, e.args...))
			for _, text := range e.says {
				if !strings.Contains(unwrapped(o), text) {
					t.Errorf("%s: wrangler does not say %q:\n%s", e.name, text, o.text())
				}
			}
			serves(t, hostOf(name), "good")
		}
		a, err := shared.server.call(t.Context(), http.MethodGet, "/accounts/"+shared.server.account+"/workers/scripts/"+name+"/versions", nil)
		check(t, err)
		if a.Info.TotalCount != 1 {
			t.Errorf("%d versions after uploads that were refused", a.Info.TotalCount)
		}
	})
}

// unwrapped is what a command said, without the breaks of lines that wrangler puts
// into long messages.
func unwrapped(o outcome) string {
	return strings.Join(slices.Collect(strings.FieldsSeq(o.text())), " ")
}

// TestWorkerDeletes: delete without force of a Worker that others are bound to.
func TestWorkerDeletes(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		w.project(t, name, answering("bound"), "")
		w.ok(t, []string{"deploy"})
		w.project(t, name+"-user", `export default { fetch: (request, env) => env.OTHER.fetch(request) }`,
			fmt.Sprintf("services = [{ binding = \"OTHER\", service = %q }]", name))
		w.ok(t, []string{"deploy"})
		serves(t, hostOf(name+"-user"), "bound")
		w.project(t, name, answering("bound"), "")
		w.ok(t, []string{"delete"}, name+"-user (production) uses this Worker as a Service Binding") // yes to all, as nobody can be asked
		gone(t, hostOf(name))
		w.ok(t, []string{"delete", "--name", name + "-user"}, "Successfully deleted")
		w.fails(t, []string{"delete", "--force", "--name", name}, "[code: 10090]")
	})
}
