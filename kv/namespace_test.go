package kv_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// world is a namespace on a memory store with a clock of its own.
type world struct {
	kv.Namespace
	store kv.Store
	now   time.Time
	rules *kv.Rules
}

func newWorld(store kv.Store) *world {
	w := &world{store: store, now: time.Unix(1_700_000_000, 500)}
	clock := func() time.Time { return w.now }
	w.rules = &kv.Rules{Limits: kv.CloudflareLimits(), Stamp: kv.NewStamper(1, clock), Now: clock}
	w.Namespace = kv.NewNamespace(store, kv.NamespaceID{1}, w.rules)
	return w
}

// rule is the rule that err says was broken.
func rule(err error) kv.Rule {
	var broken *kv.RuleError
	if errors.As(err, &broken) && errors.Is(err, kv.ErrRule) {
		return broken.Rule
	}
	return ""
}

func TestKeyRules(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	for key, want := range map[string]kv.Rule{
		"":  kv.RuleKeyEmpty,
		".": kv.RuleKeyName, "..": kv.RuleKeyName, "...": "", "./": "",
		strings.Repeat("k", 512): "", strings.Repeat("k", 513): kv.RuleKeyBytes,
		strings.Repeat("é", 256): "", strings.Repeat("é", 257): kv.RuleKeyBytes,
		"\x00": "", "a/b//c": "", "a\xff": kv.RuleKeyEncoding,
	} {
		_, getErr := w.Get(ctx, key, 0)
		_, manyErr := w.GetMany(ctx, []string{"x", key}, 0)
		_, putManyErr := w.PutMany(ctx, []kv.Pair{{Key: "x"}, {Key: key}})
		_, deleteManyErr := w.DeleteMany(ctx, []string{"x", key})
		for what, err := range map[string]error{"get": getErr, "get many": manyErr, "put": w.Put(ctx, key, nil, kv.PutOptions{}), "check": w.CheckPut(key, kv.PutOptions{}),
			"delete": w.Delete(ctx, key), "put many": putManyErr, "delete many": deleteManyErr} {
			if rule(err) != want || want == "" && err != nil {
				t.Errorf("%s of a key of %d bytes %.5q: %v, want rule %q", what, len(key), key, err, want)
			}
		}
	}
}

func TestValueAndMetadataLimits(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	if err := w.Put(ctx, "k", make([]byte, kv.MaxValueBytes), kv.PutOptions{}); err != nil {
		t.Errorf("value at the limit: %v", err)
	}
	err := w.Put(ctx, "k", make([]byte, kv.MaxValueBytes+1), kv.PutOptions{})
	if rule(err) != kv.RuleValueBytes || err.Error() != "Value length of 26214401 exceeds limit of 26214400." {
		t.Errorf("value one past the limit: %v", err)
	}
	for metadata, want := range map[string]kv.Rule{
		`"` + strings.Repeat("m", 1022) + `"`:            "",
		`"` + strings.Repeat("m", 1023) + `"`:            kv.RuleMetadataBytes,
		`{ "a" : [1, 2 ]   }`:                            "",
		strings.Repeat(" ", 2000) + `1`:                  "", // space is not stored and does not count
		strings.Repeat(" ", 2*kv.MaxMetadataBytes) + `1`: kv.RuleMetadataBytes,
		`{`: kv.RuleMetadata, `{} {}`: kv.RuleMetadata, "\"\xff\"": kv.RuleMetadata,
		`null`: "", `false`: "", `0`: "", `""`: "",
	} {
		if err := w.Put(ctx, "m", nil, kv.PutOptions{Metadata: []byte(metadata)}); rule(err) != want || want == "" && err != nil {
			t.Errorf("metadata %.20s of %d bytes: %v, want rule %q", metadata, len(metadata), err, want)
		}
	}
	for metadata, want := range map[string]string{`{ "a" : [1, 2 ] }`: `{"a":[1,2]}`, `null`: "", ``: "", `false`: `false`} {
		if err := w.Put(ctx, "m", nil, kv.PutOptions{Metadata: []byte(metadata)}); err != nil {
			t.Fatal(err)
		}
		if rec, err := w.Get(ctx, "m", 0); err != nil || string(rec.Metadata) != want {
			t.Errorf("metadata %s is stored as %s, want %s (%v)", metadata, rec.Metadata, want, err)
		}
	}
}

func TestExpirationRules(t *testing.T) {
	w := newWorld(memory.New())
	now := w.now.Unix()
	at := func(n int64) string { return fmt.Sprint(now + n) }
	for _, c := range []struct {
		expiration, ttl string
		want            int64
		err             string
	}{
		{"", "", 0, ""},
		{at(60), "", now + 60, ""},
		{at(59), "", 0, "Invalid expiration of " + at(59) + ". Expiration times must be at least 60 seconds in the future."},
		{at(0), "", 0, "Invalid expiration of " + at(0) + ". Please specify integer greater than the current number of seconds since the UNIX epoch."},
		{"-1", "", 0, "Invalid expiration of -1. Please specify integer greater than the current number of seconds since the UNIX epoch."},
		{"soon", "", 0, "Invalid expiration of soon. Please specify integer greater than the current number of seconds since the UNIX epoch."},
		{"9007199254740991", "", 9007199254740991, ""},
		{"9007199254740992", "", 0, "Invalid expiration of 9007199254740992. Please specify integer greater than the current number of seconds since the UNIX epoch."},
		{"", "60", now + 60, ""},
		{"", "59", 0, "Invalid expiration_ttl of 59. Expiration TTL must be at least 60."},
		{"", "0", 0, "Invalid expiration_ttl of 0. Please specify integer greater than 0."},
		{"", "-60", 0, "Invalid expiration_ttl of -60. Please specify integer greater than 0."},
		{"", "60.5", 0, "Invalid expiration_ttl of 60.5. Please specify integer greater than 0."},
		{"", "6e1", now + 60, ""},
		{"", "60.0", now + 60, ""},
		{"", "0x3c", 0, "Invalid expiration_ttl of 0x3c. Please specify integer greater than 0."},
		{"", "9007199254740991", 0, fmt.Sprintf("Invalid expiration_ttl of 9007199254740991. Expiration TTL must be at most %d.", 9007199254740991-now)},
		{at(90), "70", now + 70, ""},
		{"soon", "70", now + 70, ""},
		{at(90), "1", 0, "Invalid expiration_ttl of 1. Expiration TTL must be at least 60."},
	} {
		got, err := w.rules.Limits.CheckExpiration(w.now, c.expiration, c.ttl)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("expiration %q, ttl %q: %d, %v; want %d, %s", c.expiration, c.ttl, got, err, c.want, c.err)
		}
	}
	open := w.rules.Limits
	open.MinTTL = time.Second
	if got, err := open.CheckExpiration(w.now, "", "1"); err != nil || got != now+1 {
		t.Errorf("one second in an open profile: %d, %v", got, err)
	}
}

func TestExpiredIsGoneAtItsSecond(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	if err := w.Put(ctx, "k", []byte("v"), kv.PutOptions{TTL: "60"}); err != nil {
		t.Fatal(err)
	}
	seen := func() [3]bool {
		t.Helper()
		rec, err1 := w.Get(ctx, "k", 0)
		recs, err2 := w.GetMany(ctx, []string{"k"}, 0)
		keys, err3 := w.List(ctx, kv.ListOptions{})
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		return [3]bool{!rec.Absent(), !recs[0].Absent(), len(keys.Keys) == 1}
	}
	start := w.now.Truncate(time.Second)
	w.now = start.Add(60*time.Second - 1)
	if got := seen(); got != [3]bool{true, true, true} {
		t.Errorf("just before: seen by get, get many, list: %v", got)
	}
	w.now = start.Add(60 * time.Second)
	if got := seen(); got != [3]bool{} {
		t.Errorf("at the second: seen by get, get many, list: %v", got)
	}
}

func TestDeletedIsNotSeen(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	for _, key := range []string{"a", "b", "c", "d"} {
		if err := w.Put(ctx, key, []byte(key), kv.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	failed, err := w.DeleteMany(ctx, []string{"b", "never written"})
	if err := errors.Join(err, w.Delete(ctx, "a"), w.Delete(ctx, "never written too")); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	keys, err := w.List(ctx, kv.ListOptions{Limit: 1})
	if err != nil || len(keys.Keys) != 1 || keys.Keys[0].Key != "c" || !keys.More {
		t.Errorf("first page: %+v, %v", keys, err)
	}
	keys, err = w.List(ctx, kv.ListOptions{Limit: 1, After: "c"})
	if err != nil || len(keys.Keys) != 1 || keys.Keys[0].Key != "d" || keys.More {
		t.Errorf("last page: %+v, %v", keys, err)
	}
	if rec, err := w.Get(ctx, "a", 0); err != nil || !rec.Absent() {
		t.Errorf("a deleted key reads as %+v, %v", rec, err)
	}
}

func TestListNeverHasAnEmptyPageWithMore(t *testing.T) {
	store := memory.New()
	w := newWorld(store)
	ctx := context.Background()
	for i := range 5000 { // a desert of tombstones with three oases
		key := fmt.Sprintf("%05d", i)
		var err error
		if i == 0 || i == 2500 || i == 4999 {
			err = w.Put(ctx, key, nil, kv.PutOptions{})
		} else {
			err = w.Delete(ctx, key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	opts := kv.ListOptions{Limit: 1}
	for {
		keys, err := w.List(ctx, opts)
		if err != nil {
			t.Fatal(err)
		}
		if keys.More && len(keys.Keys) == 0 {
			t.Fatal("an empty page with more behind it")
		}
		for _, k := range keys.Keys {
			got = append(got, k.Key)
		}
		if !keys.More {
			break
		}
		opts.After = keys.Keys[len(keys.Keys)-1].Key
	}
	if !slices.Equal(got, []string{"00000", "02500", "04999"}) {
		t.Errorf("listed %v", got)
	}
}

func TestListLimits(t *testing.T) {
	w := newWorld(memory.New())
	for limit, want := range map[int]kv.Rule{0: "", 1: "", 1000: "", 1001: kv.RuleListLimit, -1: kv.RuleListLimit} {
		if _, err := w.List(context.Background(), kv.ListOptions{Limit: limit}); rule(err) != want {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestBulkLimits(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	keys := make([]string, 10_001)
	pairs := make([]kv.Pair, 10_001)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
		pairs[i].Key = keys[i]
	}
	_, err := w.PutMany(ctx, pairs[:10_000])
	_, past := w.PutMany(ctx, pairs)
	if err != nil || rule(past) != kv.RulePutManyPairs {
		t.Errorf("bulk write at the limit: %v, one past: %v", err, past)
	}
	_, err = w.DeleteMany(ctx, keys[:10_000])
	_, past = w.DeleteMany(ctx, keys)
	if err != nil || rule(past) != kv.RuleDeleteManyKeys {
		t.Errorf("bulk delete at the limit: %v, one past: %v", err, past)
	}
	_, err = w.GetMany(ctx, keys[:100], 0)
	_, past = w.GetMany(ctx, keys[:101], 0)
	_, none := w.GetMany(ctx, nil, 0)
	if err != nil || rule(past) != kv.RuleGetManyKeys || rule(none) != kv.RuleGetManyKeys {
		t.Errorf("bulk get at the limit: %v, one past: %v, none: %v", err, past, none)
	}
	if past.Error() != "You can request a maximum of 100 keys" {
		t.Errorf("bulk get one past the limit: %v", past)
	}
	half := make([]byte, 25<<19)
	_, err = w.PutMany(ctx, []kv.Pair{{Key: "a", Value: half}, {Key: "b", Value: half}, {Key: "c", Value: []byte{1}}})
	_, at := w.GetMany(ctx, []string{"a", "b"}, 0)
	_, past = w.GetMany(ctx, []string{"a", "b", "c"}, 0)
	if err != nil || at != nil || rule(past) != kv.RuleGetManyBytes {
		t.Errorf("bulk get of 25 MiB: %v %v, one byte more: %v", err, at, past)
	}
}

func TestBulkWriteWithABadPairWritesNothing(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	_, err := w.PutMany(ctx, []kv.Pair{{Key: "good"}, {Key: "bad", Options: kv.PutOptions{TTL: "1"}}})
	if rule(err) != kv.RuleExpirationTTL {
		t.Errorf("bad pair: %v", err)
	}
	if rec, err := w.Get(ctx, "good", 0); err != nil || !rec.Absent() {
		t.Errorf("the good pair was written: %+v, %v", rec, err)
	}
}

func TestLastOfEqualKeysWinsInABulkWrite(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	if _, err := w.PutMany(ctx, []kv.Pair{{Key: "k", Value: []byte("1")}, {Key: "k", Value: []byte("2")}}); err != nil {
		t.Fatal(err)
	}
	if rec, err := w.Get(ctx, "k", 0); err != nil || string(rec.Value) != "2" {
		t.Errorf("got %q, %v", rec.Value, err)
	}
}

func TestBulkWriteTellsWhichKeysFailed(t *testing.T) {
	calls := 0
	store := &kvtest.Faulty{Store: memory.New(), Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if op == kvtest.OpPutMany {
			if calls++; calls == 2 {
				return kvtest.Refused
			}
		}
		return kvtest.None
	}}
	w := newWorld(store)
	pairs := make([]kv.Pair, 2500)
	for i := range pairs {
		pairs[i].Key = fmt.Sprint(i)
	}
	failed, err := w.PutMany(context.Background(), pairs)
	if err != nil || len(failed) != 1000 || failed[0] != "1000" || failed[999] != "1999" {
		t.Errorf("%d failed keys, %v", len(failed), err)
	}
	store.Inject = func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Unacknowledged }
	if failed, err := w.PutMany(context.Background(), pairs); !errors.Is(err, kv.ErrUnknown) || failed != nil {
		t.Errorf("all fail: %d failed keys, %v", len(failed), err)
	}
}

func TestWriteRateRule(t *testing.T) {
	w := newWorld(memory.New())
	w.rules.Limits.WriteInterval = time.Second
	w.rules.Rate = kv.NewWriteRate(time.Second)
	ctx := context.Background()
	if err := w.Put(ctx, "k", nil, kv.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Put(ctx, "k", nil, kv.PutOptions{}); rule(err) != kv.RuleWriteRate {
		t.Errorf("second put within the interval: %v", err)
	}
	if err := w.Delete(ctx, "k"); rule(err) != kv.RuleWriteRate {
		t.Errorf("delete within the interval: %v", err)
	}
	w.now = w.now.Add(time.Second)
	if err := w.Delete(ctx, "k"); err != nil {
		t.Errorf("delete after the interval: %v", err)
	}
}

func TestAClockThatFellBehindRefusesWrites(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	w.rules.Stamp.Observe(kv.NewVersion(w.now.Add(time.Hour).UnixNano(), 1, 1))
	_, bulkErr := w.PutMany(ctx, []kv.Pair{{Key: "k"}})
	for what, err := range map[string]error{"put": w.Put(ctx, "k", nil, kv.PutOptions{}), "delete": w.Delete(ctx, "k"), "bulk": bulkErr} {
		if !errors.Is(err, kv.ErrFuture) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAWriteAfterAReadIsNewerThanWhatWasRead(t *testing.T) {
	for name, read := range map[string]func(w *world) error{
		"get":      func(w *world) error { _, err := w.Get(context.Background(), "k", 0); return err },
		"get many": func(w *world) error { _, err := w.GetMany(context.Background(), []string{"k"}, 0); return err },
		"by another way": func(w *world) error {
			rec, err := w.store.Get(context.Background(), kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}, 0)
			if shown := w.Shown(&rec); shown != &rec {
				return fmt.Errorf("shown is %v", shown)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(memory.New())
			ctx, ref := context.Background(), kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}
			ahead := kv.Record{Version: kv.NewVersion(w.now.Add(kv.MaxFuture/2).UnixNano(), 2, 1), Value: []byte("by a fast clock")}
			if err := errors.Join(w.store.Put(ctx, ref, ahead), read(w), w.Put(ctx, "k", []byte("later"), kv.PutOptions{})); err != nil {
				t.Fatal(err)
			}
			if rec, err := w.Get(ctx, "k", 0); err != nil || string(rec.Value) != "later" {
				t.Errorf("%q, %v", rec.Value, err)
			}
		})
	}
}

func TestWhatIsNotToBeSeenIsNotShown(t *testing.T) {
	w := newWorld(memory.New())
	version := kv.NewVersion(w.now.UnixNano(), 2, 1)
	for name, rec := range map[string]kv.Record{
		"absent": {}, "deleted": kv.Tombstone(version), "expired": {Version: version, Expiration: w.now.Unix(), Value: []byte("v")},
	} {
		if shown := w.Shown(&rec); !shown.Absent() || shown.Bytes() > 0 {
			t.Errorf("%s: %v is shown", name, shown)
		}
	}
}

func TestARecordFromTheFarFutureDoesNotStopTheClock(t *testing.T) {
	w := newWorld(memory.New())
	ctx := context.Background()
	poisoned := kv.Record{Version: kv.NewVersion(w.now.Add(time.Hour).UnixNano(), 2, 1)}
	if err := w.store.Put(ctx, kv.Ref{Namespace: kv.NamespaceID{1}, Key: "k"}, poisoned); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(ctx, "k", 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Put(ctx, "other", nil, kv.PutOptions{}); err != nil {
		t.Errorf("put after a read of a poisoned record: %v", err)
	}
}
