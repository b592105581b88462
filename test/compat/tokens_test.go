package compat

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	cloudflare "github.com/cloudflare/cloudflare-go/v6"
	"github.com/cloudflare/cloudflare-go/v6/kv"
)

// createToken creates a token with one permission on one resource.
func (e endpoint) createToken(ctx context.Context, name, permission string, resources js) (endpoint, error) {
	a, err := e.call(ctx, http.MethodPost, "/accounts/"+e.account+"/tokens", js{"name": name, "policies": []js{{
		"effect": "allow", "permission_groups": []js{{"name": permission}}, "resources": resources,
	}}})
	if err != nil {
		return e, err
	}
	var token struct{ Value string }
	err = json.Unmarshal(a.Result, &token)
	e.token = token.Value
	return e, err
}

// TestScopedTokens: clients with a token that may only read an account, or only
// see the keys under a prefix, are told so in a way that they understand.
func TestScopedTokens(t *testing.T) {
	t.Parallel()
	ctx, ns := t.Context(), newNamespace(t)
	check(t, ns.bulkPut(ctx, []pair{{Key: "img/a", Value: "image"}, {Key: "secret", Value: "secret"}}))
	reader, err := ns.createToken(ctx, "reader", "Workers KV Storage Read", js{"com.cloudflare.api.account." + ns.account: "*"})
	check(t, err)
	prefixed, err := ns.createToken(ctx, "prefixed", "Workers KV Storage Write", js{"com.nearkey.kv.namespace." + ns.id: js{"prefix": "img/"}})
	check(t, err)

	read := namespace{reader, ns.id}
	check(t, read.stored(ctx, "secret", []byte("secret"), "null"))
	_, err = newGoV6(reader).Values.Update(ctx, ns.id, "k", kv.NamespaceValueUpdateParams{AccountID: cloudflare.F(ns.account), Value: cloudflare.F("v")})
	check(t, wantV6Error(err, http.StatusForbidden, 10000))
	_, err = newGoV6(reader).New(ctx, kv.NamespaceNewParams{AccountID: cloudflare.F(ns.account), Title: cloudflare.F("new")})
	check(t, wantV6Error(err, http.StatusForbidden, 10000))
	w := newWrangler(t, reader)
	w.ok(t, []string{"whoami"}, ns.account)
	w.fails(t, key(ns, "delete", "secret"), "Authentication error [code: 10000]")

	sdk := newTypescript(t, prefixed)
	check(t, roundTrip(ctx, typescriptDriver(sdk, namespace{prefixed, ns.id}), "img/b", "img/b", []byte("v")))
	check(t, wantThrown(sdk.call("kv.namespaces.values.get", nil, "secret", ns.jsParams(nil)), "PermissionDeniedError", 10000))
	check(t, wantThrown(sdk.all("kv.namespaces.keys.list", nil, ns.id, js{"account_id": ns.account}), "PermissionDeniedError", 10000))
	var spaces []jsSpace
	check(t, sdk.all("kv.namespaces.list", &spaces, js{"account_id": ns.account}))
	check(t, wantKeys(ids(spaces), []string{ns.id}))
	check(t, ns.stored(ctx, "secret", []byte("secret"), "null"))
}
