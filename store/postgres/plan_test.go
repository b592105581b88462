package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/kv"
)

// No statement walks over the whole table, whether the server has counted its rows
// or not, and with the plan that it keeps for a prepared statement.
func TestPlansUseIndexes(t *testing.T) {
	url := newURL(t)
	s := mustOpen(t, url, Options{})
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var writes []kv.Write
	for i := range 10_000 {
		writes = append(writes, kv.Write{Ref: kv.Ref{Namespace: kv.NamespaceID{byte(i % 7)}, Key: fmt.Sprint(i)},
			Record: kv.Record{Version: kv.NewVersion(1, 1, 1), Value: make([]byte, 100), Expiration: int64(i)}})
	}
	if _, err := conn.Exec(t.Context(), `set plan_cache_mode = force_generic_plan`); err != nil {
		t.Fatal(err)
	}
	if plan, err := explain(t.Context(), conn, `select count(*) from kv_records where tombstone and namespace <> $1`); err != nil || !strings.Contains(plan, "Seq Scan on kv_records") {
		t.Errorf("control: a statement that walks over the table is not found out: %v\n%s", err, plan)
	}
	for _, analyze := range []string{`select 1`, `analyze kv_records`} {
		if err := s.PutMany(t.Context(), writes); err != nil {
			t.Fatal(err)
		}
		for name, statement := range map[string]string{"get": sqlGet, "get many": sqlGetMany, "get large": sqlGetLarge, "list": sqlList, "list below": sqlListBelow,
			"namespaces": sqlNamespaces, "expired": sqlExpired, "expire": sqlExpire, "forget": sqlForget, "drop": sqlDrop} {
			for _, before := range []string{analyze, `deallocate all`} {
				if _, err := conn.Exec(t.Context(), before, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
			}
			plan, err := explain(t.Context(), conn, statement)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if strings.Contains(plan, "Seq Scan on kv_records") {
				t.Errorf("%s, after %q, walks over the whole table:\n%s", name, analyze, plan)
			}
		}
	}
}

// explain returns the plan of a statement whose arguments are not known.
func explain(ctx context.Context, conn *pgx.Conn, statement string) (string, error) {
	if _, err := conn.Exec(ctx, `prepare p as `+statement, pgx.QueryExecModeSimpleProtocol); err != nil {
		return "", err
	}
	arguments := strings.Repeat(", null", strings.Count(statement, "$")+1)
	for arguments != "" {
		rows, _ := conn.Query(ctx, `explain execute p (`+strings.TrimPrefix(arguments, ", ")+`)`, pgx.QueryExecModeSimpleProtocol) // its error is that of the rows
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err == nil {
			return strings.Join(lines, "\n"), nil
		}
		arguments = strings.TrimSuffix(arguments, ", null") // fewer
	}
	return "", fmt.Errorf("explain %s", statement)
}
