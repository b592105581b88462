package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/nearkey/nearkey/client"
)

const (
	fakeAccount   = "00112233445566778899aabbccddeeff"
	fakeNamespace = "ffeeddccbbaa99887766554433221100"
)

// fake is a server of the API with one namespace in memory and faults on demand.
type fake struct {
	*httptest.Server
	fault func(r *http.Request, body []byte) (status int, answer string) // status 0: none

	mu       sync.Mutex // guards the rest
	records  map[string]client.Record
	requests []string // method and last element of the path
	writes   []string // keys in the order in which they were written
}

func newFake(t *testing.T) *fake {
	f := &fake{records: map[string]client.Record{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// run runs a command against the fake.
func (f *fake) run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, stdin, []string{
		"NEARKEY_API_BASE_URL=" + f.URL, "NEARKEY_API_TOKEN=secret", "NEARKEY_ACCOUNT_ID=" + fakeAccount,
	}, args...)
}

func run(t *testing.T, stdin string, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	m := Main{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &err, Environ: environ}
	code = m.Run(t.Context(), args)
	return code, out.String(), err.String()
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, path, _ := strings.Cut(r.URL.EscapedPath(), fakeNamespace+"/")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.Method+" "+path)
	w.Header().Set("Content-Type", "application/json")
	if f.fault != nil {
		if status, answer := f.fault(r, body); status != 0 {
			w.WriteHeader(status)
			fmt.Fprint(w, answer)
			return
		}
	}
	kind, key, _ := strings.Cut(r.URL.Path[strings.Index(r.URL.Path, fakeNamespace)+len(fakeNamespace)+1:], "/")
	switch {
	case kind == "keys":
		f.list(w, r)
	case kind == "bulk" && key == "get":
		f.getMany(w, body)
	case kind == "bulk":
		f.putMany(w, body)
	case r.Method == http.MethodPut:
		f.records[key] = client.Record{Key: key, Value: body}
		f.writes = append(f.writes, key)
		fmt.Fprint(w, `{"success":true}`)
	default:
		f.get(w, kind, key)
	}
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	const page = 250
	keys := slices.Sorted(maps.Keys(f.records))
	from, _ := slices.BinarySearch(keys, r.FormValue("cursor"))
	to, cursor := min(from+page, len(keys)), ""
	if to < len(keys) {
		cursor = keys[to]
	}
	list := []client.Key{}
	for _, key := range keys[from:to] {
		list = append(list, client.Key{Name: key, Metadata: f.records[key].Metadata, Expiration: f.records[key].Expiration})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": list, "result_info": map[string]string{"cursor": cursor}})
}

func (f *fake) getMany(w http.ResponseWriter, body []byte) {
	var ask struct{ Keys []string }
	_ = json.Unmarshal(body, &ask)
	values := map[string]any{}
	for _, key := range ask.Keys {
		rec, ok := f.records[key]
		switch {
		case !ok:
			values[key] = nil
		case !utf8.Valid(rec.Value):
			w.WriteHeader(400)
			fmt.Fprint(w, `{"success":false,"errors":[{"code":10029,"message":"bulk get keys: 'At least one of the requested keys corresponds to a non-text value'"}]}`)
			return
		default:
			values[key] = map[string]any{"value": string(rec.Value), "metadata": rec.Metadata, "expiration": rec.Expiration}
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": map[string]any{"values": values}})
}

func (f *fake) putMany(w http.ResponseWriter, body []byte) {
	var pairs []struct {
		Key, Value string
		Base64     bool
		Expiration int64
		Metadata   json.RawMessage
	}
	_ = json.Unmarshal(body, &pairs)
	for _, p := range pairs {
		value := []byte(p.Value)
		if p.Base64 {
			value, _ = base64.StdEncoding.DecodeString(p.Value)
		}
		f.records[p.Key] = client.Record{Key: p.Key, Value: value, Metadata: p.Metadata, Expiration: p.Expiration}
		f.writes = append(f.writes, p.Key)
	}
	fmt.Fprintf(w, `{"success":true,"result":{"successful_key_count":%d}}`, len(pairs))
}

func (f *fake) get(w http.ResponseWriter, kind, key string) {
	rec, ok := f.records[key]
	switch {
	case !ok:
		w.WriteHeader(404)
		fmt.Fprint(w, `{"success":false,"errors":[{"code":10009,"message":"get: 'key not found'"}]}`)
	case kind == "metadata":
		_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": rec.Metadata})
	default:
		if rec.Expiration != 0 {
			w.Header().Set("expiration", fmt.Sprint(rec.Expiration))
		}
		_, _ = w.Write(rec.Value)
	}
}
