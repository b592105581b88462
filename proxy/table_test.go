package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

// The hashes say where records are: they never change.
func TestPlacesNeverChange(t *testing.T) {
	ns := kv.NamespaceID{0: 1, 15: 0xff}
	for bucket, want := range map[int]int{0: 3629, 1: 4010, 255: 185} {
		if got := slotOf(ns, bucket); got != want {
			t.Errorf("bucket %d is in slot %d, it was in %d", bucket, got, want)
		}
	}
	for bits, want := range map[int]int{0: 0, 1: 1, 4: 8, 8: 143} {
		if got := bucketOf("a key", bits); got != want {
			t.Errorf("with %d bits the key is in bucket %d, it was in %d", bits, got, want)
		}
	}
	if got := propose([]share{{"a", 1}, {"b", 1}, {"c", 1}}, 17); got != "a" {
		t.Errorf("slot 17 is proposed for %s", got)
	}
}

// What is remembered of a namespace is not told of another one that shares its place.
func TestSlotCache(t *testing.T) {
	var known slotCache
	for range 2 {
		for i := range 4 * slotsKnown {
			ns := kv.NamespaceID{6: byte(i >> 8), 7: byte(i), 15: byte(i >> 3)}
			if got, want := known.of(ns), slotOf(ns, 0); got != want {
				t.Fatalf("namespace %s: slot %d, want %d", ns, got, want)
			}
			if got, want := known.of(ns), slotOf(ns, 0); got != want {
				t.Fatalf("namespace %s, remembered: slot %d, want %d", ns, got, want)
			}
		}
	}
}

func TestKeysAndNamespacesSpreadEvenly(t *testing.T) {
	const n = 1 << 18
	slots, buckets := make([]int, Slots), make([]int, 256)
	for i := range n {
		slots[slotOf(kv.NamespaceID{1, byte(i >> 16), byte(i >> 8), byte(i)}, i%3)]++
		buckets[bucketOf(fmt.Sprint("key ", i), 8)]++
	}
	for what, counts := range map[string][]int{"slot": slots, "bucket": buckets} {
		mean := float64(n) / float64(len(counts))
		for i, got := range counts {
			if math.Abs(float64(got)-mean) > 6*math.Sqrt(mean) {
				t.Errorf("%s %d has %d of %d, the mean is %.0f", what, i, got, n, mean)
			}
		}
	}
}

func owners(shares []share) (list [Slots]string, counts map[string]int) {
	counts = map[string]int{}
	for slot := range list {
		list[slot] = propose(shares, slot)
		counts[list[slot]]++
	}
	return list, counts
}

func TestRendezvousFollowsTheWeights(t *testing.T) {
	shares := []share{{"a", 1}, {"b", 2}, {"c", 0.5}, {"d", 0}, {"e", 4.5}}
	_, counts := owners(shares)
	for _, c := range shares {
		want := Slots * c.weight / 8
		if got := float64(counts[c.name]); math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("cluster %s of weight %v has %.0f slots, want some %.0f", c.name, c.weight, got, want)
		}
	}
	if propose([]share{{"a", 0}}, 1) != "" || propose(nil, 1) != "" {
		t.Error("without any weight a cluster is proposed")
	}
}

// A cluster that joins takes slots from all and gives none; one that leaves gives
// only its own; a weight that changes moves only what the change demands.
func TestRendezvousMovesLittle(t *testing.T) {
	var eight []share
	for i := range 8 {
		eight = append(eight, share{fmt.Sprint("cluster ", i), 1})
	}
	before, _ := owners(eight)
	after, _ := owners(append(eight[:8:8], share{"new", 1}))
	moved := 0
	for slot := range before {
		if before[slot] != after[slot] {
			moved++
			if after[slot] != "new" {
				t.Fatalf("slot %d moves from %s to %s because another joined", slot, before[slot], after[slot])
			}
		}
	}
	if want := Slots / 9.0; math.Abs(float64(moved)-want) > 5*math.Sqrt(want) {
		t.Errorf("%d slots move to the ninth cluster, want some %.0f", moved, want)
	}
	heavier := append([]share{}, eight...)
	heavier[3].weight = 2
	after, _ = owners(heavier)
	for slot := range before {
		if before[slot] != after[slot] && after[slot] != "cluster 3" {
			t.Fatalf("slot %d moves from %s to %s because a third became heavier", slot, before[slot], after[slot])
		}
	}
}

// sampleTable has something of everything.
func sampleTable() *table {
	shares := []share{{"a", 1}, {"b", 1}}
	s := newTable(func(slot int) string { return propose(shares, slot) })
	s.epoch = 77
	s.spread[kv.NamespaceID{5}] = MaxSpreadBits
	s.direct(3, "c")
	if err := s.divide(kv.NamespaceID{6}, 4); err != nil {
		panic(err)
	}
	s.moves[0].Phase, s.moves[0].From = Copying, "a"
	s.text = s.encode()
	return s
}

func TestTableRoundTrip(t *testing.T) {
	want := sampleTable()
	got, err := decodeTable(want.text)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if names := fmt.Sprint(got.names()); names != "[a b c]" {
		t.Errorf("the table speaks of %s", names)
	}
}

// No damage of a table goes unnoticed.
func TestDamagedTables(t *testing.T) {
	text := sampleTable().text
	for i := 0; i < len(text); i += 7 {
		damaged := bytes.Clone(text)
		damaged[i] ^= 1
		if _, err := decodeTable(damaged); !errors.Is(err, errTable) {
			t.Fatalf("byte %d is damaged: %v", i, err)
		}
		if _, err := decodeTable(text[:i]); !errors.Is(err, errTable) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
	for name, edit := range map[string]func(*table){
		"phase":  func(s *table) { s.moves[0].Phase = "flying" },
		"slot":   func(s *table) { s.moves[0].Slot = Slots },
		"bits":   func(s *table) { s.moves[1].ToBits = MaxSpreadBits + 1 },
		"name":   func(s *table) { s.moves[1].Namespace = "x" },
		"spread": func(s *table) { s.spread[kv.NamespaceID{5}] = MaxSpreadBits + 1 },
		"id":     func(s *table) { s.id = "" },
		"epoch":  func(s *table) { s.epoch = 0 },
	} {
		s := sampleTable()
		edit(s)
		if _, err := decodeTable(s.encode()); !errors.Is(err, errTable) {
			t.Errorf("a table with a wrong %s: %v", name, err)
		}
	}
}

func TestFileKeeper(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "table")
	k := FileKeeper(path)
	if text, err := k.Load(); text != nil || err != nil {
		t.Fatalf("nothing was saved: %q, %v", text, err)
	}
	for _, want := range []string{"a long first table", "second"} {
		// What a crash before the rename leaves behind does no harm.
		if err := os.WriteFile(path+".new", []byte("half a ta"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.Save([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if text, err := k.Load(); string(text) != want || err != nil {
			t.Fatalf("saved %q, loaded %q, %v", want, text, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if err := FileKeeper(filepath.Join(dir, "absent", "table")).Save(nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("save in a folder that is not there: %v", err)
	}
	if _, err := FileKeeper(dir).Load(); err == nil {
		t.Error("a folder was read as a table")
	}
}

func TestSpreadIsBounded(t *testing.T) {
	s := sampleTable()
	for i := len(s.spread); i < MaxSpread-1; i++ { // one is on its way
		s.spread[kv.NamespaceID{9, byte(i >> 8), byte(i)}] = 1
	}
	if err := s.divide(kv.NamespaceID{10}, 1); err == nil {
		t.Error("one namespace too many can be spread")
	}
	if err := s.divide(kv.NamespaceID{5}, 1); err != nil {
		t.Errorf("a spread namespace is divided otherwise: %v", err)
	}
	delete(s.spread, kv.NamespaceID{9, 0, 200})
	if err := s.divide(kv.NamespaceID{10}, 1); err != nil {
		t.Errorf("the last namespace that can be spread: %v", err)
	}
}

// Where a slot is directed while it is on its way.
func TestDirect(t *testing.T) {
	for _, c := range []struct {
		phase     Phase // of a move from a to b
		to        string
		want, end string // the phases of the moves, the destination
	}{
		{Waiting, "b", "waiting", "b"}, {Waiting, "c", "waiting", "c"}, {Waiting, "a", "", "a"},
		{Clearing, "b", "clearing", "b"}, {Clearing, "a", "undoing", "a"}, {Clearing, "c", "undoing waiting", "c"},
		{Copying, "b", "copying", "b"}, {Copying, "a", "undoing", "a"}, {Copying, "c", "undoing waiting", "c"},
		{CutOver, "b", "cut over", "b"}, {CutOver, "a", "cut over waiting", "a"},
		{Dropping, "b", "dropping", "b"}, {Dropping, "a", "dropping waiting", "a"},
		{Undoing, "a", "undoing", "a"}, {Undoing, "b", "undoing waiting", "b"},
	} {
		s := newTable(func(int) string { return "a" })
		s.direct(3, "b")
		s.moves[0].Phase = c.phase
		if c.phase == CutOver || c.phase == Dropping {
			s.owners[3] = "b"
		}
		s.direct(3, c.to)
		got := ""
		for i, tr := range s.moves {
			if i > 0 {
				got += " "
			}
			got += string(tr.Phase)
		}
		if got != c.want || s.destination(3) != c.end {
			t.Errorf("%s, directed to %s: %q, ends at %s", c.phase, c.to, got, s.destination(3))
		}
	}
}
