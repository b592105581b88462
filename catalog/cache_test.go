package catalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testCache counts how often it is asked, and answers what it is told.
type testCache struct {
	*cache[string, string]
	asked  int
	answer string
	err    error
	hangs  time.Duration
}

func newTestCache(limit int) *testCache {
	return &testCache{cache: newCache[string](limit, func(s string) int { return len(s) }, time.Now)}
}

func (c *testCache) lookup(ctx context.Context, key string) (string, error) {
	if v, ok := c.get(key, time.Now()); ok {
		return v, nil
	}
	return c.load(ctx, key, func(ctx context.Context) (string, error) {
		c.asked++
		select {
		case <-time.After(c.hangs):
			return c.answer, c.err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
}

func (c *testCache) expect(t *testing.T, want string, wantErr error, wantAsked int) {
	t.Helper()
	got, err := c.lookup(t.Context(), "k")
	if got != want || !errors.Is(err, wantErr) || c.asked != wantAsked {
		t.Errorf("%q, error %v, asked %d times; want %q, %v, %d", got, err, c.asked, want, wantErr, wantAsked)
	}
}

func TestCacheForgetsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(100)
		c.answer = "one"
		c.expect(t, "one", nil, 1)
		c.answer = "two"
		time.Sleep(CacheFor - time.Nanosecond)
		c.expect(t, "one", nil, 1)
		time.Sleep(time.Nanosecond)
		c.expect(t, "two", nil, 2)
		c.answer = "three"
		c.forget("k")
		c.expect(t, "three", nil, 3)
		c.answer = "four"
		c.forgetAll()
		c.expect(t, "four", nil, 4)
	})
}

func TestCacheServesStaleWhileTheDatabaseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(100)
		c.answer = "one"
		c.expect(t, "one", nil, 1)
		c.answer, c.err = "", ErrUnavailable
		time.Sleep(CacheFor)
		c.expect(t, "one", nil, 2)
		c.expect(t, "one", nil, 2)
		time.Sleep(retryAfter)
		c.expect(t, "one", nil, 3)
		time.Sleep(StaleFor - CacheFor - retryAfter - 1)
		c.expect(t, "one", nil, 4)
		time.Sleep(retryAfter)
		c.expect(t, "", ErrUnavailable, 5)
		c.answer, c.err = "two", nil
		c.expect(t, "two", nil, 6)
	})
}

func TestCacheBelievesTheDatabase(t *testing.T) {
	for _, gone := range []error{ErrNotFound, ErrUnauthenticated} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCache(100)
			c.answer = "one"
			c.expect(t, "one", nil, 1)
			c.answer, c.err = "", gone
			time.Sleep(CacheFor)
			c.expect(t, "", gone, 2)
			c.err = ErrUnavailable
			c.expect(t, "", ErrUnavailable, 3) // what is gone does not come back
			c.answer, c.err = "two", nil
			c.expect(t, "two", nil, 4) // that it was gone is not remembered
		})
	}
}

func TestHungDatabaseDelaysOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(100)
		c.answer = "one"
		c.expect(t, "one", nil, 1)
		c.hangs = time.Hour
		time.Sleep(CacheFor)
		start := time.Now()
		c.expect(t, "one", nil, 2)
		if waited := time.Since(start); waited != loadTimeout {
			t.Errorf("waited %s, want %s", waited, loadTimeout)
		}
		time.Sleep(hungFactor*loadTimeout - time.Nanosecond)
		c.expect(t, "one", nil, 2)
		time.Sleep(time.Nanosecond)
		var wg sync.WaitGroup
		wg.Go(func() { c.expect(t, "one", nil, 3) })
		synctest.Wait()
		start = time.Now()
		for range 100 {
			c.expect(t, "one", nil, 3)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %s for what is in memory", waited)
		}
		wg.Wait()
		time.Sleep(StaleFor)
		c.expect(t, "", ErrUnavailable, 4)
	})
}

func TestConcurrentMissesAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(100)
		c.answer, c.hangs = "one", time.Second
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { c.expect(t, "one", nil, 1) })
		}
		wg.Wait()
		if len(c.flights) != 0 {
			t.Error("a flight is left")
		}
	})
}

func TestCallerWhoGivesUpDoesNotSpoilIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(100)
		c.answer, c.hangs = "one", time.Second
		var wg sync.WaitGroup
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() {
			if _, err := c.lookup(hasty, "k"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
				t.Errorf("the one who leads and gives up: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := c.lookup(hasty, "k"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the one who waits and gives up: %v", err)
			}
		})
		for range 10 {
			wg.Go(func() {
				if got, err := c.lookup(t.Context(), "k"); got != "one" || err != nil {
					t.Errorf("one who has time: %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if c.asked != 2 {
			t.Errorf("asked %d times, want 2", c.asked)
		}
	})
}

func TestAnswerFromBeforeAChangeIsNotKept(t *testing.T) {
	for name, forget := range map[string]func(*testCache){
		"forget":    func(c *testCache) { c.forget("k") },
		"forgetAll": func(c *testCache) { c.forgetAll() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCache(100)
				c.answer, c.hangs = "old", time.Second
				var wg sync.WaitGroup
				wg.Go(func() {
					got, err := c.load(t.Context(), "k", func(context.Context) (string, error) {
						time.Sleep(time.Second)
						return "old", nil
					})
					if got != "old" || err != nil {
						t.Errorf("who asked before the change: %q, %v", got, err)
					}
				})
				synctest.Wait()
				forget(c)
				c.answer = "new"
				wg.Go(func() { c.expect(t, "new", nil, 1) }) // does not join the flight from before
				wg.Wait()
				c.expect(t, "new", nil, 1)
			})
		})
	}
}

func TestPanicInALoadDoesNotBlockOthers(t *testing.T) {
	c := newTestCache(100)
	func() {
		defer func() { _ = recover() }()
		_, _ = c.load(t.Context(), "k", func(context.Context) (string, error) { panic("bug") })
	}()
	c.answer = "one"
	c.expect(t, "one", nil, 1)
}

func TestCacheIsBounded(t *testing.T) {
	const limit = 100
	c := newTestCache(limit)
	for i := range 1000 {
		c.answer = fmt.Sprintf("%010d", i)
		if got, err := c.lookup(t.Context(), fmt.Sprint(i)); got != c.answer || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		if _, ok := c.get(fmt.Sprint(i), time.Now()); !ok {
			t.Fatal("the latest answer is not kept")
		}
		total := 0
		for _, e := range c.entries {
			total += len(e.value)
		}
		if total > limit || total != c.bytes || i >= 10 && total != limit {
			t.Fatalf("%d bytes are kept and %d counted, the limit is %d", total, c.bytes, limit)
		}
	}
	for key := range c.entries {
		c.forget(key)
	}
	if c.bytes != 0 {
		t.Errorf("%d bytes counted in an empty cache", c.bytes)
	}
}

func TestCachedAnswersOutliveTheDatabase(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "a")
	token, secret := createToken(t, c, Scope{Permission: Write})
	revoked, revokedSecret := createToken(t, c, Scope{Permission: Write})
	start := time.Now()
	check := func(want error) {
		t.Helper()
		_, err := c.Namespace(t.Context(), testAccount, n.ID)
		if !errors.Is(err, want) {
			t.Errorf("namespace: error %v, want %v", err, want)
		}
		if _, err = c.Authenticate(t.Context(), secret); !errors.Is(err, want) {
			t.Errorf("token: error %v, want %v", err, want)
		}
		if _, err = c.AuthenticateKey(t.Context(), testRoot().Email, testRoot().Key); !errors.Is(err, want) {
			t.Errorf("key: error %v, want %v", err, want)
		}
	}
	if _, err := c.Authenticate(t.Context(), revokedSecret); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeToken(t.Context(), testAccount, revoked.ID); err != nil {
		t.Fatal(err)
	}
	c.at(start)
	check(nil)
	breakDatabase(t, c)

	c.at(start.Add(StaleFor - 1))
	wantError(t, c.RevokeToken(t.Context(), testAccount, token.ID), ErrUnavailable)
	wantError(t, c.DeleteNamespace(t.Context(), testAccount, n.ID), ErrUnavailable)
	check(nil) // what was not done has not emptied the caches either
	_, err := c.Authenticate(t.Context(), revokedSecret)
	wantError(t, err, ErrUnavailable)
	_, err = c.Namespace(t.Context(), "ffffffffffffffffffffffffffffffff", n.ID)
	wantError(t, err, ErrNotFound)
	c.at(start.Add(StaleFor + retryAfter))
	check(ErrUnavailable)
}

func TestOtherProcessesSeeChangesWithinCacheFor(t *testing.T) {
	c, path := newCatalog(t)
	other := openAt(t, path)
	n := createNamespace(t, c, "a")
	token, secret := createToken(t, c, Scope{Permission: Write})
	start := time.Now()
	other.at(start)
	if _, err := other.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Namespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	other.at(start.Add(CacheFor))
	_, err := other.Authenticate(t.Context(), secret)
	wantError(t, err, ErrTokenRevoked)
	_, err = other.Namespace(t.Context(), testAccount, n.ID)
	wantError(t, err, ErrNotFound)
}
