package main

import (
	"sync"
	"time"

	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/postgres"
)

// statusFor is how long a status is shown that takes some work to put together: a
// scrape asks for many of its figures.
const statusFor = 500 * time.Millisecond

// remembered returns statistics that are put together at most every statusFor.
func remembered[S any](stats func() S) func() S {
	var (
		mu   sync.Mutex // guards the rest
		last S
		at   time.Time
	)
	return func() S {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) >= statusFor {
			last, at = stats(), time.Now()
		}
		return last
	}
}

// gatewayMetrics shows the figures of a gateway. The depth and age of the repair
// queue are what to look at first.
func gatewayMetrics(metrics *observe.Metrics, g *gateway.Gateway) {
	status := remembered(g.Status)
	show(metrics.Gauge, status, []figure[gateway.Status]{
		{"nearkey_repair_queue_keys", "Keys that a provider lacks, or may.", func(s gateway.Status) float64 { return float64(s.Queue.Depth) }},
		{"nearkey_repair_queue_age_seconds", "Age of the oldest of them; 0: there are none.", func(s gateway.Status) float64 { return s.Queue.Oldest.Seconds() }},
		{"nearkey_repair_dirty_namespaces", "Namespaces that wait to be compared as a whole.", func(s gateway.Status) float64 { return float64(s.Queue.Dirty) }},
		{"nearkey_crawl_running", "1 while the providers are compared.", func(s gateway.Status) float64 { return number(s.Crawl.Running) }},
		{"nearkey_crawl_compared_keys", "Keys compared by the crawl that runs or was the last.", func(s gateway.Status) float64 { return float64(s.Crawl.Compared) }},
		{"nearkey_crawl_drift_keys", "Keys that it found to differ.", func(s gateway.Status) float64 { return float64(s.Crawl.Drift) }},
		{"nearkey_crawl_age_seconds", "Time since the last crawl came to its end; -1: none has.", func(s gateway.Status) float64 {
			if s.Crawl.Finished.IsZero() {
				return -1
			}
			return time.Since(s.Crawl.Finished).Seconds()
		}},
	})
	show(metrics.Counter, status, []figure[gateway.Status]{
		{"nearkey_repair_enqueued_total", "Keys that were put into the repair queue.", func(s gateway.Status) float64 { return float64(s.Queue.Enqueued) }},
		{"nearkey_repair_repaired_total", "Keys of the repair queue that were repaired.", func(s gateway.Status) float64 { return float64(s.Queue.Repaired) }},
		{"nearkey_repair_dropped_total", "Keys for which the repair queue had no place, left to the comparison of their namespace.", func(s gateway.Status) float64 { return float64(s.Queue.Dropped) }},
	})
	for i, p := range g.Status().Providers {
		of := metrics.With(map[string]string{"provider": p.Name})
		stats := func() gateway.ProviderStatus { return status().Providers[i] }
		show(of.Gauge, stats, []figure[gateway.ProviderStatus]{
			{"nearkey_provider_up", "1 while the provider answers.", func(p gateway.ProviderStatus) float64 { return number(p.Up) }},
			{"nearkey_provider_active", "1 while the provider answers reads and counts for acknowledgements.", func(p gateway.ProviderStatus) float64 { return number(p.State == gateway.Active) }},
			{"nearkey_provider_trusted", "1 while the provider is believed alone.", func(p gateway.ProviderStatus) float64 { return number(p.Trusted) }},
			{"nearkey_provider_queued_keys", "Keys that wait to be brought to the provider.", func(p gateway.ProviderStatus) float64 { return float64(p.Queued) }},
			{"nearkey_provider_under_way", "Calls of the provider that are under way.", func(p gateway.ProviderStatus) float64 { return float64(p.Late) }},
			{"nearkey_provider_latency_seconds", "Time that a call of the provider takes, smoothed.", func(p gateway.ProviderStatus) float64 { return p.Latency.Seconds() }},
		})
		show(of.Counter, stats, []figure[gateway.ProviderStatus]{
			{"nearkey_provider_calls_total", "Calls of the provider.", func(p gateway.ProviderStatus) float64 { return float64(p.Calls) }},
			{"nearkey_provider_failures_total", "Calls that failed.", func(p gateway.ProviderStatus) float64 { return float64(p.Failures) }},
			{"nearkey_provider_timeouts_total", "Calls that were not answered in time.", func(p gateway.ProviderStatus) float64 { return float64(p.Timeouts) }},
			{"nearkey_provider_skipped_total", "Calls that were not made because the provider was down.", func(p gateway.ProviderStatus) float64 { return float64(p.Skipped) }},
			{"nearkey_provider_repaired_total", "Records that repair brought to the provider.", func(p gateway.ProviderStatus) float64 { return float64(p.Repaired) }},
		})
	}
}

// shardsMetrics shows the figures of the shards of a provider.
func shardsMetrics(metrics *observe.Metrics, provider string, shards *proxy.Shards) {
	status := remembered(shards.Status)
	show(metrics.With(map[string]string{"provider": provider}).Gauge, status, []figure[proxy.ShardsStatus]{
		{"nearkey_shards_epoch", "Epoch of the table that says where keys are.", func(s proxy.ShardsStatus) float64 { return float64(s.Epoch) }},
		{"nearkey_shards_moves", "Slots and namespaces on the move.", func(s proxy.ShardsStatus) float64 { return float64(len(s.Moves)) }},
		{"nearkey_shards_refused", "1 while nothing is served because the table is not the newest.", func(s proxy.ShardsStatus) float64 { return number(s.Refusal != "") }},
	})
	for i, c := range shards.Status().Clusters {
		of := metrics.With(map[string]string{"provider": provider, "cluster": c.Name})
		stats := func() proxy.ClusterStatus { return status().Clusters[i] }
		show(of.Gauge, stats, []figure[proxy.ClusterStatus]{
			{"nearkey_cluster_up", "1 while the cluster answers.", func(c proxy.ClusterStatus) float64 { return number(c.Up) }},
			{"nearkey_cluster_slots", "Slots that the cluster has.", func(c proxy.ClusterStatus) float64 { return float64(c.Slots) }},
		})
	}
}

// splitMetrics shows the figures of the large values of a provider.
func splitMetrics(metrics *observe.Metrics, provider string, split *proxy.Split) {
	show(metrics.With(map[string]string{"provider": provider}).Counter, split.Stats, []figure[proxy.SplitStats]{
		{"nearkey_blobs_put_total", "Blobs written, or tried.", func(s proxy.SplitStats) float64 { return float64(s.Puts) }},
		{"nearkey_blobs_read_total", "Blobs read, or tried.", func(s proxy.SplitStats) float64 { return float64(s.Gets) }},
		{"nearkey_blobs_damaged_total", "Reads that found a blob missing or damaged.", func(s proxy.SplitStats) float64 { return float64(s.Damaged) }},
		{"nearkey_blobs_swept_total", "Blobs removed to which no row referred.", func(s proxy.SplitStats) float64 { return float64(s.Removed) }},
		{"nearkey_blobs_missing_total", "Blobs that a sweep did not find, each time.", func(s proxy.SplitStats) float64 { return float64(s.Missing) }},
	})
}

// clusterMetrics shows the figures of a PostgreSQL cluster.
func clusterMetrics(metrics *observe.Metrics, provider, cluster string, store *postgres.Store) {
	of := metrics.With(map[string]string{"provider": provider, "cluster": cluster})
	show(of.Gauge, store.Stats, []figure[postgres.Stats]{
		{"nearkey_postgres_connections", "Open connections.", func(s postgres.Stats) float64 { return float64(s.Conns) }},
		{"nearkey_postgres_connections_in_use", "Connections in use.", func(s postgres.Stats) float64 { return float64(s.ConnsInUse) }},
		{"nearkey_postgres_connections_most", "Most connections.", func(s postgres.Stats) float64 { return float64(s.ConnsMost) }},
	})
	show(of.Counter, store.Stats, []figure[postgres.Stats]{
		{"nearkey_postgres_puts_total", "Records put.", func(s postgres.Stats) float64 { return float64(s.Puts) }},
		{"nearkey_postgres_put_statements_total", "Statements that put them.", func(s postgres.Stats) float64 { return float64(s.PutStatements) }},
		{"nearkey_postgres_gets_total", "Records read by key.", func(s postgres.Stats) float64 { return float64(s.Gets) }},
		{"nearkey_postgres_get_statements_total", "Statements that read them.", func(s postgres.Stats) float64 { return float64(s.GetStatements) }},
		{"nearkey_postgres_conflicts_total", "Statements repeated after a deadlock or a conflict.", func(s postgres.Stats) float64 { return float64(s.Conflicts) }},
		{"nearkey_postgres_reconnects_total", "Calls repeated over a new connection.", func(s postgres.Stats) float64 { return float64(s.Reconnects) }},
		{"nearkey_postgres_unreplicated_total", "Commits that the server did not see through to its standbys, which are not acknowledged.", func(s postgres.Stats) float64 { return float64(s.Unreplicated) }},
		{"nearkey_postgres_swept_total", "Expired records turned into deletions.", func(s postgres.Stats) float64 { return float64(s.Swept) }},
		{"nearkey_postgres_connection_waits_total", "Calls that waited for a connection.", func(s postgres.Stats) float64 { return float64(s.ConnWaits) }},
	})
}
