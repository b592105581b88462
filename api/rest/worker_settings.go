package rest

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/nearkey/nearkey/catalog"
)

// sentSettings are settings that hold for all versions. One that is not sent stays
// as it is.
type sentSettings struct {
	Tags          []string        `json:"tags"`
	Logpush       *bool           `json:"logpush"`
	Observability json.RawMessage `json:"observability"`
	TailConsumers json.RawMessage `json:"tail_consumers"`
}

// over returns s with what was sent in its place.
func (sent sentSettings) over(s catalog.WorkerSettings) catalog.WorkerSettings {
	if sent.Tags != nil {
		s.Tags = sent.Tags
	}
	if sent.Logpush != nil {
		s.Logpush = *sent.Logpush
	}
	if sent.Observability != nil {
		s.Observability = sent.Observability
	}
	if sent.TailConsumers != nil {
		s.TailConsumers = sent.TailConsumers
	}
	return s
}

// shownSettings are settings as clients see them.
type shownSettings struct {
	Tags          []string        `json:"tags"`
	Logpush       bool            `json:"logpush"`
	Observability json.RawMessage `json:"observability,omitempty"`
	TailConsumers json.RawMessage `json:"tail_consumers"`
}

func newShownSettings(s catalog.WorkerSettings) shownSettings {
	show := shownSettings{append([]string{}, s.Tags...), s.Logpush, s.Observability, s.TailConsumers}
	if show.TailConsumers == nil {
		show.TailConsumers = json.RawMessage("[]")
	}
	return show
}

// shownScriptSettings are the settings of a Worker together with those of its
// latest version.
type shownScriptSettings struct {
	shownSettings
	shownRuntime
	Placement   json.RawMessage   `json:"placement"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Bindings    []shownBinding    `json:"bindings"`
}

func newShownScriptSettings(w *catalog.Worker, v *catalog.WorkerVersion) shownScriptSettings {
	show := shownScriptSettings{newShownSettings(w.Settings), newShownRuntime(&v.Manifest), v.Manifest.Placement,
		v.Annotations, showBindings(v.Manifest.Bindings)}
	if show.Placement == nil {
		show.Placement = json.RawMessage("{}")
	}
	return show
}

// getSettings serves GET …/scripts/{name}/settings.
func (s *Server) getSettings(ctx context.Context, c *call) error {
	now, err := s.current(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(newShownScriptSettings(&now.worker, now.latest), nil)
}

// getOnlySettings serves GET …/scripts/{name}/script-settings.
func (s *Server) getOnlySettings(ctx context.Context, c *call) error {
	w, err := s.catalog.Worker(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(newShownSettings(w.Settings), nil)
}

// patchOnlySettings serves PATCH …/scripts/{name}/script-settings.
func (s *Server) patchOnlySettings(ctx context.Context, c *call) error {
	var sent sentSettings
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	w, err := s.catalog.Worker(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	if w, err = s.catalog.SetWorkerSettings(ctx, c.route.account, w.Name, sent.over(w.Settings)); err != nil {
		return workerFailure(err)
	}
	return c.give(newShownSettings(w.Settings), nil)
}

// sentScriptSettings is a change of what an upload describes. What is not sent
// stays as it is; of bindings, those that are not sent go, and those that are sent
// without a value stay as they are.
type sentScriptSettings struct {
	sentSettings
	Bindings    *[]sentBinding    `json:"bindings"`
	Date        *string           `json:"compatibility_date"`
	Flags       *[]string         `json:"compatibility_flags"`
	Limits      *sentLimits       `json:"limits"`
	UsageModel  *string           `json:"usage_model"`
	Placement   json.RawMessage   `json:"placement"`
	Annotations map[string]string `json:"annotations"`
}

// patchSettings serves PATCH …/scripts/{name}/settings, a form with the one part
// settings. It makes a version of the modules that are there, and deploys it.
func (s *Server) patchSettings(ctx context.Context, c *call) error {
	up, err := c.readScript("settings")
	if err != nil {
		return err
	}
	var sent sentScriptSettings
	if err := json.Unmarshal(up.metadata, &sent); err != nil {
		return badUpload("The settings are not JSON of the form that is expected.")
	}
	name := c.workerName()
	made, err := s.change(ctx, c, name, change{deploy: true, trigger: "settings", annotations: sent.Annotations, settings: sent.over,
		make: func(ctx context.Context, now *current) (catalog.Manifest, map[string]string, error) {
			if !now.deployed() {
				return catalog.Manifest{}, nil, refuse(http.StatusBadRequest, codeSettingsLatest,
					"Script edit failed. You attempted to deploy the latest version with modified settings, but the latest version isn't currently deployed.")
			}
			return s.withSettings(ctx, c, now, &sent)
		}})
	if err != nil {
		return err
	}
	return c.give(newShownScriptSettings(&made.worker, &made.version), nil)
}

// withSettings returns the latest manifest with settings changed.
func (s *Server) withSettings(ctx context.Context, c *call, now *current, sent *sentScriptSettings) (catalog.Manifest, map[string]string, error) {
	text := sentMetadata{Date: now.latest.Manifest.CompatibilityDate, Flags: now.latest.Manifest.Flags}
	made := now.latest.Manifest
	if sent.Date != nil {
		text.Date = *sent.Date
	}
	if sent.Flags != nil {
		text.Flags = *sent.Flags
	}
	if sent.Limits != nil {
		text.Limits, made.CPUMillis = *sent.Limits, sent.Limits.CPUMillis
	}
	if err := text.check(); err != nil {
		return made, nil, err
	}
	made.CompatibilityDate, made.Flags = text.Date, text.Flags
	if sent.UsageModel != nil {
		made.UsageModel = *sent.UsageModel
	}
	if sent.Placement != nil {
		made.Placement = sent.Placement
	}
	bindings := sameBindings(&made)
	if sent.Bindings != nil {
		bindings = *sent.Bindings
	}
	r := resolver{s: s, account: c.route.account, worker: now.worker.Name, latest: now.latest, strict: true, byName: true, whole: true, globals: made.ServiceWorker}
	var err error
	made.Bindings, err = r.resolve(ctx, bindings)
	return made, r.secrets, err
}
