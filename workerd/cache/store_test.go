package cache

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

func newEntry(key string, size int, now time.Time) *entry {
	e := &entry{response: response{status: 200, fields: headers{}, body: make([]byte, size), stored: now, made: now, life: time.Hour}}
	e.cost = e.response.cost([]byte(key), int64(size))
	return e
}

// add keeps a response of so many bytes, as a put does.
func (s *store) add(key string, size int, now time.Time) bool {
	e := newEntry(key, size, now)
	if !s.reserve(e.cost, now) {
		return false
	}
	s.put([]byte(key), nil, e)
	return true
}

func (s *store) has(key string, now time.Time) bool {
	e := s.get([]byte(key), nil, now)
	if e == nil {
		return false
	}
	s.release(e)
	return true
}

// check compares what is counted with what is there.
func (s *store) check(t *testing.T) {
	t.Helper()
	var used int64
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		var bytes int64
		entries := 0
		for key, o := range sh.objects {
			if key != o.key || len(o.variants) == 0 || len(o.variants) > maxVariants {
				t.Errorf("object %q has key %q and %d variants", key, o.key, len(o.variants))
			}
			for _, e := range o.variants {
				if e.object != o || e.queue == nil {
					t.Errorf("an entry of %q is not in its place", key)
				}
				bytes += e.cost
				entries++
			}
		}
		if sh.bytes.Load() != bytes || sh.young.bytes+sh.old.bytes != bytes || sh.young.count+sh.old.count != entries {
			t.Errorf("shard %d: %d bytes in %d entries, counted %d", i, bytes, entries, sh.bytes.Load())
		}
		used += bytes
		sh.mu.Unlock()
	}
	if s.used.Load() != used || used > s.limit {
		t.Errorf("%d bytes are used, counted %d, of %d", used, s.used.Load(), s.limit)
	}
}

// What is read stays, however much is put that nobody reads. The control: what is
// not read goes.
func TestScan(t *testing.T) {
	now := time.Now()
	for _, read := range []bool{true, false} {
		s := newStore(4 << 20)
		hot := func(i int) string { return fmt.Sprintf("hot %d", i) }
		for i := range 500 {
			s.add(hot(i), 1<<10, now)
		}
		for i := range 40_000 { // ten times what there is room for
			s.add(fmt.Sprintf("scan %d", i), 1<<10, now)
			if read {
				s.has(hot(i%500), now)
			}
		}
		kept := 0
		for i := range 500 {
			if s.has(hot(i), now) {
				kept++
			}
		}
		if read && kept < 495 || !read && kept > 50 {
			t.Errorf("read %v: %d of 500 are left", read, kept)
		}
		s.check(t)
	}
}

// Reads by a law of few that are read often: as good as any queue by last use, or
// better, on the same reads.
func TestHitRatio(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	now, rng := time.Now(), rand.New(rand.NewPCG(seed, 1))
	zipf := rand.NewZipf(rng, 1.1, 10, 100_000)
	const entries, size = 2000, 1000
	s := newStore(entries * newEntry("000000", size, now).cost)
	last, used, hits, lastHits := map[string]int{}, []string{}, 0, 0
	for i := range 100_000 {
		key := fmt.Sprintf("%06d", zipf.Uint64())
		if s.has(key, now) {
			hits++
		} else {
			s.add(key, size, now)
		}
		if _, ok := last[key]; ok {
			lastHits++
		}
		last[key] = i
		used = append(used, key)
		for len(last) > entries { // the one that was read longest ago
			if at := i + 1 - len(used); last[used[0]] == at {
				delete(last, used[0])
			}
			used = used[1:]
		}
	}
	if hits < lastHits {
		t.Errorf("%d hits, and %d by last use", hits, lastHits)
	}
	t.Logf("%d hits, %d by last use", hits, lastHits)
	s.check(t)
}

// What a reader holds counts, and does not go; when all is held there is no room.
func TestHeldEntriesCount(t *testing.T) {
	now := time.Now()
	const size = 10 << 10
	cost := newEntry("key 00", size, now).cost
	s := newStore(20 * cost)
	var held []*entry
	for i := range 20 {
		key := fmt.Sprintf("key %02d", i)
		if !s.add(key, size, now) {
			t.Fatalf("no room for %s", key)
		}
		held = append(held, s.get([]byte(key), nil, now))
	}
	if s.add("one more", size, now) {
		t.Error("there was room while all was held")
	}
	for i := range 20 {
		s.purge(fmt.Appendf(nil, "key %02d", i), now)
	}
	if s.used.Load() != s.limit || s.entries() != 0 || s.add("one more", size, now) {
		t.Errorf("%d bytes are used", s.used.Load())
	}
	for i, e := range held {
		if s.release(e); s.used.Load() != int64(19-i)*cost {
			t.Errorf("%d bytes are used", s.used.Load())
		}
	}
	if !s.add("one more", size, now) || s.add("too large", int(s.limit), now) {
		t.Error("the limit is not the limit")
	}
	s.check(t)
}

// Of many entries that are read all but one, that one goes, and it alone.
func TestTheOneThatIsNotHeld(t *testing.T) {
	now := time.Now()
	cost := newEntry("key 000", 1000, now).cost
	s := newStore(200 * cost)
	for i := range 200 {
		key := fmt.Sprintf("key %03d", i)
		s.add(key, 1000, now)
		if i != 77 {
			defer s.release(s.get([]byte(key), nil, now))
		}
	}
	if !s.add("one more", 999, now) {
		t.Error("there was no room")
	}
	if s.holds("key 077") || s.entries() != 200 || s.evicted.Load() != 1 {
		t.Errorf("%d entries, %d went", s.entries(), s.evicted.Load())
	}
	s.check(t)
}

// What is stale goes before what is fresh, though it was read.
func TestStaleGoesFirst(t *testing.T) {
	now := time.Now()
	s := newStore(1 << 20)
	sh, _ := s.shard([]byte("stale"))
	stale := newEntry("stale", 100, now)
	stale.life = time.Minute
	s.reserve(stale.cost, now)
	s.put([]byte("stale"), nil, stale)
	for range maxReads {
		s.has("stale", now)
	}
	for i := 0; sh.young.count < 3; i++ {
		s.add(fmt.Sprintf("fresh %d", i), 100, now)
	}
	if !sh.evict(now.Add(time.Minute)) || s.holds("stale") {
		t.Error("it is still there")
	}
}

// What is new has a tenth of the bytes to be read a first time.
func TestYoungEntriesHaveTime(t *testing.T) {
	now := time.Now()
	s := newStore(2000 * newEntry("hot 0000", 1000, now).cost)
	for i := range 1980 {
		key := fmt.Sprintf("hot %04d", i)
		s.add(key, 1000, now)
		for range maxReads {
			s.has(key, now)
		}
	}
	for i := range 20 {
		s.add(fmt.Sprintf("new %02d", i), 1000, now)
	}
	for i := range 50 {
		s.add(fmt.Sprintf("scan %d", i), 1000, now)
	}
	there := 0
	for i := range 20 {
		if s.has(fmt.Sprintf("new %02d", i), now) {
			there++
		}
	}
	if there < 18 {
		t.Errorf("%d of 20 are left", there)
	}
	s.check(t)
}

func TestExactlyTheLimit(t *testing.T) {
	now := time.Now()
	cost := newEntry("k", 5000, now).cost
	if s := newStore(cost); !s.add("k", 5000, now) || s.used.Load() != cost {
		t.Error("no room for what just fits")
	}
	if s := newStore(cost - 1); s.add("k", 5000, now) || s.used.Load() != 0 {
		t.Error("room for a byte too much")
	}
}

func TestConcurrentUse(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	now := time.Now()
	s := newStore(1 << 20)
	var wait, watch sync.WaitGroup
	stop := make(chan struct{})
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if used := s.used.Load(); used > s.limit || used < 0 {
				t.Errorf("%d bytes are used", used)
				return
			}
			runtime.Gosched()
		}
	})
	for worker := range 8 {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(worker)))
			for range 5000 {
				key := fmt.Sprintf("%d", rng.IntN(300))
				switch rng.IntN(10) {
				case 0:
					s.purge([]byte(key), now)
				case 1, 2, 3:
					e := newEntry(key, rng.IntN(20<<10), now)
					request := headers{"A": {fmt.Sprint(rng.IntN(3))}}
					if rng.IntN(2) == 0 {
						e.fields["Vary"] = []string{"A"}
						_ = e.readVary(request)
					}
					if s.reserve(e.cost, now) {
						s.put([]byte(key), request, e)
					}
				default:
					if e := s.get([]byte(key), headers{"A": {"1"}}, now); e != nil {
						runtime.Gosched()
						s.release(e)
					}
				}
			}
		})
	}
	wait.Wait()
	close(stop)
	watch.Wait()
	s.check(t)
	for i := range 300 {
		s.purge(fmt.Append(nil, i), now)
	}
	if s.used.Load() != 0 || s.entries() != 0 {
		t.Errorf("%d bytes, %d entries are left", s.used.Load(), s.entries())
	}
}

// What is counted is what is taken.
func TestMemory(t *testing.T) {
	now := time.Now()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := newStore(32 << 20)
	for i := range 60_000 {
		key := fmt.Sprintf("https://a.example/%d", i)
		e := &entry{response: response{status: 200, stored: now, made: now, life: time.Hour, body: make([]byte, 100), fields: headers{}}}
		for _, name := range []string{"Content-Type", "Cache-Control", "Date", "Etag", "Vary"} {
			e.fields[name] = []string{fmt.Sprintf("a value %d", i)}
			e.text += 20
		}
		if err := e.readVary(headers{fmt.Sprintf("A Value %d", i): {fmt.Sprintf("sent %d", i)}}); err != nil {
			t.Fatal(err)
		}
		e.cost = e.response.cost([]byte(key), 100)
		if s.reserve(e.cost, now) {
			s.put([]byte(key), nil, e)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	taken, counted := int64(after.HeapAlloc)-int64(before.HeapAlloc), s.used.Load()
	t.Logf("%d entries take %d bytes, counted %d", s.entries(), taken, counted)
	if taken > counted*11/10 || taken < counted*7/10 || counted < 31<<20 {
		t.Errorf("%d bytes are taken, counted %d", taken, counted)
	}
	runtime.KeepAlive(s)
}

func TestVariantsAreBounded(t *testing.T) {
	now := time.Now()
	s := newStore(1 << 20)
	request := func(i int) headers { return headers{"A": {fmt.Sprint(i)}} }
	for i := range maxVariants + 1 {
		e := newEntry("k", 10, now)
		e.fields["Vary"] = []string{"a"}
		if err := e.readVary(request(i)); err != nil {
			t.Fatal(err)
		}
		s.reserve(e.cost, now)
		s.put([]byte("k"), request(i), e)
		if n := s.entries(); n != int64(min(i+1, maxVariants)) {
			t.Fatalf("%d entries after %d puts", n, i+1)
		}
	}
	if s.get([]byte("k"), request(0), now) != nil {
		t.Error("the first is still there")
	}
	for i := 1; i <= maxVariants; i++ {
		e := s.get([]byte("k"), request(i), now)
		if e == nil {
			t.Fatalf("variant %d is gone", i)
		}
		s.release(e)
	}
	s.add("k", 10, now) // one for all requests
	if s.entries() != 1 {
		t.Errorf("%d entries", s.entries())
	}
	s.check(t)
	if !s.purge([]byte("k"), now) || s.purge([]byte("k"), now) || s.used.Load() != 0 {
		t.Error("purge")
	}
}

// A key that comes back soon after it went is kept longer than one that is new.
func TestReturn(t *testing.T) {
	now := time.Now()
	s := newStore(1 << 20)
	s.add("back", 1<<10, now)
	for i := 0; s.entries() > 0 && s.holds("back"); i++ {
		s.add(fmt.Sprintf("scan %d", i), 1<<10, now)
	}
	s.add("back", 1<<10, now)
	sh, _ := s.shard([]byte("back"))
	if q := sh.objects["back"].variants[0].queue; q != &sh.old {
		t.Error("it is not old")
	}
	s.check(t)
}

// holds looks without reading.
func (s *store) holds(key string) bool {
	sh, _ := s.shard([]byte(key))
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.objects[key] != nil
}

func BenchmarkHit(b *testing.B) {
	now := time.Now()
	s := newStore(64 << 20)
	keys := make([][]byte, 10_000)
	request := headers{"Accept": {"text/html"}}
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "https://a.example/%d", i)
		s.add(string(keys[i]), 1<<10, now)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := rand.IntN(len(keys)); pb.Next(); i++ {
			e := s.get(keys[i%len(keys)], request, now)
			s.release(e)
		}
	})
}
