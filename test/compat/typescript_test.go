package compat

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// typescript is a running typescript.mjs: the SDK for TypeScript at an endpoint.
type typescript struct {
	mu  sync.Mutex // guards the pipes: one call at a time
	in  *json.Encoder
	out *bufio.Reader
}

// newTypescript starts the SDK. It ends with the test.
func newTypescript(t *testing.T, e endpoint) *typescript {
	t.Helper()
	cmd := exec.Command("node", "typescript.mjs")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CLOUDFLARE_BASE_URL=" + e.base, "CLOUDFLARE_API_TOKEN=" + e.token}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Errorf("end of the TypeScript SDK: %v", err)
		}
	})
	return &typescript{in: json.NewEncoder(in), out: bufio.NewReader(out)}
}

// typescriptError is what the SDK threw.
type typescriptError struct {
	Class   string
	Status  int
	Errors  []struct{ Code int }
	Message string
}

func (e *typescriptError) Error() string { return fmt.Sprintf("%s: %s", e.Class, e.Message) }

// wantThrown complains unless err is of this class, with this code.
func wantThrown(err error, class string, code int) error {
	var thrown *typescriptError
	if !errors.As(err, &thrown) || thrown.Class != class || len(thrown.Errors) == 0 || thrown.Errors[0].Code != code {
		return fmt.Errorf("%v: want a %s with code %d", err, class, code)
	}
	return nil
}

type jsCall struct {
	Path []string `json:"path"`
	Args []any    `json:"args,omitempty"`
	All  bool     `json:"all,omitempty"`
}

// js is an object of JavaScript.
type js = map[string]any

// call calls a method of the SDK, such as "kv.namespaces.get".
func (s *typescript) call(method string, result any, args ...any) error {
	return s.do(jsCall{Path: strings.Split(method, "."), Args: args}, result)
}

// all calls a method that returns a pager, and gives what it pages through.
func (s *typescript) all(method string, result any, args ...any) error {
	return s.do(jsCall{Path: strings.Split(method, "."), Args: args, All: true}, result)
}

func (s *typescript) do(call jsCall, result any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.in.Encode(call); err != nil {
		return err
	}
	text, err := s.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	var answer struct {
		Result json.RawMessage
		Error  *typescriptError
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%w in %.300q", err, text)
	}
	if answer.Error != nil {
		return answer.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Result, result)
}

// jsBytes is a value read by the SDK.
type jsBytes struct {
	Bytes   []byte            `json:"$bytes"`
	Headers map[string]string `json:"headers"`
}

func (n namespace) jsParams(more js) js {
	params := js{"account_id": n.account, "namespace_id": n.id}
	for k, v := range more {
		params[k] = v
	}
	return params
}

// jsFile is a File with these bytes.
func jsFile(value []byte) js { return js{"$file": base64.StdEncoding.EncodeToString(value)} }

func typescriptDriver(sdk *typescript, ns namespace) driver {
	return driver{
		put: func(_ context.Context, key string, value []byte) error {
			return sdk.call("kv.namespaces.values.update", nil, key, ns.jsParams(js{"value": jsFile(value)}))
		},
		get: func(_ context.Context, key string) ([]byte, bool, error) {
			var value jsBytes
			err := sdk.call("kv.namespaces.values.get", &value, key, ns.jsParams(nil))
			var thrown *typescriptError
			if errors.As(err, &thrown) && thrown.Status == http.StatusNotFound {
				return nil, false, wantThrown(err, "NotFoundError", 10009)
			}
			return value.Bytes, err == nil, err
		},
		keys: func(_ context.Context, prefix string) ([]string, error) {
			params := js{"account_id": ns.account}
			if prefix != "" {
				params["prefix"] = prefix
			}
			var keys []listed
			err := sdk.all("kv.namespaces.keys.list", &keys, ns.id, params)
			return names(keys), err
		},
		remove: func(_ context.Context, key string) error {
			return sdk.call("kv.namespaces.values.delete", nil, key, ns.jsParams(nil))
		},
	}
}

// jsSpace is a namespace as the SDK gives it.
type jsSpace struct {
	ID                  string
	Title               string
	SupportsURLEncoding bool `json:"supports_url_encoding"`
}

// TestTypescriptNamespaces: create, get, update, delete, and the classes of the
// errors.
func TestTypescriptNamespaces(t *testing.T) {
	t.Parallel()
	sdk := newTypescript(t, shared.server.endpoint)
	account := js{"account_id": shared.server.account}
	titled := func(title string) js { return js{"account_id": shared.server.account, "title": title} }
	var made, renamed, got jsSpace
	check(t, sdk.call("kv.namespaces.create", &made, titled(t.Name())))
	if made.Title != t.Name() || len(made.ID) != 32 || !made.SupportsURLEncoding {
		t.Errorf("created %+v", made)
	}
	check(t, wantThrown(sdk.call("kv.namespaces.create", nil, titled(t.Name())), "BadRequestError", 10014))
	check(t, wantThrown(sdk.call("kv.namespaces.create", nil, titled("")), "BadRequestError", 10019))
	check(t, sdk.call("kv.namespaces.update", &renamed, made.ID, titled(t.Name()+" renamed")))
	check(t, sdk.call("kv.namespaces.get", &got, made.ID, account))
	if got.ID != made.ID || got.Title != t.Name()+" renamed" || got != renamed {
		t.Errorf("renamed %+v, then got %+v", renamed, got)
	}
	check(t, sdk.call("kv.namespaces.delete", nil, made.ID, account))
	check(t, wantThrown(sdk.call("kv.namespaces.get", nil, made.ID, account), "NotFoundError", 10013))
	check(t, wantThrown(sdk.call("kv.namespaces.delete", nil, made.ID, account), "NotFoundError", 10013))
	check(t, wantThrown(sdk.call("kv.namespaces.get", nil, "no-id", account), "BadRequestError", 10011))
	other := js{"account_id": strings.Repeat("0", 32)}
	check(t, wantThrown(sdk.all("kv.namespaces.list", nil, other), "PermissionDeniedError", 9109))
	stranger := newTypescript(t, endpoint{shared.server.base, shared.server.account, "not-a-token"})
	check(t, wantThrown(stranger.call("kv.namespaces.get", nil, made.ID, account), "PermissionDeniedError", 10000))
	check(t, wantThrown(stranger.call("user.tokens.verify", nil), "AuthenticationError", 1000))
	var verified struct{ Status string }
	check(t, sdk.call("user.tokens.verify", &verified))
	var user struct{ Email string }
	check(t, sdk.call("user.get", &user))
	if verified.Status != "active" || user.Email != ownerEmail {
		t.Errorf("token %+v of the user %+v", verified, user)
	}
	var accounts []struct{ ID string }
	check(t, sdk.all("accounts.list", &accounts, js{}))
	if len(accounts) != 1 || accounts[0].ID != shared.server.account {
		t.Errorf("accounts %+v", accounts)
	}
}

// TestTypescriptValues: strings, Files, streams and Responses as values; metadata as a
// string; expirations.
func TestTypescriptValues(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	sdk := newTypescript(t, ns.endpoint)
	update := func(key string, params js) error {
		return sdk.call("kv.namespaces.values.update", nil, key, ns.jsParams(params))
	}
	text := base64.StdEncoding.EncodeToString(everyByte())
	for name, value := range map[string]any{
		"buffer to file": js{"$file": text}, "file": js{"$file": text, "name": "f ü.bin"},
		"read stream": js{"$stream": text}, "response": js{"$response": text},
	} {
		check(t, update(name, js{"value": value, "metadata": `{"a":[1,"ü"]}`}))
		check(t, ns.stored(ctx, name, everyByte(), `{"a":[1,"ü"]}`))
	}
	// A bare Buffer leaves the SDK as one field for each byte. It must not become an
	// empty value.
	check(t, wantThrown(update("k", js{"value": js{"$buffer": text}}), "BadRequestError", 10047))
	check(t, update("string", js{"value": "Grüße\r\n", "expiration": 4102444800}))
	check(t, ns.stored(ctx, "string", []byte("Grüße\r\n"), "null"))
	var got jsBytes
	check(t, sdk.call("kv.namespaces.values.get", &got, "string", ns.jsParams(nil)))
	if got.Headers["expiration"] != "4102444800" || got.Headers["content-type"] != "application/octet-stream" {
		t.Errorf("headers %v", got.Headers)
	}
	check(t, update("empty", js{"value": "", "expiration_ttl": 60}))
	check(t, ns.stored(ctx, "empty", nil, "null"))
	// Metadata that is an object leaves the SDK as fields of other names, which the
	// service ignores.
	check(t, update("file", js{"value": "again", "metadata": js{"a": 1, "b": js{"c": []string{"x"}}}}))
	check(t, ns.stored(ctx, "file", []byte("again"), "null"))
	var metadata struct{ A []any }
	check(t, sdk.call("kv.namespaces.metadata.get", &metadata, "response", ns.jsParams(nil)))
	if fmt.Sprint(metadata.A) != "[1 ü]" {
		t.Errorf("metadata %+v", metadata)
	}
	check(t, wantThrown(update("k", js{"value": "v", "expiration_ttl": 59}), "BadRequestError", 10034))
	check(t, wantThrown(update("k", js{"value": "v", "expiration": 1}), "BadRequestError", 10033))
	check(t, wantThrown(update("k", js{"value": "v", "metadata": "{a"}), "BadRequestError", 10147))
	check(t, wantThrown(sdk.call("kv.namespaces.metadata.get", nil, "k", ns.jsParams(nil)), "NotFoundError", 10009))
}

// TestTypescriptBulk: the bulk methods under both of their names.
func TestTypescriptBulk(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	sdk := newTypescript(t, ns.endpoint)
	params := func(more js) js {
		more["account_id"] = ns.account
		return more
	}
	type count struct {
		Successful   int      `json:"successful_key_count"`
		Unsuccessful []string `json:"unsuccessful_keys"`
	}
	var put, gone count
	check(t, sdk.call("kv.namespaces.keys.bulkUpdate", &put, ns.id, params(js{"body": []pair{
		{Key: "a/b", Value: "text", Metadata: js{"m": nil}},
		{Key: "bin", Value: "AP+A", Base64: true, TTL: 3600},
		{Key: "n", Value: "1.5", Expiration: 4102444800},
	}})))
	if put.Successful != 3 || len(put.Unsuccessful) != 0 {
		t.Errorf("bulk update: %+v", put)
	}
	check(t, ns.stored(ctx, "a/b", []byte("text"), `{"m":null}`))
	check(t, ns.stored(ctx, "bin", []byte{0, 255, 128}, "null"))
	var got, plain json.RawMessage
	check(t, sdk.call("kv.namespaces.keys.bulkGet", &got, ns.id, params(js{"keys": []string{"a/b", "none", "n"}, "type": "text", "withMetadata": true})))
	check(t, wantBytes(got, []byte(`{"values":{"a/b":{"value":"text","metadata":{"m":null}},"none":null,"n":{"value":"1.5","metadata":null,"expiration":4102444800}}}`)))
	check(t, sdk.call("kv.namespaces.bulkGet", &plain, ns.id, params(js{"keys": []string{"n"}, "type": "json"})))
	check(t, wantBytes(plain, []byte(`{"values":{"n":1.5}}`)))
	many := strings.Fields(strings.Repeat("key ", 101))
	check(t, wantThrown(sdk.call("kv.namespaces.bulkGet", nil, ns.id, params(js{"keys": many})), "BadRequestError", 10029))
	check(t, wantThrown(sdk.call("kv.namespaces.bulkGet", nil, ns.id, params(js{"keys": []string{"bin"}})), "BadRequestError", 10029))
	check(t, sdk.call("kv.namespaces.keys.bulkDelete", &gone, ns.id, params(js{"body": []string{"a/b", "none"}})))
	if gone.Successful != 2 {
		t.Errorf("bulk delete: %+v", gone)
	}
	check(t, sdk.call("kv.namespaces.bulkDelete", nil, ns.id, params(js{"body": []string{"n"}})))
	left, err := ns.list(ctx, "", 10)
	check(t, err)
	check(t, wantKeys(names(left), []string{"bin"}))
}
