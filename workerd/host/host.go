// Package host answers the requests of clients with Workers: it finds the Worker
// of a host and path, keeps the versions that are deployed ready in the runtime,
// and divides the requests among them.
//
// What it knows of Workers are published records, which it reads through the tier
// of its place. So it learns of a deploy as of any key, a request that comes after
// the word of it is answered by the new version, and without the control plane it
// goes on with what is near. A version that does not start here leaves the one
// before it in its place.
//
// It keeps nothing but what can be read again, and may lose it: the next request
// to a Worker then waits for its start.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/workerd"
)

// DefaultDomain is the domain of Workers on their subdomains.
const DefaultDomain = "workers.localhost"

// Limits and waits.
const (
	// MaxBodyBytes is the greatest body of a request whose length is told.
	MaxBodyBytes = 100 << 20
	// SwitchWait is how long a request that comes after a deploy waits for the new
	// version before the old one answers it.
	SwitchWait = time.Second
	// ForgetAfter is how long a Worker is kept that nobody asks for.
	ForgetAfter = time.Hour
	// maxLabels is how many labels of a host are looked at for its zone.
	maxLabels = 16

	prepareTimeout = 30 * time.Second
	retryAfter     = 2 * time.Second // after a version did not start here
	sweepEvery     = 5 * time.Second
	tellEvery      = time.Second // why requests are refused
)

// A Delivery is an event of a Worker's invocation on its way to those who follow
// its tail.
type Delivery struct {
	AccountID, Worker string
	Version           string
	Tails             []catalog.PublishedTail // never empty; not to be changed
	Event             json.RawMessage
}

// Config is what a Host stands on. Records, Runtime and Keys must be set.
type Config struct {
	Records *catalog.WorkerReplica
	Runtime *workerd.Runtime
	Keys    *catalog.Keys // to open the secrets of Workers
	Domain  string        // Workers answer at <name>.<subdomain>.<Domain>; empty: DefaultDomain

	// Origin tells where the server of a host lives that has routes here. Nil, or
	// false: nowhere.
	Origin func(host string) (*url.URL, bool)

	// Deliver takes the events of Workers with tails. It must not block.
	Deliver func(Delivery)
	// Log takes each line that a Worker logs, as workerd's JSON. It must not block,
	// and must not keep the line.
	Log func(accountID, worker, version string, line []byte)

	Logger *slog.Logger
	Now    func() time.Time
}

// Host is an http.Handler for requests of clients. All methods may be called at
// once.
type Host struct {
	config Config
	suffix string // a dot and the domain
	origin *httputil.ReverseProxy
	jobs   sync.WaitGroup // preparations; added to under mu, while not closed
	wake   chan struct{}
	ending chan struct{} // closed when Run ends
	told   atomic.Int64  // when it was last logged that a request is refused, ns since 1970
	names  sync.Map      // by version that is in the runtime, or was not long ago: named

	assetBytes atomic.Int64 // of static files that are being sent

	mu      sync.Mutex // guards what follows
	workers map[id]*worker
	closed  bool
}

// id says which Worker it is.
type id struct{ account, name string }

// New returns a Host. It starts nothing.
func New(config Config) *Host {
	if config.Domain == "" {
		config.Domain = DefaultDomain
	}
	if config.Origin == nil {
		config.Origin = func(string) (*url.URL, bool) { return nil, false }
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	h := &Host{
		config: config, suffix: "." + strings.ToLower(config.Domain),
		workers: map[id]*worker{}, wake: make(chan struct{}, 1), ending: make(chan struct{}),
	}
	h.origin = h.newOrigin()
	return h
}

// ServeHTTP answers a request of a client: by a Worker, by the origin of its host
// if there is one, or with a page that says that nobody is there.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength > MaxBodyBytes {
		plain(w, http.StatusRequestEntityTooLarge, "the body of a request has at most 100 MiB")
		return
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	target, err := h.find(r.Context(), scheme, hostOf(r.Host), r.URL.RequestURI())
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	h.serve(w, r, target)
}

// serve answers a request by what was found for it.
func (h *Host) serve(w http.ResponseWriter, r *http.Request, to target) {
	switch {
	case to.worker.name != "":
		h.run(w, r, to)
	case to.origin != nil:
		h.origin.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), originKey{}, to.origin)))
	default:
		plain(w, http.StatusNotFound, "no Worker answers for "+hostOf(r.Host)+": no route matches this address, and the host has no origin")
	}
}

// run has a request answered by a Worker. What is unloaded between the choice of a
// version and its call is found again.
func (h *Host) run(w http.ResponseWriter, r *http.Request, to target) {
	const tries = 3
	for range tries {
		version, site, err := h.version(r.Context(), to, r.Header)
		if err != nil {
			h.refuse(w, r, err)
			return
		}
		if site != nil && (to.entrypoint == "" || site.alone) && h.serveSite(w, r, site) {
			return
		}
		if h.config.Runtime.ServeEntrypoint(w, r, version, to.entrypoint) {
			return
		}
	}
	h.refuse(w, r, errUnloaded)
}

var errUnloaded = errors.New("the Worker was unloaded")

// refuse answers a request that finds no Worker.
func (h *Host) refuse(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case r.Context().Err() != nil:
	case errors.Is(err, catalog.ErrNotFound):
		plain(w, http.StatusNotFound, "there is no Worker at "+hostOf(r.Host))
	case errors.Is(err, kv.ErrUnavailable):
		h.tell(r, slog.LevelWarn, "find a Worker", err)
		w.Header().Set("Retry-After", "1")
		plain(w, http.StatusServiceUnavailable, "what is known of this host cannot be read at the moment")
	default:
		h.tell(r, slog.LevelError, "prepare a Worker", err)
		w.Header().Set("Retry-After", "1")
		plain(w, http.StatusServiceUnavailable, "the Worker cannot be started here; the server's log says why")
	}
}

// tell logs why a request is refused; of many at once it is one line.
func (h *Host) tell(r *http.Request, level slog.Level, doing string, err error) {
	now, told := h.config.Now().UnixNano(), h.told.Load()
	if since := time.Duration(now - told); since >= 0 && since < tellEvery || !h.told.CompareAndSwap(told, now) {
		return
	}
	h.config.Logger.Log(r.Context(), level, doing, "host", r.Host, "error", err)
}

// plain answers with a line of text.
func plain(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "private, no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) // a client that is gone
}

// hostOf is the host of a Host header: lower case, without port and final dot.
func hostOf(header string) string {
	host := header
	if name, _, err := net.SplitHostPort(header); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// Run prepares new versions as soon as there is word of them, and unloads what is
// not asked for. It returns nil when ctx ends and nothing is being prepared.
func (h *Host) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.wake:
			h.refresh(ctx)
		case <-tick.C:
			h.sweep(ctx)
		case <-ctx.Done():
			h.close()
			return nil
		}
	}
}

// close ends what is being prepared and lets nothing be begun.
func (h *Host) close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.ending)
	}
	h.mu.Unlock()
	h.jobs.Wait()
}

// Changed tells the host what its tier was told. It is called after the tier's.
func (h *Host) Changed(changes []kv.Change) {
	for i := range changes {
		if changes[i].Ref.Namespace == catalog.Workers {
			h.config.Records.Changed(changes)
			select {
			case h.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}
