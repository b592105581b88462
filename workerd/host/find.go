package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/nearkey/nearkey/catalog"
)

// target is who answers a request: a Worker, an origin, or nobody.
type target struct {
	worker     id                       // no name: no Worker
	record     *catalog.PublishedWorker // of the Worker, if it was read to find it
	entrypoint string                   // of the Worker; empty: its default export
	origin     *url.URL
}

// find finds who answers for a URL, as Cloudflare does: a Worker's name on its
// subdomain, else the most specific route of the host's zone, else a custom domain,
// else the origin.
func (h *Host) find(ctx context.Context, scheme, host, path string) (target, error) {
	if labels, ok := strings.CutSuffix(host, h.suffix); ok {
		return h.findOnSubdomain(ctx, labels)
	}
	route, err := h.findRoute(ctx, scheme, host, path)
	if err != nil {
		return target{}, err
	}
	if route.found && route.worker.name != "" {
		return target{worker: route.worker}, nil
	}
	if !route.found {
		account, name, err := h.config.Records.Domain(ctx, host)
		if err == nil {
			return target{worker: id{account, name}}, nil
		}
		if !errors.Is(err, catalog.ErrNotFound) {
			return target{}, err
		}
	}
	if origin, ok := h.config.Origin(host); ok {
		return target{origin: origin}, nil
	}
	return target{}, nil
}

// findOnSubdomain finds the Worker of <name>.<subdomain>.
func (h *Host) findOnSubdomain(ctx context.Context, labels string) (target, error) {
	name, subdomain, ok := strings.Cut(labels, ".")
	if !ok || name == "" || subdomain == "" || strings.Contains(subdomain, ".") {
		return target{}, fmt.Errorf("host %s%s: %w", labels, h.suffix, catalog.ErrNotFound)
	}
	account, err := h.config.Records.Subdomain(ctx, subdomain)
	if err != nil {
		return target{}, err
	}
	published, err := h.config.Records.Worker(ctx, account, name)
	if err != nil {
		return target{}, err
	}
	if !published.Subdomain {
		return target{}, fmt.Errorf("worker %s does not answer on its subdomain: %w", name, catalog.ErrNotFound)
	}
	return target{worker: id{account, name}, record: published}, nil
}

// routed is what the routes of a zone say about a URL.
type routed struct {
	found  bool
	worker id // no name: the route says that no Worker runs
}

// findRoute looks for the zone of a host, the longest name first, and in it for the
// most specific route.
func (h *Host) findRoute(ctx context.Context, scheme, host, path string) (routed, error) {
	name := host
	for range maxLabels {
		zone, err := h.config.Records.Zone(ctx, name)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			return routed{}, err
		}
		if err == nil {
			for i := range zone.Routes { // the most specific first
				if route := &zone.Routes[i]; route.Pattern.Match(scheme, host, path) {
					return routed{true, id{zone.AccountID, route.Script}}, nil
				}
			}
			return routed{}, nil
		}
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = parent
	}
	return routed{}, nil
}

// Local finds the Worker that answers a URL which the Worker of another one
// fetches; nil: none does. A host's own routes are not for the requests of its own
// Workers, which go to the origin.
func (h *Host) Local(ctx context.Context, scheme, host, path, version string) http.Handler {
	to, err := h.find(ctx, scheme, hostOf(host), path)
	if err != nil || to.worker.name == "" {
		return nil
	}
	from, known := h.named(version)
	if !known || from == to.worker || from.account != to.worker.account && !strings.HasSuffix(hostOf(host), h.suffix) {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.run(w, r, to) })
}

// originKey is the context's key of the URL of the origin of a request.
type originKey struct{}

// newOrigin returns the proxy to the origins of hosts, for what no Worker answers.
func (h *Host) newOrigin() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			to := r.In.Context().Value(originKey{}).(*url.URL)
			r.SetURL(to)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
			for name := range r.Out.Header {
				if len(name) > 5 && strings.EqualFold(name[:5], "X-Nk-") {
					r.Out.Header.Del(name)
				}
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				h.config.Logger.WarnContext(r.Context(), "pass a request to its origin", "host", r.Host, "error", err)
			}
			plain(w, http.StatusBadGateway, "the origin of "+hostOf(r.Host)+" does not answer")
		},
	}
}
