package main

import "runtime/debug"

// memory is how memory_bytes is divided.
type memory struct {
	near     int64 // copies of what is read
	cache    int64 // blocks of the store
	memTable int64 // one of the store's tables of recent writes
	door     int64 // values of requests in progress, by the API
	wire     int64 // the same, by the wire
	far      int64 // large values that are read for near, mostly those of requests in progress
	late     int64 // writes to slower providers that go on after the answer, in the place of the store's
	heap     int64 // what Go's collector keeps all of its own below
}

const (
	// memTables is how many tables of recent writes the store may have at once.
	memTables = 4
	// leastDoor must hold a value of the greatest size that arrives without its
	// length.
	leastDoor = 48 << 20
	// leastFar must hold a value of the greatest size.
	leastFar = 32 << 20
)

// shares are the sixteenths of memory_bytes that go to each. Go is to stay two
// below the whole, which is what stacks, code and the kernel take; what is left
// is room for its collector.
var shares = map[string]struct{ near, cache, memTables, door, wire int64 }{
	roleSingle:   {near: 3, cache: 2, memTables: 2, door: 4},
	roleCentral:  {near: 2, cache: 1, memTables: 2, door: 4, wire: 3},
	roleRegional: {near: 6, wire: 4},
	roleEdge:     {near: 6, door: 4},
	roleProxy:    {wire: 8},
}

// leastMemory is the least memory_bytes that a role can work with.
func leastMemory(role string) Size {
	s := shares[role]
	return Size(16 * leastDoor / min(or(s.door, 16), or(s.wire, 16)))
}

func or(n, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	return n
}

// mostNear is the greatest near_bytes of a role.
func mostNear(role string, total Size) Size {
	switch role {
	case roleSingle:
		return total / 4
	case roleCentral:
		return total / 16 * 3
	case roleProxy: // it keeps no copies
		return 0
	}
	return total / 2
}

// divideMemory divides memory_bytes for a role. near is near_bytes, 0 for its
// share. offHeap says that the store's memory is not Go's.
func divideMemory(role string, total, near Size, offHeap bool) memory {
	s, part := shares[role], int64(total)/16
	m := memory{
		near: s.near * part, cache: s.cache * part, memTable: s.memTables * part / memTables,
		door: s.door * part, wire: s.wire * part, far: max(leastFar, int64(total)/8), heap: 14 * part,
	}
	if near > 0 {
		m.near = int64(near)
	}
	m.late = m.cache + memTables*m.memTable
	if offHeap {
		m.heap -= m.cache + memTables*m.memTable
	}
	return m
}

// pebbleOffHeap reports whether Pebble keeps its cache outside of Go's memory,
// which it does if the program was built with cgo.
func pebbleOffHeap() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" {
			return s.Value == "1"
		}
	}
	return false
}
