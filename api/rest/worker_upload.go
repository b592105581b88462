package rest

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// sentMetadata describes an upload. What is not here is ignored, as the real
// service does with what it does not know.
type sentMetadata struct {
	MainModule    string                     `json:"main_module"`
	BodyPart      string                     `json:"body_part"`
	Bindings      []sentBinding              `json:"bindings"`
	KeepBindings  []string                   `json:"keep_bindings"`
	Date          string                     `json:"compatibility_date"`
	Flags         []string                   `json:"compatibility_flags"`
	Limits        sentLimits                 `json:"limits"`
	UsageModel    string                     `json:"usage_model"`
	Placement     json.RawMessage            `json:"placement"`
	Annotations   map[string]string          `json:"annotations"`
	Tags          []string                   `json:"tags"`
	Logpush       *bool                      `json:"logpush"`
	Observability json.RawMessage            `json:"observability"`
	TailConsumers json.RawMessage            `json:"tail_consumers"`
	Assets        *sentAssets                `json:"assets"`
	KeepAssets    bool                       `json:"keep_assets"`
	Migrations    json.RawMessage            `json:"migrations"`
	Containers    json.RawMessage            `json:"containers"`
	Exports       map[string]json.RawMessage `json:"exports"`
}

type sentLimits struct {
	CPUMillis int `json:"cpu_ms"`
}

const (
	// defaultDate is the compatibility date of an upload that has none.
	defaultDate = "2021-11-02"
	// maxCPUMillis is the longest that a request may be allowed to compute.
	maxCPUMillis = 300_000
	// maxFlags is the greatest number of compatibility flags.
	maxFlags = 100
)

var dateForm = regexp.MustCompile(`^\d{4}-\d\d-\d\d$`)

func isSet(raw json.RawMessage) bool {
	text := strings.TrimSpace(string(raw))
	return text != "" && text != "null" && text != "[]" && text != "{}"
}

// parseMetadata reads what describes an upload, and refuses what no upload may ask
// for.
func parseMetadata(text []byte) (*sentMetadata, error) {
	var m sentMetadata
	var wrongType *json.UnmarshalTypeError
	switch err := json.Unmarshal(text, &m); {
	case errors.As(err, &wrongType):
		return nil, badUpload("The field '%s' of the metadata has the wrong type.", shown(wrongType.Field))
	case err != nil:
		return nil, badUpload("The metadata is not JSON.")
	}
	for what, raw := range map[string]json.RawMessage{
		"Durable Objects (migrations)": m.Migrations, "containers": m.Containers,
	} {
		if isSet(raw) {
			return nil, badUpload("This server does not support %s. It runs Workers of modules or scripts with bindings of type %s.", what, supportedBindings)
		}
	}
	return &m, m.check()
}

// check refuses a date, flags and limits that no version may have. An empty date
// becomes the default.
func (m *sentMetadata) check() error {
	if m.Date == "" {
		m.Date = defaultDate
	}
	date, err := time.Parse(time.DateOnly, m.Date)
	switch {
	case err != nil || !dateForm.MatchString(m.Date):
		return badUpload("Invalid compatibility date '%s'. Please specify a date as YYYY-MM-DD.", shown(m.Date))
	case date.After(time.Now()):
		return badUpload("Can't set compatibility date in the future: %s", m.Date)
	case len(m.Flags) > maxFlags:
		return badUpload("A Worker has at most %d compatibility flags.", maxFlags)
	case m.Limits.CPUMillis < 0 || m.Limits.CPUMillis > maxCPUMillis:
		return badUpload("Invalid limits.cpu_ms of %d. Please specify an integer between 1 and %d.", m.Limits.CPUMillis, maxCPUMillis)
	}
	return nil
}

// main is the module or script that is run.
func (m *sentMetadata) main(up *script) (name string, isScript bool, err error) {
	switch {
	case m.MainModule != "" && m.BodyPart != "":
		return "", false, badUpload("The metadata names a main_module and a body_part: please specify one of them.")
	case m.MainModule == "" && m.BodyPart == "" && m.hasAssets() && len(up.modules) == 0:
		return "", false, nil // static assets alone
	case m.MainModule == "" && m.BodyPart == "":
		return "", false, badUpload("The metadata must name the main_module or the body_part.")
	}
	name = m.MainModule + m.BodyPart
	if up.contents[name] == nil {
		return "", false, badUpload("No such module \"%s\": the metadata names it as the one that is run, and the form has no part of this name.", shown(name))
	}
	return name, m.BodyPart != "", nil
}

// manifest returns what is known of the version before it was started.
func (m *sentMetadata) manifest(up *script) (catalog.Manifest, error) {
	name, isScript, err := m.main(up)
	if err != nil {
		return catalog.Manifest{}, err
	}
	made := catalog.Manifest{Main: name, ServiceWorker: isScript, CompatibilityDate: m.Date, Flags: m.Flags,
		CPUMillis: m.Limits.CPUMillis, UsageModel: m.UsageModel}
	if isSet(m.Placement) {
		made.Placement = m.Placement
	}
	return made, nil
}

// settings returns the Worker's settings after the upload, which may leave some of
// them as they are.
func (m *sentMetadata) settings(s catalog.WorkerSettings) catalog.WorkerSettings {
	return sentSettings{Tags: m.Tags, Logpush: m.Logpush, Observability: m.Observability, TailConsumers: m.TailConsumers}.over(s)
}

// upload reads the form of a version and returns the change that it asks for.
func (s *Server) upload(c *call, name string) (*change, error) {
	up, err := c.readScript("metadata")
	if err != nil {
		return nil, err
	}
	m, err := parseMetadata(up.metadata)
	if err != nil {
		return nil, err
	}
	base, err := m.manifest(up)
	if err == nil {
		err = up.checkSize()
	}
	if err != nil {
		return nil, err
	}
	inherit, err := parameter(c.r.URL.RawQuery, "bindings_inherit")
	if err != nil {
		return nil, err
	}
	return &change{up: up, annotations: m.Annotations, settings: m.settings,
		make: func(ctx context.Context, now *current) (catalog.Manifest, map[string]string, error) {
			r := resolver{s: s, account: c.route.account, worker: name, latest: now.latest, parts: up.contents,
				keep: m.KeepBindings, strict: inherit == "strict", globals: base.ServiceWorker}
			made := base
			var err error
			if made.Assets, err = s.versionAssets(c, name, m, now.latest); err != nil {
				return made, nil, err
			}
			if made.Bindings, err = r.resolve(ctx, m.Bindings); err == nil {
				err = checkAssets(&made)
			}
			return made, r.secrets, err
		}}, nil
}

// putScript serves PUT …/scripts/{name}: an upload that is deployed at once.
func (s *Server) putScript(ctx context.Context, c *call) error {
	name, err := c.newWorkerName()
	if err != nil {
		return err
	}
	ch, err := s.upload(c, name)
	if err != nil {
		return err
	}
	ch.create, ch.deploy, ch.trigger = true, true, "upload"
	made, err := s.change(ctx, c, name, *ch)
	if err != nil {
		return err
	}
	return c.give(newShownScript(&made.worker, &made.version), nil)
}

// postVersion serves POST …/scripts/{name}/versions: an upload that is not
// deployed.
func (s *Server) postVersion(ctx context.Context, c *call) error {
	name := c.workerName()
	if _, err := s.catalog.Worker(ctx, c.route.account, name); err != nil {
		return workerFailure(err) // before the modules are read
	}
	ch, err := s.upload(c, name)
	if err != nil {
		return err
	}
	ch.trigger, ch.settings = "version_upload", nil
	made, err := s.change(ctx, c, name, *ch)
	if err != nil {
		return err
	}
	return c.give(newShownVersion(&made.version), nil)
}

// putContent serves PUT …/scripts/{name}/content: new modules with the bindings and
// settings that are there.
func (s *Server) putContent(ctx context.Context, c *call) error {
	name := c.workerName()
	up, err := c.readScript("metadata")
	if err != nil {
		return err
	}
	m, err := parseMetadata(up.metadata)
	if err != nil {
		return err
	}
	main, isScript, err := m.main(up)
	if err == nil {
		err = up.checkSize()
	}
	if err != nil {
		return err
	}
	made, err := s.change(ctx, c, name, change{up: up, deploy: true, trigger: "upload",
		make: func(ctx context.Context, now *current) (catalog.Manifest, map[string]string, error) {
			r := resolver{s: s, account: c.route.account, worker: name, latest: now.latest, parts: up.contents, strict: true, whole: true, globals: isScript}
			made := now.latest.Manifest
			made.Main, made.ServiceWorker = main, isScript
			var err error
			made.Bindings, err = r.resolve(ctx, sameBindings(&made))
			return made, r.secrets, err
		}})
	if err != nil {
		return err
	}
	return c.give(newShownScript(&made.worker, &made.version), nil)
}
