package disk

import (
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/nearkey/nearkey/kv"
)

// space watches the free space of the disk. Writes are refused while there is
// little, so that Pebble, which must not be stopped half-way, has room for what
// it owes. If others fill the disk nevertheless, Pebble's writes wait until there
// is room again; reads go on.
type space struct {
	fs      vfs.FS
	dir     string
	minFree uint64
	log     *slog.Logger

	checked atomic.Int64 // when free was measured, ns since start
	free    atomic.Uint64
	start   time.Time
	waiting atomic.Bool // Pebble waits for space
	once    sync.Once   // closes closed
	closed  chan struct{}
}

const (
	spaceCheckEvery = 200 * time.Millisecond // how old a measurement of free space may be
	spaceRetryEvery = 50 * time.Millisecond  // how often a write of Pebble that found the disk full is tried again
	// deletesShare is the share of the minimum down to which deletes are still
	// taken, so that a user can make room.
	deletesShare = 2
)

func newSpace(fsys vfs.FS, dir string, minFree int64, log *slog.Logger) *space {
	sp := &space{fs: fsys, dir: dir, minFree: uint64(minFree), log: log, start: time.Now(), closed: make(chan struct{})}
	sp.free.Store(sp.measure())
	return sp
}

// wrap returns a file system whose writes wait for space instead of failing.
func (sp *space) wrap() vfs.FS { return vfs.OnDiskFull(sp.fs, sp.await) }

// await is called when a write found the disk full; when it returns the write is
// tried again, once.
func (sp *space) await() {
	sp.waiting.Store(true)
	defer sp.waiting.Store(false)
	sp.log.Error("the disk is full; writes wait until there is space", "dir", sp.dir)
	tick := time.NewTicker(spaceRetryEvery)
	defer tick.Stop()
	for sp.measure() < sp.minFree/deletesShare {
		select {
		case <-sp.closed:
			return
		case <-tick.C:
		}
	}
	sp.log.Info("the disk has space again", "dir", sp.dir)
}

// measure returns the free bytes; a file system that cannot tell has enough.
func (sp *space) measure() uint64 {
	usage, err := sp.fs.GetDiskUsage(sp.dir)
	if err != nil {
		return math.MaxUint64
	}
	return usage.AvailBytes
}

// check returns an error that wraps kv.ErrFull while there is too little space.
func (sp *space) check(deletes bool) error {
	now := int64(time.Since(sp.start))
	if last := sp.checked.Load(); now-last > int64(spaceCheckEvery) && sp.checked.CompareAndSwap(last, now) {
		sp.free.Store(sp.measure())
	}
	free, least := sp.free.Load(), sp.minFree
	if deletes {
		least /= deletesShare
	}
	if sp.waiting.Load() || free < least {
		return fmt.Errorf("%w: %d bytes are free at %s, %d are needed", kv.ErrFull, free, sp.dir, least)
	}
	return nil
}

// close ends the waiting of Pebble's writes: they fail.
func (sp *space) close() { sp.once.Do(func() { close(sp.closed) }) }
