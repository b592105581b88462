package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// cluster is a configured cluster with what is known of it.
type cluster struct {
	Cluster
	shards   *Shards
	since    time.Time // of the configuration
	admitted atomic.Bool
	health   atomic.Pointer[health] // nil: nothing is known, so it is up
}

// health is how the last call that told anything went.
type health struct {
	err   error // nil: well
	since time.Time
}

// call runs one call of the cluster's store and says in its error which cluster it
// was. The first call waits until the cluster's copy of the table has been seen.
func (c *cluster) call(ctx context.Context, f func(kv.Store) error) error {
	if !c.admitted.Load() {
		if err := c.admit(ctx); err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
	}
	err := f(c.Store)
	c.note(err)
	if err != nil {
		return fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	return nil
}

// note remembers whether the cluster is up. Who cancels a call learned nothing.
func (c *cluster) note(err error) {
	h := c.health.Load()
	if errors.Is(err, kv.ErrUnavailable) || errors.Is(err, kv.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) {
		if h == nil || h.err == nil {
			c.health.CompareAndSwap(h, &health{err, time.Now()})
		}
		return
	}
	if err == nil && (h == nil || h.err != nil) {
		c.health.CompareAndSwap(h, &health{nil, time.Now()})
	}
}

func (c *cluster) isDown() bool {
	h := c.health.Load()
	return h != nil && h.err != nil
}

// head returns the record of the table that the cluster keeps, without the table;
// it may be absent.
func (c *cluster) head(ctx context.Context) (kv.Record, error) {
	page, err := c.Store.List(ctx, TableNamespace, kv.ListOptions{Prefix: tableRef.Key, Limit: 1})
	c.note(err)
	if err != nil {
		return kv.Record{}, fmt.Errorf("read its table of slots: %w", err)
	}
	if len(page.Keys) == 0 || page.Keys[0].Key != tableRef.Key {
		return kv.Record{}, nil
	}
	return page.Keys[0].Record, nil
}

// admit compares the cluster's copy of the table with ours.
func (c *cluster) admit(ctx context.Context) error {
	_, err := c.compare(ctx)
	if err == nil {
		c.admitted.Store(true)
	}
	return err
}

// compare returns the epoch of the cluster's copy, 0 if it has none. A newer one
// than ours ends all service: somebody else has moved slots.
func (c *cluster) compare(ctx context.Context) (epoch uint64, err error) {
	rec, err := c.head(ctx)
	if err != nil || rec.Absent() {
		return 0, err
	}
	ours, found := c.shards.current.Load().table, epochOf(rec)
	if !bytes.Equal(rec.Metadata, ours.record().Metadata) {
		return 0, fmt.Errorf("%w: it belongs to provider %s, this is %q", kv.ErrUnavailable, rec.Metadata, ours.id)
	}
	if found > ours.epoch {
		err := fmt.Errorf("%w: the table of slots is of epoch %d, cluster %s knows epoch %d: another process serves these clusters, or an old table was restored (remove it, and the newest is taken from the clusters)",
			kv.ErrUnavailable, ours.epoch, c.Name, found)
		c.shards.refuse(err)
		return 0, err
	}
	return found, nil
}

// publish gives the cluster the newest table, unless it has it.
func (c *cluster) publish(ctx context.Context) error {
	epoch, err := c.compare(ctx)
	if err != nil {
		return fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	c.admitted.Store(true)
	t := c.shards.current.Load().table
	if epoch == t.epoch {
		return nil
	}
	return c.call(ctx, func(store kv.Store) error { return store.Put(ctx, tableRef, t.record()) })
}

func (c *cluster) getMany(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (recs []kv.Record, err error) {
	err = c.call(ctx, func(store kv.Store) (err error) { recs, err = kv.GetMany(ctx, store, refs, maxAge); return err })
	return recs, err
}

func (c *cluster) putMany(ctx context.Context, writes []kv.Write) error {
	return c.call(ctx, func(store kv.Store) error {
		if len(writes) == 1 {
			return store.Put(ctx, writes[0].Ref, writes[0].Record)
		}
		return kv.PutMany(ctx, store, writes)
	})
}

func (c *cluster) forget(ctx context.Context, tombs []kv.Tomb) error {
	return c.call(ctx, func(store kv.Store) error { return kv.Forget(ctx, store, tombs) })
}

func (c *cluster) list(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (page kv.Page, err error) {
	err = c.call(ctx, func(store kv.Store) (err error) { page, err = store.List(ctx, ns, opts); return err })
	return page, err
}

func (c *cluster) namespaces(ctx context.Context, after kv.NamespaceID, limit int) (ids []kv.NamespaceID, err error) {
	err = c.call(ctx, func(store kv.Store) (err error) { ids, err = kv.Namespaces(ctx, store, after, limit); return err })
	return ids, err
}
