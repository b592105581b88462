package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/api/admin"
)

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
			said := w.ended(e)
			w.say("%s said:\n%s", e.name, said[max(0, len(said)-20_000):])
		}
	}
}
