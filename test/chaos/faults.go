package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// fault is something that goes wrong, lasts, and is healed.
type fault struct {
	name string
	kind kind
	run  func(ctx context.Context, w *world, hold time.Duration) error
}

// kind is what must be known of a fault.
type kind uint8

const (
	short kind = 1 << iota // in a short run as well
	disks                  // needs small disks
	fails                  // calls of the provider that comes first in its name must fail
)

// faults are all there are. One provider is faulty at a time.
var faults = []fault{
	{"a: the primary is killed, a standby promoted, the old primary rewound", short | fails, failover},
	{"b: PostgreSQL hangs (SIGSTOP of all its processes)", short | fails, postgresHangs(second)},
	{"a: PostgreSQL hangs, primary and standbys", fails, postgresHangs(first)},
	{"b: PostgreSQL is restarted", short, postgresRestarts},
	{"b: PostgreSQL is killed", fails, postgresKilled},
	{"a: the S3 server is killed", short | fails, blobsKilled},
	{"b: the S3 server hangs (SIGSTOP)", short | fails, blobsHang},
	{"b: the disk of PostgreSQL is full", short | disks | fails, diskFull(second)},
	{"a: the disk of the S3 server is full", disks | fails, diskFull(first)},
	{"a: every line is slow (300 ms, more or less)", short, spoiled(first, slow)},
	{"b: every line is a black hole", short | fails, spoiled(second, blackHole)},
	{"a: connections are reset", short | fails, spoiled(first, resetting)},
	{"b: lines are narrow and close slowly", 0, spoiled(second, narrow, slowClose)},
	{"b: every line is cut", fails, cut},
	{"nearkey: the centre is killed between answer and repair, b being away", short, killedBeforeRepair},
	{"nearkey: the centre is killed while b is seconds behind", short, killedWhileLate},
	{"nearkey: the centre is killed", 0, centreKilled},
	{"nearkey: an edge is killed", short, edgeKilled},
	{"a: a standby loses its power while it is behind, then the primary", fails, failoverBehind},
	{"a, then b: a hangs, and as soon as it answers b is killed", short | fails, oneAfterTheOther},
}

func first(w *world) *provider  { return w.a }
func second(w *world) *provider { return w.b }

type ofWorld = func(*world) *provider

// nemesis makes one fault after the other until the time is over.
func (w *world) nemesis(ctx context.Context, l *load) error {
	rng := rand.New(rand.NewPCG(w.seed, 0))
	var chosen []fault
	for _, f := range faults {
		switch {
		case !strings.Contains(f.name, w.only), w.short && f.kind&short == 0 && w.only == "":
		case f.kind&disks != 0 && !canMount():
			w.say("left out, for want of root: %s", f.name)
		default:
			chosen = append(chosen, f)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no fault is named %q", w.only)
	}
	for i := 0; i < len(chosen) || time.Since(w.began) < w.duration; i++ {
		f := chosen[i%len(chosen)]
		if i >= len(chosen) {
			f = chosen[rng.IntN(len(chosen))]
		}
		if err := w.attempt(ctx, f, l); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// attempt makes a fault, heals it, waits for repair, and tells what was seen.
func (w *world) attempt(ctx context.Context, f fault, l *load) error {
	pause(ctx, w.hold/8)
	if err := w.awaitRepaired(ctx); err != nil { // what a mended line has cut is told a moment later
		return err
	}
	acked, reads := l.acked.Load(), l.reads.Load()
	w.watch.since.Store(0)
	before, err := w.failures(ctx, f.name[:1])
	if err != nil {
		return err
	}
	w.say("%s", f.name)
	l.made++
	if err := f.run(ctx, w, w.hold); err != nil {
		return err
	}
	healed := time.Now()
	if err := w.awaitUp(ctx); err != nil {
		return err
	}
	up := time.Since(healed)
	if err := w.awaitRepaired(ctx); err != nil {
		return err
	}
	if after, err := w.failures(ctx, f.name[:1]); f.kind&fails != 0 && err == nil && after <= before {
		l.idle = append(l.idle, f.name)
	}
	honest, errs := l.failed()
	w.say("    healed: all up after %s, repaired after %s, queue at most %d; %d writes acknowledged, %d reads; so far %s, %d while nearkey itself was down",
		seconds(up), seconds(time.Since(healed)), w.watch.since.Load(), l.acked.Load()-acked, l.reads.Load()-reads, plural(errs, "error"), honest)
	return ctx.Err()
}

// failures is how many calls of a provider have failed, or were not made since it
// was down, as far as the centre of now knows.
func (w *world) failures(ctx context.Context, name string) (n uint64, err error) {
	r, err := w.repair(ctx)
	for _, p := range r.Providers {
		if p.Name == name {
			n = p.Failures + p.Skipped
		}
	}
	return n, err
}

func failover(ctx context.Context, w *world, hold time.Duration) error {
	w.a.cluster.KillPrimary()
	pause(ctx, hold/2)
	w.a.cluster.Promote()
	pause(ctx, hold/2)
	w.a.cluster.Rejoin()
	return nil
}

func failoverBehind(ctx context.Context, w *world, hold time.Duration) error {
	behind := w.a.cluster.Standbys()[0]
	behind.Stop()
	pause(ctx, hold/2)
	w.a.cluster.KillPrimary()
	behind.Kill()
	behind.Restart()
	w.a.cluster.Promote()
	pause(ctx, hold/2)
	w.a.cluster.Rejoin()
	return nil
}

// hangLeast is how long something hangs at least, to be found out.
const hangLeast = 3 * time.Second

func postgresHangs(of ofWorld) func(context.Context, *world, time.Duration) error {
	return func(ctx context.Context, w *world, hold time.Duration) error {
		nodes := of(w).nodes()
		for _, node := range nodes {
			node.Stop()
		}
		pause(ctx, max(hold, hangLeast))
		for _, node := range nodes {
			node.Cont()
		}
		return nil
	}
}

func postgresRestarts(ctx context.Context, w *world, hold time.Duration) error {
	w.b.single.Restart()
	pause(ctx, hold/2)
	w.b.single.Restart()
	return nil
}

func postgresKilled(ctx context.Context, w *world, hold time.Duration) error {
	w.b.single.Kill()
	pause(ctx, hold)
	w.b.single.Restart()
	return nil
}

func blobsKilled(ctx context.Context, w *world, hold time.Duration) error {
	w.a.blobs.Kill()
	pause(ctx, hold)
	w.a.blobs.Restart()
	return nil
}

func blobsHang(ctx context.Context, w *world, hold time.Duration) error {
	w.b.blobs.Stop()
	pause(ctx, hold)
	w.b.blobs.Cont()
	return nil
}

// diskFull: what is written again fits into what a database has already, so new
// keys are written too.
func diskFull(of ofWorld) func(context.Context, *world, time.Duration) error {
	return func(ctx context.Context, w *world, hold time.Duration) error {
		if err := of(w).disk.fill(); err != nil {
			return err
		}
		until := time.Now().Add(hold)
		w.load.grow(ctx)
		pause(ctx, time.Until(until))
		return of(w).disk.free()
	}
}

func spoiled(of ofWorld, toxics ...toxic) func(context.Context, *world, time.Duration) error {
	return func(ctx context.Context, w *world, hold time.Duration) error {
		if err := each(of(w).lines(), func(l *line) error { return l.spoil(toxics...) }); err != nil {
			return err
		}
		pause(ctx, hold)
		return each(of(w).lines(), (*line).mend)
	}
}

func cut(ctx context.Context, w *world, hold time.Duration) error {
	for _, l := range w.b.lines() {
		l.cut()
	}
	pause(ctx, hold)
	return each(w.b.lines(), (*line).mend)
}

func each(lines []*line, do func(*line) error) error {
	var errs []error
	for _, l := range lines {
		errs = append(errs, do(l))
	}
	return errors.Join(errs...)
}

// killedBeforeRepair: b is away, a alone has what is acknowledged, and the process
// that knows it is killed, and started before b is back.
func killedBeforeRepair(ctx context.Context, w *world, hold time.Duration) error {
	w.b.single.Kill()
	err := await(ctx, "something waits for repair", func() error {
		r, err := w.repair(ctx)
		if err == nil && r.Queue.Depth < 10 {
			err = fmt.Errorf("%d keys wait", r.Queue.Depth)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := w.restart(ctx, w.centre, func() {}); err != nil {
		return err
	}
	pause(ctx, hold/2)
	w.b.single.Restart()
	return nil
}

// killedWhileLate: what is acknowledged is on its way to b when the process that
// sends it is killed.
func killedWhileLate(ctx context.Context, w *world, hold time.Duration) error {
	if err := each(w.b.lines(), func(l *line) error { return l.spoil(lagging) }); err != nil {
		return err
	}
	pause(ctx, hold/2)
	var mended error
	if err := w.restart(ctx, w.centre, func() { mended = each(w.b.lines(), (*line).mend) }); err != nil {
		return err
	}
	return mended
}

func centreKilled(ctx context.Context, w *world, hold time.Duration) error {
	pause(ctx, hold/4)
	return w.restart(ctx, w.centre, func() { pause(ctx, hold/4) })
}

func edgeKilled(ctx context.Context, w *world, hold time.Duration) error {
	pause(ctx, hold/4)
	return w.restart(ctx, w.edges[len(w.edges)-1], func() { pause(ctx, hold/4) })
}

// oneAfterTheOther: a has no time to get what it missed. What b alone has can not
// be read then; writes go on, and answers say that they are old.
func oneAfterTheOther(ctx context.Context, w *world, hold time.Duration) error {
	for _, node := range w.a.nodes() {
		node.Stop()
	}
	pause(ctx, max(hold/2, hangLeast))
	for _, node := range w.a.nodes() {
		node.Cont()
	}
	if err := w.awaitUp(ctx); err != nil {
		return err
	}
	w.sole.goes()
	w.b.single.Kill()
	pause(ctx, hold/2)
	w.b.single.Restart()
	if err := w.awaitRepaired(ctx); err != nil {
		return err
	}
	w.sole.isBack()
	return nil
}
