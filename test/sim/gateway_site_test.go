package sim

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// under is the store itself.
func (s *site) under() *memory.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// record is what the site holds of a key.
func (s *site) record(ref kv.Ref) kv.Record {
	rec, err := s.under().Get(context.Background(), ref, 0)
	if err != nil {
		panic(err) // a store in memory has no errors
	}
	return rec
}

func (s *site) get(ref kv.Ref) kv.Record {
	rec := s.record(ref)
	if s.p.config.Breaks == valuesChange && len(rec.Value) > 0 && s.p.dice.about("garble "+refName(ref)).IntN(20) == 0 {
		rec.Value = append(slices.Clone(rec.Value[1:]), '?')
	}
	return rec
}

// put stores records, and checks that the site never goes back.
func (s *site) put(writes ...kv.Write) error {
	for _, w := range writes {
		switch s.p.config.Breaks {
		case writesVanish:
			if s.p.dice.about("vanish "+writeName(w)).IntN(10) == 0 {
				continue
			}
		case repeatsAll: // when nobody writes any more
			if !s.p.chaos() && s.record(w.Ref).Version == w.Record.Version {
				w.Record.Version[15]++
			}
		case olderWins:
			if s.record(w.Ref).Version.Compare(w.Record.Version) > 0 {
				s.replace(w.Ref, w.Record)
			}
		}
		if err := s.under().Put(context.Background(), w.Ref, w.Record); err != nil {
			return err
		}
		s.p.stored(w)
		s.check(w.Ref, w.Record.Version)
	}
	return nil
}

// check checks that a site holds what it was given or had.
func (s *site) check(ref kv.Ref, given kv.Version) {
	is := s.record(ref).Version
	s.mu.Lock()
	defer s.mu.Unlock()
	want := s.held[ref]
	if given.Compare(want) > 0 {
		want = given
	}
	if is.Compare(want) < 0 {
		s.p.violate(monotone, "%s holds %s of %s, and held or was given %s", s.name, is, refName(ref), want)
	}
	s.held[ref] = is
	if is.Compare(s.lost[ref]) >= 0 {
		delete(s.lost, ref)
	}
}

// replace makes a site hold what it should not.
func (s *site) replace(ref kv.Ref, rec kv.Record) {
	except := func(r kv.Ref) bool { return r == ref }
	next := s.copy(except)
	if !rec.Absent() {
		_ = next.Put(context.Background(), ref, rec) // a store in memory has no errors
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = next
}

func (s *site) list(ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	page, err := s.under().List(context.Background(), ns, opts)
	if s.p.config.Breaks == listsOmit && len(page.Keys) > 2 {
		page.Keys = slices.Delete(page.Keys, 1, 2)
	}
	return page, err
}

// forget removes tombstones; it checks that each is old enough and that all other
// sites in use have it.
func (s *site) forget(tombs []kv.Tomb) error {
	for _, t := range tombs {
		rec := s.record(t.Ref)
		if !rec.Tombstone || rec.Version != t.Version {
			continue
		}
		if age := time.Since(t.Version.Time()); age < s.p.config.ForgetAfter {
			s.p.violate(removal, "%s forgets %s of %s, which is %s old", s.name, t.Version, refName(t.Ref), age)
		}
		for _, o := range s.p.sites {
			has := o.record(t.Ref).Version
			if s.p.inUse(o) && !o.wentBackLately() && has.Compare(t.Version) < 0 && has != (kv.Version{}) {
				s.p.violate(removal, "%s forgets %s of %s, of which %s still holds %s", s.name, t.Version, refName(t.Ref), o.name, has)
			}
		}
		s.mu.Lock()
		delete(s.held, t.Ref)
		s.mu.Unlock()
	}
	return s.under().Forget(context.Background(), tombs)
}

func (s *site) drop(ns kv.NamespaceID) error {
	if s.p.config.Breaks == dropsIgnored {
		return nil
	}
	s.mu.Lock()
	for ref := range s.held {
		if ref.Namespace == ns {
			delete(s.held, ref)
			delete(s.lost, ref)
		}
	}
	s.mu.Unlock()
	return s.under().Drop(context.Background(), ns)
}

// all is every record of a site, except the gateway's own.
func (s *site) all() map[kv.Ref]kv.Record {
	store, all := s.under(), map[kv.Ref]kv.Record{}
	ids, _ := store.Namespaces(context.Background(), kv.NamespaceID{}, kv.MaxNamespaces) // a store in memory has no errors
	for _, id := range ids {
		page, _ := store.List(context.Background(), id, kv.ListOptions{})
		for _, k := range page.Keys {
			ref := kv.Ref{Namespace: id, Key: k.Key}
			all[ref] = s.record(ref)
		}
	}
	return all
}

// own reports whether a namespace is the gateway's own.
func own(ns kv.NamespaceID) bool { return ns[0] == 0xfd }

// copy is a copy of what the site holds.
func (s *site) copy(except func(kv.Ref) bool) *memory.Store {
	next := memory.New()
	for ref, rec := range s.all() {
		if except == nil || !except(ref) {
			_ = next.Put(context.Background(), ref, rec)
		}
	}
	return next
}

// keepCopy keeps a copy of the site, to go back to.
func (s *site) keepCopy() copied {
	c := copied{time.Now(), s.copy(nil)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies = append(s.copies, c)
	return c
}

// goBack makes the site what it was. What no pulse of the gateway tells of cannot
// be known to anybody until everything is compared.
func (s *site) goBack(c copied) {
	before := s.all()
	newest := func(store *memory.Store) (v kv.Version) {
		page, _ := store.List(context.Background(), pulses, kv.ListOptions{})
		for _, k := range page.Keys {
			if k.Record.Version.Compare(v) > 0 {
				v = k.Record.Version
			}
		}
		return v
	}
	unknowable := s.p.pulse(s.name).Compare(newest(c.store)) <= 0
	s.mu.Lock()
	s.store = memory.New()
	s.held = map[kv.Ref]kv.Version{}
	s.mu.Unlock()
	ids, _ := c.store.Namespaces(context.Background(), kv.NamespaceID{}, kv.MaxNamespaces)
	for _, id := range ids {
		page, _ := c.store.List(context.Background(), id, kv.ListOptions{})
		for _, k := range page.Keys {
			ref := kv.Ref{Namespace: id, Key: k.Key}
			rec, _ := c.store.Get(context.Background(), ref, 0)
			_ = s.store.Put(context.Background(), ref, rec)
			s.held[ref] = rec.Version
		}
	}
	if s.p.config.Breaks == pulsesStay {
		s.replace(kv.Ref{Namespace: pulses, Key: pulseKey}, before[kv.Ref{Namespace: pulses, Key: pulseKey}])
	}
	if unknowable {
		s.p.count("went back unknowably")
		for ref, rec := range before {
			if rec.Version.Compare(s.record(ref).Version) > 0 && rec.Version.Compare(s.lost[ref]) > 0 {
				s.lost[ref] = rec.Version
			}
		}
	} else {
		s.p.count("went back")
	}
	s.mu.Lock()
	s.back = time.Now()
	s.mu.Unlock()
	gone := time.Since(newest(c.store).Time()) > s.p.config.ForgetAfter/2-settled // or will be when it is found out: it is taken out of service
	alone := !slices.ContainsFunc(s.p.sites, func(o *site) bool { return o != s && s.p.isActive(o) })
	s.p.forgive(alone, func(o *site) bool { return o != s || !gone || alone })
}

// wentBackLately reports whether nobody needs to know yet that it did.
func (s *site) wentBackLately() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lost) > 0 || !s.back.IsZero() && time.Since(s.back) < 2*settled
}

// pulses is where a gateway keeps its pulse.
const pulseKey = "pulse-0000"

var pulses = kv.NamespaceID{0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd, 0xfd}

// sweep makes tombstones of what has expired, and keeps the version.
func (s *site) sweep(early time.Duration) {
	for ref, rec := range s.all() {
		if s.p.config.Breaks == edits && !own(ref.Namespace) && len(rec.Metadata) > 0 {
			rec.Metadata = nil
			s.replace(ref, rec)
		}
		if rec.Tombstone || !rec.Expired(time.Now().Add(early)) {
			continue
		}
		_ = s.under().Put(context.Background(), ref, kv.Tombstone(rec.Version))
	}
}

// life of a site's conditions: one after the other until the chaos ends.
func (s *site) suffer(r *rand.Rand, calm bool) {
	for s.p.chaos() {
		time.Sleep(between(r, 500*time.Millisecond, 8*time.Second))
		if !s.p.chaos() || calm {
			return
		}
		c := condition(r.IntN(int(conditions)))
		lasts := between(r, 100*time.Millisecond, 8*time.Second)
		s.set(c, s.isOut(), time.Now().Add(lasts))
		time.Sleep(lasts)
		s.set(well, s.isOut(), time.Time{})
	}
}

func (s *site) isOut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outage
}

// keepHouse sweeps, and makes copies, until the chaos ends.
func (s *site) keepHouse(r *rand.Rand) {
	for s.p.chaos() {
		time.Sleep(between(r, 2*time.Second, 6*time.Second))
		early := time.Duration(0)
		if s.p.config.Breaks == sweepsEarly {
			early = 10 * time.Second
		}
		s.sweep(early)
		s.keepCopy()
	}
}
