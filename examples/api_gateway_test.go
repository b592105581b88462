package examples_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// TestAPIGateway: the API hears of those alone who have a token that is known, has
// not expired, and allows what they want.
func TestAPIGateway(t *testing.T) {
	t.Parallel()
	playOrigin(t, "api.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/orders", http.StatusSeeOther)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "path": r.URL.RequestURI(), "headers": r.Header})
	}))
	p := copyProject(t, "api-gateway")
	p.wrangler(t, "deploy", "--secrets-file", p.file(t, ".secrets", "GATEWAY_KEY=one-two-three\n"))
	api := site("http://api.example")
	grant := func(token, record string, args ...string) (key string) {
		hash := sha256.Sum256([]byte(token))
		key = hex.EncodeToString(hash[:])
		p.nearkey(t, append([]string{"kv", "put", "api-gateway-tokens", key, record}, args...)...)
		return key
	}
	now := time.Now().Unix()
	adas := grant("ada-"+strings.Repeat("a", 20), `{"user": "ada", "write": true}`, "--ttl", "3600")
	grant("bob-"+strings.Repeat("b", 20), `{"user": "bob"}`)
	grant("old-"+strings.Repeat("c", 20), fmt.Sprintf(`{"user": "old", "expires": %d}`, now-1))
	grant("new-"+strings.Repeat("d", 20), fmt.Sprintf(`{"user": "new", "expires": %d}`, now+3600))
	grant("brief-"+strings.Repeat("e", 20), `{"user": "brief"}`, "--ttl", "2")
	bearer := func(token string) string { return "Authorization: Bearer " + token }
	ada, bob := bearer("ada-"+strings.Repeat("a", 20)), bearer("bob-"+strings.Repeat("b", 20))

	var seen struct {
		Method, Path string
		Headers      http.Header
	}
	api.do(t, http.MethodPost, "/orders?x=1", "order", ada, "X-User: root", "X-Gateway-Key: guessed").want(t, http.StatusOK, "").into(t, &seen)
	if seen.Method != http.MethodPost || seen.Path != "/orders?x=1" {
		t.Errorf("the API heard %s %s", seen.Method, seen.Path)
	}
	for name, want := range map[string]string{"X-User": "ada", "X-Gateway-Key": "one-two-three", "Authorization": ""} {
		if got := strings.Join(seen.Headers.Values(name), ", "); got != want {
			t.Errorf("the API heard %s: %q, want %q", name, got, want)
		}
	}
	api.get(t, "/orders", bob).want(t, http.StatusOK, "")
	api.get(t, "/moved", bob).want(t, http.StatusSeeOther, "").wantHeader(t, "Location", "/orders") // the client's to follow
	api.get(t, "/orders", bearer("new-"+strings.Repeat("d", 20))).want(t, http.StatusOK, "")
	api.do(t, http.MethodPost, "/orders", "order", bob).want(t, http.StatusForbidden, "reading only")

	api.get(t, "/orders").want(t, http.StatusUnauthorized, "needed").wantHeader(t, "WWW-Authenticate", `Bearer realm="api"`)
	api.get(t, "/orders", "Authorization: Basic YTpi").want(t, http.StatusUnauthorized, "needed")
	for _, token := range []string{"ada-" + strings.Repeat("a", 21), adas, "old-" + strings.Repeat("c", 20)} {
		api.get(t, "/orders", bearer(token)).want(t, http.StatusUnauthorized, "unknown or has expired")
	}
	gone := func(token string) func() error {
		return func() error {
			if a := api.get(t, "/orders", token); a.status != http.StatusUnauthorized {
				return fmt.Errorf("status %d", a.status)
			}
			return nil
		}
	}
	nearkeytest.Eventually(t, "a token expires", gone(bearer("brief-"+strings.Repeat("e", 20))))
	p.nearkey(t, "kv", "delete", "api-gateway-tokens", adas)
	nearkeytest.Eventually(t, "a token is revoked", gone(ada))
	if err := gone(bob)(); err == nil {
		t.Error(errors.New("the revocation took another token with it"))
	}
}
