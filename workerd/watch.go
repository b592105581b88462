package workerd

import (
	"context"
	"time"
)

const (
	watchEvery = 250 * time.Millisecond
	minWatch   = 10 * time.Millisecond
	minCPU     = 200 * time.Millisecond // that a Worker can ask for: compilation and collection count as well
)

// A gauge is what the watch knows of a process.
type gauge struct {
	progress int64         // at the last look
	cpu      time.Duration // used when progress was last seen
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
			p.rest()
		}
		gauges = seen
	}
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
