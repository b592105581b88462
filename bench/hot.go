package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	pipelineDepth = 16
	pipelineConns = 16
	manyConns     = 128

	targetRatio  = 1.5     // nginx's CPU for a hot get / nearkey's
	targetP99    = 1.0     // ms, at half of what the server can
	targetRate   = 100_000 // gets of one key in a second
	warmUp       = 300 * time.Millisecond
	hotNamespace = "hot"
)

// pair is nearkey and nginx with the same few values, pinned to one core.
type pair struct {
	ours    *nearkey
	nginx   *server // nil: left out
	request func(i int) (wire, want []byte)
	release func()
}

// startPair starts both, with data in a folder of that name. nginx's answers get
// the fields that nearkey's have.
func (b *bench) startPair(ctx context.Context, name string) (*pair, error) {
	unpin, pinned, err := b.pinClient()
	if err != nil {
		return nil, err
	}
	p := &pair{release: unpin}
	keys := keyspace{seed: 2, dirs: getDirs}
	if p.ours, err = b.startNearkey(ctx, filepath.Join(b.dir, name), pinned); err != nil {
		unpin()
		return nil, err
	}
	p.release = func() { p.ours.Kill(); unpin() }
	path, err := p.prepare(ctx, keys)
	if err != nil {
		p.release()
		return nil, err
	}
	if b.nginx == "" {
		return p, nil
	}
	root := filepath.Join(b.dir, name+"-files")
	headers, err := p.headers()
	if err == nil {
		err = writeFiles(root, keys, hotKeys)
	}
	if err == nil {
		p.nginx, err = b.startNginx(ctx, root+"/", path+"/values/", headers, pinned)
	}
	if err != nil {
		p.release()
		return nil, err
	}
	p.release = func() { p.nginx.Kill(); p.ours.Kill(); unpin() }
	return p, nil
}

// prepare writes the values and reads each, until the tier has them.
func (p *pair) prepare(ctx context.Context, keys keyspace) (path string, err error) {
	if path, err = p.ours.namespace(hotNamespace); err != nil {
		return "", err
	}
	if _, err := p.ours.load(ctx, path, keys, 0, hotKeys); err != nil {
		return "", err
	}
	p.request = func(i int) (wire, want []byte) {
		i %= hotKeys
		target := keys.appendKey([]byte(path+"/values/"), i)
		return p.ours.request(nil, "GET", string(target), nil), keys.appendValue(nil, i)
	}
	return path, nil
}

// headers returns the directives by which nginx adds the fields of nearkey's
// answer that it does not send by itself, and leaves out what it need not send.
func (p *pair) headers() (string, error) {
	c, err := dial(p.ours.addr)
	if err != nil {
		return "", err
	}
	defer c.close()
	wire, _ := p.request(0)
	for range 2 { // the second is a hit
		if _, err := c.net.Write(wire); err != nil {
			return "", err
		}
		read, err := c.head()
		if err != nil {
			return "", err
		}
		head := string(read)
		_, length, _, err := parseHead(read)
		if err != nil {
			return "", err
		}
		if _, err := c.take(length); err != nil {
			return "", err
		}
		if strings.Contains(head, "HIT") {
			return directives(head), nil
		}
	}
	return "", errors.New("the second read of a key is no hit")
}

// directives are those of nginx for the fields of a head.
func directives(head string) string {
	b := []byte(`etag off; max_ranges 0; add_header Last-Modified "";`)
	for _, line := range strings.Split(head, "\r\n")[1:] {
		name, value, _ := strings.Cut(line, ":")
		if !slices.Contains([]string{"content-length", "content-type", "date"}, strings.ToLower(name)) {
			b = fmt.Appendf(b, " add_header %s %q;", name, strings.TrimSpace(value))
		}
	}
	return string(b)
}

// closedRound measures a closed loop over some connections.
func (b *bench) closedRound(ctx context.Context, s *server, conns, depth int, request func(int) (wire, want []byte)) (round, error) {
	g, err := newGenerator(s, conns, depth, request)
	if err != nil {
		return round{}, err
	}
	defer g.close()
	if _, _, err := g.closed(ctx, warmUp); err != nil {
		return round{}, err
	}
	if err := g.settle(ctx); err != nil {
		return round{}, err
	}
	return metered(s, func() (int, []time.Duration, error) { return g.closed(ctx, b.slice) })
}

// hots measures what a hot get costs beside nginx, and how long it takes at half
// of the rate that was reached.
func (b *bench) hots(ctx context.Context) error {
	p, err := b.startPair(ctx, "hot")
	if err != nil {
		return err
	}
	defer p.release()
	for _, conns := range []int{getConns, manyConns} {
		ours, nginx, err := b.costs(ctx, p, conns)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("hot, %d conns", conns)
		b.printCost("nearkey "+name, ours)
		if p.nginx != nil {
			b.printCost("nginx   "+name, nginx)
			system, err := systemShare(p.ours.pids[0])
			if err != nil {
				return err
			}
			b.printRatio(name, ours, nginx, system)
		}
		if err := b.latencies(ctx, p, name, conns, ours, nginx); err != nil {
			return err
		}
	}
	return nil
}

// costs measures both in turns.
func (b *bench) costs(ctx context.Context, p *pair, conns int) (ours, nginx []round, err error) {
	for range b.rounds {
		r, err := b.closedRound(ctx, p.ours.server, conns, 1, p.request)
		if err != nil {
			return nil, nil, err
		}
		ours = append(ours, r)
		if p.nginx == nil {
			continue
		}
		if r, err = b.closedRound(ctx, p.nginx, conns, 1, p.request); err != nil {
			return nil, nil, err
		}
		nginx = append(nginx, r)
	}
	return ours, nginx, nil
}

// printCost prints the medians of rounds, and each of them.
func (b *bench) printCost(name string, rounds []round) {
	b.printf("  %-24s %6.2f CPU µs/op  %8.0f op/s  server's core %3.0f %% busy  generator %5.2f µs/op\n", name,
		median(rounds, round.cost), median(rounds, round.rate), 100*median(rounds, round.busy), median(rounds, round.clientCost))
	b.printf("  %-24s", "")
	for _, r := range rounds {
		b.printf(" %.2f/%.0f", r.cost(), r.rate())
	}
	b.printf("  (each round: CPU µs / op/s)\n")
}

// busy is the share of the time that the server's CPU was in use.
func (r round) busy() float64 { return r.server.Seconds() / r.elapsed.Seconds() }

// printRatio prints nginx's cost by nearkey's, of each pair of rounds that
// followed each other, and the median of these. system is the share of nearkey's
// CPU that is not its own code's.
func (b *bench) printRatio(name string, ours, nginx []round, system float64) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = nginx[i].cost() / ours[i].cost()
	}
	b.printf("  %-24s nginx's CPU / nearkey's, each round:", "ratio "+name)
	for _, r := range ratios {
		b.printf(" %.2f", r)
	}
	slices.Sort(ratios)
	middle := ratios[len(ratios)/2]
	b.printf("; median %.2f, from %.2f to %.2f\n", middle, ratios[0], ratios[len(ratios)-1])
	b.atLeast(name+": nginx's CPU / nearkey's", middle, targetRatio, "", fmt.Sprintf(
		"%.0f %% of nearkey's CPU is the system's, for calls that nginx makes as well; its core was busy for %.0f %% of the time, and each wait of a core that is not costs more",
		100*system, 100*median(ours, round.busy)))
}

// latencies measures each server at half of the rate that it reached, at fixed
// moments of sending.
func (b *bench) latencies(ctx context.Context, p *pair, name string, conns int, ours, nginx []round) error {
	o, err := b.latency(ctx, p.ours.server, conns, median(ours, round.rate)/2, p.request)
	if err != nil {
		return err
	}
	b.printLatency("nearkey "+name, o)
	b.atMost(name+": p99 at half of the capacity", milliseconds(medianPercentile(o.rounds, 99)), targetP99, "ms",
		fmt.Sprintf("in %s threads of the server were ready without a core for %s, those of the generator for %s: other processes had it, or other threads of the same", o.measured, o.serverWaited, o.clientWaited))
	if p.nginx == nil {
		return nil
	}
	n, err := b.latency(ctx, p.nginx, conns, median(nginx, round.rate)/2, p.request)
	if err != nil {
		return err
	}
	b.printLatency("nginx   "+name, n)
	return nil
}

// steady is what rounds at a fixed rate showed.
type steady struct {
	rate                                 float64
	rounds                               []round
	late                                 []time.Duration // how late requests were sent, in order of length
	measured, serverWaited, clientWaited time.Duration   // waited: ready to run without a core, all threads together
}

// latency runs the rounds of one server at a rate.
func (b *bench) latency(ctx context.Context, s *server, conns int, rate float64, request func(int) (wire, want []byte)) (steady, error) {
	result := steady{rate: rate}
	self := []int{os.Getpid()}
	for range b.rounds {
		g, err := newGenerator(s, conns, 1, request)
		if err != nil {
			return steady{}, err
		}
		if _, _, err = g.open(ctx, rate, warmUp); err == nil {
			var r round
			server, client := waitOf(s.pids), waitOf(self)
			r, err = metered(s, func() (int, []time.Duration, error) {
				latencies, late, err := g.open(ctx, rate, b.slice)
				result.late = append(result.late, late...)
				return len(latencies), latencies, err
			})
			result.rounds = append(result.rounds, r)
			result.measured += r.elapsed.Round(time.Millisecond)
			result.serverWaited += (waitOf(s.pids) - server).Round(time.Millisecond)
			result.clientWaited += (waitOf(self) - client).Round(time.Millisecond)
		}
		g.close()
		if err != nil {
			return steady{}, err
		}
	}
	slices.Sort(result.late)
	return result, nil
}

func (b *bench) printLatency(name string, s steady) {
	b.printf("  %-24s at %.0f/s: p50 %s  p99 %s  p99.9 %s  max %s; CPU µs/op %.2f\n", name, s.rate,
		medianPercentile(s.rounds, 50), medianPercentile(s.rounds, 99), medianPercentile(s.rounds, 99.9), medianPercentile(s.rounds, 100),
		median(s.rounds, round.cost))
	b.printf("  %-24s", "")
	for _, r := range s.rounds {
		b.printf(" %s", r.percentile(99).Round(time.Microsecond))
	}
	b.printf("  (each round: p99 from the intended moment of sending)\n")
	b.printf("  %-24s sent late: p99 %s; ready without a core, in %s: server %s, generator %s\n", "",
		percentile(s.late, 99).Round(time.Microsecond), s.measured, s.serverWaited, s.clientWaited)
}

// rates measures how often one key can be got in a second.
func (b *bench) rates(ctx context.Context) error {
	p, err := b.startPair(ctx, "rate")
	if err != nil {
		return err
	}
	defer p.release()
	one := func(int) (wire, want []byte) { return p.request(0) }
	var pipelined, many []round
	for range b.rounds {
		r, err := b.closedRound(ctx, p.ours.server, pipelineConns, pipelineDepth, one)
		if err != nil {
			return err
		}
		pipelined = append(pipelined, r)
		if r, err = b.closedRound(ctx, p.ours.server, manyConns, 1, one); err != nil {
			return err
		}
		many = append(many, r)
	}
	b.printRate(fmt.Sprintf("%d conns, pipelined %d", pipelineConns, pipelineDepth), pipelined)
	b.printRate(fmt.Sprintf("%d conns", manyConns), many)
	b.atLeast("gets of one key, pipelined or over many connections", max(median(pipelined, round.rate), median(many, round.rate)), targetRate, "/s",
		"one core has the server, the other the generator")
	return nil
}

func (b *bench) printRate(name string, rounds []round) {
	b.printCost(name, rounds)
	b.printf("  %-24s by the server's CPU one core could answer %.0f/s\n", "", 1e6/median(rounds, round.cost))
}
