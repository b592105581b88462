package guard

import (
	"context"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Store is a kv.Store behind a guard, with the abilities to read and put many,
// to forget, to drop and to list the namespaces, if the store has them.
type Store struct {
	*Guard
	store kv.Store
}

var _ kv.Store = (*Store)(nil)

// Before returns store behind a guard.
func Before(store kv.Store, opts Options) *Store {
	if opts.Probe == nil {
		opts.Probe = func(ctx context.Context) error {
			_, err := store.Get(ctx, kv.Ref{Key: "probe"}, 0)
			return err
		}
	}
	return &Store{New(opts), store}
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (rec kv.Record, err error) {
	err = s.Do(ctx, kv.ErrUnavailable, func(ctx context.Context) (err error) {
		rec, err = s.store.Get(ctx, ref, maxAge)
		return err
	})
	return rec, err
}

// Put implements kv.Store. A put that the guard ended is of unknown outcome.
func (s *Store) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return s.Do(ctx, kv.ErrUnknown, func(ctx context.Context) error {
		return s.store.Put(ctx, ref, rec)
	})
}

// List implements kv.Store.
func (s *Store) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	err = s.Do(ctx, kv.ErrUnavailable, func(ctx context.Context) (err error) {
		page, err = s.store.List(ctx, ns, opts)
		return err
	})
	return page, err
}

// GetMany implements the ability of kv.GetMany.
func (s *Store) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (recs []kv.Record, err error) {
	err = s.Do(ctx, kv.ErrUnavailable, func(ctx context.Context) (err error) {
		recs, err = kv.GetMany(ctx, s.store, refs, maxAge)
		return err
	})
	return recs, err
}

// PutMany implements the ability of kv.PutMany. If the guard ended it the outcome
// is unknown.
func (s *Store) PutMany(ctx context.Context, writes []kv.Write) error {
	return s.Do(ctx, kv.ErrUnknown, func(ctx context.Context) error {
		return kv.PutMany(ctx, s.store, writes)
	})
}

// Forget implements the ability of kv.Forget.
func (s *Store) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return s.Do(ctx, kv.ErrUnknown, func(ctx context.Context) error {
		return kv.Forget(ctx, s.store, tombs)
	})
}

// Drop implements the ability of kv.Drop. It may take long and says nothing about
// the store's health meanwhile; it is ended when the store goes down.
func (s *Store) Drop(ctx context.Context, ns kv.NamespaceID) error {
	return s.doLong(ctx, s.opts.DropDeadline, kv.ErrUnknown, func(ctx context.Context) error {
		return kv.Drop(ctx, s.store, ns)
	})
}

// Namespaces implements the ability of kv.Namespaces.
func (s *Store) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	err = s.Do(ctx, kv.ErrUnavailable, func(ctx context.Context) (err error) {
		ids, err = kv.Namespaces(ctx, s.store, after, limit)
		return err
	})
	return ids, err
}
