package workerd

import (
	"context"
	"syscall"
	"time"
)

const (
	watchEvery = 250 * time.Millisecond
	minWatch   = 10 * time.Millisecond
	minCPU     = 200 * time.Millisecond // that a Worker can ask for: compilation and collection count as well
	maxStopped = time.Second            // a process that a signal has stopped
)

// A gauge is what the watch knows of a process.
type gauge struct {
	progress int64         // at the last look
	cpu      time.Duration // used when progress was last seen
	stopped  time.Time     // since when a signal stops it; zero: none does
}

// watch kills what is stuck or too large and ends what is idle, until ctx ends.
func (r *Runtime) watch(ctx context.Context) {
	every := max(min(watchEvery, r.opts.CPU/4, r.opts.Idle/4), minWatch)
	tick := time.NewTicker(every)
	defer tick.Stop()
	gauges := map[*process]*gauge{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		all := r.list()
		r.mu.Unlock()
		seen := make(map[*process]*gauge, len(all))
		for _, p := range all {
			g := gauges[p]
			if g == nil {
				g = &gauge{}
				g.cpu, _, _ = usage(p.pid) // its start is no request's
			}
			seen[p] = g
			if reason := p.over(g); reason != "" {
				p.kill(reason)
				continue
			}
			if g.stands(p.pid, time.Now()) {
				r.opts.Logger.Warn("a Worker's process was stopped by a signal, and is replaced", "worker", p.worker.label(), "version", p.worker.Version, "pid", p.pid)
				p.signal(syscall.SIGKILL) // not marked: nobody wanted it to end
				continue
			}
			p.rest()
		}
		gauges = seen
	}
}

// stands reports whether a process has been stopped for longer than by accident: it
// would neither answer nor end, nor use CPU that tells so.
func (g *gauge) stands(pid int, now time.Time) bool {
	switch {
	case !stopped(pid):
		g.stopped = time.Time{}
	case g.stopped.IsZero():
		g.stopped = now
	}
	return !g.stopped.IsZero() && now.Sub(g.stopped) > maxStopped
}

// over looks at what a process uses, and names the limit that it exceeds. CPU is
// counted from the last sign of progress: one loop runs all requests of a process,
// so whichever of them spins, nothing is answered.
func (p *process) over(g *gauge) string {
	cpu, rss, err := usage(p.pid)
	if err != nil {
		return "" // it has ended, or this system does not tell
	}
	if progress := p.progress.Load(); progress != g.progress {
		g.progress, g.cpu = progress, cpu
	}
	allowed := p.rt.opts.CPU
	if p.worker.CPU > 0 {
		allowed = min(allowed, max(p.worker.CPU, minCPU))
	}
	switch {
	case cpu-g.cpu > allowed:
		return overCPU
	case rss > p.rt.opts.MemoryBytes:
		return overMemory
	}
	return ""
}

// rest ends a process that was not used for long.
func (p *process) rest() {
	s := p.owner.Load()
	if s == nil {
		return
	}
	p.mu.Lock()
	idle := !p.retired && p.inFlight == 0 && time.Since(p.lastUsed) > p.rt.opts.Idle
	p.mu.Unlock()
	if idle && s.evict(p) {
		_ = p.rt.begin(func() { p.end("", p.rt.opts.Stop) })
	}
}
