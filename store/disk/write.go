package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/nearkey/nearkey/kv"
)

// Put implements kv.Store. It returns nil when rec, or a newer record of the
// key, is on stable storage.
func (s *Store) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return s.write(ctx, []kv.Write{{Ref: ref, Record: rec}})
}

// PutMany stores all writes in one commit. If it fails none of them is stored,
// unless the error wraps kv.ErrUnknown or the context's: then all or none are.
func (s *Store) PutMany(ctx context.Context, writes []kv.Write) error {
	return s.write(ctx, writes)
}

// write does the work of Put and PutMany apart from the caller, who waits no
// longer than ctx lasts: a disk may hang. The work itself is then finished
// nevertheless, which the law allows.
func (s *Store) write(ctx context.Context, writes []kv.Write) error {
	if err := s.admit(ctx, writes); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if err := s.place(ctx); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	// A goroutine that Pebble ends (pebbleLog.Fatalf) still answers.
	done := make(chan error, 1)
	go func() {
		err := fmt.Errorf("put: %w", kv.ErrUnknown)
		defer func() { done <- err; <-s.writes }()
		err = s.apply(writes)
	}()
	select {
	case err := <-done:
		return err
	case <-s.failing:
		return fmt.Errorf("put: %w: %w", kv.ErrUnknown, s.failure())
	case <-ctx.Done():
		return fmt.Errorf("put: %w: %w", kv.ErrUnknown, ctx.Err())
	}
}

// place waits for one of the places for writes.
func (s *Store) place(ctx context.Context) error {
	if err := s.begin(ctx, "wait for other writes"); err != nil {
		return err
	}
	defer s.end()
	select {
	case s.writes <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for other writes: %w", ctx.Err())
	}
}

// admit refuses what cannot be stored now.
func (s *Store) admit(ctx context.Context, writes []kv.Write) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deletes := true
	for _, w := range writes {
		if w.Record.Absent() {
			panic("disk: put of an absent record")
		}
		if n := len(w.Record.Value); n > kv.MaxValueBytes {
			return fmt.Errorf("value of %d bytes, at most %d can be stored", n, kv.MaxValueBytes)
		}
		if n := len(w.Ref.Key); n > kv.MaxKeyBytes {
			return fmt.Errorf("key of %d bytes, at most %d can be stored", n, kv.MaxKeyBytes)
		}
		deletes = deletes && w.Record.Tombstone
	}
	if err := s.failure(); err != nil {
		return err
	}
	return s.space.check(deletes)
}

// apply makes writes durable, or reports why not.
func (s *Store) apply(writes []kv.Write) error {
	files, err := s.writeFiles(writes)
	if err != nil {
		return s.wrapWriteError(err)
	}
	defer func() {
		for _, f := range files {
			s.values.settle(f)
		}
	}()
	b := &batch{s: s, Batch: s.db.NewBatch()}
	defer b.Close()
	if err := s.commitWrites(b, writes, files); err != nil {
		b.remove(b.named)
		return s.wrapWriteError(err)
	}
	// A crash before the end of the wait: the log has the batch in full or not at
	// all, and nobody was told.
	if err := s.wait(b); err != nil {
		s.fail(fmt.Errorf("sync the log: %w", err))
		return fmt.Errorf("put: %w: %w", kv.ErrUnknown, err)
	}
	// A crash before the end of the removal leaves files that no row names.
	b.remove(b.unnamed)
	return nil
}

// commitWrites fills the batch and hands it to Pebble while no other write can
// touch the same rows.
func (s *Store) commitWrites(b *batch, writes []kv.Write, files []fileRef) error {
	defer s.lock(writes)()
	if err := b.fill(writes, files); err != nil {
		return err
	}
	return s.commitBatch(b)
}

func (s *Store) wrapWriteError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("put: %w: %w", kv.ErrFull, err)
	}
	return fmt.Errorf("put: %w", err)
}

// writeFiles writes the large values; files[i] is that of writes[i], or zero.
func (s *Store) writeFiles(writes []kv.Write) (files []fileRef, err error) {
	for i, w := range writes {
		if len(w.Record.Value) < LargeValueBytes {
			continue
		}
		if files == nil {
			files = make([]fileRef, len(writes))
		}
		if files[i], err = s.values.write(w.Ref, w.Record.Version, w.Record.Value); err != nil {
			for j, f := range files[:i] {
				if f != (fileRef{}) {
					err = errors.Join(err, s.values.remove(writes[j].Ref.Namespace, f))
					s.values.settle(f)
				}
			}
			return nil, err
		}
	}
	return files, nil
}

// lock takes the locks of all keys, in one order for all callers.
func (s *Store) lock(writes []kv.Write) (unlock func()) {
	if len(writes) == 1 {
		l := &s.locks[stripe(writes[0].Ref)]
		l.Lock()
		return l.Unlock
	}
	held := make([]int, len(writes))
	for i, w := range writes {
		held[i] = stripe(w.Ref)
	}
	slices.Sort(held)
	held = slices.Compact(held)
	for _, i := range held {
		s.locks[i].Lock()
	}
	return func() {
		for _, i := range held {
			s.locks[i].Unlock()
		}
	}
}

var stripeSeed = maphash.MakeSeed()

func stripe(ref kv.Ref) int { return int(maphash.Comparable(stripeSeed, ref) % stripes) }

// batch is the effect of some writes: on rows, on the indexes, on files.
type batch struct {
	*pebble.Batch
	s       *Store
	changes []kv.Change // without their cursors
	named   []valueFile // files that the batch gives to rows, or would have
	unnamed []valueFile // files that no row names once the batch is durable
	key     []byte      // scratch
	val     []byte      // scratch
}

// valueFile is the file of a namespace's value.
type valueFile struct {
	ns   kv.NamespaceID
	file fileRef
}

// fill adds to the batch the writes that the law prefers to what is stored. The
// locks of their keys are held.
func (b *batch) fill(writes []kv.Write, files []fileRef) error {
	var within map[kv.Ref]row // rows that this batch has already set
	if len(writes) > 1 {
		within = make(map[kv.Ref]row, len(writes))
	}
	for i, w := range writes {
		next := row{Record: w.Record}
		if files != nil && files[i] != (fileRef{}) {
			next.file, next.Value = files[i], nil
			b.named = append(b.named, valueFile{w.Ref.Namespace, files[i]})
		}
		prev, ok := within[w.Ref]
		if !ok {
			var err error
			if prev, err = b.s.readRow(w.Ref, &b.key); err != nil {
				return err
			}
		}
		newer, err := b.s.prefers(w.Ref, prev, w.Record)
		if err != nil {
			return err
		}
		if !newer {
			b.replaced(w.Ref, next)
			continue
		}
		b.replaced(w.Ref, prev)
		if err := b.set(w.Ref, prev, next); err != nil {
			return err
		}
		if within != nil {
			within[w.Ref] = next
		}
	}
	return nil
}

// prefers reports whether the law prefers rec to what the row has.
func (s *Store) prefers(ref kv.Ref, prev row, rec kv.Record) (bool, error) {
	if c := rec.Version.Compare(prev.Version); c != 0 {
		return c > 0, nil
	}
	old := prev.Record
	if prev.file != (fileRef{}) {
		value, err := s.values.read(ref, prev.file)
		if err != nil {
			return false, fmt.Errorf("compare records of equal version: %w", err)
		}
		old.Value = value
	}
	return rec.Compare(old) > 0, nil
}

// replaced notes that no row will name r's file once the batch is durable.
func (b *batch) replaced(ref kv.Ref, r row) {
	if r.file != (fileRef{}) {
		b.unnamed = append(b.unnamed, valueFile{ref.Namespace, r.file})
	}
}

// set replaces a row and its entries in the indexes.
func (b *batch) set(ref kv.Ref, prev, next row) error {
	var errs []error
	if prev.Expiration != 0 && prev.Expiration != next.Expiration {
		b.key = appendExpirationKey(b.key[:0], prev.Expiration, ref)
		errs = append(errs, b.Delete(b.key, nil))
	}
	if prev.Tombstone {
		b.key = appendTombstoneKey(b.key[:0], prev.Version, ref)
		errs = append(errs, b.Delete(b.key, nil))
	}
	b.key, b.val = appendRowKey(b.key[:0], ref), next.append(b.val[:0])
	errs = append(errs, b.Set(b.key, b.val, nil))
	if next.Expiration != 0 && prev.Expiration != next.Expiration {
		b.key = appendExpirationKey(b.key[:0], next.Expiration, ref)
		errs = append(errs, b.Set(b.key, nil, nil))
	}
	if next.Tombstone {
		b.key = appendTombstoneKey(b.key[:0], next.Version, ref)
		errs = append(errs, b.Set(b.key, nil, nil))
	}
	b.changes = append(b.changes, kv.Change{Ref: ref, Version: next.Version})
	return errors.Join(errs...)
}

// highAhead is how far the mark that is older than no version is set ahead of
// the newest version, so that it is written once in that time and not with each
// write.
const highAhead = int64(time.Second)

// commitBatch hands a batch to Pebble, its changes numbered. From here on reads
// see the rows, and after a crash they are there or not.
func (s *Store) commitBatch(b *batch) error {
	if len(b.changes) == 0 {
		// Somebody else's newer record is acknowledged in the place of ours, so it
		// must be durable: an empty batch that is synced waits for all before it.
		if err := b.LogData(nil, nil); err != nil {
			return err
		}
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	high := s.high
	for i := range b.changes {
		c := &b.changes[i]
		c.Cursor = kv.Cursor{Epoch: s.epoch, Seq: s.seq + uint64(i) + 1}
		high = max(high, c.Version.UnixNano())
		b.key = appendChangeKey(b.key[:0], c.Cursor.Seq)
		b.val = appendChange(b.val[:0], c.Ref, c.Version)
		if err := b.Set(b.key, b.val, nil); err != nil {
			return err
		}
	}
	if high > s.high {
		high += highAhead
		b.val = binary.BigEndian.AppendUint64(b.val[:0], uint64(high))
		if err := b.Set(keyHigh, b.val, nil); err != nil {
			return err
		}
	}
	if err := s.failure(); err != nil {
		return err
	}
	s.seq += uint64(len(b.changes))
	s.high = high
	if s.opts.noSync {
		return s.db.Apply(b.Batch, pebble.NoSync)
	}
	if err := s.db.ApplyNoSyncWait(b.Batch, pebble.Sync); err != nil {
		return err
	}
	return nil
}

// wait returns when the batch and all before it are on stable storage.
func (s *Store) wait(b *batch) error {
	if s.opts.noSync {
		return nil
	}
	if err := b.SyncWait(); err != nil {
		return err
	}
	if len(b.changes) == 0 {
		return nil
	}
	last := b.changes[len(b.changes)-1].Cursor.Seq
	for {
		synced := s.synced.Load()
		if last <= synced {
			return nil
		}
		if s.synced.CompareAndSwap(synced, last) {
			s.changed.Fire()
			return nil
		}
	}
}

// remove removes files; what it cannot remove the next sweep will.
func (b *batch) remove(files []valueFile) {
	for _, f := range files {
		if err := b.s.values.remove(f.ns, f.file); err != nil {
			b.s.opts.Logger.Warn("store: a file stays until the next sweep", "error", err)
		}
	}
}

// Forget implements the ability of kv.Forget.
func (s *Store) Forget(ctx context.Context, tombs []kv.Tomb) error {
	if err := s.begin(ctx, "forget"); err != nil {
		return err
	}
	defer s.end()
	if err := s.failure(); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	writes := make([]kv.Write, len(tombs))
	for i, tomb := range tombs {
		writes[i].Ref = tomb.Ref
	}
	b := s.db.NewBatch()
	defer b.Close()
	defer s.lock(writes)()
	var key []byte
	for _, tomb := range tombs {
		r, err := s.readRow(tomb.Ref, &key)
		if err != nil {
			return fmt.Errorf("forget: %w", err)
		}
		if !r.Tombstone || r.Version != tomb.Version {
			continue
		}
		if err := errors.Join(b.Delete(key, nil), b.Delete(appendTombstoneKey(nil, tomb.Version, tomb.Ref), nil)); err != nil {
			return fmt.Errorf("forget: %w", err)
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	return nil
}

// Drop implements the ability of kv.Drop. Entries of the indexes stay until Run
// meets them.
func (s *Store) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := s.begin(ctx, "drop namespace"); err != nil {
		return err
	}
	defer s.end()
	if err := s.failure(); err != nil {
		return fmt.Errorf("drop namespace %s: %w", ns, err)
	}
	lower, upper := rowRange(ns, "")
	if err := s.db.DeleteRange(lower, upper, pebble.Sync); err != nil {
		return fmt.Errorf("drop namespace %s: %w", ns, err)
	}
	// A crash here leaves files that no row names.
	return s.values.drop(ns)
}
