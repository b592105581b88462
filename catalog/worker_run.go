package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	// MaxCronRuns is how many runs of a Worker are kept, the newest.
	MaxCronRuns = 100
	// MaxTickAge is how old a tick may be that is claimed for the first time. The runs
	// of ticks up to twice as old are kept, however many they are: nobody can claim a
	// tick once more because it was forgotten that it had run.
	MaxTickAge = 10 * time.Minute
	// MaxRetryAge is how old a tick may be that is tried again.
	MaxRetryAge = time.Hour
	// MaxRunErrorBytes is how much is kept of what went wrong in a run.
	MaxRunErrorBytes = 4 << 10
	// MaxDueRuns is how many runs are told at once to be due.
	MaxDueRuns = 1000
)

// ErrLeaseLost: the holder has lost a run. Its lease was over and another has taken
// it, or it has ended, or the Worker is gone.
var ErrLeaseLost error = &sentinel{"the run is no longer the holder's", nil}

// CronRun is a run of a Worker. A run at a tick of a schedule is claimed by one
// process, whose alone it is while its lease lasts. A lease is reckoned by the
// clocks of those who claim: they must agree to within a small part of it.
type CronRun struct {
	ID                      int64 // fits what JavaScript takes for an integer
	AccountID, Worker, Cron string
	At                      time.Time // the tick
	Started                 time.Time // of the last attempt
	Ended                   time.Time // of the last attempt; zero: it runs, or its holder is gone
	RetryAt                 time.Time // when it is to be tried again; zero: it is not
	Attempt                 int       // from 1
	Outcome, Error          string    // of the last attempt
	Holder                  string
	Lease                   time.Time // until when it is the holder's; zero: it has ended
	Manual                  bool      // not at a tick: somebody asked for it
}

const selectRuns = `select r.id, w.account_id, w.name, r.cron, r.at, r.started, r.ended, r.retry, r.attempt, r.lease,
	r.outcome, r.error, r.holder, r.manual from worker_runs r join workers w on w.id = r.worker_id `

func scanRun(row scanner) (CronRun, error) {
	var (
		r                                                 CronRun
		worker, cron, outcome, text, holder               []byte
		at, started, ended, retry, attempt, lease, manual int64
	)
	err := row.Scan(&r.ID, &r.AccountID, &worker, &cron, &at, &started, &ended, &retry, &attempt, &lease, &outcome, &text, &holder, &manual)
	r.Worker, r.Cron, r.Outcome, r.Error, r.Holder = string(worker), string(cron), string(outcome), string(text), string(holder)
	r.At, r.Started, r.Ended, r.RetryAt = loaded(at), loaded(started), loaded(ended), loaded(retry)
	r.Attempt, r.Lease, r.Manual = int(attempt), loaded(lease), manual != 0
	return r, err
}

// claimable is the condition that nobody has a run that has not ended, or that is
// to be tried again: $1 is now, $2 the tick that is just too old.
const claimable = `(r.ended = 0 and r.lease <= $1 or r.retry <> 0 and r.retry <= $1) and r.at > $2 and r.manual = 0`

func (r *CronRun) claimable(now time.Time) bool {
	free := r.Ended.IsZero() && !r.Lease.After(now) || !r.RetryAt.IsZero() && !r.RetryAt.After(now)
	return free && r.At.After(now.Add(-MaxRetryAge)) && !r.Manual
}

// newRunID returns a positive number below 2^53.
func newRunID() int64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return int64(binary.BigEndian.Uint64(b[:])>>11) | 1
}

// ClaimRun claims the run at a tick of a schedule. Of all who do so one gets it:
// the first, as long as the tick is at most MaxTickAge old, and when the lease of
// an attempt that did not end is over, or a retry is due, the first after that.
// The run is returned also if it is another's, unless there is none. Nobody gets a
// run of a schedule that the Worker does not have.
func (c *Catalog) ClaimRun(ctx context.Context, accountID, worker, cron string, at time.Time, holder string, lease time.Duration) (run CronRun, claimed bool, err error) {
	doing := fmt.Sprintf("claim the run of Worker %q at %s", worker, at.UTC().Format(time.RFC3339))
	find := func(db rower) (CronRun, error) {
		return scanRun(db.QueryRowContext(ctx, selectRuns+`where w.account_id = $1 and w.name = $2 and r.cron = $3 and r.at = $4 and r.manual = 0`,
			accountID, []byte(worker), notNil([]byte(cron)), stored(at)))
	}
	// Most who ask are too late: they need no transaction to learn it.
	if run, err = find(c.db.read); err == nil && !run.claimable(c.now()) {
		return run, false, nil
	}
	err = c.change(ctx, doing, nil, func(tx *sql.Tx) error {
		claimed = false
		id, err := workerID(ctx, tx, accountID, worker)
		if err != nil {
			return err
		}
		now := c.now()
		if claimed, err = claim(ctx, tx, id, cron, at, now, holder, lease); err != nil {
			return err
		}
		run, err = find(tx)
		if errors.Is(err, sql.ErrNoRows) {
			run, err = CronRun{}, nil
		}
		return err
	})
	if err != nil {
		return CronRun{}, false, err
	}
	return run, claimed, nil
}

// rower is a database or a transaction.
type rower interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// claim reports whether the run at a tick is the holder's from now on. The account
// is locked.
func claim(ctx context.Context, tx *sql.Tx, workerID, cron string, at, now time.Time, holder string, lease time.Duration) (bool, error) {
	var scheduled int
	if err := tx.QueryRowContext(ctx, `select count(*) from worker_schedules where worker_id = $1 and cron = $2`,
		workerID, notNil([]byte(cron))).Scan(&scheduled); err != nil || scheduled == 0 {
		return false, err
	}
	until := stored(now.Add(lease))
	if at.After(now.Add(-MaxTickAge)) {
		first, err := insertRun(ctx, tx, newRunID(), workerID, cron, at, 0, now, until, holder)
		if err != nil {
			return false, err
		}
		if first {
			return true, forgetRuns(ctx, tx, workerID, now)
		}
	}
	err := one(ctx, tx, `update worker_runs as r set holder = $3, lease = $4, started = $1, ended = 0, retry = 0, attempt = attempt + 1
		where `+claimable+` and r.worker_id = $5 and r.cron = $6 and r.at = $7`,
		stored(now), stored(now.Add(-MaxRetryAge)), notNil([]byte(holder)), until, workerID, []byte(cron), stored(at))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// insertRun inserts a run, and reports whether there was none at this tick.
func insertRun(ctx context.Context, tx *sql.Tx, id int64, workerID, cron string, at time.Time, manual int64, now time.Time, until int64, holder string) (bool, error) {
	err := one(ctx, tx, `insert into worker_runs (id, worker_id, cron, at, manual, started, ended, lease, retry, attempt, holder, outcome, error)
		values ($1, $2, $3, $4, $5, $6, 0, $7, 0, 1, $8, $9, $9) on conflict (worker_id, cron, at, manual) do nothing`,
		id, workerID, notNil([]byte(cron)), stored(at), manual, stored(now), until, notNil([]byte(holder)), []byte{})
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// forgetRuns removes the runs of a Worker that are too many, except those that a
// claim may still need.
func forgetRuns(ctx context.Context, tx *sql.Tx, workerID string, now time.Time) error {
	_, err := tx.ExecContext(ctx, `delete from worker_runs where worker_id = $1 and (manual <> 0 or at <= $2)
		and not (ended = 0 and lease > $3) and id not in
		(select id from worker_runs where worker_id = $1 order by at desc, id desc limit $4)`,
		workerID, stored(now.Add(-2*MaxTickAge)), stored(now), MaxCronRuns)
	return err
}

// StartRun begins a run that somebody asked for, at no tick. The cron is what the
// Worker is told; it need not have such a schedule. It is not tried again.
func (c *Catalog) StartRun(ctx context.Context, accountID, worker, cron, holder string, lease time.Duration) (CronRun, error) {
	var run CronRun
	err := c.change(ctx, fmt.Sprintf("start a run of Worker %q", worker), nil, func(tx *sql.Tx) error {
		workerID, err := workerID(ctx, tx, accountID, worker)
		if err != nil {
			return err
		}
		now, id := c.now(), newRunID()
		if _, err := insertRun(ctx, tx, id, workerID, cron, now, id, now, stored(now.Add(lease)), holder); err != nil {
			return err
		}
		if err := forgetRuns(ctx, tx, workerID, now); err != nil {
			return err
		}
		run, err = scanRun(tx.QueryRowContext(ctx, selectRuns+`where r.id = $1`, id))
		return err
	})
	if err != nil {
		return CronRun{}, err
	}
	return run, nil
}

// RenewRun has the lease of a run last from now on, or returns ErrLeaseLost.
func (c *Catalog) RenewRun(ctx context.Context, id int64, holder string, lease time.Duration) error {
	return c.change(ctx, fmt.Sprintf("renew the lease of run %d", id), nil, func(tx *sql.Tx) error {
		return leaseLost(one(ctx, tx, `update worker_runs set lease = $1 where id = $2 and holder = $3 and ended = 0`,
			stored(c.now().Add(lease)), id, notNil([]byte(holder))))
	})
}

// FinishRun ends an attempt of a run, which is tried again at retryAt, unless that
// is zero. It returns ErrLeaseLost if the run is not the holder's.
func (c *Catalog) FinishRun(ctx context.Context, id int64, holder, outcome, errText string, retryAt time.Time) error {
	errText = errText[:min(len(errText), MaxRunErrorBytes)]
	outcome = outcome[:min(len(outcome), MaxRunErrorBytes)]
	return c.change(ctx, fmt.Sprintf("finish run %d", id), nil, func(tx *sql.Tx) error {
		return leaseLost(one(ctx, tx, `update worker_runs set ended = $1, lease = 0, retry = $2, outcome = $3, error = $4
			where id = $5 and holder = $6 and ended = 0`,
			stored(c.now()), stored(retryAt), notNil([]byte(outcome)), notNil([]byte(errText)), id, notNil([]byte(holder))))
	})
}

func leaseLost(err error) error {
	if errors.Is(err, ErrNotFound) {
		return ErrLeaseLost
	}
	return err
}

// DueRetries returns the runs that ClaimRun now gives to the first who asks: those
// whose holder is gone, and those that are to be tried again. They are at most
// MaxDueRuns, the oldest.
func (c *Catalog) DueRetries(ctx context.Context) ([]CronRun, error) {
	now := c.now()
	list, err := all(ctx, c.db.read, scanRun, selectRuns+`where `+claimable+`
		and exists (select 1 from worker_schedules s where s.worker_id = r.worker_id and s.cron = r.cron)
		order by r.at, r.id limit $3`, stored(now), stored(now.Add(-MaxRetryAge)), MaxDueRuns)
	return list, failure(ctx, "list the runs that are due", err)
}

// CronRuns returns the runs of a Worker, the newest first, at most limit (1 to
// MaxCronRuns, others are clamped).
func (c *Catalog) CronRuns(ctx context.Context, accountID, worker string, limit int) ([]CronRun, error) {
	if limit < 1 || limit > MaxCronRuns {
		limit = MaxCronRuns
	}
	list, err := all(ctx, c.db.read, scanRun, selectRuns+`where w.account_id = $1 and w.name = $2 order by r.at desc, r.id desc limit $3`,
		accountID, []byte(worker), limit)
	if err != nil {
		return nil, failure(ctx, fmt.Sprintf("list the runs of Worker %q", worker), err)
	}
	if len(list) == 0 {
		_, err := c.Worker(ctx, accountID, worker)
		return nil, err
	}
	return list, nil
}
