package rest

import (
	"context"
	"net/http"
	"slices"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/cron"
)

// putScriptRoutes serves PUT …/scripts/{name}/routes: all routes of a Worker.
func (s *Server) putScriptRoutes(ctx context.Context, c *call) error {
	var sent []struct {
		Pattern  string `json:"pattern"`
		ZoneID   string `json:"zone_id"`
		ZoneName string `json:"zone_name"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	inputs := make([]catalog.RouteInput, len(sent))
	for i, r := range sent {
		inputs[i] = catalog.RouteInput{Pattern: r.Pattern, ZoneID: r.ZoneID, ZoneName: r.ZoneName}
	}
	routes, err := s.catalog.ReplaceWorkerRoutes(ctx, c.route.account, c.workerName(), inputs)
	if err != nil {
		return workerFailure(err)
	}
	patterns := make([]string, len(routes))
	for i, r := range routes {
		patterns[i] = r.Pattern
	}
	return c.give(patterns, nil)
}

// shownDomain is a host name at which a Worker answers, as clients see it.
type shownDomain struct {
	ID          string `json:"id"`
	Hostname    string `json:"hostname"`
	Service     string `json:"service"`
	Environment string `json:"environment"`
	ZoneID      string `json:"zone_id,omitempty"`
	ZoneName    string `json:"zone_name,omitempty"`
	Modified    *bool  `json:"modified,omitempty"` // of a change: it belongs to another Worker now
}

func newShownDomain(d *catalog.WorkerDomain) shownDomain {
	return shownDomain{ID: d.ID, Hostname: d.Host, Service: d.Script, Environment: "production"}
}

// listDomains serves GET …/workers/domains and domains/records.
func (s *Server) listDomains(ctx context.Context, c *call) error {
	service, err := parameter(c.r.URL.RawQuery, "service")
	if err != nil {
		return err
	}
	hostname, err := parameter(c.r.URL.RawQuery, "hostname")
	if err != nil {
		return err
	}
	domains, err := s.catalog.WorkerDomains(ctx, c.route.account)
	if err != nil {
		return workerFailure(err)
	}
	list := []shownDomain{}
	for i, d := range domains {
		if (service == "" || service == d.Script) && (hostname == "" || hostname == d.Host) {
			list = append(list, newShownDomain(&domains[i]))
		}
	}
	return c.give(list, newPageInfo(1, max(len(list), 1), len(list), len(list)))
}

// getDomain serves GET …/workers/domains/{id}.
func (s *Server) getDomain(ctx context.Context, c *call) error {
	domains, err := s.catalog.WorkerDomains(ctx, c.route.account)
	if err != nil {
		return workerFailure(err)
	}
	id := c.itemID()
	for i := range domains {
		if domains[i].ID == id {
			return c.give(newShownDomain(&domains[i]), nil)
		}
	}
	return workerFailure(catalog.ErrDomainNotFound)
}

// deleteDomain serves DELETE …/workers/domains/{id}.
func (s *Server) deleteDomain(ctx context.Context, c *call) error {
	if err := s.catalog.DeleteWorkerDomain(ctx, c.route.account, c.itemID()); err != nil {
		return workerFailure(err)
	}
	return c.done()
}

// sentDomain is a host name as clients send it.
type sentDomain struct {
	Hostname string `json:"hostname"`
}

func hostsOf(sent []sentDomain) []string {
	hosts := make([]string, len(sent))
	for i, d := range sent {
		hosts[i] = d.Hostname
	}
	return hosts
}

// putScriptDomains serves PUT …/scripts/{name}/domains/records: all custom domains
// of a Worker.
func (s *Server) putScriptDomains(ctx context.Context, c *call) error {
	var sent struct {
		Origins []sentDomain `json:"origins"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	domains, err := s.catalog.ReplaceWorkerDomains(ctx, c.route.account, c.workerName(), hostsOf(sent.Origins))
	if err != nil {
		return workerFailure(err)
	}
	list := make([]shownDomain, len(domains))
	for i := range domains {
		list[i] = newShownDomain(&domains[i])
	}
	return c.give(list, nil)
}

// postDomainChanges serves POST …/scripts/{name}/domains/changeset: what PUT would
// change.
func (s *Server) postDomainChanges(ctx context.Context, c *call) error {
	var sent []sentDomain
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	w, err := s.catalog.Worker(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	have, err := s.catalog.WorkerDomains(ctx, c.route.account)
	if err != nil {
		return workerFailure(err)
	}
	added, removed, updated := []shownDomain{}, []shownDomain{}, []shownDomain{}
	hosts := hostsOf(sent)
	for i := range have {
		show := newShownDomain(&have[i])
		switch wanted := slices.Contains(hosts, show.Hostname); {
		case wanted && show.Service != w.Name:
			yes := true
			show.Modified = &yes
			updated = append(updated, show)
		case !wanted && show.Service == w.Name:
			removed = append(removed, show)
		}
	}
	for _, host := range hosts {
		if !slices.ContainsFunc(have, func(d catalog.WorkerDomain) bool { return d.Host == host }) {
			added = append(added, shownDomain{Hostname: host, Service: w.Name, Environment: "production"})
		}
	}
	return c.give(map[string]any{"added": added, "removed": removed, "updated": updated, "conflicting": []any{}}, nil)
}

// shownSchedule is a cron trigger as clients see it.
type shownSchedule struct {
	Cron     string `json:"cron"`
	Created  string `json:"created_on"`
	Modified string `json:"modified_on"`
}

func (c *call) giveSchedules(schedules []catalog.Schedule) error {
	list := make([]shownSchedule, len(schedules))
	for i, s := range schedules {
		list[i] = shownSchedule{s.Cron, stampOf(s.Created), stampOf(s.Modified)}
	}
	return c.give(map[string]any{"schedules": list}, nil)
}

// getSchedules serves GET …/scripts/{name}/schedules.
func (s *Server) getSchedules(ctx context.Context, c *call) error {
	schedules, err := s.catalog.Schedules(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.giveSchedules(schedules)
}

// putSchedules serves PUT …/scripts/{name}/schedules: all cron triggers of a Worker.
func (s *Server) putSchedules(ctx context.Context, c *call) error {
	var sent []struct {
		Cron string `json:"cron"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	var crons []string
	for _, trigger := range sent {
		expr, err := cron.Parse(trigger.Cron)
		if err != nil {
			return refuse(http.StatusBadRequest, codeSchedule, "Invalid %s", err) // it repeats the trigger
		}
		if text := expr.String(); !slices.Contains(crons, text) {
			crons = append(crons, text)
		}
	}
	schedules, err := s.catalog.ReplaceSchedules(ctx, c.route.account, c.workerName(), crons)
	if err != nil {
		return workerFailure(err)
	}
	return c.giveSchedules(schedules)
}
