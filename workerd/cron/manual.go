package cron

import (
	"context"
	"fmt"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// Fire fires a Worker now and returns when it is done, or when ctx ends: the run
// then goes on, and Ended is zero. It is not retried.
func (s *Scheduler) Fire(ctx context.Context, accountID, worker, cron string) (catalog.CronRun, error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return catalog.CronRun{}, fmt.Errorf("fire Worker %q: %d runs are under way: %w", worker, MaxRunning, kv.ErrOverloaded)
	}
	run, err := s.opts.Catalog.StartRun(ctx, accountID, worker, cron, s.opts.Holder, s.opts.Lease)
	if err != nil {
		<-s.slots
		return catalog.CronRun{}, err
	}
	j := job{run, make(chan catalog.CronRun, 1)}
	select {
	case s.jobs <- j:
	case <-ctx.Done(): // nobody runs it; its lease ends
		<-s.slots
		return catalog.CronRun{}, fmt.Errorf("fire Worker %q: %w", worker, ctx.Err())
	}
	select {
	case run = <-j.done:
	case <-ctx.Done():
	}
	return run, nil
}
