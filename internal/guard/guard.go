// Package guard stands before a store that may hang, so that its hanging costs
// one deadline and not one for each call.
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

	// Probe asks the store whether it is alive, until its context ends; it returns
	// nil if it is. It is given the store itself. nil: one Get of a key that does
	// not exist.
	Probe        func(ctx context.Context, store kv.Store) error
	ProbeTimeout time.Duration // 0: 1 s
	ProbeEvery   time.Duration // 0: 1 s

	// Changed is told, by the goroutine of Run, whenever the store went down or
	// came back. It must not block.
	Changed func(up bool)

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
	if o.Probe == nil {
		o.Probe = func(ctx context.Context, store kv.Store) error {
			_, err := store.Get(ctx, kv.Ref{Key: "probe"}, 0)
			return err
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Store is a kv.Store behind a guard, with the abilities to read and put many,
// to forget, to drop and to list the namespaces, if the store has them.
type Store struct {
	store kv.Store
	opts  Options

	mu     sync.Mutex // guards the rest
	calls  list       // under way, the oldest first
	down   bool
	since  time.Time // of the present state
	reason error     // of the last failure
	ok     time.Time // the beginning of the latest call that succeeded
	late   time.Duration

	counts counts
}

var _ kv.Store = (*Store)(nil)

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

// New returns a guard before store. Only Run brings a store back that went down.
func New(store kv.Store, opts Options) *Store {
	return &Store{store: store, opts: opts.withDefaults()}
}

// Up reports whether calls go through.
func (s *Store) Up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.down
}

// Stats tells what the guard has seen.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Up: !s.down, Since: s.since, Err: s.reason, Latency: s.late, UnderWay: s.calls.n,
		Calls: s.counts.calls.Load(), Failures: s.counts.failures.Load(),
		Timeouts: s.counts.timeouts.Load(), Skipped: s.counts.skipped.Load(),
	}
}

// errDown ends the calls of a store that went down; errLate those that took too
// long.
var (
	errDown = errors.New("it does not answer")
	errLate = errors.New("no answer within the deadline")
)

// do makes a call. unsure is the kind of error of a call whose outcome is not
// known because the guard ended it.
func (s *Store) do(ctx context.Context, deadline time.Duration, unsure error, f func(ctx context.Context) error) error {
	own, cancel := context.WithTimeoutCause(ctx, deadline, errLate)
	defer cancel()
	own, end := context.WithCancelCause(own)
	defer end(nil)
	c := &call{began: time.Now(), end: end}
	if err := s.enter(c); err != nil {
		return err
	}
	return s.leave(ctx, own, c, f(own), unsure)
}

// enter refuses a call while the store is down.
func (s *Store) enter(c *call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.calls.Add(1)
	if s.down {
		s.counts.skipped.Add(1)
		return &DownError{Name: s.opts.Name, Since: s.since, Reason: s.reason}
	}
	s.calls.push(c)
	return nil
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
func (s *Store) leave(caller, own context.Context, c *call, err, unsure error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls.remove(c)
	if err == nil {
		s.succeeded(c)
		return nil
	}
	if caller.Err() != nil { // who asked no longer wants to know
		return err
	}
	s.counts.failures.Add(1)
	cause := context.Cause(own)
	if !errors.Is(cause, errLate) && !errors.Is(cause, errDown) {
		if !counted(err) {
			s.succeeded(c)
		}
		return fmt.Errorf("%s: %w", s.opts.Name, err)
	}
	s.counts.timeouts.Add(1)
	if errors.Is(cause, errLate) && s.ok.Before(c.began) {
		s.fall(cause)
	}
	return fmt.Errorf("%s: %w: %w", s.opts.Name, unsure, cause)
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
func (s *Store) succeeded(c *call) {
	if c.began.After(s.ok) {
		s.ok = c.began
	}
	s.late += (time.Since(c.began) - s.late) / smoothing
}

// fall is called with mu held.
func (s *Store) fall(reason error) {
	s.reason = reason
	if s.down {
		return
	}
	s.down, s.since = true, time.Now()
	for c := s.calls.first; c != nil; c = c.next {
		c.end(errDown)
	}
}

// rise is called with mu held.
func (s *Store) rise() {
	if !s.down {
		return
	}
	s.down, s.since = false, time.Now()
}

// Run probes until ctx ends and then returns nil.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.opts.SuspectAfter / 2)
	defer tick.Stop()
	told, probed := true, time.Time{}
	for {
		if s.due(probed) {
			probed = time.Now()
			s.probe(ctx)
		}
		if up := s.Up(); up != told {
			told = up
			s.tell(up)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// due reports whether it is time for a probe: as always, or for suspicion.
func (s *Store) due(probed time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(probed) >= s.opts.ProbeEvery {
		return true
	}
	oldest := s.calls.first
	return !s.down && oldest != nil && time.Since(oldest.began) >= s.opts.SuspectAfter && s.ok.Before(oldest.began)
}

func (s *Store) probe(ctx context.Context) {
	began := time.Now()
	own, cancel := context.WithTimeoutCause(ctx, s.opts.ProbeTimeout, errLate)
	defer cancel()
	err := s.opts.Probe(own, s.store)
	if ctx.Err() != nil {
		return
	}
	if err != nil && context.Cause(own) != nil {
		err = fmt.Errorf("a probe had no answer within %v", s.opts.ProbeTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		if began.After(s.ok) {
			s.ok = began
		}
		s.rise()
	case s.ok.Before(began): // and nobody else had an answer meanwhile
		s.fall(err)
	}
}

func (s *Store) tell(up bool) {
	st := s.Stats()
	if up {
		s.opts.Logger.Info("a store is back", "store", s.opts.Name)
	} else {
		s.opts.Logger.Warn("a store is down", "store", s.opts.Name, "reason", st.Err)
	}
	if s.opts.Changed != nil {
		s.opts.Changed(up)
	}
}
