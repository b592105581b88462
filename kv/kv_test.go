package kv_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// randomRecord makes records that collide often.
func randomRecord(rng *rand.Rand) kv.Record {
	v := kv.NewVersion(rng.Int64N(3), 1, rng.Uint64N(2))
	switch rng.IntN(4) {
	case 0:
		return kv.Record{}
	case 1:
		return kv.Tombstone(v)
	}
	return kv.Record{Version: v, Expiration: rng.Int64N(2), Metadata: []byte{'0' + byte(rng.IntN(2))}, Value: []byte{byte(rng.IntN(2))}}
}

func TestMergeIsCommutativeAssociativeIdempotent(t *testing.T) {
	law := func(seed uint64) bool {
		rng := rand.New(rand.NewPCG(seed, 0))
		a, b, c := randomRecord(rng), randomRecord(rng), randomRecord(rng)
		return kv.Merge(a, b).Compare(kv.Merge(b, a)) == 0 &&
			kv.Merge(a, kv.Merge(b, c)).Compare(kv.Merge(kv.Merge(a, b), c)) == 0 &&
			kv.Merge(a, a).Compare(a) == 0 &&
			kv.Merge(a, kv.Record{}).Compare(a) == 0 &&
			kv.Merge(a, b).Compare(a) >= 0
	}
	if err := quick.Check(law, &quick.Config{MaxCount: 20_000}); err != nil {
		t.Error(err)
	}
}

func TestVersionSortsByTimeThenNodeThenNonce(t *testing.T) {
	versions := []kv.Version{{}, kv.NewVersion(1, 0, 0), kv.NewVersion(1, 0, 1), kv.NewVersion(1, 1, 0), kv.NewVersion(1, 1<<15, 0), kv.NewVersion(2, 0, 0), kv.NewVersion(1<<62, 0, 0)}
	if !slices.IsSortedFunc(versions, kv.Version.Compare) {
		t.Error("versions out of order")
	}
	v := kv.NewVersion(12345, 678, 1<<48|9)
	if v.UnixNano() != 12345 || v.Node() != 678 || v.String() != "000000000000303902a6000000000009" {
		t.Errorf("parts of %s: %d, %d", v, v.UnixNano(), v.Node())
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("000000000000303902a6000000000009")
	f.Add("")
	f.Add("zz")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := kv.ParseVersion(s)
		if err == nil && v.String() != strings.ToLower(s) {
			t.Errorf("%q parses as %s", s, v)
		}
		if id, err := kv.ParseNamespaceID(s); err == nil && id.String() != strings.ToLower(s) {
			t.Errorf("%q parses as %s", s, id)
		}
	})
}

func TestStamperNeverGoesBack(t *testing.T) {
	clock := time.Unix(1000, 0)
	s := kv.NewStamper(7, func() time.Time { return clock })
	var last kv.Version
	stamp := func() {
		t.Helper()
		v, err := s.Stamp()
		if err != nil {
			t.Fatal(err)
		}
		if v.Compare(last) <= 0 || v.Node() != 7 {
			t.Fatalf("stamped %s after %s", v, last)
		}
		last = v
	}
	stamp()
	stamp() // within the same nanosecond
	clock = clock.Add(-kv.MaxFuture / 2)
	stamp() // the clock was set back
	s.Observe(kv.NewVersion(clock.Add(kv.MaxFuture-time.Second).UnixNano(), 1, 1))
	stamp() // another node is ahead
	s.Observe(kv.NewVersion(clock.Add(kv.MaxFuture).UnixNano(), 1, 1))
	if v, err := s.Stamp(); !errors.Is(err, kv.ErrFuture) {
		t.Errorf("stamped %s with a clock too far behind: %v", v, err)
	}
	clock = clock.Add(time.Second)
	stamp()
}

func TestCheckFuture(t *testing.T) {
	now := time.Unix(1000, 0)
	if err := kv.CheckFuture(kv.NewVersion(now.Add(kv.MaxFuture).UnixNano(), 0, 0), now); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if err := kv.CheckFuture(kv.NewVersion(now.Add(kv.MaxFuture).UnixNano()+1, 0, 0), now); !errors.Is(err, kv.ErrFuture) {
		t.Errorf("one past the limit: %v", err)
	}
}

func TestPrefixSuccessor(t *testing.T) {
	for prefix, want := range map[string]string{"": "", "a": "b", "a\xff": "b", "\xff": "", "\xff\xff": "", "a\x00": "a\x01", "\xfe\xff": "\xff"} {
		if got := kv.PrefixSuccessor(prefix); got != want {
			t.Errorf("successor of %q: %q, want %q", prefix, got, want)
		}
	}
}

func TestWriteRate(t *testing.T) {
	r := kv.NewWriteRate(time.Second)
	now := time.Unix(1000, 0)
	a, b := kv.Ref{Key: "a"}, kv.Ref{Key: "b"}
	for i, step := range []struct {
		ref   kv.Ref
		after time.Duration
		allow bool
	}{{a, 0, true}, {a, 999 * time.Millisecond, false}, {b, 0, true}, {a, time.Millisecond, true}, {b, 998 * time.Millisecond, false}, {b, time.Millisecond, true}, {a, 0, false}, {a, time.Millisecond, true}, {b, 2 * time.Second, true}} {
		now = now.Add(step.after)
		if got := r.Allow(step.ref, now); got != step.allow {
			t.Errorf("step %d: allowed %v, want %v", i, got, step.allow)
		}
	}
	if !r.Allow(b, now.Add(-time.Hour)) {
		t.Error("a clock that was set back locks a key")
	}
}
