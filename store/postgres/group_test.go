package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

// airline records flights of strings; each takes a second.
type airline struct {
	flights  [][]string
	deadline []time.Duration // of each flight, from its start
}

func (a *airline) run(ctx context.Context, ins []string) ([]string, error) {
	a.flights = append(a.flights, ins)
	deadline, _ := ctx.Deadline()
	a.deadline = append(a.deadline, time.Until(deadline))
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if slices.Contains(ins, "bad") {
		return nil, errors.New("crashed")
	}
	var outs []string
	for _, in := range ins {
		outs = append(outs, "out "+in)
	}
	return outs, nil
}

func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a airline
		g := newGroup(1, 3, 10, time.Minute, func(in string) int { return len(in) }, a.run)
		results := make(chan string, 10)
		call := func(in string) {
			go func() {
				out, _, err := g.do(t.Context(), in)
				results <- fmt.Sprint(out, err)
			}()
			synctest.Wait() // it has left or waits
		}
		for _, in := range []string{"a", "b", "c", "d", "e", "0123456789x", "f", "bad"} {
			call(in)
		}
		var got []string
		for range 8 {
			got = append(got, <-results)
		}
		want := [][]string{{"a"}, {"b", "c", "d"}, {"e"}, {"0123456789x"}, {"f", "bad"}}
		if fmt.Sprint(a.flights) != fmt.Sprint(want) {
			t.Errorf("flights %v, want %v", a.flights, want)
		}
		for _, answer := range []string{"out a<nil>", "out d<nil>", "out 0123456789x<nil>", "crashed"} {
			if !slices.Contains(got, answer) {
				t.Errorf("no answer %q in %q", answer, got)
			}
		}
		synctest.Wait()
		if g.flying != 0 || len(g.waiting) != 0 {
			t.Errorf("%d flights and %d calls are left", g.flying, len(g.waiting))
		}
	})
}

func TestGroupCallersThatGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a airline
		g := newGroup(1, 3, 0, time.Minute, nil, a.run)
		type answer struct {
			unanswered bool
			err        error
		}
		call := func(in string, patience time.Duration) chan answer {
			result := make(chan answer, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, unanswered, err := g.do(ctx, in)
				result <- answer{unanswered, err}
			}()
			synctest.Wait()
			return result
		}
		left := call("left", 500*time.Millisecond)
		waited := call("waited", 500*time.Millisecond)
		patient := call("patient", 5*time.Second)
		if got := <-left; !got.unanswered || !errors.Is(got.err, context.DeadlineExceeded) {
			t.Errorf("who left and gave up: %+v", got)
		}
		if got := <-waited; got.unanswered || !errors.Is(got.err, context.DeadlineExceeded) {
			t.Errorf("who gave up before the flight: %+v", got)
		}
		if got := <-patient; got.err != nil {
			t.Errorf("who waited: %+v", got)
		}
		if want := "[[left] [patient]]"; fmt.Sprint(a.flights) != want {
			t.Errorf("flights %v, want %s", a.flights, want)
		}
		if want := []time.Duration{500*time.Millisecond + flightGrace, 4450*time.Millisecond + flightGrace}; !slices.Equal(a.deadline, want) {
			t.Errorf("deadlines %v, want %v", a.deadline, want)
		}
	})
}

// Who has no deadline is given one: a queue behind flights that hang does not grow
// old.
func TestGroupOfCallersWithoutDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(1, 1, 0, time.Minute, nil, func(ctx context.Context, _ []string) ([]string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		start, errs := time.Now(), make(chan error, 5)
		for range 5 {
			go func() {
				_, _, err := g.do(t.Context(), "x")
				errs <- err
			}()
		}
		for range 5 {
			if err := <-errs; !errors.Is(err, errSlow) {
				t.Errorf("error %v, want %v", err, errSlow)
			}
		}
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("they waited %s", waited)
		}
		time.Sleep(2 * flightGrace) // the flight lands
	})
}

func TestConcurrentCallsTravelTogether(t *testing.T) {
	s := mustOpen(t, newURL(t), Options{})
	const callers = 64
	done := make(chan error, callers)
	for i := range callers {
		go func() {
			var err error
			for n := 0; n < 30 && err == nil; n++ {
				ref, rec := kv.Ref{Key: fmt.Sprint(i % 40)}, kv.Record{Version: kv.NewVersion(int64(n+1), uint16(i), 1), Value: []byte("v")}
				if err = s.Put(context.Background(), ref, rec); err != nil {
					break
				}
				var got kv.Record
				if got, err = s.Get(context.Background(), ref, 0); err == nil && got.Version.Compare(rec.Version) < 0 {
					err = fmt.Errorf("%s was put and %s is read", rec.Version, got.Version)
				}
			}
			done <- err
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stats := s.Stats()
	if stats.Puts/stats.PutStatements < 2 || stats.Gets/stats.GetStatements < 2 {
		t.Errorf("calls travelled alone: %+v", stats)
	}
	if stats.Conflicts != 0 {
		t.Errorf("%d conflicts, although keys are in order", stats.Conflicts)
	}
}

// A statement that a deadlock ends is tried again. The other transaction takes the
// same rows in the other order.
func TestDeadlockIsTriedAgain(t *testing.T) {
	server := pgtest.Start(t, "deadlock_timeout=2s") // a session looks once: by then the other must wait, too
	s := mustOpen(t, server.URL(), Options{})
	writes := func(time int64) []kv.Write {
		rec := kv.Record{Version: kv.NewVersion(time, 1, 1)}
		return []kv.Write{{Ref: kv.Ref{Key: "a"}, Record: rec}, {Ref: kv.Ref{Key: "b"}, Record: rec}}
	}
	if err := s.PutMany(t.Context(), writes(1)); err != nil {
		t.Fatal(err)
	}
	other, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	exec := func(statement string, args ...any) error {
		_, err := other.Exec(t.Context(), statement, args...)
		return err
	}
	const touch = `update kv_records set metadata = metadata where key = $1`
	// The other one is patient: it is the store's statement that is ended.
	if err := errors.Join(exec(`set deadlock_timeout = '1min'`), exec(`begin`), exec(touch, []byte("b"))); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- s.PutMany(context.Background(), writes(2)) }()
	nearkeytest.Until(t, "statement that waits for a row", func() bool {
		return server.Exec("select count(*) from pg_stat_activity where wait_event_type = 'Lock'") != "0"
	})
	if err := errors.Join(exec(touch, []byte("a")), exec(`commit`)); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Errorf("put many: %v", err)
	}
	if s.Stats().Conflicts == 0 {
		t.Error("there was no deadlock: the test shows nothing")
	}
}

func TestManyInStatementsOfBoundedSize(t *testing.T) {
	s := mustOpen(t, newURL(t), Options{})
	var writes []kv.Write
	for i := range writeSeats + 1 {
		writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprint(i)}, Record: kv.Record{Version: kv.NewVersion(1, 1, 1)}})
	}
	for i := range 3 {
		rec := kv.Record{Version: kv.NewVersion(2, 1, 1), Value: make([]byte, writeBytes*2/3)}
		writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprint("large ", i)}, Record: rec})
	}
	if err := s.PutMany(t.Context(), writes); err != nil {
		t.Fatal(err)
	}
	if stats := s.Stats(); stats.Puts != writeSeats+4 || stats.PutStatements != 4 {
		t.Errorf("%d puts in %d statements, want %d in 4", stats.Puts, stats.PutStatements, writeSeats+4)
	}
	page, err := s.List(t.Context(), kv.NamespaceID{}, kv.ListOptions{})
	if err != nil || len(page.Keys) != writeSeats+4 || page.More {
		t.Errorf("%d keys listed, more %v, %v", len(page.Keys), page.More, err)
	}
}

// A page of large metadata ends before it is too large, and the listing goes on.
func TestPagesAreBoundedInBytes(t *testing.T) {
	s := mustOpen(t, newURL(t), Options{})
	const n = 2*pageBytes/kv.MaxMetadataBytes + 10
	var writes []kv.Write
	for i := range n {
		rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Metadata: make([]byte, kv.MaxMetadataBytes)}
		writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprintf("%04d", i)}, Record: rec})
	}
	if err := s.PutMany(t.Context(), writes); err != nil {
		t.Fatal(err)
	}
	total, pages := 0, 0
	for opts := (kv.ListOptions{}); ; pages++ {
		page, err := s.List(t.Context(), kv.NamespaceID{}, opts)
		if err != nil {
			t.Fatal(err)
		}
		total += len(page.Keys)
		opts.After = page.Last
		if !page.More {
			break
		}
	}
	if total != n || pages != 2 {
		t.Errorf("%d keys on %d full pages, want %d on 2", total, pages, n)
	}
}
