package gateway

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// doubt is what is known of whole namespaces: where the members' answers are not
// believed alone until a crawl has compared them, and who has to drop one still.
type doubt struct {
	journal Journal
	any     atomic.Bool // dirty or drops has something
	started sync.Map    // kv.NamespaceID → struct{}: the journal knows that it is written to

	mu      sync.Mutex // guards the rest
	dirty   map[kv.NamespaceID]mask
	drops   map[kv.NamespaceID]mask
	busy    map[kv.NamespaceID]bool   // being dropped
	told    map[kv.NamespaceID]uint64 // counts how often it became dirty
	unkept  map[kv.NamespaceID]bool   // dirty, and the journal does not know
	written map[kv.NamespaceID]bool   // as the journal has them
}

func newDoubt(journal Journal) *doubt {
	return &doubt{journal: journal, dirty: map[kv.NamespaceID]mask{}, drops: map[kv.NamespaceID]mask{}, busy: map[kv.NamespaceID]bool{},
		told: map[kv.NamespaceID]uint64{}, unkept: map[kv.NamespaceID]bool{}, written: map[kv.NamespaceID]bool{}}
}

// begin makes dirty what was written to by a gateway that did not end in order:
// the last of its notes may be missing.
func (d *doubt) begin(written map[kv.NamespaceID]bool, used mask) {
	d.written = written
	for ns := range written {
		d.dirty[ns] |= used
		d.started.Store(ns, struct{}{})
	}
	d.any.Store(len(d.dirty)+len(d.drops) > 0)
}

// of tells who is not believed alone about a namespace.
func (d *doubt) of(ns kv.NamespaceID) mask {
	if !d.any.Load() {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dirty[ns] | d.drops[ns]
}

// writing makes it durable that a namespace is written to, before its first write.
func (d *doubt) writing(ctx context.Context, ns kv.NamespaceID) error {
	if _, ok := d.started.Load(ns); ok {
		return nil
	}
	if err := d.journal.Apply(ctx, []Entry{{Key: keyWritten + string(ns[:]), Value: []byte{}}}, true); err != nil {
		return fmt.Errorf("note that namespace %s is written to: %w", ns, err)
	}
	d.mu.Lock()
	d.written[ns] = true
	d.mu.Unlock()
	d.started.Store(ns, struct{}{})
	return nil
}

// overflow makes a namespace dirty since the queue is full. The journal learns of
// it with the next crawl or in the background; until then it knows that the
// namespace is written to, which is as good.
func (d *doubt) overflow(ns kv.NamespaceID, lacking mask) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirty[ns]&lacking != lacking {
		d.unkept[ns] = true
	}
	d.dirty[ns] |= lacking
	d.told[ns]++
	d.any.Store(true)
}

// waiting is the dirty namespaces, each with how often it became so.
func (d *doubt) waiting() map[kv.NamespaceID]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[kv.NamespaceID]uint64, len(d.dirty))
	for ns := range d.dirty {
		all[ns] = d.told[ns]
	}
	return all
}

// about reports whether a member is in doubt in any namespace.
func (d *doubt) about(who mask) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, of := range []map[kv.NamespaceID]mask{d.dirty, d.drops} {
		for _, doubted := range of {
			if doubted.has(who) {
				return true
			}
		}
	}
	return false
}

// only counts the namespaces about which none of some members is believed.
func (d *doubt) only(members mask) (namespaces int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, doubted := range d.dirty {
		if members&^doubted == 0 {
			namespaces++
		}
	}
	return namespaces
}

// cleared says that a crawl has compared a namespace that was as dirty as told.
func (d *doubt) cleared(ctx context.Context, ns kv.NamespaceID, told uint64) error {
	d.mu.Lock()
	dirty := d.dirty[ns] != 0 && d.told[ns] == told
	d.mu.Unlock()
	if !dirty {
		return nil
	}
	if err := d.journal.Apply(ctx, []Entry{{Key: keyDoubt + string(ns[:])}}, true); err != nil {
		return fmt.Errorf("note that namespace %s was compared: %w", ns, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told[ns] == told {
		delete(d.dirty, ns)
		delete(d.told, ns)
	} else {
		d.unkept[ns] = true
	}
	d.any.Store(len(d.dirty)+len(d.drops) > 0)
	return nil
}

// dropping makes it durable who has to drop a namespace still; nobody is 0.
func (d *doubt) dropping(ctx context.Context, ns kv.NamespaceID, who mask) error {
	e := Entry{Key: keyDrop + string(ns[:])}
	if who != 0 {
		e.Value = []byte{byte(who)}
	}
	if err := d.journal.Apply(ctx, []Entry{e}, true); err != nil {
		return fmt.Errorf("note that namespace %s is to be dropped: %w", ns, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if who == 0 {
		delete(d.drops, ns)
	} else {
		d.drops[ns] = who
	}
	d.any.Store(len(d.dirty)+len(d.drops) > 0)
	return nil
}

// claimDrop reports whether a namespace is nobody else's to drop just now.
func (d *doubt) claimDrop(ns kv.NamespaceID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy[ns] {
		return false
	}
	d.busy[ns] = true
	return true
}

func (d *doubt) releaseDrop(ns kv.NamespaceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, ns)
}

// toDrop is who has to drop which namespaces still.
func (d *doubt) toDrop() map[kv.NamespaceID]mask {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.drops)
}

// without takes members out that are not used any more.
func (d *doubt) without(gone mask) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, of := range []map[kv.NamespaceID]mask{d.dirty, d.drops} {
		for ns, who := range of {
			if who &^= gone; who == 0 {
				delete(of, ns)
			} else {
				of[ns] = who
			}
		}
	}
}

// endedInOrder tells the journal that nothing was under way at the end: what it
// has of the queue and of dirty namespaces is all there is.
func (d *doubt) endedInOrder(ctx context.Context) error {
	entries := d.atTheEnd()
	if len(entries) == 0 {
		return nil
	}
	if err := d.journal.Apply(ctx, entries, true); err != nil {
		return fmt.Errorf("note that the gateway ended in order: %w", err)
	}
	return nil
}

func (d *doubt) atTheEnd() (entries []Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ns := range d.unkept {
		if who := d.dirty[ns]; who != 0 {
			entries = append(entries, Entry{Key: keyDoubt + string(ns[:]), Value: []byte{byte(who)}})
		}
	}
	for ns := range d.written {
		if d.dirty[ns] != 0 {
			entries = append(entries, Entry{Key: keyDoubt + string(ns[:]), Value: []byte{byte(d.dirty[ns])}})
		}
		entries = append(entries, Entry{Key: keyWritten + string(ns[:])})
	}
	return entries
}
