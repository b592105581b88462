package postgres

import "sync/atomic"

// counters are what happened since the store was opened.
type counters struct {
	puts, putStatements, gets, getStatements   atomic.Uint64
	conflicts, reconnects, unreplicated, swept atomic.Uint64
}

// Stats are figures of a store, for metrics.
type Stats struct {
	Puts          uint64 // records put
	PutStatements uint64 // in which they travelled
	Gets          uint64
	GetStatements uint64
	Conflicts     uint64 // statements repeated after a deadlock or a failed serialization
	Reconnects    uint64 // calls repeated after their connection was lost or refused
	Unreplicated  uint64 // commits whose synchronous wait the server gave up
	Swept         uint64 // expired records turned into tombstones
	Conns         int    // open connections
	ConnsInUse    int
	ConnsMost     int
	ConnWaits     int64 // calls that had to wait for a connection
}

// Stats returns the figures of now.
func (s *Store) Stats() Stats {
	c, p := &s.counters, s.pool.Stat()
	return Stats{
		Puts: c.puts.Load(), PutStatements: c.putStatements.Load(), Gets: c.gets.Load(), GetStatements: c.getStatements.Load(),
		Conflicts: c.conflicts.Load(), Reconnects: c.reconnects.Load(), Unreplicated: c.unreplicated.Load(), Swept: c.swept.Load(),
		Conns: int(p.TotalConns()), ConnsInUse: int(p.AcquiredConns()), ConnsMost: int(p.MaxConns()), ConnWaits: p.EmptyAcquireCount(),
	}
}
