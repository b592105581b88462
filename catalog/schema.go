package catalog

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// migration is one step from a version of the schema to the next.
type migration struct {
	name       string
	statements []string
}

// migrations are all steps; their number is the version of the schema that this
// program speaks. A step that was released is never changed: add another.
func migrations() []migration {
	return []migration{
		{"accounts, namespaces, tokens", []string{
			`create table accounts (
				id text not null primary key,
				name text not null,
				created bigint not null)`,
			// One row: the owner of the installation.
			`create table users (
				id text not null primary key,
				email text not null,
				key_hash bytea unique)`,
			`create table namespaces (
				id text not null primary key,
				account_id text not null references accounts (id),
				title bytea not null,
				jurisdiction text not null,
				created bigint not null,
				unique (account_id, title))`,
			`create table dropped_namespaces (
				id text not null primary key,
				dropped bigint not null,
				drops bigint not null)`,
			`create table tokens (
				id text not null primary key,
				account_id text not null references accounts (id),
				name bytea not null,
				hash bytea not null unique,
				root bigint not null,
				created bigint not null,
				not_before bigint not null,
				expires bigint not null,
				revoked bigint not null)`,
			`create index tokens_account on tokens (account_id)`,
			// The root token has no scopes; it may do everything.
			`create table token_scopes (
				token_id text not null references tokens (id) on delete cascade,
				position bigint not null,
				permission text not null,
				namespace_id text references namespaces (id) on delete cascade,
				prefix bytea not null,
				primary key (token_id, position))`,
			`create index token_scopes_namespace on token_scopes (namespace_id)`,
		}},
		{"how writes are acknowledged", []string{
			`alter table namespaces add column ack text not null default ''`,
		}},
		workersMigration(),
		workerHostsMigration(),
		workerRunsMigration(),
		workerAssetsMigration(),
	}
}

// migrate brings the schema up to the last step, in one transaction: a crash or
// an error leaves it as it was. Processes that start at once do it one after the
// other; who finds the first table being made by another tries again.
func migrate(ctx context.Context, db database, steps []migration, now time.Time) error {
	for try := 1; ; try++ {
		_, err := db.transact(ctx, func(tx *sql.Tx) error { return migrateIn(ctx, tx, steps, now) })
		if try < maxConflicts && (isConflict(err) || isDuplicate(err)) {
			continue
		}
		return err
	}
}

func migrateIn(ctx context.Context, tx *sql.Tx, steps []migration, now time.Time) error {
	if _, err := tx.ExecContext(ctx, `create table if not exists schema_versions (
		version bigint not null primary key,
		name text not null,
		applied bigint not null)`); err != nil {
		return err
	}
	// Of a database that several processes share this is the lock.
	if _, err := tx.ExecContext(ctx, `update schema_versions set applied = applied where version = 1`); err != nil {
		return err
	}
	var version int
	if err := tx.QueryRowContext(ctx, `select coalesce(max(version), 0) from schema_versions`).Scan(&version); err != nil {
		return err
	}
	if version > len(steps) {
		return fmt.Errorf("its schema has version %d, this nearkey knows versions up to %d: a newer nearkey has used it; start that or a newer one",
			version, len(steps))
	}
	for i, step := range steps[version:] {
		for _, statement := range step.statements {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("bring the schema to version %d (%s): %w", version+i+1, step.name, err)
			}
		}
		if _, err := tx.ExecContext(ctx, `insert into schema_versions (version, name, applied) values ($1, $2, $3)`,
			version+i+1, step.name, stored(now)); err != nil {
			return err
		}
	}
	return nil
}
