// Package signal wakes all who wait for something to happen. It keeps nothing;
// who was not waiting when it fired has nothing to lose, if he looks before he
// waits.
package signal

import "sync"

// Signal is fired any number of times; each time it wakes those who wait. The
// zero Signal is ready to use.
type Signal struct {
	mu sync.Mutex    // guards ch
	ch chan struct{} // nil: nobody has asked since the last Fire
}

// C returns a channel that is closed by the next Fire. Take it first, then look
// whether what you wait for has happened already, then wait.
func (s *Signal) C() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Fire wakes those who wait.
func (s *Signal) Fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
