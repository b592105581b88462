package catalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// CacheFor is how old a cached answer may be: another process that shares the
	// database may have changed it since.
	CacheFor = 5 * time.Second
	// StaleFor is for how long after it was loaded an answer is served when the
	// database fails.
	StaleFor = time.Hour
	// CacheBytes bounds the memory of each cache.
	CacheBytes = 16 << 20

	// retryAfter is how long a stale answer is served at least before the database is
	// tried again for it, and hungFactor how many times as long as it took to fail: one
	// that hangs is tried rarely, for whoever tries it waits.
	retryAfter = time.Second
	hungFactor = 10
	// loadTimeout is how long the database may take before it counts as failed.
	loadTimeout = 2 * time.Second
)

// cache keeps answers of the database. Only positive answers are kept: nobody
// can fill it with made-up keys, and what another process creates is found at
// once. A key that nobody knows costs one indexed query, and concurrent misses
// on one key share one.
type cache[K comparable, V any] struct {
	limit int
	weigh func(V) int // memory that an answer takes, in bytes
	now   func() time.Time

	mu      sync.RWMutex // guards the rest
	entries map[K]cached[V]
	bytes   int
	flights map[K]*flight[V]
	epoch   uint64 // how many times something was forgotten
}

type cached[V any] struct {
	value   V
	loaded  time.Time
	fresh   time.Time // until when it is served without asking the database
	failing bool      // the database failed when it was asked last
}

// flight is one load that others wait for. Its answer is written before done is
// closed and read after.
type flight[V any] struct {
	done      chan struct{}
	value     V
	err       error
	abandoned bool // the context of the caller that led it ended
}

func newCache[K comparable, V any](limit int, weigh func(V) int, now func() time.Time) *cache[K, V] {
	return &cache[K, V]{limit: limit, weigh: weigh, now: now, entries: map[K]cached[V]{}, flights: map[K]*flight[V]{}}
}

// get returns the answer for key if it is fresh.
func (c *cache[K, V]) get(key K, now time.Time) (V, bool) {
	c.mu.RLock()
	e, ok := c.entries[key]
	c.mu.RUnlock()
	return e.value, ok && now.Before(e.fresh)
}

// load asks the database and keeps the answer, or waits for a caller who does.
// If the database fails, the last answer is served until it is StaleFor old.
func (c *cache[K, V]) load(ctx context.Context, key K, ask func(context.Context) (V, error)) (V, error) {
	for {
		f, epoch, leads := c.join(key)
		if leads {
			c.lead(ctx, key, f, epoch, ask)
			return f.value, f.err
		}
		select {
		case <-f.done:
			if !f.abandoned {
				return f.value, f.err
			}
		case <-ctx.Done():
			var none V
			return none, fmt.Errorf("wait for the catalog: %w", ctx.Err())
		}
	}
}

// join returns the flight for key, and whether the caller is to lead it. While
// the database fails only the caller who tries it again waits for it; the others
// are served what there is.
func (c *cache[K, V]) join(key K) (f *flight[V], epoch uint64, leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.flights[key]; ok {
		return f, c.epoch, false
	}
	f = &flight[V]{done: make(chan struct{}), err: ErrUnavailable}
	c.flights[key] = f
	if e, ok := c.entries[key]; ok && e.failing && c.now().Sub(e.loaded) < StaleFor {
		e.fresh = c.now().Add(loadTimeout)
		c.entries[key] = e
	}
	return f, c.epoch, true
}

// lead asks the database and lands the flight with the answer.
func (c *cache[K, V]) lead(ctx context.Context, key K, f *flight[V], epoch uint64, ask func(context.Context) (V, error)) {
	defer func() {
		c.mu.Lock()
		if c.flights[key] == f {
			delete(c.flights, key)
		}
		c.mu.Unlock()
		close(f.done)
	}()
	limited, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	began := c.now()
	value, err := ask(limited)
	f.abandoned = err != nil && ctx.Err() != nil
	if !f.abandoned && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: no answer within %s", ErrUnavailable, loadTimeout)
	}
	f.value, f.err = c.keep(key, epoch, value, err, c.now().Sub(began))
}

// keep puts an answer of the database into the cache and returns what is to be
// served. An answer that was asked for before something was forgotten may be
// older than the change, so it is served to those who asked then, but not kept.
func (c *cache[K, V]) keep(key K, epoch uint64, value V, err error, took time.Duration) (V, error) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != c.epoch {
		return value, err
	}
	last, ok := c.entries[key]
	switch {
	case err == nil:
		c.remove(key)
		c.insert(key, cached[V]{value: value, loaded: now, fresh: now.Add(CacheFor)})
	case !errors.Is(err, ErrUnavailable):
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthenticated) {
			c.remove(key)
		}
	case ok && now.Sub(last.loaded) < StaleFor:
		end := last.loaded.Add(StaleFor + retryAfter)
		last.fresh, last.failing = now.Add(min(max(retryAfter, hungFactor*took), end.Sub(now))), true
		c.entries[key] = last
		return last.value, nil
	}
	return value, err
}

// insert adds an entry and makes room by removing others, whichever come first.
func (c *cache[K, V]) insert(key K, e cached[V]) {
	size := c.weigh(e.value)
	for other := range c.entries {
		if c.bytes+size <= c.limit {
			break
		}
		c.remove(other)
	}
	c.entries[key] = e
	c.bytes += size
}

func (c *cache[K, V]) remove(key K) {
	if e, ok := c.entries[key]; ok {
		c.bytes -= c.weigh(e.value)
		delete(c.entries, key)
	}
}

// forget drops what is known of key, after a change of it. Loads under way are
// not joined any more: their answers may be older than the change.
func (c *cache[K, V]) forget(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.remove(key)
	delete(c.flights, key)
}

// forgetAll drops everything, as forget does one key.
func (c *cache[K, V]) forgetAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	clear(c.entries)
	clear(c.flights)
	c.bytes = 0
}
