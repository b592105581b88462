package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/nearkey/nearkey/kv"
)

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, ref kv.Ref, _ time.Duration) (kv.Record, error) {
	if err := s.begin(ctx, "get"); err != nil {
		return kv.Record{}, err
	}
	defer s.end()
	var key []byte
	return s.get(ctx, ref, &key)
}

// GetMany implements the ability of kv.GetMany.
func (s *Store) GetMany(ctx context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Record, error) {
	if err := s.begin(ctx, "get many"); err != nil {
		return nil, err
	}
	defer s.end()
	recs := make([]kv.Record, len(refs))
	var key []byte
	for i, ref := range refs {
		rec, err := s.get(ctx, ref, &key)
		if err != nil {
			return nil, err
		}
		recs[i] = rec
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("get many: %w", err)
		}
	}
	return recs, nil
}

// maxReplaced is how often a Get begins anew because the file that a row names
// was replaced before it could be opened.
const maxReplaced = 100

func (s *Store) get(ctx context.Context, ref kv.Ref, key *[]byte) (kv.Record, error) {
	for try := 0; ; try++ {
		r, err := s.readRow(ref, key)
		if err != nil || r.file == (fileRef{}) {
			return r.Record, err
		}
		if err := kv.Reserve(ctx, r.file.bytes); err != nil {
			return kv.Record{}, fmt.Errorf("get a value of %d bytes: %w", r.file.bytes, err)
		}
		value, err := s.values.read(ref, r.file)
		if errors.Is(err, fs.ErrNotExist) && try < maxReplaced {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errCorrupt) {
			return kv.Record{}, fmt.Errorf("get: %w: %w", kv.ErrDamaged, err)
		}
		if err != nil {
			return kv.Record{}, fmt.Errorf("get: %w", err)
		}
		r.Value = value
		return r.Record, nil
	}
}

// readRow returns the row of ref, zero if there is none, with bytes of its own.
// key is scratch space; it holds the row's key afterwards.
func (s *Store) readRow(ref kv.Ref, key *[]byte) (row, error) {
	*key = appendRowKey((*key)[:0], ref)
	data, closer, err := s.db.Get(*key)
	if errors.Is(err, pebble.ErrNotFound) {
		return row{}, nil
	}
	if err != nil {
		return row{}, fmt.Errorf("read a row: %w", err)
	}
	data = bytes.Clone(data)
	if err := closer.Close(); err != nil {
		return row{}, fmt.Errorf("read a row: %w", err)
	}
	r, err := parseRow(data)
	if err != nil {
		return row{}, fmt.Errorf("read a row: %w", err)
	}
	return r, nil
}

// Namespaces implements the ability of kv.Namespaces: one seek for each.
func (s *Store) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	if err := s.begin(ctx, "list the namespaces"); err != nil {
		return nil, err
	}
	defer s.end()
	iter, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: []byte{spaceRows}, UpperBound: []byte{spaceRows + 1}})
	if err != nil {
		return nil, fmt.Errorf("list the namespaces: %w", err)
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for len(ids) < limit && ctx.Err() == nil {
		_, behind := rowRange(after, "")
		if !iter.SeekGE(behind) {
			break
		}
		ref, err := parseRef(iter.Key(), 1)
		if err != nil {
			return nil, fmt.Errorf("list the namespaces: %w", err)
		}
		after = ref.Namespace
		ids = append(ids, after)
	}
	if err := errors.Join(iter.Error(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("list the namespaces: %w", err)
	}
	return ids, nil
}

// List implements kv.Store.
func (s *Store) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if err := s.begin(ctx, "list"); err != nil {
		return kv.Page{}, err
	}
	defer s.end()
	page, err := s.list(ctx, ns, opts)
	if err != nil {
		return kv.Page{}, fmt.Errorf("list: %w", err)
	}
	return page, nil
}

// listCheck is the number of keys after which a listing looks at its context.
const listCheck = 256

func (s *Store) list(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	lower, upper := rowRange(ns, opts.Prefix)
	if opts.After != "" {
		after := append(appendRowKey(nil, kv.Ref{Namespace: ns, Key: opts.After}), 0)
		if bytes.Compare(after, lower) > 0 {
			lower = after
		}
	}
	if bytes.Compare(lower, upper) >= 0 {
		return kv.Page{}, nil
	}
	iter, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return kv.Page{}, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	limit := opts.PageLimit()
	for ok := iter.First(); ok; ok = iter.Next() {
		if len(page.Keys) == limit {
			page.Last, page.More = page.Keys[limit-1].Key, true
			break
		}
		if len(page.Keys)%listCheck == 0 && ctx.Err() != nil {
			return kv.Page{}, ctx.Err()
		}
		data, err := iter.ValueAndErr()
		if err != nil {
			return kv.Page{}, err
		}
		r, err := parseRow(data)
		if err != nil {
			return kv.Page{}, err
		}
		r.Metadata, r.Value = bytes.Clone(r.Metadata), nil
		page.Keys = append(page.Keys, kv.Listed{Key: string(iter.Key()[1+namespaceBytes:]), Record: r.Record})
	}
	return page, nil
}
