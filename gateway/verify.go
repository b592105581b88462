package gateway

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// VerifyOptions say what is compared.
type VerifyOptions struct {
	Namespaces []kv.NamespaceID // nil: all
	Values     bool             // compare values as well; otherwise versions, expirations and metadata
	Repair     bool             // give what differs to the repair queue
	Rate       int              // keys a second; 0: as fast as it goes
}

// VerifyProgress tells how far a verification is.
type VerifyProgress struct {
	Namespace kv.NamespaceID
	Key       string
	Drift     Drift
}

// Drift is what providers differ in.
type Drift struct {
	Compared uint64
	Missing  uint64 // keys that a provider does not have
	Older    uint64 // keys of which a provider has an older version
	Content  uint64 // keys whose versions are equal, and metadata or expiration differ
	Values   uint64 // keys whose values differ, or cannot be read from a provider

	PerProvider map[string]uint64 // keys in which it lacks what another one has
	Examples    []Difference      // at most MaxExamples
}

// Total is the number of keys that differ.
func (d Drift) Total() uint64 { return d.Missing + d.Older + d.Content + d.Values }

// Difference is a key in which providers differ.
type Difference struct {
	Ref      kv.Ref
	Versions map[string]kv.Version // by provider; zero: absent
}

// MaxExamples is how many keys a Drift names.
const MaxExamples = 100

// Verify compares the providers and tells what they differ in. Keys that the repair
// queue knows count as well: only what is being written just now does not. It
// calls each from time to time.
func (g *Gateway) Verify(ctx context.Context, opts VerifyOptions, each func(VerifyProgress)) (Drift, error) {
	v := &verification{g: g, opts: opts, each: each, members: g.with(used...), began: time.Now(),
		drift: Drift{PerProvider: map[string]uint64{}}}
	if opts.Namespaces == nil {
		err := g.eachNamespace(ctx, v.members, func(ns kv.NamespaceID) error { return v.namespace(ctx, ns) })
		return v.drift, err
	}
	for _, ns := range opts.Namespaces {
		if err := v.namespace(ctx, ns); err != nil {
			return v.drift, err
		}
	}
	return v.drift, nil
}

// verification is a Verify under way.
type verification struct {
	g       *Gateway
	opts    VerifyOptions
	each    func(VerifyProgress)
	members []*member
	began   time.Time
	drift   Drift
}

func (v *verification) namespace(ctx context.Context, ns kv.NamespaceID) error {
	err := compare(ctx, ns, v.members, func(rows []row) error {
		differ, equal := []row(nil), []row(nil)
		for _, r := range rows {
			switch {
			case r.lacking != 0:
				differ = append(differ, r)
			case v.opts.Values && !r.newest.Tombstone:
				equal = append(equal, r)
			}
		}
		if err := v.differing(ctx, ns, differ); err != nil {
			return err
		}
		for _, r := range equal {
			if err := v.values(ctx, kv.Ref{Namespace: ns, Key: r.key}); err != nil {
				return err
			}
		}
		v.drift.Compared += uint64(len(rows))
		if v.each != nil {
			v.each(VerifyProgress{Namespace: ns, Key: rows[len(rows)-1].key, Drift: v.drift})
		}
		v.g.pace(ctx, v.began, int(v.drift.Compared), v.opts.Rate)
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("compare namespace %s: %w", ns, err)
	}
	return nil
}

// differing counts the rows in which members still differ after a moment.
func (v *verification) differing(ctx context.Context, ns kv.NamespaceID, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	sleep(ctx, confirmAfter)
	wanted := map[string]bool{}
	for _, r := range rows {
		wanted[r.key] = true
	}
	again, err := v.g.listAgain(ctx, ns, v.members, rows[0].key, rows[len(rows)-1].key, wanted)
	if err != nil {
		return err
	}
	for _, r := range again {
		if time.Since(r.newest.Version.Time()) < settleAfter && !v.g.parked(kv.Ref{Namespace: ns, Key: r.key}) {
			continue // it is being written
		}
		v.count(ns, r)
	}
	return nil
}

// parked reports whether a key waits in the repair queue.
func (g *Gateway) parked(ref kv.Ref) bool {
	p := g.queue.part(ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[ref]
	return e != nil && e.parked
}

// count counts a row once, by the worst that is the matter with it.
func (v *verification) count(ns kv.NamespaceID, r row) {
	missing, older := false, false
	d := Difference{Ref: kv.Ref{Namespace: ns, Key: r.key}, Versions: map[string]kv.Version{}}
	for _, m := range v.members {
		has := r.has[m.bit]
		d.Versions[m.name] = has
		if r.lacking.has(m.bit) {
			v.drift.PerProvider[m.name]++
			missing = missing || has == kv.Version{}
			older = older || has != r.newest.Version
		}
	}
	switch {
	case missing:
		v.drift.Missing++
	case older:
		v.drift.Older++
	default:
		v.drift.Content++
	}
	v.example(d)
	if v.opts.Repair {
		v.repair(d.Ref, r.newest.Version, r.lacking)
	}
}

func (v *verification) repair(ref kv.Ref, version kv.Version, lacking mask) {
	b := v.g.queue.batch()
	b.differ(ref, version, lacking)
	b.end()
}

func (v *verification) example(d Difference) {
	if len(v.drift.Examples) < MaxExamples {
		v.drift.Examples = append(v.drift.Examples, d)
	}
}

// values compares the values of a key whose rows are equal.
func (v *verification) values(ctx context.Context, ref kv.Ref) error {
	recs, errs := make([]kv.Record, len(v.members)), make([]error, len(v.members))
	for i, m := range v.members {
		recs[i], errs[i] = m.store.Get(ctx, ref, 0)
		if errs[i] != nil && !isDamaged(errs[i]) {
			return errs[i]
		}
	}
	var lacking mask
	d := Difference{Ref: ref, Versions: map[string]kv.Version{}}
	first := -1
	for i, m := range v.members {
		d.Versions[m.name] = recs[i].Version
		switch {
		case errs[i] != nil:
			lacking |= m.bit
		case first < 0:
			first = i
		case recs[i].Version != recs[first].Version:
			return nil // it was written to meanwhile
		case !bytes.Equal(recs[i].Value, recs[first].Value):
			lacking |= m.bit
		}
	}
	if lacking == 0 {
		return nil
	}
	v.drift.Values++
	for _, m := range v.members {
		if lacking.has(m.bit) {
			v.drift.PerProvider[m.name]++
		}
	}
	v.example(d)
	if v.opts.Repair && first >= 0 {
		v.repair(ref, recs[first].Version, lacking)
	}
	return nil
}
