package feed_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// far is a process that serves the feed and can be started again.
type far struct {
	w *world

	mu   sync.Mutex // guards the rest
	hub  *feed.Hub
	ctx  context.Context
	stop func()
}

// start ends the process, if there is one, and begins another.
func (f *far) start(ctx context.Context, wg *sync.WaitGroup) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stop != nil {
		f.stop()
	}
	f.ctx, f.stop = context.WithCancel(ctx)
	f.hub = feed.NewHub(feed.HubOptions{Log: f.w.store, Ring: 16})
	source, running := feed.NewSource(f.w.store, f.hub, nil), f.ctx
	wg.Go(func() { _ = source.Run(running) })
}

func (f *far) now() (*feed.Hub, context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hub, f.ctx
}

// farStream is the stream of one member: what arrives over the link and is
// applied is acknowledged.
type farStream struct {
	far    *far
	member feed.Member
	link   *faults
}

func (s farStream) Follow(ctx context.Context, after kv.Cursor, each func(feed.Message) error) error {
	hub, life := s.far.now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	pause(ctx, time.Duration(s.link.rng.Int64N(int64(s.link.most))))
	sub, err := hub.Subscribe(after, s.member)
	if err != nil {
		return err
	}
	defer sub.Close()
	put := s.link.link(ctx, after, func(m feed.Message) error {
		if err := each(m); err != nil || len(m.Told) == 0 {
			return err
		}
		return sub.Ack(m.Acks)
	})
	for {
		m, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if err := put(m); err != nil {
			return err
		}
	}
}

// popStory is what a random run of a shared point of presence is made of.
type popStory struct {
	seed            uint64
	untold, greedy  bool // controls: others are not told; leases are forgotten
	restarts, quiet bool // the far process starts again; nothing goes wrong on the links
}

type popResult struct {
	wrong         []string
	puts, failed  int
	copies, reads int64
	slowest       time.Duration
}

func (p popStory) run(t *testing.T) (result popResult) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		f := &far{w: w}
		f.start(ctx, &wg)
		tiers, members := p.members(t, ctx, &wg, f)
		var mu sync.Mutex
		var copies, reads atomic.Int64
		put := func(i int, r kv.Ref) {
			begun := time.Now()
			err := w.put(r, func(c kv.Change) error {
				hub, life := f.now()
				if !p.untold {
					if err := hub.Tell(life, members[i], []kv.Change{c}); err != nil {
						return err
					}
				}
				tiers[i].Changed([]kv.Change{c})
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				result.failed++
				return
			}
			result.puts++
			result.slowest = max(result.slowest, time.Since(begun))
		}
		for i := range uint64(8) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(p.seed, 100+i))
				for ctx.Err() == nil {
					pause(ctx, time.Duration(rng.Int64N(int64(20*time.Millisecond))))
					n, r := rng.IntN(len(tiers)), ref(rng.IntN(keys))
					if rng.IntN(4) == 0 {
						put(n, r)
						continue
					}
					reads.Add(1)
					if tiers[n].read(r) {
						copies.Add(1)
						continue
					}
					tiers[n].fetch(r, func() { pause(ctx, time.Duration(rng.Int64N(int64(3*time.Millisecond)))) })
				}
			})
		}
		for range 30 {
			time.Sleep(time.Second)
			if p.restarts {
				f.start(ctx, &wg)
				time.Sleep(3 * time.Second)
			}
		}
		cancel()
		wg.Wait()
		for _, s := range tiers {
			wrong, _ := s.verdict()
			result.wrong = append(result.wrong, wrong...)
		}
		result.copies, result.reads = copies.Load(), reads.Load()
	})
	return result
}

// members returns the tiers of a point of presence, each with its follower.
func (p popStory) members(t *testing.T, ctx context.Context, wg *sync.WaitGroup, f *far) (tiers []*tier, members []feed.Member) {
	for i := range 3 {
		s := newTier(f.w)
		s.shared, s.greedy = true, p.greedy
		m := feed.Member{PoP: "here", ID: feed.MemberID{byte(i + 1)}}
		rng := rand.New(rand.NewPCG(p.seed, uint64(i)))
		link := &faults{rng: rng, most: 20 * time.Millisecond}
		if !p.quiet {
			link.drop, link.repeat, link.swap, link.delay, link.cut, link.hang = 0.002, 0.01, 0.003, 0.2, 0.003, 0.004
		}
		run(t, ctx, wg, feed.NewFollower(farStream{f, m, link}, s, nil).Run)
		tiers, members = append(tiers, s), append(members, m)
	}
	return tiers, members
}

// Through one point of presence a read never returns less than what was
// acknowledged through it, whatever happens to its members' feeds.
func TestSharedPointOfPresenceReadsItsWrites(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		for _, seed := range seeds(t, 4) {
			result := popStory{seed: seed, restarts: restarts}.run(t)
			if len(result.wrong) > 0 {
				t.Fatalf("FEED_SEED=%d: %d reads returned less than was acknowledged, the first: %s", seed, len(result.wrong), result.wrong[0])
			}
			if result.slowest > feed.Lease+feed.LeaseSlack {
				t.Errorf("FEED_SEED=%d: a put took %s, a lease is %s", seed, result.slowest, feed.Lease)
			}
			if result.puts < 100 || result.copies < 1000 {
				t.Errorf("FEED_SEED=%d: %d puts, %d of %d reads from copies: the test shows little", seed, result.puts, result.copies, result.reads)
			}
			t.Logf("FEED_SEED=%d: %d puts (%d failed), the slowest %s; %d of %d reads from copies", seed, result.puts, result.failed, result.slowest, result.copies, result.reads)
		}
	}
}

func TestSharedPointOfPresenceInPeace(t *testing.T) {
	result := popStory{seed: 1, quiet: true}.run(t)
	if len(result.wrong) > 0 || result.copies*3 < result.reads {
		t.Errorf("in peace: %+v", result)
	}
}

func TestControlsOfSharedPointOfPresence(t *testing.T) {
	for name, story := range map[string]popStory{"others are not told": {untold: true}, "leases are forgotten": {greedy: true}} {
		found := 0
		for _, seed := range seeds(t, 3) {
			story.seed = seed
			found += len(story.run(t).wrong)
		}
		if found == 0 {
			t.Errorf("%s, and no read returned less than was acknowledged", name)
		}
	}
}

// subscribe begins as a member and takes the first message.
func subscribe(t *testing.T, hub *feed.Hub, id byte) *feed.Subscription {
	t.Helper()
	sub, err := hub.Subscribe(kv.Cursor{}, feed.Member{PoP: "here", ID: feed.MemberID{id}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sub
}

func openHub() *feed.Hub {
	hub := feed.NewHub(feed.HubOptions{})
	hub.Open(kv.Cursor{Epoch: 1, Seq: 1}, time.Now())
	return hub
}

var anyChange = []kv.Change{{Ref: kv.Ref{Key: "k"}, Version: kv.NewVersion(1, 1, 1)}}

func TestHungMemberCostsOneLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		me := feed.Member{PoP: "here", ID: feed.MemberID{1}}
		time.Sleep(2 * feed.Lease) // the hub is no longer young
		hung := subscribe(t, hub, 2)
		granted := time.Now()
		time.Sleep(feed.HeartbeatEvery)
		begun := time.Now()
		if err := hub.Tell(t.Context(), me, anyChange); err != nil {
			t.Fatal(err)
		}
		if lapsed := granted.Add(feed.Lease); time.Now().Before(lapsed) || time.Since(begun) > feed.Lease+feed.LeaseSlack {
			t.Errorf("told after %s, the lease lapses after %s", time.Since(begun), lapsed.Sub(begun))
		}
		begun = time.Now()
		if err := hub.Tell(t.Context(), me, anyChange); err != nil || time.Since(begun) != 0 {
			t.Errorf("the second write waited %s for a member that has no lease any more (%v)", time.Since(begun), err)
		}
		if _, err := hung.Next(t.Context()); err == nil {
			t.Error("a member that hung goes on where it was")
		}
	})
}

// A member that does not acknowledge is told of further writes, but given no
// longer lease by heartbeats.
func TestNoHeartbeatWhileWritesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		time.Sleep(2 * feed.Lease)
		sub := subscribe(t, hub, 2)
		begun := time.Now()
		go func() { _ = hub.Tell(t.Context(), feed.Member{PoP: "here", ID: feed.MemberID{1}}, anyChange) }()
		synctest.Wait()
		messages, last := 0, begun
		for {
			if _, err := sub.Next(t.Context()); err != nil {
				break
			}
			messages, last = messages+1, time.Now()
		}
		if messages != 2 || last.Sub(begun) > feed.HeartbeatEvery || time.Since(begun) != feed.Lease+feed.LeaseSlack {
			t.Errorf("%d messages, the last after %s, the end after %s", messages, last.Sub(begun), time.Since(begun))
		}
	})
}

func TestTellWaitsForEveryMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		time.Sleep(2 * feed.Lease)
		me := feed.Member{PoP: "here", ID: feed.MemberID{1}}
		subscribe(t, hub, 1)
		subs := []*feed.Subscription{subscribe(t, hub, 2), subscribe(t, hub, 3)}
		elsewhere, err := hub.Subscribe(kv.Cursor{}, feed.Member{PoP: "there", ID: feed.MemberID{4}})
		if err != nil {
			t.Fatal(err)
		}
		begun, answered := time.Now(), make(chan error, 1)
		go func() { answered <- hub.Tell(t.Context(), me, anyChange) }()
		for i, sub := range subs {
			synctest.Wait()
			select {
			case <-answered:
				t.Fatalf("answered although %d members have not acknowledged", len(subs)-i)
			default:
			}
			m, err := sub.Next(t.Context())
			if err != nil || len(m.Told) != 1 || m.Acks != 1 {
				t.Fatalf("member %d was told %+v, %v", i, m, err)
			}
			if err := sub.Ack(m.Acks + 1); err == nil {
				t.Error("more is acknowledged than was told, and nobody minds")
			}
			if err := sub.Ack(m.Acks); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-answered; err != nil || time.Since(begun) != 0 {
			t.Errorf("told after %s, %v", time.Since(begun), err)
		}
		if m, err := elsewhere.Next(t.Context()); err != nil || len(m.Told) != 0 {
			t.Errorf("another point of presence was told %+v, %v", m, err)
		}
	})
}

// What was told and not acknowledged is told again to a member that comes back.
func TestToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		time.Sleep(2 * feed.Lease)
		first := subscribe(t, hub, 2)
		begun, answered := time.Now(), make(chan error, 1)
		go func() { answered <- hub.Tell(t.Context(), feed.Member{PoP: "here", ID: feed.MemberID{1}}, anyChange) }()
		synctest.Wait()
		if m, err := first.Next(t.Context()); err != nil || len(m.Told) != 1 {
			t.Fatalf("told %+v, %v", m, err)
		}
		first.Close()
		time.Sleep(100 * time.Millisecond)
		second, err := hub.Subscribe(kv.Cursor{Epoch: 1, Seq: 1}, feed.Member{PoP: "here", ID: feed.MemberID{2}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := second.Next(t.Context())
		if err != nil || len(m.Told) != 1 || m.Acks != 1 {
			t.Fatalf("who comes back is told %+v, %v", m, err)
		}
		if err := second.Ack(1); err != nil {
			t.Fatal(err)
		}
		if err := <-answered; err != nil || time.Since(begun) != 100*time.Millisecond {
			t.Errorf("told after %s, %v", time.Since(begun), err)
		}
	})
}

// A hub does not know which leases its forerunner gave.
func TestYoungHubWaitsForFormerLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, hub := time.Now(), openHub()
		if err := hub.Tell(t.Context(), feed.Member{PoP: "here"}, anyChange); err != nil || time.Since(begun) < feed.Lease {
			t.Errorf("a write was answered %s after the start, %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), feed.Lease/2)
		defer cancel()
		if err := openHub().Tell(ctx, feed.Member{PoP: "here"}, anyChange); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a write whose deadline passes meanwhile: %v", err)
		}
		if err := openHub().Tell(t.Context(), feed.Member{}, anyChange); err != nil {
			t.Errorf("a write of no shared point of presence: %v", err)
		}
	})
}

func TestMembersLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		var subs []*feed.Subscription
		for i := range feed.MaxMembers {
			subs = append(subs, subscribe(t, hub, byte(i+1)))
		}
		extra := feed.Member{PoP: "here", ID: feed.MemberID{255}}
		if _, err := hub.Subscribe(kv.Cursor{}, extra); !errors.Is(err, kv.ErrOverloaded) {
			t.Errorf("one member more than %d: %v", feed.MaxMembers, err)
		}
		subs[0].Close()
		if _, err := hub.Subscribe(kv.Cursor{}, extra); !errors.Is(err, kv.ErrOverloaded) {
			t.Errorf("a member that has gone may have a lease, its place is taken: %v", err)
		}
		time.Sleep(feed.Lease + feed.LeaseSlack)
		if _, err := hub.Subscribe(kv.Cursor{}, extra); err != nil {
			t.Errorf("in the place of a member that has gone: %v", err)
		}
	})
}

// A member that is too far behind to be told is cut, and its lease waited for.
func TestToldLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := openHub()
		time.Sleep(2 * feed.Lease)
		sub := subscribe(t, hub, 2)
		me := feed.Member{PoP: "here", ID: feed.MemberID{1}}
		full := make([]kv.Change, feed.MaxTold)
		answered := make(chan time.Duration, 2)
		begun := time.Now()
		tell := func(changes []kv.Change) {
			if err := hub.Tell(t.Context(), me, changes); err != nil {
				t.Error(err)
			}
			answered <- time.Since(begun)
		}
		go tell(full)
		synctest.Wait()
		go tell(anyChange)
		synctest.Wait()
		if _, err := sub.Next(t.Context()); err == nil {
			t.Errorf("a member that has %d changes to acknowledge is told more", feed.MaxTold)
		}
		for range 2 {
			if d := <-answered; d < feed.Lease || d > feed.Lease+feed.LeaseSlack {
				t.Errorf("answered after %s", d)
			}
		}
	})
}
