package main

import (
	"time"

	"github.com/nearkey/nearkey/api/hot"
	"github.com/nearkey/nearkey/edge"
	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/store/disk"
	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/cache"
	"github.com/nearkey/nearkey/workerd/cron"
	"github.com/nearkey/nearkey/workerd/host"
	"github.com/nearkey/nearkey/workerd/tail"
)

// storeMetrics shows the figures of the store as metrics.
func storeMetrics(metrics *observe.Metrics, store *disk.Store) {
	show(metrics.Gauge, store.Stats, []figure[disk.Stats]{
		{"nearkey_store_disk_bytes", "Bytes of records on disk, without large values.", func(s disk.Stats) float64 { return float64(s.DiskBytes) }},
		{"nearkey_store_free_bytes", "Bytes free on the disk of the store.", func(s disk.Stats) float64 { return float64(s.FreeBytes) }},
		{"nearkey_store_full", "1 while writes are refused for lack of space.", func(s disk.Stats) float64 { return number(s.Full) }},
		{"nearkey_store_failed", "1 when nothing can be written until the process starts again.", func(s disk.Stats) float64 { return number(s.Failed) }},
		{"nearkey_store_cache_bytes", "Bytes in the block cache.", func(s disk.Stats) float64 { return float64(s.CacheBytes) }},
		{"nearkey_store_compaction_debt_bytes", "Bytes that compactions will have to move.", func(s disk.Stats) float64 { return float64(s.CompactionDebt) }},
		{"nearkey_store_l0_files", "Files that no compaction has sorted yet.", func(s disk.Stats) float64 { return float64(s.L0Files) }},
		{"nearkey_store_changes", "Changes in the change log.", func(s disk.Stats) float64 { return float64(s.Changes) }},
		{"nearkey_store_writes_under_way", "Writes that were begun and are not acknowledged.", func(s disk.Stats) float64 { return float64(s.WritesUnderWay) }},
	})
	show(metrics.Counter, store.Stats, []figure[disk.Stats]{
		{"nearkey_store_cache_hits_total", "Blocks found in the block cache.", func(s disk.Stats) float64 { return float64(s.CacheHits) }},
		{"nearkey_store_cache_misses_total", "Blocks read from disk.", func(s disk.Stats) float64 { return float64(s.CacheMisses) }},
		{"nearkey_store_compactions_total", "Compactions done.", func(s disk.Stats) float64 { return float64(s.Compactions) }},
	})
}

// tierMetrics shows the figures of a tier. Reads through its Near are hits of the
// hot path.
func tierMetrics(metrics *observe.Metrics, tier *edge.Tier) {
	show(metrics.Gauge, tier.Stats, []figure[edge.Stats]{
		{"nearkey_tier_copies", "Records that the tier keeps near.", func(s edge.Stats) float64 { return float64(s.Copies) }},
		{"nearkey_tier_bytes", "Memory of the records that the tier keeps near.", func(s edge.Stats) float64 { return float64(s.Bytes) }},
	})
	show(metrics.Counter, tier.Stats, []figure[edge.Stats]{
		{"nearkey_tier_hits_total", "Reads that the tier answered from near.", func(s edge.Stats) float64 { return float64(s.Hits) }},
		{"nearkey_tier_misses_total", "Reads of what was not near.", func(s edge.Stats) float64 { return float64(s.Misses) }},
		{"nearkey_tier_expired_total", "Reads of what was near, but too old or superseded.", func(s edge.Stats) float64 { return float64(s.Expired) }},
		{"nearkey_tier_stale_total", "Reads answered with an old copy because far failed.", func(s edge.Stats) float64 { return float64(s.Stale) }},
		{"nearkey_tier_coalesced_total", "Reads that waited for another's read of far.", func(s edge.Stats) float64 { return float64(s.Coalesced) }},
		{"nearkey_tier_far_reads_total", "Reads of far.", func(s edge.Stats) float64 { return float64(s.FarReads) }},
		{"nearkey_tier_refreshes_total", "Reads of far that nobody waited for.", func(s edge.Stats) float64 { return float64(s.Refreshes) }},
		{"nearkey_tier_notices_total", "Changes that the tier was told of.", func(s edge.Stats) float64 { return float64(s.Notices) }},
		{"nearkey_tier_superseded_total", "Copies that those changes made useless.", func(s edge.Stats) float64 { return float64(s.Superseded) }},
	})
}

// feedMetrics shows how far a follower of the feed has come.
func feedMetrics(metrics *observe.Metrics, follower *feed.Follower) {
	show(metrics.Gauge, follower.Status, []figure[feed.Status]{
		{"nearkey_feed_connected", "1 while word of changes arrives.", func(s feed.Status) float64 { return number(s.Connected) }},
		{"nearkey_feed_age_seconds", "Time since the moment up to which all changes are known; -1: none yet.", func(s feed.Status) float64 {
			if s.AsOf.IsZero() {
				return -1
			}
			return time.Since(s.AsOf).Seconds()
		}},
	})
	show(metrics.Counter, follower.Status, []figure[feed.Status]{
		{"nearkey_feed_messages_total", "Messages of the feed.", func(s feed.Status) float64 { return float64(s.Messages) }},
		{"nearkey_feed_changes_total", "Changes told in them.", func(s feed.Status) float64 { return float64(s.Changes) }},
		{"nearkey_feed_sessions_total", "Sessions of the feed, begun or resumed.", func(s feed.Status) float64 { return float64(s.Sessions) }},
		{"nearkey_feed_gaps_total", "Sessions that ended because a message was missing.", func(s feed.Status) float64 { return float64(s.Gaps) }},
		{"nearkey_feed_silences_total", "Sessions that ended because the sender was silent.", func(s feed.Status) float64 { return float64(s.Silences) }},
		{"nearkey_feed_begun_anew_total", "Times that changes had been missed.", func(s feed.Status) float64 { return float64(s.Gone) }},
	})
}

// hotMetrics shows the figures of the hot path.
func hotMetrics(metrics *observe.Metrics, server *hot.Server) {
	show(metrics.Gauge, server.Stats, []figure[hot.Stats]{
		{"nearkey_connections", "Open connections.", func(s hot.Stats) float64 { return float64(s.Open) }},
		{"nearkey_hot_p50_seconds", "Half of the answers of the hot path since the start took no longer.", func(s hot.Stats) float64 { return s.Near.Quantile(.5).Seconds() }},
		{"nearkey_hot_p99_seconds", "99 % of the answers of the hot path since the start took no longer.", func(s hot.Stats) float64 { return s.Near.Quantile(.99).Seconds() }},
	})
	show(metrics.Counter, server.Stats, []figure[hot.Stats]{
		{"nearkey_connections_accepted_total", "Connections accepted.", func(s hot.Stats) float64 { return float64(s.Accepted) }},
		{"nearkey_connections_given_total", "Connections given to the HTTP server, because of a request that is not of the hot path.", func(s hot.Stats) float64 { return float64(s.Given) }},
		{"nearkey_hot_hits_total", "Reads that the hot path answered from near.", func(s hot.Stats) float64 { return float64(s.Hits) }},
		{"nearkey_hot_handled_total", "Requests that the hot path had answered by the HTTP server's handler.", func(s hot.Stats) float64 { return float64(s.Handled) }},
	})
}

// wireMetrics shows the figures of the wire.
func wireMetrics(metrics *observe.Metrics, c *calls) {
	metrics.Gauge("nearkey_wire_calls_under_way", "Calls by the wire that are under way, readers of the feed included.", func() float64 { return float64(c.underWay.Load()) })
	metrics.Counter("nearkey_wire_calls_total", "Calls by the wire.", func() float64 { return float64(c.begun.Load()) })
	metrics.Counter("nearkey_wire_calls_refused_total", "Calls by the wire that were answered with an error.", func() float64 { return float64(c.refused.Load()) })
}

// figure is a number of some statistics as a metric.
type figure[S any] struct {
	name, help string
	read       func(S) float64
}

// show adds figures to metrics by add: as gauges or counters.
func show[S any](add func(name, help string, read func() float64), stats func() S, figures []figure[S]) {
	for _, f := range figures {
		add(f.name, f.help, func() float64 { return f.read(stats()) })
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// workerMetrics shows what the runtime of Workers does.
func workerMetrics(metrics *observe.Metrics, runtime *workerd.Runtime, workers *host.Host) {
	metrics.Gauge("nearkey_workers_processes", "Processes of Workers that run, start or linger.", func() float64 { return float64(runtime.Processes()) })
	total := func(of func(workerd.Counts) int64) func() float64 {
		return func() float64 { return float64(of(runtime.Totals())) }
	}
	metrics.Counter("nearkey_workers_requests_total", "Requests to Workers.", total(func(c workerd.Counts) int64 { return c.Requests }))
	metrics.Counter("nearkey_workers_exceptions_total", "Requests that a Worker did not answer: it threw, or met a limit.", total(func(c workerd.Counts) int64 { return c.Exceptions }))
	metrics.Counter("nearkey_workers_starts_total", "Processes started for Workers.", total(func(c workerd.Counts) int64 { return c.Starts }))
	metrics.Counter("nearkey_workers_crashes_total", "Processes that ended unasked, those killed for a limit included.", total(func(c workerd.Counts) int64 { return c.Crashes }))
	each := func(name, help string, of func(workerd.Counts) int64) {
		metrics.Counters(name, help, []string{"account", "worker"}, func(add func(float64, ...string)) {
			for _, c := range workers.Counts() {
				add(float64(of(c.Counts)), c.AccountID, c.Worker)
			}
		})
	}
	each("nearkey_worker_requests_total", "Requests to a Worker, in all its versions, since it was first asked for.", func(c workerd.Counts) int64 { return c.Requests })
	each("nearkey_worker_exceptions_total", "Requests that the Worker did not answer: it threw, or met a limit.", func(c workerd.Counts) int64 { return c.Exceptions })
	each("nearkey_worker_crashes_total", "Processes of the Worker that ended unasked, those killed for a limit included.", func(c workerd.Counts) int64 { return c.Crashes })
}

// cacheMetrics shows the figures of the Cache API.
func cacheMetrics(metrics *observe.Metrics, server *cache.Server) {
	show(metrics.Gauge, server.Stats, []figure[cache.Stats]{
		{"nearkey_workers_cache_entries", "Responses that the Cache API keeps.", func(s cache.Stats) float64 { return float64(s.Entries) }},
		{"nearkey_workers_cache_bytes", "Memory of the responses that the Cache API keeps.", func(s cache.Stats) float64 { return float64(s.Bytes) }},
	})
	show(metrics.Counter, server.Stats, []figure[cache.Stats]{
		{"nearkey_workers_cache_hits_total", "Matches of the Cache API that found a response.", func(s cache.Stats) float64 { return float64(s.Hits) }},
		{"nearkey_workers_cache_misses_total", "Matches of the Cache API that found none.", func(s cache.Stats) float64 { return float64(s.Misses) }},
		{"nearkey_workers_cache_stored_total", "Responses that were put.", func(s cache.Stats) float64 { return float64(s.Stored) }},
		{"nearkey_workers_cache_evicted_total", "Responses that went for others.", func(s cache.Stats) float64 { return float64(s.Evicted) }},
	})
}

// cronMetrics shows the figures of crons.
func cronMetrics(metrics *observe.Metrics, crons *cron.Scheduler) {
	show(metrics.Counter, crons.Stats, []figure[cron.Stats]{
		{"nearkey_workers_crons_fired_total", "Runs of cron triggers that were begun here.", func(s cron.Stats) float64 { return float64(s.Fired) }},
		{"nearkey_workers_crons_failed_total", "Of them, those that did not end well.", func(s cron.Stats) float64 { return float64(s.Failed) }},
		{"nearkey_workers_crons_retried_total", "Of them, those that were not the first of their tick.", func(s cron.Stats) float64 { return float64(s.Retried) }},
		{"nearkey_workers_crons_skipped_total", "Ticks that could not be claimed in time.", func(s cron.Stats) float64 { return float64(s.Skipped) }},
	})
}

// tailMetrics shows the figures of those who follow Workers.
func tailMetrics(metrics *observe.Metrics, hub *tail.Hub) {
	show(metrics.Gauge, hub.Stats, []figure[tail.Stats]{
		{"nearkey_workers_tails", "Tails of Workers that somebody follows.", func(s tail.Stats) float64 { return float64(s.Sessions) }},
		{"nearkey_workers_log_bytes", "Memory of the last lines that Workers logged.", func(s tail.Stats) float64 { return float64(s.RecentBytes) }},
	})
	show(metrics.Counter, hub.Stats, []figure[tail.Stats]{
		{"nearkey_workers_tail_events_total", "Events that followers of Workers took.", func(s tail.Stats) float64 { return float64(s.Sent) }},
		{"nearkey_workers_tail_dropped_total", "Events that followers of Workers were too slow for.", func(s tail.Stats) float64 { return float64(s.Dropped) }},
	})
}
