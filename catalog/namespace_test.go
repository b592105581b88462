package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

func TestTitles(t *testing.T) {
	c, _ := newCatalog(t)
	existing := createNamespace(t, c, "taken")
	victim := createNamespace(t, c, "victim")
	for name, tc := range map[string]struct {
		title string
		want  error
	}{
		"none":                   {"", ErrTitleMissing},
		"of one character":       {"x", nil},
		"of the most characters": {strings.Repeat("é", MaxTitleChars), nil},
		"of one too many":        {strings.Repeat("é", MaxTitleChars+1), ErrTitleTooLong},
		"taken":                  {existing.Title, ErrTitleTaken},
		"in another case":        {"TAKEN", nil},
		"with a NUL":             {"a\x00b", nil},
		"that is a number":       {"12345", nil},
		"like SQL":               {"'; drop table namespaces; --", nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := c.CreateNamespace(t.Context(), testAccount, tc.title, "", 0)
			if !errors.Is(err, tc.want) {
				t.Fatalf("create: error %v, want %v", err, tc.want)
			}
			if err == nil {
				if got, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil || got.Title != tc.title || got != n {
					t.Errorf("namespace %+v (%v), want %+v", got, err, n)
				}
				if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
					t.Fatal(err)
				}
			}
			n, err = c.RenameNamespace(t.Context(), testAccount, victim.ID, tc.title)
			if !errors.Is(err, tc.want) {
				t.Fatalf("rename: error %v, want %v", err, tc.want)
			}
			if err == nil && (n.Title != tc.title || n.ID != victim.ID || n.Created != victim.Created) {
				t.Errorf("renamed to %+v", n)
			}
		})
	}
}

func TestTitlesAreUniqueInAnAccountOnly(t *testing.T) {
	c, _ := newCatalog(t)
	createNamespace(t, c, "same")
	root := testRoot()
	root.AccountID = "ffffffffffffffffffffffffffffffff"
	if _, err := c.EnsureRoot(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	other, err := c.CreateNamespace(t.Context(), root.AccountID, "same", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Namespace(t.Context(), testAccount, other.ID)
	wantError(t, err, ErrNotFound)
	_, err = c.RenameNamespace(t.Context(), testAccount, other.ID, "stolen")
	wantError(t, err, ErrNotFound)
	wantError(t, c.DeleteNamespace(t.Context(), testAccount, other.ID), ErrNotFound)
	if got, err := c.Namespace(t.Context(), root.AccountID, other.ID); err != nil || got != other {
		t.Errorf("namespace %+v (%v), want %+v", got, err, other)
	}
}

func TestJurisdiction(t *testing.T) {
	c, _ := newCatalog(t)
	for _, jurisdiction := range []string{"eu", "us", "fedramp", ""} {
		n, err := c.CreateNamespace(t.Context(), testAccount, "in "+jurisdiction, jurisdiction, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil || got.Jurisdiction != jurisdiction {
			t.Errorf("namespace %+v (%v), want jurisdiction %q", got, err, jurisdiction)
		}
	}
	_, err := c.CreateNamespace(t.Context(), testAccount, "on the moon", "moon", 0)
	wantError(t, err, ErrInvalid)
}

func TestTooManyNamespaces(t *testing.T) {
	c, _ := newCatalog(t)
	const most = 3
	for i := range most {
		if _, err := c.CreateNamespace(t.Context(), testAccount, fmt.Sprint(i), "", most); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.CreateNamespace(t.Context(), testAccount, "one more", "", most)
	wantError(t, err, ErrTooManyNamespaces)
	if _, err := c.CreateNamespace(t.Context(), testAccount, "no limit", "", 0); err != nil {
		t.Error(err)
	}
}

func TestTooManyNamespacesAtOnce(t *testing.T) {
	c, _ := newCatalog(t)
	const most, tries = 5, 20
	errs := make([]error, tries)
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() { _, errs[i] = c.CreateNamespace(t.Context(), testAccount, fmt.Sprint(i), "", most) })
	}
	wg.Wait()
	created := 0
	for _, err := range errs {
		if err == nil {
			created++
			continue
		}
		wantError(t, err, ErrTooManyNamespaces)
	}
	if created != most {
		t.Errorf("%d namespaces were created, want %d", created, most)
	}
}

func TestOneTitleAtOnce(t *testing.T) {
	c, path := newCatalog(t)
	other := openAt(t, path) // as another process has it open
	const tries = 20
	errs := make([]error, tries)
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() {
			_, errs[i] = []*Catalog{c, other}[i%2].CreateNamespace(t.Context(), testAccount, "wanted", "", 0)
		})
	}
	wg.Wait()
	created := 0
	for _, err := range errs {
		if err == nil {
			created++
			continue
		}
		wantError(t, err, ErrTitleTaken)
	}
	if created != 1 {
		t.Errorf("%d namespaces have the title", created)
	}
}

func TestRenameNamespace(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "old")
	if _, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil { // now it is cached
		t.Fatal(err)
	}
	if _, err := c.RenameNamespace(t.Context(), testAccount, n.ID, "old"); err != nil {
		t.Errorf("to its own title: %v", err)
	}
	if _, err := c.RenameNamespace(t.Context(), testAccount, n.ID, "new"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil || got.Title != "new" {
		t.Errorf("namespace %+v (%v), want its new title at once", got, err)
	}
	createNamespace(t, c, "old")
	_, err := c.RenameNamespace(t.Context(), testAccount, kv.NamespaceID{1}, "x")
	wantError(t, err, ErrNotFound)
}

func TestDeleteNamespace(t *testing.T) {
	c, _ := newCatalog(t)
	n, other := createNamespace(t, c, "a"), createNamespace(t, c, "b")
	_, secret := createToken(t, c,
		Scope{Permission: Write, Namespace: n.ID}, Scope{Permission: Read, Namespace: n.ID, Prefix: "p"}, Scope{Permission: Read, Namespace: other.ID})
	if g, err := c.Authenticate(t.Context(), secret); err != nil || !g.Namespace(testAccount, n.ID, Write) {
		t.Fatalf("grant %+v (%v)", g, err)
	}
	if _, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	_, err := c.Namespace(t.Context(), testAccount, n.ID)
	wantError(t, err, ErrNotFound)
	wantError(t, c.DeleteNamespace(t.Context(), testAccount, n.ID), ErrNotFound)
	g, err := c.Authenticate(t.Context(), secret)
	if err != nil || len(g.Scopes) != 1 || g.Namespace(testAccount, n.ID, Read) || !g.Namespace(testAccount, other.ID, Read) {
		t.Errorf("grant %+v (%v), want only the scope of the other namespace", g, err)
	}
	createNamespace(t, c, "a") // its title is free again
}

func TestNamespaces(t *testing.T) {
	c, _ := newCatalog(t)
	if page, total, err := c.Namespaces(t.Context(), testAccount, NamespaceQuery{}); err != nil || total != 0 || len(page) != 0 {
		t.Errorf("page %v of %d (%v), want none", page, total, err)
	}
	var byTitle []Namespace
	for _, title := range []string{"é", "b", "B", "a", "10", "9", "a b", "\U0001F600"} {
		byTitle = append(byTitle, createNamespace(t, c, title))
	}
	slices.SortFunc(byTitle, func(a, b Namespace) int { return strings.Compare(a.Title, b.Title) })
	byID := slices.Clone(byTitle)
	slices.SortFunc(byID, func(a, b Namespace) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	reversed := func(list []Namespace) []Namespace {
		list = slices.Clone(list)
		slices.Reverse(list)
		return list
	}
	ids := func(list []Namespace) (ids []kv.NamespaceID) {
		for _, n := range list {
			ids = append(ids, n.ID)
		}
		return ids
	}
	for name, tc := range map[string]struct {
		query NamespaceQuery
		want  []Namespace
		total int
	}{
		"by title":            {NamespaceQuery{}, byTitle, 8},
		"by title, reversed":  {NamespaceQuery{Descending: true}, reversed(byTitle), 8},
		"by id":               {NamespaceQuery{OrderByID: true}, byID, 8},
		"by id, reversed":     {NamespaceQuery{OrderByID: true, Descending: true}, reversed(byID), 8},
		"a page":              {NamespaceQuery{Offset: 2, Limit: 3}, byTitle[2:5], 8},
		"the last page":       {NamespaceQuery{Offset: 6, Limit: 3}, byTitle[6:], 8},
		"past the end":        {NamespaceQuery{Offset: 8, Limit: 3}, nil, 8},
		"a negative offset":   {NamespaceQuery{Offset: -1, Limit: 1}, byTitle[:1], 8},
		"a limit too great":   {NamespaceQuery{Limit: MaxNamespacePage + 1}, byTitle, 8},
		"only some":           {NamespaceQuery{Only: ids(byTitle[3:5])}, byTitle[3:5], 2},
		"only some, a page":   {NamespaceQuery{Only: ids(byTitle[3:6]), Offset: 1, Limit: 1}, byTitle[4:5], 3},
		"only one, unknown":   {NamespaceQuery{Only: []kv.NamespaceID{{1}}}, nil, 0},
		"only none":           {NamespaceQuery{Only: []kv.NamespaceID{}}, nil, 0},
		"only the same twice": {NamespaceQuery{Only: append(ids(byTitle[:1]), byTitle[0].ID)}, byTitle[:1], 1},
		"only as many as may": {NamespaceQuery{Only: make([]kv.NamespaceID, MaxScopes)}, nil, 0},
	} {
		page, total, err := c.Namespaces(t.Context(), testAccount, tc.query)
		if err != nil || total != tc.total || !slices.Equal(page, tc.want) {
			t.Errorf("%s: %v of %d (%v), want %v of %d", name, page, total, err, tc.want, tc.total)
		}
	}
	_, _, err := c.Namespaces(t.Context(), testAccount, NamespaceQuery{Only: make([]kv.NamespaceID, MaxScopes+1)})
	wantError(t, err, ErrInvalid)
}
