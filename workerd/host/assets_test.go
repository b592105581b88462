package host_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/workerd/host"
)

// deployFiles adds a version with static files, whose contents are given by their
// paths, and with code if some is given.
func (w *world) deployFiles(name, code string, assets catalog.WorkerAssets, files map[string]string) {
	w.t.Helper()
	ctx, set := w.t.Context(), catalog.AssetSet{}
	var contents []catalog.AssetContent
	for path, content := range files {
		sum := sha256.Sum256([]byte(content))
		hash := hex.EncodeToString(sum[:16])
		set[path] = catalog.Asset{Hash: hash, Size: int64(len(content))}
		contents = append(contents, catalog.AssetContent{Hash: hash, Type: "text/x-file", Content: []byte(content)})
	}
	var err error
	if assets.Set, _, err = w.catalog.BeginAssets(ctx, w.account, set); err != nil {
		w.t.Fatal(err)
	}
	if complete, err := w.catalog.PutAssets(ctx, w.account, assets.Set, contents); err != nil || !complete {
		w.t.Fatal(complete, err)
	}
	m := catalog.Manifest{CompatibilityDate: "2026-01-01", Assets: &assets}
	if code != "" {
		hashes, err := w.catalog.PutModules(ctx, [][]byte{[]byte(code)})
		if err != nil {
			w.t.Fatal(err)
		}
		m.Main, m.Modules = "index.js", []catalog.WorkerModule{{Name: "index.js", Type: "application/javascript+module", Hash: hashes[0], Size: len(code)}}
	}
	base := ""
	if latest, err := w.catalog.LatestVersion(ctx, w.account, name); err == nil {
		base = latest.ID
	}
	if _, _, err = w.catalog.AddVersion(ctx, w.account, name, catalog.NewVersion{Base: base, Create: true, Deploy: true, Manifest: m}); err == nil {
		_, err = w.catalog.SetWorkerSubdomain(ctx, w.account, name, true, false)
	}
	if err == nil {
		_, err = w.catalog.Subdomain(ctx, w.account)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.tell()
}

// TestAssetsAlone: files are served without a process, and without the control
// plane once they are near.
func TestAssetsAlone(t *testing.T) {
	w := start(t)
	w.deployFiles("hello", "", catalog.WorkerAssets{Headers: "/a\n  X-One: 1\n  Transfer-Encoding: chunked\n  Content-Length: 99\n"},
		map[string]string{"/index.html": "home", "/a": "file a"})
	w.want(site, "/", http.StatusOK, "home")
	rec := w.ask(site, "/a")
	h := rec.Header()
	if rec.Body.String() != "file a" || h.Get("Content-Type") != "text/x-file" || h.Get("X-One") != "1" || h.Get("Content-Length") != "6" || h["Transfer-Encoding"] != nil {
		t.Errorf("%q %v", rec.Body, h)
	}
	if rec := w.ask(site, "/a", "If-None-Match", h.Get("ETag")); rec.Code != http.StatusNotModified || rec.Body.Len() != 0 || rec.Header()["Content-Length"] != nil {
		t.Errorf("%d %q %v", rec.Code, rec.Body, rec.Header())
	}
	if rec := w.ask(site, "/a", "Range", "bytes=0-1"); rec.Code != http.StatusOK || rec.Body.String() != "file a" || rec.Header()["Cache-Control"] != nil {
		t.Errorf("%d %q %v", rec.Code, rec.Body, rec.Header())
	}
	w.want(site, "/none", http.StatusNotFound, "")
	long := "/" + strings.Repeat("x", host.MaxAssetURLBytes-1)
	w.want(site, long, http.StatusNotFound, "")
	w.want(site, long+"x", http.StatusRequestURITooLong, "16 KiB")
	w.down.Store(true)
	w.want(site, "/a", http.StatusOK, "file a")
	w.down.Store(false)
	if n := w.runtime.Processes(); n != 0 {
		t.Errorf("%d processes", n)
	}
	w.deployFiles("hello", "", catalog.WorkerAssets{}, map[string]string{"/b": "file b"})
	w.want(site, "/b", http.StatusOK, "file b")
	w.want(site, "/a", http.StatusNotFound, "")
	w.deploy("hello", code("code"))
	w.want(site, "/b", http.StatusOK, "code")
}

// TestAssetsBeforeCode: the code answers what no file does.
func TestAssetsBeforeCode(t *testing.T) {
	w := start(t)
	w.deployFiles("hello", code("code"), catalog.WorkerAssets{WorkerRules: []string{"/b"}}, map[string]string{"/a": "file a", "/b": "file b"})
	w.want(site, "/a", http.StatusOK, "file a")
	if n := w.runtime.Processes(); n != 0 {
		t.Errorf("%d processes for a file", n)
	}
	w.want(site, "/b", http.StatusOK, "code")
	w.want(site, "/c", http.StatusOK, "code")
}

// TestAssetsServiceIsForWorkers: nobody reaches the files of a version by its name
// for the binding.
func TestAssetsServiceIsForWorkers(t *testing.T) {
	w := start(t)
	w.deployFiles("hello", "", catalog.WorkerAssets{}, map[string]string{"/a": "file a"})
	w.want(site, "/a", http.StatusOK, "file a")
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/a", nil)
	r.Header.Set("X-NK-Service", "@assets")
	rec := httptest.NewRecorder()
	w.host.Services().ServeHTTP(rec, r)
	if rec.Code != http.StatusForbidden {
		t.Errorf("%d %q", rec.Code, rec.Body)
	}
	w.want("@assets.dev.workers.localhost", "/a", http.StatusNotFound, "no Worker")
}

// TestAssetBytesHeld: files that do not fit beside those being sent are refused.
func TestAssetBytesHeld(t *testing.T) {
	w := start(t)
	w.deployFiles("hello", "", catalog.WorkerAssets{}, map[string]string{"/a": "file a"})
	w.want(site, "/a", http.StatusOK, "file a")
	w.host.HoldAssetBytes(host.MaxAssetBytesHeld - 6)
	w.want(site, "/a", http.StatusOK, "file a")
	w.host.HoldAssetBytes(1)
	for range 2 {
		if rec := w.ask(site, "/a"); rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") == "" {
			t.Errorf("%d %v", rec.Code, rec.Header())
		}
	}
	w.host.HoldAssetBytes(-1)
	w.want(site, "/a", http.StatusOK, "file a")
}
