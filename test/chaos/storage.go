package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/postgres"
	"github.com/nearkey/nearkey/store/s3"
)

// openRows opens the database of a provider, past gateway and lines.
func (p *provider) openRows(ctx context.Context) (*postgres.Store, error) {
	return postgres.Open(ctx, p.direct, postgres.Options{MaxConns: 2})
}

// openAll opens database and bucket.
func (p *provider) openAll(ctx context.Context) (all kv.Store, end func(), err error) {
	rows, err := p.openRows(ctx)
	if err != nil {
		return nil, nil, err
	}
	end = func() { _ = rows.Close() } // it is only read from
	bucket, err := s3.Open(s3.Options{Endpoint: p.blobs.Endpoint, Region: p.blobs.Region, Bucket: p.blobs.Bucket,
		AccessKeyID: p.blobs.AccessKeyID, SecretKeyFile: p.blobs.SecretKeyFile, PathStyle: true})
	if err != nil {
		end()
		return nil, nil, err
	}
	return proxy.NewSplit(rows, bucket, bucket, proxy.SplitOptions{}), end, nil
}

// eachListed calls f for every key of the run that a store has.
func (w *world) eachListed(ctx context.Context, s kv.Store, f func(ref kv.Ref, listed kv.Record)) error {
	ns, err := kv.ParseNamespaceID(w.namespace)
	if err != nil {
		return err
	}
	for after := ""; ; {
		page, err := s.List(ctx, ns, kv.ListOptions{After: after})
		if err != nil {
			return err
		}
		for _, k := range page.Keys {
			f(kv.Ref{Namespace: ns, Key: k.Key}, k.Record)
		}
		if after = page.Last; !page.More {
			return nil
		}
	}
}

// found is what was read from a provider itself.
type found struct {
	name   string
	keys   map[string]kv.Record
	errors []string
}

// readProvider reads everything from a provider.
func (w *world) readProvider(ctx context.Context, p *provider) (found, error) {
	f := found{name: p.name, keys: map[string]kv.Record{}}
	all, end, err := p.openAll(ctx)
	if err != nil {
		return f, err
	}
	defer end()
	err = w.eachListed(ctx, all, func(ref kv.Ref, listed kv.Record) {
		rec, err := all.Get(ctx, ref, 0)
		if err != nil {
			f.errors = append(f.errors, fmt.Sprintf("provider %s, %q: %v", p.name, ref.Key, err))
			rec = listed
		}
		f.keys[ref.Key] = rec
	})
	if err != nil {
		return f, fmt.Errorf("read provider %s: %w", p.name, err)
	}
	return f, nil
}

const (
	lookEvery   = time.Second     // at the versions that a provider has
	lookTimeout = 3 * time.Second // it may hang
)

// watchStorage looks at all versions in a provider, again and again until ctx ends:
// none may go back, and none may go. Deletions are remembered for longer than a run
// takes.
func (l *load) watchStorage(ctx context.Context, p *provider) {
	rows, err := p.openRows(ctx)
	if err != nil {
		l.w.say("look into provider %s: %v", p.name, err)
		return
	}
	defer func() { _ = rows.Close() }() // it is only read from
	last := map[string]kv.Version{}
	for ; ctx.Err() == nil; pause(ctx, lookEvery) {
		own, cancel := context.WithTimeout(ctx, lookTimeout)
		now := map[string]kv.Version{}
		err := l.w.eachListed(own, rows, func(ref kv.Ref, rec kv.Record) { now[ref.Key] = rec.Version })
		cancel()
		if err != nil {
			continue // it is away
		}
		l.looked.Add(int64(len(now)))
		for key, before := range last {
			if now[key].Compare(before) < 0 {
				l.wentBack(p, key, before, now[key])
			}
		}
		last = now
	}
}

func (l *load) wentBack(p *provider, key string, from, to kv.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong[wentBack]++
	if len(l.examples) < l.maxExamples() {
		l.examples = append(l.examples, fmt.Sprintf("provider %s: %q went back from %s to %s", p.name, key, from, to))
	}
}

const wentBack = "a version in a provider went back"
