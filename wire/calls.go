package wire

import (
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Get implements kv.Store.
func (c *Client) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := c.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

// GetAnswer implements the ability of kv.GetAnswer. The age counts from the
// moment of the call.
func (c *Client) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (answer kv.Answer, err error) {
	p := &payload{}
	mark := p.begin()
	p.varint(int64(maxAge))
	p.end(mark)
	p.ref(ref)
	err = c.do(ctx, opGet, p, false, func(r *reader) (err error) {
		answer, err = r.answer(reserver(ctx))
		return err
	})
	if err != nil {
		return kv.Answer{}, err
	}
	return answer, nil
}

// reserver asks the door of the request that the call is made for.
func reserver(ctx context.Context) func(int64) error {
	return func(n int64) error { return kv.Reserve(ctx, n) }
}

// writer adds who writes, and how much.
func (c *Client) writer(p *payload, count int) {
	mark := p.begin()
	p.text(c.member.PoP)
	p.id(c.member.ID)
	p.uvarint(uint64(count))
	p.end(mark)
}

// Put implements kv.Store.
func (c *Client) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if err := checkWrite(ref, rec); err != nil {
		return fmt.Errorf("wire: put: %w", err)
	}
	p := &payload{tail: make([]byte, 0, 128+len(ref.Key)+len(rec.Metadata)+min(len(rec.Value), byReference))}
	c.writer(p, 1)
	p.ref(ref)
	p.record(rec)
	return c.do(ctx, opPut, p, true, acknowledged)
}

// acknowledged reads the answer that says no more than that it is done.
func acknowledged(r *reader) error {
	_, err := r.next(maxSectionBytes)
	return err
}

// List implements kv.Store.
func (c *Client) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	if len(opts.Prefix) > maxPrefixBytes {
		return kv.Page{}, ctx.Err() // no key is so long
	}
	p := &payload{}
	mark := p.begin()
	p.id(ns)
	p.text(opts.Prefix)
	p.text(opts.After[:min(len(opts.After), maxPrefixBytes)])
	p.uvarint(uint64(opts.PageLimit()))
	p.varint(int64(opts.MaxAge))
	p.end(mark)
	err = c.do(ctx, opList, p, false, func(r *reader) (err error) {
		page, err = r.page()
		return err
	})
	if err != nil {
		return kv.Page{}, err
	}
	return page, nil
}

// GetMany implements the ability of kv.GetMany.
func (c *Client) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	answers, err := c.GetAnswers(ctx, refs, maxAge)
	if err != nil {
		return nil, err
	}
	recs := make([]kv.Record, len(answers))
	for i, a := range answers {
		recs[i] = a.Record
	}
	return recs, nil
}

// GetAnswers implements the ability of kv.GetAnswers.
func (c *Client) GetAnswers(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Answer, error) {
	answers := make([]kv.Answer, 0, len(refs))
	for len(answers) < len(refs) || len(refs) == 0 {
		rest := refs[len(answers):]
		some, err := c.getSome(ctx, rest[:min(len(rest), MaxBatchKeys)], maxAge)
		if err != nil || len(refs) == 0 {
			return nil, err
		}
		answers = append(answers, some...)
	}
	return answers, nil
}

// getSome reads the first of refs, at least one.
func (c *Client) getSome(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (answers []kv.Answer, err error) {
	p := &payload{}
	mark := p.begin()
	p.varint(int64(maxAge))
	p.uvarint(uint64(len(refs)))
	p.end(mark)
	for _, ref := range refs {
		p.ref(ref)
	}
	err = c.do(ctx, opGetMany, p, false, func(r *reader) error {
		f, err := r.next(maxSectionBytes)
		if err != nil {
			return err
		}
		n := f.count(len(refs))
		if f.err == nil && n == 0 && len(refs) > 0 {
			f.fail("no answer to what was asked")
		}
		if f.err != nil {
			return f.err
		}
		answers = make([]kv.Answer, n)
		for i := range answers {
			if answers[i], err = r.answer(reserver(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	return answers, err
}

// PutMany implements the ability of kv.PutMany. What is more than one call takes
// is sent in several.
func (c *Client) PutMany(ctx context.Context, writes []kv.Write) error {
	for _, w := range writes {
		if err := checkWrite(w.Ref, w.Record); err != nil {
			return fmt.Errorf("wire: put many: %w", err)
		}
	}
	for first := true; first || len(writes) > 0; first = false {
		n := batch(writes)
		p := &payload{}
		c.writer(p, n)
		for _, w := range writes[:n] {
			p.ref(w.Ref)
			p.record(w.Record)
		}
		if err := c.do(ctx, opPutMany, p, true, acknowledged); err != nil {
			return err
		}
		writes = writes[n:]
	}
	return nil
}

// batch returns how many of writes fit one call.
func batch(writes []kv.Write) int {
	size := maxPoPBytes + 64
	for i, w := range writes[:min(len(writes), MaxBatchKeys)] {
		size += len(w.Ref.Key) + w.Record.Bytes() + 96 // more than the rest of a write takes
		if size > MaxBodyBytes && i > 0 {
			return i
		}
	}
	return min(len(writes), MaxBatchKeys)
}

// Forget implements the ability of kv.Forget.
func (c *Client) Forget(ctx context.Context, tombs []kv.Tomb) error {
	for first := true; first || len(tombs) > 0; first = false {
		n := min(len(tombs), MaxBatchKeys)
		p := &payload{}
		mark := p.begin()
		p.uvarint(uint64(n))
		p.end(mark)
		for _, t := range tombs[:n] {
			p.ref(t.Ref)
			mark := p.begin()
			p.id(t.Version)
			p.end(mark)
		}
		if err := c.do(ctx, opForget, p, true, acknowledged); err != nil {
			return err
		}
		tombs = tombs[n:]
	}
	return nil
}

// Drop implements the ability of kv.Drop.
func (c *Client) Drop(ctx context.Context, ns kv.NamespaceID) error {
	p := &payload{}
	mark := p.begin()
	p.id(ns)
	p.end(mark)
	return c.do(ctx, opDrop, p, true, acknowledged)
}

// Namespaces implements the ability of kv.Namespaces.
func (c *Client) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (found []kv.NamespaceID, err error) {
	if limit < 1 || limit > kv.MaxNamespaces {
		limit = kv.MaxNamespaces
	}
	p := &payload{}
	mark := p.begin()
	p.id(after)
	p.uvarint(uint64(limit))
	p.end(mark)
	err = c.do(ctx, opNamespaces, p, false, func(r *reader) error {
		f, err := r.next(maxSectionBytes)
		if err != nil {
			return err
		}
		n := f.count(kv.MaxNamespaces)
		if f.err != nil {
			return f.err
		}
		found = make([]kv.NamespaceID, n)
		for i := range found {
			f, err := r.next(maxSectionBytes)
			if err != nil {
				return err
			}
			if found[i] = f.id(); f.err != nil {
				return f.err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}
