package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/stack"
)

// group lets concurrent calls travel together. While fewer than its flights are
// under way a call leaves at once and alone; those that come meanwhile leave with
// the next flight. So nobody waits for company, and the busier the server, the
// fuller the flights. A flight belongs to nobody: a caller that gives up neither
// ends it nor breaks its connection.
type group[In, Out any] struct {
	flights int             // under way at once, at most
	seats   int             // calls in a flight, at most
	bytes   int             // of the calls in a flight, at most, if size is not nil
	timeout time.Duration   // of a flight with a call that has no deadline
	size    func(in In) int // nil: not counted
	run     func(ctx context.Context, ins []In) ([]Out, error)

	mu      sync.Mutex // guards what follows
	waiting []*call[In, Out]
	flying  int
}

type call[In, Out any] struct {
	in       In
	deadline time.Time
	out      Out
	err      error
	done     chan struct{} // closed when out or err is set
}

func newGroup[In, Out any](flights, seats, bytes int, timeout time.Duration, size func(In) int, run func(context.Context, []In) ([]Out, error)) *group[In, Out] {
	return &group[In, Out]{flights: flights, seats: seats, bytes: bytes, timeout: timeout, size: size, run: run}
}

// errSlow: the answer took longer than a call may.
var errSlow = errors.New("no answer in time")

// do runs in with those of others. If ctx ends before the answer is there, or the
// call takes too long, it returns ctx's error or errSlow, and whether the call had
// left by then.
func (g *group[In, Out]) do(caller context.Context, in In) (out Out, unanswered bool, err error) {
	ctx, cancel := context.WithTimeout(caller, g.timeout)
	defer cancel()
	c := &call[In, Out]{in: in, done: make(chan struct{})}
	c.deadline, _ = ctx.Deadline()
	g.mu.Lock()
	g.waiting = append(g.waiting, c)
	if g.flying < g.flights {
		g.flying++
		go g.fly(context.WithoutCancel(ctx))
	}
	g.mu.Unlock()
	select {
	case <-c.done:
		if c.err != nil && caller.Err() != nil {
			return out, false, fmt.Errorf("%w: %w", c.err, caller.Err())
		}
		return c.out, false, c.err
	case <-ctx.Done():
	}
	err = errSlow
	if caller.Err() != nil {
		err = caller.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, c); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
		return out, false, err
	}
	return out, true, err
}

// fly runs flights until nobody waits.
func (g *group[In, Out]) fly(ctx context.Context) {
	stack.Grow()
	for {
		calls := g.board()
		if len(calls) == 0 {
			return
		}
		ins := make([]In, len(calls))
		for i, c := range calls {
			ins[i] = c.in
		}
		outs, err := g.runUntil(ctx, g.deadline(calls), ins)
		if err == nil && len(outs) != len(ins) {
			err = fmt.Errorf("%d answers to %d calls", len(outs), len(ins))
		}
		for i, c := range calls {
			if c.err = err; err == nil {
				c.out = outs[i]
			}
			close(c.done)
		}
	}
}

func (g *group[In, Out]) runUntil(ctx context.Context, deadline time.Time, ins []In) ([]Out, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return g.run(ctx, ins)
}

// board takes the calls of the next flight. If there are none the flight is over.
func (g *group[In, Out]) board() []*call[In, Out] {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < min(len(g.waiting), g.seats) {
		if g.size != nil {
			bytes += g.size(g.waiting[n].in)
			if n > 0 && bytes > g.bytes {
				break
			}
		}
		n++
	}
	calls := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	if n == 0 {
		g.flying--
	}
	return calls
}

// flightGrace is how long a flight outlives the deadline of its calls, so that a
// call ends by its own.
const flightGrace = 50 * time.Millisecond

// deadline is that of the most patient of the calls: those who leave earlier do
// not end it for the others.
func (g *group[In, Out]) deadline(calls []*call[In, Out]) time.Time {
	var latest time.Time
	for _, c := range calls {
		if c.deadline.After(latest) {
			latest = c.deadline
		}
	}
	return latest.Add(flightGrace)
}
