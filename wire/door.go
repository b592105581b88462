package wire

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// door bounds the bytes of bodies and values that all calls hold at once. What
// does not fit is turned away at once: the callers know how to wait.
type door struct {
	size int64
	held atomic.Int64
}

// hold is what one call has taken of the door. A store may ask from several
// goroutines.
type hold struct {
	door *door

	mu     sync.Mutex // guards the rest
	taken  int64
	closed bool
}

// take takes n more bytes.
func (h *hold) take(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("reserve %d bytes for a call that has ended: %w", n, kv.ErrOverloaded)
	}
	for {
		held := h.door.held.Load()
		if n > h.door.size-held {
			return fmt.Errorf("reserve %d bytes: %w", n, kv.ErrOverloaded)
		}
		if h.door.held.CompareAndSwap(held, held+n) {
			h.taken += n
			return nil
		}
	}
}

// close gives everything back.
func (h *hold) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.door.held.Add(-h.taken)
	h.taken = 0
}
