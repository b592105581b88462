package wire

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// Follow implements feed.Stream. It does not come back by itself; a
// feed.Follower does.
func (c *Client) Follow(ctx context.Context, after kv.Cursor, each func(feed.Message) error) error {
	if c.invalid != nil {
		return c.invalid
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &payload{}
	mark := p.begin()
	p.uvarint(after.Epoch)
	p.uvarint(after.Seq)
	p.text(c.member.PoP)
	p.id(c.member.ID)
	p.end(mark)
	resp, err := c.ask(ctx, c.feeds, opFeed, p)
	if err != nil {
		return fmt.Errorf("wire: follow the feed: %w: %w", kv.ErrUnavailable, err)
	}
	defer resp.Body.Close() // nothing is left to be read
	body := bodies.Get().(*reader)
	body.Reset(resp.Body)
	defer func() {
		body.Reset(nil)
		bodies.Put(body)
	}()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("wire: follow the feed: %w", refusal(body))
	}
	return fmt.Errorf("wire: follow the feed: %w", c.follow(ctx, cancel, body, each))
}

// follow reads the stream to its end. cancel ends ctx.
func (c *Client) follow(ctx context.Context, cancel context.CancelCauseFunc, body *reader, each func(feed.Message) error) error {
	f, err := body.next(maxSectionBytes)
	if err != nil {
		return err
	}
	subscription := f.uvarint()
	if f.err != nil {
		return f.err
	}
	acking := make(chan uint64, 1) // the latest; it stands for those before
	var acks sync.WaitGroup
	if c.member.PoP != "" {
		acks.Go(func() { c.acknowledge(ctx, cancel, subscription, acking) })
	}
	err = frames(body, each, acking)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	cancel(nil) // an acknowledgement under way is not waited for: what it is for is told again
	close(acking)
	acks.Wait()
	return err
}

// frames gives each message to each, and what was told to acking.
func frames(body *reader, each func(feed.Message) error, acking chan uint64) error {
	for {
		m, err := body.frame()
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
		if len(m.Told) == 0 {
			continue
		}
		select {
		case <-acking: // superseded
		default:
		}
		acking <- m.Acks
	}
}

// acknowledge sends what comes over acking, so that reading does not wait for it.
// When that fails the stream ends: the sender tells again when it is resumed.
func (c *Client) acknowledge(ctx context.Context, cancel context.CancelCauseFunc, subscription uint64, acking <-chan uint64) {
	for told := range acking {
		p := &payload{}
		mark := p.begin()
		p.uvarint(subscription)
		p.uvarint(told)
		p.end(mark)
		within, done := context.WithTimeout(ctx, feed.SilentAfter)
		err := c.attempt(within, c.feeds, opAck, p, acknowledged)
		if err != nil && !toldByOther(err) && within.Err() == nil {
			err = c.attempt(within, c.fresh, opAck, p, acknowledged)
		}
		done()
		if err != nil {
			cancel(fmt.Errorf("acknowledge what was told: %w", err))
		}
	}
}
