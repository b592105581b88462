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
	expiredAtOnce = 10_000           // expired records found in a statement
	expireAtOnce  = 500              // turned into tombstones in a statement
	trimAtOnce    = 10_000           // changes removed in a statement
	wholeEvery    = 10 * time.Minute // how often expirations are swept from the very beginning
	readyEvery    = 2 * time.Second  // how often Run asks whether the server answers
)

// Run keeps the store in order until ctx ends: it turns expired records into
// tombstones and trims the change log. It returns nil when ctx ends; what fails is
// logged and tried again. Without it the store works, but grows. Several
// processes may run it on one server.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.opts.SweepEvery)
	defer tick.Stop()
	var sweep sweeper
	var asked time.Time
	failing := false
	for {
		var err error
		if time.Since(asked) >= readyEvery {
			asked = time.Now()
			err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) })
		}
		if err == nil {
			err = s.sweep(ctx, &sweep)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			s.opts.Logger.Warn("PostgreSQL: a sweep failed and will be tried again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweeper remembers between sweeps what need not be looked at again.
type sweeper struct {
	whole time.Time // when everything was last looked at
	swept int64     // expirations before this second have been swept
}

// sweep does once what Run does again and again.
func (s *Store) sweep(ctx context.Context, sweep *sweeper) error {
	now := s.opts.now()
	if sweep.whole.IsZero() || now.Sub(sweep.whole) >= wholeEvery {
		sweep.whole, sweep.swept = now, -1<<63 // for records that came when they had expired
	}
	errs := []error{s.sweepExpired(ctx, sweep, now.Unix())}
	if s.opts.Outbox {
		errs = append(errs, s.trimChanges(ctx))
	}
	return errors.Join(errs...)
}

// sweepExpired turns the records that expired up to now into tombstones of the
// same version: the law prefers a tombstone to a value of its version, so both
// providers of a pair come to the same end apart, and a newer write wins. It
// begins where the last one ended: entries of the index that were swept stay in
// it until the server has vacuumed it, and are not walked over again and again.
func (s *Store) sweepExpired(ctx context.Context, sweep *sweeper, now int64) error {
	for {
		due, last, err := s.expired(ctx, sweep.swept, now)
		if err != nil {
			return fmt.Errorf("find expired records: %w", err)
		}
		for chunk := range slices.Chunk(due, expireAtOnce) {
			if err := s.expire(ctx, chunk, now); err != nil {
				return fmt.Errorf("sweep expired records: %w", err)
			}
		}
		if len(due) < expiredAtOnce {
			sweep.swept = now // records that expire now and are written later are met in the next second
			return nil
		}
		sweep.swept = last
	}
}

// expired finds records that have expired, and the expiration of the last one.
func (s *Store) expired(ctx context.Context, from, now int64) (due []kv.Ref, last int64, err error) {
	err = s.call(ctx, false, func(ctx context.Context, conn *pgx.Conn) error {
		due = due[:0]
		rows, err := conn.Query(ctx, sqlExpired, from, now, expiredAtOnce)
		if err != nil {
			return err
		}
		var ns [16]byte
		var key []byte
		_, err = pgx.ForEachRow(rows, []any{&ns, &key, &last}, func() error {
			due = append(due, kv.Ref{Namespace: ns, Key: string(key)})
			return nil
		})
		return err
	})
	return due, last, err
}

func (s *Store) expire(ctx context.Context, refs []kv.Ref, now int64) error {
	slices.SortFunc(refs, compareRefs)
	namespaces, keys := make([][16]byte, len(refs)), make([][]byte, len(refs))
	for i, ref := range refs {
		namespaces[i], keys[i] = ref.Namespace, []byte(ref.Key)
	}
	return s.call(ctx, true, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, sqlExpire, namespaces, keys, now)
		s.counters.swept.Add(uint64(tag.RowsAffected()))
		return err
	})
}
