package rest

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/nearkey/nearkey/catalog"
)

// lastDeployedFrom is what wrangler is told that a Worker was deployed with. Any
// other answer makes it warn of settings made in a dashboard, which are not.
const lastDeployedFrom = "wrangler"

// shownRuntime is how a version is run, as clients see it.
type shownRuntime struct {
	CompatibilityDate  string       `json:"compatibility_date"`
	CompatibilityFlags []string     `json:"compatibility_flags"`
	UsageModel         string       `json:"usage_model"`
	Limits             *shownLimits `json:"limits,omitempty"`
}

type shownLimits struct {
	CPUMillis int `json:"cpu_ms"`
}

func newShownRuntime(m *catalog.Manifest) shownRuntime {
	show := shownRuntime{m.CompatibilityDate, append([]string{}, m.Flags...), m.UsageModel, nil}
	if show.UsageModel == "" {
		show.UsageModel = "standard"
	}
	if m.CPUMillis > 0 {
		show.Limits = &shownLimits{m.CPUMillis}
	}
	return show
}

// shownScript is a Worker as it is listed, and as the answer to an upload.
type shownScript struct {
	ID   string `json:"id"` // the name
	Tag  string `json:"tag"`
	Etag string `json:"etag"`
	shownRuntime
	shownSettings
	Handlers         []string        `json:"handlers"`
	NamedHandlers    []shownHandlers `json:"named_handlers"`
	Created          string          `json:"created_on"`
	Modified         string          `json:"modified_on"`
	LastDeployedFrom string          `json:"last_deployed_from"`
	HasAssets        bool            `json:"has_assets"`
	HasModules       bool            `json:"has_modules"`
	StartupMillis    int             `json:"startup_time_ms,omitempty"`
	EntryPoint       string          `json:"entry_point,omitempty"`
	DeploymentID     string          `json:"deployment_id,omitempty"` // the version's id without hyphens
}

type shownHandlers struct {
	Name     string   `json:"name"`
	Handlers []string `json:"handlers"`
}

func newShownScript(w *catalog.Worker, v *catalog.WorkerVersion) shownScript {
	m := &v.Manifest
	show := shownScript{ID: w.Name, Tag: w.ID, Etag: m.Etag, shownRuntime: newShownRuntime(m), shownSettings: newShownSettings(w.Settings),
		Handlers: append([]string{}, m.Handlers...), NamedHandlers: []shownHandlers{},
		Created: stampOf(w.Created), Modified: stampOf(w.Modified), LastDeployedFrom: lastDeployedFrom,
		HasAssets: m.Assets != nil, HasModules: m.Main != "" && !m.ServiceWorker, StartupMillis: m.StartupMillis, EntryPoint: m.Main,
		DeploymentID: strings.ReplaceAll(v.ID, "-", "")}
	for _, name := range m.NamedHandlers {
		show.NamedHandlers = append(show.NamedHandlers, shownHandlers{name, []string{}})
	}
	return show
}

// listScripts serves GET …/scripts.
func (s *Server) listScripts(ctx context.Context, c *call) error {
	workers, err := s.catalog.WorkerList(ctx, c.route.account)
	if err != nil {
		return err
	}
	list := make([]shownScript, 0, len(workers))
	for i := range workers {
		v, err := s.catalog.LatestVersion(ctx, c.route.account, workers[i].Name)
		if isNotFound(err) { // deleted a moment ago
			continue
		}
		if err != nil {
			return err
		}
		list = append(list, newShownScript(&workers[i], &v))
	}
	return c.give(list, newPageInfo(1, max(len(list), 1), len(list), len(list)))
}

// shownService is a Worker as wrangler asks for it before it deploys.
type shownService struct {
	ID                 string           `json:"id"`
	Created            string           `json:"created_on"`
	Modified           string           `json:"modified_on"`
	DefaultEnvironment shownEnvironment `json:"default_environment"`
	Environments       []any            `json:"environments"`
}

type shownEnvironment struct {
	Environment string      `json:"environment"`
	Created     string      `json:"created_on"`
	Modified    string      `json:"modified_on"`
	Script      shownScript `json:"script"`
}

// getService serves GET …/services/{name}.
func (s *Server) getService(ctx context.Context, c *call) error {
	now, err := s.current(ctx, c.route.account, c.workerName())
	if err != nil {
		return serviceFailure(err)
	}
	script := newShownScript(&now.worker, now.latest)
	return c.give(shownService{now.worker.Name, script.Created, script.Modified,
		shownEnvironment{"production", script.Created, script.Modified, script}, []any{}}, nil)
}

// shownWorker is a Worker in the words of the newer API.
type shownWorker struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Created   string          `json:"created_on"`
	Updated   string          `json:"updated_on"`
	Deployed  string          `json:"deployed_on,omitempty"`
	Subdomain shownURL        `json:"subdomain"`
	Refs      json.RawMessage `json:"references"`
	shownSettings
}

// shownURL says where a Worker answers. wrangler prints the host name of the URL.
type shownURL struct {
	Enabled         bool   `json:"enabled"`
	PreviewsEnabled bool   `json:"previews_enabled"`
	URL             string `json:"url,omitempty"`
}

// getWorkerObject serves GET …/workers/{name}.
func (s *Server) getWorkerObject(ctx context.Context, c *call) error {
	w, err := s.catalog.Worker(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	url, err := s.workerURL(ctx, &w)
	if err != nil {
		return err
	}
	show := shownWorker{ID: w.ID, Name: w.Name, Created: stampOf(w.Created), Updated: stampOf(w.Modified),
		Subdomain: shownURL{w.Subdomain, w.Previews, url}, Refs: json.RawMessage("{}"), shownSettings: newShownSettings(w.Settings)}
	if w.Deployment != nil {
		show.Deployed = stampOf(w.Deployment.Created)
	}
	return c.give(show, nil)
}

// workerURL is where a Worker answers under the account's subdomain, if it does;
// empty if it is not known under which domain.
func (s *Server) workerURL(ctx context.Context, w *catalog.Worker) (string, error) {
	if s.workers.Domain == "" {
		return "", nil
	}
	subdomain, err := s.catalog.Subdomain(ctx, w.AccountID)
	if err != nil {
		return "", err
	}
	scheme := s.workers.Scheme
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + w.Name + "." + subdomain + "." + s.workers.Domain, nil
}
