package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
)

// client is one that writes and reads, with a clock of its own.
type client struct {
	p    *plane
	id   int
	rng  *rand.Rand
	skew time.Duration
	last int64
}

// stamp is what kv.Stamper does, by the dice.
func (c *client) stamp() kv.Version {
	c.last = max(time.Now().Add(c.skew).UnixNano(), c.last+1)
	return kv.NewVersion(c.last, uint16(c.id), c.rng.Uint64())
}

func (c *client) ref() kv.Ref {
	if c.rng.IntN(4) == 0 {
		return kv.Ref{Namespace: both, Key: fmt.Sprintf("k%d", c.rng.IntN(3))}
	}
	return kv.Ref{Namespace: either, Key: fmt.Sprintf("%c/%02d", 'a'+c.rng.IntN(2), c.rng.IntN(c.p.config.Keys))}
}

func (c *client) write(ref kv.Ref) kv.Write {
	return kv.Write{Ref: ref, Record: c.p.recordOf(ref, c.stamp(), c.rng.IntN(6))}
}

// run makes operations until the chaos ends. What each one is, is drawn before it
// begins, so that how long others take does not matter.
func (c *client) run(wg *sync.WaitGroup) {
	for {
		time.Sleep(1 + exponential(c.rng, c.p.config.Rate))
		if !c.p.chaos() {
			return
		}
		switch op := c.rng.IntN(20); {
		case op < 8:
			w := c.write(c.ref())
			again := c.rng.IntN(3) == 0
			wg.Go(func() { c.put(w, again) })
		case op < 9:
			var writes []kv.Write
			for range 2 + c.rng.IntN(3) {
				writes = append(writes, c.write(c.ref()))
			}
			wg.Go(func() { c.p.operate(func(ctx context.Context, g *shift) { c.p.putMany(ctx, g, writes) }) })
		case op < 16:
			ref := c.ref()
			wg.Go(func() { c.p.operate(func(ctx context.Context, g *shift) { c.p.get(ctx, g, ref) }) })
		case op < 18:
			refs := []kv.Ref{c.ref(), c.ref(), c.ref()}
			wg.Go(func() { c.p.operate(func(ctx context.Context, g *shift) { c.p.getMany(ctx, g, refs) }) })
		default:
			prefix, limit := []string{"", "a/", "b/"}[c.rng.IntN(3)], 1+c.rng.IntN(12)
			wg.Go(func() { c.p.operate(func(ctx context.Context, g *shift) { c.p.list(ctx, g, either, prefix, limit) }) })
		}
	}
}

// operate makes an operation with the patience of a client.
func (p *plane) operate(op func(ctx context.Context, g *shift)) {
	g := p.enter()
	if g == nil {
		return
	}
	defer g.ops.Done()
	ctx, cancel := context.WithTimeout(context.Background(), planePatience)
	defer cancel()
	op(ctx, g)
}

func (c *client) put(w kv.Write, again bool) {
	var err error
	c.p.operate(func(ctx context.Context, g *shift) { err = c.p.putMany(ctx, g, []kv.Write{w}) })
	if err != nil && again { // the same write, by its version
		time.Sleep(100*time.Millisecond + 3)
		c.p.operate(func(ctx context.Context, g *shift) { _ = c.p.putMany(ctx, g, []kv.Write{w}) })
	}
}

func (p *plane) putMany(ctx context.Context, g *shift, writes []kv.Write) error {
	p.sends(writes)
	healthy := p.healthy(g)
	began := time.Now()
	var err error
	if len(writes) == 1 {
		err = g.Put(ctx, writes[0].Ref, writes[0].Record)
	} else {
		err = g.PutMany(ctx, writes)
	}
	if g.dead() {
		err = fmt.Errorf("%w: %w", kv.ErrUnknown, errCut)
	}
	if err == nil && p.config.Breaks == lies && p.dice.about("lie").IntN(10) == 0 {
		err = errFull
	}
	p.trace.add(fmt.Sprintf("put %s: %v, unknown %v", names(writes, writeName), err != nil, unknown(err)))
	wantsAll := false
	for _, w := range writes {
		wantsAll = wantsAll || w.Ref.Namespace == both
	}
	switch {
	case err == nil:
		p.checkBoth(g, writes)
		p.acked(writes)
	case !unknown(err):
		p.mu.Lock()
		for _, w := range writes {
			p.sent[w.Record.Version].never = true
		}
		p.mu.Unlock()
	}
	if !wantsAll {
		p.checkAvailable(g, healthy, "put", err, time.Since(began), 100*time.Millisecond)
	}
	if err == nil {
		return nil
	}
	return err
}

// checkBoth checks that all active providers have what was acknowledged by both.
func (p *plane) checkBoth(g *shift, writes []kv.Write) {
	wants := false
	for _, w := range writes {
		wants = wants || w.Ref.Namespace == both
	}
	if !wants {
		return
	}
	p.mu.Lock()
	changing := p.busy > 0 || time.Since(p.busied) < planePatience
	p.mu.Unlock()
	for _, w := range writes {
		for i, pr := range g.Status().Providers {
			s := p.sites[i]
			if changing || pr.State != gateway.Active || s.wentBackLately() || !pr.Trusted {
				continue
			}
			if has := s.record(w.Ref).Version; has.Compare(w.Record.Version) < 0 {
				p.violate(allHave, "%s has %s of %s, %s is acknowledged", s.name, has, refName(w.Ref), w.Record.Version)
			}
		}
	}
}

func (p *plane) get(ctx context.Context, g *shift, ref kv.Ref) {
	q, healthy, began := p.ask(ref), p.healthy(g), time.Now()
	a, err := g.GetAnswer(ctx, ref, 0)
	if g.dead() {
		return
	}
	p.trace.add(fmt.Sprintf("got %s: %s %s, %v", refName(ref), a.Version, a.Cache, err != nil))
	p.checkAvailable(g, healthy, "get", err, time.Since(began), 2*planeDeadline)
	if err == nil {
		p.checkAnswer(q[0], a, "get")
	}
}

func (p *plane) getMany(ctx context.Context, g *shift, refs []kv.Ref) {
	q, healthy, began := p.ask(refs...), p.healthy(g), time.Now()
	answers, err := g.GetAnswers(ctx, refs, 0)
	if g.dead() {
		return
	}
	p.trace.add(fmt.Sprintf("got many %s: %v", names(refs, refName), err != nil))
	p.checkAvailable(g, healthy, "get many", err, time.Since(began), 2*planeDeadline)
	if err != nil {
		return
	}
	for i := range answers {
		p.checkAnswer(q[i], answers[i], "get many")
	}
}

// list lists all pages and checks them against what was acknowledged before the
// first. A page cannot say that it is stale, so it is only held to that if all
// providers were there all the time.
func (p *plane) list(ctx context.Context, g *shift, ns kv.NamespaceID, prefix string, limit int) {
	p.mu.Lock()
	var refs []kv.Ref
	for ref := range p.books {
		if ref.Namespace == ns && len(ref.Key) >= len(prefix) && ref.Key[:len(prefix)] == prefix {
			refs = append(refs, ref)
		}
	}
	p.mu.Unlock()
	questions, healthy := p.ask(refs...), p.healthy(g)
	listed := map[string]kv.Record{}
	last, opts := "", kv.ListOptions{Prefix: prefix, Limit: limit}
	for {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), planePatience) // each page is a request
		began := time.Now()
		page, err := g.List(ctx, ns, opts)
		cancel()
		if g.dead() {
			return
		}
		p.trace.add(fmt.Sprintf("listed %d, %v", len(page.Keys), err != nil))
		p.checkAvailable(g, healthy, "list", err, time.Since(began), 2*planeDeadline)
		if err != nil {
			return
		}
		for _, k := range page.Keys {
			if k.Key <= last || k.Key[:len(prefix)] != prefix {
				p.violate(listing, "%q follows %q, prefix %q", k.Key, last, prefix)
			}
			last = k.Key
			listed[k.Key] = k.Record
		}
		if len(page.Keys) > limit || page.More && page.Last < last {
			p.violate(listing, "%d keys, at most %d were asked for; %q, and goes on after %q", len(page.Keys), limit, last, page.Last)
		}
		if !page.More {
			break
		}
		opts.After = page.Last
	}
	if len(healthy) < len(p.sites) || len(p.stillHealthy(g, healthy)) < len(p.sites) {
		return
	}
	p.count("listings checked")
	for _, q := range questions {
		p.checkAnswer(q, kv.Answer{Record: listed[q.ref.Key]}, listing)
	}
}

// healthy is the active sites that are well, and have been for so long that the
// gateway must have found out.
func (p *plane) healthy(g *shift) (found []*site) {
	p.mu.Lock()
	quiet := p.busy == 0 && time.Since(p.busied) > settled && time.Since(g.began) > settled
	p.mu.Unlock()
	if !quiet {
		return nil
	}
	for i, pr := range g.Status().Providers {
		s := p.sites[i]
		s.mu.Lock()
		well := !s.wellSince.IsZero() && time.Since(s.wellSince) > settled
		s.mu.Unlock()
		if well && pr.State == gateway.Active {
			found = append(found, s)
		}
	}
	return found
}

// stillHealthy is those of sites that have been healthy all the time since.
func (p *plane) stillHealthy(g *shift, before []*site) (found []*site) {
	now := p.healthy(g)
	for _, s := range before {
		for _, o := range now {
			if s == o {
				found = append(found, s)
			}
		}
	}
	return found
}

// checkAvailable checks that an operation succeeded in time if some provider was
// well all the while.
func (p *plane) checkAvailable(g *shift, healthy []*site, op string, err error, took, most time.Duration) {
	if g.dead() || len(p.stillHealthy(g, healthy)) == 0 {
		return
	}
	p.count("operations with a provider that is well")
	if err != nil {
		p.violate(availability, "%s after %s, though %s is well: %v", op, took, healthy[0].name, err)
	} else if took > most {
		p.violate(availability, "%s took %s, though %s is well", op, took, healthy[0].name)
	}
}

func droppedNamespace(i int) kv.NamespaceID { return kv.NamespaceID{0x10, byte(i)} }

// dropper writes into namespaces and drops them.
func (c *client) dropper() {
	for c.p.chaos() {
		time.Sleep(between(c.rng, time.Second, 20*time.Second))
		if !c.p.chaos() {
			return
		}
		c.p.mu.Lock()
		ns := droppedNamespace(c.p.seen.counts["drops"])
		c.p.seen.counts["drops"]++
		c.p.mu.Unlock()
		for i := range 3 {
			ref := kv.Ref{Namespace: ns, Key: fmt.Sprint(i)}
			w := c.write(ref)
			c.put(w, false)
			c.p.operate(func(ctx context.Context, g *shift) { c.p.get(ctx, g, ref) })
		}
		c.p.mu.Lock()
		for ref := range c.p.books {
			if ref.Namespace == ns {
				delete(c.p.books, ref)
			}
		}
		c.p.mu.Unlock()
		c.p.operate(func(ctx context.Context, g *shift) {
			err := g.Drop(ctx, ns)
			c.p.trace.add(fmt.Sprintf("dropped %x: %v", ns[:2], err != nil))
		})
	}
}

// operator looks after the providers: those that are removed are filled, those that
// are filled are promoted; and now and then it is moved to do something.
func (p *plane) operator(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		time.Sleep(between(r, 300*time.Millisecond, 2*time.Second))
		g := p.enter()
		if g == nil {
			continue
		}
		own, cancel := context.WithTimeout(ctx, 20*time.Second)
		for _, pr := range g.Status().Providers {
			switch {
			case pr.State == gateway.Removed && r.IntN(3) == 0:
				p.administer(g, pr.Name, "fill", func() error { return g.Fill(own, pr.Name, r.IntN(2) == 0) })
			case pr.State == gateway.Filling && pr.Filled:
				p.administer(g, pr.Name, "promote", func() error { return g.Promote(own, pr.Name) })
			}
		}
		if p.config.Rollouts && p.chaos() && r.IntN(8) == 0 {
			p.change(own, g, r)
		}
		cancel()
		g.ops.Done()
	}
}

// change is something that an operator may do at any time.
func (p *plane) change(ctx context.Context, g *shift, r *rand.Rand) {
	name := p.sites[r.IntN(len(p.sites))].name
	switch r.IntN(7) {
	case 0:
		p.administer(g, name, "remove", func() error { return g.Remove(ctx, name, false) })
	case 1:
		p.mu.Lock()
		p.forced = true
		p.mu.Unlock()
		p.administer(g, name, "remove by force", func() error { return g.Remove(ctx, name, true) })
		p.forgive(false, func(s *site) bool { return s.name != name || p.states[name] == gateway.Active })
		p.mu.Lock()
		p.forced = false
		p.mu.Unlock()
	case 2:
		wipe := r.IntN(2) == 0
		p.administer(g, name, "fill", func() error { return g.Fill(ctx, name, wipe) })
	case 3:
		p.administer(g, name, "distrust", func() error { return g.Distrust(ctx, name) })
	case 4:
		g.CrawlSoon()
	case 5:
		_, err := g.Verify(ctx, gateway.VerifyOptions{Values: true, Repair: true}, nil)
		p.trace.add(fmt.Sprintf("verified: %v", err != nil))
	case 6:
		select {
		case p.wish <- struct{}{}:
		default:
		}
	}
}

// administer changes the state of a provider. Who forces it takes the loss of what
// only it had.
func (p *plane) administer(g *shift, name, what string, f func() error) {
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	err := f()
	p.trace.add(fmt.Sprintf("%s %s: %v", what, name, err != nil))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.busied = time.Now()
	p.noteStates(g.Status())
	if err == nil {
		p.seen.counts[what]++
	} else if !errors.Is(err, gateway.ErrRefused) {
		p.seen.counts[what+" failed"]++
	}
}
