package catalog

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// later are the migrations of some later program.
func later(statements ...string) []migration {
	return append(migrations(), migration{"a later step", statements})
}

func TestMigrationFromAnOlderSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path)
	if _, err := c.EnsureRoot(t.Context(), testRoot()); err != nil {
		t.Fatal(err)
	}
	n := createNamespace(t, c, "a")

	newer, err := openSteps(t, path, later(
		`alter table namespaces add column note text not null default 'none'`,
		`create table extra (id text not null primary key)`))
	if err != nil {
		t.Fatal(err)
	}
	defer newer.Close()
	if got, err := newer.Namespace(t.Context(), testAccount, n.ID); err != nil || got != n {
		t.Errorf("after a migration the namespace is %+v (%v), want %+v", got, err, n)
	}
	var note string
	var versions int
	if err := newer.db.read.QueryRowContext(t.Context(), `select note from namespaces`).Scan(&note); err != nil || note != "none" {
		t.Errorf("the new column holds %q (%v)", note, err)
	}
	if err := newer.db.read.QueryRowContext(t.Context(), `select max(version) from schema_versions`).Scan(&versions); err != nil || versions != len(migrations())+1 {
		t.Errorf("schema version %d (%v), want %d", versions, err, len(migrations())+1)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	newer, err := openSteps(t, path, later(`create table extra (id text not null primary key)`))
	if err != nil {
		t.Fatal(err)
	}
	if err := newer.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = openSteps(t, path, migrations())
	if err == nil {
		t.Fatal("a newer schema was accepted")
	}
	for _, says := range []string{fmt.Sprintf("version %d", len(migrations())+1), fmt.Sprintf("up to %d", len(migrations())), "newer nearkey", "open catalog"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("error %q does not say %q", err, says)
		}
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path)
	_, err := openSteps(t, path, later(`create table extra (id text not null primary key)`, `create table accounts (id text)`))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("version %d (a later step)", len(migrations())+1)) {
		t.Fatalf("error %v, want one that names the step", err)
	}
	if _, err := c.db.read.ExecContext(t.Context(), `select id from extra`); err == nil {
		t.Error("a table of the failed step is left")
	}
	openAt(t, path)
}
