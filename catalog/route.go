package catalog

import (
	"cmp"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// MaxPatternBytes is the greatest length of a route's pattern.
	MaxPatternBytes = 2048
	// MaxHostBytes is the greatest length of a host's name.
	MaxHostBytes = 253
	maxLabel     = 63
)

// ErrRoutePattern: a text is no pattern of a route; the error says why.
var ErrRoutePattern error = &sentinel{"not the pattern of a route", ErrInvalid}

// patternRule is what a pattern may be.
const patternRule = "a pattern is a host and a path, with http:// or https:// before it if it is for one of them only; the host may begin with *, the path may end with *"

func badPattern(text, format string, args ...any) error {
	return fmt.Errorf("%w: %q: %s (%s)", ErrRoutePattern, text, fmt.Sprintf(format, args...), patternRule)
}

// RoutePattern says which URLs a route takes, by the rules of Cloudflare:
//
//	example.com/          that URL alone, without a query
//	example.com/a*        every URL that begins so
//	*.example.com/*       every host under example.com
//	*example.com/*        and example.com itself
//	*/*                   every host of the zone
//	https://example.com/* with this scheme alone
//
// The case of letters counts in the path. A pattern without a path is one of "/".
type RoutePattern struct {
	scheme string // http, https; empty: both
	host   string // without wildcard
	wild   wildcard
	path   string // without wildcard
	prefix bool   // all paths that begin with path
}

// wildcard is what a host begins with.
type wildcard int8

// The more specific first.
const (
	exactHost   wildcard = iota
	underHost            // "*.": all hosts under it
	hostAndMore          // "*": it and all hosts under it
)

// ParseRoutePattern reads a pattern.
func ParseRoutePattern(text string) (RoutePattern, error) {
	if len(text) > MaxPatternBytes {
		return RoutePattern{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrRoutePattern, len(text), MaxPatternBytes)
	}
	var p RoutePattern
	rest := text
	if scheme, after, ok := strings.Cut(text, "://"); ok && !strings.ContainsAny(scheme, "/?#") {
		p.scheme, rest = strings.ToLower(scheme), after
		if p.scheme != "http" && p.scheme != "https" {
			return RoutePattern{}, badPattern(text, "%q is no scheme of a route", scheme)
		}
	}
	host, path := rest, "/"
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	if err := p.parseHost(host); err != nil {
		return RoutePattern{}, badPattern(text, "%v", err)
	}
	if err := p.parsePath(path); err != nil {
		return RoutePattern{}, badPattern(text, "%v", err)
	}
	return p, nil
}

func (p *RoutePattern) parseHost(host string) error {
	if rest, ok := strings.CutPrefix(host, "*"); ok {
		p.wild, host = hostAndMore, rest
		if rest == "" { // every host
			return nil
		}
		if rest, ok := strings.CutPrefix(host, "."); ok {
			p.wild, host = underHost, rest
		}
	}
	if strings.Contains(host, "*") {
		return fmt.Errorf("a wildcard (*) may only be the first character of the host")
	}
	var err error
	p.host, err = parseHost(host)
	return err
}

// parseHost returns a host's name in lower case.
func parseHost(host string) (string, error) {
	if host == "" {
		return "", fmt.Errorf("there is no host")
	}
	if strings.Contains(host, ":") {
		return "", fmt.Errorf("the host %q has a port, and routes are for all ports", host)
	}
	if len(host) > MaxHostBytes {
		return "", fmt.Errorf("the host has %d characters, at most %d are allowed", len(host), MaxHostBytes)
	}
	host = lower(host)
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > maxLabel {
			return "", fmt.Errorf("the host %q has a part of %d characters, 1 to %d are allowed", host, len(label), maxLabel)
		}
		for i := range len(label) {
			switch c := label[i]; {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			case c >= utf8.RuneSelf:
				return "", fmt.Errorf("the host %q must be written in ASCII, other letters as xn--…", host)
			default:
				return "", fmt.Errorf("the host %q has the character %q", host, c)
			}
		}
	}
	return host, nil
}

// lower is strings.ToLower for ASCII alone.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func (p *RoutePattern) parsePath(path string) error {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		return fmt.Errorf("it must not contain %q: a path that ends with * takes every query", path[i])
	}
	path, p.prefix = strings.CutSuffix(path, "*")
	if strings.Contains(path, "*") {
		return fmt.Errorf("a wildcard (*) may only be the last character of the path")
	}
	p.path = escapePath(path)
	return nil
}

// escapePath writes a path as a client sends it: with %XX for what is no visible
// ASCII.
func escapePath(path string) string {
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c <= ' ', c >= 0x7f, c == '"', c == '<', c == '>', c == '`', c == '{', c == '}':
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// String returns the pattern in the form in which two are equal that take the
// same URLs.
func (p RoutePattern) String() string {
	var b strings.Builder
	if p.scheme != "" {
		b.WriteString(p.scheme + "://")
	}
	b.WriteString([]string{exactHost: "", underHost: "*.", hostAndMore: "*"}[p.wild] + p.host + p.path)
	if p.prefix {
		b.WriteByte('*')
	}
	return b.String()
}

// Match reports whether the route takes a URL. The scheme and the host, which has
// no port, are in lower case; the path is as the client sent it, with its query
// ("/a%20b?c").
func (p RoutePattern) Match(scheme, host, path string) bool {
	if p.scheme != "" && p.scheme != scheme {
		return false
	}
	if p.prefix && !strings.HasPrefix(path, p.path) || !p.prefix && path != p.path {
		return false
	}
	switch p.wild {
	case exactHost:
		return host == p.host
	case hostAndMore:
		return p.host == "" || host == p.host || under(host, p.host)
	}
	return under(host, p.host)
}

// under reports whether a host is under another one.
func under(host, parent string) bool {
	return len(host) > len(parent)+1 && host[len(host)-len(parent)-1] == '.' && strings.HasSuffix(host, parent)
}

// Compare is negative if p is more specific than o: of two routes that take a URL
// the more specific runs. The host counts before the path, and that before the
// scheme. It is 0 for equal patterns alone.
func (p RoutePattern) Compare(o RoutePattern) int {
	return cmp.Or(
		p.compareHost(o),
		-cmp.Compare(len(p.path), len(o.path)),
		cmp.Compare(flag(p.prefix), flag(o.prefix)),
		cmp.Compare(flag(p.scheme == ""), flag(o.scheme == "")),
		strings.Compare(p.String(), o.String()),
	)
}

// compareHost orders hosts: those without a wildcard, then the longer before the
// shorter. Of "*.a" and "*a" the first takes less.
func (p RoutePattern) compareHost(o RoutePattern) int {
	return cmp.Or(
		cmp.Compare(flag(p.wild != exactHost), flag(o.wild != exactHost)),
		-cmp.Compare(len(p.host), len(o.host)),
		strings.Compare(p.host, o.host),
		cmp.Compare(p.wild, o.wild),
	)
}
