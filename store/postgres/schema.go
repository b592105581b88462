package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/kv"
)

// errSchema: the database was used by a newer nearkey, whose schema this one must
// not touch.
var errSchema = errors.New("unknown schema")

// A part of the schema has versions of its own: the change log is optional.
type part struct {
	name  string
	steps []step
}

// A step leads from one version of a part to the next. A step that was released
// is never changed: add another. Programs of the version before go on while it is
// made and after: a step adds. If they must not, needs is the step's own version.
type step struct {
	name       string
	needs      int // programs that know fewer steps refuse the schema
	statements []string
}

// parts are what a program with these options needs of a database. server is what
// its version() says; YugabyteDB spreads keys by hash unless it is told otherwise.
func parts(o Options, server string) []part {
	with, storage, order := ` with (fillfactor = 85)`, []string{`alter table kv_records alter column value set storage external`}, ``
	if o.Portable {
		with, storage = ``, nil
	}
	if strings.Contains(server, "-YB-") {
		order = ` asc`
	}
	records := part{name: "records", steps: []step{{
		name: "records", needs: 1,
		// The columns of fixed size first: no byte is lost to alignment. Space is left
		// in a page for the next version of a row (fillfactor), and no index but that of
		// expirations mentions what an update changes: most updates touch no index.
		statements: append([]string{
			`create table kv_records (
				namespace uuid not null,
				version uuid not null,
				expiration int8,
				tombstone boolean not null,
				key bytea not null,
				metadata bytea,
				value bytea,
				primary key (namespace` + order + `, key` + order + `))` + with,
			`create index kv_records_expiration on kv_records (expiration` + order + `) where expiration is not null`,
		}, storage...),
	}}}
	if !o.Outbox {
		return []part{records}
	}
	return []part{records, {name: "changes", steps: []step{{
		name: "change log", needs: 1,
		statements: []string{
			`create table kv_changes (
				seq int8 primary key,
				namespace uuid not null,
				key bytea not null,
				version uuid not null)`,
			`create table kv_log (epoch int8 not null, trimmed int8 not null)`,
			fmt.Sprintf(`insert into kv_log (epoch, trimmed) values (%d, (pg_snapshot_xmin(pg_current_snapshot())::text::int8 << 20) - 1)`, rand.Int64()),
		},
	}}}}
}

// The table of the steps that were made, and how it is used. Its row of version 0
// is the lock of who makes the next: a row lock is what every server has.
const (
	sqlServer      = `select version()`
	sqlSchemaTable = `create table if not exists kv_schema (
	part text not null,
	version int8 not null,
	name text not null,
	needs int8 not null,
	primary key (part, version))`
	sqlSchemaVersion = `select coalesce(max(version), 0), coalesce(max(needs), 0) from kv_schema where part = $1`
	sqlSchemaFirst   = `insert into kv_schema (part, version, name, needs) values ('lock', 0, 'lock', 0) on conflict do nothing`
	sqlSchemaLock    = `select version from kv_schema where part = 'lock' for update`
	sqlSchemaStep    = `insert into kv_schema (part, version, name, needs) values ($1, $2, $3, $4)`
)

// ensureSchema brings the schema up to date at first contact; later it does
// nothing. Many calls may wait for the one that does.
func (s *Store) ensureSchema(ctx context.Context) error {
	if s.migrated.Load() {
		return nil
	}
	select {
	case <-s.migrate:
		defer func() { s.migrate <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("%w: wait for the schema: %v", kv.ErrUnavailable, ctx.Err())
	}
	if s.migrated.Load() {
		return nil
	}
	err := s.retry(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		var server string
		if err := conn.QueryRow(ctx, sqlServer).Scan(&server); err != nil {
			return err
		}
		return migrate(ctx, conn, parts(s.opts, server))
	})
	if err != nil {
		return fmt.Errorf("look at the schema: %w", err)
	}
	s.warnOfSettings(ctx)
	s.migrated.Store(true)
	return nil
}

// migrate makes the steps that were not made yet, each in a transaction: a crash
// leaves it made or not.
func migrate(ctx context.Context, conn *pgx.Conn, parts []part) error {
	for _, part := range parts {
		version, err := schemaVersion(ctx, conn, part)
		if isCode(err, codeUndefinedTable) {
			if err := createSchemaTable(ctx, conn); err != nil {
				return err
			}
			version, err = 0, nil
		}
		if err != nil {
			return err
		}
		for version < len(part.steps) {
			if version, err = migrateStep(ctx, conn, part); err != nil {
				return fmt.Errorf("bring the schema from version %d of %s to the next: %w", version, part.name, err)
			}
		}
	}
	return nil
}

// createSchemaTable may meet another that does the same, which is told as an error.
func createSchemaTable(ctx context.Context, conn *pgx.Conn) error {
	for _, statement := range []string{sqlSchemaTable, sqlSchemaFirst} {
		if _, err := conn.Exec(ctx, statement); err != nil && !isCode(err, codeUniqueViolation) && !isCode(err, codeDuplicateTable) {
			return err
		}
	}
	return nil
}

// migrateStep makes the next step, unless another program has meanwhile, and
// returns the version that the part has now.
func migrateStep(ctx context.Context, conn *pgx.Conn, part part) (version int, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlSchemaLock); err != nil {
			return err
		}
		if version, err = schemaVersion(ctx, tx, part); err != nil || version >= len(part.steps) {
			return err
		}
		step := part.steps[version]
		for _, statement := range step.statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		version++
		_, err := tx.Exec(ctx, sqlSchemaStep, part.name, version, step.name, step.needs)
		return err
	})
	return version, err
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// schemaVersion returns the version of a part. A newer one than this program
// knows is refused, unless all its steps say that this program may go on.
func schemaVersion(ctx context.Context, db rowQuerier, part part) (int, error) {
	var version, needs int
	if err := db.QueryRow(ctx, sqlSchemaVersion, part.name).Scan(&version, &needs); err != nil {
		return 0, err
	}
	if needs > len(part.steps) {
		return 0, fmt.Errorf("%w: the %s of the database have version %d, this nearkey knows versions up to %d: a newer nearkey has used it; start that or a newer one",
			errSchema, part.name, version, len(part.steps))
	}
	return version, nil
}
