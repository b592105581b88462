package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
)

const account = "0123456789abcdef0123456789abcdef"

// answers is a transport that answers without a network, so that time can be
// synctest's.
type answers func(attempt int, req *http.Request) (*http.Response, error)

type roundTripper struct {
	answer   answers
	attempts atomic.Int64
}

func (r *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.answer(int(r.attempts.Add(1)), req)
}

func answer(status int, body string, header ...string) *http.Response {
	res := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
	for i := 0; i < len(header); i += 2 {
		res.Header.Set(header[i], header[i+1])
	}
	return res
}

const done = `{"success":true,"errors":[],"messages":[],"result":null}`

func newClient(t testing.TB, config client.Config) *client.Client {
	t.Helper()
	if config.BaseURL == "" {
		config.BaseURL = "http://kv.test/client/v4"
	}
	config.AccountID = account
	if config.Token == "" && config.Email == "" {
		config.Token = "secret"
	}
	c, err := client.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestRetries(t *testing.T) {
	dial := errors.New("connection refused")
	put := func(ctx context.Context, c *client.Client) error {
		return c.PutBytes(ctx, "ns", "k", []byte("v"), client.PutOptions{})
	}
	create := func(ctx context.Context, c *client.Client) error {
		_, err := c.CreateNamespace(ctx, "t", "")
		return err
	}
	for name, c := range map[string]struct {
		call     func(context.Context, *client.Client) error
		answer   answers
		attempts int64
		least    time.Duration
		ok       bool
	}{
		"429 is repeated after the time asked for": {put, func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return answer(429, "{}", "Retry-After", "7"), nil
			}
			return answer(200, done), nil
		}, 2, 7 * time.Second, true},
		"503 is repeated a bounded number of times": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(503, "{}"), nil
		}, client.DefaultAttempts, 0, false},
		"a wait longer than the limit is an error": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(503, "{}", "Retry-After", "3600"), nil
		}, 1, 0, false},
		"a wait one second past the limit is an error": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(503, "{}", "Retry-After", "61"), nil
		}, 1, 0, false},
		"a wait at the limit is granted": {put, func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return answer(503, "{}", "Retry-After", "60"), nil
			}
			return answer(200, done), nil
		}, 2, time.Minute, true},
		"a broken connection is repeated": {put, func(n int, _ *http.Request) (*http.Response, error) {
			if n < 3 {
				return nil, dial
			}
			return answer(200, done), nil
		}, 3, 0, true},
		"400 is final": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(400, "{}"), nil
		}, 1, 0, false},
		"500 is final": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(500, "{}"), nil
		}, 1, 0, false},
		"507 is final": {put, func(int, *http.Request) (*http.Response, error) {
			return answer(507, "{}"), nil
		}, 1, 0, false},
		"a create is not repeated when it may have been done": {create, func(int, *http.Request) (*http.Response, error) {
			return nil, dial
		}, 1, 0, false},
		"a create is not repeated after 503": {create, func(int, *http.Request) (*http.Response, error) {
			return answer(503, "{}"), nil
		}, 1, 0, false},
		"a create is repeated after 429": {create, func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return answer(429, "{}"), nil
			}
			return answer(200, `{"success":true,"result":{"id":"x"}}`), nil
		}, 2, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := &roundTripper{answer: c.answer}
				cl := newClient(t, client.Config{HTTPClient: &http.Client{Transport: transport}})
				began := time.Now()
				err := c.call(t.Context(), cl)
				if (err == nil) != c.ok || transport.attempts.Load() != c.attempts {
					t.Fatalf("%d attempts, %v; want %d, success %v", transport.attempts.Load(), err, c.attempts, c.ok)
				}
				if took := time.Since(began); took < c.least || took > c.least+time.Minute {
					t.Fatalf("took %v, want at least %v", took, c.least)
				}
			})
		})
	}
}

func TestACertificateThatIsNotTrustedIsFinal(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	c := newClient(t, client.Config{BaseURL: server.URL})
	began := time.Now()
	err := c.Delete(t.Context(), "ns", "k")
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Fatalf("it was tried again, for %v", took)
	}
}

func TestContextEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := &roundTripper{answer: func(int, *http.Request) (*http.Response, error) {
			return answer(503, "{}", "Retry-After", "50"), nil
		}}
		c := newClient(t, client.Config{HTTPClient: &http.Client{Transport: transport}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c.Delete(ctx, "ns", "k")
		var apiErr *client.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &apiErr) || apiErr.StatusCode != 503 {
			t.Fatalf("got %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	body := `{"success":false,"errors":[{"code":10009,"message":"get: 'key not found'"}],"result":null}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/html"):
			w.WriteHeader(418)
			fmt.Fprint(w, "<html>\x1b[31mteapot\nline two")
		case strings.HasSuffix(r.URL.Path, "/lie"):
			fmt.Fprint(w, `{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}`)
		case strings.HasSuffix(r.URL.Path, "/page"):
			fmt.Fprint(w, "<html>")
		default:
			w.WriteHeader(404)
			fmt.Fprint(w, body)
		}
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})

	_, err := c.Get(t.Context(), "ns", "k")
	var apiErr *client.Error
	if !errors.As(err, &apiErr) || !apiErr.NotFound() || apiErr.Code() != client.CodeKeyNotFound || apiErr.Message() != "get: 'key not found'" {
		t.Fatalf("got %v", err)
	}
	if got, want := err.Error(), "get: 'key not found' (HTTP 404, code 10009)"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	err = c.Delete(t.Context(), "ns", "html")
	if !errors.As(err, &apiErr) || apiErr.StatusCode != 418 || apiErr.Message() != "<html>[31mteapot" {
		t.Fatalf("got %v", err)
	}
	err = c.Delete(t.Context(), "ns", "lie")
	if !errors.As(err, &apiErr) || !apiErr.Denied() || apiErr.StatusCode != 200 {
		t.Fatalf("got %v", err)
	}
	if err = c.Delete(t.Context(), "ns", "page"); err == nil || !strings.Contains(err.Error(), "base URL") {
		t.Fatalf("got %v", err)
	}
	server.Close()
	c = newClient(t, client.Config{BaseURL: server.URL, Attempts: 1})
	if err = c.Delete(t.Context(), "ns", "k"); !errors.Is(err, client.ErrUnreachable) {
		t.Fatalf("got %v", err)
	}
}

func TestNoCredentialsAfterARedirect(t *testing.T) {
	var leaked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Store(true) }))
	defer other.Close()
	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	var apiErr *client.Error
	if err := c.Delete(t.Context(), "ns", "k"); !errors.As(err, &apiErr) || apiErr.StatusCode != 307 || leaked.Load() {
		t.Fatalf("followed: %v, %v", leaked.Load(), err)
	}
}

// TestKeysTravelUnharmed sends awkward keys through a real HTTP server, which
// decodes the escaped path once.
func TestKeysTravelUnharmed(t *testing.T) {
	var path string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.EscapedPath()
		fmt.Fprint(w, done)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL + "/"})
	prefix := "/client/v4/accounts/" + account + "/storage/kv/namespaces/ns/values/"
	for key, want := range map[string]string{
		"a/b c?#%2F&+é.": "a%2Fb%20c%3F%23%252F%26%2B%C3%A9.",
		"//":             "%2F%2F",
		"../x":           "..%2Fx",
		"\x00\x7f":       "%00%7F",
		"~-_.":           "~-_.",
		"🐎":              "%F0%9F%90%8E",
	} {
		if err := c.Delete(t.Context(), "ns", key); err != nil {
			t.Fatal(err)
		}
		if path != prefix+want {
			t.Errorf("%q: path %q, want %q", key, path, prefix+want)
		}
	}
	for _, key := range []string{"", ".", "..", strings.Repeat("k", 513), "\xff"} {
		if err := c.Delete(t.Context(), "ns", key); !errors.Is(err, kv.ErrRule) {
			t.Errorf("%q: got %v, want a rule error", key, err)
		}
	}
}

func TestPutForms(t *testing.T) {
	type seen struct {
		query, kind, body, metadata string
		bytes                       int64
	}
	var got seen
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = seen{query: r.URL.RawQuery, bytes: r.ContentLength}
		got.kind, _, _ = strings.Cut(r.Header.Get("Content-Type"), ";")
		body, _ := io.ReadAll(r.Body)
		got.body = string(body)
		if got.kind == "multipart/form-data" {
			r.Body = io.NopCloser(bytes.NewReader(body))
			f, _, err := r.FormFile("value")
			if err != nil {
				t.Error(err)
				return
			}
			value, _ := io.ReadAll(f)
			got.body, got.metadata = string(value), r.FormValue("metadata")
			if got.bytes != int64(len(body)) {
				t.Errorf("Content-Length %d, body %d", got.bytes, len(body))
			}
			got.bytes = 0
		}
		fmt.Fprint(w, done)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	const raw, form = "application/octet-stream", "multipart/form-data"
	for _, test := range []struct {
		value string
		opts  client.PutOptions
		want  seen
	}{
		{"v", client.PutOptions{}, seen{"", raw, "v", "", 1}},
		{"", client.PutOptions{}, seen{"", raw, "", "", 0}},
		{"v", client.PutOptions{TTL: 60, Expiration: 7}, seen{"expiration=7&expiration_ttl=60", raw, "v", "", 1}},
		{"\r\n--x", client.PutOptions{Metadata: []byte(`{"<":1}`)}, seen{"", form, "\r\n--x", `{"<":1}`, 0}},
		{"", client.PutOptions{Metadata: []byte(`1`)}, seen{"", form, "", `1`, 0}},
	} {
		if err := c.PutBytes(t.Context(), "ns", "k", []byte(test.value), test.opts); err != nil {
			t.Fatal(err)
		}
		if got != test.want {
			t.Errorf("got %+v, want %+v", got, test.want)
		}
	}
	if err := c.PutBytes(t.Context(), "ns", "k", nil, client.PutOptions{Metadata: []byte("{")}); err == nil {
		t.Error("metadata that is not JSON was sent")
	}
}

func TestBodyIsSentAgain(t *testing.T) {
	var bodies []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(body))
		if len(bodies) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, done)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	if err := c.PutBytes(t.Context(), "ns", "k", []byte("v"), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(bodies, []string{"v", "v"}) {
		t.Fatalf("got %q", bodies)
	}
}

func TestGet(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("expiration", "1893456000")
		if strings.HasSuffix(r.URL.Path, "cut") {
			w.Header().Set("Content-Length", "100")
		}
		fmt.Fprint(w, "\x00value")
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL, Attempts: 1})
	value, expiration, err := c.GetBytes(t.Context(), "ns", "k")
	if err != nil || string(value) != "\x00value" || expiration != 1893456000 {
		t.Fatalf("got %q, %d, %v", value, expiration, err)
	}
	if _, _, err := c.GetBytes(t.Context(), "ns", "cut"); !errors.Is(err, client.ErrUnreachable) {
		t.Fatalf("a value that was cut off: %v", err)
	}
}

// pages serves listings of n keys.
func pages(n, per int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var from int
		fmt.Sscan(r.FormValue("cursor"), &from)
		to, cursor := min(from+per, n), ""
		if to < n {
			cursor = fmt.Sprint(to)
		}
		keys := []map[string]any{}
		for i := from; i < to; i++ {
			keys = append(keys, map[string]any{"name": fmt.Sprintf("%s%04d", r.FormValue("prefix"), i), "metadata": map[string]int{"i": i}})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": keys, "result_info": map[string]any{"cursor": cursor}})
	}
}

func TestKeysOfAllPages(t *testing.T) {
	server := httptest.NewServer(pages(25, 10))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	var names []string
	for key, err := range c.Keys(t.Context(), "ns", "p +&") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, key.Name)
	}
	if len(names) != 25 || names[24] != "p +&0024" || !slices.IsSorted(names) {
		t.Fatalf("got %d: %q", len(names), names)
	}
}

func TestAListingThatDoesNotEndIsRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"success":true,"result":[{"name":"a"}],"result_info":{"cursor":"same"}}`)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	var last error
	for _, err := range c.Keys(t.Context(), "ns", "") {
		last = err
	}
	if last == nil {
		t.Fatal("no error")
	}
}

func TestBulk(t *testing.T) {
	var got string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.URL.Path[strings.Index(r.URL.Path, "ns/"):] + " " + string(body)
		if strings.HasSuffix(r.URL.Path, "get") {
			fmt.Fprint(w, `{"success":true,"result":{"values":{"a":{"value":"1","metadata":null},"b":null,"c":{"value":"","metadata":{"x":1},"expiration":5}}}}`)
			return
		}
		fmt.Fprint(w, `{"success":true,"result":{"successful_key_count":1,"unsuccessful_keys":["b"]}}`)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})

	result, err := c.PutMany(t.Context(), "ns", []client.Pair{
		{Key: "a<", Value: []byte("é&"), PutOptions: client.PutOptions{TTL: 60, Metadata: []byte(`"<"`)}},
		{Key: "b", Value: []byte{0xff}, PutOptions: client.PutOptions{Expiration: 9}},
	})
	want := `PUT ns/bulk [{"key":"a<","value":"é&","expiration_ttl":60,"metadata":"<"},{"key":"b","value":"/w==","base64":true,"expiration":9}]`
	if err != nil || got != want || result.Successful != 1 || !slices.Equal(result.Unsuccessful, []string{"b"}) {
		t.Fatalf("got %s, %+v, %v", got, result, err)
	}
	if _, err = c.DeleteMany(t.Context(), "ns", []string{"<"}); err != nil || strings.TrimSpace(got) != `POST ns/bulk/delete ["<"]` {
		t.Fatalf("got %s, %v", got, err)
	}
	values, err := c.GetMany(t.Context(), "ns", []string{"a", "b", "c"})
	if err != nil || len(values) != 2 || values["a"].Value != "1" || values["a"].Metadata != nil || string(values["c"].Metadata) != `{"x":1}` || values["c"].Expiration != 5 {
		t.Fatalf("got %+v, %v", values, err)
	}
}

func TestBulkLimits(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, `{"success":true,"result":{}}`)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	keys := make([]string, client.MaxDeleteKeys+1)
	pairs := make([]client.Pair, client.MaxPutPairs+1)
	for i := range keys {
		keys[i], pairs[i].Key = fmt.Sprint(i), fmt.Sprint(i)
	}
	if _, err := c.DeleteMany(t.Context(), "ns", keys[1:]); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteMany(t.Context(), "ns", keys); err == nil {
		t.Error("too many keys were sent")
	}
	if _, err := c.PutMany(t.Context(), "ns", pairs[1:]); err != nil {
		t.Error(err)
	}
	if _, err := c.PutMany(t.Context(), "ns", pairs); err == nil {
		t.Error("too many pairs were sent")
	}
	const frame = len(`[{"key":"0","value":""}]`)
	big := []client.Pair{{Key: "0", Value: bytes.Repeat([]byte("v"), client.MaxRequestBytes-frame)}}
	if _, err := c.PutMany(t.Context(), "ns", big); err != nil {
		t.Error(err)
	}
	big[0].Value = append(big[0].Value, 'v')
	if _, err := c.PutMany(t.Context(), "ns", big); err == nil {
		t.Error("a request that is too large was sent")
	}
}

func TestNamespacesOfAllPages(t *testing.T) {
	for _, n := range []int{0, 99, 100, 101, 200} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var page, per int
			fmt.Sscan(r.FormValue("page"), &page)
			fmt.Sscan(r.FormValue("per_page"), &per)
			list := []client.Namespace{}
			for i := (page - 1) * per; i < min(page*per, n); i++ {
				list = append(list, client.Namespace{ID: fmt.Sprint(i)})
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": list})
		}))
		c := newClient(t, client.Config{BaseURL: server.URL})
		count := 0
		for _, err := range c.Namespaces(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			count++
		}
		server.Close()
		if count != n {
			t.Errorf("got %d of %d", count, n)
		}
	}
}

func TestTokens(t *testing.T) {
	var sent map[string]any
	var headers http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers = r.Header
		const token = `{"id":"i","name":"n","status":"active","value":"s3cret","expires_on":"2030-01-02T03:04:05Z","policies":[
			{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Write"}],"resources":{"com.nearkey.kv.namespace.aa":{"prefix":"img/"}}},
			{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.cloudflare.api.account.xx":"*"}}]}`
		if r.Method == http.MethodPost {
			_ = json.NewDecoder(r.Body).Decode(&sent)
			fmt.Fprint(w, `{"success":true,"result":`+token+`}`)
			return
		}
		fmt.Fprint(w, `{"success":true,"result":[`+token+`]}`)
	}))
	defer server.Close()
	c := newClient(t, client.Config{BaseURL: server.URL})
	token, err := c.CreateToken(t.Context(), "n", []client.Scope{{}, {Write: true, Namespace: "aa", Prefix: "img/"}, {Namespace: "bb"}}, time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC))
	if err != nil || token.Secret != "s3cret" || token.Expires.Year() != 2030 || fmt.Sprint(token.Scopes) != "[write:aa:img/ read]" {
		t.Fatalf("got %+v, %v", token, err)
	}
	const want = `{"expires_on":"2030-01-02T03:04:05Z","name":"n","policies":[` +
		`{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.cloudflare.api.account.` + account + `":"*"}},` +
		`{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Write"}],"resources":{"com.nearkey.kv.namespace.aa":{"prefix":"img/"}}},` +
		`{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.nearkey.kv.namespace.bb":"*"}}]}`
	if got, _ := json.Marshal(sent); string(got) != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	if got := headers.Get("Authorization"); got != "Bearer secret" {
		t.Fatalf("Authorization %q", got)
	}
	count := 0
	for _, err := range newClient(t, client.Config{BaseURL: server.URL, Email: "e@x", Key: "k"}).Tokens(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 1 || headers.Get("X-Auth-Email") != "e@x" || headers.Get("X-Auth-Key") != "k" || headers.Get("Authorization") != "" {
		t.Fatalf("%d tokens, headers %v", count, headers)
	}
	if _, err := c.CreateToken(t.Context(), "n", []client.Scope{{Prefix: "p"}}, time.Time{}); err == nil {
		t.Fatal("a prefix without a namespace was sent")
	}
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://h:1":                           "http://h:1/client/v4",
		"http://h:1/":                          "http://h:1/client/v4",
		"https://h/client/v4/":                 "https://h/client/v4",
		"https://api.cloudflare.com/client/v4": "https://api.cloudflare.com/client/v4",
		"h:1":                                  "", "": "", "ftp://h": "", "http://u:p@h": "", "http://h?x": "", "/client/v4": "",
	} {
		got, err := client.ParseBaseURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	if _, err := client.New(client.Config{BaseURL: "http://h", Token: "a\nb"}); err == nil {
		t.Error("a token of two lines was accepted")
	}
	if _, err := client.New(client.Config{BaseURL: "http://h", Email: "a"}); err == nil {
		t.Error("an e-mail without a key was accepted")
	}
}
