// Package guard stands before something that may hang, a store above all, so that
// its hanging costs one deadline and not one for each call.
//
// A store that refuses costs nothing: its errors are passed on. A store that says
// nothing is worse. When a call has waited for SuspectAfter and no call has
// succeeded since it began, the guard asks by a probe of its own. If that is not
// answered either the store is down: calls under way are ended, further ones are
// refused at once, and only probes go through, until one succeeds.
//
// It keeps nothing; a guard that was lost begins by believing in its store.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Options are what may be chosen of a guard. The zero value works.
type Options struct {
	Name         string        // of the store, in errors and logs
	Deadline     time.Duration // of one call; 0: 10 s
	DropDeadline time.Duration // of one Drop, which may take long; 0: 10 min
	SuspectAfter time.Duration // of silence; 0: 1 s

	// Probe asks what is guarded whether it is alive, until its context ends; it
	// returns nil if it is. nil: one Get of a key that does not exist, if it is a
	// store.
	Probe        func(ctx context.Context) error
	ProbeTimeout time.Duration // 0: 1 s
	ProbeEvery   time.Duration // 0: 1 s

	// Changed is told, by the goroutine of Run, whenever the store went down or
	// came back. It must not block.
	Changed func(up bool)

	// MayFall is asked before calls are refused. If it says no they go on to be made,
	// and wait for their deadlines: there is nothing better to ask. It is called with
	// the guard locked. nil: always. Risen is told when calls go through again.
	MayFall func() bool
	Risen   func()

	Logger *slog.Logger // nil: nothing is logged
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.Deadline, 10*time.Second)
	set(&o.DropDeadline, 10*time.Minute)
	set(&o.SuspectAfter, time.Second)
	set(&o.ProbeTimeout, time.Second)
	set(&o.ProbeEvery, time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Guard lets calls through, or refuses them.
type Guard struct {
	opts Options

	mu     sync.Mutex // guards the rest
	calls  list       // under way, the oldest first
	long   list       // under way, of those that may take long
	down   bool       // calls are refused
	ailing bool       // they would be if there were anything better
	since  time.Time  // of the present state
	reason error      // of the last failure
	ok     time.Time  // the beginning of the latest call that succeeded
	late   time.Duration

	counts counts
}

type counts struct {
	calls, failures, timeouts, skipped atomic.Uint64
}

// Stats is what a guard has seen.
type Stats struct {
	Up                                 bool
	Since                              time.Time     // the store is up or down; zero: since the beginning
	Err                                error         // of the last failure; nil: none
	Latency                            time.Duration // of calls that succeeded, smoothed
	Calls, Failures, Timeouts, Skipped uint64
	UnderWay                           int
}

// New returns a guard that probes as the options say. Only Run brings back what went
// down.
func New(opts Options) *Guard { return &Guard{opts: opts.withDefaults()} }

// Up reports whether what is guarded answers, as far as is known.
func (g *Guard) Up() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.down && !g.ailing
}

// Stats tells what the guard has seen.
func (g *Guard) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{
		Up: !g.down && !g.ailing, Since: g.since, Err: g.reason, Latency: g.late, UnderWay: g.calls.n + g.long.n,
		Calls: g.counts.calls.Load(), Failures: g.counts.failures.Load(),
		Timeouts: g.counts.timeouts.Load(), Skipped: g.counts.skipped.Load(),
	}
}

// errDown ends the calls of a store that went down; errLate those that took too
// long.
var (
	errDown = errors.New("it does not answer")
	errLate = errors.New("no answer within the deadline")
)

// Do makes a call, unless what is guarded is down: then the error is a DownError.
// unsure is the kind of error of a call whose outcome is not known because the
// guard ended it.
func (g *Guard) Do(ctx context.Context, unsure error, f func(ctx context.Context) error) error {
	return g.do(ctx, g.opts.Deadline, unsure, f)
}

func (g *Guard) do(ctx context.Context, deadline time.Duration, unsure error, f func(ctx context.Context) error) error {
	own, cancel := context.WithTimeoutCause(ctx, deadline, errLate)
	defer cancel()
	own, end := context.WithCancelCause(own)
	defer end(nil)
	c := &call{began: time.Now(), end: end}
	if err := g.enter(&g.calls, c); err != nil {
		return err
	}
	return g.leave(ctx, own, c, f(own), unsure)
}

// doLong makes a call that may take long, so that it says nothing about the store's
// health. It is ended when the store goes down: otherwise one request that was lost
// on its way would hold who waits for it until the deadline.
func (g *Guard) doLong(ctx context.Context, deadline time.Duration, unsure error, f func(ctx context.Context) error) error {
	own, cancel := context.WithTimeoutCause(ctx, deadline, errLate)
	defer cancel()
	own, end := context.WithCancelCause(own)
	defer end(nil)
	c := &call{began: time.Now(), end: end}
	if err := g.enter(&g.long, c); err != nil {
		return err
	}
	err := f(own)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.long.remove(c)
	if cause := context.Cause(own); err != nil && (errors.Is(cause, errLate) || errors.Is(cause, errDown)) {
		return fmt.Errorf("%s: %w: %w", g.opts.Name, unsure, cause)
	}
	return err
}

// enter refuses a call while the store is down.
func (g *Guard) enter(to *list, c *call) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts.calls.Add(1)
	if g.down {
		g.counts.skipped.Add(1)
		return &DownError{Name: g.opts.Name, Since: g.since, Reason: g.reason}
	}
	to.push(c)
	return nil
}

// Refused is what a call would be told at once; nil: it would be made.
func (g *Guard) Refused() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.down {
		return nil
	}
	g.counts.calls.Add(1)
	g.counts.skipped.Add(1)
	return &DownError{Name: g.opts.Name, Since: g.since, Reason: g.reason}
}

// DownError says that a call was not made, since the store is down. It wraps
// kv.ErrUnavailable.
type DownError struct {
	Name   string
	Since  time.Time
	Reason error
}

func (e *DownError) Error() string {
	return fmt.Sprintf("%s is down since %s: %v", e.Name, e.Since.UTC().Format(time.RFC3339), e.Reason)
}

// Unwrap makes a DownError a kv.ErrUnavailable.
func (e *DownError) Unwrap() error { return kv.ErrUnavailable }

// leave notes how a call ended, and says whose fault an error is.
func (g *Guard) leave(caller, own context.Context, c *call, err, unsure error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls.remove(c)
	if err == nil {
		g.succeeded(c)
		return nil
	}
	if caller.Err() != nil { // who asked no longer wants to know
		return err
	}
	g.counts.failures.Add(1)
	cause := context.Cause(own)
	if !errors.Is(cause, errLate) && !errors.Is(cause, errDown) {
		if !counted(err) {
			g.succeeded(c)
		}
		return fmt.Errorf("%s: %w", g.opts.Name, err)
	}
	g.counts.timeouts.Add(1)
	if errors.Is(cause, errLate) && g.ok.Before(c.began) {
		g.fall(cause)
	}
	return fmt.Errorf("%s: %w: %w", g.opts.Name, unsure, cause)
}

// counted reports whether an error says that the store itself is in trouble: an
// answer that refuses is an answer.
func counted(err error) bool {
	for _, kind := range []error{kv.ErrRule, kv.ErrFuture, kv.ErrDamaged, kv.ErrUnsupported, kv.ErrOverloaded, kv.ErrFull, kv.ErrCursorGone} {
		if errors.Is(err, kind) {
			return false
		}
	}
	return true
}

// smoothing is the weight of the latest call in the latency, as a divisor.
const smoothing = 16

// succeeded is called with mu held.
func (g *Guard) succeeded(c *call) {
	if c.began.After(g.ok) {
		g.ok = c.began
	}
	g.late += (time.Since(c.began) - g.late) / smoothing
}

// fall is called with mu held.
func (g *Guard) fall(reason error) {
	g.reason = reason
	if g.down {
		return
	}
	if g.opts.MayFall != nil && !g.opts.MayFall() {
		if !g.ailing {
			g.ailing, g.since = true, time.Now()
		}
		return
	}
	g.down, g.since = true, time.Now()
	for _, calls := range []list{g.calls, g.long} {
		for c := calls.first; c != nil; c = c.next {
			c.end(errDown)
		}
	}
}

// rise is called with mu held.
func (g *Guard) rise() {
	if !g.down && !g.ailing {
		return
	}
	if g.down && g.opts.Risen != nil {
		g.opts.Risen()
	}
	g.down, g.ailing, g.since = false, false, time.Now()
}

// Run probes until ctx ends and then returns nil.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(g.opts.SuspectAfter / 2)
	defer tick.Stop()
	told, probed := true, time.Time{}
	for {
		if g.due(probed) {
			probed = time.Now()
			g.probe(ctx)
		}
		if up := g.Up(); up != told {
			told = up
			g.tell(up)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// due reports whether it is time for a probe: as always, or for suspicion.
func (g *Guard) due(probed time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(probed) >= g.opts.ProbeEvery {
		return true
	}
	oldest := g.calls.first
	return !g.down && oldest != nil && time.Since(oldest.began) >= g.opts.SuspectAfter && g.ok.Before(oldest.began)
}

// probeTimeout is longer while calls are not refused to what does not answer: it may
// only be slow.
func (g *Guard) probeTimeout() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ailing {
		return max(g.opts.Deadline, g.opts.ProbeTimeout)
	}
	return g.opts.ProbeTimeout
}

func (g *Guard) probe(ctx context.Context) {
	began := time.Now()
	own, cancel := context.WithTimeoutCause(ctx, g.probeTimeout(), errLate)
	defer cancel()
	err := g.opts.Probe(own)
	if ctx.Err() != nil {
		return
	}
	if err != nil && context.Cause(own) != nil {
		err = fmt.Errorf("a probe had no answer within %v", time.Since(began).Round(time.Millisecond))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		if began.After(g.ok) {
			g.ok = began
		}
		g.rise()
	case g.ok.Before(began): // and nobody else had an answer meanwhile
		g.fall(err)
	}
}

func (g *Guard) tell(up bool) {
	st := g.Stats()
	if up {
		g.opts.Logger.Info("a store is back", "store", g.opts.Name)
	} else {
		g.opts.Logger.Warn("a store is down", "store", g.opts.Name, "reason", st.Err)
	}
	if g.opts.Changed != nil {
		g.opts.Changed(up)
	}
}
