package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// The keys of the journal.
const (
	keyMember  = "m/" // name → kept
	keyPulse   = "p/" // name "/" namespace → version
	keyQueue   = "q/" // namespace key → entry
	keyDoubt   = "d/" // namespace → mask: not to be believed alone there
	keyWritten = "w/" // namespace → nothing: written to since the gateway began
	keyDrop    = "x/" // namespace → mask: who has to drop it still
)

const (
	namespaceBytes = len(kv.NamespaceID{})
	versionBytes   = len(kv.Version{})
)

var errJournal = errors.New("the journal is not understood")

func encodeEntry(e *entry) []byte {
	b := append([]byte{byte(e.lacking)}, e.want[:]...)
	b = append(b, e.unsure[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(e.since.UnixNano()))
}

func decodeEntry(key string, value []byte) (ref kv.Ref, e entry, err error) {
	if len(key) < namespaceBytes || len(value) != 1+2*versionBytes+8 {
		return ref, e, fmt.Errorf("entry %x of the queue: %w", key, errJournal)
	}
	ref = kv.Ref{Namespace: kv.NamespaceID([]byte(key[:namespaceBytes])), Key: key[namespaceBytes:]}
	e.lacking = mask(value[0])
	e.failed = e.lacking
	e.want = kv.Version(value[1 : 1+versionBytes])
	e.unsure = kv.Version(value[1+versionBytes : 1+2*versionBytes])
	e.since = time.Unix(0, int64(binary.BigEndian.Uint64(value[1+2*versionBytes:])))
	e.parked = true
	return ref, e, nil
}

// load reads the journal.
func (g *Gateway) load() error {
	keeps, pulses := map[string]kept{}, map[string]kv.Version{}
	written := map[kv.NamespaceID]bool{}
	queued := map[kv.Ref]entry{}
	err := g.opts.Journal.Load(func(e Entry) error {
		kind, rest := e.Key[:min(2, len(e.Key))], e.Key[min(2, len(e.Key)):]
		switch kind {
		case keyMember:
			var k kept
			if err := json.Unmarshal(e.Value, &k); err != nil || k.Bit == 0 {
				return fmt.Errorf("provider %s: %w", rest, errJournal)
			}
			keeps[rest] = k
		case keyPulse:
			if len(e.Value) != versionBytes {
				return fmt.Errorf("pulse %x: %w", rest, errJournal)
			}
			pulses[rest] = kv.Version(e.Value)
		case keyQueue:
			ref, entry, err := decodeEntry(rest, e.Value)
			queued[ref] = entry
			return err
		case keyWritten, keyDoubt, keyDrop:
			if len(rest) != namespaceBytes || kind != keyWritten && len(e.Value) != 1 {
				return fmt.Errorf("namespace %x: %w", rest, errJournal)
			}
			ns := kv.NamespaceID([]byte(rest))
			switch kind {
			case keyWritten:
				written[ns] = true
			case keyDoubt:
				g.doubt.dirty[ns] = mask(e.Value[0])
			case keyDrop:
				g.doubt.drops[ns] = mask(e.Value[0])
			}
		default: // of a newer program: nothing that this one relies on
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := g.place(keeps); err != nil {
		return err
	}
	for _, m := range g.members {
		for key, v := range pulses {
			if ns, ok := strings.CutPrefix(key, m.name+"/"); ok && len(ns) == namespaceBytes {
				m.pulses[kv.NamespaceID([]byte(ns))] = pulse{Version: v}
			}
		}
	}
	for _, m := range g.members {
		m.probed.Store(len(m.pulses) == 0) // nothing is known that it could fall behind
	}
	inUse := g.mask(used...)
	for ref, e := range queued {
		if e.lacking &= inUse; e.lacking != 0 {
			g.queue.part(ref).entries[ref] = &e
			g.queue.count(entry{}, e)
		}
	}
	g.doubt.begin(written, inUse)
	return nil
}

// place gives every member its bit and state.
func (g *Gateway) place(keeps map[string]kept) error {
	var taken mask
	for _, m := range g.members {
		k, ok := keeps[m.name]
		if !ok {
			continue
		}
		if bits.OnesCount8(uint8(k.Bit)) != 1 || taken.has(k.Bit) {
			return fmt.Errorf("provider %s: %w", m.name, errJournal)
		}
		taken |= k.Bit
		m.bit = k.Bit
		m.is(k)
	}
	for _, m := range g.members {
		if m.bit != 0 {
			continue
		}
		for m.bit = 1; taken.has(m.bit); {
			m.bit <<= 1
		}
		taken |= m.bit
		if len(keeps) > 0 {
			m.is(kept{Bit: m.bit, State: Removed, Joining: true})
			continue
		}
		m.is(kept{Bit: m.bit, State: Active, Distrusted: len(g.members) > 1}) // what they hold may differ
	}
	if len(g.with(active)) == 0 {
		return errors.New("no provider is active: all that were are missing from the configuration")
	}
	return nil
}

// begun makes the states of members durable that the journal did not have: of all
// at once, since it takes those for new that it does not know when it knows others.
func (g *Gateway) begun(ctx context.Context) error {
	if g.admin.take(ctx) != nil {
		return nil
	}
	defer g.admin.give()
	var entries []Entry
	for _, m := range g.members {
		e, err := m.entry(m.kept)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	if err := g.opts.Journal.Apply(ctx, entries, true); err != nil && ctx.Err() == nil {
		return fmt.Errorf("keep the states of the providers: %w", err)
	}
	return nil
}

// unkeep says that the journal does not have the present state of keys.
func (q *queue) unkeep(refs ...kv.Ref) {
	if len(refs) == 0 {
		return
	}
	q.mu.Lock()
	for _, ref := range refs {
		q.unkept[ref] = struct{}{}
	}
	q.mu.Unlock()
	select {
	case q.unkeptC <- struct{}{}:
	default:
	}
}

// How the journal of the queue is written.
const (
	keepAtOnce = 4096                 // entries in one step
	keepEvery  = 5 * time.Millisecond // between two steps, so that they are large
	keepRetry  = time.Second          // after the journal failed
)

// keep writes the queue to the journal until ctx ends.
func (q *queue) keep(ctx context.Context) {
	for {
		select {
		case <-q.unkeptC:
		case <-ctx.Done():
			return
		}
		wait := keepEvery
		if err := q.flush(ctx); err != nil && ctx.Err() == nil {
			q.opts.Logger.Error("keep the repair queue; what is not kept waits for the crawl if this process ends", "error", err)
			wait = keepRetry
		}
		sleep(ctx, wait)
	}
}

// flush writes what the journal does not have.
func (q *queue) flush(ctx context.Context) error {
	if err := q.journal.take(ctx); err != nil {
		return err
	}
	defer q.journal.give()
	for {
		refs := q.takeUnkept()
		if len(refs) == 0 {
			return nil
		}
		entries := make([]Entry, 0, len(refs))
		durable := false
		for _, ref := range refs {
			value := q.encode(ref)
			durable = durable || value != nil
			entries = append(entries, Entry{Key: keyQueue + string(ref.Namespace[:]) + ref.Key, Value: value})
		}
		if err := q.opts.Journal.Apply(ctx, entries, durable); err != nil {
			q.unkeep(refs...)
			return err
		}
	}
}

func (q *queue) takeUnkept() []kv.Ref {
	q.mu.Lock()
	defer q.mu.Unlock()
	refs := make([]kv.Ref, 0, min(keepAtOnce, len(q.unkept)))
	for ref := range q.unkept {
		if len(refs) == keepAtOnce {
			break
		}
		refs = append(refs, ref)
		delete(q.unkept, ref)
	}
	return refs
}

// encode is the entry of a key as the journal keeps it; nil: there is none.
func (q *queue) encode(ref kv.Ref) []byte {
	p := q.part(ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[ref]
	if e == nil || !e.parked {
		return nil
	}
	return encodeEntry(e)
}

// sleep waits unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
