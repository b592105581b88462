package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/guard"
	"github.com/nearkey/nearkey/internal/stack"
	"github.com/nearkey/nearkey/kv"
)

// Put implements kv.Store. It returns when one active provider has the record, or
// all have it if the namespace wants that.
func (g *Gateway) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if rec.Absent() {
		panic("gateway: put of an absent record")
	}
	return g.write(ctx, "put", []kv.Write{{Ref: ref, Record: rec}})
}

// PutMany implements the ability of kv.PutMany.
func (g *Gateway) PutMany(ctx context.Context, writes []kv.Write) error {
	if len(writes) == 0 {
		return ctx.Err()
	}
	return g.write(ctx, "put many", writes)
}

// write puts records into all providers. The call ends with the caller's context;
// the writes do not, so that a caller that gives up does not make them differ.
func (g *Gateway) write(ctx context.Context, doing string, writes []kv.Write) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	both := false
	for i := range writes {
		ns := writes[i].Ref.Namespace
		if i > 0 && ns == writes[i-1].Ref.Namespace {
			continue
		}
		both = both || g.opts.Both(ns)
		if err := g.doubt.writing(ctx, ns); err != nil {
			// Writes go on without a journal: what is at stake is only how soon
			// providers that differ are found to.
			g.opts.Logger.Error("the journal of the gateway", "error", err)
		}
	}
	w := g.begin(ctx, writes, both)
	for w.left != 0 && !w.decided() {
		select {
		case o := <-w.outcomes:
			w.take(o)
		case <-w.proof(): // or something else has changed
		case <-ctx.Done():
			g.goOn(w)
			return fmt.Errorf("%s: %w", doing, ctx.Err())
		}
	}
	if !w.decided() && w.unproven() {
		w.prove(ctx)
	}
	err := w.err(doing)
	g.goOn(w)
	return err
}

// outcome is how the write to one member ended.
type outcome struct {
	m   *member
	err error
}

// written is a write under way.
type written struct {
	g        *Gateway
	writes   []kv.Write
	both     bool
	cancel   context.CancelFunc
	bytes    int64
	outcomes chan outcome
	over     chan struct{} // closed when all is heard of

	counting mask // active when the write began: their acknowledgement counts
	left     mask // not heard of yet
	have     mask
	failed   mask
	noted    bool // the queue knows who has it
	maybe    bool // one of those that failed may have it all the same
	errs     []error
}

// begin sends the writes to all who are in use.
func (g *Gateway) begin(ctx context.Context, writes []kv.Write, both bool) *written {
	w := &written{g: g, writes: writes, both: both, outcomes: make(chan outcome, len(g.members)), over: make(chan struct{})}
	g.writesMu.Lock()
	g.writes[w] = struct{}{} // before it is decided whose acknowledgement counts
	g.writesMu.Unlock()
	members := g.with(used...)
	w.counting, w.left = g.mask(active), maskOf(members)
	for i := range writes {
		w.bytes += int64(writes[i].Record.Bytes() + len(writes[i].Ref.Key))
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	for _, m := range members {
		if err := m.store.Refused(); err != nil { // which is known without asking
			w.take(outcome{m, err})
			continue
		}
		g.late.begin()
		go func() {
			defer g.late.end()
			stack.Grow()
			w.outcomes <- outcome{m, putAll(own, m.store, writes)}
		}()
	}
	return w
}

func putAll(ctx context.Context, store *guard.Store, writes []kv.Write) error {
	if len(writes) == 1 {
		return store.Put(ctx, writes[0].Ref, writes[0].Record)
	}
	return store.PutMany(ctx, writes)
}

// decided reports whether enough is known for an answer.
func (w *written) decided() bool {
	if w.both {
		return w.failed.has(w.counts())
	}
	return w.have.has(w.counts() & w.g.known())
}

// unproven reports whether it is only to be found out that those who have it did not
// go back in time, and will stay in service.
func (w *written) unproven() bool {
	have := w.have & w.counts()
	return have != 0 && !have.has(w.g.known())
}

// proof is closed when something has changed that may prove those who have it; nil
// if there is nothing to be proven.
func (w *written) proof() <-chan struct{} {
	if w.have == 0 {
		return nil
	}
	return w.g.changed.C()
}

// prove waits until those who have it are proven, or are not.
func (w *written) prove(ctx context.Context) {
	patience := time.NewTimer(w.g.opts.Deadline)
	defer patience.Stop()
	for {
		changed := w.g.changed.C()
		if !w.unproven() {
			return
		}
		select {
		case <-changed:
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// counts is whose acknowledgement counts: of those who were active when the write
// began, those who have not been taken out of service since.
func (w *written) counts() mask { return w.counting & w.g.mask(asked...) }

// take notes an outcome.
func (w *written) take(o outcome) {
	w.left &^= o.m.bit
	if o.err == nil {
		w.have |= o.m.bit
	} else {
		w.failed |= o.m.bit
		w.maybe = w.maybe || !definite(o.err)
		w.errs = append(w.errs, o.err)
	}
	q := w.g.queue.batch()
	defer q.end()
	switch {
	case !w.noted && w.have.has(w.counts()):
		w.noted = true
		for i := range w.writes {
			q.acked(w.writes[i].Ref, w.writes[i].Record.Version, w.have, w.left, w.failed)
		}
		w.g.changes.add(w.writes)
	case w.noted && o.err == nil:
		for i := range w.writes {
			q.has(w.writes[i].Ref, w.writes[i].Record.Version, o.m.bit)
		}
	case w.noted:
		for i := range w.writes {
			q.fails(w.writes[i].Ref, w.writes[i].Record.Version, o.m.bit)
		}
	case w.left == 0 && (w.maybe || w.have != 0):
		for i := range w.writes {
			q.unsure(w.writes[i].Ref, w.writes[i].Record.Version, w.have|w.failed)
		}
	}
}

// definite reports whether an error says for certain that nothing was stored: the
// provider was not asked, or refuses such records. Other errors may be of a part of
// the provider, while another part has stored its records.
func definite(err error) bool {
	if _, ok := err.(*guard.DownError); ok {
		return true
	}
	return errors.Is(err, kv.ErrRule) || errors.Is(err, kv.ErrFuture)
}

// err is the answer to the writer.
func (w *written) err(doing string) error {
	counts := w.counts()
	have := w.have & counts
	if have.has(w.g.known()) && (have == counts || !w.both) {
		return nil
	}
	all := errors.Join(w.errs...)
	switch {
	case w.both && have != 0:
		return fmt.Errorf("%s: acknowledged by %d of %d providers, and the namespace wants all: %w: %w", doing, have.count(), counts.count(), kv.ErrUnknown, all)
	case w.left|w.have == 0 && same(w.errs):
		return fmt.Errorf("%s: %w", doing, all)
	case w.maybe || w.left != 0 || w.have != 0: // one that is being filled may have it
		return fmt.Errorf("%s: %w: %w", doing, kv.ErrUnknown, all)
	}
	return fmt.Errorf("%s: %w: %w", doing, kv.ErrUnavailable, all)
}

// same reports whether all errors are of one kind that the caller should know.
func same(errs []error) bool {
	for _, kind := range []error{kv.ErrRule, kv.ErrFuture, kv.ErrFull, kv.ErrOverloaded} {
		n := 0
		for _, err := range errs {
			if errors.Is(err, kind) {
				n++
			}
		}
		if n > 0 && n == len(errs) {
			return true
		}
	}
	return false
}

// goOn hears of the members that are slower than the answer. If too much waits
// for them already they are cut off, and the queue brings them the write later.
func (g *Gateway) goOn(w *written) {
	if w.left == 0 {
		g.ended(w)
		return
	}
	if g.lateBytes.Add(w.bytes) > g.opts.MaxLate {
		w.cancel()
	}
	g.late.begin()
	go func() {
		defer g.late.end()
		for w.left != 0 {
			w.take(<-w.outcomes)
		}
		g.lateBytes.Add(-w.bytes)
		g.ended(w)
	}()
}

// ended is called when all members have been heard of.
func (g *Gateway) ended(w *written) {
	w.cancel()
	g.writesMu.Lock()
	delete(g.writes, w)
	g.writesMu.Unlock()
	close(w.over)
}

// settle waits until the writes of a namespace, or of all, that are under way are
// over, and cuts off those that take too long.
func (g *Gateway) settle(ctx context.Context, ns *kv.NamespaceID) {
	var late []*written
	g.writesMu.Lock()
	for w := range g.writes {
		if ns == nil || slices.ContainsFunc(w.writes, func(w kv.Write) bool { return w.Ref.Namespace == *ns }) {
			late = append(late, w)
		}
	}
	g.writesMu.Unlock()
	own, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	for _, w := range late {
		select {
		case <-w.over:
		case <-own.Done():
			w.cancel()
			<-w.over
		}
	}
}

// settleWait is how long a Drop waits for the slower provider's writes.
const settleWait = 2 * time.Second

// Drop implements the ability of kv.Drop. It succeeds when one active provider has
// dropped the namespace; the others do so when they can.
func (g *Gateway) Drop(ctx context.Context, ns kv.NamespaceID) error {
	for !g.doubt.claimDrop(ns) { // it is being dropped already
		sleep(ctx, backOffLeast)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("drop namespace %s: %w", ns, err)
		}
	}
	defer g.doubt.releaseDrop(ns)
	members := g.with(used...)
	if err := g.doubt.dropping(ctx, ns, maskOf(members)); err != nil {
		return fmt.Errorf("drop namespace %s: %w", ns, err)
	}
	g.settle(ctx, &ns)
	left, done, err := g.dropFrom(ctx, ns, members)
	g.queue.forgetAll(ns)
	if done.has(g.mask(active)) {
		err = nil
	}
	if noted := g.doubt.dropping(context.WithoutCancel(ctx), ns, left); noted != nil {
		return fmt.Errorf("drop namespace %s: %w", ns, noted)
	}
	if err != nil {
		return fmt.Errorf("drop namespace %s: %w", ns, err)
	}
	return nil
}

// dropFrom drops a namespace from members and tells who has not done it and who has.
func (g *Gateway) dropFrom(ctx context.Context, ns kv.NamespaceID, members []*member) (left, done mask, err error) {
	errs := make([]error, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() { errs[i] = m.store.Drop(ctx, ns) })
	}
	all.Wait()
	for i, m := range members {
		if errs[i] != nil {
			left |= m.bit
		} else {
			done |= m.bit
		}
	}
	return left, done, errors.Join(errs...)
}
