package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// The bounds of a load: what one request carries, and what all that are under way do.
const (
	batchPairs       = 1000
	batchBytes       = 4 << 20
	singleBytes      = 1 << 20 // values from this size on are sent alone
	inFlightBytes    = 64 << 20
	maxNamed         = 20 // refused items that are named
	repeatPairs      = 5  // how often pairs that the server could not store are sent
	firstRepeatWait  = 200 * time.Millisecond
	maxConcurrency   = 64
	usualConcurrency = 4
)

// loader writes the items of a source into a namespace: in batches, several at
// once, and in effect in the order of the source. What it holds in memory does
// not depend on how many items there are.
type loader struct {
	client      *client.Client
	namespace   string
	source      *source
	journal     *journal
	progress    *progress
	say         func(format string, args ...any)
	dryRun      bool
	concurrency int

	bytes *semaphore.Weighted

	mu    sync.Mutex // guards the rest
	free  *sync.Cond // a batch has ended
	busy  map[string]bool
	ended map[int64]*batch // before which another is still under way
	first int64            // the batch that the journal waits for
	named int64
}

// batch is a run of items.
type batch struct {
	seq    int64
	items  []item
	bytes  int64 // of memory
	raw    int64 // of the source
	digest string
	counts counts
}

// run loads all there is. After an error the journal says how far it came.
func (l *loader) run(ctx context.Context) error {
	l.bytes = semaphore.NewWeighted(inFlightBytes)
	l.free = sync.NewCond(&l.mu)
	l.busy, l.ended = map[string]bool{}, map[int64]*batch{}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(l.concurrency)
	readErr := l.read(groupCtx, group)
	sendErr := group.Wait()
	saveErr := l.journal.save(true)
	if sendErr != nil && (readErr == nil || errors.Is(readErr, context.Canceled)) {
		return errors.Join(sendErr, saveErr)
	}
	return errors.Join(readErr, saveErr)
}

// read makes batches and starts to send them.
func (l *loader) read(ctx context.Context, group *errgroup.Group) error {
	for seq := int64(0); ; seq++ {
		b, readErr := l.nextBatch(ctx, seq)
		if len(b.items) > 0 {
			if err := l.begin(ctx, b); err != nil {
				return err
			}
			group.Go(func() error {
				defer l.end(b)
				if err := l.send(ctx, b); err != nil {
					return err
				}
				return l.done(b)
			})
		}
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}

// nextBatch reads items until a batch is full. Only its last may be one that is
// sent alone.
func (l *loader) nextBatch(ctx context.Context, seq int64) (*batch, error) {
	b := &batch{seq: seq}
	begin, _ := l.source.place()
	var err error
	for len(b.items) < batchPairs && b.bytes < batchBytes && err == nil {
		var it item
		if it, err = l.source.next(); err != nil {
			break
		}
		b.items = append(b.items, it)
		b.bytes += int64(len(it.Key) + len(it.Value) + len(it.Metadata))
		if it.bytes >= singleBytes {
			break
		}
		err = ctx.Err()
	}
	end, digest := l.source.place()
	b.raw, b.digest = end-begin, digest
	return b, err
}

// begin waits until there is room for a batch and no other under way has a key
// of it: of two values of one key the later must win.
func (l *loader) begin(ctx context.Context, b *batch) error {
	if err := l.bytes.Acquire(ctx, min(b.bytes, inFlightBytes)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.conflicts(b) {
		l.free.Wait()
	}
	for _, it := range b.items {
		l.busy[it.Key] = true
	}
	return nil
}

func (l *loader) conflicts(b *batch) bool {
	for _, it := range b.items {
		if l.busy[it.Key] {
			return true
		}
	}
	return false
}

// end gives back what begin took.
func (l *loader) end(b *batch) {
	l.mu.Lock()
	for _, it := range b.items {
		delete(l.busy, it.Key)
	}
	l.mu.Unlock()
	l.free.Broadcast()
	l.bytes.Release(min(b.bytes, inFlightBytes))
}

// done notes a batch that was dealt with. The journal counts batches only as far
// as all before them are done.
func (l *loader) done(b *batch) error {
	l.progress.add(int64(len(b.items)), b.raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended[b.seq] = &batch{items: make([]item, len(b.items)), digest: b.digest, counts: b.counts}
	for {
		next, ok := l.ended[l.first]
		if !ok {
			return l.journal.save(false)
		}
		delete(l.ended, l.first)
		l.first++
		l.journal.Items += int64(len(next.items))
		l.journal.Digest = next.digest
		l.journal.Counts.add(next.counts)
	}
}

// send writes the items of a batch.
func (l *loader) send(ctx context.Context, b *batch) error {
	var bulk, single []item
	for _, it := range b.items {
		switch err := l.check(it, &b.counts); {
		case err != nil:
			l.refuse(it, err, &b.counts)
		case it.skipped != "" || l.expired(it):
		case it.bytes >= singleBytes:
			single = append(single, it)
		default:
			bulk = append(bulk, it)
		}
	}
	if l.dryRun {
		for _, it := range append(bulk, single...) {
			b.counts.Records++
			b.counts.Bytes += it.bytes
		}
		return nil
	}
	if err := l.putMany(ctx, bulk, &b.counts); err != nil {
		return err
	}
	for _, it := range single {
		if err := l.putOne(ctx, it, &b.counts); err != nil {
			return err
		}
	}
	return nil
}

// check returns why an item cannot be sent, and counts those that need not be.
func (l *loader) check(it item, c *counts) error {
	switch {
	case it.refused != nil:
		return it.refused
	case it.skipped != "":
		c.Skipped++
		l.name("skipped %s: it is %s", printable(it.where), it.skipped)
		return nil
	case it.bytes > kv.MaxValueBytes:
		return fmt.Errorf("the value has %s, at most %s can be stored", size(it.bytes), size(kv.MaxValueBytes))
	}
	if err := kv.CheckKey(it.Key); err != nil {
		return err
	}
	if l.expired(it) {
		c.Expired++
	}
	return nil
}

func (l *loader) expired(it item) bool {
	return it.TTL == 0 && it.Expiration != 0 && it.Expiration <= time.Now().Unix()
}

// refuse counts an item that cannot be stored, and names it.
func (l *loader) refuse(it item, reason error, c *counts) {
	var answer *client.Error
	if errors.As(reason, &answer) && (answer.Code() == client.CodeExpiration || answer.Code() == client.CodeExpirationTTL) {
		if l.expired(it) {
			c.Expired++
			return
		}
		c.TooSoon++
	} else {
		c.Refused++
	}
	l.name("refused %s, key %q: %v", printable(it.where), it.Key, reason)
}

// name tells of one item; of very many only the first are told.
func (l *loader) name(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.named++
	if l.named <= maxNamed {
		l.say(format, args...)
	}
	if l.named == maxNamed+1 {
		l.say("more are counted and not named")
	}
}

// breaksRule reports whether an answer says that the request itself is at fault,
// so that a part of it may be accepted.
func breaksRule(err error) bool {
	var answer *client.Error
	if !errors.As(err, &answer) || answer.Denied() {
		return false
	}
	switch answer.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// putMany writes items with one request. If one of them breaks a rule the server
// writes none and does not say which it was: then each half is tried.
func (l *loader) putMany(ctx context.Context, items []item, c *counts) error {
	wait := firstRepeatWait
	for range repeatPairs {
		if len(items) == 0 {
			return nil
		}
		pairs := make([]client.Pair, len(items))
		for i, it := range items {
			pairs[i] = it.Pair
		}
		result, err := l.client.PutMany(ctx, l.namespace, pairs)
		switch {
		case breaksRule(err) && len(items) == 1:
			l.refuse(items[0], err, c)
			return nil
		case breaksRule(err):
			if err := l.putMany(ctx, items[:len(items)/2], c); err != nil {
				return err
			}
			return l.putMany(ctx, items[len(items)/2:], c)
		case err != nil:
			return fmt.Errorf("write %s from %s on: %w", plural(int64(len(items)), "record"), items[0].where, err)
		}
		if items = left(items, result.Unsuccessful, c); len(items) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
			wait *= 2
		}
	}
	return &exitError{exitUnreachable, fmt.Errorf("the server could not store %s, such as %s", plural(int64(len(items)), "record"), items[0].where)}
}

// left counts the items that were written, and returns the others.
func left(items []item, unsuccessful []string, c *counts) []item {
	failed := make(map[string]bool, len(unsuccessful))
	for _, key := range unsuccessful {
		failed[key] = true
	}
	var rest []item
	for _, it := range items {
		if failed[it.Key] {
			rest = append(rest, it)
			continue
		}
		c.Records++
		c.Bytes += it.bytes
	}
	return rest
}

// putOne writes an item with a request of its own.
func (l *loader) putOne(ctx context.Context, it item, c *counts) error {
	body := client.BytesBody(it.Value)
	if it.file != nil {
		body = *it.file
	}
	err := l.client.Put(ctx, l.namespace, it.Key, body, it.PutOptions)
	if breaksRule(err) {
		l.refuse(it, err, c)
		return nil
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", it.where, err)
	}
	c.Records++
	c.Bytes += it.bytes
	return nil
}
