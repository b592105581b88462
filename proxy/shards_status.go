package proxy

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// ShardsStatus is how a Shards is.
type ShardsStatus struct {
	Provider string // the id that the table gives the provider; empty: no table is known yet
	Epoch    uint64 // of the table
	Slots    int
	Refusal  string // not empty: why nothing is served any more
	Clusters []ClusterStatus
	Moves    []MoveStatus
	Spread   []SpreadStatus
}

// ClusterStatus is how a cluster is.
type ClusterStatus struct {
	Name    string
	Weight  float64
	Slots   int // that it owns
	Arrives int // slots that are to come
	Leaves  int // slots that are to go
	Up      bool
	Since   time.Time
	Error   string // of the call that found it down
}

// MoveStatus is how far a move is.
type MoveStatus struct {
	Slot      int            // -1: a namespace is spread
	Namespace kv.NamespaceID // if it is
	From, To  string         // clusters, if a slot moves
	FromBits  int            // buckets, if a namespace is spread
	ToBits    int

	Phase       Phase
	Since       time.Time // of the phase, in this process
	Running     bool
	Copied      int64 // records, since the copy was begun
	Compared    int64 // records that were found equal
	Differences int64 // records that were not, and were copied again
	Removed     int64 // records, from where they no longer live
	Error       string
}

// SpreadStatus is a namespace of 2^Bits buckets.
type SpreadStatus struct {
	Namespace kv.NamespaceID
	Bits      int
}

// Status tells how the clusters and the moves are.
func (s *Shards) Status() ShardsStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := ShardsStatus{Slots: Slots}
	if refusal := s.refusal.Load(); refusal != nil {
		status.Refusal = (*refusal).Error()
	}
	places := map[string]int{}
	for i, c := range s.clusters {
		its := ClusterStatus{Name: c.Name, Weight: c.Weight, Up: true, Since: c.since}
		if h := c.health.Load(); h != nil {
			its.Since = h.since
			if h.err != nil {
				its.Up, its.Error = false, h.err.Error()
			}
		}
		status.Clusters = append(status.Clusters, its)
		places[c.Name] = i
	}
	if s.table == nil {
		return status
	}
	status.Provider, status.Epoch = s.table.id, s.table.epoch
	for _, name := range s.table.owners {
		status.Clusters[places[name]].Slots++
	}
	for _, tr := range s.table.moves {
		status.Moves = append(status.Moves, s.moveStatus(tr))
		if tr.Slot >= 0 && tr.arrives() {
			status.Clusters[places[s.table.owners[tr.Slot]]].Leaves++
			status.Clusters[places[tr.To]].Arrives++
		}
	}
	for ns, bits := range s.table.spread {
		status.Spread = append(status.Spread, SpreadStatus{ns, bits})
	}
	slices.SortFunc(status.Spread, func(a, b SpreadStatus) int { return bytes.Compare(a.Namespace[:], b.Namespace[:]) })
	return status
}

// moveStatus is called with mu held.
func (s *Shards) moveStatus(tr transfer) MoveStatus {
	m := s.moves[tr.ID]
	status := MoveStatus{
		Slot: tr.Slot, Namespace: tr.ns, From: tr.From, To: tr.To, FromBits: tr.FromBits, ToBits: tr.ToBits,
		Phase: tr.Phase, Since: m.since, Running: m.running,
		Copied: m.copied.Load(), Compared: m.compared.Load(), Differences: m.differences.Load(), Removed: m.removed.Load(),
	}
	if tr.Phase == Waiting && tr.Slot >= 0 {
		status.From = s.table.owners[tr.Slot]
	}
	if tr.Phase == Waiting && tr.Slot < 0 {
		status.FromBits = s.table.spread[tr.ns]
	}
	if m.err != nil {
		status.Error = m.err.Error()
	}
	return status
}

// Probes returns one namespace for each cluster that owns slots: reading from it
// asks that cluster. They hold nothing.
func (s *Shards) Probes() []kv.NamespaceID {
	v := s.current.Load()
	if v == nil {
		return nil
	}
	owners := map[*cluster]bool{}
	for _, c := range v.home {
		owners[c] = true
	}
	probes := make([]kv.NamespaceID, 0, len(owners))
	for i := uint32(1); len(owners) > 0; i++ {
		ns := TableNamespace
		binary.BigEndian.PutUint32(ns[12:], i)
		// Every slot is met sooner or later, as the hash is uniform.
		if home := v.home[slotOf(ns, 0)]; owners[home] {
			delete(owners, home)
			probes = append(probes, ns)
		}
	}
	return probes
}
