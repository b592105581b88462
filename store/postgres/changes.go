package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/nearkey/nearkey/kv"
)

// placeBits of a change's number are its place in its transaction, the others the
// transaction's number: 2^43 transactions are 27 years of 10,000 a second.
const placeBits = 20

// log is the state of the change log.
type log struct {
	epoch   uint64
	trimmed int64 // changes up to here may be gone
	first   int64 // the first transaction that may still run: changes of it and behind it are not told
	head    int64 // the newest change that is told
	hidden  int64 // the newest change that is not told; 0: none
}

// has reports whether a cursor is one of this log and its changes are still there.
func (l log) has(c kv.Cursor) bool {
	return c.Epoch == l.epoch && c.Seq >= uint64(l.trimmed) && c.Seq < uint64(l.first)<<placeBits
}

// Changes implements the ability of kv.Changes. The changes of a transaction are
// told when no older one runs, otherwise one that commits late would be missed for
// ever. A write that was acknowledged behind an older one that still runs makes
// the reader wait for it; a transaction of anybody on the server that writes and
// does not end stops the log, and readers are told kv.ErrUnavailable.
func (s *Store) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	if !s.opts.Outbox {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", kv.ErrUnsupported)
	}
	if err := s.begin(ctx, "changes"); err != nil {
		return nil, kv.Cursor{}, err
	}
	defer s.end()
	l, err := s.settledLog(ctx)
	if err != nil {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", err)
	}
	head := kv.Cursor{Epoch: l.epoch, Seq: uint64(l.head)}
	if after == (kv.Cursor{}) {
		return nil, head, nil
	}
	gone := fmt.Errorf("changes after %d of epoch %d: %w", after.Seq, after.Epoch, kv.ErrCursorGone)
	if !l.has(after) {
		return nil, kv.Cursor{}, gone
	}
	changes, err := s.readChanges(ctx, l, int64(after.Seq), max(1, min(limit, kv.MaxChanges)))
	if err != nil {
		return nil, kv.Cursor{}, fmt.Errorf("changes: %w", err)
	}
	if again, err := s.readLog(ctx); err != nil || !again.has(after) { // trimmed, or lost, meanwhile
		return nil, kv.Cursor{}, orError(err, gone)
	}
	if len(changes) == 0 {
		return nil, after, nil
	}
	return changes, changes[len(changes)-1].Cursor, nil
}

func orError(err, otherwise error) error {
	if err != nil {
		return fmt.Errorf("changes: %w", err)
	}
	return otherwise
}

// settledLog waits until all changes that can be seen can be told.
func (s *Store) settledLog(ctx context.Context) (log, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	var until int64
	for {
		l, err := s.readLog(ctx)
		if err != nil {
			return log{}, err
		}
		if until == 0 {
			until = l.hidden // those that come later need not be told now
		}
		if until < l.first<<placeBits {
			return l, nil
		}
		if !pause(ctx, settleEvery) {
			return log{}, fmt.Errorf("%w: transaction %d, or an older one, does not end and holds the changes behind it back", kv.ErrUnavailable, l.first)
		}
	}
}

const settleEvery = 2 * time.Millisecond

// readLog reads the state of the log in one snapshot. The epoch is another one
// where the log may be: on a server that was restored, or promoted after a
// fail-over, since changes that were told may be missing there.
func (s *Store) readLog(ctx context.Context) (l log, err error) {
	var epoch, system int64
	var timeline int32
	err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sqlLog).Scan(&epoch, &l.trimmed, &l.first, &timeline, &system, &l.head, &l.hidden)
	})
	h := fnv.New64a()
	for _, n := range []int64{epoch, system, int64(timeline)} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) // never fails
	}
	l.epoch = h.Sum64()
	return l, err
}

func (s *Store) readChanges(ctx context.Context, l log, after int64, limit int) (changes []kv.Change, err error) {
	err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		changes = nil
		rows, err := conn.Query(ctx, sqlChanges, after, l.first<<placeBits, limit)
		if err != nil {
			return err
		}
		var seq int64
		var ns, version [16]byte
		var key []byte
		_, err = pgx.ForEachRow(rows, []any{&seq, &ns, &key, &version}, func() error {
			changes = append(changes, kv.Change{Cursor: kv.Cursor{Epoch: l.epoch, Seq: uint64(seq)},
				Ref: kv.Ref{Namespace: ns, Key: string(key)}, Version: version})
			return nil
		})
		return err
	})
	return changes, err
}

// AwaitChange implements the ability of kv.AwaitChange. It looks again and again:
// a server that notifies its clients of commits makes them wait for one another.
func (s *Store) AwaitChange(ctx context.Context, after kv.Cursor) error {
	if !s.opts.Outbox {
		return fmt.Errorf("await changes: %w", kv.ErrUnsupported)
	}
	if err := s.begin(ctx, "await changes"); err != nil {
		return err
	}
	defer s.end()
	for looked := 0; ; looked++ {
		if looked%wholeLook == 0 {
			if l, err := s.readLog(ctx); err != nil || !l.has(after) {
				return awaited(ctx, err)
			}
		}
		changed := false
		err := s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, sqlChanged, int64(after.Seq)).Scan(&changed)
		})
		if err != nil || changed {
			return awaited(ctx, err)
		}
		if !pause(ctx, s.opts.PollEvery) {
			return fmt.Errorf("await changes: %w", ctx.Err())
		}
	}
}

// wholeLook is the number of looks after which AwaitChange sees that the log is
// still the same.
const wholeLook = 50

func awaited(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("await changes: %w", err)
	}
	return nil
}

// trimChanges removes the changes of all but the newest transactions. Where it
// trimmed to is written first: a reader is told that changes are gone, not given
// what is left.
func (s *Store) trimChanges(ctx context.Context) error {
	l, err := s.readLog(ctx)
	if err != nil {
		return fmt.Errorf("trim the change log: %w", err)
	}
	kept := int64(s.opts.ChangesKept)
	place := (l.first-kept)<<placeBits - 1
	if place <= l.trimmed+(kept/8)<<placeBits {
		return nil // too few to be worth it
	}
	execute := func(statement string, args ...any) (n int64, err error) {
		err = s.call(ctx, true, func(ctx context.Context, conn *pgx.Conn) error {
			tag, err := conn.Exec(ctx, statement, args...)
			n = tag.RowsAffected()
			return err
		})
		return n, err
	}
	if _, err := execute(sqlTrimmed, place); err != nil {
		return fmt.Errorf("trim the change log: %w", err)
	}
	for {
		n, err := execute(sqlTrim, place, trimAtOnce)
		if err != nil {
			return fmt.Errorf("trim the change log: %w", err)
		}
		if n < trimAtOnce {
			return nil
		}
	}
}
