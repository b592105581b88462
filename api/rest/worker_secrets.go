package rest

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/nearkey/nearkey/catalog"
)

// shownSecret is all that is ever told of a secret.
type shownSecret struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func showSecrets(m *catalog.Manifest) []shownSecret {
	all := []shownSecret{}
	for _, b := range m.Bindings {
		if b.Secret() {
			all = append(all, shownSecret{b.Name, b.Type})
		}
	}
	return all
}

// listSecrets serves GET …/scripts/{name}/secrets.
func (s *Server) listSecrets(ctx context.Context, c *call) error {
	v, err := s.catalog.LatestVersion(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(showSecrets(&v.Manifest), nil)
}

func errSecretNotFound(name string) error {
	return refuse(http.StatusNotFound, codeSecretNotFound, "Secret binding '%s' not found.", shown(name))
}

// getSecret serves GET …/scripts/{name}/secrets/{secret}: its name and type.
func (s *Server) getSecret(ctx context.Context, c *call) error {
	v, err := s.catalog.LatestVersion(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	for _, secret := range showSecrets(&v.Manifest) {
		if secret.Name == c.itemID() {
			return c.give(secret, nil)
		}
	}
	return errSecretNotFound(c.itemID())
}

// sentSecret is a secret as clients send it.
type sentSecret struct {
	Name string  `json:"name"`
	Text *string `json:"text"`
	Type string  `json:"type"`
}

// putSecret serves PUT …/scripts/{name}/secrets.
func (s *Server) putSecret(ctx context.Context, c *call) error {
	var sent sentSecret
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	if err := s.editSecrets(ctx, c, secretEdit{deploy: true, set: map[string]*sentSecret{sent.Name: &sent}}); err != nil {
		return err
	}
	return c.give(shownSecret{sent.Name, "secret_text"}, nil)
}

// deleteSecret serves DELETE …/scripts/{name}/secrets/{secret}.
func (s *Server) deleteSecret(ctx context.Context, c *call) error {
	if err := s.editSecrets(ctx, c, secretEdit{deploy: true, must: true, set: map[string]*sentSecret{c.itemID(): nil}}); err != nil {
		return err
	}
	return c.done()
}

// patchSecrets serves PATCH …/scripts/{name}/secrets-bulk. A secret that is null
// goes.
func (s *Server) patchSecrets(ctx context.Context, c *call) error {
	var sent struct {
		Secrets map[string]*sentSecret `json:"secrets"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	if err := s.editSecrets(ctx, c, secretEdit{deploy: true, set: sent.Secrets}); err != nil {
		return err
	}
	return s.listSecrets(ctx, c)
}

// patchLatest serves PATCH …/workers/{name}/versions/latest: secrets of a version
// that is made of the latest one and not deployed.
func (s *Server) patchLatest(ctx context.Context, c *call) error {
	var sent struct {
		Env         map[string]*sentSecret `json:"env"`
		Annotations map[string]string      `json:"annotations"`
	}
	if err := c.readJSON(&sent); err != nil {
		return err
	}
	edit := secretEdit{set: sent.Env, annotations: sent.Annotations}
	if err := s.editSecrets(ctx, c, edit); err != nil {
		return err
	}
	v, err := s.catalog.LatestVersion(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	return c.give(newShownVersion(&v), nil)
}

// secretEdit is a change of secrets by name; nil takes one away.
type secretEdit struct {
	set         map[string]*sentSecret
	deploy      bool
	must        bool // to take away what is not there is an error
	annotations map[string]string
}

// editSecrets makes a version that differs from the latest one in its secrets.
func (s *Server) editSecrets(ctx context.Context, c *call, edit secretEdit) error {
	for name, secret := range edit.set {
		if secret != nil && (secret.Text == nil || secret.Type != "" && secret.Type != "secret_text") {
			return badUpload("The secret '%s' must have a text and the type secret_text.", shown(name))
		}
	}
	name := c.workerName()
	_, err := s.change(ctx, c, name, change{deploy: edit.deploy, trigger: "secret", annotations: edit.annotations,
		make: func(ctx context.Context, now *current) (catalog.Manifest, map[string]string, error) {
			if edit.deploy && !now.deployed() {
				return catalog.Manifest{}, nil, refuse(http.StatusBadRequest, codeSecretLatest,
					"Secret edit failed. You attempted to modify a secret, but the latest version of your Worker isn't currently deployed.")
			}
			made := now.latest.Manifest
			r := resolver{s: s, account: c.route.account, worker: name, latest: now.latest, strict: true, whole: true, globals: made.ServiceWorker}
			sent, err := edit.bindings(&made)
			if err == nil {
				made.Bindings, err = r.resolve(ctx, sent)
			}
			return made, r.secrets, err
		}})
	return err
}

// bindings are those of a version after the edit.
func (edit *secretEdit) bindings(m *catalog.Manifest) ([]sentBinding, error) {
	var sent []sentBinding
	left := maps.Clone(edit.set)
	for _, b := range m.Bindings {
		secret, edited := left[b.Name]
		delete(left, b.Name)
		switch {
		case !edited:
			sent = append(sent, sentBinding{Name: b.Name, Type: "inherit"})
		case secret != nil && !b.Secret():
			return nil, errBindingTaken(b.Name)
		case secret == nil && !b.Secret():
			return nil, errSecretNotFound(b.Name)
		case secret != nil:
			sent = append(sent, sentBinding{Name: b.Name, Type: "secret_text", Text: secret.Text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		switch secret := left[name]; {
		case secret != nil:
			sent = append(sent, sentBinding{Name: name, Type: "secret_text", Text: secret.Text})
		case edit.must:
			return nil, errSecretNotFound(name)
		}
	}
	return sent, nil
}
