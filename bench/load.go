package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

// op is one operation of a closed loop. io.EOF ends the loop of its worker.
type op func(c *conn) error

// round is what one measurement of a server showed.
type round struct {
	ops            int
	elapsed        time.Duration
	server, client time.Duration   // CPU
	latencies      []time.Duration // in order of length
}

func (r round) rate() float64 { return float64(r.ops) / r.elapsed.Seconds() }

// cost is the server's CPU for one operation, in microseconds.
func (r round) cost() float64 { return micros(r.server) / float64(max(r.ops, 1)) }

// clientCost is the same of the client.
func (r round) clientCost() float64 { return micros(r.client) / float64(max(r.ops, 1)) }

func (r round) percentile(p float64) time.Duration { return percentile(r.latencies, p) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// percentile of durations in order of length.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p/100*float64(len(sorted))), len(sorted)-1)]
}

// median of a property of rounds.
func median(rounds []round, property func(round) float64) float64 {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = property(r)
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// drive runs a closed loop on so many connections for a time, or until every
// worker's op has returned io.EOF, and measures what it cost.
func drive(ctx context.Context, s *server, conns int, length time.Duration, worker func(i int) op) (round, error) {
	open := make([]*conn, conns)
	for i := range open {
		c, err := dial(s.addr)
		if err != nil {
			return round{}, err
		}
		defer c.close()
		open[i] = c
	}
	return metered(s, func() (int, []time.Duration, error) {
		latencies, err := loops(ctx, open, time.Now().Add(length), worker)
		return len(latencies), latencies, err
	})
}

// metered measures what some load costs the server and this process.
func metered(s *server, load func() (ops int, latencies []time.Duration, err error)) (round, error) {
	serverBefore, err := process.CPU(s.pids...)
	if err != nil {
		return round{}, err
	}
	clientBefore, err := ownCPU()
	if err != nil {
		return round{}, err
	}
	began := time.Now()
	ops, latencies, err := load()
	r := round{ops: ops, elapsed: time.Since(began), latencies: latencies}
	if err != nil {
		return round{}, err
	}
	serverAfter, err := process.CPU(s.pids...)
	if err != nil {
		return round{}, err
	}
	clientAfter, err := ownCPU()
	if err != nil {
		return round{}, err
	}
	r.server, r.client = serverAfter-serverBefore, clientAfter-clientBefore
	slices.Sort(r.latencies)
	if r.ops == 0 {
		return round{}, errors.New("no operation ended in time")
	}
	return r, nil
}

// loops runs one loop on each connection and joins them.
func loops(ctx context.Context, open []*conn, deadline time.Time, worker func(i int) op) ([]time.Duration, error) {
	latencies, errs := make([][]time.Duration, len(open)), make([]error, len(open))
	var wg sync.WaitGroup
	for i, c := range open {
		do := worker(i)
		wg.Go(func() {
			took := make([]time.Duration, 0, 1<<16)
			for now := time.Now(); now.Before(deadline) && ctx.Err() == nil; {
				err := do(c)
				if err == io.EOF {
					break
				}
				if err != nil {
					errs[i] = err
					break
				}
				then := now
				now = time.Now()
				took = append(took, now.Sub(then))
			}
			latencies[i] = took
		})
	}
	wg.Wait()
	for _, err := range append(errs, ctx.Err()) {
		if err != nil {
			return nil, err // the others will say the same
		}
	}
	return slices.Concat(latencies...), nil
}

// expect turns an answer that is not the right one into an error.
func expect(status int, body []byte, err error, right func([]byte) bool) error {
	if err != nil {
		return err
	}
	if status != 200 || !right(body) {
		return fmt.Errorf("status %d, %d bytes: %.300s", status, len(body), body)
	}
	return nil
}
