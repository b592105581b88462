package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// List implements kv.Store: the pages of all active providers that answer, merged.
func (g *Gateway) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if err := ctx.Err(); err != nil {
		return kv.Page{}, fmt.Errorf("list: %w", err)
	}
	pages, err := gather(ctx, g, g.with(asked...), func(ctx context.Context, m *member) (kv.Page, error) {
		return m.store.List(ctx, ns, opts)
	})
	if err != nil {
		return kv.Page{}, fmt.Errorf("list: %w", err)
	}
	page, differing := mergePages(pages, opts.PageLimit())
	if !g.opts.Off.ReadRepair {
		b := g.queue.batch()
		for _, d := range differing[:min(len(differing), maxListRepairs)] {
			g.differ(b, kv.Ref{Namespace: ns, Key: d.key}, d.version, d.lacking)
		}
		b.end()
	}
	return page, nil
}

// maxListRepairs is how many keys one page of a listing gives to the repair queue.
const maxListRepairs = 100

// Namespaces implements the ability of kv.Namespaces.
func (g *Gateway) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	return g.namespaces(ctx, g.with(asked...), after, limit)
}

// namespaces lists those of any of the members, without those of the gateway's own.
func (g *Gateway) namespaces(ctx context.Context, members []*member, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	for {
		lists, err := gather(ctx, g, members, func(ctx context.Context, m *member) ([]kv.NamespaceID, error) {
			return m.store.Namespaces(ctx, after, kv.MaxNamespaces)
		})
		if err != nil {
			return nil, fmt.Errorf("list the namespaces: %w", err)
		}
		found, last := mergeNamespaces(lists)
		if len(found) == 0 {
			return nil, nil
		}
		after = last
		found = slices.DeleteFunc(found, g.hidden)
		if len(found) > 0 {
			return found[:min(limit, len(found))], nil
		}
	}
}

// mergeNamespaces merges pages as far as all that are not at their end reach.
func mergeNamespaces(lists map[mask][]kv.NamespaceID) (all []kv.NamespaceID, last kv.NamespaceID) {
	compare := func(a, b kv.NamespaceID) int { return bytes.Compare(a[:], b[:]) }
	for _, list := range lists {
		if n := len(list); n > 0 && (last == kv.NamespaceID{} || compare(list[n-1], last) < 0) {
			last = list[n-1]
		}
		all = append(all, list...)
	}
	slices.SortFunc(all, compare)
	all = slices.Compact(all)
	end, found := slices.BinarySearchFunc(all, last, compare)
	if found {
		end++
	}
	return all[:end], last
}

// gather asks members and returns what those said who did not fail. After the
// first has answered it waits for the others no longer than ListWait.
func gather[T any](ctx context.Context, g *Gateway, members []*member, ask func(context.Context, *member) (T, error)) (map[mask]T, error) {
	type answer struct {
		bit mask
		got T
		err error
	}
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(members))
	for _, m := range members {
		g.late.begin()
		go func() {
			defer g.late.end()
			got, err := ask(own, m)
			answers <- answer{m.bit, got, err}
		}()
	}
	all, errs := map[mask]T{}, []error(nil)
	var enough <-chan time.Time
	for range members {
		select {
		case a := <-answers:
			if a.err != nil {
				errs = append(errs, a.err)
				continue
			}
			all[a.bit] = a.got
			if enough == nil {
				timer := time.NewTimer(g.opts.ListWait)
				defer timer.Stop()
				enough = timer.C
			}
		case <-enough:
			return all, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	joined := errors.Join(errs...)
	if errors.Is(joined, kv.ErrUnavailable) || errors.Is(joined, kv.ErrUnsupported) {
		return nil, joined
	}
	return nil, fmt.Errorf("%w: %w", kv.ErrUnavailable, joined)
}

// differing is a key in which pages differ.
type differing struct {
	key     string
	version kv.Version
	lacking mask
}

// mergePages merges pages of one place in a listing, as far as all of them reach.
func mergePages(pages map[mask]kv.Page, limit int) (kv.Page, []differing) {
	end, bounded := "", false
	for _, p := range pages {
		if p.More && (!bounded || p.Last < end) {
			end, bounded = p.Last, true
		}
	}
	newest := map[string]kv.Listed{}
	var keys []string
	for _, p := range pages {
		for _, k := range p.Keys {
			if bounded && k.Key > end {
				break
			}
			old, ok := newest[k.Key]
			if !ok {
				keys = append(keys, k.Key)
			}
			newest[k.Key] = kv.Listed{Key: k.Key, Record: kv.Merge(old.Record, k.Record)}
		}
	}
	slices.Sort(keys)
	merged := kv.Page{More: bounded, Last: end}
	if len(keys) > limit {
		keys = keys[:limit]
		merged.More, merged.Last = true, keys[limit-1]
	}
	if !merged.More {
		merged.Last = ""
	}
	for _, key := range keys {
		merged.Keys = append(merged.Keys, newest[key])
	}
	return merged, findDiffering(pages, merged, newest)
}

// findDiffering finds the keys of a merged page that some of the pages lack.
func findDiffering(pages map[mask]kv.Page, merged kv.Page, newest map[string]kv.Listed) (found []differing) {
	if len(pages) < 2 {
		return nil
	}
	at := map[mask]int{}
	for _, k := range merged.Keys {
		d := differing{key: k.Key, version: newest[k.Key].Record.Version}
		for bit, p := range pages {
			i := at[bit]
			if i < len(p.Keys) && p.Keys[i].Key == k.Key {
				at[bit]++
				if p.Keys[i].Record.Compare(k.Record) == 0 {
					continue
				}
			}
			d.lacking |= bit
		}
		if d.lacking != 0 {
			found = append(found, d)
		}
	}
	return found
}
