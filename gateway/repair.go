package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/kv"
)

// How keys are repaired.
const (
	repairers   = 4        // batches at once
	repairKeys  = 256      // in one batch
	repairBytes = 64 << 20 // of large values that one batch holds
	repairLook  = time.Second
)

// repairLoop repairs what is parked in the queue until ctx ends.
func (g *Gateway) repairLoop(ctx context.Context) {
	for ctx.Err() == nil {
		changed := g.changed.C()
		g.dropLate(ctx)
		inUse := g.mask(used...)
		tasks := g.queue.take(time.Now(), g.upMask(), inUse, repairKeys)
		if len(tasks) > 0 {
			g.repairTasks(ctx, tasks)
			continue
		}
		wait := time.NewTimer(repairLook)
		if g.queue.depth.Load() > 0 {
			wait.Reset(backOffLeast)
		}
		select {
		case <-changed:
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// repairTasks repairs keys of one kind, in smaller batches if their values are
// large or some of them fail.
func (g *Gateway) repairTasks(ctx context.Context, tasks []task) {
	err := g.repairBatch(ctx, tasks, len(tasks) > 1)
	if err == nil {
		return
	}
	var down *guard.DownError
	if len(tasks) > 1 && ctx.Err() == nil && !errors.As(err, &down) { // perhaps it is only one of them
		g.repairTasks(ctx, tasks[:len(tasks)/2])
		g.repairTasks(ctx, tasks[len(tasks)/2:])
		return
	}
	g.opts.Logger.Debug("repair keys; it is tried again", "keys", len(tasks), "error", err)
	g.queue.gone(tasks, nil)
}

// repairBatch brings the newest records of keys to those who lack them. It either
// gives all tasks back to the queue or returns an error.
func (g *Gateway) repairBatch(ctx context.Context, tasks []task, bounded bool) error {
	up := g.upMask()
	inUse := g.with(used...)
	lacking := tasks[0].lacking & maskOf(inUse)
	refs := make([]kv.Ref, len(tasks))
	for i := range tasks {
		refs[i] = tasks[i].ref
	}
	reading := ctx
	if bounded {
		var held atomic.Int64
		reading = kv.WithReserver(ctx, func(n int64) error {
			if held.Add(n) > repairBytes {
				return fmt.Errorf("a batch of keys to repair: %w", kv.ErrOverloaded)
			}
			return nil
		})
	}
	recs, read, err := g.readForRepair(reading, inUse, up, lacking, refs)
	if err != nil {
		return err
	}
	newest := make([]kv.Record, len(refs))
	for _, of := range recs {
		for i := range of {
			newest[i] = kv.Merge(newest[i], of[i])
		}
	}
	done := g.settledBy(tasks, newest, maskOf(inUse), read, lacking&up, len(recs) == len(inUse))
	for _, m := range inUse {
		if !up.has(m.bit) {
			continue
		}
		if err := g.bring(ctx, m, refs, newest, recs[m.bit], tasks, done); err != nil {
			return err
		}
	}
	g.queue.repaired.Add(uint64(len(tasks)))
	g.queue.gone(tasks, done)
	return nil
}

// settledBy tells the keys that need nothing more when the newest records that were
// read are brought to those who lack them. A version that those do not have who were
// thought to is looked for at all; if none of them has it, it was lost by one who has
// gone back in time or was removed, and the newest that is left takes its place.
func (g *Gateway) settledBy(tasks []task, newest []kv.Record, inUse, read, lacking mask, all bool) []bool {
	done := make([]bool, len(tasks))
	b := g.queue.batch()
	defer b.end()
	for i, t := range tasks {
		done[i] = read|lacking == inUse
		if t.want.Compare(newest[i].Version) <= 0 && t.unsure.Compare(newest[i].Version) <= 0 {
			continue
		}
		if done[i] = all; !all {
			b.missing(t, read)
			continue
		}
		if t.want.Compare(newest[i].Version) <= 0 { // what was unsure is nowhere
			continue
		}
		g.opts.Logger.Error("a write that was acknowledged is lost: no provider has it any more",
			"namespace", t.ref.Namespace, "key", t.ref.Key, "version", t.want, "left", newest[i].Version)
	}
	return done
}

// readForRepair reads keys from those who have them, or, if nobody is certain to,
// from all.
func (g *Gateway) readForRepair(ctx context.Context, inUse []*member, up, lacking mask, refs []kv.Ref) (recs map[mask][]kv.Record, read mask, err error) {
	recs = map[mask][]kv.Record{}
	all := lacking == maskOf(inUse)
	var errs []error
	for _, m := range inUse {
		if !up.has(m.bit) || lacking.has(m.bit) && !all {
			continue
		}
		got, err := m.store.GetMany(ctx, refs, 0)
		switch {
		case errors.Is(err, kv.ErrDamaged) && all && len(refs) == 1:
			read |= m.bit // what it has is to be replaced
			continue
		case err != nil:
			errs = append(errs, err)
			continue
		}
		recs[m.bit] = got
		read |= m.bit
	}
	if len(recs) == 0 {
		return nil, 0, errors.Join(append(errs, kv.ErrUnavailable)...)
	}
	if all && len(errs) > 0 {
		return nil, 0, errors.Join(errs...)
	}
	return recs, read, nil
}

// bring puts the newest records into a member that has others; had is nil if it was
// not read. done keys are those that everybody will have.
func (g *Gateway) bring(ctx context.Context, m *member, refs []kv.Ref, newest, had []kv.Record, tasks []task, done []bool) error {
	var writes []kv.Write
	for i, rec := range newest {
		if rec.Absent() || had != nil && had[i].Compare(rec) == 0 {
			continue
		}
		if had == nil && !tasks[i].lacking.has(m.bit) { // it was asked and did not answer
			done[i] = false
			continue
		}
		writes = append(writes, kv.Write{Ref: refs[i], Record: rec})
	}
	if len(writes) == 0 {
		return nil
	}
	if err := m.store.PutMany(ctx, writes); err != nil {
		return err
	}
	m.repaired.Add(uint64(len(writes)))
	g.changes.add(writes)
	b := g.queue.batch()
	defer b.end()
	for _, w := range writes {
		b.brought(w.Ref, w.Record.Version, m.bit)
	}
	return nil
}

// dropLate drops namespaces from members that could not do so when asked.
func (g *Gateway) dropLate(ctx context.Context) {
	for _, ns := range inOrder(g.doubt.toDrop()) {
		if !g.doubt.claimDrop(ns) {
			continue
		}
		err := g.dropNow(ctx, ns)
		g.doubt.releaseDrop(ns)
		if err != nil && ctx.Err() == nil {
			g.opts.Logger.Warn("drop a namespace from a provider; it is tried again", "namespace", ns, "error", err)
			sleep(ctx, repairLook)
		}
	}
}

// dropNow drops a namespace from those who are up and have not done so. It is
// called by who has the claim.
func (g *Gateway) dropNow(ctx context.Context, ns kv.NamespaceID) error {
	who := g.doubt.toDrop()[ns]
	var able []*member
	for _, m := range g.with(used...) {
		if who.has(m.bit) && m.store.Up() {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		return nil
	}
	_, done, err := g.dropFrom(ctx, ns, able)
	g.queue.forgetAll(ns)
	return errors.Join(err, g.doubt.dropping(ctx, ns, who&^done))
}
