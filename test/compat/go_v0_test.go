package compat

import (
	"context"
	"errors"
	"fmt"
	"testing"

	cloudflare "github.com/cloudflare/cloudflare-go"
)

func newGoV0(t *testing.T, e endpoint) *cloudflare.API {
	t.Helper()
	const requestsPerSecond = 1000 // its default of 4 is for the real service
	api, err := cloudflare.NewWithAPIToken(e.token, cloudflare.BaseURL(e.base), cloudflare.UsingRateLimit(requestsPerSecond))
	check(t, err)
	return api
}

// goV0Driver needs no escaping: the SDK does it.
func goV0Driver(t *testing.T, ns namespace) driver {
	api, account := newGoV0(t, ns.endpoint), cloudflare.AccountIdentifier(ns.account)
	return driver{
		put: func(ctx context.Context, key string, value []byte) error {
			res, err := api.WriteWorkersKVEntry(ctx, account, cloudflare.WriteWorkersKVEntryParams{NamespaceID: ns.id, Key: key, Value: value})
			if err == nil && !res.Success {
				return fmt.Errorf("no success: %+v", res)
			}
			return err
		},
		get: func(ctx context.Context, key string) ([]byte, bool, error) {
			value, err := api.GetWorkersKV(ctx, account, cloudflare.GetWorkersKVParams{NamespaceID: ns.id, Key: key})
			var missing *cloudflare.NotFoundError
			if errors.As(err, &missing) {
				if !missing.InternalErrorCodeIs(10009) {
					return nil, false, err
				}
				return nil, false, nil
			}
			return value, err == nil, err
		},
		keys: func(ctx context.Context, prefix string) (all []string, err error) {
			cursor := ""
			for {
				page, err := api.ListWorkersKVKeys(ctx, account, cloudflare.ListWorkersKVsParams{NamespaceID: ns.id, Prefix: prefix, Cursor: cursor})
				if err != nil {
					return nil, err
				}
				for _, key := range page.Result {
					all = append(all, key.Name)
				}
				if cursor = page.Cursor; cursor == "" {
					return all, nil
				}
			}
		},
		remove: func(ctx context.Context, key string) error {
			res, err := api.DeleteWorkersKVEntry(ctx, account, cloudflare.DeleteWorkersKVEntryParams{NamespaceID: ns.id, Key: key})
			if err == nil && !res.Success {
				return fmt.Errorf("no success: %+v", res)
			}
			return err
		},
	}
}

// TestGoV0Namespaces: create, rename, delete, the errors by their types, and the
// legacy key.
func TestGoV0Namespaces(t *testing.T) {
	t.Parallel()
	ctx, account := t.Context(), cloudflare.AccountIdentifier(shared.server.account)
	api, err := cloudflare.New(shared.server.key, shared.server.email, cloudflare.BaseURL(shared.server.base))
	check(t, err)
	made, err := api.CreateWorkersKVNamespace(ctx, account, cloudflare.CreateWorkersKVNamespaceParams{Title: t.Name()})
	check(t, err)
	ns := namespace{shared.server.endpoint, made.Result.ID}
	check(t, ns.titled(ctx, t.Name()))
	_, err = api.CreateWorkersKVNamespace(ctx, account, cloudflare.CreateWorkersKVNamespaceParams{Title: t.Name()})
	var bad *cloudflare.RequestError
	if !errors.As(err, &bad) || !bad.InternalErrorCodeIs(10014) {
		t.Errorf("create again: %v", err)
	}
	_, err = api.UpdateWorkersKVNamespace(ctx, account, cloudflare.UpdateWorkersKVNamespaceParams{NamespaceID: ns.id, Title: t.Name() + " renamed"})
	check(t, err)
	check(t, ns.titled(ctx, t.Name()+" renamed"))
	_, err = api.DeleteWorkersKVNamespace(ctx, account, ns.id)
	check(t, err)
	_, err = api.DeleteWorkersKVNamespace(ctx, account, ns.id)
	var missing *cloudflare.NotFoundError
	if !errors.As(err, &missing) || !missing.InternalErrorCodeIs(10013) {
		t.Errorf("delete again: %v", err)
	}
	_, err = newGoV0(t, endpoint{ns.base, ns.account, "not-a-token"}).DeleteWorkersKVNamespace(ctx, account, ns.id)
	var stranger *cloudflare.AuthenticationError
	if !errors.As(err, &stranger) || !stranger.InternalErrorCodeIs(10000) {
		t.Errorf("unknown token: %v", err)
	}
	user, err := newGoV0(t, ns.endpoint).UserDetails(ctx)
	check(t, err)
	if user.Email != ownerEmail {
		t.Errorf("user %+v", user)
	}
	verified, err := newGoV0(t, ns.endpoint).VerifyAPIToken(ctx)
	check(t, err)
	if verified.Status != "active" {
		t.Errorf("token %+v", verified)
	}
}

// TestGoV0Bulk: bulk writes, and bulk deletes by DELETE with a body.
func TestGoV0Bulk(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	api, account := newGoV0(t, ns.endpoint), cloudflare.AccountIdentifier(ns.account)
	res, err := api.WriteWorkersKVEntries(ctx, account, cloudflare.WriteWorkersKVEntriesParams{NamespaceID: ns.id, KVs: []*cloudflare.WorkersKVPair{
		{Key: "a/b", Value: "text", Metadata: map[string]any{"m": "ü"}, Expiration: 4102444800},
		{Key: "bin", Value: "AP+A", Base64: true, ExpirationTTL: 60},
		{Key: "plain", Value: ""},
	}})
	check(t, err)
	if !res.Success {
		t.Errorf("bulk write: %+v", res)
	}
	check(t, ns.stored(ctx, "a/b", []byte("text"), `{"m":"ü"}`))
	check(t, ns.stored(ctx, "bin", []byte{0, 255, 128}, "null"))
	check(t, ns.stored(ctx, "plain", nil, "null"))
	page, err := api.ListWorkersKVKeys(ctx, account, cloudflare.ListWorkersKVsParams{NamespaceID: ns.id, Limit: 10, Prefix: "a/"})
	check(t, err)
	if len(page.Result) != 1 || page.Result[0].Expiration != 4102444800 || fmt.Sprint(page.Result[0].Metadata) != "map[m:ü]" {
		t.Errorf("listed %+v", page.Result)
	}
	res, err = api.DeleteWorkersKVEntries(ctx, account, cloudflare.DeleteWorkersKVEntriesParams{NamespaceID: ns.id, Keys: []string{"a/b", "bin", "none"}})
	check(t, err)
	if !res.Success {
		t.Errorf("bulk delete: %+v", res)
	}
	left, err := ns.list(ctx, "", 10)
	check(t, err)
	check(t, wantKeys(names(left), []string{"plain"}))
	_, err = api.WriteWorkersKVEntries(ctx, account, cloudflare.WriteWorkersKVEntriesParams{NamespaceID: ns.id, KVs: []*cloudflare.WorkersKVPair{{Key: "k", Value: "v", ExpirationTTL: 1}}})
	var bad *cloudflare.RequestError
	if !errors.As(err, &bad) || !bad.InternalErrorCodeIs(10034) {
		t.Errorf("ttl 1: %v", err)
	}
}

func goV0BulkDelete(ctx context.Context, api *cloudflare.API, account, id string, keys []string) error {
	res, err := api.DeleteWorkersKVEntries(ctx, cloudflare.AccountIdentifier(account), cloudflare.DeleteWorkersKVEntriesParams{NamespaceID: id, Keys: keys})
	if err == nil && !res.Success {
		return fmt.Errorf("no success: %+v", res)
	}
	return err
}

// goV0Spaces lists namespaces by the SDK's own pager.
func goV0Spaces(ctx context.Context, api *cloudflare.API, account string) ([]string, error) {
	all, _, err := api.ListWorkersKVNamespaces(ctx, cloudflare.AccountIdentifier(account), cloudflare.ListWorkersKVNamespacesParams{})
	ids := make([]string, len(all))
	for i, ns := range all {
		ids[i] = ns.ID
	}
	return ids, err
}
