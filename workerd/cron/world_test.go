package cron

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// ledger is a catalog in memory, as far as crons go.
type ledger struct {
	mu        sync.Mutex
	schedules []catalog.Schedule
	runs      []*catalog.CronRun
	everyone  bool // the control: whoever claims gets
}

func (l *ledger) AllSchedules(context.Context) ([]catalog.Schedule, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.schedules), nil
}

func free(r *catalog.CronRun) bool {
	now := time.Now()
	return !r.Manual && (r.Ended.IsZero() && !r.Lease.After(now) || !r.RetryAt.IsZero() && !r.RetryAt.After(now))
}

func (l *ledger) DueRetries(context.Context) (due []catalog.CronRun, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if free(r) {
			due = append(due, *r)
		}
	}
	return due, nil
}

func (l *ledger) add(r catalog.CronRun) catalog.CronRun {
	r.ID, r.Attempt, r.Started = int64(len(l.runs)+1), 1, time.Now()
	l.runs = append(l.runs, &r)
	return r
}

func (l *ledger) StartRun(_ context.Context, accountID, worker, cron, holder string, lease time.Duration) (catalog.CronRun, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.add(catalog.CronRun{AccountID: accountID, Worker: worker, Cron: cron, At: time.Now(), Holder: holder, Lease: time.Now().Add(lease), Manual: true}), nil
}

func (l *ledger) ClaimRun(_ context.Context, accountID, worker, cron string, at time.Time, holder string, lease time.Duration) (catalog.CronRun, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	until := time.Now().Add(lease)
	for _, r := range l.runs {
		if r.AccountID != accountID || r.Worker != worker || r.Cron != cron || !r.At.Equal(at) || r.Manual || l.everyone {
			continue
		}
		if !free(r) {
			return *r, false, nil
		}
		r.Holder, r.Lease, r.Started, r.Ended, r.RetryAt, r.Attempt = holder, until, time.Now(), time.Time{}, time.Time{}, r.Attempt+1
		return *r, true, nil
	}
	return l.add(catalog.CronRun{AccountID: accountID, Worker: worker, Cron: cron, At: at, Holder: holder, Lease: until}), true, nil
}

func (l *ledger) held(id int64, holder string) (*catalog.CronRun, error) {
	r := l.runs[id-1]
	if r.Holder != holder || !r.Ended.IsZero() {
		return nil, fmt.Errorf("run %d: %w", id, catalog.ErrLeaseLost)
	}
	return r, nil
}

func (l *ledger) RenewRun(_ context.Context, id int64, holder string, lease time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.held(id, holder)
	if err == nil {
		r.Lease = time.Now().Add(lease)
	}
	return err
}

func (l *ledger) FinishRun(_ context.Context, id int64, holder, outcome, errText string, retryAt time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.held(id, holder)
	if err == nil {
		r.Ended, r.Lease, r.Outcome, r.Error, r.RetryAt = time.Now(), time.Time{}, outcome, errText, retryAt
	}
	return err
}

// outcomes are how the runs ended, in order: outcome, number of attempts.
func (l *ledger) outcomes() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		outcome := r.Outcome
		if r.Ended.IsZero() {
			outcome = "unfinished"
		}
		all = append(all, fmt.Sprintf("%s %d %s", outcome, r.Attempt, r.Error))
	}
	return all
}

// line is one scheduler's way to the catalog. A call may be refused, hang until
// its context ends, or be done and not be acknowledged.
type line struct {
	Catalog
	refuse, hang, lose atomic.Pointer[string] // the method; "*": all
}

var errDown = errors.New("the catalog cannot be reached")

func hits(p *atomic.Pointer[string], method string) bool {
	m := p.Load()
	return m != nil && (*m == method || *m == "*")
}

func pass[T any](ctx context.Context, l *line, method string, call func() (T, error)) (result T, err error) {
	var none T
	switch {
	case hits(&l.refuse, method):
		return none, errDown
	case hits(&l.hang, method):
		<-ctx.Done()
		return none, ctx.Err()
	}
	if result, err = call(); err == nil && hits(&l.lose, method) {
		return none, errDown
	}
	return result, err
}

func (l *line) AllSchedules(ctx context.Context) ([]catalog.Schedule, error) {
	return pass(ctx, l, "AllSchedules", func() ([]catalog.Schedule, error) { return l.Catalog.AllSchedules(ctx) })
}

func (l *line) DueRetries(ctx context.Context) ([]catalog.CronRun, error) {
	return pass(ctx, l, "DueRetries", func() ([]catalog.CronRun, error) { return l.Catalog.DueRetries(ctx) })
}

func (l *line) ClaimRun(ctx context.Context, accountID, worker, cron string, at time.Time, holder string, lease time.Duration) (catalog.CronRun, bool, error) {
	claimed := false
	run, err := pass(ctx, l, "ClaimRun", func() (run catalog.CronRun, err error) {
		run, claimed, err = l.Catalog.ClaimRun(ctx, accountID, worker, cron, at, holder, lease)
		return run, err
	})
	return run, claimed && err == nil, err
}

func (l *line) RenewRun(ctx context.Context, id int64, holder string, lease time.Duration) error {
	_, err := pass(ctx, l, "RenewRun", func() (any, error) { return nil, l.Catalog.RenewRun(ctx, id, holder, lease) })
	return err
}

func (l *line) FinishRun(ctx context.Context, id int64, holder, outcome, errText string, retryAt time.Time) error {
	_, err := pass(ctx, l, "FinishRun", func() (any, error) {
		return nil, l.Catalog.FinishRun(ctx, id, holder, outcome, errText, retryAt)
	})
	return err
}

// firing is one call of a handler.
type firing struct {
	began, at    time.Time
	worker, cron string
	by           int
}

// process is one Scheduler that runs.
type process struct {
	*Scheduler
	line *line
	jump atomic.Int64 // of its clock
	stop context.CancelFunc
	done chan error
}

// world is some processes that share a catalog. It lives in a bubble.
type world struct {
	t         *testing.T
	catalog   Catalog
	ledger    *ledger
	processes []*process
	handler   func(ctx context.Context, f firing) (outcome string, noRetry bool, err error) // nil: ok at once

	mu    sync.Mutex
	fired []firing
}

const account = "0123456789abcdef0123456789abcdef"

// newWorld returns a world with a Worker named shop that has some triggers, at a
// quarter past an hour.
func newWorld(t *testing.T, crons ...string) *world {
	<-time.After(time.Until(time.Date(2030, 1, 2, 3, 14, 45, 0, time.UTC))) // of the bubble
	w := &world{t: t, ledger: &ledger{}}
	w.catalog = w.ledger
	for _, c := range crons {
		w.ledger.schedules = append(w.ledger.schedules, newTrigger(c)...)
	}
	return w
}

// newTrigger is a trigger that was made just now.
func newTrigger(cron string) []catalog.Schedule {
	return []catalog.Schedule{{AccountID: account, Worker: "shop", Cron: cron, Created: time.Now()}}
}

// start starts a process.
func (w *world) start() *process {
	ctx, stop := context.WithCancel(w.t.Context())
	p := &process{line: &line{Catalog: w.catalog}, stop: stop, done: make(chan error, 1)}
	n := len(w.processes)
	p.Scheduler = New(Options{
		Catalog: p.line, Holder: fmt.Sprint("process ", n),
		Now: func() time.Time { return time.Now().Add(time.Duration(p.jump.Load())) },
		Fire: func(ctx context.Context, accountID, worker, cron string, at time.Time) (string, bool, error) {
			f := firing{time.Now(), at, worker, cron, n}
			w.mu.Lock()
			w.fired = append(w.fired, f)
			w.mu.Unlock()
			if w.handler == nil {
				return "ok", false, nil
			}
			return w.handler(ctx, f)
		},
	})
	w.processes = append(w.processes, p)
	go func() { p.done <- p.Run(ctx) }()
	w.t.Cleanup(p.end)
	return p
}

// end stops a process in order and waits for it.
func (p *process) end() {
	p.stop()
	if err, ok := <-p.done; ok && err != nil {
		panic(err)
	}
	close(p.done)
	p.done = make(chan error, 1)
	p.done <- nil
}

// kill cuts a process off from all: nothing that it still does has an effect.
func (p *process) kill() {
	all := "*"
	p.line.refuse.Store(&all)
	p.stop()
}

func (w *world) firings() []firing {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.fired)
}

// ticks counts the firings by trigger and tick.
func (w *world) ticks() map[string]int {
	n := map[string]int{}
	for _, f := range w.firings() {
		n[fmt.Sprintf("%s %s %s", f.worker, f.cron, f.at.UTC().Format("15:04"))]++
	}
	return n
}

func set(p *atomic.Pointer[string], method string) { p.Store(&method) }
