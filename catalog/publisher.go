package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
	// publishRetry is how long Run waits after its first failure; after each
	// further one it waits twice as long, up to PublishEvery.
	publishRetry = time.Second
	// compareTimeout is how long the comparison of one page may take.
	compareTimeout = 30 * time.Second
)

// Publisher keeps the records of Reserved as the database says. A change that is
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

// published is a record that should be in Reserved.
type published struct {
	key   string
	value []byte
}

// publication is one kind of published records.
type publication struct {
	prefix string // of their keys
	// page returns at most publishPage records in order of their keys, which are
	// greater than prefix and after.
	page func(ctx context.Context, after string) ([]published, error)
	// one returns the record whose key is prefix and name, or none.
	one func(ctx context.Context, name string) ([]published, error)
	// same reports whether a value that is published says what it should.
	same func(published, wanted []byte) bool
}

// changed publishes the records with these keys after a change. The change has
// been made, so it is published even if its caller no longer waits.
func (p *Publisher) changed(ctx context.Context, keys []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), PublishWait)
	defer cancel()
	first := keys[:min(len(keys), publishAtOnce)]
	err := p.publish(ctx, first)
	if err != nil {
		p.logger.Warn("a change of the catalog could not be published at once", "error", err)
	}
	if err != nil || len(first) < len(keys) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// publish puts the records with these keys as the database has them now.
func (p *Publisher) publish(ctx context.Context, keys []string) error {
	at, err := p.stamp.Stamp()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	var writes []kv.Write
	for _, key := range keys {
		wanted, err := p.wanted(ctx, key)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if len(wanted) == 0 {
			writes = append(writes, tombstone(key, at))
			continue
		}
		writes = append(writes, wanted[0].write(at))
	}
	return p.put(ctx, writes)
}

func (p *Publisher) wanted(ctx context.Context, key string) ([]published, error) {
	for _, kind := range p.kinds {
		if name, ok := strings.CutPrefix(key, kind.prefix); ok {
			return kind.one(ctx, name)
		}
	}
	panic("catalog: publishing " + strconv.Quote(key))
}

func (p *Publisher) put(ctx context.Context, writes []kv.Write) error {
	for len(writes) > 0 {
		chunk := writes[:min(len(writes), publishPage)]
		writes = writes[len(chunk):]
		if err := kv.PutMany(ctx, p.store, chunk); err != nil {
			return fmt.Errorf("publish %d records: %w", len(chunk), err)
		}
	}
	return nil
}

// write is a write of the record as of the time of at, with a version of its own.
func (r published) write(at kv.Version) kv.Write {
	return kv.Write{Ref: reserved(r.key), Record: kv.Record{Version: version(at), Metadata: digest(r.value), Value: r.value}}
}

func tombstone(key string, at kv.Version) kv.Write {
	return kv.Write{Ref: reserved(key), Record: kv.Tombstone(version(at))}
}

func version(at kv.Version) kv.Version { return kv.NewVersion(at.UnixNano(), at.Node(), rand.Uint64()) }

func reserved(key string) kv.Ref { return kv.Ref{Namespace: Reserved, Key: key} }

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
	if more = len(wanted) == publishPage; more {
		last = strings.TrimPrefix(wanted[len(wanted)-1].key, kind.prefix)
	}
	writes, err := p.differences(ctx, kind, after, last, wanted, at)
	if err == nil {
		err = p.put(ctx, writes)
	}
	return last, len(writes), more, err
}

// differences returns the writes that make the records after one name and up to
// another (empty: all that follow) those that are wanted.
func (p *Publisher) differences(ctx context.Context, kind publication, after, upTo string, wanted []published, at kv.Version) ([]kv.Write, error) {
	var writes []kv.Write
	var doubtful []published // published, but not with this value
	opts := kv.ListOptions{Prefix: kind.prefix, After: kind.prefix + after}
	for more := true; more; {
		page, err := p.store.List(ctx, Reserved, opts)
		if err != nil {
			return nil, fmt.Errorf("list published records: %w", err)
		}
		for _, k := range page.Keys {
			if upTo != "" && k.Key > kind.prefix+upTo {
				page.More = false
				break
			}
			for len(wanted) > 0 && wanted[0].key < k.Key {
				writes, wanted = append(writes, wanted[0].write(at)), wanted[1:]
			}
			switch {
			case len(wanted) == 0 || wanted[0].key != k.Key:
				if !k.Record.Tombstone {
					writes = append(writes, tombstone(k.Key, at))
				}
				continue
			case k.Record.Tombstone:
				writes = append(writes, wanted[0].write(at))
			case string(k.Record.Metadata) != string(digest(wanted[0].value)):
				doubtful = append(doubtful, wanted[0])
			}
			wanted = wanted[1:]
		}
		opts.After, more = page.Last, page.More
	}
	for _, r := range wanted {
		writes = append(writes, r.write(at))
	}
	return p.different(ctx, kind, doubtful, at, writes)
}

// different appends writes of those records whose published value says something
// else.
func (p *Publisher) different(ctx context.Context, kind publication, doubtful []published, at kv.Version, writes []kv.Write) ([]kv.Write, error) {
	refs := make([]kv.Ref, len(doubtful))
	for i, r := range doubtful {
		refs[i] = reserved(r.key)
	}
	if len(refs) == 0 {
		return writes, nil
	}
	recs, err := kv.GetMany(ctx, p.store, refs, 0)
	if err != nil {
		return nil, fmt.Errorf("read published records: %w", err)
	}
	for i, r := range doubtful {
		if recs[i].Tombstone || !kind.same(recs[i].Value, r.value) {
			writes = append(writes, r.write(at))
		}
	}
	return writes, nil
}
