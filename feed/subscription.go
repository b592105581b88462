package feed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// aheadWithin is how long a reader that is ahead of the hub (it was told by
// another that knew more) is given for the hub to catch up.
const aheadWithin = 500 * time.Millisecond

// Why a hub ends a subscription.
var (
	errReplaced = errors.New("feed: the member has subscribed again")
	errLapsed   = errors.New("feed: the member did not acknowledge what it was told within its lease")
	errClosed   = errors.New("feed: the subscription is closed")
)

// Subscription is one reader's place in a hub. Next is called by one goroutine;
// the others may be called at once.
type Subscription struct {
	hub   *Hub
	start time.Time // when it was asked for
	wake  chan struct{}

	// Of the only caller of Next.
	timer  *time.Timer
	cursor kv.Cursor
	sent   time.Time // the last message
	burst  time.Time // the last message of changes
	asOf   time.Time // as of the last message

	// Guarded by the hub's mu.
	member *member
	base   uint64 // of the member's told changes: those before it were acknowledged when the subscription began
	next   uint64 // of the member's told changes: the first one not sent on this subscription
	ended  error
}

// Subscribe begins to read after a cursor; the zero cursor is the head. The zero
// Member belongs to no shared point of presence.
func (h *Hub) Subscribe(after kv.Cursor, who Member) (*Subscription, error) {
	s := &Subscription{hub: h, start: time.Now(), wake: make(chan struct{}, 1), cursor: after}
	if !who.shared() {
		return s, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.join(s, who); err != nil {
		return nil, fmt.Errorf("subscribe to the feed: %w", err)
	}
	return s, nil
}

// Close ends the subscription. A lease that it gave lives on.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.end(errClosed)
}

// end is called with the hub's mu held.
func (s *Subscription) end(why error) {
	if s.ended != nil {
		return
	}
	s.ended = why
	if s.member != nil && s.member.sub == s {
		s.member.sub = nil
	}
	s.poke()
}

// poke wakes Next.
func (s *Subscription) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next waits until there is something to tell, or a heartbeat is due. An error
// ends the subscription; it wraps kv.ErrCursorGone if the reader must begin anew.
func (s *Subscription) Next(ctx context.Context) (Message, error) {
	if s.timer == nil {
		s.timer = time.NewTimer(HeartbeatEvery)
	}
	defer s.timer.Stop()
	for {
		moved := s.hub.moved.C()
		m, wait, err := s.compose(time.Now())
		switch {
		case errors.Is(err, errBehind):
			return s.catchUp(ctx)
		case err != nil:
			return Message{}, err
		case wait.ready:
			return m, nil
		case wait.gathering:
			moved = nil
		}
		s.timer.Reset(wait.most)
		select {
		case <-moved:
		case <-s.wake:
		case <-s.timer.C:
		case <-ctx.Done():
			return Message{}, fmt.Errorf("read the feed: %w", ctx.Err())
		}
	}
}

// pause is what Next does after looking.
type pause struct {
	ready     bool          // there is a message
	gathering bool          // further changes are no reason to look again
	most      time.Duration // look again after
}

// errBehind: the ring no longer has the changes, the log may.
var errBehind = errors.New("feed: the reader has fallen behind the ring")

// compose puts the next message together, if one is due.
func (s *Subscription) compose(now time.Time) (Message, pause, error) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.ended != nil {
		return Message{}, pause{}, s.ended
	}
	if !h.open {
		return Message{}, pause{most: HeartbeatEvery}, nil
	}
	first := s.cursor == kv.Cursor{}
	if !first {
		if wait, err := s.place(now); wait > 0 || err != nil {
			return Message{}, pause{most: wait}, err
		}
	}
	if wait := s.notDue(now, first); wait.most > 0 {
		return Message{}, wait, nil
	}
	m := Message{From: s.cursor, To: h.head, Elapsed: now.Sub(s.start), Lag: max(0, now.Sub(h.asOf))}
	if !first {
		m.Changes, m.To = h.after(s.cursor)
		m.Changes = coalesce(m.Changes)
	}
	if m.To != h.head {
		m.Lag = LagUnknown
	}
	s.tell(&m, now)
	s.cursor, s.sent, s.asOf = m.To, now, h.asOf
	if len(m.Changes) > 0 {
		s.burst = now
	}
	return m, pause{ready: true}, nil
}

// place finds out whether the ring covers the cursor. It returns how long to wait
// for that, or an error. It is called with the hub's mu held.
func (s *Subscription) place(now time.Time) (time.Duration, error) {
	h := s.hub
	switch {
	case s.cursor.Epoch != h.head.Epoch:
		return 0, fmt.Errorf("feed: epoch %d has ended: %w", s.cursor.Epoch, kv.ErrCursorGone)
	case s.cursor.Seq > h.head.Seq:
		if wait := aheadWithin - now.Sub(s.start); wait > 0 {
			return wait, nil
		}
		return 0, fmt.Errorf("feed: cursor %d is ahead of the head %d: %w", s.cursor.Seq, h.head.Seq, kv.ErrCursorGone)
	case s.cursor.Seq >= h.floor.Seq:
		return 0, nil
	case h.log != nil:
		return 0, errBehind
	}
	return 0, fmt.Errorf("feed: changes after %d are no longer kept: %w", s.cursor.Seq, kv.ErrCursorGone)
}

// notDue says how long to wait before the next message, zero if it is due. What
// was told does not wait, changes wait for others to share their message, and a
// newer asOf is passed on unless one was just told. A member that writes wait for
// is given no longer lease meanwhile. It is called with the hub's mu held.
func (s *Subscription) notDue(now time.Time, first bool) pause {
	h := s.hub
	if first || s.sent.IsZero() || s.untold() > 0 {
		return pause{}
	}
	switch {
	case s.member.holdsUp(now):
		return pause{most: HeartbeatEvery, gathering: true}
	case s.cursor != h.head:
		return pause{most: h.gather - now.Sub(s.burst), gathering: true}
	case h.asOf.Sub(s.asOf) >= HeartbeatEvery/2:
		return pause{}
	}
	return pause{most: HeartbeatEvery - now.Sub(s.sent)}
}

// catchUp reads a message from the log.
func (s *Subscription) catchUp(ctx context.Context) (Message, error) {
	changes, next, err := kv.Changes(ctx, s.hub.log, s.cursor, MaxMessageChanges)
	if err != nil {
		return Message{}, fmt.Errorf("catch up from the log: %w", err)
	}
	if next == s.cursor {
		return Message{}, fmt.Errorf("feed: the log ends at %d, before the ring begins: %w", next.Seq, kv.ErrCursorGone)
	}
	now := time.Now()
	m := Message{From: s.cursor, To: next, Changes: coalesce(changes), Elapsed: now.Sub(s.start), Lag: LagUnknown}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.ended != nil {
		return Message{}, s.ended
	}
	s.tell(&m, now)
	s.cursor, s.sent = next, now
	return m, nil
}
