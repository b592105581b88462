package edge

import (
	"context"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	maxRefreshes   = 1024 // copies that wait to be refreshed; more are left to their readers
	refreshWorkers = 4
	// A copy that is read after this share of its maxAge, give or take the
	// jitter, is refreshed behind its reader.
	refreshShare  = 0.75
	refreshJitter = 0.2
)

// refresh is a copy that is to be fetched anew.
type refresh struct {
	ref    kv.Ref
	maxAge time.Duration
}

// refreshDue reports whether a copy that is fresh enough will soon not be. Copies
// that the feed keeps current never get there.
func (t *Tier) refreshDue(c *copied, age, maxAge time.Duration) bool {
	if age < time.Duration(refreshShare*float64(maxAge)) || age == 0 || c.asked.Load() {
		return false
	}
	jitter := t.opts.Random() * refreshJitter
	return age >= time.Duration((refreshShare+jitter)*float64(maxAge))
}

// refreshLater asks Run to fetch a copy, once.
func (t *Tier) refreshLater(ref kv.Ref, c *copied, maxAge time.Duration) {
	if c.asked.Swap(true) {
		return
	}
	select {
	case t.refresh <- refresh{ref, maxAge}:
	default:
		c.asked.Store(false)
	}
}

// Run refreshes hot copies behind their readers until ctx ends, and then returns
// nil. Without it a tier works, but readers wait when a copy has become too old.
func (t *Tier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range refreshWorkers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case r := <-t.refresh:
					t.stats.refreshes.Add(1)
					// A copy of half the age is what makes the trip worth it.
					f := t.join(ctx, r.ref, r.maxAge/2)
					select {
					case <-f.done: // if it failed, a reader will find out when the copy is too old
					case <-ctx.Done():
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return nil
}
