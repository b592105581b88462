package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	// MaxDeployments is how many deployments of a Worker are kept, the newest.
	MaxDeployments = 100
	// MaxShares is the greatest number of versions in a deployment.
	MaxShares = 2
)

// ErrShares: what the versions of a deployment are to get does not make a whole.
var ErrShares error = &sentinel{fmt.Sprintf("a deployment has 1 to %d versions, each once, whose percentages add to 100", MaxShares), ErrInvalid}

// Deployment says which versions of a Worker answer, from when it was made until
// the next one.
type Deployment struct {
	ID                    string // a UUID
	Created               time.Time
	Strategy, Source      string // empty: percentage; as the client told
	AuthorID, AuthorEmail string
	Annotations           map[string]string
	Versions              []Share
}

// Share is the part of the requests that a version gets.
type Share struct {
	VersionID  string  `json:"version_id"`
	Percentage float64 `json:"percentage"` // of the requests; kept to a millionth
}

const wholeMillionths = 100_000_000

func percentage(millionths int64) float64 { return float64(millionths) / 1e6 }

func (s Share) millionths() int64 { return int64(math.Round(s.Percentage * 1e6)) }

func checkShares(shares []Share) error {
	if len(shares) == 0 || len(shares) > MaxShares {
		return ErrShares
	}
	seen, sum := map[string]bool{}, int64(0)
	for _, s := range shares {
		if seen[s.VersionID] || !(s.Percentage >= 0 && s.Percentage <= 100) {
			return ErrShares
		}
		seen[s.VersionID] = true
		sum += s.millionths()
	}
	if sum != wholeMillionths {
		return ErrShares
	}
	return nil
}

// AddDeployment has other versions of a Worker answer from now on.
func (c *Catalog) AddDeployment(ctx context.Context, accountID, name string, d Deployment) (Deployment, error) {
	doing := fmt.Sprintf("deploy Worker %q", name)
	if err := errors.Join(checkShares(d.Versions), checkAnnotations(d.Annotations)); err != nil {
		return Deployment{}, fmt.Errorf("%s: %w", doing, err)
	}
	w, err := c.changeWorker(ctx, doing, accountID, name, func(tx *sql.Tx, id string) error {
		for _, s := range d.Versions {
			var n int
			if err := tx.QueryRowContext(ctx, `select count(*) from worker_versions where id = $1 and worker_id = $2`,
				s.VersionID, id).Scan(&n); err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("version %q: %w", s.VersionID, ErrVersionNotFound)
			}
		}
		return c.insertDeployment(ctx, tx, id, d)
	})
	if err != nil {
		return Deployment{}, err
	}
	return *w.Deployment, nil
}

// insertDeployment makes d the newest deployment of a Worker, and removes those
// that are too many.
func (c *Catalog) insertDeployment(ctx context.Context, tx *sql.Tx, workerID string, d Deployment) error {
	if d.Strategy == "" {
		d.Strategy = "percentage"
	}
	id, annotations := newUUID(), annotationText(d.Annotations)
	if err := one(ctx, tx, `update workers set deployments = deployments + 1, deployment_id = $1 where id = $2`, id, workerID); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `insert into worker_deployments
		(id, worker_id, number, created, strategy, source, author_id, author_email, annotations)
		select $1, id, deployments, $2, $3, $4, $5, $6, $7 from workers where id = $8`,
		id, stored(c.now()), []byte(d.Strategy), notNil([]byte(d.Source)), notNil([]byte(d.AuthorID)),
		notNil([]byte(d.AuthorEmail)), annotations, workerID); err != nil {
		return err
	}
	for i, s := range d.Versions {
		if _, err := tx.ExecContext(ctx, `insert into worker_shares (deployment_id, position, version_id, millionths) values ($1, $2, $3, $4)`,
			id, i, s.VersionID, s.millionths()); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `delete from worker_deployments where worker_id = $1
		and number <= (select deployments from workers where id = $1) - $2`, workerID, MaxDeployments)
	return err
}

// Deployments returns the deployments of a Worker, the newest first, at most limit
// (1 to MaxDeployments, others are clamped). The first is the one that holds.
func (c *Catalog) Deployments(ctx context.Context, accountID, name string, limit int) ([]Deployment, error) {
	doing := fmt.Sprintf("list the deployments of Worker %q", name)
	if limit < 1 || limit > MaxDeployments {
		limit = MaxDeployments
	}
	rows, err := all(ctx, c.db.read, scanDeploymentRow, fmt.Sprintf(`select
		d.id, d.created, d.strategy, d.source, d.author_id, d.author_email, d.annotations, s.version_id, s.millionths
		from (select * from worker_deployments where worker_id =
			(select id from workers where account_id = $1 and name = $2) order by number desc limit %d) d
		left join worker_shares s on s.deployment_id = d.id
		order by d.number desc, s.position`, limit), accountID, []byte(name))
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	var list []Deployment
	for _, r := range rows {
		if len(list) == 0 || list[len(list)-1].ID != r.ID {
			list = append(list, r)
			continue
		}
		d := &list[len(list)-1]
		d.Versions = append(d.Versions, r.Versions...)
	}
	if len(list) == 0 {
		_, err := c.Worker(ctx, accountID, name)
		return nil, err
	}
	return list, nil
}

// scanDeploymentRow reads a deployment with one of its shares, or with none.
func scanDeploymentRow(row scanner) (Deployment, error) {
	var (
		d                                                    Deployment
		created                                              int64
		strategy, source, authorID, authorEmail, annotations []byte
		version                                              sql.NullString
		millionths                                           sql.NullInt64
	)
	if err := row.Scan(&d.ID, &created, &strategy, &source, &authorID, &authorEmail, &annotations, &version, &millionths); err != nil {
		return Deployment{}, err
	}
	d.Created, d.Strategy, d.Source = loaded(created), string(strategy), string(source)
	d.AuthorID, d.AuthorEmail = string(authorID), string(authorEmail)
	if version.Valid {
		d.Versions = []Share{{version.String, percentage(millionths.Int64)}}
	}
	return d, json.Unmarshal(annotations, &d.Annotations)
}
