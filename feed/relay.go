package feed

import (
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Relay is a Sink that tells an inner one first and a hub then: whoever hears of
// a change from the hub and reads it through the inner sink's tier finds it known
// there.
type Relay struct {
	inner Sink
	hub   *Hub

	// Of the goroutine that calls the sink.
	begun   bool        // the hub is open at a cursor of what is followed now
	changes []kv.Change // of the message that is being applied
}

// NewRelay returns a Relay. inner may be nil.
func NewRelay(inner Sink, hub *Hub) *Relay { return &Relay{inner: inner, hub: hub} }

// Changed implements Sink.
func (r *Relay) Changed(changes []kv.Change) {
	if r.inner != nil {
		r.inner.Changed(changes)
	}
	r.changes = changes
}

// Told implements ToldSink. It concerns this point of presence alone.
func (r *Relay) Told(changes []kv.Change) { told(r.inner, changes) }

// Lease implements LeaseSink.
func (r *Relay) Lease(until time.Time) {
	if s, ok := r.inner.(LeaseSink); ok {
		s.Lease(until)
	}
}

// Current implements Sink.
func (r *Relay) Current(asOf time.Time) {
	if r.inner != nil {
		r.inner.Current(asOf)
	}
}

// Reached implements CursorSink. A hub that is to begin anew does so as soon as it
// is known as of when.
func (r *Relay) Reached(cursor kv.Cursor, asOf time.Time) {
	if s, ok := r.inner.(CursorSink); ok {
		s.Reached(cursor, asOf)
	}
	switch {
	case r.begun:
		r.hub.Publish(r.changes, cursor, asOf)
	case !asOf.IsZero():
		r.hub.Open(cursor, asOf)
		r.begun = true
	}
	r.changes = nil
}

// Broken implements Sink. The hub stays as it is until the new session has told
// where it begins; then its readers are told.
func (r *Relay) Broken() {
	if r.inner != nil {
		r.inner.Broken()
	}
	r.begun, r.changes = false, nil
}

// told tells a sink of writes of its point of presence. To a sink that makes no
// difference they are changes like others.
func told(s Sink, changes []kv.Change) {
	switch t := s.(type) {
	case nil:
	case ToldSink:
		t.Told(changes)
	default:
		s.Changed(changes)
	}
}
