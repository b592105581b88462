package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/kv"
)

func absent(t T, s *Subject) {
	if rec := mustGet(t, s, "never written"); !rec.Absent() || rec.Bytes() != 0 {
		t.Fatalf("a key that was never written is %s", show(rec))
	}
	if page := mustList(t, s, kv.ListOptions{Limit: 10}); len(page.Keys) != 0 || page.More {
		t.Fatalf("an empty namespace lists %d keys, more %v", len(page.Keys), page.More)
	}
}

func readYourWrite(t T, s *Subject) {
	for i := range 20 {
		rec := kv.Record{Version: s.Next(), Value: fmt.Appendf(nil, "value %d", i), Metadata: []byte(`{"i":1}`), Expiration: 1 << 33}
		mustPut(t, s, "k", rec)
		same(t, "get after put", mustGet(t, s, "k"), rec)
		page := mustList(t, s, kv.ListOptions{Limit: 10})
		if len(page.Keys) != 1 || page.Keys[0].Record.Version != rec.Version {
			t.Fatalf("list after put: %d keys", len(page.Keys))
		}
	}
}

// permutations calls f with every order of n things.
func permutations(n int, f func(order []int)) {
	var place func(order []int)
	place = func(order []int) {
		if len(order) == n {
			f(order)
			return
		}
		for i := range n {
			if !slices.Contains(order, i) {
				place(append(slices.Clone(order), i))
			}
		}
	}
	place(nil)
}

func newestWins(t T, s *Subject) {
	recs := []kv.Record{
		{Version: s.Next(), Value: []byte("a")},
		kv.Tombstone(s.Next()),
		{Version: s.Next(), Value: []byte("c"), Metadata: []byte("1")},
		{Version: s.Next(), Value: []byte("b"), Expiration: 1},
	}
	permutations(len(recs), func(order []int) {
		key, newest := fmt.Sprint("order ", order), -1
		for _, i := range order {
			mustPut(t, s, key, recs[i])
			newest = max(newest, i)
			same(t, fmt.Sprintf("%s after %d", key, i), mustGet(t, s, key), recs[newest])
		}
	})
}

func repeating(t T, s *Subject) {
	old, rec := kv.Record{Version: s.Next(), Value: []byte("old")}, kv.Record{Version: s.Next(), Value: []byte("new")}
	for range 3 {
		mustPut(t, s, "k", old)
		mustPut(t, s, "k", rec)
	}
	mustPut(t, s, "k", old)
	same(t, "after repeated puts", mustGet(t, s, "k"), rec)
	if all := listAll(t, s, "", 10); len(all) != 1 {
		t.Fatalf("one key was put, %d are listed", len(all))
	}
}

func ties(t T, s *Subject) {
	v := s.Next()
	recs := []kv.Record{
		kv.Tombstone(v),
		{Version: v, Value: []byte("a")},
		{Version: v, Value: []byte("b")},
		{Version: v, Value: []byte("a"), Metadata: []byte("1")},
		{Version: v, Value: []byte("a"), Expiration: 1 << 33},
	}
	for n := 2; n <= len(recs); n++ {
		want := slices.MaxFunc(recs[len(recs)-n:], kv.Record.Compare)
		permutations(n, func(order []int) {
			key := fmt.Sprint(n, " ", order)
			for _, i := range order {
				mustPut(t, s, key, recs[len(recs)-n+i])
			}
			same(t, "tie put in order "+key, mustGet(t, s, key), want)
		})
	}
}

func tombstone(t T, s *Subject) {
	mustPut(t, s, "k", kv.Record{Version: s.Next(), Value: []byte("v"), Metadata: []byte("1"), Expiration: 1 << 33})
	late := kv.Record{Version: s.Next(), Value: []byte("late")}
	tomb := kv.Tombstone(s.Next())
	mustPut(t, s, "k", tomb)
	same(t, "get after delete", mustGet(t, s, "k"), tomb)
	mustPut(t, s, "k", late)
	same(t, "a tombstone shadows an older write that comes late", mustGet(t, s, "k"), tomb)
	mustPut(t, s, "never written", tomb)
	same(t, "a delete of an absent key is kept", mustGet(t, s, "never written"), tomb)
	again := kv.Record{Version: s.Next(), Value: []byte("again")}
	mustPut(t, s, "k", again)
	same(t, "put after delete", mustGet(t, s, "k"), again)
}

func hideNothing(t T, s *Subject) {
	expired := kv.Record{Version: s.Next(), Value: []byte("v"), Metadata: []byte("1"), Expiration: 1}
	tomb := kv.Tombstone(s.Next())
	mustPut(t, s, "expired", expired)
	mustPut(t, s, "tombstone", tomb)
	same(t, "expired record", mustGet(t, s, "expired"), expired)
	same(t, "tombstone", mustGet(t, s, "tombstone"), tomb)
	all := listAll(t, s, "", 10)
	if len(all) != 2 {
		t.Fatalf("an expired record and a tombstone were put, %d keys are listed", len(all))
	}
	expired.Value = nil
	same(t, "expired record in a list", all[0].Record, expired)
	same(t, "tombstone in a list", all[1].Record, tomb)
}

func emptyValue(t T, s *Subject) {
	for _, value := range [][]byte{nil, {}} {
		rec := kv.Record{Version: s.Next(), Value: value}
		mustPut(t, s, "k", rec)
		if got := mustGet(t, s, "k"); got.Absent() || got.Tombstone || got.Version != rec.Version {
			t.Fatalf("an empty value reads as %s", show(got))
		}
		if all := listAll(t, s, "", 10); len(all) != 1 || all[0].Record.Tombstone {
			t.Fatalf("an empty value lists as %v", all)
		}
	}
}

func overwriteClears(t T, s *Subject) {
	mustPut(t, s, "k", kv.Record{Version: s.Next(), Value: []byte("v"), Metadata: []byte("1"), Expiration: 1 << 33})
	plain := kv.Record{Version: s.Next(), Value: []byte("w")}
	mustPut(t, s, "k", plain)
	same(t, "overwritten", mustGet(t, s, "k"), plain)
	if r := listAll(t, s, "", 1)[0].Record; r.Expiration != 0 || len(r.Metadata) != 0 {
		t.Fatalf("overwritten record lists as %s", show(r))
	}
}

func largeValues(t T, s *Subject) {
	for _, n := range []int{1, 4096, kv.ReserveBytes - 1, kv.ReserveBytes, kv.ReserveBytes + 1, 1 << 20, kv.MaxValueBytes} {
		value := make([]byte, n)
		for i := 0; i < n; i += 8 {
			copy(value[i:], fmt.Sprint(i+n))
		}
		rec := kv.Record{Version: s.Next(), Value: value, Metadata: []byte(`"m"`)}
		mustPut(t, s, "k", rec)
		same(t, "large value", mustGet(t, s, "k"), rec)
	}
	small := kv.Record{Version: s.Next(), Value: []byte("small")}
	mustPut(t, s, "k", small)
	same(t, "a small value over a large one", mustGet(t, s, "k"), small)
}

// awkward are keys that a careless store mangles, confuses or mis-sorts.
func awkward() []string {
	keys := []string{"\x00", "\x00\x00", "a", "a\x00", "a\x00b", "a/b", "a//b", "/", "//", ".", "..", "a|b", "d|", "%2F", "a%2Fb", "+", " ", "\xff", "\xff\xff",
		"\xffa", "a\xff", "a\xff\xff", "b", "é", "e\u0301", "\xc3", strings.Repeat("k", kv.MaxKeyBytes), strings.Repeat("\xff", kv.MaxKeyBytes), strings.Repeat("\x00", kv.MaxKeyBytes)}
	for c := range 256 {
		keys = append(keys, string([]byte{'x', byte(c)}), string([]byte{byte(c), 'y'}))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func awkwardKeys(t T, s *Subject) {
	keys := awkward()
	for i, key := range keys {
		mustPut(t, s, key, kv.Record{Version: s.Next(), Value: fmt.Appendf(nil, "value %d", i)})
	}
	for i, key := range keys {
		if got, want := string(mustGet(t, s, key).Value), fmt.Sprintf("value %d", i); got != want {
			t.Fatalf("key %q: got %q, want %q", key, got, want)
		}
	}
	var listed []string
	for _, k := range listAll(t, s, "", 7) {
		listed = append(listed, k.Key)
	}
	if !slices.Equal(listed, keys) {
		t.Fatalf("%d awkward keys were put, %d are listed or in another order", len(keys), len(listed))
	}
}

func pages(t T, s *Subject) {
	const n = 57
	want := make([]string, n)
	for i := range n {
		want[i] = fmt.Sprintf("key %03d", i)
	}
	for _, i := range s.rng.Perm(n) {
		mustPut(t, s, want[i], kv.Record{Version: s.Next(), Value: []byte("v"), Metadata: fmt.Appendf(nil, "%d", i)})
	}
	for _, limit := range []int{1, 2, 7, n - 1, n, n + 1, 1000} {
		all := listAll(t, s, "", limit)
		if len(all) != n {
			t.Fatalf("limit %d: %d of %d keys listed", limit, len(all), n)
		}
		for i, k := range all {
			if k.Key != want[i] || string(k.Record.Metadata) != fmt.Sprint(i) {
				t.Fatalf("limit %d: key %d is %q with metadata %q", limit, i, k.Key, k.Record.Metadata)
			}
		}
	}
	page := mustList(t, s, kv.ListOptions{After: want[3], Limit: 2})
	if len(page.Keys) != 2 || page.Keys[0].Key != want[4] {
		t.Fatalf("list after %q does not begin at %q", want[3], want[4])
	}
	page = mustList(t, s, kv.ListOptions{After: "key 003x", Limit: 1})
	if len(page.Keys) != 1 || page.Keys[0].Key != want[4] {
		t.Fatalf("list after a key that does not exist begins elsewhere")
	}
}

func prefixes(t T, s *Subject) {
	keys := awkward()
	for _, key := range keys {
		mustPut(t, s, key, kv.Record{Version: s.Next()})
	}
	for _, prefix := range []string{"", "a", "a\x00", "a\xff", "\xff", "\xff\xff", "x", "x\xff", "none", strings.Repeat("k", kv.MaxKeyBytes)} {
		want := 0
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				want++
			}
		}
		if got := listAll(t, s, prefix, 5); len(got) != want {
			t.Fatalf("prefix %q: %d keys listed, want %d", prefix, len(got), want)
		}
	}
	if page := mustList(t, s, kv.ListOptions{Prefix: "a", After: "b", Limit: 5}); len(page.Keys) != 0 || page.More {
		t.Fatalf("a listing that begins behind its prefix has %d keys", len(page.Keys))
	}
	if page := mustList(t, s, kv.ListOptions{Prefix: "x", After: "a", Limit: 1}); len(page.Keys) != 1 || page.Keys[0].Key != "x\x00" {
		t.Fatalf("a listing that begins before its prefix does not begin at the prefix")
	}
}

func namespacesApart(t T, s *Subject) {
	other := *s
	for i := len(other.Namespace) - 1; i >= 0; i-- { // the next id in byte order
		if other.Namespace[i]++; other.Namespace[i] != 0 {
			break
		}
	}
	mine, theirs := kv.Record{Version: s.Next(), Value: []byte("mine")}, kv.Record{Version: s.Next(), Value: []byte("theirs")}
	mustPut(t, s, "k", mine)
	if rec := mustGet(t, &other, "k"); !rec.Absent() {
		t.Fatalf("another namespace has %s", show(rec))
	}
	mustPut(t, &other, "k", theirs)
	mustPut(t, &other, "l", theirs)
	same(t, "my namespace", mustGet(t, s, "k"), mine)
	if n := len(listAll(t, s, "", 10)); n != 1 {
		t.Fatalf("my namespace lists %d keys, want 1", n)
	}
}

func many(t T, s *Subject) {
	ctx := context.Background()
	old := kv.Record{Version: s.Next(), Value: []byte("old")}
	recs := []kv.Record{{Version: s.Next(), Value: []byte("1")}, {Version: s.Next(), Value: []byte("2")}, kv.Tombstone(s.Next()),
		{Version: s.Next(), Value: bytes.Repeat([]byte("large"), kv.ReserveBytes/5+1)}}
	last := kv.Record{Version: s.Next(), Value: []byte("last")}
	mustPut(t, s, "newer", last)
	writes := []kv.Write{{Ref: s.Ref("b"), Record: recs[1]}, {Ref: s.Ref("a"), Record: recs[0]}, {Ref: s.Ref("b"), Record: old}, {Ref: s.Ref("c"), Record: recs[2]},
		{Ref: s.Ref("newer"), Record: old}, {Ref: s.Ref("d"), Record: recs[3]}, {Ref: s.Ref("e"), Record: old}, {Ref: s.Ref("e"), Record: recs[3]}, {Ref: s.Ref("e"), Record: recs[1]}}
	for range 2 {
		if err := kv.PutMany(ctx, s.Store, writes); err != nil {
			t.Fatalf("put many: %v", err)
		}
		refs := []kv.Ref{s.Ref("d"), s.Ref("a"), s.Ref("absent"), s.Ref("b"), s.Ref("a"), s.Ref("c"), s.Ref("newer"), s.Ref("e")}
		want := []kv.Record{recs[3], recs[0], {}, recs[1], recs[0], recs[2], last, recs[3]}
		got, err := kv.GetMany(ctx, s.Store, refs, 0)
		if err != nil || len(got) != len(want) {
			t.Fatalf("get many: %d records, %v", len(got), err)
		}
		for i := range want {
			same(t, fmt.Sprintf("get many of %q", refs[i].Key), got[i], want[i])
		}
	}
	if err := kv.PutMany(ctx, s.Store, nil); err != nil {
		t.Fatalf("put none: %v", err)
	}
	if got, err := kv.GetMany(ctx, s.Store, nil, 0); err != nil || len(got) != 0 {
		t.Fatalf("get none: %d records, %v", len(got), err)
	}
}

func forget(t T, s *Subject) {
	ctx := context.Background()
	value, tomb := kv.Record{Version: s.Next(), Value: []byte("v")}, kv.Tombstone(s.Next())
	newer := kv.Tombstone(s.Next())
	mustPut(t, s, "value", value)
	mustPut(t, s, "tomb", tomb)
	mustPut(t, s, "newer", newer)
	err := kv.Forget(ctx, s.Store, []kv.Tomb{{Ref: s.Ref("value"), Version: value.Version}, {Ref: s.Ref("tomb"), Version: tomb.Version},
		{Ref: s.Ref("newer"), Version: tomb.Version}, {Ref: s.Ref("absent"), Version: tomb.Version}})
	if errors.Is(err, kv.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatalf("forget: %v", err)
	}
	same(t, "a value is not forgotten", mustGet(t, s, "value"), value)
	same(t, "a forgotten tombstone", mustGet(t, s, "tomb"), kv.Record{})
	same(t, "a newer tombstone", mustGet(t, s, "newer"), newer)
	if n := len(listAll(t, s, "", 10)); n != 2 {
		t.Fatalf("%d keys are listed after forgetting one of three", n)
	}
	mustPut(t, s, "tomb", value)
	same(t, "a put after forgetting", mustGet(t, s, "tomb"), value)
}

func drop(t T, s *Subject) {
	other := NewSubject(s.Store, s.Seed)
	for _, key := range awkward() {
		mustPut(t, s, key, kv.Record{Version: s.Next(), Value: []byte("v"), Expiration: 1 << 33})
	}
	mustPut(t, s, "large", kv.Record{Version: s.Next(), Value: make([]byte, kv.ReserveBytes)})
	kept := kv.Record{Version: s.Next(), Value: make([]byte, kv.ReserveBytes+1)}
	mustPut(t, other, "k", kept)
	err := kv.Drop(context.Background(), s.Store, s.Namespace)
	if errors.Is(err, kv.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatalf("drop: %v", err)
	}
	if n := len(listAll(t, s, "", 100)); n != 0 {
		t.Fatalf("%d keys are listed after the drop", n)
	}
	same(t, "a key of a dropped namespace", mustGet(t, s, "a"), kv.Record{})
	same(t, "a key of another namespace", mustGet(t, other, "k"), kept)
}

// namespaces looks only for its own: a store may serve many subjects at once.
func namespaces(t T, s *Subject) {
	ctx := context.Background()
	if _, err := kv.Namespaces(ctx, s.Store, kv.NamespaceID{}, 1); errors.Is(err, kv.ErrUnsupported) {
		return
	}
	want := map[kv.NamespaceID]bool{}
	for i := range 7 {
		other := NewSubject(s.Store, s.Seed)
		rec := kv.Record{Version: s.Next(), Value: []byte("v")}
		if i == 0 {
			rec = kv.Tombstone(rec.Version)
		}
		mustPut(t, other, awkward()[i], rec)
		want[other.Namespace] = true
	}
	empty := NewSubject(s.Store, s.Seed).Namespace
	found := 0
	for after := (kv.NamespaceID{}); ; {
		page, err := kv.Namespaces(ctx, s.Store, after, 3)
		if err != nil {
			t.Fatalf("namespaces after %s: %v", after, err)
		}
		if len(page) == 0 {
			break
		}
		if len(page) > 3 {
			t.Fatalf("%d namespaces in a page of at most 3", len(page))
		}
		for _, id := range page {
			if bytes.Compare(id[:], after[:]) <= 0 {
				t.Fatalf("namespace %s is listed after %s", id, after)
			}
			if id == empty {
				t.Fatalf("namespace %s is listed and holds nothing", id)
			}
			if want[id] {
				found++
			}
			after = id
		}
	}
	if found != len(want) {
		t.Fatalf("%d of %d namespaces are listed", found, len(want))
	}
}

func changes(t T, s *Subject) {
	ctx := context.Background()
	_, cursor, err := kv.Changes(ctx, s.Store, kv.Cursor{}, 10)
	if errors.Is(err, kv.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatalf("head of the changes: %v", err)
	}
	var want []kv.Version
	for i := range 25 {
		rec := kv.Record{Version: s.Next(), Value: []byte("v")}
		if i%5 == 4 {
			rec = kv.Tombstone(rec.Version)
		}
		mustPut(t, s, fmt.Sprint("key ", i%7), rec)
		want = append(want, rec.Version)
	}
	start, got := cursor, []kv.Version{}
	for {
		batch, next, err := kv.Changes(ctx, s.Store, cursor, 10)
		if err != nil || len(batch) > 10 {
			t.Fatalf("changes after %v: %d, %v", cursor, len(batch), err)
		}
		if len(batch) == 0 {
			break
		}
		for _, c := range batch {
			if c.Cursor.Epoch != cursor.Epoch || c.Cursor.Seq <= cursor.Seq {
				t.Fatalf("change %v does not come after %v", c.Cursor, cursor)
			}
			cursor = c.Cursor
			if c.Ref.Namespace == s.Namespace {
				got = append(got, c.Version)
			}
		}
		if next != cursor {
			t.Fatalf("the last change is at %v, the next cursor is %v", cursor, next)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d writes were made, %d changes are told or in another order", len(want), len(got))
	}
	if _, _, err := kv.Changes(ctx, s.Store, kv.Cursor{Epoch: start.Epoch + 1, Seq: start.Seq}, 10); !errors.Is(err, kv.ErrCursorGone) {
		t.Fatalf("a cursor of another epoch: %v, want ErrCursorGone", err)
	}
	if _, _, err := kv.Changes(ctx, s.Store, kv.Cursor{Epoch: start.Epoch, Seq: 1 << 60}, 10); !errors.Is(err, kv.ErrCursorGone) {
		t.Fatalf("a cursor beyond the head: %v, want ErrCursorGone", err)
	}
}

func awaitChange(t T, s *Subject) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, head, err := kv.Changes(ctx, s.Store, kv.Cursor{}, 1)
	if errors.Is(err, kv.ErrUnsupported) || errors.Is(kv.AwaitChange(ctx, s.Store, kv.Cursor{Epoch: 1}), kv.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatalf("head of the changes: %v", err)
	}
	for range 20 {
		woken := make(chan error, 1)
		go func() { woken <- kv.AwaitChange(ctx, s.Store, head) }()
		select {
		case err := <-woken:
			t.Fatalf("woken although nothing has changed: %v", err)
		default:
		}
		mustPut(t, s, "k", kv.Record{Version: s.Next()})
		if err := <-woken; err != nil {
			t.Fatalf("await a change: %v", err)
		}
		changes, next, err := kv.Changes(ctx, s.Store, head, 10)
		if err != nil || len(changes) != 1 {
			t.Fatalf("woken to %d changes, %v", len(changes), err)
		}
		head = next
	}
	cancel()
	if err := kv.AwaitChange(ctx, s.Store, head); !errors.Is(err, context.Canceled) {
		t.Fatalf("await with a cancelled context: %v", err)
	}
}

func cancelled(t T, s *Subject) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	rec := kv.Record{Version: s.Next(), Value: []byte("v")}
	_, getErr := s.Get(ctx, s.Ref("k"), 0)
	_, listErr := s.List(ctx, s.Namespace, kv.ListOptions{Limit: 10})
	_, getManyErr := kv.GetMany(ctx, s.Store, []kv.Ref{s.Ref("k")}, 0)
	for what, err := range map[string]error{
		"get": getErr, "list": listErr, "get many": getManyErr,
		"put":      s.Put(ctx, s.Ref("k"), rec),
		"put many": kv.PutMany(ctx, s.Store, []kv.Write{{Ref: s.Ref("k"), Record: rec}}),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%s with a cancelled context: %v", what, err)
		}
	}
	if got := mustGet(t, s, "k"); !got.Absent() {
		same(t, "after a cancelled put", got, rec)
	}
}

func concurrent(t T, s *Subject) {
	const writers, rounds, keys = 8, 40, 3
	ctx := context.Background()
	newest := make([]kv.Record, keys)
	work := make([][]kv.Write, writers)
	for w := range work {
		for range rounds {
			k := s.rng.IntN(keys)
			rec := kv.Record{Version: s.Next(), Value: fmt.Appendf(nil, "%d", s.time)}
			if s.rng.IntN(4) == 0 {
				rec = kv.Tombstone(rec.Version)
			}
			newest[k] = kv.Merge(newest[k], rec)
			work[w] = append(work[w], kv.Write{Ref: s.Ref(fmt.Sprint(k)), Record: rec})
		}
	}
	var wg sync.WaitGroup
	failures := make(chan error, writers)
	for _, writes := range work {
		wg.Go(func() {
			for _, w := range writes {
				if err := s.Put(ctx, w.Ref, w.Record); err != nil {
					failures <- err
					return
				}
				got, err := s.Get(ctx, w.Ref, 0)
				if err != nil || got.Version.Compare(w.Record.Version) < 0 {
					failures <- fmt.Errorf("get after a put of %s: %s, %v", w.Record.Version, show(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Fatalf("%v", err)
	}
	for k, want := range newest {
		same(t, fmt.Sprintf("key %d after concurrent writes", k), mustGet(t, s, fmt.Sprint(k)), want)
	}
}

// randomRecord makes any legal record; versions are sometimes old, sometimes
// equal to one that was used before.
func randomRecord(s *Subject, used []kv.Version) kv.Record {
	v := s.Next()
	if len(used) > 0 && s.rng.IntN(3) == 0 {
		v = used[s.rng.IntN(len(used))]
	}
	if s.rng.IntN(4) == 0 {
		return kv.Tombstone(v)
	}
	rec := kv.Record{Version: v, Value: make([]byte, s.rng.IntN(100))}
	if s.rng.IntN(50) == 0 {
		rec.Value = make([]byte, kv.ReserveBytes+s.rng.IntN(1000))
	}
	for i := range rec.Value {
		rec.Value[i] = byte(s.rng.Uint32())
	}
	if s.rng.IntN(2) == 0 {
		rec.Metadata = fmt.Appendf(nil, `{"n":%d}`, s.rng.IntN(1000))
	}
	if s.rng.IntN(3) == 0 {
		rec.Expiration = time.Now().Unix() - 500 + s.rng.Int64N(1000)
	}
	return rec
}

// modelOps is the number of operations of the random law.
const modelOps = 1500

func model(t T, s *Subject) {
	s.rng = rand.New(rand.NewPCG(s.Seed, 2))
	t.Logf("seed %d", s.Seed)
	ctx := context.Background()
	want := map[string]kv.Record{}
	var used []kv.Version
	key := func() string {
		k := make([]byte, 1+s.rng.IntN(3))
		for i := range k {
			k[i] = "\x00ab/\xff"[s.rng.IntN(5)]
		}
		return string(k)
	}
	for range modelOps {
		switch op := s.rng.IntN(10); {
		case op < 4:
			k, rec := key(), randomRecord(s, used)
			used = append(used, rec.Version)
			mustPut(t, s, k, rec)
			want[k] = kv.Merge(want[k], rec)
		case op < 5:
			var writes []kv.Write
			for range s.rng.IntN(5) {
				k, rec := key(), randomRecord(s, used)
				writes = append(writes, kv.Write{Ref: s.Ref(k), Record: rec})
				want[k] = kv.Merge(want[k], rec)
			}
			if err := kv.PutMany(ctx, s.Store, writes); err != nil {
				t.Fatalf("put many: %v", err)
			}
		case op < 8:
			k := key()
			same(t, fmt.Sprintf("get %q", k), mustGet(t, s, k), want[k])
		default:
			compareList(t, s, key(), 1+s.rng.IntN(20), want)
		}
	}
	compareList(t, s, "", 1000, want)
}

func compareList(t T, s *Subject, prefix string, limit int, want map[string]kv.Record) {
	t.Helper()
	got := listAll(t, s, prefix, limit)
	n := 0
	for k := range want {
		if strings.HasPrefix(k, prefix) {
			n++
		}
	}
	if len(got) != n {
		t.Fatalf("prefix %q: %d keys listed, want %d", prefix, len(got), n)
	}
	for _, k := range got {
		rec := want[k.Key]
		rec.Value = nil
		same(t, fmt.Sprintf("list, key %q", k.Key), k.Record, rec)
	}
}
