package rest

import (
	"context"
	"errors"
	"net/http"

	"github.com/nearkey/nearkey/catalog"
)

type shownSubdomain struct {
	Subdomain string `json:"subdomain"`
}

// getSubdomain serves GET …/workers/subdomain. Every account has one.
func (s *Server) getSubdomain(ctx context.Context, c *call) error {
	name, err := s.catalog.Subdomain(ctx, c.route.account)
	if err != nil {
		return workerFailure(err)
	}
	return c.give(shownSubdomain{name}, nil)
}

// putSubdomain serves PUT …/workers/subdomain.
func (s *Server) putSubdomain(ctx context.Context, c *call) error {
	var sent shownSubdomain
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	if err := s.catalog.SetSubdomain(ctx, c.route.account, sent.Subdomain); err != nil {
		return workerFailure(err)
	}
	return c.give(sent, nil)
}

// findSubdomain serves GET …/workers/subdomains/{name}: whether it is taken. That
// it is free is an error, by which wrangler knows.
func (s *Server) findSubdomain(ctx context.Context, c *call) error {
	name := c.itemID()
	taken, err := s.catalog.SubdomainTaken(ctx, name)
	if err != nil {
		return err
	}
	if !taken {
		return refuse(http.StatusNotFound, codeSubdomainFree, "This subdomain is available.")
	}
	return c.give(shownSubdomain{name}, nil)
}

// shownEnabled says whether a Worker answers under the subdomain of its account,
// and whether its versions do.
type shownEnabled struct {
	Enabled         bool `json:"enabled"`
	PreviewsEnabled bool `json:"previews_enabled"`
}

// getScriptSubdomain serves GET …/scripts/{name}/subdomain.
func (s *Server) getScriptSubdomain(ctx context.Context, c *call) error {
	w, err := s.catalog.Worker(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(shownEnabled{w.Subdomain, w.Previews}, nil)
}

// postScriptSubdomain serves POST …/scripts/{name}/subdomain. What is not sent of
// previews follows enabled.
func (s *Server) postScriptSubdomain(ctx context.Context, c *call) error {
	var sent struct {
		Enabled         *bool `json:"enabled"`
		PreviewsEnabled *bool `json:"previews_enabled"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	if sent.Enabled == nil {
		return invalid("The field 'enabled' must be true or false")
	}
	previews := *sent.Enabled
	if sent.PreviewsEnabled != nil {
		previews = *sent.PreviewsEnabled
	}
	return s.setScriptSubdomain(ctx, c, *sent.Enabled, previews)
}

// deleteScriptSubdomain serves DELETE …/scripts/{name}/subdomain.
func (s *Server) deleteScriptSubdomain(ctx context.Context, c *call) error {
	return s.setScriptSubdomain(ctx, c, false, false)
}

func (s *Server) setScriptSubdomain(ctx context.Context, c *call, enabled, previews bool) error {
	w, err := s.catalog.SetWorkerSubdomain(ctx, c.route.account, c.workerName(), enabled, previews)
	if err != nil {
		return workerFailure(err)
	}
	return c.give(shownEnabled{w.Subdomain, w.Previews}, nil)
}

// deleteScript serves DELETE …/scripts/{name}.
func (s *Server) deleteScript(ctx context.Context, c *call) error {
	if err := s.dropWorker(ctx, c); err != nil {
		return workerFailure(err)
	}
	return c.done()
}

// deleteService serves DELETE …/services/{name}.
func (s *Server) deleteService(ctx context.Context, c *call) error {
	if err := s.dropWorker(ctx, c); err != nil {
		return serviceFailure(err)
	}
	return c.done()
}

// dropWorker deletes a Worker, unless others are bound to it and it is not forced.
func (s *Server) dropWorker(ctx context.Context, c *call) error {
	force, err := parameter(c.r.URL.RawQuery, "force")
	if err != nil {
		return err
	}
	name := c.workerName()
	if force != "true" {
		incoming, _, err := s.references(ctx, c.route.account, name)
		if err != nil {
			return err
		}
		if len(incoming) > 0 {
			return refuse(http.StatusBadRequest, codeReferenced,
				"Cannot delete this Worker as it is still referenced by service bindings of the Worker '%s'. Delete them first, or use force.", incoming[0].Service)
		}
	}
	return s.catalog.DeleteWorker(ctx, c.route.account, name)
}

// reference is a service binding between two Workers.
type reference struct {
	Service     string `json:"service"`
	Environment string `json:"environment"`
	Name        string `json:"name"` // of the binding
}

// references returns the bindings of other Workers to one, and its own to others.
func (s *Server) references(ctx context.Context, account, name string) (incoming, outgoing []reference, err error) {
	if _, err := s.catalog.Worker(ctx, account, name); err != nil {
		return nil, nil, err
	}
	workers, err := s.catalog.WorkerList(ctx, account)
	if err != nil {
		return nil, nil, err
	}
	incoming, outgoing = []reference{}, []reference{}
	for _, w := range workers {
		v, err := s.catalog.LatestVersion(ctx, account, w.Name)
		if errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, b := range v.Manifest.Bindings {
			switch {
			case b.Type != "service":
			case w.Name == name && b.Service != name:
				outgoing = append(outgoing, reference{b.Service, "production", b.Name})
			case w.Name != name && b.Service == name:
				incoming = append(incoming, reference{w.Name, "production", b.Name})
			}
		}
	}
	return incoming, outgoing, nil
}

// getReferences serves GET …/scripts/{name}/references.
func (s *Server) getReferences(ctx context.Context, c *call) error {
	incoming, outgoing, err := s.references(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(map[string]any{
		"services":           map[string]any{"incoming": incoming, "outgoing": outgoing, "pages_function": false},
		"durable_objects":    []any{},
		"dispatch_outbounds": []any{},
	}, nil)
}

// listNothing serves the lists of what this server does not have, for which
// clients ask all the same.
func (s *Server) listNothing(_ context.Context, c *call) error {
	return c.give([]any{}, newPageInfo(1, defaultPerPage, 0, 0))
}
