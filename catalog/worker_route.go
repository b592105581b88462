package catalog

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MaxRoutes is the greatest number of routes of a zone.
const MaxRoutes = 1000

// Kinds of error of routes.
var (
	ErrRouteNotFound error = &sentinel{"there is no such route", ErrNotFound}
	ErrRouteTaken    error = &sentinel{"there is a route of another Worker with this pattern", nil}
	ErrRouteZone     error = &sentinel{"the pattern is not one of the zone", ErrInvalid}
	ErrTooManyRoutes error = &sentinel{fmt.Sprintf("the zone has %d routes, as many as it may", MaxRoutes), nil}
)

// WorkerRoute says which Worker runs for the URLs that its pattern takes.
type WorkerRoute struct {
	ID, ZoneID string
	Pattern    string // as it was written
	Script     string // name of the Worker; empty: none runs there
}

// RouteInput is a route that a Worker is to have. Its zone is told by id or by
// name; if by neither, it is the one that the host is in, or else the host. A zone
// comes to be if it is told by its name, or by its id and the host is in it.
type RouteInput struct {
	Pattern, ZoneID, ZoneName string
}

func scanRoute(row scanner) (WorkerRoute, error) {
	var r WorkerRoute
	var pattern, script []byte
	err := row.Scan(&r.ID, &r.ZoneID, &pattern, &script)
	r.Pattern, r.Script = string(pattern), string(script)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrRouteNotFound
	}
	return r, err
}

const selectRoutes = `select r.id, r.zone_id, r.pattern, w.name from worker_routes r left join workers w on w.id = r.worker_id `

// Routes returns the routes of a zone.
func (c *Catalog) Routes(ctx context.Context, zoneID string) ([]WorkerRoute, error) {
	list, err := all(ctx, c.db.read, scanRoute, selectRoutes+`where r.zone_id = $1 order by r.canonical`, zoneID)
	if err != nil {
		return nil, failure(ctx, fmt.Sprintf("list the routes of zone %q", zoneID), err)
	}
	if len(list) == 0 {
		_, err := c.Zone(ctx, zoneID)
		return nil, err
	}
	return list, nil
}

// WorkerRoutes returns the routes of a Worker.
func (c *Catalog) WorkerRoutes(ctx context.Context, accountID, name string) ([]WorkerRoute, error) {
	list, err := all(ctx, c.db.read, scanRoute, selectRoutes+`where w.account_id = $1 and w.name = $2 order by r.canonical`, accountID, []byte(name))
	if err != nil {
		return nil, failure(ctx, fmt.Sprintf("list the routes of Worker %q", name), err)
	}
	if len(list) == 0 {
		_, err := c.Worker(ctx, accountID, name)
		return nil, err
	}
	return list, nil
}

// AddRoute gives a zone a route to a Worker, or to none if script is empty. A
// pattern that the zone has a route for is ErrRouteTaken.
func (c *Catalog) AddRoute(ctx context.Context, accountID, zoneID, pattern, script string) (WorkerRoute, error) {
	r := WorkerRoute{ID: newID(), ZoneID: zoneID, Pattern: pattern, Script: script}
	return c.changeRoute(ctx, fmt.Sprintf("add route %q", pattern), accountID, r, func(tx *sql.Tx, worker sql.NullString, canonical string) error {
		if err := roomForRoutes(ctx, tx, zoneID); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `insert into worker_routes (id, zone_id, worker_id, pattern, canonical) values ($1, $2, $3, $4, $5)`,
			r.ID, zoneID, worker, []byte(pattern), []byte(canonical))
		return err
	})
}

// UpdateRoute replaces the pattern and the Worker of a route.
func (c *Catalog) UpdateRoute(ctx context.Context, accountID, zoneID, id, pattern, script string) (WorkerRoute, error) {
	r := WorkerRoute{ID: id, ZoneID: zoneID, Pattern: pattern, Script: script}
	return c.changeRoute(ctx, fmt.Sprintf("update route %q", id), accountID, r, func(tx *sql.Tx, worker sql.NullString, canonical string) error {
		return routeGone(one(ctx, tx, `update worker_routes set worker_id = $1, pattern = $2, canonical = $3 where id = $4 and zone_id = $5`,
			worker, []byte(pattern), []byte(canonical), id, zoneID))
	})
}

func routeGone(err error) error {
	if errors.Is(err, ErrNotFound) {
		return ErrRouteNotFound
	}
	return err
}

// changeRoute runs f in the zone of a route r, whose pattern and Worker it checks,
// and publishes the zone.
func (c *Catalog) changeRoute(ctx context.Context, doing, accountID string, r WorkerRoute,
	f func(tx *sql.Tx, worker sql.NullString, canonical string) error) (WorkerRoute, error) {
	pattern, err := ParseRoutePattern(r.Pattern)
	if err != nil {
		return WorkerRoute{}, fmt.Errorf("%s: %w", doing, err)
	}
	var z Zone
	made := func() { c.publish(ctx, zoneKey(z.Name)) }
	err = c.change(ctx, doing, made, func(tx *sql.Tx) (err error) {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if z, err = ownZone(ctx, tx, accountID, r.ZoneID); err != nil {
			return err
		}
		if err := z.holds(pattern); err != nil {
			return err
		}
		var worker sql.NullString
		if r.Script != "" {
			worker.Valid = true
			if worker.String, err = workerID(ctx, tx, accountID, r.Script); err != nil {
				return err
			}
		}
		return routeTaken(f(tx, worker, pattern.String()))
	})
	if err != nil {
		return WorkerRoute{}, err
	}
	return r, nil
}

func routeTaken(err error) error {
	if isDuplicate(err) {
		return ErrRouteTaken
	}
	return err
}

// holds refuses a pattern that takes no host of the zone.
func (z Zone) holds(p RoutePattern) error {
	if p.host == z.Name || under(p.host, z.Name) || p.host == "" {
		return nil
	}
	return fmt.Errorf("pattern %q, zone %q: %w", p.String(), z.Name, ErrRouteZone)
}

// roomForRoutes refuses another route of a zone that has as many as it may.
func roomForRoutes(ctx context.Context, tx *sql.Tx, zoneID string) error {
	var count int
	if err := tx.QueryRowContext(ctx, `select count(*) from worker_routes where zone_id = $1`, zoneID).Scan(&count); err != nil {
		return err
	}
	if count >= MaxRoutes {
		return ErrTooManyRoutes
	}
	return nil
}

// DeleteRoute removes a route.
func (c *Catalog) DeleteRoute(ctx context.Context, accountID, zoneID, id string) error {
	var z Zone
	made := func() { c.publish(ctx, zoneKey(z.Name)) }
	return c.change(ctx, fmt.Sprintf("delete route %q", id), made, func(tx *sql.Tx) (err error) {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if z, err = ownZone(ctx, tx, accountID, zoneID); err != nil {
			return err
		}
		return routeGone(one(ctx, tx, `delete from worker_routes where id = $1 and zone_id = $2`, id, zoneID))
	})
}

// ReplaceWorkerRoutes makes the routes of a Worker those of patterns, and no
// others; all, or on an error none. A route that the Worker has already keeps its
// id.
func (c *Catalog) ReplaceWorkerRoutes(ctx context.Context, accountID, name string, patterns []RouteInput) ([]WorkerRoute, error) {
	doing := fmt.Sprintf("routes of Worker %q", name)
	if len(patterns) > MaxRoutes {
		return nil, fmt.Errorf("%s: %w", doing, invalid("%d routes, at most %d are allowed", len(patterns), MaxRoutes))
	}
	parsed := make([]RoutePattern, len(patterns))
	for i, in := range patterns {
		var err error
		if parsed[i], err = ParseRoutePattern(in.Pattern); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
	}
	var list []WorkerRoute
	zones := map[string]bool{} // names of those that change
	made := func() {
		var keys []string
		for _, zone := range slices.Sorted(maps.Keys(zones)) {
			keys = append(keys, zoneKey(zone))
		}
		c.publish(ctx, keys...)
	}
	err := c.change(ctx, doing, made, func(tx *sql.Tx) error {
		id, err := workerID(ctx, tx, accountID, name)
		if err != nil {
			return err
		}
		before, err := routesOf(ctx, tx, id)
		if err != nil {
			return err
		}
		clear(zones)
		for _, r := range before {
			zones[r.zone] = true
		}
		if _, err := tx.ExecContext(ctx, `delete from worker_routes where worker_id = $1`, id); err != nil {
			return err
		}
		list = list[:0]
		seen := map[string]bool{}
		for i, in := range patterns {
			z, err := c.zoneOf(ctx, tx, accountID, in, parsed[i])
			if err != nil {
				return err
			}
			zones[z.Name] = true
			place := z.ID + parsed[i].String()
			if seen[place] {
				continue
			}
			seen[place] = true
			r := WorkerRoute{ID: cmp.Or(before[place].id, newID()), ZoneID: z.ID, Pattern: in.Pattern, Script: name}
			if err := insertRoute(ctx, tx, id, r, parsed[i].String()); err != nil {
				return err
			}
			list = append(list, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// hadRoute is a route that a Worker had.
type hadRoute struct{ id, zone string }

// routesOf returns the routes of a Worker by the id of their zone and their pattern.
func routesOf(ctx context.Context, tx *sql.Tx, workerID string) (map[string]hadRoute, error) {
	routes := map[string]hadRoute{}
	_, err := all(ctx, tx, func(row scanner) (struct{}, error) {
		var id, zoneID string
		var zone, canonical []byte
		err := row.Scan(&id, &zoneID, &zone, &canonical)
		routes[zoneID+string(canonical)] = hadRoute{id, string(zone)}
		return struct{}{}, err
	}, `select r.id, r.zone_id, z.name, r.canonical from worker_routes r join worker_zones z on z.id = r.zone_id where r.worker_id = $1`, workerID)
	return routes, err
}

// zoneOf returns the zone that a route is to be in.
func (c *Catalog) zoneOf(ctx context.Context, tx *sql.Tx, accountID string, in RouteInput, p RoutePattern) (z Zone, err error) {
	switch {
	case in.ZoneID != "":
		z, err = ownZone(ctx, tx, accountID, in.ZoneID)
		for host := p.host; errors.Is(err, ErrZoneNotFound) && host != ""; _, host, _ = strings.Cut(host, ".") {
			if ZoneID(host) == in.ZoneID {
				z, err = c.ensureZone(ctx, tx, accountID, host)
			}
		}
	case in.ZoneName != "":
		var host string
		if host, err = checkHost(in.ZoneName); err == nil {
			z, err = c.ensureZone(ctx, tx, accountID, host)
		}
	case p.host == "":
		return Zone{}, fmt.Errorf("pattern %q: %w", in.Pattern, invalid("a pattern for every host must name its zone"))
	default:
		z, err = zoneAbove(ctx, tx, p.host)
		if err == nil && z.AccountID != accountID {
			err = ErrZoneTaken
		}
		if errors.Is(err, ErrZoneNotFound) {
			z, err = c.ensureZone(ctx, tx, accountID, p.host)
		}
	}
	if err != nil {
		return Zone{}, fmt.Errorf("pattern %q: %w", in.Pattern, err)
	}
	return z, z.holds(p)
}

func insertRoute(ctx context.Context, tx *sql.Tx, workerID string, r WorkerRoute, canonical string) error {
	if err := roomForRoutes(ctx, tx, r.ZoneID); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `insert into worker_routes (id, zone_id, worker_id, pattern, canonical) values ($1, $2, $3, $4, $5)`,
		r.ID, r.ZoneID, workerID, []byte(r.Pattern), []byte(canonical))
	if err := routeTaken(err); err != nil {
		return fmt.Errorf("pattern %q: %w", r.Pattern, err)
	}
	return nil
}
