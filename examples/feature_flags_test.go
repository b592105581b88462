package examples_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// TestFeatureFlags: a Worker that runs does something else when a key is written.
func TestFeatureFlags(t *testing.T) {
	t.Parallel()
	p := deploy(t, "feature-flags")
	shop := worker("feature-flags")
	set := func(flags string) { p.nearkey(t, "kv", "put", "feature-flags-flags", "flags", flags) }
	sees := func(user, text string) func() error {
		return func() error {
			if a := shop.get(t, "/?user="+user); a.status != http.StatusOK || !strings.Contains(string(a.body), text) {
				return fmt.Errorf("%s gets status %d: %s", user, a.status, a.body)
			}
			return nil
		}
	}
	const before, after = "this is the old checkout", "this is the new checkout"
	check(t, sees("ada", before)())

	set(`{"new-checkout": {"on": true, "percent": 0, "users": ["ada"]}}`)
	nearkeytest.Eventually(t, "ada has the feature", sees("ada", after))
	check(t, sees("bob", before)())

	users := make([]string, 200)
	for i := range users {
		users[i] = fmt.Sprintf("user-%d", i)
	}
	have := func() (n int, who map[string]bool) {
		who = map[string]bool{}
		for _, u := range users {
			who[u] = sees(u, after)() == nil
			if who[u] {
				n++
			}
		}
		return n, who
	}
	set(`{"new-checkout": {"on": true, "percent": 20}, "sale": {"on": true}}`)
	nearkeytest.Eventually(t, "there is a sale", sees("bob", "Everything must go!"))
	few, first := have() // hashes of these names: always the same users
	if few < 20 || few > 60 {
		t.Errorf("%d of 200 users have a feature of 20 percent", few)
	}
	set(`{"new-checkout": {"on": true, "percent": 50}}`)
	nearkeytest.Eventually(t, "the sale is over", func() error { return not(sees("bob", "Everything must go!")()) })
	more, second := have()
	if more < 70 || more > 130 {
		t.Errorf("%d of 200 users have a feature of 50 percent", more)
	}
	for u := range first {
		if first[u] && !second[u] {
			t.Errorf("%s lost the feature when more users got it", u)
		}
	}
	// Off is off, whatever else it says, and so are flags that cannot be read.
	set(`{"new-checkout": {"on": false, "percent": 100, "users": ["ada"]}, "sale": {"on": true}}`)
	nearkeytest.Eventually(t, "there is a sale again", sees("ada", "Everything must go!"))
	check(t, sees("ada", before)())
	set(`this is no JSON`)
	nearkeytest.Eventually(t, "the shop goes on as it was built", func() error { return not(sees("ada", "Everything must go!")()) })
	check(t, sees("ada", before)())
}

// not complains if there is nothing to complain about.
func not(err error) error {
	if err != nil {
		return nil
	}
	return fmt.Errorf("it is still so")
}
