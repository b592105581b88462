package rest

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// door bounds the bytes of values that all requests hold at once. What does not
// fit is turned away at once rather than queued: a queue of large bodies holds
// connections, and clients know how to wait.
type door struct {
	size int64
	held atomic.Int64
}

func (d *door) take(n int64) bool {
	for {
		held := d.held.Load()
		if n > d.size-held {
			return false
		}
		if d.held.CompareAndSwap(held, held+n) {
			return true
		}
	}
}

// hold is what one request has taken of the door. It is given back once, when
// the request ends. All methods may be called at once: stores reserve for reads
// that they race.
type hold struct {
	door *door

	mu     sync.Mutex // guards the rest
	taken  int64      // from the door
	used   int64      // of taken
	closed bool
}

// prepay takes n bytes that use will then draw on, so that a request which was
// let in is not turned away half-way.
func (h *hold) prepay(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grow(h.used + n)
}

// use accounts for n more bytes.
func (h *hold) use(n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.grow(h.used + n); err != nil {
		return err
	}
	h.used += n
	return nil
}

// drop accounts for n bytes that are no longer held. They stay the request's, for
// what it uses next.
func (h *hold) drop(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used -= n
}

// grow takes what is missing to total. The caller holds mu.
func (h *hold) grow(total int64) error {
	switch {
	case h.closed:
		return fmt.Errorf("reserve memory for a request that has ended: %w", kv.ErrOverloaded)
	case total <= h.taken:
		return nil
	case total > h.door.size:
		return &failure{status: http.StatusRequestEntityTooLarge, code: codeValueLimit,
			text: fmt.Sprintf("The request needs %d bytes at once, this server holds at most %d for all requests.", total, h.door.size)}
	case !h.door.take(total - h.taken):
		return fmt.Errorf("reserve memory: %w", kv.ErrOverloaded)
	}
	h.taken = total
	return nil
}

// close gives everything back.
func (h *hold) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		h.door.held.Add(-h.taken)
	}
}
