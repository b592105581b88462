// Package observe counts what nearkey does and names its requests: Prometheus
// metrics under one roof, and request ids for logs.
//
// Counting is on the path of every request, so a counter is looked up without a
// lock and without allocating. At most MaxNamespaces namespaces have series of
// their own; the others share the label "other", so that users cannot grow the
// memory of the process by making namespaces.
//
// The package keeps counters in memory and may lose them all: they begin again
// at zero, which is what Prometheus expects of a process that started anew.
package observe

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of a process. All methods may be called at once, and
// on a nil *Metrics they do nothing.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	rejected *prometheus.CounterVec

	cacheHits, cacheMisses, staleServed *prometheus.CounterVec

	written prometheus.Counter
	read    prometheus.Counter
	panics  prometheus.Counter
}

// scrapesAtOnce bounds the work that /metrics can cause.
const scrapesAtOnce = 4

// New returns metrics with those of the Go runtime and the process in them.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearkey_kv_requests_total",
			Help: "Operations on namespaces, by what came of them.",
		}, []string{"namespace", "op", "result", "tier"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:                            "nearkey_kv_request_duration_seconds",
			Help:                            "Time from the head of a request to the end of its answer.",
			Buckets:                         []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  160,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"op", "tier"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearkey_kv_rejected_total",
			Help: "Requests that were turned away, by the HTTP status that says why.",
		}, []string{"reason"}),
		cacheHits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearkey_kv_cache_hits_total",
			Help: "Reads that were answered from near memory.",
		}, []string{"tier"}),
		cacheMisses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearkey_kv_cache_misses_total",
			Help: "Reads for which near memory had nothing, or nothing fresh enough.",
		}, []string{"tier"}),
		staleServed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearkey_kv_stale_served_total",
			Help: "Reads that were answered with an older copy than was asked for, because what is behind failed.",
		}, []string{"tier"}),
		written: counter("nearkey_kv_written_bytes_total", "Bytes of values taken in by writes that succeeded."),
		read:    counter("nearkey_kv_read_bytes_total", "Bytes of values given out."),
		panics:  counter("nearkey_panics_total", "Panics in request handlers; each is a bug."),
	}
	m.registry.MustRegister(m.requests, m.duration, m.rejected, m.cacheHits, m.cacheMisses, m.staleServed, m.written, m.read, m.panics,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// Handler serves the metrics to Prometheus. It asks for no credentials.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce})
}

// Gauge adds a metric that is read from a function whenever Prometheus asks.
// Adding a name twice is a bug and panics.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	if m == nil {
		return
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

// Counter adds a counter that is read from a function, which must never go back.
// Adding a name twice is a bug and panics.
func (m *Metrics) Counter(name, help string, read func() float64) {
	if m == nil {
		return
	}
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read))
}

// Counters adds counters of one name that are read from a function whenever
// Prometheus asks: it calls add for each, with the values of the labels, which
// must differ. Adding a name twice is a bug and panics.
func (m *Metrics) Counters(name, help string, labels []string, read func(add func(value float64, values ...string))) {
	if m == nil {
		return
	}
	m.registry.MustRegister(counters{prometheus.NewDesc(name, help, labels, nil), read})
}

// counters are counters of one name.
type counters struct {
	desc *prometheus.Desc
	read func(add func(value float64, values ...string))
}

// Describe implements prometheus.Collector.
func (c counters) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

// Collect implements prometheus.Collector.
func (c counters) Collect(to chan<- prometheus.Metric) {
	c.read(func(value float64, values ...string) {
		to <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, value, values...)
	})
}

// Labelled is a place for metrics that carry labels, so that several things of a
// kind have the same names. On one of a nil *Metrics its methods do nothing.
type Labelled struct {
	metrics *Metrics
	labels  prometheus.Labels
}

// With returns a place for metrics with these labels.
func (m *Metrics) With(labels map[string]string) Labelled { return Labelled{m, labels} }

// Gauge is Metrics.Gauge with the labels. Adding a name twice with the same labels
// is a bug and panics.
func (l Labelled) Gauge(name, help string, read func() float64) {
	if l.metrics == nil {
		return
	}
	l.metrics.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l.labels}, read))
}

// Counter is Metrics.Counter with the labels, as Gauge is.
func (l Labelled) Counter(name, help string, read func() float64) {
	if l.metrics == nil {
		return
	}
	l.metrics.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: l.labels}, read))
}

// Build adds nearkey_build_info with the version of the binary.
func (m *Metrics) Build(version string) {
	if m == nil {
		return
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "nearkey_build_info",
		Help:        "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 }))
}

// Rejected counts a request that was turned away. reason is one of a fixed few.
func (m *Metrics) Rejected(reason string) {
	if m != nil {
		m.rejected.WithLabelValues(reason).Inc()
	}
}

// Written counts bytes of values that were taken in.
func (m *Metrics) Written(n int64) {
	if m != nil {
		m.written.Add(float64(n))
	}
}

// Read counts bytes of values that were given out.
func (m *Metrics) Read(n int64) {
	if m != nil {
		m.read.Add(float64(n))
	}
}

// Panicked counts a panic.
func (m *Metrics) Panicked() {
	if m != nil {
		m.panics.Inc()
	}
}
