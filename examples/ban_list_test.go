package examples_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// TestBanList: banned users and lost devices are kept from the app until the ban ends.
func TestBanList(t *testing.T) {
	t.Parallel()
	playOrigin(t, "app.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "welcome "+r.Header.Get("X-User-Id"))
	}))
	p := copyProject(t, "ban-list")
	p.wrangler(t, "deploy", "--secrets-file", p.file(t, ".secrets", "ADMIN_TOKEN=one-two-three\n"))
	app := site("http://app.example")
	const admin = "Authorization: Bearer one-two-three"
	is := func(status int, headers ...string) func() error {
		return func() error {
			if a := app.get(t, "/", headers...); a.status != status {
				return fmt.Errorf("status %d, want %d: %s", a.status, status, a.body)
			}
			return nil
		}
	}

	// Nobody is banned, and that is cached.
	app.get(t, "/", "X-User-Id: mallory", "X-Device-Id: A1").want(t, http.StatusOK, "welcome mallory")
	app.get(t, "/").want(t, http.StatusOK, "welcome")
	app.do(t, http.MethodPut, "/.bans/users/mallory", `{"reason": "spam", "seconds": 3600}`, admin).want(t, http.StatusCreated, "spam")
	app.do(t, http.MethodPut, "/.bans/devices/A1", `{"reason": "lost"}`, admin).want(t, http.StatusCreated, `"until":null`)
	nearkeytest.Eventually(t, "a user is banned", is(http.StatusForbidden, "X-User-Id: mallory"))
	nearkeytest.Eventually(t, "a device is banned", is(http.StatusForbidden, "X-User-Id: ada", "X-Device-Id: A1"))
	banned := app.get(t, "/", "X-User-Id: mallory").want(t, http.StatusForbidden, "spam")
	if banned.header.Get("Retry-After") == "" {
		t.Error("a ban that ends does not say when")
	}
	app.get(t, "/", "X-User-Id: ada").want(t, http.StatusOK, "welcome ada")

	var list struct{ Bans []struct{ ID, Reason string } }
	app.get(t, "/.bans/users/", admin).want(t, http.StatusOK, "").into(t, &list)
	if len(list.Bans) != 1 || list.Bans[0].ID != "mallory" || list.Bans[0].Reason != "spam" {
		t.Fatalf("the banned users are %+v", list.Bans)
	}
	app.get(t, "/.bans/devices/A1", admin).want(t, http.StatusOK, "lost")
	for _, k := range namespaceOf(t, "ban-list-bans").keys(t, "") {
		if expires := k.Expiration != 0; expires != strings.HasPrefix(k.Name, "users/") {
			t.Errorf("%s expires at %d", k.Name, k.Expiration)
		}
	}

	// A device that is found, a ban that ends by itself.
	app.do(t, http.MethodDelete, "/.bans/devices/A1", "", admin).want(t, http.StatusNoContent, "")
	app.get(t, "/.bans/devices/A1", admin).want(t, http.StatusNotFound, "")
	nearkeytest.Eventually(t, "the device is let in", is(http.StatusOK, "X-Device-Id: A1"))
	app.do(t, http.MethodPut, "/.bans/users/hasty", `{"seconds": 2}`, admin).want(t, http.StatusCreated, "")
	nearkeytest.Eventually(t, "a ban ends", is(http.StatusOK, "X-User-Id: hasty"))

	// Those who are no administrators, and what makes no sense.
	for _, header := range []string{"X: y", "Authorization: Bearer one-two-four", "Authorization: Bearer "} {
		app.do(t, http.MethodPut, "/.bans/users/ada", "{}", header).want(t, http.StatusUnauthorized, "not for you")
	}
	for _, bad := range []string{"nonsense", `{"seconds": -1}`, `{"seconds": "9"}`, `{"reason": 5}`} {
		app.do(t, http.MethodPut, "/.bans/users/ada", bad, admin).want(t, http.StatusBadRequest, "want")
	}
	app.do(t, http.MethodPost, "/.bans/users/ada", "{}", admin).want(t, http.StatusMethodNotAllowed, "")
	app.do(t, http.MethodPut, "/.bans/cats/tom", "{}", admin).want(t, http.StatusNotFound, "")
	app.get(t, "/", "X-User-Id: ada").want(t, http.StatusOK, "welcome ada")
}
