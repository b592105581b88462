package catalog

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MaxZones is the greatest number of zones in an account.
const MaxZones = 1000

// Kinds of error of zones.
var (
	ErrZoneNotFound error = &sentinel{"there is no such zone", ErrNotFound}
	ErrZoneTaken    error = &sentinel{"the host belongs to a zone of another account", nil}
	ErrZoneName     error = &sentinel{"not the name of a host", ErrInvalid}
	ErrTooManyZones error = &sentinel{fmt.Sprintf("the account has %d zones, as many as it may", MaxZones), nil}
)

// Zone is a host with all hosts under it, in which an account has routes.
type Zone struct {
	ID              string // 32 hexadecimal digits, which follow from the name
	AccountID, Name string
	Created         time.Time
}

// ZoneID returns the id that a zone of this name has, or would have.
func ZoneID(name string) string {
	sum := sha256.Sum256([]byte("zone:" + name))
	return hex.EncodeToString(sum[:16])
}

// IsZoneName reports whether a zone can have this name.
func IsZoneName(name string) bool {
	host, err := checkHost(name)
	return err == nil && host == name
}

// checkHost returns a host's name in the form in which it is stored.
func checkHost(name string) (string, error) {
	host, err := parseHost(strings.TrimSuffix(name, "."))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrZoneName, err)
	}
	return host, nil
}

const zoneColumns = `id, account_id, name, created`

func scanZone(row scanner) (Zone, error) {
	var (
		z       Zone
		name    []byte
		created int64
	)
	err := row.Scan(&z.ID, &z.AccountID, &name, &created)
	z.Name, z.Created = string(name), loaded(created)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrZoneNotFound
	}
	return z, err
}

// Zone returns the zone with an id.
func (c *Catalog) Zone(ctx context.Context, id string) (Zone, error) {
	z, err := scanZone(c.db.read.QueryRowContext(ctx, `select `+zoneColumns+` from worker_zones where id = $1`, id))
	return z, failure(ctx, fmt.Sprintf("zone %q", id), err)
}

// ZoneByName returns the zone of this very name.
func (c *Catalog) ZoneByName(ctx context.Context, name string) (Zone, error) {
	z, err := scanZone(c.db.read.QueryRowContext(ctx, `select `+zoneColumns+` from worker_zones where name = $1`,
		notNil([]byte(lower(strings.TrimSuffix(name, "."))))))
	return z, failure(ctx, fmt.Sprintf("zone %q", name), err)
}

// Zones returns the zones of an account in order of their names.
func (c *Catalog) Zones(ctx context.Context, accountID string) ([]Zone, error) {
	list, err := all(ctx, c.db.read, scanZone, `select `+zoneColumns+` from worker_zones where account_id = $1 order by name`, accountID)
	return list, failure(ctx, "list the zones of account "+accountID, err)
}

// AddZone makes a zone, unless the account has it already. A host under a zone of
// another account is that account's.
func (c *Catalog) AddZone(ctx context.Context, accountID, name string) (Zone, error) {
	doing := fmt.Sprintf("add zone %q", name)
	host, err := checkHost(name)
	if err != nil {
		return Zone{}, fmt.Errorf("%s: %w", doing, err)
	}
	var z Zone
	made := func() { c.publish(ctx, zoneKey(host)) }
	err = c.change(ctx, doing, made, func(tx *sql.Tx) error {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		z, err = c.ensureZone(ctx, tx, accountID, host)
		return err
	})
	if err != nil {
		return Zone{}, err
	}
	return z, nil
}

// ensureZone returns the zone of this name, and makes it if there is none. The
// account is locked.
func (c *Catalog) ensureZone(ctx context.Context, tx *sql.Tx, accountID, host string) (Zone, error) {
	z, err := scanZone(tx.QueryRowContext(ctx, `select `+zoneColumns+` from worker_zones where name = $1`, []byte(host)))
	switch {
	case err == nil && z.AccountID != accountID:
		return Zone{}, ErrZoneTaken
	case err == nil || !errors.Is(err, ErrZoneNotFound):
		return z, err
	}
	if err := checkParents(ctx, tx, accountID, host); err != nil {
		return Zone{}, err
	}
	var count int
	if err := tx.QueryRowContext(ctx, `select count(*) from worker_zones where account_id = $1`, accountID).Scan(&count); err != nil {
		return Zone{}, err
	}
	if count >= MaxZones {
		return Zone{}, ErrTooManyZones
	}
	z = Zone{ID: ZoneID(host), AccountID: accountID, Name: host, Created: loaded(stored(c.now()))}
	_, err = tx.ExecContext(ctx, `insert into worker_zones (`+zoneColumns+`) values ($1, $2, $3, $4)`,
		z.ID, z.AccountID, []byte(z.Name), stored(z.Created))
	if isDuplicate(err) { // of another account, at this moment
		err = ErrZoneTaken
	}
	return z, err
}

// checkParents refuses a host under a zone of another account.
func checkParents(ctx context.Context, tx *sql.Tx, accountID, host string) error {
	z, err := zoneAbove(ctx, tx, host)
	if errors.Is(err, ErrZoneNotFound) {
		return nil
	}
	if err == nil && z.AccountID != accountID {
		err = ErrZoneTaken
	}
	return err
}

// zoneAbove returns the zone that a host is in: the longest of those that are it or
// that it is under.
func zoneAbove(ctx context.Context, tx *sql.Tx, host string) (Zone, error) {
	for {
		z, err := scanZone(tx.QueryRowContext(ctx, `select `+zoneColumns+` from worker_zones where name = $1`, []byte(host)))
		if !errors.Is(err, ErrZoneNotFound) {
			return z, err
		}
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return z, err
		}
		host = parent
	}
}

// ownZone returns a zone of an account by its id. The account is locked.
func ownZone(ctx context.Context, tx *sql.Tx, accountID, id string) (Zone, error) {
	return scanZone(tx.QueryRowContext(ctx, `select `+zoneColumns+` from worker_zones where id = $1 and account_id = $2`, id, accountID))
}

// DeleteZone removes a zone with its routes.
func (c *Catalog) DeleteZone(ctx context.Context, accountID, id string) error {
	var z Zone
	made := func() { c.publish(ctx, zoneKey(z.Name)) }
	return c.change(ctx, fmt.Sprintf("delete zone %q", id), made, func(tx *sql.Tx) (err error) {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if z, err = ownZone(ctx, tx, accountID, id); err != nil {
			return err
		}
		return one(ctx, tx, `delete from worker_zones where id = $1`, id)
	})
}
