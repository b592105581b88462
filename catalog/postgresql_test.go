package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/postgres"
)

// serverURL names the variable with the URL of the PostgreSQL server on which the
// suite runs; empty: on SQLite.
const serverURL = "NEARKEY_TEST_CATALOG_POSTGRESQL"

// TestSuiteOnPostgreSQL runs all tests of the package once more, on PostgreSQL.
func TestSuiteOnPostgreSQL(t *testing.T) {
	once(t)
	s := pgtest.Start(t)
	cmd := exec.Command(os.Args[0], "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), serverURL+"="+s.URL())
	out, err := cmd.CombinedOutput()
	passed, skipped := strings.Count(string(out), "\n--- PASS"), strings.Count(string(out), "\n--- SKIP")
	t.Logf("%d tests passed, %d were skipped", passed, skipped)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if passed < 50 || s.Exec("select count(*) > 50 from pg_namespace where nspname like 'catalog_%'") != "t" {
		t.Errorf("the run has not been one of the whole suite on PostgreSQL")
	}
}

// openSteps opens the catalog in the file at path, or the one that stands for it
// on the server of serverURL.
func openSteps(t testing.TB, path string, steps []migration) (*Catalog, error) {
	t.Helper()
	url := os.Getenv(serverURL)
	if url == "" {
		return open(t.Context(), path, steps)
	}
	if time.Now().Year() == 2000 {
		t.Skip("a server does not live in simulated time")
	}
	return openOnServer(t, url, path, steps)
}

func openOnServer(t testing.TB, url, path string, steps []migration) (*Catalog, error) {
	t.Helper()
	schema := fmt.Sprintf("catalog_%x", sha256.Sum256([]byte(path)))[:40]
	db, err := postgres.OpenSQL(url + "&search_path=" + schema)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `create schema if not exists `+schema); err != nil && !isDuplicate(err) {
		t.Fatal(err)
	}
	return openPostgreSQL(t.Context(), db, steps)
}

// once skips a test that need not be run a second time, on PostgreSQL: it is about
// SQLite and its files, or has a server of its own.
func once(t *testing.T) {
	if os.Getenv(serverURL) != "" {
		t.Skip("the other run has it")
	}
}

func TestProcessesThatStartAtOnce(t *testing.T) {
	once(t)
	url := pgtest.Start(t).URL()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			c, err := openOnServer(t, url, "shared", migrations())
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer c.Close()
			if _, err := c.EnsureRoot(t.Context(), testRoot()); err != nil {
				t.Errorf("root: %v", err)
			}
		})
	}
	wg.Wait()
	c, err := openOnServer(t, url, "shared", migrations())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if accounts, err := c.Accounts(t.Context()); err != nil || len(accounts) != 1 {
		t.Errorf("%d accounts, %v", len(accounts), err)
	}
}

// A server that is gone, or hangs, costs a bounded time and is told by its kind;
// what is cached goes on being served, and all is well when it is back.
func TestServerGoneAndBack(t *testing.T) {
	once(t)
	s := pgtest.Start(t)
	c, err := openOnServer(t, s.URL(), "gone", migrations())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.EnsureRoot(t.Context(), testRoot()); err != nil {
		t.Fatal(err)
	}
	kept := createNamespace(t, c, "kept")
	if _, err := c.Namespace(t.Context(), testAccount, kept.ID); err != nil {
		t.Fatal(err)
	}
	fails := func(how string, want error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := c.CreateNamespace(ctx, testAccount, how, "", 0); !errors.Is(err, want) {
			t.Errorf("create a namespace on a server that is %s: %v, want %v", how, err, want)
		}
		if got, err := c.Namespace(t.Context(), testAccount, kept.ID); err != nil || got != kept {
			t.Errorf("a cached namespace, while the server is %s: %v, %v", how, got, err)
		}
	}
	s.Stop()
	fails("frozen", context.DeadlineExceeded)
	s.Cont()
	s.Kill()
	fails("killed", kv.ErrUnavailable)
	s.Restart()
	createNamespace(t, c, "back")
}
