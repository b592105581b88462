package tail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// The bounds of a Courier.
const (
	MaxOutboxes   = 500                    // tails that events wait for
	MaxBatchBytes = 512 << 10              // sent at once
	deliverEvery  = 200 * time.Millisecond // events gather so long
	deliverWait   = 15 * time.Second       // for one batch to be taken
	pauseAfter    = 5 * time.Second        // a batch that was not taken
	outboxIdle    = time.Minute            // without an event
)

// ErrTailClosed is what a Delivery returns when nobody follows the tail any more.
var ErrTailClosed = errors.New("nobody follows the tail")

// Delivery takes events, a JSON list, to where the followers of a tail are.
type Delivery func(ctx context.Context, accountID, worker string, t catalog.PublishedTail, events []byte) error

// CourierOptions are what a Courier stands on. Deliver must be set.
type CourierOptions struct {
	Deliver Delivery
	Now     func() time.Time // nil: time.Now
	Logger  *slog.Logger     // nil: nothing is logged
}

// Courier takes what Workers do on an edge to those who follow them elsewhere.
type Courier struct {
	opts    CourierOptions
	log     *slog.Logger
	now     func() time.Time
	wake    chan struct{}
	dropped atomic.Int64

	mu    sync.Mutex // guards boxes and what is in them
	boxes map[string]*outbox
}

// outbox is what waits for one tail.
type outbox struct {
	tail    catalog.PublishedTail
	worker  worker
	filters filters
	refused bool // the filters cannot be read: nothing passes
	queue   []json.RawMessage
	bytes   int
	lost    int64
	sending bool
	closed  bool // nobody follows it
	touched time.Time
	notTill time.Time // after a failure
}

// NewCourier returns a Courier. It starts nothing.
func NewCourier(opts CourierOptions) *Courier {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Courier{opts: opts, log: opts.Logger, now: opts.Now, wake: make(chan struct{}, 1), boxes: map[string]*outbox{}}
}

// Dropped is how many events were lost because they could not be delivered.
func (c *Courier) Dropped() int64 { return c.dropped.Load() }

// Publish has what a Worker did taken to those of its tails whose filters it
// passes. It waits for nobody. Tails and event must not change afterwards.
func (c *Courier) Publish(accountID, name string, tails []catalog.PublishedTail, event json.RawMessage) {
	if len(tails) == 0 {
		return
	}
	event = fitting(event)
	now := c.now()
	for _, t := range tails {
		if t.Expires.After(now) {
			c.put(worker{accountID, name}, t, event, now)
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Courier) put(w worker, t catalog.PublishedTail, event json.RawMessage, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	box := c.boxes[t.ID]
	if box == nil {
		if len(c.boxes) >= MaxOutboxes {
			c.dropped.Add(1)
			return
		}
		box = &outbox{worker: w}
		c.boxes[t.ID] = box
	}
	if box.tail.ID == "" || !bytes.Equal(box.tail.Filters, t.Filters) {
		all, err := parseFilters(t.Filters)
		if box.filters, box.refused = all, err != nil; err != nil {
			c.log.Error("filters of a tail that cannot be read", "worker", w.name, "error", err)
		}
	}
	box.tail, box.touched = t, now
	switch {
	case box.closed || box.refused || !box.filters.match(event):
	case box.lost > 0 || box.bytes+len(event) > MaxQueueBytes || len(box.queue) >= MaxQueue:
		box.lost++
		c.dropped.Add(1)
	default:
		box.queue = append(box.queue, event)
		box.bytes += len(event)
	}
}

// Run delivers until ctx ends. Tails do not wait for each other.
func (c *Courier) Run(ctx context.Context) error {
	var sending sync.WaitGroup
	defer sending.Wait()
	sweep := time.NewTicker(outboxIdle)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			c.sweep()
			continue
		case <-c.wake:
		}
		if !sleep(ctx, deliverEvery) {
			return nil
		}
		c.send(ctx, &sending)
	}
}

// send starts a delivery to each tail that something waits for.
func (c *Courier) send(ctx context.Context, sending *sync.WaitGroup) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, box := range c.boxes {
		if box.sending || box.closed || len(box.queue) == 0 && box.lost == 0 || now.Before(box.notTill) {
			continue
		}
		box.sending = true
		batch := box.batch(now)
		t, w := box.tail, box.worker
		sending.Go(func() { c.deliver(ctx, id, w, t, batch) })
	}
}

// batch takes out what waits, in the form in which it is sent. The courier's mu is
// held.
func (b *outbox) batch(now time.Time) []byte {
	batch := []byte{'['}
	n := 0
	for n < len(b.queue) && (n == 0 || len(batch)+len(b.queue[n]) < MaxBatchBytes) {
		if n > 0 {
			batch = append(batch, ',')
		}
		batch = append(batch, b.queue[n]...)
		b.bytes -= len(b.queue[n])
		n++
	}
	if b.queue = b.queue[n:]; len(b.queue) > 0 {
		return append(batch, ']')
	}
	b.queue = nil
	if b.lost > 0 {
		if n > 0 {
			batch = append(batch, ',')
		}
		batch = append(batch, overload(b.worker.name, b.lost, now)...)
		b.lost = 0
	}
	return append(batch, ']')
}

// deliver sends one batch. One that is not taken is lost: who follows a Worker
// does not want yesterday's news.
func (c *Courier) deliver(ctx context.Context, id string, w worker, t catalog.PublishedTail, batch []byte) {
	sending, cancel := context.WithTimeout(ctx, deliverWait)
	defer cancel()
	err := c.opts.Deliver(sending, w.account, w.name, t, batch)
	c.mu.Lock()
	defer c.mu.Unlock()
	box := c.boxes[id]
	box.sending = false
	switch {
	case err == nil:
	case errors.Is(err, ErrTailClosed):
		box.closed, box.queue, box.bytes, box.lost = true, nil, 0, 0
	case ctx.Err() == nil:
		box.notTill = c.now().Add(pauseAfter)
		box.lost++ // at least; the follower is told
		c.dropped.Add(1)
		c.log.Warn("deliver the events of a tail", "worker", w.name, "error", err)
	}
	if len(box.queue) > 0 || box.lost > 0 {
		time.AfterFunc(max(0, box.notTill.Sub(c.now())), func() {
			select {
			case c.wake <- struct{}{}:
			default:
			}
		})
	}
}

// sweep forgets tails of which nothing was heard for a while.
func (c *Courier) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, box := range c.boxes {
		if !box.sending && c.now().Sub(box.touched) >= outboxIdle {
			c.dropped.Add(int64(len(box.queue)))
			delete(c.boxes, id)
		}
	}
}

// sleep waits; false: ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
