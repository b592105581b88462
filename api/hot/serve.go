package hot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Serve answers what comes by l until the Server is shut down or closed, and then
// returns http.ErrServerClosed at once; Shutdown waits for the requests under way.
// When ctx ends all is cut off. It may be called for several listeners, and closes
// each.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	away := &away{address: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	if !s.listen(l, away, cancel) {
		cancel()
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	patience := time.Duration(0)
	for {
		if !s.takeSlot() {
			return http.ErrServerClosed
		}
		nc, err := l.Accept()
		switch {
		case err == nil:
			patience = 0
			s.begin(ctx, nc, away)
			continue
		case s.closing.Load():
			s.freeSlot()
			return http.ErrServerClosed
		case !passing(err):
			s.freeSlot()
			return errors.Join(fmt.Errorf("accept a connection: %w", err), l.Close())
		}
		s.freeSlot()
		patience = min(max(2*patience, minPatience), maxPatience)
		s.log.LogAttrs(ctx, slog.LevelWarn, "accepting a connection", slog.Any("error", err), slog.Duration("again_in", patience))
		select {
		case <-time.After(patience):
		case <-s.stop:
		}
	}
}

// How long the server waits before it accepts again after an error that passes.
const (
	minPatience = 5 * time.Millisecond
	maxPatience = time.Second
)

// passing reports whether an error of Accept says that there is too much of
// something at this moment, or is about one connection.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// listen begins to serve a listener; false: the Server has ended.
func (s *Server) listen(l net.Listener, away *away, cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[l] = cancel
	s.serving.Go(func() {
		if err := s.http.Serve(away); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the HTTP server ended", "error", err)
		}
	})
	return true
}

func (s *Server) takeSlot() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	case <-s.stop:
		return false
	}
}

func (s *Server) freeSlot() { <-s.slots }

// begin serves a connection on a goroutine of its own.
func (s *Server) begin(ctx context.Context, nc net.Conn, away *away) {
	c := &conn{server: s, net: nc, away: away, shard: s.stats.accept(), verbose: s.log.Enabled(ctx, slog.LevelDebug)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		_ = nc.Close()
		s.freeSlot()
		return
	}
	s.conns[c] = struct{}{}
	go c.run(ctx)
}

// ended forgets a connection that was closed.
func (s *Server) ended(c *conn) {
	_ = c.net.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.notify()
	s.mu.Unlock()
	s.freeSlot()
}

// give hands a connection to the HTTP server, which from now on owns it.
func (s *Server) give(c *conn, nc net.Conn) {
	c.shard.given.Add(1)
	s.mu.Lock()
	delete(s.conns, c)
	s.given[nc] = http.StateNew
	s.mu.Unlock()
	select {
	case c.away.conns <- nc:
	case <-c.away.closed:
		_ = nc.Close()
		s.moved(nc, http.StateClosed)
	}
}

// moved is told what becomes of the connections of the HTTP server.
func (s *Server) moved(nc net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ours := s.given[nc]; !ours {
		return
	}
	s.given[nc] = state
	if state == http.StateClosed || state == http.StateHijacked {
		delete(s.given, nc)
		s.freeSlot()
	}
	s.notify()
}

// notify wakes who awaits a change. The caller holds mu.
func (s *Server) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// await returns when holds is true; it is called with mu held.
func (s *Server) await(ctx context.Context, holds func() bool) error {
	for {
		s.mu.Lock()
		done := holds()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refuse ends the accepting of connections.
func (s *Server) refuse() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Swap(true) {
		return nil
	}
	close(s.stop)
	var err error
	for l := range s.listeners {
		if e := l.Close(); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Shutdown closes the listeners and the idle connections, waits for the requests
// under way, those of the HTTP server included, and returns. If ctx ends before,
// its error is returned and Close cuts off the rest.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.refuse()
	s.http.SetKeepAlivesEnabled(false)
	s.mu.Lock()
	for c := range s.conns {
		if c.state.CompareAndSwap(idle, ended) {
			_ = c.net.Close()
		}
	}
	s.mu.Unlock()
	// What was read here may yet be given away, and the HTTP server drops a request
	// that it begins to read after its own shutdown has begun.
	if e := s.await(ctx, func() bool { return len(s.conns) == 0 && !s.unread() }); e != nil {
		return errors.Join(err, fmt.Errorf("shut down: %w", e))
	}
	if e := s.http.Shutdown(ctx); e != nil {
		return errors.Join(err, fmt.Errorf("shut down: %w", e))
	}
	s.release()
	s.serving.Wait()
	return err
}

// unread reports whether the HTTP server has a connection of which it has not yet
// read the request that came with it. The caller holds mu.
func (s *Server) unread() bool {
	for _, state := range s.given {
		if state == http.StateNew {
			return true
		}
	}
	return false
}

// Close cuts off all connections at once.
func (s *Server) Close() error {
	err := s.refuse()
	s.release()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.net.Close()
	}
	s.mu.Unlock()
	return errors.Join(err, s.http.Close())
}

// release ends the contexts of all requests.
func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cancel := range s.listeners {
		cancel()
	}
}
