// Package postgres is the store that rests on a server of the PostgreSQL wire
// protocol, of which a provider has one or many. Replication inside a shard is
// the server's: with quorum synchronous standbys a Put that returned nil is on
// two machines.
//
// Every operation is one statement (statements.go), and every write one that does
// nothing if the row is newer, so all may be repeated. Concurrent calls of Put
// and of Get travel together in few statements (group.go). A failure is told by
// kind (errors.go): what certainly did not happen is kv.ErrUnavailable or
// kv.ErrFull, what may have happened is kv.ErrUnknown.
//
// A synchronous wait that the server gave up is not a success: the row is
// committed and visible, and a fail-over may lose it. The server says so in a
// notice only; it is told as kv.ErrUnknown. For the same reason a write is never
// skipped because a newer row can be read: the row may not be on the standby yet,
// and the statement, even if it changes nothing, waits until it is.
//
// The store was tested on PostgreSQL 15. Options.Portable leaves out what
// CockroachDB and YugabyteDB lack; that was checked by the text of the statements
// only, not on those servers.
//
// A Put that returned nil survives what the server's commits survive: a crash of
// the server, if fsync and synchronous_commit are on, and the loss of its machine,
// if standbys are synchronous. The package keeps nothing itself and may lose the
// calls under way.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/nearkey/nearkey/kv"
)

// Options are what an operator may choose. The zero value works.
type Options struct {
	MaxConns    int           // connections of this process to the server at once; 0: 16
	DialTimeout time.Duration // for a connection to one host to be made; one that hangs costs it before the next is tried; 0: 5 s
	Timeout     time.Duration // for one call whose context has no earlier deadline; 0: 10 s
	SweepEvery  time.Duration // how often Run looks for expired records; 0: 1 s
	Portable    bool          // leave out what only PostgreSQL has: storage parameters, the change log
	Outbox      bool          // keep a change log: every process that writes to the server must do so
	PollEvery   time.Duration // how often AwaitChange looks; 0: 20 ms
	ChangesKept uint64        // transactions whose changes the change log keeps at least; 0: 1,048,576
	Logger      *slog.Logger  // nil: no log

	now      func() time.Time // nil: time.Now
	alone    bool             // no coalescing: what it is measured against
	trusting bool             // believe a commit whose synchronous wait was given up: the control of its test
}

func (o Options) withDefaults() Options {
	o.MaxConns = orDefault(o.MaxConns, 16)
	o.DialTimeout = orDefault(o.DialTimeout, 5*time.Second)
	o.Timeout = orDefault(o.Timeout, 10*time.Second)
	o.SweepEvery = orDefault(o.SweepEvery, time.Second)
	o.PollEvery = orDefault(o.PollEvery, 20*time.Millisecond)
	o.ChangesKept = orDefault(o.ChangesKept, 1<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	return o
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// Store is a kv.Store on a server, with every optional ability; Changes and
// AwaitChange only with Options.Outbox.
type Store struct {
	opts   Options
	pool   *pgxpool.Pool
	writes *group[kv.Write, struct{}]
	reads  *group[kv.Ref, row]

	migrated atomic.Bool   // the schema is there and known
	migrate  chan struct{} // holds one token: who has it may look at the schema

	down     atomic.Pointer[error] // why the last call could not be served; nil: it was
	counters counters

	open   sync.RWMutex // held for reading by calls under way; guards closed
	closed bool
}

var _ kv.Store = (*Store)(nil)

// Open returns a store on the server of a connection URL, which may name several
// hosts, of which the one that takes writes is used. A password is better not in
// it but in the file that its parameter passfile or the variable PGPASSFILE names.
// A server that is down is no error: the calls then are. One whose schema this
// program does not know is.
func Open(ctx context.Context, url string, opts Options) (*Store, error) {
	opts = opts.withDefaults()
	if opts.Portable && opts.Outbox {
		return nil, errors.New("open store on PostgreSQL: the change log is not portable; let the gateway publish the changes")
	}
	config, err := poolConfig(url, opts)
	if err != nil {
		return nil, fmt.Errorf("open store on PostgreSQL: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open store on PostgreSQL: %w", err)
	}
	s := &Store{opts: opts, pool: pool, migrate: make(chan struct{}, 1)}
	s.migrate <- struct{}{}
	s.writes = newGroup(writeFlights, writeSeats, writeBytes, opts.Timeout, sizeOfWrite, s.putFlight)
	s.reads = newGroup(readFlights, readSeats, 0, opts.Timeout, nil, s.getFlight)
	warnOfPlainText(config.ConnConfig, opts.Logger)
	ctx, cancel := context.WithTimeout(ctx, opts.DialTimeout)
	defer cancel()
	if err := s.ensureSchema(ctx); errors.Is(err, errSchema) {
		pool.Close()
		return nil, fmt.Errorf("open store on PostgreSQL: %w", err)
	}
	return s, nil
}

// Close waits for the calls under way, at most as long as they may take, and
// closes the connections. Run must have returned before. Calls made after it fail.
func (s *Store) Close() error {
	s.open.Lock()
	s.closed = true
	s.open.Unlock()
	s.pool.Close()
	return nil
}

// begin counts a call; end must follow it unless it returns an error.
func (s *Store) begin(ctx context.Context, doing string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	s.open.RLock()
	if s.closed {
		s.open.RUnlock()
		return fmt.Errorf("%s: %w: the store is closed", doing, kv.ErrUnavailable)
	}
	return nil
}

func (s *Store) end() { s.open.RUnlock() }

// caller runs f on a connection, again if need be.
type caller func(ctx context.Context, write bool, f func(context.Context, *pgx.Conn) error) error

// call runs f for the caller whose context it is, and for no longer than a call
// may take.
func (s *Store) call(ctx context.Context, write bool, f func(context.Context, *pgx.Conn) error) error {
	within, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	err := s.fly(within, write, f)
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", err, ctx.Err())
	}
	return err
}

// fly runs f for callers who watch their contexts themselves.
func (s *Store) fly(ctx context.Context, write bool, f func(context.Context, *pgx.Conn) error) error {
	if err := s.ensureSchema(ctx); err != nil {
		return err
	}
	return s.retry(ctx, write, f)
}

// Ready returns why the server could not serve the last call, or nil. Run calls
// it now and then, so that the answer is not older than a few seconds.
func (s *Store) Ready() error {
	if err := s.down.Load(); err != nil {
		return *err
	}
	return nil
}
