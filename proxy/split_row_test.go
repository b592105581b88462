package proxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// TestRowsAreOrderedAsRecords: rows of one version compare as their records do,
// unless a value in a row meets one in a blob with the same metadata, or two
// values begin alike.
func TestRowsAreOrderedAsRecords(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	now := time.Unix(1_800_000_000, 0)
	metadata := []string{"", "1", "12", "2", `"a"`, `{"a":1}`, `{"a":12}`, "null", "true"}
	values := []string{"", "a", "a\x00", "b", "ab", "ba", "\x00", "\xff"}
	record := func() (rec, row kv.Record) {
		rec = kv.Record{Version: kv.NewVersion(1, 1, 1), Metadata: []byte(metadata[rng.IntN(len(metadata))]), Value: []byte(values[rng.IntN(len(values))])}
		if rng.IntN(5) == 0 {
			rec.Expiration = rng.Int64N(3)
		}
		row = referenceRow(rec, newReference(rec.Value, now.Add(time.Duration(rng.IntN(3))*time.Hour)))
		return rec, row
	}
	for range 20_000 {
		a, rowA := record()
		b, rowB := record()
		if want, got := a.Compare(b), rowA.Compare(rowB); want != 0 && want != got {
			t.Fatalf("records %+v and %+v compare as %d, their rows as %d", a, b, want, got)
		}
		if !bytes.Equal(a.Metadata, b.Metadata) && a.Compare(b) != inlineRow(a, false).Compare(rowB) {
			t.Fatalf("record %+v in a row and %+v in a blob are ordered by more than their metadata", a, b)
		}
	}
}

func TestLaterBlobOfTheSameRecordWins(t *testing.T) {
	rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Metadata: []byte("{}"), Value: large("v", 2000)}
	now := time.Unix(1_800_000_000, 0)
	first, later := referenceRow(rec, newReference(rec.Value, now)), referenceRow(rec, newReference(rec.Value, now.Add(time.Hour)))
	if later.Compare(first) <= 0 {
		t.Error("the row of a later blob does not win")
	}
	if again := referenceRow(rec, newReference(rec.Value, now)); again.Compare(first) != 0 {
		t.Error("the same put in the same hour makes another row")
	}
	if inlineRow(rec, true).Compare(later) <= 0 {
		t.Error("a row that repairs does not win")
	}
	if kv.Tombstone(rec.Version).Compare(inlineRow(rec, true)) <= 0 {
		t.Error("a tombstone does not win")
	}
}

// TestRowsAreReadBack: whatever the metadata is.
func TestRowsAreReadBack(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 20_000 {
		metadata := make([]byte, rng.IntN(2)*rng.IntN(130))
		for i := range metadata {
			metadata[i] = byte(rng.IntN(4))
		}
		rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Metadata: metadata, Value: []byte("value")}
		for _, repairs := range []bool{false, true} {
			if got, _, isBlob := openRow(inlineRow(rec, repairs)); isBlob || got.Compare(rec) != 0 {
				t.Fatalf("a row with metadata %x is read as %+v", metadata, got)
			}
		}
		want := newReference(rec.Value, time.Unix(rng.Int64N(1<<40), 0))
		got, r, isBlob := openRow(referenceRow(rec, want))
		if !isBlob || r != want || got.Version != rec.Version || !bytes.Equal(got.Metadata, metadata) || len(got.Value) != 0 {
			t.Fatalf("a row with a reference and metadata %x is read as %+v, %v", metadata, got, r)
		}
	}
}

// What was never a row of Split is read as it stands.
func TestForeignRows(t *testing.T) {
	for _, row := range []kv.Record{
		{}, kv.Tombstone(kv.NewVersion(1, 1, 1)),
		{Version: kv.NewVersion(1, 1, 1), Value: large("v", 2000), Metadata: []byte(`{"a":1}`)},
		{Version: kv.NewVersion(1, 1, 1), Metadata: []byte{endsRef}},
		{Version: kv.NewVersion(1, 1, 1), Metadata: append(bytes.Repeat([]byte{7}, referenceBytes+1), endsRef)},
		{Version: kv.NewVersion(1, 1, 1), Metadata: append(make([]byte, referenceBytes+1), endsRef), Value: []byte("v")},
	} {
		if rec, _, isBlob := openRow(row); isBlob || rec.Compare(row) != 0 {
			t.Errorf("row %+v is read as %+v", row, rec)
		}
	}
	if _, _, isBlob := openRow(kv.Record{Version: kv.NewVersion(1, 1, 1), Metadata: append(make([]byte, referenceBytes+1), endsRef)}); !isBlob {
		t.Error("a reference without metadata is not read as one")
	}
}

func TestBlobNames(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var names []blobName
	var texts []string
	for range 500 {
		var ns kv.NamespaceID
		for i := range ns {
			ns[i] = byte(rng.Uint32())
		}
		r := newReference(fmt.Append(nil, rng.Uint64()), time.Unix(rng.Int64N(1<<40), 0))
		n := r.name(fmt.Sprint(rng.Uint64()), kv.NewVersion(rng.Int64(), 1, rng.Uint64()))
		text := n.in(ns)
		gotNS, got, ok := parseBlobName(text)
		if !ok || gotNS != ns || got != n {
			t.Fatalf("%s is not read back", text)
		}
		if text <= blobPrefix(ns) || text >= afterBlobs(ns) {
			t.Fatalf("%s is not among the blobs of %s", text, ns)
		}
		for _, bad := range []string{text + "0", text[:len(text)-1], "v2" + text[2:], text[:len(text)-1] + "G", text[:len(text)-1] + "/", text[:3] + "x" + text[4:]} {
			if _, _, ok := parseBlobName(bad); ok {
				t.Fatalf("%s is taken for a blob's name", bad)
			}
		}
		names, texts = append(names, n), append(texts, n.in(testNamespace))
	}
	slices.SortFunc(names, func(a, b blobName) int { return bytes.Compare(a[:], b[:]) })
	slices.Sort(texts)
	for i := range names {
		if names[i].in(testNamespace) != texts[i] {
			t.Fatal("names in bytes and in text are ordered differently")
		}
	}
	upper := []byte(texts[0])
	if i := bytes.IndexAny(upper[10:], "abcdef"); i >= 0 {
		upper[10+i] -= 'a' - 'A'
		if _, _, ok := parseBlobName(string(upper)); ok {
			t.Error("a name in upper case is taken for ours")
		}
	}
}

func TestNameOfAnHour(t *testing.T) {
	hour := time.Date(2026, 11, 21, 11, 0, 0, 0, time.UTC)
	for _, at := range []time.Time{hour, hour.Add(time.Hour - 1)} {
		r := newReference([]byte("v"), at)
		if ended := r.name("k", kv.Version{}).ended(); !ended.Equal(hour.Add(time.Hour)) {
			t.Errorf("a put at %s is in the hour that ends at %s", at, ended)
		}
	}
	if newReference(nil, hour) == newReference(nil, hour.Add(-1)) {
		t.Error("two hours make the same reference")
	}
}
