package rest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nearkey/nearkey/catalog"
)

// sentBinding is a binding as clients send it.
type sentBinding struct {
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	Text        *string         `json:"text"`
	JSON        json.RawMessage `json:"json"`
	NamespaceID string          `json:"namespace_id"`
	Service     string          `json:"service"`
	Environment string          `json:"environment"`
	Entrypoint  string          `json:"entrypoint"`
	Part        string          `json:"part"`
	OldName     string          `json:"old_name"`   // of inherit
	VersionID   string          `json:"version_id"` // of inherit
}

// empty reports whether a binding has a type and nothing else, by which a change of
// settings names one that stays.
func (b *sentBinding) empty() bool {
	return b.Text == nil && b.JSON == nil && b.NamespaceID == "" && b.Service == "" && b.Part == ""
}

const supportedBindings = "plain_text, json, secret_text, kv_namespace, service, text_blob, data_blob, wasm_module, assets and version_metadata"

// scriptIdentifier is what can be a global variable, which is what bindings are in
// the service worker format.
var scriptIdentifier = regexp.MustCompile(`^[\pL_$][\pL\pN_$]*$`)

const maxBindingNameBytes = 256

// resolver turns bindings as they were sent into those of a manifest.
type resolver struct {
	s       *Server
	account string
	worker  string
	latest  *catalog.WorkerVersion // nil: there is none
	parts   map[string][]byte      // modules by name; nil: those of latest

	keep      []string // types of bindings of latest that stay unless they are redefined
	strict    bool     // to inherit what is not there is an error
	byName    bool     // a binding that is empty is inherited
	whole     bool     // bindings that are not sent go, secrets too
	globals   bool     // bindings are global variables
	secrets   map[string]string
	resolved  []catalog.WorkerBinding
	positions map[string]int // in resolved, by name
}

// resolve returns the bindings of a version, and fills r.secrets.
func (r *resolver) resolve(ctx context.Context, sent []sentBinding) ([]catalog.WorkerBinding, error) {
	r.secrets, r.positions = map[string]string{}, map[string]int{}
	r.resolved = make([]catalog.WorkerBinding, 0, len(sent))
	for i := range sent {
		if err := r.add(ctx, &sent[i]); err != nil {
			return nil, err
		}
	}
	if r.latest == nil || r.whole {
		return r.resolved, nil
	}
	for _, b := range r.latest.Manifest.Bindings {
		_, redefined := r.positions[b.Name]
		if redefined || !b.Secret() && !slices.Contains(r.keep, b.Type) {
			continue
		}
		if err := r.take(b, b.Name); err != nil {
			return nil, err
		}
	}
	return r.resolved, nil
}

func (r *resolver) add(ctx context.Context, b *sentBinding) error {
	if err := r.checkName(b.Name); err != nil {
		return err
	}
	if b.Type == "inherit" || r.byName && b.empty() && b.Type != "version_metadata" && b.Type != "assets" {
		return r.inherit(ctx, b)
	}
	made := catalog.WorkerBinding{Name: b.Name, Type: b.Type}
	var err error
	switch b.Type {
	case "plain_text", "secret_text":
		if b.Text == nil {
			return badUpload("binding %s of type %s must have a text", b.Name, b.Type)
		}
		if made.Text = *b.Text; b.Type == "secret_text" {
			made.Text = ""
			made.Sealed, err = r.seal(b.Name, *b.Text)
		} else {
			err = checkVariable(b.Name, len(*b.Text))
		}
	case "json":
		if b.JSON == nil {
			return badUpload("binding %s of type json must have a value", b.Name)
		}
		made.JSON, err = b.JSON, checkVariable(b.Name, len(b.JSON))
	case "kv_namespace":
		made.NamespaceID, err = r.namespace(ctx, b)
	case "service":
		made.Service, made.Entrypoint, err = b.Service, b.Entrypoint, r.service(ctx, b)
	case "text_blob", "data_blob", "wasm_module":
		made.Part, err = b.Part, r.part(b)
	case "version_metadata", "assets":
	default:
		return badUpload("binding %s of type %s is not supported by this server. It supports %s.", b.Name, shown(b.Type), supportedBindings)
	}
	if err != nil {
		return err
	}
	return r.put(made)
}

func (r *resolver) checkName(name string) error {
	bad := name == "" || len(name) > maxBindingNameBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl)
	if bad || r.globals && !scriptIdentifier.MatchString(name) {
		return badUpload("'%s' cannot be the name of a binding.", shown(name))
	}
	return nil
}

// put appends a binding that has all it needs.
func (r *resolver) put(b catalog.WorkerBinding) error {
	if _, taken := r.positions[b.Name]; taken {
		return errBindingTaken(b.Name)
	}
	if len(r.resolved) == catalog.MaxBindings {
		return badUpload("A Worker has at most %d bindings.", catalog.MaxBindings)
	}
	r.positions[b.Name] = len(r.resolved)
	r.resolved = append(r.resolved, b)
	return nil
}

func errBindingTaken(name string) error {
	return refuse(http.StatusBadRequest, codeBindingTaken, "Binding name '%s' already in use. Please use a different name and try again.", shown(name))
}

// checkVariable bounds what a variable or a secret holds.
func checkVariable(name string, size int) error {
	if size > MaxVariableBytes {
		return badUpload("The value of binding %s has %d bytes, a variable or secret has at most %d.", name, size, MaxVariableBytes)
	}
	return nil
}

// seal seals a secret and remembers it opened.
func (r *resolver) seal(name, text string) (string, error) {
	if err := checkVariable(name, len(text)); err != nil {
		return "", err
	}
	r.secrets[name] = text
	return r.s.workers.Keys.Seal(r.account, r.worker, name, text)
}

// take takes a binding of an older version over. A secret is sealed anew: for its
// name, and with the key of today, so that older ones can be taken away.
func (r *resolver) take(b catalog.WorkerBinding, as string) error {
	if b.Secret() {
		text, err := r.s.workers.Keys.Open(r.account, r.worker, b.Name, b.Sealed)
		if err != nil {
			return &failure{status: http.StatusInternalServerError, code: codeInternal, bare: true, final: true, cause: err,
				text: "The secret '" + b.Name + "' cannot be opened with the keys that this server has. Please set it anew."}
		}
		r.secrets[as] = text
		if b.Sealed, err = r.s.workers.Keys.Seal(r.account, r.worker, as, text); err != nil {
			return err
		}
	}
	if b.Part != "" && r.parts != nil && r.parts[b.Part] == nil {
		return refuse(http.StatusBadRequest, codeInherit, "Binding %s cannot be inherited: the upload has no part '%s'.", as, shown(b.Part))
	}
	b.Name = as
	return r.put(b)
}

// inherit takes over the binding of the latest version, or of the one that is
// named.
func (r *resolver) inherit(ctx context.Context, b *sentBinding) error {
	from := r.latest
	if b.VersionID != "" && b.VersionID != "latest" && (from == nil || from.ID != b.VersionID) {
		v, err := r.s.catalog.Version(ctx, r.account, r.worker, b.VersionID)
		if err != nil {
			return err
		}
		from = &v
	}
	old := b.OldName
	if old == "" {
		old = b.Name
	}
	if from != nil {
		for _, have := range from.Manifest.Bindings {
			if have.Name == old && (b.Type == "inherit" || b.Type == have.Type) {
				return r.take(have, b.Name)
			}
		}
	}
	if b.Type == "inherit" && !r.strict {
		return nil
	}
	return refuse(http.StatusBadRequest, codeInherit,
		"Binding %s cannot be inherited: the Worker's current version has no such binding.", shown(old))
}

func (r *resolver) namespace(ctx context.Context, b *sentBinding) (string, error) {
	id, err := parseNamespaceID(b.NamespaceID)
	if err != nil {
		return "", refuse(http.StatusBadRequest, codeBadNamespace, "KV namespace '%s' is not valid.", shown(b.NamespaceID))
	}
	switch _, err := r.s.catalog.Namespace(ctx, r.account, id); {
	case errors.Is(err, catalog.ErrNotFound):
		return "", refuse(http.StatusBadRequest, codeNoNamespace, "KV namespace '%s' not found.", shown(b.NamespaceID))
	case err != nil:
		return "", err
	}
	return id.String(), nil
}

// service checks that the Worker is there which a binding names. One may name
// itself before it is.
func (r *resolver) service(ctx context.Context, b *sentBinding) error {
	switch {
	case b.Environment != "" && b.Environment != "production":
		return badUpload("binding %s names the environment '%s'; Workers have no environments but production.", b.Name, shown(b.Environment))
	case b.Service == r.worker:
		return nil
	}
	latest, err := r.s.catalog.LatestVersion(ctx, r.account, b.Service)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return refuse(http.StatusBadRequest, codeNoService,
			"Could not resolve service binding '%s'. Target script '%s' not found. Please verify the target script and try again.", b.Name, shown(b.Service))
	case err != nil:
		return err
	case b.Entrypoint != "" && b.Entrypoint != "default" && !slices.Contains(latest.Manifest.NamedHandlers, b.Entrypoint):
		return refuse(http.StatusBadRequest, codeNoService,
			"Could not resolve service binding '%s'. Target script '%s' has no entrypoint '%s' that handles fetch.", b.Name, shown(b.Service), shown(b.Entrypoint))
	}
	return nil
}

func (r *resolver) part(b *sentBinding) error {
	if r.parts != nil && r.parts[b.Part] == nil {
		return badUpload("binding %s of type %s names the part '%s', which the upload does not have", b.Name, b.Type, shown(b.Part))
	}
	return nil
}

// shownBinding is a binding as clients see it. A secret has no value.
type shownBinding struct {
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	Text        *string         `json:"text,omitempty"`
	JSON        json.RawMessage `json:"json,omitempty"`
	NamespaceID string          `json:"namespace_id,omitempty"`
	Service     string          `json:"service,omitempty"`
	Environment string          `json:"environment,omitempty"`
	Entrypoint  string          `json:"entrypoint,omitempty"`
	Part        string          `json:"part,omitempty"`
}

func showBindings(bindings []catalog.WorkerBinding) []shownBinding {
	all := make([]shownBinding, len(bindings))
	for i, b := range bindings {
		all[i] = shownBinding{Name: b.Name, Type: b.Type, JSON: b.JSON, NamespaceID: b.NamespaceID,
			Service: b.Service, Entrypoint: b.Entrypoint, Part: b.Part}
		if b.Type == "plain_text" {
			all[i].Text = &b.Text
		}
		if b.Type == "service" {
			all[i].Environment = "production"
		}
	}
	return all
}

// sameBindings is what is sent so that all bindings stay as they are.
func sameBindings(m *catalog.Manifest) []sentBinding {
	all := make([]sentBinding, len(m.Bindings))
	for i, b := range m.Bindings {
		all[i] = sentBinding{Name: b.Name, Type: "inherit"}
	}
	return all
}

// mapOf is a copy of m that may be changed.
func mapOf(m map[string]string) map[string]string {
	if m = maps.Clone(m); m == nil {
		m = map[string]string{}
	}
	return m
}
