// Package cron is for firing the cron triggers of Workers: once per tick, however
// many processes run a Scheduler over one catalog. Who claims a tick holds it by
// a lease that it renews as long as the Worker runs; when the holder dies, another
// takes the tick over. A run that failed is retried, some times, until the next
// tick of the same trigger is due. So a Worker is fired at least once, and more
// than once only if it failed or if the process that ran it was lost.
//
// A tick that passed more than a minute ago while nobody was there is skipped, as
// is what a clock that jumped ahead jumped over. A clock that jumped back brings
// no tick round again. All that is known is in the catalog; a Scheduler may lose
// what it knows at any time.
package cron

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	dialect "github.com/nearkey/nearkey/internal/cron"
)

// Catalog is where those who fire agree on what and who. *catalog.Catalog
// implements it. All methods are atomic, and durable when they return.
type Catalog interface {
	Schedules
	Runs
}

// Schedules tells what is to be fired.
type Schedules interface {
	// AllSchedules returns the triggers of all Workers.
	AllSchedules(ctx context.Context) ([]catalog.Schedule, error)
	// DueRetries returns runs whose retry is due, or whose holder is gone.
	DueRetries(ctx context.Context) ([]catalog.CronRun, error)
	// StartRun begins a run that somebody asked for, at no tick.
	StartRun(ctx context.Context, accountID, worker, cron, holder string, lease time.Duration) (catalog.CronRun, error)
}

// Runs tells who fires.
type Runs interface {
	// ClaimRun makes holder the one who fires a tick until the lease is over, unless
	// somebody else is, the tick was done with, or there is no such trigger.
	ClaimRun(ctx context.Context, accountID, worker, cron string, at time.Time, holder string, lease time.Duration) (run catalog.CronRun, claimed bool, err error)
	// RenewRun prolongs a claim from now on.
	RenewRun(ctx context.Context, id int64, holder string, lease time.Duration) error
	// FinishRun ends an attempt, and the run with it unless a retry is to come.
	FinishRun(ctx context.Context, id int64, holder, outcome, errText string, retryAt time.Time) error
}

// Fire runs the handler of a Worker and returns when it and all that it left to
// waitUntil are done: its outcome, and whether it asked not to be retried. An
// error means that it could not be run.
type Fire func(ctx context.Context, accountID, worker, cron string, at time.Time) (outcome string, noRetry bool, err error)

// Options are what a Scheduler stands on. All but Lease, Now and Logger must be set.
type Options struct {
	Catalog Catalog
	Fire    Fire
	Holder  string           // unique among all who share the catalog, in time as well
	Lease   time.Duration    // 0: DefaultLease
	Now     func() time.Time // nil: time.Now
	Logger  *slog.Logger     // nil: nothing is logged
}

// The bounds of a Scheduler.
const (
	DefaultLease = 30 * time.Second
	MaxRun       = 15 * time.Minute // of one attempt
	MaxRunning   = 100              // attempts at once
	Retries      = 6                // after the first attempt
	FirstRetry   = 2 * time.Second  // each further one is twice as late

	catchUp     = time.Minute      // how late a tick may be fired
	pollEvery   = 5 * time.Second  // for runs of others that are to be taken over
	callTimeout = 10 * time.Second // of a call of the catalog
	askAgain    = time.Second      // after the catalog could not be asked
	endWait     = 5 * time.Second  // for the catalog, when the process ends
	jumpedBack  = 24 * time.Hour   // a clock that goes back so far was wrong before
)

// Stats count what a Scheduler did.
type Stats struct {
	Fired   int64 // attempts
	Failed  int64 // attempts that did not end well
	Retried int64 // attempts that were not the first
	Skipped int64 // ticks that could not be claimed in time
}

// Scheduler fires what is due. Run does the work.
type Scheduler struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time

	slots chan struct{} // of attempts
	jobs  chan job
	wake  chan struct{} // a retry was arranged

	mu      sync.Mutex // guards the rest
	busy    map[tick]bool
	retryAt time.Time // when the next retry of our own is due; zero: none

	fired, failed, retried, skipped atomic.Int64
}

// trigger is one cron of one Worker, tick one moment of it.
type trigger struct{ account, worker, cron string }

type tick struct {
	trigger
	at int64 // Unix milliseconds
}

// job is a run that was asked for.
type job struct {
	run  catalog.CronRun
	done chan catalog.CronRun // takes one
}

// New returns a Scheduler. It starts nothing.
func New(opts Options) *Scheduler {
	if opts.Lease == 0 {
		opts.Lease = DefaultLease
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Scheduler{
		opts: opts, log: opts.Logger, now: opts.Now,
		slots: make(chan struct{}, MaxRunning), jobs: make(chan job), wake: make(chan struct{}, 1),
		busy: map[tick]bool{},
	}
}

// Stats returns what was counted so far.
func (s *Scheduler) Stats() Stats {
	return Stats{s.fired.Load(), s.failed.Load(), s.retried.Load(), s.skipped.Load()}
}

// Run fires what is due until ctx ends. What is running then is told so, noted to
// be retried at once, and awaited.
func (s *Scheduler) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	last := s.now().Truncate(time.Minute).Add(-time.Minute) // the last tick that was seen to
	var polled time.Time
	for {
		now := s.now()
		if now.Before(last.Add(-jumpedBack)) {
			s.log.Warn("the clock went back by more than a day; cron triggers follow it", "from", last, "to", now)
			last, polled = now.Truncate(time.Minute), now
		}
		wait := pollEvery
		if at := now.Truncate(time.Minute); at.After(last) {
			if s.fireTick(ctx, &running, at) {
				last = at
			} else {
				wait = askAgain
			}
		}
		if s.retriesDue(now, polled) {
			polled = now
			s.fireRetries(ctx, &running)
		}
		if !s.rest(ctx, &running, min(wait, s.untilNext())) {
			return nil
		}
	}
}

// untilNext is how long there is nothing to do but to poll.
func (s *Scheduler) untilNext() time.Duration {
	now := s.now()
	wait := now.Truncate(time.Minute).Add(time.Minute).Sub(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.retryAt.IsZero() {
		wait = min(wait, max(0, s.retryAt.Sub(now)))
	}
	return wait
}

// rest waits, and starts what comes meanwhile. It is false when ctx has ended.
func (s *Scheduler) rest(ctx context.Context, running *sync.WaitGroup, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case j := <-s.jobs:
			running.Go(func() {
				defer func() { <-s.slots }()
				j.done <- s.attempt(ctx, j.run)
			})
		case <-s.wake:
			return true
		case <-timer.C:
			return true
		}
	}
}

// fireTick starts all that is due at a tick. It is false if the catalog could not
// say what is.
func (s *Scheduler) fireTick(ctx context.Context, running *sync.WaitGroup, at time.Time) bool {
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	all, err := s.opts.Catalog.AllSchedules(asking)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("ask for the cron triggers that are due", "error", err)
		}
		return false
	}
	for _, schedule := range all {
		t := trigger{schedule.AccountID, schedule.Worker, schedule.Cron}
		e, err := dialect.Parse(schedule.Cron)
		if err != nil { // it was understood when it was stored
			s.log.Error("a cron trigger that cannot be read", "worker", schedule.Worker, "error", err)
			continue
		}
		if e.Matches(at) && !schedule.Created.After(at) {
			s.begin(ctx, running, tick{t, at.UnixMilli()}, at.Add(catchUp))
		}
	}
	return true
}

// retriesDue reports whether it is time to look for retries.
func (s *Scheduler) retriesDue(now, polled time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.retryAt.IsZero() && !now.Before(s.retryAt) {
		s.retryAt = time.Time{}
		return true
	}
	return now.Sub(polled) >= pollEvery || now.Before(polled)
}

// fireRetries starts the retries that are due and takes over what others left.
func (s *Scheduler) fireRetries(ctx context.Context, running *sync.WaitGroup) {
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	due, err := s.opts.Catalog.DueRetries(asking)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("ask for the runs of cron triggers to be retried", "error", err)
		}
		return
	}
	for _, run := range due {
		s.begin(ctx, running, tick{trigger{run.AccountID, run.Worker, run.Cron}, run.At.UnixMilli()}, s.now().Add(catchUp))
	}
}

// begin claims a tick and fires it, on a goroutine of its own, unless that goes on
// already. What cannot be claimed until the deadline is skipped.
func (s *Scheduler) begin(ctx context.Context, running *sync.WaitGroup, t tick, deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[t] {
		return
	}
	s.busy[t] = true
	running.Go(func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.busy, t)
		}()
		if !s.takeSlot(ctx, deadline) {
			s.skip(ctx, t, fmt.Errorf("%d runs are under way", MaxRunning))
			return
		}
		defer func() { <-s.slots }()
		run, claimed, err := s.claim(ctx, t, deadline)
		if err != nil {
			s.skip(ctx, t, err)
			return
		}
		if claimed {
			s.attempt(ctx, run)
		}
	})
}

func (s *Scheduler) skip(ctx context.Context, t tick, why error) {
	if ctx.Err() == nil {
		s.skipped.Add(1)
		s.log.Error("a cron trigger was not fired in time", "worker", t.worker, "cron", t.cron, "at", time.UnixMilli(t.at).UTC(), "error", why)
	}
}

// takeSlot waits until one more attempt may be made, but not beyond the deadline.
func (s *Scheduler) takeSlot(ctx context.Context, deadline time.Time) bool {
	timer := time.NewTimer(max(0, deadline.Sub(s.now())))
	defer timer.Stop()
	select {
	case s.slots <- struct{}{}:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// claim asks for a tick until the catalog answers. An answer that was lost leaves
// a claim that ends with its lease; the run is then due to be taken over.
func (s *Scheduler) claim(ctx context.Context, t tick, deadline time.Time) (run catalog.CronRun, claimed bool, err error) {
	err = s.insist(ctx, deadline, func(ctx context.Context) error {
		run, claimed, err = s.opts.Catalog.ClaimRun(ctx, t.account, t.worker, t.cron, time.UnixMilli(t.at).UTC(), s.opts.Holder, s.opts.Lease)
		return err
	})
	return run, claimed, err
}

// insist calls the catalog until it answers, or until the deadline.
func (s *Scheduler) insist(ctx context.Context, deadline time.Time, call func(context.Context) error) error {
	for {
		calling, cancel := context.WithTimeout(ctx, min(callTimeout, max(askAgain, deadline.Sub(s.now()))))
		err := call(calling)
		cancel()
		if err == nil || final(err) || !s.now().Add(askAgain).Before(deadline) || !sleep(ctx, askAgain) {
			return err
		}
	}
}

// sleep waits; false: ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
