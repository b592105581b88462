package cron

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/catalog"
	dialect "github.com/nearkey/nearkey/internal/cron"
)

// Outcomes that are not the Worker's. The Worker's is "ok", or how it failed.
const (
	outcomeOK       = "ok"
	outcomeCanceled = "canceled"      // by us
	outcomeInternal = "internalError" // it could not be run
)

// Why an attempt is given up.
var (
	errLost    = errors.New("the claim on the run was lost")
	errTooLong = fmt.Errorf("it took longer than %v", MaxRun)
)

// final reports whether an error of the catalog will be the same next time.
func final(err error) bool {
	return errors.Is(err, catalog.ErrWorkerNotFound) || errors.Is(err, catalog.ErrLeaseLost)
}

// attempt fires a run that was claimed, and returns how it ended.
func (s *Scheduler) attempt(ctx context.Context, run catalog.CronRun) catalog.CronRun {
	s.fired.Add(1)
	if run.Attempt > 1 {
		s.retried.Add(1)
	}
	outcome, noRetry, until, err := s.fire(ctx, run)
	if errors.Is(err, errLost) { // it is somebody else's, who will note how it ends
		s.failed.Add(1)
		s.log.Warn("a run of a cron trigger was given up", "worker", run.Worker, "cron", run.Cron, "error", err)
		run.Outcome, run.Error = outcome, err.Error()
		return run
	}
	run.Outcome, run.Error, run.Ended = outcome, "", s.now()
	if err != nil {
		run.Error = err.Error()
	}
	if outcome != outcomeOK {
		s.failed.Add(1)
	}
	s.finish(ctx, run, s.retry(ctx, run, noRetry), until)
	return run
}

// fire runs the handler and renews the claim meanwhile. until is when the claim
// ends.
func (s *Scheduler) fire(ctx context.Context, run catalog.CronRun) (outcome string, noRetry bool, until time.Time, err error) {
	firing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	overdue := time.AfterFunc(MaxRun, func() { cancel(errTooLong) })
	defer overdue.Stop()
	stop, renewed := make(chan struct{}), make(chan time.Time, 1)
	go func() { renewed <- s.renew(firing, stop, cancel, run.ID) }()

	outcome, noRetry, err = s.opts.Fire(firing, run.AccountID, run.Worker, run.Cron, run.At)
	close(stop)
	until = <-renewed
	cause := context.Cause(firing)
	switch {
	case errors.Is(cause, errLost):
		return outcomeCanceled, noRetry, until, errLost
	case err == nil: // it ended by itself
		return outcome, noRetry, until, nil
	case cause != nil:
		return outcomeCanceled, false, until, cause
	}
	return outcomeInternal, false, until, err
}

// renew prolongs a claim until it is stopped, and returns when it ends. Who cannot
// prolong it gives up when it ends: from then on the run may be another's.
func (s *Scheduler) renew(ctx context.Context, stop <-chan struct{}, lost context.CancelCauseFunc, id int64) (until time.Time) {
	until = s.now().Add(s.opts.Lease)
	wait := s.opts.Lease / 3
	for {
		timer := time.NewTimer(wait)
		select {
		case <-stop:
			timer.Stop()
			return until
		case <-ctx.Done(): // the handler was told; it will end
			<-stop
			timer.Stop()
			return until
		case <-timer.C:
		}
		began := s.now()
		calling, cancel := context.WithTimeout(ctx, min(callTimeout, s.opts.Lease/3))
		err := s.opts.Catalog.RenewRun(calling, id, s.opts.Holder, s.opts.Lease)
		cancel()
		switch {
		case err == nil:
			until, wait = began.Add(s.opts.Lease), s.opts.Lease/3
		case final(err), !s.now().Before(until):
			lost(errLost)
		default:
			wait = min(askAgain, s.opts.Lease/3)
		}
	}
}

// retry returns when a run is to be tried again; the zero time: never.
func (s *Scheduler) retry(ctx context.Context, run catalog.CronRun, noRetry bool) time.Time {
	if run.Outcome == outcomeOK || noRetry || run.Manual || run.Attempt > Retries {
		return time.Time{}
	}
	now := s.now()
	if ctx.Err() != nil { // this process ends; another may go on
		return now
	}
	at := now.Add(FirstRetry << max(0, run.Attempt-1))
	if e, err := dialect.Parse(run.Cron); err == nil && !at.Before(e.Next(now)) {
		return time.Time{} // the next tick comes first
	}
	return at
}

// finish notes how an attempt ended. If it cannot until the claim ends, the run
// will be taken over and done again: that is what at least once means.
func (s *Scheduler) finish(ctx context.Context, run catalog.CronRun, retryAt, until time.Time) {
	if ended := s.now().Add(endWait); ctx.Err() != nil && ended.Before(until) {
		until = ended
	}
	ctx = context.WithoutCancel(ctx) // what was done is noted, though the process ends
	err := s.insist(ctx, until, func(ctx context.Context) error {
		return s.opts.Catalog.FinishRun(ctx, run.ID, s.opts.Holder, run.Outcome, run.Error, retryAt)
	})
	if err != nil {
		s.log.Error("note how a run of a cron trigger ended", "worker", run.Worker, "cron", run.Cron, "outcome", run.Outcome, "error", err)
		return
	}
	if retryAt.IsZero() {
		return
	}
	s.mu.Lock()
	if s.retryAt.IsZero() || retryAt.Before(s.retryAt) {
		s.retryAt = retryAt
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
