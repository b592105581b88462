package rest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/nearkeytest"
)

const otherAccount = "ffffffffffffffffffffffffffffffff"

// secondAccount makes a further account, with a namespace.
func (w *world) secondAccount() catalog.Namespace {
	w.t.Helper()
	if _, err := w.catalog.EnsureRoot(w.t.Context(), catalog.Root{AccountID: otherAccount, AccountName: "Other", Token: rootToken, Email: rootEmail, Key: rootKey}); err != nil {
		w.t.Fatal(err)
	}
	n, err := w.catalog.CreateNamespace(w.t.Context(), otherAccount, "theirs", "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	w.put("values/a", "v").ok()
	type h map[string]string
	for _, tt := range []struct {
		header  h
		status  int
		code    int
		chain   int
		message string
	}{
		{h{"Authorization": "Bearer " + rootToken}, 200, 0, 0, ""},
		{h{"Authorization": "bearer " + rootToken}, 200, 0, 0, ""},
		{h{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey}, 200, 0, 0, ""},
		{h{"Authorization": "Bearer " + rootToken, "X-Auth-Email": "x", "X-Auth-Key": "y"}, 200, 0, 0, ""},
		{h{}, 400, 9106, 0, "Missing X-Auth-Key, X-Auth-Email or Authorization headers"},
		{h{"Authorization": "Bearer"}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Bearer "}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Basic " + rootToken}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": rootToken}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Bearer two words"}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Bearer \x80"}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Bearer " + strings.Repeat("t", maxCredentialBytes+1)}, 400, 6003, 6111, "Invalid request headers"},
		{h{"Authorization": "Bearer " + strings.Repeat("t", maxCredentialBytes)}, 403, 10000, 0, "Authentication error"},
		{h{"Authorization": "Bearer unknown-token-of-the-tests"}, 403, 10000, 0, "Authentication error"},
		{h{"X-Auth-Key": rootKey}, 400, 6003, 6102, "Invalid request headers"},
		{h{"X-Auth-Key": rootKey, "X-Auth-Email": "nobody"}, 400, 6003, 6102, "Invalid request headers"},
		{h{"X-Auth-Email": rootEmail}, 400, 6003, 6103, "Invalid request headers"},
		{h{"X-Auth-Email": rootEmail, "X-Auth-Key": "a key"}, 400, 6003, 6103, "Invalid request headers"},
		{h{"X-Auth-Email": rootEmail, "X-Auth-Key": rootKey[1:]}, 403, 9103, 0, "Unknown X-Auth-Key or X-Auth-Email"},
		{h{"X-Auth-Email": "someone@example.com", "X-Auth-Key": rootKey}, 403, 9103, 0, "Unknown X-Auth-Key or X-Auth-Email"},
	} {
		a := w.do(request{method: "GET", path: "values/a", token: "none", header: tt.header})
		if tt.status == 200 {
			a.ok()
			continue
		}
		a.fails(tt.status, tt.code, tt.message)
		chain := 0
		if len(a.Errors) == 1 && len(a.Errors[0].ErrorChain) == 1 {
			chain = a.Errors[0].ErrorChain[0].Code
			if !strings.HasPrefix(a.Errors[0].ErrorChain[0].Message, "Invalid format for ") {
				t.Errorf("%v: chain %v", tt.header, a.Errors[0].ErrorChain)
			}
		}
		if chain != tt.chain {
			t.Errorf("%v: chain %d, want %d", tt.header, chain, tt.chain)
		}
	}
}

// TestRights is the matrix of who may do what.
func TestRights(t *testing.T) {
	w := newWorld(t)
	theirs := w.secondAccount()
	second, err := w.catalog.CreateNamespace(t.Context(), accountID, "second", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	first := w.ns.ID
	who := []struct{ name, token string }{
		{"root", rootToken},
		{"account write", w.token(catalog.Scope{Permission: catalog.Write})},
		{"account read", w.token(catalog.Scope{Permission: catalog.Read})},
		{"namespace write", w.token(catalog.Scope{Permission: catalog.Write, Namespace: first})},
		{"namespace read", w.token(catalog.Scope{Permission: catalog.Read, Namespace: first})},
		{"prefix write", w.token(catalog.Scope{Permission: catalog.Write, Namespace: first, Prefix: "img/"})},
		{"prefix read", w.token(catalog.Scope{Permission: catalog.Read, Namespace: first, Prefix: "img/"})},
		{"other account", w.token(catalog.Scope{AccountID: otherAccount, Permission: catalog.Write})},
	}
	spaces, one, two := in("/storage/kv/namespaces"), first.String(), second.ID.String()
	const yes, no, foreign, none = "+", "-", "x", "?" // allowed; 10000; 9109; allowed, and not there
	for _, tt := range []struct {
		method, path, body string
		want               string // a letter for each of who
	}{
		{"GET", spaces, "", "+++++++x"},
		{"POST", spaces, `{"title":"NEW"}`, "++-----x"},
		{"GET", spaces + "/" + one, "", "+++++++x"},
		{"GET", spaces + "/" + two, "", "+++----x"},
		{"GET", spaces + "/" + nsID, "", "???----x"},
		{"PUT", spaces + "/" + one, `{"title":"first"}`, "++-----x"},
		{"DELETE", spaces + "/" + nsID, "", "??-----x"},
		{"PUT", spaces + "/" + one + "/values/img%2Fa", "v", "++-+-+-x"},
		{"PUT", spaces + "/" + one + "/values/doc", "v", "++-+---x"},
		{"PUT", spaces + "/" + two + "/values/img%2Fa", "v", "++-----x"},
		{"GET", spaces + "/" + one + "/values/img%2Fa", "", "+++++++x"},
		{"GET", spaces + "/" + one + "/values/img/a", "", "+++++++x"},
		{"GET", spaces + "/" + one + "/values/doc", "", "+++++--x"},
		{"GET", spaces + "/" + two + "/values/img%2Fa", "", "+++----x"},
		{"GET", spaces + "/" + nsID + "/values/a", "", "???----x"},
		{"GET", spaces + "/" + one + "/metadata/img%2Fa", "", "+++++++x"},
		{"GET", spaces + "/" + one + "/metadata/doc", "", "+++++--x"},
		{"GET", spaces + "/" + one + "/keys", "", "+++++--x"},
		{"GET", spaces + "/" + one + "/keys?prefix=img", "", "+++++--x"},
		{"GET", spaces + "/" + one + "/keys?prefix=img/", "", "+++++++x"},
		{"GET", spaces + "/" + one + "/keys?prefix=img/b", "", "+++++++x"},
		{"GET", spaces + "/" + two + "/keys?prefix=img/", "", "+++----x"},
		{"PUT", spaces + "/" + one + "/bulk", `[{"key":"img/a","value":"v"}]`, "++-+-+-x"},
		{"PUT", spaces + "/" + one + "/bulk", `[{"key":"img/a","value":"v"},{"key":"doc","value":"v"}]`, "++-+---x"},
		{"POST", spaces + "/" + one + "/bulk/get", `{"keys":["img/a"]}`, "+++++++x"},
		{"POST", spaces + "/" + one + "/bulk/get", `{"keys":["img/a","doc"]}`, "+++++--x"},
		{"POST", spaces + "/" + one + "/bulk/delete", `["img/b"]`, "++-+-+-x"},
		{"DELETE", spaces + "/" + one + "/bulk", `["img/b","none"]`, "++-+---x"},
		{"DELETE", spaces + "/" + one + "/values/img%2Fnone", "", "++-+-+-x"},
		{"DELETE", spaces + "/" + one + "/values/none", "", "++-+---x"},
		{"GET", in("/tokens"), "", "++-----x"},
		{"GET", in("/tokens/none"), "", "??-----x"},
		{"DELETE", in("/tokens/none"), "", "??-----x"},
		{"POST", in("/tokens"), `{"name":"t","policies":[{"effect":"allow","permission_groups":[{"name":"Workers KV Storage Read"}],"resources":{"com.cloudflare.api.account.` + accountID + `":"*"}}]}`, "++-----x"},
		{"GET", in(""), "", "+++++++x"},
		{"GET", in("/tokens/verify"), "", "+++++++x"},
		{"GET", basePath + "/accounts/" + otherAccount + "/storage/kv/namespaces/" + theirs.ID.String() + "/keys", "", "+xxxxxx+"},
		{"GET", basePath + "/accounts/" + accountID + "/storage/kv/namespaces/" + theirs.ID.String() + "/keys", "", "???----x"},
		{"GET", basePath + "/accounts/" + nsID, "", "xxxxxxxx"},
		{"GET", basePath + "/accounts/" + nsID + "/storage/kv/namespaces", "", "xxxxxxxx"},
		{"GET", basePath + "/user/tokens/verify", "", "++++++++"},
		{"GET", basePath + "/accounts", "", "++++++++"},
		{"GET", basePath + "/memberships", "", "++++++++"},
		{"GET", basePath + "/user", "", "+++xxxx+"},
	} {
		for i, p := range who {
			body := strings.Replace(tt.body, "NEW", fmt.Sprintf("new %d", i), 1)
			a := w.do(request{method: tt.method, path: tt.path, body: body, token: p.token})
			got := map[int]string{200: yes, 404: none}[a.status]
			switch {
			case a.status == 403 && a.Errors[0].Code == 10000 && a.Errors[0].Message == "Authentication error":
				got = no
			case a.status == 403 && a.Errors[0].Code == 9109 && a.Errors[0].Message == "Unauthorized to access requested resource":
				got = foreign
			}
			if want := tt.want[i : i+1]; got != want {
				t.Errorf("%s %s by %s: %q (%d %s), want %q", tt.method, tt.path, p.name, got, a.status, a.body, want)
			}
		}
	}
}

// TestVisibleNamespaces: a token for some namespaces lists those.
func TestVisibleNamespaces(t *testing.T) {
	w := newWorld(t)
	second, err := w.catalog.CreateNamespace(t.Context(), accountID, "second", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.catalog.CreateNamespace(t.Context(), accountID, "third", "", 0); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]int{
		w.token(catalog.Scope{Permission: catalog.Read}):                       3,
		w.token(catalog.Scope{Permission: catalog.Read, Namespace: second.ID}): 1,
		w.token(catalog.Scope{Permission: catalog.Read, Namespace: second.ID, Prefix: "a"}, catalog.Scope{Permission: catalog.Write, Namespace: w.ns.ID}): 2,
	} {
		a := w.do(request{method: "GET", path: in("/storage/kv/namespaces"), token: token})
		var list []space
		if a.result(&list); len(list) != want || a.ResultInfo.TotalCount != want {
			t.Errorf("%d namespaces, total %d, want %d", len(list), a.ResultInfo.TotalCount, want)
		}
	}
}

// TestDeadTokens: a token that has expired, or was revoked, opens nothing.
func TestDeadTokens(t *testing.T) {
	w := newWorld(t)
	for name, times := range map[string]string{
		"not yet valid": `"not_before":"2999-01-01T00:00:00Z",`,
		"revoked":       ``,
	} {
		var made apiToken
		w.post(in("/tokens"), `{"name":"t",`+times+`"policies":[`+accountPolicy+`]}`).result(&made)
		if name == "revoked" {
			w.do(request{method: "GET", path: "keys", token: made.Value}).ok()
			w.delete(in("/tokens/" + made.ID)).ok()
		}
		w.do(request{method: "GET", path: "keys", token: made.Value}).fails(403, 10000, "Authentication error")
		w.do(request{method: "GET", path: basePath + "/user/tokens/verify", token: made.Value}).fails(401, 1000, "Invalid API Token")
		w.do(request{method: "GET", path: in("/tokens/verify"), token: made.Value}).fails(401, 1000, "Invalid API Token")
		var shown apiToken
		if w.get(in("/tokens/" + made.ID)).result(&shown); shown.Status != "disabled" {
			t.Errorf("%s: status %q", name, shown.Status)
		}
	}
	var made apiToken
	soon := time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	w.post(in("/tokens"), `{"name":"t","expires_on":"`+soon+`","policies":[`+accountPolicy+`]}`).result(&made)
	nearkeytest.Until(t, "the token expires", func() bool {
		return w.do(request{method: "GET", path: "keys", token: made.Value}).status == 403
	})
}
