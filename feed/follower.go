package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// A follower that was cut off comes back after a random part of backoffLeast,
// doubled with every session that told nothing, up to backoffMost: so that a
// sender that starts again is not met by all at once.
const (
	backoffLeast = 50 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// Why a follower ends a session.
var (
	errGap    = errors.New("a message is missing")
	errSilent = errors.New("the sender is silent")
	errRenew  = errors.New("the session is renewed")
)

// Follower follows a stream into a sink.
type Follower struct {
	stream Stream
	sink   Sink
	logger *slog.Logger
	random func() float64 // 0 to 1, which itself it is not

	mu     sync.Mutex // guards status
	status Status
}

// Status is what a follower has come to.
type Status struct {
	Connected bool      // the present session has told something
	Cursor    kv.Cursor // told up to here
	AsOf      time.Time // current as of this moment; zero: not yet
	Messages  uint64    // applied
	Changes   uint64    // told in them
	Sessions  uint64    // begun, or resumed from a cursor
	Gaps      uint64    // sessions ended because a message was missing
	Silences  uint64    // sessions ended because the sender was silent
	Gone      uint64    // cursors that were no longer kept
}

// NewFollower returns a Follower; nothing happens before Run. A nil logger logs
// nothing.
func NewFollower(stream Stream, sink Sink, logger *slog.Logger) *Follower {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Follower{stream: stream, sink: sink, logger: logger, random: rand.Float64}
}

// UseRandom sets where the follower's random numbers (0 to 1, which itself they
// are not) come from, for a simulation that is to be repeated. It is called before
// Run.
func (f *Follower) UseRandom(random func() float64) { f.random = random }

// Status returns what the follower has come to. It may be called at any time.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// note changes the status.
func (f *Follower) note(change func(s *Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

// Run follows until ctx ends and then returns nil. Whatever goes wrong with the
// stream is a reason to come back later.
func (f *Follower) Run(ctx context.Context) error {
	var (
		cursor         kv.Cursor
		asOf           time.Time
		silentSessions int
		broken         bool
	)
	for ctx.Err() == nil {
		s := &session{f: f, cursor: cursor, asOf: asOf}
		err := s.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		cursor, asOf = s.cursor, s.asOf
		if s.messages > 0 {
			silentSessions, broken = 0, false
		}
		if errors.Is(err, errRenew) {
			continue
		}
		if errors.Is(err, kv.ErrCursorGone) {
			cursor = kv.Cursor{}
		}
		f.count(err)
		if !broken {
			f.logger.Warn("the feed is broken; copies age until it is back", "error", err)
			broken = true
		}
		sleep(ctx, f.backoff(silentSessions))
		silentSessions++
	}
	return nil
}

func (f *Follower) count(err error) {
	f.note(func(s *Status) {
		s.Connected = false
		switch {
		case errors.Is(err, errGap):
			s.Gaps++
		case errors.Is(err, errSilent):
			s.Silences++
		case errors.Is(err, kv.ErrCursorGone):
			s.Gone++
		}
	})
}

// backoff is the pause after so many sessions in a row that told nothing.
func (f *Follower) backoff(silentSessions int) time.Duration {
	return time.Duration(f.random() * float64(min(backoffMost, backoffLeast<<min(silentSessions, 16))))
}

// session is one time of following a stream without a break.
type session struct {
	f        *Follower
	start    time.Time // just before the stream was asked
	cursor   kv.Cursor
	acks     uint64
	messages int
	asOf     time.Time
}

// run returns why the session ended.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(SilentAfter, func() { cancel(errSilent) })
	defer silence.Stop()
	s.start = time.Now()
	s.f.note(func(st *Status) { st.Sessions++ })
	err := s.f.stream.Follow(ctx, s.cursor, func(m Message) error {
		silence.Reset(SilentAfter)
		if err := s.take(m); err != nil {
			return err
		}
		if time.Since(s.start) > SessionLimit {
			return errRenew
		}
		return nil
	})
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return fmt.Errorf("%w for %s", errSilent, SilentAfter)
	}
	if err == nil {
		return errors.New("the stream has ended")
	}
	return err
}

// take applies a message if it is the next in the chain.
func (s *session) take(m Message) error {
	told := uint64(len(m.Told))
	switch {
	case m.From == s.cursor && m.Acks == s.acks+told && follows(m):
	case m.To.Epoch == s.cursor.Epoch && m.To.Seq <= s.cursor.Seq && m.Acks <= s.acks:
		return nil // known already
	default:
		return fmt.Errorf("%w: have %d/%d and %d told, got %d/%d to %d/%d and %d to %d told", errGap,
			s.cursor.Epoch, s.cursor.Seq, s.acks, m.From.Epoch, m.From.Seq, m.To.Epoch, m.To.Seq, m.Acks-told, m.Acks)
	}
	s.apply(m)
	s.cursor, s.acks = m.To, m.Acks
	s.messages++
	s.f.note(func(st *Status) {
		st.Connected, st.Cursor, st.AsOf = true, s.cursor, s.asOf
		st.Messages++
		st.Changes += uint64(len(m.Changes))
	})
	return nil
}

// follows reports whether a message's end can follow its beginning.
func follows(m Message) bool {
	if m.From == (kv.Cursor{}) {
		return m.To != kv.Cursor{}
	}
	return m.To.Epoch == m.From.Epoch && m.To.Seq >= m.From.Seq
}

// apply tells the sink. The claim of the moment comes last: it is true only when
// the rest is known.
func (s *session) apply(m Message) {
	sink := s.f.sink
	if m.From == (kv.Cursor{}) {
		sink.Broken()
	}
	if len(m.Changes) > 0 {
		sink.Changed(m.Changes)
	}
	if len(m.Told) > 0 {
		told(sink, m.Told)
	}
	elapsed := m.Elapsed - m.Elapsed/drift
	claim := time.Time{}
	if m.Lag >= 0 {
		claim = earlier(s.start.Add(elapsed-m.Lag), time.Now())
	}
	if claim.After(s.asOf) {
		s.asOf = claim
		sink.Current(claim)
	}
	if c, ok := sink.(CursorSink); ok {
		c.Reached(m.To, claim)
	}
	// What was acknowledged before the session began is known if the sender knew
	// it when the session began: only then may copies be used again.
	if l, ok := sink.(LeaseSink); ok && m.Lag >= 0 && m.Elapsed >= m.Lag {
		l.Lease(s.start.Add(elapsed + Lease))
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
