package compat

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"testing"
)

// driver is a client at work on one namespace, in the form in which one check can
// use all of them.
type driver struct {
	name   string
	put    func(ctx context.Context, key string, value []byte) error
	get    func(ctx context.Context, key string) (value []byte, found bool, err error)
	keys   func(ctx context.Context, prefix string) ([]string, error)
	remove func(ctx context.Context, key string) error
}

// client is a way to get a driver. What open starts ends with the test.
type client struct {
	name string
	slow bool // takes seconds for each call
	open func(*testing.T, namespace) driver
}

func clients() []client {
	return []client{
		{name: "raw", open: func(_ *testing.T, ns namespace) driver { return rawDriver(ns) }},
		{name: "curl", open: func(_ *testing.T, ns namespace) driver { return curlDriver(ns) }},
		{name: "go v6", open: func(_ *testing.T, ns namespace) driver { return goV6Driver(ns) }},
		{name: "go v0", open: goV0Driver},
		{name: "typescript", open: func(t *testing.T, ns namespace) driver {
			return typescriptDriver(newTypescript(t, ns.endpoint), ns)
		}},
		{name: "wrangler", slow: true, open: func(t *testing.T, ns namespace) driver { return newWrangler(t, ns.endpoint).driver(ns) }},
	}
}

// drivers are all clients on one namespace.
func drivers(t *testing.T, ns namespace) (all []driver) {
	for _, c := range clients() {
		d := c.open(t, ns)
		d.name = c.name
		all = append(all, d)
	}
	return all
}

// quickDrivers are those that take no seconds.
func quickDrivers(t *testing.T, ns namespace) (all []driver) {
	for _, c := range clients() {
		if !c.slow {
			d := c.open(t, ns)
			d.name = c.name
			all = append(all, d)
		}
	}
	return all
}

// rawDriver is no real client: net/http, to tell a fault of the server from one of
// a client.
func rawDriver(ns namespace) driver {
	return driver{
		put: func(ctx context.Context, key string, value []byte) error {
			a, err := ns.do(ctx, http.MethodPut, ns.value(key), value)
			if err == nil {
				err = wantSuccess(a)
			}
			return err
		},
		get: func(ctx context.Context, key string) ([]byte, bool, error) {
			a, err := ns.do(ctx, http.MethodGet, ns.value(key), nil)
			if err != nil {
				return nil, false, err
			}
			if a.status == http.StatusNotFound {
				return nil, false, wantFailure(a, http.StatusNotFound, 10009, "get: 'key not found'")
			}
			if a.status != http.StatusOK {
				return nil, false, fmt.Errorf("status %d, %.300q", a.status, a.body)
			}
			return a.body, true, nil
		},
		keys: func(ctx context.Context, prefix string) ([]string, error) {
			all, err := ns.list(ctx, prefix, 1000)
			return names(all), err
		},
		remove: func(ctx context.Context, key string) error {
			_, err := ns.call(ctx, http.MethodDelete, ns.value(key), nil)
			return err
		},
	}
}

// roundTrip writes a key, reads it, finds it in the listing of a prefix, deletes
// it, and finds it gone. Nothing else may be under the prefix.
func roundTrip(ctx context.Context, d driver, prefix, key string, value []byte) error {
	if err := d.put(ctx, key, value); err != nil {
		return fmt.Errorf("put %q: %w", key, err)
	}
	got, found, err := d.get(ctx, key)
	if err != nil || !found {
		return fmt.Errorf("get %q after put: found %t, %w", key, found, err)
	}
	if err := wantBytes(got, value); err != nil {
		return fmt.Errorf("get %q: %w", key, err)
	}
	keys, err := d.keys(ctx, prefix)
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	if err := wantKeys(keys, []string{key}); err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	if err := d.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	if _, found, err := d.get(ctx, key); err != nil || found {
		return fmt.Errorf("get %q after delete: found %t, %w", key, found, err)
	}
	return nil
}

// lists complains if a client's listing of the whole namespace is not want.
func lists(ctx context.Context, d driver, want []string) error {
	got, err := d.keys(ctx, "")
	if err != nil {
		return err
	}
	return wantKeys(got, want)
}

// oddKey has all that clients, routers and shells like to get wrong.
const oddKey = "a/b c?#%2F&+é."

// everyByte is a value of all bytes, twice, that is not valid UTF-8.
func everyByte() []byte {
	value := make([]byte, 512)
	for i := range value {
		value[i] = byte(i)
	}
	return value
}

// TestRoundTrips: every client writes, reads, lists and deletes the odd key.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	for _, d := range drivers(t, newNamespace(t)) {
		t.Run(d.name, func(t *testing.T) {
			check(t, roundTrip(t.Context(), d, "a/b ", oddKey, everyByte()))
		})
	}
}

// TestClientsAgree: what one client wrote, all others read. Keys go through a
// different encoder in each of them.
func TestClientsAgree(t *testing.T) {
	t.Parallel()
	all := quickDrivers(t, newNamespace(t))
	keys := []string{
		oddKey, "plain", "a//b", "/lead", "trail/", "a/./b", "a/../b", "...", "%", "%41", "%2e%2e", "é", "日本語/キー",
		"🙂", "!$&'()*+,;=:@", `"quoted"`, "back\\slash", "space ", " space", "tab\there", "line\nbreak", "[a]{b}|^`<>~",
		"nul\x00", "\x7f", "e\u0301 (not composed)", "\ufeffbom",
	}
	for i, writer := range all {
		t.Run(writer.name, func(t *testing.T) {
			for k, key := range keys {
				value := fmt.Appendf(nil, "%s wrote key %d", writer.name, k)
				check(t, writer.put(t.Context(), key, value))
				reader := all[(i+1+k%(len(all)-1))%len(all)]
				got, found, err := reader.get(t.Context(), key)
				if err != nil || !found {
					t.Fatalf("%s does not read %q: found %t, %v", reader.name, key, found, err)
				}
				if err := wantBytes(got, value); err != nil {
					t.Fatalf("%s reads %q: %v", reader.name, key, err)
				}
			}
			sorted := slices.Sorted(slices.Values(keys))
			for _, reader := range all {
				if err := lists(t.Context(), reader, sorted); err != nil {
					t.Errorf("%s lists: %v", reader.name, err)
				}
			}
		})
	}
}
