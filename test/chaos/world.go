package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

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
