package rest

import (
	"context"
	"net/http"

	"github.com/nearkey/nearkey/catalog"
)

// shownVersion is a version as clients see it.
type shownVersion struct {
	ID            string             `json:"id"`
	Number        int                `json:"number"`
	StartupMillis int                `json:"startup_time_ms,omitempty"`
	Metadata      shownVersionSource `json:"metadata"`
	Annotations   map[string]string  `json:"annotations"`
	Resources     *shownResources    `json:"resources,omitempty"`
}

type shownVersionSource struct {
	Created     string `json:"created_on"`
	Modified    string `json:"modified_on"`
	Source      string `json:"source"`
	AuthorID    string `json:"author_id"`
	AuthorEmail string `json:"author_email"`
	HasPreview  bool   `json:"hasPreview"`
}

type shownResources struct {
	Script   shownVersionScript `json:"script"`
	Runtime  shownRuntime       `json:"script_runtime"`
	Bindings []shownBinding     `json:"bindings"`
}

type shownVersionScript struct {
	Etag             string          `json:"etag"`
	Handlers         []string        `json:"handlers"`
	NamedHandlers    []shownHandlers `json:"named_handlers,omitempty"`
	LastDeployedFrom string          `json:"last_deployed_from"`
}

// newShownVersionItem is a version as it is listed: without what it is made of.
func newShownVersionItem(v *catalog.WorkerVersion) shownVersion {
	created := stampOf(v.Created)
	return shownVersion{ID: v.ID, Number: v.Number, Annotations: mapOf(v.Annotations),
		Metadata: shownVersionSource{created, created, v.Source, v.AuthorID, v.AuthorEmail, false}}
}

func newShownVersion(v *catalog.WorkerVersion) shownVersion {
	show, m := newShownVersionItem(v), &v.Manifest
	show.StartupMillis = m.StartupMillis
	show.Resources = &shownResources{
		Script:   shownVersionScript{Etag: m.Etag, Handlers: append([]string{}, m.Handlers...), LastDeployedFrom: lastDeployedFrom},
		Runtime:  newShownRuntime(m),
		Bindings: showBindings(m.Bindings),
	}
	for _, name := range m.NamedHandlers {
		show.Resources.Script.NamedHandlers = append(show.Resources.Script.NamedHandlers, shownHandlers{name, []string{}})
	}
	return show
}

// maxShownVersions is how many versions a page has of those that may be deployed,
// for which clients do not ask by pages.
const maxShownVersions = 100

// listVersions serves GET …/scripts/{name}/versions.
func (s *Server) listVersions(ctx context.Context, c *call) error {
	page, perPage, err := pageOf(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	deployable, err := parameter(c.r.URL.RawQuery, "deployable")
	if err != nil {
		return err
	}
	if deployable == "true" {
		perPage = maxShownVersions
	}
	versions, total, err := s.catalog.Versions(ctx, c.route.account, c.workerName(), (page-1)*perPage, perPage)
	if err != nil {
		return workerFailure(err)
	}
	items := make([]shownVersion, len(versions))
	for i := range versions {
		items[i] = newShownVersionItem(&versions[i])
	}
	return c.give(map[string]any{"items": items}, newPageInfo(page, perPage, len(items), total))
}

// getVersion serves GET …/scripts/{name}/versions/{id}.
func (s *Server) getVersion(ctx context.Context, c *call) error {
	v, err := s.catalog.Version(ctx, c.route.account, c.workerName(), c.itemID())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(newShownVersion(&v), nil)
}

// shownDeployment is a deployment as clients see it.
type shownDeployment struct {
	ID          string            `json:"id"`
	Source      string            `json:"source"`
	Strategy    string            `json:"strategy"`
	AuthorEmail string            `json:"author_email"`
	Created     string            `json:"created_on"`
	Annotations map[string]string `json:"annotations"`
	Versions    []catalog.Share   `json:"versions"`
}

func newShownDeployment(d *catalog.Deployment) shownDeployment {
	strategy := d.Strategy
	if strategy == "" {
		strategy = "percentage"
	}
	return shownDeployment{d.ID, d.Source, strategy, d.AuthorEmail, stampOf(d.Created), mapOf(d.Annotations), d.Versions}
}

// listDeployments serves GET …/scripts/{name}/deployments, the newest first.
func (s *Server) listDeployments(ctx context.Context, c *call) error {
	list, err := s.catalog.Deployments(ctx, c.route.account, c.workerName(), catalog.MaxDeployments)
	if err != nil {
		return workerFailure(err)
	}
	all := make([]shownDeployment, len(list))
	for i := range list {
		all[i] = newShownDeployment(&list[i])
	}
	return c.give(map[string]any{"deployments": all}, nil)
}

// getDeployment serves GET …/scripts/{name}/deployments/{id}.
func (s *Server) getDeployment(ctx context.Context, c *call) error {
	list, err := s.catalog.Deployments(ctx, c.route.account, c.workerName(), catalog.MaxDeployments)
	if err != nil {
		return workerFailure(err)
	}
	id := c.itemID()
	for i := range list {
		if list[i].ID == id {
			return c.give(newShownDeployment(&list[i]), nil)
		}
	}
	return refuse(http.StatusNotFound, codeNoDeployment, "The deployment could not be found. Please check its ID and try again.")
}

// postDeployment serves POST …/scripts/{name}/deployments. A deployment of a
// version that had served before and was replaced is a rollback.
func (s *Server) postDeployment(ctx context.Context, c *call) error {
	var sent struct {
		Strategy    string            `json:"strategy"`
		Versions    []catalog.Share   `json:"versions"`
		Annotations map[string]string `json:"annotations"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	if sent.Strategy != "" && sent.Strategy != "percentage" {
		return badUpload("Invalid strategy '%s'. Please specify 'percentage'.", shown(sent.Strategy))
	}
	name := c.workerName()
	w, err := s.catalog.Worker(ctx, c.route.account, name)
	if err != nil {
		return workerFailure(err)
	}
	d := catalog.Deployment{Strategy: "percentage", Source: sourceOf(c.r), AuthorID: c.grant.User.ID, AuthorEmail: c.grant.User.Email,
		Annotations: mapOf(sent.Annotations), Versions: sent.Versions}
	d.Annotations["workers/triggered_by"] = "deployment"
	if from, back, err := s.rollback(ctx, &w, sent.Versions); err != nil {
		return workerFailure(err)
	} else if back {
		d.Annotations["workers/triggered_by"], d.Annotations["workers/rollback_from"] = "rollback", from
	}
	if d, err = s.catalog.AddDeployment(ctx, c.route.account, name, d); err != nil {
		return workerFailure(err)
	}
	return c.give(newShownDeployment(&d), nil)
}

// rollback reports whether a deployment brings one older version back in place of
// another, and which that is.
func (s *Server) rollback(ctx context.Context, w *catalog.Worker, to []catalog.Share) (from string, back bool, err error) {
	if len(to) != 1 || w.Deployment == nil || len(w.Deployment.Versions) != 1 {
		return "", false, nil
	}
	from = w.Deployment.Versions[0].VersionID
	if from == to[0].VersionID {
		return "", false, nil
	}
	older, err := s.catalog.Version(ctx, w.AccountID, w.Name, to[0].VersionID)
	if err != nil {
		return "", false, err
	}
	newer, err := s.catalog.Version(ctx, w.AccountID, w.Name, from)
	if isNotFound(err) {
		return "", false, nil
	}
	return from, older.Number < newer.Number, err
}
