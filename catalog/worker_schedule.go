package catalog

import (
	"context"
	"database/sql"
	"fmt"
	"time"
	"unicode/utf8"
)

const (
	// MaxSchedules is the greatest number of schedules of a Worker.
	MaxSchedules = 250
	// MaxCronBytes is the greatest length of a cron expression.
	MaxCronBytes = 256
)

// ErrTooManySchedules: a Worker is to have more schedules than it may.
var ErrTooManySchedules error = &sentinel{fmt.Sprintf("a Worker has at most %d schedules", MaxSchedules), ErrInvalid}

// Schedule says when a Worker runs by itself. What the expression means is not the
// catalog's business.
type Schedule struct {
	AccountID, Worker, Cron string
	Created, Modified       time.Time
}

const selectSchedules = `select w.account_id, w.name, s.cron, s.created, s.modified
	from worker_schedules s join workers w on w.id = s.worker_id `

func scanSchedule(row scanner) (Schedule, error) {
	var (
		s                 Schedule
		worker, cron      []byte
		created, modified int64
	)
	err := row.Scan(&s.AccountID, &worker, &cron, &created, &modified)
	s.Worker, s.Cron, s.Created, s.Modified = string(worker), string(cron), loaded(created), loaded(modified)
	return s, err
}

// AllSchedules returns the schedules of all Workers.
func (c *Catalog) AllSchedules(ctx context.Context) ([]Schedule, error) {
	list, err := all(ctx, c.db.read, scanSchedule, selectSchedules+`order by w.account_id, w.name, s.position`)
	return list, failure(ctx, "list the schedules of all Workers", err)
}

// Schedules returns the schedules of a Worker, in the order in which they were
// given.
func (c *Catalog) Schedules(ctx context.Context, accountID, name string) ([]Schedule, error) {
	list, err := all(ctx, c.db.read, scanSchedule, selectSchedules+`where w.account_id = $1 and w.name = $2 order by s.position`,
		accountID, []byte(name))
	if err != nil {
		return nil, failure(ctx, fmt.Sprintf("list the schedules of Worker %q", name), err)
	}
	if len(list) == 0 {
		_, err := c.Worker(ctx, accountID, name)
		return nil, err
	}
	return list, nil
}

// ReplaceSchedules makes the schedules of a Worker those, and no others. One that
// the Worker has already stays as it is.
func (c *Catalog) ReplaceSchedules(ctx context.Context, accountID, name string, crons []string) ([]Schedule, error) {
	doing := fmt.Sprintf("schedules of Worker %q", name)
	for _, cron := range crons {
		if cron == "" || len(cron) > MaxCronBytes || !utf8.ValidString(cron) {
			return nil, fmt.Errorf("%s: %w", doing, invalid("%.40q is no cron expression: it has 1 to %d bytes of UTF-8", cron, MaxCronBytes))
		}
	}
	if len(crons) > MaxSchedules {
		return nil, fmt.Errorf("%s: %w", doing, ErrTooManySchedules)
	}
	var list []Schedule
	err := c.change(ctx, doing, nil, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, name)
		if err != nil {
			return err
		}
		// Those that remain are given a position again.
		if _, err := tx.ExecContext(ctx, `update worker_schedules set position = -1 where worker_id = $1`, id); err != nil {
			return err
		}
		for i, cron := range crons {
			if _, err := tx.ExecContext(ctx, `insert into worker_schedules (worker_id, cron, position, created, modified) values ($1, $2, $3, $4, $4)
				on conflict (worker_id, cron) do update set position = excluded.position`, id, []byte(cron), i, stored(c.now())); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `delete from worker_schedules where worker_id = $1 and position = -1`, id); err != nil {
			return err
		}
		list, err = all(ctx, tx, scanSchedule, selectSchedules+`where s.worker_id = $1 order by s.position`, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}
