package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/nearkey/nearkey/client"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// The bounds of a dump.
const (
	chunkBytes   = 8 << 20 // values that one chunk of keys holds in memory before its turn
	chunksAhead  = 4       // chunks that are read at once, the one to be written next among them
	usualReads   = 8       // requests under way at once
	pageAttempts = 5       // how often a key is read that changes while it is read
	probeEvery   = 4       // pages after which keys are asked for together again
)

// dumper reads a namespace in the order of its keys: a page of keys, then their
// values in chunks, several at once. What it holds in memory does not depend on
// how many keys there are.
type dumper struct {
	client    *client.Client
	namespace string
	prefix    string
	requests  *semaphore.Weighted // one for each request under way
	write     func(client.Record) error
	pageDone  func(cursor string) error // the page before cursor is written
	counts    *counts
}

// found is a key of a chunk.
type found struct {
	key    client.Key
	record client.Record
	gone   bool // expired or deleted since it was listed
	later  bool // too much for the chunk: read it when its turn comes
}

// chunk is a run of keys that are read together.
type chunk struct {
	keys   []found
	bytes  atomic.Int64
	single atomic.Int64  // keys that had to be read alone
	err    error         // why keys could not be filled in
	done   chan struct{} // closed when keys or err is
}

// run writes every record, from the page at cursor on.
func (d *dumper) run(ctx context.Context, cursor string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(chunksAhead)
	writeErr := d.pages(ctx, group, cursor)
	readErr := group.Wait()
	if readErr != nil && (writeErr == nil || errors.Is(writeErr, context.Canceled)) {
		return readErr
	}
	return writeErr
}

func (d *dumper) pages(ctx context.Context, group *errgroup.Group, cursor string) error {
	alone := 0 // pages for which keys are not asked for together, as most of one had to be asked for alone
	for {
		page, err := d.client.List(ctx, d.namespace, client.ListOptions{Prefix: d.prefix, Cursor: cursor})
		if err != nil {
			return fmt.Errorf("list keys: %w", err)
		}
		taken, err := d.page(ctx, group, page.Keys, alone > 0)
		if err != nil {
			return err
		}
		alone--
		if taken {
			alone = probeEvery
		}
		if page.Cursor == "" {
			return nil
		}
		cursor = page.Cursor
		if err := d.pageDone(cursor); err != nil {
			return err
		}
	}
}

// page reads the values of a page of keys and writes the records. It reports
// whether most keys had to be read alone.
func (d *dumper) page(ctx context.Context, group *errgroup.Group, keys []client.Key, alone bool) (taken bool, err error) {
	chunks := split(keys)
	started := 0
	start := func() {
		c := chunks[started]
		started++
		group.Go(func() error {
			defer close(c.done)
			if alone {
				c.err = d.singly(ctx, c, c.keys)
			} else {
				c.err = d.fetch(ctx, c, c.keys)
			}
			return c.err
		})
	}
	single := int64(0)
	for i, c := range chunks {
		for started < len(chunks) && started < i+chunksAhead {
			start()
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if err := d.writeChunk(ctx, c); err != nil {
			return false, err
		}
		single += c.single.Load()
		chunks[i] = nil
	}
	return single > int64(len(keys)/2), nil
}

func split(keys []client.Key) []*chunk {
	var chunks []*chunk
	for len(keys) > 0 {
		n := min(len(keys), client.MaxGetKeys)
		c := &chunk{keys: make([]found, n), done: make(chan struct{})}
		for i, key := range keys[:n] {
			c.keys[i].key = key
		}
		chunks, keys = append(chunks, c), keys[n:]
	}
	return chunks
}

func (d *dumper) writeChunk(ctx context.Context, c *chunk) error {
	if c.err != nil {
		return c.err
	}
	for i := range c.keys {
		f := &c.keys[i]
		if f.later {
			if err := d.one(ctx, f); err != nil {
				return err
			}
		}
		if f.gone {
			d.counts.Vanished++
			continue
		}
		if err := d.write(f.record); err != nil {
			return err
		}
		d.counts.Records++
		d.counts.Bytes += int64(len(f.record.Value))
		f.record = client.Record{}
	}
	return nil
}

// fetch reads keys together. A bulk get carries text only, and not too much of
// it: keys that it cannot carry are asked for in halves, and at last alone.
func (d *dumper) fetch(ctx context.Context, c *chunk, keys []found) error {
	if len(keys) <= 1 || c.bytes.Load() > chunkBytes {
		return d.singly(ctx, c, keys)
	}
	names := make([]string, len(keys))
	for i := range keys {
		names[i] = keys[i].key.Name
	}
	values, err := d.getMany(ctx, names)
	if notTogether(err) {
		halves, ctx := errgroup.WithContext(ctx)
		halves.Go(func() error { return d.fetch(ctx, c, keys[:len(keys)/2]) })
		halves.Go(func() error { return d.fetch(ctx, c, keys[len(keys)/2:]) })
		return halves.Wait()
	}
	if err != nil {
		return fmt.Errorf("read %d keys from %q on: %w", len(keys), names[0], err)
	}
	for i := range keys {
		v, ok := values[names[i]]
		switch {
		case !ok:
			keys[i].gone = true
		case strings.ContainsRune(v.Value, '\uFFFD'): // it may stand for bytes that are no text
			if err := d.singly(ctx, c, keys[i:i+1]); err != nil {
				return err
			}
		default:
			keys[i].record = client.Record{Key: names[i], Value: []byte(v.Value), Metadata: v.Metadata, Expiration: v.Expiration}
			c.bytes.Add(int64(len(v.Value)))
		}
	}
	return nil
}

func (d *dumper) getMany(ctx context.Context, names []string) (map[string]client.TextValue, error) {
	if err := d.requests.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.requests.Release(1)
	return d.client.GetMany(ctx, d.namespace, names)
}

// notTogether reports whether a bulk get failed for what the values are.
func notTogether(err error) bool {
	var answer *client.Error
	return errors.As(err, &answer) && (answer.Code() == client.CodeBulkGet || answer.StatusCode == http.StatusRequestEntityTooLarge)
}

// singly reads keys one by one, as long as the chunk has room.
func (d *dumper) singly(ctx context.Context, c *chunk, keys []found) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range keys {
		c.single.Add(1)
		group.Go(func() error {
			if err := d.requests.Acquire(ctx, 1); err != nil {
				return err
			}
			defer d.requests.Release(1)
			if c.bytes.Load() > chunkBytes {
				keys[i].later = true
				return nil
			}
			err := d.one(ctx, &keys[i])
			c.bytes.Add(int64(len(keys[i].record.Value)))
			return err
		})
	}
	return group.Wait()
}

// one reads a key. Value and metadata come from two requests: if the metadata or
// expiration are not those that were known before, the key was written between
// them, and is read again.
func (d *dumper) one(ctx context.Context, f *found) error {
	known := f.key
	for range pageAttempts {
		value, expiration, err := d.client.GetBytes(ctx, d.namespace, known.Name)
		if keyNotFound(err) {
			f.gone = true
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", known.Name, err)
		}
		metadata, err := d.client.Metadata(ctx, d.namespace, known.Name)
		if keyNotFound(err) {
			f.gone = true
			return nil
		}
		if err != nil {
			return fmt.Errorf("read metadata of %q: %w", known.Name, err)
		}
		if expiration == known.Expiration && sameJSON(metadata, known.Metadata) {
			f.record = client.Record{Key: known.Name, Value: value, Metadata: metadata, Expiration: expiration}
			return nil
		}
		known.Expiration, known.Metadata = expiration, metadata
	}
	return fmt.Errorf("read %q: it was changed %d times while it was read", known.Name, pageAttempts)
}

func keyNotFound(err error) bool {
	var answer *client.Error
	return errors.As(err, &answer) && answer.NotFound() && answer.Code() != client.CodeNamespaceNotFound
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(x.Bytes(), y.Bytes())
}
