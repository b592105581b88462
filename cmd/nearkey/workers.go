package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/api/binding"
	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/internal/bounded"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/cache"
	"github.com/nearkey/nearkey/workerd/cron"
	"github.com/nearkey/nearkey/workerd/egress"
	"github.com/nearkey/nearkey/workerd/host"
	"github.com/nearkey/nearkey/workerd/tail"
)

// workers is what runs Workers in this process.
type workers struct {
	service   *service
	authority authority
	runtime   *workerd.Runtime
	host      *host.Host
	keys      *catalog.Keys
	listener  net.Listener // nil: Workers answer nobody here
	mute      error        // why there is no listener, though nobody said so
	idle      error        // why no Worker can be started

	hub   *tail.Hub       // of a centre
	crons *cron.Scheduler // of a centre
}

// workerKeysName is the file of the data directory with the keys of secrets.
const workerKeysName = "workers-keys"

// The sockets between this process and those of Workers, in their folder.
const (
	socketKV       = "kv.sock"
	socketEgress   = "egress.sock"
	socketCache    = "cache.sock"
	socketServices = "services.sock"
	socketEvents   = "events.sock"
)

// openWorkers opens what runs Workers on the records that a tier gives; nil if this
// process runs none. An edge has no catalog.
func (s *service) openWorkers(ctx context.Context, tier *edge.Tier, authority authority, cat *catalog.Catalog, rules *kv.Rules) (*workers, error) {
	if !s.config.runsWorkers() {
		return nil, nil
	}
	w := &workers{service: s, authority: authority}
	err := w.listen(ctx)
	if err != nil {
		return nil, err
	}
	if w.keys, err = s.workerKeys(); err != nil {
		return nil, err
	}
	dir, err := s.config.socketDir()
	if err != nil {
		return nil, err
	}
	c := &s.config.Workers
	w.runtime = workerd.New(workerd.Options{
		Path: c.Runtime, Dir: dir, Place: colo(s.config.Fleet.PoP),
		KV: filepath.Join(dir, socketKV), Services: filepath.Join(dir, socketServices),
		Cache: filepath.Join(dir, socketCache), Events: filepath.Join(dir, socketEvents), Egress: filepath.Join(dir, socketEgress),
		HeapBytes: int64(c.HeapBytes), MemoryBytes: int64(c.ProcessBytes), CPU: time.Duration(c.CPU),
		Idle: time.Duration(c.Idle), Processes: int(c.Processes), RequireIsolation: bool(c.RequireIsolation),
		Output: func(name, version string, line []byte) { w.host.Output(name, version, line) },
		Logger: s.logger,
	})
	config := host.Config{
		Records: catalog.NewWorkerReplica(tier, catalog.ReplicaOptions{MaxStale: tierStale(s.config)}),
		Runtime: w.runtime, Keys: w.keys, Domain: c.Domain, Origin: s.config.origin, Logger: s.logger,
	}
	if err := w.follow(&config, cat); err != nil {
		return nil, err
	}
	w.host = host.New(config)
	s.work = append(s.work, w.runtime.Run, w.host.Run)
	err = w.runtime.Ready() // takes the folder, before anything in it is
	if errors.Is(err, workerd.ErrInUse) {
		return nil, usagef("%s: %w; give this one another directory with --data", dir, err)
	}
	if err := w.attend(ctx, dir, tier, rules); err != nil {
		return nil, err
	}
	w.idle = err
	workerMetrics(s.metrics, w.runtime, w.host)
	s.workers = w
	return w, nil
}

// follow has what Workers do told to those who follow them: a centre has them, and an
// edge knows the way to it. A centre fires crons, too.
func (w *workers) follow(config *host.Config, cat *catalog.Catalog) error {
	s := w.service
	if cat == nil {
		base, err := apiFarURL(s.config.Fleet.APIFar)
		if err != nil {
			return usagef("setting fleet.api_far: %w", err)
		}
		courier := tail.NewCourier(tail.CourierOptions{
			Deliver: tail.DeliverTo(strings.TrimSuffix(base.String(), "/")+"/client/v4", &http.Client{Transport: s.apiTransport()}),
			Logger:  s.logger,
		})
		config.Deliver = func(d host.Delivery) { courier.Publish(d.AccountID, d.Worker, d.Tails, d.Event) }
		s.metrics.Counter("nearkey_workers_tail_undelivered_total", "Events that did not come to the followers of Workers.",
			func() float64 { return float64(courier.Dropped()) })
		s.work = append(s.work, courier.Run)
		return nil
	}
	w.hub = tail.NewHub(tail.Options{Tails: cat, Logger: s.logger})
	config.Deliver = func(d host.Delivery) { w.hub.Publish(d.AccountID, d.Worker, d.Event) }
	config.Log = w.hub.Log
	w.crons = cron.New(cron.Options{Catalog: cat, Fire: w.fire, Holder: catalog.NewSecret(), Logger: s.logger})
	cronMetrics(s.metrics, w.crons)
	tailMetrics(s.metrics, w.hub)
	s.work = append(s.work, w.hub.Run, w.crons.Run)
	return nil
}

// fire calls the scheduled handler of a Worker.
func (w *workers) fire(ctx context.Context, accountID, worker, cron string, at time.Time) (outcome string, noRetry bool, err error) {
	o, err := w.host.Scheduled(ctx, accountID, worker, cron, at)
	return o.Outcome, o.NoRetry, err
}

// listen opens the address of Workers. One that nobody chose and somebody has is no
// reason not to serve KV.
func (w *workers) listen(ctx context.Context) error {
	s := w.service
	if s.config.workersListen() == "" {
		return nil
	}
	l, err := listen(ctx, s.config.workersListen(), "--workers-listen", " (port 0: any, off: none)")
	if err != nil {
		if s.config.Workers.Listen != "" {
			return err
		}
		w.mute = err
		return nil
	}
	w.listener = bounded.New(l, maxConnections, s.logger)
	if s.certificate != nil {
		w.listener = tls.NewListener(w.listener, s.certificate)
	}
	return nil
}

// maxWorkerHeadBytes is the greatest head of a request to a Worker.
const maxWorkerHeadBytes = 128 << 10

// enter has Workers answer at their address. It comes after the API, whose address
// is the one that is announced.
func (w *workers) enter() {
	if w == nil {
		return
	}
	if w.mute != nil {
		w.service.logger.Warn("Workers do not answer; everything else does", "reason", w.mute)
	}
	if w.idle != nil {
		w.service.logger.Warn("Workers do not run; everything else does", "reason", w.idle,
			"remedy", "install the npm package workerd, and name its binary with --workers-runtime, or put it into PATH")
	}
	if w.listener != nil {
		server := w.service.httpServer(w.host)
		server.ReadTimeout, server.MaxHeaderBytes = 0, maxWorkerHeadBytes // the runtime has patience as long as a body flows
		w.service.enter(w.listener, httpServer{server, nil})
	}
}

// workerKeys reads the keys that open secrets of Workers. An edge has none of its
// own: without them it runs Workers that have no secrets.
func (s *service) workerKeys() (*catalog.Keys, error) {
	file := s.config.Workers.KeyFile
	switch {
	case file == "" && s.config.Fleet.Role == roleEdge:
		return nil, nil
	case file == "":
		keys, err := catalog.CreateKeys(filepath.Join(s.config.Data, workerKeysName))
		if err != nil {
			return nil, fmt.Errorf("keys of secrets: %w", err)
		}
		return keys, nil
	}
	keys, err := catalog.ReadKeys(file)
	if err != nil {
		return nil, usagef("setting workers.key_file: %w", err)
	}
	return keys, nil
}

// attend opens the sockets that Workers reach.
func (w *workers) attend(ctx context.Context, dir string, tier *edge.Tier, rules *kv.Rules) error {
	s := w.service
	cached := cache.New(cache.Config{
		Identify: func(token string) (string, bool) {
			account, _, _, ok := w.host.Owner(token)
			return account, ok
		},
		Spend: func(token string) bool { return w.runtime.Spend(token, workerd.Subrequest) },
		Bytes: int64(s.config.Workers.CacheBytes), Logger: s.logger,
	})
	cacheMetrics(s.metrics, cached)
	ranges, hosts, err := s.config.Workers.allowed()
	if err != nil {
		return usagef("setting workers.egress_allow: %w", err)
	}
	out := egress.New(egress.Config{
		Identify: func(token string) (string, bool) {
			caller, ok := w.runtime.Identify(token, "")
			return caller.Name, ok
		},
		Peer:   w.runtime.Peer,
		Spend:  func(token string) bool { return w.runtime.Spend(token, workerd.Subrequest) },
		Local:  w.host.Local,
		Origin: s.config.origin,
		Policy: egress.Policy(s.config.Workers.Egress), Allow: ranges, AllowHosts: hosts, Logger: s.logger,
	})
	for name, server := range map[string]answerer{
		socketKV: binding.New(binding.Config{
			Identify: func(token, ns string) (binding.Space, error) {
				return w.space(context.WithoutCancel(ctx), tier, rules, token, ns)
			},
			Spend:  func(token string) bool { return w.runtime.Spend(token, workerd.KVOperation) },
			Limits: rules.Limits, Near: tier, MaxAge: time.Duration(s.config.Fleet.MaxAge),
			HeldBytes: s.memory.door, Logger: s.logger, Metrics: s.metrics,
		}),
		socketCache:    cached,
		socketEgress:   out,
		socketServices: s.inner(w.host.Services()),
		socketEvents:   s.inner(w.host.Events()),
	} {
		l, err := listenSocket(ctx, filepath.Join(dir, name))
		if err != nil {
			return err
		}
		s.attend(l, server)
	}
	return nil
}

// inner serves a handler to our own processes: workerd closes what it does not use,
// and a Worker may take its time.
func (s *service) inner(handler http.Handler) httpServer {
	server := s.httpServer(handler)
	server.ReadTimeout, server.IdleTimeout, server.MaxHeaderBytes = 0, time.Hour, maxWorkerHeadBytes
	return httpServer{server, nil}
}

// errNotBound: the runtime tells who asks for what; nobody else knows the token.
var errNotBound = errors.New("the namespace is not bound to the Worker")

// space is the namespace behind a binding, if it still exists.
func (w *workers) space(ctx context.Context, tier *edge.Tier, rules *kv.Rules, token, ns string) (binding.Space, error) {
	if _, ok := w.runtime.Identify(token, ns); !ok {
		return binding.Space{}, errNotBound
	}
	account, _, _, ok := w.host.Owner(token)
	id, err := kv.ParseNamespaceID(ns)
	if err != nil || !ok {
		return binding.Space{}, errNotBound
	}
	if _, err := w.authority.Namespace(ctx, account, id); err != nil {
		return binding.Space{}, err
	}
	return binding.Space{ID: id, Namespace: kv.NewNamespace(tier, id, rules)}, nil
}

// rest is what the API needs of Workers.
func (w *workers) rest() *rest.Workers {
	if w == nil {
		return nil
	}
	return &rest.Workers{
		Keys: w.keys, Domain: w.domain(), Scheme: w.scheme(), Check: w.check, Tails: w.hub, Fire: w.crons.Fire,
	}
}

// check starts a Worker once.
func (w *workers) check(ctx context.Context, b rest.Bundle) (rest.Started, error) {
	made, err := host.Worker(&b.Manifest, b.Modules, b.Secrets)
	if err != nil {
		return rest.Started{}, &rest.StartError{Text: err.Error()}
	}
	made.Name, made.Version = b.AccountID+"/"+b.Name, "check"
	report, err := w.runtime.Check(ctx, made)
	var fault *workerd.StartError
	switch {
	case errors.As(err, &fault):
		return rest.Started{}, &rest.StartError{Text: fault.Text}
	case errors.Is(err, workerd.ErrMissing):
		return rest.Started{}, fmt.Errorf("%w: %w", rest.ErrNoRuntime, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return rest.Started{}, fmt.Errorf("%w: %w", kv.ErrFull, err)
	}
	return rest.Started{Handlers: report.Handlers, NamedHandlers: report.NamedHandlers, Took: report.Took}, err
}

// url is where the Workers of a subdomain answer, each below a name of its own.
func (w *workers) url(subdomain string) string {
	return w.scheme() + "://" + subdomain + "." + w.domain()
}

func (w *workers) scheme() string {
	if w.service.certificate != nil {
		return "https"
	}
	return "http"
}

// domain is the domain of Workers with the port that they have here.
func (w *workers) domain() string {
	if w.listener == nil {
		return w.service.config.Workers.Domain
	}
	_, port, _ := net.SplitHostPort(w.listener.Addr().String()) // of a listener
	return net.JoinHostPort(w.service.config.Workers.Domain, port)
}

// greeting tells a person where Workers answer, if they do.
func (w *workers) greeting() string {
	if w == nil || w.listener == nil || w.runtime.Ready() != nil {
		return ""
	}
	return fmt.Sprintf("\nWorkers answer on %s: 'wrangler deploy' puts the Worker NAME at\n%s://NAME.dev.%s\n", w.listener.Addr(), w.scheme(), w.domain())
}

// changed tells Workers what the tier was told.
func (w *workers) changed(changes []kv.Change) {
	if w != nil {
		w.host.Changed(changes)
	}
}

// origin is where the server of a host lives: that of its own name, or of the
// longest "*." name above it.
func (c *Config) origin(host string) (*url.URL, bool) {
	best, length := "", -1
	for _, o := range c.Origins {
		name := strings.ToLower(o.Host)
		suffix, wild := strings.CutPrefix(name, "*")
		switch {
		case name == host:
			best, length = o.URL, len(name)+1
		case wild && strings.HasSuffix(host, suffix) && len(suffix) > length:
			best, length = o.URL, len(suffix)
		}
	}
	if length < 0 {
		return nil, false
	}
	u, err := url.Parse(best)
	if err != nil {
		panic("nearkey: the URL of an origin was checked: " + err.Error())
	}
	return u, true
}

// colo is the name of a point of presence as CF-Ray and request.cf.colo have it.
func colo(pop string) string {
	letters := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return -1
	}, pop)
	return letters[:min(len(letters), 8)]
}
