package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

func TestProgramsThatStartAtOnce(t *testing.T) {
	url := newURL(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := Open(context.Background(), url, Options{Outbox: i%2 == 0, MaxConns: 2})
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer s.Close()
			if err := put(s, fmt.Sprint(i), 1); err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
}

// migrateTo brings the schema of a server up to what a program with these parts
// would.
func migrateTo(t *testing.T, url string, parts []part) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	return migrate(t.Context(), conn, parts)
}

// laterParts are those of a later program, whose further step may be one that this
// program does not bear.
func laterParts(needs int) []part {
	later := parts(Options{}, "")
	later[0].steps = append(later[0].steps, step{name: "a note", needs: needs, statements: []string{`alter table kv_records add column note text`}})
	return later
}

// Old and new programs run at once: one goes on while the other changes the schema,
// can be started again, and finds its own statements to work.
func TestOldAndNewPrograms(t *testing.T) {
	url := newURL(t)
	old := mustOpen(t, url, Options{})
	if err := put(old, "before", 1); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := put(old, fmt.Sprint("during ", w), int64(n)); err != nil {
					t.Errorf("put while another program changes the schema: %v", err)
					return
				}
			}
		})
	}
	if err := migrateTo(t, url, laterParts(1)); err != nil {
		t.Errorf("the newer program's step: %v", err)
	}
	close(done)
	wg.Wait()
	again := mustOpen(t, url, Options{})
	for what, call := range calls(again) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s of the old program, started again: %v", what, err)
		}
	}
	if err := migrateTo(t, url, laterParts(1)); err != nil {
		t.Errorf("the newer program, started again: %v", err)
	}
}

func TestUnknownSchemaIsRefused(t *testing.T) {
	server := pgtest.Start(t)
	if err := migrateTo(t, server.URL(), laterParts(2)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), server.URL(), Options{})
	if !errors.Is(err, errSchema) {
		t.Fatalf("open: %v", err)
	}
	for _, says := range []string{"version 2", "up to 1", "newer nearkey"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("error %q does not say %q", err, says)
		}
	}
	// A server that was down when the store was opened is found to be newer later.
	server.Kill()
	s := mustOpen(t, server.URL(), Options{})
	server.Restart()
	if err := put(s, "k", 1); !errors.Is(err, kv.ErrUnavailable) || !errors.Is(err, errSchema) || !strings.Contains(err.Error(), "newer nearkey") {
		t.Errorf("put: %v", err)
	}
	if s.Ready() == nil {
		t.Error("ready with an unknown schema")
	}
}

func TestFailedStepChangesNothing(t *testing.T) {
	server := pgtest.Start(t)
	broken := laterParts(2)
	broken[0].steps[1].statements = append(broken[0].steps[1].statements, `create table kv_records (n int)`)
	if err := migrateTo(t, server.URL(), broken); err == nil {
		t.Fatal("a table was made twice")
	}
	if n := server.Exec("select count(*) from information_schema.columns where column_name = 'note'"); n != "0" {
		t.Error("half of the failed step is left")
	}
	if err := put(mustOpen(t, server.URL(), Options{}), "k", 1); err != nil {
		t.Errorf("put: %v", err)
	}
}

// A database that is emptied under a running program is made anew.
func TestEmptiedDatabase(t *testing.T) {
	server := pgtest.Start(t)
	s := mustOpen(t, server.URL(), Options{})
	if err := put(s, "k", 1); err != nil {
		t.Fatal(err)
	}
	server.Exec("drop table kv_records, kv_schema")
	if err := put(s, "k", 1); err == nil {
		t.Error("a put into no table succeeded")
	}
	if err := put(s, "k", 1); err != nil {
		t.Errorf("put, once more: %v", err)
	}
}

// What CockroachDB or YugabyteDB lack, as far as a text shows it.
var notPortable = regexp.MustCompile(`(?i)fillfactor|set storage|xid8|pg_snapshot|pg_current|pg_control|advisory|listen |notify|skip locked|merge into|` +
	`lock table|ctid|tablesample|create (unlogged|temp)|create extension|using gin|concurrently|do \$\$|plpgsql|pg_advisory|tsvector|xmin`)

func TestPortableStatements(t *testing.T) {
	for _, statement := range portableStatements() {
		if found := notPortable.FindString(statement); found != "" {
			t.Errorf("a portable store says %q: %s", found, statement)
		}
	}
	for _, statement := range []string{logged(sqlPut), sqlLog, parts(Options{}, "")[0].steps[0].statements[0]} {
		if !notPortable.MatchString(statement) {
			t.Errorf("control: nothing is found in %s", statement)
		}
	}
	yugabyte := parts(Options{Portable: true}, "PostgreSQL 15.2-YB-2025.1.0.0-b0 on x86_64")[0].steps[0].statements[0]
	if !strings.Contains(yugabyte, "(namespace asc, key asc)") {
		t.Errorf("on YugabyteDB the key would be spread by hash: %s", yugabyte)
	}
}
