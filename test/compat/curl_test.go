package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// curl runs curl with a request's arguments. The URL's path comes first and goes
// out as it is given; credentials go in by a file, as in a careful script.
func (e endpoint) curl(ctx context.Context, stdin []byte, path string, args ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(shared.dir, "curl-")
	if err != nil {
		return answer{}, err
	}
	defer os.RemoveAll(dir)
	credentials, headers := filepath.Join(dir, "credentials"), filepath.Join(dir, "headers")
	all := []string{"-q", "-sS", "-g", "--path-as-is", "-D", headers, e.base + path}
	if e.token != "" {
		if err := os.WriteFile(credentials, []byte("Authorization: Bearer "+e.token+"\n"), 0o600); err != nil {
			return answer{}, err
		}
		all = append(all, "-H", "@"+credentials)
	}
	cmd := exec.CommandContext(ctx, "curl", append(all, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return answer{}, fmt.Errorf("curl %s %q: %w: %s", path, args, err, complaints.Bytes())
	}
	a := answer{body: out.Bytes()}
	if err := a.readHeaders(headers); err != nil {
		return a, err
	}
	if strings.HasPrefix(a.header.Get("Content-Type"), "application/json") && len(a.body) > 0 {
		err = json.Unmarshal(a.body, &a.envelope)
	}
	return a, err
}

// readHeaders reads what curl wrote with -D: the last answer counts, an interim
// 100 comes before it.
func (a *answer) readHeaders(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	blocks := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")), "\n\n")
	lines := strings.Split(blocks[len(blocks)-1], "\n")
	fields := strings.Fields(lines[0])
	if len(fields) < 2 {
		return fmt.Errorf("no status in %q", text)
	}
	if a.status, err = strconv.Atoi(fields[1]); err != nil {
		return err
	}
	a.header = http.Header{}
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ":")
		a.header.Add(name, strings.TrimSpace(value))
	}
	return nil
}

func curlDriver(ns namespace) driver {
	succeed := func(a answer, err error) error {
		if err != nil {
			return err
		}
		return wantSuccess(a)
	}
	return driver{
		put: func(ctx context.Context, key string, value []byte) error {
			return succeed(ns.curl(ctx, value, ns.value(key), "-X", "PUT", "--data-binary", "@-"))
		},
		get: func(ctx context.Context, key string) ([]byte, bool, error) {
			a, err := ns.curl(ctx, nil, ns.value(key))
			if err != nil {
				return nil, false, err
			}
			if a.status == http.StatusNotFound {
				return nil, false, wantFailure(a, http.StatusNotFound, 10009, "get: 'key not found'")
			}
			if a.status != http.StatusOK {
				return nil, false, fmt.Errorf("status %d, %.300q", a.status, a.body)
			}
			return a.body, true, nil
		},
		keys: func(ctx context.Context, prefix string) ([]string, error) { return curlKeys(ctx, ns, prefix) },
		remove: func(ctx context.Context, key string) error {
			return succeed(ns.curl(ctx, nil, ns.value(key), "-X", "DELETE"))
		},
	}
}

// curlKeys lists as a shell script would: no limit, the cursor until it is empty.
func curlKeys(ctx context.Context, ns namespace, prefix string) (all []string, err error) {
	const maxPages = 10_000
	path := ns.path() + "/keys?prefix=" + url.QueryEscape(prefix)
	cursor := ""
	for range maxPages {
		a, err := ns.curl(ctx, nil, path+cursor)
		if err == nil {
			err = wantSuccess(a)
		}
		if err != nil {
			return nil, err
		}
		var page []listed
		if err := json.Unmarshal(a.Result, &page); err != nil {
			return nil, err
		}
		all = append(all, names(page)...)
		if a.Info.Cursor == "" {
			return all, nil
		}
		cursor = "&cursor=" + url.QueryEscape(a.Info.Cursor)
	}
	return nil, errors.New("the listing does not end")
}

// stored complains unless the key has this value and metadata.
func (n namespace) stored(ctx context.Context, key string, value []byte, metadata string) error {
	a, err := n.do(ctx, http.MethodGet, n.value(key), nil)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return fmt.Errorf("get %q: status %d, %.300q", key, a.status, a.body)
	}
	if err := wantBytes(a.body, value); err != nil {
		return fmt.Errorf("get %q: %w", key, err)
	}
	m, err := n.call(ctx, http.MethodGet, n.path()+"/metadata/"+url.PathEscape(key), nil)
	if err != nil {
		return fmt.Errorf("metadata of %q: %w", key, err)
	}
	if string(m.Result) != metadata {
		return fmt.Errorf("metadata of %q: %s, want %s", key, m.Result, metadata)
	}
	return nil
}

// TestCurlBodies: every way in which curl sends a value.
func TestCurlBodies(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "f.bin")
	check(t, os.WriteFile(file, everyByte(), 0o600))
	huge := bytes.Repeat(everyByte(), 4096) // 2 MiB: curl asks for a go-ahead by itself
	form := `{"a":1,"b":["ü"]}`
	for _, test := range []struct {
		name     string
		stdin    []byte
		args     []string
		value    []byte
		metadata string
	}{
		{"-d", nil, []string{"-X", "PUT", "-d", "a=b&c=%20"}, []byte("a=b&c=%20"), "null"},
		{"-d JSON", nil, []string{"-X", "PUT", "-H", "Content-Type: application/json", "-d", `{"value":"x","metadata":{}}`}, []byte(`{"value":"x","metadata":{}}`), "null"},
		{"-d nothing", nil, []string{"-X", "PUT", "-d", ""}, nil, "null"},
		{"no body", nil, []string{"-X", "PUT"}, nil, "null"},
		{"no type", nil, []string{"-X", "PUT", "-H", "Content-Type:", "--data-binary", "@" + file}, everyByte(), "null"},
		{"--data-binary", nil, []string{"-X", "PUT", "--data-binary", "@" + file}, everyByte(), "null"},
		{"-T file", nil, []string{"-T", file}, everyByte(), "null"},
		{"-T chunked", everyByte(), []string{"-T", "-"}, everyByte(), "null"},
		{"-T chunked, huge", huge, []string{"-T", "-"}, huge, "null"},
		{"-T chunked, empty", nil, []string{"-T", "-"}, nil, "null"},
		{"-T Expect", nil, []string{"-T", file, "-H", "Expect: 100-continue"}, everyByte(), "null"},
		{"-T HTTP/1.0", nil, []string{"-0", "-T", file}, everyByte(), "null"},
		{"--form file", nil, []string{"-X", "PUT", "--form", "value=@" + file, "--form", "metadata={}"}, everyByte(), "{}"},
		{"--form metadata first", nil, []string{"-X", "PUT", "--form", "metadata=" + form, "--form", "value=@" + file}, everyByte(), form},
		{"-F without filename", nil, []string{"-X", "PUT", "-F", "value=<" + file, "-F", "metadata=" + form}, everyByte(), form},
		{"-F text", nil, []string{"-X", "PUT", "-F", "value=some value", "-F", "metadata=" + form + ";type=application/json"}, []byte("some value"), form},
		{"-F without metadata", nil, []string{"-X", "PUT", "-F", "value=some value"}, []byte("some value"), "null"},
		{"-F metadata null", nil, []string{"-X", "PUT", "-F", "metadata=null", "-F", "value=v"}, []byte("v"), "null"},
		{"-F metadata string", nil, []string{"-X", "PUT", "--form-string", `metadata="text"`, "-F", "value=v"}, []byte("v"), `"text"`},
		{"-F empty value", nil, []string{"-X", "PUT", "-F", "value=", "-F", "metadata={}"}, nil, "{}"},
		{"-F other fields", nil, []string{"-X", "PUT", "-F", "other=1", "-F", "value=v", "-F", "metadata.a=1", "-F", "metadata[a]=1"}, []byte("v"), "null"},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := "by curl " + test.name
			a, err := ns.curl(t.Context(), test.stdin, ns.value(key), test.args...)
			check(t, err)
			check(t, wantSuccess(a))
			check(t, ns.stored(t.Context(), key, test.value, test.metadata))
		})
	}
}

// TestCurlFailures: what curl sends wrong is refused, and nothing is stored.
func TestCurlFailures(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	put := func(args ...string) []string { return append([]string{"-X", "PUT"}, args...) }
	for _, test := range []struct {
		name   string
		path   string
		args   []string
		status int
		code   int
		text   string
	}{
		{"form without value", "/values/k", put("-F", "metadata={}"), 400, 10047, "required form field 'value'"},
		{"metadata not JSON", "/values/k", put("-F", "value=v", "-F", "metadata={a"), 400, 10147, "metadata must be valid json"},
		{"form without boundary", "/values/k", put("-H", "Content-Type: multipart/form-data", "-d", "x"), 400, 10012, "boundary"},
		{"ttl 1", "/values/k?expiration_ttl=1", put("-d", "v"), 400, 10034, "put: 'Invalid expiration_ttl of 1. Expiration TTL must be at least 60.'"},
		{"ttl no number", "/values/k?expiration_ttl=x", put("-d", "v"), 400, 10034, "Invalid expiration_ttl of x. Please specify integer greater than 0."},
		{"expired", "/values/k?expiration=1", put("-d", "v"), 400, 10033, "Invalid expiration of 1. Please specify integer greater than the current number of seconds since the UNIX epoch."},
		{"not UTF-8", "/values/%ff", put("-d", "v"), 400, 10012, "Could not URL-decode key name"},
		{"no key", "/values/", put("-d", "v"), 404, 7003, "Could not route"},
		{"no key at all", "/values", put("-d", "v"), 404, 7003, "Could not route"},
		{"key .", "/values/.", put("-d", "v"), 400, 10012, "Illegal key name"},
		{"key ..", "/values/%2e%2e", put("-d", "v"), 400, 10012, "Illegal key name"},
		{"trailing slash", "/", put("-d", `{"title":"renamed"}`), 404, 7003, "Could not route"},
		{"wrong method", "/values/k", []string{"-X", "POST", "-d", "v"}, 405, 7001, "POST not supported for requested URI."},
		{"bulk, no array", "/bulk", put("-d", `{"key":"k"}`), 400, 10012, ""},
		{"bulk, no JSON", "/bulk", put("-d", "key=k"), 400, 10012, ""},
		{"bulk delete, no JSON", "/bulk", []string{"-X", "DELETE", "-d", "k"}, 400, 10012, ""},
		{"missing key", "/values/k", nil, 404, 10009, "get: 'key not found'"},
		{"missing metadata", "/metadata/k", nil, 404, 10009, "get: 'key not found'"},
		{"limit of 1001", "/keys?limit=1001", nil, 400, 10012, "1001"},
		{"bad cursor", "/keys?cursor=never", nil, 400, 10012, "cursor"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := ns.curl(t.Context(), nil, ns.path()+test.path, test.args...)
			check(t, err)
			check(t, wantFailure(a, test.status, test.code, test.text))
		})
	}
	// What is no URL at all is refused before it can have an envelope.
	a, err := ns.curl(t.Context(), nil, ns.path()+"/values/%zz", put("-d", "v")...)
	check(t, err)
	if a.status != http.StatusBadRequest {
		t.Errorf("a bad escape: status %d", a.status)
	}
	keys, err := ns.list(t.Context(), "", 1000)
	check(t, err)
	check(t, wantKeys(names(keys), nil))
	check(t, ns.titled(t.Context(), t.Name()))
}

// titled complains unless the namespace has this title.
func (n namespace) titled(ctx context.Context, title string) error {
	a, err := n.call(ctx, http.MethodGet, n.path(), nil)
	if err != nil {
		return err
	}
	var got struct {
		ID       string
		Title    string
		Encoding bool `json:"supports_url_encoding"`
	}
	if err := json.Unmarshal(a.Result, &got); err != nil {
		return err
	}
	if got.ID != n.id || got.Title != title || !got.Encoding {
		return fmt.Errorf("%s: want the namespace %s titled %q", a.Result, n.id, title)
	}
	return nil
}

// TestCurlCredentials: what curl is told when nobody, or nobody known, asks.
func TestCurlCredentials(t *testing.T) {
	t.Parallel()
	stranger, nobody := newNamespace(t), newNamespaceTitled(t, t.Name()+" nobody")
	stranger.token, nobody.token = strings.Repeat("x", len(stranger.token)), ""
	for _, test := range []struct {
		name   string
		ns     namespace
		path   string
		args   []string
		status int
		code   int
		text   string
	}{
		{"unknown token", stranger, stranger.path(), nil, 403, 10000, "Authentication error"},
		{"unknown token verified", stranger, "/user/tokens/verify", nil, 401, 1000, "Invalid API Token"},
		{"none", nobody, nobody.path(), nil, 400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers"},
		{"malformed", nobody, nobody.path(), []string{"-H", "Authorization: Basic eDp5"}, 400, 6003, "Invalid request headers"},
		{"unknown key", nobody, nobody.path(), []string{"-H", "X-Auth-Email: " + ownerEmail, "-H", "X-Auth-Key: no"}, 403, 9103, "Unknown X-Auth-Key or X-Auth-Email"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := test.ns.curl(t.Context(), nil, test.path, test.args...)
			check(t, err)
			check(t, wantFailure(a, test.status, test.code, test.text))
		})
	}
	key := []string{"-H", "X-Auth-Email: " + ownerEmail, "-H", "X-Auth-Key: " + shared.server.key}
	a, err := nobody.curl(t.Context(), nil, nobody.path(), key...)
	check(t, err)
	check(t, wantSuccess(a))
}

// TestCurlHead: the headers of a value without its bytes.
func TestCurlHead(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	_, err := ns.do(t.Context(), http.MethodPut, ns.value("k")+"?expiration=4102444800", everyByte())
	check(t, err)
	a, err := ns.curl(t.Context(), nil, ns.value("k"), "-I", "-o", os.DevNull)
	check(t, err)
	if a.status != http.StatusOK || a.header.Get("Content-Length") != "512" || a.header.Get("Expiration") != "4102444800" {
		t.Errorf("HEAD of a value: %d, %v", a.status, a.header)
	}
	a, err = ns.curl(t.Context(), nil, ns.value("missing"), "-I", "-o", os.DevNull)
	check(t, err)
	if a.status != http.StatusNotFound {
		t.Errorf("HEAD of a missing value: %d, %v", a.status, a.header)
	}
}

// TestCurlBulk: bulk writes, reads and both spellings of bulk delete, with the
// content type that curl sends unasked.
func TestCurlBulk(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	ask := func(path string, args ...string) answer {
		t.Helper()
		a, err := ns.curl(t.Context(), nil, ns.path()+path, args...)
		check(t, err)
		check(t, wantSuccess(a))
		return a
	}
	a := ask("/bulk", "-X", "PUT", "-d", `[{"key":"a%2Fb","value":"as it is","metadata":[1,"ü"]},{"key":"bin","value":"AP+A","base64":true,"expiration":4102444800.0},{"key":"n","value":"1"}]`)
	check(t, wantBytes(a.Result, []byte(`{"successful_key_count":3,"unsuccessful_keys":[]}`)))
	check(t, ns.stored(t.Context(), "a%2Fb", []byte("as it is"), `[1,"ü"]`))
	check(t, ns.stored(t.Context(), "bin", []byte{0, 255, 128}, "null"))
	a = ask("/bulk/get", "-d", `{"keys":["a%2Fb","none","n"],"withMetadata":true}`)
	check(t, wantBytes(a.Result, []byte(`{"values":{"a%2Fb":{"value":"as it is","metadata":[1,"ü"]},"none":null,"n":{"value":"1","metadata":null}}}`)))
	a = ask("/bulk/get", "-d", `{"keys":["n"],"type":"json"}`)
	check(t, wantBytes(a.Result, []byte(`{"values":{"n":1}}`)))
	binary, err := ns.curl(t.Context(), nil, ns.path()+"/bulk/get", "-d", `{"keys":["bin"]}`)
	check(t, err)
	check(t, wantFailure(binary, 400, 10029, "bulk get keys: 'At least one of the requested keys corresponds to a non-text value'"))
	a = ask("/bulk", "-X", "DELETE", "-d", `["a%2Fb","none"]`)
	check(t, wantBytes(a.Result, []byte(`{"successful_key_count":2,"unsuccessful_keys":[]}`)))
	ask("/bulk/delete", "-d", `["bin"]`)
	ask("/bulk", "-X", "PUT", "-d", `[]`)
	keys, err := ns.list(t.Context(), "", 10)
	check(t, err)
	check(t, wantKeys(names(keys), []string{"n"}))
}

// TestCurlSpellings: many spellings of one key in a path are one key, in the
// older routes as well, and with a base URL that ends in a slash.
func TestCurlSpellings(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	const key = "a b/ü+~(1)"
	check(t, ns.bulkPut(t.Context(), []pair{{Key: key, Value: "here"}}))
	var every strings.Builder
	for _, b := range []byte(key) {
		fmt.Fprintf(&every, "%%%02x", b)
	}
	old := "/accounts/" + ns.account + "/workers/namespaces/" + ns.id
	for _, path := range []string{
		ns.path() + "/values/a%20b%2F%C3%BC+~(1)",
		ns.path() + "/values/a%20b%2f%c3%bc%2B%7E%281%29",
		ns.path() + "/values/a%20b/%C3%BC%2b~(1)",
		ns.path() + "/values/a%20b/ü+~(1)",
		ns.path() + "/values/" + every.String(),
		ns.path() + "/values/a%20b%2F%C3%BC+~(1)?unknown=parameter",
		"/" + ns.path() + "/values/a%20b/%C3%BC+~(1)",
		old + "/values/a%20b/%C3%BC+~(1)",
	} {
		a, err := ns.curl(t.Context(), nil, path)
		check(t, err)
		if a.status != http.StatusOK || string(a.body) != "here" {
			t.Errorf("%s: status %d, %.200q", path, a.status, a.body)
		}
	}
	for _, path := range []string{"/values/a+b/%C3%BC+~(1)", "/values/a%2520b%2F%C3%BC+~(1)", "/values/a%20b//%C3%BC+~(1)", "/values/A%20b/%C3%BC+~(1)"} {
		a, err := ns.curl(t.Context(), nil, ns.path()+path)
		check(t, err)
		if err := wantFailure(a, 404, 10009, "key not found"); err != nil {
			t.Errorf("%s is another key: %v", path, err)
		}
	}
}
