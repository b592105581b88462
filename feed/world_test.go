package feed_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// seeds returns the seeds of a random test: some, or the one that FEED_SEED names.
func seeds(t *testing.T, n int) []uint64 {
	t.Helper()
	if text := os.Getenv("FEED_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{seed}
	}
	all := make([]uint64, n)
	for i := range all {
		all[i] = rand.Uint64()
	}
	return all
}

// logStore is a memory store whose change log can be trimmed and lost.
type logStore struct {
	*memory.Store

	mu     sync.Mutex // guards the rest
	epochs uint64     // added to the epoch
	oldest uint64     // changes up to it are gone
	fail   error      // of Changes
}

func (s *logStore) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	s.mu.Lock()
	epochs, oldest, fail := s.epochs, s.oldest, s.fail
	s.mu.Unlock()
	if fail != nil {
		return nil, kv.Cursor{}, fail
	}
	if after != (kv.Cursor{}) {
		if after.Seq < oldest {
			return nil, kv.Cursor{}, fmt.Errorf("trimmed: %w", kv.ErrCursorGone)
		}
		after.Epoch -= epochs
	}
	changes, next, err := s.Store.Changes(ctx, after, limit)
	for i := range changes {
		changes[i].Cursor.Epoch += epochs
	}
	next.Epoch += epochs
	return changes, next, err
}

func (s *logStore) AwaitChange(ctx context.Context, after kv.Cursor) error {
	s.mu.Lock()
	after.Epoch -= s.epochs
	s.mu.Unlock()
	return s.Store.AwaitChange(ctx, after)
}

// lose begins another epoch; trim forgets all changes so far.
func (s *logStore) lose() { s.mu.Lock(); s.epochs++; s.mu.Unlock() }
func (s *logStore) trim() {
	_, head, _ := s.Store.Changes(context.Background(), kv.Cursor{}, 1)
	s.mu.Lock()
	s.oldest = head.Seq
	s.mu.Unlock()
}

func (s *logStore) failWith(err error) { s.mu.Lock(); s.fail = err; s.mu.Unlock() }

// world is a store with what it has acknowledged, and when.
type world struct {
	store *logStore
	stamp *kv.Stamper

	mu    sync.Mutex // guards acked
	acked map[kv.Ref][]ack
}

type ack struct {
	at      time.Time
	version kv.Version
}

func newWorld() *world {
	return &world{store: &logStore{Store: memory.New()}, stamp: kv.NewStamper(1, nil), acked: map[kv.Ref][]ack{}}
}

func ref(i int) kv.Ref { return kv.Ref{Key: fmt.Sprint("key ", i)} }

// put writes a key. told, if not nil, is called between the store's acknowledgement
// and the writer's.
func (w *world) put(r kv.Ref, tell func(kv.Change) error) error {
	v, err := w.stamp.Stamp()
	if err != nil {
		return err
	}
	if err := w.store.Put(context.Background(), r, kv.Record{Version: v}); err != nil {
		return err
	}
	if tell != nil {
		if err := tell(kv.Change{Ref: r, Version: v}); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[r] = append(w.acked[r], ack{time.Now(), v})
	return nil
}

// newest is the newest version acknowledged before a moment.
func (w *world) newest(r kv.Ref, before time.Time) (v kv.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.acked[r] {
		if a.at.Before(before) && a.version.Compare(v) > 0 {
			v = a.version
		}
	}
	return v
}

// tier is the model of what believes a feed: copies, each with the moment up to
// which it is believed to be current.
type tier struct {
	w      *world
	shared bool // answers only with a lease
	greedy bool // a control: forgets about leases

	mu      sync.Mutex // guards the rest
	copies  map[kv.Ref]held
	known   map[kv.Ref]kv.Version
	session int
	current time.Time
	lease   time.Time
	wrong   []string
	checks  int
	sure    int // copies believed to be current through the feed
}

type held struct {
	version kv.Version
	asOf    time.Time
	session int
}

func newTier(w *world) *tier {
	return &tier{w: w, copies: map[kv.Ref]held{}, known: map[kv.Ref]kv.Version{}}
}

func (s *tier) Changed(changes []kv.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		if c.Version.Compare(s.known[c.Ref]) > 0 {
			s.known[c.Ref] = c.Version
		}
		if s.copies[c.Ref].version.Compare(c.Version) < 0 {
			delete(s.copies, c.Ref)
		}
	}
}

func (s *tier) Told(changes []kv.Change) { s.Changed(changes) }

func (s *tier) Current(asOf time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if asOf.After(time.Now()) {
		s.wrong = append(s.wrong, fmt.Sprintf("current as of %s in the future", time.Until(asOf)))
	}
	s.current = asOf
	s.check()
}

func (s *tier) Broken() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session++
	s.current = time.Time{}
	if s.shared {
		clear(s.copies) // what was told may be among what was missed
	}
}

func (s *tier) Lease(until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = until
}

// fetch makes a copy of a key, as slowly as pauses says.
func (s *tier) fetch(r kv.Ref, pause func()) {
	s.mu.Lock()
	asked, session := time.Now(), s.session
	s.mu.Unlock()
	pause()
	rec, err := s.w.store.Get(context.Background(), r, 0)
	if err != nil {
		panic(err)
	}
	pause()
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec.Version.Compare(s.known[r]) < 0 || s.shared && session != s.session {
		return
	}
	s.copies[r] = held{rec.Version, asked, session}
}

// check is called with mu held: no copy is older than what was acknowledged when
// it is believed to have been the newest.
func (s *tier) check() {
	for r, c := range s.copies {
		s.checks++
		believed := c.asOf
		if c.session == s.session && s.current.After(believed) {
			believed = s.current
			s.sure++
		}
		if newest := s.w.newest(r, believed); newest.Compare(c.version) > 0 {
			s.wrong = append(s.wrong, fmt.Sprintf("%s: %s is believed to be the newest as of %s ago, %s had been acknowledged",
				r.Key, c.version, time.Since(believed), newest))
		}
	}
}

// read answers from the copy if it may, and remembers what it should not have
// answered: less than was acknowledged before the read began.
func (s *tier) read(r kv.Ref) (fromCopy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.copies[r]
	if !ok || !s.greedy && !time.Now().Before(s.lease) {
		return false
	}
	if newest := s.w.newest(r, time.Now()); newest.Compare(c.version) > 0 {
		s.wrong = append(s.wrong, fmt.Sprintf("%s: read %s after %s was acknowledged in this point of presence", r.Key, c.version, newest))
	}
	return true
}

func (s *tier) verdict() (wrong []string, sure int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.check()
	return s.wrong, s.sure
}

var errCut = errors.New("injected: the connection is cut")

// faults is a stream on which things go wrong.
type faults struct {
	feed.Stream
	rng  *rand.Rand
	most time.Duration // the longest delay

	drop, repeat, swap, delay, cut, hang float64 // how often
	rate                                 float64 // of the sender's clock, in the follower's; 0: 1
	mend                                 bool    // a control: hides gaps from the follower
}

// Follow implements feed.Stream.
func (f *faults) Follow(ctx context.Context, after kv.Cursor, each func(feed.Message) error) error {
	pause(ctx, time.Duration(f.rng.Int64N(int64(f.most)))) // the request is on its way
	return f.Stream.Follow(ctx, after, f.link(ctx, after, each))
}

// link is what is put into a link that ends at give.
func (f *faults) link(ctx context.Context, after kv.Cursor, give func(feed.Message) error) func(feed.Message) error {
	var kept *feed.Message
	cursor, acks := after, uint64(0)
	arrive := func(m feed.Message) error {
		if f.rate != 0 {
			m.Elapsed = time.Duration(float64(m.Elapsed) * f.rate)
		}
		if f.mend {
			m.From, acks = cursor, acks+uint64(len(m.Told))
			m.Acks, cursor = acks, m.To
		}
		return give(m)
	}
	return func(m feed.Message) error {
		if f.chance(f.delay) {
			pause(ctx, time.Duration(f.rng.Int64N(int64(f.most))))
		}
		if f.chance(f.hang) {
			pause(ctx, time.Duration(f.rng.Int64N(int64(2*feed.SilentAfter))))
		}
		switch {
		case f.chance(f.cut):
			return errCut
		case f.chance(f.drop):
			return nil
		case kept == nil && f.chance(f.swap):
			kept = &m
			return nil
		}
		if err := arrive(m); err != nil {
			return err
		}
		if f.chance(f.repeat) {
			if err := arrive(m); err != nil {
				return err
			}
		}
		if kept != nil {
			late := *kept
			kept = nil
			return arrive(late)
		}
		return nil
	}
}

func (f *faults) chance(p float64) bool { return f.rng.Float64() < p }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
