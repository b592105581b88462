// Package tail is for watching what Workers do and log: live, by those who follow
// a Worker over a WebSocket, and for a bounded time afterwards. A Hub is where the
// followers are; a Courier takes to it what happens on an edge.
//
// Nobody waits for a follower: one who reads too slowly is told that events were
// dropped. Nothing is kept but the last lines of each Worker, in memory: a process
// that ends loses them, and the events in flight.
package tail

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/websocket"
)

// Protocol is what the WebSocket of a tail speaks.
const Protocol = "trace-v1"

// The bounds of sessions.
const (
	MaxSessions   = 200              // of a Hub
	MaxSession    = 6 * time.Hour    // from the opening of a tail until it ends
	Lease         = 3 * time.Minute  // that a tail is open without a renewal
	MaxQueueBytes = 512 << 10        // that wait for a follower
	MaxQueue      = 1000             // events that wait for a follower
	MaxEventBytes = 256 << 10        // of an event; a larger one is sent without its logs
	pingEvery     = 20 * time.Second // a follower is asked for a sign of life
	idle          = time.Minute      // without one it is gone
	stall         = 30 * time.Second // for a follower to take an event
	renewEvery    = time.Minute
	callTimeout   = 10 * time.Second // of a call of the catalog
	closeWait     = time.Second      // for a follower to agree to the end
)

// Tails is where it is known which tails are open, until when. *catalog.Catalog
// implements it.
type Tails interface {
	RenewTail(ctx context.Context, accountID, worker, id string, life time.Duration) (catalog.Tail, error)
	CloseTail(ctx context.Context, accountID, worker, id string) error
}

// Options are what a Hub stands on. Only Tails must be set.
type Options struct {
	Tails  Tails
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
}

// Stats are what a Hub counted, and how much there is now.
type Stats struct {
	Sessions    int
	Sent        int64 // events taken by followers
	Dropped     int64 // events that followers were too slow for
	RecentBytes int   // of kept lines
}

// Hub hands events to those who follow a Worker.
type Hub struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time

	mu            sync.Mutex            // guards the rest
	byWorker      map[worker][]*session // as they came
	byTail        map[string]*session   // by the tail's id
	recent        recent                // kept lines
	ended         bool                  // no session begins any more
	gone          chan struct{}         // closed when the next session ends; nil: nobody waits
	watched       atomic.Int64          // sessions: Publish need not lock for none
	sent, dropped atomic.Int64
}

// worker names a Worker.
type worker struct{ account, name string }

// NewHub returns a Hub. It starts nothing.
func NewHub(opts Options) *Hub {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Hub{opts: opts, log: opts.Logger, now: opts.Now,
		byWorker: map[worker][]*session{}, byTail: map[string]*session{}, recent: newRecent()}
}

// Run keeps house until ctx ends, and then ends all sessions.
func (h *Hub) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.mu.Lock()
			h.recent.expire(h.now())
			h.mu.Unlock()
		case <-ctx.Done():
			h.close()
			return nil
		}
	}
}

// close ends all sessions and waits for them, which takes no longer than it takes
// to cut one off.
func (h *Hub) close() {
	h.mu.Lock()
	h.ended = true
	for _, s := range h.byTail {
		s.end(websocket.CloseGoingAway, "the server ends")
	}
	for len(h.byTail) > 0 {
		if h.gone == nil {
			h.gone = make(chan struct{})
		}
		gone := h.gone
		h.mu.Unlock()
		<-gone
		h.mu.Lock()
	}
	h.mu.Unlock()
}

// Stats returns what was counted so far.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{len(h.byTail), h.sent.Load(), h.dropped.Load(), h.recent.bytes}
}

// Filters checks the filters of a tail that is to be opened and returns them as
// they are to be kept. clientIP is the address of who opens it.
func (h *Hub) Filters(sent json.RawMessage, clientIP string) (json.RawMessage, error) {
	all, err := parseFilters(sent)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	all.name(clientIP)
	return json.Marshal(all)
}

// Publish hands what a Worker did to those who follow it. It does not wait for
// anybody. The event must not change afterwards.
func (h *Hub) Publish(accountID, name string, event json.RawMessage) {
	if h.watched.Load() == 0 {
		return
	}
	event = fitting(event)
	h.mu.Lock()
	sessions := h.byWorker[worker{accountID, name}]
	h.mu.Unlock()
	for _, s := range sessions { // a slice that is never changed
		if s.filters.match(event) {
			s.push(event)
		}
	}
}

// Deliver hands to one tail what an edge found to pass its filters. It is false if
// nobody follows it here.
func (h *Hub) Deliver(t catalog.Tail, events []json.RawMessage) bool {
	h.mu.Lock()
	s := h.byTail[t.ID]
	h.mu.Unlock()
	if s == nil {
		return false
	}
	for _, event := range events {
		s.push(fitting(event))
	}
	return true
}

// End ends the session of a tail that was closed.
func (h *Hub) End(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.byTail[id]; s != nil {
		s.end(websocket.CloseNormal, "the tail was closed")
	}
}

// Log keeps a line that a Worker logged, as workerd writes it, for those who ask
// for what was logged. It does not keep the slice.
func (h *Hub) Log(accountID, name, version string, line []byte) {
	at, entry := logEntry(line, h.now())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recent.add(worker{accountID, name}, logged{at, version, entry})
}

// Serve makes a request the session of a tail and returns when it has ended; the
// tail ends with it. since is from when on lines that were kept are sent first;
// the zero time: none. A *websocket.HandshakeError means that nothing was answered.
func (h *Hub) Serve(w http.ResponseWriter, r *http.Request, t catalog.Tail, since time.Time) error {
	all, err := parseFilters(t.Filters)
	if err != nil {
		return fmt.Errorf("filters of tail %s: %w", t.ID, err)
	}
	s := &session{hub: h, tail: t, filters: all, wake: make(chan struct{}, 1), ending: make(chan struct{})}
	if s.conn, err = websocket.Upgrade(w, r, Protocol, websocket.Options{Idle: idle, Stall: stall}); err != nil {
		return err
	}
	if refusal := h.begin(s); refusal != "" {
		s.end(websocket.CloseTryAgain, refusal)
	}
	defer h.forget(s)
	h.replay(s, since)
	s.run(r.Context())
	h.closeTail(r.Context(), s)
	return nil
}

// begin adds a session, in the place of one of the same tail, or tells why not.
func (h *Hub) begin(s *session) (refusal string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.byTail[s.tail.ID]
	switch {
	case h.ended:
		return "the server ends"
	case old == nil && len(h.byTail) >= MaxSessions:
		return fmt.Sprintf("%d tails are followed at this moment, as many as may be", MaxSessions)
	case old != nil:
		old.replaced = true
		old.end(websocket.CloseNormal, "the tail is followed anew")
		h.remove(old)
	}
	name := worker{s.tail.AccountID, s.tail.Worker}
	h.byTail[s.tail.ID] = s
	h.byWorker[name] = append(h.byWorker[name][:len(h.byWorker[name]):len(h.byWorker[name])], s)
	h.watched.Add(1)
	return ""
}

func (h *Hub) forget(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byTail[s.tail.ID] == s {
		h.remove(s)
	}
}

// remove takes a session out. The caller holds mu.
func (h *Hub) remove(s *session) {
	name := worker{s.tail.AccountID, s.tail.Worker}
	delete(h.byTail, s.tail.ID)
	var rest []*session
	for _, other := range h.byWorker[name] {
		if other != s {
			rest = append(rest, other)
		}
	}
	if h.byWorker[name] = rest; rest == nil {
		delete(h.byWorker, name)
	}
	h.watched.Add(-1)
	if h.gone != nil {
		close(h.gone)
		h.gone = nil
	}
}

// closeTail closes the tail whose session has ended, so that nobody delivers to it
// any more. If it cannot be, the tail ends with its lease.
func (h *Hub) closeTail(ctx context.Context, s *session) {
	h.mu.Lock()
	replaced := s.replaced
	h.mu.Unlock()
	if replaced || s.closed.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := h.opts.Tails.CloseTail(ctx, s.tail.AccountID, s.tail.Worker, s.tail.ID); err != nil && !notThere(err) {
		h.log.Warn("close a tail; it ends with its lease", "worker", s.tail.Worker, "error", err)
	}
}
