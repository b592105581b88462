package cache

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shards      = 16
	maxVariants = 64      // of one key, by what Vary names; the one put first goes
	maxReads    = 3       // what an entry's reads are counted to
	ghostBytes  = 4 << 10 // of the bound, for each key that is remembered after it went
	minGhosts   = 64
	maxGhosts   = 1 << 16
)

// store keeps responses in memory, at most so many bytes of them. What goes when
// room is needed is decided by S3-FIFO: an entry is young first, in a queue of a
// tenth of the bytes, and grows old there if it was read; what was never read goes
// quickly and pushes out nothing that is read, however much of it comes. A key that
// comes back soon after it went is old at once.
//
// The bytes of an entry count until nobody reads it any more: what a slow reader
// holds is not given away twice.
type store struct {
	limit  int64
	used   atomic.Int64 // never more than limit
	turn   atomic.Uint32
	seed   maphash.Seed
	shards [shards]shard

	evicted, expired atomic.Int64
}

// shard is the part of a store with a share of the keys.
type shard struct {
	store *store
	bytes atomic.Int64 // of entries in queues

	mu         sync.Mutex // guards all below, and what entries say it guards
	objects    map[string]*object
	young, old queue
	ghosts     []uint64 // hashes of keys, each at a place that its hash gives
}

// object is a key with its responses, the newest first; there is at least one.
type object struct {
	key      string
	hash     uint64
	variants []*entry
}

// entry is one response. It does not change but for what its shard guards.
type entry struct {
	response
	cost int64
	refs atomic.Int32 // readers, and one for the store

	object     *object // the shard guards this and what follows
	next, prev *entry
	queue      *queue
	reads      uint8
}

// queue is a list of entries, in which root.next came last and root.prev goes first.
type queue struct {
	root  entry
	bytes int64
	count int
}

func (q *queue) init() { q.root.next, q.root.prev = &q.root, &q.root }

func (q *queue) push(e *entry) {
	e.queue, e.prev, e.next = q, &q.root, q.root.next
	e.prev.next, e.next.prev = e, e
	q.bytes += e.cost
	q.count++
}

func (q *queue) drop(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.queue, e.prev, e.next = nil, nil, nil
	q.bytes -= e.cost
	q.count--
}

func newStore(limit int64) *store {
	s := &store{limit: limit, seed: maphash.MakeSeed()}
	ghosts := min(max(limit/shards/ghostBytes, minGhosts), maxGhosts)
	for i := range s.shards {
		sh := &s.shards[i]
		sh.store, sh.objects, sh.ghosts = s, map[string]*object{}, make([]uint64, ghosts)
		sh.young.init()
		sh.old.init()
	}
	return s
}

func (s *store) shard(key []byte) (*shard, uint64) {
	hash := maphash.Bytes(s.seed, key)
	return &s.shards[hash%shards], hash
}

// get returns the response that the request selects, if it is fresh. The caller
// releases it.
func (s *store) get(key []byte, request headers, now time.Time) *entry {
	sh, _ := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	o := sh.objects[string(key)]
	if o == nil {
		return nil
	}
	for i := 0; i < len(o.variants); {
		switch e := o.variants[i]; {
		case !e.selectedBy(request):
			i++
		case !e.fresh(now):
			s.expired.Add(1)
			sh.remove(e)
		default:
			e.reads = min(e.reads+1, maxReads)
			e.refs.Add(1)
			return e
		}
	}
	return nil
}

func (s *store) release(e *entry) {
	if e.refs.Add(-1) == 0 {
		s.used.Add(-e.cost)
	}
}

// reserve takes cost bytes of the limit, for which others may have to go; false:
// there is no room, because all is being read.
func (s *store) reserve(cost int64, now time.Time) bool {
	if cost > s.limit {
		return false
	}
	for vain := 0; vain <= 2*shards; {
		used := s.used.Load()
		if used+cost <= s.limit {
			if s.used.CompareAndSwap(used, used+cost) {
				return true
			}
			continue
		}
		turn := s.turn.Add(1)
		sh, other := &s.shards[turn%shards], &s.shards[(turn*7+3)%shards]
		if vain <= shards && other.bytes.Load() > sh.bytes.Load() {
			sh = other
		}
		if sh.evict(now) {
			vain = 0
		} else {
			vain++
		}
	}
	return false
}

// put keeps a response, whose cost was reserved, instead of what its request would
// have selected.
func (s *store) put(key []byte, request headers, e *entry) {
	sh, hash := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e.refs.Store(1)
	o := sh.objects[string(key)]
	if o != nil {
		for i := len(o.variants) - 1; i >= 0; i-- {
			if old := o.variants[i]; len(e.vary) == 0 || old.selectedBy(request) {
				sh.remove(old)
			}
		}
		if len(o.variants) >= maxVariants {
			sh.remove(o.variants[len(o.variants)-1])
		}
		o = sh.objects[string(key)] // removed with its last
	}
	if o == nil {
		o = &object{key: string(key), hash: hash}
		sh.objects[o.key] = o
	}
	e.object = o
	o.variants = append(o.variants, nil)
	copy(o.variants[1:], o.variants)
	o.variants[0] = e
	sh.bytes.Add(e.cost)
	if ghost := &sh.ghosts[hash/shards%uint64(len(sh.ghosts))]; *ghost == hash {
		*ghost = 0
		sh.old.push(e)
		return
	}
	sh.young.push(e)
}

// purge removes a key; true: one of its responses was fresh.
func (s *store) purge(key []byte, now time.Time) bool {
	sh, _ := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	o := sh.objects[string(key)]
	if o == nil {
		return false
	}
	fresh := false
	for len(o.variants) > 0 {
		e := o.variants[len(o.variants)-1]
		fresh = fresh || e.fresh(now)
		sh.remove(e)
	}
	return fresh
}

// entries counts what is kept.
func (s *store) entries() (n int64) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n += int64(sh.young.count + sh.old.count)
		sh.mu.Unlock()
	}
	return n
}

// remove takes an entry out of the shard, which is locked.
func (sh *shard) remove(e *entry) {
	o := e.object
	for i, v := range o.variants {
		if v == e {
			o.variants = append(o.variants[:i], o.variants[i+1:]...)
			o.variants[:len(o.variants)+1][len(o.variants)] = nil
			break
		}
	}
	if len(o.variants) == 0 {
		delete(sh.objects, o.key)
	}
	e.queue.drop(e)
	sh.bytes.Add(-e.cost)
	sh.store.release(e)
}

// evict removes one entry that nobody is reading; false: there is none.
func (sh *shard) evict(now time.Time) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for held := 0; held <= sh.young.count+sh.old.count; {
		q := &sh.old
		if sh.old.count == 0 || sh.young.bytes*10 > sh.young.bytes+sh.old.bytes && sh.young.count > 0 {
			q = &sh.young
		}
		e := q.root.prev
		switch {
		case e == &q.root:
			return false
		case e.refs.Load() > 1:
			held++
			sh.move(e)
		case e.reads > 0 && e.fresh(now):
			e.reads--
			sh.move(e)
		default:
			if q == &sh.young {
				sh.ghosts[e.object.hash/shards%uint64(len(sh.ghosts))] = e.object.hash
			}
			sh.store.evicted.Add(1)
			sh.remove(e)
			return true
		}
	}
	return false
}

// move puts an entry behind all that are old.
func (sh *shard) move(e *entry) {
	e.queue.drop(e)
	sh.old.push(e)
}
