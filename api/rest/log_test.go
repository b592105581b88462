package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// broken is a store that fails as it is told to, and names the key in the error.
type broken struct {
	kv.Store
	err   error
	panic bool
}

func (b *broken) fault(key string) error {
	if b.panic {
		panic("a bug that met " + key)
	}
	if b.err != nil {
		return fmt.Errorf("store %q: %w", key, b.err)
	}
	return nil
}

func (b *broken) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if err := b.fault(ref.Key); err != nil {
		return kv.Record{}, err
	}
	return b.Store.Get(ctx, ref, maxAge)
}

func (b *broken) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if err := b.fault(ref.Key); err != nil {
		return err
	}
	return b.Store.Put(ctx, ref, rec)
}

func (b *broken) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if err := b.fault(opts.Prefix); err != nil {
		return kv.Page{}, err
	}
	return b.Store.List(ctx, ns, opts)
}

func newBrokenWorld(t *testing.T) (*world, *broken) {
	b := &broken{}
	return newWorld(t, func(cfg *Config) { b.Store, cfg.Store = cfg.Store, b }), b
}

// TestStoreErrors: what the store cannot do is told without its details.
func TestStoreErrors(t *testing.T) {
	w, b := newBrokenWorld(t)
	for _, tt := range []struct {
		err     error
		status  int
		code    int
		message string
		retry   string
	}{
		{kv.ErrOverloaded, 503, 7010, "The server holds as much as it may at this moment. Please try again shortly.", "1"},
		{kv.ErrUnavailable, 503, 7010, "The service is not available at this moment. Please try again.", "1"},
		{kv.ErrFuture, 503, 7010, "The service is not available at this moment. Please try again.", "1"},
		{kv.ErrUnknown, 503, 7010, "It is not known whether the write was done. Please repeat it.", "1"},
		{context.DeadlineExceeded, 503, 7010, "The operation was not finished. Please repeat it.", "1"},
		{kv.ErrFull, 507, 7010, "The server is out of disk space: nothing was stored.", ""},
		{fmt.Errorf("checksum of block 7"), 500, 10001, "internal error (request req-id-of-test)", ""},
	} {
		b.err = tt.err
		for _, r := range []request{{method: "PUT", path: "values/a", body: "v"}, {method: "GET", path: "values/a"}, {method: "GET", path: "keys"},
			{method: "DELETE", path: "values/a"}, {method: "POST", path: "bulk/delete", body: `["a"]`}} {
			r.header = map[string]string{"X-Request-Id": "req-id-of-test"}
			a := w.do(r)
			a.fails(tt.status, tt.code, tt.message)
			if got := a.header.Get("Retry-After"); got != tt.retry {
				t.Errorf("%v: Retry-After %q, want %q", tt.err, got, tt.retry)
			}
			if got := a.header.Get("X-Should-Retry"); (got == "false") != (tt.status == 507) {
				t.Errorf("%v: X-Should-Retry %q", tt.err, got)
			}
		}
	}
	if !strings.Contains(w.log.String(), "checksum of block 7") {
		t.Error("the log does not say what happened")
	}
}

func TestPanic(t *testing.T) {
	w, b := newBrokenWorld(t)
	b.panic = true
	a := w.do(request{method: "GET", path: "values/my-own-key", header: map[string]string{"X-Request-Id": "req-id-of-test"}})
	a.fails(500, 10001, "internal error (request req-id-of-test)")
	log := w.log.String()
	if !strings.Contains(log, "a bug that met [key]") || !strings.Contains(log, "log_test.go") || !strings.Contains(log, `"request_id":"req-id-of-test"`) {
		t.Errorf("log: %s", log)
	}
	b.panic = false
	w.put("values/a", "v").ok()
	if text := recordOf(w, w.request(request{method: "GET", path: "/metrics"})).Body.String(); !strings.Contains(text, "nearkey_panics_total 1") {
		t.Error("the panic was not counted")
	}
}

func TestClientGone(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := recordOf(w, w.request(request{method: "GET", path: "values/a"}).WithContext(ctx))
	if rec.Code != 503 {
		t.Errorf("answer %d %s", rec.Code, rec.Body)
	}
	text := recordOf(w, w.request(request{method: "GET", path: "/metrics"})).Body.String()
	if !strings.Contains(text, `op="get",result="canceled",tier="rest"} 1`) {
		t.Error("it was not counted as canceled")
	}
}

// TestLogLeaks: nothing that is a client's own is in the log, whatever happens.
func TestLogLeaks(t *testing.T) {
	const key, value, metadata = "SECRET-KEY \"é\"", "SECRET-VALUE", "SECRET-METADATA"
	w, b := newBrokenWorld(t)
	tokens := []string{rootToken, "SECRET-TOKEN-of-nobody", w.token(catalog.Scope{Permission: catalog.Read})}
	path := "values/SECRET-KEY%20%22%C3%A9%22"
	form, contentType := formBody(field{"value", value}, field{"metadata", `{"m":"` + metadata + `"}`})
	item := `{"key":` + strconv.Quote(key) + `,"value":"` + value + `","metadata":"` + metadata + `"}`
	keys := `[` + strconv.Quote(key) + `,"SECRET-KEY-2"]`
	for _, fault := range []struct {
		err   error
		panic bool
	}{{}, {err: kv.ErrUnavailable}, {err: fmt.Errorf("disk")}, {err: kv.ErrFull}, {panic: true}} {
		b.err, b.panic = fault.err, fault.panic
		for _, token := range tokens {
			for _, r := range []request{
				{method: "PUT", path: path, body: value}, {method: "PUT", path: path + "?expiration_ttl=" + value, body: value},
				{method: "PUT", path: path, body: form, header: map[string]string{"Content-Type": contentType}},
				{method: "PUT", path: path, body: form[:len(form)/2], header: map[string]string{"Content-Type": contentType}},
				{method: "GET", path: path}, {method: "GET", path: "keys?prefix=SECRET-KEY"}, {method: "GET", path: "metadata/" + path[7:]},
				{method: "PUT", path: "bulk", body: `[` + item + `]`}, {method: "PUT", path: "bulk", body: `[` + item}, {method: "PUT", path: "bulk", body: `[` + item + `,{"key":"SECRET-KEY-2","value":1}]`},
				{method: "POST", path: "bulk/get", body: `{"keys":` + keys + `}`}, {method: "DELETE", path: "bulk", body: keys},
				{method: "DELETE", path: path}, {method: "SECRET-METHOD", path: path}, {method: "GET", path: "/SECRET-PATH"},
				{method: "POST", path: in("/tokens"), body: `{"name":"SECRET-NAME","policies":[` + accountPolicy + `]}`},
			} {
				r.token = token
				rec := recordOf(w, w.request(r))
				var made struct{ Result struct{ Value string } }
				if json.Unmarshal(rec.Body.Bytes(), &made) == nil && made.Result.Value != "" {
					tokens = append(tokens[:3:3], made.Result.Value)
				}
			}
		}
	}
	w.do(request{method: "GET", path: "keys", token: "none", header: map[string]string{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey}})
	w.do(request{method: "GET", path: "keys", token: "none", header: map[string]string{"X-Auth-Email": rootEmail, "X-Auth-Key": "SECRET-KEY"}})
	log := w.log.String()
	for _, secret := range append(tokens, "SECRET", rootKey, rootEmail, strconv.Quote(strconv.Quote(key))) {
		if i := strings.Index(log, secret); i >= 0 {
			t.Errorf("the log has %q: …%s…", secret, log[max(0, i-300):min(len(log), i+200)])
		}
	}
	if strings.Count(log, `"msg":"request"`) < 200 || !strings.Contains(log, "[key]") {
		t.Error("the log has not seen the requests")
	}
}

func TestRedact(t *testing.T) {
	c := &call{keys: []string{"my key", ""}}
	for text, want := range map[string]string{
		"": "", "plain": "plain", "get my key: x": "get [key]: x", `get "my key": x`: "get [key]: x",
		`get "other \"key\"": open /a/b: x`: "get [quoted]: open /a/b: x", `"a" and "b"`: "[quoted] and [quoted]", `cut "of`: "cut […", `""`: "[quoted]",
	} {
		if got := c.redact(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
