package catalog

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// This file and postgresql.go are all that knows which database there is. The
// statements elsewhere are what SQLite and PostgreSQL both accept and understand
// alike: $1 placeholders, the types text, bigint and bytea, ON CONFLICT. Text that
// users choose is bytea: its order does not depend on a collation, and it may hold
// every character.

// database is an open database. Of SQLite it is one connection that writes,
// because there is one writer at a time and the others would poll for their turn,
// and some that only read and never wait for it. Of PostgreSQL both are the same.
type database struct {
	write, read *sql.DB
}

const (
	// readers bounds the queries that run at once; more wait their turn.
	readers = 4
	// busyMillis is how long a statement waits for another process that writes.
	busyMillis = "5000"
)

// openSQLite opens the file at path and creates it if there is none.
func openSQLite(path string) (database, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return database{}, err
	}
	if err := makePrivate(path); err != nil {
		return database{}, err
	}
	write, err := connect(path, url.Values{"_txlock": {"immediate"}})
	if err != nil {
		return database{}, err
	}
	read, err := connect(path, url.Values{"_query_only": {"1"}})
	if err != nil {
		return database{}, errors.Join(err, write.Close())
	}
	write.SetMaxOpenConns(1)
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	return database{write: write, read: read}, nil
}

func connect(path string, params url.Values) (*sql.DB, error) {
	params.Set("_busy_timeout", busyMillis)
	params.Set("_journal_mode", "WAL")
	params.Set("_synchronous", "FULL") // the default of WAL may lose the last commits with the power
	params.Set("_foreign_keys", "1")
	params.Set("_dqs", "0")
	params.Set("_defensive", "1")
	params.Set("_error_rc", "1")
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: params.Encode()}
	connector, err := sqlite.NewConnector(name.String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func (db database) close() error {
	return errors.Join(db.read.Close(), db.write.Close())
}

// makePrivate creates the file, for its owner alone, or takes the rights of all
// others from one that exists; the files that SQLite adds take after it. A file
// that exists is not opened here: closing it would drop the locks that another
// catalog of this process holds on it. A crash leaves an empty file, which is an
// empty database.
func makePrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.IsDir() {
			return fmt.Errorf("%s is a directory", name)
		}
		if info.Mode().Perm()&0o077 == 0 {
			continue
		}
		if err := os.Chmod(name, info.Mode().Perm()&0o700); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// isDuplicate reports whether a statement failed because a row that has to be
// unique exists.
func isDuplicate(err error) bool {
	code := resultCode(err)
	return sqlState(err) == stateDuplicate || code == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// isFull reports whether a statement failed for want of space.
func isFull(err error) bool {
	return sqlState(err) == stateFull || resultCode(err)&0xff == sqlite3.SQLITE_FULL
}

func resultCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return sqlite3.SQLITE_OK
}
