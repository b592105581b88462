package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// maxKept is how many changes are kept for readers of the log.
const maxKept = 1 << 17

// changes is the log of what was acknowledged or repaired through this gateway. It
// is in memory: another process begins another epoch.
type changes struct {
	mu    sync.Mutex // guards the rest
	epoch uint64
	ring  []kv.Change // the change of sequence n is at n % maxKept
	head  uint64      // of the last change

	fired signal.Signal
}

func newChanges() *changes { return &changes{epoch: rand.Uint64() | 1} }

func (c *changes) add(writes []kv.Write) {
	c.mu.Lock()
	for i := range writes {
		c.one(writes[i].Ref, writes[i].Record.Version)
	}
	c.mu.Unlock()
	c.fired.Fire()
}

// one is called with mu held.
func (c *changes) one(ref kv.Ref, v kv.Version) {
	c.head++
	change := kv.Change{Cursor: kv.Cursor{Epoch: c.epoch, Seq: c.head}, Ref: ref, Version: v}
	if len(c.ring) < maxKept {
		if len(c.ring) == 0 {
			c.ring = append(c.ring, kv.Change{}) // sequence 0 is nobody's
		}
		if len(c.ring) < maxKept {
			c.ring = append(c.ring, change)
			return
		}
	}
	c.ring[c.head%maxKept] = change
}

// Changes implements the ability of kv.Changes: what this gateway has acknowledged
// or repaired. What others write to the providers is not among it.
func (g *Gateway) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", err)
	}
	c := g.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	head := kv.Cursor{Epoch: c.epoch, Seq: c.head}
	switch {
	case after == kv.Cursor{}:
		return nil, head, nil
	case after.Epoch != c.epoch || after.Seq > c.head || c.head-after.Seq >= maxKept:
		return nil, kv.Cursor{}, fmt.Errorf("changes after %d/%d: %w", after.Epoch, after.Seq, kv.ErrCursorGone)
	}
	n := min(c.head-after.Seq, uint64(max(1, min(limit, kv.MaxChanges))))
	if n == 0 {
		return nil, head, nil
	}
	found := make([]kv.Change, 0, n)
	for seq := after.Seq + 1; seq <= after.Seq+n; seq++ {
		found = append(found, c.ring[seq%maxKept])
	}
	return found, found[n-1].Cursor, nil
}

// AwaitChange implements the ability of kv.AwaitChange.
func (g *Gateway) AwaitChange(ctx context.Context, after kv.Cursor) error {
	c := g.changes
	for {
		fired := c.fired.C()
		c.mu.Lock()
		waiting := after == kv.Cursor{Epoch: c.epoch, Seq: c.head}
		c.mu.Unlock()
		if !waiting {
			return nil
		}
		select {
		case <-fired:
		case <-ctx.Done():
			return fmt.Errorf("await changes: %w", ctx.Err())
		}
	}
}
