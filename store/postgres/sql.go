package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/nearkey/nearkey/kv"
)

const (
	sqlConns            = 8                // connections of a database of OpenSQL at once
	statementTimeout    = 10 * time.Second // for a statement whose context has no earlier deadline
	transactionTimeout  = 30 * time.Second // for a transaction
	sqlConnLifetime     = time.Hour
	sqlDialTimeout      = 5 * time.Second
	sqlIdleTransactions = "idle_in_transaction_session_timeout"
)

// OpenSQL returns a database of a connection URL, for those who speak SQL through
// database/sql; it dials nothing. As with a Store, a commit whose synchronous wait
// the server gave up is an error, which wraps kv.ErrUnknown, and a server that
// hangs costs a timeout. A statement that changes something is executed with
// ExecContext, or in a transaction.
func OpenSQL(url string) (*sql.DB, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", urlError(err))
	}
	prepare(config, sqlDialTimeout)
	config.RuntimeParams[sqlIdleTransactions] = idleTransaction
	db := sql.OpenDB(connector{stdlib.GetConnector(*config)})
	db.SetMaxOpenConns(sqlConns)
	db.SetMaxIdleConns(sqlConns / 2)
	db.SetConnMaxLifetime(sqlConnLifetime)
	return db, nil
}

// connector makes connections that look at the server's notices.
type connector struct{ driver.Connector }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	made, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	of, ok := made.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect: a connection of type %T", made), made.Close())
	}
	return &connection{of}, nil
}

type connection struct{ *stdlib.Conn }

// confirmed is err, or what the server said beside its success.
func (c *connection) confirmed(err error) error {
	if takeUnreplicated(c.Conn.Conn().PgConn()) && err == nil {
		return fmt.Errorf("%w: %w", kv.ErrUnknown, errUnreplicated)
	}
	return err
}

// ExecContext implements driver.ExecerContext.
func (c *connection) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	result, err := c.Conn.ExecContext(ctx, query, args)
	return result, c.confirmed(err)
}

// QueryContext implements driver.QueryerContext.
func (c *connection) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	rows, err := c.Conn.QueryContext(ctx, query, args)
	if err != nil {
		cancel()
		return nil, err
	}
	of, ok := rows.(*stdlib.Rows)
	if !ok {
		cancel()
		return nil, errors.Join(fmt.Errorf("query: rows of type %T", rows), rows.Close())
	}
	return &result{of, cancel}, nil
}

// result is the rows of a query, and its timeout.
type result struct {
	*stdlib.Rows
	cancel context.CancelFunc
}

// Close implements driver.Rows.
func (r *result) Close() error {
	defer r.cancel()
	return r.Rows.Close()
}

// BeginTx implements driver.ConnBeginTx.
func (c *connection) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	tx, err := c.Conn.BeginTx(ctx, opts)
	if err != nil {
		cancel()
		return nil, err
	}
	return &transaction{tx, c, cancel}, nil
}

type transaction struct {
	driver.Tx
	conn   *connection
	cancel context.CancelFunc
}

// Commit implements driver.Tx.
func (t *transaction) Commit() error {
	defer t.cancel()
	return t.conn.confirmed(t.Tx.Commit())
}

// Rollback implements driver.Tx.
func (t *transaction) Rollback() error {
	defer t.cancel()
	return t.Tx.Rollback()
}
