// Package memory keeps records in memory: the plainest Store, against which the
// others are compared, and the one that tests break on purpose. It is unbounded,
// and it loses everything when the process ends.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// Store is an unbounded kv.Store in memory with every optional ability.
type Store struct {
	mu         sync.RWMutex // guards the rest
	namespaces map[kv.NamespaceID]*namespace
	epoch      uint64
	changes    []kv.Change

	changed signal.Signal
}

// namespace is the records of one namespace and their keys in order.
type namespace struct {
	records map[string]kv.Record
	keys    []string // sorted if not stale
	stale   bool     // keys lacks some of the records, or has too many
}

var _ kv.Store = (*Store)(nil)

// New returns an empty Store.
func New() *Store {
	return &Store{namespaces: map[kv.NamespaceID]*namespace{}, epoch: rand.Uint64() | 1}
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, ref kv.Ref, _ time.Duration) (kv.Record, error) {
	if err := ctx.Err(); err != nil {
		return kv.Record{}, fmt.Errorf("get: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if ns := s.namespaces[ref.Namespace]; ns != nil {
		return ns.records[ref.Key], nil
	}
	return kv.Record{}, nil
}

// Put implements kv.Store.
func (s *Store) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if rec.Absent() {
		panic("memory: put of an absent record")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(ref, rec)
	return nil
}

// PutMany stores all writes or, if ctx has ended, none.
func (s *Store) PutMany(ctx context.Context, writes []kv.Write) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put many: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range writes {
		s.put(w.Ref, w.Record)
	}
	return nil
}

// put is called with mu held.
func (s *Store) put(ref kv.Ref, rec kv.Record) {
	ns := s.namespaces[ref.Namespace]
	if ns == nil {
		ns = &namespace{records: map[string]kv.Record{}}
		s.namespaces[ref.Namespace] = ns
	}
	old, ok := ns.records[ref.Key]
	if old.Compare(rec) >= 0 {
		return
	}
	ns.records[ref.Key] = rec
	ns.stale = ns.stale || !ok
	s.changes = append(s.changes, kv.Change{
		Cursor: kv.Cursor{Epoch: s.epoch, Seq: uint64(len(s.changes) + 1)}, Ref: ref, Version: rec.Version})
	s.changed.Fire()
}

// List implements kv.Store.
func (s *Store) List(ctx context.Context, id kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if err := ctx.Err(); err != nil {
		return kv.Page{}, fmt.Errorf("list: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.namespaces[id]
	if ns == nil {
		return kv.Page{}, nil
	}
	ns.sort()
	var page kv.Page
	first, _ := slices.BinarySearch(ns.keys, max(opts.Prefix, opts.After))
	for _, key := range ns.keys[first:] {
		if opts.After != "" && key <= opts.After {
			continue
		}
		if !strings.HasPrefix(key, opts.Prefix) {
			break
		}
		if len(page.Keys) == opts.PageLimit() {
			page.Last, page.More = page.Keys[len(page.Keys)-1].Key, true
			break
		}
		rec := ns.records[key]
		rec.Value = nil
		page.Keys = append(page.Keys, kv.Listed{Key: key, Record: rec})
	}
	return page, nil
}

func (ns *namespace) sort() {
	if !ns.stale {
		return
	}
	ns.keys = ns.keys[:0]
	for key := range ns.records {
		ns.keys = append(ns.keys, key)
	}
	slices.Sort(ns.keys)
	ns.stale = false
}

// Forget implements the ability of kv.Forget.
func (s *Store) Forget(ctx context.Context, tombs []kv.Tomb) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tomb := range tombs {
		ns := s.namespaces[tomb.Ref.Namespace]
		if ns == nil {
			continue
		}
		if rec := ns.records[tomb.Ref.Key]; rec.Tombstone && rec.Version == tomb.Version {
			delete(ns.records, tomb.Ref.Key)
			ns.stale = true
		}
	}
	return nil
}

// Drop implements the ability of kv.Drop.
func (s *Store) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.namespaces, ns)
	return nil
}

// Namespaces implements the ability of kv.Namespaces.
func (s *Store) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list the namespaces: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids []kv.NamespaceID
	for id, ns := range s.namespaces {
		if len(ns.records) > 0 && bytes.Compare(id[:], after[:]) > 0 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b kv.NamespaceID) int { return bytes.Compare(a[:], b[:]) })
	return ids[:min(limit, len(ids))], nil
}

// Changes implements the ability of kv.Changes; nothing is ever trimmed.
func (s *Store) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	head := kv.Cursor{Epoch: s.epoch, Seq: uint64(len(s.changes))}
	if after == (kv.Cursor{}) {
		return nil, head, nil
	}
	if after.Epoch != s.epoch || after.Seq > head.Seq {
		return nil, kv.Cursor{}, fmt.Errorf("changes after %d/%d: %w", after.Epoch, after.Seq, kv.ErrCursorGone)
	}
	rest := s.changes[after.Seq:]
	rest = slices.Clone(rest[:min(len(rest), max(1, min(limit, kv.MaxChanges)))])
	if len(rest) == 0 {
		return nil, head, nil
	}
	return rest, rest[len(rest)-1].Cursor, nil
}

// AwaitChange implements the ability of kv.AwaitChange.
func (s *Store) AwaitChange(ctx context.Context, after kv.Cursor) error {
	for {
		changed := s.changed.C()
		s.mu.RLock()
		waiting := after == kv.Cursor{Epoch: s.epoch, Seq: uint64(len(s.changes))}
		s.mu.RUnlock()
		if !waiting {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("await changes: %w", ctx.Err())
		}
	}
}
