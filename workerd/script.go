package workerd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// How a Worker that crashes is held back: the first crashes cost nothing, then
// every further one doubles the wait. A request waits with it if that is short.
const (
	freeCrashes  = 2
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 10 * time.Second
	waitBackoff  = time.Second
	healthy      = 30 * time.Second // a process that lived so long makes up for all crashes before it
)

func backoff(crashes int) time.Duration {
	if crashes <= freeCrashes {
		return 0
	}
	return min(firstBackoff<<min(crashes-freeCrashes-1, 16), maxBackoff)
}

// A script is a Worker by its name: the version that is wanted, and its process.
type script struct {
	rt        *Runtime
	name      string
	deploying chan struct{} // held by the one Deploy or change of extras that is under way

	own   Tally
	tally atomic.Pointer[Tally] // of the version that was last wanted; nil: none

	mu        sync.Mutex // guards what follows
	worker    *Worker    // nil: removed, or never deployed
	more      extras     // what its processes have beside it
	cur       *process   // nil: nothing runs
	flight    *flight    // nil: nothing is being started
	failures  int        // crashes and failed starts in a row
	notBefore time.Time  // the next start
	gone      bool       // removed
}

// A flight is one start that many requests wait for.
type flight struct {
	done chan struct{}
	err  error // once done
}

// enter returns a process that has counted the caller in: leave must follow.
func (s *script) enter(ctx context.Context) (*process, error) {
	for {
		s.mu.Lock()
		p, f := s.cur, s.flight
		if s.worker == nil {
			s.mu.Unlock()
			return nil, ErrNotFound
		}
		if p != nil {
			s.mu.Unlock()
			if entered, err := p.enter(s.rt.opts.Requests); entered || err != nil {
				return p, err
			}
			s.lost(p)
			continue
		}
		if f == nil {
			f = &flight{done: make(chan struct{})}
			w := s.worker
			if err := s.rt.begin(func() { s.start(f, w) }); err != nil {
				s.mu.Unlock()
				return nil, err
			}
			s.flight = f
		}
		s.mu.Unlock()
		select {
		case <-f.done:
			if f.err != nil {
				return nil, f.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// start starts a version on demand.
func (s *script) start(f *flight, w *Worker) {
	p, more, err := s.startOnce(w)
	s.mu.Lock()
	current := s.worker == w
	kept := err == nil && current && s.cur == nil
	var fault *StartError
	switch {
	case kept:
		s.cur = p
		p.owner.Store(s)
		s.count(tallyStarts, 1)
	case !current:
		err = nil // another version is wanted by now: those who wait look again
	case errors.As(err, &fault) && more.entrypoints != "":
		s.forgetEntrypoints(more)
	case errors.As(err, &fault):
		s.held()
	}
	f.err, s.flight = err, nil
	s.mu.Unlock()
	close(f.done)
	if p != nil && !kept {
		p.end("", s.rt.opts.Stop)
	}
}

func (s *script) startOnce(w *Worker) (*process, extras, error) {
	s.mu.Lock()
	wait, more := time.Until(s.notBefore), s.more
	s.mu.Unlock()
	if wait > waitBackoff {
		return nil, more, ErrCrashing
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-s.rt.closing:
			return nil, more, ErrClosed
		}
	}
	p, err := s.rt.launch(nil, w, more)
	return p, more, err
}

// hold keeps others from replacing the process by hand, until release.
func (s *script) hold(ctx context.Context) error {
	select {
	case s.deploying <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *script) release() { <-s.deploying }

// wanted returns what the next process has beside the Worker.
func (s *script) wanted() extras {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.more
}

// adjust changes what processes have beside the Worker. One that runs without it
// is replaced; if that fails, it goes on, and the next one has it.
func (s *script) adjust(ctx context.Context, change func(*extras)) error {
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	for {
		s.mu.Lock()
		change(&s.more)
		w, more, f, p := s.worker, s.more, s.flight, s.cur
		s.mu.Unlock()
		switch {
		case w == nil:
			return ErrNotFound
		case f != nil: // it may have begun without
			select {
			case <-f.done:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		case p == nil || p.more == more:
			return nil
		}
		fresh, err := s.rt.launch(ctx.Done(), w, more)
		if err != nil {
			s.mu.Lock()
			s.forgetEntrypoints(more)
			s.mu.Unlock()
			return err
		}
		if s.exchange(w, p, fresh) {
			return nil
		}
		fresh.end("", s.rt.opts.Stop)
	}
}

// exchange puts another process of the same version in the place of one, if that
// is still its.
func (s *script) exchange(w *Worker, old, fresh *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.worker != w || s.cur != old {
		return false
	}
	s.cur = fresh
	fresh.owner.Store(s)
	s.count(tallyStarts, 1)
	old.replaced()
	return true
}

// held counts a crash and holds the next start back; s.mu is held.
func (s *script) held() {
	s.failures++
	s.notBefore = time.Now().Add(backoff(s.failures))
}

// lost takes a process away that has ended, or is about to.
func (s *script) lost(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur != p {
		return
	}
	s.cur = nil
	if !p.crashed() {
		return
	}
	s.count(tallyCrashes, 1)
	if time.Since(p.started) > healthy {
		s.failures = 0
	}
	s.held()
}

// replace makes w the version that is wanted and p, if any, its process; no w
// removes the script. It reports whether the script had not been removed before.
func (s *script) replace(w *Worker, p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false
	}
	if w != nil && p == nil && s.worker != nil && s.worker.Version == w.Version {
		return true // nothing new
	}
	old := s.cur
	s.worker, s.cur, s.gone = w, p, w == nil
	s.failures, s.notBefore = 0, time.Time{}
	if w != nil {
		s.tally.Store(w.Tally)
	}
	s.more.entrypoints = "" // of the version before
	if p != nil {
		p.owner.Store(s)
		s.count(tallyStarts, 1)
	}
	if old != nil {
		old.replaced()
	}
	return true
}

// evict ends the process of a script if nothing is in flight in it.
func (s *script) evict(p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur != p || !p.retire(true) {
		return false
	}
	s.cur = nil
	return true
}

func (s *script) status() (Status, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.worker == nil {
		return Status{}, false
	}
	status := Status{Name: s.name, Version: s.worker.Version, Counts: s.own.Counts()}
	if s.cur != nil {
		status.PID, status.InFlight = s.cur.pid, s.cur.busy()
		if cpu, memory, err := usage(s.cur.pid); err == nil {
			status.CPU += cpu
			status.MemoryBytes = memory
		}
	}
	return status, true
}
