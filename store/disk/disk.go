// Package disk is the store that rests on a local disk: Pebble for records,
// immutable files for large values. It is what a single-machine nearkey runs on.
//
// A Put that returned nil is on stable storage: the write-ahead log was synced,
// together with those of other writers. Under a directory:
//
//	FORMAT                         "nearkey disk store, format 1"
//	records/                       Pebble; the keys are described in codec.go
//	values/<namespace>/<xx>/<name> values of LargeValueBytes or more; see values.go
//
// A large value is written in full before the row that names it is committed, and
// removed only after the row that no longer names it is durable. A crash between
// the two leaves a file that no row names; Run finds and removes it.
//
// After a power cut or a kill at any moment every acknowledged record is there,
// unchanged, or a newer one. The package may lose writes that it has not yet
// acknowledged, and with the disk it loses everything.
package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/nearkey/nearkey/internal/signal"
	"github.com/nearkey/nearkey/kv"
)

// Options are what an operator may choose. The zero value works.
type Options struct {
	CacheBytes    int64         // blocks of records kept in memory; 0: 64 MiB
	MemTableBytes int           // of one of up to four tables of recent writes in memory; 0: 16 MiB
	MinFreeBytes  int64         // writes are refused while the disk has less free; 0: 128 MiB
	ChangesKept   uint64        // changes that the change log keeps at least; 0: 1,048,576
	SweepEvery    time.Duration // how often Run looks for expired records and the like; 0: 1 s
	ForgetAfter   time.Duration // Run forgets tombstones of this age; 0: never, somebody else calls Forget
	Logger        *slog.Logger  // nil: no log
	// Fatal is told of an error after which the records cannot be written any
	// more until the process starts again. Run returns the same error. nil: only
	// Run tells.
	Fatal func(error)

	fs     vfs.FS           // nil: the operating system's
	now    func() time.Time // nil: time.Now
	noSync bool             // acknowledge before the log is synced: the control of the power-loss test
}

func (o Options) withDefaults() Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 16 << 20
	}
	if o.MinFreeBytes == 0 {
		o.MinFreeBytes = 128 << 20
	}
	if o.ChangesKept == 0 {
		o.ChangesKept = 1 << 20
	}
	if o.SweepEvery == 0 {
		o.SweepEvery = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.fs == nil {
		o.fs = vfs.Default
	}
	if o.now == nil {
		o.now = time.Now
	}
	return o
}

// stripes is the number of locks that keys are spread over. A lock is held while
// a record is compared with its predecessor and handed to Pebble, not while the
// log is synced.
const stripes = 1024

// maxWrites is the number of writes that may be under way at once; more wait.
const maxWrites = 4096

// Store is a kv.Store on a local disk, with every optional ability.
type Store struct {
	opts   Options
	dir    string
	db     *pebble.DB
	values *values
	space  *space

	locks  [stripes]sync.Mutex // a lock guards the rows of the keys that hash to it
	writes chan struct{}       // a place for each write under way

	commit sync.Mutex // guards seq, high, and that changes are applied in the order of seq
	seq    uint64     // the last change
	high   int64      // all versions are older than this; it is on disk

	epoch   uint64
	synced  atomic.Uint64 // the last change that is on stable storage
	oldest  atomic.Uint64 // the first change that is still kept
	changed signal.Signal // fired when synced grows
	newest  kv.Version    // at Open

	armed   atomic.Bool           // the store is open: a failed write of Pebble stops it (stopFS)
	failed  atomic.Pointer[error] // why nothing can be written any more
	failing chan struct{}         // closed when failed is set
	once    sync.Once             // sets failed

	open   sync.RWMutex // held for reading by calls under way; guards closed
	closed bool
}

var _ kv.Store = (*Store)(nil)

// Open opens the store in dir, or makes one. It refuses a directory of another
// format, and one that another process has open.
func Open(dir string, opts Options) (*Store, error) {
	opts = opts.withDefaults()
	if err := checkFormat(opts.fs, dir, format); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{opts: opts, dir: dir, writes: make(chan struct{}, maxWrites), failing: make(chan struct{})}
	s.space = newSpace(opts.fs, dir, opts.MinFreeBytes, opts.Logger)
	values, err := openValues(opts.fs, opts.fs.PathJoin(dir, "values"))
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s.values = values
	if err := s.openRecords(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), s.db.Close())
	}
	s.armed.Store(true)
	return s, nil
}

func (s *Store) openRecords() error {
	cache := pebble.NewCache(s.opts.CacheBytes)
	defer cache.Unref()
	o := &pebble.Options{
		FS:                          stopFS{FS: s.space.wrap(), s: s},
		Cache:                       cache,
		MemTableSize:                uint64(s.opts.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       1000,
		MaxOpenFiles:                1000,
		FormatMajorVersion:          pebble.FormatNewest,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      pebbleLog{s},
		EventListener:               &pebble.EventListener{BackgroundError: s.backgroundError},
	}
	for i := range o.Levels {
		o.Levels[i].BlockSize = 8 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(s.opts.fs.PathJoin(s.dir, "records"), o)
	if err != nil {
		if inUse(err) {
			return fmt.Errorf("open store %s: it is in use by another process; stop that one first, or choose another directory", s.dir)
		}
		return fmt.Errorf("open store %s: %w", s.dir, err)
	}
	s.db = db
	return nil
}

// inUse reports whether err says that somebody else holds Pebble's lock: the
// operating system's word for another process, Pebble's for this one.
func inUse(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && err.Error() == "resource temporarily unavailable" ||
		err.Error() == "lock held by current process"
}

// format is the content of the file FORMAT.
const format = "nearkey disk store, format 1\n"

// checkFormat makes the directory of a new store or journal, or refuses one that
// this code does not know how to read. FORMAT is written first: a crash before
// the rest leaves an empty store.
func checkFormat(fsys vfs.FS, dir, format string) error {
	if err := makeDir(fsys, dir); err != nil {
		return err
	}
	path := fsys.PathJoin(dir, "FORMAT")
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if names, err := fsys.List(dir); err != nil || len(names) > 0 && !onlyTemporary(names) {
			return errors.Join(err, fmt.Errorf("%s holds something else than a nearkey store: it has no FORMAT file but is not empty", dir))
		}
		return writeFile(fsys, dir, "FORMAT", [][]byte{[]byte(format)})
	}
	if err != nil {
		return err
	}
	defer f.Close()
	found, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if string(found) != format {
		return fmt.Errorf("%s says %q, this version of nearkey knows %q; use the version that wrote it, or a newer one", path, found, format)
	}
	return nil
}

func onlyTemporary(names []string) bool {
	for _, name := range names {
		if name != "FORMAT"+temporary {
			return false
		}
	}
	return true
}

// load reads what the store keeps about itself.
func (s *Store) load() error {
	epoch, err := s.loadNumber(keyEpoch)
	if err != nil {
		return err
	}
	if epoch == 0 {
		epoch = rand.Uint64() | 1
		if err := s.db.Set(keyEpoch, binary.BigEndian.AppendUint64(nil, epoch), pebble.Sync); err != nil {
			return fmt.Errorf("write the epoch: %w", err)
		}
	}
	s.epoch = epoch
	high, err := s.loadNumber(keyHigh)
	if err != nil {
		return err
	}
	s.high, s.newest = int64(high), kv.NewVersion(int64(high), 0, 0)
	return s.loadChanges()
}

func (s *Store) loadNumber(key []byte) (uint64, error) {
	data, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read %q: %w", key, err)
	}
	defer closer.Close()
	if len(data) != 8 {
		return 0, fmt.Errorf("read %q: %d bytes, want 8", key, len(data))
	}
	return binary.BigEndian.Uint64(data), nil
}

// Newest returns a version that is not older than any that the store had when it
// was opened, and at most a second newer. A Stamper that observes it will not
// stamp below it, even if the clock was set back in between.
func (s *Store) Newest() kv.Version { return s.newest }

// Ready returns why the store cannot take writes now, or nil.
func (s *Store) Ready() error {
	if err := s.failure(); err != nil {
		return err
	}
	return s.space.check(false)
}

// Close waits for the calls under way and closes the store. Run must have
// returned before. Calls made after it fail.
func (s *Store) Close() error {
	s.space.close()
	closed := make(chan error, 1)
	go func() { closed <- s.close() }()
	select {
	case err := <-closed:
		return err
	case <-s.failing:
		return nil // Pebble cannot close in order; what it acknowledged is in its log
	}
}

func (s *Store) close() error {
	s.open.Lock()
	defer s.open.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for range maxWrites { // until no write is under way, with or without a caller
		s.writes <- struct{}{}
	}
	// The log is durable as it is; flushing it spares the next start the replay.
	if err := errors.Join(s.db.Flush(), s.db.Close()); err != nil {
		return fmt.Errorf("close store %s: %w", s.dir, err)
	}
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

// fail remembers the first error after which nothing can be written.
func (s *Store) fail(err error) {
	s.once.Do(func() {
		s.opts.Logger.Error("the store cannot be written any more; start the process again", "dir", s.dir, "error", err)
		s.failed.Store(&err)
		close(s.failing)
		if s.opts.Fatal != nil {
			s.opts.Fatal(err)
		}
	})
}

func (s *Store) failure() error {
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("%w: after an earlier error, until the process is started again: %w", kv.ErrUnavailable, *err)
	}
	return nil
}

func (s *Store) backgroundError(err error) {
	s.opts.Logger.Warn("store: background work failed and will be tried again", "dir", s.dir, "error", err)
}

// pebbleLog gives Pebble's log to ours.
type pebbleLog struct{ s *Store }

func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.s.opts.Logger.Error("store: " + fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble's own state is not sound after it. What was
// acknowledged is in the log, and the next start reads it.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.s.fail(fmt.Errorf(format, args...))
	runtime.Goexit()
}
