package catalog

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

const (
	// MaxVersions is how many versions of a Worker are kept, the newest, beside those
	// that a deployment names.
	MaxVersions = 100
	// MaxModules is the greatest number of modules of a version.
	MaxModules = 1000
	// MaxModuleBytes is the greatest size of a module.
	MaxModuleBytes = kv.MaxValueBytes
	// MaxBindings is the greatest number of bindings of a version.
	MaxBindings = 1000
	// MaxSecrets is the greatest number of bindings of a version that are secrets.
	MaxSecrets = 200
	// MaxManifestBytes is the greatest size of a manifest as JSON.
	MaxManifestBytes = 2 << 20
	// MaxAnnotationBytes is the greatest size of all annotations of a version or a
	// deployment, names included.
	MaxAnnotationBytes = 8 << 10
)

// ErrVersionNotFound: the Worker has no such version, or no longer.
var ErrVersionNotFound error = &sentinel{"the Worker has no such version", ErrNotFound}

// WorkerVersion is a version of a Worker. It never changes.
type WorkerVersion struct {
	ID                    string // a UUID
	Number                int    // from 1
	Created               time.Time
	Source                string // as the client told
	AuthorID, AuthorEmail string
	Annotations           map[string]string
	Manifest              Manifest
}

// Manifest is what runs: all that a runtime must be told of a version but the
// content of its modules, and what a client wants to see again.
type Manifest struct {
	Main              string          `json:"main"`                     // name of the module that is run; empty: there are static files alone
	ServiceWorker     bool            `json:"service_worker,omitempty"` // in the service worker format
	CompatibilityDate string          `json:"compatibility_date,omitempty"`
	Flags             []string        `json:"flags,omitempty"`
	Modules           []WorkerModule  `json:"modules"`
	Bindings          []WorkerBinding `json:"bindings,omitempty"`
	Assets            *WorkerAssets   `json:"assets,omitempty"` // nil: there are none
	CPUMillis         int             `json:"cpu_millis,omitempty"`
	UsageModel        string          `json:"usage_model,omitempty"`
	Placement         json.RawMessage `json:"placement,omitempty"`
	Other             json.RawMessage `json:"other,omitempty"`
	Handlers          []string        `json:"handlers,omitempty"`
	NamedHandlers     []string        `json:"named_handlers,omitempty"`
	StartupMillis     int             `json:"startup_millis,omitempty"`
	Etag              string          `json:"etag,omitempty"`
}

// WorkerModule is a file of a Worker, without its content.
type WorkerModule struct {
	Name string `json:"name"`
	Type string `json:"type"` // its content type in the upload form
	Hash string `json:"hash"` // SHA-256 of the content, in hexadecimal digits
	Size int    `json:"size"`
}

// WorkerBinding is a name in a Worker's env. Which of the other fields it has
// depends on its type, which is the API's.
type WorkerBinding struct {
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	Text        string          `json:"text,omitempty"`         // of plain_text
	JSON        json.RawMessage `json:"json,omitempty"`         // of json
	Sealed      string          `json:"sealed,omitempty"`       // of secret_text and secret_key: Keys.Seal; never in plain text
	NamespaceID string          `json:"namespace_id,omitempty"` // of kv_namespace
	Service     string          `json:"service,omitempty"`      // of service
	Entrypoint  string          `json:"entrypoint,omitempty"`   // of service
	Part        string          `json:"part,omitempty"`         // of text_blob, data_blob and wasm_module: name of the module
}

// Secret reports whether the binding is a secret: its value is sealed.
func (b WorkerBinding) Secret() bool { return b.Type == "secret_text" || b.Type == "secret_key" }

// NewVersion is a version to be added to a Worker.
type NewVersion struct {
	Manifest Manifest
	// Base is the id of the latest version when the manifest was made, empty for
	// none. If another one is the latest now, bindings that were taken over from it
	// may be outdated: ErrConflict.
	Base   string
	Create bool // make the Worker if there is none
	Deploy bool // all requests go to the version from now on

	Source, AuthorID, AuthorEmail string            // of the version, and of its deployment
	Annotations                   map[string]string // of the version, and of its deployment
	Settings                      *WorkerSettings   // nil: they stay as they are
}

func (m *Manifest) check() error {
	switch {
	case m.Assets != nil && !moduleHash(m.Assets.Set):
		return invalid("%q is no set of static files", m.Assets.Set)
	case m.Main == "" && m.Assets != nil && len(m.Modules) == 0: // static files alone
	case m.Main == "" || !slices.ContainsFunc(m.Modules, func(f WorkerModule) bool { return f.Name == m.Main }):
		return invalid("the main module %q is not among the modules", m.Main)
	case len(m.Modules) > MaxModules:
		return invalid("a Worker has at most %d modules, this one has %d", MaxModules, len(m.Modules))
	case len(m.Bindings) > MaxBindings:
		return invalid("a Worker has at most %d bindings, this one has %d", MaxBindings, len(m.Bindings))
	}
	names := map[string]bool{}
	for _, f := range m.Modules {
		if err := f.check(); err != nil {
			return err
		}
		if names[f.Name] {
			return invalid("the module %q is there twice", f.Name)
		}
		names[f.Name] = true
	}
	secrets := 0
	clear(names)
	for _, b := range m.Bindings {
		if err := b.check(); err != nil {
			return err
		}
		if names[b.Name] {
			return invalid("the binding %q is there twice", b.Name)
		}
		names[b.Name] = true
		if b.Secret() {
			secrets++
		}
	}
	if secrets > MaxSecrets {
		return invalid("a Worker has at most %d secrets, this one has %d", MaxSecrets, secrets)
	}
	return nil
}

// moduleHash reports whether a text is the hash of a module.
func moduleHash(text string) bool {
	hash, err := hex.DecodeString(text)
	return err == nil && len(hash) == 32 && hex.EncodeToString(hash) == text
}

func (f WorkerModule) check() error {
	switch {
	case f.Name == "" || !utf8.ValidString(f.Name):
		return invalid("the name of a module is UTF-8 and not empty, %q is not", f.Name)
	case !moduleHash(f.Hash):
		return invalid("module %q: its hash is no SHA-256 in hexadecimal digits", f.Name)
	case f.Size < 0 || f.Size > MaxModuleBytes:
		return invalid("module %q has %d bytes, a module has at most %d", f.Name, f.Size, MaxModuleBytes)
	}
	return nil
}

func (b WorkerBinding) check() error {
	switch {
	case b.Name == "" || b.Type == "":
		return invalid("a binding must have a name and a type")
	case !utf8.ValidString(b.Name) || !utf8.ValidString(b.Text):
		return invalid("the binding %q is not UTF-8", b.Name)
	case b.Secret() && (b.Text != "" || len(b.JSON) > 0 || b.Sealed == ""):
		return invalid("the secret %q is not sealed", b.Name)
	}
	return nil
}

// manifestRecord is a manifest as it is stored and published.
type manifestRecord struct {
	Format int `json:"format"`
	Manifest
}

func (m *Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(manifestRecord{recordFormat, *m})
	if err != nil {
		return nil, invalid("manifest: %v", err)
	}
	if len(text) > MaxManifestBytes {
		return nil, invalid("the manifest of a Worker (bindings and the names of modules) has at most %d bytes, this one has %d", MaxManifestBytes, len(text))
	}
	return text, nil
}

func checkAnnotations(annotations map[string]string) error {
	size := 0
	for name, text := range annotations {
		size += len(name) + len(text)
		if !utf8.ValidString(name) || !utf8.ValidString(text) {
			return invalid("the annotation %q is not UTF-8", name)
		}
	}
	if size > MaxAnnotationBytes {
		return invalid("annotations have at most %d bytes, these have %d", MaxAnnotationBytes, size)
	}
	return nil
}

func annotationText(annotations map[string]string) []byte {
	text, err := json.Marshal(annotations)
	if err != nil {
		panic("catalog: writing annotations: " + err.Error()) // strings alone
	}
	return text
}

// AddVersion adds a version to a Worker, whose modules PutModules has stored not
// long ago, and deploys it if asked to. All of it is done, or nothing.
func (c *Catalog) AddVersion(ctx context.Context, accountID, name string, add NewVersion) (Worker, WorkerVersion, error) {
	doing := fmt.Sprintf("add a version to Worker %q", name)
	text, err := add.Manifest.encode()
	if err := errors.Join(checkWorkerName(name), err, checkAnnotations(add.Annotations)); err != nil {
		return Worker{}, WorkerVersion{}, fmt.Errorf("%s: %w", doing, err)
	}
	var w Worker
	var v WorkerVersion
	var removed []string
	made := func() {
		c.publishInOrder(ctx, []string{versionKey(v.ID)}, []string{scriptKey(accountID, name)}, removed)
	}
	err = c.change(ctx, doing, made, func(tx *sql.Tx) error {
		id, err := c.ensureWorker(ctx, tx, accountID, name, add)
		if err != nil {
			return err
		}
		v = WorkerVersion{ID: newUUID(), Created: loaded(stored(c.now())), Source: add.Source,
			AuthorID: add.AuthorID, AuthorEmail: add.AuthorEmail, Annotations: maps.Clone(add.Annotations), Manifest: add.Manifest}
		if v.Number, err = c.insertVersion(ctx, tx, id, v, text); err != nil {
			return err
		}
		if add.Deploy {
			d := Deployment{Source: add.Source, AuthorID: add.AuthorID, AuthorEmail: add.AuthorEmail,
				Annotations: add.Annotations, Versions: []Share{{v.ID, 100}}}
			if err := c.insertDeployment(ctx, tx, id, d); err != nil {
				return err
			}
		}
		if removed, err = c.removeVersions(ctx, tx, id); err != nil {
			return err
		}
		w, err = oneWorker(ctx, tx, accountID, name)
		return err
	})
	if err != nil {
		return Worker{}, WorkerVersion{}, err
	}
	return w, v, nil
}

// ensureWorker returns the id of the Worker that a version is added to, and makes
// the Worker if there is none.
func (c *Catalog) ensureWorker(ctx context.Context, tx *sql.Tx, accountID, name string, add NewVersion) (id string, err error) {
	now := stored(c.now())
	if id, err = workerID(ctx, tx, accountID, name); errors.Is(err, ErrWorkerNotFound) && add.Create {
		id, err = insertWorker(ctx, tx, accountID, name, now)
	}
	if err != nil {
		return "", err
	}
	var latest string
	if err := tx.QueryRowContext(ctx, `select latest_id from workers where id = $1`, id).Scan(&latest); err != nil {
		return "", err
	}
	if latest != add.Base {
		return "", fmt.Errorf("the latest version is %q, not %q: %w", latest, add.Base, ErrConflict)
	}
	if add.Settings != nil {
		text, err := add.Settings.encode()
		if err != nil {
			return "", err
		}
		if err := one(ctx, tx, `update workers set settings = $1 where id = $2`, text, id); err != nil {
			return "", err
		}
	}
	return id, one(ctx, tx, `update workers set modified = $1 where id = $2`, now, id)
}

func insertWorker(ctx context.Context, tx *sql.Tx, accountID, name string, now int64) (id string, err error) {
	var count int
	if err := tx.QueryRowContext(ctx, `select count(*) from workers where account_id = $1`, accountID).Scan(&count); err != nil {
		return "", err
	}
	if count >= MaxWorkers {
		return "", ErrTooManyWorkers
	}
	id = newID()
	_, err = tx.ExecContext(ctx, `insert into workers
		(id, account_id, name, created, modified, subdomain, previews, settings, latest, latest_id, deployments, deployment_id)
		values ($1, $2, $3, $4, $4, 0, 0, $5, 0, '', 0, '')`, id, accountID, []byte(name), now, []byte(`{}`))
	return id, err
}

// insertVersion makes v the latest version of a Worker, and returns its number.
func (c *Catalog) insertVersion(ctx context.Context, tx *sql.Tx, workerID string, v WorkerVersion, text []byte) (number int, err error) {
	if err := one(ctx, tx, `update workers set latest = latest + 1, latest_id = $1 where id = $2`, v.ID, workerID); err != nil {
		return 0, err
	}
	if err := tx.QueryRowContext(ctx, `select latest from workers where id = $1`, workerID).Scan(&number); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `insert into worker_versions
		(id, worker_id, number, created, source, author_id, author_email, annotations, manifest, digest)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		v.ID, workerID, number, stored(v.Created), notNil([]byte(v.Source)), notNil([]byte(v.AuthorID)),
		notNil([]byte(v.AuthorEmail)), annotationText(v.Annotations), text, digest(text)); err != nil {
		return 0, err
	}
	if err := c.holdModules(ctx, tx, v.ID, &v.Manifest); err != nil {
		return 0, err
	}
	return number, holdAssets(ctx, tx, v.Manifest.Assets)
}

// removeVersions removes the oldest versions of a Worker that are too many, and
// returns the keys of their records.
func (c *Catalog) removeVersions(ctx context.Context, tx *sql.Tx, workerID string) ([]string, error) {
	const idle = `worker_id = $1 and id not in (select s.version_id from worker_shares s
		join worker_deployments d on d.id = s.deployment_id where d.worker_id = $1)`
	doomed := fmt.Sprintf(`id in (select id from worker_versions where %s order by number desc limit %d offset %d)`,
		idle, MaxVersions, MaxVersions)
	keys, err := keysOf(ctx, tx, versionKey, `select id from worker_versions where `+doomed, workerID)
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	if err := c.releaseModules(ctx, tx, doomed, workerID); err != nil {
		return nil, err
	}
	_, err = tx.ExecContext(ctx, `delete from worker_versions where `+doomed, workerID)
	return keys, err
}

const versionColumns = `v.id, v.number, v.created, v.source, v.author_id, v.author_email, v.annotations, v.manifest`

func scanVersion(row scanner) (WorkerVersion, error) {
	var (
		v                                                    WorkerVersion
		created                                              int64
		source, authorID, authorEmail, annotations, manifest []byte
	)
	if err := row.Scan(&v.ID, &v.Number, &created, &source, &authorID, &authorEmail, &annotations, &manifest); err != nil {
		return WorkerVersion{}, err
	}
	v.Created, v.Source, v.AuthorID, v.AuthorEmail = loaded(created), string(source), string(authorID), string(authorEmail)
	if err := json.Unmarshal(annotations, &v.Annotations); err != nil {
		return WorkerVersion{}, err
	}
	m, err := parseManifest(manifest)
	if err != nil {
		return WorkerVersion{}, err
	}
	v.Manifest = *m
	return v, nil
}

// versionsOf selects the versions of a Worker: $1 is its account, $2 its name.
const versionsOf = ` from worker_versions v join workers w on w.id = v.worker_id where w.account_id = $1 and w.name = $2 `

// Version returns a version of a Worker.
func (c *Catalog) Version(ctx context.Context, accountID, name, id string) (WorkerVersion, error) {
	return c.version(ctx, fmt.Sprintf("version %q of Worker %q", id, name), accountID, name, `and v.id = $3`, id)
}

// LatestVersion returns the version of a Worker that was added last.
func (c *Catalog) LatestVersion(ctx context.Context, accountID, name string) (WorkerVersion, error) {
	return c.version(ctx, fmt.Sprintf("the latest version of Worker %q", name), accountID, name, `and v.id = w.latest_id`)
}

func (c *Catalog) version(ctx context.Context, doing, accountID, name, condition string, args ...any) (WorkerVersion, error) {
	args = append([]any{accountID, []byte(name)}, args...)
	v, err := scanVersion(c.db.read.QueryRowContext(ctx, `select `+versionColumns+versionsOf+condition, args...))
	if errors.Is(err, sql.ErrNoRows) {
		if _, err := c.Worker(ctx, accountID, name); err != nil {
			return WorkerVersion{}, err
		}
		err = ErrVersionNotFound
	}
	return v, failure(ctx, doing, err)
}

// Versions returns versions of a Worker, the newest first: after offset, at most
// limit (1 to MaxVersions, others are clamped), and how many there are.
func (c *Catalog) Versions(ctx context.Context, accountID, name string, offset, limit int) (list []WorkerVersion, total int, err error) {
	doing := fmt.Sprintf("list the versions of Worker %q", name)
	if limit < 1 || limit > MaxVersions {
		limit = MaxVersions
	}
	if err := c.db.read.QueryRowContext(ctx, `select count(*)`+versionsOf, accountID, []byte(name)).Scan(&total); err != nil {
		return nil, 0, failure(ctx, doing, err)
	}
	if total == 0 {
		_, err := c.Worker(ctx, accountID, name)
		return nil, 0, err
	}
	list, err = all(ctx, c.db.read, scanVersion, fmt.Sprintf(`select `+versionColumns+versionsOf+`order by v.number desc limit %d offset %d`,
		limit, max(offset, 0)), accountID, []byte(name))
	if err != nil {
		return nil, 0, failure(ctx, doing, err)
	}
	return list, total, nil
}
