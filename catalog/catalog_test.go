package catalog

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const testAccount = "0123456789abcdef0123456789abcdef"

func testRoot() Root {
	return Root{AccountID: testAccount, Token: "root-token-0123456789", Email: "owner@example.com", Key: "root-key-0123456789"}
}

// openAt opens the catalog at path and closes it when the test ends.
func openAt(t testing.TB, path string) *Catalog {
	t.Helper()
	c, err := openSteps(t, path, migrations())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newCatalog returns a catalog with the root of testRoot, and its file.
func newCatalog(t testing.TB) (*Catalog, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path)
	if _, err := c.EnsureRoot(t.Context(), testRoot()); err != nil {
		t.Fatal(err)
	}
	return c, path
}

func createNamespace(t testing.TB, c *Catalog, title string) Namespace {
	t.Helper()
	n, err := c.CreateNamespace(t.Context(), testAccount, title, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func createToken(t testing.TB, c *Catalog, scopes ...Scope) (Token, string) {
	t.Helper()
	token, secret, err := c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "test", Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return token, secret
}

// breakDatabase makes every later query fail.
func breakDatabase(t testing.TB, c *Catalog) {
	t.Helper()
	if err := c.db.close(); err != nil {
		t.Fatal(err)
	}
}

// wantError fails the test unless err is want, among others.
func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := openSteps(t, path, migrations())
	if err != nil {
		t.Fatal(err)
	}
	account, err := c.EnsureRoot(t.Context(), testRoot())
	if err != nil {
		t.Fatal(err)
	}
	n := createNamespace(t, c, "title")
	token, secret := createToken(t, c, Scope{Permission: Read, Namespace: n.ID, Prefix: "a\x00b/"})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	c = openAt(t, path)
	if again, err := c.EnsureRoot(t.Context(), testRoot()); err != nil || again != account {
		t.Errorf("account %+v (%v), want %+v", again, err, account)
	}
	if got, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil || got != n {
		t.Errorf("namespace %+v (%v), want %+v", got, err, n)
	}
	g, err := c.Authenticate(t.Context(), secret)
	if err != nil || fmt.Sprint(g.Token) != fmt.Sprint(token) {
		t.Errorf("token %+v (%v), want %+v", g.Token, err, token)
	}
}

func manyScopes(ns kv.NamespaceID, n int) []Scope {
	scopes := make([]Scope, n)
	for i := range scopes {
		scopes[i] = Scope{Permission: Read, Namespace: ns, Prefix: strings.Repeat(string(rune('a'+i%26)), kv.MaxKeyBytes)}
	}
	return scopes
}

func TestUnavailable(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "a")
	breakDatabase(t, c)
	for name, call := range map[string]func(context.Context) error{
		"Authenticate":    func(ctx context.Context) error { _, err := c.Authenticate(ctx, "x"); return err },
		"AuthenticateKey": func(ctx context.Context) error { _, err := c.AuthenticateKey(ctx, "x", "y"); return err },
		"EnsureRoot":      func(ctx context.Context) error { _, err := c.EnsureRoot(ctx, testRoot()); return err },
		"Accounts":        func(ctx context.Context) error { _, err := c.Accounts(ctx); return err },
		"Account":         func(ctx context.Context) error { _, err := c.Account(ctx, testAccount); return err },
		"CreateNamespace": func(ctx context.Context) error {
			_, err := c.CreateNamespace(ctx, testAccount, "b", "", 0)
			return err
		},
		"Namespace":       func(ctx context.Context) error { _, err := c.Namespace(ctx, testAccount, n.ID); return err },
		"RenameNamespace": func(ctx context.Context) error { _, err := c.RenameNamespace(ctx, testAccount, n.ID, "b"); return err },
		"DeleteNamespace": func(ctx context.Context) error { return c.DeleteNamespace(ctx, testAccount, n.ID) },
		"Namespaces": func(ctx context.Context) error {
			_, _, err := c.Namespaces(ctx, testAccount, NamespaceQuery{})
			return err
		},
		"CreateToken": func(ctx context.Context) error {
			_, _, err := c.CreateToken(ctx, Token{AccountID: testAccount, Name: "t", Scopes: []Scope{{Permission: Read}}})
			return err
		},
		"Tokens":      func(ctx context.Context) error { _, err := c.Tokens(ctx, testAccount); return err },
		"Token":       func(ctx context.Context) error { _, err := c.Token(ctx, testAccount, "x"); return err },
		"RevokeToken": func(ctx context.Context) error { return c.RevokeToken(ctx, testAccount, "x") },
	} {
		t.Run(name, func(t *testing.T) {
			err := call(t.Context())
			wantError(t, err, ErrUnavailable)
			wantError(t, err, kv.ErrUnavailable)
			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			if err := call(cancelled); !errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnavailable) {
				t.Errorf("with a cancelled context: error %v", err)
			}
		})
	}
}

func TestCancelledContext(t *testing.T) {
	c, _ := newCatalog(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.CreateNamespace(ctx, testAccount, "a", "", 0)
	wantError(t, err, context.Canceled)
	_, err = c.Authenticate(ctx, testRoot().Token)
	wantError(t, err, context.Canceled)
	if _, err := c.Authenticate(t.Context(), testRoot().Token); err != nil {
		t.Errorf("after a call with a cancelled context: %v", err)
	}
	createNamespace(t, c, "a")
}

func TestTimesKeepEveryYear(t *testing.T) {
	for _, text := range []string{"0001-01-01T00:00:01Z", "1969-12-31T23:59:59Z", "2026-01-02T03:04:05.000006Z", "9999-12-31T23:59:59Z"} {
		want, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		if got := loaded(stored(want)); !got.Equal(want) {
			t.Errorf("%s is stored as %s", want, got)
		}
	}
	if !loaded(stored(time.Time{})).IsZero() {
		t.Error("no time does not stay no time")
	}
}
