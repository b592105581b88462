package catalog

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func pattern(t testing.TB, text string) RoutePattern {
	t.Helper()
	p, err := ParseRoutePattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRoutePatternMatches(t *testing.T) {
	once(t)
	for _, c := range []struct {
		pattern string
		yes, no []string // scheme://host/path
	}{
		{"example.com/", []string{"http://example.com/", "https://example.com/"},
			[]string{"http://example.com/?", "http://example.com/?a", "http://example.com/a", "http://www.example.com/"}},
		{"Example.COM", []string{"https://example.com/"}, []string{"https://example.com/a"}},
		{"example.com/*", []string{"https://example.com/", "https://example.com/a/b?c=*"}, []string{"https://www.example.com/", "https://notexample.com/"}},
		{"*.example.com/*", []string{"https://www.example.com/", "https://a.b.example.com/x"},
			[]string{"https://example.com/", "https://notexample.com/", "https://.example.com/"}},
		{"*example.com/*", []string{"https://example.com/", "https://www.example.com/a"}, []string{"https://notexample.com/", "https://example.com.evil/"}},
		{"*/*", []string{"https://example.com/", "http://a/b"}, nil},
		{"*/a", []string{"https://example.com/a"}, []string{"https://example.com/"}},
		{"https://example.com/*", []string{"https://example.com/"}, []string{"http://example.com/"}},
		{"HTTP://example.com/*", []string{"http://example.com/"}, []string{"https://example.com/"}},
		{"example.com/Images/*", []string{"https://example.com/Images/", "https://example.com/Images/a"}, []string{"https://example.com/images/a", "https://example.com/Images"}},
		{"example.com/images*", []string{"https://example.com/images", "https://example.com/images?a", "https://example.com/imagesque"}, []string{"https://example.com/image"}},
		{"example.com/a b/é*", []string{"https://example.com/a%20b/%C3%A9t%C3%A9"}, []string{"https://example.com/a b/"}},
		{"localhost/*", []string{"http://localhost/x"}, nil},
		{"127.0.0.1/*", []string{"http://127.0.0.1/x"}, nil},
		{"xn--bcher-kva.example/*", []string{"http://xn--bcher-kva.example/"}, nil},
		{"_dmarc.example.com/*", []string{"http://_dmarc.example.com/"}, nil},
	} {
		p := pattern(t, c.pattern)
		for want, urls := range map[bool][]string{true: c.yes, false: c.no} {
			for _, url := range urls {
				scheme, rest, _ := strings.Cut(url, "://")
				i := strings.IndexByte(rest, '/')
				if got := p.Match(scheme, rest[:i], rest[i:]); got != want {
					t.Errorf("%q takes %q: %v", c.pattern, url, got)
				}
			}
		}
	}
}

func TestRoutePatternsThatAreNone(t *testing.T) {
	once(t)
	label, host := strings.Repeat("a", maxLabel), strings.Repeat("a.", MaxHostBytes/2)+"a"
	path := "e.com/" + strings.Repeat("p", MaxPatternBytes-len("e.com/"))
	for _, fine := range []string{label + ".com", host + "/*", path} {
		pattern(t, fine)
	}
	for text, says := range map[string]string{
		"":                         "no host",
		"/":                        "no host",
		"/a*":                      "no host",
		"https://":                 "no host",
		"*.":                       "no host",
		"*./a":                     "no host",
		"ftp://example.com/":       "scheme",
		"://example.com/":          "scheme",
		"example.com:8080/*":       "port",
		"example.com/*.jpg":        "last character of the path",
		"example.com/**":           "last character of the path",
		"example.com/a*b*":         "last character of the path",
		"exa*mple.com/":            "first character of the host",
		"**.example.com/":          "first character of the host",
		"www.*.com/":               "first character of the host",
		"example.com/?a=*":         "must not contain",
		"example.com/a?*":          "must not contain",
		"example.com?a":            "must not contain",
		"example.com/#a":           "must not contain",
		"bücher.example/*":         "ASCII",
		"exa mple.com/":            "character",
		"user@example.com/":        "character",
		"[::1]/":                   "port",
		"a..b/":                    "1 to 63",
		".example.com/":            "1 to 63",
		"example.com./":            "1 to 63",
		label + "a.com":            "1 to 63",
		host + ".a/*":              "253",
		path + "p":                 "2048",
		"*example.com/a*/b":        "last character of the path",
		"https://https://a.com/":   "port",
		"example.com\x00/":         "character",
		"*\xff.example.com/":       "ASCII",
		"https://user:pw@host/a":   "port",
		"example.com/a*?b":         "must not contain",
		"http//example.com/a?b://": "must not contain",
	} {
		p, err := ParseRoutePattern(text)
		if !errors.Is(err, ErrRoutePattern) || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) || p != (RoutePattern{}) {
			t.Errorf("%.60q: %v; want an error that says %q", text, err, says)
		}
	}
}

// The more specific of two runs, whatever the order in which they were made.
func TestRoutePatternPrecedence(t *testing.T) {
	once(t)
	want := []string{
		"a.b.example.com/*",
		"https://www.example.com/hello/world",
		"www.example.com/hello/world",
		"www.example.com/hello/*",
		"www.example.com/hell*",
		"https://www.example.com/*",
		"www.example.com/*",
		"example.com/very/long/path/*",
		"example.com/",
		"example.com/*",
		"*.www.example.com/*",
		"*www.example.com/*",
		"*.example.com/hello/*",
		"*.example.com/*",
		"*example.com/x*",
		"*example.com/*",
		"*/*",
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, func(a, b string) int { return pattern(t, a).Compare(pattern(t, b)) })
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// FuzzRoutePattern: what is a pattern is written in one form, which reads as the
// same pattern, takes a URL made of it, and is ordered against others as it should.
func FuzzRoutePattern(f *testing.F) {
	for _, text := range []string{"example.com/*", "*.example.com/a b*", "https://*example.com", "*/*", "HTTP://A/é", "a..b", "*.*/", "://", "a/%zz*"} {
		f.Add(text, "*example.com/x*")
	}
	f.Fuzz(func(t *testing.T, text, other string) {
		p, err := ParseRoutePattern(text)
		if err != nil {
			if !errors.Is(err, ErrRoutePattern) || p != (RoutePattern{}) {
				t.Fatalf("%q: %+v, %v", text, p, err)
			}
			return
		}
		if len(p.String()) > 3*MaxPatternBytes+1 {
			t.Fatalf("%q is written with %d bytes", text, len(p.String()))
		}
		if len(p.String()) <= MaxPatternBytes {
			again, err := ParseRoutePattern(p.String())
			if err != nil || again != p || p.Compare(again) != 0 {
				t.Fatalf("%q is written as %q, which reads as %+v, %v; it is %+v", text, p, again, err, p)
			}
		}
		scheme, host, path := p.scheme, p.host, p.path
		if scheme == "" {
			scheme = "https"
		}
		if p.wild == underHost {
			host = "www." + host
		}
		if p.prefix {
			path += "x?y"
		}
		if !p.Match(scheme, host, path) || p.Match("ftp", host, path) != (p.scheme == "") || p.Match(scheme, host, "") {
			t.Fatalf("%q and %s://%s%s", text, scheme, host, path)
		}
		o, err := ParseRoutePattern(other)
		if err != nil {
			return
		}
		if p.Compare(o) != -o.Compare(p) || (p.Compare(o) == 0) != (p == o) {
			t.Fatalf("%q and %q compare as %d and %d", text, other, p.Compare(o), o.Compare(p))
		}
	})
}
