package proxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// InlineBytes is the greatest value that stays in its row, if SplitOptions does
// not say otherwise: what a database page and its log carry with ease.
const InlineBytes = 16 << 10

// MaxPut is how long a put may take from its first blob to its row. It is far
// less than OrphanAge: when a blob is old enough to be swept, no put under way can
// still refer to it.
const MaxPut = 10 * time.Minute

// blobsAtOnce bounds the blobs that one call moves at the same time.
const blobsAtOnce = 16

// maxLost bounds the records that a Split remembers to have lost their blob. What
// it does not remember is found again by the next read.
const maxLost = 10_000

// Blobs keeps values under names.
//
// Consistency: a Get that follows a successful Put returns what was put.
// Durability: what Put acknowledged survives whatever the other side promises;
// what is lost all the same is found when it is read or swept, and put again from
// another provider. Concurrency: all methods may be called at once. Bytes: what is
// put and what is returned is not changed by either side.
type Blobs interface {
	// Put stores data by name. A name is only ever put with the same data.
	Put(ctx context.Context, name string, data []byte) error

	// Get returns what was put by name. The error wraps fs.ErrNotExist if there is
	// nothing, and kv.ErrDamaged if it cannot be what was put.
	Get(ctx context.Context, name string) ([]byte, error)
}

// SplitOptions are what a Split may be told. Zero values are replaced by the
// defaults that the fields name.
type SplitOptions struct {
	InlineBytes int           // the greatest value that stays in its row; InlineBytes; negative: none does
	SweepEvery  time.Duration // the pause between two sweeps; SweepEvery
	SweepRate   int           // rows and blobs that a sweep looks at in a second; SweepRate
	SweepBlobs  int           // blobs that a pass of a sweep holds in memory; SweepBlobs

	// Missing is told of keys whose blob a sweep did not find, or found with
	// another size: another provider may have it. It must not block.
	Missing func(kv.Ref)

	Logger *slog.Logger // none
}

// Split is a store that keeps large values as blobs and all else in rows, one
// store made of two. The blob is written first, then the row that refers to it: a
// crash between the two leaves a blob that no row refers to, an orphan, which a
// sweep removes when it is OrphanAge old.
type Split struct {
	rows  kv.Store
	blobs Blobs
	index BlobIndex
	opts  SplitOptions
	log   *slog.Logger

	orphanAge, emptyAge time.Duration

	counts splitCounts
	broken atomic.Int64 // len(lost), to be looked at without the mutex

	mu      sync.Mutex            // guards what follows
	pending map[blobName]int      // blobs of puts under way, and how many
	lost    map[kv.Ref]kv.Version // records whose blob was found lost, until they are put again; at most maxLost
	swept   SweepReport           // of the latest sweep that came to its end
	sweptAt time.Time

	sweeping sync.Mutex // guards against two sweeps at once
}

type splitCounts struct{ puts, gets, damaged, removed, missing atomic.Uint64 }

var _ kv.Store = (*Split)(nil)

// NewSplit returns a store of rows and blobs. The index is that of the same blobs.
func NewSplit(rows kv.Store, blobs Blobs, index BlobIndex, opts SplitOptions) *Split {
	opts.InlineBytes = cmp.Or(opts.InlineBytes, InlineBytes)
	opts.SweepEvery = cmp.Or(opts.SweepEvery, SweepEvery)
	opts.SweepRate = cmp.Or(opts.SweepRate, SweepRate)
	opts.SweepBlobs = cmp.Or(opts.SweepBlobs, SweepBlobs)
	if opts.Missing == nil {
		opts.Missing = func(kv.Ref) {}
	}
	return &Split{rows: rows, blobs: blobs, index: index, opts: opts, orphanAge: OrphanAge, emptyAge: EmptyAge,
		log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)), pending: map[blobName]int{}, lost: map[kv.Ref]kv.Version{}}
}

// Get implements kv.Store.
func (s *Split) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	row, err := s.rows.Get(ctx, ref, maxAge)
	if err != nil {
		return kv.Record{}, err
	}
	return s.whole(ctx, ref, maxAge, row)
}

// whole is the record of a row, with its value. A blob that is not there may have
// been swept because its row was replaced while we held it: the row is read once
// more.
func (s *Split) whole(ctx context.Context, ref kv.Ref, maxAge time.Duration, row kv.Record) (kv.Record, error) {
	rec, err := s.read(ctx, ref, row)
	if !errors.Is(err, kv.ErrDamaged) {
		return rec, err
	}
	again, rowErr := s.rows.Get(ctx, ref, maxAge)
	if rowErr != nil {
		return kv.Record{}, rowErr
	}
	if again.Compare(row) != 0 {
		rec, err = s.read(ctx, ref, again)
	}
	if errors.Is(err, kv.ErrDamaged) {
		s.counts.damaged.Add(1)
		s.noteLost(ref, again.Version)
	}
	return rec, err
}

func (s *Split) noteLost(ref kv.Ref, v kv.Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lost) < maxLost {
		s.lost[ref] = v
	}
	s.broken.Store(int64(len(s.lost)))
}

// repairs reports whether a put of a record repairs one that lost its blob.
func (s *Split) repairs(w kv.Write) bool {
	if s.broken.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.lost[w.Ref]
	return ok && v == w.Record.Version
}

// noteRepaired forgets what writes have repaired, or replaced.
func (s *Split) noteRepaired(writes ...kv.Write) {
	if s.broken.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range writes {
		if v, ok := s.lost[w.Ref]; ok && w.Record.Version.Compare(v) >= 0 {
			delete(s.lost, w.Ref)
		}
	}
	s.broken.Store(int64(len(s.lost)))
}

// read is the record of a row with its value, if the blob has it.
func (s *Split) read(ctx context.Context, ref kv.Ref, row kv.Record) (kv.Record, error) {
	rec, r, isBlob := openRow(row)
	if !isBlob {
		return rec, nil
	}
	if r.size >= kv.ReserveBytes {
		if err := kv.Reserve(ctx, int64(r.size)); err != nil {
			return kv.Record{}, err
		}
	}
	name := r.name(ref.Key, row.Version).in(ref.Namespace)
	s.counts.gets.Add(1)
	value, err := s.blobs.Get(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return kv.Record{}, fmt.Errorf("blob %s: %w", name, kv.ErrDamaged)
	case err != nil:
		return kv.Record{}, fmt.Errorf("read the value of %q: %w", ref.Key, err)
	case len(value) != int(r.size) || sha256.Sum256(value) != r.sum:
		return kv.Record{}, fmt.Errorf("blob %s: has %d bytes, want %s: %w", name, len(value), r, kv.ErrDamaged)
	}
	rec.Value = value
	return rec, nil
}

// GetMany implements the ability of kv.GetMany: the rows at once, then the blobs,
// some at a time.
func (s *Split) GetMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) ([]kv.Record, error) {
	rows, err := kv.GetMany(ctx, s.rows, refs, maxAge)
	if err != nil {
		return nil, err
	}
	var large []int
	recs := make([]kv.Record, len(rows))
	for i, row := range rows {
		rec, _, isBlob := openRow(row)
		if recs[i] = rec; isBlob {
			large = append(large, i)
		}
	}
	err = eachBlob(ctx, len(large), func(ctx context.Context, n int) (err error) {
		i := large[n]
		recs[i], err = s.whole(ctx, refs[i], maxAge, rows[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	return recs, nil
}

// Put implements kv.Store.
func (s *Split) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	w := kv.Write{Ref: ref, Record: rec}
	if err := s.put(ctx, w); err != nil {
		return err
	}
	s.noteRepaired(w)
	return nil
}

func (s *Split) put(ctx context.Context, w kv.Write) error {
	if !s.isLarge(w.Record) {
		return s.rows.Put(ctx, w.Ref, s.inline(w))
	}
	return s.within(ctx, func(ctx context.Context) error {
		row, settle, err := s.upload(ctx, w.Ref, w.Record)
		if err != nil {
			return err
		}
		defer settle()
		// A crash here leaves an orphan.
		return s.rows.Put(ctx, w.Ref, row)
	})
}

// inline is the row of a small record.
func (s *Split) inline(w kv.Write) kv.Record {
	return inlineRow(w.Record, !w.Record.Tombstone && s.repairs(w))
}

func (s *Split) isLarge(rec kv.Record) bool {
	return !rec.Tombstone && len(rec.Value) > s.opts.InlineBytes
}

// within gives a put MaxPut to end.
func (s *Split) within(ctx context.Context, put func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, MaxPut)
	defer cancel()
	err := put(bounded)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return fmt.Errorf("put took longer than %s: %w: %v", MaxPut, kv.ErrUnknown, err)
	}
	return err
}

// upload writes the blob of a record and returns the row that refers to it. The
// blob is pending, and no sweep removes it, until settle is called.
func (s *Split) upload(ctx context.Context, ref kv.Ref, rec kv.Record) (row kv.Record, settle func(), err error) {
	r := newReference(rec.Value, time.Now())
	name := r.name(ref.Key, rec.Version)
	s.mu.Lock()
	s.pending[name]++
	s.mu.Unlock()
	settle = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pending[name]--; s.pending[name] == 0 {
			delete(s.pending, name)
		}
	}
	s.counts.puts.Add(1)
	if err := s.blobs.Put(ctx, name.in(ref.Namespace), rec.Value); err != nil {
		settle()
		return kv.Record{}, nil, fmt.Errorf("write the value of %q: %w", ref.Key, err)
	}
	return referenceRow(rec, r), settle, nil
}

// PutMany implements the ability of kv.PutMany: all blobs, some at a time, then
// all rows. If a blob fails, no row is written.
func (s *Split) PutMany(ctx context.Context, writes []kv.Write) error {
	rows, large := s.plan(writes)
	if err := s.putMany(ctx, rows, large); err != nil {
		return err
	}
	s.noteRepaired(writes...)
	return nil
}

func (s *Split) putMany(ctx context.Context, rows []kv.Write, large []int) error {
	if len(large) == 0 {
		return kv.PutMany(ctx, s.rows, rows)
	}
	return s.within(ctx, func(ctx context.Context) error {
		settles := make([]func(), len(large))
		defer func() {
			for _, settle := range settles {
				if settle != nil {
					settle()
				}
			}
		}()
		err := eachBlob(ctx, len(large), func(ctx context.Context, n int) (err error) {
			w := &rows[large[n]]
			w.Record, settles[n], err = s.upload(ctx, w.Ref, w.Record)
			return err
		})
		if err != nil {
			return err
		}
		// A crash here leaves orphans.
		return kv.PutMany(ctx, s.rows, rows)
	})
}

// plan returns the rows of writes; the records at the indexes large are yet to be
// replaced by references. A large value that another write of its key replaces is
// left out: nobody will read it.
func (s *Split) plan(writes []kv.Write) (rows []kv.Write, large []int) {
	newest := map[kv.Ref]kv.Record{}
	if slices.ContainsFunc(writes, func(w kv.Write) bool { return s.isLarge(w.Record) }) {
		for _, w := range writes {
			newest[w.Ref] = kv.Merge(newest[w.Ref], w.Record)
		}
	}
	rows = make([]kv.Write, 0, len(writes))
	for _, w := range writes {
		switch {
		case !s.isLarge(w.Record):
			w.Record = s.inline(w)
		case newest[w.Ref].Compare(w.Record) > 0:
			continue
		default:
			large = append(large, len(rows))
		}
		rows = append(rows, w)
	}
	return rows, large
}

// List implements kv.Store.
func (s *Split) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	page, err := s.rows.List(ctx, ns, opts)
	if err != nil {
		return kv.Page{}, err
	}
	page.Keys = slices.Clone(page.Keys) // it may be the rows' own
	for i := range page.Keys {
		page.Keys[i].Record, _, _ = openRow(page.Keys[i].Record)
	}
	return page, nil
}

// Forget implements the ability of kv.Forget, if the rows have it.
func (s *Split) Forget(ctx context.Context, tombs []kv.Tomb) error {
	return kv.Forget(ctx, s.rows, tombs)
}

// Namespaces implements the ability of kv.Namespaces, if the rows have it.
func (s *Split) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	return kv.Namespaces(ctx, s.rows, after, limit)
}

// Changes implements the ability of kv.Changes, if the rows have it.
func (s *Split) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	return kv.Changes(ctx, s.rows, after, limit)
}

// AwaitChange implements the ability of kv.AwaitChange, if the rows have it.
func (s *Split) AwaitChange(ctx context.Context, after kv.Cursor) error {
	return kv.AwaitChange(ctx, s.rows, after)
}

// Drop implements the ability of kv.Drop, if the rows have it: the rows first, in
// a moment, then the blobs, a page at a time. After an error, or a crash, the
// caller drops again and goes on where it ended.
func (s *Split) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if err := kv.Drop(ctx, s.rows, ns); err != nil {
		return err
	}
	for after := ""; ; {
		infos, more, err := s.index.List(ctx, blobPrefix(ns), after, blobPage)
		if err != nil {
			return fmt.Errorf("list the blobs of dropped namespace %s: %w", ns, err)
		}
		names := make([]string, len(infos))
		for i, info := range infos {
			names[i] = info.Name
			after = info.Name
		}
		if len(names) > 0 {
			if err := s.index.Delete(ctx, names); err != nil {
				return fmt.Errorf("remove the blobs of dropped namespace %s: %w", ns, err)
			}
		}
		if !more {
			return nil
		}
	}
}

// SplitStats are counts since the start, and the report of the latest sweep.
type SplitStats struct {
	Puts    uint64 // blobs written, or tried
	Gets    uint64 // blobs read, or tried
	Damaged uint64 // reads that found a blob missing or damaged
	Removed uint64 // orphans that were swept
	Missing uint64 // blobs that a sweep did not find, each time

	Swept   SweepReport // zero until a sweep has come to its end
	SweptAt time.Time
}

// Stats returns the counts.
func (s *Split) Stats() SplitStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SplitStats{Puts: s.counts.puts.Load(), Gets: s.counts.gets.Load(), Damaged: s.counts.damaged.Load(),
		Removed: s.counts.removed.Load(), Missing: s.counts.missing.Load(), Swept: s.swept, SweptAt: s.sweptAt}
}

// eachBlob calls do for 0 to n-1, some at a time, and waits for all. The first
// error ends the others and is returned.
func eachBlob(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	if n == 1 {
		return do(ctx, 0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		next  atomic.Int64
		once  sync.Once
		first error
		wg    sync.WaitGroup
	)
	for range min(n, blobsAtOnce) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					once.Do(func() { first = err; cancel() })
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}
