package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// forAnyAge is the age that is accepted of what never changes.
const forAnyAge = 10 * 365 * 24 * time.Hour

// WorkerReplica answers from published records what is asked of Workers whenever
// one is to run. It has no database; its store is a tier, and what was said of a
// Replica holds of it: how old an answer may be, and that copies are used while the
// store fails, here those as well that are known to be superseded. What is near is answered without allocating memory. What it
// returns must not be changed. All methods may be called at once.
type WorkerReplica struct {
	records    *reader
	workers    *parsed[workerKey, *PublishedWorker]
	subdomains *parsed[string, string]
	zones      *parsed[string, *PublishedZone]
	domains    *parsed[string, domainRecord]
	manifests  *parsed[string, *Manifest]
}

type workerKey struct{ accountID, name string }

// NewWorkerReplica returns a replica on the records in store.
func NewWorkerReplica(store kv.Store, opts ReplicaOptions) *WorkerReplica {
	opts = opts.complete()
	records := newReader(Workers, store, opts)
	records.keeps = true // an edge may hear of a deploy, and then of the centre no more
	return &WorkerReplica{
		records:    records,
		workers:    newParsed[workerKey](opts.CacheBytes, (*PublishedWorker).bytes),
		subdomains: newParsed[string](opts.CacheBytes, func(account string) int { return 128 + len(account) }),
		zones:      newParsed[string](opts.CacheBytes, (*PublishedZone).bytes),
		domains:    newParsed[string](opts.CacheBytes, func(d domainRecord) int { return 128 + len(d.Account) + len(d.Script) }),
		manifests:  newParsed[string](opts.CacheBytes, (*Manifest).bytes),
	}
}

// Worker returns a Worker, or ErrNotFound.
func (r *WorkerReplica) Worker(ctx context.Context, accountID, name string) (*PublishedWorker, error) {
	id := workerKey{accountID, name}
	if w, ok := r.workers.current(r.records, id); ok {
		return w, nil
	}
	w, err := lookUp(ctx, r.records, r.workers, id, scriptKey(accountID, name), func(value []byte) (*PublishedWorker, error) {
		return parseScript(accountID, name, value)
	})
	return w, absentIs(ErrWorkerNotFound, failure(ctx, fmt.Sprintf("Worker %q", name), err))
}

// Subdomain returns the account that has a subdomain, or ErrNotFound.
func (r *WorkerReplica) Subdomain(ctx context.Context, name string) (accountID string, err error) {
	if accountID, ok := r.subdomains.current(r.records, name); ok {
		return accountID, nil
	}
	accountID, err = lookUp(ctx, r.records, r.subdomains, name, subdomainKey(name), parseSubdomain)
	return accountID, absentIs(ErrNotFound, failure(ctx, fmt.Sprintf("subdomain %q", name), err))
}

// Zone returns the zone of this very name, or ErrNotFound.
func (r *WorkerReplica) Zone(ctx context.Context, host string) (*PublishedZone, error) {
	if z, ok := r.zones.current(r.records, host); ok {
		return z, nil
	}
	z, err := lookUp(ctx, r.records, r.zones, host, zoneKey(host), parseZone)
	return z, absentIs(ErrNotFound, failure(ctx, fmt.Sprintf("zone %q", host), err))
}

// Domain returns whose custom domain a host is, or ErrNotFound.
func (r *WorkerReplica) Domain(ctx context.Context, host string) (accountID, script string, err error) {
	if d, ok := r.domains.current(r.records, host); ok {
		return d.Account, d.Script, nil
	}
	d, err := lookUp(ctx, r.records, r.domains, host, domainKey(host), parseDomain)
	return d.Account, d.Script, absentIs(ErrNotFound, failure(ctx, fmt.Sprintf("domain %q", host), err))
}

// Manifest returns what runs as a version, or ErrNotFound. It never changes: what
// was read once needs no store.
func (r *WorkerReplica) Manifest(ctx context.Context, versionID string) (*Manifest, error) {
	if p, ok := r.manifests.get(versionID); ok {
		return p.value, nil
	}
	doing := fmt.Sprintf("version %q", versionID)
	key := versionKey(versionID)
	rec, err := r.immutable(ctx, key)
	if err != nil {
		return nil, absentIs(ErrVersionNotFound, failure(ctx, doing, err))
	}
	m, err := parseManifest(rec.Value)
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	r.manifests.put(versionID, parsedRecord[*Manifest]{key: []byte(key), version: rec.Version, value: m})
	return m, nil
}

// Module returns the content of a module, or ErrNotFound. It is what its hash says.
func (r *WorkerReplica) Module(ctx context.Context, hash string) ([]byte, error) {
	doing := fmt.Sprintf("module %q", hash)
	rec, err := r.immutable(ctx, moduleKey(hash))
	if err != nil {
		return nil, absentIs(ErrNotFound, failure(ctx, doing, err))
	}
	content, err := moduleOf(hash, rec)
	return content, failure(ctx, doing, err)
}

// immutable reads a record that never changes once it is there. That it is not
// there may be outdated: it is then read again.
func (r *WorkerReplica) immutable(ctx context.Context, key string) (kv.Record, error) {
	limited, cancel := context.WithTimeout(ctx, immutableTimeout)
	defer cancel()
	ref := kv.Ref{Namespace: Workers, Key: key}
	rec, err := r.records.store.Get(limited, ref, forAnyAge)
	if err == nil && (rec.Absent() || rec.Tombstone) {
		rec, err = r.records.store.Get(limited, ref, 0)
	}
	switch {
	case ctx.Err() != nil:
		return kv.Record{}, ctx.Err()
	case err != nil:
		return kv.Record{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case rec.Absent() || rec.Tombstone:
		return kv.Record{}, errAbsent
	}
	return rec, nil
}

// immutableTimeout is how long a module may take to come.
const immutableTimeout = 30 * time.Second

// Changed tells the replica what its tier was told. It is called after the tier's.
func (r *WorkerReplica) Changed(changes []kv.Change) { r.records.changed(changes) }

// Epoch is a number that changes when Changed tells of a change of Workers. It is
// for those who keep what was answered.
func (r *WorkerReplica) Epoch() uint64 { return r.records.epoch.Load() }
