package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	cloudflare "github.com/cloudflare/cloudflare-go/v6"
	"github.com/cloudflare/cloudflare-go/v6/kv"
	"github.com/cloudflare/cloudflare-go/v6/option"
)

func newGoV6(e endpoint) *kv.NamespaceService {
	return cloudflare.NewClient(option.WithBaseURL(e.base), option.WithAPIToken(e.token)).KV.Namespaces
}

// wantV6Error complains unless err is the SDK's error with this status and code.
func wantV6Error(err error, status int, code int64) error {
	var api *cloudflare.Error
	if !errors.As(err, &api) || api.StatusCode != status || len(api.Errors) == 0 || api.Errors[0].Code != code {
		return fmt.Errorf("%v: want an error of the SDK with status %d, code %d", err, status, code)
	}
	return nil
}

// goV6Driver escapes keys as the SDK's documentation asks for.
func goV6Driver(ns namespace) driver {
	client, account := newGoV6(ns.endpoint), cloudflare.F(ns.account)
	return driver{
		put: func(ctx context.Context, key string, value []byte) error {
			_, err := client.Values.Update(ctx, ns.id, url.PathEscape(key), kv.NamespaceValueUpdateParams{AccountID: account, Value: cloudflare.F(string(value))})
			return err
		},
		get: func(ctx context.Context, key string) ([]byte, bool, error) {
			res, err := client.Values.Get(ctx, ns.id, url.PathEscape(key), kv.NamespaceValueGetParams{AccountID: account})
			var api *cloudflare.Error
			if errors.As(err, &api) && api.StatusCode == http.StatusNotFound {
				return nil, false, wantV6Error(err, http.StatusNotFound, 10009)
			}
			if err != nil {
				return nil, false, err
			}
			defer res.Body.Close()
			value, err := io.ReadAll(res.Body)
			return value, true, err
		},
		keys: func(ctx context.Context, prefix string) (all []string, err error) {
			params := kv.NamespaceKeyListParams{AccountID: account}
			if prefix != "" {
				params.Prefix = cloudflare.F(prefix)
			}
			pager := client.Keys.ListAutoPaging(ctx, ns.id, params)
			for pager.Next() {
				all = append(all, pager.Current().Name)
			}
			return all, pager.Err()
		},
		remove: func(ctx context.Context, key string) error {
			_, err := client.Values.Delete(ctx, ns.id, url.PathEscape(key), kv.NamespaceValueDeleteParams{AccountID: account})
			return err
		},
	}
}

// TestGoV6Namespaces: new, get, update, delete, and the errors of each.
func TestGoV6Namespaces(t *testing.T) {
	t.Parallel()
	ctx, account := t.Context(), cloudflare.F(shared.server.account)
	client := newGoV6(shared.server.endpoint)
	made, err := client.New(ctx, kv.NamespaceNewParams{AccountID: account, Title: cloudflare.F(t.Name())})
	check(t, err)
	if made.Title != t.Name() || len(made.ID) != 32 || !made.SupportsURLEncoding {
		t.Errorf("created %+v", made)
	}
	_, err = client.New(ctx, kv.NamespaceNewParams{AccountID: account, Title: cloudflare.F(t.Name())})
	check(t, wantV6Error(err, http.StatusBadRequest, 10014))
	_, err = client.New(ctx, kv.NamespaceNewParams{AccountID: account, Title: cloudflare.F("")})
	check(t, wantV6Error(err, http.StatusBadRequest, 10019))
	renamed, err := client.Update(ctx, made.ID, kv.NamespaceUpdateParams{AccountID: account, Title: cloudflare.F(t.Name() + " renamed")})
	check(t, err)
	got, err := client.Get(ctx, made.ID, kv.NamespaceGetParams{AccountID: account})
	check(t, err)
	if got.ID != made.ID || got.Title != t.Name()+" renamed" || renamed.Title != got.Title || !renamed.SupportsURLEncoding {
		t.Errorf("renamed %+v, then got %+v", renamed, got)
	}
	_, err = client.Delete(ctx, made.ID, kv.NamespaceDeleteParams{AccountID: account})
	check(t, err)
	_, err = client.Get(ctx, made.ID, kv.NamespaceGetParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusNotFound, 10013))
	_, err = client.Delete(ctx, made.ID, kv.NamespaceDeleteParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusNotFound, 10013))
	_, err = client.Get(ctx, "no-id", kv.NamespaceGetParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusBadRequest, 10011))
}

// TestGoV6Values: multipart with metadata before the value, expirations, and keys
// whose slashes the SDK leaves as they are.
func TestGoV6Values(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	client, account := newGoV6(ns.endpoint), cloudflare.F(ns.account)
	_, err := client.Values.Update(ctx, ns.id, "dir/sub//file.txt", kv.NamespaceValueUpdateParams{
		AccountID: account, Value: cloudflare.F("text"), Expiration: cloudflare.F(4102444800.0), Metadata: cloudflare.F[any](`{"a":[1,"ü"]}`),
	})
	check(t, err)
	check(t, ns.stored(ctx, "dir/sub//file.txt", []byte("text"), `{"a":[1,"ü"]}`))
	metadata, err := client.Metadata.Get(ctx, ns.id, "dir/sub//file.txt", kv.NamespaceMetadataGetParams{AccountID: account})
	check(t, err)
	if text := fmt.Sprint(*metadata); text != "map[a:[1 ü]]" {
		t.Errorf("metadata %s", text)
	}
	res, err := client.Values.Get(ctx, ns.id, "dir/sub//file.txt", kv.NamespaceValueGetParams{AccountID: account})
	check(t, err)
	res.Body.Close()
	if got := res.Header.Get("Expiration"); got != "4102444800" {
		t.Errorf("Expiration %q", got)
	}
	page, err := client.Keys.List(ctx, ns.id, kv.NamespaceKeyListParams{AccountID: account, Prefix: cloudflare.F("dir/sub/"), Limit: cloudflare.F(10.0)})
	check(t, err)
	if len(page.Result) != 1 || page.Result[0].Expiration != 4102444800 || fmt.Sprint(page.Result[0].Metadata) != "map[a:[1 ü]]" {
		t.Errorf("listed %+v", page.Result)
	}
	// A metadata that is a map leaves the SDK as fields of other names, which the
	// service ignores.
	_, err = client.Values.Update(ctx, ns.id, "dir/sub//file.txt", kv.NamespaceValueUpdateParams{
		AccountID: account, Value: cloudflare.F("again"), Metadata: cloudflare.F[any](map[string]any{"a": 1}),
	})
	check(t, err)
	check(t, ns.stored(ctx, "dir/sub//file.txt", []byte("again"), "null"))
	_, err = client.Values.Update(ctx, ns.id, "k", kv.NamespaceValueUpdateParams{AccountID: account, Value: cloudflare.F("v"), ExpirationTTL: cloudflare.F(59.0)})
	check(t, wantV6Error(err, http.StatusBadRequest, 10034))
	_, err = client.Values.Update(ctx, ns.id, "k", kv.NamespaceValueUpdateParams{AccountID: account, Value: cloudflare.F(""), ExpirationTTL: cloudflare.F(60.0)})
	check(t, err)
	check(t, ns.stored(ctx, "k", nil, "null"))
	_, err = client.Values.Update(ctx, ns.id, strings.Repeat("k", 513), kv.NamespaceValueUpdateParams{AccountID: account, Value: cloudflare.F("v")})
	check(t, wantV6Error(err, http.StatusRequestURITooLong, 10022))
	_, err = client.Metadata.Get(ctx, ns.id, "missing", kv.NamespaceMetadataGetParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusNotFound, 10009))
	stranger := newGoV6(endpoint{ns.base, ns.account, "not-a-token"})
	_, err = stranger.Get(ctx, ns.id, kv.NamespaceGetParams{AccountID: account})
	check(t, wantV6Error(err, http.StatusForbidden, 10000))
}

// TestGoV6Bulk: bulk writes, reads and deletes.
func TestGoV6Bulk(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	client, account := newGoV6(ns.endpoint), cloudflare.F(ns.account)
	put, err := client.BulkUpdate(ctx, ns.id, kv.NamespaceBulkUpdateParams{AccountID: account, Body: []kv.NamespaceBulkUpdateParamsBody{
		{Key: cloudflare.F("a/b"), Value: cloudflare.F("text"), Metadata: cloudflare.F[any](map[string]any{"m": true})},
		{Key: cloudflare.F("bin"), Value: cloudflare.F("AP+A"), Base64: cloudflare.F(true), ExpirationTTL: cloudflare.F(3600.0)},
		{Key: cloudflare.F("n"), Value: cloudflare.F("1.5"), Expiration: cloudflare.F(4102444800.0)},
	}})
	check(t, err)
	if put.SuccessfulKeyCount != 3 || len(put.UnsuccessfulKeys) != 0 {
		t.Errorf("bulk update: %+v", put)
	}
	check(t, ns.stored(ctx, "bin", []byte{0, 255, 128}, "null"))
	check(t, ns.stored(ctx, "a/b", []byte("text"), `{"m":true}`))
	got, err := client.BulkGet(ctx, ns.id, kv.NamespaceBulkGetParams{
		AccountID: account, Keys: cloudflare.F([]string{"a/b", "n"}), WithMetadata: cloudflare.F(true),
	})
	check(t, err)
	want := `{"values":{"a/b":{"value":"text","metadata":{"m":true}},"n":{"value":"1.5","metadata":null,"expiration":4102444800}}}`
	if raw := got.JSON.RawJSON(); raw != want {
		t.Errorf("bulk get with metadata: %s, want %s", raw, want)
	}
	plain, err := client.BulkGet(ctx, ns.id, kv.NamespaceBulkGetParams{AccountID: account, Keys: cloudflare.F([]string{"n", "a/b"})})
	check(t, err)
	if raw := plain.JSON.RawJSON(); raw != `{"values":{"n":"1.5","a/b":"text"}}` {
		t.Errorf("bulk get: %s", raw)
	}
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	_, err = client.BulkGet(ctx, ns.id, kv.NamespaceBulkGetParams{AccountID: account, Keys: cloudflare.F(many)})
	check(t, wantV6Error(err, http.StatusBadRequest, 10029))
	gone, err := client.BulkDelete(ctx, ns.id, kv.NamespaceBulkDeleteParams{AccountID: account, Body: []string{"a/b", "none"}})
	check(t, err)
	if gone.SuccessfulKeyCount != 2 {
		t.Errorf("bulk delete: %+v", gone)
	}
	_, err = client.BulkDelete(ctx, ns.id, kv.NamespaceBulkDeleteParams{AccountID: account, Body: []string{"n"}})
	check(t, err)
	left, err := ns.list(ctx, "", 10)
	check(t, err)
	check(t, wantKeys(names(left), []string{"bin"}))
}
