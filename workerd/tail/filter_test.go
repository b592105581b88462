package tail

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestFilters(t *testing.T) {
	e := request("ok", "POST", "the text")
	cron := json.RawMessage(`{"outcome":"exception","scriptVersion":{"id":"v2"},"logs":[{"message":[{"b":"deep"}]},{"message":"bare"}],"exceptions":[],"event":{"cron":"* * * * *","scheduledTime":1}}`)
	for _, c := range []struct {
		filters    string
		http, cron bool
	}{
		{``, true, true},
		{`[]`, true, true},
		{`[{"outcome":["ok","canceled"]}]`, true, false},
		{`[{"outcome":["exception"]}]`, false, true},
		{`[{"outcome":[]}]`, false, false},
		{`[{"method":["GET","post"]}]`, true, false},
		{`[{"method":["GET"]}]`, false, false},
		{`[{"header":{"key":"X-Test"}}]`, true, false},
		{`[{"header":{"key":"x-test","query":"me val"}}]`, true, false},
		{`[{"header":{"key":"x-test","query":"other"}}]`, false, false},
		{`[{"header":{"key":"x-none"}}]`, false, false},
		{`[{"client_ip":["198.51.100.1","203.0.113.7"]}]`, true, false},
		{`[{"client_ip":["::ffff:203.0.113.7"]}]`, true, false},
		{`[{"client_ip":["self"]}]`, false, false},
		{`[{"query":"the text"}]`, true, false},
		{`[{"query":"deep"}]`, false, true},
		{`[{"query":"bare"}]`, false, true},
		{`[{"query":"\"a\":1"}]`, true, false},
		{`[{"query":"level"}]`, false, false},
		{`[{"scriptVersion":"v2"}]`, false, true},
		{`[{"sampling_rate":1}]`, true, true},
		{`[{"sampling_rate":1e-300}]`, false, false},
		{`[{"method":["POST"]},{"outcome":["ok"]},{"query":"text"}]`, true, false},
		{`[{"method":["POST"]},{"outcome":["exception"]}]`, false, false},
		{`[{"query":"the"},{"query":"text"}]`, true, false},
	} {
		all, err := parseFilters([]byte(c.filters))
		if err != nil {
			t.Errorf("%s: %v", c.filters, err)
			continue
		}
		if got := all.match(e); got != c.http {
			t.Errorf("%s: a request passes: %v", c.filters, got)
		}
		if got := all.match(cron); got != c.cron {
			t.Errorf("%s: a cron passes: %v", c.filters, got)
		}
		if len(all) > 0 && all.match([]byte("no JSON")) {
			t.Errorf("%s: what cannot be read passes", c.filters)
		}
	}
}

func TestSampling(t *testing.T) {
	all, err := parseFilters([]byte(`[{"sampling_rate":0.25}]`))
	if err != nil {
		t.Fatal(err)
	}
	const n = 4000
	passed := 0
	for range n {
		if all.match([]byte(`{}`)) {
			passed++
		}
	}
	if passed < n/8 || passed > n*3/8 { // 18 standard deviations
		t.Errorf("%d of %d pass", passed, n)
	}
}

func TestBadFilters(t *testing.T) {
	list := func(n int, one string) string { return "[" + strings.Repeat(one+",", n-1) + one + "]" }
	for filters, want := range map[string]string{
		`{}`:    "filters must be a list",
		`["x"]`: "filter 1: want an object with one field",
		`[{}]`:  "filter 1: want an object with one field",
		`[{"query":"a"},{"query":"a","method":["GET"]}]`:        "filter 2: want an object with one field",
		`[{"colour":"red"}]`:                                    "filter 1: want one of sampling_rate, outcome, method, header, client_ip, query, scriptVersion",
		`[{"outcome":null}]`:                                    "filter 1: want one of sampling_rate, outcome, method, header, client_ip, query, scriptVersion",
		`[{"outcome":"ok"}]`:                                    "filter 1: its value is of the wrong type",
		`[{"sampling_rate":0}]`:                                 "filter 1: sampling_rate must be greater than 0, and at most 1",
		`[{"sampling_rate":1.01}]`:                              "filter 1: sampling_rate must be greater than 0, and at most 1",
		`[{"header":{"query":"x"}}]`:                            "filter 1: header needs a key",
		`[{"client_ip":["home"]}]`:                              `filter 1: client_ip: "home" is no IP address`,
		list(MaxFilters+1, `{"query":"x"}`):                     "21 filters, at most 20 are allowed",
		`[{"method":` + list(MaxFilterValues+1, `"GET"`) + `}]`: "filter 1: 101 values, at most 100 are allowed",
	} {
		if _, err := parseFilters([]byte(filters)); err == nil || err.Error() != want {
			t.Errorf("%.60s: %v, want %s", filters, err, want)
		}
	}
	for _, filters := range []string{list(MaxFilters, `{"query":"x"}`), `[{"method":` + list(MaxFilterValues, `"GET"`) + `}]`} {
		if _, err := parseFilters([]byte(filters)); err != nil {
			t.Errorf("%.60s: %v", filters, err)
		}
	}
}

// The filters that are kept are those that were sent, with an address for self.
func TestFiltersKept(t *testing.T) {
	h := NewHub(Options{})
	sent := `[{"sampling_rate":0.5},{"header":{"key":"X"}},{"client_ip":["self","::1"]},{"query":"<&>"},{"scriptVersion":"v"},{"outcome":["ok"]},{"method":["GET"]}]`
	kept, err := h.Filters([]byte(sent), "203.0.113.7")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(sent, "self", "203.0.113.7", 1)
	if unescaped := strings.NewReplacer(`\u003c`, "<", `\u0026`, "&", `\u003e`, ">").Replace(string(kept)); unescaped != want {
		t.Errorf("kept %s, want %s", kept, want)
	}
	all, err := parseFilters(kept)
	if err != nil || !all[2].match(parsed(t, request("ok", "GET", ""))) {
		t.Errorf("%v: they do not do what they did", err)
	}
	if kept, err := h.Filters(nil, ""); err != nil || kept != nil {
		t.Errorf("none are kept as %s, %v", kept, err)
	}
	if _, err := h.Filters([]byte(`[{}]`), ""); err == nil {
		t.Error("wrong filters are kept")
	}
}

func parsed(t *testing.T, text json.RawMessage) *event {
	t.Helper()
	var e event
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	return &e
}

// No filters and no event are a crash.
func FuzzFilters(f *testing.F) {
	f.Add([]byte(`[{"query":"x"},{"client_ip":["self"]}]`), []byte(request("ok", "GET", "x")))
	f.Add([]byte(`[{"header":{"key":"a"}}]`), []byte(`{"event":null,"logs":[null]}`))
	f.Fuzz(func(t *testing.T, filters, event []byte) {
		all, err := parseFilters(filters)
		if err != nil {
			return
		}
		all.match(event)
		all.name("::1")
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseFilters(text); err != nil || len(again) != len(all) {
			t.Fatalf("%s is read again as %s: %v", filters, text, err)
		}
	})
}
