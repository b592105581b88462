package catalog

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Account owns namespaces and tokens. Its id has 32 hexadecimal digits.
type Account struct {
	ID, Name string
	Created  time.Time
}

// User is the one owner of the installation.
type User struct {
	ID, Email string
}

func scanAccount(row scanner) (Account, error) {
	var (
		a       Account
		created int64
	)
	err := row.Scan(&a.ID, &a.Name, &created)
	a.Created = loaded(created)
	return a, err
}

// Accounts returns all accounts, the oldest first.
func (c *Catalog) Accounts(ctx context.Context) ([]Account, error) {
	list, err := all(ctx, c.db.read, scanAccount, `select id, name, created from accounts order by created, id`)
	return list, failure(ctx, "list accounts", err)
}

// Account returns an account.
func (c *Catalog) Account(ctx context.Context, id string) (Account, error) {
	a, err := scanAccount(c.db.read.QueryRowContext(ctx, `select id, name, created from accounts where id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Account{}, failure(ctx, "account "+id, err)
	}
	return a, nil
}

// lockAccount makes the transaction wait for others that change what belongs to
// the account, so that it may count and then add. It returns ErrNotFound if there
// is no such account.
func lockAccount(ctx context.Context, tx *sql.Tx, id string) error {
	err := one(ctx, tx, `update accounts set name = name where id = $1`, id)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("account %s: %w", id, err)
	}
	return err
}

// Root is what the root credentials must be. They give every right on every
// account.
type Root struct {
	AccountID   string // empty: the account of the last root, or a new one
	AccountName string // empty: as it is, or "nearkey" for a new one
	Token       string
	Email       string // of the owner
	Key         string // of the owner; empty: e-mail and key are not accepted
}

// EnsureRoot makes the root credentials those of root, and no others, and
// creates the account if it does not exist. It changes nothing that is so
// already; a program calls it whenever it starts.
func (c *Catalog) EnsureRoot(ctx context.Context, root Root) (Account, error) {
	if err := root.check(); err != nil {
		return Account{}, fmt.Errorf("root credentials: %w", err)
	}
	var account Account
	keys := []string{tokenKey(hashOf(root.Token))}
	if root.Key != "" {
		keys = append(keys, ownerKey(hashOf(root.Key)))
	}
	made := func() {
		c.forgetRights()
		c.publish(ctx, keys...)
	}
	err := c.change(ctx, "root credentials", made, func(tx *sql.Tx) (err error) {
		// Processes that start at once do this one after the other.
		if err := one(ctx, tx, `update schema_versions set applied = applied where version = 1`); err != nil {
			return err
		}
		before, err := rootKeys(ctx, tx)
		if err != nil {
			return err
		}
		keys = append(keys, before...)
		if account, err = c.ensureAccount(ctx, tx, root); err != nil {
			return err
		}
		if err := c.ensureRootToken(ctx, tx, account.ID, root.Token); err != nil {
			return err
		}
		return ensureOwner(ctx, tx, root.Email, root.Key)
	})
	if err != nil {
		return Account{}, err
	}
	return account, nil
}

// rootKeys returns the keys of the records of the root credentials.
func rootKeys(ctx context.Context, tx *sql.Tx) (keys []string, err error) {
	for _, q := range []struct {
		hash string
		key  func(hash []byte) string
	}{
		{`select hash from tokens where root = 1`, tokenKey},
		{`select key_hash from users where key_hash is not null`, ownerKey},
	} {
		var hash []byte
		switch err := tx.QueryRowContext(ctx, q.hash).Scan(&hash); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, err
		default:
			keys = append(keys, q.key(hash))
		}
	}
	return keys, nil
}

func (r Root) check() error {
	if b, err := hex.DecodeString(r.AccountID); r.AccountID != "" && (err != nil || len(b) != 16 || hex.EncodeToString(b) != r.AccountID) {
		return invalid("account id %q: want 32 hexadecimal digits, in lower case", r.AccountID)
	}
	if err := checkSecret("token", r.Token); err != nil {
		return err
	}
	if r.Key == "" {
		return nil
	}
	if r.Email == "" {
		return invalid("a key needs an e-mail")
	}
	return checkSecret("key", r.Key)
}

func (c *Catalog) ensureAccount(ctx context.Context, tx *sql.Tx, root Root) (Account, error) {
	id, name := root.AccountID, root.AccountName
	if id == "" {
		err := tx.QueryRowContext(ctx, `select account_id from tokens where root = 1`).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			id, err = newID(), nil
		}
		if err != nil {
			return Account{}, err
		}
	}
	if name == "" {
		name = "nearkey"
	}
	if _, err := tx.ExecContext(ctx, `insert into accounts (id, name, created) values ($1, $2, $3) on conflict (id) do nothing`,
		id, name, stored(c.now())); err != nil {
		return Account{}, err
	}
	if root.AccountName != "" {
		if err := one(ctx, tx, `update accounts set name = $1 where id = $2`, name, id); err != nil {
			return Account{}, err
		}
	}
	return scanAccount(tx.QueryRowContext(ctx, `select id, name, created from accounts where id = $1`, id))
}

func (c *Catalog) ensureRootToken(ctx context.Context, tx *sql.Tx, accountID, secret string) error {
	hash := hashSecret(secret)
	err := one(ctx, tx, `update tokens set account_id = $1, hash = $2 where root = 1`, accountID, hash[:])
	if errors.Is(err, ErrNotFound) {
		_, err = tx.ExecContext(ctx, `insert into tokens (id, account_id, name, hash, root, created, not_before, expires, revoked)
			values ($1, $2, $3, $4, 1, $5, 0, 0, 0)`, newID(), accountID, []byte("root"), hash[:], stored(c.now()))
	}
	if isDuplicate(err) {
		return invalid("the token is one that was created through the API, in use or revoked; choose another")
	}
	return err
}

// ensureOwner makes the one row of users hold the e-mail and key.
func ensureOwner(ctx context.Context, tx *sql.Tx, email, key string) error {
	var keyHash []byte
	if key != "" {
		hash := hashSecret(key)
		keyHash = hash[:]
	}
	err := one(ctx, tx, `update users set email = $1, key_hash = $2`, email, keyHash)
	if errors.Is(err, ErrNotFound) {
		_, err = tx.ExecContext(ctx, `insert into users (id, email, key_hash) values ($1, $2, $3)`, newID(), email, keyHash)
	}
	return err
}
