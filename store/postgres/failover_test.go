package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

// valueOf is the only value that a key can have with a version.
func valueOf(seed uint64, key string, v kv.Version) []byte {
	return fmt.Appendf(nil, "%d %s %s", seed, key, v)
}

// load is writers that put, and what was acknowledged to them.
type load struct {
	seed    uint64
	store   *Store
	acked   atomic.Int64
	unknown atomic.Int64
	refused atomic.Int64
	done    chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex // guards newest
	newest map[string]kv.Version
}

const (
	loadWriters = 16
	loadKeys    = 300 // of each writer
)

func startLoad(s *Store) *load {
	l := &load{seed: rand.Uint64(), store: s, done: make(chan struct{}), newest: map[string]kv.Version{}}
	stamper := kv.NewStamper(1, nil)
	for w := range loadWriters {
		l.wg.Go(func() {
			rng := rand.New(rand.NewPCG(l.seed, uint64(w)))
			for {
				select {
				case <-l.done:
					return
				default:
					l.write(stamper, fmt.Sprintf("%02d/%d", w, rng.IntN(loadKeys)))
				}
			}
		})
	}
	return l
}

func (l *load) write(stamper *kv.Stamper, key string) {
	v, err := stamper.Stamp()
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	switch err := l.store.Put(ctx, kv.Ref{Key: key}, kv.Record{Version: v, Value: valueOf(l.seed, key, v)}); {
	case err == nil:
		l.acked.Add(1)
		l.mu.Lock()
		l.newest[key] = v // a key has one writer
		l.mu.Unlock()
	case errors.Is(err, kv.ErrUnknown):
		l.unknown.Add(1)
	default:
		l.refused.Add(1)
	}
}

// more waits until n further writes were acknowledged.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	until := l.acked.Load() + n
	nearkeytest.Until(t, "further acknowledgement", func() bool { return l.acked.Load() >= until })
}

func (l *load) stop() {
	close(l.done)
	l.wg.Wait()
}

// lost is the number of keys whose newest acknowledged write is not there. Every
// value that is there must be one that was written.
func (l *load) lost(t *testing.T) (lost int) {
	t.Helper()
	for key, v := range l.newest {
		rec, err := l.store.Get(context.Background(), kv.Ref{Key: key}, 0)
		if err != nil {
			t.Fatalf("get %q: %v", key, err)
		}
		if rec.Version.Compare(v) < 0 {
			lost++
		}
		if !rec.Absent() && !bytes.Equal(rec.Value, valueOf(l.seed, key, rec.Version)) {
			t.Errorf("key %q has a value that nobody wrote: %q", key, rec.Value)
		}
	}
	t.Logf("seed %d: %d acknowledged, %d unknown, %d refused; %d of %d keys lost", l.seed, l.acked.Load(), l.unknown.Load(), l.refused.Load(), lost, len(l.newest))
	return lost
}

// powerCycle freezes the standbys, lets the load go on, and then takes the power
// of all: what waits in the sockets of a frozen process is gone with it.
func powerCycle(t *testing.T, c *pgtest.Cluster, l *load, frozen int, writes int64) {
	standbys := c.Standbys()[:frozen]
	for _, s := range standbys {
		s.Stop()
	}
	l.more(t, writes)
	c.KillPrimary()
	for _, s := range standbys {
		s.Kill()
		s.Restart()
	}
}

func TestFailoverLosesNothing(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{})
	s := mustOpen(t, c.URL(), Options{})
	l := startLoad(s)
	l.more(t, 500)
	c.KillPrimary()
	c.Promote()
	l.more(t, 500)
	c.Rejoin()
	l.more(t, 500)
	powerCycle(t, c, l, 1, 500) // one standby has them, the other is behind
	c.Promote()
	l.more(t, 500)
	l.stop()
	c.Rejoin()
	if lost := l.lost(t); lost != 0 {
		t.Errorf("%d keys lost an acknowledged write", lost)
	}
	const sum = "select count(*) || ' ' || coalesce(md5(string_agg(encode(key, 'hex') || version, ' ' order by key)), '') from kv_records"
	want := c.Primary().Exec(sum)
	for _, standby := range c.Standbys() {
		nearkeytest.Until(t, "standby that equals the primary", func() bool { return standby.Exec(sum) == want })
	}
}

// The control: what the test above looks for is found where standbys are not
// waited for.
func TestControlAsynchronousFailoverLoses(t *testing.T) {
	c := pgtest.StartCluster(t, pgtest.ClusterOptions{Async: true})
	l := startLoad(mustOpen(t, c.URL(), Options{}))
	l.more(t, 500)
	powerCycle(t, c, l, 2, 2000)
	c.Promote()
	l.stop()
	if lost := l.lost(t); lost == 0 {
		t.Error("asynchronous standbys were frozen and power-cycled, and nothing is lost: the test shows nothing")
	}
}
