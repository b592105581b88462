package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// putWrites and putBytes bound what is written at once.
	putWrites = 500
	putBytes  = 4 << 20
	// putTimeout is how long that may take.
	putTimeout = time.Minute
	// stagingAge is how old a namespace is in which something was composed when
	// nobody can still be at it.
	stagingAge = 72 * time.Hour
	// dropTimeout is how long the removal of such a namespace may take.
	dropTimeout = 10 * time.Minute
)

// Restorer puts namespaces back. Barrier, Front and Stamp must be set.
type Restorer struct {
	Barrier   *Barrier
	Front     kv.Store      // what users read: a namespace of theirs is written through it
	Stamp     *kv.Stamper   // for the writes of a rewind
	Retention time.Duration // tombstones are kept for so long; 0: for ever
	Now       func() time.Time
}

// Result is what came of putting a namespace back.
type Result struct {
	Received  int64 `json:"received"`            // records, of all snapshots of the chain
	Written   int64 `json:"written"`             // records
	Deleted   int64 `json:"deleted,omitempty"`   // keys that a rewind has deleted
	Unchanged int64 `json:"unchanged,omitempty"` // keys that were as they should be
	Newer     int64 `json:"newer,omitempty"`     // keys of which there is a newer record, which stays
	Skipped   int64 `json:"skipped,omitempty"`   // records beyond the moment that was asked for
}

// Incoming is a stream of Archive.Send of which the target was read.
type Incoming struct {
	Target Target
	frames *frameReader
	ns     kv.NamespaceID
	cut    kv.Version
}

// Receive reads the beginning of a stream of Archive.Send.
func Receive(r io.Reader) (*Incoming, error) {
	frames, err := newFrameReader(r, streamMagic)
	if err != nil {
		return nil, err
	}
	f, err := frames.next()
	if err != nil {
		return nil, cut(err)
	}
	if f.kind() != frameTarget {
		return nil, fmt.Errorf("%w: it begins with a frame of kind %q", ErrDamaged, f.kind())
	}
	in := &Incoming{frames: frames}
	if err := f.decode(&in.Target); err != nil {
		return nil, err
	}
	if in.ns, err = namespaceID(in.Target.ID); err != nil {
		return nil, err
	}
	in.cut, err = kv.ParseVersion(in.Target.Cut)
	return in, err
}

// NamespaceID is where the records go.
func (in *Incoming) NamespaceID() kv.NamespaceID { return in.ns }

func (r *Restorer) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

// Restore puts a namespace back. progress is called now and then; nil: nobody
// asks. If it fails, a part may have been done: it may be repeated.
func (r *Restorer) Restore(ctx context.Context, in *Incoming, progress func(Result)) (Result, error) {
	if progress == nil {
		progress = func(Result) {}
	}
	job := &restoring{Restorer: r, in: in, progress: progress}
	err := job.run(ctx)
	if err != nil {
		err = fmt.Errorf("restore namespace %s: %w", in.ns, err)
	}
	return job.result, err
}

// restoring is one namespace that is put back.
type restoring struct {
	*Restorer
	in       *Incoming
	progress func(Result)
	result   Result
}

func (j *restoring) run(ctx context.Context) error {
	j.tidy(ctx)
	isEmpty, err := empty(ctx, j.Barrier, j.in.ns)
	if err != nil {
		return err
	}
	if !isEmpty {
		if err := j.remembers(); err != nil {
			return err
		}
		if j.in.Target.Rewind {
			return j.staged(ctx)
		}
	}
	// A crash before the end leaves the note open.
	if err := j.note(ctx, j.in.ns, noteOpen); err != nil {
		return err
	}
	bring := j.staged
	if isEmpty {
		bring = j.direct
	}
	if err := bring(ctx); err != nil {
		return err
	}
	return j.note(ctx, j.in.ns, noteClosed)
}

// direct puts everything into an empty namespace. A crash leaves a part of it: who
// repeats the restore finds a namespace that is not empty, and gets the rest.
func (j *restoring) direct(ctx context.Context) error {
	return j.receive(ctx, batch{store: j.Front, ns: j.in.ns})
}

// staged composes the state in a namespace of its own and then brings it into the
// live one. A crash leaves the staging namespace, which a later restore sweeps.
func (j *restoring) staged(ctx context.Context) error {
	staging := newStaging(j.now())
	defer j.drop(ctx, staging)
	if err := j.receive(ctx, batch{store: j.Barrier, ns: staging}); err != nil {
		return err
	}
	return j.compare(ctx, staging)
}

// remembers returns an error if a key that the namespace does not have may have
// been deleted since the cut: then it must not come back unasked.
func (j *restoring) remembers() error {
	age := j.now().Sub(j.in.cut.Time())
	if j.in.Target.Rewind || j.in.Target.BringBack || j.Retention == 0 || age < j.Retention {
		return nil
	}
	return fmt.Errorf("%w: the state is %s old and deletions are remembered for %s: what was deleted before that would come back. "+
		"Rewind the namespace, restore into another one, or say that deleted keys may come back", ErrRefused, age.Round(time.Second), j.Retention)
}

// newStaging is the id of a namespace in which something is composed: its mark,
// the time, and what tells it from others.
func newStaging(now time.Time) (id kv.NamespaceID) {
	copy(id[:], stagingMark)
	binary.BigEndian.PutUint64(id[4:], uint64(now.Unix()))
	binary.BigEndian.PutUint32(id[12:], rand.Uint32())
	return id
}

// sweepTimeout is how long it may take to look for what earlier restores left.
const sweepTimeout = 30 * time.Second

// tidy sweeps; what cannot be swept now a later restore sweeps.
func (j *restoring) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	_ = j.sweep(ctx)
}

// sweep drops what earlier restorations left when they were cut off.
func (r *Restorer) sweep(ctx context.Context) error {
	var after kv.NamespaceID
	copy(after[:], stagingMark)
	for {
		ids, err := kv.Namespaces(ctx, r.Barrier, after, kv.MaxNamespaces)
		if errors.Is(err, kv.ErrUnsupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for what an earlier restore left: %w", err)
		}
		for _, id := range ids {
			if !strings.HasPrefix(string(id[:]), stagingMark) {
				return nil
			}
			after = id
			if begun := time.Unix(int64(binary.BigEndian.Uint64(id[4:])), 0); r.now().Sub(begun) < stagingAge {
				continue
			}
			if err := kv.Drop(ctx, r.Barrier, id); err != nil {
				return fmt.Errorf("drop what an earlier restore left: %w", err)
			}
		}
		if len(ids) == 0 {
			return nil
		}
	}
}

// drop removes the staging namespace. If it cannot, a later restore does.
func (r *Restorer) drop(ctx context.Context, staging kv.NamespaceID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	_ = kv.Drop(ctx, r.Barrier, staging)
}

// receive puts all records of the stream with their own versions. They come in
// the order in which they were read, so that of one key the newest comes last: a
// tombstone may be forgotten as soon as it is put.
func (j *restoring) receive(ctx context.Context, to batch) error {
	var link linkInfo
	for {
		f, err := j.in.frames.next()
		if err != nil {
			return cut(err)
		}
		switch f.kind() {
		case frameLink:
			link = linkInfo{}
			if err := f.decode(&link); err != nil {
				return err
			}
		case frameRecords:
			j.in.frames.unread()
			if err := j.records(ctx, link, &to); err != nil {
				return err
			}
		case frameHeart:
		case frameEnd:
			return j.end(ctx, f, &to)
		default:
			return fmt.Errorf("%w: a frame of kind %q out of place", ErrDamaged, f.kind())
		}
	}
}

func (j *restoring) end(ctx context.Context, f frame, to *batch) error {
	var info endInfo
	if err := f.decode(&info); err != nil {
		return err
	}
	if info.Records != j.result.Received {
		return fmt.Errorf("%w: %d records were received, %d were sent", ErrDamaged, j.result.Received, info.Records)
	}
	if err := to.flush(ctx); err != nil {
		return err
	}
	j.progress(j.result)
	return nil
}

// records puts the records up to the next frame of another kind.
func (j *restoring) records(ctx context.Context, link linkInfo, to *batch) error {
	records := newRecordReader(&payloads{frames: j.in.frames})
	for {
		key, rec, err := records.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		j.result.Received++
		if err := kv.CheckFuture(rec.Version, j.now()); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		if !link.UpTo.IsZero() && rec.Version.Time().After(link.UpTo) {
			j.result.Skipped++
			continue
		}
		flushed, err := to.add(ctx, key, rec)
		if err != nil {
			return err
		}
		if to.ns == j.in.ns {
			j.result.Written++
		}
		if flushed {
			j.progress(j.result)
		}
	}
}

// batch gathers records for a namespace and puts them together.
type batch struct {
	store  kv.Store
	ns     kv.NamespaceID
	writes []kv.Write
	bytes  int
}

// add puts a record sooner or later, and reports whether it was now.
func (b *batch) add(ctx context.Context, key string, rec kv.Record) (flushed bool, err error) {
	b.writes = append(b.writes, kv.Write{Ref: kv.Ref{Namespace: b.ns, Key: key}, Record: rec})
	b.bytes += len(key) + rec.Bytes()
	if len(b.writes) < putWrites && b.bytes < putBytes {
		return false, nil
	}
	return true, b.flush(ctx)
}

// flush puts what has gathered, again if the store cannot take it now: repeating
// does no harm.
func (b *batch) flush(ctx context.Context) error {
	for tries := 1; len(b.writes) > 0; tries++ {
		putting, cancel := context.WithTimeout(ctx, putTimeout)
		err := kv.PutMany(putting, b.store, b.writes)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil || tries == readTries || !passes(err) && !errors.Is(err, kv.ErrUnknown) {
			return fmt.Errorf("put %d records: %w", len(b.writes), err)
		}
		if err := pause(ctx, readPause); err != nil {
			return err
		}
	}
	b.writes, b.bytes = nil, 0 // the store may keep what it was given
	return nil
}

// side is one of two namespaces that are compared key by key.
type side struct {
	cursor *cursor
	page   []kv.Listed
}

// peek returns the next key, nil after the last.
func (s *side) peek(ctx context.Context) (*kv.Listed, error) {
	if len(s.page) == 0 {
		page, err := s.cursor.next(ctx)
		if err != nil || page == nil {
			return nil, err
		}
		s.page = page
	}
	return &s.page[0], nil
}

func (s *side) advance() { s.page = s.page[1:] }

// difference is a key that is not as it should be, or may not be.
type difference struct {
	key    string
	want   kv.Record // without its value
	remove bool      // it is to be deleted
	same   bool      // the values must be compared
}

// differencesAtOnce is how many keys are dealt with together.
const differencesAtOnce = 256

// compare goes through the staging namespace and the live one together, in order
// of their keys, and changes the live one where it must be changed.
func (j *restoring) compare(ctx context.Context, staging kv.NamespaceID) error {
	want := &side{cursor: newCursor(j.Barrier, staging)}
	have := &side{cursor: newCursor(j.Barrier, j.in.ns)}
	var found []difference
	for {
		key, w, h, err := pair(ctx, want, have)
		if err != nil {
			return err
		}
		if key == "" {
			return j.settle(ctx, staging, found)
		}
		if d, differs := j.decide(key, w, h); differs {
			found = append(found, d)
		}
		if len(found) < differencesAtOnce {
			continue
		}
		if err := j.settle(ctx, staging, found); err != nil {
			return err
		}
		found = found[:0]
	}
}

// pair returns the records that both sides have of the next key, absent where one
// has none; no key after the last.
func pair(ctx context.Context, want, have *side) (key string, w, h kv.Record, err error) {
	a, err := want.peek(ctx)
	if err != nil {
		return "", w, h, err
	}
	b, err := have.peek(ctx)
	if err != nil {
		return "", w, h, err
	}
	if a != nil && (b == nil || a.Key <= b.Key) {
		key, w = a.Key, a.Record
	}
	if b != nil && (a == nil || b.Key <= a.Key) {
		key, h = b.Key, b.Record
	}
	if !w.Absent() {
		want.advance()
	}
	if !h.Absent() {
		have.advance()
	}
	return key, w, h, nil
}

// decide says what is to be done about a key.
func (j *restoring) decide(key string, want, have kv.Record) (difference, bool) {
	if !j.in.Target.Rewind {
		if want.Absent() {
			return difference{}, false
		}
		switch c := want.Version.Compare(have.Version); {
		case c > 0:
			return difference{key: key, want: want}, true
		case c == 0:
			j.result.Unchanged++
		default:
			j.result.Newer++
		}
		return difference{}, false
	}
	if kv.CheckFuture(have.Version, j.now()) == nil {
		j.Stamp.Observe(have.Version) // so that the new write is newer
	}
	now := j.now()
	there, wanted := have.Visible(now), want.Visible(now)
	switch {
	case !there && !wanted, there && wanted && want.Version == have.Version:
		j.result.Unchanged++
		return difference{}, false
	case !wanted:
		return difference{key: key, remove: true}, true
	}
	same := there && want.Expiration == have.Expiration && string(want.Metadata) == string(have.Metadata)
	return difference{key: key, want: want, same: same}, true
}

// settle makes the live namespace have what it should of some keys.
func (j *restoring) settle(ctx context.Context, staging kv.NamespaceID, found []difference) error {
	if err := j.remembers(); err != nil { // it may have taken long to get here
		return err
	}
	values, err := j.digests(ctx, found)
	if err != nil {
		return err
	}
	out := &batch{store: j.Front, ns: j.in.ns}
	var keys []string
	for _, d := range found {
		switch {
		case d.remove:
			err = j.write(ctx, out, d.key, kv.Record{Tombstone: true})
		case d.want.Tombstone:
			err = j.write(ctx, out, d.key, d.want)
		default:
			keys = append(keys, d.key)
		}
		if err != nil {
			return err
		}
	}
	reader := reader{store: j.Barrier}
	lost := func(key string, cause error) { err = errors.Join(err, fmt.Errorf("key %q: %w", key, cause)) }
	if readErr := reader.read(ctx, staging, keys, func(key string, rec kv.Record) error {
		if sum, ok := values[key]; ok && sum == sha256.Sum256(rec.Value) {
			j.result.Unchanged++
			return nil
		}
		if rec.Absent() {
			return nil // it expired and was forgotten since it was listed
		}
		return j.write(ctx, out, key, rec)
	}, lost); readErr != nil {
		return readErr
	}
	if err := errors.Join(err, out.flush(ctx)); err != nil {
		return err
	}
	j.progress(j.result)
	return nil
}

// digests are those of the live values that must be compared.
func (j *restoring) digests(ctx context.Context, found []difference) (map[string][sha256.Size]byte, error) {
	var keys []string
	for _, d := range found {
		if d.same {
			keys = append(keys, d.key)
		}
	}
	sums := map[string][sha256.Size]byte{}
	reader := reader{store: j.Barrier}
	err := reader.read(ctx, j.in.ns, keys, func(key string, rec kv.Record) error {
		if !rec.Tombstone && !rec.Absent() {
			sums[key] = sha256.Sum256(rec.Value)
		}
		return nil
	}, func(string, error) {}) // what is damaged is not what it should be
	return sums, err
}

// write puts a record with its own version, or with a new one if the namespace is
// rewound.
func (j *restoring) write(ctx context.Context, out *batch, key string, rec kv.Record) error {
	if j.in.Target.Rewind {
		v, err := j.Stamp.Stamp()
		if err != nil {
			return err
		}
		rec.Version = v
	}
	if rec.Tombstone {
		rec = kv.Tombstone(rec.Version)
		j.result.Deleted++
	} else {
		j.result.Written++
	}
	_, err := out.add(ctx, key, rec)
	return err
}
