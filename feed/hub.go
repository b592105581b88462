package feed

import (
	"sort"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// Bounds of a hub, unless HubOptions say otherwise.
const (
	DefaultRing   = 1 << 16
	DefaultGather = 2 * time.Millisecond
)

// HubOptions are what the owner of a hub may choose. The zero value works.
type HubOptions struct {
	// Log is a store whose change log readers catch up from when they have fallen
	// behind the ring. Its cursors are the hub's. nil: they are told
	// kv.ErrCursorGone.
	Log kv.Store

	// Ring is the number of changes kept; 0: DefaultRing.
	Ring int

	// Gather is the least time between two messages of changes to one reader, so
	// that a burst is a few messages. A change after a pause is told at once. 0:
	// DefaultGather; negative: none.
	Gather time.Duration
}

// Hub keeps the last changes and gives them to any number of readers. All methods
// may be called at once. Nobody is waited for.
type Hub struct {
	log    kv.Store
	size   int
	gather time.Duration
	born   time.Time
	moved  signal.Signal // fired after the head or asOf has moved

	mu    sync.Mutex // guards the rest, and the members and subscriptions
	open  bool
	ring  []kv.Change // every change after floor, oldest first, beginning at first
	first int
	floor kv.Cursor
	head  kv.Cursor
	asOf  time.Time // all that was acknowledged up to here is before head
	pops  map[string]map[MemberID]*member
}

// NewHub returns a hub that knows nothing yet: its readers wait for Open.
func NewHub(opts HubOptions) *Hub {
	h := &Hub{log: opts.Log, size: opts.Ring, gather: opts.Gather, born: time.Now(), pops: map[string]map[MemberID]*member{}}
	if h.size <= 0 {
		h.size = DefaultRing
	}
	if h.gather == 0 {
		h.gather = DefaultGather
	}
	return h
}

// Open begins, or begins anew, at a cursor: what was before it is not known here.
// Readers that are elsewhere are told that their cursor is gone, or catch up from
// the log.
func (h *Hub) Open(at kv.Cursor, asOf time.Time) {
	h.mu.Lock()
	h.open, h.floor, h.head, h.asOf = true, at, at, asOf
	h.ring, h.first = nil, 0
	h.mu.Unlock()
	h.moved.Fire()
}

// Publish adds the changes between the head and to, in the order of their
// cursors, and says that with them all is known that was acknowledged up to asOf;
// the zero time says nothing. What is not after the head is known already.
// Changes of another epoch than the head's are the caller's bug: it must Open.
func (h *Hub) Publish(changes []kv.Change, to kv.Cursor, asOf time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open || to.Epoch != h.head.Epoch {
		panic("feed: publish to a hub that was not opened at this epoch")
	}
	for _, c := range changes {
		if c.Cursor.Seq > h.head.Seq {
			h.push(c)
			h.head = c.Cursor
		}
	}
	if to.Seq > h.head.Seq {
		h.head = to
	}
	if asOf.After(h.asOf) {
		h.asOf = asOf
	}
	h.moved.Fire()
}

// push is called with mu held.
func (h *Hub) push(c kv.Change) {
	if len(h.ring) < h.size {
		h.ring = append(h.ring, c)
		return
	}
	h.floor = h.ring[h.first].Cursor
	h.ring[h.first] = c
	h.first = (h.first + 1) % h.size
}

// at returns the i-th oldest change of the ring. It is called with mu held.
func (h *Hub) at(i int) *kv.Change { return &h.ring[(h.first+i)%len(h.ring)] }

// after returns at most MaxMessageChanges changes after a cursor that the ring
// covers, and the cursor up to which they are all. It is called with mu held.
func (h *Hub) after(cursor kv.Cursor) ([]kv.Change, kv.Cursor) {
	if cursor == h.head {
		return nil, cursor
	}
	n := len(h.ring)
	from := sort.Search(n, func(i int) bool { return h.at(i).Cursor.Seq > cursor.Seq })
	end := min(n, from+MaxMessageChanges)
	if from == end {
		return nil, h.head
	}
	changes := make([]kv.Change, end-from)
	for i := range changes {
		changes[i] = *h.at(from + i)
	}
	if end < n {
		return changes, changes[len(changes)-1].Cursor
	}
	return changes, h.head
}

// fewChanges are coalesced by looking through them all.
const fewChanges = 16

// coalesce keeps the last of several changes of one key. It works in place.
func coalesce(changes []kv.Change) []kv.Change {
	if len(changes) < 2 {
		return changes
	}
	var last map[kv.Ref]int
	if len(changes) > fewChanges {
		last = make(map[kv.Ref]int, len(changes))
		for i := range changes {
			last[changes[i].Ref] = i
		}
	}
	kept := changes[:0]
	for i, c := range changes {
		if last != nil && last[c.Ref] != i || last == nil && occurs(changes[i+1:], c.Ref) {
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

func occurs(changes []kv.Change, ref kv.Ref) bool {
	for i := range changes {
		if changes[i].Ref == ref {
			return true
		}
	}
	return false
}
