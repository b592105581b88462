package cron

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// doubles are the ticks that were fired more than once.
func doubles(w *world) (all []string) {
	for tick, n := range w.ticks() {
		if n != 1 {
			all = append(all, fmt.Sprintf("%s: %d times", tick, n))
		}
	}
	return all
}

// However many processes there are, each tick is fired once, in time.
func TestOncePerTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "* * * * *", "*/2 * * * *", "20 3 * * *", "0 4 * * *")
		for range 5 {
			w.start()
		}
		time.Sleep(10 * time.Minute) // 03:15 to 03:24
		if all := doubles(w); all != nil {
			t.Error(all)
		}
		if n := len(w.ticks()); n != 10+5+1 {
			t.Errorf("%d ticks were fired", n)
		}
		for _, f := range w.firings() {
			if late := f.began.Sub(f.at); late < 0 || late > time.Second {
				t.Errorf("%+v is %v late", f, late)
			}
		}
	})
}

// The control: without the claim every process fires.
func TestOncePerTickControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "* * * * *")
		w.ledger.everyone = true
		for range 3 {
			w.start()
		}
		time.Sleep(time.Minute)
		if all := doubles(w); len(all) != 1 || !strings.Contains(all[0], "3 times") {
			t.Errorf("the doubles are %v", all)
		}
	})
}

// When the holder dies, another takes over after its lease, and nobody else does.
func TestHolderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		w.handler = func(ctx context.Context, f firing) (string, bool, error) {
			select {
			case <-time.After(50 * time.Second):
				return "ok", false, nil
			case <-ctx.Done():
				return "", false, ctx.Err()
			}
		}
		for range 3 {
			w.start()
		}
		time.Sleep(35 * time.Second) // 20 s into the run
		first := w.firings()[0]
		w.processes[first.by].kill()
		killed := time.Now()
		time.Sleep(5 * time.Minute)
		all := w.firings()
		if len(all) != 2 || all[1].by == first.by || !all[1].at.Equal(first.at) {
			t.Fatalf("the firings are %+v", all)
		}
		if took := all[1].began.Sub(killed); took > DefaultLease+pollEvery || took < DefaultLease/2 {
			t.Errorf("it was taken over after %v", took)
		}
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"ok 2 "}) {
			t.Errorf("the runs are %q", got)
		}
	})
}

// A run longer than the lease is renewed, and no business of anybody else.
func TestLongRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		w.handler = func(context.Context, firing) (string, bool, error) {
			time.Sleep(14 * time.Minute)
			return "ok", false, nil
		}
		for range 3 {
			w.start()
		}
		time.Sleep(20 * time.Minute)
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"ok 1 "}) {
			t.Errorf("the runs are %q", got)
		}
	})
}

// What takes too long is ended; it counts as failed.
func TestTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		w.handler = func(ctx context.Context, f firing) (string, bool, error) {
			if len(w.firings()) > 1 {
				return "ok", false, nil
			}
			<-ctx.Done()
			return "", false, ctx.Err()
		}
		w.start()
		time.Sleep(MaxRun + 16*time.Second)
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"canceled 1 it took longer than 15m0s"}) {
			t.Errorf("the runs are %q", got)
		}
		time.Sleep(time.Minute)
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"ok 2 "}) {
			t.Errorf("the runs are %q", got)
		}
	})
}

// A run that fails is tried again, each time after twice as long, until the next
// tick is due; unless the Worker does not want it.
func TestRetries(t *testing.T) {
	for _, c := range []struct {
		cron    string
		noRetry bool
		err     error
		want    []time.Duration // of the attempts at the first tick
	}{
		{"15 * * * *", false, nil, []time.Duration{0, 2, 6, 14, 30, 62, 126}},
		{"15 * * * *", false, errors.New("nothing runs"), []time.Duration{0, 2, 6, 14, 30, 62, 126}},
		{"* * * * *", false, nil, []time.Duration{0, 2, 6, 14, 30}},
		{"15 * * * *", true, nil, []time.Duration{0}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, c.cron)
			w.handler = func(context.Context, firing) (string, bool, error) { return "exception", c.noRetry, c.err }
			for range 2 {
				w.start()
			}
			time.Sleep(10 * time.Minute)
			var got []time.Duration
			all := w.firings()
			for _, f := range all {
				if f.at.Equal(all[0].at) {
					got = append(got, f.began.Sub(f.at).Round(time.Second)/time.Second)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: attempts after %v s, want %v", c.cron, got, c.want)
			}
		})
	}
}

// A clock that jumps back brings no tick round again; one that jumps ahead skips.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "* * * * *")
		w.ledger.schedules[0].Created = time.Time{}
		p := w.start()
		time.Sleep(5 * time.Minute) // fired 03:15 to 03:19
		w.ledger.mu.Lock()
		w.ledger.runs = nil // what ran is not even known any more
		w.ledger.mu.Unlock()
		p.jump.Store(int64(-150 * time.Second))
		time.Sleep(4 * time.Minute) // up to 03:21:15 by its clock
		if all := doubles(w); all != nil {
			t.Error(all)
		}
		p.jump.Store(int64(3 * time.Hour))
		time.Sleep(time.Minute)
		p.jump.Store(int64(-48 * time.Hour)) // it was wrong before
		time.Sleep(2 * time.Minute)
		ticks := w.ticks()
		for _, want := range []string{"03:19", "03:20", "03:21", "06:23", "06:24", "03:25", "03:26"} {
			if ticks["shop * * * * * "+want] != 1 {
				t.Errorf("%s was not fired once", want)
			}
		}
		if len(ticks) > 12 {
			t.Errorf("fired were %v", ticks)
		}
	})
}

// A tick that passed while nobody ran is caught up for a minute, not longer; a
// trigger is not fired for a tick before it was made.
func TestRestart(t *testing.T) {
	for late, want := range map[time.Duration]int{30 * time.Second: 1, 44 * time.Second: 1, 80 * time.Second: 0} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "15 3 * * *")
			time.Sleep(late) // from 03:14:45
			w.start()
			time.Sleep(5 * time.Minute)
			if n := len(w.firings()); n != want {
				t.Errorf("started %v late, it was fired %d times, want %d", late, n, want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(30 * time.Second) // 03:15:15
		w.ledger.schedules = newTrigger("* * * * *")
		w.start()
		time.Sleep(time.Minute)
		if got := w.ticks(); len(got) != 1 || got["shop * * * * * 03:16"] != 1 {
			t.Errorf("fired were %v", got)
		}
	})
}

// A catalog that cannot be asked makes a tick late, or has it skipped; it is never
// fired twice for it.
func TestCatalogDown(t *testing.T) {
	for _, method := range []string{"AllSchedules", "ClaimRun"} {
		for _, fault := range []string{"refuse", "hang"} {
			for down, want := range map[time.Duration]int{20 * time.Second: 3, 70 * time.Second: 2} {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, "* * * * *")
					p := w.start()
					which := &p.line.refuse
					if fault == "hang" {
						which = &p.line.hang
					}
					set(which, method)
					time.Sleep(15*time.Second + down)
					which.Store(nil)
					time.Sleep(3*time.Minute - down - time.Second) // up to 03:17:59
					if n := len(w.firings()); n != want || doubles(w) != nil {
						t.Errorf("%s %s for %v: %d firings, want %d; doubles: %v", fault, method, down, n, want, doubles(w))
					}
				})
			}
		}
	}
}

// What the catalog did without acknowledging it costs a lease, or a second run, but
// no tick is lost.
func TestNotAcknowledged(t *testing.T) {
	for method, want := range map[string]string{"ClaimRun": "ok 2 ", "RenewRun": "ok 1 ", "FinishRun": "ok 1 "} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "15 3 * * *")
			w.handler = func(context.Context, firing) (string, bool, error) {
				time.Sleep(15 * time.Second)
				return "ok", false, nil
			}
			p := w.start()
			set(&p.line.lose, method)
			time.Sleep(35 * time.Second)
			p.line.lose.Store(nil)
			time.Sleep(2 * time.Minute)
			if got := w.ledger.outcomes(); !slices.Equal(got, []string{want}) {
				t.Errorf("%s: the runs are %q, want %q", method, got, want)
			}
		})
	}
}

// Who cannot renew gives up when the lease ends: from then on another may fire.
func TestLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		ended := make(chan time.Time, 1)
		w.handler = func(ctx context.Context, f firing) (string, bool, error) {
			if f.by == 1 {
				return "ok", false, nil
			}
			<-ctx.Done()
			ended <- time.Now()
			return "", false, ctx.Err()
		}
		p := w.start()
		time.Sleep(20 * time.Second)
		w.start()
		set(&p.line.refuse, "*")
		time.Sleep(2 * time.Minute)
		all, gaveUp := w.firings(), <-ended
		if len(all) != 2 || all[1].by != 1 || all[1].began.Before(gaveUp) {
			t.Errorf("the firings are %+v; the first gave up at %v", all, gaveUp)
		}
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"ok 2 "}) || p.Stats().Failed != 1 {
			t.Errorf("the runs are %q, %+v", got, p.Stats())
		}
	})
}

// Who hears that the run is another's gives it up at once: its process was frozen,
// or its clock was late.
func TestTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		ended := make(chan time.Time, 1)
		w.handler = func(ctx context.Context, f firing) (string, bool, error) {
			<-ctx.Done()
			ended <- time.Now()
			return "", false, ctx.Err()
		}
		p := w.start()
		time.Sleep(16 * time.Second)
		w.ledger.mu.Lock()
		w.ledger.runs[0].Holder, w.ledger.runs[0].Lease = "another", time.Now().Add(time.Hour)
		w.ledger.mu.Unlock()
		taken := time.Now()
		if took := (<-ended).Sub(taken); took > DefaultLease/3 {
			t.Errorf("it was given up after %v", took)
		}
		time.Sleep(5 * time.Minute)
		if n := len(w.firings()); n != 1 || p.Stats().Failed != 1 || w.ledger.runs[0].Holder != "another" {
			t.Errorf("%d firings, %+v, held by %s", n, p.Stats(), w.ledger.runs[0].Holder)
		}
	})
}

// A process ends in time although the catalog does not answer.
func TestProcessEndsAlone(t *testing.T) {
	for _, fault := range []string{"refuse", "hang"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "15 3 * * *")
			w.handler = func(ctx context.Context, f firing) (string, bool, error) {
				<-ctx.Done()
				return "", false, ctx.Err()
			}
			p := w.start()
			time.Sleep(20 * time.Second)
			if fault == "refuse" {
				set(&p.line.refuse, "*")
			} else {
				set(&p.line.hang, "*")
			}
			began := time.Now()
			p.end()
			if took := time.Since(began); took > endWait {
				t.Errorf("%s: it ended after %v", fault, took)
			}
		})
	}
}

// A process that ends leaves its run to another, at once.
func TestProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "15 3 * * *")
		w.handler = func(ctx context.Context, f firing) (string, bool, error) {
			if f.by == 1 {
				return "ok", false, nil
			}
			<-ctx.Done()
			return "", false, ctx.Err()
		}
		p := w.start()
		time.Sleep(20 * time.Second)
		w.start()
		p.end()
		ended := time.Now()
		time.Sleep(time.Minute)
		all := w.firings()
		if len(all) != 2 || all[1].began.Sub(ended) > pollEvery {
			t.Errorf("the firings are %+v; the first ended at %v", all, ended)
		}
	})
}

// At most so many run at once. What does not come to run within its minute is
// skipped.
func TestMaxRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range MaxRunning + 1 {
			w.ledger.schedules = append(w.ledger.schedules, newTrigger("15 3 * * *")...)
			w.ledger.schedules[i].Worker = fmt.Sprint("worker-", i)
		}
		w.handler = func(context.Context, firing) (string, bool, error) {
			time.Sleep(10 * time.Minute)
			return "ok", false, nil
		}
		p := w.start()
		time.Sleep(time.Minute)
		if _, err := p.Fire(t.Context(), account, "shop", "now"); !errors.Is(err, kv.ErrOverloaded) {
			t.Errorf("one more: %v", err)
		}
		time.Sleep(15 * time.Minute)
		if s := p.Stats(); s != (Stats{Fired: MaxRunning, Skipped: 1}) {
			t.Errorf("%+v", s)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.busy) != 0 || len(p.slots) != 0 {
			t.Errorf("left behind: %v, %d", p.busy, len(p.slots))
		}
	})
}

// A run that is asked for is fired at once, told of, and not retried.
func TestFire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "0 0 1 1 *")
		w.handler = func(_ context.Context, f firing) (string, bool, error) {
			time.Sleep(20 * time.Second)
			return "exception", false, nil
		}
		p := w.start()
		run, err := p.Fire(t.Context(), account, "shop", "any")
		if err != nil || run.Outcome != "exception" || !run.Manual || run.Ended.Sub(run.At) != 20*time.Second {
			t.Errorf("%+v, %v", run, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if run, err = p.Fire(ctx, account, "shop", "any"); err != nil || !run.Ended.IsZero() {
			t.Errorf("a run that goes on: %+v, %v", run, err)
		}
		time.Sleep(10 * time.Minute)
		if got := w.ledger.outcomes(); !slices.Equal(got, []string{"exception 1 ", "exception 1 "}) {
			t.Errorf("the runs are %q", got)
		}
		p.end()
		if _, err := p.Fire(ctx, account, "shop", "any"); err == nil {
			t.Error("a Scheduler that has ended fires")
		}
		if len(p.slots) != 0 {
			t.Errorf("%d slots are taken", len(p.slots))
		}
	})
}
