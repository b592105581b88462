package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/internal/process"
	"github.com/nearkey/nearkey/internal/s3test"
)

const (
	edges    = 2
	maxAge   = 2 * time.Second // how old a copy may be that an edge answers with
	patience = time.Minute     // for what must happen in the end
)

// provider is a provider's servers and the lines to them.
type provider struct {
	name    string
	cluster *pgtest.Cluster // or
	single  *pgtest.Server
	blobs   *s3test.Server
	direct  string // URL of the database, past the lines
	url     string // over the lines

	rows     []*line
	blobLine *line
	disk     *disk // small, under the rows of a single server or the blobs of a cluster; nil: none
}

// nodes are the PostgreSQL servers.
func (p *provider) nodes() []*pgtest.Server {
	if p.cluster == nil {
		return []*pgtest.Server{p.single}
	}
	return append([]*pgtest.Server{p.cluster.Primary()}, p.cluster.Standbys()...)
}

func (p *provider) lines() []*line { return append(p.rows[:len(p.rows):len(p.rows)], p.blobLine) }

// world is everything that is started.
type world struct {
	options
	site   *site
	dir    string
	binary string
	began  time.Time

	a, b      *provider // b is nil if a is alone
	centre    *entry
	edges     []*entry
	account   string
	token     string
	namespace string
	wire      string // address

	sole  outages // of a provider that alone had some of what was acknowledged
	http  *http.Client
	watch watch
	load  *load // on all of this
}

// entry is where clients come in: the centre or an edge.
type entry struct {
	name    string
	address string
	data    string
	args    []string
	server  *process.Server

	outages outages
}

// outages are the times at which something was not there: an entry, or the centre
// behind it, from before it was killed until writes through it succeeded again.
type outages struct {
	mu  sync.Mutex // guards all
	all []outage
}

type outage struct{ from, to time.Time }

func (w *world) say(format string, args ...any) {
	at := "       "
	if !w.began.IsZero() {
		at = fmt.Sprintf("%6.1fs", time.Since(w.began).Seconds())
	}
	fmt.Fprintf(w.out, "%s  %s\n", at, fmt.Sprintf(format, args...))
}

func newWorld(ctx context.Context, s *site, o options) (*world, error) {
	w := &world{options: o, site: s,
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: answerTimeout}}
	dir, err := os.MkdirTemp("", "nearkey-chaos-")
	if err != nil {
		return nil, err
	}
	w.dir = dir
	s.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Fatalf("remove the files of the run: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // the user that runs PostgreSQL goes through
		return nil, err
	}
	w.binary, err = process.Build(ctx, dir)
	return w, err
}

// start starts the servers, the centre and the edges.
func (w *world) start(ctx context.Context) (err error) {
	began := time.Now()
	w.a = &provider{name: "a", cluster: pgtest.StartCluster(w.site, pgtest.ClusterOptions{Async: w.async})}
	w.a.direct = w.a.cluster.URL()
	kind := "quorum synchronous"
	if w.async {
		kind = "asynchronous"
	}
	w.say("provider a: PostgreSQL, a primary and two %s standbys, and an S3 server", kind)
	if err := w.equip(w.a, "objects"); err != nil {
		return err
	}
	if !w.alone {
		w.b = &provider{name: "b", single: pgtest.Start(w.site)}
		w.b.direct = w.b.single.URL()
		if err := w.equip(w.b, "rows"); err != nil {
			return err
		}
		w.say("provider b: one PostgreSQL and another S3 server; each behind a line that can be cut")
	}
	if err := w.serve(ctx); err != nil {
		return err
	}
	w.say("nearkey: a centre and %s; all started in %.1f s", plural(len(w.edges), "edge"), time.Since(began).Seconds())
	return nil
}

// equip starts a provider's S3 server and opens the lines. One of the two kinds of
// servers gets a small disk.
func (w *world) equip(p *provider, small string) (err error) {
	var config s3test.Config
	if canMount() {
		if p.disk, err = w.site.mount(filepath.Join(w.dir, "disk-"+p.name), diskBytes+int64(w.duration.Seconds())*diskBytesForSecond); err != nil {
			return err
		}
		if small == "objects" {
			config.Dir = filepath.Join(p.disk.dir, "objects")
		} else if err := p.useDisk(); err != nil {
			return err
		}
	}
	p.blobs = s3test.StartConfig(w.site, config)
	if p.blobLine, err = newLine(w.site, p.blobs.Address); err != nil {
		return err
	}
	p.url = p.direct
	for _, node := range p.nodes() {
		l, err := newLine(w.site, node.Address())
		if err != nil {
			return err
		}
		p.rows = append(p.rows, l)
		p.url = strings.Replace(p.url, node.Address(), l.address, 1)
	}
	return nil
}

// useDisk has the tables on the small disk. The log is elsewhere: a server that
// cannot write it ends, which another fault shows.
func (p *provider) useDisk() error {
	space := filepath.Join(p.disk.dir, "rows")
	if err := os.Mkdir(space, 0o700); err != nil {
		return err
	}
	p.single.OwnDir(space)
	p.single.Exec("create tablespace small location '"+space+"'", "alter role postgres set default_tablespace = small")
	return nil
}

// freeAddress is an address of this machine that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (w *world) file(name, text string) (string, error) {
	path := filepath.Join(w.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// serve starts the centre and the edges.
func (w *world) serve(ctx context.Context) error {
	secret, err := w.file("secret", hex.EncodeToString(randomBytes(16))+"\n")
	if err != nil {
		return err
	}
	if w.wire, err = freeAddress(); err != nil {
		return err
	}
	config, err := w.config(secret)
	if err != nil {
		return err
	}
	if w.centre, err = w.newEntry("centre", "--config", config); err != nil {
		return err
	}
	if err := w.startEntry(ctx, w.centre); err != nil {
		return err
	}
	w.account, w.token = w.centre.server.AccountID, w.centre.server.Token
	for i := range edges {
		e, err := w.newEntry(fmt.Sprint("edge ", i+1), "--fleet-role", "edge", "--fleet-far", "http://"+w.wire, "--fleet-api-far", "http://"+w.centre.address,
			"--fleet-secret-file", secret, "--fleet-max-age", maxAge.String(), "--profile", "open", "--limits-write-interval", "0s", "--log-level", "warn")
		if err != nil {
			return err
		}
		e.args = append(e.args, "--address-file", filepath.Join(e.data, "listen-address"))
		if err := os.WriteFile(filepath.Join(e.data, "api-token"), []byte(w.token), 0o600); err != nil { // for those who look there
			return err
		}
		if err := w.startEntry(ctx, e); err != nil {
			return err
		}
		w.edges = append(w.edges, e)
	}
	return w.createNamespace(ctx)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// config writes the configuration of the centre.
func (w *world) config(secret string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "profile = \"open\"\n[log]\nlevel = \"debug\"\n[limits]\nwrite_interval = \"0s\"\n")
	fmt.Fprintf(&b, "[fleet]\nrole = \"central\"\nwire_listen = %q\nsecret_file = %q\nmax_age = %q\n", w.wire, secret, maxAge)
	fmt.Fprintf(&b, "[gateway]\ncrawl_every = \"1m\"\n")
	for _, p := range w.providers() {
		url, err := w.file(p.name+".url", p.url+"\n")
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "[[provider]]\nname = %q\n[[provider.cluster]]\nname = %q\npostgres_file = %q\n", p.name, p.name+"1", url)
		fmt.Fprintf(&b, "[provider.blobs]\nendpoint = %q\nbucket = %q\nregion = %q\naccess_key_id = %q\nsecret_key_file = %q\npath_style = true\n",
			"http://"+p.blobLine.address, p.blobs.Bucket, p.blobs.Region, p.blobs.AccessKeyID, p.blobs.SecretKeyFile)
	}
	return w.file("two-providers.toml", b.String())
}

func (w *world) providers() []*provider {
	if w.b == nil {
		return []*provider{w.a}
	}
	return []*provider{w.a, w.b}
}

// entries are all ways in.
func (w *world) entries() []*entry { return append([]*entry{w.centre}, w.edges...) }

func (w *world) newEntry(name string, args ...string) (e *entry, err error) {
	e = &entry{name: name, data: filepath.Join(w.dir, strings.ReplaceAll(name, " ", "-"))}
	if e.address, err = freeAddress(); err != nil {
		return nil, err
	}
	e.args = append(args, "--listen", e.address)
	w.site.Cleanup(func() {
		if e.server != nil {
			e.server.Kill()
		}
	})
	return e, os.Mkdir(e.data, 0o700)
}

func (w *world) startEntry(ctx context.Context, e *entry) (err error) {
	server, err := process.Serve(ctx, w.binary, e.data, e.args...)
	if err != nil {
		return fmt.Errorf("start %s: %w", e.name, err)
	}
	e.server = server
	return nil
}

// goes notes that it is about to go away.
func (o *outages) goes() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, outage{from: time.Now()})
}

// isBack notes that it is there again, and returns how long it was away.
func (o *outages) isBack() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := &o.all[len(o.all)-1]
	last.to = time.Now()
	return last.to.Sub(last.from)
}

// overlap reports whether it was away at some time between two.
func (o *outages) overlap(from, to time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, out := range o.all {
		if out.from.Before(to) && (out.to.IsZero() || out.to.After(from)) {
			return true
		}
	}
	return false
}

// away reports whether an entry, or the centre behind it, was not there at some
// time between two.
func (w *world) away(e *entry, from, to time.Time) bool {
	return e.outages.overlap(from, to) || w.centre.outages.overlap(from, to)
}

// longestOutage is the longest time that an entry was away.
func (w *world) longestOutage() (longest time.Duration) {
	for _, e := range w.entries() {
		e.outages.mu.Lock()
		for _, o := range e.outages.all {
			longest = max(longest, o.to.Sub(o.from))
		}
		e.outages.mu.Unlock()
	}
	return longest
}

// kill ends an entry as a power switch does. What it printed must not tell of a bug.
func (w *world) kill(e *entry) error {
	e.server.Kill()
	return sound(e.name, e.server.Output())
}

// sound complains if what a process printed tells of a bug.
func sound(what, text string) error {
	for _, sign := range []string{"panic", "DATA RACE", "fatal error", "goroutine "} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%s says %q:\n%s", what, sign, text)
		}
	}
	return nil
}

// nearkey runs a command against the centre and returns its exit code and what it
// printed.
func (w *world) nearkey(ctx context.Context, args ...string) (code int, stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, w.binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = []string{"NEARKEY_DATA=" + w.centre.data, "PATH=" + os.Getenv("PATH")}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return 0, "", "", fmt.Errorf("nearkey %s: %w", strings.Join(args, " "), err)
		}
		code = exit.ExitCode()
	}
	return code, out.String(), errs.String(), nil
}

func (w *world) createNamespace(ctx context.Context) error {
	code, out, errs, err := w.nearkey(ctx, "namespace", "create", "chaos")
	if err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("create a namespace: exit code %d: %s", code, errs))
	}
	w.namespace = strings.TrimSpace(out)
	return nil
}

// repair is what the centre says of providers and queue.
func (w *world) repair(ctx context.Context) (r admin.Repair, err error) {
	a, err := w.ask(ctx, w.centre, request{method: "GET", path: admin.Prefix + "repair"})
	if err != nil {
		return r, err
	}
	if a.status != 200 {
		return r, fmt.Errorf("repair status: %s", a)
	}
	return r, json.Unmarshal(a.body, &struct{ Result *admin.Repair }{&r})
}

// watch is what a look at the repair queue, again and again, has seen.
type watch struct{ peak, since atomic.Int64 }

// watchQueue looks until ctx ends.
func (w *world) watchQueue(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		r, err := w.repair(ctx)
		if err != nil {
			continue // it is away
		}
		for _, most := range []*atomic.Int64{&w.watch.peak, &w.watch.since} {
			for old := most.Load(); int64(r.Queue.Depth) > old && !most.CompareAndSwap(old, int64(r.Queue.Depth)); {
				old = most.Load()
			}
		}
	}
}

// await polls for a condition.
func await(ctx context.Context, what string, met func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := met()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// awaitUp waits until all providers are up.
func (w *world) awaitUp(ctx context.Context) error {
	return await(ctx, "all providers are up", func() error {
		r, err := w.repair(ctx)
		for _, p := range r.Providers {
			if !p.Up {
				err = errors.Join(err, fmt.Errorf("provider %s: %s", p.Name, p.Error))
			}
		}
		return err
	})
}

// awaitRepaired waits until nothing waits for repair and all is believed.
func (w *world) awaitRepaired(ctx context.Context) error {
	return await(ctx, "everything is repaired", func() error {
		r, err := w.repair(ctx)
		if err != nil {
			return err
		}
		for _, p := range r.Providers {
			if !p.Up || !p.Trusted {
				return fmt.Errorf("provider %s is up: %v, believed: %v (%s)", p.Name, p.Up, p.Trusted, p.Error)
			}
		}
		if r.Queue.Depth > 0 || r.Queue.Dirty > 0 {
			return fmt.Errorf("%d keys and %d namespaces wait", r.Queue.Depth, r.Queue.Dirty)
		}
		return nil
	})
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", math.Max(0, d.Seconds())) }

// diagnose tells of a run that cannot go on what those see who know most.
func (w *world) diagnose(ctx context.Context) {
	r, err := w.repair(ctx)
	text, _ := json.Marshal(r) // it is plain data
	w.say("the centre says: %s %v", text, err)
	const activity = "select pid, state, wait_event_type, wait_event, now() - query_start as since, left(query, 80) from pg_stat_activity where backend_type = 'client backend'"
	const replication = "select application_name, state, sync_state, sent_lsn, flush_lsn from pg_stat_replication"
	for _, p := range w.providers() {
		for _, node := range p.nodes() {
			if node.Running() {
				w.say("provider %s, %s:\n%s\n%s", p.name, node.Address(), node.Exec(activity), node.Exec(replication))
			}
		}
	}
	for _, e := range w.entries() {
		if e != nil && e.server != nil {
			e.server.Kill()
			said := e.server.Output()
			w.say("%s said:\n%s", e.name, said[max(0, len(said)-20_000):])
		}
	}
}
