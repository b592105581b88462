package feed

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// MemberID is chosen at random by a process when it starts.
type MemberID [16]byte

// Member names a process of a point of presence that several processes share.
// The zero Member shares none.
type Member struct {
	PoP string
	ID  MemberID
}

func (m Member) shared() bool { return m.PoP != "" }

// Bounds of a point of presence.
const (
	MaxMembers = 64                // of one point of presence
	MaxTold    = 4 * kv.MaxChanges // changes that one member may have yet to acknowledge
)

// member is what a hub knows of a Member. It outlives its subscription for as
// long as a lease may live. The hub's mu guards it.
type member struct {
	sub     *Subscription // nil: gone
	granted time.Time     // no message was put together later than this; zero: none
	acked   uint64        // so many changes were told and acknowledged
	told    []kv.Change   // the following ones are yet to be acknowledged
	since   time.Time     // no acknowledgement has come since, while told is not empty
	moved   signal.Signal // fired when acked has grown
}

// lapsed returns the moment from which on no lease given so far is alive.
func (m *member) lapsed() time.Time {
	if m.granted.IsZero() {
		return time.Time{}
	}
	return m.granted.Add(Lease + LeaseSlack)
}

// holdsUp reports whether the member does not acknowledge what it is told: writes
// wait for its lease to lapse. No member never does.
func (m *member) holdsUp(now time.Time) bool {
	return m != nil && len(m.told) > 0 && now.Sub(m.since) > HeartbeatEvery
}

// join makes s the subscription of a member. What the member has yet to
// acknowledge is told again. It is called with mu held.
func (h *Hub) join(s *Subscription, who Member) error {
	h.forgetGone(s.start)
	pop := h.pops[who.PoP]
	if pop == nil {
		pop = map[MemberID]*member{}
		h.pops[who.PoP] = pop
	}
	m := pop[who.ID]
	if m == nil {
		if len(pop) >= MaxMembers {
			return fmt.Errorf("point of presence %q has %d members already: %w", who.PoP, len(pop), kv.ErrOverloaded)
		}
		m = &member{}
		pop[who.ID] = m
	}
	if m.sub != nil {
		m.sub.end(errReplaced)
	}
	m.sub, s.member, s.base, s.next = s, m, m.acked, m.acked
	m.since = s.start
	return nil
}

// forgetGone removes the members that are gone and have no lease. It is called
// with mu held.
func (h *Hub) forgetGone(now time.Time) {
	for name, pop := range h.pops {
		for id, m := range pop {
			if m.sub == nil && !now.Before(m.lapsed()) {
				delete(pop, id)
			}
		}
		if len(pop) == 0 {
			delete(h.pops, name)
		}
	}
}

// untold is the number of changes yet to be told. It is called with the hub's mu
// held.
func (s *Subscription) untold() int {
	if s.member == nil {
		return 0
	}
	return len(s.member.told) - int(s.next-s.member.acked)
}

// tell adds what is to be told to a message that is being put together at now. It
// is called with the hub's mu held.
func (s *Subscription) tell(m *Message, now time.Time) {
	if s.member == nil {
		return
	}
	if n := min(s.untold(), MaxMessageChanges); n > 0 {
		from := int(s.next - s.member.acked)
		m.Told = slices.Clone(s.member.told[from : from+n])
		s.next += uint64(n)
	}
	m.Acks = s.next - s.base
	s.member.granted = now
}

// Ack says that the reader has applied the first n changes that it was told on
// this subscription.
func (s *Subscription) Ack(n uint64) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.member == nil || s.base+n > s.next || s.base+n < s.base {
		return fmt.Errorf("feed: %d changes are acknowledged, %d were told", n, s.next-s.base)
	}
	m := s.member
	if upTo := s.base + n; upTo > m.acked {
		m.told = slices.Delete(m.told, 0, int(upTo-m.acked))
		m.acked, m.since = upTo, time.Now()
		m.moved.Fire()
		if m.sub != nil {
			m.sub.poke() // it may have been held up
		}
	}
	return nil
}

// awaited is a member that must know of a write before it is acknowledged.
type awaited struct {
	member *member
	sub    *Subscription // at the time; nil: gone, but it may be back
	upTo   uint64        // acked must reach this
	until  time.Time     // or this moment pass
}

// Tell tells the other members of a point of presence of writes that one of them
// has made, and returns when each knows of them or has no lease any more. The
// changes need no cursor. If ctx ends before, the error wraps ctx.Err(), and the
// writes must not be acknowledged.
func (h *Hub) Tell(ctx context.Context, from Member, changes []kv.Change) error {
	if !from.shared() || len(changes) == 0 {
		return nil
	}
	others := h.enqueue(from, changes)
	timer := time.NewTimer(time.Until(h.born.Add(Lease + LeaseSlack)))
	defer timer.Stop()
	if time.Since(h.born) < Lease+LeaseSlack {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for leases of the time before the start: %w", ctx.Err())
		}
	}
	for _, a := range others {
		if err := h.await(ctx, a, timer); err != nil {
			return fmt.Errorf("tell point of presence %q: %w", from.PoP, err)
		}
	}
	return nil
}

// enqueue has changes told to the other members of a point of presence and
// returns those that may have a lease.
func (h *Hub) enqueue(from Member, changes []kv.Change) []awaited {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgetGone(time.Now())
	var others []awaited
	for id, m := range h.pops[from.PoP] {
		if id == from.ID {
			continue
		}
		sub, upTo := m.sub, uint64(math.MaxUint64)
		if len(m.told)+len(changes) <= MaxTold {
			if len(m.told) == 0 {
				m.since = time.Now()
			}
			m.told = append(m.told, changes...)
			upTo = m.acked + uint64(len(m.told))
		} else if sub != nil {
			// It is too far behind to be told: its lease lapses, and the changes
			// reach it through the feed before it is given another.
			sub.end(errLapsed)
		}
		if sub != nil {
			sub.poke()
		}
		if !m.granted.IsZero() {
			others = append(others, awaited{m, sub, upTo, m.lapsed()})
		}
	}
	return others
}

// await waits for one member.
func (h *Hub) await(ctx context.Context, a awaited, timer *time.Timer) error {
	for {
		moved := a.member.moved.C()
		h.mu.Lock()
		known, left := a.member.acked >= a.upTo, time.Until(a.until)
		if !known && left <= 0 && a.sub != nil {
			a.sub.end(errLapsed)
		}
		h.mu.Unlock()
		if known || left <= 0 {
			return nil
		}
		timer.Reset(left)
		select {
		case <-moved:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
