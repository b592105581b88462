package kv

import (
	"context"
	"fmt"
	"time"
)

// Write is a record on its way to a key.
type Write struct {
	Ref    Ref
	Record Record
}

// manyGetter is the optional ability to read several records at once.
type manyGetter interface {
	GetMany(ctx context.Context, refs []Ref, maxAge time.Duration) ([]Record, error)
}

// GetMany returns the records of refs, in their order. A store with the ability
// reads them together; from others they are read one after the other.
func GetMany(ctx context.Context, s Store, refs []Ref, maxAge time.Duration) ([]Record, error) {
	if m, ok := s.(manyGetter); ok {
		return m.GetMany(ctx, refs, maxAge)
	}
	recs := make([]Record, len(refs))
	for i, ref := range refs {
		rec, err := s.Get(ctx, ref, maxAge)
		if err != nil {
			return nil, err
		}
		recs[i] = rec
	}
	return recs, nil
}

// manyPutter is the optional ability to store several records at once.
type manyPutter interface {
	PutMany(ctx context.Context, writes []Write) error
}

// PutMany puts all writes, in any order; a key may occur more than once. When it
// returns nil all are stored. After an error each of them is stored or not, none
// half, and the caller may repeat them all unchanged.
func PutMany(ctx context.Context, s Store, writes []Write) error {
	if m, ok := s.(manyPutter); ok {
		return m.PutMany(ctx, writes)
	}
	for _, w := range writes {
		if err := s.Put(ctx, w.Ref, w.Record); err != nil {
			return err
		}
	}
	return nil
}

// Tomb names a tombstone: a key and the version of its deletion.
type Tomb struct {
	Ref     Ref
	Version Version
}

type forgetter interface {
	Forget(ctx context.Context, tombs []Tomb) error
}

// Forget removes tombstones. A key whose record is no longer the tombstone of
// that version is left alone. The caller must be certain that nothing can still
// carry an older write of the key: it would come back to life.
// A store without the ability returns an error that wraps ErrUnsupported.
func Forget(ctx context.Context, s Store, tombs []Tomb) error {
	if f, ok := s.(forgetter); ok {
		return f.Forget(ctx, tombs)
	}
	return fmt.Errorf("forget tombstones: %w", ErrUnsupported)
}

type dropper interface {
	Drop(ctx context.Context, ns NamespaceID) error
}

// Drop removes every record of a namespace, tombstones included, at a cost that
// does not grow with their number. A namespace's id is never used again, so no
// law is broken; the caller sees to it that no write is under way, or drops once
// more when none can be.
// A store without the ability returns an error that wraps ErrUnsupported.
func Drop(ctx context.Context, s Store, ns NamespaceID) error {
	if d, ok := s.(dropper); ok {
		return d.Drop(ctx, ns)
	}
	return fmt.Errorf("drop namespace %s: %w", ns, ErrUnsupported)
}

// MaxNamespaces is the greatest number of namespaces that one call of Namespaces
// returns.
const MaxNamespaces = 1_000

type namespacer interface {
	Namespaces(ctx context.Context, after NamespaceID, limit int) ([]NamespaceID, error)
}

// Namespaces returns the namespaces that hold records, tombstones included, in
// byte order: those greater than after, at most limit (1 to MaxNamespaces, others
// are clamped). The zero NamespaceID asks for the first ones and holds none. Fewer
// than limit are not the end; none is.
// A store without the ability returns an error that wraps ErrUnsupported.
func Namespaces(ctx context.Context, s Store, after NamespaceID, limit int) ([]NamespaceID, error) {
	if limit < 1 || limit > MaxNamespaces {
		limit = MaxNamespaces
	}
	if n, ok := s.(namespacer); ok {
		return n.Namespaces(ctx, after, limit)
	}
	return nil, fmt.Errorf("list the namespaces: %w", ErrUnsupported)
}

// Cursor is a place in a store's change log; the zero Cursor is none. Epoch names the log: a log that was lost begins another epoch, and a cursor of
// one epoch means nothing in another.
type Cursor struct {
	Epoch uint64
	Seq   uint64
}

// Change is a hint that a key has a new version; the value is not in it.
type Change struct {
	Cursor  Cursor
	Ref     Ref
	Version Version
}

// MaxChanges is the greatest number of changes that one call of Changes returns.
const MaxChanges = 10_000

type changer interface {
	Changes(ctx context.Context, after Cursor, limit int) ([]Change, Cursor, error)
}

// Changes returns at most limit (1 to MaxChanges) changes after a cursor, oldest
// first, and the cursor to go on from, which is that of the last change or, if
// there is none, of the head of the log. Every write that was acknowledged
// before the call is in the log before its head. The zero Cursor asks for the
// head alone.
// If changes after the cursor have been trimmed, or the cursor belongs to another
// epoch, the error wraps ErrCursorGone: the caller starts again from the head and
// must assume that it missed changes.
// A store without the ability returns an error that wraps ErrUnsupported.
func Changes(ctx context.Context, s Store, after Cursor, limit int) ([]Change, Cursor, error) {
	if c, ok := s.(changer); ok {
		return c.Changes(ctx, after, limit)
	}
	return nil, Cursor{}, fmt.Errorf("changes: %w", ErrUnsupported)
}
