package wire

import (
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// done is the answer that says no more than that it is done.
func done() *payload {
	p := &payload{}
	p.end(p.begin())
	return p
}

func (c *call) get(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	maxAge := time.Duration(f.varint())
	if f.err != nil {
		return nil, f.err
	}
	ref, err := c.body.ref()
	if err != nil {
		return nil, err
	}
	answer, err := kv.GetAnswer(ctx, c.h.store, ref, maxAge)
	if err != nil {
		return nil, err
	}
	p := &payload{tail: make([]byte, 0, 64+len(answer.Metadata)+min(len(answer.Value), byReference))}
	p.answer(answer)
	return p, nil
}

// writer reads who writes, and how much.
func (c *call) writer() (who feed.Member, count int, err error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return feed.Member{}, 0, err
	}
	who = feed.Member{PoP: f.text(maxPoPBytes), ID: f.id()}
	count = f.count(MaxBatchKeys)
	return who, count, f.err
}

// write reads a key and its record. The body as a whole is accounted for.
func (c *call) write() (w kv.Write, err error) {
	if w.Ref, err = c.body.ref(); err != nil {
		return kv.Write{}, err
	}
	w.Record, err = c.body.record(func(int64) error { return nil })
	switch {
	case err != nil:
		return kv.Write{}, err
	case w.Record.Absent():
		return kv.Write{}, fmt.Errorf("%w: a write of an absent record", errMalformed)
	}
	return w, kv.CheckFuture(w.Record.Version, time.Now())
}

func (c *call) put(ctx context.Context) (*payload, error) {
	if err := c.hold.take(c.req.ContentLength); err != nil {
		return nil, err
	}
	who, count, err := c.writer()
	if err != nil {
		return nil, err
	}
	if count != 1 {
		return nil, fmt.Errorf("%w: a put of %d records", errMalformed, count)
	}
	w, err := c.write()
	if err != nil {
		return nil, err
	}
	if err := c.h.store.Put(ctx, w.Ref, w.Record); err != nil {
		return nil, err
	}
	return c.told(ctx, who, []kv.Write{w})
}

func (c *call) putMany(ctx context.Context) (*payload, error) {
	if err := c.hold.take(c.req.ContentLength); err != nil {
		return nil, err
	}
	who, count, err := c.writer()
	if err != nil {
		return nil, err
	}
	writes := make([]kv.Write, 0, count)
	for range count {
		w, err := c.write()
		if err != nil {
			return nil, err
		}
		writes = append(writes, w)
	}
	if err := kv.PutMany(ctx, c.h.store, writes); err != nil {
		return nil, err
	}
	return c.told(ctx, who, writes)
}

// told answers writes that are stored once the point of presence knows of them.
func (c *call) told(ctx context.Context, who feed.Member, writes []kv.Write) (*payload, error) {
	if c.h.hub == nil || who.PoP == "" {
		return done(), nil
	}
	changes := make([]kv.Change, len(writes))
	for i, w := range writes {
		changes[i] = kv.Change{Ref: w.Ref, Version: w.Record.Version}
	}
	if err := c.h.hub.Tell(ctx, who, changes); err != nil {
		return nil, fmt.Errorf("%w: stored, but %w", kv.ErrUnknown, err)
	}
	return done(), nil
}

func (c *call) list(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	ns := kv.NamespaceID(f.id())
	opts := kv.ListOptions{Prefix: f.text(maxPrefixBytes), After: f.text(maxPrefixBytes), Limit: f.count(kv.MaxListLimit), MaxAge: time.Duration(f.varint())}
	if f.err != nil {
		return nil, f.err
	}
	page, err := c.h.store.List(ctx, ns, opts)
	if err != nil {
		return nil, err
	}
	p := &payload{}
	p.page(page)
	return p, c.hold.take(p.len())
}

func (c *call) getMany(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	maxAge, count := time.Duration(f.varint()), f.count(MaxBatchKeys)
	if f.err != nil {
		return nil, f.err
	}
	refs := make([]kv.Ref, count)
	for i := range refs {
		if refs[i], err = c.body.ref(); err != nil {
			return nil, err
		}
	}
	answers, err := kv.GetAnswers(ctx, c.h.store, refs, maxAge)
	if err != nil {
		return nil, err
	}
	size := 0
	for i, a := range answers {
		size += a.Bytes() + 64
		if size > MaxAnswerBytes && i > 0 {
			answers = answers[:i]
			break
		}
	}
	p := &payload{}
	mark := p.begin()
	p.uvarint(uint64(len(answers)))
	p.end(mark)
	for _, a := range answers {
		p.answer(a)
	}
	return p, nil
}

func (c *call) forget(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	tombs := make([]kv.Tomb, f.count(MaxBatchKeys))
	if f.err != nil {
		return nil, f.err
	}
	for i := range tombs {
		if tombs[i].Ref, err = c.body.ref(); err != nil {
			return nil, err
		}
		f, err := c.body.next(maxSectionBytes)
		if err != nil {
			return nil, err
		}
		if tombs[i].Version = f.id(); f.err != nil {
			return nil, f.err
		}
	}
	return done(), kv.Forget(ctx, c.h.store, tombs)
}

func (c *call) drop(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	ns := kv.NamespaceID(f.id())
	if f.err != nil {
		return nil, f.err
	}
	return done(), kv.Drop(ctx, c.h.store, ns)
}

func (c *call) namespaces(ctx context.Context) (*payload, error) {
	f, err := c.body.next(maxSectionBytes)
	if err != nil {
		return nil, err
	}
	after, limit := kv.NamespaceID(f.id()), f.count(kv.MaxNamespaces)
	if f.err != nil {
		return nil, f.err
	}
	found, err := kv.Namespaces(ctx, c.h.store, after, limit)
	if err != nil {
		return nil, err
	}
	p := &payload{}
	mark := p.begin()
	p.uvarint(uint64(len(found)))
	p.end(mark)
	for _, ns := range found {
		mark := p.begin()
		p.id(ns)
		p.end(mark)
	}
	return p, nil
}
