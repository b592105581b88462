package feed_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/feed"
)

const keys = 12

// run runs what runs until the context ends, and waits for it.
func run(t *testing.T, ctx context.Context, wg *sync.WaitGroup, runs ...func(context.Context) error) {
	for _, f := range runs {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
}

// churn writes and fetches at random, and harms the log if it may.
func churn(ctx context.Context, w *world, rng *rand.Rand, harm bool, tiers ...*tier) {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(rng.Int64N(int64(20*time.Millisecond))))
		switch n := rng.IntN(100); {
		case n < 40:
			if err := w.put(ref(rng.IntN(keys)), nil); err != nil {
				panic(err)
			}
		case n == 99 && harm && rng.IntN(10) == 0:
			w.store.lose()
		case n == 98 && harm && rng.IntN(3) == 0:
			w.store.trim()
		default:
			s := tiers[rng.IntN(len(tiers))]
			s.fetch(ref(rng.IntN(keys)), func() { pause(ctx, time.Duration(rng.Int64N(int64(5*time.Millisecond)))) })
		}
	}
}

// story is one random run of a centre, a relay and an edge; it returns what the
// tiers believed wrongly.
func story(t *testing.T, seed uint64, mend bool) (wrong []string, sure int, statuses []feed.Status) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := newWorld()
		ctx, cancel := context.WithCancel(t.Context())
		opts := feed.HubOptions{Ring: 1 + rng.IntN(30)}
		if rng.IntN(2) == 0 {
			opts.Log = w.store
		}
		centre, region := feed.NewHub(opts), feed.NewHub(feed.HubOptions{Ring: 1 + rng.IntN(30)})
		relayTier, edgeTier := newTier(w), newTier(w)
		link := func(h *feed.Hub, stream uint64) *faults {
			rng := rand.New(rand.NewPCG(seed, stream))
			some := func() float64 { return rng.Float64() * rng.Float64() * 0.1 }
			return &faults{Stream: feed.Local{Hub: h}, rng: rng, most: 300 * time.Millisecond, mend: mend,
				drop: some(), repeat: some(), swap: some(), delay: some(), cut: some() / 4, hang: some() / 8}
		}
		up := feed.NewFollower(link(centre, 2), feed.NewRelay(relayTier, region), nil)
		down := feed.NewFollower(link(region, 3), edgeTier, nil)
		var wg sync.WaitGroup
		run(t, ctx, &wg, feed.NewSource(w.store, centre, nil).Run, up.Run, down.Run)
		for i := range uint64(3) {
			wg.Go(func() { churn(ctx, w, rand.New(rand.NewPCG(seed, 10+i)), true, relayTier, edgeTier) })
		}
		time.Sleep(30 * time.Second)
		cancel()
		wg.Wait()
		for _, s := range []*tier{relayTier, edgeTier} {
			mistakes, n := s.verdict()
			wrong = append(wrong, mistakes...)
			sure += n
		}
		statuses = []feed.Status{up.Status(), down.Status()}
	})
	return wrong, sure, statuses
}

func TestNothingStaleIsBelievedUnderFaults(t *testing.T) {
	for _, seed := range seeds(t, 12) {
		wrong, sure, statuses := story(t, seed, false)
		if len(wrong) > 0 {
			t.Fatalf("FEED_SEED=%d: %d wrong beliefs, the first: %s", seed, len(wrong), wrong[0])
		}
		if sure == 0 {
			t.Errorf("FEED_SEED=%d: nothing was ever known through the feed: the test shows nothing", seed)
		}
		t.Logf("FEED_SEED=%d: %d beliefs were right; %+v", seed, sure, statuses)
	}
}

// A follower that does not see gaps must be found out.
func TestControlGapsIgnored(t *testing.T) {
	found := 0
	all := seeds(t, 6)
	for _, seed := range all {
		if wrong, _, _ := story(t, seed, true); len(wrong) > 0 {
			found++
		}
	}
	if found == 0 {
		t.Errorf("gaps were hidden in %d runs, and the check found nothing wrong", len(all))
	}
}

// drifting is a run without faults but delay, between machines whose clocks have
// different rates.
func drifting(t *testing.T, seed uint64, rate float64) (wrong []string, renewed uint64) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w, s := newWorld(), (*tier)(nil)
		s = newTier(w)
		ctx, cancel := context.WithCancel(t.Context())
		hub := feed.NewHub(feed.HubOptions{})
		f := feed.NewFollower(&faults{Stream: feed.Local{Hub: hub}, rng: rng, most: 50 * time.Millisecond, delay: 1, rate: rate}, s, nil)
		var wg sync.WaitGroup
		run(t, ctx, &wg, feed.NewSource(w.store, hub, nil).Run, f.Run)
		wg.Go(func() { churn(ctx, w, rand.New(rand.NewPCG(seed, 10)), false, s) })
		time.Sleep(4 * feed.SessionLimit)
		cancel()
		wg.Wait()
		wrong, _ = s.verdict()
		renewed = f.Status().Sessions
	})
	return wrong, renewed
}

func TestClocksOfDifferentRate(t *testing.T) {
	for _, rate := range []float64{0.999, 1.0009} {
		for _, seed := range seeds(t, 2) {
			wrong, sessions := drifting(t, seed, rate)
			if len(wrong) > 0 {
				t.Errorf("FEED_SEED=%d: rate %f: %d wrong beliefs, the first: %s", seed, rate, len(wrong), wrong[0])
			}
			if sessions < 4 || sessions > 5 {
				t.Errorf("FEED_SEED=%d: %d sessions in the time of 4", seed, sessions)
			}
		}
	}
	if wrong, _ := drifting(t, 1, 1.01); len(wrong) == 0 {
		t.Error("control: a clock that gains a hundredth was not found out")
	}
}
