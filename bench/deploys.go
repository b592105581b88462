package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	targetLive    = 200.0 // ms from an upload to the first answer of the version
	redeployConns = 16
	postBytes     = 1000
	triedWithin   = 10 * time.Second // for processes that only tried a Worker to end
)

// deploys measures what happens around a deploy. Nothing is pinned: it is done by
// several processes, one after another.
func (b *bench) deploys(ctx context.Context) error {
	for _, part := range []struct {
		name string
		run  func(context.Context, *workers) error
	}{{"live", b.timeDeploys}, {"idle", b.idleWorkers}, {"redeploys", b.redeploys}} {
		w, err := b.startWorkers(ctx, "deploys-"+part.name, b.workerd, false)
		if err != nil {
			return err
		}
		err = part.run(ctx, w)
		w.end()
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// says is a Worker that answers with a text.
func says(text string) string {
	return fmt.Sprintf(`export default { fetch() { return new Response(%q); } };`, text)
}

// firstAnswer asks until the answer is text: an older one, or none, is no error here.
func firstAnswer(ctx context.Context, c *conn, request []byte, text string) error {
	for ctx.Err() == nil {
		_, body, err := c.do(request)
		if err != nil {
			return err
		}
		if string(body) == text {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}

// timeDeploys deploys versions of one Worker that is in use, each from its upload to
// its first answer, and versions that were uploaded and tried before.
func (b *bench) timeDeploys(ctx context.Context, w *workers) error {
	if err := w.deploy("live", says("before")); err != nil {
		return err
	}
	api, err := dial(w.addr)
	if err != nil {
		return err
	}
	defer api.close()
	client, err := dial(w.listen)
	if err != nil {
		return err
	}
	defer client.close()
	request := w.ask("live")
	if err := firstAnswer(ctx, client, request, "before"); err != nil {
		return err
	}
	var whole, acknowledged, deployed []time.Duration
	for i := range b.workers.deploys {
		text := "uploaded " + strconv.Itoa(i)
		upload, err := w.upload("live", says(text))
		if err != nil {
			return err
		}
		began := time.Now()
		status, body, err := api.do(upload)
		if err := expect(status, body, err, succeeded); err != nil {
			return err
		}
		acknowledged = append(acknowledged, time.Since(began))
		if err := firstAnswer(ctx, client, request, text); err != nil {
			return err
		}
		whole = append(whole, time.Since(began))
		took, err := w.timeVersion(ctx, api, client, "version "+strconv.Itoa(i))
		if err != nil {
			return err
		}
		deployed = append(deployed, took)
	}
	b.printTimes("upload until acknowledged", acknowledged)
	live := b.printTimes("upload to first answer", whole)
	b.printTimes("tried before, to answer", deployed)
	b.atMost("deploy to live", live, targetLive, "ms", "two starts of workerd, one that tries the version and one that serves it, and a synced write")
	return nil
}

// timeVersion uploads a version and then deploys it: the time is that of the deploy.
func (w *workers) timeVersion(ctx context.Context, api, client *conn, text string) (time.Duration, error) {
	kind, form, err := w.form(says(text))
	if err != nil {
		return 0, err
	}
	status, body, err := api.do(w.requestOf("POST", w.scripts("live")+"/versions", kind, form))
	if err := expect(status, body, err, succeeded); err != nil {
		return 0, err
	}
	var made struct{ Result struct{ ID string } }
	if err := json.Unmarshal(body, &made); err != nil {
		return 0, err
	}
	deploy := w.requestOf("POST", w.scripts("live")+"/deployments", "application/json",
		fmt.Appendf(nil, `{"strategy":"percentage","versions":[{"version_id":%q,"percentage":100}]}`, made.Result.ID))
	began := time.Now()
	status, body, err = api.do(deploy)
	if err := expect(status, body, err, succeeded); err != nil {
		return 0, err
	}
	err = firstAnswer(ctx, client, w.ask("live"), text)
	return time.Since(began), err
}

func succeeded(answer []byte) bool {
	var envelope struct{ Success bool }
	return json.Unmarshal(answer, &envelope) == nil && envelope.Success
}

// printTimes prints the middle and the 95th percentile, and returns the middle in
// milliseconds.
func (b *bench) printTimes(name string, times []time.Duration) float64 {
	slices.Sort(times)
	p50 := percentile(times, 50)
	b.printf("  %-28s median %-8s p95 %-8s from %s to %s (%d)\n", name, p50.Round(100*time.Microsecond),
		percentile(times, 95).Round(100*time.Microsecond), times[0].Round(100*time.Microsecond), times[len(times)-1].Round(100*time.Microsecond), len(times))
	return milliseconds(p50)
}

// idleWorkers deploys Workers that nobody asks for, and then asks each once.
func (b *bench) idleWorkers(ctx context.Context, w *workers) error {
	before, err := memoryOf(w.pids[0])
	if err != nil {
		return err
	}
	n := b.workers.idle
	for i := range n {
		if err := w.deploy("idle-"+strconv.Itoa(i), says(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	var children []int
	for deadline := time.Now().Add(triedWithin); ; time.Sleep(10 * time.Millisecond) {
		if children, err = process.Children(w.pids[0]); err != nil {
			return err
		}
		if len(children) == 0 || time.Now().After(deadline) {
			break
		}
	}
	after, err := memoryOf(w.pids[0])
	if err != nil {
		return err
	}
	const mib = 1 << 20
	b.printf("  %-28s %d processes of workerd; nearkey has %d MiB, %d before the deploys\n",
		strconv.Itoa(n)+" Workers, idle", len(children), after.resident/mib, before.resident/mib)
	b.atMost(strconv.Itoa(n)+" idle Workers: processes", float64(len(children)), 0, "", "a process that tried a Worker has not ended")
	var cold []time.Duration
	for i := range n {
		took, err := w.timeFirst(ctx, i)
		if err != nil {
			return err
		}
		cold = append(cold, took)
	}
	b.printTimes("first answer of a Worker", cold)
	if children, err = process.Children(w.pids[0]); err != nil {
		return err
	}
	sum, err := proportional(children)
	if err != nil {
		return err
	}
	b.printf("  %-28s %d processes of workerd, %.1f MiB each (shared pages divided)\n", strconv.Itoa(n)+" Workers, all asked", len(children),
		float64(sum)/mib/float64(max(len(children), 1)))
	return nil
}

// timeFirst is the time of the first answer of an idle Worker.
func (w *workers) timeFirst(ctx context.Context, i int) (time.Duration, error) {
	c, err := dial(w.listen)
	if err != nil {
		return 0, err
	}
	defer c.close()
	began := time.Now()
	status, body, err := c.do(w.ask("idle-" + strconv.Itoa(i)))
	if err := expect(status, body, err, func(got []byte) bool { return string(got) == strconv.Itoa(i) }); err != nil {
		return 0, err
	}
	return time.Since(began), ctx.Err()
}

// load is what goes on while a Worker is redeployed.
type load struct {
	w     *workers
	least atomic.Int64 // the version whose deploy was acknowledged last

	mu        sync.Mutex // guards what follows
	latencies []time.Duration
	late      int // answers of a version from before the deploy that was acknowledged last
	wrong     []error
}

// redeploys deploys versions of a Worker while clients ask it. A request that is not
// answered, or with something else than the Worker would, is an error.
func (b *bench) redeploys(ctx context.Context, w *workers) error {
	code := func(i int) string {
		return fmt.Sprintf(`export default { async fetch(request) { return new Response("%d " + (await request.text()).length); } };`, i)
	}
	if err := w.deploy("loaded", code(0)); err != nil {
		return err
	}
	l := &load{w: w}
	var all sync.WaitGroup
	stop := make(chan struct{})
	for i := range redeployConns {
		all.Go(func() { l.run(i%2 == 0, stop) })
	}
	var took []time.Duration
	most, err := 0, error(nil)
	for i := 1; i <= b.workers.redeploys && err == nil && ctx.Err() == nil; i++ {
		began := time.Now()
		if err = w.redeploy("loaded", code(i)); err != nil {
			break
		}
		took = append(took, time.Since(began))
		l.least.Store(int64(i))
		var children []int
		children, err = process.Children(w.pids[0])
		most = max(most, len(children))
	}
	close(stop)
	all.Wait()
	if err != nil || ctx.Err() != nil {
		return fmt.Errorf("redeploy: %w", errorOf(err, ctx.Err()))
	}
	slices.Sort(l.latencies)
	b.printTimes("redeploy, acknowledged", took)
	b.printf("  %-28s %d requests of %d connections, GET and POST: %d errors, %d answered by a version before; p50 %s p99 %s max %s; at most %d processes\n",
		strconv.Itoa(b.workers.redeploys)+" redeploys", len(l.latencies), redeployConns, len(l.wrong), l.late, percentile(l.latencies, 50).Round(10*time.Microsecond),
		percentile(l.latencies, 99).Round(100*time.Microsecond), percentile(l.latencies, 100).Round(100*time.Microsecond), most)
	why := ""
	if len(l.wrong) > 0 {
		why = "the first was: " + l.wrong[0].Error()
	}
	b.atMost(strconv.Itoa(b.workers.redeploys)+" redeploys under load: errors", float64(len(l.wrong)), 0, "", why)
	return nil
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// redeploy uploads a version of a Worker.
func (w *workers) redeploy(name, code string) error {
	kind, form, err := w.form(code)
	if err == nil {
		_, err = w.call("PUT", w.scripts(name), kind, form)
	}
	return err
}

// run asks until stop is closed. Each error costs the connection, as it may be out
// of step.
func (l *load) run(post bool, stop <-chan struct{}) {
	request, length := l.w.ask("loaded"), 0
	if post {
		length = postBytes
		request = fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: loaded.%s\r\nContent-Length: %d\r\n\r\n%s", l.w.domain, length, strings.Repeat("x", length))
	}
	var c *conn
	for {
		select {
		case <-stop:
			if c != nil {
				c.close()
			}
			return
		default:
		}
		began, least, late := time.Now(), l.least.Load(), false
		err := error(nil)
		if c == nil {
			c, err = dial(l.w.listen)
		}
		if err == nil {
			status, body, lost := c.do(request)
			err = expect(status, body, lost, func(got []byte) bool {
				version, size, _ := strings.Cut(string(got), " ")
				n, err := strconv.ParseInt(version, 10, 64)
				late = n < least
				return err == nil && size == strconv.Itoa(length)
			})
		}
		if err != nil && c != nil {
			c.close()
			c = nil
		}
		l.note(time.Since(began), late, err)
	}
}

func (l *load) note(took time.Duration, late bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latencies = append(l.latencies, took)
	if late {
		l.late++
	}
	if err != nil {
		l.wrong = append(l.wrong, err)
	}
}
