package cache

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// moment is a time without a clock that does not jump.
var moment = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) string { return moment.Add(d).Format(http.TimeFormat) }

// parsed is a response of a few lines.
func parsed(t *testing.T, status int, lines ...string) *response {
	t.Helper()
	text := fmt.Sprintf("HTTP/1.1 %d OK\r\n", status)
	for _, line := range lines {
		if line != "" {
			text += line + "\r\n"
		}
	}
	h, err := parseHead(text + "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	return &response{status: h.status, fields: h.fields}
}

func TestAdmit(t *testing.T) {
	const minute = "Cache-Control: max-age=60"
	for _, c := range []struct {
		status int
		lines  string // of the response, separated by |
		life   int    // seconds that are left
		err    error
	}{
		{200, minute, 60, nil},
		{200, "cache-control: MAX-AGE=60", 60, nil},
		{200, `Cache-Control: max-age="60"`, 60, nil},
		{200, "Cache-Control: max-age=60, s-maxage=10", 10, nil},
		{200, "Cache-Control: max-age=60|Cache-Control: s-maxage=10", 10, nil},
		{200, "Cache-Control: max-age=60, max-age=10", 60, nil},
		{200, "Cache-Control: s-maxage=0, max-age=60", 0, errStale},
		{200, "Cache-Control: max-age=0", 0, errStale},
		{200, "Cache-Control: max-age=1", 1, nil},
		{200, "Cache-Control: max-age=-1", 0, errStale},
		{200, "Cache-Control: max-age=soon", 0, errStale},
		{200, "Cache-Control: max-age", 0, errStale},
		{200, "Cache-Control: max-age=99999999999999999999", maxDelta, nil},
		{200, "Cache-Control: no-store", 0, errNoStore},
		{200, "Cache-Control: max-age=60, no-store", 0, errNoStore},
		{200, "Cache-Control: max-age=60, no-store, must-understand", 60, nil},
		{200, "Cache-Control: no-cache", 0, errNoStore},
		{200, `Cache-Control: max-age=60, no-cache="x-own, b"`, 60, nil},
		{200, `Cache-Control: max-age=60, no-cache=""`, 0, errNoStore},
		{200, "Cache-Control: max-age=60, private", 0, errPrivate},
		{200, `Cache-Control: max-age=60, private="a", private`, 0, errPrivate},
		{200, `Cache-Control: max-age=60, x="no-store, private"`, 60, nil},
		{200, `Cache-Control: max-age=60, x="a\", no-store"`, 60, nil},
		{200, `Cache-Control: x="no end, max-age=60`, 7200, nil},
		{200, minute + "|Set-Cookie: a=b", 0, errCookie},
		{200, "Cache-Control: max-age=60, private=Set-Cookie|Set-Cookie: a=b", 60, nil},
		{200, `Cache-Control: max-age=60, private="set-cookie"|Set-Cookie: a=b|Set-Cookie: c=d`, 60, nil},
		{200, minute + "|Vary: *", 0, errVary},
		{200, minute + "|Vary: a, *", 0, errVary},
		{200, minute + "|Vary: Accept", 60, nil},
		{200, minute + "|Age: 20", 40, nil},
		{200, minute + "|Age: 60", 0, errStale},
		{200, minute + "|Age: old", 60, nil},
		{200, minute + "|Date: " + at(-20*time.Second), 40, nil},
		{200, minute + "|Age: 30|Date: " + at(-20*time.Second), 30, nil},
		{200, minute + "|Date: " + at(time.Hour), 60, nil},
		{200, minute + "|Date: yesterday", 60, nil},
		{200, "Expires: " + at(30*time.Second), 30, nil},
		{200, "Date: " + at(-10*time.Second) + "|Expires: " + at(30*time.Second), 30, nil},
		{200, "Expires: " + at(-30*time.Second), 0, errStale},
		{200, "Expires: 0", 0, errStale},
		{200, "Expires: " + at(time.Hour) + "|Expires: 0", 0, errStale},
		{200, minute + "|Expires: 0", 60, nil},
		{200, "CDN-Cache-Control: max-age=10|" + minute, 10, nil},
		{200, "CDN-Cache-Control: max-age=10|Cache-Control: no-store", 10, nil},
		{200, "CDN-Cache-Control: no-store|" + minute, 0, errNoStore},
		{200, "CDN-Cache-Control: public|Expires: 0", 7200, nil},
		{200, "CDN-Cache-Control: |" + minute, 60, nil},
		{200, "Cloudflare-CDN-Cache-Control: max-age=5|CDN-Cache-Control: no-store", 5, nil},
		{200, "", 7200, nil},
		{200, "Date: " + at(-time.Hour), 7200, nil},
		{301, "", 7200, nil},
		{302, "", 1200, nil},
		{303, "", 1200, nil},
		{404, "", 180, nil},
		{410, "", 180, nil},
		{203, "", 0, errStatus},
		{500, "", 0, errStatus},
		{500, minute, 60, nil},
		{599, minute, 60, nil},
		{206, minute, 0, errStatus},
		{304, minute, 0, errStatus},
		{101, minute, 0, errStatus},
		{600, minute, 0, errStatus},
	} {
		r := parsed(t, c.status, strings.Split(c.lines, "|")...)
		err := r.admit(headers{}, moment)
		if !errors.Is(err, c.err) {
			t.Errorf("%d %s: got %v, want %v", c.status, c.lines, err, c.err)
			continue
		}
		if err != nil {
			continue
		}
		if r.fields["Set-Cookie"] != nil || r.fields["Date"] == nil {
			t.Errorf("%d %s: kept %v", c.status, c.lines, r.fields)
		}
		life := time.Duration(c.life) * time.Second
		if !r.fresh(moment.Add(life-1)) || r.fresh(moment.Add(life)) {
			t.Errorf("%d %s: fresh for %v of age %v, want %v left", c.status, c.lines, r.life, r.age, life)
		}
	}
}

func TestAdmitAuthorized(t *testing.T) {
	for lines, want := range map[string]error{
		"Cache-Control: max-age=60":                  errAuthorized,
		"Cache-Control: max-age=60, public":          nil,
		"Cache-Control: max-age=60, must-revalidate": nil,
		"Cache-Control: s-maxage=60":                 nil,
	} {
		if err := parsed(t, 200, lines).admit(headers{"Authorization": {"x"}}, moment); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", lines, err, want)
		}
	}
}

func TestHiddenFields(t *testing.T) {
	r := parsed(t, 200, "Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: 1", "Upgrade: x", "X-NK-Token: x", "Trailer: a", "X-Listed: 1",
		"CF-Cache-Status: MISS", "Proxy-Authenticate: x", "Age: 1", `Cache-Control: max-age=60, private="x-listed"`, "X-Own: a", "x-own: b", "Content-Type: c")
	if err := r.admit(headers{}, moment); err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for name := range r.fields {
		names = append(names, name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"Cache-Control", "Content-Type", "Date", "X-Own"}) || len(r.fields["X-Own"]) != 2 {
		t.Errorf("kept %v", r.fields)
	}
}

func TestVaryIsBounded(t *testing.T) {
	names := func(n int) string {
		list := []string{}
		for i := range n {
			list = append(list, fmt.Sprintf("a%d", i))
		}
		return "Vary: " + strings.Join(list, ", ")
	}
	for n, want := range map[int]error{maxVary: nil, maxVary + 1: errVary} {
		if err := parsed(t, 200, names(n)).admit(headers{}, moment); !errors.Is(err, want) {
			t.Errorf("%d names: got %v", n, err)
		}
	}
	if r := parsed(t, 200, "Vary: a, A", "Vary: a,, X-NK-Token"); r.admit(headers{}, moment) != nil || len(r.vary) != 1 {
		t.Errorf("vary %v", r.vary)
	}
}

func TestSelect(t *testing.T) {
	r := parsed(t, 200, "Vary: a, b")
	if err := r.readVary(headers{"A": {"1", "2"}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		request headers
		want    bool
	}{
		{headers{"A": {"1", "2"}}, true},
		{headers{"A": {"1, 2"}, "C": {"x"}}, true},
		{headers{"A": {"2", "1"}}, false},
		{headers{"A": {"1"}}, false},
		{headers{}, false},
		{headers{"A": {"1, 2"}, "B": {""}}, false},
	} {
		if r.selectedBy(c.request) != c.want {
			t.Errorf("%v: want %v", c.request, c.want)
		}
	}
}

// The same codings said in other words select the same response; a weight of zero
// or a coding that nobody knows is taken by the letter.
func TestSelectByCodings(t *testing.T) {
	for _, c := range []struct {
		put, asked string
		want       bool
	}{
		{"gzip, br", "br,gzip", true},
		{"gzip, br", "GZIP;q=0.5 , br;q=1.0,,", true},
		{"gzip, br", "gzip, deflate, br", false},
		{"gzip, br", "gzip", false},
		{"gzip, br", "gzip, br;q=0", false},
		{"gzip", "gzip, br;q=0.0", false},
		{"gzip", "gzip, x", false},
		{"gzip, x", "gzip, x", true},
		{"x, gzip", "gzip, x", false},
		{"gzip, *;q=0", "gzip, *;q=0", true},
		{"gzip, *", "gzip", false},
		{"gzip", "gzip;level=1", false},
		{"", "", true},
		{"", "identity", false},
	} {
		r := parsed(t, 200, "Vary: accept-encoding")
		if err := r.readVary(headers{"Accept-Encoding": {c.put}}); err != nil {
			t.Fatal(err)
		}
		if r.selectedBy(headers{"Accept-Encoding": {c.asked}}) != c.want || r.selectedBy(headers{}) {
			t.Errorf("put with %q, asked with %q: want %v", c.put, c.asked, c.want)
		}
	}
	none := parsed(t, 200, "Vary: Accept-Encoding")
	if err := none.readVary(headers{}); err != nil || !none.selectedBy(headers{}) || none.selectedBy(headers{"Accept-Encoding": {""}}) {
		t.Error("absent is absent")
	}
}

// However clocks jump, nothing is served that is stale by the one that went on.
func TestClockJumps(t *testing.T) {
	now := time.Now() // with a clock that does not jump
	r := &response{stored: now, life: time.Minute}
	wall := func(d time.Duration) time.Time { return now.Round(0).Add(d) }
	for _, c := range []struct {
		at   time.Time
		want bool
	}{
		{now.Add(59 * time.Second), true},
		{now.Add(time.Minute), false},
		{wall(59 * time.Second), true},
		{wall(time.Minute), false},
		{wall(-time.Second), false}, // before it was stored: nobody knows
	} {
		if r.fresh(c.at) != c.want {
			t.Errorf("%v: fresh is %v", c.at, !c.want)
		}
	}
	for _, c := range []struct {
		later, jump time.Duration
		want        bool
	}{
		{0, time.Hour, false},            // set on, or the machine slept
		{time.Minute, -time.Hour, false}, // set back
		{59 * time.Second, -time.Hour, true},
		{59 * time.Second, time.Second, false},
	} {
		if at := jump(now.Add(c.later), c.jump); r.fresh(at) != c.want {
			t.Errorf("%v later with a jump of %v: fresh is %v", c.later, c.jump, !c.want)
		}
	}
}

// jump moves the clock of the day by whole seconds, and not the one that does not
// jump: time.Time begins with its wall clock, of which the low 30 bits are
// nanoseconds.
func jump(t time.Time, by time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(int64(by/time.Second)) << 30
	return t
}

func TestPlan(t *testing.T) {
	r := &response{status: 200, body: []byte("0123456789"), made: moment, fields: headers{"Etag": {`"a"`}, "Last-Modified": {at(-time.Hour)}}}
	weak := &response{status: 200, body: r.body, made: moment, fields: headers{"Etag": {`W/"a"`}}}
	young := &response{status: 200, body: r.body, made: moment, fields: headers{"Last-Modified": {at(0)}}}
	gone := &response{status: 404, body: r.body, made: moment, fields: r.fields}
	for _, c := range []struct {
		r      *response
		lines  string
		status int
		parts  string
	}{
		{r, "If-None-Match: \"a\"", 304, ""},
		{r, "If-None-Match: W/\"a\"", 304, ""},
		{r, "If-None-Match: \"b\", ,\"a,\" , \"a\"", 304, ""},
		{r, "If-None-Match: *", 304, ""},
		{r, "If-None-Match: \"b\"", 200, ""},
		{r, "If-None-Match: a", 200, ""},
		{r, "If-None-Match: \"a", 200, ""},
		{r, "If-None-Match: \"b\"|If-Modified-Since: " + at(0), 200, ""},
		{r, "If-Modified-Since: " + at(0), 304, ""},
		{r, "If-Modified-Since: " + at(-time.Hour), 304, ""},
		{r, "If-Modified-Since: " + at(-time.Hour-time.Second), 200, ""},
		{r, "If-Modified-Since: once", 200, ""},
		{r, "If-Match: \"b\"|If-Unmodified-Since: " + at(-2*time.Hour), 200, ""}, // the origin's business
		{weak, "If-None-Match: \"a\"", 304, ""},
		{weak, "If-None-Match: W/\"a\"", 304, ""},
		{weak, "If-Modified-Since: " + at(0), 304, ""},
		{weak, "If-Modified-Since: " + at(-time.Second), 200, ""},
		{gone, "If-None-Match: \"a\"|Range: bytes=0-1", 404, ""},
		{r, "Range: bytes=0-0", 206, "[{0 1}]"},
		{r, "Range: BYTES=0-0", 206, "[{0 1}]"},
		{r, "Range: bytes=8-99", 206, "[{8 10}]"},
		{r, "Range: bytes=0-99999999999999999999", 206, "[{0 10}]"},
		{r, "Range: bytes=3-", 206, "[{3 10}]"},
		{r, "Range: bytes=-3", 206, "[{7 10}]"},
		{r, "Range: bytes=-99", 206, "[{0 10}]"},
		{r, "Range: bytes=-0", 416, "[]"},
		{r, "Range: bytes=10-", 416, "[]"},
		{r, "Range: bytes=10-,-0", 416, "[]"},
		{r, "Range: bytes=0-1, 4-5,, -1", 206, "[{0 2} {4 6} {9 10}]"},
		{r, "Range: bytes=0-1,20-", 206, "[{0 2}]"},
		{r, "Range: bytes=0-,0-", 200, ""},
		{r, "Range: bytes=5-4", 200, ""},
		{r, "Range: bytes=", 200, ""},
		{r, "Range: bytes=a-b", 200, ""},
		{r, "Range: bytes=+1-2", 200, ""},
		{r, "Range: bytes=-", 200, ""},
		{r, "Range: lines=0-1", 200, ""},
		{r, "Range: bytes 0-1", 200, ""},
		{r, "Range: bytes=0-1|Range: bytes=2-3", 200, ""},
		{r, "Range: bytes=" + strings.Repeat("0-0,", maxRanges), 200, ""}, // they overlap: more than there is
		{r, "Range: bytes=" + strings.Repeat("20-,", maxRanges), 416, "[]"},
		{r, "Range: bytes=" + strings.Repeat("20-,", maxRanges+1), 200, ""},
		{r, "Range: bytes=0-1|If-Range: \"a\"", 206, "[{0 2}]"},
		{r, "Range: bytes=0-1|If-Range: \"b\"", 200, ""},
		{r, "Range: bytes=0-1|If-Range: W/\"a\"", 200, ""},
		{weak, "Range: bytes=0-1|If-Range: W/\"a\"", 200, ""},
		{weak, "Range: bytes=0-1|If-Range: \"a\"", 200, ""},
		{r, "Range: bytes=0-1|If-Range: " + at(-time.Hour), 206, "[{0 2}]"},
		{r, "Range: bytes=0-1|If-Range: " + at(0), 200, ""},
		{young, "Range: bytes=0-1|If-Range: " + at(0), 200, ""}, // it may have changed within that second
		{r, "Range: bytes=0-1|If-None-Match: \"a\"", 304, ""},
	} {
		request := &http.Request{Method: "GET", Header: http.Header{}}
		for line := range strings.SplitSeq(c.lines, "|") {
			name, value, _ := strings.Cut(line, ": ")
			request.Header.Add(name, value)
		}
		status, parts := c.r.plan(request)
		if got := fmt.Sprint(parts); status != c.status || c.parts != "" && got != c.parts {
			t.Errorf("%s: got %d %s, want %d %s", c.lines, status, got, c.status, c.parts)
		}
		if request.Method = "HEAD"; request.Header.Get("Range") != "" && status != 304 {
			if status, _ := c.r.plan(request); status != c.r.status {
				t.Errorf("HEAD %s: got %d", c.lines, status)
			}
		}
	}
}

func TestEmptyBodyHasNoRange(t *testing.T) {
	for _, text := range []string{"bytes=0-0", "bytes=-1", "bytes=0-"} {
		r := &response{status: 200}
		if status, parts := r.plan(&http.Request{Method: "GET", Header: http.Header{"Range": {text}}}); status != 200 || len(parts) > 0 {
			t.Errorf("%s: %d %v", text, status, parts)
		}
	}
}
