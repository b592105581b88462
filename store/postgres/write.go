package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/kv"
)

const (
	writeFlights = 3       // statements of puts under way at once
	writeSeats   = 512     // puts in a statement
	writeBytes   = 4 << 20 // of values in a statement, unless one alone is larger
	tombsAtOnce  = 1_000   // tombstones forgotten in a statement
	dropAtOnce   = 5_000   // rows dropped in a statement
)

// Put implements kv.Store.
func (s *Store) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	w := kv.Write{Ref: ref, Record: rec}
	if err := check(w); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if err := s.begin(ctx, "put"); err != nil {
		return err
	}
	defer s.end()
	if s.opts.alone || rec.Bytes() >= writeBytes {
		if err := s.put(ctx, []kv.Write{w}, s.call); err != nil {
			return fmt.Errorf("put: %w", err)
		}
		return nil
	}
	_, unanswered, err := s.writes.do(ctx, w)
	switch {
	case unanswered:
		return fmt.Errorf("put: %w: %w", kv.ErrUnknown, err)
	case errors.Is(err, errSlow):
		return fmt.Errorf("put: %w: %w", kv.ErrUnavailable, err)
	case err != nil:
		return fmt.Errorf("put: %w", err)
	}
	return nil
}

// check refuses what no store takes.
func check(w kv.Write) error {
	if w.Record.Absent() {
		panic("postgres: put of an absent record")
	}
	if n := len(w.Record.Value); n > kv.MaxValueBytes {
		return fmt.Errorf("value of %d bytes, at most %d can be stored", n, kv.MaxValueBytes)
	}
	if n := len(w.Ref.Key); n > kv.MaxKeyBytes {
		return fmt.Errorf("key of %d bytes, at most %d can be stored", n, kv.MaxKeyBytes)
	}
	return nil
}

func sizeOfWrite(w kv.Write) int { return w.Record.Bytes() + len(w.Ref.Key) }

// PutMany implements the ability of kv.PutMany.
func (s *Store) PutMany(ctx context.Context, writes []kv.Write) error {
	for _, w := range writes {
		if err := check(w); err != nil {
			return fmt.Errorf("put many: %w", err)
		}
	}
	if err := s.begin(ctx, "put many"); err != nil {
		return err
	}
	defer s.end()
	writes = reduce(writes)
	for len(writes) > 0 {
		n, bytes := 1, sizeOfWrite(writes[0])
		for n < min(len(writes), writeSeats) && bytes+sizeOfWrite(writes[n]) <= writeBytes {
			bytes += sizeOfWrite(writes[n])
			n++
		}
		if err := s.put(ctx, writes[:n], s.call); err != nil {
			return fmt.Errorf("put many: %w", err)
		}
		writes = writes[n:]
	}
	return nil
}

// putFlight puts what concurrent callers brought together.
func (s *Store) putFlight(ctx context.Context, writes []kv.Write) ([]struct{}, error) {
	return make([]struct{}, len(writes)), s.put(ctx, reduce(writes), s.fly)
}

// reduce merges the writes of each key, of which a statement may have one, and
// puts them in byte order: statements that lock rows in one order do not deadlock.
func reduce(writes []kv.Write) []kv.Write {
	if len(writes) <= 1 {
		return writes
	}
	sorted := slices.Clone(writes)
	slices.SortFunc(sorted, func(a, b kv.Write) int { return compareRefs(a.Ref, b.Ref) }) // what is equal may be merged in any order
	n := 0
	for _, w := range sorted[1:] {
		if w.Ref == sorted[n].Ref {
			sorted[n].Record = kv.Merge(sorted[n].Record, w.Record)
			continue
		}
		n++
		sorted[n] = w
	}
	return sorted[:n+1]
}

func compareRefs(a, b kv.Ref) int {
	if c := bytes.Compare(a.Namespace[:], b.Namespace[:]); c != 0 {
		return c
	}
	return strings.Compare(a.Key, b.Key)
}

// put puts records of different keys, in byte order, in one transaction.
func (s *Store) put(ctx context.Context, writes []kv.Write, call caller) error {
	one, many := s.opts.putStatements()
	err := call(ctx, true, func(ctx context.Context, conn *pgx.Conn) error {
		switch {
		case len(writes) == 1:
			_, err := conn.Exec(ctx, one, putArguments(writes[0])...)
			return err
		case s.opts.Portable:
			return putPipelined(ctx, conn, one, writes)
		}
		_, err := conn.Exec(ctx, many, arrays(writes)...)
		return err
	})
	if err == nil {
		s.counters.puts.Add(uint64(len(writes)))
		s.counters.putStatements.Add(1)
	}
	return err
}

// putPipelined sends the statements one behind the other and waits once: on
// YugabyteDB one statement of many rows is slower than many of one.
func putPipelined(ctx context.Context, conn *pgx.Conn, statement string, writes []kv.Write) error {
	var batch pgx.Batch
	for _, w := range writes {
		batch.Queue(statement, putArguments(w)...)
	}
	return conn.SendBatch(ctx, &batch).Close()
}

func putArguments(w kv.Write) []any {
	r := w.Record
	return []any{[16]byte(w.Ref.Namespace), []byte(w.Ref.Key), [16]byte(r.Version), expiration(r), r.Tombstone, metadata(r), value(r)}
}

// arrays are the writes as sqlPutMany takes them, an array for each column.
func arrays(writes []kv.Write) []any {
	n := len(writes)
	namespaces, keys, versions := make([][16]byte, n), make([][]byte, n), make([][16]byte, n)
	expirations, tombstones := make([]*int64, n), make([]bool, n)
	metadatas, values := make([][]byte, n), make([][]byte, n)
	for i, w := range writes {
		r := w.Record
		namespaces[i], keys[i], versions[i] = w.Ref.Namespace, []byte(w.Ref.Key), r.Version
		expirations[i], tombstones[i], metadatas[i], values[i] = expiration(r), r.Tombstone, metadata(r), value(r)
	}
	return []any{namespaces, keys, versions, expirations, tombstones, metadatas, values}
}

// What is none is null. A tombstone carries its version and nothing else.
func expiration(r kv.Record) *int64 {
	if r.Expiration == 0 || r.Tombstone {
		return nil
	}
	return &r.Expiration
}

func metadata(r kv.Record) []byte {
	if len(r.Metadata) == 0 || r.Tombstone {
		return nil
	}
	return r.Metadata
}

func value(r kv.Record) []byte {
	if r.Tombstone {
		return nil
	}
	if r.Value == nil {
		return []byte{}
	}
	return r.Value
}

// Forget implements the ability of kv.Forget.
func (s *Store) Forget(ctx context.Context, tombs []kv.Tomb) error {
	if err := s.begin(ctx, "forget tombstones"); err != nil {
		return err
	}
	defer s.end()
	sorted := slices.Clone(tombs)
	slices.SortFunc(sorted, func(a, b kv.Tomb) int { return compareRefs(a.Ref, b.Ref) })
	for chunk := range slices.Chunk(sorted, tombsAtOnce) {
		var namespaces, versions [][16]byte
		var keys [][]byte
		for _, t := range chunk {
			namespaces, keys, versions = append(namespaces, t.Ref.Namespace), append(keys, []byte(t.Ref.Key)), append(versions, t.Version)
		}
		err := s.call(ctx, true, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, sqlForget, namespaces, keys, versions)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget tombstones: %w", err)
		}
	}
	return nil
}

// Drop implements the ability of kv.Drop. Its cost grows with the namespace: the
// rows of all are in one table. It removes them in steps, and what a step removed
// stays removed.
func (s *Store) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := s.begin(ctx, "drop namespace "+ns.String()); err != nil {
		return err
	}
	defer s.end()
	from := []byte{} // rows that were removed just now are not walked over again
	for {
		removed := 0
		err := s.call(ctx, true, func(ctx context.Context, conn *pgx.Conn) error {
			removed = 0
			rows, err := conn.Query(ctx, sqlDrop, [16]byte(ns), from, dropAtOnce)
			if err != nil {
				return err
			}
			var key, last []byte
			_, err = pgx.ForEachRow(rows, []any{&key}, func() error {
				removed++
				if string(key) > string(last) {
					last = slices.Clone(key)
				}
				return nil
			})
			if err == nil && removed > 0 {
				from = last
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("drop namespace %s: %w", ns, err)
		}
		if removed == 0 {
			return nil
		}
	}
}
