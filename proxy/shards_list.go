package proxy

import (
	"bytes"
	"context"
	"slices"

	"github.com/nearkey/nearkey/kv"
)

// maxRounds bounds how often one page of a listing goes back to the clusters; what
// it has then is the page.
const maxRounds = 32

// stream reads the keys of a namespace from several clusters as one, in byte
// order, leaving out what a cluster holds but is not asked for.
type stream struct {
	ns      kv.NamespaceID
	opts    kv.ListOptions // of each request
	sources []*source
}

type source struct {
	cluster *cluster
	keys    []kv.Listed // read and not yet taken
	after   string      // everything up to it was read
	ended   bool
}

func newStream(ns kv.NamespaceID, opts kv.ListOptions, clusters []*cluster) *stream {
	st := &stream{ns: ns, opts: opts}
	for _, c := range clusters {
		st.sources = append(st.sources, &source{cluster: c, after: opts.After})
	}
	return st
}

func (src *source) dry() bool { return len(src.keys) == 0 && !src.ended }

// dry reports whether some source must be read before the next key is known.
func (st *stream) dry() bool { return slices.ContainsFunc(st.sources, (*source).dry) }

// fill reads on, once, where it is dry.
func (st *stream) fill(ctx context.Context, keep func(c *cluster, key string) bool) error {
	var dry []*source
	for _, src := range st.sources {
		if src.dry() {
			dry = append(dry, src)
		}
	}
	return together(ctx, dry, func(ctx context.Context, src *source) error {
		opts := st.opts
		opts.After = src.after
		page, err := src.cluster.list(ctx, st.ns, opts)
		if err != nil {
			return err
		}
		src.ended, src.after = !page.More, page.Last
		for _, k := range page.Keys {
			if keep(src.cluster, k.Key) {
				src.keys = append(src.keys, k)
			}
		}
		return nil
	})
}

// least returns the source with the least key that was read, or nil.
func (st *stream) least() (least *source) {
	for _, src := range st.sources {
		if len(src.keys) > 0 && (least == nil || src.keys[0].Key < least.keys[0].Key) {
			least = src
		}
	}
	return least
}

// next takes the least key. It must not be dry; without any source it is the end.
func (st *stream) next() (k kv.Listed, from *cluster, ok bool) {
	src := st.least()
	if src == nil {
		return kv.Listed{}, nil, false
	}
	k, src.keys = src.keys[0], src.keys[1:]
	return k, src.cluster, true
}

// known returns the place up to which every key was read.
func (st *stream) known() (place string) {
	first := true
	for _, src := range st.sources {
		if src.dry() && (first || src.after < place) {
			place, first = src.after, false
		}
	}
	return place
}

// List implements kv.Store. The page is merged from the clusters in which the
// namespace has buckets; its cursor is a key, so it stays good while slots move.
func (s *Shards) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if err := served(ns); err != nil {
		return kv.Page{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return kv.Page{}, err
	}
	defer v.leave()
	return v.list(ctx, ns, opts)
}

func (v *view) list(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	bits := v.table.spread[ns]
	homes := v.homes(ns, bits)
	if bits == 0 {
		return homes[0].list(ctx, ns, opts)
	}
	limit := opts.PageLimit()
	opts.Limit = min(limit, limit/len(homes)+limit/8+8) // a little more than its part
	st := newStream(ns, opts, homes)
	keep := func(c *cluster, key string) bool { return v.place(ns, key).home == c }
	for round := 0; len(page.Keys) < limit; {
		if st.dry() && round == maxRounds {
			return st.cut(page, limit), nil
		}
		if st.dry() {
			if err := st.fill(ctx, keep); err != nil {
				return kv.Page{}, err
			}
			round++
			continue
		}
		k, _, ok := st.next()
		if !ok {
			return page, nil
		}
		page.Keys = append(page.Keys, k)
	}
	return st.end(page), nil
}

// end closes a full page.
func (st *stream) end(page kv.Page) kv.Page {
	page.More = st.least() != nil || st.dry()
	if page.More {
		page.Last = page.Keys[len(page.Keys)-1].Key
	}
	return page
}

// cut closes a page that took too many rounds where its keys are known. A source
// that is emptied by it may be known less far than the others.
func (st *stream) cut(page kv.Page, limit int) kv.Page {
	for {
		last, src := st.known(), st.least()
		if src == nil || src.keys[0].Key > last {
			page.More, page.Last = true, last
			return page
		}
		if len(page.Keys) == limit {
			return st.end(page)
		}
		k, _, _ := st.next()
		page.Keys = append(page.Keys, k)
	}
}

// Namespaces implements the ability of kv.Namespaces. Every cluster that owns a
// slot must answer.
func (s *Shards) Namespaces(ctx context.Context, from kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer v.leave()
	var owners []*cluster
	for _, c := range v.home {
		owners = add(owners, c)
	}
	for {
		holders, known, err := namespacesOf(ctx, owners, from, limit)
		if err != nil {
			return nil, err
		}
		if len(holders) == 0 {
			return nil, nil
		}
		var found []kv.NamespaceID
		ids := keysOf(holders)
		slices.SortFunc(ids, func(a, b kv.NamespaceID) int { return bytes.Compare(a[:], b[:]) })
		for _, id := range ids {
			if len(found) == limit || bytes.Compare(id[:], known[:]) > 0 {
				break
			}
			lives, err := v.lives(ctx, id, holders[id])
			if err != nil {
				return nil, err
			}
			if lives {
				found = append(found, id)
			}
		}
		if len(found) > 0 {
			return found, nil
		}
		from = known
	}
}

// namespacesOf asks clusters for namespaces, and returns who holds which, and up
// to which one all are known.
func namespacesOf(ctx context.Context, clusters []*cluster, from kv.NamespaceID, limit int) (holders map[kv.NamespaceID][]*cluster, known kv.NamespaceID, err error) {
	answers := make([][]kv.NamespaceID, len(clusters))
	err = together(ctx, clusters, func(ctx context.Context, c *cluster) (err error) {
		ids, err := c.namespaces(ctx, from, limit)
		answers[slices.Index(clusters, c)] = ids
		return err
	})
	if err != nil {
		return nil, known, err
	}
	holders = map[kv.NamespaceID][]*cluster{}
	for i, ids := range answers {
		for _, id := range ids {
			holders[id] = append(holders[id], clusters[i])
		}
		if n := len(ids); n > 0 && (known == kv.NamespaceID{} || bytes.Compare(ids[n-1][:], known[:]) < 0) {
			known = ids[n-1]
		}
	}
	return holders, known, nil
}

// lives reports whether a namespace that clusters hold has records at home: they
// may be copies that are on their way, or have been left behind.
func (v *view) lives(ctx context.Context, ns kv.NamespaceID, holders []*cluster) (bool, error) {
	if ns == TableNamespace {
		return false, nil
	}
	bits := v.table.spread[ns]
	if bits == 0 {
		return slices.Contains(holders, v.home[slotOf(ns, 0)]), nil
	}
	opts := kv.ListOptions{Limit: 64}
	for {
		page, err := v.list(ctx, ns, opts)
		if err != nil || len(page.Keys) > 0 || !page.More {
			return len(page.Keys) > 0, err
		}
		opts.After = page.Last
	}
}
