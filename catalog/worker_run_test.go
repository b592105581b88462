package catalog

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const everyMinute = "* * * * *"

// scheduled is a catalog whose clock is set by hand, with a Worker that has a
// schedule.
type scheduled struct {
	*Catalog
	t     testing.TB
	clock time.Time
}

func newScheduled(t testing.TB) *scheduled {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addVersion(t, c, "w", true)
	if _, err := c.ReplaceSchedules(t.Context(), testAccount, "w", []string{everyMinute}); err != nil {
		t.Fatal(err)
	}
	s := &scheduled{Catalog: c, t: t, clock: time.Now().Truncate(time.Minute)}
	c.now = func() time.Time { return s.clock }
	return s
}

const testLease = time.Minute

func (s *scheduled) claim(at time.Time, holder string, want bool) CronRun {
	s.t.Helper()
	run, claimed, err := s.ClaimRun(s.t.Context(), testAccount, "w", everyMinute, at, holder, testLease)
	if err != nil || claimed != want {
		s.t.Fatalf("%s claims: %v, %v; want %v", holder, claimed, err, want)
	}
	return run
}

func (s *scheduled) due(want ...int64) {
	s.t.Helper()
	list, err := s.DueRetries(s.t.Context())
	var got []int64
	for _, r := range list {
		got = append(got, r.ID)
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("due: %v, %v; want %v", got, err, want)
	}
}

func TestSchedules(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addVersion(t, c, "w", true)
	addVersion(t, c, "a", true)
	replace := func(name string, crons ...string) []Schedule {
		t.Helper()
		list, err := c.ReplaceSchedules(t.Context(), testAccount, name, crons)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Schedules(t.Context(), testAccount, name)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(list) {
			t.Fatalf("%v, %v; want %v", again, err, list)
		}
		return list
	}
	first := replace("w", "0 0 * * *", everyMinute, "0 0 * * *")
	if len(first) != 2 || first[0].Cron != everyMinute && first[1].Cron != everyMinute || first[0].Worker != "w" || first[0].Created.IsZero() {
		t.Errorf("%v", first)
	}
	clock := time.Now().Add(time.Hour)
	c.now = func() time.Time { return clock }
	second := replace("w", "1 * * * *", everyMinute)
	if len(second) != 2 || second[0].Cron != "1 * * * *" || !second[1].Created.Equal(first[0].Created) || second[0].Created.Equal(first[0].Created) {
		t.Errorf("%v\nbefore: %v", second, first)
	}
	replace("a", everyMinute)
	if all, err := c.AllSchedules(t.Context()); err != nil || len(all) != 3 || all[0].Worker != "a" || all[0].AccountID != testAccount {
		t.Errorf("%v, %v", all, err)
	}
	if none := replace("w"); len(none) != 0 {
		t.Errorf("%v", none)
	}
	var many []string
	for i := range MaxSchedules + 1 {
		many = append(many, fmt.Sprint(i))
	}
	replace("w", many[1:]...)
	_, err := c.ReplaceSchedules(t.Context(), testAccount, "w", many)
	wantError(t, err, ErrTooManySchedules)
	long := strings.Repeat("*", MaxCronBytes)
	replace("w", long)
	for _, bad := range []string{"", long + "*", "\xff"} {
		_, err := c.ReplaceSchedules(t.Context(), testAccount, "w", []string{bad})
		wantError(t, err, ErrInvalid)
	}
}

// Of many who claim a tick at once, in several processes, one gets it.
func TestOneClaimsATick(t *testing.T) {
	c, path := newCatalog(t)
	useWorkers(t, c)
	addVersion(t, c, "w", true)
	if _, err := c.ReplaceSchedules(t.Context(), testAccount, "w", []string{everyMinute}); err != nil {
		t.Fatal(err)
	}
	processes := []*Catalog{c, openAt(t, path), openAt(t, path)}
	race := func(tick func(i int) time.Time) int64 {
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				holder := fmt.Sprint("holder ", i)
				run, claimed, err := processes[i%len(processes)].ClaimRun(t.Context(), testAccount, "w", everyMinute, tick(i), holder, testLease)
				if err != nil {
					t.Error(err)
				}
				if claimed {
					won.Add(1)
				}
				if claimed != (run.Holder == holder) || run.Attempt != 1 {
					t.Errorf("%s: claimed %v, %+v", holder, claimed, run)
				}
			})
		}
		wg.Wait()
		return won.Load()
	}
	for range 5 {
		now := time.Now()
		if won := race(func(int) time.Time { return now }); won != 1 {
			t.Errorf("%d claimed one tick", won)
		}
	}
	// The control: if each claims another tick, all get theirs.
	now := time.Now()
	if won := race(func(i int) time.Time { return now.Add(time.Duration(i+1) * time.Second) }); won != 24 {
		t.Errorf("%d claimed 24 ticks", won)
	}
	// When the lease of one that is gone is over, one gets it again.
	run, claimed, err := c.ClaimRun(t.Context(), testAccount, "w", everyMinute, now.Add(-time.Minute), "gone", 0)
	if err != nil || !claimed {
		t.Fatal(run, claimed, err)
	}
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			_, claimed, err := processes[i%len(processes)].ClaimRun(t.Context(), testAccount, "w", everyMinute, now.Add(-time.Minute), fmt.Sprint(i), testLease)
			if err != nil {
				t.Error(err)
			}
			if claimed {
				won.Add(1)
			}
		})
	}
	if wg.Wait(); won.Load() != 1 {
		t.Errorf("%d took over a run that was left", won.Load())
	}
}

func TestLeases(t *testing.T) {
	s := newScheduled(t)
	at := s.clock
	run := s.claim(at, "one", true)
	if !run.At.Equal(at) || run.Attempt != 1 || !run.Ended.IsZero() || !run.Started.Equal(s.clock) || run.Cron != everyMinute || run.Worker != "w" || run.AccountID != testAccount {
		t.Errorf("%+v", run)
	}
	if other := s.claim(at, "two", false); other.ID != run.ID || other.Holder != "one" {
		t.Errorf("%+v", other)
	}
	s.clock = at.Add(testLease - time.Microsecond)
	s.claim(at, "two", false)
	s.due()
	if err := s.RenewRun(t.Context(), run.ID, "one", testLease); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.RenewRun(t.Context(), run.ID, "two", testLease), ErrLeaseLost)
	s.clock = s.clock.Add(testLease - time.Microsecond)
	s.claim(at, "two", false)
	s.clock = s.clock.Add(time.Microsecond)
	s.due(run.ID)
	again := s.claim(at, "two", true)
	if again.ID != run.ID || again.Attempt != 2 || again.Holder != "two" {
		t.Errorf("%+v", again)
	}
	s.due()
	wantError(t, s.RenewRun(t.Context(), run.ID, "one", testLease), ErrLeaseLost)
	wantError(t, s.FinishRun(t.Context(), run.ID, "one", "ok", "", time.Time{}), ErrLeaseLost)
	retry := s.clock.Add(2 * time.Second)
	if err := s.FinishRun(t.Context(), run.ID, "two", "exception", "it threw", retry); err != nil {
		t.Fatal(err)
	}
	if got := s.claim(at, "one", false); got.Outcome != "exception" || got.Error != "it threw" || !got.RetryAt.Equal(retry) || !got.Ended.Equal(s.clock) {
		t.Errorf("%+v", got)
	}
	s.clock = retry.Add(-time.Microsecond)
	s.claim(at, "one", false)
	s.due()
	s.clock = retry
	s.due(run.ID)
	if third := s.claim(at, "one", true); third.Attempt != 3 || !third.Ended.IsZero() || !third.RetryAt.IsZero() {
		t.Errorf("%+v", third)
	}
	if err := s.FinishRun(t.Context(), run.ID, "one", "ok", strings.Repeat("e", MaxRunErrorBytes+1), time.Time{}); err != nil {
		t.Fatal(err)
	}
	s.clock = s.clock.Add(2 * testLease)
	if got := s.claim(at, "two", false); got.Outcome != "ok" || len(got.Error) != MaxRunErrorBytes {
		t.Errorf("%+v", got)
	}
	s.due()
	wantError(t, s.FinishRun(t.Context(), run.ID, "one", "ok", "", time.Time{}), ErrLeaseLost)
	wantError(t, s.RenewRun(t.Context(), run.ID, "one", testLease), ErrLeaseLost)
	wantError(t, s.RenewRun(t.Context(), 1, "one", testLease), ErrLeaseLost)
}

func TestTicksThatAreTooOld(t *testing.T) {
	s := newScheduled(t)
	now := s.clock
	s.claim(now.Add(-MaxTickAge), "h", false)
	s.claim(now.Add(-MaxTickAge+time.Microsecond), "h", true)
	left := s.claim(now, "h", true) // and its holder is gone
	s.clock = now.Add(MaxRetryAge - time.Microsecond)
	s.due(left.ID)
	s.clock = now.Add(MaxRetryAge)
	s.due()
	s.claim(now, "two", false)
	s.clock = now.Add(MaxRetryAge - time.Microsecond)
	s.claim(now, "two", true)
}

// Nobody runs what is not scheduled any more; a schedule that comes back has not
// forgotten what ran.
func TestRunsWithoutASchedule(t *testing.T) {
	s := newScheduled(t)
	if run, claimed, err := s.ClaimRun(t.Context(), testAccount, "w", "1 * * * *", s.clock, "h", testLease); err != nil || claimed || run != (CronRun{}) {
		t.Errorf("%+v, %v, %v", run, claimed, err)
	}
	run := s.claim(s.clock, "gone", true)
	at := s.clock
	s.clock = s.clock.Add(testLease)
	if _, err := s.ReplaceSchedules(t.Context(), testAccount, "w", nil); err != nil {
		t.Fatal(err)
	}
	s.due()
	s.claim(at, "h", false)
	if _, err := s.ReplaceSchedules(t.Context(), testAccount, "w", []string{everyMinute}); err != nil {
		t.Fatal(err)
	}
	s.due(run.ID)
	if got := s.claim(at, "h", true); got.Attempt != 2 {
		t.Errorf("%+v", got)
	}
}

func TestHistoryOfRuns(t *testing.T) {
	s := newScheduled(t)
	start := s.clock
	for i := range MaxCronRuns + 30 {
		s.clock = start.Add(time.Duration(i) * time.Minute)
		run := s.claim(s.clock, "h", true)
		if err := s.FinishRun(t.Context(), run.ID, "h", "ok", "", time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.CronRuns(t.Context(), testAccount, "w", 1000)
	if err != nil || len(list) != MaxCronRuns || !list[0].At.Equal(s.clock) {
		t.Fatalf("%d runs, %v", len(list), err)
	}
	if two, err := s.CronRuns(t.Context(), testAccount, "w", 2); err != nil || len(two) != 2 || two[1] != list[1] {
		t.Errorf("%v, %v", two, err)
	}
	rows := func() (n int) {
		t.Helper()
		if err := s.db.read.QueryRowContext(t.Context(), `select count(*) from worker_runs`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := rows(); n != MaxCronRuns {
		t.Errorf("%d runs are kept", n)
	}
	// Those asked for are told apart, are not tried again, and go when they are too many.
	manual, err := s.StartRun(t.Context(), testAccount, "w", "", "h", testLease)
	if err != nil || !manual.Manual || manual.Attempt != 1 || manual.ID <= 0 || manual.ID >= 1<<53 {
		t.Fatalf("%+v, %v", manual, err)
	}
	if other, err := s.StartRun(t.Context(), testAccount, "w", "", "h", testLease); err != nil || other.ID == manual.ID {
		t.Errorf("%+v, %v", other, err)
	}
	if err := s.FinishRun(t.Context(), manual.ID, "h", "exception", "x", s.clock); err != nil {
		t.Fatal(err)
	}
	s.clock = s.clock.Add(testLease)
	s.due()
	for range MaxCronRuns + 5 {
		if _, err := s.StartRun(t.Context(), testAccount, "w", "", "h", 0); err != nil {
			t.Fatal(err)
		}
		s.clock = s.clock.Add(time.Millisecond)
	}
	// Beside the newest are kept those of the ticks that might be claimed still.
	if n, most := rows(), MaxCronRuns+int(2*MaxTickAge/time.Minute); n > most {
		t.Errorf("%d runs are kept, at most %d should be", n, most)
	}
	s.claim(s.clock.Truncate(time.Minute).Add(-time.Minute), "two", false) // it ran, and that is known
	if list, err := s.CronRuns(t.Context(), testAccount, "w", 0); err != nil || len(list) != MaxCronRuns || !list[0].Manual {
		t.Errorf("%d runs, %v", len(list), err)
	}
}

func TestTails(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	p := out.publisher(c)
	addVersion(t, c, "w", true)
	clock := time.Now()
	c.now = func() time.Time { return clock }
	replica := NewWorkerReplica(out, ReplicaOptions{})
	published := func(want int) []PublishedTail {
		t.Helper()
		w, err := replica.Worker(t.Context(), testAccount, "w")
		if err != nil || len(w.Tails) != want {
			t.Fatalf("%+v, %v; want %d tails", w, err, want)
		}
		return w.Tails
	}
	first, err := c.OpenTail(t.Context(), testAccount, "w", []byte(`[ {"method":["GET"]} ]`), time.Minute)
	if err != nil || first.Worker != "w" || first.AccountID != testAccount || !first.Expires.Equal(loaded(stored(clock)).Add(time.Minute)) || first.Token == first.Ingest {
		t.Fatalf("%+v, %v", first, err)
	}
	if got := published(1)[0]; got.ID != first.ID || got.Ingest != first.Ingest || string(got.Filters) != `[{"method":["GET"]}]` || !got.Expires.Equal(first.Expires) {
		t.Errorf("%+v", got)
	}
	got, err := c.Tail(t.Context(), testAccount, "w", first.ID)
	if err != nil || got.Token != "" || got.Ingest != first.Ingest || string(got.Filters) != string(first.Filters) {
		t.Errorf("%+v, %v", got, err)
	}
	if !got.Permits(first.Token) || got.Permits("") || got.Permits(first.Ingest) || !got.Accepts(first.Ingest) || got.Accepts("") || got.Accepts(first.Token) || (Tail{}).Accepts("") {
		t.Error("who is let in")
	}
	for range MaxTails - 1 {
		if _, err := c.OpenTail(t.Context(), testAccount, "w", nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.OpenTail(t.Context(), testAccount, "w", nil, time.Hour)
	wantError(t, err, ErrTooManyTails)
	clock = clock.Add(30 * time.Second)
	if got, err = c.RenewTail(t.Context(), testAccount, "w", first.ID, time.Minute); err != nil || !got.Expires.Equal(loaded(stored(clock)).Add(time.Minute)) {
		t.Errorf("%+v, %v", got, err)
	}
	clock = clock.Add(time.Minute - time.Microsecond)
	if list, err := c.Tails(t.Context(), testAccount, "w"); err != nil || len(list) != MaxTails {
		t.Errorf("%d tails, %v", len(list), err)
	}
	clock = clock.Add(time.Microsecond)
	_, err = c.Tail(t.Context(), testAccount, "w", first.ID)
	wantError(t, err, ErrTailNotFound)
	_, err = c.RenewTail(t.Context(), testAccount, "w", first.ID, time.Minute)
	wantError(t, err, ErrTailNotFound)
	published(MaxTails) // until the next comparison
	compare(t, p)
	published(MaxTails - 1)
	last, err := c.OpenTail(t.Context(), testAccount, "w", nil, MaxTailLife) // in the place of the one that expired
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CloseTail(t.Context(), testAccount, "w", last.ID); err != nil {
		t.Fatal(err)
	}
	published(MaxTails - 1)
	wantError(t, c.CloseTail(t.Context(), testAccount, "w", last.ID), ErrTailNotFound)
	wantError(t, c.CloseTail(t.Context(), testAccount, "w", "none"), ErrTailNotFound)
	compare(t, p)
	published(MaxTails - 1)

	filters := func(size int) []byte { return []byte(`"` + strings.Repeat("f", size-2) + `"`) }
	if _, err := c.OpenTail(t.Context(), testAccount, "w", filters(MaxTailBytes), time.Hour); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"filters":  second(c.OpenTail(t.Context(), testAccount, "w", filters(MaxTailBytes+1), time.Hour)),
		"no JSON":  second(c.OpenTail(t.Context(), testAccount, "w", []byte(`{`), time.Hour)),
		"no time":  second(c.OpenTail(t.Context(), testAccount, "w", nil, 0)),
		"too long": second(c.OpenTail(t.Context(), testAccount, "w", nil, MaxTailLife+1)),
		"renewed":  second(c.RenewTail(t.Context(), testAccount, "w", first.ID, MaxTailLife+1)),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[A, B any](_ A, b B) B { return b }
