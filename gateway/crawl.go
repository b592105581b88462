package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// crawl is what is known of the crawls.
type crawl struct {
	one    lock       // there is one crawl at a time
	mu     sync.Mutex // guards the rest
	status CrawlStatus
	asked  bool
}

// CrawlStatus tells of the crawl under way, or of the last one.
type CrawlStatus struct {
	Running   bool
	Reason    string
	Namespace kv.NamespaceID // where it is
	Key       string
	Compared  uint64 // keys
	Drift     uint64 // of which providers differed
	Repaired  uint64 // given to the repair queue
	Forgotten uint64 // tombstones
	Started   time.Time
	Finished  time.Time // zero: none has
	Err       string    // why the last one ended early
}

// How the background crawls.
const (
	crawlPage    = 1000
	crawlQueued  = 50_000      // keys in the repair queue above which a crawl waits
	crawlPause   = time.Second // after a crawl, that one that could not do everything does not begin again at once
	crawlLook    = time.Second
	confirmAfter = 50 * time.Millisecond // before a difference is believed: a write may be under way
)

// crawlLoop crawls when it is time, or when there is doubt, until ctx ends.
func (g *Gateway) crawlLoop(ctx context.Context) {
	if g.opts.Off.Crawl {
		return
	}
	last := time.Now()
	for ctx.Err() == nil {
		changed := g.changed.C()
		g.join(ctx)
		if reason := g.crawlReason(last); reason != "" && g.upMask() == g.mask(used...) {
			err := g.crawlOnce(ctx, reason)
			if err == nil {
				last = time.Now()
			} else if ctx.Err() == nil {
				g.opts.Logger.Warn("crawl; it begins again", "reason", reason, "error", err)
			}
			sleep(ctx, crawlPause)
			continue
		}
		wait := time.NewTimer(crawlLook)
		select {
		case <-changed:
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// join has new providers filled that are empty.
func (g *Gateway) join(ctx context.Context) {
	if g.admin.take(ctx) != nil {
		return
	}
	defer g.admin.give()
	for _, m := range g.members {
		if !m.kept.Joining || !m.store.Up() {
			continue
		}
		empty, err := g.empty(ctx, m)
		switch {
		case err != nil:
			g.opts.Logger.Warn("look into a new provider; it is tried again", "provider", m.name, "error", err)
			continue
		case empty:
			err = g.filling(ctx, m)
		default:
			g.opts.Logger.Error("a new provider holds records of unknown age, which could bring deleted keys back; it is not used. Have it emptied and filled", "provider", m.name)
			err = g.keep(ctx, m, kept{State: Removed})
		}
		if err != nil && ctx.Err() == nil {
			g.opts.Logger.Error("take up a new provider", "provider", m.name, "error", err)
		}
	}
}

// The reasons of crawls.
const (
	reasonAsked   = "asked for"
	reasonFill    = "filling"
	reasonTrust   = "a provider went back in time, or its contents are not known"
	reasonDoubt   = "doubtful namespaces"
	reasonRoutine = "routine"
)

// crawlReason is why it is time for a crawl; empty: it is not.
func (g *Gateway) crawlReason(last time.Time) string {
	g.crawl.mu.Lock()
	asked := g.crawl.asked
	g.crawl.mu.Unlock()
	if asked {
		return reasonAsked
	}
	for _, m := range g.with(used...) {
		switch {
		case m.distrusted.Load():
			return reasonTrust
		case m.state.Load() == filling && !m.filled.Load():
			return reasonFill
		}
	}
	if len(g.doubt.waiting()) > 0 {
		return reasonDoubt
	}
	if g.opts.CrawlEvery > 0 && time.Since(last) >= g.opts.CrawlEvery {
		return reasonRoutine
	}
	return ""
}

// Crawl compares all providers in all namespaces and returns when all that differed
// is in the repair queue.
func (g *Gateway) Crawl(ctx context.Context) error { return g.crawlOnce(ctx, reasonAsked) }

// crawlOnce makes a crawl: of doubtful namespaces, or of all.
func (g *Gateway) crawlOnce(ctx context.Context, reason string) (err error) {
	if err := g.crawl.one.take(ctx); err != nil {
		return fmt.Errorf("crawl: %w", err)
	}
	defer g.crawl.one.give()
	g.note(func(s *CrawlStatus) {
		*s = CrawlStatus{Running: true, Reason: reason, Started: time.Now(), Finished: s.Finished}
		g.crawl.asked = false
	})
	defer func() {
		g.note(func(s *CrawlStatus) {
			s.Running = false
			if err != nil {
				s.Err = err.Error()
			} else {
				s.Finished = time.Now()
			}
		})
	}()
	g.opts.Logger.Info("crawl", "reason", reason)
	members := g.with(used...)
	doubted := map[*member]uint64{}
	for _, m := range members {
		doubted[m] = m.doubted.Load()
	}
	if reason == reasonDoubt {
		waiting := g.doubt.waiting()
		for _, ns := range inOrder(waiting) {
			if err := g.crawlNamespace(ctx, ns, waiting[ns], members); err != nil {
				return err
			}
		}
		return nil
	}
	waiting := g.doubt.waiting()
	err = g.eachNamespace(ctx, members, func(ns kv.NamespaceID) error {
		told := waiting[ns]
		delete(waiting, ns)
		return g.crawlNamespace(ctx, ns, told, members)
	})
	if err != nil {
		return err
	}
	for _, ns := range inOrder(waiting) { // those that hold nothing
		if err := g.doubt.cleared(ctx, ns, waiting[ns]); err != nil {
			return err
		}
	}
	return g.crawledAll(ctx, doubted)
}

func inOrder[T any](namespaces map[kv.NamespaceID]T) []kv.NamespaceID {
	return slices.SortedFunc(maps.Keys(namespaces), func(a, b kv.NamespaceID) int { return bytes.Compare(a[:], b[:]) })
}

// crawledAll ends the distrust of members that has not begun anew since the crawl began.
func (g *Gateway) crawledAll(ctx context.Context, doubted map[*member]uint64) error {
	if err := g.queue.flush(ctx); err != nil {
		return fmt.Errorf("keep the repair queue: %w", err)
	}
	if err := g.admin.take(ctx); err != nil {
		return err
	}
	defer g.admin.give()
	for _, m := range g.members {
		n, ok := doubted[m]
		state := m.state.Load()
		if !ok || m.doubted.Load() != n || state == removed || !m.distrusted.Load() && (state != filling || m.filled.Load()) {
			continue
		}
		if err := g.keep(ctx, m, kept{State: states[state], Filled: state == filling}); err != nil {
			return err
		}
		g.opts.Logger.Info("a provider was compared with the others", "provider", m.name, "state", states[state])
	}
	return nil
}

// eachNamespace calls f for every namespace that any of the members holds. All of
// them must answer.
func (g *Gateway) eachNamespace(ctx context.Context, members []*member, f func(kv.NamespaceID) error) error {
	var after kv.NamespaceID
	for {
		lists, err := fromAll(ctx, members, func(ctx context.Context, i int) ([]kv.NamespaceID, error) {
			return members[i].store.Namespaces(ctx, after, kv.MaxNamespaces)
		})
		if err != nil {
			return fmt.Errorf("list the namespaces: %w", err)
		}
		byMember := map[mask][]kv.NamespaceID{}
		for i, m := range members {
			byMember[m.bit] = lists[i]
		}
		found, last := mergeNamespaces(byMember)
		if len(found) == 0 {
			return nil
		}
		after = last
		for _, ns := range found {
			if g.hidden(ns) {
				continue
			}
			if err := f(ns); err != nil {
				return err
			}
		}
	}
}

// fromAll asks all members at once; the first error ends it.
func fromAll[T any](ctx context.Context, members []*member, ask func(ctx context.Context, i int) (T, error)) ([]T, error) {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	got, errs := make([]T, len(members)), make([]error, len(members))
	var all sync.WaitGroup
	for i := range members {
		all.Go(func() {
			if got[i], errs[i] = ask(own, i); errs[i] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	return got, errors.Join(errs...)
}

// crawlNamespace compares one namespace, gives what differs to the repair queue and
// has tombstones forgotten. Then the namespace, as doubtful as told, is so no more.
func (g *Gateway) crawlNamespace(ctx context.Context, ns kv.NamespaceID, told uint64, members []*member) error {
	if len(g.doubt.toDrop()) > 0 && g.doubt.toDrop()[ns] != 0 {
		return nil // what is left of it is on its way out
	}
	began, compared := time.Now(), 0
	err := compare(ctx, ns, members, func(rows []row) error {
		compared += len(rows)
		var differ []row
		var tombs []kv.Tomb
		for _, r := range rows {
			switch {
			case r.lacking != 0:
				differ = append(differ, r)
			case g.forgettable(r, ns):
				tombs = append(tombs, kv.Tomb{Ref: kv.Ref{Namespace: ns, Key: r.key}, Version: r.newest.Version})
			}
		}
		found, err := g.confirm(ctx, ns, members, differ)
		if err != nil {
			return err
		}
		b := g.queue.batch()
		for _, r := range found {
			b.differ(kv.Ref{Namespace: ns, Key: r.key}, r.newest.Version, r.lacking)
		}
		b.end()
		if err := g.forget(ctx, members, tombs); err != nil {
			return err
		}
		g.note(func(s *CrawlStatus) {
			s.Namespace, s.Key = ns, rows[len(rows)-1].key
			s.Compared += uint64(len(rows))
			s.Drift += uint64(len(found))
			s.Repaired += uint64(len(found))
			s.Forgotten += uint64(len(tombs))
		})
		g.pace(ctx, began, compared, g.opts.CrawlRate)
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("compare namespace %s: %w", ns, err)
	}
	if err := g.queue.flush(ctx); err != nil {
		return fmt.Errorf("keep the repair queue: %w", err)
	}
	return g.doubt.cleared(ctx, ns, told)
}

// pace waits as the rate of keys a second wants, and for the repair queue.
func (g *Gateway) pace(ctx context.Context, began time.Time, keys, rate int) {
	if rate > 0 {
		due := began.Add(time.Duration(float64(keys) / float64(rate) * float64(time.Second)))
		if d := time.Until(due); d > 0 {
			sleep(ctx, d)
		}
	}
	for g.queue.depth.Load() > crawlQueued && ctx.Err() == nil && g.upMask() == g.mask(used...) {
		sleep(ctx, backOffLeast)
	}
}

// forgettable reports whether a row that all members agree in is a tombstone that
// nothing can need any more.
func (g *Gateway) forgettable(r row, ns kv.NamespaceID) bool {
	if !r.newest.Tombstone || g.opts.ForgetAfter < 0 || time.Since(r.newest.Version.Time()) < g.opts.ForgetAfter {
		return false
	}
	lacking, _, _ := g.queue.lacks(kv.Ref{Namespace: ns, Key: r.key})
	return lacking == 0
}

// forget removes tombstones from all members, unless one of them may not be what
// it seems.
func (g *Gateway) forget(ctx context.Context, members []*member, tombs []kv.Tomb) error {
	if len(tombs) == 0 {
		return nil
	}
	for _, m := range members {
		if m.distrusted.Load() {
			return nil
		}
	}
	_, err := fromAll(ctx, members, func(ctx context.Context, i int) (struct{}, error) {
		return struct{}{}, members[i].store.Forget(ctx, tombs)
	})
	if err != nil {
		return fmt.Errorf("remove tombstones: %w", err)
	}
	return nil
}

// confirm returns the rows in which members differ and of which the queue does not
// know already. Those whose version is so young that it may be under way are looked
// at again after a moment.
func (g *Gateway) confirm(ctx context.Context, ns kv.NamespaceID, members []*member, rows []row) ([]row, error) {
	found, young := rows[:0], []row(nil)
	for _, r := range rows {
		if time.Since(r.newest.Version.Time()) < settleAfter {
			young = append(young, r)
		} else if !g.knows(ns, r) {
			found = append(found, r)
		}
	}
	if len(young) > 0 {
		sleep(ctx, confirmAfter)
	}
	for len(young) > 0 {
		// One page a time that holds the rows and little else.
		n := min(len(young), crawlPage)
		wanted := map[string]bool{}
		for _, r := range young[:n] {
			wanted[r.key] = true
		}
		again, err := g.listAgain(ctx, ns, members, young[0].key, young[n-1].key, wanted)
		if err != nil {
			return nil, err
		}
		young = young[n:]
		for _, r := range again {
			if !g.knows(ns, r) {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

// knows reports whether the queue knows of what a row lacks.
func (g *Gateway) knows(ns kv.NamespaceID, r row) bool {
	lacking, want, _ := g.queue.lacks(kv.Ref{Namespace: ns, Key: r.key})
	return lacking&r.lacking == r.lacking && want.Compare(r.newest.Version) >= 0
}

// listAgain compares the keys from first to last again, and returns those of the
// wanted ones in which members differ.
func (g *Gateway) listAgain(ctx context.Context, ns kv.NamespaceID, members []*member, first, last string, wanted map[string]bool) (found []row, err error) {
	err = compareFrom(ctx, ns, members, before(first), func(rows []row) error {
		for _, r := range rows {
			if r.lacking != 0 && wanted[r.key] {
				found = append(found, r)
			}
			if r.key >= last {
				return errEnough
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return found, err
}

var errEnough = errors.New("enough")

// before is a place in a listing before a key, with next to nothing between.
func before(key string) string {
	rest, last := key[:len(key)-1], key[len(key)-1]
	if last == 0 {
		return rest
	}
	rest += string([]byte{last - 1})
	return rest + strings.Repeat("\xff", kv.MaxKeyBytes-len(rest))
}

// row is what members have of one key.
type row struct {
	key     string
	newest  kv.Record
	lacking mask
	has     map[mask]kv.Version // only if they differ
}

// compare walks through a namespace in all members at once, in the order of keys.
func compare(ctx context.Context, ns kv.NamespaceID, members []*member, each func(rows []row) error) error {
	return compareFrom(ctx, ns, members, "", each)
}

// walk is how far the listing of one member has been compared.
type walk struct {
	page kv.Page
	at   int  // in the page
	end  bool // no page follows
	last string
}

func compareFrom(ctx context.Context, ns kv.NamespaceID, members []*member, after string, each func(rows []row) error) error {
	walks := make([]walk, len(members))
	for i := range walks {
		walks[i].last = after
	}
	for {
		if err := fill(ctx, ns, members, walks); err != nil {
			return err
		}
		rows := mergeWalks(members, walks)
		if len(rows) == 0 {
			if allEnded(walks) {
				return nil
			}
			continue
		}
		if err := each(rows); err != nil {
			return err
		}
	}
}

func allEnded(walks []walk) bool {
	for i := range walks {
		if !walks[i].end || walks[i].at < len(walks[i].page.Keys) {
			return false
		}
	}
	return true
}

// fill reads the next page of those who have been compared to the end of theirs.
func fill(ctx context.Context, ns kv.NamespaceID, members []*member, walks []walk) error {
	_, err := fromAll(ctx, members, func(ctx context.Context, i int) (struct{}, error) {
		w := &walks[i]
		for w.at == len(w.page.Keys) && !w.end {
			page, err := members[i].store.List(ctx, ns, kv.ListOptions{After: w.last, Limit: crawlPage})
			if err != nil {
				return struct{}{}, err
			}
			w.page, w.at, w.end = page, 0, !page.More
			if page.More {
				w.last = page.Last
			}
		}
		return struct{}{}, nil
	})
	return err
}

// mergeWalks compares as far as the pages of all reach.
func mergeWalks(members []*member, walks []walk) (rows []row) {
	for {
		key, any := "", false
		for i := range walks {
			w := &walks[i]
			if w.at == len(w.page.Keys) {
				if !w.end {
					return rows
				}
				continue
			}
			if k := w.page.Keys[w.at].Key; !any || k < key {
				key, any = k, true
			}
		}
		if !any {
			return rows
		}
		rows = append(rows, takeRow(key, members, walks))
	}
}

// takeRow takes a key from the walks that are at it.
func takeRow(key string, members []*member, walks []walk) row {
	r := row{key: key}
	recs := make([]kv.Record, len(members))
	for i := range walks {
		w := &walks[i]
		if w.at < len(w.page.Keys) && w.page.Keys[w.at].Key == key {
			recs[i] = w.page.Keys[w.at].Record
			r.newest = kv.Merge(r.newest, recs[i])
			w.at++
		}
	}
	for i, rec := range recs {
		if rec.Compare(r.newest) != 0 {
			r.lacking |= members[i].bit
		}
	}
	if r.lacking != 0 {
		r.has = map[mask]kv.Version{}
		for i, rec := range recs {
			r.has[members[i].bit] = rec.Version
		}
	}
	return r
}

func (g *Gateway) note(f func(s *CrawlStatus)) {
	g.crawl.mu.Lock()
	defer g.crawl.mu.Unlock()
	f(&g.crawl.status)
}
