package catalog

import (
	"errors"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

func TestRestoredNamespacesAreWhatTheyWere(t *testing.T) {
	c, _ := newCatalog(t)
	was := Namespace{ID: kv.NamespaceID{7}, AccountID: testAccount, Title: "sessions", Jurisdiction: "eu", Created: loaded(stored(time.Unix(1_600_000_000, 0)))}
	if _, err := c.Namespace(t.Context(), testAccount, was.ID); !errors.Is(err, ErrNotFound) { // and that is cached
		t.Fatal(err)
	}
	for range 2 { // the second time it exists
		if err := c.CheckRestore(t.Context(), was); err != nil {
			t.Fatal(err)
		}
	}
	if every, err := c.EveryNamespace(t.Context(), kv.NamespaceID{}, 0); err != nil || len(every) != 0 {
		t.Fatalf("the check made %v, %v", every, err)
	}
	for range 2 {
		if err := c.RestoreNamespace(t.Context(), was); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Namespace(t.Context(), testAccount, was.ID); err != nil || got != was {
		t.Errorf("got %+v, %v; want %+v", got, err, was)
	}
	other := was
	other.ID = kv.NamespaceID{8}
	if err := errors.Join(c.CheckRestore(t.Context(), other), c.RestoreNamespace(t.Context(), other)); !errors.Is(err, ErrTitleTaken) {
		t.Errorf("a title that is taken: %v", err)
	}
	other.AccountID = "00000000000000000000000000000000"
	if err := c.CheckRestore(t.Context(), other); !errors.Is(err, ErrNotFound) {
		t.Errorf("an account that does not exist: %v", err)
	}
	for _, id := range []kv.NamespaceID{Reserved, Workers, {}} {
		if err := c.RestoreNamespace(t.Context(), Namespace{ID: id, AccountID: testAccount, Title: "x"}); !errors.Is(err, ErrInvalid) {
			t.Errorf("namespace %s: %v", id, err)
		}
	}
}

// The records of a deleted namespace are dropped again until DropGrace has passed:
// what is restored before would go with them.
func TestDeletedNamespaceIsRestoredOnlyWhenItsRecordsAreGone(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "gone")
	if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckRestore(t.Context(), n); !errors.Is(err, ErrDropped) {
		t.Errorf("check: %v", err)
	}
	if err := c.RestoreNamespace(t.Context(), n); !errors.Is(err, ErrDropped) {
		t.Errorf("restore: %v", err)
	}
	c.now = func() time.Time { return time.Now().Add(DropGrace) }
	if err := NewJanitor(c, memory.New(), nil).sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.RestoreNamespace(t.Context(), n); err != nil {
		t.Errorf("after the last drop: %v", err)
	}
}

func TestEveryNamespaceInPages(t *testing.T) {
	c, _ := newCatalog(t)
	want := map[kv.NamespaceID]bool{}
	for _, title := range []string{"a", "b", "c"} {
		want[createNamespace(t, c, title).ID] = true
	}
	var after kv.NamespaceID
	for range 3 {
		page, err := c.EveryNamespace(t.Context(), after, 1)
		if err != nil || len(page) != 1 || !want[page[0].ID] || page[0].ID.String() <= after.String() {
			t.Fatalf("after %s: %v, %v", after, page, err)
		}
		after = page[0].ID
		delete(want, after)
	}
	if page, err := c.EveryNamespace(t.Context(), after, 1); err != nil || page != nil {
		t.Errorf("after the last: %v, %v", page, err)
	}
}
