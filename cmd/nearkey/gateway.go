package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/disk"
)

// The files under the data directory of a process with providers.
const (
	journalDir   = "gateway" // what the gateway must not forget
	shardsPrefix = "shards-" // before the name of a provider: where its keys are
)

// far is what the records of a centre rest on.
type far struct {
	store kv.Store
	ready func() error
	sole  bool // what it answers is always the newest there is

	retention time.Duration // of deletions

	// If there are providers:
	gateway *gateway.Gateway
	shards  map[string]*proxy.Shards // by provider
	acks    *catalog.Acks
}

// openFar opens what the records rest on: the store of the data directory or, if
// there are providers, a gateway before them.
func (s *service) openFar(ctx context.Context, cat *catalog.Catalog, stamp *kv.Stamper) (far, error) {
	if s.config.hasProviders() {
		return s.openGateway(ctx, cat, stamp)
	}
	store, err := s.openStore()
	if err != nil {
		return far{}, err
	}
	stamp.Observe(store.Newest())
	s.work = append(s.work, store.Run)
	return far{store: store, ready: store.Ready, sole: true, retention: time.Duration(s.config.TombstoneRetention)}, nil
}

// openGateway opens the providers and the gateway before them.
func (s *service) openGateway(ctx context.Context, cat *catalog.Catalog, stamp *kv.Stamper) (far, error) {
	journal, err := s.openJournal()
	if err != nil {
		return far{}, err
	}
	mark, err := loadMark(journal)
	if err != nil {
		return far{}, err
	}
	stamp.Observe(mark.start)
	acks, err := catalog.NewAcks(ctx, cat, s.logger)
	if err != nil {
		return far{}, err
	}
	var damaged atomic.Pointer[gateway.Gateway] // whom to tell of values that are missing
	providers, shards, err := s.openProviders(ctx, func(ref kv.Ref) {
		if g := damaged.Load(); g != nil {
			g.Repair(ref)
		}
	})
	if err != nil {
		return far{}, err
	}
	c := s.config.Gateway
	g, err := gateway.New(providers, gateway.Options{
		Journal: entries{journal}, Both: ackOf(acks, c.Ack),
		Deadline: time.Duration(c.Deadline), Hedge: time.Duration(c.Hedge), ForgetAfter: time.Duration(c.ForgetAfter),
		CrawlEvery: time.Duration(c.CrawlEvery), CrawlRate: int(c.CrawlRate), MaxQueued: int(c.MaxQueued),
		MaxLate: s.memory.late, Node: uint16(c.Node), Logger: s.logger,
	})
	if err != nil {
		return far{}, usagef("open the gateway in %s: %w", filepath.Join(s.config.Data, journalDir), err)
	}
	damaged.Store(g)
	gatewayMetrics(s.metrics, g)
	s.work = append(s.work, acks.Run, g.Run, mark.Run)
	return far{store: marked{g, mark}, ready: g.Ready, retention: time.Duration(c.ForgetAfter), gateway: g, shards: shards, acks: acks}, nil
}

// ackOf says of which namespaces a write is acknowledged by both providers.
func ackOf(acks *catalog.Acks, otherwise string) func(kv.NamespaceID) bool {
	return func(ns kv.NamespaceID) bool {
		switch acks.Of(ns) {
		case catalog.AckBoth:
			return true
		case catalog.AckFirst:
			return false
		}
		return otherwise == ackBoth
	}
}

// openJournal opens the journal of the gateway. If its disk fails later the process
// goes on: what is lost then, should it end, is only how soon what differs is found.
func (s *service) openJournal() (*disk.Journal, error) {
	journal, err := disk.OpenJournal(filepath.Join(s.config.Data, journalDir), disk.Options{Logger: s.logger})
	if err != nil {
		return nil, fmt.Errorf("open the journal of the gateway in %s: %w", s.config.Data, err)
	}
	s.opened = append(s.opened, journal.Close)
	s.metrics.Gauge("nearkey_journal_writable", "1 while the journal of the gateway takes entries.", func() float64 { return number(journal.Ready() == nil) })
	return journal, nil
}

// entries is the journal as a gateway has it: without the mark, which is ours.
type entries struct{ *disk.Journal }

// Load implements gateway.Journal.
func (e entries) Load(each func(gateway.Entry) error) error {
	return e.Journal.Load(func(entry gateway.Entry) error {
		if entry.Key == keyMark {
			return nil
		}
		return each(entry)
	})
}

// keyMark is the entry of the journal that holds the mark.
const keyMark = "c/mark"

// markAhead is how far the mark is kept ahead of what was seen, so that it is not
// kept anew with every write, and markRetry when keeping it is tried again.
const (
	markAhead = 2 * time.Second
	markRetry = time.Second
)

// mark is a moment that is kept in the journal and that is later than all versions
// which passed this process: one that starts with a clock that was set back stamps
// none that would lose to them.
type mark struct {
	journal *disk.Journal
	start   kv.Version    // as it was kept at the start
	newest  atomic.Int64  // of the versions seen, ns since 1970
	kept    atomic.Int64  // in the journal
	passed  chan struct{} // holds a token when newest has passed kept
}

func loadMark(journal *disk.Journal) (*mark, error) {
	m := &mark{journal: journal, passed: make(chan struct{}, 1)}
	err := journal.Load(func(e disk.JournalEntry) error {
		if e.Key != keyMark {
			return nil
		}
		at, err := strconv.ParseInt(string(e.Value), 10, 64)
		if err != nil {
			return fmt.Errorf("the mark of the newest version: %w", err)
		}
		m.kept.Store(at)
		m.start = kv.NewVersion(at, 0, 0)
		return nil
	})
	return m, err
}

// see notes versions.
func (m *mark) see(changes []kv.Change) {
	newest := m.newest.Load()
	for i := range changes {
		newest = max(newest, changes[i].Version.UnixNano())
	}
	for old := m.newest.Load(); newest > old && !m.newest.CompareAndSwap(old, newest); {
		old = m.newest.Load()
	}
	if newest > m.kept.Load() {
		select {
		case m.passed <- struct{}{}:
		default:
		}
	}
}

// Run keeps the mark ahead of what was seen until ctx ends.
func (m *mark) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.passed:
		}
		next := m.newest.Load() + int64(markAhead)
		value := strconv.AppendInt(nil, next, 10)
		err := m.journal.Apply(ctx, []disk.JournalEntry{{Key: keyMark, Value: value}}, true)
		if err == nil {
			m.kept.Store(next)
			continue
		}
		select { // the next change sees to another attempt
		case <-ctx.Done():
			return nil
		case <-time.After(markRetry):
		}
	}
}

// marked is a gateway whose changes are noted in a mark.
type marked struct {
	*gateway.Gateway
	mark *mark
}

// Changes implements the ability of kv.Changes.
func (m marked) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	changes, next, err := m.Gateway.Changes(ctx, after, limit)
	m.mark.see(changes)
	return changes, next, err
}
