package examples_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// oauthApp is an app that signs people in.
type oauthApp struct {
	accounts site
	id       string
	redirect string
	verifier string
}

// query is what the app sends a browser to the Worker with.
func (a oauthApp) query() url.Values {
	challenge := sha256.Sum256([]byte(a.verifier))
	return url.Values{
		"response_type": {"code"}, "client_id": {a.id}, "redirect_uri": {a.redirect}, "state": {"a b&c"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}
}

// authorize follows Ada's browser to where it is sent.
func (a oauthApp) authorize(t *testing.T, query url.Values) *url.URL {
	t.Helper()
	sent := a.accounts.get(t, "/oauth/authorize?"+query.Encode(), "Cookie: session=ada").want(t, http.StatusFound, "").
		wantHeader(t, "Cache-Control", "no-store")
	target, err := url.Parse(sent.header.Get("Location"))
	check(t, err)
	return target
}

// code is a code for the app.
func (a oauthApp) code(t *testing.T) string {
	t.Helper()
	target := a.authorize(t, a.query())
	if got := target.Query(); !strings.HasPrefix(target.String(), a.redirect+"&") || len(got.Get("code")) != 43 ||
		got.Get("state") != "a b&c" || got.Get("iss") != "http://accounts.example" {
		t.Fatalf("the browser is sent to %s", target)
	}
	return target.Query().Get("code")
}

// form is what the app sends to get a token.
func (a oauthApp) form(code string) url.Values {
	return url.Values{
		"grant_type": {"authorization_code"}, "client_id": {a.id}, "redirect_uri": {a.redirect},
		"code_verifier": {a.verifier}, "code": {code},
	}
}

func (a oauthApp) exchange(t *testing.T, form url.Values) answer {
	t.Helper()
	return a.accounts.do(t, http.MethodPost, "/oauth/token", form.Encode(), "Content-Type: application/x-www-form-urlencoded").
		wantHeader(t, "Cache-Control", "no-store")
}

// token is the token of an answer.
func (a answer) token(t *testing.T) string {
	t.Helper()
	var granted struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Seconds int    `json:"expires_in"`
	}
	a.want(t, http.StatusOK, "").into(t, &granted)
	if len(granted.Token) != 43 || granted.Type != "Bearer" || granted.Seconds != 3600 {
		t.Fatalf("granted %+v", granted)
	}
	return granted.Token
}

func (a oauthApp) userinfo(t *testing.T, token string) answer {
	t.Helper()
	return a.accounts.get(t, "/oauth/userinfo", "Authorization: Bearer "+token)
}

// TestOAuthCodes: a code is good for ten minutes, for one use, for one app.
func TestOAuthCodes(t *testing.T) {
	t.Parallel()
	playOrigin(t, "accounts.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("session"); r.URL.Path == "/session" && err == nil {
			_, _ = fmt.Fprintf(w, `{"user": %q}`, c.Value)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "sign in at "+r.URL.RequestURI())
	}))
	p := copyProject(t, "oauth-codes")
	p.wrangler(t, "deploy", "--secrets-file", p.file(t, ".secrets", "TOKEN_KEY=one-two-three\n"))
	shop := oauthApp{"http://accounts.example", "shop", "https://shop.example/back?x=1", strings.Repeat("v.~-", 11)}
	p.nearkey(t, "kv", "put", "oauth-codes-grants", "client/shop", `{"redirects": ["https://other.example/", "`+shop.redirect+`"]}`)
	p.nearkey(t, "kv", "put", "oauth-codes-grants", "client/game", `{"redirects": ["`+shop.redirect+`"]}`)

	code := shop.code(t)
	token := shop.exchange(t, shop.form(code)).token(t)
	shop.userinfo(t, token).want(t, http.StatusOK, `{"sub":"ada","client_id":"shop"}`)
	grants := namespaceOf(t, "oauth-codes-grants")
	for _, k := range append(grants.keys(t, "code/"), grants.keys(t, "token/")...) {
		life := map[bool]int64{true: 600, false: 3600}[strings.HasPrefix(k.Name, "code/")]
		if left := k.Expiration - time.Now().Unix(); left > life || left < life-120 {
			t.Errorf("%s expires in %d s", k.Name, left)
		}
		stored := k.Name + p.nearkey(t, "kv", "get", "oauth-codes-grants", k.Name)
		if strings.Contains(stored, code) || strings.Contains(stored, token) {
			t.Errorf("a secret is stored: %s", stored)
		}
	}

	t.Run("authorize", func(t *testing.T) { oauthAuthorize(t, shop) })
	t.Run("exchange", func(t *testing.T) { oauthExchange(t, shop) })
	t.Run("twice", func(t *testing.T) { oauthTwice(t, shop) })
	t.Run("late", func(t *testing.T) { oauthLate(t, p, shop) })
}

// oauthAuthorize sends browsers that are not signed in, and those that somebody has
// sent with something else in mind.
func oauthAuthorize(t *testing.T, shop oauthApp) {
	query := shop.query()
	path := "/oauth/authorize?" + query.Encode()
	sent := shop.accounts.get(t, path).want(t, http.StatusFound, "")
	login, err := url.Parse(sent.header.Get("Location"))
	check(t, err)
	if login.Host != "accounts.example" || login.Path != "/login" || login.Query().Get("return_to") != path {
		t.Errorf("who is not signed in is sent to %s", login)
	}
	for _, address := range []string{
		"", "https://evil.example/", shop.redirect + "&more", "https://shop.example/back", "https://SHOP.example/back?x=1", "javascript:alert(1)",
	} {
		query := shop.query()
		query.Set("redirect_uri", address)
		a := shop.accounts.get(t, "/oauth/authorize?"+query.Encode(), "Cookie: session=ada")
		a.want(t, http.StatusBadRequest, "unknown").wantHeader(t, "Location", "")
	}
	for _, id := range []string{"", "nobody", "../code", "SHOP"} {
		query := shop.query()
		query.Set("client_id", id)
		shop.accounts.get(t, "/oauth/authorize?"+query.Encode(), "Cookie: session=ada").want(t, http.StatusBadRequest, "unknown")
	}
	shop.accounts.get(t, path+"&redirect_uri=https://evil.example/", "Cookie: session=ada").want(t, http.StatusBadRequest, "")
	for name, values := range map[string][]string{
		"response_type": {"token", ""}, "code_challenge_method": {"plain", ""}, "code_challenge": {"short", strings.Repeat("x", 44), ""},
	} {
		for _, value := range values {
			query := shop.query()
			query.Set(name, value)
			target := shop.authorize(t, query)
			if got := target.Query(); got.Get("error") == "" || got.Has("code") || got.Get("state") != "a b&c" || target.Host != "shop.example" {
				t.Errorf("%s=%s: the browser is sent to %s", name, value, target)
			}
		}
	}
}

// oauthExchange sends what does not go with a code, which stays good meanwhile.
func oauthExchange(t *testing.T, shop oauthApp) {
	code := shop.code(t)
	for name, values := range map[string][]string{
		"code":          {"", code[:42], strings.ToLower(code) + "x", strings.Repeat("x", 43)},
		"client_id":     {"", "game", "nobody"},
		"redirect_uri":  {"", "https://other.example/"},
		"code_verifier": {strings.Repeat("w", 44), shop.query().Get("code_challenge")},
	} {
		for _, value := range values {
			form := shop.form(code)
			form.Set(name, value)
			shop.exchange(t, form).want(t, http.StatusBadRequest, `"invalid_grant"`)
		}
	}
	for name, want := range map[string]string{"code_verifier": "invalid_request", "grant_type": "unsupported_grant_type"} {
		form := shop.form(code)
		form.Del(name)
		shop.exchange(t, form).want(t, http.StatusBadRequest, want)
	}
	twice := shop.form(code)
	twice.Add("client_id", "game")
	shop.exchange(t, twice).want(t, http.StatusBadRequest, "invalid_request")
	long := shop.form(code)
	long.Set("more", strings.Repeat("x", 8<<10))
	shop.exchange(t, long).want(t, http.StatusBadRequest, "invalid_request")
	shop.accounts.get(t, "/oauth/token?"+shop.form(code).Encode()).want(t, http.StatusNotFound, "")
	for _, bad := range []string{"", code, strings.Repeat("x", 43), strings.Repeat("x", 44)} {
		shop.userinfo(t, bad).want(t, http.StatusUnauthorized, "invalid_token")
	}
	shop.exchange(t, shop.form(code)).token(t)
}

// oauthTwice exchanges codes more than once.
func oauthTwice(t *testing.T, shop oauthApp) {
	code := shop.code(t)
	token := shop.exchange(t, shop.form(code)).token(t)
	shop.userinfo(t, token).want(t, http.StatusOK, "ada")
	shop.exchange(t, shop.form(code)).want(t, http.StatusBadRequest, "invalid_grant")
	nearkeytest.Eventually(t, "the token is revoked", func() error { return statusOf(shop.userinfo(t, token), http.StatusUnauthorized) })

	// At the same moment: whoever gets a token gets the same.
	code = shop.code(t)
	answers := make([]answer, 8)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { answers[i] = shop.exchange(t, shop.form(code)) })
	}
	all.Wait()
	tokens := map[string]bool{}
	for _, a := range answers {
		if a.status == http.StatusOK {
			tokens[a.token(t)] = true
			continue
		}
		a.want(t, http.StatusBadRequest, "invalid_grant")
	}
	if len(tokens) != 1 {
		t.Errorf("one code gave %d tokens", len(tokens))
	}
	if another := shop.exchange(t, shop.form(shop.code(t))).token(t); tokens[another] {
		t.Error("another code gave the same token")
	}
}

// oauthLate exchanges codes when their time is over.
func oauthLate(t *testing.T, p *project, shop oauthApp) {
	code := shop.code(t)
	hash := sha256.Sum256([]byte(code))
	key := fmt.Sprintf("code/%x", hash)
	var record map[string]any
	check(t, json.Unmarshal([]byte(p.nearkey(t, "kv", "get", "oauth-codes-grants", key)), &record))
	write := func(expires int64, args ...string) {
		record["expires"] = expires
		text, err := json.Marshal(record)
		check(t, err)
		p.nearkey(t, append([]string{"kv", "put", "oauth-codes-grants", key, string(text)}, args...)...)
	}
	refused := func() error { return statusOf(shop.exchange(t, shop.form(code)), http.StatusBadRequest) }
	write(time.Now().Unix()) // a copy that outlived its key
	check(t, refused())
	write(time.Now().Unix()+600, "--ttl", "1")
	nearkeytest.Eventually(t, "the key expires", func() error {
		_, err := p.try(t.Context(), shared.binary, "kv", "get", "oauth-codes-grants", key)
		return not(err)
	})
	nearkeytest.Eventually(t, "the code expires", refused)
	// The record of before is still good: it is time alone that was over.
	write(time.Now().Unix()+600, "--ttl", strconv.Itoa(600))
	nearkeytest.Eventually(t, "a code in time", func() error { return statusOf(shop.exchange(t, shop.form(code)), http.StatusOK) })
}
