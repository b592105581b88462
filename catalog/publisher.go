package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// PublishWait is how long a change waits for its publication. What is not
	// published by then is left to Publisher.Run.
	PublishWait = 2 * time.Second
	// PublishEvery is how often Publisher.Run compares all that should be published
	// with what is.
	PublishEvery = time.Minute

	// publishAtOnce is how many records a change publishes before it returns; it
	// leaves the rest to Run.
	publishAtOnce = 100
	// publishPage is how many records are compared, and put, at once.
	publishPage = 500
	// publishDoubtful is how many records are read at once to see what they say.
	publishDoubtful = 20
	// publishBytes is about how many bytes are put at once.
	publishBytes = 4 << 20
	// publishRetry is how long Run waits after its first failure; after each
	// further one it waits twice as long, up to PublishEvery.
	publishRetry = time.Second
	// compareTimeout is how long the comparison of one page may take.
	compareTimeout = 30 * time.Second
)

// Publisher keeps the records of Reserved and Workers as the database says. A change that is
// made through the publisher's catalog is published when the call that makes it
// returns, or at most PublishWait later it is left to Run, which also publishes
// what other processes change.
//
// A record is stamped before the database is read for it. So of two records of
// one key the newer also tells what was true later, whoever put them in whatever
// order, and the last one tells what is true now.
type Publisher struct {
	catalog *Catalog
	store   kv.Store
	stamp   *kv.Stamper
	logger  *slog.Logger
	wake    chan struct{}
	kinds   []publication
}

// NewPublisher returns the publisher of a catalog, which from now on has it
// publish its changes to store. It logs to logger what fails; nil: nowhere.
func NewPublisher(c *Catalog, store kv.Store, stamp *kv.Stamper, logger *slog.Logger) *Publisher {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	p := &Publisher{catalog: c, store: store, stamp: stamp, logger: logger, wake: make(chan struct{}, 1), kinds: c.publications()}
	c.publisher.Store(p)
	return p
}

// Run compares at once, then every PublishEvery, and soon after a change could
// not be published. It returns nil when ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	failures := 0
	for {
		wait := PublishEvery
		failures++
		if err := p.compare(ctx); err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			wait = min(PublishEvery, publishRetry<<min(failures-1, 10))
			p.logger.Error("publish the catalog", "error", err, "again_in", wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// published is a record that should be there.
type published struct {
	key   string
	value []byte // nil: as publication.one tells
	mark  []byte // digest of the value
}

func newPublished(key string, value []byte) published { return published{key, value, digest(value)} }

// publication is one kind of published records.
type publication struct {
	namespace kv.NamespaceID
	prefix    string // of their keys; no other kind has one that begins with it
	size      int    // of a page
	// page returns at most size records in order of their keys, which are greater
	// than prefix and after.
	page func(ctx context.Context, after string) ([]published, error)
	// one returns the record whose key is prefix and name, or none.
	one func(ctx context.Context, name string) ([]published, error)
	// same reports whether a value that is published says what it should, although it
	// is another; nil: never.
	same func(published, wanted []byte) bool
}

// changed publishes the records with the keys of each group after a change: those
// of a group when all before are published. The change has been made, so it is
// published even if its caller no longer waits.
func (p *Publisher) changed(ctx context.Context, groups [][]string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), PublishWait)
	defer cancel()
	room, left := publishAtOnce, false
	var err error
	for _, keys := range groups {
		first := keys[:min(len(keys), room)]
		room -= len(first)
		if err = p.publish(ctx, first); err != nil {
			break
		}
		left = left || len(first) < len(keys)
	}
	if err != nil {
		p.logger.Warn("a change of the catalog could not be published at once", "error", err)
	}
	if err != nil || left {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// publish puts the records with these keys as the database has them now.
func (p *Publisher) publish(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	at, err := p.stamp.Stamp()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	var writes []kv.Write
	for _, key := range keys {
		kind, name := p.kindOf(key)
		wanted, err := kind.one(ctx, name)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if len(wanted) == 0 {
			writes = append(writes, kind.tombstone(key, at))
			continue
		}
		writes = append(writes, kind.write(wanted[0], at))
	}
	return p.put(ctx, writes)
}

// kindOf returns the kind of the record with a key, and what follows its prefix.
func (p *Publisher) kindOf(key string) (kind publication, name string) {
	for _, kind := range p.kinds {
		if name, ok := strings.CutPrefix(key, kind.prefix); ok {
			return kind, name
		}
	}
	panic("catalog: publishing " + strconv.Quote(key))
}

// put puts records, not too many bytes at once.
func (p *Publisher) put(ctx context.Context, writes []kv.Write) error {
	for len(writes) > 0 {
		n, size := 0, 0
		for n < len(writes) && n < publishPage && size < publishBytes {
			size += writes[n].Record.Bytes()
			n++
		}
		if err := kv.PutMany(ctx, p.store, writes[:n]); err != nil {
			return fmt.Errorf("publish %d records: %w", n, err)
		}
		writes = writes[n:]
	}
	return nil
}

func (kind *publication) ref(key string) kv.Ref { return kv.Ref{Namespace: kind.namespace, Key: key} }

// write is a write of a record as of the time of at, with a version of its own.
func (kind *publication) write(r published, at kv.Version) kv.Write {
	return kv.Write{Ref: kind.ref(r.key), Record: kv.Record{Version: version(at), Metadata: r.mark, Value: r.value}}
}

func (kind *publication) tombstone(key string, at kv.Version) kv.Write {
	return kv.Write{Ref: kind.ref(key), Record: kv.Tombstone(version(at))}
}

func version(at kv.Version) kv.Version { return kv.NewVersion(at.UnixNano(), at.Node(), rand.Uint64()) }

// digest is the metadata of a record: a listing shows it, but not the value.
func digest(value []byte) []byte {
	sum := sha256.Sum256(value)
	return []byte(`"` + hex.EncodeToString(sum[:16]) + `"`)
}

// compare makes all records what the database says.
func (p *Publisher) compare(ctx context.Context) error {
	total := 0
	for _, kind := range p.kinds {
		for after, more := "", true; more; {
			var repaired int
			var err error
			if after, repaired, more, err = p.comparePage(ctx, kind, after); err != nil {
				return err
			}
			total += repaired
		}
	}
	if total > 0 {
		p.logger.Info("published what had changed in the catalog", "records", total)
	}
	return nil
}

// comparePage compares the records of a page of the database, and those between
// them. It returns the name that the next page comes after.
func (p *Publisher) comparePage(ctx context.Context, kind publication, after string) (last string, repaired int, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	at, err := p.stamp.Stamp()
	if err != nil {
		return "", 0, false, fmt.Errorf("compare published records: %w", err)
	}
	wanted, err := kind.page(ctx, after)
	if err != nil {
		return "", 0, false, err
	}
	if more = len(wanted) == kind.size; more {
		last = strings.TrimPrefix(wanted[len(wanted)-1].key, kind.prefix)
	}
	d, err := p.differences(ctx, kind, after, last, wanted)
	if err == nil {
		err = p.repair(ctx, kind, d, at)
	}
	return last, len(d.missing) + len(d.surplus), more, err
}

// difference is what a comparison found.
type difference struct {
	missing []published // not published, or not as they should be
	surplus []string    // keys of records that should not be there
}

// repair publishes what is missing, and tombstones of what is too much.
func (p *Publisher) repair(ctx context.Context, kind publication, d difference, at kv.Version) error {
	var writes []kv.Write
	for _, key := range d.surplus {
		writes = append(writes, kind.tombstone(key, at))
	}
	size := 0
	for _, r := range d.missing {
		if r.value == nil {
			full, err := kind.one(ctx, strings.TrimPrefix(r.key, kind.prefix))
			if err != nil {
				return err
			}
			if len(full) == 0 { // removed meanwhile, and that is published
				continue
			}
			r = full[0]
		}
		writes = append(writes, kind.write(r, at))
		if size += len(r.value); size >= publishBytes {
			if err := p.put(ctx, writes); err != nil {
				return err
			}
			writes, size = nil, 0
		}
	}
	return p.put(ctx, writes)
}

// differences compares the records after one name and up to another (empty: all
// that follow) with those that are wanted.
func (p *Publisher) differences(ctx context.Context, kind publication, after, upTo string, wanted []published) (d difference, err error) {
	var doubtful []published // published, but not with this value
	opts := kv.ListOptions{Prefix: kind.prefix, After: kind.prefix + after}
	for more := true; more; {
		page, err := p.store.List(ctx, kind.namespace, opts)
		if err != nil {
			return d, fmt.Errorf("list published records: %w", err)
		}
		for _, k := range page.Keys {
			if upTo != "" && k.Key > kind.prefix+upTo {
				page.More = false
				break
			}
			for len(wanted) > 0 && wanted[0].key < k.Key {
				d.missing, wanted = append(d.missing, wanted[0]), wanted[1:]
			}
			switch {
			case len(wanted) == 0 || wanted[0].key != k.Key:
				if !k.Record.Tombstone {
					d.surplus = append(d.surplus, k.Key)
				}
				continue
			case k.Record.Tombstone:
				d.missing = append(d.missing, wanted[0])
			case string(k.Record.Metadata) != string(wanted[0].mark):
				doubtful = append(doubtful, wanted[0])
			}
			wanted = wanted[1:]
		}
		opts.After, more = page.Last, page.More
	}
	d.missing = append(d.missing, wanted...)
	different, err := p.different(ctx, kind, doubtful)
	d.missing = append(d.missing, different...)
	return d, err
}

// different returns those records whose published value says something else.
func (p *Publisher) different(ctx context.Context, kind publication, doubtful []published) (different []published, err error) {
	for chunk := range slices.Chunk(doubtful, publishDoubtful) {
		refs := make([]kv.Ref, len(chunk))
		for i, r := range chunk {
			refs[i] = kind.ref(r.key)
		}
		recs, err := kv.GetMany(ctx, p.store, refs, 0)
		if err != nil {
			return nil, fmt.Errorf("read published records: %w", err)
		}
		for i, r := range chunk {
			if recs[i].Tombstone || kind.same == nil || !kind.same(recs[i].Value, r.value) {
				different = append(different, r)
			}
		}
	}
	return different, nil
}
