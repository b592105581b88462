package catalog

import (
	"cmp"
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// DropGrace is how long after the deletion of a namespace its records are
	// dropped for the last time. By then no write can be under way: it is longer
	// than a process may believe in the namespace (StaleFor) and a request may take.
	DropGrace = 2 * time.Hour
	// dropEvery is how often the janitor looks for work that nobody told it of, and
	// tries again what failed.
	dropEvery = time.Minute
	// dropBatch is how many deleted namespaces are read at once.
	dropBatch = 100
)

// Janitor removes the records of deleted namespaces from a store: once when a
// namespace was deleted, and again after DropGrace, for writes that were under
// way. Only then is the deletion forgotten. It also removes the modules that no
// version of a Worker has. All of it may be repeated, so that a crash at any point
// costs nothing but doing a part again.
type Janitor struct {
	catalog *Catalog
	store   kv.Store
	logger  *slog.Logger
	wake    chan struct{}
}

// NewJanitor returns a janitor that logs to logger what fails; nil: nowhere.
func NewJanitor(c *Catalog, store kv.Store, logger *slog.Logger) *Janitor {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Janitor{catalog: c, store: store, logger: logger, wake: make(chan struct{}, 1)}
}

// Wake tells the janitor that a namespace was deleted. It never blocks.
func (j *Janitor) Wake() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends and then returns nil.
func (j *Janitor) Run(ctx context.Context) error {
	tick := time.NewTicker(dropEvery)
	defer tick.Stop()
	for {
		if err := j.sweep(ctx); err != nil && ctx.Err() == nil {
			j.logger.Error("remove records of deleted namespaces", "error", err)
		}
		if err := j.catalog.sweepModules(ctx); err != nil && ctx.Err() == nil {
			j.logger.Error("remove modules of Workers that nothing needs", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-j.wake:
		case <-tick.C:
		}
	}
}

// dropped is a deleted namespace whose records may still exist.
type dropped struct {
	id    string
	at    time.Time
	drops int // 0 until they were dropped for the first time
}

func scanDropped(row scanner) (dropped, error) {
	var (
		d  dropped
		at int64
	)
	err := row.Scan(&d.id, &at, &d.drops)
	d.at = loaded(at)
	return d, err
}

// sweep does all that is to be done now. What fails does not keep it from the
// rest; the first failure is returned.
func (j *Janitor) sweep(ctx context.Context) error {
	var first error
	for after := ""; ; {
		now := j.catalog.now()
		due, err := all(ctx, j.catalog.db.read, scanDropped, `select id, dropped, drops from dropped_namespaces
			where id > $1 and (drops = 0 or dropped <= $2) order by id limit $3`,
			after, stored(now.Add(-DropGrace)), dropBatch)
		if err != nil {
			return cmp.Or(first, failure(ctx, "list deleted namespaces", err))
		}
		for _, d := range due {
			if err := j.drop(ctx, d, now); first == nil {
				first = err
			}
		}
		if len(due) < dropBatch || ctx.Err() != nil {
			return first
		}
		after = due[len(due)-1].id
	}
}

// drop removes the records of one namespace, then notes that it has.
func (j *Janitor) drop(ctx context.Context, d dropped, now time.Time) error {
	id, err := kv.ParseNamespaceID(d.id)
	if err != nil {
		return err
	}
	if err := kv.Drop(ctx, j.store, id); err != nil {
		return err
	}
	// A crash here has the records dropped again.
	return j.catalog.change(ctx, "forget deleted namespace "+d.id, nil, func(tx *sql.Tx) error {
		statement := `update dropped_namespaces set drops = drops + 1 where id = $1`
		if !now.Before(d.at.Add(DropGrace)) {
			statement = `delete from dropped_namespaces where id = $1`
		}
		_, err := tx.ExecContext(ctx, statement, d.id)
		return err
	})
}
