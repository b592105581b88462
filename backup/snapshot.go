package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// The bounds of taking a snapshot.
const (
	// DefaultMaxPause is the longest time for which the writes of one namespace are
	// held back.
	DefaultMaxPause = 500 * time.Millisecond
	// MaxRounds is how often what was written meanwhile is read again before a
	// snapshot is given up.
	MaxRounds = 50

	// drainAt is how many keys are noted before they are read again while the
	// namespace is still being read for the first time.
	drainAt = MaxNoted / 4
	// lastKeys and lastBytes bound the last round: how many keys may be left when
	// it is tried, and what is kept in memory until the writes go on.
	lastKeys  = 1000
	lastBytes = 32 << 20
	// settleTimeout is how long writes that are under way are waited for.
	settleTimeout = time.Minute
	// heartEvery is how often a stream tells that its sender lives.
	heartEvery = 5 * time.Second
	// maxDamaged is how many damaged keys are named.
	maxDamaged = 100
)

var errGone = errors.New("the namespace was deleted")

// Snapshotter takes snapshots. All its exported fields but Barrier may be zero;
// they must not be changed while it is in use.
type Snapshotter struct {
	Barrier   *Barrier
	Origin    string        // which installation this is
	Version   string        // of the program
	Retention time.Duration // tombstones are kept for so long; 0: for ever
	Margin    time.Duration // 0: DefaultMargin, but at most a quarter of Retention
	MaxPause  time.Duration // 0: DefaultMaxPause
	Now       func() time.Time

	// For controls of tests.
	noRounds, noHold bool
	page             int // keys in a page; 0: pageKeys
}

// Wanted is a namespace to take a snapshot of.
type Wanted struct {
	Namespace
	Since string `json:"since,omitempty"` // the cut of the snapshot that this one continues; empty: a full one
}

// beginInfo begins a stream.
type beginInfo struct {
	Started time.Time `json:"started"`
	Origin  string    `json:"origin,omitempty"`
	Version string    `json:"version,omitempty"`
}

// cutInfo is what is known of a namespace when its records are all told.
type cutInfo struct {
	Cut        string        `json:"cut"` // a version: no record of the snapshot is newer, and no write that was acknowledged before its time is missing
	Records    int64         `json:"records"`
	Tombstones int64         `json:"tombstones"` // among the records
	Bytes      int64         `json:"bytes"`      // of values and metadata
	Listed     int64         `json:"listed"`     // keys that were looked at
	Rounds     int           `json:"rounds"`
	Paused     time.Duration `json:"paused_ns"` // for which writes were held back
	Damaged    int64         `json:"damaged,omitempty"`
	Examples   [][]byte      `json:"damaged_keys,omitempty"`
}

type endInfo struct {
	Namespaces int   `json:"namespaces"`
	Records    int64 `json:"records"`
}

type failInfo struct {
	Text string `json:"text"`
	Kind string `json:"kind,omitempty"`
}

func (s *Snapshotter) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Snapshotter) margin() time.Duration {
	switch {
	case s.Margin != 0:
		return s.Margin
	case s.Retention != 0:
		return min(DefaultMargin, s.Retention/4)
	}
	return DefaultMargin
}

// Check returns an error that wraps ErrTooOld if deletions since a cut may have
// been forgotten: then only a full snapshot tells of them.
func (s *Snapshotter) Check(wanted []Wanted) error {
	for _, w := range wanted {
		if _, err := namespaceID(w.ID); err != nil {
			return err
		}
		if _, err := s.after(w); err != nil {
			return fmt.Errorf("namespace %s: %w", w.ID, err)
		}
	}
	return nil
}

// after is the time after which records are wanted; zero: all.
func (s *Snapshotter) after(w Wanted) (time.Time, error) {
	if w.Since == "" {
		return time.Time{}, nil
	}
	since, err := kv.ParseVersion(w.Since)
	if err != nil {
		return time.Time{}, err
	}
	after := since.Time().Add(-s.margin())
	if age := s.now().Sub(after); s.Retention != 0 && age >= s.Retention {
		return time.Time{}, fmt.Errorf("%w: it was cut %s ago, and they are certain to be remembered for %s less a margin of %s; take a full snapshot",
			ErrTooOld, s.now().Sub(since.Time()).Round(time.Second), s.Retention, s.margin())
	}
	return after, nil
}

// Run takes snapshots one namespace after the other and writes them to w as one
// stream. Once it has written anything an error is told in the stream, too.
func (s *Snapshotter) Run(ctx context.Context, wanted []Wanted, w io.Writer) error {
	out := newSender(w)
	defer out.close()
	err := s.run(ctx, wanted, out)
	if err != nil {
		fail := failInfo{Text: err.Error(), Kind: kindOf(err)}
		_ = out.send(jsonFrame(frameFailed, fail)) // whoever is gone sees that there is no end
	}
	return err
}

func (s *Snapshotter) run(ctx context.Context, wanted []Wanted, out *sender) error {
	if err := out.begin(beginInfo{Started: s.now().UTC(), Origin: s.Origin, Version: s.Version}); err != nil {
		return err
	}
	var end endInfo
	for _, want := range wanted {
		info, err := s.namespace(ctx, want, out)
		switch {
		case errors.Is(err, errGone):
			err = out.send(jsonFrame(frameGone, want.Namespace))
		case err == nil:
			end.Namespaces++
			end.Records += info.Records
			err = out.send(jsonFrame(frameCut, info))
		}
		if err != nil {
			return fmt.Errorf("back up namespace %s: %w", want.ID, err)
		}
	}
	return out.send(jsonFrame(frameEnd, end))
}

// taking is the snapshot of one namespace while it is taken.
type taking struct {
	*Snapshotter
	ns     kv.NamespaceID
	after  time.Time
	want   Wanted
	watch  *watch
	reader reader
	info   cutInfo
	newest kv.Version
}

func (s *Snapshotter) namespace(ctx context.Context, want Wanted, out *sender) (cutInfo, error) {
	ns, err := namespaceID(want.ID)
	if err != nil {
		return cutInfo{}, err
	}
	after, err := s.after(want)
	if err != nil {
		return cutInfo{}, err
	}
	var restored time.Time
	if want.Since != "" {
		if restored, err = s.restored(ctx, ns); err != nil {
			return cutInfo{}, err
		}
	}
	if !restored.Before(after) { // what was put back is younger than its versions say
		want.Since, after = "", time.Time{}
	}
	if err := out.send(jsonFrame(frameNamespace, want)); err != nil {
		return cutInfo{}, err
	}
	settling, cancel := context.WithTimeout(ctx, settleTimeout)
	watch, err := s.Barrier.watch(settling, ns)
	cancel()
	if err != nil {
		return cutInfo{}, err
	}
	defer watch.close()
	t := &taking{Snapshotter: s, ns: ns, after: after, want: want, watch: watch, reader: reader{store: s.Barrier.far}}
	if err := t.scan(ctx, out); err != nil {
		return cutInfo{}, err
	}
	if err := t.catchUp(ctx, out); err != nil {
		return cutInfo{}, err
	}
	return t.info, errors.Join(t.stands(ctx, restored), out.flushRecords())
}

// stands returns an error if what was begun to be taken is not enough any more.
func (t *taking) stands(ctx context.Context, restored time.Time) error {
	// Deletions may have been forgotten while all this went on.
	if _, err := t.Snapshotter.after(t.want); err != nil {
		return err
	}
	if t.after.IsZero() {
		return nil
	}
	again, err := t.restored(ctx, t.ns)
	if err == nil && !again.Equal(restored) {
		err = fmt.Errorf("%w: records were restored into the namespace meanwhile; repeat the backup", ErrRefused)
	}
	return err
}

// scan reads the namespace once, in the order of its keys.
func (t *taking) scan(ctx context.Context, out *sender) error {
	keys := newCursor(t.Barrier.far, t.ns)
	if t.page != 0 {
		keys.limit = t.page
	}
	for {
		page, err := keys.next(ctx)
		if err != nil {
			return err
		}
		if page == nil {
			return nil
		}
		if err := t.readPage(ctx, page, out); err != nil {
			return err
		}
		if err := t.watch.check(); err != nil {
			return err
		}
		if t.watch.noted() >= drainAt && !t.noRounds {
			if err := t.round(ctx, out); err != nil {
				return err
			}
		}
	}
}

// readPage sends what is wanted of a page. A listing has all of a tombstone.
func (t *taking) readPage(ctx context.Context, page []kv.Listed, out *sender) error {
	t.info.Listed += int64(len(page))
	var keys []string
	for _, k := range page {
		switch {
		case !t.wanted(k.Record):
		case k.Record.Tombstone:
			if err := t.send(out, k.Key, k.Record); err != nil {
				return err
			}
		default:
			keys = append(keys, k.Key)
		}
	}
	return t.reader.read(ctx, t.ns, keys, func(key string, rec kv.Record) error { return t.send(out, key, rec) }, t.damaged)
}

func (t *taking) wanted(rec kv.Record) bool {
	return !rec.Absent() && (t.after.IsZero() || !rec.Version.Time().Before(t.after))
}

// recordSink takes records: a stream, or memory while writes are held back.
type recordSink interface {
	record(key string, rec kv.Record) error
}

// send gives a record to a sink and counts it.
func (t *taking) send(out recordSink, key string, rec kv.Record) error {
	if !t.wanted(rec) {
		return nil // it was forgotten or dropped meanwhile
	}
	if err := out.record(key, rec); err != nil {
		return err
	}
	t.info.Records++
	t.info.Bytes += int64(rec.Bytes())
	if rec.Tombstone {
		t.info.Tombstones++
	}
	if rec.Version.Compare(t.newest) > 0 {
		t.newest = rec.Version
	}
	return nil
}

func (t *taking) damaged(key string, _ error) {
	t.info.Damaged++
	if len(t.info.Examples) < maxDamaged {
		t.info.Examples = append(t.info.Examples, []byte(key))
	}
}

// round reads again what was written since it was read.
func (t *taking) round(ctx context.Context, out *sender) error {
	t.info.Rounds++
	settling, cancel := context.WithTimeout(ctx, settleTimeout)
	keys, err := t.watch.take(settling)
	cancel()
	if err != nil {
		return err
	}
	return t.again(ctx, keys, out)
}

func (t *taking) again(ctx context.Context, keys []string, out recordSink) error {
	slices.Sort(keys)
	return t.reader.read(ctx, t.ns, keys, func(key string, rec kv.Record) error { return t.send(out, key, rec) }, t.damaged)
}

// catchUp makes what was sent the state of one moment.
func (t *taking) catchUp(ctx context.Context, out *sender) error {
	for !t.noRounds && t.info.Rounds < MaxRounds {
		if err := t.watch.check(); err != nil {
			return err
		}
		if t.watch.noted() <= lastKeys {
			done, err := t.last(ctx, out)
			if done || err != nil {
				return err
			}
		}
		if err := t.round(ctx, out); err != nil {
			return err
		}
	}
	if t.noRounds {
		t.cut(t.now())
		return nil
	}
	return fmt.Errorf("%w: after %d rounds there was still more to read again than could be read within a pause of %s", ErrBusy, MaxRounds, t.maxPause())
}

func (t *taking) maxPause() time.Duration {
	if t.MaxPause == 0 {
		return DefaultMaxPause
	}
	return t.MaxPause
}

// last reads what is left while writes are held back. It reports false if that was
// too much for a pause.
func (t *taking) last(ctx context.Context, out *sender) (bool, error) {
	t.info.Rounds++
	if t.noHold {
		t.cut(t.now())
		keys, err := t.watch.take(ctx)
		if err != nil {
			return false, err
		}
		return true, t.again(ctx, keys, out)
	}
	before, newest := t.info, t.newest
	var left kept
	began := t.now()
	cut, done, err := t.watch.finish(ctx, t.maxPause(), t.now, func(ctx context.Context, keys []string) error {
		return t.again(ctx, keys, &left)
	})
	before.Paused += t.now().Sub(began)
	if errors.Is(err, errTooMuch) {
		err = nil
	}
	if !done || err != nil {
		t.info, t.newest = before, newest
		return false, err
	}
	t.info.Paused = before.Paused
	if err := t.watch.check(); err != nil {
		return false, err
	}
	t.cut(cut)
	return true, left.replay(out)
}

// cut notes the cut: a version that no record of the snapshot is newer than.
func (t *taking) cut(at time.Time) {
	v := kv.NewVersion(at.UnixNano(), 1<<16-1, 1<<48-1)
	if t.newest.Compare(v) > 0 {
		v = t.newest
	}
	t.info.Cut = v.String()
}

// kept keeps records until the writes go on.
type kept struct {
	keys  []string
	recs  []kv.Record
	bytes int
}

var errTooMuch = errors.New("more than is kept in memory")

func (m *kept) record(key string, rec kv.Record) error {
	if m.bytes += rec.Bytes() + len(key); m.bytes > lastBytes {
		return errTooMuch
	}
	m.keys, m.recs = append(m.keys, key), append(m.recs, rec)
	return nil
}

func (m *kept) replay(out *sender) error {
	for i := range m.keys {
		if err := out.record(m.keys[i], m.recs[i]); err != nil {
			return err
		}
	}
	return nil
}

// sender writes a stream of frames, and tells that it lives when there is nothing
// else to tell.
type sender struct {
	stop, ended chan struct{} // of the heart; nil before begin

	mu   sync.Mutex // guards the rest
	w    io.Writer
	buf  frame // of records
	err  error // why nothing more can be written
	said bool  // something was written since the last beat
}

func newSender(w io.Writer) *sender {
	return &sender{w: w, buf: make(frame, frameHead, frameHead+MaxFrameBytes)}
}

// begin writes the beginning and starts the heart, which close stops.
func (s *sender) begin(info beginInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write([]byte(streamMagic))
	s.write(jsonFrame(frameBegin, info))
	s.stop, s.ended = make(chan struct{}), make(chan struct{})
	go s.beat()
	return s.err
}

func (s *sender) beat() {
	defer close(s.ended)
	tick := time.NewTicker(heartEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if !s.said {
			s.write(newFrame(frameHeart, nil))
		}
		s.said = false
		s.mu.Unlock()
	}
}

// write is called with mu held.
func (s *sender) write(b []byte) {
	if s.err == nil {
		s.said = true
		if _, err := s.w.Write(b); err != nil {
			s.err = fmt.Errorf("send the snapshot: %w", err)
		}
	}
}

// send writes a frame after the records before it.
func (s *sender) send(f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flush()
	s.write(f)
	return s.err
}

// flush is called with mu held.
func (s *sender) flush() {
	if len(s.buf) > frameHead {
		s.buf.seal(frameRecords)
		s.write(s.buf)
		s.buf = s.buf[:frameHead]
	}
}

func (s *sender) flushRecords() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flush()
	return s.err
}

// record adds a record to the frame in making.
func (s *sender) record(key string, rec kv.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	head := appendHead(make([]byte, 0, len(key)+len(rec.Metadata)+64), key, rec)
	for _, part := range [][]byte{head, rec.Value} {
		for len(part) > 0 && s.err == nil {
			room := frameHead + MaxFrameBytes - len(s.buf)
			n := min(room, len(part))
			s.buf = append(s.buf, part[:n]...)
			if part = part[n:]; n == room {
				s.flush()
			}
		}
	}
	return s.err
}

// close stops the heart.
func (s *sender) close() {
	if s.stop != nil {
		close(s.stop)
		<-s.ended
	}
}

// kinds are the errors that are told by name in a stream.
var kinds = map[string]error{"too old": ErrTooOld, "busy": ErrBusy, "refused": ErrRefused}

func kindOf(err error) string {
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}

// remoteError is an error that was told in a stream.
func (f failInfo) error() error {
	if kind, ok := kinds[f.Kind]; ok {
		return &remote{f.Text, kind}
	}
	return fmt.Errorf("the server gave up: %s", f.Text)
}

type remote struct {
	text string
	kind error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.kind }
