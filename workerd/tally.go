package workerd

import (
	"sync/atomic"
	"time"
)

// Counts are what happened since the counting began.
type Counts struct {
	Requests   int64
	Exceptions int64 // requests that the Worker did not answer: it threw
	Starts     int64
	Crashes    int64 // processes that ended unasked, those killed for a limit included
	CPU        time.Duration
}

// What a Tally counts.
const (
	tallyRequests = iota
	tallyExceptions
	tallyStarts
	tallyCrashes
	tallyCPU // of processes that have ended, ns
	tallies
)

// A Tally counts what versions do that share it. It never goes back, whatever
// becomes of the versions.
type Tally struct{ of [tallies]atomic.Int64 }

// Counts returns what was counted. CPU is that of processes that have ended.
func (t *Tally) Counts() Counts {
	return Counts{
		Requests:   t.of[tallyRequests].Load(),
		Exceptions: t.of[tallyExceptions].Load(),
		Starts:     t.of[tallyStarts].Load(),
		Crashes:    t.of[tallyCrashes].Load(),
		CPU:        time.Duration(t.of[tallyCPU].Load()),
	}
}

// count counts for the script, its Worker and the whole Runtime.
func (s *script) count(what int, n int64) {
	s.own.of[what].Add(n)
	s.rt.total.of[what].Add(n)
	if t := s.tally.Load(); t != nil {
		t.of[what].Add(n)
	}
}

// Totals returns what all Workers did since the Runtime was made, those that were
// removed included.
func (r *Runtime) Totals() Counts { return r.total.Counts() }
