package assets

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of the rules, which are Cloudflare's.
const (
	MaxLineChars        = 2000
	MaxHeaderRules      = 100
	MaxStaticRedirects  = 2000
	MaxDynamicRedirects = 100
	MaxWorkerRules      = 100
	MaxWorkerRuleChars  = 100

	maxProblems    = 20       // that are told at once
	maxFilledBytes = 16 << 10 // of a header or a target, with what a rule captured in it
)

// Errors are what is wrong with the lines of a file.
type Errors struct {
	File  string
	Lines []string
}

func (e *Errors) Error() string {
	return "Invalid " + e.File + " configuration:\n" + strings.Join(e.Lines, "\n")
}

// problems collects what is wrong with the lines of a file.
type problems []string

func (p *problems) add(line int, format string, args ...any) {
	if len(*p) < maxProblems {
		*p = append(*p, fmt.Sprintf("Line %d: ", line)+fmt.Sprintf(format, args...))
	}
}

// Check refuses options that make no sense. What is wrong with the files is an
// *Errors.
func (o *Options) Check() error {
	switch {
	case !slices.Contains([]string{"", AutoTrailingSlash, ForceTrailingSlash, DropTrailingSlash, NoHTMLHandling}, o.HTML):
		return fmt.Errorf("html_handling is %s, %s, %s or %s, not %q", AutoTrailingSlash, ForceTrailingSlash, DropTrailingSlash, NoHTMLHandling, o.HTML)
	case !slices.Contains([]string{"", SinglePage, NotFoundPage, NoNotFoundAnswer}, o.NotFound):
		return fmt.Errorf("not_found_handling is %s, %s or %s, not %q", SinglePage, NotFoundPage, NoNotFoundAnswer, o.NotFound)
	case !o.Worker && (o.WorkerFirst || len(o.WorkerRules) > 0):
		return errors.New("run_worker_first is for a Worker with code")
	case len(o.WorkerRules) > MaxWorkerRules:
		return fmt.Errorf("run_worker_first has at most %d rules, not %d", MaxWorkerRules, len(o.WorkerRules))
	}
	for _, rule := range o.WorkerRules {
		if !strings.HasPrefix(strings.TrimPrefix(rule, "!"), "/") {
			return fmt.Errorf("run_worker_first: rules begin with / or !/, %q does not", rule)
		}
		if len(rule) > MaxWorkerRuleChars {
			return fmt.Errorf("run_worker_first: a rule has at most %d characters, %q has %d", MaxWorkerRuleChars, rule, len(rule))
		}
	}
	if _, wrong := parseRedirects(o.Redirects, o.HTML); wrong != nil {
		return &Errors{"_redirects", wrong}
	}
	if _, wrong := parseHeaders(o.Headers); wrong != nil {
		return &Errors{"_headers", wrong}
	}
	return nil
}

// lines calls each for the lines of a file that are not empty and no comments.
func lines(text string, wrong *problems, each func(number int, line string) (more bool)) {
	number := 0
	for line := range strings.SplitSeq(text, "\n") {
		number++
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case len(line) > MaxLineChars:
			wrong.add(number, "A line has at most %d characters.", MaxLineChars)
		case !each(number, line):
			return
		}
	}
}

// A redirect is a rule of _redirects.
type redirect struct {
	from, to string
	status   int
}

var (
	comment     = regexp.MustCompile(`\s+#.*$`)
	placeholder = regexp.MustCompile(`:[A-Za-z]\w*`)
	hostForm    = regexp.MustCompile(`^[A-Za-z0-9.:*_-]+$`)
	toIndex     = regexp.MustCompile(`/index(.html)?$`)
)

// static reports whether a path stands for itself.
func static(path string) bool {
	return !strings.Contains(path, "*") && !placeholder.MatchString(path)
}

// parseRedirects reads a file _redirects, and tells what is wrong with it.
func parseRedirects(text, html string) (rules []redirect, wrong problems) {
	seen := map[string]bool{}
	statics, dynamics := 0, 0
	lines(text, &wrong, func(number int, line string) bool {
		tokens := strings.Fields(comment.ReplaceAllString(line, ""))
		if len(tokens) != 2 && len(tokens) != 3 {
			wrong.add(number, "Expected exactly 2 or 3 whitespace-separated tokens. Got %d.", len(tokens))
			return true
		}
		r, err := newRedirect(tokens, html)
		if err != nil {
			wrong.add(number, "%v", err)
			return true
		}
		if dynamics == 0 && static(r.from) {
			if statics++; statics > MaxStaticRedirects {
				wrong.add(number, "Maximum number of static rules supported is %d.", MaxStaticRedirects)
				return true
			}
		} else if dynamics++; dynamics > MaxDynamicRedirects {
			wrong.add(number, "Maximum number of dynamic rules supported is %d.", MaxDynamicRedirects)
			return false
		}
		if seen[r.from] {
			wrong.add(number, "Duplicate rule for path %s.", r.from)
			return true
		}
		seen[r.from] = true
		rules = append(rules, r)
		return true
	})
	return rules, wrong
}

// newRedirect makes a rule of the words of a line.
func newRedirect(tokens []string, html string) (r redirect, err error) {
	if strings.HasPrefix(tokens[0], "https://") {
		return r, problem("Only relative URLs are allowed. Skipping absolute URL %s.", tokens[0])
	}
	from := tokens[0]
	if from, _, _ = strings.Cut(from, "#"); from != "" {
		from, _, _ = strings.Cut(from, "?")
	}
	r = redirect{from: normalize(from), status: 302}
	if r.to, err = target(tokens[1]); err != nil {
		return r, err
	}
	if len(tokens) == 3 {
		r.status, _ = strconv.Atoi(tokens[2]) // 0 is none of them
	}
	relative := !strings.HasPrefix(r.to, "https://")
	index := relative && toIndex.MatchString(r.to)
	switch {
	case !slices.Contains([]int{200, 301, 302, 303, 307, 308}, r.status):
		return r, problem("Valid status codes are 200, 301, 302 (default), 303, 307, or 308. Got %s.", tokens[2])
	case index && (strings.HasSuffix(r.from, "/*") || strings.HasSuffix(r.from, "/") && html != NoHTMLHandling):
		return r, problem("Infinite loop detected in this rule. This would cause a redirect to strip `.html` or `/index` and end up triggering this rule again.")
	case r.status == 200 && !relative:
		return r, problem("Proxy (200) redirects can only point to relative paths. Got %s", r.to)
	}
	return r, nil
}

// problem is an error in words for users.
func problem(format string, args ...any) error { return fmt.Errorf(format, args...) }

// target is where a rule leads: a path, or a URL of https.
func target(text string) (string, error) {
	host := ""
	if rest, ok := strings.CutPrefix(text, "https://"); ok {
		rest = strings.TrimLeft(rest, "/")
		end := strings.IndexByte(rest, '/')
		if end < 0 {
			end = len(rest)
		}
		if host, text = rest[:end], rest[end:]; !hostForm.MatchString(host) {
			return "", problem("%q is no host.", host)
		}
		host = "https://" + host
	} else if !strings.HasPrefix(text, "/") {
		return "", problem("URLs should either be relative (e.g. begin with a forward-slash), or use HTTPS (e.g. begin with \"https://\").")
	}
	text, hash, hasHash := strings.Cut(text, "#")
	path, query, hasQuery := strings.Cut(text, "?")
	out := host + normalize(path)
	if hasQuery && query != "" {
		out += "?" + escapeQuery(query)
	}
	if hasHash && hash != "" {
		out += "#" + escapeQuery(hash)
	}
	return out, nil
}

func escapeQuery(text string) string {
	var out strings.Builder
	escape(&out, text, func(c byte) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' })
	return out.String()
}

// redirects are the rules of _redirects: first those that stand for one path, then
// the others in their order.
type redirects struct {
	static  map[string]redirect
	dynamic []dynamicRedirect
}

type dynamicRedirect struct {
	pattern *regexp.Regexp
	redirect
}

func newRedirects(rules []redirect) redirects {
	all := redirects{static: map[string]redirect{}}
	for _, r := range rules {
		if len(all.dynamic) == 0 && static(r.from) {
			all.static[r.from] = r
			continue
		}
		if pattern := compile(r.from); pattern != nil {
			all.dynamic = append(all.dynamic, dynamicRedirect{pattern, r})
		}
	}
	return all
}

// match finds the rule for a path, and puts what it captured into its target.
func (all *redirects) match(path string) (redirect, bool) {
	if r, ok := all.static[path]; ok {
		return r, true
	}
	for _, r := range all.dynamic {
		captured := r.pattern.FindStringSubmatch(path)
		if captured == nil {
			continue
		}
		made := r.redirect
		to, ok := fill(r.to, r.pattern, captured)
		if !ok {
			continue
		}
		made.to = strings.TrimSpace(to)
		if !strings.HasPrefix(made.to, "https://") { // two slashes would be a host
			made.to = oneSlash(made.to)
		}
		return made, true
	}
	return redirect{}, false
}

// pathOf is the path that a request is answered at instead of its own.
func pathOf(to string) string {
	to, _, _ = strings.Cut(to, "#")
	to, _, _ = strings.Cut(to, "?")
	return normalize(to)
}

// withQuery is the target of a redirect, with the query of the request unless it
// has its own.
func withQuery(to, query string) string {
	u, err := url.Parse(to)
	if err != nil || query == "" || u.RawQuery != "" {
		return to
	}
	before, hash, has := strings.Cut(to, "#")
	if before += "?" + query; has {
		before += "#" + hash
	}
	return before
}

// compile returns the pattern of a rule, in which * and names after colons capture;
// nil if a name is there twice.
func compile(rule string) *regexp.Regexp {
	host := ""
	if rest, ok := strings.CutPrefix(rule, "https://"); ok {
		host, _, _ = strings.Cut(rest, "/")
		host = "https://" + host
	}
	pieces := strings.Split(rule, "*")
	for i := range pieces {
		pieces[i] = regexp.QuoteMeta(pieces[i])
	}
	text := strings.Join(pieces, "(?P<splat>.*)")
	for _, name := range placeholder.FindAllString(rule, -1) {
		any := "[^/]+"
		if strings.Contains(host, name) {
			any = "[^/.]+"
		}
		text = strings.ReplaceAll(text, name, "(?P<"+name[1:]+">"+any+")")
	}
	pattern := regexp.MustCompile("^" + text + "$") // all else in it is quoted
	seen := map[string]bool{}
	for _, name := range pattern.SubexpNames()[1:] {
		if seen[name] {
			return nil
		}
		seen[name] = true
	}
	return pattern
}

// fill puts what was captured into a text, in one pass: what is put in is not
// looked at. It is not done if the text becomes longer than maxFilledBytes.
func fill(text string, pattern *regexp.Regexp, captured []string) (string, bool) {
	var out strings.Builder
	for text != "" {
		before, after, found := strings.Cut(text, ":")
		out.WriteString(before)
		if text = after; !found {
			break
		}
		i := slices.IndexFunc(pattern.SubexpNames(), func(name string) bool { return name != "" && strings.HasPrefix(after, name) })
		if i < 0 {
			out.WriteByte(':')
			continue
		}
		out.WriteString(captured[i])
		if text = after[len(pattern.SubexpNames()[i]):]; out.Len() > maxFilledBytes {
			return "", false
		}
	}
	return out.String(), true
}

// A headerRule is a rule of _headers.
type headerRule struct {
	path    string
	pattern *regexp.Regexp // nil: it matches nothing
	set     []header
	unset   []string
}

type header struct{ name, value string }

var probablyPath = regexp.MustCompile(`^([^\s]+://|/)`)

// parseHeaders reads a file _headers, and tells what is wrong with it.
func parseHeaders(text string) (rules []headerRule, wrong problems) {
	open := -1 // the line of the rule that is being read
	finish := func() {
		if open >= 0 && len(rules[len(rules)-1].set)+len(rules[len(rules)-1].unset) == 0 {
			wrong.add(open, "No headers specified")
			rules = rules[:len(rules)-1]
		}
		open = -1
	}
	lines(text, &wrong, func(number int, line string) bool {
		if !probablyPath.MatchString(line) {
			if open < 0 {
				wrong.add(number, "Expected a path before %q", line)
				return true
			}
			if err := rules[len(rules)-1].add(line); err != nil {
				wrong.add(number, "%v", err)
			}
			return true
		}
		finish()
		if len(rules) == MaxHeaderRules {
			wrong.add(number, "Maximum number of rules supported is %d.", MaxHeaderRules)
			return false
		}
		path, err := target(line)
		if err != nil || strings.Contains(strings.TrimPrefix(path, "https://"), "://") || ported.MatchString(path) {
			wrong.add(number, "A rule is for a path, or for a URL of https without a port; %q is neither", line)
			return true
		}
		path, _, _ = strings.Cut(path, "?")
		path, _, _ = strings.Cut(path, "#")
		rules, open = append(rules, headerRule{path: path, pattern: compile(path)}), number
		return true
	})
	finish()
	return rules, wrong
}

var (
	headerName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	headerValue = regexp.MustCompile(`^[\t\x20-\x7e]*$`)
)

var ported = regexp.MustCompile(`^https://[^/]*:\d+(/|$)`)

// add adds a line to a rule: a header, or one that is taken away.
func (r *headerRule) add(line string) error {
	name, value, ok := strings.Cut(line, ":")
	name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
	if unset, is := strings.CutPrefix(line, "! "); !ok && is {
		if unset = strings.TrimSpace(unset); !headerName.MatchString(unset) {
			return problem("%q is no name of a header", unset)
		}
		r.unset = append(r.unset, unset)
		return nil
	}
	switch {
	case !ok:
		return problem("Expected a colon-separated header pair (e.g. name: value)")
	case name == "":
		return problem("No header name specified")
	case strings.Contains(name, " "):
		return problem("Header name cannot include spaces")
	case value == "":
		return problem("No header value specified")
	case !headerName.MatchString(name) || !headerValue.MatchString(value):
		return problem("%q is no header", line)
	}
	for i := range r.set {
		if r.set[i].name == name {
			r.set[i].value += ", " + value
			return nil
		}
	}
	r.set = append(r.set, header{name, value})
	return nil
}

// matchHeaders returns the rules for a URL, with what they captured put in.
func (s *Site) matchHeaders(host, path string) (rules []headerRule) {
	for i := range s.headers {
		r := &s.headers[i]
		text := path
		if strings.HasPrefix(r.path, "https://") {
			text = "https://" + host + path
		}
		if r.pattern == nil {
			continue
		}
		captured := r.pattern.FindStringSubmatch(text)
		if captured == nil {
			continue
		}
		made := headerRule{unset: r.unset}
		for _, pair := range r.set {
			if value, ok := fill(pair.value, r.pattern, captured); ok {
				made.set = append(made.set, header{pair.name, value})
			}
		}
		rules = append(rules, made)
	}
	return rules
}

// A glob is a path in which * stands for anything.
type glob []string // what is between the stars

func newGlob(rule string) glob { return strings.Split(rule, "*") }

func matchAny(globs []glob, path string) bool {
	return slices.ContainsFunc(globs, func(g glob) bool { return g.match(path) })
}

func (g glob) match(path string) bool {
	path, ok := strings.CutPrefix(path, g[0])
	if !ok || len(g) == 1 {
		return ok && path == ""
	}
	for _, piece := range g[1 : len(g)-1] {
		at := strings.Index(path, piece)
		if at < 0 {
			return false
		}
		path = path[at+len(piece):]
	}
	return strings.HasSuffix(path, g[len(g)-1])
}
