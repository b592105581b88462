package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// readyEvery is how often a child that is not ready yet is asked.
	readyEvery = 50 * time.Millisecond
	// lookEvery is how often the figures of the children are read for the table,
	// and sayEvery how often they are printed where there is none.
	lookEvery = time.Second
	sayEvery  = 10 * time.Second
	// lookWithin is how long a child may take to tell its figures.
	lookWithin = 900 * time.Millisecond
	// maxFiguresBytes bounds what is read of them.
	maxFiguresBytes = 8 << 20
)

// fleet is the processes of 'nearkey dev'.
type fleet struct {
	dev      dev
	called   string   // the program, as a word of a shell
	children []*child // the centre first, the edges last
	screen   *screen
}

// run starts the centre and, when that is ready, the others, and ends them in the
// opposite order when ctx ends or one of them cannot run.
func (f *fleet) run(ctx context.Context) error {
	f.screen.say("starting %s and %s; data in %s", plural(int64(f.dev.edges), "edge"), plural(int64(f.dev.regions), "regional tier"), f.dev.data)
	running, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	var groups []*childGroup
	for _, role := range []string{roleCentral, roleRegional, roleEdge} {
		groups = append(groups, f.start(running, role, failed))
		if role == roleCentral {
			f.awaitReady(running, role)
			f.clean(running)
		}
	}
	f.awaitReady(running, roleRegional, roleEdge)
	if running.Err() == nil {
		f.greet()
		f.watch(running)
	}
	<-running.Done()
	cause := context.Cause(running)
	f.screen.end()
	f.screen.say("stopping")
	for i := len(groups) - 1; i >= 0; i-- {
		groups[i].stop()
	}
	if ctx.Err() != nil {
		return nil
	}
	return cause
}

// clean takes away what a fleet that was killed has left, now that the data is
// ours alone.
func (f *fleet) clean(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	known := map[string]bool{}
	for _, c := range f.children {
		known[c.name] = c.role == roleCentral
	}
	left := []string{filepath.Join(f.dev.data, addressFileName)}
	for _, pattern := range []string{"*.pid", "*.address"} {
		files, _ := filepath.Glob(f.dev.file(pattern)) // of a good pattern
		left = append(left, files...)
	}
	for _, file := range left {
		if name := filepath.Base(file); !known[strings.TrimSuffix(name, filepath.Ext(name))] {
			_ = os.Remove(file) // what is wrong with the directory is found out by those who write there
		}
	}
}

// childGroup is the processes of one role.
type childGroup struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// start starts the processes of a role. They end when they are stopped, not with
// ctx. failed is told of one that cannot run.
func (f *fleet) start(ctx context.Context, role string, failed func(error)) *childGroup {
	g := &childGroup{}
	if ctx.Err() != nil {
		g.cancel = func() {}
		return g
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g.cancel = cancel
	for _, c := range f.children {
		if c.role == role {
			g.all.Go(func() {
				if err := c.run(running); err != nil {
					failed(err)
				}
			})
		}
	}
	return g
}

func (g *childGroup) stop() {
	g.cancel()
	g.all.Wait()
}

// awaitReady returns when all processes of some roles are ready, or ctx ends.
func (f *fleet) awaitReady(ctx context.Context, roles ...string) {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range f.children {
		for _, role := range roles {
			if c.role == role {
				group.Go(func() error { return c.awaitReady(ctx) })
			}
		}
	}
	_ = group.Wait() // of ctx
}

func (c *child) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		if body, err := ask(ctx, c.url+"/readyz"); err == nil {
			c.note(func() { c.ready = true })
			return body.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask makes a request to a child; an answer other than 200 is an error.
func ask(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := loopback.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s", resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}

// loopback asks processes of this machine, by no proxy.
var loopback = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: lookWithin}

// greet tells where the edges are and how to use them.
func (f *fleet) greet() {
	var first string
	var lines strings.Builder
	for _, c := range f.children {
		if c.role != roleEdge {
			continue
		}
		if first == "" {
			first = c.url
		}
		fmt.Fprintf(&lines, "  %-8s %s  %s%s\n", c.name, c.url, firstNonEmpty(c.region, "-"), c.greetWorkers())
	}
	data := ""
	if abs, err := filepath.Abs(defaultData); err != nil || abs != f.dev.data {
		data = " --data " + quoted(f.dev.data)
	}
	f.screen.say(`ready

%s
Point wrangler and other clients at the first edge, %s:

  eval "$(%s env%s)"
  wrangler kv namespace list

Logs and process ids are in %s. Ctrl-C stops all.
`, lines.String(), first, f.called, data, filepath.Join(f.dev.data, fleetDir))
}

// greetWorkers tells where the Workers of a child answer.
func (c *child) greetWorkers() string {
	if c.workers == "" {
		return ""
	}
	_, port, _ := net.SplitHostPort(c.workers) // of ours
	return "  Workers: http://NAME.dev." + net.JoinHostPort(defaultConfig().Workers.Domain, port)
}

// watch shows the figures of the children until ctx ends.
func (f *fleet) watch(ctx context.Context) {
	every := f.screen.every()
	if every == 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		rows := make([]row, len(f.children))
		var all sync.WaitGroup
		for i, c := range f.children {
			all.Go(func() { rows[i] = c.look(ctx) })
		}
		all.Wait()
		if ctx.Err() == nil {
			f.screen.show(rows)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// row is what the table says of a child.
type row struct {
	name, port, region string
	state              string
	requests           float64
	hit, miss          float64
	expired, stale     float64
	feedAge            float64 // seconds; negative: none
	copies             float64
	memory             float64
	restarts           int
}

// look reads the figures of a child.
func (c *child) look(ctx context.Context) row {
	r := row{name: c.name, port: c.port, region: c.region, state: "ready", feedAge: -1}
	c.note(func() { r.restarts = c.restarts })
	ready, err := ask(ctx, c.url+"/readyz")
	if err != nil {
		r.state = "not ready"
	} else {
		_ = ready.Close() // nothing more is read
	}
	body, err := ask(ctx, c.url+"/metrics")
	if err != nil {
		r.state = "away"
		return r
	}
	defer body.Close() // nothing more is read
	m, err := readFigures(io.LimitReader(body, maxFiguresBytes))
	if err != nil {
		r.state = "away"
		return r
	}
	r.copies, r.memory = m["nearkey_tier_copies"], m["process_resident_memory_bytes"]
	if age, ok := m["nearkey_feed_age_seconds"]; ok {
		r.feedAge = age
	}
	r.requests = m["nearkey_kv_requests_total"] + m["nearkey_wire_calls_total"]
	r.expired = m["nearkey_kv_cache_expired_total"]
	r.hit, r.miss, r.stale = m["nearkey_kv_cache_hits_total"], m["nearkey_kv_cache_misses_total"]-r.expired, m["nearkey_kv_stale_served_total"]
	if c.role != roleEdge { // who is asked by other tiers
		r.hit, r.miss = m["nearkey_tier_hits_total"], m["nearkey_tier_misses_total"]
		r.expired, r.stale = m["nearkey_tier_expired_total"], m["nearkey_tier_stale_total"]
	}
	return r
}

// readFigures reads metrics in the text format of Prometheus. Those of one name
// are added up, whatever their labels.
func readFigures(r io.Reader) (map[string]float64, error) {
	figures := map[string]float64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		space := strings.LastIndexByte(line, ' ')
		if line == "" || line[0] == '#' || space < 0 {
			continue
		}
		name, _, _ := strings.Cut(line[:space], "{")
		value, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", name, err)
		}
		figures[name] += value
	}
	return figures, lines.Err()
}
