// Package catalog is the control plane: accounts, namespaces, API tokens, who may
// do what, and Workers with all that belongs to them.
//
// It rests in a SQL database: a SQLite file of its own, or a PostgreSQL server that
// several processes share; what differs is confined to sqlite.go and postgresql.go.
// A change that was acknowledged survives a crash and a loss of power. What every request
// asks, Authenticate and Namespace, is answered from memory: such an answer is at
// most CacheFor old, unless the database fails, when it is served for up to
// StaleFor. A change made through this process is seen by it at once.
//
// Secrets are stored as their SHA-256 only. They are random and long, so that a
// slow hash would add nothing but load.
//
// What edges need of it is published as records of the namespaces Reserved and
// Workers: a Publisher keeps them as the database says, and a Replica and a
// WorkerReplica answer from them what every request asks, without the database. So
// an edge learns of a token, its revocation, a namespace or a deploy as of any key,
// at latest after CacheFor, and goes on without the control plane.
//
// The modules of Workers are records too, known by their hash and written before
// the version that has them; they are in the store alone, and the database knows
// which are there and why. The secrets of Workers are encrypted, by Keys that the
// catalog never sees.
//
// It may lose its caches, which costs a query each; without its database nothing
// can be changed and only what is cached goes on being served. A module that the
// store has lost is written again when it is uploaded again.
package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Catalog is an open catalog. All methods may be called at once. What they
// return must not be changed: it may be shared with other callers.
type Catalog struct {
	db         database
	now        func() time.Time
	tokens     *cache[secretHash, *Grant]
	keys       *cache[secretHash, *Grant]
	namespaces *cache[kv.NamespaceID, *Namespace]
	publisher  atomic.Pointer[Publisher]   // nil: changes are not published
	modules    atomic.Pointer[moduleStore] // nil: Workers are not used here
	epoch      atomic.Uint64
}

// Open opens the catalog in the SQLite file at path and creates it, readable by
// its owner alone, if it does not exist. An older schema is brought up to date;
// one that this program does not know is refused. Several processes may have a
// catalog open at once.
func Open(ctx context.Context, path string) (*Catalog, error) {
	return open(ctx, path, migrations())
}

func open(ctx context.Context, path string, steps []migration) (*Catalog, error) {
	db, err := openSQLite(path)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	c, err := newCatalogOn(ctx, db, steps)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open catalog %s: %w", path, err), db.close())
	}
	return c, nil
}

// newCatalogOn returns the catalog in a database, whose schema it brings up to date.
func newCatalogOn(ctx context.Context, db database, steps []migration) (*Catalog, error) {
	if err := migrate(ctx, db, steps, time.Now()); err != nil {
		return nil, err
	}
	c := &Catalog{db: db, now: time.Now}
	clock := func() time.Time { return c.now() }
	c.tokens = newCache[secretHash](CacheBytes, (*Grant).bytes, clock)
	c.keys = newCache[secretHash](CacheBytes, (*Grant).bytes, clock)
	c.namespaces = newCache[kv.NamespaceID](CacheBytes, (*Namespace).bytes, clock)
	return c, nil
}

// Close waits for the queries that are under way and closes the database.
func (c *Catalog) Close() error {
	if err := c.db.close(); err != nil {
		return fmt.Errorf("close catalog: %w", err)
	}
	return nil
}

// sentinel is a kind of error of this package, possibly a kind of another one.
type sentinel struct {
	text string
	kind error
}

func (s *sentinel) Error() string { return s.text }

func (s *sentinel) Unwrap() error { return s.kind }

// The kinds of error. An error that is none of them nor kv.ErrFull (no space for
// a change; nothing was changed) comes from the caller's context.
var (
	// ErrUnavailable: the database failed. A change may or may not have been made,
	// but never half of it.
	ErrUnavailable error = &sentinel{"the catalog is unavailable", kv.ErrUnavailable}
	// ErrInvalid: a request breaks a rule that the error's text names.
	ErrInvalid error = &sentinel{"invalid", nil}
	// ErrNotFound: there is no such account, namespace or token.
	ErrNotFound error = &sentinel{"not found", nil}

	ErrTitleMissing      error = &sentinel{"a namespace must have a title", nil}
	ErrTitleTooLong      error = &sentinel{fmt.Sprintf("the title of a namespace has at most %d characters", MaxTitleChars), nil}
	ErrTitleTaken        error = &sentinel{"a namespace with this account ID and title already exists", nil}
	ErrTooManyNamespaces error = &sentinel{"the account has as many namespaces as it may", nil}

	// ErrUnauthenticated: no valid token, or no valid e-mail and key.
	ErrUnauthenticated  error = &sentinel{"unknown token or key", nil}
	ErrTokenExpired     error = &sentinel{"the token has expired", ErrUnauthenticated}
	ErrTokenRevoked     error = &sentinel{"the token was revoked", ErrUnauthenticated}
	ErrTokenNotYetValid error = &sentinel{"the token is not valid yet", ErrUnauthenticated}

	// ErrRootToken: the root token is given by the configuration; it is changed there.
	ErrRootToken     error = &sentinel{"the root token cannot be revoked; configure another one instead", nil}
	ErrTooManyTokens error = &sentinel{fmt.Sprintf("the account has %d tokens, as many as it may", MaxTokens), nil}
)

// invalid is an ErrInvalid that says what is wrong.
func invalid(format string, args ...any) error {
	return &sentinel{fmt.Sprintf(format, args...), ErrInvalid}
}

// failure wraps err, which ended an operation on the database, with what was
// being done and, if it is not a kind of this package already, with its kind.
func failure(ctx context.Context, doing string, err error) error {
	var known *sentinel
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return fmt.Errorf("%s: %w", doing, err)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	case isFull(err):
		return fmt.Errorf("%s: the catalog: %w: %w", doing, kv.ErrFull, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

// change runs f in a transaction that is durable when change returns nil and
// undone when f fails; f is run again if others were in its way. It calls made,
// unless nil, when the change may have been made: also when the commit fails, for
// that may be after it took effect. A change that certainly was not made leaves
// the caches alone: they may be all there is while the database fails.
func (c *Catalog) change(ctx context.Context, doing string, made func(), f func(*sql.Tx) error) error {
	for try := 1; ; try++ {
		committing, err := c.db.transact(ctx, f)
		if isConflict(err) && try < maxConflicts {
			continue
		}
		if committing && made != nil {
			made()
		}
		return failure(ctx, doing, err)
	}
}

// maxConflicts is how often a change is tried that others are in the way of.
const maxConflicts = 10

// transact runs f in a transaction, and reports whether that got as far as its
// commit.
func (db database) transact(ctx context.Context, f func(*sql.Tx) error) (committing bool, err error) {
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	if err := f(tx); err != nil {
		// The first error tells why; that of a rollback adds nothing, the
		// connection is then discarded and the transaction with it.
		_ = tx.Rollback()
		return false, err
	}
	return true, tx.Commit()
}

// forgetRights drops the cached grants after a change that may have ended a right.
func (c *Catalog) forgetRights() {
	c.tokens.forgetAll()
	c.keys.forgetAll()
	c.epoch.Add(1)
}

// Epoch is a number that changes, before the change is acknowledged, when a right
// may have ended by a change that this process made. It is for those who keep what
// Authenticate and Namespace answered.
func (c *Catalog) Epoch() uint64 { return c.epoch.Load() }

// publish publishes the records with these keys as they are after a change.
func (c *Catalog) publish(ctx context.Context, keys ...string) { c.publishInOrder(ctx, keys) }

// publishInOrder publishes the records of a group when those of the groups before
// it are published.
func (c *Catalog) publishInOrder(ctx context.Context, groups ...[]string) {
	if p := c.publisher.Load(); p != nil {
		p.changed(ctx, groups)
	}
}

// one executes a statement that is about exactly one row, or none: ErrNotFound.
func one(ctx context.Context, tx *sql.Tx, statement string, args ...any) error {
	res, err := tx.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// newID returns 32 hexadecimal digits, what ids look like.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// stored and loaded convert times to and from microseconds since 1970, which
// hold every year that a client may write; 0 is no time.
func stored(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func loaded(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
