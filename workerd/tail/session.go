package tail

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/websocket"
)

// session is one follower of one tail.
type session struct {
	hub      *Hub
	tail     catalog.Tail
	filters  filters
	conn     *websocket.Conn
	replaced bool        // guarded by the hub's mu
	closed   atomic.Bool // the catalog no longer knows the tail

	wake chan struct{} // something waits

	mu      sync.Mutex // guards the rest
	queue   []json.RawMessage
	bytes   int
	lost    int64         // events since the last that was queued
	code    int           // with which the session ends
	reason  string        // why
	ending  chan struct{} // closed when it is to end
	endOnce bool
}

// push has an event wait for the follower, or counts it as lost.
func (s *session) push(event json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 || len(s.queue) >= MaxQueue || s.bytes+len(event) > MaxQueueBytes {
		s.lost++
		s.hub.dropped.Add(1)
	} else {
		s.queue = append(s.queue, event)
		s.bytes += len(event)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end has the session end. Only the first reason counts.
func (s *session) end(code int, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endOnce {
		return
	}
	s.endOnce, s.code, s.reason = true, code, reason
	close(s.ending)
}

// run serves the follower until the session ends.
func (s *session) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var others sync.WaitGroup
	read := make(chan struct{})
	others.Go(func() {
		defer close(read)
		s.read()
	})
	others.Go(func() { s.keep(ctx) })
	others.Go(func() { s.write(ctx) })

	select {
	case <-s.ending:
	case <-ctx.Done():
		s.end(websocket.CloseGoingAway, "the server ends")
	case <-read:
	}
	cancel()
	// A peer that does not take it is cut off below, and with it who still writes.
	told := time.AfterFunc(closeWait, func() { _ = s.conn.Close() })
	s.mu.Lock()
	code, reason := s.code, s.reason
	s.mu.Unlock()
	if code != 0 && s.conn.WriteClose(code, reason) == nil {
		<-read
	}
	told.Stop()
	_ = s.conn.Close()
	others.Wait()
}

// read takes what the follower says. Only its signs of life matter.
func (s *session) read() {
	for {
		if _, err := s.conn.Read(); err != nil {
			return
		}
	}
}

// keep renews the tail in the catalog, until it has been open for long enough.
func (s *session) keep(ctx context.Context) {
	expired := time.NewTimer(max(0, s.tail.Created.Add(MaxSession).Sub(s.hub.now())))
	defer expired.Stop()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	s.renew(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-expired.C:
			s.end(websocket.CloseNormal, "the tail has expired")
			return
		case <-renew.C:
			s.renew(ctx)
		}
	}
}

// renew says that the tail is still followed. While the catalog cannot be asked
// the session goes on: edges will stop delivering when the lease ends, no more.
func (s *session) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.hub.opts.Tails.RenewTail(ctx, s.tail.AccountID, s.tail.Worker, s.tail.ID, Lease)
	switch {
	case notThere(err):
		s.closed.Store(true)
		s.end(websocket.CloseNormal, "the tail was closed")
	case err != nil && ctx.Err() == nil:
		s.hub.log.Warn("renew a tail", "worker", s.tail.Worker, "error", err)
	}
}

// notThere reports whether an error says that the tail or its Worker is gone.
func notThere(err error) bool { return errors.Is(err, catalog.ErrNotFound) }

// write hands the follower what waits for it.
func (s *session) write(ctx context.Context) {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	overloaded := false
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-ping.C:
			err = s.conn.Ping()
		case <-s.wake:
			overloaded, err = s.flush(overloaded)
		}
		if err != nil { // a follower that is gone, or takes nothing
			_ = s.conn.Close()
			return
		}
	}
}

// flush sends all that waits, and what is to be said about what was lost.
func (s *session) flush(overloaded bool) (bool, error) {
	for {
		s.mu.Lock()
		queue, lost := s.queue, s.lost
		s.queue, s.bytes, s.lost = nil, 0, 0
		s.mu.Unlock()
		for _, event := range queue {
			if err := s.conn.WriteText(event); err != nil {
				return overloaded, err
			}
			s.hub.sent.Add(1)
		}
		switch {
		case lost > 0:
			if err := s.conn.WriteText(overload(s.tail.Worker, lost, s.hub.now())); err != nil {
				return overloaded, err
			}
			overloaded = true
		case overloaded && len(queue) == 0:
			return false, s.conn.WriteText(overloadStop(s.tail.Worker, s.hub.now()))
		case len(queue) == 0:
			return false, nil
		}
	}
}
