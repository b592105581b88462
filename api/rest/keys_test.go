package rest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/internal/listing"
	"github.com/nearkey/nearkey/kv"
)

func newRate(w *world) *kv.WriteRate { return kv.NewWriteRate(w.rules.Limits.WriteInterval) }

// fill writes keys k0000 … straight into the store.
func (w *world) fill(n int) {
	w.t.Helper()
	ns := kv.NewNamespace(w.store, w.ns.ID, w.rules)
	for i := range n {
		if err := ns.Put(w.t.Context(), fmt.Sprintf("k%04d", i), []byte("v"), kv.PutOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestListFields(t *testing.T) {
	w := newWorld(t)
	expires := w.rules.Now().Unix() + 1000
	w.put("values/plain", "v").ok()
	w.putForm(fmt.Sprintf("values/rich?expiration=%d", expires), field{"value", "v"}, field{"metadata", `{"a": [1, "<&>"]}`}).ok()
	w.put("values/q%22%5C%0A%C3%A9%3C", "v").ok()
	a := w.get("keys?prefix=").ok()
	want := fmt.Sprintf(`{"success":true,"errors":[],"messages":[],"result":[{"name":"plain"},{"name":"q\"\\\né<"},{"name":"rich","expiration":%d,"metadata":{"a":[1,"<&>"]}}],"result_info":{"count":3,"cursor":"","cursors":{"after":""}}}`, expires)
	if a.body != want {
		t.Errorf("got  %s\nwant %s", a.body, want)
	}
	if got := w.get("keys?prefix=none").ok().body; got != `{"success":true,"errors":[],"messages":[],"result":[],"result_info":{"count":0,"cursor":"","cursors":{"after":""}}}` {
		t.Errorf("empty listing: %s", got)
	}
}

func TestListPrefix(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{"a", "a b", "a+b", "a/b c", "b", "é", "éa"} {
		w.put("values/"+url.PathEscape(key), "v").ok()
	}
	for _, tt := range []struct {
		query string
		want  []string
	}{
		{"", []string{"a", "a b", "a+b", "a/b c", "b", "é", "éa"}},
		{"?prefix=a+", []string{"a b"}}, {"?prefix=a%20", []string{"a b"}}, {"?prefix=a%2B", []string{"a+b"}},
		{"?prefix=a/b", []string{"a/b c"}}, {"?prefix=%C3%A9", []string{"é", "éa"}}, {"?prefix=c&unknown=1", []string{}},
	} {
		if got := w.names(tt.query); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.query, got, tt.want)
		}
	}
}

// TestListPages follows both cursors, as different clients do.
func TestListPages(t *testing.T) {
	w := newWorld(t)
	const total = 2500
	w.fill(total)
	for _, tt := range []struct{ limit, pages int }{{0, 3}, {1000, 3}, {999, 3}, {500, 5}, {7, 358}} {
		query := "?prefix=k"
		if tt.limit > 0 {
			query += fmt.Sprintf("&limit=%d", tt.limit)
		}
		var all []string
		pages, cursor := 0, ""
		for {
			a := w.get("keys" + query + "&cursor=" + url.QueryEscape(cursor)).ok()
			var keys []struct{ Name string }
			if err := json.Unmarshal(a.Result, &keys); err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				all = append(all, k.Name)
			}
			pages++
			if a.ResultInfo.Cursor != a.ResultInfo.Cursors.After || a.ResultInfo.Count != len(keys) {
				t.Fatalf("result_info %+v of %d keys", a.ResultInfo, len(keys))
			}
			if cursor = a.ResultInfo.Cursor; cursor == "" {
				break
			}
			if len(keys) == 0 {
				t.Fatal("an empty page with a cursor")
			}
			if url.QueryEscape(cursor) != cursor {
				t.Errorf("the cursor %q does not survive a query", cursor)
			}
		}
		if len(all) != total || !slices.IsSorted(all) || len(slices.Compact(all)) != total || pages != tt.pages {
			t.Errorf("limit %d: %d keys in %d pages, want %d in %d", tt.limit, len(all), pages, total, tt.pages)
		}
	}
}

func TestListLimit(t *testing.T) {
	w := newWorld(t)
	w.fill(1001)
	for _, limit := range []int{1, 9, 10, 1000} {
		if got := len(w.names(fmt.Sprintf("?limit=%d", limit))); got != limit {
			t.Errorf("limit %d: %d keys", limit, got)
		}
	}
	if got := len(w.names("?limit=")); got != 1000 {
		t.Errorf("no limit: %d keys", got)
	}
	w.get("keys?limit=1001").fails(400, 10012, "list keys: 'Invalid limit of 1001. Please specify an integer between 1 and 1000.'")
	w.get("keys?limit=-1").fails(400, 10012, "list keys: 'Invalid limit of -1. Please specify an integer between 1 and 1000.'")
	for _, limit := range []string{"0", "x", "1.5", "99999999999999999999"} {
		w.get("keys?limit="+limit).fails(400, 10012, "list keys: 'Invalid limit of "+limit+". Please specify an integer greater than 0.'")
	}
}

func TestCursor(t *testing.T) {
	w := newWorld(t)
	for _, bad := range []string{"x", "null", "%2B%2F%3D", strings.Repeat("A", listing.MaxCursorBytes+1)} {
		w.get("keys?cursor="+bad).fails(400, 10012, "list keys: 'Invalid cursor. Please use the cursor of the previous page, or none to begin anew.'")
	}
	w.get("keys?cursor=" + listing.Cursor("k0001")).ok()
}

// TestLongListing is sent piece by piece, and is whole.
func TestLongListing(t *testing.T) {
	w := newWorld(t)
	ns := kv.NewNamespace(w.store, w.ns.ID, w.rules)
	metadata := []byte(`"` + strings.Repeat("m", 1000) + `"`)
	for i := range 1000 {
		if err := ns.Put(t.Context(), fmt.Sprintf("%s%04d", strings.Repeat("\x01", 500), i), nil, kv.PutOptions{Metadata: metadata}); err != nil {
			t.Fatal(err)
		}
	}
	a := w.get("keys").ok()
	if len(a.body) < writeChunk {
		t.Fatalf("%d bytes are too few for this test", len(a.body))
	}
	var keys []struct{ Name, Metadata string }
	if a.result(&keys); len(keys) != 1000 || keys[999].Name != strings.Repeat("\x01", 500)+"0999" || len(keys[999].Metadata) != 1000 {
		t.Errorf("%d keys", len(keys))
	}
}
