package rest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const accountPolicy = `{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Write"}],"resources":{"com.cloudflare.api.account.` + accountID + `":"*"}}`

func TestVerify(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{basePath + "/user/tokens/verify", in("/tokens/verify")} {
		a := w.get(path).ok()
		if len(a.Messages) != 1 || string(a.Messages[0]) != `{"code":10000,"message":"This API Token is valid and active","type":null}` {
			t.Errorf("messages %s", a.Messages)
		}
		var result map[string]string
		if a.result(&result); !isHexID(result["id"]) || result["status"] != "active" || len(result) != 2 {
			t.Errorf("result %s", a.Result)
		}
		w.do(request{method: "GET", path: path, token: "unknown-token-of-the-tests"}).fails(401, 1000, "Invalid API Token")
		w.do(request{method: "GET", path: path, token: "none"}).fails(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
		w.do(request{method: "GET", path: path, token: "none", header: map[string]string{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey}}).
			fails(400, 6003, "Invalid request headers")
	}
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	space := w.ns.ID.String()
	body := `{"name":"deploy <&>","not_before":"2020-01-02T03:04:05Z","expires_on":"2999-01-02T03:04:05+01:00","policies":[
		{"effect":"allow","permission_groups":[{"id":"f7f0eda5697f475c90846e879bab8666"}],"resources":{"com.nearkey.kv.namespace.` + space + `":{"prefix":"im\"g/"}}},
		{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.nearkey.kv.namespace.` + space + `":"*"}},
		{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.cloudflare.api.account.` + accountID + `":"*"}}]}`
	a := w.post(in("/tokens"), body)
	var made apiToken
	a.result(&made)
	if made.Name != "deploy <&>" || made.Status != "active" || made.NotBefore != "2020-01-02T03:04:05Z" || made.ExpiresOn != "2999-01-02T02:04:05Z" || len(made.Value) != 40 || len(made.Policies) != 3 {
		t.Errorf("created %s", a.body)
	}
	for i, want := range []string{
		`{"permission_groups":[{"id":"f7f0eda5697f475c90846e879bab8666","name":"Workers KV Storage Write"}],"resources":{"com.nearkey.kv.namespace.` + space + `":{"prefix":"im\"g/"}}}`,
		`{"permission_groups":[{"id":"8b47d2786a534c08a1f94ee8f9f599ef","name":"Workers KV Storage Read"}],"resources":{"com.nearkey.kv.namespace.` + space + `":"*"}}`,
		`{"permission_groups":[{"id":"8b47d2786a534c08a1f94ee8f9f599ef","name":"Workers KV Storage Read"}],"resources":{"com.cloudflare.api.account.` + accountID + `":"*"}}`,
	} {
		p := made.Policies[i]
		if !isHexID(p.ID) || p.Effect != "allow" {
			t.Errorf("policy %+v", p)
		}
		p.ID, p.Effect = "", ""
		got, _ := json.Marshal(p)
		if strings.Replace(string(got), `"effect":"",`, "", 1) != want {
			t.Errorf("policy %s\nwant   %s", got, want)
		}
	}
	// It can do what it says, and its secret is told but once.
	w.do(request{method: "PUT", path: "values/im%22g/a", body: "v", token: made.Value}).ok()
	w.do(request{method: "PUT", path: "values/b", body: "v", token: made.Value}).fails(403, 10000, "Authentication error")
	w.do(request{method: "GET", path: "values/im%22g/a", token: made.Value}).ok()
	for _, path := range []string{"/tokens", "/tokens/" + made.ID} {
		if a := w.get(in(path)).ok(); strings.Contains(a.body, made.Value) || strings.Contains(a.body, `"value"`) {
			t.Errorf("%s tells the secret: %s", path, a.body)
		}
	}
	if a := w.get(in("/tokens?per_page=1&page=2")).ok(); a.ResultInfo.TotalCount != 2 || a.ResultInfo.Count != 1 || !strings.Contains(a.body, made.ID) {
		t.Errorf("second page %s", a.body)
	}
	w.delete(in("/tokens/" + made.ID)).is(`{"id":"` + made.ID + `"}`)
	w.do(request{method: "GET", path: "values/im%22g/a", token: made.Value}).fails(403, 10000, "Authentication error")
}

func TestTokenErrors(t *testing.T) {
	w := newWorld(t)
	theirs := w.secondAccount()
	policy := func(s string) string { return `{"name":"t","policies":[` + s + `]}` }
	read := `"permission_groups":[{"name":"Workers KV Storage Read"}]`
	space := "com.nearkey.kv.namespace." + w.ns.ID.String()
	for _, tt := range []struct{ body, message string }{
		{`{"name":"","policies":[` + accountPolicy + `]}`, "a token must have a name"},
		{`{"name":"t"}`, "a token must have a scope"},
		{`{"name":"t","expires_on":"2001-01-01T00:00:00Z","policies":[` + accountPolicy + `]}`, "the token would expire in the past, at 2001-01-01T00:00:00Z"},
		{policy(`{"effect":"deny",` + read + `,"resources":{"` + space + `":"*"}}`), "the effect of a policy must be 'allow'"},
		{policy(`{"effect":"allow",` + read + `}`), "a policy must have permission_groups and resources"},
		{policy(`{"effect":"allow","resources":{"` + space + `":"*"}}`), "a policy must have permission_groups and resources"},
		{policy(`{"effect":"allow","permission_groups":[{"name":"DNS Write"}],"resources":{"` + space + `":"*"}}`), `unknown permission group "DNS Write": want "Workers KV Storage Read" or "Workers KV Storage Write"`},
		{policy(`{"effect":"allow","permission_groups":[{}],"resources":{"` + space + `":"*"}}`), `unknown permission group "": want "Workers KV Storage Read" or "Workers KV Storage Write"`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"com.cloudflare.api.account.` + otherAccount + `":"*"}}`), "a policy must be about this account and what is in it"},
		{policy(`{"effect":"allow",` + read + `,"resources":{"com.cloudflare.api.account.*":"*"}}`), "a policy must be about this account and what is in it"},
		{policy(`{"effect":"allow",` + read + `,"resources":{"com.cloudflare.api.account.` + accountID + `":{"prefix":"a"}}}`), `the extent of a resource must be "*"`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"com.nearkey.kv.namespace.` + theirs.ID.String() + `":"*"}}`), "a policy names a namespace that does not exist in this account"},
		{policy(`{"effect":"allow",` + read + `,"resources":{"com.nearkey.kv.namespace.x":"*"}}`), `the resource "com.nearkey.kv.namespace.x" has no namespace id of 32 hexadecimal digits`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"` + space + `":{"prefix":""}}}`), `the extent of a namespace must be "*" or {"prefix": "…"}`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"` + space + `":{"suffix":"x"}}}`), `the extent of a namespace must be "*" or {"prefix": "…"}`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"` + space + `":"img"}}`), `the extent of a resource must be "*"`},
		{policy(`{"effect":"allow",` + read + `,"resources":{"` + space + `":{"prefix":"` + strings.Repeat("p", 513) + `"}}}`), "a prefix has at most 512 bytes, as keys have; this one has 513"},
		{policy(`{"effect":"allow",` + read + `,"resources":{"zone":"*"}}`), `unknown resource "zone": want com.cloudflare.api.account.<account id> or com.nearkey.kv.namespace.<namespace id>`},
	} {
		w.post(in("/tokens"), tt.body).fails(400, 1001, tt.message)
	}
	w.post(in("/tokens"), `{`).fails(400, 10012, "create token: 'The request body is not valid JSON'")
	w.get(in("/tokens/"+nsID)).fails(404, 1003, "token not found")
	w.delete(in("/tokens/"+nsID)).fails(404, 1003, "token not found")
	var root struct{ ID string }
	w.get(basePath + "/user/tokens/verify").result(&root)
	w.delete(in("/tokens/"+root.ID)).fails(404, 1003, "token not found") // it belongs to the other account now
	w.delete(basePath+"/accounts/"+otherAccount+"/tokens/"+root.ID).fails(400, 1001, "the root token cannot be revoked; configure another one instead")
	w.get(in("")).ok()
}

func TestAccounts(t *testing.T) {
	w := newWorld(t)
	w.secondAccount()
	var accounts []struct{ ID, Name, Type string }
	a := w.get(basePath + "/accounts?page=1")
	if a.result(&accounts); len(accounts) != 2 || accounts[0].ID != accountID || accounts[0].Name != "Tests" || accounts[0].Type != "standard" || a.ResultInfo.TotalCount != 2 || a.ResultInfo.Page != 1 {
		t.Errorf("accounts %s", a.body)
	}
	var members []membership
	a = w.get(basePath + "/memberships?page=1")
	if a.result(&members); len(members) != 2 || a.ResultInfo.TotalCount != 2 {
		t.Fatalf("memberships %s", a.body)
	}
	for i, m := range members {
		if m.Account.ID != accounts[i].ID || m.Account.Name != accounts[i].Name || m.Status != "accepted" || !isHexID(m.ID) || fmt.Sprint(m.Roles) != "[Administrator]" {
			t.Errorf("membership %+v of account %+v", m, accounts[i])
		}
	}
	if a := w.get(basePath + "/accounts?page=2").ok(); string(a.Result) != "[]" {
		t.Errorf("second page %s", a.Result)
	}
	var one struct{ ID, Name string }
	if w.get(in("")).result(&one); one.ID != accountID || one.Name != "Tests" {
		t.Errorf("account %+v", one)
	}
	var user struct{ ID, Email string }
	if w.get(basePath + "/user").result(&user); user.Email != rootEmail || user.ID == "" {
		t.Errorf("user %+v", user)
	}
	key := map[string]string{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey}
	w.do(request{method: "GET", path: basePath + "/accounts?page=1", token: "none", header: key}).ok()
}
