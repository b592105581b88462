package assets

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestCheck: what is wrong with options is told.
func TestCheck(t *testing.T) {
	many := func(n int, format string) string {
		var out strings.Builder
		for i := range n {
			fmt.Fprintf(&out, format+"\n", i)
		}
		return out.String()
	}
	rules := func(n int) []string { return strings.Fields(many(n, "/%d/*")) }
	for _, c := range []struct {
		name string
		o    Options
		says string // empty: nothing is wrong
	}{
		{"nothing", Options{}, ""},
		{"all", Options{HTML: "none", NotFound: "404-page", Worker: true, WorkerRules: []string{"/api/*", "!/api/x"}, Redirects: "/a /b\n", Headers: "/*\n  A: b\n"}, ""},
		{"html", Options{HTML: "other"}, "html_handling is auto-trailing-slash"},
		{"not found", Options{NotFound: "other"}, "not_found_handling is single-page-application"},
		{"no code", Options{WorkerFirst: true}, "for a Worker with code"},
		{"no code for rules", Options{WorkerRules: []string{"/x"}}, "for a Worker with code"},
		{"rule", Options{Worker: true, WorkerRules: []string{"api"}}, `"api" does not`},
		{"most rules", Options{Worker: true, WorkerRules: rules(MaxWorkerRules)}, ""},
		{"more rules", Options{Worker: true, WorkerRules: rules(MaxWorkerRules + 1)}, "at most 100 rules"},
		{"longest rule", Options{Worker: true, WorkerRules: []string{"/" + strings.Repeat("x", MaxWorkerRuleChars-1)}}, ""},
		{"longer rule", Options{Worker: true, WorkerRules: []string{"/" + strings.Repeat("x", MaxWorkerRuleChars)}}, "at most 100 characters"},
		{"loop", Options{Redirects: "\n/* /index.html 200"}, "Invalid _redirects configuration:\nLine 2: Infinite loop detected"},
		{"loop at the root", Options{Redirects: "/ /index.html"}, "Infinite loop"},
		{"no loop", Options{HTML: "none", Redirects: "/ /index.html"}, ""},
		{"tokens", Options{Redirects: "/a"}, "Got 1."},
		{"status", Options{Redirects: "/a /b 404"}, "Got 404."},
		{"from a host", Options{Redirects: "https://x/a /b"}, "Only relative URLs"},
		{"to nowhere", Options{Redirects: "/a b"}, "begin with a forward-slash"},
		{"to no host", Options{Redirects: "/a https:///"}, "is no host"},
		{"proxy", Options{Redirects: "/a https://x/ 200"}, "can only point to relative paths"},
		{"duplicate", Options{Redirects: "/a /b\n/a /c"}, "Line 2: Duplicate rule for path /a."},
		{"longest line", Options{Redirects: "/a /" + strings.Repeat("b", MaxLineChars-4)}, ""},
		{"longer line", Options{Redirects: "/a /" + strings.Repeat("b", MaxLineChars-3)}, "at most 2000 characters"},
		{"most redirects", Options{Redirects: many(MaxStaticRedirects, "/%d /b") + many(MaxDynamicRedirects, "/%d/* /b")}, ""},
		{"more static", Options{Redirects: many(MaxStaticRedirects+1, "/%d /b")}, "static rules supported is 2000."},
		{"more dynamic", Options{Redirects: many(MaxDynamicRedirects+1, "/%d/* /b")}, "dynamic rules supported is 100."},
		{"most headers", Options{Headers: many(MaxHeaderRules, "/%d\nA: b")}, ""},
		{"more headers", Options{Headers: many(MaxHeaderRules+1, "/%d\nA: b")}, "rules supported is 100."},
		{"no path", Options{Headers: "A: b"}, "Invalid _headers configuration:\nLine 1: Expected a path"},
		{"no headers", Options{Headers: "/a\n/b\nA: b"}, "Line 1: No headers"},
		{"no headers at the end", Options{Headers: "/a"}, "No headers"},
		{"no pair", Options{Headers: "/a\nx"}, "colon-separated"},
		{"no name", Options{Headers: "/a\n: x"}, "No header name"},
		{"no value", Options{Headers: "/a\nx:"}, "No header value"},
		{"spaces", Options{Headers: "/a\nx y: z"}, "cannot include spaces"},
		{"name", Options{Headers: "/a\nx(: z"}, "is no header"},
		{"value", Options{Headers: "/a\nx: z\x01y"}, "is no header"},
		{"taken away", Options{Headers: "/a\n! x(y"}, "is no name"},
		{"port", Options{Headers: "https://x:80/\nA: b"}, "without a port"},
	} {
		err := c.o.Check()
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	var wrong *Errors
	if err := (&Options{Redirects: many(100, "/%d")}).Check(); !errors.As(err, &wrong) || len(wrong.Lines) != maxProblems {
		t.Errorf("%v", err)
	}
}

// TestETags: a client that has the file gets no content.
func TestETags(t *testing.T) {
	s := New(Options{}, func(path string) (File, bool) { return File{Hash: "h", Size: 1}, path == "/a" })
	for header, has := range map[string]bool{"": false, `"h"`: true, `W/"h"`: true, `"x", W/"h"`: true, `"hh"`: false, `h`: false, `"h`: false, `"x"`: false} {
		r := Request{Method: "GET", Path: "/a", Header: http.Header{}}
		if header != "" {
			r.Header.Set("If-None-Match", header)
		}
		a := s.Answer(&r)
		if want := map[bool]int{false: 200, true: 304}[has]; a.Status != want || a.HasBody() == has {
			t.Errorf("%s: %d", header, a.Status)
		}
	}
}

// TestCookies: each stays a header of its own, of several rules too.
func TestCookies(t *testing.T) {
	s := New(Options{Headers: "/*\nSet-Cookie: a=1\nX: a\n/a\nSet-Cookie: b=2\nX: b"}, func(string) (File, bool) { return File{}, false })
	h := http.Header{}
	s.Answer(&Request{Method: "GET", Path: "/a"}).Head(h, "")
	if got := h["Set-Cookie"]; len(got) != 2 || got[1] != "b=2" || h.Get("X") != "a, b" {
		t.Errorf("%v", h)
	}
}

// TestFilledBytes: what a rule makes of a path has an end.
func TestFilledBytes(t *testing.T) {
	s := New(Options{Redirects: "/go/* /x:splat 301", Headers: "/*\nA: a\nB: :splat"}, func(string) (File, bool) { return File{}, false })
	for n, status := range map[int]int{maxFilledBytes - 2: 301, maxFilledBytes - 1: 404} { // with /x before it
		h := http.Header{}
		a := s.Answer(&Request{Method: "GET", Path: "/go/" + strings.Repeat("y", n)})
		a.Head(h, "")
		if a.Status != status || h.Get("A") != "a" {
			t.Errorf("%d: status %d, %d headers", n, a.Status, len(h))
		}
	}
	h := http.Header{}
	s.Answer(&Request{Method: "GET", Path: "/" + strings.Repeat("y", maxFilledBytes+1)}).Head(h, "")
	if h.Get("A") != "a" || h["B"] != nil {
		t.Errorf("%d headers", len(h))
	}
}

// TestLongPaths: a path of many folders is no longer to answer than a file's can be.
func TestLongPaths(t *testing.T) {
	asked := 0
	s := New(Options{NotFound: NotFoundPage}, func(path string) (File, bool) { asked++; return File{Hash: "h"}, path == "/404.html" })
	if a := s.Answer(&Request{Method: "GET", Path: strings.Repeat("/a", 50_000)}); a.Status != 404 || a.File.Hash != "h" || asked > MaxPathBytes {
		t.Errorf("status %d, %d files were looked for", a.Status, asked)
	}
}

// TestNoOpenRedirect: what a client sends never becomes a host.
func TestNoOpenRedirect(t *testing.T) {
	s := New(Options{Redirects: "/go/* /:splat\n/to/:x /:x"}, func(path string) (File, bool) { return File{Hash: "h"}, strings.HasSuffix(path, ".html") })
	for _, path := range []string{"/go//evil.example", "/go/\\\\evil.example", "/go//https://evil.example", "/to/%2Fevil.example", "//evil.example/index.html", "/\\evil.example/index.html", "//evil.example.html", "/.//evil.example.html"} {
		h := http.Header{}
		s.Answer(&Request{Method: "GET", Path: path}).Head(h, "")
		if to := h.Get("Location"); to != "" && (!strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`)) {
			t.Errorf("%s leads to %s", path, to)
		}
	}
}

// FuzzRules: whatever the files and the request, there is an answer, and its
// headers can be sent.
func FuzzRules(f *testing.F) {
	f.Add("/a/* /b/:splat 301\n/c /d#e", "/*\n X: :splat\n ! Y", "/a//b?c=d", 0)
	f.Add("/:a/:a /b", "https://:x.y/*\nA: :x", "/%2e%2e/\\x/./", 1)
	f.Add("* /*", "//\nA:b", "x", 2)
	html := []string{AutoTrailingSlash, ForceTrailingSlash, DropTrailingSlash, NoHTMLHandling}
	f.Fuzz(func(t *testing.T, redirects, headers, path string, mode int) {
		o := Options{HTML: html[uint(mode)%4], NotFound: NotFoundPage, Redirects: redirects, Headers: headers, WorkerRules: []string{"/*" + path}, Worker: mode%2 == 0}
		if err := o.Check(); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
		s := New(o, func(path string) (File, bool) { return File{Hash: "h", Size: 1}, len(path)%3 == 0 })
		r := Request{Method: "GET", Host: "x.y", Path: path, Query: "q", Header: http.Header{}}
		s.RunsWorker(&r)
		h := http.Header{}
		a := s.Answer(&r)
		a.Head(h, "text/html")
		if (a.Status == 307) != (a.location != "") && a.location == "" || a.Status < 200 || a.Status > 405 {
			t.Errorf("status %d, location %q", a.Status, a.location)
		}
		for name, values := range h {
			if !headerName.MatchString(name) || name != "Location" && !headerValue.MatchString(values[0]) || strings.ContainsAny(values[0], "\r\n\x00") {
				t.Errorf("%q: %q", name, values)
			}
		}
		if again := normalize(normalize(path)); again != normalize(path) {
			t.Errorf("%q becomes %q, then %q", path, normalize(path), again)
		}
	})
}
