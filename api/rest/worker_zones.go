package rest

import (
	"context"
	"errors"
	"strings"

	"github.com/nearkey/nearkey/catalog"
)

// A zone is a host name with the routes under it. It need not be made: one that is
// named and that nobody else has comes to be when a route names it, and until then
// clients that ask for it by its name are told that it is the asker's.

// shownZone is a zone as clients see it.
type shownZone struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Status      string            `json:"status"`
	Type        string            `json:"type"`
	Paused      bool              `json:"paused"`
	Created     string            `json:"created_on"`
	Modified    string            `json:"modified_on"`
	NameServers []string          `json:"name_servers"`
	Account     membershipAccount `json:"account"`
}

func (s *Server) newShownZone(ctx context.Context, z *catalog.Zone) (shownZone, error) {
	a, err := s.catalog.Account(ctx, z.AccountID)
	if err != nil {
		return shownZone{}, err
	}
	created := stampOf(z.Created)
	return shownZone{ID: z.ID, Name: z.Name, Status: "active", Type: "full", Created: created, Modified: created,
		NameServers: []string{}, Account: membershipAccount{a.ID, a.Name}}, nil
}

// listZones serves GET /zones.
func (s *Server) listZones(ctx context.Context, c *call) error {
	raw := c.r.URL.RawQuery
	page, perPage, err := pageOf(raw)
	if err != nil {
		return err
	}
	name, err := parameter(raw, "name")
	if err != nil {
		return err
	}
	only, err := parameter(raw, "account.id")
	if err != nil {
		return err
	}
	accounts, err := s.visibleAccounts(ctx, c)
	if err != nil {
		return err
	}
	var all []catalog.Zone
	var open []string // accounts whose the zone would be
	for _, a := range accounts {
		if only != "" && !strings.EqualFold(only, a.ID) || !c.grant.Account(a.ID, catalog.Read) {
			continue
		}
		zones, err := s.catalog.Zones(ctx, a.ID)
		if err != nil {
			return workerFailure(err)
		}
		all = append(all, zones...)
		if c.grant.Account(a.ID, catalog.Write) {
			open = append(open, a.ID)
		}
	}
	if name != "" {
		if all, err = s.zonesNamed(ctx, all, strings.ToLower(name), open); err != nil {
			return err
		}
	}
	shownZones := []shownZone{}
	for _, z := range pageItems(all, page, perPage) {
		show, err := s.newShownZone(ctx, &z)
		if err != nil {
			return err
		}
		shownZones = append(shownZones, show)
	}
	return c.give(shownZones, newPageInfo(page, perPage, len(shownZones), len(all)))
}

// zonesNamed returns the zone of a name: one of all, or the one that would come to
// be if a route named it, unless it would lie in a zone that there is.
func (s *Server) zonesNamed(ctx context.Context, all []catalog.Zone, name string, accounts []string) ([]catalog.Zone, error) {
	for _, z := range all {
		if z.Name == name {
			return []catalog.Zone{z}, nil
		}
	}
	if len(accounts) != 1 || !catalog.IsZoneName(name) {
		return nil, nil
	}
	for above := name; above != ""; _, above, _ = strings.Cut(above, ".") {
		_, err := s.catalog.ZoneByName(ctx, above)
		if err == nil {
			return nil, nil
		}
		if !errors.Is(err, catalog.ErrNotFound) {
			return nil, err
		}
	}
	return []catalog.Zone{{ID: catalog.ZoneID(name), AccountID: accounts[0], Name: name}}, nil
}

// createZone serves POST /zones.
func (s *Server) createZone(ctx context.Context, c *call) error {
	var sent struct {
		Name    string `json:"name"`
		Account struct {
			ID string `json:"id"`
		} `json:"account"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	account := strings.ToLower(sent.Account.ID)
	if account == "" {
		accounts, err := s.visibleAccounts(ctx, c)
		if err != nil {
			return err
		}
		if len(accounts) != 1 {
			return invalid("The field 'account.id' must name the account of the zone")
		}
		account = accounts[0].ID
	}
	if !c.grant.Account(account, catalog.Write) {
		return errForbidden
	}
	z, err := s.catalog.AddZone(ctx, account, sent.Name)
	if err != nil {
		return workerFailure(err)
	}
	show, err := s.newShownZone(ctx, &z)
	if err != nil {
		return err
	}
	return c.give(show, nil)
}

// zone returns the zone of the path, if the grant may do p there. Who may not is
// not told that it is there.
func (s *Server) zone(ctx context.Context, c *call, p catalog.Permission) (catalog.Zone, error) {
	z, err := s.catalog.Zone(ctx, c.route.zone)
	if err != nil {
		return catalog.Zone{}, workerFailure(err)
	}
	if !c.grant.Account(z.AccountID, p) {
		return catalog.Zone{}, errUnauthorized
	}
	return z, nil
}

// getZone serves GET /zones/{zone}.
func (s *Server) getZone(ctx context.Context, c *call) error {
	z, err := s.zone(ctx, c, catalog.Read)
	if err != nil {
		return err
	}
	show, err := s.newShownZone(ctx, &z)
	if err != nil {
		return err
	}
	return c.give(show, nil)
}

// deleteZone serves DELETE /zones/{zone}.
func (s *Server) deleteZone(ctx context.Context, c *call) error {
	z, err := s.zone(ctx, c, catalog.Write)
	if err != nil {
		return err
	}
	if err := s.catalog.DeleteZone(ctx, z.AccountID, z.ID); err != nil {
		return workerFailure(err)
	}
	return c.give(map[string]string{"id": z.ID}, nil)
}

// shownRoute is a route as clients see it.
type shownRoute struct {
	ID      string `json:"id"`
	Pattern string `json:"pattern"`
	Script  string `json:"script,omitempty"`
}

// listZoneRoutes serves GET /zones/{zone}/workers/routes. A zone that is not yet has
// none.
func (s *Server) listZoneRoutes(ctx context.Context, c *call) error {
	z, err := s.catalog.Zone(ctx, c.route.zone)
	if errors.Is(err, catalog.ErrNotFound) {
		return c.give([]shownRoute{}, nil)
	}
	if err == nil && !c.grant.Account(z.AccountID, catalog.Read) {
		return errUnauthorized
	}
	if err != nil {
		return workerFailure(err)
	}
	routes, err := s.catalog.Routes(ctx, z.ID)
	if err != nil {
		return workerFailure(err)
	}
	list := make([]shownRoute, len(routes))
	for i, r := range routes {
		list[i] = shownRoute{r.ID, r.Pattern, r.Script}
	}
	return c.give(list, nil)
}

// sentRoute is a route as clients send it. A route without a script keeps Workers
// away from what it matches.
type sentRoute struct {
	Pattern string `json:"pattern"`
	Script  string `json:"script"`
}

// createZoneRoute serves POST /zones/{zone}/workers/routes.
func (s *Server) createZoneRoute(ctx context.Context, c *call) error {
	var sent sentRoute
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	z, err := s.zone(ctx, c, catalog.Write)
	if err != nil {
		return err
	}
	r, err := s.catalog.AddRoute(ctx, z.AccountID, z.ID, sent.Pattern, sent.Script)
	if err != nil {
		return workerFailure(err)
	}
	return c.give(shownRoute{r.ID, r.Pattern, r.Script}, nil)
}

// getZoneRoute serves GET /zones/{zone}/workers/routes/{id}.
func (s *Server) getZoneRoute(ctx context.Context, c *call) error {
	z, err := s.zone(ctx, c, catalog.Read)
	if err != nil {
		return err
	}
	routes, err := s.catalog.Routes(ctx, z.ID)
	if err != nil {
		return workerFailure(err)
	}
	id := c.itemID()
	for _, r := range routes {
		if r.ID == id {
			return c.give(shownRoute{r.ID, r.Pattern, r.Script}, nil)
		}
	}
	return workerFailure(catalog.ErrRouteNotFound)
}

// putZoneRoute serves PUT /zones/{zone}/workers/routes/{id}.
func (s *Server) putZoneRoute(ctx context.Context, c *call) error {
	var sent sentRoute
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	z, err := s.zone(ctx, c, catalog.Write)
	if err != nil {
		return err
	}
	r, err := s.catalog.UpdateRoute(ctx, z.AccountID, z.ID, c.itemID(), sent.Pattern, sent.Script)
	if err != nil {
		return workerFailure(err)
	}
	return c.give(shownRoute{r.ID, r.Pattern, r.Script}, nil)
}

// deleteZoneRoute serves DELETE /zones/{zone}/workers/routes/{id}.
func (s *Server) deleteZoneRoute(ctx context.Context, c *call) error {
	z, err := s.zone(ctx, c, catalog.Write)
	if err != nil {
		return err
	}
	id := c.itemID()
	if err := s.catalog.DeleteRoute(ctx, z.AccountID, z.ID, id); err != nil {
		return workerFailure(err)
	}
	return c.give(map[string]string{"id": id}, nil)
}
