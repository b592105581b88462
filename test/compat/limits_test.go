package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The limits of the service that clients run into.
const (
	maxKeyBytes      = 512
	maxValueBytes    = 25 << 20
	maxMetadataBytes = 1024
	maxBulkPairs     = 10_000
	maxBulkBytes     = 100_000_000
)

// TestKeyLength: keys of 512 bytes are keys, in every client; of 513 they are not.
func TestKeyLength(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	for _, key := range []string{strings.Repeat("k", maxKeyBytes), strings.Repeat("é", maxKeyBytes/2), strings.Repeat("/", maxKeyBytes)} {
		open := quickDrivers
		if key[0] == 'k' {
			open = drivers
		}
		for _, d := range open(t, ns) {
			if err := roundTrip(t.Context(), d, "", key, []byte("value")); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
		}
		const text = "UTF-8 encoded length of 513 exceeds key length limit of 512."
		for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodDelete} {
			a, err := ns.do(t.Context(), method, ns.value(key+"k"), nil)
			check(t, err)
			check(t, wantFailure(a, http.StatusRequestURITooLong, 10022, text))
		}
		for _, bulk := range []any{[]pair{{Key: "short"}, {Key: key + "k"}}, []string{"short", key + "k"}} {
			method := http.MethodPut
			if _, isKeys := bulk.([]string); isKeys {
				method = http.MethodDelete
			}
			body, err := json.Marshal(bulk)
			check(t, err)
			a, err := ns.do(t.Context(), method, ns.path()+"/bulk", body)
			check(t, err)
			check(t, wantFailure(a, http.StatusBadRequest, 10022, text))
		}
	}
	keys, err := ns.list(t.Context(), "", 1000)
	check(t, err)
	check(t, wantKeys(names(keys), nil))
}

// TestKeyBytes: every byte that can be in UTF-8 makes a key of its own, in paths,
// listings and bulks. A byte that cannot is refused in words.
func TestKeyBytes(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	escaped := func(b byte) string { return fmt.Sprintf("%s/values/k%%%02X", ns.path(), b) }
	var want []string
	for b := range 0x100 {
		raw := "k" + string([]byte{byte(b)})
		a, err := ns.do(ctx, http.MethodPut, escaped(byte(b)), []byte(raw))
		check(t, err)
		if !utf8.ValidString(raw) {
			check(t, wantFailure(a, http.StatusBadRequest, 10012, "Could not URL-decode key name"))
			for _, method := range []string{http.MethodGet, http.MethodDelete} {
				a, err := ns.do(ctx, method, escaped(byte(b)), nil)
				check(t, err)
				check(t, wantFailure(a, http.StatusBadRequest, 10012, "Could not URL-decode key name"))
			}
			raw = "k" + string(rune(b)) // the character of that number
			check(t, ns.bulkPut(ctx, []pair{{Key: raw, Value: raw}}))
		} else {
			check(t, wantSuccess(a))
		}
		want = append(want, raw)
	}
	slices.Sort(want)
	keys, err := ns.list(ctx, "", 100)
	check(t, err)
	check(t, wantKeys(names(keys), want))
	for _, key := range want {
		got, found, err := rawDriver(ns).get(ctx, key)
		check(t, err)
		if !found || string(got) != key {
			t.Errorf("%q: found %t, %q", key, found, got)
		}
		prefixed, err := ns.list(ctx, key, 10)
		check(t, err)
		check(t, wantKeys(names(prefixed), []string{key}))
	}
	for chunk := range slices.Chunk(want, 100) {
		values, err := ns.bulkGet(ctx, chunk)
		check(t, err)
		for _, key := range chunk {
			if got := values[key]; got == nil || got.Value != key {
				t.Errorf("bulk get of %q: %+v", key, got)
			}
		}
	}
	for i, key := range want {
		if i%2 == 0 {
			check(t, rawDriver(ns).remove(ctx, key))
		}
	}
	_, err = ns.call(ctx, http.MethodDelete, ns.path()+"/bulk", want)
	check(t, err)
	keys, err = ns.list(ctx, "", 100)
	check(t, err)
	check(t, wantKeys(names(keys), nil))
}

// bulkValue is a pair in the answer to a bulk get.
type bulkValue struct {
	Value      string
	Metadata   json.RawMessage
	Expiration int64
}

// bulkGet reads keys with their metadata; of a missing key the pair is nil.
func (n namespace) bulkGet(ctx context.Context, keys []string) (map[string]*bulkValue, error) {
	a, err := n.call(ctx, http.MethodPost, n.path()+"/bulk/get", js{"keys": keys, "withMetadata": true})
	if err != nil {
		return nil, err
	}
	var got struct{ Values map[string]*bulkValue }
	if err := json.Unmarshal(a.Result, &got); err != nil {
		return nil, err
	}
	for _, key := range keys {
		if _, ok := got.Values[key]; !ok {
			return nil, fmt.Errorf("%q is not in the answer", key)
		}
	}
	return got.Values, nil
}

// TestValueLength: 25 MiB are stored and read back in every form; one byte more
// is refused, and the client can read why. The tests of large bodies are not
// parallel: a server turns away what does not fit beside other requests, and asks
// for it again later.
func TestValueLength(t *testing.T) {
	ctx, ns := t.Context(), newNamespace(t)
	dir := t.TempDir()
	value := bytes.Repeat(everyByte(), maxValueBytes/512)
	exact, over := filepath.Join(dir, "exact"), filepath.Join(dir, "over")
	check(t, errors.Join(os.WriteFile(exact, value, 0o600), os.WriteFile(over, append(value, 'x'), 0o600)))
	for _, send := range []struct {
		name string
		args func(file string) []string
	}{
		{"-T", func(f string) []string { return []string{"-T", f} }},
		{"-T without Expect", func(f string) []string { return []string{"-T", f, "-H", "Expect:"} }},
		{"-T chunked", func(f string) []string { return []string{"-T", f, "-H", "Transfer-Encoding: chunked"} }},
		{"-T chunked without Expect", func(f string) []string {
			return []string{"-T", f, "-H", "Transfer-Encoding: chunked", "-H", "Expect:"}
		}},
		{"--data-binary", func(f string) []string { return []string{"-X", "PUT", "--data-binary", "@" + f} }},
		{"-F file", func(f string) []string { return []string{"-X", "PUT", "-F", "value=@" + f, "-F", "metadata={}"} }},
		{"-F field", func(f string) []string { return []string{"-X", "PUT", "-F", "metadata={}", "-F", "value=<" + f} }},
	} {
		t.Run(send.name, func(t *testing.T) {
			a, err := ns.curl(ctx, nil, ns.value("exact"), send.args(exact)...)
			check(t, err)
			check(t, wantSuccess(a))
			got, found, err := curlDriver(ns).get(ctx, "exact")
			check(t, err)
			if !found {
				t.Fatal("the value is not there")
			}
			check(t, wantBytes(got, value))
			check(t, rawDriver(ns).remove(ctx, "exact"))
			a, err = ns.curl(ctx, nil, ns.value("over"), send.args(over)...)
			check(t, err)
			check(t, wantFailure(a, http.StatusRequestEntityTooLarge, 10024, "exceeds limit of 26214400."))
			_, found, err = rawDriver(ns).get(ctx, "over")
			check(t, err)
			if found {
				t.Error("a value that was refused is there")
			}
		})
	}
}

// TestValueLengthOfClients: the SDKs carry 25 MiB, and make errors of one byte
// more.
func TestValueLengthOfClients(t *testing.T) {
	ctx, ns := t.Context(), newNamespace(t)
	value := bytes.Repeat(everyByte(), maxValueBytes/512)
	for _, d := range quickDrivers(t, ns) {
		if d.name == "raw" || d.name == "curl" {
			continue // of them is TestValueLength
		}
		check(t, d.put(ctx, d.name, value))
		got, found, err := d.get(ctx, d.name)
		check(t, err)
		if !found {
			t.Fatalf("%s: the value is not there", d.name)
		}
		check(t, wantBytes(got, value))
		if err := d.put(ctx, "over", append(value, 'x')); err == nil || !strings.Contains(err.Error(), "exceeds limit of 26214400.") {
			t.Errorf("%s: one byte more: %v", d.name, err)
		}
		check(t, d.remove(ctx, d.name))
	}
	// base64 in JSON is a third longer than the value.
	text := js{"key": "bulk", "value": value, "base64": true} // Go makes base64 of bytes
	_, err := ns.call(ctx, http.MethodPut, ns.path()+"/bulk", []js{text})
	check(t, err)
	check(t, ns.stored(ctx, "bulk", value, "null"))
	body, err := json.Marshal([]js{{"key": "over", "value": append(value, 'x'), "base64": true}})
	check(t, err)
	a, err := ns.do(ctx, http.MethodPut, ns.path()+"/bulk", body)
	check(t, err)
	check(t, wantFailure(a, http.StatusRequestEntityTooLarge, 10024, "exceeds limit of 26214400."))
}

// TestBulkBytes: a bulk write of 100 MB, and one byte more.
func TestBulkBytes(t *testing.T) {
	ctx, ns := t.Context(), newNamespace(t)
	const values = 10
	var body []byte
	for i := range values {
		room := maxBulkBytes/values - len(`,{"key":"k0","value":"","base64":true}`)
		value := bytes.Repeat([]byte("AP+A"), room/4)
		body = fmt.Appendf(body, `,{"key":"k%d","value":"%s","base64":true}`, i, value)
	}
	body[0] = '['
	body = append(body, bytes.Repeat([]byte(" "), maxBulkBytes-1-len(body))...)
	body = append(body, ']')
	a, err := ns.do(ctx, http.MethodPut, ns.path()+"/bulk", body)
	check(t, err)
	check(t, wantSuccess(a))
	got, found, err := rawDriver(ns).get(ctx, "k9")
	check(t, err)
	if !found || !bytes.Equal(got, bytes.Repeat([]byte{0, 255, 128}, len(got)/3)) || len(got) < 7_000_000 {
		t.Errorf("found %t, %d bytes that begin with %.20q", found, len(got), got)
	}
	a, err = ns.do(ctx, http.MethodPut, ns.path()+"/bulk", append(body, ' '))
	check(t, err)
	check(t, wantFailure(a, http.StatusRequestEntityTooLarge, 10024, "exceeds limit of 100000000."))
	_, err = ns.call(ctx, http.MethodDelete, ns.path(), nil)
	check(t, err)
}

// TestMetadataLength: 1024 bytes of JSON, and one more.
func TestMetadataLength(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	exact := `"` + strings.Repeat("m", maxMetadataBytes-2) + `"`
	over := `"` + strings.Repeat("m", maxMetadataBytes-1) + `"`
	put := func(metadata string) answer {
		t.Helper()
		a, err := ns.curl(ctx, nil, ns.value("k"), "-X", "PUT", "-F", "value=v", "--form-string", "metadata="+metadata)
		check(t, err)
		return a
	}
	check(t, wantSuccess(put(exact)))
	check(t, ns.stored(ctx, "k", []byte("v"), exact))
	const text = "Metadata length of 1025 exceeds limit of 1024."
	check(t, wantFailure(put(over), http.StatusRequestEntityTooLarge, 10030, text))
	check(t, ns.bulkPut(ctx, []pair{{Key: "bulk", Value: "v", Metadata: json.RawMessage(exact)}}))
	check(t, ns.stored(ctx, "bulk", []byte("v"), exact))
	body, err := json.Marshal([]pair{{Key: "bulk", Value: "w", Metadata: json.RawMessage(over)}})
	check(t, err)
	a, err := ns.do(ctx, http.MethodPut, ns.path()+"/bulk", body)
	check(t, err)
	check(t, wantFailure(a, http.StatusRequestEntityTooLarge, 10030, text))
	check(t, ns.stored(ctx, "bulk", []byte("v"), exact))
}

// TestBulkLength: 10,000 pairs in one request; of 10,001 none is written, and
// none deleted.
func TestBulkLength(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	sdk, account := newGoV0(t, ns.endpoint), ns.account
	pairs := make([]pair, maxBulkPairs+1)
	want := make([]string, len(pairs))
	for i := range pairs {
		want[i] = fmt.Sprintf("key %05d", i)
		pairs[i] = pair{Key: want[i], Value: "v"}
	}
	refused := func(method, path string, what any) {
		t.Helper()
		body, err := json.Marshal(what)
		check(t, err)
		a, err := ns.do(ctx, method, ns.path()+path, body)
		check(t, err)
		check(t, wantFailure(a, http.StatusBadRequest, 10022, "a maximum of 10000"))
	}
	refused(http.MethodPut, "/bulk", pairs)
	check(t, lists(ctx, rawDriver(ns), nil))
	check(t, ns.bulkPut(ctx, pairs[:maxBulkPairs]))
	check(t, lists(ctx, rawDriver(ns), want[:maxBulkPairs]))
	refused(http.MethodDelete, "/bulk", want)
	refused(http.MethodPost, "/bulk/delete", want)
	check(t, lists(ctx, rawDriver(ns), want[:maxBulkPairs]))
	check(t, goV0BulkDelete(ctx, sdk, account, ns.id, want[:maxBulkPairs]))
	check(t, lists(ctx, rawDriver(ns), nil))
}
