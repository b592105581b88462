package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	targetMiniflare = 3.0  // nearkey's rate of one get / Miniflare's
	targetGetCPU    = 15.0 // µs of nearkey for one get of a Worker
	targetFrontCPU  = 15.0 // µs of nearkey for one request to a Worker
)

// contender is one Worker in one runtime.
type contender struct {
	name    string
	server  *server
	alone   bool // the server is workerd; otherwise its children are
	request []byte
	want    string
	status  int // 0: 200
	rounds  []workerRound
}

// workerRound is a round, and what of its CPU was workerd's.
type workerRound struct {
	round
	runtime time.Duration
	single  time.Duration // the median at one connection
}

func (r workerRound) runtimeCost() float64 { return micros(r.runtime) / float64(max(r.ops, 1)) }
func (r workerRound) hostCost() float64    { return r.cost() - r.runtimeCost() }

// contest is all that takes part.
type contest struct {
	hello, get, ten   *contender // nearkey
	none              *contender // nearkey, for a host without a Worker
	bare              *contender // workerd alone
	helloFlare        *contender // Miniflare
	getFlare          *contender
	getOwn, getOnSame *contender // the KV of a newer workerd, and nearkey on that
	stops             []func()
}

func (t *contest) all() []*contender {
	var all []*contender
	for _, c := range []*contender{t.hello, t.none, t.bare, t.helloFlare, t.get, t.getFlare, t.ten, t.getOnSame, t.getOwn} {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

func (t *contest) stop() {
	for _, stop := range slices.Backward(t.stops) {
		stop()
	}
}

// workerRates measures what a request to a Worker costs, and a get in it.
func (b *bench) workerRates(ctx context.Context) error {
	unpin, pinned, err := b.pinClient()
	if err != nil {
		return err
	}
	defer unpin()
	defer b.goNice()()
	t := &contest{}
	defer t.stop()
	if err := b.assemble(ctx, t, pinned); err != nil {
		return err
	}
	for range b.rounds {
		for _, c := range t.all() {
			r, err := b.workerRound(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.rounds = append(c.rounds, r)
		}
	}
	for _, c := range t.all() {
		b.printWorker(c)
	}
	return b.printContest(t)
}

// assemble starts everything, and waits until it answers.
func (b *bench) assemble(ctx context.Context, t *contest, pinned bool) error {
	ours, err := b.startWorkers(ctx, "workers", b.workerd, pinned)
	if err != nil {
		return err
	}
	t.stops = append(t.stops, ours.end)
	for _, c := range []struct {
		into       **contender
		name, code string
	}{{&t.hello, "hello", helloCode}, {&t.get, "get", getCode}, {&t.ten, "ten", tenCode}} {
		if *c.into, err = ours.contender("nearkey, "+c.name, c.name, c.code); err != nil {
			return err
		}
	}
	t.hello.want = helloBody
	t.none = &contender{name: "nearkey, no Worker", server: t.hello.server, request: ask("nobody." + ours.domain), status: http.StatusNotFound}
	t.none.want = "there is no Worker at nobody." + hostOf(ours.domain) + "\n"
	bare, err := b.startBare(ctx, "hello", b.workerd, helloCode, false, pinned)
	if err != nil {
		return err
	}
	t.stops = append(t.stops, bare.Kill)
	t.bare = &contender{name: "workerd alone, hello", server: bare, alone: true, request: t.hello.request, want: helloBody}
	if b.miniflare != "" {
		if err := b.assembleMiniflare(ctx, t, pinned); err != nil {
			return err
		}
	}
	if b.bundled != "" {
		if err := b.assembleBundled(ctx, t, pinned); err != nil {
			return err
		}
	}
	for _, c := range t.all() {
		if c == t.none {
			continue
		}
		if err := answers(c.server.addr, c.request, c.want); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr) // of what was split before
	return host
}

// contender deploys a Worker that answers with the value.
func (w *workers) contender(title, name, code string) (*contender, error) {
	if err := w.deploy(name, code); err != nil {
		return nil, err
	}
	asked := *w.server
	asked.addr = w.listen
	return &contender{name: title, server: &asked, request: w.ask(name), want: workerValue()}, nil
}

func (b *bench) assembleMiniflare(ctx context.Context, t *contest, pinned bool) error {
	for _, c := range []struct {
		into       **contender
		like       *contender
		name, code string
	}{{&t.helloFlare, t.hello, "hello", helloCode}, {&t.getFlare, t.get, "get", getCode}} {
		s, err := b.startMiniflare(ctx, c.name, c.code, pinned)
		if err != nil {
			return err
		}
		t.stops = append(t.stops, func() { _ = s.stop() }) // it ends its workerd, and then with 143
		*c.into = &contender{name: "Miniflare, " + c.name, server: s, request: c.like.request, want: c.like.want}
	}
	return nil
}

// assembleBundled starts the newer workerd with its own KV, and nearkey on the same
// one. A Worker before the one that is measured puts the value.
func (b *bench) assembleBundled(ctx context.Context, t *contest, pinned bool) error {
	seed := fmt.Sprintf(`export default { async fetch(request, env) { await env.KV.put(%q, %q); return new Response("put"); } };`, workerKey, workerValue())
	first, err := b.startBare(ctx, "bundled", b.bundled, seed, true, pinned)
	if err != nil {
		return err
	}
	err = answers(first.addr, t.get.request, "put")
	if stopped := first.stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return fmt.Errorf("put into the KV of workerd: %w", err)
	}
	own, err := b.startBare(ctx, "bundled", b.bundled, getCode, true, pinned)
	if err != nil {
		return err
	}
	t.stops = append(t.stops, own.Kill)
	t.getOwn = &contender{name: "newer workerd's KV, get", server: own, alone: true, request: t.get.request, want: t.get.want}
	ours, err := b.startWorkers(ctx, "workers-newer", b.bundled, pinned)
	if err != nil {
		return err
	}
	t.stops = append(t.stops, ours.end)
	t.getOnSame, err = ours.contender("nearkey on it, get", "get", getCode)
	return err
}

// parts are the processes of a contender: workerd's, and what stands before it.
func (c *contender) parts() (host, runtime []int, err error) {
	if c.alone {
		return nil, c.server.pids, nil
	}
	host = c.server.pids[:1]
	runtime, err = process.Children(host[0])
	return host, runtime, err
}

// workerRound measures a closed loop, and then the time of a request alone.
func (b *bench) workerRound(ctx context.Context, c *contender) (workerRound, error) {
	host, runtime, err := c.parts()
	if err != nil {
		return workerRound{}, err
	}
	s := *c.server
	s.pids = slices.Concat(host, runtime)
	many, err := c.warm(ctx, &s, getConns)
	if err != nil {
		return workerRound{}, err
	}
	defer many.close()
	used := time.Duration(0)
	r, err := metered(&s, func() (int, []time.Duration, error) {
		before, err := process.CPU(runtime...)
		if err != nil {
			return 0, nil, err
		}
		ops, latencies, err := many.closed(ctx, b.slice)
		if err != nil {
			return 0, nil, err
		}
		after, err := process.CPU(runtime...)
		used = after - before
		return ops, latencies, err
	})
	if err != nil {
		return workerRound{}, err
	}
	if c.alone {
		used = r.server
	}
	if err := many.settle(ctx); err != nil {
		return workerRound{}, err
	}
	one, err := c.warm(ctx, &s, 1)
	if err != nil {
		return workerRound{}, err
	}
	defer one.close()
	_, latencies, err := one.closed(ctx, b.slice/4)
	slices.Sort(latencies)
	return workerRound{r, used, percentile(latencies, 50)}, err
}

// warm returns a generator of a contender's request whose answers have begun to come.
func (c *contender) warm(ctx context.Context, s *server, conns int) (*generator, error) {
	g, err := newGenerator(s, conns, 1, func(int) (wire, want []byte) { return c.request, []byte(c.want) })
	if err != nil {
		return nil, err
	}
	g.status = cmp.Or(c.status, http.StatusOK)
	_, _, err = g.closed(ctx, warmUp)
	if err == nil {
		err = g.settle(ctx)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// middle is the median of a property of a contender's rounds.
func (c *contender) middle(property func(workerRound) float64) float64 {
	return middleOf(len(c.rounds), func(i int) float64 { return property(c.rounds[i]) })
}

// goNice lets the bench, and what it starts from now on, run before most of what the
// machine does, as they would on a machine of their own: not above the system's own
// schedule, which decides what a switch between the processes costs.
func (b *bench) goNice() (undo func()) {
	if !b.first {
		return func() {}
	}
	set := func(nice int) error {
		threads, err := os.ReadDir("/proc/self/task")
		for _, thread := range threads {
			id, bad := strconv.Atoi(thread.Name())
			if bad == nil {
				bad = syscall.Setpriority(syscall.PRIO_PROCESS, id, nice)
			}
			if errors.Is(bad, syscall.ESRCH) {
				bad = nil // it has ended
			}
			err = errors.Join(err, bad)
		}
		// Where the system shares among sessions first, the session has to have it.
		group := os.WriteFile("/proc/self/autogroup", strconv.AppendInt(nil, int64(nice), 10), 0)
		if errors.Is(group, os.ErrNotExist) {
			group = nil
		}
		return errors.Join(err, group)
	}
	if err := set(-20); err != nil {
		b.printf("  beside all else that the machine does (%v)\n", err)
		return func() {}
	}
	b.printf("  before most of what the machine does (nice -20; -first=false: beside it)\n")
	return func() {
		if err := set(0); err != nil {
			b.printf("  still before most: %v\n", err)
		}
	}
}

// middleOf is the median of n values.
func middleOf(n int, value func(i int) float64) float64 {
	values := make([]float64, n)
	for i := range values {
		values[i] = value(i)
	}
	slices.Sort(values)
	return values[n/2]
}

func (b *bench) printWorker(c *contender) {
	of := func(r workerRound) float64 { return r.rate() }
	b.printf("  %-24s %7.0f op/s  p50 %-7s (alone %-6s)  CPU µs/op %6.1f: workerd %6.1f, before it %6.1f\n", c.name, c.middle(of),
		time.Duration(c.middle(func(r workerRound) float64 { return float64(r.percentile(50)) })).Round(10*time.Microsecond),
		time.Duration(c.middle(func(r workerRound) float64 { return float64(r.single) })).Round(time.Microsecond),
		c.middle(func(r workerRound) float64 { return r.cost() }), c.middle(workerRound.runtimeCost), c.middle(workerRound.hostCost))
	b.printf("  %-24s", "")
	for _, r := range c.rounds {
		b.printf(" %.0f/%.0f+%.1f", r.rate(), r.runtimeCost(), r.hostCost())
	}
	b.printf("  (each round: op/s / CPU µs)\n")
}

// printContest prints what the contenders are to each other, by rounds that followed
// each other.
func (b *bench) printContest(t *contest) error {
	against := func(name string, one, other *contender) float64 {
		n := min(len(one.rounds), len(other.rounds))
		rate := middleOf(n, func(i int) float64 { return one.rounds[i].rate() / other.rounds[i].rate() })
		cpu := middleOf(n, func(i int) float64 { return other.rounds[i].cost() / one.rounds[i].cost() })
		b.printf("  %-24s nearkey's rate / the other's %.2f, the other's CPU / nearkey's %.2f\n", "ratio "+name, rate, cpu)
		return rate
	}
	if t.getFlare != nil {
		against("hello, Miniflare", t.hello, t.helloFlare)
		b.atLeast("a Worker with one get: rate / Miniflare's", against("get, Miniflare", t.get, t.getFlare), targetMiniflare, "", "workerd itself, which both run, uses most of the CPU")
	}
	if t.getOwn != nil {
		against("get, newer workerd's KV", t.getOnSame, t.getOwn)
	}
	share := func(of func(workerRound) float64) float64 {
		return middleOf(len(t.hello.rounds), func(i int) float64 { return (of(t.ten.rounds[i]) - of(t.hello.rounds[i])) / tenGets })
	}
	get, front := share(workerRound.hostCost), t.hello.middle(workerRound.hostCost)
	more := middleOf(len(t.hello.rounds), func(i int) float64 { return t.hello.rounds[i].cost() - t.bare.rounds[i].cost() })
	b.printf("  %-24s CPU µs: workerd %.1f, nearkey %.1f (ten gets less none, by ten)\n", "one get", share(workerRound.runtimeCost), get)
	own := t.none.middle(workerRound.hostCost)
	b.printf("  %-24s CPU µs: nearkey %.1f; %.1f more in all than workerd alone on TCP\n", "one request", front, more)
	system, err := systemShare(t.hello.server.pids[0])
	if err != nil {
		return err
	}
	b.atMost("CPU of nearkey for one get of a Worker", get, targetGetCPU, "µs",
		fmt.Sprintf("%.0f %% of nearkey's CPU is the system's, for its calls and for the switch between the processes", 100*system))
	b.atMost("CPU of nearkey for one request to a Worker", front, targetFrontCPU, "µs",
		fmt.Sprintf("an answer of its own, that no Worker is there, costs it %.1f: a client's connection and net/http", own))
	return nil
}
