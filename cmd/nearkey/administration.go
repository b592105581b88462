package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
)

// administration is what there is to be administered in a centre.
func (f far) administration(cat *catalog.Catalog, logger *slog.Logger) admin.Config {
	config := admin.Config{
		Logger: logger,
		IsRoot: func(ctx context.Context, token string) (bool, error) {
			grant, err := cat.Authenticate(ctx, token)
			return err == nil && grant.Token.Root, err
		},
	}
	if f.gateway == nil {
		return config
	}
	config.Gateway, config.Providers, config.Acks = compared{f.gateway}, changed{f.gateway}, f.acks
	config.Shards = map[string]admin.Shards{}
	for name, shards := range f.shards {
		config.Shards[name] = divided{shards}
	}
	return config
}

// administered puts the administration beside an API. more adds to it.
func (s *service) administered(config admin.Config, more ...func(*admin.Handler)) func(http.Handler) http.Handler {
	administration := admin.New(config)
	for _, add := range more {
		add(administration)
	}
	s.endings = append(s.endings, administration.End)
	return func(api http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, admin.Prefix) {
				administration.ServeHTTP(w, r)
				return
			}
			api.ServeHTTP(w, r)
		})
	}
}

// chosen is how writes of namespaces are acknowledged; nil if there is no choice.
func (f far) chosen() admin.Acks {
	if f.acks == nil {
		return nil
	}
	return f.acks
}

// compared is a gateway as the administration knows it.
type compared struct{ gateway *gateway.Gateway }

// Repair implements admin.Gateway.
func (g compared) Repair() admin.Repair {
	status := g.gateway.Status()
	r := admin.Repair{Providers: []admin.Provider{}, Queue: admin.Queue{
		Depth: status.Queue.Depth, OldestSeconds: status.Queue.Oldest.Seconds(), Dirty: status.Queue.Dirty,
		Enqueued: status.Queue.Enqueued, Repaired: status.Queue.Repaired, Dropped: status.Queue.Dropped,
	}, Crawl: crawlOf(status.Crawl)}
	for _, p := range status.Providers {
		r.Providers = append(r.Providers, admin.Provider{
			Name: p.Name, State: string(p.State), Up: p.Up, Since: momentOf(p.Since), Error: errorWhile(!p.Up, p.Error), Trusted: p.Trusted, Filled: p.Filled,
			Queued: p.Queued, Late: p.Late, LatencySeconds: p.Latency.Seconds(), Calls: p.Calls, Failures: p.Failures,
			Timeouts: p.Timeouts, Skipped: p.Skipped, Repaired: p.Repaired,
		})
	}
	return r
}

// errorWhile is the last error of something while it is down.
func errorWhile(down bool, text string) string {
	if down {
		return text
	}
	return ""
}

func crawlOf(c gateway.CrawlStatus) admin.Crawl {
	of := admin.Crawl{
		Running: c.Running, Reason: c.Reason, Key: c.Key, Compared: c.Compared, Drift: c.Drift, Repaired: c.Repaired, Forgotten: c.Forgotten,
		Started: momentOf(c.Started), Finished: momentOf(c.Finished), Error: c.Err,
	}
	if c.Namespace != (kv.NamespaceID{}) {
		of.Namespace = c.Namespace.String()
	}
	return of
}

// momentOf is a time, or nil for none.
func momentOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Crawl implements admin.Gateway.
func (g compared) Crawl(ctx context.Context) error { return g.gateway.Crawl(ctx) }

// Verify implements admin.Gateway.
func (g compared) Verify(ctx context.Context, opts admin.VerifyOptions, each func(admin.VerifyProgress)) (admin.Drift, error) {
	drift, err := g.gateway.Verify(ctx, gateway.VerifyOptions(opts), func(p gateway.VerifyProgress) {
		d := driftOf(p.Drift)
		d.Examples = nil
		each(admin.VerifyProgress{Namespace: p.Namespace.String(), Key: p.Key, Drift: d})
	})
	return driftOf(drift), err
}

func driftOf(d gateway.Drift) admin.Drift {
	of := admin.Drift{Compared: d.Compared, Missing: d.Missing, Older: d.Older, Content: d.Content, Values: d.Values, PerProvider: map[string]uint64{}}
	for name, n := range d.PerProvider {
		of.PerProvider[name] = n
	}
	for _, e := range d.Examples {
		example := admin.Difference{Namespace: e.Ref.Namespace.String(), Key: e.Ref.Key, Versions: map[string]string{}}
		for name, v := range e.Versions {
			example.Versions[name] = ""
			if v != (kv.Version{}) {
				example.Versions[name] = v.String()
			}
		}
		of.Examples = append(of.Examples, example)
	}
	return of
}

// changed is a gateway whose providers the administration changes.
type changed struct{ gateway *gateway.Gateway }

// Change implements admin.Providers.
func (g changed) Change(ctx context.Context, name, change string, how admin.ProviderRequest) error {
	switch change {
	case admin.ChangeFill:
		return g.gateway.Fill(ctx, name, how.Wipe)
	case admin.ChangePromote:
		return g.gateway.Promote(ctx, name)
	case admin.ChangeRemove:
		return g.gateway.Remove(ctx, name, how.Force)
	case admin.ChangeDistrust:
		return g.gateway.Distrust(ctx, name)
	}
	panic("nearkey: a provider cannot be told to " + change) // the administration knows that
}

// divided are the shards of a provider as the administration knows them.
type divided struct{ shards *proxy.Shards }

// Table implements admin.Shards.
func (d divided) Table() admin.Table {
	status := d.shards.Status()
	t := admin.Table{Epoch: status.Epoch, Slots: status.Slots, Refusal: status.Refusal, Clusters: []admin.Cluster{}, Moves: []admin.Move{}}
	for _, c := range status.Clusters {
		t.Clusters = append(t.Clusters, admin.Cluster{
			Name: c.Name, Weight: c.Weight, Slots: c.Slots, Arrives: c.Arrives, Leaves: c.Leaves, Up: c.Up, Since: c.Since, Error: errorWhile(!c.Up, c.Error),
		})
	}
	for _, m := range status.Moves {
		move := admin.Move{Slot: m.Slot, From: m.From, To: m.To, Phase: string(m.Phase), Since: m.Since, Running: m.Running,
			Copied: m.Copied, Compared: m.Compared, Differences: m.Differences, Removed: m.Removed, Error: m.Error}
		if m.Slot < 0 {
			move.Namespace, move.From, move.To = m.Namespace.String(), buckets(m.FromBits), buckets(m.ToBits)
		}
		t.Moves = append(t.Moves, move)
	}
	for _, s := range status.Spread {
		t.Spread = append(t.Spread, admin.Spread{Namespace: s.Namespace.String(), Buckets: 1 << s.Bits})
	}
	return t
}

func buckets(bits int) string { return plural(int64(1)<<bits, "bucket") }

// Change implements admin.Shards.
func (d divided) Change(change string, r admin.ShardsRequest) error {
	switch change {
	case admin.ChangeMove:
		return d.shards.Move(*r.Slot, r.To)
	case admin.ChangeDrain:
		return d.shards.Drain(r.Cluster)
	case admin.ChangeRebalance:
		return d.shards.Rebalance()
	case admin.ChangeSpread:
		id, err := kv.ParseNamespaceID(r.Namespace)
		if err != nil {
			return fmt.Errorf("spread: %w", err)
		}
		return d.shards.Spread(id, *r.Bits)
	}
	panic("nearkey: shards cannot be told to " + change) // as above
}
