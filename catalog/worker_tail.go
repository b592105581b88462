package catalog

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// MaxTails is the greatest number of open tails of a Worker.
	MaxTails = 10
	// MaxTailBytes is the greatest size of the filters of a tail.
	MaxTailBytes = 8 << 10
	// MaxTailLife is how long a tail is open at most before it has to be renewed.
	MaxTailLife = 24 * time.Hour
)

// Kinds of error of tails.
var (
	ErrTailNotFound error = &sentinel{"there is no such tail, or it has expired", ErrNotFound}
	ErrTooManyTails error = &sentinel{fmt.Sprintf("the Worker has %d open tails, as many as it may", MaxTails), nil}
)

// Tail is a session in which somebody watches what a Worker logs. While it is open
// it is in the Worker's record, so that every edge knows of it.
type Tail struct {
	ID, AccountID, Worker string
	Token                 string // for who watches; only OpenTail tells it, the database has its SHA-256
	Ingest                string // for the edges, to deliver
	Filters               json.RawMessage
	Created, Expires      time.Time
	tokenHash             []byte
}

// Permits reports whether a token is the one that OpenTail told.
func (t Tail) Permits(token string) bool {
	hash := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(hash[:], t.tokenHash) == 1
}

// Accepts reports whether an edge may deliver to the tail that presents ingest.
func (t Tail) Accepts(ingest string) bool {
	return ingest != "" && subtle.ConstantTimeCompare([]byte(ingest), []byte(t.Ingest)) == 1
}

const tailColumns = `t.id, t.worker_id, w.account_id, w.name, t.token_hash, t.ingest, t.filters, t.created, t.expires`

// tailRow is a tail with the id of its Worker.
type tailRow struct {
	tail     Tail
	workerID string
}

func scanTail(row scanner) (tailRow, error) {
	var (
		r                tailRow
		name, filters    []byte
		created, expires int64
	)
	t := &r.tail
	err := row.Scan(&t.ID, &r.workerID, &t.AccountID, &name, &t.tokenHash, &t.Ingest, &filters, &created, &expires)
	t.Worker, t.Created, t.Expires = string(name), loaded(created), loaded(expires)
	if len(filters) > 0 {
		t.Filters = filters
	}
	return r, err
}

// openTails returns the open tails of those Workers whose id meets a condition on
// an account ($1) and a name ($2), by the id of the Worker.
func (c *Catalog) openTails(ctx context.Context, accountID, name, condition string) (map[string][]Tail, error) {
	rows, err := all(ctx, c.db.read, scanTail, `select `+tailColumns+` from worker_tails t join workers w on w.id = t.worker_id
		where t.expires > $3 and t.worker_id `+condition+` order by t.created, t.id`, accountID, notNil([]byte(name)), stored(c.now()))
	if err != nil {
		return nil, err
	}
	tails := map[string][]Tail{}
	for _, r := range rows {
		tails[r.workerID] = append(tails[r.workerID], r.tail)
	}
	return tails, nil
}

func checkLife(life time.Duration) error {
	if life <= 0 || life > MaxTailLife {
		return invalid("a tail is open for at most %s, not %s", MaxTailLife, life)
	}
	return nil
}

// OpenTail opens a tail of a Worker for the time of life. The filters are JSON.
func (c *Catalog) OpenTail(ctx context.Context, accountID, worker string, filters json.RawMessage, life time.Duration) (Tail, error) {
	doing := fmt.Sprintf("open a tail of Worker %q", worker)
	if err := errors.Join(checkLife(life), checkFilters(filters)); err != nil {
		return Tail{}, fmt.Errorf("%s: %w", doing, err)
	}
	now := c.now()
	t := Tail{ID: newID(), AccountID: accountID, Worker: worker, Token: NewSecret(), Ingest: NewSecret(), Filters: filters,
		Created: loaded(stored(now)), Expires: loaded(stored(now.Add(life)))}
	hash := sha256.Sum256([]byte(t.Token))
	t.tokenHash = hash[:]
	err := c.changeTails(ctx, doing, accountID, worker, func(tx *sql.Tx, workerID string) error {
		if _, err := tx.ExecContext(ctx, `delete from worker_tails where worker_id = $1 and expires <= $2`, workerID, stored(now)); err != nil {
			return err
		}
		var count int
		if err := tx.QueryRowContext(ctx, `select count(*) from worker_tails where worker_id = $1`, workerID).Scan(&count); err != nil {
			return err
		}
		if count >= MaxTails {
			return ErrTooManyTails
		}
		_, err := tx.ExecContext(ctx, `insert into worker_tails (id, worker_id, token_hash, ingest, filters, created, expires)
			values ($1, $2, $3, $4, $5, $6, $7)`, t.ID, workerID, t.tokenHash, t.Ingest, notNil(filters), stored(t.Created), stored(t.Expires))
		return err
	})
	if err != nil {
		return Tail{}, err
	}
	return t, nil
}

func checkFilters(filters json.RawMessage) error {
	switch {
	case len(filters) > MaxTailBytes:
		return invalid("the filters of a tail have at most %d bytes, these have %d", MaxTailBytes, len(filters))
	case len(filters) > 0 && !json.Valid(filters):
		return invalid("the filters of a tail are no JSON")
	}
	return nil
}

// changeTails runs f on a Worker, and publishes what tails it then has.
func (c *Catalog) changeTails(ctx context.Context, doing, accountID, worker string, f func(tx *sql.Tx, workerID string) error) error {
	made := func() { c.publish(ctx, scriptKey(accountID, worker)) }
	return c.change(ctx, doing, made, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, worker)
		if err != nil {
			return err
		}
		return f(tx, id)
	})
}

// Tails returns the open tails of a Worker, the oldest first.
func (c *Catalog) Tails(ctx context.Context, accountID, worker string) ([]Tail, error) {
	byWorker, err := c.openTails(ctx, accountID, worker, `in (select id from workers where account_id = $1 and name = $2)`)
	if err != nil {
		return nil, failure(ctx, fmt.Sprintf("list the tails of Worker %q", worker), err)
	}
	for _, list := range byWorker {
		return list, nil
	}
	_, err = c.Worker(ctx, accountID, worker)
	return nil, err
}

// Tail returns an open tail of a Worker, or ErrTailNotFound.
func (c *Catalog) Tail(ctx context.Context, accountID, worker, id string) (Tail, error) {
	list, err := c.Tails(ctx, accountID, worker)
	if err != nil {
		return Tail{}, err
	}
	for _, t := range list {
		if t.ID == id {
			return t, nil
		}
	}
	return Tail{}, fmt.Errorf("tail %q of Worker %q: %w", id, worker, ErrTailNotFound)
}

// RenewTail has an open tail be open for the time of life from now.
func (c *Catalog) RenewTail(ctx context.Context, accountID, worker, id string, life time.Duration) (Tail, error) {
	doing := fmt.Sprintf("renew tail %q of Worker %q", id, worker)
	if err := checkLife(life); err != nil {
		return Tail{}, fmt.Errorf("%s: %w", doing, err)
	}
	now := c.now()
	err := c.changeTails(ctx, doing, accountID, worker, func(tx *sql.Tx, workerID string) error {
		return tailGone(one(ctx, tx, `update worker_tails set expires = $1 where id = $2 and worker_id = $3 and expires > $4`,
			stored(now.Add(life)), id, workerID, stored(now)))
	})
	if err != nil {
		return Tail{}, err
	}
	return c.Tail(ctx, accountID, worker, id)
}

// CloseTail ends a tail.
func (c *Catalog) CloseTail(ctx context.Context, accountID, worker, id string) error {
	return c.changeTails(ctx, fmt.Sprintf("close tail %q of Worker %q", id, worker), accountID, worker, func(tx *sql.Tx, workerID string) error {
		return tailGone(one(ctx, tx, `delete from worker_tails where id = $1 and worker_id = $2`, id, workerID))
	})
}

func tailGone(err error) error {
	if errors.Is(err, ErrNotFound) {
		return ErrTailNotFound
	}
	return err
}
