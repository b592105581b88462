// Package assets decides how static assets of a Worker answer a request: with a
// file, a redirect, or not at all, so that the Worker's code does. Its rules are
// those of Cloudflare: how paths lead to pages (html_handling), what answers where
// there is no file (not_found_handling), which requests the code gets first
// (run_worker_first), and the files _redirects and _headers.
//
// It knows no content and keeps nothing: it may lose nothing.
package assets

import (
	"net/http"
	"slices"
	"strings"
)

// How paths lead to pages.
const (
	AutoTrailingSlash  = "auto-trailing-slash" // the default
	ForceTrailingSlash = "force-trailing-slash"
	DropTrailingSlash  = "drop-trailing-slash"
	NoHTMLHandling     = "none"
)

// What answers where there is no file.
const (
	SinglePage       = "single-page-application"
	NotFoundPage     = "404-page"
	NoNotFoundAnswer = "none" // the default
)

// MaxPathBytes is the greatest length of a file's path.
const MaxPathBytes = 1024

// Options are what a user configures. Zero values are the defaults.
type Options struct {
	HTML, NotFound string
	Worker         bool     // there is code that can answer
	WorkerFirst    bool     // it answers all requests
	WorkerRules    []string // or those to such paths, in which * stands for anything; but none of those after a !

	Redirects, Headers string // the files _redirects and _headers

	// Date and Flags are the Worker's: since some date, what browsers ask for as a
	// page is answered without the code.
	Date  string
	Flags []string
}

// A File is what is known of a file: two with the same hash are the same.
type File struct {
	Hash string
	Size int64
}

// A Request is what matters of one.
type Request struct {
	Method string
	Host   string // without a port
	Path   string // as it was sent, not decoded
	Query  string // without the question mark
	Header http.Header
}

// A Site is the assets of one version of a Worker. All methods may be called at
// once.
type Site struct {
	html, notFound string
	worker         bool
	workerFirst    bool
	workerRules    []glob
	assetRules     []glob
	navigation     bool
	find           func(path string) (File, bool)
	redirects      redirects
	headers        []headerRule
}

// New returns a site whose files find finds, by their paths from the root, not
// encoded. Rules that Check refuses are left out.
func New(o Options, find func(path string) (File, bool)) *Site {
	s := &Site{html: o.HTML, notFound: o.NotFound, worker: o.Worker, workerFirst: o.WorkerFirst, navigation: o.navigation(), find: find}
	if s.html == "" {
		s.html = AutoTrailingSlash
	}
	for _, rule := range o.WorkerRules {
		if path, not := strings.CutPrefix(rule, "!"); not {
			s.assetRules = append(s.assetRules, newGlob(path))
			continue
		}
		s.workerRules = append(s.workerRules, newGlob(rule))
	}
	found, _ := parseRedirects(o.Redirects, o.HTML)
	s.redirects = newRedirects(found)
	s.headers, _ = parseHeaders(o.Headers)
	return s
}

// The flag by which what browsers ask for as a page is answered without the code,
// and since when it is on.
const (
	flagNavigation   = "assets_navigation_prefers_asset_serving"
	flagNoNavigation = "assets_navigation_has_no_effect"
	navigationSince  = "2025-04-01"
)

func (o *Options) navigation() bool {
	if slices.Contains(o.Flags, flagNavigation) {
		return true
	}
	return o.Date >= navigationSince && !slices.Contains(o.Flags, flagNoNavigation)
}

// RunsWorker reports whether the code answers a request rather than the assets.
func (s *Site) RunsWorker(r *Request) bool {
	if !s.worker {
		return false
	}
	path := normalize(r.Path)
	switch {
	case matchAny(s.assetRules, path):
		return false
	case matchAny(s.workerRules, path), s.workerFirst:
		return true
	}
	rules := len(s.workerRules)+len(s.assetRules) > 0
	notFound := NoNotFoundAnswer
	if rules || s.navigation && r.Header.Get("Sec-Fetch-Mode") == "navigate" {
		notFound = s.notFound
	}
	return s.answer(r, path, notFound).none
}

// Answer returns what the assets answer. A site without anything for a request
// answers with status 404.
func (s *Site) Answer(r *Request) *Answer {
	path := normalize(r.Path)
	a := s.answer(r, path, s.notFound)
	a.rules = s.matchHeaders(r.Host, path)
	return &a
}

// An Answer is what answers a request, but for the content of its file.
type Answer struct {
	Status int
	File   File // with a hash, if the file's content is the body

	none      bool // there is nothing: if there is code, it answers
	location  string
	cacheable bool
	rules     []headerRule // those of _headers, with what they captured put in
}

const cacheControl = "public, max-age=0, must-revalidate" // a browser asks whether it still has the right one

func (s *Site) answer(r *Request, path, notFound string) Answer {
	to, redirected := s.redirects.match(path)
	proxied := redirected && to.status == http.StatusOK
	if redirected && !proxied {
		return Answer{Status: to.status, location: withQuery(to.to, r.Query)}
	}
	if proxied {
		path = pathOf(to.to)
	}
	decoded := decode(path)
	found := s.resolve(decoded, notFound, true)
	switch {
	case !found.ok():
		return Answer{Status: http.StatusNotFound, none: !proxied}
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return Answer{Status: http.StatusMethodNotAllowed}
	case found.redirect != "":
		return Answer{Status: http.StatusTemporaryRedirect, location: withSearch(encode(found.redirect), r.Query)}
	}
	// The one right path of a file is the one that is decoded and encoded again.
	if canonical := encode(decoded); canonical != path {
		return Answer{Status: http.StatusTemporaryRedirect, location: withSearch(canonical, r.Query)}
	}
	a := Answer{Status: found.status, File: found.file, cacheable: r.Header["Authorization"] == nil && r.Header["Range"] == nil}
	if matchesETag(r.Header["If-None-Match"], found.file.Hash) {
		a.Status = http.StatusNotModified
	}
	return a
}

func withSearch(path, query string) string {
	if query == "" {
		return path
	}
	return path + "?" + query
}

// matchesETag reports whether a client has the file with this hash already.
func matchesETag(headers []string, hash string) bool {
	for _, header := range headers {
		for tag := range strings.SplitSeq(header, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if len(tag) == len(hash)+2 && tag[0] == '"' && tag[1:len(tag)-1] == hash && tag[len(tag)-1] == '"' {
				return true
			}
		}
	}
	return false
}

// HasBody reports whether the content of the file is sent, unless only the head
// was asked for.
func (a *Answer) HasBody() bool { return a.File.Hash != "" && a.Status != http.StatusNotModified }

// Head sets the headers of the answer. The content type is the file's; empty: it
// has none.
func (a *Answer) Head(h http.Header, contentType string) {
	if a.location != "" {
		h.Set("Location", a.location)
	}
	if a.File.Hash != "" {
		h.Set("ETag", `"`+a.File.Hash+`"`)
		if contentType != "" {
			h.Set("Content-Type", contentType)
		}
		if a.cacheable {
			h.Set("Cache-Control", cacheControl)
		}
	}
	set := map[string]bool{} // by a rule: the next one adds to it
	for _, rule := range a.rules {
		for _, name := range rule.unset {
			h.Del(name)
		}
		for _, pair := range rule.set {
			switch {
			case set[pair.name] && pair.name == "set-cookie": // has commas of its own
				h.Add(pair.name, pair.value)
				continue
			case set[pair.name]:
				h.Set(pair.name, h.Get(pair.name)+", "+pair.value)
				continue
			}
			set[pair.name] = true
			h.Set(pair.name, pair.value)
		}
	}
}
