package wire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// feed answers with the changefeed until the reader goes, or hangs, or the
// subscription ends.
func (c *call) feed() {
	sub, err := c.subscribe()
	if err != nil {
		refuse(c.w, c.conn, err)
		return
	}
	defer sub.Close()
	ctx, cancel := context.WithCancel(c.req.Context())
	defer cancel()
	stop := c.h.whenEnding(cancel)
	defer stop()
	id := c.h.enter(sub)
	defer c.h.leave(id)

	_ = c.conn.SetReadDeadline(time.Time{}) // nothing more is read; as in refuse
	p := &payload{}
	mark := p.begin()
	p.uvarint(id)
	p.end(mark)
	for c.send(p) {
		m, err := sub.Next(ctx)
		if err != nil {
			p.endFrame(err)
			c.send(p)
			return
		}
		p.message(m)
	}
	panic(http.ErrAbortHandler) // the reader has gone or hangs: nothing more is written to it
}

// send writes and flushes what is in p, and empties it.
func (c *call) send(p *payload) bool {
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeWithin)) // as in refuse
	err := p.writeTo(c.w)
	p.tail = p.tail[:0]
	return err == nil && c.conn.Flush() == nil
}

// endFrame adds the last frame.
func (p *payload) endFrame(err error) {
	mark := p.begin()
	p.u8(frameEnd)
	p.error(err)
	p.end(mark)
}

func (c *call) subscribe() (*feed.Subscription, error) {
	if c.h.hub == nil {
		return nil, fmt.Errorf("feed: %w", kv.ErrUnsupported)
	}
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	after := kv.Cursor{Epoch: f.uvarint(), Seq: f.uvarint()}
	who := feed.Member{PoP: f.text(maxPoPBytes), ID: f.id()}
	if f.err != nil {
		return nil, f.err
	}
	return c.h.hub.Subscribe(after, who)
}

// whenEnding calls cancel if the feeds end before stop is called.
func (h *Handler) whenEnding(cancel func()) (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-h.ending:
			cancel()
		case <-stopped:
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}

// enter gives a subscription a name by which it can be acknowledged.
func (h *Handler) enter(sub *feed.Subscription) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		id := rand.Uint64()
		if h.subscriptions[id] == nil {
			h.subscriptions[id] = sub
			return id
		}
	}
}

func (h *Handler) leave(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subscriptions, id)
}

// ack takes note of what a member of a shared point of presence has been told. A
// subscription that has ended needs no acknowledgement.
func (c *call) ack(context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	id, n := f.uvarint(), f.uvarint()
	if f.err != nil {
		return nil, f.err
	}
	c.h.mu.Lock()
	sub := c.h.subscriptions[id]
	c.h.mu.Unlock()
	if sub == nil {
		return done(), nil
	}
	if err := sub.Ack(n); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return done(), nil
}
