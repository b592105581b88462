package admin

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Gateway is the providers as one store, as far as their comparison and repair go.
type Gateway interface {
	// Repair returns what goes on now.
	Repair() Repair
	// Verify compares the providers and returns what differs; each is told how far
	// it has come.
	Verify(ctx context.Context, opts VerifyOptions, each func(VerifyProgress)) (Drift, error)
	// Crawl compares everything once and repairs what differs.
	Crawl(ctx context.Context) error
}

// Providers are what a gateway stands on.
type Providers interface {
	// Change makes one of the changes of a provider. An error of no other kind means
	// that it cannot be done as things are.
	Change(ctx context.Context, name, change string, how ProviderRequest) error
}

// The changes of a provider.
const (
	ChangeFill     = "fill"     // write to it and copy into it what it lacks, and do not ask it
	ChangePromote  = "promote"  // let it answer
	ChangeRemove   = "remove"   // do not use it any more
	ChangeDistrust = "distrust" // do not believe it alone until it was compared with the others
)

// providerChanges are all there are.
var providerChanges = []string{ChangeFill, ChangePromote, ChangeRemove, ChangeDistrust}

// Repair is what providers do and how far their repair has come.
type Repair struct {
	Providers []Provider `json:"providers"`
	Queue     Queue      `json:"queue"`
	Crawl     Crawl      `json:"crawl"`
}

// Provider is what is known of a provider.
type Provider struct {
	Name           string     `json:"name"`
	State          string     `json:"state"` // active, filling or removed
	Up             bool       `json:"up"`
	Since          *time.Time `json:"since,omitempty"` // when it went up or down; nil: it has been so from the start
	Error          string     `json:"error,omitempty"` // why it is down
	Trusted        bool       `json:"trusted"`         // its answers are believed alone
	Filled         bool       `json:"filled"`          // it can be promoted
	Queued         int        `json:"queued"`          // keys to be repaired in it
	Late           int        `json:"late"`            // calls that go on after their answer
	LatencySeconds float64    `json:"latency_seconds"`
	Calls          uint64     `json:"calls"`
	Failures       uint64     `json:"failures"`
	Timeouts       uint64     `json:"timeouts"`
	Skipped        uint64     `json:"skipped"`  // calls that were not made because it was down
	Repaired       uint64     `json:"repaired"` // records that were put into it
}

// Queue is the keys that are known to differ, or may.
type Queue struct {
	Depth         int     `json:"depth"`
	OldestSeconds float64 `json:"oldest_seconds"`
	Dirty         int     `json:"dirty"` // namespaces that wait to be compared
	Enqueued      uint64  `json:"enqueued"`
	Repaired      uint64  `json:"repaired"`
	Dropped       uint64  `json:"dropped"` // left to the comparison of their namespace
}

// Crawl is how far the comparison of everything has come.
type Crawl struct {
	Running   bool       `json:"running"`
	Reason    string     `json:"reason,omitempty"`
	Namespace string     `json:"namespace,omitempty"`
	Key       string     `json:"key,omitempty"`
	Compared  uint64     `json:"compared"`
	Drift     uint64     `json:"drift"`
	Repaired  uint64     `json:"repaired"`
	Forgotten uint64     `json:"forgotten"` // deletions that need not be remembered any more
	Started   *time.Time `json:"started,omitempty"`
	Finished  *time.Time `json:"finished,omitempty"` // the last one that came to its end
	Error     string     `json:"error,omitempty"`    // why the last one ended early
}

// VerifyOptions say what is compared.
type VerifyOptions struct {
	Namespaces []kv.NamespaceID // nil: all
	Values     bool             // values too, not only versions
	Repair     bool             // what differs
	Rate       int              // keys a second; 0: as the gateway is configured
}

// VerifyProgress is how far a comparison has come.
type VerifyProgress struct {
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
	Drift     Drift  `json:"drift"`
}

// Drift is what differs between providers.
type Drift struct {
	Compared    uint64            `json:"compared"`
	Missing     uint64            `json:"missing"` // keys that a provider lacks
	Older       uint64            `json:"older"`   // of which a provider has an older version
	Content     uint64            `json:"content"` // of equal version and other content
	Values      uint64            `json:"values"`  // whose value is missing or damaged somewhere
	PerProvider map[string]uint64 `json:"per_provider,omitempty"`
	Examples    []Difference      `json:"examples,omitempty"`
}

// Total is how many keys differ.
func (d Drift) Total() uint64 { return d.Missing + d.Older + d.Content + d.Values }

// Difference is a key that differs, with the version that each provider has; empty:
// none.
type Difference struct {
	Namespace string            `json:"namespace"`
	Key       string            `json:"key"`
	Versions  map[string]string `json:"versions"`
}

// VerifyRequest is the body of POST /verify.
type VerifyRequest struct {
	Namespaces []string `json:"namespaces,omitempty"`
	Values     bool     `json:"values,omitempty"`
	Repair     bool     `json:"repair,omitempty"`
	Rate       int      `json:"rate,omitempty"`
}

// ProviderRequest is the body of POST /providers/NAME/CHANGE.
type ProviderRequest struct {
	Force bool `json:"force,omitempty"` // remove it although it alone has keys
	Wipe  bool `json:"wipe,omitempty"`  // empty it before it is filled
}

// errNoGateway: the records are in a store of the server's own.
var errNoGateway = notFound("this server keeps its records in one store and has no providers; they are configured as [[provider]]")

func (h *Handler) getRepair(w http.ResponseWriter, _ *http.Request) error {
	if h.config.Gateway == nil {
		return errNoGateway
	}
	h.Answer(w, h.config.Gateway.Repair())
	return nil
}

func (h *Handler) crawl(w http.ResponseWriter, r *http.Request) error {
	gateway := h.config.Gateway
	if gateway == nil {
		return errNoGateway
	}
	h.config.Logger.InfoContext(r.Context(), "admin: the providers are compared")
	return h.Work(w, r, func(ctx context.Context, progress func(any)) (any, error) {
		defer watch(ctx, func() { progress(gateway.Repair().Crawl) })()
		if err := gateway.Crawl(ctx); err != nil {
			return nil, err
		}
		return gateway.Repair().Crawl, nil
	})
}

// watch calls look again and again until what it returns is called.
func watch(ctx context.Context, look func()) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				look()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (h *Handler) verify(w http.ResponseWriter, r *http.Request) error {
	gateway := h.config.Gateway
	if gateway == nil {
		return errNoGateway
	}
	var asked VerifyRequest
	if err := read(w, r, &asked); err != nil {
		return err
	}
	if n := len(asked.Namespaces); n > maxNamespacesAsked {
		return invalid("%d namespaces; want at most %d, or none for all", n, maxNamespacesAsked)
	}
	if asked.Rate < 0 {
		return invalid("a rate of %d keys a second; want 1 or more, or 0 as it is configured", asked.Rate)
	}
	opts := VerifyOptions{Values: asked.Values, Repair: asked.Repair, Rate: asked.Rate}
	for _, text := range asked.Namespaces {
		id, err := parseNamespace(text)
		if err != nil {
			return err
		}
		opts.Namespaces = append(opts.Namespaces, id)
	}
	h.config.Logger.InfoContext(r.Context(), "admin: the providers are compared", "namespaces", asked.Namespaces, "values", asked.Values, "repair", asked.Repair)
	return h.Work(w, r, func(ctx context.Context, progress func(any)) (any, error) {
		return gateway.Verify(ctx, opts, func(p VerifyProgress) { progress(p) })
	})
}

func (h *Handler) changeProvider(w http.ResponseWriter, r *http.Request) error {
	name, change := r.PathValue("name"), r.PathValue("change")
	if h.config.Gateway == nil || h.config.Providers == nil {
		return errNoGateway
	}
	if !slices.Contains(providerChanges, change) {
		return notFound("a provider cannot be told to %s", change)
	}
	var asked ProviderRequest
	if err := read(w, r, &asked); err != nil {
		return err
	}
	known := slices.ContainsFunc(h.config.Gateway.Repair().Providers, func(p Provider) bool { return p.Name == name })
	if !known {
		return notFound("there is no provider %q", name)
	}
	if err := h.config.Providers.Change(r.Context(), name, change, asked); err != nil {
		return Refused(err)
	}
	h.config.Logger.WarnContext(r.Context(), "admin: a provider was changed", "provider", name, "change", change, "force", asked.Force, "wipe", asked.Wipe)
	for _, p := range h.config.Gateway.Repair().Providers {
		if p.Name == name {
			h.Answer(w, p)
			return nil
		}
	}
	h.Answer(w, Provider{Name: name, State: "removed"})
	return nil
}
