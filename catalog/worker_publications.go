package catalog

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// publishZones is how many zones are compared at once: each may have many routes.
const publishZones = 20

// workerPublications are all kinds of published records of Workers. A version
// comes before the Worker that it answers for.
func (c *Catalog) workerPublications() []publication {
	return []publication{
		{
			namespace: Workers, prefix: versionPrefix, size: publishPage,
			page: c.publishedVersions,
			one:  c.publishedVersion,
		}, {
			namespace: Workers, prefix: scriptPrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedScripts(ctx, after, `in (select id from workers where account_id > $1 or account_id = $1 and name > $2
					order by account_id, name limit `+strconv.Itoa(publishPage)+`)`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedScripts(ctx, name, `in (select id from workers where account_id = $1 and name = $2)`)
			},
			same: sameRecord[scriptRecord],
		}, {
			namespace: Workers, prefix: subdomainPrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedSubdomains(ctx, after, `name > $1 order by name`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedSubdomains(ctx, name, `name = $1`)
			},
			same: sameRecord[subdomainRecord],
		}, {
			namespace: Workers, prefix: zonePrefix, size: publishZones,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedZones(ctx, after, `name > $1 order by name`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedZones(ctx, name, `name = $1`)
			},
			same: sameRecord[zoneRecord],
		}, {
			namespace: Workers, prefix: domainPrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedDomains(ctx, after, `d.host > $1 order by d.host`)
			},
			one: func(ctx context.Context, host string) ([]published, error) {
				return c.publishedDomains(ctx, host, `d.host = $1`)
			},
			same: sameRecord[domainRecord],
		},
	}
}

// publishedVersions returns the records of versions without their values, which
// are many and large.
func (c *Catalog) publishedVersions(ctx context.Context, after string) ([]published, error) {
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		var id string
		var p published
		err := row.Scan(&id, &p.mark)
		p.key = versionKey(id)
		return p, err
	}, fmt.Sprintf(`select id, digest from worker_versions where id > $1 order by id limit %d`, publishPage), after)
	return list, failure(ctx, "load versions to publish", err)
}

func (c *Catalog) publishedVersion(ctx context.Context, id string) ([]published, error) {
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		var manifest []byte
		err := row.Scan(&manifest)
		return newPublished(versionKey(id), manifest), err
	}, `select manifest from worker_versions where id = $1`, id)
	return list, failure(ctx, "load a version to publish", err)
}

func (c *Catalog) publishedScripts(ctx context.Context, after, condition string) ([]published, error) {
	doing := "load Workers to publish"
	account, name, _ := strings.Cut(after, "/")
	list, err := workers(ctx, c.db.read, `where w.id `+condition+` order by w.account_id, w.name, s.position`, account, notNil([]byte(name)))
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	tails, err := c.openTails(ctx, account, name, condition)
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	var records []published
	for _, w := range list {
		records = append(records, newPublished(scriptKey(w.AccountID, w.Name), marshalRecord(newScriptRecord(w, tails[w.ID]))))
	}
	return records, nil
}

func (c *Catalog) publishedSubdomains(ctx context.Context, name, condition string) ([]published, error) {
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		var account string
		var name []byte
		err := row.Scan(&account, &name)
		return newPublished(subdomainKey(string(name)), marshalRecord(subdomainRecord{recordFormat, account})), err
	}, fmt.Sprintf(`select account_id, name from worker_subdomains where %s limit %d`, condition, publishPage), notNil([]byte(name)))
	return list, failure(ctx, "load subdomains to publish", err)
}

func (c *Catalog) publishedDomains(ctx context.Context, host, condition string) ([]published, error) {
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		var account string
		var host, script []byte
		err := row.Scan(&host, &account, &script)
		return newPublished(domainKey(string(host)), marshalRecord(domainRecord{recordFormat, account, string(script)})), err
	}, fmt.Sprintf(`select d.host, w.account_id, w.name from worker_domains d join workers w on w.id = d.worker_id
		where %s limit %d`, condition, publishPage), notNil([]byte(host)))
	return list, failure(ctx, "load domains to publish", err)
}

// publishedZones returns records of zones with all their routes.
func (c *Catalog) publishedZones(ctx context.Context, name, condition string) ([]published, error) {
	type row struct {
		name  string
		zone  zoneRecord
		route *routeRecord
	}
	rows, err := all(ctx, c.db.read, func(s scanner) (row, error) {
		r := row{zone: zoneRecord{Format: recordFormat}}
		var name, pattern, script []byte
		var id *string
		err := s.Scan(&name, &r.zone.ID, &r.zone.Account, &id, &pattern, &script)
		r.name = string(name)
		if id != nil {
			r.route = &routeRecord{*id, string(pattern), string(script)}
		}
		return r, err
	}, fmt.Sprintf(`select z.name, z.id, z.account_id, r.id, r.pattern, w.name
		from (select * from worker_zones where %s limit %d) z
		left join worker_routes r on r.zone_id = z.id
		left join workers w on w.id = r.worker_id
		order by z.name, r.canonical`, condition, publishZones), notNil([]byte(name)))
	if err != nil {
		return nil, failure(ctx, "load zones to publish", err)
	}
	var records []published
	for i := 0; i < len(rows); {
		zone, name := rows[i].zone, rows[i].name
		for ; i < len(rows) && rows[i].name == name; i++ {
			if rows[i].route != nil {
				zone.Routes = append(zone.Routes, *rows[i].route)
			}
		}
		records = append(records, newPublished(zoneKey(name), marshalRecord(zone)))
	}
	return records, nil
}
