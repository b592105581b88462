package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
)

// MaxSubdomainChars is the greatest number of characters in a subdomain: it is a
// label of a host name.
const MaxSubdomainChars = 63

// Kinds of error of subdomains.
var (
	ErrSubdomainTaken error = &sentinel{"the subdomain is taken", nil}
	ErrSubdomainName  error = &sentinel{fmt.Sprintf("a subdomain has at most %d of the characters a-z, 0-9 and -, and neither begins nor ends with the last",
		MaxSubdomainChars), ErrInvalid}
)

// firstSubdomain is what the first account gets that asks.
const firstSubdomain = "dev"

var subdomainName = regexp.MustCompile(fmt.Sprintf(`^[a-z0-9]([a-z0-9-]{0,%d}[a-z0-9])?$`, MaxSubdomainChars-2))

// Subdomain returns the subdomain under which the Workers of an account answer.
// Every account has one: it is given when first asked for.
func (c *Catalog) Subdomain(ctx context.Context, accountID string) (string, error) {
	doing := "subdomain of account " + accountID
	name, err := subdomainOf(c.db.read.QueryRowContext(ctx, selectSubdomain, accountID))
	if err != nil || name != "" {
		return name, failure(ctx, doing, err)
	}
	made := func() { c.publish(ctx, subdomainKey(name)) }
	err = c.change(ctx, doing, made, func(tx *sql.Tx) (err error) {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if name, err = subdomainOf(tx.QueryRowContext(ctx, selectSubdomain, accountID)); err != nil || name != "" {
			return err
		}
		name, err = insertSubdomain(ctx, tx, accountID)
		return err
	})
	return name, err
}

const selectSubdomain = `select name from worker_subdomains where account_id = $1`

// subdomainOf returns the name in a row, empty if there is none.
func subdomainOf(row scanner) (string, error) {
	var name []byte
	err := row.Scan(&name)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return string(name), err
}

// insertSubdomain gives an account the first name that is free. There are at most
// as many names to try as there are accounts.
func insertSubdomain(ctx context.Context, tx *sql.Tx, accountID string) (string, error) {
	for i := 1; ; i++ {
		name := firstSubdomain
		if i > 1 {
			name = fmt.Sprintf("%s-%d", firstSubdomain, i)
		}
		err := one(ctx, tx, `insert into worker_subdomains (account_id, name) values ($1, $2) on conflict do nothing`, accountID, []byte(name))
		if !errors.Is(err, ErrNotFound) {
			return name, err
		}
	}
}

// SubdomainTaken reports whether an account has a subdomain.
func (c *Catalog) SubdomainTaken(ctx context.Context, name string) (bool, error) {
	var count int
	err := c.db.read.QueryRowContext(ctx, `select count(*) from worker_subdomains where name = $1`, notNil([]byte(name))).Scan(&count)
	return count > 0, failure(ctx, fmt.Sprintf("subdomain %q", name), err)
}

// SetSubdomain gives an account another subdomain. Its Workers answer under the
// one before no more.
func (c *Catalog) SetSubdomain(ctx context.Context, accountID, name string) error {
	doing := fmt.Sprintf("subdomain %q of account %s", name, accountID)
	if !subdomainName.MatchString(name) {
		return fmt.Errorf("%s: %w", doing, ErrSubdomainName)
	}
	var before string
	made := func() {
		keys := []string{subdomainKey(name)}
		if before != "" && before != name {
			keys = append(keys, subdomainKey(before))
		}
		c.publish(ctx, keys...)
	}
	return c.change(ctx, doing, made, func(tx *sql.Tx) (err error) {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if before, err = subdomainOf(tx.QueryRowContext(ctx, selectSubdomain, accountID)); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `insert into worker_subdomains (account_id, name) values ($1, $2)
			on conflict (account_id) do update set name = excluded.name`, accountID, []byte(name))
		if isDuplicate(err) {
			return ErrSubdomainTaken
		}
		return err
	})
}
