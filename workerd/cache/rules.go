package cache

import (
	"errors"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
)

// headers are the fields of a request or of a response, by canonical name.
type headers = map[string][]string

// maxVary bounds the fields that Vary names.
const maxVary = 32

// standardLife is how long a response is fresh that does not say so, by status
// (RFC 9111 §4.2.2 lets a cache choose; these are what users are used to). One of
// another status is not kept.
var standardLife = map[int]time.Duration{
	200: 2 * time.Hour, 301: 2 * time.Hour,
	302: 20 * time.Minute, 303: 20 * time.Minute,
	404: 3 * time.Minute, 410: 3 * time.Minute,
}

// understood are the statuses whose rules this cache keeps (RFC 9111 §3): all that
// have no rules of their own, but not partial content and no answer to a condition.
func understood(status int) bool {
	return status >= 200 && status <= 599 && status != 206 && status != 304
}

// Why a response is not kept.
var (
	errStatus     = errors.New("a response of this status is not kept")
	errNoStore    = errors.New("the response is not to be stored")
	errPrivate    = errors.New("the response is for one user")
	errCookie     = errors.New("the response sets a cookie")
	errAuthorized = errors.New("the request was authorized and the response is not for all")
	errStale      = errors.New("the response is not fresh")
	errVary       = errors.New("no request selects the response")
)

// admit decides whether a shared cache may keep the response to this request, and
// takes from it what it may not keep (RFC 9111 §3). Directives of the request do
// not count: the Worker that puts a response has decided.
func (r *response) admit(request headers, now time.Time) error {
	rules := r.directives()
	switch {
	case !understood(r.status):
		return errStatus
	case rules.noStore && !rules.mustUnderstand, rules.noCache: // §5.2.2.3 to 5.2.2.5; there is nobody to ask
		return errNoStore
	case rules.private: // §5.2.2.7
		return errPrivate
	case request["Authorization"] != nil && !rules.public && !rules.mustRevalidate && !rules.hasShared: // §3.5
		return errAuthorized
	}
	r.hide(rules.hidden)
	if r.fields["Set-Cookie"] != nil {
		return errCookie
	}
	if err := r.readVary(request); err != nil {
		return err
	}
	r.readAge(now)
	life, ok := r.lifetime(rules, now)
	if !ok {
		return errStatus
	}
	r.life = life
	if !r.fresh(now) {
		return errStale
	}
	return nil
}

// hide removes fields that belong to the connection or to us (RFC 9111 §3.1,
// RFC 9110 §7.6.1), and those that a directive lists.
func (r *response) hide(listed []string) {
	for _, line := range r.fields["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			listed = append(listed, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range listed {
		delete(r.fields, name)
	}
	for _, name := range hiddenFields {
		delete(r.fields, name)
	}
	for name := range r.fields {
		if strings.HasPrefix(name, ours) {
			delete(r.fields, name)
		}
	}
}

// ours is how headers between workerd and us begin.
const ours = "X-Nk-"

var hiddenFields = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization",
	"Content-Length", "Cf-Cache-Status", "Cloudflare-Cdn-Cache-Control",
}

// selector is a field of the request that selects among the responses of a key.
type selector struct {
	name    string
	value   string
	codings int // of Accept-Encoding; less than 0: the value says it
	absent  bool
}

// The codings of a body that browsers know. Requests name them in so many ways that
// each way would have a response of its own; what matters is the set (RFC 9111 §4.1
// lets a cache normalize).
var codingNames = []string{"gzip", "br", "zstd", "deflate", "identity"}

// codings is the set of codings that Accept-Encoding allows; -1: there are others,
// or one is excluded.
func codings(values []string) (set int) {
	for _, value := range values {
		for value != "" {
			var item string
			item, value, _ = strings.Cut(value, ",")
			name, weight, _ := strings.Cut(item, ";")
			name, weight = strings.TrimSpace(name), strings.TrimSpace(weight)
			i := slices.IndexFunc(codingNames, func(known string) bool { return strings.EqualFold(known, name) })
			switch {
			case name == "" && weight == "":
				continue
			case i < 0 || weight != "" && (!strings.HasPrefix(weight, "q=") || strings.Trim(weight[2:], "0.") == ""):
				return -1
			}
			set |= 1 << i
		}
	}
	return set
}

const acceptEncoding = "Accept-Encoding"

// readVary keeps what the request has of the fields that Vary names (RFC 9111 §4.1).
func (r *response) readVary(request headers) error {
	for _, line := range r.fields["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
			known := slices.ContainsFunc(r.vary, func(s selector) bool { return s.name == name })
			switch {
			case name == "*":
				return errVary
			case name == "" || known || strings.HasPrefix(name, ours):
				continue
			case len(r.vary) == maxVary:
				return errVary
			}
			values := request[name]
			s := selector{name: name, value: strings.Clone(strings.Join(values, ", ")), codings: -1, absent: len(values) == 0}
			if name == acceptEncoding {
				s.codings = codings(values)
			}
			r.vary = append(r.vary, s)
		}
	}
	return nil
}

// selectedBy tells whether a request has what the request had that the response
// was put with.
func (r *response) selectedBy(request headers) bool {
	for i := range r.vary {
		s := &r.vary[i]
		values := request[s.name]
		switch {
		case len(values) == 0 || s.absent:
			if !s.absent || len(values) > 0 {
				return false
			}
		case s.codings >= 0:
			if codings(values) != s.codings {
				return false
			}
		case len(values) == 1:
			if values[0] != s.value {
				return false
			}
		case strings.Join(values, ", ") != s.value:
			return false
		}
	}
	return true
}

// readAge finds how old the response was when it came (RFC 9111 §4.2.3), and when
// it was made, if it does not say so (RFC 9110 §6.6.1).
func (r *response) readAge(now time.Time) {
	r.stored = now
	made, err := http.ParseTime(r.first("Date"))
	if err != nil {
		made = now
		r.fields["Date"] = []string{now.UTC().Format(http.TimeFormat)}
	}
	r.age = max(now.Round(0).Sub(made), 0)
	if said, ok := deltaSeconds(r.first("Age")); ok {
		r.age = max(r.age, said)
	}
	delete(r.fields, "Age") // each answer has its own
	r.made = made
}

// lifetime is how long the response is fresh (RFC 9111 §4.2.1); false: it is not
// kept without saying so.
func (r *response) lifetime(rules directives, now time.Time) (time.Duration, bool) {
	switch expires := r.fields["Expires"]; {
	case rules.hasShared:
		return rules.shared, true
	case rules.hasMaxAge:
		return rules.maxAge, true
	case len(expires) > 0 && !rules.targeted:
		until, err := http.ParseTime(expires[0])
		if err != nil || len(expires) > 1 { // §5.3: it is of the past
			return 0, true
		}
		return until.Sub(r.made), true
	}
	life, ok := standardLife[r.status]
	return r.age + life, ok
}

// fresh tells whether the response may be used (RFC 9111 §4.2).
func (r *response) fresh(now time.Time) bool {
	age, ok := r.currentAge(now)
	return ok && r.life > age
}

// currentAge is how old the response is (RFC 9111 §4.2.3): by the clock that does
// not jump, or by the one that does not stand still while the machine sleeps,
// whichever went further. false: the only clock there is went back.
func (r *response) currentAge(now time.Time) (time.Duration, bool) {
	here := max(now.Sub(r.stored), now.Round(0).Sub(r.stored.Round(0)))
	return r.age + here, here >= 0
}

// directives are what a response says of caches (RFC 9111 §5.2.2).
type directives struct {
	noStore, noCache, private, public, mustRevalidate, mustUnderstand bool
	hasMaxAge, hasShared                                              bool
	maxAge, shared                                                    time.Duration
	hidden                                                            []string // fields of private and no-cache, not to be kept
	targeted                                                          bool     // from a field for this kind of cache alone
}

// directives reads the field that counts for this cache: the one for shared caches
// at an edge, if there is one (RFC 9213 §2.2), else Cache-Control.
func (r *response) directives() directives {
	for _, name := range []string{"Cloudflare-Cdn-Cache-Control", "Cdn-Cache-Control"} {
		if lines := r.fields[name]; strings.TrimSpace(strings.Join(lines, "")) != "" {
			d := parseDirectives(lines)
			d.targeted = true
			return d
		}
	}
	return parseDirectives(r.fields["Cache-Control"])
}

func parseDirectives(lines []string) (d directives) {
	for _, line := range lines {
		for line != "" {
			var name, value string
			var has bool
			name, value, has, line = nextDirective(line)
			d.set(name, value, has)
		}
	}
	return d
}

// set takes one directive. Of two that are the same the first counts.
func (d *directives) set(name, value string, has bool) {
	switch name {
	case "no-store":
		d.noStore = true
	case "no-cache", "private":
		names := fieldNames(value)
		switch {
		case has && len(names) > 0:
			d.hidden = append(d.hidden, names...)
		case name == "private":
			d.private = true
		default:
			d.noCache = true
		}
	case "public":
		d.public = true
	case "must-revalidate":
		d.mustRevalidate = true
	case "must-understand":
		d.mustUnderstand = true
	case "max-age":
		if !d.hasMaxAge {
			d.maxAge, _ = deltaSeconds(value) // what is no number is of the past: §4.2.1
			d.hasMaxAge = true
		}
	case "s-maxage":
		if !d.hasShared {
			d.shared, _ = deltaSeconds(value)
			d.hasShared = true
		}
	}
}

func fieldNames(value string) (names []string) {
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, textproto.CanonicalMIMEHeaderKey(name))
		}
	}
	return names
}

// nextDirective cuts one directive off a line: token [ "=" ( token / quoted-string ) ].
func nextDirective(line string) (name, value string, has bool, rest string) {
	end := strings.IndexAny(line, ",=")
	if end < 0 {
		end = len(line)
	}
	name = strings.ToLower(strings.TrimSpace(line[:end]))
	if end == len(line) || line[end] == ',' {
		return name, "", false, line[min(end+1, len(line)):]
	}
	line = strings.TrimLeft(line[end+1:], " \t")
	if !strings.HasPrefix(line, `"`) {
		value, rest, _ = strings.Cut(line, ",")
		return name, strings.TrimSpace(value), true, rest
	}
	text := []byte{}
	for i := 1; i < len(line); i++ {
		switch line[i] {
		case '"':
			_, rest, _ = strings.Cut(line[i+1:], ",")
			return name, string(text), true, rest
		case '\\':
			if i++; i == len(line) {
				return name, string(text), true, ""
			}
		}
		text = append(text, line[i])
	}
	return name, string(text), true, ""
}

// maxDelta is what a greater number of seconds is taken for (RFC 9111 §1.2.2).
const maxDelta = 1 << 31

// deltaSeconds reads a number of seconds.
func deltaSeconds(text string) (time.Duration, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > maxDelta {
		n = maxDelta
	}
	return time.Duration(n) * time.Second, true
}
