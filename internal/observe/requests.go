package observe

import (
	"encoding/hex"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Op is what a request asks of a namespace.
type Op uint8

// The operations. OpNone is a request that asks nothing of a namespace's keys;
// it is not counted.
const (
	OpNone Op = iota
	OpGet
	OpMetadata
	OpPut
	OpDelete
	OpList
	OpBulkGet
	OpBulkPut
	OpBulkDelete
	ops
)

func (o Op) String() string {
	return [ops]string{"none", "get", "metadata", "put", "delete", "list", "bulk_get", "bulk_put", "bulk_delete"}[o]
}

// Result is what came of a request.
type Result uint8

// The results.
const (
	OK       Result = iota
	Hit             // a read found the key
	Miss            // a read did not find the key
	Invalid         // the request broke a rule of the product
	Denied          // credentials missing, wrong or insufficient
	Rejected        // turned away for now: too many, too much, or no space
	Canceled        // the client went away
	Failed          // our fault
	results
)

func (r Result) String() string {
	return [results]string{"ok", "hit", "miss", "invalid", "denied", "rejected", "canceled", "error"}[r]
}

// ResultOf is what an answer's status tells of a request. That a read found its
// key, or not, it does not tell.
func ResultOf(status int) Result {
	switch {
	case status < 300:
		return OK
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return Denied
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == http.StatusInsufficientStorage:
		return Rejected
	case status < 500:
		return Invalid
	}
	return Failed
}

// Rejection is the reason by which Metrics.Rejected counts an answer's status, ""
// if it is no rejection.
func Rejection(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "403"
	case http.StatusRequestEntityTooLarge:
		return "413"
	case http.StatusTooManyRequests:
		return "429"
	case http.StatusServiceUnavailable:
		return "503"
	case http.StatusInsufficientStorage:
		return "507"
	}
	return ""
}

// MaxNamespaces is how many namespaces have series of their own.
const MaxNamespaces = 1000

// Requests counts the requests that enter by one tier. The zero namespace stands
// for requests that named none which exists and which they may use.
type Requests struct {
	metrics  *Metrics
	tier     string
	duration [ops]prometheus.Observer

	spaces atomic.Pointer[map[[16]byte]*space] // never changed, only replaced

	mu    sync.Mutex // guards the replacing of spaces
	other *space
}

// space holds the counters of one namespace that have been used.
type space struct {
	label    string
	counters [ops][results]atomic.Pointer[prometheus.Counter]
}

// Requests returns the counters of a tier.
func (m *Metrics) Requests(tier string) *Requests {
	if m == nil {
		return nil
	}
	r := &Requests{metrics: m, tier: tier, other: &space{label: "other"}}
	for op := OpGet; op < ops; op++ {
		r.duration[op] = m.duration.WithLabelValues(op.String(), tier)
	}
	r.spaces.Store(&map[[16]byte]*space{{}: {label: "none"}})
	return r
}

// Count counts one request.
func (r *Requests) Count(namespace [16]byte, op Op, result Result, took time.Duration) {
	if r == nil || op == OpNone {
		return
	}
	s, ok := (*r.spaces.Load())[namespace]
	if !ok {
		s = r.space(namespace)
	}
	slot := &s.counters[op][result]
	c := slot.Load()
	if c == nil {
		made := r.metrics.requests.WithLabelValues(s.label, op.String(), result.String(), r.tier)
		c = &made
		slot.Store(c)
	}
	(*c).Inc()
	r.duration[op].Observe(took.Seconds())
}

// space gives a namespace its own counters while there is room.
func (r *Requests) space(namespace [16]byte) *space {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.spaces.Load()
	if s, ok := old[namespace]; ok {
		return s
	}
	if len(old) > MaxNamespaces { // one of them is the zero namespace
		return r.other
	}
	s := &space{label: hex.EncodeToString(namespace[:])}
	next := maps.Clone(old)
	next[namespace] = s
	r.spaces.Store(&next)
	return s
}

// Forget removes the series of a namespace that was deleted.
func (r *Requests) Forget(namespace [16]byte) {
	if r == nil || namespace == [16]byte{} {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := maps.Clone(*r.spaces.Load())
	delete(next, namespace)
	r.spaces.Store(&next)
	r.metrics.requests.DeletePartialMatch(prometheus.Labels{"namespace": hex.EncodeToString(namespace[:]), "tier": r.tier})
}
