package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/nearkey/nearkey/kv"
)

// changeRange is the whole change log.
func changeRange() (lower, upper []byte) {
	return []byte{spaceChanges}, []byte{spaceChanges + 1}
}

// loadChanges finds the ends of the change log.
func (s *Store) loadChanges() (err error) {
	lower, upper := changeRange()
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("read the change log: %w", err)
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	s.oldest.Store(1)
	if iter.First() {
		s.oldest.Store(binary.BigEndian.Uint64(iter.Key()[1:]))
	}
	if iter.Last() {
		s.seq = binary.BigEndian.Uint64(iter.Key()[1:])
	}
	s.synced.Store(s.seq)
	return iter.Error()
}

// Changes implements the ability of kv.Changes. Only changes on stable storage
// are told: what a reader has seen is there after a crash.
func (s *Store) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	if err := s.begin(ctx, "changes"); err != nil {
		return nil, kv.Cursor{}, err
	}
	defer s.end()
	head := kv.Cursor{Epoch: s.epoch, Seq: s.synced.Load()}
	if after == (kv.Cursor{}) || after == head {
		return nil, head, nil
	}
	if after.Epoch != s.epoch || after.Seq > head.Seq || after.Seq+1 < s.oldest.Load() {
		return nil, kv.Cursor{}, fmt.Errorf("changes after %d of epoch %d: %w", after.Seq, after.Epoch, kv.ErrCursorGone)
	}
	first := after.Seq + 1
	last := min(head.Seq, after.Seq+uint64(max(1, min(limit, kv.MaxChanges))))
	changes, err := s.readChanges(first, last)
	if err != nil {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", err)
	}
	if len(changes) == 0 || changes[0].Cursor.Seq != first {
		return nil, kv.Cursor{}, fmt.Errorf("changes after %d: %w", after.Seq, kv.ErrCursorGone) // trimmed meanwhile
	}
	return changes, changes[len(changes)-1].Cursor, nil
}

// AwaitChange implements the ability of kv.AwaitChange.
func (s *Store) AwaitChange(ctx context.Context, after kv.Cursor) error {
	for {
		changed := s.changed.C()
		if after != (kv.Cursor{Epoch: s.epoch, Seq: s.synced.Load()}) {
			return nil
		}
		select {
		case <-changed:
		case <-s.failing:
			return s.failure()
		case <-ctx.Done():
			return fmt.Errorf("await changes: %w", ctx.Err())
		}
	}
}

func (s *Store) readChanges(first, last uint64) (changes []kv.Change, err error) {
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: appendChangeKey(nil, first), UpperBound: appendChangeKey(nil, last+1)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; ok = iter.Next() {
		data, err := iter.ValueAndErr()
		if err != nil {
			return nil, err
		}
		ref, version, err := parseChange(data)
		if err != nil {
			return nil, err
		}
		cursor := kv.Cursor{Epoch: s.epoch, Seq: binary.BigEndian.Uint64(iter.Key()[1:])}
		changes = append(changes, kv.Change{Cursor: cursor, Ref: ref, Version: version})
	}
	return changes, iter.Error()
}

// trimChanges forgets the oldest changes once there are an eighth more than are
// to be kept.
func (s *Store) trimChanges() error {
	kept, head, oldest := s.opts.ChangesKept, s.synced.Load(), s.oldest.Load()
	if head < oldest || head-oldest < kept+kept/8 {
		return nil
	}
	first := head - kept + 1
	s.oldest.Store(first) // before the removal: a reader is told that they are gone, not given half
	if err := s.db.DeleteRange(appendChangeKey(nil, oldest), appendChangeKey(nil, first), pebble.NoSync); err != nil {
		return fmt.Errorf("trim the change log: %w", err)
	}
	return nil
}
