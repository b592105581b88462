package compat

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	cloudflare "github.com/cloudflare/cloudflare-go/v6"
	"github.com/cloudflare/cloudflare-go/v6/kv"
)

// pagedKeys is the size of the namespace that every pager goes through.
const pagedKeys = 25_000

// fillPaged writes the keys that every pager must find, and returns them in order.
func fillPaged(ctx context.Context, ns namespace) ([]string, error) {
	want := make([]string, pagedKeys)
	pairs := make([]pair, pagedKeys)
	for i := range pairs {
		want[i] = fmt.Sprintf("dir ü/%05d+&", i)
		pairs[i] = pair{Key: want[i], Value: "v"}
		if i%10 == 0 {
			pairs[i].Metadata = js{"i": i}
		}
	}
	for chunk := range slices.Chunk(pairs, maxBulkPairs) {
		if err := ns.bulkPut(ctx, chunk); err != nil {
			return nil, err
		}
	}
	return want, nil
}

// TestKeyPagers: a namespace of 25,000 keys through the pager of every client.
func TestKeyPagers(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	want, err := fillPaged(t.Context(), ns)
	check(t, err)
	for _, d := range drivers(t, ns) {
		t.Run(d.name, func(t *testing.T) {
			check(t, lists(t.Context(), d, want))
			under, err := d.keys(t.Context(), "dir ü/1")
			check(t, err)
			check(t, wantKeys(under, want[10_000:20_000]))
			none, err := d.keys(t.Context(), "dir ü/3")
			check(t, err)
			check(t, wantKeys(none, nil))
		})
	}
	t.Run("raw, 333 a page", func(t *testing.T) {
		keys, err := ns.list(t.Context(), "", 333)
		check(t, err)
		check(t, wantKeys(names(keys), want))
	})
	t.Run("a last page that is full", func(t *testing.T) {
		keys, err := ns.list(t.Context(), "dir ü/24", 1000)
		check(t, err)
		check(t, wantKeys(names(keys), want[24_000:]))
	})
}

// pagedSpaces is a number of namespaces that is several pages to every client.
const pagedSpaces = 230

// TestNamespacePagers: every client finds all namespaces of an account, and its
// pager ends.
func TestNamespacePagers(t *testing.T) {
	t.Parallel()
	s := ownServer(t) // no other test changes the pages
	ctx := t.Context()
	want := make([]string, pagedSpaces) // ids by title
	for i := range want {
		ns, err := s.createNamespace(ctx, fmt.Sprintf("title %03d", i))
		check(t, err)
		want[i] = ns.id
	}
	t.Run("raw", func(t *testing.T) {
		for _, page := range []struct{ page, perPage, from, to int }{{1, 20, 0, 20}, {12, 20, 220, 230}, {13, 20, 230, 230}, {1, 1000, 0, 230}, {2, 1000, 230, 230}} {
			a, err := s.call(ctx, http.MethodGet, fmt.Sprintf("%s?page=%d&per_page=%d", s.spaces(), page.page, page.perPage), nil)
			check(t, err)
			var spaces []jsSpace
			check(t, json.Unmarshal(a.Result, &spaces))
			check(t, wantKeys(ids(spaces), want[page.from:page.to]))
			if pages := (pagedSpaces + page.perPage - 1) / page.perPage; a.Info.TotalCount != pagedSpaces || a.Info.TotalPages != pages || a.Info.Count != page.to-page.from {
				t.Errorf("result_info %+v", a.Info)
			}
		}
	})
	t.Run("go v6", func(t *testing.T) {
		pager := newGoV6(s.endpoint).ListAutoPaging(ctx, kv.NamespaceListParams{AccountID: cloudflare.F(s.account)})
		var got []string
		for pager.Next() {
			got = append(got, pager.Current().ID)
		}
		check(t, pager.Err())
		check(t, wantKeys(got, want))
	})
	t.Run("go v0", func(t *testing.T) {
		got, err := goV0Spaces(ctx, newGoV0(t, s.endpoint), s.account)
		check(t, err)
		check(t, wantKeys(got, want))
	})
	t.Run("typescript", func(t *testing.T) {
		var spaces []jsSpace
		check(t, newTypescript(t, s.endpoint).all("kv.namespaces.list", &spaces, js{"account_id": s.account, "order": "title", "direction": "desc"}))
		slices.Reverse(spaces)
		check(t, wantKeys(ids(spaces), want))
	})
	t.Run("wrangler", func(t *testing.T) {
		w := newWrangler(t, s.endpoint)
		var spaces []jsSpace
		check(t, json.Unmarshal(w.ok(t, []string{"kv", "namespace", "list"}).stdout, &spaces))
		check(t, wantKeys(ids(spaces), want))
		// By its title it is on the third page of a pager of another kind.
		w.ok(t, []string{"kv", "namespace", "rename", "title 229", "--new-name", "renamed"})
		check(t, namespace{s.endpoint, want[229]}.titled(ctx, "renamed"))
	})
}

func ids(spaces []jsSpace) []string {
	all := make([]string, len(spaces))
	for i, s := range spaces {
		all[i] = s.ID
	}
	return all
}
