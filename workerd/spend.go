package workerd

// A Resource is what a Worker may use only so often while it handles a request.
type Resource int

// The resources that are counted.
const (
	KVOperation Resource = iota
	Subrequest
	resources int = iota
)

// MaxSpend is how much of each resource a request may use.
const MaxSpend = 1000

// Spend takes one of a resource from what the process with this token may use, and
// reports whether there was one. Each request that is in flight brings MaxSpend
// with it and takes away what is left of it: for one that is alone the limit is
// exact; those that run at once share, and together use no more than they brought.
// What a request leaves to waitUntil uses what was left, until the next one comes.
func (r *Runtime) Spend(token string, what Resource) bool {
	found, ok := r.tokens.Load(token)
	if !ok || what < 0 || int(what) >= resources {
		return false
	}
	p := found.(*process)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left[what] <= 0 {
		return false
	}
	p.left[what]--
	return true
}

// bring adds what a request that came in may spend; p.mu is held.
func (p *process) bring() {
	for i := range p.left {
		p.left[i] = min(p.left[i]+MaxSpend, MaxSpend*p.inFlight)
	}
}

// take takes away what a request that has gone may have left; p.mu is held.
func (p *process) take() {
	for i := range p.left {
		p.left[i] = min(p.left[i], MaxSpend*max(p.inFlight, 1))
	}
}
