package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/nearkey/nearkey/kv"
)

// ErrDropped: the namespace was deleted, and its records are still being removed.
var ErrDropped error = &sentinel{"the namespace was deleted not long ago, and what is written to it is still being removed", nil}

// EveryNamespace returns the namespaces of all accounts in order of their ids:
// those greater than after, at most limit (1 to MaxNamespacePage, others are
// clamped).
func (c *Catalog) EveryNamespace(ctx context.Context, after kv.NamespaceID, limit int) ([]Namespace, error) {
	if limit < 1 || limit > MaxNamespacePage {
		limit = MaxNamespacePage
	}
	list, err := all(ctx, c.db.read, scanNamespace, fmt.Sprintf(`select `+namespaceColumns+` from namespaces
		where id > $1 order by id limit %d`, limit), after.String())
	return list, failure(ctx, "list the namespaces of all accounts", err)
}

// CheckRestore returns the error with which RestoreNamespace would fail now.
func (c *Catalog) CheckRestore(ctx context.Context, n Namespace) error {
	err := c.restore(ctx, n, errUndo)
	if errors.Is(err, errUndo) {
		return nil
	}
	return err
}

// errUndo ends a transaction whose work was only tried.
var errUndo error = &sentinel{"undo", nil}

// RestoreNamespace makes a namespace with the id and title that it had. One that
// exists is left as it is. One that was deleted cannot be restored with its id
// until its records were removed for the last time: ErrDropped.
func (c *Catalog) RestoreNamespace(ctx context.Context, n Namespace) error {
	return c.restore(ctx, n, nil)
}

// restore ends the transaction with end after the work was done in it.
func (c *Catalog) restore(ctx context.Context, n Namespace, end error) error {
	if err := checkTitle(n.Title); err != nil {
		return fmt.Errorf("restore namespace %s: %w", n.ID, err)
	}
	if OwnNamespace(n.ID) || n.ID == (kv.NamespaceID{}) {
		return fmt.Errorf("restore namespace: %w", invalid("%s is no id of a namespace", n.ID))
	}
	made := func() {
		c.namespaces.forget(n.ID)
		c.publish(ctx, namespaceKey(n.ID))
	}
	return c.change(ctx, fmt.Sprintf("restore namespace %q", n.Title), made, func(tx *sql.Tx) error {
		if err := restoreNamespace(ctx, tx, n); err != nil {
			return err
		}
		return end
	})
}

func restoreNamespace(ctx context.Context, tx *sql.Tx, n Namespace) error {
	if err := lockAccount(ctx, tx, n.AccountID); err != nil {
		return err
	}
	var exist, dropped int
	if err := tx.QueryRowContext(ctx, `select count(*) from namespaces where id = $1`, n.ID.String()).Scan(&exist); err != nil {
		return err
	}
	if exist > 0 {
		return nil
	}
	if err := tx.QueryRowContext(ctx, `select count(*) from dropped_namespaces where id = $1`, n.ID.String()).Scan(&dropped); err != nil {
		return err
	}
	if dropped > 0 {
		return ErrDropped
	}
	_, err := tx.ExecContext(ctx, `insert into namespaces (`+namespaceColumns+`) values ($1, $2, $3, $4, $5)`,
		n.ID.String(), n.AccountID, []byte(n.Title), n.Jurisdiction, stored(n.Created))
	return titleTaken(err)
}
