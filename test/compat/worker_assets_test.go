package compat

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// assetCase is a request to a Worker with static assets, and what must come back.
type assetCase struct {
	method, path string
	navigate     bool // as a browser asks for a page
	etag         string
	status       int
	body         string // all of it, unless it begins with an ellipsis
	location     string
	header, want string // a header and what it must be
}

// asset asks for a file as a client that follows no redirects.
func asset(t *testing.T, host string, c assetCase) (*http.Response, string) {
	t.Helper()
	if c.method == "" {
		c.method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(t.Context(), c.method, "http://127.0.0.1:"+shared.server.workers.Port()+c.path, nil)
	check(t, err)
	req.Host = host
	if c.navigate {
		req.Header.Set("Sec-Fetch-Mode", "navigate")
	}
	if c.etag != "" {
		req.Header.Set("If-None-Match", c.etag)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	check(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	check(t, err)
	return res, string(body)
}

// assets checks what a Worker answers, as soon as the first of the cases holds: then
// it is deployed.
func assets(t *testing.T, host string, cases []assetCase) {
	t.Helper()
	for i, c := range cases {
		if c.status == 0 {
			c.status = http.StatusOK
		}
		for deadline := time.Now().Add(liveTimeout); ; {
			res, body := asset(t, host, c)
			ok := res.StatusCode == c.status && body == c.body && res.Header.Get("Location") == c.location && (c.header == "" || res.Header.Get(c.header) == c.want)
			if ok {
				break
			}
			if i > 0 || time.Now().After(deadline) {
				t.Errorf("%s %s%s: %d %.200q %v, want %+v", c.method, host, c.path, res.StatusCode, body, res.Header, c)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// files writes files into the folder of the project.
func (w *wrangler) files(t *testing.T, files map[string]string) {
	t.Helper()
	for name, content := range files {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(w.dir, name)), 0o700))
		w.file(t, name, []byte(content))
	}
}

// TestAssetsAlone: a Worker without code is deployed three times; only what is new
// is uploaded, and what is gone is no longer served.
func TestAssetsAlone(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		config := func(more string) {
			w.file(t, "wrangler.toml", fmt.Appendf(nil, "name = %q\ncompatibility_date = \"2026-01-01\"\n[assets]\ndirectory = \"./public\"\n%s\n", name, more))
		}
		config("")
		big := strings.Repeat(name+" ", 500_000) // more than one form
		w.files(t, map[string]string{
			"public/index.html": "home of " + name, "public/about.html": "about", "public/sub/index.html": "sub", "public/app.js": "code",
			"public/a b [c].txt": "spaces", "public/plain": "plain", "public/empty.css": "", "public/big.bin": big, "public/twin.bin": big, "public/404.html": "no such page",
			"public/_redirects": "/old/* /sub/:splat 301\n/shown /about 200\n", "public/_headers": "/app.js\n  X-Frame-Options: DENY\n  Cache-Control: no-store\n",
		})
		w.ok(t, []string{"deploy"}, "Success! Uploaded", "Current Version ID:")
		assets(t, hostOf(name), []assetCase{
			{path: "/", body: "home of " + name, header: "Content-Type", want: "text/html; charset=utf-8"},
			{path: "/about", body: "about", header: "Cache-Control", want: "public, max-age=0, must-revalidate"},
			{path: "/about.html?a=b", status: 307, location: "/about?a=b"},
			{path: "/sub", status: 307, location: "/sub/"},
			{path: "/sub/", body: "sub"},
			{path: "/app.js", body: "code", header: "X-Frame-Options", want: "DENY"},
			{path: "/app.js", body: "code", header: "Cache-Control", want: "no-store"},
			{path: "/a%20b%20%5Bc%5D.txt", body: "spaces", header: "Content-Type", want: "text/plain; charset=utf-8"},
			{path: "/plain", body: "plain", header: "Content-Type", want: ""},
			{path: "/empty.css", body: "", header: "Content-Length", want: "0"},
			{path: "/big.bin", body: big},
			{path: "/twin.bin", body: big},
			{path: "/old/x?y", status: 301, location: "/sub/x?y"},
			{path: "/shown", body: "about"},
			{path: "/missing", status: 404},
			{path: "/_redirects", status: 404},
			{path: "/about", method: http.MethodHead, header: "Content-Length", want: "5"},
			{path: "/about", method: http.MethodPost, status: 405},
		})
		res, _ := asset(t, hostOf(name), assetCase{path: "/app.js"})
		assets(t, hostOf(name), []assetCase{{path: "/app.js", etag: res.Header.Get("ETag"), status: 304, header: "ETag", want: res.Header.Get("ETag")}})

		w.ok(t, []string{"deploy"}, "No updated asset files to upload", "Current Version ID:")
		check(t, os.Remove(filepath.Join(w.dir, "public/about.html")))
		w.files(t, map[string]string{"public/app.js": "newer " + name})
		config("html_handling = \"drop-trailing-slash\"\nnot_found_handling = \"404-page\"\n")
		w.ok(t, []string{"deploy"}, "Uploaded 1 of 1 asset", "Current Version ID:")
		assets(t, hostOf(name), []assetCase{
			{path: "/app.js", body: "newer " + name},
			{path: "/about", status: 404, body: "no such page"},
			{path: "/sub/", status: 307, location: "/sub"},
			{path: "/sub", body: "sub"},
		})
		w.files(t, map[string]string{"public/_redirects": "/* /index.html 200\n"})
		w.fails(t, []string{"deploy"}, "Invalid _redirects configuration", "Line 1: Infinite loop detected", "[code: 100324]")
		w.ok(t, []string{"delete", "--force"}, "Successfully deleted "+name)
		gone(t, hostOf(name))
	})
}

// TestAssetsWithCode: who answers what, by the assets' binding, single pages and
// the paths that the code gets first.
func TestAssetsWithCode(t *testing.T) {
	eachWrangler(t, func(t *testing.T, w *wrangler, name string) {
		w.files(t, map[string]string{"public/index.html": "page", "public/data.json": "{}", "public/api/file.txt": "file of " + name})
		module := `export default {
	async fetch(request, env) {
		const url = new URL(request.url);
		if (url.pathname.startsWith("/fetched")) return env.ASSETS.fetch(new URL(url.pathname.slice(8), request.url));
		if (url.pathname === "/through") {
			const res = await env.ASSETS.fetch("https://assets.example/data.json");
			return new Response([res.status, res.headers.get("Content-Type"), await res.text()].join(" "));
		}
		return new Response("code " + env.VAR + " " + url.pathname);
	},
};`
		config := func(assets string) string {
			return "[vars]\nVAR = \"v\"\n[assets]\ndirectory = \"./public\"\nbinding = \"ASSETS\"\n" + assets
		}
		w.project(t, name, module, config(""))
		w.ok(t, []string{"deploy"}, "Success! Uploaded", "env.ASSETS", "Current Version ID:")
		assets(t, hostOf(name), []assetCase{
			{path: "/", body: "page"},
			{path: "/data.json", body: "{}", header: "Content-Type", want: "application/json"},
			{path: "/index", status: 307, location: "/"},
			{path: "/missing", body: "code v /missing"},
			{path: "/missing", method: http.MethodPost, body: "code v /missing"},
			{path: "/through", body: "200 application/json {}"},
			{path: "/fetched/api/file.txt", body: "file of " + name},
			{path: "/fetched/none", status: 404},
		})
		w.project(t, name, module, config("not_found_handling = \"single-page-application\"\nrun_worker_first = [\"/api/*\", \"/through\", \"!/api/file.txt\"]\n"))
		w.ok(t, []string{"deploy"}, "No updated asset files to upload", "Current Version ID:")
		assets(t, hostOf(name), []assetCase{
			{path: "/api/x", body: "code v /api/x"},
			{path: "/missing", body: "page"},
			{path: "/api/file.txt", body: "file of " + name},
			{path: "/through", body: "200 application/json {}"},
		})
		// A secret makes a version of what is there, static assets included.
		w.stdin = "s"
		w.ok(t, []string{"secret", "put", "SECRET"}, "Success! Uploaded secret SECRET")
		w.stdin = ""
		assets(t, hostOf(name), []assetCase{{path: "/missing", body: "page"}, {path: "/api/x", body: "code v /api/x"}})
		w.project(t, name, module, config("not_found_handling = \"single-page-application\"\n"))
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		assets(t, hostOf(name), []assetCase{
			{path: "/other", body: "code v /other"},
			{path: "/other", navigate: true, body: "page"},
		})
		w.project(t, name, module, config("run_worker_first = true\n"))
		w.ok(t, []string{"deploy"}, "Current Version ID:")
		assets(t, hostOf(name), []assetCase{{path: "/", body: "code v /"}, {path: "/fetched/", body: "page"}})
	})
}
