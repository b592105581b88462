package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"fmt"
	"mime"
	"mime/multipart"
	"net/textproto"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// workersWorld is a world with Workers. The runtime is not: a module that has the
// word throw does not start, and one without the word fetch has no handler.
type workersWorld struct {
	*world
	mu      sync.Mutex // guards the rest
	bundles []Bundle   // that were tried out
	before  func(Bundle)
}

func newWorkersWorld(t testing.TB, change ...func(*Config)) *workersWorld {
	t.Helper()
	ww := &workersWorld{}
	keys, err := catalog.CreateKeys(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	change = append([]func(*Config){func(cfg *Config) {
		cfg.Catalog.UseWorkers(cfg.Store, cfg.Rules.Stamp)
		cfg.Workers = &Workers{Check: ww.check, Keys: keys, Domain: "workers.localhost:8791"}
	}}, change...)
	ww.world = newWorld(t, change...)
	return ww
}

func (w *workersWorld) check(_ context.Context, b Bundle) (Started, error) {
	w.mu.Lock()
	w.bundles = append(w.bundles, b)
	before := w.before
	w.mu.Unlock()
	if before != nil {
		before(b)
	}
	main := string(b.Modules[b.Manifest.Main])
	if strings.Contains(main, "throw") {
		return Started{}, &StartError{"Uncaught Error: thrown\n  at " + b.Manifest.Main + ":1:1"}
	}
	if !strings.Contains(main, "fetch") {
		return Started{}, nil
	}
	return Started{Handlers: []string{"fetch"}, Took: 7 * time.Millisecond}, nil
}

func (w *workersWorld) last() Bundle {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bundles[len(w.bundles)-1]
}

// part is a field of a form.
type part struct{ name, kind, content string }

const esModule = "application/javascript+module"

func formOf(t testing.TB, parts ...part) (body, contentType string) {
	t.Helper()
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	for _, p := range parts {
		h := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name="%s"`, p.name)}}
		if p.kind != "" {
			h.Set("Content-Disposition", fmt.Sprintf(`form-data; name="%s"; filename="%s"`, p.name, p.name))
			h.Set("Content-Type", p.kind)
		}
		to, err := form.CreatePart(h)
		if err == nil {
			_, err = to.Write([]byte(p.content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String(), form.FormDataContentType()
}

// send sends a form.
func (w *workersWorld) send(method, path string, parts ...part) answer {
	w.t.Helper()
	body, contentType := formOf(w.t, parts...)
	return w.do(request{method: method, path: in("/workers/" + path), body: body,
		header: map[string]string{"Content-Type": contentType, "User-Agent": "wrangler/4.164.0"}})
}

// at does a request with a JSON body under …/workers/.
func (w *workersWorld) at(method, path string, body ...string) answer {
	w.t.Helper()
	return w.do(request{method: method, path: in("/workers/" + path), body: strings.Join(body, ""),
		header: map[string]string{"User-Agent": "wrangler/4.164.0"}})
}

// metadata of a module Worker with these bindings.
func metadata(bindings string) part {
	return part{"metadata", "", `{"main_module":"index.js","compatibility_date":"2025-01-01","bindings":[` + bindings + `]}`}
}

var hello = part{"index.js", esModule, "export default { fetch() { return new Response('hello') } }"}

// deploy puts a module Worker.
func (w *workersWorld) deploy(name, bindings string) {
	w.t.Helper()
	w.send("PUT", "scripts/"+name, metadata(bindings), hello).ok()
}

// serving is the version that gets all requests.
func (w *workersWorld) serving(name string) catalog.WorkerVersion {
	w.t.Helper()
	worker, err := w.catalog.Worker(w.t.Context(), accountID, name)
	if err != nil {
		w.t.Fatal(err)
	}
	v, err := w.catalog.Version(w.t.Context(), accountID, name, worker.Deployment.Versions[0].VersionID)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func decode[T any](a answer) (v T) {
	a.t.Helper()
	a.result(&v)
	return v
}

const notOnAccount = "This Worker does not exist on your account."

// TestWorkerDeploy: what wrangler asks before, during and after a first deploy and
// another one.
func TestWorkerDeploy(t *testing.T) {
	w := newWorkersWorld(t)
	w.at("GET", "services/mod").fails(404, 10090, "workers.api.error.service_not_found")
	for _, path := range []string{"deployments", "settings", "secrets", "versions", "subdomain", "schedules", "content/v2", "references", "script-settings"} {
		w.at("GET", "scripts/mod/"+path).fails(404, 10007, notOnAccount)
	}
	w.send("POST", "scripts/mod/versions", metadata(""), hello).fails(404, 10007, notOnAccount)

	first := decode[map[string]any](w.send("PUT", "scripts/mod?excludeScript=true&bindings_inherit=strict",
		metadata(`{"name":"STR","type":"plain_text","text":"s"},{"name":"OBJ","type":"json","json":{"a":1}}`), hello,
		part{"sub/x.mjs", esModule, "export const x = 1"}, part{"index.js.map", "application/source-map", "{}"}))
	for field, want := range map[string]any{"id": "mod", "handlers": []any{"fetch"}, "startup_time_ms": 7.0, "has_modules": true,
		"compatibility_date": "2025-01-01", "last_deployed_from": "wrangler", "entry_point": "index.js"} {
		if got := first[field]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	b := w.last()
	if b.AccountID != accountID || b.Name != "mod" || len(b.Modules) != 2 || string(b.Modules["sub/x.mjs"]) != "export const x = 1" {
		t.Errorf("tried out: %+v", b)
	}
	var service struct {
		Environment struct {
			Script struct{ Tag, LastDeployedFrom string } `json:"script"`
		} `json:"default_environment"`
	}
	w.at("GET", "services/mod").result(&service)
	if len(service.Environment.Script.Tag) != 32 {
		t.Errorf("service: %+v", service)
	}
	id := w.serving("mod").ID
	if strings.ReplaceAll(id, "-", "") != first["deployment_id"] {
		t.Errorf("deployment_id %v, want the version %s", first["deployment_id"], id)
	}

	second := decode[shownVersion](w.send("POST", "scripts/mod/versions?bindings_inherit=strict",
		metadata(`{"name":"STR","type":"inherit"}`), hello))
	if second.Number != 2 || second.Resources == nil || w.serving("mod").ID != id || second.Metadata.Source != "wrangler" {
		t.Errorf("version %+v; %s serves", second, w.serving("mod").ID)
	}
	if got := second.Resources.Bindings; len(got) != 1 || got[0].Text == nil || *got[0].Text != "s" {
		t.Errorf("bindings %+v", got)
	}
	w.at("POST", "scripts/mod/deployments", `{"strategy":"percentage","versions":[{"version_id":"`+second.ID+`","percentage":100}],"annotations":{"workers/message":"m"}}`).ok()
	if w.serving("mod").ID != second.ID {
		t.Error("the second version does not serve")
	}
	w.at("PATCH", "scripts/mod/script-settings", `{"observability":{"enabled":false},"tags":["a"],"logpush":true}`).
		is(`{"tags":["a"],"logpush":true,"observability":{"enabled":false},"tail_consumers":[]}`)
	var items struct{ Items []shownVersion }
	w.at("GET", "scripts/mod/versions?deployable=true").result(&items)
	if len(items.Items) != 2 || items.Items[0].ID != second.ID || items.Items[1].ID != id {
		t.Errorf("versions %+v", items)
	}
	var list struct{ Deployments []shownDeployment }
	w.at("GET", "scripts/mod/deployments").result(&list)
	if len(list.Deployments) != 2 || list.Deployments[0].Annotations["workers/message"] != "m" {
		t.Errorf("deployments %+v", list)
	}
	w.at("POST", "scripts/mod/deployments", `{"versions":[{"version_id":"`+id+`","percentage":100}]}`).ok()
	w.at("GET", "scripts/mod/deployments").result(&list)
	if got := list.Deployments[0].Annotations; got["workers/triggered_by"] != "rollback" || got["workers/rollback_from"] != second.ID {
		t.Errorf("annotations of a rollback: %v", got)
	}
	w.at("GET", "scripts/mod/deployments/"+list.Deployments[0].ID).ok()
	w.at("GET", "scripts/mod/deployments/nowhere").fails(404, 10336, "The deployment could not be found. Please check its ID and try again.")
	w.at("POST", "scripts/mod/deployments", `{"versions":[{"version_id":"`+id+`","percentage":60}]}`).
		fails(400, 10210, "a deployment has 1 to 2 versions, each once, whose percentages add to 100")
	w.at("GET", "scripts/mod/versions/"+id).ok()
	w.at("GET", "scripts/mod/versions/nowhere").fails(404, 10222, "The version could not be found. Please check its ID and try again.")
	w.at("DELETE", "services/mod?force=true").is("null")
	w.at("DELETE", "services/mod?force=true").fails(404, 10090, "workers.api.error.service_not_found")
	w.at("DELETE", "scripts/mod").fails(404, 10007, notOnAccount)
}

// TestWorkerRefused: an upload that is not as it should be leaves what serves as it
// is, and stores nothing.
func TestWorkerRefused(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("mod", "")
	serving := w.serving("mod").ID
	var many []part
	for i := range catalog.MaxModules {
		many = append(many, part{fmt.Sprintf("m%d.js", i), esModule, ""})
	}
	for name, c := range map[string]struct {
		parts        []part
		status, code int
		text         string
	}{
		"it throws":           {[]part{metadata(""), {"index.js", esModule, "throw new Error('fetch')"}}, 400, 10021, "Uncaught Error: thrown\n  at index.js:1:1"},
		"no handlers":         {[]part{metadata(""), {"index.js", esModule, "export default {}"}}, 400, 10068, "No event handlers were registered. This script does nothing."},
		"no metadata":         {[]part{hello}, 400, 10021, "The form has no part 'metadata'."},
		"bad metadata":        {[]part{{"metadata", "", "{"}, hello}, 400, 10021, "The metadata is not JSON."},
		"metadata of a type":  {[]part{{"metadata", "", `{"bindings":1}`}, hello}, 400, 10021, "The field 'bindings' of the metadata has the wrong type."},
		"metadata twice":      {[]part{metadata(""), metadata(""), hello}, 400, 10021, "The form has the part 'metadata' twice."},
		"no main":             {[]part{{"metadata", "", `{"main_module":"x.js"}`}, hello}, 400, 10021, `No such module "x.js": the metadata names it as the one that is run, and the form has no part of this name.`},
		"nothing to run":      {[]part{{"metadata", "", `{}`}, hello}, 400, 10021, "The metadata must name the main_module or the body_part."},
		"two to run":          {[]part{{"metadata", "", `{"main_module":"index.js","body_part":"index.js"}`}, hello}, 400, 10021, "The metadata names a main_module and a body_part: please specify one of them."},
		"a module twice":      {[]part{metadata(""), hello, hello}, 400, 10021, "The form has the module 'index.js' twice."},
		"a module of a type":  {[]part{metadata(""), hello, {"a.py", "text/x-python", ""}}, 400, 10021, "The module 'a.py' has the type 'text/x-python', which is not supported. Modules are JavaScript, WebAssembly, text, JSON or data."},
		"a module of no type": {[]part{metadata(""), hello, {"a", "", ""}}, 400, 10021, "The part 'a' has no content type that tells what kind of module it is."},
		"too many modules":    {append([]part{metadata(""), hello}, many...), 400, 10021, "A Worker has at most 1000 modules."},
		"a bad date":          {[]part{{"metadata", "", `{"main_module":"index.js","compatibility_date":"yesterday"}`}, hello}, 400, 10021, "Invalid compatibility date 'yesterday'. Please specify a date as YYYY-MM-DD."},
		"a future date":       {[]part{{"metadata", "", `{"main_module":"index.js","compatibility_date":"2999-01-01"}`}, hello}, 400, 10021, "Can't set compatibility date in the future: 2999-01-01"},
		"static assets":       {[]part{{"metadata", "", `{"main_module":"index.js","assets":{"jwt":"a.b.c"}}`}, hello}, 401, 10013, "The token of the assets upload session is not valid. Please begin another session."},
		"no assets to keep":   {[]part{{"metadata", "", `{"main_module":"index.js","keep_assets":true,"assets":{"config":{}}}`}, hello}, 400, 10021, "The Worker has no static assets that could be kept."},
		"a binding of assets": {[]part{metadata(`{"name":"A","type":"assets"}`), hello}, 400, 10021, "binding A of type assets is for a Worker with static assets, which this version has none of."},
		"CPU":                 {[]part{{"metadata", "", `{"main_module":"index.js","limits":{"cpu_ms":300001}}`}, hello}, 400, 10021, "Invalid limits.cpu_ms of 300001. Please specify an integer between 1 and 300000."},

		"a binding of a type":   {[]part{metadata(`{"name":"A","type":"r2_bucket"}`), hello}, 400, 10021, "binding A of type r2_bucket is not supported by this server. It supports " + supportedBindings + "."},
		"a binding twice":       {[]part{metadata(`{"name":"A","type":"json","json":1},{"name":"A","type":"plain_text","text":""}`), hello}, 400, 10053, "Binding name 'A' already in use. Please use a different name and try again."},
		"a binding of no name":  {[]part{metadata(`{"name":"","type":"json","json":1}`), hello}, 400, 10021, "'' cannot be the name of a binding."},
		"a variable of no text": {[]part{metadata(`{"name":"A","type":"plain_text"}`), hello}, 400, 10021, "binding A of type plain_text must have a text"},
		"a namespace unknown":   {[]part{metadata(`{"name":"A","type":"kv_namespace","namespace_id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}`), hello}, 400, 10041, "KV namespace 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' not found."},
		"no namespace":          {[]part{metadata(`{"name":"A","type":"kv_namespace","namespace_id":"x"}`), hello}, 400, 10042, "KV namespace 'x' is not valid."},
		"our own namespace":     {[]part{metadata(`{"name":"A","type":"kv_namespace","namespace_id":"` + catalog.Workers.String() + `"}`), hello}, 400, 10041, "KV namespace '" + catalog.Workers.String() + "' not found."},
		"no service":            {[]part{metadata(`{"name":"A","type":"service","service":"other"}`), hello}, 400, 10143, "Could not resolve service binding 'A'. Target script 'other' not found. Please verify the target script and try again."},
		"nothing to inherit":    {[]part{metadata(`{"name":"A","type":"inherit"}`), hello}, 400, 10057, "Binding A cannot be inherited: the Worker's current version has no such binding."},
		"no blob":               {[]part{metadata(`{"name":"A","type":"text_blob","part":"t"}`), hello}, 400, 10021, "binding A of type text_blob names the part 't', which the upload does not have"},
	} {
		for _, target := range []string{"PUT scripts/mod?bindings_inherit=strict", "POST scripts/mod/versions?bindings_inherit=strict"} {
			t.Run(name+" "+target, func(t *testing.T) {
				method, path, _ := strings.Cut(target, " ")
				a := w.send(method, path, c.parts...)
				a.t = t
				a.fails(c.status, c.code, c.text)
			})
		}
	}
	_, total, err := w.catalog.Versions(t.Context(), accountID, "mod", 0, 10)
	if err != nil || total != 1 || w.serving("mod").ID != serving {
		t.Errorf("%d versions, %s serves (%v)", total, w.serving("mod").ID, err)
	}
	w.at("PUT", "scripts/mod", "{}").fails(400, 10021, "A Worker is uploaded as multipart/form-data with a part 'metadata' and a part for each module.")
	for _, bad := range []string{"-a", "A", "a.b", strings.Repeat("a", 64)} {
		if a := w.send("PUT", "scripts/"+bad, metadata(""), hello); a.status != 400 || a.Errors[0].Code != 10016 {
			t.Errorf("name %q: %d %s", bad, a.status, a.body)
		}
	}
	w.deploy(strings.Repeat("a", 63), "")
}

// TestWorkerSizes: each limit of an upload, at it and one past it.
func TestWorkerSizes(t *testing.T) {
	w := newWorkersWorld(t)
	variable := func(n int) part {
		return metadata(`{"name":"A","type":"plain_text","text":"` + strings.Repeat("x", n) + `"}`)
	}
	w.send("PUT", "scripts/a", variable(MaxVariableBytes), hello).ok()
	w.send("PUT", "scripts/a", variable(MaxVariableBytes+1), hello).
		fails(400, 10021, "The value of binding A has 5121 bytes, a variable or secret has at most 5120.")
	blob := func(name string, n int) part {
		return part{name, "application/octet-stream", strings.Repeat("x", n)}
	}
	w.send("PUT", "scripts/a", metadata(""), hello, blob("a", catalog.MaxModuleBytes)).ok()
	w.send("PUT", "scripts/a", metadata(""), hello, blob("a", catalog.MaxModuleBytes+1)).
		fails(413, 10027, "The module 'a' exceeded the size limit of 25 MiB.")
	third := (MaxScriptFullBytes - len(hello.content)) / 3
	rest := MaxScriptFullBytes - len(hello.content) - 2*third
	w.send("PUT", "scripts/a", metadata(""), hello, blob("a", third), blob("b", third), blob("c", rest)).ok()
	w.send("PUT", "scripts/a", metadata(""), hello, blob("a", third), blob("b", third), blob("c", rest+1)).
		fails(413, 10027, "Your Worker exceeded the size limit of 64 MiB before compression.")
	if testing.Short() {
		return
	}
	random := make([]byte, MaxScriptBytes+1<<10)
	seed := uint32(1)
	for i := range random {
		seed = seed*1664525 + 1013904223
		random[i] = byte(seed >> 24)
	}
	w.send("PUT", "scripts/a", metadata(""), hello, part{"r", "application/octet-stream", string(random[:MaxScriptBytes-8<<10])}).ok()
	w.send("PUT", "scripts/a", metadata(""), hello, part{"r", "application/octet-stream", string(random)}).
		fails(413, 10027, "Your Worker exceeded the size limit of 10 MiB after compression.")
}

// TestWorkerForms: names of modules with folders, parts in any order, and bodies
// that end early.
func TestWorkerForms(t *testing.T) {
	w := newWorkersWorld(t)
	w.send("PUT", "scripts/a", hello, part{"deep/er/x.txt", "text/plain;charset=utf-8", "x"}, metadata("")).ok()
	if got := w.last().Manifest.Modules; len(got) != 2 || got[1].Name != "deep/er/x.txt" || got[1].Type != "text/plain" {
		t.Errorf("modules %+v", got)
	}
	serving := w.serving("a").ID
	body, contentType := formOf(t, metadata(""), hello)
	for n := range len(body) - 1 {
		if n > 20 && n < len(body)-40 && n%17 != 0 {
			continue
		}
		a := w.do(request{method: "PUT", path: in("/workers/scripts/a"), body: body[:n], header: map[string]string{"Content-Type": contentType}})
		if a.status != 400 && n < len(body)-4 { // the end of the last line may be missing
			t.Fatalf("cut after %d of %d bytes: %d %s", n, len(body), a.status, a.body)
		}
		if a.status != 400 {
			continue
		}
		if w.serving("a").ID != serving {
			t.Fatalf("cut after %d bytes it was deployed", n)
		}
	}
	// The service worker format, with its blobs.
	w.send("PUT", "scripts/sw", part{"metadata", "", `{"body_part":"index.js","bindings":[{"name":"T","type":"text_blob","part":"a_txt"},{"name":"W","type":"wasm_module","part":"b_wasm"}]}`},
		part{"index.js", "application/javascript", "addEventListener('fetch', () => {})"},
		part{"a_txt", "text/plain", "text"}, part{"b_wasm", "application/wasm", "\x00asm"}).ok()
	if got := w.last(); !got.Manifest.ServiceWorker || got.Manifest.Bindings[0].Part != "a_txt" || string(got.Modules["a_txt"]) != "text" {
		t.Errorf("tried out %+v", got)
	}
	if a := w.at("GET", "scripts/sw").ok(); a.body != "addEventListener('fetch', () => {})" {
		t.Errorf("script %q", a.body)
	}
	w.send("PUT", "scripts/sw", part{"metadata", "", `{"body_part":"index.js","bindings":[{"name":"not-a-variable","type":"json","json":1}]}`},
		part{"index.js", "application/javascript", "addEventListener('fetch', () => {})"}).fails(400, 10021, "'not-a-variable' cannot be the name of a binding.")
}

// TestWorkerContent: what was uploaded comes back, the main module first.
func TestWorkerContent(t *testing.T) {
	w := newWorkersWorld(t)
	w.send("PUT", "scripts/a", metadata(""), part{"sub/x y.mjs", esModule, "export {}"}, hello, part{"data", "application/octet-stream", "\x00\r\n--"}).ok()
	first := w.serving("a").ID
	w.send("PUT", "scripts/a/content", part{"metadata", "", `{"main_module":"index.js"}`}, hello).ok()
	read := func(path string) []part {
		a := w.at("GET", path).ok()
		_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if err != nil || a.header.Get("Cf-Entrypoint") != "index.js" {
			t.Fatalf("%v, %v", a.header, err)
		}
		form, err := multipart.NewReader(strings.NewReader(a.body), params["boundary"]).ReadForm(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		var parts []part
		for name, files := range form.File {
			f, err := files[0].Open()
			if err != nil {
				t.Fatal(err)
			}
			var content bytes.Buffer
			if _, err := content.ReadFrom(f); err != nil {
				t.Fatal(err)
			}
			parts = append(parts, part{name, files[0].Header.Get("Content-Type"), content.String()})
		}
		slices.SortFunc(parts, func(a, b part) int { return strings.Compare(a.name, b.name) })
		return parts
	}
	if got, want := read("scripts/a/content/v2"), []part{hello}; !slices.Equal(got, want) {
		t.Errorf("content %q, want %q", got, want)
	}
	if got, want := read("scripts/a/content/v2?version="+first), []part{{"data", "application/octet-stream", "\x00\r\n--"}, hello, {"sub/x y.mjs", esModule, "export {}"}}; !slices.Equal(got, want) {
		t.Errorf("content %q, want %q", got, want)
	}
}

// TestWorkerConflict: a version that another one overtook is made anew from it.
func TestWorkerConflict(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	overtaken := false
	w.before = func(b Bundle) {
		if overtaken || b.Name != "a" {
			return
		}
		overtaken = true
		r := request{method: "PUT", path: in("/workers/scripts/a/secrets"), body: `{"name":"S","text":"meanwhile","type":"secret_text"}`}
		w.doHolding(r, w.server.door.held.Load()).ok()
	}
	w.deploy("a", "")
	if !overtaken || w.last().Secrets["S"] != "meanwhile" {
		t.Errorf("the secret that came between is lost: %v", w.last().Secrets)
	}
	if v := w.serving("a"); v.Number != 3 || len(v.Manifest.Bindings) != 1 {
		t.Errorf("version %+v serves", v)
	}
}

// TestVersionMetadata: a version knows its tag and when it was made; one that is
// made of it has its own.
func TestVersionMetadata(t *testing.T) {
	w := newWorkersWorld(t)
	read := func() (m struct{ Tag, Timestamp string }) {
		t.Helper()
		if err := json.Unmarshal([]byte(w.last().Manifest.Bindings[0].Text), &m); err != nil {
			t.Fatal(err)
		}
		if at, err := time.Parse(time.RFC3339, m.Timestamp); err != nil || time.Since(at) > time.Minute {
			t.Errorf("timestamp %q: %v", m.Timestamp, err)
		}
		return m
	}
	w.send("PUT", "scripts/a", part{"metadata", "", `{"main_module":"index.js","bindings":[{"name":"VM","type":"version_metadata"}],"annotations":{"workers/tag":"t1"}}`}, hello).ok()
	first := read()
	w.at("PUT", "scripts/a/secrets", `{"name":"S","text":"s","type":"secret_text"}`).ok()
	if second := read(); first.Tag != "t1" || second.Tag != "" || second.Timestamp <= first.Timestamp {
		t.Errorf("metadata %+v, then %+v", first, second)
	}
	if a := w.at("GET", "scripts/a/settings").ok(); !strings.Contains(a.body, `{"name":"VM","type":"version_metadata"}`) {
		t.Errorf("settings %s", a.body)
	}
}

// TestWorkerFailures: what the catalog refuses is the client's to mend, except for
// changes that others are in the way of.
func TestWorkerFailures(t *testing.T) {
	for _, kind := range []error{
		catalog.ErrWorkerNotFound, catalog.ErrWorkerName, catalog.ErrTooManyWorkers, catalog.ErrVersionNotFound, catalog.ErrShares,
		catalog.ErrSubdomainTaken, catalog.ErrSubdomainName, catalog.ErrZoneNotFound, catalog.ErrZoneTaken, catalog.ErrZoneName, catalog.ErrTooManyZones,
		catalog.ErrRouteNotFound, catalog.ErrRouteTaken, catalog.ErrRouteZone, catalog.ErrRoutePattern, catalog.ErrTooManyRoutes,
		catalog.ErrDomainNotFound, catalog.ErrDomainTaken, catalog.ErrTooManySchedules,
	} {
		var f *failure
		if err := workerFailure(fmt.Errorf("doing: %w", kind)); !errors.As(err, &f) || f.status < 400 || f.status >= 500 || f.code == 0 || f.text == "" || strings.Contains(f.text, "doing") {
			t.Errorf("%v becomes %#v", kind, err)
		}
	}
	var f *failure
	if err := workerFailure(fmt.Errorf("doing: %w", catalog.ErrConflict)); !errors.As(err, &f) || f.status != 503 || f.retryAfter == 0 {
		t.Errorf("a conflict becomes %#v", err)
	}
	if err := workerFailure(catalog.ErrUnavailable); err != catalog.ErrUnavailable {
		t.Errorf("a failure of ours becomes %#v", err)
	}
}

// TestWorkersAbsent: a server without Workers has nothing at their paths, and one
// whose runtime is missing says so.
func TestWorkersAbsent(t *testing.T) {
	none := newWorld(t)
	for _, path := range []string{in("/workers/scripts/a"), in("/workers/subdomain"), basePath + "/zones"} {
		if a := none.get(path); a.status != 404 || a.Errors[0].Code != 7003 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	w := newWorkersWorld(t, func(cfg *Config) {
		cfg.Workers.Check = func(context.Context, Bundle) (Started, error) { return Started{}, ErrNoRuntime }
	})
	a := w.send("PUT", "scripts/a", metadata(""), hello)
	a.fails(501, 10001, "Workers cannot be deployed: the Workers runtime is not installed on this server.")
	if a.header.Get("X-Should-Retry") != "false" {
		t.Error("clients would try again")
	}
	w.at("GET", "scripts").is("[]")
}

// TestOtherProducts: where wrangler looks for what cannot be bound it finds why.
func TestOtherProducts(t *testing.T) {
	w := newWorkersWorld(t)
	w.get(in("/r2/buckets/b")).fails(404, 7003, "This server has no R2. It runs Workers with bindings of type "+supportedBindings+".")
	w.get(in("/nothing/r2")).fails(404, 7003, "Could not route to "+in("/nothing/r2")+", perhaps your object identifier is invalid?")
}

// TestWorkerRights: who may not change an account may not change its Workers, and
// a token for keys alone sees nothing of them.
func TestWorkerRights(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", `{"name":"S","type":"secret_text","text":"s"}`)
	reader := w.token(catalog.Scope{Permission: catalog.Read})
	keys := w.token(catalog.Scope{Permission: catalog.Write, Namespace: w.ns.ID})
	body, contentType := formOf(t, metadata(""), hello)
	for _, c := range []request{
		{method: "PUT", path: in("/workers/scripts/a"), body: body, header: map[string]string{"Content-Type": contentType}},
		{method: "PUT", path: in("/workers/scripts/a/secrets"), body: `{"name":"S","text":"t","type":"secret_text"}`},
		{method: "DELETE", path: in("/workers/scripts/a")},
		{method: "PUT", path: in("/workers/scripts/a/routes"), body: `[{"pattern":"example.com/*"}]`},
		{method: "PUT", path: in("/workers/scripts/a/schedules"), body: `[]`},
		{method: "POST", path: basePath + "/zones", body: `{"name":"example.com","account":{"id":"` + accountID + `"}}`},
	} {
		for _, token := range []string{reader, keys} {
			c.token = token
			if a := w.do(c); a.status != 403 {
				t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
			}
		}
	}
	w.do(request{method: "GET", path: in("/workers/scripts/a/settings"), token: reader}).ok()
	if a := w.do(request{method: "GET", path: in("/workers/scripts/a/settings"), token: keys}); a.status != 403 {
		t.Errorf("a token for keys reads settings: %d", a.status)
	}
	w.do(request{method: "GET", path: basePath + "/zones?name=example.com", token: keys}).is("[]")
}

func names(bindings []shownBinding) (all []string) {
	for _, b := range bindings {
		all = append(all, b.Name+":"+b.Type)
	}
	slices.Sort(all)
	return all
}
