package examples_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// site is where a Worker answers: http://HOST, by the port of Workers.
type site string

// worker is the site of a Worker by its name.
func worker(name string) site {
	return site(shared.workers.Scheme + "://" + name + "." + shared.workers.Host)
}

// answer is what a Worker answered.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request. Headers are "Name: value".
func (s site) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, string(s)+path, strings.NewReader(body))
	check(t, err)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := shared.web.Do(req)
	check(t, err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, req.URL, err)
	}
	return answer{resp.StatusCode, resp.Header, content}
}

func (s site) get(t *testing.T, path string, headers ...string) answer {
	t.Helper()
	return s.do(t, http.MethodGet, path, "", headers...)
}

// want ends the test unless the answer has the status, and the text if it is not empty.
func (a answer) want(t *testing.T, status int, text string) answer {
	t.Helper()
	if a.status != status || !bytes.Contains(a.body, []byte(text)) {
		t.Fatalf("status %d, want %d with %q:\n%.2000s", a.status, status, text, a.body)
	}
	return a
}

// wantHeader ends the test unless the answer has the header.
func (a answer) wantHeader(t *testing.T, name, value string) answer {
	t.Helper()
	if got := a.header.Get(name); got != value {
		t.Fatalf("%s: %q, want %q", name, got, value)
	}
	return a
}

// into reads the body as JSON.
func (a answer) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v:\n%.2000s", err, a.body)
	}
}
