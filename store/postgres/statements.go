package postgres

import "strings"

// This file is all the SQL of the store's operations; the tables are in
// schema.go. The statements are what PostgreSQL, CockroachDB and YugabyteDB all
// accept, but for those of the change log.
//
// Versions and namespaces are uuids, which are ordered as their bytes are, and
// keys are bytea, which has no collation. What is empty or none is null.

const columns = `namespace, key, version, expiration, tombstone, metadata, value`

// law is kv.Record.Compare: the row t is older than what is put. Columns are
// compared from the left until two differ, so that values are fetched for ties only.
const law = `(t.version, t.tombstone, coalesce(t.expiration, 0), coalesce(t.metadata, ''), coalesce(t.value, ''))
	< (excluded.version, excluded.tombstone, coalesce(excluded.expiration, 0), coalesce(excluded.metadata, ''), coalesce(excluded.value, ''))`

const putConflict = ` on conflict (namespace, key) do update set version = excluded.version, expiration = excluded.expiration,
	tombstone = excluded.tombstone, metadata = excluded.metadata, value = excluded.value where ` + law

// sqlPut puts one record. It locks the row before it compares: even if it changes
// nothing, its commit waits for the standbys, and with that for whatever it read.
const sqlPut = `insert into kv_records as t (` + columns + `) values ($1, $2, $3, $4, $5, $6, $7)` + putConflict

// sqlPutMany puts many records of different keys, in byte order.
const sqlPutMany = `insert into kv_records as t (` + columns + `)
	select * from unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::int8[], $5::bool[], $6::bytea[], $7::bytea[])` + putConflict

// logged makes a put write what it changed to the change log. A change's place is
// its transaction's number and its place in the transaction.
func logged(put string) string {
	return `with put as (` + put + ` returning t.namespace, t.key, t.version)
	insert into kv_changes (seq, namespace, key, version)
	select (pg_current_xact_id()::text::int8 << 20) | row_number() over (), namespace, key, version from put`
}

// Values from $3 bytes on are not read with their row; their size is.
const (
	sqlGet = `select version, expiration, tombstone, metadata, octet_length(value),
	case when octet_length(value) < $3 then value end from kv_records where namespace = $1 and key = $2`

	sqlGetMany = `select w.i, t.version, t.expiration, t.tombstone, t.metadata, octet_length(t.value),
	case when octet_length(t.value) < $3 then t.value end
	from unnest($1::uuid[], $2::bytea[]) with ordinality as w (namespace, key, i)
	join kv_records t on t.namespace = w.namespace and t.key = w.key`

	sqlGetLarge = `select version, expiration, tombstone, metadata, octet_length(value), value
	from kv_records where namespace = $1 and key = $2 and octet_length(value) = $3`
)

const (
	sqlListBelow = `select key, version, expiration, tombstone, metadata from kv_records
	where namespace = $1 and key >= $2 and key < $3 order by key limit $4`

	sqlList = `select key, version, expiration, tombstone, metadata from kv_records
	where namespace = $1 and key >= $2 order by key limit $3`

	// sqlNamespaces leaps from one namespace to the next, one look at the index each.
	sqlNamespaces = `with recursive n (namespace) as (
		(select namespace from kv_records where namespace > $1 order by namespace limit 1)
		union all
		select (select r.namespace from kv_records r where r.namespace > n.namespace order by r.namespace limit 1)
		from n where n.namespace is not null)
	select namespace from n where namespace is not null limit $2`
)

const (
	// sqlExpired finds what a sweep turns into tombstones.
	sqlExpired = `select namespace, key, expiration from kv_records
	where expiration >= $1 and expiration <= $2 order by expiration limit $3`

	// sqlExpire keeps the version, so that a sweep never beats a newer write.
	sqlExpire = `update kv_records set tombstone = true, expiration = null, metadata = null, value = null
	where (namespace, key) in (select * from unnest($1::uuid[], $2::bytea[])) and expiration <= $3`

	sqlForget = `delete from kv_records
	where (namespace, key, version) in (select * from unnest($1::uuid[], $2::bytea[], $3::uuid[])) and tombstone`

	sqlDrop = `delete from kv_records where namespace = $1 and key in (
		select key from kv_records where namespace = $1 and key >= $2 order by key limit $3) returning key`
)

// The change log. A transaction's changes are told when no older transaction
// runs: otherwise what commits late would be behind the reader's cursor already.
const (
	// sqlLog: the log's epoch, which is another after a restore or a fail-over; the
	// place up to which it was trimmed; the first transaction that may still run;
	// the newest change that can be told, and the newest that cannot yet. A place in
	// the log is that of a change, whose transaction's number is on disk: the numbers
	// of transactions that changed nothing are given again after a crash.
	sqlLog = `select l.epoch, l.trimmed, s.first, (select timeline_id from pg_control_checkpoint()),
	(select system_identifier from pg_control_system()),
	greatest(l.trimmed, (select max(seq) from kv_changes where seq < s.first << 20)),
	coalesce((select max(seq) from kv_changes where seq >= s.first << 20), 0)
	from kv_log l, (select pg_snapshot_xmin(pg_current_snapshot())::text::int8 as first) s`

	sqlChanges = `select seq, namespace, key, version from kv_changes where seq > $1 and seq < $2 order by seq limit $3`

	sqlChanged = `select exists (select 1 from kv_changes where seq > $1)`

	sqlTrimmed = `update kv_log set trimmed = $1 where trimmed < $1`

	sqlTrim = `delete from kv_changes where seq in (select seq from kv_changes where seq <= $1 order by seq limit $2)`
)

// putStatements are the put of one and of many.
func (o Options) putStatements() (one, many string) {
	if o.Outbox {
		return logged(sqlPut), logged(sqlPutMany)
	}
	return sqlPut, sqlPutMany
}

// portableStatements are those that a portable store executes, for the test.
func portableStatements() []string {
	all := []string{sqlPut, sqlGet, sqlGetMany, sqlGetLarge, sqlList, sqlListBelow, sqlNamespaces, sqlExpired, sqlExpire, sqlForget, sqlDrop,
		sqlServer, sqlSchemaTable, sqlSchemaVersion, sqlSchemaLock, sqlSchemaFirst, sqlSchemaStep}
	for _, part := range parts(Options{Portable: true}, "") {
		for _, step := range part.steps {
			all = append(all, strings.Join(step.statements, ";\n"))
		}
	}
	return all
}
