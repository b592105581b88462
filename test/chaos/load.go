package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The load. It is paced, so that what is slow is nearkey and not the machine.
const (
	writers     = 9
	readers     = 6
	listers     = 2
	keysOfEach  = 25 // of each writer, written all the time
	stableKeys  = 5  // of each writer, written once
	writePause  = 60 * time.Millisecond
	readPause   = 25 * time.Millisecond
	listPause   = 400 * time.Millisecond
	failedPause = 100 * time.Millisecond
	listLimit   = 7
)

// slack is for the machine, beyond what an answer may be old.
const slack = 500 * time.Millisecond

// load is clients, and what they saw.
type load struct {
	w    *world
	keys [][]*key // by writer
	wg   sync.WaitGroup

	acked, reads, lists, listed atomic.Int64
	old                         atomic.Int64 // reads that did not show the newest
	own                         atomic.Int64 // reads through the entry of the key's writer
	blobs                       atomic.Int64 // reads of large values
	looked                      atomic.Int64 // versions in the databases
	unmarked                    atomic.Int64 // keys in listings, or not, while what only one provider had was away
	marked                      atomic.Int64 // answers older than they may be that say so

	made  int      // faults
	idle  []string // those that had no effect
	grown []*key   // written by the faults, once each

	mu       sync.Mutex // guards the rest
	wrong    map[string]int
	examples []string
	failures []failure
	slowest  time.Duration // of all answers while everything of nearkey ran
}

// failure is a request that had no answer, or an error for one.
type failure struct {
	begin, end time.Time
	entry      *entry
	text       string
}

func newLoad(w *world) *load {
	l := &load{w: w, wrong: map[string]int{}}
	w.load = l
	entries := w.entries()
	for i := range writers {
		var keys []*key
		for j := range keysOfEach + stableKeys {
			keys = append(keys, &key{name: fmt.Sprintf("writer %d/%02d é%%", i, j), home: entries[i%len(entries)]})
		}
		l.keys = append(l.keys, keys)
	}
	return l
}

// newKeys is how many keys one call of grow writes.
const newKeys = 150

// grow writes new keys.
func (l *load) grow(ctx context.Context) {
	for range newKeys {
		k := &key{name: fmt.Sprintf("grown/%05d", len(l.grown)), home: l.w.centre}
		l.grown = append(l.grown, k)
		if ctx.Err() == nil {
			l.write(ctx, k, false, 0)
		}
	}
}

// allKeys are those of the writers and those that were grown.
func (l *load) allKeys() (all []*key) {
	return append(slices.Concat(l.keys...), l.grown...)
}

func (l *load) rng(what, i int) *rand.Rand {
	return rand.New(rand.NewPCG(l.w.seed, uint64(what)<<32|uint64(i)))
}

// prepare writes every key once.
func (l *load) prepare(ctx context.Context) error {
	for _, keys := range l.keys {
		for _, k := range keys {
			if !l.write(ctx, k, false, 0) {
				return fmt.Errorf("the first write of %q was not acknowledged: %v", k.name, l.failures)
			}
		}
	}
	l.w.say("%d keys written; %d writers, %d readers and %d listers through the centre and %s", writers*(keysOfEach+stableKeys),
		writers, readers, listers, plural(len(l.w.edges), "edge"))
	return nil
}

// begin starts the clients, which go on until ctx ends.
func (l *load) begin(ctx context.Context) {
	const writing, reading, listing = 1, 2, 3
	l.w.began = time.Now()
	l.w.say("the load begins; it is %s", l.w.began.UTC().Format("15:04:05.000"))
	for i := range writers {
		l.wg.Go(func() {
			l.repeat(ctx, l.rng(writing, i), writePause, func(rng *rand.Rand) { l.writeSome(ctx, i, rng) })
		})
	}
	for i := range readers {
		l.wg.Go(func() { l.repeat(ctx, l.rng(reading, i), readPause, func(rng *rand.Rand) { l.readSome(ctx, rng) }) })
	}
	for i := range listers {
		l.wg.Go(func() { l.repeat(ctx, l.rng(listing, i), listPause, func(rng *rand.Rand) { l.listSome(ctx, rng) }) })
	}
	l.wg.Go(func() { l.w.watchQueue(ctx) })
	for _, p := range l.w.providers() {
		l.wg.Go(func() { l.watchStorage(ctx, p) })
	}
}

// wait returns when all clients have ended.
func (l *load) wait() { l.wg.Wait() }

// repeat does something again and again until ctx ends.
func (l *load) repeat(ctx context.Context, rng *rand.Rand, every time.Duration, do func(*rand.Rand)) {
	for ctx.Err() == nil {
		do(rng)
		pause(ctx, every/2+rand.N(every))
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// answered notes how long a request took, and a failure. It reports whether there
// was an answer.
func (l *load) answered(ctx context.Context, e *entry, begin time.Time, a answer, err error, what string) bool {
	end := time.Now()
	good := err == nil && (a.status == http.StatusOK || a.status == http.StatusNotFound && what != "put")
	if !good && ctx.Err() != nil {
		return false // the run is over
	}
	away := l.w.away(e, begin, end)
	l.mu.Lock()
	if took := end.Sub(begin); !away && took > l.slowest {
		l.slowest = took
	}
	if !good {
		text := a.String()
		if err != nil {
			text = err.Error()
		}
		l.failures = append(l.failures, failure{begin, end, e, what + ": " + text})
	}
	l.mu.Unlock()
	if !good {
		pause(ctx, failedPause)
	}
	return good
}

// writeSome makes a write of one of a writer's keys and, perhaps, reads it back.
func (l *load) writeSome(ctx context.Context, writer int, rng *rand.Rand) {
	k := l.keys[writer][rng.IntN(keysOfEach)]
	remove, expires := false, int64(0)
	switch n := rng.IntN(100); {
	case n < 15:
		remove = true
	case n < 25:
		expires = time.Now().Unix() + 2 + rng.Int64N(10)
	}
	if l.write(ctx, k, remove, expires) && rng.IntN(2) == 0 {
		l.read(ctx, k, k.home, false)
	}
}

func (l *load) write(ctx context.Context, k *key, remove bool, expires int64) bool {
	o := k.begin(remove, expires)
	r := request{method: http.MethodDelete, path: l.w.valuePath(k.name)}
	what := "delete"
	if !remove {
		r, what = l.w.put(k.name, &o, value(l.w.seed, k.name, o.seq)), "put"
	}
	begin := time.Now()
	a, err := l.w.ask(ctx, k.home, r)
	if !l.answered(ctx, k.home, begin, a, err, what) {
		return false
	}
	k.acknowledged(o.seq)
	l.acked.Add(1)
	return true
}

// readSome reads a key through an entry.
func (l *load) readSome(ctx context.Context, rng *rand.Rand) {
	keys := l.keys[rng.IntN(writers)]
	entries := l.w.entries()
	l.read(ctx, keys[rng.IntN(len(keys))], entries[rng.IntN(len(entries))], rng.IntN(3) == 0)
}

// read reads a key and judges what it sees.
func (l *load) read(ctx context.Context, k *key, e *entry, newest bool) {
	s := sight{begin: time.Now()}
	a, err := l.w.ask(ctx, e, request{method: http.MethodGet, path: l.w.valuePath(k.name), newest: newest})
	if !l.answered(ctx, e, s.begin, a, err, "get") {
		return
	}
	s.end = time.Now()
	l.reads.Add(1)
	what := "a read"
	switch {
	case e == k.home:
		l.own.Add(1)
		what = ownWrite
	case !newest:
		s.bound = maxAge + slack
	}
	if a.status == http.StatusOK {
		if s.seq = seqOf(l.w.seed, k.name, a.body); s.seq == 0 {
			l.judged(k, e, s, what, invented, false)
			return
		}
		if len(a.body) >= inlineBytes {
			l.blobs.Add(1)
		}
		if !k.newest(s) {
			l.old.Add(1)
		}
	}
	l.judged(k, e, s, what, k.judge(s), a.stale)
}

// ownWrite is a read through the entry that the key is written through.
const ownWrite = "a read of the own writes"

// judged notes what was wrong with a sight, if anything was. What may be as old as
// it is since the answer says so is counted apart.
func (l *load) judged(k *key, e *entry, s sight, what, wrong string, marked bool) {
	switch {
	case wrong == "":
		return
	case marked && wrong != invented && wrong != expired:
		l.marked.Add(1)
		return
	}
	k.mu.Lock()
	var floor op
	if n := k.floor(s.begin.Add(-s.bound)); n > 0 {
		floor = k.ops[n-1]
	}
	k.mu.Unlock()
	example := fmt.Sprintf("%s through %s at %.3fs: %q shows write %d, %s; write %d (removal: %v, expires %d) was acknowledged at %.3fs", what, e.name,
		s.begin.Sub(l.w.began).Seconds(), k.name, s.seq, wrong, floor.seq, floor.remove, floor.expires, floor.acked.Sub(l.w.began).Seconds())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong[what+": "+wrong]++
	if len(l.examples) < l.maxExamples() {
		l.examples = append(l.examples, example)
	}
}

// maxExamples is how many violations are told in full: few where they are wanted.
func (l *load) maxExamples() int {
	if l.w.alone {
		return 2
	}
	return 20
}

// listSome lists the keys of one writer, page by page.
func (l *load) listSome(ctx context.Context, rng *rand.Rand) {
	writer := rng.IntN(writers)
	entries := l.w.entries()
	l.list(ctx, writer, entries[rng.IntN(len(entries))], maxAge+slack)
}

const aListing = "a listing"

func (l *load) list(ctx context.Context, writer int, e *entry, bound time.Duration) {
	s := sight{begin: time.Now(), bound: bound}
	var names []string
	for cursor := ""; ; {
		begin := time.Now()
		p, err := l.w.list(ctx, e, fmt.Sprintf("writer %d/", writer), cursor, listLimit)
		if !l.answered(ctx, e, begin, answer{status: http.StatusOK}, err, "list") {
			return
		}
		names = append(names, p.names...)
		if cursor = p.cursor; cursor == "" {
			break
		}
	}
	s.end = time.Now()
	l.lists.Add(1)
	l.listed.Add(int64(len(names)))
	for i := 1; i < len(names); i++ {
		if names[i-1] >= names[i] {
			l.judged(l.keys[writer][0], e, s, aListing, "keys out of order or twice", false)
		}
	}
	for _, k := range l.keys[writer] {
		s.listed = slices.Contains(names, k.name)
		wrong := k.judgeListed(s)
		if wrong != "" && l.w.sole.overlap(s.begin, s.end) { // a listing has no way to say that it is old
			l.unmarked.Add(1)
			continue
		}
		l.judged(k, e, s, aListing, wrong, false)
	}
}
