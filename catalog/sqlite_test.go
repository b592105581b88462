package catalog

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

// These tests are about SQLite and its files; the others hold for any database.

func TestFilesAreOfTheirOwnerAlone(t *testing.T) {
	once(t)
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
	once(t)
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
	once(t)
	path := filepath.Join(t.TempDir(), "a b?c#d%20e&mode=memory.db")
	openAt(t, path)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	once(t)
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

// A copy of the files without a clean close is what a crash leaves behind.
func TestAcknowledgedChangesSurviveACrash(t *testing.T) {
	once(t)
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
	once(t)
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
	once(t)
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

func TestReadOnlyDatabase(t *testing.T) {
	once(t)
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
	once(t)
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
