package compat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A fault is something that a server may get wrong.
type fault struct {
	name   string
	sign   string                     // in the error of the check that notices it
	ask    func(*http.Request)        // changes a request on its way to the server
	answer func(*http.Response) error // changes an answer on its way to the client
}

func onPath(res *http.Response, method, part string) bool {
	return res.Request.Method == method && strings.Contains(res.Request.URL.Path, part) && res.StatusCode == http.StatusOK
}

// rewrite replaces a body.
func rewrite(res *http.Response, change func([]byte) ([]byte, error)) error {
	body, err := io.ReadAll(res.Body)
	if err == nil {
		err = res.Body.Close()
	}
	if err == nil {
		body, err = change(body)
	}
	if err != nil {
		return err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	res.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// changeListing changes the answers to requests for keys.
func changeListing(change func(result []any, info js) []any) func(*http.Response) error {
	return func(res *http.Response) error {
		if !onPath(res, http.MethodGet, "/keys") {
			return nil
		}
		return rewrite(res, func(body []byte) ([]byte, error) {
			var answer js
			if err := json.Unmarshal(body, &answer); err != nil {
				return nil, err
			}
			answer["result"] = change(answer["result"].([]any), answer["result_info"].(js))
			return json.Marshal(answer)
		})
	}
}

// Faults that the round trip of every client must notice.
var roundTripFaults = []fault{
	{name: "a byte of the value changed", sign: "they differ at 4", answer: func(res *http.Response) error {
		if !onPath(res, http.MethodGet, "/values/") {
			return nil
		}
		return rewrite(res, func(body []byte) ([]byte, error) {
			body[len(body)-1] ^= 1
			return body, nil
		})
	}},
	{name: "keys decoded twice", sign: `list "a/b ": got 1 keys, want 1`, ask: func(req *http.Request) {
		req.URL.Path, req.URL.RawPath = strings.ReplaceAll(req.URL.Path, "%2F", "/"), ""
	}},
	{name: "deletes lost", sign: "after delete: found true", ask: func(req *http.Request) {
		if req.Method == http.MethodDelete {
			req.URL.Path, req.URL.RawPath = req.URL.Path+" of another key", ""
		}
	}},
}

// Faults that the listing of every client must notice.
var listingFaults = []fault{
	{name: "a key left out", sign: "differ at 0", answer: changeListing(func(result []any, info js) []any {
		info["count"] = len(result) - 1
		return result[1:]
	})},
	{name: "only one page", sign: "got 1000 keys, want 1500", answer: changeListing(func(result []any, info js) []any {
		info["cursor"], info["cursors"] = "", js{"after": ""}
		return result
	})},
	{name: "the prefix ignored", sign: "got 1501 keys, want 1500", ask: func(req *http.Request) { req.URL.RawQuery = strings.Replace(req.URL.RawQuery, "prefix=", "p=", 1) }},
}

// faulty is the server behind something that makes a fault.
func faulty(t *testing.T, behind endpoint, f fault) endpoint {
	t.Helper()
	base, err := url.Parse(behind.base)
	check(t, err)
	front := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = base.Scheme, base.Host
			if f.ask != nil {
				f.ask(r.Out)
			}
		},
		ModifyResponse: f.answer,
	})
	t.Cleanup(front.Close)
	behind.base = front.URL + base.Path
	return behind
}

// noticed complains unless a check has found the fault, and complained of nothing
// where there is none.
func noticed(f fault, err error) error {
	if f.sign == "" {
		return err
	}
	if err == nil || !strings.Contains(err.Error(), f.sign) {
		return fmt.Errorf("the fault is not noticed: %w", err)
	}
	return nil
}

// withNone is the faults and the lack of one.
func withNone(faults []fault) []fault { return append([]fault{{name: "no fault"}}, faults...) }

// TestControlRoundTrips: the round trips of TestRoundTrips fail at every fault,
// whichever client goes.
func TestControlRoundTrips(t *testing.T) {
	t.Parallel()
	for i, f := range withNone(roundTripFaults) {
		t.Run(f.name, func(t *testing.T) {
			for _, c := range clients() {
				if c.slow && i != 1 {
					continue
				}
				honest := newNamespaceTitled(t, t.Name()+" "+c.name)
				d := c.open(t, namespace{faulty(t, honest.endpoint, f), honest.id})
				if err := noticed(f, roundTrip(t.Context(), d, "a/b ", oddKey, []byte("value"))); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		})
	}
}

// TestControlListings: the listings of TestKeyPagers fail at every fault.
func TestControlListings(t *testing.T) {
	t.Parallel()
	honest := newNamespace(t)
	const count = 1500 // more than a page
	pairs := []pair{{Key: "another"}}
	want := make([]string, count)
	for i := range want {
		want[i] = "p/" + strconv.Itoa(count+i)
		pairs = append(pairs, pair{Key: want[i]})
	}
	check(t, honest.bulkPut(t.Context(), pairs))
	for _, f := range withNone(listingFaults) {
		t.Run(f.name, func(t *testing.T) {
			ns := namespace{faulty(t, honest.endpoint, f), honest.id}
			for _, d := range drivers(t, ns) {
				got, err := d.keys(t.Context(), "p/")
				if err := noticed(f, errors.Join(err, wantKeys(got, want))); err != nil {
					t.Errorf("%s: %v", d.name, err)
				}
			}
		})
	}
}

// TestControlExpiry: a server that forgets expirations, and one that expires too
// soon, are both found out.
func TestControlExpiry(t *testing.T) {
	t.Parallel()
	honest, err := shared.open.createNamespace(t.Context(), t.Name())
	check(t, err)
	check(t, honest.bulkPut(t.Context(), []pair{{Key: "kept", Value: "v"}}))
	now := time.Now().Unix()
	if _, err := expires(t.Context(), honest, "kept", now); err == nil {
		t.Error("a key that is served after its second is not noticed")
	}
	if _, err := expires(t.Context(), honest, "gone", now+60); err == nil {
		t.Error("a key that is gone before its second is not noticed")
	}
}

// TestControlAnswers: what compares answers complains about wrong ones.
func TestControlAnswers(t *testing.T) {
	good := answer{status: 200, envelope: envelope{Success: true}}
	bad := answer{status: 400}
	check(t, json.Unmarshal([]byte(`{"success":false,"errors":[{"code":10014,"message":"op: 'reason'"}]}`), &bad.envelope))
	misfit := bad
	misfit.status = 200
	check(t, errors.Join(wantSuccess(good), wantFailure(bad, 400, 10014, "reason"), wantBytes([]byte("a"), []byte("a")), wantKeys([]string{"a"}, []string{"a"})))
	for name, err := range map[string]error{
		"failure as success":       wantSuccess(bad),
		"errors with status 200":   wantSuccess(misfit),
		"success as failure":       wantFailure(good, 200, 10014, ""),
		"another status":           wantFailure(bad, 409, 10014, "reason"),
		"another code":             wantFailure(bad, 400, 10013, "reason"),
		"another text":             wantFailure(bad, 400, 10014, "another reason"),
		"a failure without errors": wantFailure(answer{status: 400}, 400, 0, ""),
		"another byte":             wantBytes([]byte("ab"), []byte("ax")),
		"a byte less":              wantBytes([]byte("a"), []byte("ab")),
		"a byte more":              wantBytes([]byte("ab"), []byte("a")),
		"another order":            wantKeys([]string{"b", "a"}, []string{"a", "b"}),
		"a key twice":              wantKeys([]string{"a", "a"}, []string{"a"}),
		"a key less":               wantKeys([]string{"a"}, []string{"a", "b"}),
		"another v6 error":         wantV6Error(errors.New("no error of the SDK"), 404, 10009),
		"another thrown error":     wantThrown(&typescriptError{Class: "NotFoundError", Status: 404}, "NotFoundError", 10009),
	} {
		if err == nil {
			t.Errorf("%s is not noticed", name)
		}
	}
}
