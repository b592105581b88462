package host

import (
	"context"
	"net/http"
	"strconv"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/assets"
)

// Limits of answers with static assets.
const (
	// MaxAssetURLBytes is the longest path and query that static assets answer.
	MaxAssetURLBytes = 16 << 10
	// MaxAssetBytesHeld is how many bytes of files are being sent at once.
	MaxAssetBytesHeld = 256 << 20
)

// assetsService is the name of the service behind a binding of static assets. No
// Worker can have it.
const assetsService = "@assets"

// A site is the static assets of a version.
type site struct {
	*assets.Site
	account string
	alone   bool // the version has no code
}

// newSite reads what static assets a version has; nil if it has none.
func (h *Host) newSite(ctx context.Context, account string, m *catalog.Manifest) (*site, error) {
	if m.Assets == nil {
		return nil, nil
	}
	files, err := h.config.Records.Assets(ctx, account, m.Assets.Set)
	if err != nil {
		return nil, err
	}
	find := func(path string) (assets.File, bool) {
		a, ok := files[path]
		return assets.File{Hash: a.Hash, Size: a.Size}, ok
	}
	return &site{assets.New(m.AssetOptions(), find), account, m.Main == ""}, nil
}

// sites returns the static assets of those versions that have some, by version.
func (h *Host) sites(versions []catalog.Share) map[string]*site {
	var all map[string]*site
	for _, s := range versions {
		value, ok := h.names.Load(s.VersionID)
		if !ok || value.(named).site == nil {
			continue
		}
		if all == nil {
			all = map[string]*site{}
		}
		all[s.VersionID] = value.(named).site
	}
	return all
}

// runs reports whether a version has code that the runtime knows.
func (a *active) runs(version string) bool {
	s := a.sites[version]
	return s == nil || !s.alone
}

// assetRequest is what static assets must know of a request.
func assetRequest(r *http.Request) assets.Request {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.EscapedPath()
	}
	return assets.Request{Method: r.Method, Host: hostOf(r.Host), Path: path, Query: r.URL.RawQuery, Header: r.Header}
}

// serveSite answers a request with the static assets of a version, unless it is for
// the code.
func (h *Host) serveSite(w http.ResponseWriter, r *http.Request, s *site) (done bool) {
	sent := assetRequest(r)
	if len(sent.Path)+len(sent.Query) > MaxAssetURLBytes {
		plain(w, http.StatusRequestURITooLong, "the URL of a Worker with static assets has at most 16 KiB")
		return true
	}
	if s.RunsWorker(&sent) {
		return false
	}
	h.giveAsset(w, r, s, &sent)
	return true
}

// serveBinding answers what the code of a version sends to its static assets.
func (h *Host) serveBinding(w http.ResponseWriter, r *http.Request, version string) {
	value, _ := h.names.Load(version)
	n, _ := value.(named)
	sent := assetRequest(r)
	switch {
	case n.site == nil:
		plain(w, http.StatusNotFound, "this version of the Worker has no static assets")
	case len(sent.Path)+len(sent.Query) > MaxAssetURLBytes:
		plain(w, http.StatusRequestURITooLong, "the URL of a static asset has at most 16 KiB")
	default:
		h.giveAsset(w, r, n.site, &sent)
	}
}

// giveAsset answers with a file, a redirect, or with nothing.
func (h *Host) giveAsset(w http.ResponseWriter, r *http.Request, s *site, sent *assets.Request) {
	a := s.Answer(sent)
	var file catalog.AssetContent
	if a.HasBody() {
		if h.assetBytes.Add(a.File.Size) > MaxAssetBytesHeld {
			h.assetBytes.Add(-a.File.Size)
			w.Header().Set("Retry-After", "1")
			plain(w, http.StatusServiceUnavailable, "too many files are being sent at once")
			return
		}
		defer h.assetBytes.Add(-a.File.Size)
		var err error
		if file, err = h.config.Records.Asset(r.Context(), s.account, a.File.Hash); err != nil {
			h.refuseAsset(w, r, err)
			return
		}
	}
	head := w.Header()
	a.Head(head, file.Type)
	for _, name := range []string{"Connection", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade"} {
		head.Del(name) // _headers can name any
	}
	if head["Content-Type"] == nil {
		head["Content-Type"] = nil // net/http would guess one
	}
	if head.Del("Content-Length"); a.Status != http.StatusNotModified {
		head.Set("Content-Length", strconv.Itoa(len(file.Content)))
	}
	w.WriteHeader(a.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(file.Content) // a client that is gone
	}
}

// refuseAsset answers when a file cannot be read.
func (h *Host) refuseAsset(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	h.config.Logger.ErrorContext(r.Context(), "read a static file", "host", r.Host, "path", r.URL.Path, "error", err)
	w.Header().Set("Retry-After", "1")
	plain(w, http.StatusServiceUnavailable, "the file cannot be read at the moment")
}
