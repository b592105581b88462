package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// OpenPostgreSQL opens the catalog in a PostgreSQL database, which it closes when
// it is closed or cannot be opened. Several processes may share it: what one
// changes, the others see after CacheFor at the latest. Its tables are made in the
// schema that comes first in the connection's search path.
func OpenPostgreSQL(ctx context.Context, db *sql.DB) (*Catalog, error) {
	return openPostgreSQL(ctx, db, migrations())
}

func openPostgreSQL(ctx context.Context, db *sql.DB, steps []migration) (*Catalog, error) {
	c, err := newCatalogOn(ctx, database{write: db, read: db}, steps)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open catalog on PostgreSQL: %w", err), db.Close())
	}
	return c, nil
}

// The SQLSTATEs that are told apart.
const (
	stateDuplicate      = "23505"
	stateFull           = "53100"
	stateSerialization  = "40001"
	stateDeadlock       = "40P01"
	stateDuplicateTable = "42P07"
)

// sqlState is the error's code if it comes from PostgreSQL, whatever the driver.
func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// isConflict reports whether a transaction was undone because others were in its
// way, so that it may be tried again.
func isConflict(err error) bool {
	switch sqlState(err) {
	case stateSerialization, stateDeadlock, stateDuplicateTable:
		return true
	}
	return false
}
