package compat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Ways to see a key: each must stop at the key's second.
var sightings = []struct {
	name string
	sees func(ctx context.Context, ns namespace, key string) (bool, error)
}{
	{"get", func(ctx context.Context, ns namespace, key string) (bool, error) {
		_, found, err := rawDriver(ns).get(ctx, key)
		return found, err
	}},
	{"metadata", func(ctx context.Context, ns namespace, key string) (bool, error) {
		a, err := ns.do(ctx, http.MethodGet, ns.path()+"/metadata/"+key, nil)
		return a.status == http.StatusOK, err
	}},
	{"list", func(ctx context.Context, ns namespace, key string) (bool, error) {
		keys, err := ns.list(ctx, key, 1000)
		return len(keys) > 0, err
	}},
	{"bulk get", func(ctx context.Context, ns namespace, key string) (bool, error) {
		values, err := ns.bulkGet(ctx, []string{key})
		return values[key] != nil, err
	}},
}

// expires watches a key until some time after the second at which it expires, and
// complains if it is seen in that second or later, or is gone before. The server
// runs on this machine, so both have one clock: a look that began at the second or
// later must not find the key, one that ended before it must. It returns how many
// looks found the key.
func expires(ctx context.Context, ns namespace, key string, second int64) (found int, err error) {
	const watched = time.Second // beyond the expiration
	at := time.Unix(second, 0)
	for time.Now().Before(at.Add(watched)) {
		for _, look := range sightings {
			began := time.Now()
			sees, err := look.sees(ctx, ns, key)
			ended := time.Now()
			switch {
			case err != nil:
				return found, fmt.Errorf("%s: %w", look.name, err)
			case sees && !began.Before(at):
				return found, fmt.Errorf("%s sees %q %s after it expired", look.name, key, began.Sub(at))
			case !sees && ended.Before(at):
				return found, fmt.Errorf("%s does not see %q %s before it expires", look.name, key, at.Sub(ended))
			case sees:
				found++
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return found, nil
}

// expirationOf is the second at which a key expires, as the listing tells it.
func (n namespace) expirationOf(ctx context.Context, key string) (int64, error) {
	keys, err := n.list(ctx, key, 1000)
	if err != nil {
		return 0, err
	}
	if len(keys) != 1 || keys[0].Expiration == 0 {
		return 0, fmt.Errorf("listed %+v: want %q with an expiration", keys, key)
	}
	return keys[0].Expiration, nil
}

// expiring is a way to write a key that expires after some seconds.
type expiring struct {
	key  string
	ttl  int64
	puts func(ctx context.Context, key string) error
}

func expiringPuts(ns namespace, sdk *typescript) []expiring {
	put := func(query string, value string) func(context.Context, string) error {
		return func(ctx context.Context, key string) error {
			a, err := ns.do(ctx, http.MethodPut, ns.value(key)+query, []byte(value))
			return errors.Join(err, wantSuccess(a))
		}
	}
	return []expiring{
		{"ttl-of-1", 1, put("?expiration_ttl=1", "v")},
		{"large", 3, put("?expiration_ttl=3", strings.Repeat("v", 1<<20))}, // kept elsewhere than small values
		{"at-a-time", 3, func(ctx context.Context, key string) error {
			return put(fmt.Sprintf("?expiration=%d", time.Now().Unix()+3), "v")(ctx, key)
		}},
		{"by-curl", 2, func(ctx context.Context, key string) error {
			a, err := ns.curl(ctx, nil, ns.value(key)+"?expiration_ttl=2", "-X", "PUT", "-F", "value=v", "-F", "metadata={}")
			return errors.Join(err, wantSuccess(a))
		}},
		{"by-bulk", 2, func(ctx context.Context, key string) error {
			return ns.bulkPut(ctx, []pair{{Key: key, Value: "v", TTL: 2, Metadata: js{}}})
		}},
		{"by-typescript", 2, func(_ context.Context, key string) error {
			return sdk.call("kv.namespaces.values.update", nil, key, ns.jsParams(js{"value": "v", "expiration_ttl": 2}))
		}},
	}
}

// TestExpiry: keys of several clients are gone at their second from get, metadata,
// list and bulk get.
func TestExpiry(t *testing.T) {
	t.Parallel()
	ns, err := shared.open.createNamespace(t.Context(), t.Name())
	check(t, err)
	sdk := newTypescript(t, ns.endpoint)
	t.Run("keys", func(t *testing.T) { // ends when all of them have
		for _, e := range expiringPuts(ns, sdk) {
			t.Run(e.key, func(t *testing.T) {
				t.Parallel()
				expiresAsAsked(t, ns, e)
			})
		}
	})
	// Nothing of them is left to be seen; a key written anew is a new one.
	check(t, lists(t.Context(), rawDriver(ns), nil))
	check(t, ns.bulkPut(t.Context(), []pair{{Key: "by-bulk", Value: "again"}}))
	check(t, ns.stored(t.Context(), "by-bulk", []byte("again"), "null"))
}

func expiresAsAsked(t *testing.T, ns namespace, e expiring) {
	began := time.Now().Unix()
	check(t, e.puts(t.Context(), e.key))
	ended := time.Now().Unix()
	second, err := ns.expirationOf(t.Context(), e.key)
	if err != nil && time.Now().Unix() >= began+e.ttl {
		t.Skip("the machine is too slow to see the key before it expires")
	}
	check(t, err)
	if second < began+e.ttl || second > ended+e.ttl {
		t.Errorf("expires at %d: want %d s after %d to %d", second, e.ttl, began, ended)
	}
	found, err := expires(t.Context(), ns, e.key, second)
	check(t, err)
	t.Logf("seen %d times before its second", found)
}

// TestExpiryOverwritten: a write without an expiration makes a key permanent.
func TestExpiryOverwritten(t *testing.T) {
	t.Parallel()
	ns, err := shared.open.createNamespace(t.Context(), t.Name())
	check(t, err)
	check(t, ns.bulkPut(t.Context(), []pair{{Key: "k", Value: "v", TTL: 1, Metadata: "m"}}))
	check(t, rawDriver(ns).put(t.Context(), "k", []byte("w")))
	for expired := time.Now().Add(2 * time.Second); time.Now().Before(expired); {
		time.Sleep(20 * time.Millisecond)
	}
	check(t, ns.stored(t.Context(), "k", []byte("w"), "null"))
	keys, err := ns.list(t.Context(), "", 10)
	check(t, err)
	text, err := json.Marshal(keys)
	check(t, err)
	if string(text) != `[{"name":"k","expiration":0,"metadata":null}]` {
		t.Errorf("listed %s", text)
	}
}
