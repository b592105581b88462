package binding_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/binding"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// TestControl: what is broken is found. A server that refuses everything fails
// every case that asks it for anything; and for each part that may break there are
// cases that say so.
func TestControl(t *testing.T) {
	t.Run("everything is refused", func(t *testing.T) {
		w := newWorld(t, with(func(p *parts) {
			p.server = func(c *binding.Config) {
				c.Identify = func(string, string) (binding.Space, error) { return binding.Space{}, errors.New("unknown") }
			}
		}))
		for _, c := range w.cases(t) {
			if wrong, _ := w.run(t, c); wrong == "" != c.Local {
				t.Errorf("%s: local %t, and failed with %q", c.Name, c.Local, wrong)
			}
		}
	})
	for name, broken := range breakages {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, with(broken.part))
			found := map[string]bool{}
			for _, c := range w.cases(t) {
				if begins(c.Name, broken.found) {
					wrong, _ := w.run(t, c)
					found[c.Name] = wrong != ""
				}
			}
			for _, name := range broken.found {
				if !anyOf(found, name) {
					t.Errorf("no case %q fails", name)
				}
			}
		})
	}
}

// breakages break one part each, and are found by cases whose names begin so.
var breakages = map[string]struct {
	part  func(*parts)
	found []string
}{
	"limits are not kept": {
		func(p *parts) { p.rules = func(r *kv.Rules) { r.Limits = wide } },
		[]string{"put: one byte more, as a buffer", "put: one byte more, as a string", "put: one byte more, as a stream", "metadata: one byte more",
			"expiration: from now, one below", "expiration: a moment too near", "get: cacheTtl, one below", "bulk: one key more",
			"bulk: cacheTtl", "bulk: as many bytes", "list: as many as may be, by itself", "list: one more than may be"},
	},
	"metadata is lost": {
		func(p *parts) { p.store, p.bare = plain{p.store}, true },
		[]string{"metadata: an object", "metadata: a string", "metadata: the greatest", "getWithMetadata: text", "bulk: with metadata", "service worker", `key: "a/b"`},
	},
	"deletes are not done": {
		func(p *parts) { p.store, p.bare = undeleted{p.store}, true },
		[]string{"delete: what is there", "near: read your write", `key: "😀"`, "dropped: when it was done"},
	},
	"listings lose a key": {
		func(p *parts) { p.store, p.bare = short{p.store}, true },
		[]string{"list: in the order", "list: as many as may be, by itself", "list: a page that has just all", "expiration: a moment, and"},
	},
	"copies are never renewed": {
		func(p *parts) { p.server = func(c *binding.Config) { c.Near = &frozen{near: c.Near} } },
		[]string{"near: read your write", "put: "},
	},
	"nothing is near": {
		func(p *parts) { p.bare = true },
		[]string{"near: cacheStatus of what was not near", "near: cacheStatus of what is not there", "near: a copy is as old"},
	},
	"the clock stands": {
		func(p *parts) {
			now := time.Now().Add(-time.Hour)
			p.rules = func(r *kv.Rules) { r.Now = func() time.Time { return now } }
		},
		[]string{"expiration: what has expired", "expiration: from now wins", "expiration: a moment too near"},
	},
	"operations are not counted": {
		func(p *parts) { p.server = func(c *binding.Config) { c.Spend = nil } },
		[]string{"1,000 operations"},
	},
	"operations are counted twice": {
		func(p *parts) {
			p.server = func(c *binding.Config) {
				once := c.Spend
				c.Spend = func(token string) bool {
					once(token)
					return once(token)
				}
			}
		},
		[]string{"1,000 operations"},
	},
	"no connection is dropped": {
		func(p *parts) { p.whole = true },
		[]string{"dropped: before it was asked", "dropped: when it was done", "dropped: within the head", "dropped: within a value"},
	},
}

// wide are limits that let everything pass.
var wide = kv.Limits{
	ValueBytes: kv.MaxValueBytes, MetadataBytes: kv.MaxMetadataBytes, MinTTL: time.Second, MinCacheTTL: time.Second,
	ListKeys: 1000, GetManyKeys: 1000, GetManyBytes: 1 << 30, PutManyPairs: 1000, DeleteManyKeys: 1000,
}

func with(change func(*parts)) parts {
	p := parts{limits: small(), store: memory.New(), tier: edge.Options{MaxSkew: -1}}
	change(&p)
	return p
}

func begins(name string, with []string) bool {
	for _, w := range with {
		if strings.HasPrefix(name, w) {
			return true
		}
	}
	return false
}

func anyOf(found map[string]bool, prefix string) bool {
	for name, failed := range found {
		if failed && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// plain is a store that loses metadata.
type plain struct{ kv.Store }

func (s plain) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	rec.Metadata = nil
	return s.Store.Put(ctx, ref, rec)
}

// undeleted is a store that deletes nothing.
type undeleted struct{ kv.Store }

func (s undeleted) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if rec.Tombstone {
		return nil
	}
	return s.Store.Put(ctx, ref, rec)
}

// short is a store whose listings lack their last key.
type short struct{ kv.Store }

func (s short) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	page, err := s.Store.List(ctx, ns, opts)
	if n := len(page.Keys); n > 0 && !page.More {
		page.Keys = page.Keys[:n-1]
	}
	return page, err
}

// frozen gives the first copy of each key for ever.
type frozen struct {
	near binding.Near
	mu   sync.Mutex // guards seen
	seen map[string]*kv.Record
}

func (f *frozen) Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (*kv.Record, time.Duration, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rec, ok := f.seen[string(key)]; ok {
		return rec, 0, true
	}
	rec, age, ok := f.near.Near(ns, key, maxAge)
	if ok {
		if f.seen == nil {
			f.seen = map[string]*kv.Record{}
		}
		f.seen[string(key)] = rec
	}
	return rec, age, ok
}
