package edge

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

var (
	adversarialReads = flag.Int("adversarial-reads", 1_000_000, "reads of the read-your-write test")
	adversarialSeed  = flag.Uint64("adversarial-seed", 0, "seed of the read-your-write test; 0: a random one")
)

// link is a way to a far store that is slow at random and fails at random, before
// or after the work is done.
type link struct {
	far kv.Store
}

func (l link) trip(work func() error) error {
	for range rand.IntN(8) {
		runtime.Gosched()
	}
	fate := rand.IntN(40)
	if fate == 0 {
		return fmt.Errorf("link: %w", kv.ErrUnavailable)
	}
	err := work()
	for range rand.IntN(8) {
		runtime.Gosched()
	}
	if fate == 1 && err == nil {
		return fmt.Errorf("link: %w", kv.ErrUnknown)
	}
	return err
}

func (l link) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := l.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

func (l link) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (a kv.Answer, err error) {
	err = l.trip(func() error { a, err = kv.GetAnswer(ctx, l.far, ref, maxAge); return err })
	return a, err
}

func (l link) GetAnswers(ctx context.Context, refs []kv.Ref, maxAge time.Duration) (a []kv.Answer, err error) {
	err = l.trip(func() error { a, err = kv.GetAnswers(ctx, l.far, refs, maxAge); return err })
	return a, err
}

func (l link) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	return l.trip(func() error { return l.far.Put(ctx, ref, rec) })
}

func (l link) PutMany(ctx context.Context, writes []kv.Write) error {
	return l.trip(func() error { return kv.PutMany(ctx, l.far, writes) })
}

func (l link) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	return l.far.List(ctx, ns, opts)
}

// place is a point of presence and what it has acknowledged.
type place struct {
	*Tier
	acked [adversarialKeys]struct {
		sync.Mutex
		newest kv.Version
	}
}

const (
	adversarialKeys    = 5
	adversarialPlaces  = 4
	adversarialClients = 3 // of each place
)

func keyRef(i int) kv.Ref { return kv.Ref{Key: fmt.Sprint("key ", i)} }

func (p *place) floor(key int) kv.Version {
	p.acked[key].Lock()
	defer p.acked[key].Unlock()
	return p.acked[key].newest
}

func (p *place) ack(key int, v kv.Version) {
	p.acked[key].Lock()
	defer p.acked[key].Unlock()
	p.acked[key].newest = newer(p.acked[key].newest, v)
}

// write puts a random record of a key and remembers it if it was acknowledged.
func (p *place) write(rng *rand.Rand, stamp *kv.Stamper) error {
	var writes []kv.Write
	var keys []int
	for range 1 + rng.IntN(3)/2 {
		v, err := stamp.Stamp()
		if err != nil {
			return err
		}
		rec := kv.Record{Version: v, Value: make([]byte, rng.IntN(300)), Expiration: rng.Int64N(2) * (1 << 33)}
		if rng.IntN(4) == 0 {
			rec = kv.Tombstone(v)
		}
		key := rng.IntN(adversarialKeys)
		keys = append(keys, key)
		writes = append(writes, kv.Write{Ref: keyRef(key), Record: rec})
	}
	var err error
	if len(writes) == 1 {
		err = p.Put(context.Background(), writes[0].Ref, writes[0].Record)
	} else {
		err = p.PutMany(context.Background(), writes)
	}
	if err == nil {
		for i, key := range keys {
			p.ack(key, writes[i].Record.Version)
		}
	}
	return nil
}

// read reads one or several keys and returns how many were older than what was
// acknowledged before, and how many were read.
func (p *place) read(rng *rand.Rand) (violations, reads int) {
	maxAge := []time.Duration{0, time.Microsecond, time.Minute, time.Hour}[rng.IntN(4)]
	if rng.IntN(4) > 0 {
		key := rng.IntN(adversarialKeys)
		floor := p.floor(key)
		a, err := p.GetAnswer(context.Background(), keyRef(key), maxAge)
		if err == nil && a.Version.Compare(floor) < 0 {
			violations = 1
		}
		return violations, 1
	}
	var refs []kv.Ref
	var floors []kv.Version
	for key := range adversarialKeys {
		refs, floors = append(refs, keyRef(key)), append(floors, p.floor(key))
	}
	answers, err := p.GetAnswers(context.Background(), refs, maxAge)
	if err != nil {
		return 0, len(refs)
	}
	for i, a := range answers {
		if a.Version.Compare(floors[i]) < 0 {
			violations++
		}
	}
	return violations, len(refs)
}

// adversary interleaves reads and writes of few keys from several places, behind
// slow and failing links, with notices late, repeated and out of order.
func adversary(t *testing.T, reads int, forgetful bool) (violations int) {
	t.Helper()
	seed := *adversarialSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-adversarial-seed=%d", seed)
	centre := memory.New()
	stamp := kv.NewStamper(1, nil)
	places := make([]*place, adversarialPlaces)
	for i := range places {
		regional := New(link{centre}, Options{NearBytes: 1 << 20, MaxSkew: -1, forgetful: forgetful})
		places[i] = &place{Tier: New(link{regional}, Options{NearBytes: []int64{1 << 20, 1500}[i%2], MaxValueBytes: []int{1 << 20, 150}[i/2%2], MaxSkew: -1, forgetful: forgetful})}
	}
	var done, bad atomic.Int64
	var wg sync.WaitGroup
	for i, p := range places {
		for client := range adversarialClients {
			rng := rand.New(rand.NewPCG(seed, uint64(i*adversarialClients+client)))
			wg.Go(func() {
				for done.Load() < int64(reads) {
					if rng.IntN(5) == 0 {
						if err := p.write(rng, stamp); err != nil {
							t.Error(err)
							return
						}
						continue
					}
					v, n := p.read(rng)
					bad.Add(int64(v))
					done.Add(int64(n))
				}
			})
		}
	}
	stop := make(chan struct{})
	notices := sync.WaitGroup{}
	notices.Go(func() { adversarialNotices(centre, places, stop) })
	wg.Wait()
	close(stop)
	notices.Wait()
	return int(bad.Load())
}

// adversarialNotices tells the places of changes, badly, and never that they are
// current.
func adversarialNotices(centre *memory.Store, places []*place, stop chan struct{}) {
	_, cursor, _ := centre.Changes(context.Background(), kv.Cursor{}, 1)
	for {
		select {
		case <-stop:
			return
		default:
		}
		changes, next, err := centre.Changes(context.Background(), cursor, 50)
		if err != nil {
			return
		}
		cursor = next
		for _, p := range places {
			rand.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
			p.Changed(changes)
			if len(changes) > 1 {
				p.Changed(changes[:len(changes)/2])
			}
			if rand.IntN(50) == 0 {
				p.Broken()
			}
		}
		runtime.Gosched()
	}
}

func TestReadYourWrite(t *testing.T) {
	if n := adversary(t, *adversarialReads, false); n != 0 {
		t.Errorf("%d of %d reads returned less than was acknowledged", n, *adversarialReads)
	}
}

// TestReadYourWriteControl shows that the test above can fail.
func TestReadYourWriteControl(t *testing.T) {
	if n := adversary(t, *adversarialReads/10, true); n == 0 {
		t.Error("tiers that do not put near show no violation")
	} else {
		t.Logf("%d violations without the near write", n)
	}
}
