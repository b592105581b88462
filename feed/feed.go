// Package feed carries word of changes from a store to the tiers that keep
// copies of its records: cursor, reference and version, never the value.
//
// A Source tails a store's change log into a Hub, which keeps the last changes in
// a ring and gives them to any number of readers, each at its own pace. A
// Follower follows a Stream (a hub in this process, or one behind a wire) into a
// Sink: a tier, or a Relay, which tells a tier first and its own hub then. So a
// centre serves regions, and regions serve edges.
//
//	store ─ Source ─ Hub ─ Stream ─ Follower ─ Relay ─┬─ tier
//	                                                  └─ Hub ─ Stream ─ Follower ─ tier
//
// # What a message says
//
// Messages form a chain: the From of each is the To of the one before, and Acks
// counts what was told. What does not fit the chain is old and ignored, or a gap,
// which ends the session; the follower resumes from its own cursor. When the
// changes after that cursor are gone, it begins anew at the head, and the sink is
// told that it may have missed some.
//
// # What a message proves
//
// The follower notes its own monotonic clock, t0, before it asks. Elapsed is the
// sender's monotonic time since the request came in, Lag the age of what the
// sender itself knows. After a message has been applied, every change
// acknowledged by the store up to
//
//	t0 + Elapsed - Lag
//
// is known. No clock of one machine is compared with that of another. Clocks
// also differ in rate, so a thousandth of Elapsed is taken off (drift), and a
// session is renewed after SessionLimit.
//
// # Shared points of presence
//
// Several processes of one point of presence promise together that a reader of
// any of them sees what was acknowledged by any of them. A Member names such a
// process. Before a write of one is acknowledged, Hub.Tell tells the others, and
// waits until each has acknowledged that it knows, or can no longer answer from
// its copies: it may do so only while it has a lease, which each message extends
// to Lease after the message was put together. A message is applied whole and in
// order, so a lease can only be extended past a write that was told before.
// A lease is given only if what the message proves includes the moment at which
// the session began, so who comes back knows what was acknowledged meanwhile. A
// hub that has just begun does not know the leases that its forerunner gave, and
// waits for them to lapse.
//
// A lost, repeated, late or reordered message costs staleness up to what the
// readers of a tier accept, and nothing else. The package keeps nothing on disk
// and may lose everything that it holds: followers then begin anew.
package feed

import (
	"context"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// HeartbeatEvery is the time within which a stream says something, if only
	// that nothing has changed.
	HeartbeatEvery = 250 * time.Millisecond

	// SilentAfter is the silence after which a follower gives a session up.
	SilentAfter = 2 * time.Second

	// SessionLimit is the age at which a follower renews a session, so that
	// clocks of different rate do not drift apart for ever.
	SessionLimit = time.Minute

	// Lease is how long after a message was put together a member of a shared
	// point of presence that has applied it may answer from its copies.
	Lease = time.Second

	// LeaseSlack is how much longer than a lease the sender waits for it to lapse.
	LeaseSlack = 50 * time.Millisecond

	// MaxMessageChanges is the greatest number of changes in a message, and of
	// those told.
	MaxMessageChanges = 1024

	// drift is the part of Elapsed (one in so many) that clocks of different rate
	// may be apart: twice what a disciplined clock is slewed by.
	drift = 1000
)

// LagUnknown is the Lag of a message after which more is known to be missing.
const LagUnknown = time.Duration(-1)

// Message is what a stream says at once.
type Message struct {
	From, To kv.Cursor     // the receiver knows From and, after this message, To; From is zero in the first message of a session that begins at the head
	Changes  []kv.Change   // in the order of their cursors; of several changes of one key the last
	Elapsed  time.Duration // the sender's monotonic time since the session was asked for
	Lag      time.Duration // the age of what the sender knows; LagUnknown: no claim
	Told     []kv.Change   // writes that this point of presence is about to acknowledge; they have no cursor
	Acks     uint64        // how many changes were told in this session, with this message
}

// Sink is what a feed is told to. All calls come from one goroutine, in order.
// The slices are the sink's to keep, not to change.
type Sink interface {
	// Changed says that these keys have these versions, or newer ones.
	Changed(changes []kv.Change)

	// Current says that every change acknowledged up to asOf has been told since
	// the last call of Broken. asOf is of the local clock and has a monotonic
	// reading.
	Current(asOf time.Time)

	// Broken says that changes may have been missed: a copy is as fresh as it was
	// known to be, and what is told from now on says nothing of it. It is also the
	// first call of all.
	Broken()
}

// ToldSink is a Sink of a member of a shared point of presence. When Told has
// returned, no read may answer with less than what was told.
type ToldSink interface {
	Told(changes []kv.Change)
}

// LeaseSink is a Sink of a member of a shared point of presence. It answers from
// its copies only up to the latest moment that Lease allowed.
type LeaseSink interface {
	Lease(until time.Time)
}

// CursorSink is a Sink that wants to know how far it has been told. Reached is
// called once for each message, after Changed and Current; the zero asOf is no
// claim.
type CursorSink interface {
	Reached(cursor kv.Cursor, asOf time.Time)
}

// Stream is where messages come from: Local in this process, wire.Client from
// another. Follow gives each message after a cursor (zero: from the head on) to
// each, in order and from one goroutine, until ctx ends, the stream does, or each
// returns an error, and returns why. What was told is acknowledged after each has
// returned nil. If the changes after the cursor are gone, the error wraps
// kv.ErrCursorGone.
type Stream interface {
	Follow(ctx context.Context, after kv.Cursor, each func(Message) error) error
}
