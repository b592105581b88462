package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxDomains is the greatest number of custom domains of a Worker.
const MaxDomains = 100

// Kinds of error of custom domains.
var (
	ErrDomainNotFound error = &sentinel{"there is no such custom domain", ErrNotFound}
	ErrDomainTaken    error = &sentinel{"the host is a custom domain of another account", nil}
)

// WorkerDomain is a host all of whose requests a Worker answers.
type WorkerDomain struct {
	ID, Host, Script string
	Created          time.Time
}

const selectDomains = `select d.id, d.host, w.name, d.created from worker_domains d join workers w on w.id = d.worker_id `

func scanDomain(row scanner) (WorkerDomain, error) {
	var (
		d            WorkerDomain
		host, script []byte
		created      int64
	)
	err := row.Scan(&d.ID, &host, &script, &created)
	d.Host, d.Script, d.Created = string(host), string(script), loaded(created)
	return d, err
}

// WorkerDomains returns the custom domains of all Workers of an account.
func (c *Catalog) WorkerDomains(ctx context.Context, accountID string) ([]WorkerDomain, error) {
	list, err := all(ctx, c.db.read, scanDomain, selectDomains+`where w.account_id = $1 order by d.host`, accountID)
	return list, failure(ctx, "list the custom domains of account "+accountID, err)
}

// ReplaceWorkerDomains makes the custom domains of a Worker those hosts, and no
// others; all, or on an error none. A host of another Worker of the account is
// taken from it; one that the Worker has keeps its id.
func (c *Catalog) ReplaceWorkerDomains(ctx context.Context, accountID, name string, hosts []string) ([]WorkerDomain, error) {
	doing := fmt.Sprintf("custom domains of Worker %q", name)
	if len(hosts) > MaxDomains {
		return nil, fmt.Errorf("%s: %w", doing, invalid("%d custom domains, at most %d are allowed", len(hosts), MaxDomains))
	}
	var wanted []string
	for _, host := range hosts {
		host, err := checkHost(host)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		wanted = append(wanted, host)
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)

	var list []WorkerDomain
	var keys []string
	made := func() { c.publish(ctx, keys...) }
	err := c.change(ctx, doing, made, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, name)
		if err != nil {
			return err
		}
		had, err := all(ctx, tx, scanDomain, selectDomains+`where d.worker_id = $1 order by d.host`, id)
		if err != nil {
			return err
		}
		keys = keys[:0]
		for _, d := range had {
			if slices.Contains(wanted, d.Host) {
				continue
			}
			keys = append(keys, domainKey(d.Host))
			if err := one(ctx, tx, `delete from worker_domains where id = $1`, d.ID); err != nil {
				return err
			}
		}
		for _, host := range wanted {
			keys = append(keys, domainKey(host))
			if err := c.takeDomain(ctx, tx, accountID, id, host); err != nil {
				return fmt.Errorf("host %q: %w", host, err)
			}
		}
		list, err = all(ctx, tx, scanDomain, selectDomains+`where d.worker_id = $1 order by d.host`, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// takeDomain gives a host to a Worker, from another one of the account if need be.
func (c *Catalog) takeDomain(ctx context.Context, tx *sql.Tx, accountID, workerID, host string) error {
	var owner, account string
	err := tx.QueryRowContext(ctx, `select w.id, w.account_id from worker_domains d join workers w on w.id = d.worker_id where d.host = $1`,
		[]byte(host)).Scan(&owner, &account)
	switch {
	case err == nil && account != accountID:
		return ErrDomainTaken
	case err == nil && owner == workerID:
		return nil
	case err == nil:
		return one(ctx, tx, `update worker_domains set worker_id = $1 where host = $2`, workerID, []byte(host))
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	if err := checkParents(ctx, tx, accountID, host); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `insert into worker_domains (id, worker_id, host, created) values ($1, $2, $3, $4)`,
		newID(), workerID, []byte(host), stored(c.now()))
	if isDuplicate(err) { // of another account, at this moment
		err = ErrDomainTaken
	}
	return err
}

// DeleteWorkerDomain removes a custom domain.
func (c *Catalog) DeleteWorkerDomain(ctx context.Context, accountID, id string) error {
	var host []byte
	made := func() { c.publish(ctx, domainKey(string(host))) }
	return c.change(ctx, fmt.Sprintf("delete custom domain %q", id), made, func(tx *sql.Tx) error {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		err := tx.QueryRowContext(ctx, `select d.host from worker_domains d join workers w on w.id = d.worker_id
			where d.id = $1 and w.account_id = $2`, id, accountID).Scan(&host)
		if errors.Is(err, sql.ErrNoRows) {
			err = ErrDomainNotFound
		}
		if err != nil {
			return err
		}
		return one(ctx, tx, `delete from worker_domains where id = $1`, id)
	})
}
