package feed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

func at(seq uint64) kv.Cursor { return kv.Cursor{Epoch: 1, Seq: seq} }

func change(seq uint64, key string) kv.Change {
	return kv.Change{Cursor: at(seq), Ref: kv.Ref{Key: key}, Version: kv.NewVersion(int64(seq), 1, 1)}
}

// changesUpTo returns a change of a key of its own for each number.
func changesUpTo(from, to uint64) (changes []kv.Change) {
	for seq := from; seq <= to; seq++ {
		changes = append(changes, change(seq, fmt.Sprint("key ", seq)))
	}
	return changes
}

func next(t *testing.T, sub *feed.Subscription) feed.Message {
	t.Helper()
	m, err := sub.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func read(t *testing.T, hub *feed.Hub, after kv.Cursor) *feed.Subscription {
	t.Helper()
	sub, err := hub.Subscribe(after, feed.Member{})
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func TestRingLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ring = 8
		hub := feed.NewHub(feed.HubOptions{Ring: ring})
		hub.Open(at(100), time.Now())
		hub.Publish(changesUpTo(101, 100+ring), at(100+ring), time.Now())
		if m := next(t, read(t, hub, at(100))); len(m.Changes) != ring || m.From != at(100) || m.To != at(100+ring) || m.Lag != 0 {
			t.Errorf("a ring of %d gives %+v", ring, m)
		}
		hub.Publish([]kv.Change{change(101+ring, "one more")}, at(101+ring), time.Now())
		if _, err := read(t, hub, at(100)).Next(t.Context()); !errors.Is(err, kv.ErrCursorGone) {
			t.Errorf("a reader that is one behind the ring: %v", err)
		}
		m := next(t, read(t, hub, at(101)))
		if len(m.Changes) != ring || m.Changes[0].Cursor != at(102) || m.Changes[ring-1].Ref.Key != "one more" {
			t.Errorf("a full ring that has wrapped gives %+v", m)
		}
		if _, err := read(t, hub, kv.Cursor{Epoch: 2, Seq: 105}).Next(t.Context()); !errors.Is(err, kv.ErrCursorGone) {
			t.Errorf("a reader of another epoch: %v", err)
		}
		hub.Publish(changesUpTo(101, 105), at(105), time.Now())
		if m := next(t, read(t, hub, at(101))); len(m.Changes) != ring || m.To != at(101+ring) {
			t.Errorf("what is published again is told again: %+v", m)
		}
	})
}

func TestMessagesCoalesceAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, n := range []uint64{4, 40} {
			hub := feed.NewHub(feed.HubOptions{})
			hub.Open(at(0), time.Now())
			var changes []kv.Change
			for seq := uint64(1); seq <= n; seq++ {
				changes = append(changes, change(seq, fmt.Sprint("key ", seq%3)))
			}
			hub.Publish(changes, at(n), time.Now())
			m := next(t, read(t, hub, at(0)))
			if len(m.Changes) != 3 || !slices.Equal(m.Changes, changes[n-3:]) || m.To != at(n) {
				t.Errorf("%d changes of 3 keys: %+v", n, m)
			}
		}
		hub := feed.NewHub(feed.HubOptions{})
		hub.Open(at(0), time.Now())
		hub.Publish(changesUpTo(1, feed.MaxMessageChanges+1), at(feed.MaxMessageChanges+1), time.Now())
		sub := read(t, hub, at(0))
		if m := next(t, sub); len(m.Changes) != feed.MaxMessageChanges || m.Lag != feed.LagUnknown {
			t.Errorf("a message of %d changes claims to lag %s", len(m.Changes), m.Lag)
		}
		if m := next(t, sub); len(m.Changes) != 1 || m.Lag < 0 {
			t.Errorf("the rest is %d changes, lag %s", len(m.Changes), m.Lag)
		}
	})
}

// A lone change is told at once, a burst in few messages, and nothing at all at
// least every HeartbeatEvery.
func TestWhenMessagesAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := feed.NewHub(feed.HubOptions{})
		sub := read(t, hub, kv.Cursor{})
		begun := time.Now()
		go func() {
			time.Sleep(time.Second)
			hub.Open(at(1), time.Now())
		}()
		if m := next(t, sub); time.Since(begun) != time.Second || m.From != (kv.Cursor{}) || m.To != at(1) || m.Elapsed != time.Second {
			t.Errorf("the first message, %+v, after %s", m, time.Since(begun))
		}
		begun = time.Now()
		if m := next(t, sub); time.Since(begun) != feed.HeartbeatEvery || m.Lag != feed.HeartbeatEvery || m.From != m.To {
			t.Errorf("a heartbeat, %+v, after %s", m, time.Since(begun))
		}
		time.Sleep(feed.HeartbeatEvery / 2)
		begun = time.Now()
		hub.Publish([]kv.Change{change(2, "a")}, at(2), begun)
		if m := next(t, sub); time.Since(begun) != 0 || len(m.Changes) != 1 || m.Lag != 0 {
			t.Errorf("a lone change, %+v, after %s", m, time.Since(begun))
		}
		go func() {
			for seq := range uint64(10) {
				hub.Publish([]kv.Change{change(3+seq, fmt.Sprint(seq))}, at(3+seq), time.Now())
				time.Sleep(feed.DefaultGather / 10)
			}
		}()
		if m := next(t, sub); time.Since(begun) != feed.DefaultGather || len(m.Changes) < 9 {
			t.Errorf("a burst: %d changes after %s", len(m.Changes), time.Since(begun))
		}
		hub.Publish(nil, at(12), time.Now().Add(feed.HeartbeatEvery))
		begun = time.Now()
		next(t, sub) // what was left of the burst, or the newer moment
		if time.Since(begun) > feed.DefaultGather {
			t.Errorf("a newer moment was passed on after %s", time.Since(begun))
		}
	})
}

func TestReaderAheadOfTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		sub := read(t, hub, at(5))
		go func() {
			time.Sleep(100 * time.Millisecond)
			hub.Publish(changesUpTo(2, 6), at(6), time.Now())
		}()
		if m := next(t, sub); m.From != at(5) || len(m.Changes) != 1 {
			t.Errorf("a reader that is ahead is given %+v", m)
		}
		if _, err := read(t, hub, at(7)).Next(t.Context()); !errors.Is(err, kv.ErrCursorGone) {
			t.Errorf("a reader that stays ahead: %v", err)
		}
	})
}

func TestCatchUpFromTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, start, _ := kv.Changes(t.Context(), w.store, kv.Cursor{}, 1)
		const n = feed.MaxMessageChanges + 500
		for i := range n {
			if err := w.put(ref(i), nil); err != nil {
				t.Fatal(err)
			}
		}
		hub := feed.NewHub(feed.HubOptions{Ring: 4, Log: w.store})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		run(t, ctx, &wg, feed.NewSource(w.store, hub, nil).Run)
		sub, cursor, got := read(t, hub, start), start, 0
		for got < n {
			m := next(t, sub)
			if m.From != cursor || m.Lag != feed.LagUnknown {
				t.Fatalf("after %v: %v to %v, lag %s", cursor, m.From, m.To, m.Lag)
			}
			cursor, got = m.To, got+len(m.Changes)
		}
		if m := next(t, sub); m.From != cursor || m.Lag < 0 {
			t.Errorf("after all that was in the log: %+v", m)
		}
		cancel()
		wg.Wait()
	})
}

// sink notes what it is told.
type sink struct {
	mu    sync.Mutex // guards calls
	calls []string
	early func() bool
}

func (s *sink) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *sink) Changed(changes []kv.Change) {
	if s.early != nil && s.early() {
		s.note("too late")
	}
	s.note("changed " + changes[0].Ref.Key)
}
func (s *sink) Current(time.Time) { s.note("current") }
func (s *sink) Broken()           { s.note("broken") }

func (s *sink) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, ", ")
}

// script is a stream that gives what it was given.
type script struct {
	messages []feed.Message
	after    []kv.Cursor // of each Follow
}

func (s *script) Follow(ctx context.Context, after kv.Cursor, each func(feed.Message) error) error {
	s.after = append(s.after, after)
	for len(s.messages) > 0 {
		m := s.messages[0]
		s.messages = s.messages[1:]
		if m.To == (kv.Cursor{}) {
			return fmt.Errorf("scripted: %w", kv.ErrCursorGone)
		}
		if err := each(m); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestFollowerAppliesTheChainAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := func(from, to uint64) feed.Message {
			return feed.Message{From: at(from), To: at(to), Changes: []kv.Change{change(to, fmt.Sprint(to))}, Lag: feed.LagUnknown}
		}
		stream := &script{messages: []feed.Message{
			{From: kv.Cursor{}, To: at(1)}, one(1, 3), one(1, 3), one(1, 2), one(3, 4), // a repeated and a late one
			one(6, 7),                      // a gap
			one(4, 5),                      // resumed
			{},                             // gone
			{From: kv.Cursor{}, To: at(9)}, // begun anew
		}}
		s := &sink{}
		f := feed.NewFollower(stream, s, nil)
		ctx, cancel := context.WithTimeout(t.Context(), feed.SilentAfter)
		defer cancel()
		if err := f.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got, want := s.told(), "broken, current, changed 3, changed 4, changed 5, broken, current"; got != want {
			t.Errorf("the sink was told %s; want %s", got, want)
		}
		if want := []kv.Cursor{{}, at(4), {}}; !slices.Equal(stream.after, want) {
			t.Errorf("followed after %v, want %v", stream.after, want)
		}
		if st := f.Status(); st.Gaps != 1 || st.Gone != 1 || st.Sessions != 3 || st.Cursor != at(9) {
			t.Errorf("status %+v", st)
		}
	})
}

func TestFollowerLeavesASilentSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed.NewFollower(&script{}, &sink{}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), feed.SilentAfter+time.Second)
		defer cancel()
		if err := f.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if st := f.Status(); st.Silences != 1 || st.Sessions != 2 || st.Connected {
			t.Errorf("status %+v", st)
		}
	})
}

// refusing is a stream that nobody serves.
type refusing struct{ times []time.Time }

func (r *refusing) Follow(context.Context, kv.Cursor, func(feed.Message) error) error {
	r.times = append(r.times, time.Now())
	return errors.New("refused")
}

func TestFollowerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &refusing{}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := feed.NewFollower(r, &sink{}, nil).Run(ctx); err != nil {
			t.Fatal(err)
		}
		if n := len(r.times); n < 120 || n > 500 {
			t.Errorf("came back %d times in 10 minutes", n)
		}
		pauses := map[time.Duration]bool{}
		for i := range r.times[1:] {
			pauses[r.times[i+1].Sub(r.times[i])] = true
		}
		if len(pauses) < len(r.times)/2 {
			t.Errorf("%d pauses, of which %d differ: no jitter", len(r.times), len(pauses))
		}
	})
}

func TestRelayTellsTheInnerSinkFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		centre, region := openHub(), feed.NewHub(feed.HubOptions{})
		sub := read(t, region, kv.Cursor{})
		heard := false
		inner := &sink{early: func() bool { return heard }}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		run(t, ctx, &wg, feed.NewFollower(feed.Local{Hub: centre}, feed.NewRelay(inner, region), nil).Run)
		next(t, sub)
		centre.Publish([]kv.Change{change(2, "a")}, at(2), time.Now())
		for {
			if m := next(t, sub); len(m.Changes) > 0 {
				heard = true
				break
			}
		}
		if got := inner.told(); !strings.HasSuffix(got, "changed a, current") && !strings.HasSuffix(got, "changed a") {
			t.Errorf("the inner sink was told %s", got)
		}
		cancel()
		wg.Wait()
	})
}

func TestSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := feed.NewSource(bare{memory.New()}, feed.NewHub(feed.HubOptions{}), nil).Run(t.Context()); !errors.Is(err, kv.ErrUnsupported) {
			t.Errorf("a store without a change log: %v", err)
		}
		w := newWorld()
		hub := feed.NewHub(feed.HubOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		run(t, ctx, &wg, feed.NewSource(w.store, hub, nil).Run)
		sub := read(t, hub, kv.Cursor{})
		first := next(t, sub)
		w.store.failWith(kv.ErrUnavailable)
		if err := w.put(ref(1), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for range 3 {
			if m := next(t, sub); len(m.Changes) != 0 || m.Elapsed >= time.Minute && m.Lag < time.Minute-time.Second {
				t.Errorf("while the log cannot be read: %+v", m)
			}
		}
		w.store.failWith(nil)
		for m := next(t, sub); len(m.Changes) == 0; m = next(t, sub) {
			if m.From.Seq > first.To.Seq {
				t.Fatalf("a change was passed over: %+v", m)
			}
		}
		cancel()
		wg.Wait()
	})
}

// bare is a store without abilities.
type bare struct{ kv.Store }
