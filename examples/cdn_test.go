package examples_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// npmPackages are real packages, in the versions that are pinned there.
const npmPackages = "../test/compat/node_modules"

// library is a package that is loaded into the CDN.
type library struct {
	folder string
	name   string // NAME@VERSION
	files  map[string]string
}

// openLibrary reads the files of a package.
func openLibrary(t *testing.T, name string) library {
	t.Helper()
	folder, err := filepath.Abs(filepath.Join(npmPackages, name))
	check(t, err)
	l := library{folder: folder, files: map[string]string{}}
	check(t, filepath.WalkDir(folder, func(file string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(file)
		path, _ := filepath.Rel(folder, file) // it is below
		l.files[path] = string(content)
		return err
	}))
	var about struct{ Version string }
	check(t, json.Unmarshal([]byte(l.files["package.json"]), &about))
	l.name = name + "@" + about.Version
	return l
}

func sri(content string) string {
	hash := sha512.Sum512([]byte(content))
	return "sha512-" + base64.StdEncoding.EncodeToString(hash[:])
}

// TestCDN: files of real packages, in every coding, byte for byte.
func TestCDN(t *testing.T) {
	t.Parallel()
	p := deploy(t, "cdn")
	cdn := worker("cdn")
	libraries := map[string]library{}
	load := []string{"load.mjs"}
	for _, name := range []string{"kleur", "cookie", "path-to-regexp", "blake3-wasm", "@cloudflare/kv-asset-handler"} {
		libraries[name] = openLibrary(t, name)
		load = append(load, libraries[name].folder)
	}
	cdn.get(t, "/kleur@4.1.5/index.mjs").want(t, http.StatusNotFound, "") // which is cached
	p.command(t, "node", load...)
	nearkeytest.Eventually(t, "the files are there", func() error {
		return statusOf(cdn.get(t, "/"+libraries["kleur"].name+"/index.mjs"), http.StatusOK)
	})
	for _, l := range libraries {
		var hashes map[string]string
		cdn.get(t, "/"+l.name+"/").want(t, http.StatusOK, "").wantHeader(t, "Content-Type", "application/json").into(t, &hashes)
		if len(hashes) != len(l.files) {
			t.Errorf("%s has %d files, want %d", l.name, len(hashes), len(l.files))
		}
		for path, content := range l.files {
			if hashes[path] != sri(content) {
				t.Errorf("the hash of %s/%s is %s", l.name, path, hashes[path])
			}
		}
	}
	t.Run("codings", func(t *testing.T) { cdnCodings(t, p, cdn, libraries) })
	t.Run("conditional", func(t *testing.T) { cdnConditional(t, cdn, libraries["kleur"]) })
	t.Run("absent", func(t *testing.T) { cdnAbsent(t, cdn, libraries["kleur"]) })
	t.Run("changed", func(t *testing.T) { cdnChanged(t, p, libraries["kleur"]) })
	t.Run("browser", func(t *testing.T) { cdnBrowser(t, cdn, libraries) })
}

// cdnCodings asks for files in every way that clients do.
func cdnCodings(t *testing.T, p *project, cdn site, libraries map[string]library) {
	const js, wasm = "text/javascript; charset=utf-8", "application/wasm"
	for _, f := range []struct{ library, path, kind string }{
		{"kleur", "index.mjs", js},
		{"kleur", "license", "application/octet-stream"},
		{"cookie", "dist/index.js", js},
		{"path-to-regexp", "dist/index.js.map", "application/json"},
		{"path-to-regexp", "dist/index.d.ts", "text/plain; charset=utf-8"},
		{"blake3-wasm", "dist/wasm/web/blake3_js_bg.wasm", wasm},
		{"@cloudflare/kv-asset-handler", "package.json", "application/json"},
	} {
		l := libraries[f.library]
		address, content := "/"+l.name+"/"+f.path, l.files[f.path]
		if content == "" {
			t.Fatalf("%s has no %s", l.name, f.path)
		}
		for accepted, coding := range map[string]string{
			"": "", "identity": "", "deflate, zstd": "", "br;q=0, gzip;q=0.0": "", "nonsense;;": "",
			"gzip": "gzip", "gzip, deflate": "gzip", "br;q=0.5, gzip": "gzip", "*, br;q=0": "gzip", "x-gzip": "gzip",
			"br": "br", "gzip, deflate, br, zstd": "br", "BR;Q=1": "br", "*": "br", "gzip;q=0.5, br;q=0.5": "br",
		} {
			a := cdn.get(t, address, "Accept-Encoding: "+accepted).want(t, http.StatusOK, "").
				wantHeader(t, "Content-Encoding", coding).wantHeader(t, "Content-Type", f.kind).wantHeader(t, "Vary", "Accept-Encoding").
				wantHeader(t, "Cache-Control", "public, max-age=31536000, immutable").wantHeader(t, "Access-Control-Allow-Origin", "*").
				wantHeader(t, "X-Content-Type-Options", "nosniff")
			a.wantHeader(t, "Content-Length", strconv.Itoa(len(a.body)))
			head := cdn.do(t, http.MethodHead, address, "", "Accept-Encoding: "+accepted).want(t, http.StatusOK, "").wantHeader(t, "Content-Encoding", coding)
			head.wantHeader(t, "ETag", a.header.Get("ETag")).wantHeader(t, "Content-Length", strconv.Itoa(len(a.body)))
			if coding == "br" && accepted != "br" {
				continue // decoded once
			}
			if got := decoded(t, p, coding, a.body); got != sha256.Sum256([]byte(content)) {
				t.Errorf("%s as %q is another file of %d bytes", address, coding, len(a.body))
			}
			if coding != "" && len(content) > 1000 && len(a.body) >= len(content) {
				t.Errorf("%s has %d bytes, and %d as %s", address, len(content), len(a.body), coding)
			}
		}
	}
}

// decoded is the SHA-256 of what was sent in a coding.
func decoded(t *testing.T, p *project, coding string, body []byte) (hash [sha256.Size]byte) {
	t.Helper()
	switch coding {
	case "gzip":
		r, err := gzip.NewReader(bytes.NewReader(body))
		check(t, err)
		body, err = io.ReadAll(r)
		check(t, err)
	case "br":
		const program = `process.stdout.write(require("zlib").brotliDecompressSync(require("fs").readFileSync("body.br")).toString("base64"))`
		p.file(t, "body.br", string(body))
		var err error
		body, err = base64.StdEncoding.DecodeString(p.command(t, "node", "-e", program))
		check(t, err)
	}
	return sha256.Sum256(body)
}

// cdnConditional asks for what a client has already.
func cdnConditional(t *testing.T, cdn site, kleur library) {
	address := "/" + kleur.name + "/index.mjs"
	first := cdn.get(t, address, "Accept-Encoding: br").want(t, http.StatusOK, "")
	tag, modified := first.header.Get("ETag"), first.header.Get("Last-Modified")
	at, err := http.ParseTime(modified)
	check(t, err)
	info, err := os.Stat(filepath.Join(kleur.folder, "index.mjs"))
	check(t, err)
	if !at.Equal(info.ModTime().Truncate(time.Second)) {
		t.Errorf("Last-Modified: %s, want %s", modified, info.ModTime())
	}
	later, earlier := at.Add(time.Hour).UTC().Format(http.TimeFormat), at.Add(-time.Second).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		status  int
		coding  string
		headers []string
	}{
		{http.StatusNotModified, "br", []string{"If-None-Match: " + tag}},
		{http.StatusNotModified, "br", []string{"If-None-Match: W/" + tag}},
		{http.StatusNotModified, "br", []string{`If-None-Match: "x", ` + tag}},
		{http.StatusNotModified, "br", []string{"If-None-Match: *"}},
		{http.StatusNotModified, "br", []string{"If-Modified-Since: " + modified}},
		{http.StatusNotModified, "br", []string{"If-Modified-Since: " + later}},
		{http.StatusNotModified, "br", []string{"If-None-Match: " + tag, "If-Modified-Since: " + earlier}},
		{http.StatusOK, "br", []string{`If-None-Match: "x"`, "If-Modified-Since: " + later}},
		{http.StatusOK, "br", []string{"If-Modified-Since: " + earlier}},
		{http.StatusOK, "br", []string{"If-Modified-Since: yesterday"}},
		{http.StatusOK, "gzip", []string{"If-None-Match: " + tag}}, // other bytes
		{http.StatusOK, "", []string{"If-None-Match: " + tag}},
	} {
		a := cdn.get(t, address, append(c.headers, "Accept-Encoding: "+c.coding)...)
		if a.status != c.status {
			t.Errorf("%q in %q: status %d, want %d", c.headers, c.coding, a.status, c.status)
		}
		if a.status == http.StatusNotModified && (len(a.body) != 0 || a.header.Get("ETag") != tag || a.header.Get("Cache-Control") == "") {
			t.Errorf("%q: %v and %d bytes", c.headers, a.header, len(a.body))
		}
	}
}

func cdnAbsent(t *testing.T, cdn site, kleur library) {
	for _, address := range []string{
		"/", "/kleur", "/kleur/index.mjs", "/" + kleur.name, "/kleur@0.0.0/", "/kleur@0.0.0/index.mjs", "/" + kleur.name + "/index.mjs.br",
		"/" + kleur.name + "/absent.js", "/" + kleur.name + "/%ff", "/" + kleur.name + "/" + strings.Repeat("a", 600),
	} {
		cdn.get(t, address).want(t, http.StatusNotFound, "").wantHeader(t, "Cache-Control", "max-age=60")
	}
	cdn.get(t, "/kleur%40"+strings.TrimPrefix(kleur.name, "kleur@")+"/index%2emjs").want(t, http.StatusOK, "")
	cdn.do(t, http.MethodPut, "/"+kleur.name+"/index.mjs", "x").want(t, http.StatusMethodNotAllowed, "").wantHeader(t, "Allow", "GET, HEAD")
}

// cdnChanged loads a version again: as it was, and with another file in it.
func cdnChanged(t *testing.T, p *project, kleur library) {
	folder := filepath.Join(p.dir, "kleur")
	check(t, os.CopyFS(folder, os.DirFS(kleur.folder)))
	p.command(t, "node", "load.mjs", folder)
	check(t, os.WriteFile(filepath.Join(folder, "index.mjs"), []byte("alert(1)"), 0o600))
	if _, err := p.try(t.Context(), "node", "load.mjs", folder); err == nil || !strings.Contains(err.Error(), "other files") {
		t.Errorf("a version was changed: %v", err)
	}
}

// cdnBrowser uses the files in a page of another origin.
func cdnBrowser(t *testing.T, cdn site, libraries map[string]library) {
	kleur, blake3 := libraries["kleur"], libraries["blake3-wasm"]
	good, bad := sri(kleur.files["index.mjs"]), sri(kleur.files["colors.mjs"])
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(w, `<!doctype html><p id="good"></p><p id="bad"></p><p id="used"></p><p id="wasm"></p>
<script type="module" crossorigin src="%[1]s/index.mjs" integrity="%[2]s" onload="good.textContent='loaded'" onerror="good.textContent='refused'"></script>
<script type="module" crossorigin src="%[1]s/colors.mjs?bad" integrity="%[2]s" onload="bad.textContent='loaded'" onerror="bad.textContent='refused'"></script>
<script type="module">
	import kleur from "%[1]s/index.mjs";
	used.textContent = typeof kleur.red().bold;
	await WebAssembly.compileStreaming(fetch("%[3]s/dist/wasm/web/blake3_js_bg.wasm"));
	wasm.textContent = "compiled";
</script>`, string(cdn)+"/"+kleur.name, good, string(cdn)+"/"+blake3.name)
	}))
	defer page.Close()
	if good == bad {
		t.Fatal("two files have one hash")
	}
	b := openBrowser(t)
	b.do(t, chromedp.Navigate(page.URL), says("#good", "loaded"), says("#bad", "refused"), says("#used", "function"), says("#wasm", "compiled"))
}
