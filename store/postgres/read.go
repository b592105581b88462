package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/kv"
)

const (
	readFlights = 3   // statements of gets under way at once
	readSeats   = 256 // gets in a statement
	maxReplaced = 100 // how often a Get begins anew because a large value was replaced before it was read
	pageBytes   = 8 << 20
	readBytes   = 8 << 20 // of values in a statement: larger ones are read by one of their own
)

// row is a record whose value may be too large to be read with it.
type row struct {
	kv.Record
	large int // bytes of the value, which is not there
}

// scan reads the columns of a row of sqlGet.
func (r *row) scan(scan func(...any) error, before ...any) error {
	var version [16]byte
	var expiration *int64
	var bytes *int32
	*r = row{}
	if err := scan(append(before, &version, &expiration, &r.Tombstone, &r.Metadata, &bytes, &r.Value)...); err != nil {
		return err
	}
	r.Version = version
	if expiration != nil {
		r.Expiration = *expiration
	}
	if r.Value == nil && bytes != nil {
		r.large = int(*bytes)
	}
	return nil
}

// Get implements kv.Store.
func (s *Store) Get(ctx context.Context, ref kv.Ref, _ time.Duration) (kv.Record, error) {
	if err := s.begin(ctx, "get"); err != nil {
		return kv.Record{}, err
	}
	defer s.end()
	r, err := s.getRow(ctx, ref)
	if err == nil && r.large > 0 {
		r.Record, err = s.getLarge(ctx, ref, r.large)
	}
	if err != nil {
		return kv.Record{}, fmt.Errorf("get: %w", err)
	}
	return r.Record, nil
}

func (s *Store) getRow(ctx context.Context, ref kv.Ref) (row, error) {
	if s.opts.alone {
		rows, err := s.getRows(ctx, []kv.Ref{ref}, s.call)
		if err != nil {
			return row{}, err
		}
		return rows[0], nil
	}
	r, _, err := s.reads.do(ctx, ref)
	if errors.Is(err, errSlow) {
		return row{}, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	return r, err
}

// getFlight gets what concurrent callers ask for.
func (s *Store) getFlight(ctx context.Context, refs []kv.Ref) ([]row, error) {
	return s.getRows(ctx, refs, s.fly)
}

// getRows gets the rows of refs, in their order.
func (s *Store) getRows(ctx context.Context, refs []kv.Ref, call caller) (found []row, err error) {
	err = call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		found = make([]row, len(refs))
		if len(refs) == 1 {
			err := found[0].scan(conn.QueryRow(ctx, sqlGet, [16]byte(refs[0].Namespace), []byte(refs[0].Key), kv.ReserveBytes).Scan)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		}
		namespaces, keys := make([][16]byte, len(refs)), make([][]byte, len(refs))
		for i, ref := range refs {
			namespaces[i], keys[i] = ref.Namespace, []byte(ref.Key)
		}
		rows, err := conn.Query(ctx, sqlGetMany, namespaces, keys, min(kv.ReserveBytes, readBytes/len(refs)))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var i int
			var r row
			if err := r.scan(rows.Scan, &i); err != nil {
				return err
			}
			found[i-1] = r
		}
		return rows.Err()
	})
	if err == nil {
		s.counters.gets.Add(uint64(len(refs)))
		s.counters.getStatements.Add(1)
	}
	return found, err
}

// getLarge asks the door for a large value's memory and reads it, unless it was
// replaced by one of another size meanwhile: then it begins anew.
func (s *Store) getLarge(ctx context.Context, ref kv.Ref, bytes int) (kv.Record, error) {
	for range maxReplaced {
		if err := kv.Reserve(ctx, int64(bytes)); err != nil {
			return kv.Record{}, fmt.Errorf("a value of %d bytes: %w", bytes, err)
		}
		var r row
		found := false
		err := s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
			err := r.scan(conn.QueryRow(ctx, sqlGetLarge, [16]byte(ref.Namespace), []byte(ref.Key), bytes).Scan)
			found = err == nil
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
		if err != nil || found {
			return r.Record, err
		}
		if r, err = s.getRow(ctx, ref); err != nil || r.large == 0 {
			return r.Record, err
		}
		bytes = r.large
	}
	return kv.Record{}, fmt.Errorf("%w: the value was replaced %d times while it was read", kv.ErrUnavailable, maxReplaced)
}

// GetMany implements the ability of kv.GetMany.
func (s *Store) GetMany(ctx context.Context, refs []kv.Ref, _ time.Duration) ([]kv.Record, error) {
	if err := s.begin(ctx, "get many"); err != nil {
		return nil, err
	}
	defer s.end()
	recs := make([]kv.Record, 0, len(refs))
	for chunk := range slices.Chunk(refs, readSeats) {
		rows, err := s.getRows(ctx, chunk, s.call)
		if err != nil {
			return nil, fmt.Errorf("get many: %w", err)
		}
		for i, r := range rows {
			if r.large > 0 {
				if r.Record, err = s.getLarge(ctx, chunk[i], r.large); err != nil {
					return nil, fmt.Errorf("get many: %w", err)
				}
			}
			recs = append(recs, r.Record)
		}
	}
	return recs, nil
}

// List implements kv.Store. A page ends early when its metadata is large.
func (s *Store) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	if err := s.begin(ctx, "list"); err != nil {
		return kv.Page{}, err
	}
	defer s.end()
	from, below, limit := opts.Prefix, kv.PrefixSuccessor(opts.Prefix), opts.PageLimit()
	if opts.After != "" && opts.After+"\x00" > from {
		from = opts.After + "\x00" // the next string in byte order
	}
	if below != "" && from >= below {
		return kv.Page{}, nil
	}
	statement, args := sqlList, []any{[16]byte(ns), []byte(from), limit + 1}
	if below != "" {
		statement, args = sqlListBelow, []any{[16]byte(ns), []byte(from), []byte(below), limit + 1}
	}
	err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, statement, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		page, err = readPage(rows, limit)
		return err
	})
	if err != nil {
		return kv.Page{}, fmt.Errorf("list: %w", err)
	}
	return page, nil
}

func readPage(rows pgx.Rows, limit int) (page kv.Page, err error) {
	bytes := 0
	for rows.Next() {
		if len(page.Keys) == limit || bytes > pageBytes {
			page.Last, page.More = page.Keys[len(page.Keys)-1].Key, true
			return page, nil
		}
		var key []byte
		var version [16]byte
		var expiration *int64
		var r kv.Record
		if err := rows.Scan(&key, &version, &expiration, &r.Tombstone, &r.Metadata); err != nil {
			return kv.Page{}, err
		}
		r.Version = version
		if expiration != nil {
			r.Expiration = *expiration
		}
		bytes += len(key) + len(r.Metadata)
		page.Keys = append(page.Keys, kv.Listed{Key: string(key), Record: r})
	}
	return page, rows.Err()
}

// Namespaces implements the ability of kv.Namespaces.
func (s *Store) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	if err := s.begin(ctx, "list the namespaces"); err != nil {
		return nil, err
	}
	defer s.end()
	err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sqlNamespaces, [16]byte(after), limit)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		ids = ids[:0]
		for _, id := range found {
			ids = append(ids, id)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the namespaces: %w", err)
	}
	return ids, nil
}
