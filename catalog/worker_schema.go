package catalog

// The tables of Workers. What hangs on a Worker goes with it. Text that users
// choose is bytea, as elsewhere; names and hosts too, for their order must be that
// of their bytes: it is the order of published records.

func workersMigration() migration {
	return migration{"Workers", []string{
		`create table workers (
			id text not null primary key,
			account_id text not null references accounts (id),
			name bytea not null,
			created bigint not null,
			modified bigint not null,
			subdomain bigint not null,
			previews bigint not null,
			settings bytea not null,
			latest bigint not null,
			latest_id text not null,
			deployments bigint not null,
			deployment_id text not null,
			unique (account_id, name))`,
		// The manifest is the value of the version's record, and digest its metadata.
		`create table worker_versions (
			id text not null primary key,
			worker_id text not null references workers (id) on delete cascade,
			number bigint not null,
			created bigint not null,
			source bytea not null,
			author_id bytea not null,
			author_email bytea not null,
			annotations bytea not null,
			manifest bytea not null,
			digest bytea not null,
			unique (worker_id, number))`,
		// A row is there before the module's record is written, and until long after
		// that has been removed.
		`create table worker_modules (
			hash text not null primary key,
			size bigint not null,
			touched bigint not null,
			stored bigint not null,
			gone bigint not null,
			swept bytea not null)`,
		`create index worker_modules_touched on worker_modules (touched)`,
		`create table worker_version_modules (
			version_id text not null references worker_versions (id) on delete cascade,
			hash text not null references worker_modules (hash),
			primary key (version_id, hash))`,
		`create index worker_version_modules_hash on worker_version_modules (hash)`,
		`create table worker_deployments (
			id text not null primary key,
			worker_id text not null references workers (id) on delete cascade,
			number bigint not null,
			created bigint not null,
			strategy bytea not null,
			source bytea not null,
			author_id bytea not null,
			author_email bytea not null,
			annotations bytea not null,
			unique (worker_id, number))`,
		`create table worker_shares (
			deployment_id text not null references worker_deployments (id) on delete cascade,
			position bigint not null,
			version_id text not null references worker_versions (id) on delete cascade,
			millionths bigint not null,
			primary key (deployment_id, position))`,
		`create index worker_shares_version on worker_shares (version_id)`,
	}}
}

func workerHostsMigration() migration {
	return migration{"where Workers answer", []string{
		`create table worker_subdomains (
			account_id text not null primary key references accounts (id),
			name bytea not null unique)`,
		`create table worker_zones (
			id text not null primary key,
			account_id text not null references accounts (id),
			name bytea not null unique,
			created bigint not null)`,
		`create index worker_zones_account on worker_zones (account_id)`,
		// A route without a Worker keeps less specific ones from its URLs.
		`create table worker_routes (
			id text not null primary key,
			zone_id text not null references worker_zones (id) on delete cascade,
			worker_id text references workers (id) on delete cascade,
			pattern bytea not null,
			canonical bytea not null,
			unique (zone_id, canonical))`,
		`create index worker_routes_worker on worker_routes (worker_id)`,
		`create table worker_domains (
			id text not null primary key,
			worker_id text not null references workers (id) on delete cascade,
			host bytea not null unique,
			created bigint not null)`,
		`create index worker_domains_worker on worker_domains (worker_id)`,
	}}
}

func workerRunsMigration() migration {
	return migration{"schedules and tails of Workers", []string{
		`create table worker_schedules (
			worker_id text not null references workers (id) on delete cascade,
			cron bytea not null,
			position bigint not null,
			created bigint not null,
			modified bigint not null,
			primary key (worker_id, cron))`,
		// Of a tick there is one row, whose manual is 0; of a run that was asked for it
		// is the id.
		`create table worker_runs (
			id bigint not null primary key,
			worker_id text not null references workers (id) on delete cascade,
			cron bytea not null,
			at bigint not null,
			manual bigint not null,
			started bigint not null,
			ended bigint not null,
			lease bigint not null,
			retry bigint not null,
			attempt bigint not null,
			holder bytea not null,
			outcome bytea not null,
			error bytea not null,
			unique (worker_id, cron, at, manual))`,
		`create index worker_runs_worker on worker_runs (worker_id, at)`,
		`create index worker_runs_at on worker_runs (at)`,
		`create table worker_tails (
			id text not null primary key,
			worker_id text not null references workers (id) on delete cascade,
			token_hash bytea not null,
			ingest text not null,
			filters bytea not null,
			created bigint not null,
			expires bigint not null)`,
		`create index worker_tails_worker on worker_tails (worker_id)`,
	}}
}

// A static file is a module whose hash has its account in front; a set of them is a
// module, too.
func workerAssetsMigration() migration {
	return migration{"static assets of Workers", []string{
		`create table worker_assets (
			version_set text not null references worker_modules (hash) on delete cascade,
			asset text not null,
			primary key (version_set, asset))`,
		`create index worker_assets_asset on worker_assets (asset)`,
	}}
}
