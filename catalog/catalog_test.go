package catalog

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	c, err := Open(t.Context(), path)
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

func TestFilesAreOfTheirOwnerAlone(t *testing.T) {
	c, path := newCatalog(t)
	createNamespace(t, c, "a")
	check := func() {
		t.Helper()
		for _, name := range []string{path, path + "-wal", path + "-shm"} {
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != 0o600 {
				t.Errorf("%s has mode %o, want 600", filepath.Base(name), got)
			}
		}
	}
	check()
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	openAt(t, path)
	check()
}

func TestDatabaseIsSetUpForDurability(t *testing.T) {
	c, _ := newCatalog(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": busyMillis} {
		for name, db := range map[string]*sql.DB{"writer": c.db.write, "reader": c.db.read} {
			var got string
			if err := db.QueryRowContext(t.Context(), "pragma "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s of the %s is %q (%v), want %q", pragma, name, got, err, want)
			}
		}
	}
	if _, err := c.db.read.ExecContext(t.Context(), `delete from tokens`); err == nil {
		t.Error("a reader can write")
	}
}

func TestPathWithAwkwardCharacters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?c#d%20e&mode=memory.db")
	openAt(t, path)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("not a database. "), 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ path, says string }{
		"a missing folder": {filepath.Join(dir, "none", "catalog.db"), "no such file or directory"},
		"a folder":         {dir, "is a directory"},
		"another file":     {garbage, "not a database"},
	} {
		_, err := Open(t.Context(), tc.path)
		if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("open %s: error %v, want one with %q and the path", name, err, tc.says)
		}
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(t.Context(), path)
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

// A copy of the files without a clean close is what a crash leaves behind.
func TestAcknowledgedChangesSurviveACrash(t *testing.T) {
	c, path := newCatalog(t)
	crashed := filepath.Join(t.TempDir(), "catalog.db")
	for i := range 20 {
		n := createNamespace(t, c, fmt.Sprint(i))
		for _, suffix := range []string{"", "-wal"} {
			data, err := os.ReadFile(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(crashed+suffix, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		after, err := Open(t.Context(), crashed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := after.Namespace(t.Context(), testAccount, n.ID); err != nil || got != n {
			t.Errorf("after a crash namespace %d is %+v (%v)", i, got, err)
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(crashed + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
}

func TestSecretsAreNotInTheFiles(t *testing.T) {
	c, path := newCatalog(t)
	_, secret := createToken(t, c, Scope{Permission: Write})
	root := testRoot()
	if _, err := c.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	hash := hashSecret(secret)
	foundHash := false
	for _, suffix := range []string{"", "-wal", "-shm"} {
		data, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		for name, s := range map[string]string{"token": secret, "root token": root.Token, "root key": root.Key} {
			if bytes.Contains(data, []byte(s)) {
				t.Errorf("the %s is in the file catalog.db%s", name, suffix)
			}
		}
		foundHash = foundHash || bytes.Contains(data, hash[:])
	}
	if !foundHash {
		t.Error("the hash is not in the files either: the test looks at the wrong ones")
	}
}

func TestFullDatabase(t *testing.T) {
	c, _ := newCatalog(t)
	kept := createNamespace(t, c, "kept")
	if _, err := c.db.write.ExecContext(t.Context(), `pragma max_page_count = 1`); err != nil {
		t.Fatal(err) // SQLite takes the present size for a lesser one
	}
	long := strings.Repeat("x", MaxTitleChars-8)
	var err error
	created := 1
	for ; err == nil && created < 1000; created++ {
		_, err = c.CreateNamespace(t.Context(), testAccount, fmt.Sprintf("%s%08d", long, created), "", 0)
	}
	wantError(t, err, kv.ErrFull)
	if _, _, err := c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "t", Scopes: manyScopes(kept.ID, MaxScopes)}); !errors.Is(err, kv.ErrFull) {
		t.Errorf("create a token: error %v, want %v", err, kv.ErrFull)
	}

	if _, total, err := c.Namespaces(t.Context(), testAccount, NamespaceQuery{}); err != nil || total != created-1 {
		t.Errorf("%d namespaces (%v), want the %d that were acknowledged", total, err, created-1)
	}
	if tokens, err := c.Tokens(t.Context(), testAccount); err != nil || len(tokens) != 1 {
		t.Errorf("%d tokens (%v), want the root token: half a token was created", len(tokens), err)
	}
	if _, err := c.db.write.ExecContext(t.Context(), `pragma max_page_count = 100000`); err != nil {
		t.Fatal(err)
	}
	createNamespace(t, c, "there is space again")
}

func manyScopes(ns kv.NamespaceID, n int) []Scope {
	scopes := make([]Scope, n)
	for i := range scopes {
		scopes[i] = Scope{Permission: Read, Namespace: ns, Prefix: strings.Repeat(string(rune('a'+i%26)), kv.MaxKeyBytes)}
	}
	return scopes
}

func TestReadOnlyDatabase(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "a")
	if _, err := c.db.write.ExecContext(t.Context(), `pragma query_only = 1`); err != nil {
		t.Fatal(err)
	}
	_, err := c.CreateNamespace(t.Context(), testAccount, "b", "", 0)
	wantError(t, err, ErrUnavailable)
	if !strings.Contains(err.Error(), "readonly") {
		t.Errorf("error %q does not say why", err)
	}
	wantError(t, c.DeleteNamespace(t.Context(), testAccount, n.ID), ErrUnavailable)
	if got, err := c.Namespace(t.Context(), testAccount, n.ID); err != nil || got != n {
		t.Errorf("namespace %+v (%v), want it unchanged", got, err)
	}
}

func TestReadOnlyFile(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("to root no file is read-only")
	}
	path := filepath.Join(t.TempDir(), "catalog.db")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "readonly") {
		t.Errorf("error %v, want one that says readonly", err)
	}
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
