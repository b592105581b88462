package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

const (
	// MaxWorkers is the greatest number of Workers in an account.
	MaxWorkers = 500
	// MaxSettingsBytes is the greatest size of a Worker's settings as JSON.
	MaxSettingsBytes = 64 << 10
	// MaxWorkerNameChars is the greatest number of characters in a Worker's name.
	MaxWorkerNameChars = 63
)

// Kinds of error of Workers.
var (
	// ErrConflict: another change came in between; the caller looks again and repeats
	// its own.
	ErrConflict error = &sentinel{"changed by another meanwhile", nil}

	ErrWorkerNotFound error = &sentinel{"there is no such Worker", ErrNotFound}
	ErrWorkerName     error = &sentinel{fmt.Sprintf("the name of a Worker has at most %d of the characters a-z, 0-9, _ and -, and begins with none of the last",
		MaxWorkerNameChars), ErrInvalid}
	ErrTooManyWorkers error = &sentinel{fmt.Sprintf("the account has %d Workers, as many as it may", MaxWorkers), nil}
)

// Worker is what the catalog knows of a user's Worker, without its versions.
type Worker struct {
	ID                string // 32 hexadecimal digits; Cloudflare's API calls it tag
	AccountID, Name   string // the name is unique in the account
	Created, Modified time.Time
	Subdomain         bool // it answers at its name under the account's subdomain
	Previews          bool // and its versions at theirs
	Settings          WorkerSettings
	Latest            int    // number of the newest version
	LatestID          string // of the newest version
	Deployment        *Deployment
}

// WorkerSettings are those that no version has: they hold for all of them. What
// this program has no use for is kept as it was sent.
type WorkerSettings struct {
	Tags          []string        `json:"tags,omitempty"`
	Logpush       bool            `json:"logpush,omitempty"`
	Observability json.RawMessage `json:"observability,omitempty"`
	TailConsumers json.RawMessage `json:"tail_consumers,omitempty"`
}

var workerName = regexp.MustCompile(fmt.Sprintf(`^[a-z0-9_][a-z0-9_-]{0,%d}$`, MaxWorkerNameChars-1))

func checkWorkerName(name string) error {
	if !workerName.MatchString(name) {
		return ErrWorkerName
	}
	return nil
}

// encode returns the settings as they are stored.
func (s WorkerSettings) encode() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, invalid("settings: %v", err)
	}
	if len(text) > MaxSettingsBytes {
		return nil, invalid("the settings of a Worker have at most %d bytes, these have %d", MaxSettingsBytes, len(text))
	}
	return text, nil
}

// newUUID returns a random UUID (RFC 9562, version 4), what the ids of versions
// and deployments look like.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// workerRow is a Worker with one share of its deployment, or with none.
type workerRow struct {
	worker Worker
	share  *Share
}

// workerRows is the beginning of a query of Workers, a row for each share.
const workerRows = `select w.id, w.account_id, w.name, w.created, w.modified, w.subdomain, w.previews,
	w.settings, w.latest, w.latest_id,
	d.id, d.created, d.strategy, d.source, d.author_id, d.author_email, d.annotations,
	s.version_id, s.millionths
	from workers w
	left join worker_deployments d on d.id = w.deployment_id
	left join worker_shares s on s.deployment_id = d.id `

func scanWorkerRow(row scanner) (workerRow, error) {
	var (
		r                                                    workerRow
		name, settings                                       []byte
		created, modified, subdomain, previews               int64
		deployment, version                                  sql.NullString
		deployed, millionths                                 sql.NullInt64
		strategy, source, authorID, authorEmail, annotations []byte
	)
	w := &r.worker
	if err := row.Scan(&w.ID, &w.AccountID, &name, &created, &modified, &subdomain, &previews,
		&settings, &w.Latest, &w.LatestID,
		&deployment, &deployed, &strategy, &source, &authorID, &authorEmail, &annotations,
		&version, &millionths); err != nil {
		return workerRow{}, err
	}
	w.Name, w.Created, w.Modified = string(name), loaded(created), loaded(modified)
	w.Subdomain, w.Previews = subdomain != 0, previews != 0
	if err := json.Unmarshal(settings, &w.Settings); err != nil {
		return workerRow{}, err
	}
	if !deployment.Valid {
		return r, nil
	}
	w.Deployment = &Deployment{ID: deployment.String, Created: loaded(deployed.Int64), Strategy: string(strategy),
		Source: string(source), AuthorID: string(authorID), AuthorEmail: string(authorEmail)}
	if version.Valid {
		r.share = &Share{VersionID: version.String, Percentage: percentage(millionths.Int64)}
	}
	return r, json.Unmarshal(annotations, &w.Deployment.Annotations)
}

// workersOf puts the rows of each Worker together.
func workersOf(rows []workerRow) []Worker {
	var list []Worker
	for _, r := range rows {
		if len(list) == 0 || list[len(list)-1].ID != r.worker.ID {
			list = append(list, r.worker)
		}
		if r.share != nil {
			d := list[len(list)-1].Deployment
			d.Versions = append(d.Versions, *r.share)
		}
	}
	return list
}

// workers returns the Workers that the rest of a query selects.
func workers(ctx context.Context, db querier, rest string, args ...any) ([]Worker, error) {
	rows, err := all(ctx, db, scanWorkerRow, workerRows+rest, args...)
	return workersOf(rows), err
}

// Worker returns a Worker of an account.
func (c *Catalog) Worker(ctx context.Context, accountID, name string) (Worker, error) {
	w, err := oneWorker(ctx, c.db.read, accountID, name)
	return w, failure(ctx, fmt.Sprintf("Worker %q", name), err)
}

func oneWorker(ctx context.Context, db querier, accountID, name string) (Worker, error) {
	list, err := workers(ctx, db, `where w.account_id = $1 and w.name = $2 order by s.position`, accountID, []byte(name))
	if err == nil && len(list) == 0 {
		err = ErrWorkerNotFound
	}
	if err != nil {
		return Worker{}, err
	}
	return list[0], nil
}

// WorkerList returns the Workers of an account in order of their names. They are
// at most MaxWorkers.
func (c *Catalog) WorkerList(ctx context.Context, accountID string) ([]Worker, error) {
	list, err := workers(ctx, c.db.read, `where w.account_id = $1 order by w.name, s.position`, accountID)
	if err != nil {
		return nil, failure(ctx, "list the Workers of account "+accountID, err)
	}
	if len(list) == 0 {
		_, err := c.Account(ctx, accountID)
		return nil, err
	}
	return list, nil
}

// workerID returns the id of a Worker, whose rows the transaction may then change:
// others that change what belongs to the account wait.
func workerID(ctx context.Context, tx *sql.Tx, accountID, name string) (id string, err error) {
	if err := lockAccount(ctx, tx, accountID); err != nil {
		return "", err
	}
	err = tx.QueryRowContext(ctx, `select id from workers where account_id = $1 and name = $2`, accountID, []byte(name)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrWorkerNotFound
	}
	return id, err
}

// SetWorkerSettings replaces the settings of a Worker.
func (c *Catalog) SetWorkerSettings(ctx context.Context, accountID, name string, s WorkerSettings) (Worker, error) {
	doing := fmt.Sprintf("settings of Worker %q", name)
	text, err := s.encode()
	if err != nil {
		return Worker{}, fmt.Errorf("%s: %w", doing, err)
	}
	return c.changeWorker(ctx, doing, accountID, name, func(tx *sql.Tx, id string) error {
		return one(ctx, tx, `update workers set settings = $1 where id = $2`, text, id)
	})
}

// SetWorkerSubdomain says whether a Worker answers under the account's subdomain,
// and whether its versions do.
func (c *Catalog) SetWorkerSubdomain(ctx context.Context, accountID, name string, enabled, previews bool) (Worker, error) {
	return c.changeWorker(ctx, fmt.Sprintf("subdomain of Worker %q", name), accountID, name, func(tx *sql.Tx, id string) error {
		return one(ctx, tx, `update workers set subdomain = $1, previews = $2 where id = $3`, flag(enabled), flag(previews), id)
	})
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// changeWorker runs f on a Worker, and returns and publishes what it then is.
func (c *Catalog) changeWorker(ctx context.Context, doing, accountID, name string, f func(tx *sql.Tx, id string) error) (Worker, error) {
	var w Worker
	made := func() { c.publish(ctx, scriptKey(accountID, name)) }
	err := c.change(ctx, doing, made, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, name)
		if err != nil {
			return err
		}
		if err := f(tx, id); err != nil {
			return err
		}
		if err := one(ctx, tx, `update workers set modified = $1 where id = $2`, stored(c.now()), id); err != nil {
			return err
		}
		w, err = oneWorker(ctx, tx, accountID, name)
		return err
	})
	if err != nil {
		return Worker{}, err
	}
	return w, nil
}

// DeleteWorker removes a Worker with all that belongs to it: versions,
// deployments, routes, domains, schedules, runs, tails. The records of modules that
// no other version has are removed ModuleGrace later, by a Janitor.
func (c *Catalog) DeleteWorker(ctx context.Context, accountID, name string) error {
	var first, then []string
	made := func() { c.publishInOrder(ctx, first, then) }
	return c.change(ctx, fmt.Sprintf("delete Worker %q", name), made, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, name)
		if err != nil {
			return err
		}
		if first, err = hungKeys(ctx, tx, id); err != nil {
			return err
		}
		first = append(first, scriptKey(accountID, name))
		if then, err = keysOf(ctx, tx, versionKey, `select id from worker_versions where worker_id = $1`, id); err != nil {
			return err
		}
		if err := c.releaseModules(ctx, tx, `worker_id = $1`, id); err != nil {
			return err
		}
		return one(ctx, tx, `delete from workers where id = $1`, id)
	})
}

// hungKeys returns the keys of the records that lead to a Worker.
func hungKeys(ctx context.Context, tx *sql.Tx, workerID string) ([]string, error) {
	domains, err := keysOf(ctx, tx, domainKey, `select host from worker_domains where worker_id = $1`, workerID)
	if err != nil {
		return nil, err
	}
	zones, err := keysOf(ctx, tx, zoneKey, `select name from worker_zones where id in
		(select zone_id from worker_routes where worker_id = $1)`, workerID)
	return append(domains, zones...), err
}

// keysOf returns the keys of the records that a query names.
func keysOf(ctx context.Context, db querier, key func(string) string, statement string, args ...any) ([]string, error) {
	return all(ctx, db, func(row scanner) (string, error) {
		var name []byte
		err := row.Scan(&name)
		return key(string(name)), err
	}, statement, args...)
}
