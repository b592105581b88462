package catalog

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Workers is the namespace of published records of Workers: what edges need to run
// them without the control plane. It is in no account, as Reserved is.
//
// The keys of its records:
//
//	asset/<account>/<hash of a static file>
//	domain/<host>
//	module/<SHA-256 of the content, in hexadecimal digits>
//	script/<account>/<name>
//	subdomain/<name>
//	version/<UUID>
//	zone/<host>
//
// The value of a module or a static file is its content; its record and a version's never change, but go
// when nothing needs them any more. All other values are JSON, as in Reserved.
// Secrets are in it as Keys has sealed them.
var Workers = kv.NamespaceID{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
}

// OwnNamespace reports whether a namespace holds records of the catalog's own. No
// user may reach it, whatever a token permits.
func OwnNamespace(id kv.NamespaceID) bool { return id == Reserved || id == Workers }

const (
	assetPrefix     = "asset/"
	domainPrefix    = "domain/"
	modulePrefix    = "module/"
	scriptPrefix    = "script/"
	subdomainPrefix = "subdomain/"
	versionPrefix   = "version/"
	zonePrefix      = "zone/"
)

func domainKey(host string) string            { return domainPrefix + host }
func scriptKey(accountID, name string) string { return scriptPrefix + accountID + "/" + name }
func subdomainKey(name string) string         { return subdomainPrefix + name }
func versionKey(id string) string             { return versionPrefix + id }
func zoneKey(host string) string              { return zonePrefix + host }

// moduleKey is the key of a module, or of a static file, whose hash has its account
// and a slash in front of it.
func moduleKey(hash string) string {
	if strings.Contains(hash, "/") {
		return assetPrefix + hash
	}
	return modulePrefix + hash
}

// PublishedWorker is what an edge knows of a Worker.
type PublishedWorker struct {
	ID, AccountID, Name string
	Subdomain, Previews bool
	Versions            []Share // those that answer; none: the Worker was never deployed
	Tails               []PublishedTail
}

// PublishedTail is a tail to which an edge is to send what a Worker logs.
type PublishedTail struct {
	ID      string
	Ingest  string // permits to send to it
	Filters json.RawMessage
	Expires time.Time
}

// bytes is about the memory that a Worker takes.
func (w *PublishedWorker) bytes() int {
	size := 512 + len(w.Name)
	for _, t := range w.Tails {
		size += 256 + len(t.Filters)
	}
	return size
}

// scriptRecord is a Worker as it is published; account and name are in the key.
type scriptRecord struct {
	Format    int          `json:"format"`
	ID        string       `json:"id"`
	Subdomain bool         `json:"subdomain,omitempty"`
	Previews  bool         `json:"previews,omitempty"`
	Versions  []Share      `json:"versions,omitempty"`
	Tails     []tailRecord `json:"tails,omitempty"`
}

type tailRecord struct {
	ID      string          `json:"id"`
	Ingest  string          `json:"ingest"`
	Filters json.RawMessage `json:"filters,omitempty"`
	Expires int64           `json:"expires"`
}

func newScriptRecord(w Worker, tails []Tail) scriptRecord {
	r := scriptRecord{Format: recordFormat, ID: w.ID, Subdomain: w.Subdomain, Previews: w.Previews}
	if w.Deployment != nil {
		r.Versions = w.Deployment.Versions
	}
	for _, t := range tails {
		r.Tails = append(r.Tails, tailRecord{ID: t.ID, Ingest: t.Ingest, Filters: t.Filters, Expires: stored(t.Expires)})
	}
	return r
}

func parseScript(accountID, name string, value []byte) (*PublishedWorker, error) {
	r, err := parseRecord[scriptRecord](value)
	if err != nil {
		return nil, err
	}
	w := &PublishedWorker{ID: r.ID, AccountID: accountID, Name: name, Subdomain: r.Subdomain, Previews: r.Previews, Versions: r.Versions}
	for _, t := range r.Tails {
		w.Tails = append(w.Tails, PublishedTail{ID: t.ID, Ingest: t.Ingest, Filters: t.Filters, Expires: loaded(t.Expires)})
	}
	return w, nil
}

// parseManifest reads the value of the record of a version.
func parseManifest(value []byte) (*Manifest, error) {
	r, err := parseRecord[manifestRecord](value)
	return &r.Manifest, err
}

// bytes is about the memory that a manifest takes.
func (m *Manifest) bytes() int {
	size := 1024 + len(m.Placement) + len(m.Other)
	if a := m.Assets; a != nil {
		size += 512 + len(a.Redirects) + len(a.Headers)
	}
	for _, f := range m.Modules {
		size += 128 + len(f.Name)
	}
	for _, b := range m.Bindings {
		size += 192 + len(b.Name) + len(b.Text) + len(b.JSON) + len(b.Sealed)
	}
	return size
}

// subdomainRecord is a subdomain as it is published.
type subdomainRecord struct {
	Format  int    `json:"format"`
	Account string `json:"account"`
}

func parseSubdomain(value []byte) (string, error) {
	r, err := parseRecord[subdomainRecord](value)
	return r.Account, err
}

// domainRecord is a custom domain as it is published.
type domainRecord struct {
	Format  int    `json:"format"`
	Account string `json:"account"`
	Script  string `json:"script"`
}

func parseDomain(value []byte) (domainRecord, error) { return parseRecord[domainRecord](value) }

// PublishedZone is what an edge knows of a zone.
type PublishedZone struct {
	ID, AccountID string
	Routes        []PublishedRoute // the more specific before others
}

// PublishedRoute is a route of a zone.
type PublishedRoute struct {
	ID      string
	Pattern RoutePattern
	Script  string // empty: no Worker runs here
}

// bytes is about the memory that a zone takes.
func (z *PublishedZone) bytes() int {
	size := 256
	for _, r := range z.Routes {
		size += 256 + len(r.Script) + 2*len(r.Pattern.String())
	}
	return size
}

// zoneRecord is a zone with its routes as it is published.
type zoneRecord struct {
	Format  int           `json:"format"`
	ID      string        `json:"id"`
	Account string        `json:"account"`
	Routes  []routeRecord `json:"routes,omitempty"`
}

type routeRecord struct {
	ID      string `json:"id"`
	Pattern string `json:"pattern"`
	Script  string `json:"script,omitempty"`
}

// parseZone refuses a zone with a route that this program does not understand:
// without it a request would go to the wrong place.
func parseZone(value []byte) (*PublishedZone, error) {
	r, err := parseRecord[zoneRecord](value)
	if err != nil {
		return nil, err
	}
	z := &PublishedZone{ID: r.ID, AccountID: r.Account}
	for _, route := range r.Routes {
		pattern, err := ParseRoutePattern(route.Pattern)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", route.ID, err)
		}
		z.Routes = append(z.Routes, PublishedRoute{ID: route.ID, Pattern: pattern, Script: route.Script})
	}
	slices.SortFunc(z.Routes, func(a, b PublishedRoute) int { return a.Pattern.Compare(b.Pattern) })
	return z, nil
}
