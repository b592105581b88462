package disk

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/nearkey/nearkey/kv"
)

// journalFormat is the content of a journal's file FORMAT.
const journalFormat = "nearkey journal, format 1\n"

// spaceEntries begins the keys of a journal's entries in Pebble. The rest is the
// entry's key.
const spaceEntries = 'j'

// The bounds of what a journal takes.
const (
	MaxJournalKeyBytes   = 2 << 10 // of the key of an entry, which has at least one byte
	MaxJournalValueBytes = 1 << 20 // of its value
	MaxJournalEntries    = 10_000  // of one Apply
)

// The memory of a journal unless Options say otherwise: it is written often and
// read once.
const (
	journalCacheBytes    = 4 << 20
	journalMemTableBytes = 4 << 20
)

// JournalEntry is something that is remembered under a key. A nil value removes
// it; an empty one does not.
type JournalEntry = struct {
	Key   string
	Value []byte
}

// Journal keeps small entries over restarts: what a process of nearkey has to
// remember that is no record. It rests on Pebble like the Store, under
//
//	FORMAT    "nearkey journal, format 1"
//	records/  Pebble
//
// One process has it open at a time. All methods may be called at once from many
// goroutines.
type Journal struct {
	store *Store        // of which it uses Pebble, its guards and its end
	turn  chan struct{} // has a place for the one whose batch is handed to Pebble
}

// OpenJournal opens the journal in dir, or makes one. It refuses the directory of
// something else, and one that another process has open. Of opts the retention of
// changes and tombstones means nothing here.
func OpenJournal(dir string, opts Options) (*Journal, error) {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = journalCacheBytes
	}
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = journalMemTableBytes
	}
	opts = opts.withDefaults()
	if err := checkFormat(opts.fs, dir, journalFormat); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	s := &Store{opts: opts, dir: dir, writes: make(chan struct{}, maxWrites), failing: make(chan struct{})}
	s.space = newSpace(opts.fs, dir, opts.MinFreeBytes, opts.Logger)
	if err := s.openRecords(); err != nil {
		return nil, err
	}
	s.armed.Store(true)
	return &Journal{store: s, turn: make(chan struct{}, 1)}, nil
}

// Apply applies all entries or none, in the order in which the callers came: of
// several entries of one key the last counts. If durable, they are on stable
// storage when it returns nil, and with them all that was applied before. What was
// not may be lost with the process or the power: all or none of a call, the newest
// calls first.
//
// An error that wraps kv.ErrUnknown or the context's leaves open whether they are
// applied; after any other they are not. The caller may change the values when
// Apply has returned.
func (j *Journal) Apply(ctx context.Context, entries []JournalEntry, durable bool) error {
	batch, err := j.admit(ctx, entries)
	if err != nil {
		return fmt.Errorf("apply to the journal: %w", err)
	}
	if err := j.await(ctx); err != nil {
		return fmt.Errorf("apply to the journal: %w", errors.Join(err, batch.Close()))
	}
	// As in Store.write: a disk may hang, and a goroutine that Pebble ends answers.
	s, done := j.store, make(chan error, 1)
	go func() {
		err := fmt.Errorf("%w", kv.ErrUnknown)
		defer func() { done <- err; <-s.writes }()
		err = j.apply(batch, durable && !s.opts.noSync)
	}()
	select {
	case err = <-done:
	case <-s.failing:
		err = fmt.Errorf("%w: %w", kv.ErrUnknown, s.failure())
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", kv.ErrUnknown, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("apply to the journal: %w", err)
	}
	return nil
}

// admit makes a batch of entries, or says why they cannot be applied.
func (j *Journal) admit(ctx context.Context, entries []JournalEntry) (*pebble.Batch, error) {
	s := j.store
	if err := errors.Join(ctx.Err(), s.failure()); err != nil {
		return nil, err
	}
	if len(entries) > MaxJournalEntries {
		return nil, fmt.Errorf("%d entries, at most %d can be applied at once", len(entries), MaxJournalEntries)
	}
	removals := true
	for _, e := range entries {
		if n := len(e.Key); n == 0 || n > MaxJournalKeyBytes {
			return nil, fmt.Errorf("key of %d bytes, want 1 to %d", n, MaxJournalKeyBytes)
		}
		if n := len(e.Value); n > MaxJournalValueBytes {
			return nil, fmt.Errorf("value of %d bytes, at most %d can be kept", n, MaxJournalValueBytes)
		}
		removals = removals && e.Value == nil
	}
	if err := s.space.check(removals); err != nil {
		return nil, err
	}
	b := s.db.NewBatch()
	var key []byte
	for _, e := range entries {
		key = append(append(key[:0], spaceEntries), e.Key...)
		set := func() error { return b.Set(key, e.Value, nil) }
		if e.Value == nil {
			set = func() error { return b.Delete(key, nil) }
		}
		if err := set(); err != nil {
			return nil, errors.Join(err, b.Close())
		}
	}
	return b, nil
}

// await waits for a place among the writes, and for the turn.
func (j *Journal) await(ctx context.Context) error {
	s := j.store
	if err := s.place(ctx); err != nil {
		return err
	}
	select {
	case j.turn <- struct{}{}:
		return nil
	case <-s.failing:
		<-s.writes
		return s.failure()
	case <-ctx.Done():
		<-s.writes
		return ctx.Err()
	}
}

// apply hands the batch to Pebble, gives the turn to the next and waits for the
// log with whoever else does.
func (j *Journal) apply(b *pebble.Batch, durable bool) error {
	defer b.Close()
	if err := j.hand(b, durable); err != nil {
		return err
	}
	if !durable {
		return nil
	}
	// A crash before the end of the wait: the log has the batch in full or not at
	// all, and nobody was told.
	if err := b.SyncWait(); err != nil {
		j.store.fail(fmt.Errorf("sync the log: %w", err))
		return fmt.Errorf("%w: %w", kv.ErrUnknown, err)
	}
	return nil
}

func (j *Journal) hand(b *pebble.Batch, durable bool) error {
	s := j.store
	defer func() { <-j.turn }()
	if err := s.failure(); err != nil {
		return err
	}
	if !durable {
		return s.db.Apply(b, pebble.NoSync)
	}
	if b.Empty() { // the caller waits for what was applied before
		if err := b.LogData(nil, nil); err != nil {
			return err
		}
	}
	return s.db.ApplyNoSyncWait(b, pebble.Sync)
}

// Load calls each with every entry, in the order of their keys, as they were when
// it began, until each returns an error, which it returns. The caller may keep
// the values. each must not call the journal.
func (j *Journal) Load(each func(JournalEntry) error) error {
	s := j.store
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed {
		return fmt.Errorf("load the journal: %w: it is closed", kv.ErrUnavailable)
	}
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{spaceEntries}, UpperBound: []byte{spaceEntries + 1}})
	if err != nil {
		return fmt.Errorf("load the journal: %w", err)
	}
	for iter.First(); iter.Valid(); iter.Next() {
		value, err := iter.ValueAndErr()
		if err != nil {
			return fmt.Errorf("load the journal: %w", errors.Join(err, iter.Close()))
		}
		e := JournalEntry{Key: string(iter.Key()[1:]), Value: append([]byte{}, value...)}
		if err := each(e); err != nil {
			return errors.Join(err, iter.Close())
		}
	}
	if err := errors.Join(iter.Error(), iter.Close()); err != nil {
		return fmt.Errorf("load the journal: %w", err)
	}
	return nil
}

// Ready returns why the journal cannot be written now, or nil.
func (j *Journal) Ready() error { return j.store.Ready() }

// Close waits for the calls under way and closes the journal. Calls made after it
// fail.
func (j *Journal) Close() error { return j.store.Close() }
