package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/nearkey/nearkey/kv"
)

const (
	sweepBatch = 512       // keys of an index that one step of a sweep handles
	filesEvery = time.Hour // how often files that no row names are looked for, and the expirations swept from the very beginning
)

// Run keeps the store in order until ctx ends: it turns expired records into
// tombstones, forgets old tombstones (Options.ForgetAfter), trims the change log
// and removes files that no row names. It returns nil when ctx ends, and an error
// when the store cannot be written any more. Without it the store works, but
// grows.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.opts.SweepEvery)
	defer tick.Stop()
	var sweep sweeper
	for {
		swept := make(chan error, 1) // a sweep that met a failing disk does not end
		go func() { swept <- s.sweep(ctx, &sweep) }()
		select {
		case err := <-swept:
			if err != nil && ctx.Err() == nil {
				s.opts.Logger.Warn("store: a sweep failed and will be tried again", "dir", s.dir, "error", err)
			}
		case <-s.failing:
			return s.failure()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.failing:
			return s.failure()
		case <-tick.C:
		}
	}
}

// sweeper remembers between sweeps what need not be looked at again.
type sweeper struct {
	files time.Time // when everything was last looked at
	swept int64     // expirations before this second have been swept
}

// sweep does once what Run does again and again.
func (s *Store) sweep(ctx context.Context, sweep *sweeper) error {
	now := s.opts.now()
	if s.failure() != nil || s.space.check(true) != nil {
		return nil // sweeping writes; it waits for better days
	}
	whole := sweep.files.IsZero() || now.Sub(sweep.files) >= filesEvery
	if whole {
		sweep.files, sweep.swept = now, 0
	}
	errs := []error{s.sweepExpired(ctx, sweep, now.Unix()), s.forgetOld(ctx, now), s.trimChanges()}
	if whole {
		errs = append(errs, s.sweepFiles(ctx))
	}
	return errors.Join(errs...)
}

// sweepExpired turns the records that expired up to now into tombstones of the
// same version: the law prefers a tombstone to a value of its version, so both
// providers of a pair come to the same end apart, and a newer write wins.
func (s *Store) sweepExpired(ctx context.Context, sweep *sweeper, now int64) error {
	lower := binary.BigEndian.AppendUint64([]byte{spaceExpirations}, uint64(sweep.swept))
	upper := binary.BigEndian.AppendUint64([]byte{spaceExpirations}, uint64(now)+1)
	for {
		keys, err := s.indexKeys(lower, upper)
		if err != nil {
			return fmt.Errorf("sweep expired records: %w", err)
		}
		if err := s.expire(ctx, keys); err != nil {
			return fmt.Errorf("sweep expired records: %w", err)
		}
		if len(keys) < sweepBatch {
			sweep.swept = now // records that expire now and are written later are met in the next second
			return nil
		}
		lower = append(keys[len(keys)-1], 0)
	}
}

// expire writes the tombstones of one batch of the expiration index.
func (s *Store) expire(ctx context.Context, keys [][]byte) error {
	var writes []kv.Write
	var scratch []byte
	for _, key := range keys {
		ref, err := parseRef(key, 1+8)
		if err != nil {
			return err
		}
		expiration := int64(binary.BigEndian.Uint64(key[1:]))
		r, err := s.readRow(ref, &scratch)
		if err != nil {
			return err
		}
		if r.Tombstone || r.Expiration != expiration { // of a dropped namespace, or rewritten just now
			if err := s.removeStale(ref, key, func(r row) bool { return r.Expiration == expiration }); err != nil {
				return err
			}
			continue
		}
		writes = append(writes, kv.Write{Ref: ref, Record: kv.Tombstone(r.Version)})
	}
	if len(writes) == 0 {
		return nil
	}
	return s.write(ctx, writes)
}

// removeStale removes an entry of an index unless the row of ref needs it.
func (s *Store) removeStale(ref kv.Ref, key []byte, needs func(row) bool) error {
	defer s.lock([]kv.Write{{Ref: ref}})()
	var scratch []byte
	r, err := s.readRow(ref, &scratch)
	if err != nil || needs(r) {
		return err
	}
	return s.db.Delete(key, pebble.NoSync)
}

// indexKeys returns the first keys of a range, at most sweepBatch.
func (s *Store) indexKeys(lower, upper []byte) (keys [][]byte, err error) {
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok && len(keys) < sweepBatch; ok = iter.Next() {
		keys = append(keys, append([]byte(nil), iter.Key()...))
	}
	return keys, iter.Error()
}

// forgetOld forgets the tombstones whose version is of a time that nothing can
// still carry.
func (s *Store) forgetOld(ctx context.Context, now time.Time) error {
	if s.opts.ForgetAfter == 0 {
		return nil
	}
	lower := []byte{spaceTombstones}
	end := kv.NewVersion(now.Add(-s.opts.ForgetAfter).UnixNano(), 0, 0)
	upper := append([]byte{spaceTombstones}, end[:]...)
	for {
		keys, err := s.indexKeys(lower, upper)
		if err != nil {
			return fmt.Errorf("forget old tombstones: %w", err)
		}
		var tombs []kv.Tomb
		var scratch []byte
		for _, key := range keys {
			ref, err := parseRef(key, 1+versionBytes)
			if err != nil {
				return fmt.Errorf("forget old tombstones: %w", err)
			}
			version := kv.Version(key[1 : 1+versionBytes])
			r, err := s.readRow(ref, &scratch)
			if err != nil {
				return fmt.Errorf("forget old tombstones: %w", err)
			}
			if !r.Tombstone || r.Version != version {
				if err := s.removeStale(ref, key, func(r row) bool { return r.Tombstone && r.Version == version }); err != nil {
					return fmt.Errorf("forget old tombstones: %w", err)
				}
				continue
			}
			tombs = append(tombs, kv.Tomb{Ref: ref, Version: version})
		}
		if len(tombs) > 0 {
			if err := s.Forget(ctx, tombs); err != nil {
				return err
			}
		}
		if len(keys) < sweepBatch {
			return nil
		}
		lower = append(keys[len(keys)-1], 0)
	}
}

// sweepFiles removes the files that no row names and no write under way will.
func (s *Store) sweepFiles(ctx context.Context) error {
	fsys := s.opts.fs
	namespaces, err := fsys.List(s.values.dir)
	if err != nil {
		return fmt.Errorf("sweep files: %w", err)
	}
	for _, name := range namespaces {
		ns, err := kv.ParseNamespaceID(name)
		if err != nil {
			continue // not ours
		}
		dir := fsys.PathJoin(s.values.dir, name)
		spreads, err := fsys.List(dir)
		if err != nil {
			return fmt.Errorf("sweep files: %w", err)
		}
		for _, spread := range spreads {
			if err := s.sweepDir(ctx, ns, fsys.PathJoin(dir, spread)); err != nil {
				return fmt.Errorf("sweep files: %w", err)
			}
		}
	}
	return nil
}

func (s *Store) sweepDir(ctx context.Context, ns kv.NamespaceID, dir string) error {
	names, err := s.opts.fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.sweepFile(ns, dir, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweepFile removes one file unless it is needed. Whether a write is under way
// must be asked before the row is read: the write commits first and settles then.
func (s *Store) sweepFile(ns kv.NamespaceID, dir, name string) error {
	if s.values.isPending(name) {
		return nil
	}
	path := s.opts.fs.PathJoin(dir, name)
	key, err := s.values.key(path)
	if err != nil && !errors.Is(err, errCorrupt) {
		return err
	}
	if err == nil {
		var scratch []byte
		r, err := s.readRow(kv.Ref{Namespace: ns, Key: key}, &scratch)
		if err != nil || r.file != (fileRef{}) && r.file.name() == name {
			return err
		}
	}
	s.opts.Logger.Debug("store: removing a file that no row names", "path", path)
	return s.opts.fs.Remove(path)
}
