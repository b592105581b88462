package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
)

const (
	// OrphanAge is how long after the hour of its put a blob that no row refers to
	// is kept.
	OrphanAge = 24 * time.Hour

	// EmptyAge is the same for the blobs of a namespace that has no rows at all. It
	// is longer, because this is also what a provider looks like whose rows were
	// connected to the wrong, empty database.
	EmptyAge = 30 * 24 * time.Hour

	// SweepEvery is the pause between two sweeps; the first one begins sweepDelay
	// after the start.
	SweepEvery = 6 * time.Hour
	sweepDelay = 10 * time.Minute

	// SweepRate is the number of rows and blobs that a sweep looks at in a second.
	SweepRate = 5000

	// SweepBlobs is the number of blobs that a pass of a sweep holds in memory, 68
	// bytes each. A namespace of more takes as many passes over its rows.
	SweepBlobs = 1 << 19

	rowPage       = 1000
	blobPage      = blob.MaxList
	namespaceCost = 10 // rows, that it costs as much as to find a namespace
)

// BlobIndex is the part of a place for blobs that a sweep needs.
type BlobIndex interface {
	// List returns the blobs whose names begin with prefix and are greater than
	// after, in byte order, at most limit of them, and whether there are more. A
	// blob whose Put ended before the call is among them.
	List(ctx context.Context, prefix, after string, limit int) ([]blob.Info, bool, error)

	// Delete removes blobs, at most blob.MaxList; those that are not there are no
	// error.
	Delete(ctx context.Context, names []string) error
}

// SweepReport is what a sweep has found.
type SweepReport struct {
	Namespaces int
	Rows       int // looked at, in all passes
	Blobs      int // listed
	Orphans    int // of them removed: no row refers to them, and they were old enough
	Young      int // of them kept: no row refers to them yet
	Foreign    int // of them that are not ours
	Missing    int // rows whose blob is not there or has another size
}

// Run sweeps now and then until ctx ends.
func (s *Split) Run(ctx context.Context) error {
	timer := time.NewTimer(min(sweepDelay, s.opts.SweepEvery))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		report, err := s.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Error("sweep of blobs", "error", err)
		case report.Missing > 0:
			s.log.Warn("sweep of blobs: some are missing", "report", report)
		default:
			s.log.Info("sweep of blobs", "report", report)
		}
		timer.Reset(s.opts.SweepEvery)
	}
}

// Sweep compares all rows with all blobs, once. It removes orphans that are old
// enough, and tells SplitOptions.Missing of rows whose blob is not there. On an
// error it ends; what it has done until then is right.
func (s *Split) Sweep(ctx context.Context) (SweepReport, error) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	var report SweepReport
	walk := namespaceWalk{split: s, report: &report}
	for {
		ns, ok, err := walk.next(ctx)
		if err != nil {
			return report, err
		}
		if !ok {
			break
		}
		report.Namespaces++
		if err := s.sweepNamespace(ctx, ns, &report); err != nil {
			return report, fmt.Errorf("sweep namespace %s: %w", ns, err)
		}
		if err := s.pace(ctx, namespaceCost); err != nil {
			return report, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.swept, s.sweptAt = report, time.Now()
	return report, nil
}

// namespaceWalk goes through the namespaces that have rows or blobs, in order.
type namespaceWalk struct {
	split    *Split
	report   *SweepReport
	after    kv.NamespaceID
	withRows []kv.NamespaceID // the next ones
	rowsEnd  bool             // there are none behind them
}

func (w *namespaceWalk) next(ctx context.Context) (ns kv.NamespaceID, ok bool, err error) {
	if len(w.withRows) == 0 && !w.rowsEnd {
		w.withRows, err = kv.Namespaces(ctx, w.split.rows, w.after, kv.MaxNamespaces)
		if err != nil && !errors.Is(err, kv.ErrUnsupported) {
			return ns, false, err
		}
		w.rowsEnd = len(w.withRows) == 0
	}
	ns, ok, err = w.nextWithBlobs(ctx)
	if err != nil {
		return ns, false, err
	}
	if len(w.withRows) > 0 && (!ok || bytes.Compare(w.withRows[0][:], ns[:]) <= 0) {
		ns, ok, w.withRows = w.withRows[0], true, w.withRows[1:]
	}
	w.after = ns
	return ns, ok, nil
}

// nextWithBlobs finds a namespace by its first blob.
func (w *namespaceWalk) nextWithBlobs(ctx context.Context) (ns kv.NamespaceID, ok bool, err error) {
	for from := afterBlobs(w.after); ; {
		infos, _, err := w.split.index.List(ctx, blobRoot, from, 1)
		if err != nil {
			return ns, false, fmt.Errorf("look for a namespace with blobs: %w", err)
		}
		if len(infos) == 0 {
			return ns, false, nil
		}
		if ns, _, ok := parseBlobName(infos[0].Name); ok {
			return ns, true, nil
		}
		from = infos[0].Name
		w.report.Foreign++
	}
}

// sweepNamespace goes through the blobs of a namespace, as many at a time as fit
// into memory, and for each such pass through all of its rows.
//
// The order of the steps is what makes a pass safe. First the blobs are listed,
// then the puts under way are noted, then the rows are read. So a listed blob is
// an old one; or its put is among those noted; or its put has ended, and its row
// is read.
func (s *Split) sweepNamespace(ctx context.Context, ns kv.NamespaceID, report *SweepReport) error {
	for after := ""; ; {
		p := pass{began: time.Now(), from: after}
		if err := s.listPass(ctx, ns, &p, report); err != nil {
			return err
		}
		s.markPending(&p)
		if err := s.readRows(ctx, ns, &p, report); err != nil {
			return err
		}
		if err := s.removeOrphans(ctx, ns, &p, report); err != nil {
			return err
		}
		if !p.more {
			return nil
		}
		after = p.to
	}
}

// pass is a run of blobs of one namespace, in order.
type pass struct {
	began    time.Time // before the blobs were listed
	blobs    []listedBlob
	from, to string // names from, exclusive, and to, inclusive; to has no meaning without more
	more     bool   // there are blobs behind to
	rows     int
}

type listedBlob struct {
	name blobName
	size uint32
	used bool // a row refers to it, or soon will
}

// find returns the blob of that name if it was listed. covered is false if it
// belongs to another pass.
func (p *pass) find(ns kv.NamespaceID, name blobName) (found *listedBlob, covered bool) {
	if text := name.in(ns); text <= p.from || p.more && text > p.to {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(p.blobs, name, func(b listedBlob, n blobName) int { return bytes.Compare(b.name[:], n[:]) })
	if !ok {
		return nil, true
	}
	return &p.blobs[i], true
}

// listPass lists the blobs of a pass.
func (s *Split) listPass(ctx context.Context, ns kv.NamespaceID, p *pass, report *SweepReport) error {
	for p.to = p.from; ; {
		infos, more, err := s.index.List(ctx, blobPrefix(ns), p.to, min(blobPage, s.opts.SweepBlobs-len(p.blobs)))
		if err != nil {
			return fmt.Errorf("list the blobs: %w", err)
		}
		for _, info := range infos {
			if info.Name <= p.to {
				return fmt.Errorf("list the blobs: %q comes after %q", info.Name, p.to)
			}
			p.to = info.Name
			_, name, ok := parseBlobName(info.Name)
			if !ok || info.Size < 0 || info.Size > kv.MaxValueBytes {
				report.Foreign++
				continue
			}
			p.blobs = append(p.blobs, listedBlob{name: name, size: uint32(info.Size)})
		}
		report.Blobs += len(infos)
		if p.more = more && len(infos) > 0; !p.more || len(p.blobs) >= s.opts.SweepBlobs {
			return nil
		}
		if err := s.pace(ctx, len(infos)); err != nil {
			return err
		}
	}
}

// markPending notes the blobs of puts that are under way.
func (s *Split) markPending(p *pass) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range p.blobs {
		if s.pending[p.blobs[i].name] > 0 {
			p.blobs[i].used = true
		}
	}
}

// readRows notes which blobs rows refer to, and tells of rows whose blob was not
// listed although its put had ended before.
func (s *Split) readRows(ctx context.Context, ns kv.NamespaceID, p *pass, report *SweepReport) error {
	opts := kv.ListOptions{Limit: rowPage}
	for {
		page, err := s.rows.List(ctx, ns, opts)
		if err != nil {
			return fmt.Errorf("list the rows: %w", err)
		}
		for _, k := range page.Keys {
			_, r, isBlob := openRow(k.Record)
			if !isBlob {
				continue
			}
			name := r.name(k.Key, k.Record.Version)
			found, covered := p.find(ns, name)
			if found != nil {
				found.used = true
			}
			lost := covered && found == nil && p.began.After(name.ended().Add(MaxPut))
			if lost || found != nil && found.size != r.size {
				report.Missing++
				s.counts.missing.Add(1)
				s.noteLost(kv.Ref{Namespace: ns, Key: k.Key}, k.Record.Version)
				s.opts.Missing(kv.Ref{Namespace: ns, Key: k.Key})
			}
		}
		p.rows += len(page.Keys)
		report.Rows += len(page.Keys)
		if !page.More {
			return nil
		}
		opts.After = page.Last
		if err := s.pace(ctx, len(page.Keys)); err != nil {
			return err
		}
	}
}

// removeOrphans removes the blobs of a pass that nothing refers to and that are
// old enough, by the hour in their name: whoever keeps them may have any clock.
func (s *Split) removeOrphans(ctx context.Context, ns kv.NamespaceID, p *pass, report *SweepReport) error {
	age := s.orphanAge
	if p.rows == 0 {
		age = s.emptyAge
	}
	var names []string
	for i, b := range p.blobs {
		switch {
		case b.used:
		case p.began.Before(b.name.ended().Add(age)):
			report.Young++
		default:
			names = append(names, b.name.in(ns))
		}
		if len(names) == blobPage || len(names) > 0 && i == len(p.blobs)-1 {
			if err := s.index.Delete(ctx, names); err != nil {
				return fmt.Errorf("remove orphans: %w", err)
			}
			report.Orphans += len(names)
			s.counts.removed.Add(uint64(len(names)))
			names = names[:0]
			if err := s.pace(ctx, blobPage); err != nil {
				return err
			}
		}
	}
	return nil
}

// pace waits so long that n more rows or blobs are not faster than the rate.
func (s *Split) pace(ctx context.Context, n int) error {
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(s.opts.SweepRate))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
