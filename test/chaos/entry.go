package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

// entry is where clients come in: the centre or an edge.
type entry struct {
	name    string
	address string
	data    string
	args    []string
	server  *process.Server
	told    bool // what the server said is in a file, if it is to be

	outages outages
}

// outages are the times at which something was not there: an entry, or the centre
// behind it, from before it was killed until writes through it succeeded again.
type outages struct {
	mu  sync.Mutex // guards all
	all []outage
}

type outage struct{ from, to time.Time }

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
			w.ended(e)
		}
	})
	return e, os.Mkdir(e.data, 0o700)
}

func (w *world) startEntry(ctx context.Context, e *entry) (err error) {
	server, err := process.Serve(ctx, w.binary, e.data, e.args...)
	if err != nil {
		return fmt.Errorf("start %s: %w", e.name, err)
	}
	e.server, e.told = server, false
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
	return sound(e.name, w.ended(e))
}

// ended kills an entry, keeps what it said if that is wanted, and returns it.
func (w *world) ended(e *entry) string {
	e.server.Kill()
	said := e.server.Output()
	if w.logs != "" && !e.told {
		f, err := os.OpenFile(filepath.Join(w.logs, strings.ReplaceAll(e.name, " ", "-")+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(said)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			w.say("keep what %s said: %v", e.name, err)
		}
	}
	e.told = true
	return said
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

// restart kills an entry, does something, starts it, and waits until clients are
// served through all entries that it stands behind.
func (w *world) restart(ctx context.Context, e *entry, meanwhile func()) error {
	e.outages.goes()
	if err := w.kill(e); err != nil {
		return err
	}
	meanwhile()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	began := time.Now()
	if err := w.startEntry(ctx, e); err != nil {
		return err
	}
	ready := time.Since(began)
	served := []*entry{e}
	if e == w.centre {
		served = w.entries()
	}
	for _, through := range served {
		if err := await(ctx, "writes through "+through.name, func() error { return w.probe(ctx, through) }); err != nil {
			return err
		}
	}
	away := e.outages.isBack()
	w.say("    %s was away for %s; ready %s after its start", e.name, seconds(away), seconds(ready))
	return nil
}

// probe writes a key of its own through an entry.
func (w *world) probe(ctx context.Context, e *entry) error {
	a, err := w.ask(ctx, e, request{method: "PUT", path: w.valuePath("probe"), body: []byte("probe")})
	if err == nil && a.status != 200 {
		err = fmt.Errorf("%s", a)
	}
	return err
}
