package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// workers is what a Server has of Workers.
type workers struct {
	Workers
	checks chan struct{} // holds a token for each version that is being tried out
}

func newWorkers(cfg *Workers) *workers {
	if cfg == nil {
		return nil
	}
	return &workers{Workers: *cfg, checks: make(chan struct{}, maxChecks)}
}

// check starts a version once. That it does not start is a failure for the client.
func (w *workers) check(ctx context.Context, b Bundle) (Started, error) {
	if b.Manifest.Main == "" { // static assets alone
		return Started{}, nil
	}
	select {
	case w.checks <- struct{}{}:
		defer func() { <-w.checks }()
	case <-ctx.Done():
		return Started{}, fmt.Errorf("wait to try a Worker out: %w", ctx.Err())
	}
	started, err := w.Check(ctx, b)
	var refused *StartError
	switch {
	case errors.As(err, &refused):
		return Started{}, badUpload("%s", refused.Text)
	case errors.Is(err, ErrNoRuntime):
		return Started{}, &failure{status: http.StatusNotImplemented, code: codeInternal, bare: true, final: true, cause: err,
			text: "Workers cannot be deployed: the Workers runtime is not installed on this server."}
	case errors.Is(err, kv.ErrFull):
		return Started{}, err
	case err != nil:
		return Started{}, later(http.StatusServiceUnavailable, "The Worker could not be tried out. Please try again.", err)
	case len(started.Handlers) == 0 && len(started.NamedHandlers) == 0:
		return Started{}, refuse(http.StatusBadRequest, codeNoHandlers, "No event handlers were registered. This script does nothing.")
	}
	return started, nil
}

// change is a change of a Worker that makes a version.
type change struct {
	create bool // the Worker may be new
	deploy bool // the version gets all requests at once
	// make returns the manifest of the version, made from what is there now, without
	// what depends on the modules' content if up is given, and the secrets in it.
	make func(ctx context.Context, now *current) (catalog.Manifest, map[string]string, error)
	up   *script // nil: the modules of the latest version
	// settings, unless nil, returns the settings that the Worker gets with it.
	settings    func(catalog.WorkerSettings) catalog.WorkerSettings
	trigger     string // as annotations tell it
	annotations map[string]string
}

// current is what is there of a Worker before a change.
type current struct {
	worker catalog.Worker
	latest *catalog.WorkerVersion // nil: there is no Worker
}

// deployed reports whether the latest version gets all requests.
func (now *current) deployed() bool {
	d := now.worker.Deployment
	return d != nil && len(d.Versions) == 1 && now.latest != nil && d.Versions[0].VersionID == now.latest.ID
}

func (s *Server) current(ctx context.Context, account, name string) (*current, error) {
	w, err := s.catalog.Worker(ctx, account, name)
	if err != nil {
		return nil, err
	}
	latest, err := s.catalog.LatestVersion(ctx, account, name)
	if err != nil {
		return nil, err
	}
	return &current{w, &latest}, nil
}

// changed is a Worker with its new version.
type changed struct {
	worker  catalog.Worker
	version catalog.WorkerVersion
}

// change makes a version. Nothing is stored before it has been started, and what
// serves goes on if it does not start. If another change comes between, it begins
// anew with what is there then.
func (s *Server) change(ctx context.Context, c *call, name string, ch change) (made changed, err error) {
	err = retryConflicts(func() error {
		made, err = s.changeOnce(ctx, c, name, &ch)
		return err
	})
	switch {
	case errors.Is(err, catalog.ErrInvalid) && !errors.Is(err, catalog.ErrWorkerName):
		return changed{}, badUpload("%s", reason(err))
	case err != nil:
		return changed{}, workerFailure(err)
	}
	return made, nil
}

func (s *Server) changeOnce(ctx context.Context, c *call, name string, ch *change) (made changed, err error) {
	account := c.route.account
	now, err := s.current(ctx, account, name)
	if errors.Is(err, catalog.ErrWorkerNotFound) && ch.create {
		now, err = &current{}, nil
	}
	if err != nil {
		return changed{}, err
	}
	m, secrets, err := ch.make(ctx, now)
	if err != nil {
		return changed{}, err
	}
	if err := describeVersion(&m, ch.annotations["workers/tag"]); err != nil {
		return changed{}, err
	}
	var contents map[string][]byte
	if ch.up != nil {
		m.Modules, contents = ch.up.modules, ch.up.contents
	} else {
		if contents, err = s.contents(ctx, c, &m); err != nil {
			return changed{}, err
		}
		defer c.hold.drop(fullBytes(&m))
	}
	started, err := s.workers.check(ctx, Bundle{AccountID: account, Name: name, Manifest: m, Modules: contents, Secrets: secrets})
	if err != nil {
		return changed{}, err
	}
	m.Handlers, m.NamedHandlers = started.Handlers, started.NamedHandlers
	m.StartupMillis = int(max(started.Took.Round(time.Millisecond)/time.Millisecond, 1))
	if ch.up != nil {
		if err := s.putModules(ctx, &m, contents); err != nil {
			return changed{}, err
		}
	}
	// A crash here leaves modules that no version has, which are swept.
	add := catalog.NewVersion{Manifest: m, Create: ch.create, Deploy: ch.deploy,
		Source: sourceOf(c.r), AuthorID: c.grant.User.ID, AuthorEmail: c.grant.User.Email, Annotations: mapOf(ch.annotations)}
	add.Annotations["workers/triggered_by"] = ch.trigger
	if now.latest != nil {
		add.Base = now.latest.ID
	}
	if ch.settings != nil {
		settings := ch.settings(now.worker.Settings)
		add.Settings = &settings
	}
	made.worker, made.version, err = s.catalog.AddVersion(ctx, account, name, add)
	return made, err
}

// describeVersion notes in bindings to a version's metadata what is known of it
// before it is there; its id is added where it runs.
func describeVersion(m *catalog.Manifest, tag string) error {
	text, err := marshal(map[string]string{"tag": tag, "timestamp": stampOf(time.Now())})
	if err != nil {
		return err
	}
	for i := range m.Bindings {
		if m.Bindings[i].Type == "version_metadata" {
			m.Bindings[i].Text = string(text)
		}
	}
	return nil
}

// putModules stores the modules and notes their hashes in the manifest.
func (s *Server) putModules(ctx context.Context, m *catalog.Manifest, contents map[string][]byte) error {
	all := make([][]byte, len(m.Modules))
	for i, module := range m.Modules {
		all[i] = contents[module.Name]
	}
	hashes, err := s.catalog.PutModules(ctx, all)
	if err != nil {
		return err
	}
	sum := sha256.New()
	modules := make([]catalog.WorkerModule, len(hashes))
	for i, hash := range hashes {
		modules[i] = m.Modules[i]
		modules[i].Hash = hash
		fmt.Fprintf(sum, "%q %q %s\n", modules[i].Name, modules[i].Type, hash)
	}
	m.Modules, m.Etag = modules, hex.EncodeToString(sum.Sum(nil))
	return nil
}

// fullBytes is what the modules of a version have together.
func fullBytes(m *catalog.Manifest) (total int64) {
	for _, module := range m.Modules {
		total += int64(module.Size)
	}
	return total
}

// contents reads the modules of a version. Their bytes are accounted for at the
// door.
func (s *Server) contents(ctx context.Context, c *call, m *catalog.Manifest) (map[string][]byte, error) {
	if err := c.hold.use(fullBytes(m)); err != nil {
		return nil, err
	}
	all := make(map[string][]byte, len(m.Modules))
	for _, module := range m.Modules {
		content, err := s.catalog.ModuleContent(ctx, module.Hash)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", module.Name, err)
		}
		all[module.Name] = content
	}
	return all, nil
}
