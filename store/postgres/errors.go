package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/nearkey/nearkey/kv"
)

// The SQLSTATEs that are told apart.
const (
	codeReadOnly          = "25006" // the server has become a standby
	codeUniqueViolation   = "23505"
	codeSerialization     = "40001"
	codeDeadlock          = "40P01"
	codeCompletionUnknown = "40003"
	codeUndefinedTable    = "42P01"
	codeDuplicateTable    = "42P07"
	codeDiskFull          = "53100"
	codeTooManyConns      = "53300"
	codeNoStatement       = "26000" // somebody between has given us another session
	codeCancelled         = "57014" // this statement alone
	codeResolutionUnknown = "08007"
	classConnection       = "08"
	classAuthorization    = "28"
	classResources        = "53"
	classIntervention     = "57" // shutdown, crash, starting up, cancelled
	classSystem           = "58"
	codeNoDatabase        = "3D000"
)

const (
	maxConflicts  = 20 // tries of a statement that deadlocks or cannot be serialized
	conflictWait  = 2 * time.Millisecond
	maxConnecting = 3 // tries of a call whose connection was lost or refused
	connectWait   = 25 * time.Millisecond
)

// errUnreplicated: the server committed and gave up waiting for its standbys.
var errUnreplicated = errors.New("the commit was not confirmed by a synchronous standby: the wait for it was cancelled")

func codeOf(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func isCode(err error, code string) bool { return err != nil && codeOf(err) == code }

func class(code string) string {
	if len(code) < 2 {
		return ""
	}
	return code[:2]
}

// uncertain reports whether a statement that ended with err, after it was sent,
// may have been executed. An error that the server tells has undone it, unless
// the server was about to end.
func uncertain(err error) bool {
	switch code := codeOf(err); {
	case errors.Is(err, errUnreplicated):
		return true
	case code == codeCompletionUnknown || code == codeResolutionUnknown || class(code) == classIntervention:
		return true
	case code != "":
		return false
	}
	return !pgconn.SafeToRetry(err)
}

// connectionLost reports whether the connection is gone, or one to the wrong
// server, so that another one may do.
func connectionLost(err error) bool {
	switch code := codeOf(err); {
	case code == codeReadOnly || code == codeTooManyConns || code == codeNoStatement || class(code) == classConnection:
		return true
	case class(code) == classIntervention:
		return code != codeCancelled
	case code != "":
		return false
	}
	var scan pgx.ScanArgError
	return !errors.As(err, &scan) && !errors.Is(err, errUnreplicated) && !errors.Is(err, errSchema) && !errors.Is(err, pgx.ErrNoRows)
}

// retry runs f on a connection until it succeeds, fails for good, or ctx ends.
// Everything that the store does may be repeated. The error has its kind.
func (s *Store) retry(ctx context.Context, write bool, f func(context.Context, *pgx.Conn) error) error {
	maybe := false
	for try := 1; ; try++ {
		err := s.once(ctx, f)
		if err == nil {
			s.down.Store(nil)
			return nil
		}
		maybe = maybe || uncertain(err)
		wait := time.Duration(0)
		switch code := codeOf(err); {
		case ctx.Err() != nil:
		case (code == codeDeadlock || code == codeSerialization) && try < maxConflicts:
			s.counters.conflicts.Add(1)
			wait = time.Duration(try) * rand.N(conflictWait)
		case connectionLost(err) && try < maxConnecting:
			s.counters.reconnects.Add(1)
			if _, refused := err.(*notSent); !refused {
				s.pool.Reset() // the others are of the same server
			}
			wait = connectWait/2 + rand.N(connectWait)
		}
		if wait == 0 || !pause(ctx, wait) {
			return s.kind(ctx, err, write && maybe)
		}
	}
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once runs f on a connection of the pool.
func (s *Store) once(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return &notSent{err}
	}
	defer conn.Release()
	err = f(ctx, conn.Conn())
	if takeUnreplicated(conn.Conn().PgConn()) && !s.opts.trusting && err == nil {
		s.counters.unreplicated.Add(1)
		return errUnreplicated
	}
	return err
}

// notSent is an error that came before anything was sent.
type notSent struct{ err error }

func (e *notSent) Error() string     { return e.err.Error() }
func (e *notSent) Unwrap() error     { return e.err }
func (e *notSent) SafeToRetry() bool { return true }

// kind gives err its kind. The driver's error is text from here on: its own kinds,
// such as that of a timeout of ours, mean nothing to the caller.
func (s *Store) kind(ctx context.Context, err error, unknown bool) error {
	for _, known := range []error{kv.ErrOverloaded, kv.ErrUnknown, kv.ErrUnavailable, kv.ErrFull} {
		if errors.Is(err, known) {
			return err
		}
	}
	code := codeOf(err)
	var kind error
	switch {
	case unknown:
		kind = kv.ErrUnknown
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w: %v", ctx.Err(), err)
	case errors.Is(err, errSchema):
		kind = errors.Join(kv.ErrUnavailable, errSchema)
		err = errors.New(strings.TrimPrefix(err.Error(), errSchema.Error()+": "))
	case code == codeDiskFull:
		kind = kv.ErrFull
	case code == "" || connectionLost(err) || isUnavailable(code):
		kind = kv.ErrUnavailable
	default:
		if code == codeUndefinedTable { // somebody has emptied the database: look again
			s.migrated.Store(false)
		}
		return fmt.Errorf("PostgreSQL: %v", err)
	}
	failure := fmt.Errorf("%w: %v", kind, err)
	if kind != kv.ErrFull && !errors.Is(ctx.Err(), context.Canceled) {
		s.down.Store(&failure)
	}
	return failure
}

func isUnavailable(code string) bool {
	switch class(code) {
	case classAuthorization, classResources, classIntervention, classSystem, classConnection:
		return true
	}
	return code == codeNoDatabase || code == codeDeadlock || code == codeSerialization
}
