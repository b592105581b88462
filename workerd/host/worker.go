package host

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/workerd"
)

// worker is a Worker that is in the runtime, or on its way there.
type worker struct {
	id     id
	used   atomic.Int64           // when it was asked for, ns since 1970
	active atomic.Pointer[active] // what answers; nil: nothing was ready yet
	tally  workerd.Tally          // of all its versions

	mu      sync.Mutex // guards what follows
	flight  *flight    // a preparation that is under way
	failed  *catalog.PublishedWorker
	err     error // why failed did not start here
	retryAt time.Time
}

// active is what answers for a Worker: never changed.
type active struct {
	record *catalog.PublishedWorker
	shares []catalog.Share
	sites  map[string]*site // static assets, by version that has them
	traced bool             // its events are wanted
}

// flight is a preparation that several requests may wait for.
type flight struct {
	done chan struct{}
	err  error // once done
}

// maxLooks bounds how often a request looks for the newest version: deploys may come
// faster than versions start.
const maxLooks = 4

// version chooses the version that answers a request, and its static assets, if it
// has any. After a deploy it waits a moment for the new one; if the one that was
// being prepared is not the newest any more, it looks again.
func (h *Host) version(ctx context.Context, to target, header http.Header) (string, *site, error) {
	var late <-chan time.Time
	for look := 1; ; look++ {
		wk := h.worker(to.worker)
		record, err := to.record, error(nil)
		if record == nil || look > 1 {
			record, err = h.config.Records.Worker(ctx, to.worker.account, to.worker.name)
		}
		if errors.Is(err, catalog.ErrNotFound) {
			h.unload(wk)
			return "", nil, err
		}
		wk.used.Store(h.config.Now().UnixNano())
		a := wk.active.Load()
		switch {
		case a != nil && (err != nil || a.record == record):
			version, site := chosen(a, to.worker.name, header)
			return version, site, nil
		case err != nil:
			return "", nil, err
		}
		f := h.prepare(ctx, wk, record)
		if a != nil && late == nil {
			timer := time.NewTimer(SwitchWait)
			defer timer.Stop()
			late = timer.C
		}
		done, err := await(ctx, f, late)
		if done && (err == nil && look < maxLooks || look == 1) { // what failed may be the one before, too
			continue
		}
		if a := wk.active.Load(); a != nil && ctx.Err() == nil {
			version, site := chosen(a, to.worker.name, header)
			return version, site, nil
		}
		if err == nil { // deleted meanwhile
			err = fmt.Errorf("worker %s: %w", to.worker.name, catalog.ErrNotFound)
		}
		return "", nil, err
	}
}

// await waits for a preparation; false: it is late, or nobody waits any more.
func await(ctx context.Context, f *flight, late <-chan time.Time) (done bool, err error) {
	select {
	case <-f.done:
		return true, f.err
	case <-late:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Headers by which a client chooses among versions that are deployed at once.
const (
	headerOverrides = "Cloudflare-Workers-Version-Overrides" // name="version", name="version"
	headerKey       = "Cloudflare-Workers-Version-Key"       // requests with one key get one version
)

// chosen is the version that is chosen, and its static assets, if it has any.
func chosen(a *active, name string, header http.Header) (string, *site) {
	version := choose(a, name, header)
	return version, a.sites[version]
}

// choose divides the requests of a Worker by the percentages of its versions.
func choose(a *active, name string, header http.Header) string {
	if len(a.shares) == 1 {
		return a.shares[0].VersionID
	}
	for pair := range strings.SplitSeq(header.Get(headerOverrides), ",") {
		script, version, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if version = strings.Trim(version, `"`); script != name {
			continue
		}
		for _, s := range a.shares {
			if s.VersionID == version {
				return version
			}
		}
	}
	at := rand.Float64() * 100
	if key := header.Get(headerKey); key != "" {
		sum := fnv.New64a()
		_, _ = sum.Write([]byte(key)) // never fails
		at = float64(sum.Sum64()%10_000) / 100
	}
	for _, s := range a.shares {
		if at -= s.Percentage; at < 0 {
			return s.VersionID
		}
	}
	return a.shares[len(a.shares)-1].VersionID
}

// worker returns the state of a Worker, which is made if there is none.
func (h *Host) worker(of id) *worker {
	h.mu.Lock()
	defer h.mu.Unlock()
	wk := h.workers[of]
	if wk == nil {
		wk = &worker{id: of}
		h.workers[of] = wk
	}
	return wk
}

// unload takes a Worker out of the runtime. What is in flight in it ends there.
func (h *Host) unload(wk *worker) {
	h.mu.Lock()
	if h.workers[wk.id] == wk {
		delete(h.workers, wk.id)
	}
	h.mu.Unlock()
	wk.mu.Lock()
	a := wk.active.Swap(nil)
	wk.mu.Unlock()
	if a != nil {
		h.drop(a.shares, nil)
	}
}

// drop takes versions out of the runtime, but for those to keep.
func (h *Host) drop(versions, keep []catalog.Share) {
	for _, s := range versions {
		if !has(keep, s.VersionID) {
			h.config.Runtime.Remove(s.VersionID)
		}
	}
}

func has(shares []catalog.Share, version string) bool {
	for _, s := range shares {
		if s.VersionID == version {
			return true
		}
	}
	return false
}

// prepare begins to make a Worker what its record says, unless that is under way,
// or did not work a moment ago. It goes on when the request that began it is over.
func (h *Host) prepare(ctx context.Context, wk *worker, record *catalog.PublishedWorker) *flight {
	wk.mu.Lock()
	defer wk.mu.Unlock()
	if wk.flight != nil {
		return wk.flight
	}
	f := &flight{done: make(chan struct{})}
	if wk.failed == record && h.config.Now().Before(wk.retryAt) {
		f.err = wk.err
		close(f.done)
		return f
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		f.err = errEnding
		close(f.done)
		return f
	}
	wk.flight = f
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), prepareTimeout)
	h.jobs.Go(func() {
		select {
		case <-h.ending:
			cancel()
		case <-f.done:
		}
	})
	h.jobs.Go(func() {
		defer cancel()
		// Who asked may have read the record before it became another one.
		if newest, err := h.config.Records.Worker(ctx, wk.id.account, wk.id.name); err == nil {
			record = newest
		}
		err := h.become(ctx, wk, record)
		wk.mu.Lock()
		defer wk.mu.Unlock()
		wk.failed, wk.err = nil, nil
		if err != nil {
			wk.failed, wk.err, wk.retryAt = record, err, h.config.Now().Add(retryAfter)
			if !errors.Is(ctx.Err(), context.Canceled) { // the host has not ended
				h.config.Logger.ErrorContext(ctx, "prepare a Worker", "worker", wk.id.name, "account", wk.id.account, "error", err)
			}
		}
		f.err, wk.flight = err, nil
		close(f.done)
	})
	return f
}

var errEnding = errors.New("the host has ended")

// become makes a Worker what its record says. If that fails it stays what it is.
func (h *Host) become(ctx context.Context, wk *worker, record *catalog.PublishedWorker) error {
	if len(record.Versions) == 0 {
		return fmt.Errorf("worker %s: no version of it is deployed: %w", wk.id.name, catalog.ErrNotFound)
	}
	was := wk.active.Load()
	if was != nil && was.record == record {
		return nil
	}
	var old []catalog.Share
	if was != nil {
		old = was.shares
	}
	var added []catalog.Share
	for _, s := range record.Versions {
		if has(old, s.VersionID) {
			continue
		}
		err := h.load(ctx, wk, s.VersionID, was != nil)
		if err != nil {
			h.drop(added, nil)
			return fmt.Errorf("version %s: %w", s.VersionID, err)
		}
		added = append(added, s)
	}
	made := &active{record: record, shares: record.Versions, sites: h.sites(record.Versions), traced: len(h.tails(record)) > 0}
	for _, s := range record.Versions {
		if traced := made.traced; made.runs(s.VersionID) && traced != (was != nil && was.traced && has(old, s.VersionID)) {
			if err := h.config.Runtime.Trace(ctx, s.VersionID, traced); err != nil {
				h.config.Logger.WarnContext(ctx, "follow a Worker", "worker", wk.id.name, "on", traced, "error", err)
			}
		}
	}
	h.activate(wk, was, made)
	return nil
}

// activate makes a the one that answers, unless the Worker was unloaded meanwhile.
func (h *Host) activate(wk *worker, was, a *active) {
	h.mu.Lock()
	current := h.workers[wk.id] == wk
	if current {
		wk.active.Store(a)
	}
	h.mu.Unlock()
	if !current {
		h.drop(a.shares, nil)
	}
	if was != nil {
		h.drop(was.shares, a.shares)
	}
}

// load puts a version into the runtime, and starts it if there is one before it
// that goes on answering meanwhile.
func (h *Host) load(ctx context.Context, wk *worker, version string, start bool) error {
	of := wk.id
	manifest, err := h.config.Records.Manifest(ctx, version)
	if err != nil {
		return err
	}
	site, err := h.newSite(ctx, of.account, manifest)
	if err != nil {
		return err
	}
	if site != nil && site.alone {
		h.names.Store(version, named{id: of, site: site})
		return nil
	}
	modules := make(map[string][]byte, len(manifest.Modules))
	for _, m := range manifest.Modules {
		if modules[m.Name], err = h.config.Records.Module(ctx, m.Hash); err != nil {
			return fmt.Errorf("module %s: %w", m.Name, err)
		}
	}
	secrets, err := OpenSecrets(h.config.Keys, of.account, of.name, manifest)
	if err != nil {
		return err
	}
	w, err := Worker(manifest, modules, secrets)
	if err != nil {
		return err
	}
	w.Name, w.Version, w.Label, w.Tally = version, version, of.name, &wk.tally
	h.names.Store(version, named{id: of, site: site})
	if !start {
		return h.config.Runtime.Load(w)
	}
	return h.config.Runtime.Deploy(ctx, w)
}

// tails are the tails of a Worker that are open.
func (h *Host) tails(record *catalog.PublishedWorker) []catalog.PublishedTail {
	now := h.config.Now()
	open := make([]catalog.PublishedTail, 0, len(record.Tails))
	for _, t := range record.Tails {
		if now.Before(t.Expires) {
			open = append(open, t)
		}
	}
	return open
}

// refresh prepares what there is word of for Workers that are loaded, so that no
// request has to wait for it.
func (h *Host) refresh(ctx context.Context) {
	for _, wk := range h.loaded() {
		a := wk.active.Load()
		if a == nil {
			continue
		}
		record, err := h.config.Records.Worker(ctx, wk.id.account, wk.id.name)
		switch {
		case errors.Is(err, catalog.ErrNotFound):
			h.unload(wk)
		case err == nil && record != a.record:
			h.prepare(ctx, wk, record)
		}
	}
}

// sweep unloads Workers that nobody asks for, and stops following those whose tails
// have expired.
func (h *Host) sweep(ctx context.Context) {
	now := h.config.Now()
	for _, wk := range h.loaded() {
		a := wk.active.Load()
		switch {
		case now.UnixNano()-wk.used.Load() > int64(ForgetAfter):
			h.unload(wk)
		case a != nil && a.traced && len(h.tails(a.record)) == 0:
			h.untrace(ctx, wk, a)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, value := range h.names.Range {
		version, n := key.(string), value.(named)
		if wk := h.workers[n.id]; wk != nil {
			if a := wk.active.Load(); a == nil || has(a.shares, version) {
				continue
			}
		}
		switch {
		case n.gone.IsZero():
			n.gone = now
			h.names.Store(version, n)
		case now.Sub(n.gone) > workerd.DefaultDrain+workerd.DefaultLinger:
			h.names.Delete(version)
		}
	}
}

// untrace stops following a Worker, unless it has become another meanwhile.
func (h *Host) untrace(ctx context.Context, wk *worker, a *active) {
	quiet := &active{record: a.record, shares: a.shares, sites: a.sites}
	if !wk.active.CompareAndSwap(a, quiet) {
		return
	}
	for _, s := range a.shares {
		if !a.runs(s.VersionID) {
			continue
		}
		if err := h.config.Runtime.Trace(ctx, s.VersionID, false); err != nil {
			h.config.Logger.WarnContext(ctx, "stop following a Worker", "worker", wk.id.name, "error", err)
		}
	}
}

func (h *Host) loaded() []*worker {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*worker, 0, len(h.workers))
	for _, wk := range h.workers {
		all = append(all, wk)
	}
	return all
}

// Scheduled calls the scheduled handler of a Worker.
func (h *Host) Scheduled(ctx context.Context, accountID, name, cron string, at time.Time) (workerd.Outcome, error) {
	version, _, err := h.version(ctx, target{worker: id{accountID, name}}, nil)
	if err != nil {
		return workerd.Outcome{}, err
	}
	return h.config.Runtime.Scheduled(ctx, version, cron, at)
}
