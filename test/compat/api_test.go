package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// endpoint is where a client is pointed at, and as whom it goes there.
type endpoint struct {
	base    string // ends in /client/v4
	account string
	token   string
}

// namespace is a namespace at an endpoint.
type namespace struct {
	endpoint
	id string
}

func (e endpoint) spaces() string { return "/accounts/" + e.account + "/storage/kv/namespaces" }
func (n namespace) path() string  { return n.spaces() + "/" + n.id }

// value is the path of a key's value, the key escaped as Go does it.
func (n namespace) value(key string) string { return n.path() + "/values/" + url.PathEscape(key) }

// requestTimeout is the longest that one request may take.
const requestTimeout = 2 * time.Minute

// answer is what the server said.
type answer struct {
	status int
	header http.Header
	body   []byte
	envelope
}

// envelope is the frame of every answer in JSON.
type envelope struct {
	Success bool `json:"success"`
	Errors  []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
	Result json.RawMessage `json:"result"`
	Info   struct {
		Count      int    `json:"count"`
		TotalCount int    `json:"total_count"`
		TotalPages int    `json:"total_pages"`
		Cursor     string `json:"cursor"`
		Cursors    struct {
			After string `json:"after"`
		} `json:"cursors"`
	} `json:"result_info"`
}

// do sends a request. The path, from the base on, goes out exactly as it is given.
func (e endpoint) do(ctx context.Context, method, path string, body []byte) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, e.base, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.URL.Opaque = req.URL.Path + path // as it is: URL would clean and escape it
	req.Header.Set("Authorization", "Bearer "+e.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode, header: res.Header}
	if a.body, err = io.ReadAll(res.Body); err != nil {
		return a, err
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(a.body, &a.envelope); err != nil {
			return a, fmt.Errorf("%s %s: %w in %.300q", method, path, err, a.body)
		}
	}
	return a, nil
}

// call sends a request, with what as JSON, that must succeed.
func (e endpoint) call(ctx context.Context, method, path string, what any) (answer, error) {
	var body []byte
	if what != nil {
		var err error
		if body, err = json.Marshal(what); err != nil {
			return answer{}, err
		}
	}
	a, err := e.do(ctx, method, path, body)
	if err == nil {
		err = wantSuccess(a)
	}
	return a, err
}

// wantSuccess complains about an answer that is not a success in its envelope.
func wantSuccess(a answer) error {
	if a.status != http.StatusOK || !a.Success || len(a.Errors) > 0 {
		return fmt.Errorf("status %d, %.500q: want a success", a.status, a.body)
	}
	return nil
}

// wantFailure complains about an answer that does not fail with this status, code
// and a message that contains text.
func wantFailure(a answer, status, code int, text string) error {
	switch {
	case a.status != status || a.Success:
		return fmt.Errorf("status %d, %.500q: want a failure with status %d", a.status, a.body, status)
	case len(a.Errors) == 0 || a.Errors[0].Code != code:
		return fmt.Errorf("%.500q: want code %d", a.body, code)
	case !strings.Contains(a.Errors[0].Message, text):
		return fmt.Errorf("message %q: want %q in it", a.Errors[0].Message, text)
	}
	return nil
}

// wantBytes complains if two values differ.
func wantBytes(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("got %d bytes, want %d; they differ at %d: got %.40q, want %.40q", len(got), len(want), at, got[at:], want[at:])
}

// wantKeys complains if a listing is not what it should be, order included.
func wantKeys(got, want []string) error {
	if slices.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("got %d keys, want %d; they differ at %d: got %.3q, want %.3q", len(got), len(want), at,
		got[at:min(len(got), at+3)], want[at:min(len(want), at+3)])
}

// createNamespace creates a namespace and returns it.
func (e endpoint) createNamespace(ctx context.Context, title string) (namespace, error) {
	a, err := e.call(ctx, http.MethodPost, e.spaces(), map[string]string{"title": title})
	if err != nil {
		return namespace{}, fmt.Errorf("create namespace %q: %w", title, err)
	}
	var created struct{ ID string }
	if err := json.Unmarshal(a.Result, &created); err != nil {
		return namespace{}, err
	}
	if created.ID == "" {
		return namespace{}, errors.New("create namespace: no id in the answer")
	}
	return namespace{e, created.ID}, nil
}

// newNamespace creates a namespace for a test on the shared server.
func newNamespace(t *testing.T) namespace {
	t.Helper()
	return newNamespaceTitled(t, t.Name())
}

func newNamespaceTitled(t *testing.T, title string) namespace {
	t.Helper()
	ns, err := shared.server.createNamespace(t.Context(), title)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// pair is an item of a bulk write.
type pair struct {
	Key        string `json:"key"`
	Value      string `json:"value"`
	Base64     bool   `json:"base64,omitempty"`
	Expiration int64  `json:"expiration,omitempty"`
	TTL        int64  `json:"expiration_ttl,omitempty"`
	Metadata   any    `json:"metadata,omitempty"`
}

// bulkPut writes pairs in one request.
func (n namespace) bulkPut(ctx context.Context, pairs []pair) error {
	_, err := n.call(ctx, http.MethodPut, n.path()+"/bulk", pairs)
	return err
}

// listed is a key in a listing.
type listed struct {
	Name       string          `json:"name"`
	Expiration int64           `json:"expiration"`
	Metadata   json.RawMessage `json:"metadata"`
}

// list lists all keys by the raw cursor, with pages of limit keys.
func (n namespace) list(ctx context.Context, prefix string, limit int) (all []listed, err error) {
	const maxPages = 10_000
	cursor := ""
	for range maxPages {
		a, err := n.call(ctx, http.MethodGet, fmt.Sprintf("%s/keys?limit=%d&prefix=%s&cursor=%s",
			n.path(), limit, url.QueryEscape(prefix), url.QueryEscape(cursor)), nil)
		if err != nil {
			return nil, err
		}
		var page []listed
		if err := json.Unmarshal(a.Result, &page); err != nil {
			return nil, err
		}
		all = append(all, page...)
		switch {
		case a.Info.Count != len(page):
			return nil, fmt.Errorf("a page of %d keys has the count %d", len(page), a.Info.Count)
		case a.Info.Cursor != a.Info.Cursors.After:
			return nil, fmt.Errorf("the cursors differ: %q and %q", a.Info.Cursor, a.Info.Cursors.After)
		case a.Info.Cursor == "":
			return all, nil
		case len(page) == 0:
			return nil, errors.New("an empty page with a cursor")
		}
		cursor = a.Info.Cursor
	}
	return nil, fmt.Errorf("the listing does not end after %d pages", maxPages)
}

// names are the names of listed keys.
func names(keys []listed) []string {
	all := make([]string, len(keys))
	for i, k := range keys {
		all[i] = k.Name
	}
	return all
}

// check fails the test if err is not nil.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
