package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
)

func ndjson(t *testing.T, records ...client.Record) string {
	t.Helper()
	var buf strings.Builder
	w := client.NewRecordWriter(&buf)
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// TestLaterValueOfAKeyWins: batches are sent several at once, and yet the last of
// several values of one key is the one that stays.
func TestLaterValueOfAKeyWins(t *testing.T) {
	var records []client.Record
	for i := range 12_000 {
		records = append(records, client.Record{Key: fmt.Sprint("k", i%1700), Value: fmt.Append(nil, i)})
	}
	f := newFake(t)
	code, _, stderr := f.run(t, ndjson(t, records...), "import", fakeNamespace, "-", "--concurrency", "8")
	if code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	last := map[string]string{}
	for _, r := range records {
		last[r.Key] = string(r.Value)
	}
	for key, want := range last {
		if got := string(f.records[key].Value); got != want {
			t.Fatalf("%s: %s, want %s", key, got, want)
		}
	}
}

// TestOneBadPairIsFound: the server refuses a whole request for one pair in it.
func TestOneBadPairIsFound(t *testing.T) {
	f := newFake(t)
	f.fault = func(r *http.Request, body []byte) (int, string) {
		if bytes.Contains(body, []byte(`"bad`)) {
			return 400, `{"success":false,"errors":[{"code":10147,"message":"metadata must be valid json"}]}`
		}
		return 0, ""
	}
	var records []client.Record
	for i := range 1500 {
		key := fmt.Sprint("good", i)
		if i == 3 || i == 1400 {
			key = fmt.Sprint("bad", i)
		}
		records = append(records, client.Record{Key: key})
	}
	code, stdout, stderr := f.run(t, ndjson(t, records...), "import", fakeNamespace, "-", "--json")
	if code != exitPartial || len(f.records) != 1498 || !strings.Contains(stdout, `"refused": 2`) {
		t.Fatalf("code %d, %d records\n%s%s", code, len(f.records), stdout, stderr)
	}
	for _, want := range []string{`line 4, key "bad3": metadata must be valid json`, `line 1401, key "bad1400"`} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %s", want, stderr)
		}
	}
}

func TestOnlyTheFirstRefusalsAreNamed(t *testing.T) {
	f := newFake(t)
	f.fault = func(*http.Request, []byte) (int, string) { return 413, `{}` }
	for n, more := range map[int]bool{maxNamed: false, maxNamed + 1: true} {
		records := make([]client.Record, n)
		for i := range records {
			records[i].Key = fmt.Sprint("k", i)
		}
		code, _, stderr := f.run(t, ndjson(t, records...), "import", fakeNamespace, "-")
		if code != exitPartial || strings.Count(stderr, "refused line") != maxNamed || strings.Contains(stderr, "not named") != more {
			t.Errorf("%d refused: code %d\n%s", n, code, stderr)
		}
	}
}

// TestUnsuccessfulKeysAreSentAgain: 200 with a list of keys that were not stored.
func TestUnsuccessfulKeysAreSentAgain(t *testing.T) {
	f := newFake(t)
	times := 0
	f.fault = func(_ *http.Request, body []byte) (int, string) {
		if times++; times == 1 {
			return 200, `{"success":true,"result":{"successful_key_count":1,"unsuccessful_keys":["b"]}}`
		}
		return 0, ""
	}
	code, stdout, stderr := f.run(t, ndjson(t, client.Record{Key: "a"}, client.Record{Key: "b"}), "import", fakeNamespace, "-", "--json")
	if code != 0 || !strings.Contains(stdout, `"records": 2`) || !slices.Equal(f.writes, []string{"b"}) {
		t.Fatalf("code %d, wrote %q\n%s%s", code, f.writes, stdout, stderr)
	}
}

func TestDeniedImportStops(t *testing.T) {
	f := newFake(t)
	f.fault = func(*http.Request, []byte) (int, string) {
		return 403, `{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}`
	}
	file := filepath.Join(t.TempDir(), "in.ndjson")
	if err := os.WriteFile(file, []byte(ndjson(t, client.Record{Key: "a"})), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := f.run(t, "", "import", fakeNamespace, file)
	if code != exitDenied || !strings.Contains(stderr, "--resume goes on") {
		t.Fatalf("code %d: %s", code, stderr)
	}
}

// TestExportOfAwkwardValues: values that a bulk get cannot carry, or carries in
// a changed form, and keys that change while they are read.
func TestExportOfAwkwardValues(t *testing.T) {
	f := newFake(t)
	var want []client.Record
	for i := range 700 {
		r := client.Record{Key: fmt.Sprintf("k%04d", i), Value: fmt.Append(nil, "text ", i)}
		switch i % 50 {
		case 7:
			r.Value = []byte{0xff, byte(i)}
		case 9:
			r.Value, r.Metadata = []byte("\uFFFD"), json.RawMessage(`{"a":1}`)
		case 11:
			r.Value, r.Expiration = []byte{0xfe}, 1<<40
		}
		f.records[r.Key] = r
		want = append(want, r)
	}
	changed := false
	f.fault = func(r *http.Request, _ []byte) (int, string) {
		if strings.HasSuffix(r.URL.Path, "/metadata/k0007") && !changed { // written after its value was read
			changed = true
			f.records["k0007"] = client.Record{Key: "k0007", Value: []byte{0xfd}, Metadata: json.RawMessage(`"new"`)}
		}
		if strings.HasSuffix(r.URL.Path, "/values/k0057") { // deleted after it was listed
			delete(f.records, "k0057")
		}
		return 0, ""
	}
	want[7].Value, want[7].Metadata = []byte{0xfd}, json.RawMessage(`"new"`)
	want = slices.Delete(want, 57, 58)
	code, stdout, stderr := f.run(t, "", "export", fakeNamespace)
	if code != 0 || !strings.Contains(stderr, "1 record left out") {
		t.Fatalf("code %d: %s", code, stderr)
	}
	if stdout != ndjson(t, want...) {
		got, all := strings.Split(stdout, "\n"), strings.Split(ndjson(t, want...), "\n")
		for i := range min(len(got), len(all)) {
			if got[i] != all[i] {
				t.Fatalf("line %d: %s\nwant %s", i+1, got[i], all[i])
			}
		}
		t.Fatalf("%d lines, want %d", len(got), len(all))
	}
}

func TestExportTooLargeForOneAnswer(t *testing.T) {
	f := newFake(t)
	for i := range 100 {
		key := fmt.Sprintf("k%02d", i)
		f.records[key] = client.Record{Key: key, Value: bytes.Repeat([]byte{'x'}, 200<<10)}
	}
	f.fault = func(_ *http.Request, body []byte) (int, string) {
		if bytes.Count(body, []byte("k")) > 20 {
			return 413, `{"success":false,"errors":[{"code":10029,"message":"Total size of request exceeds the limit of 25MB"}]}`
		}
		return 0, ""
	}
	code, stdout, stderr := f.run(t, "", "export", fakeNamespace)
	if code != 0 || strings.Count(stdout, "\n") != 101 {
		t.Fatalf("code %d, %d lines: %s", code, strings.Count(stdout, "\n"), stderr)
	}
}

func TestFailedExportLeavesNoFile(t *testing.T) {
	f := newFake(t)
	f.records["a"] = client.Record{Key: "a"}
	f.fault = func(r *http.Request, _ []byte) (int, string) {
		if strings.Contains(r.URL.Path, "/values/") {
			return 500, `{}`
		}
		return 0, ""
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "out")
	if err := os.WriteFile(file, []byte("older export"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := f.run(t, "", "export", fakeNamespace, "-o", file)
	text, err := os.ReadFile(file)
	entries, _ := os.ReadDir(dir)
	if code != exitFailed || err != nil || string(text) != "older export" || len(entries) != 1 {
		t.Fatalf("code %d, %q, %v, %v: %s", code, text, err, entries, stderr)
	}
}

// TestJournalCountsOnlyTheBeginning: batches end in any order; the journal counts
// those before which all have ended.
func TestJournalCountsOnlyTheBeginning(t *testing.T) {
	l := &loader{journal: &journal{}, progress: &progress{}, ended: map[int64]*batch{}}
	for _, step := range []struct {
		seq   int64
		items int64
	}{{2, 0}, {1, 0}, {0, 6}, {3, 10}} {
		b := &batch{seq: step.seq, items: make([]item, step.seq+1), digest: fmt.Sprint(step.seq), counts: counts{Records: 1}}
		if err := l.done(b); err != nil {
			t.Fatal(err)
		}
		if l.journal.Items != step.items || l.journal.Counts.Records != min(step.items, l.first) {
			t.Fatalf("after batch %d: %d items, %d counted; want %d", step.seq, l.journal.Items, l.journal.Counts.Records, step.items)
		}
	}
	if l.journal.Digest != "3" {
		t.Fatalf("digest %q", l.journal.Digest)
	}
}

func TestResumeRefusesAChangedInput(t *testing.T) {
	f := newFake(t)
	file := filepath.Join(t.TempDir(), "in.ndjson")
	input := ndjson(t, client.Record{Key: "a", Value: []byte("1")}, client.Record{Key: "b", Value: []byte("2")})
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	state := journal{
		Version: journalVersion, Operation: "import", Account: fakeAccount, Namespace: fakeNamespace, Format: formatNDJSON,
		Input: identity{Bytes: info.Size(), Modified: info.ModTime()}, Items: 1, Digest: "of something else",
		path: journalPath(file),
	}
	for name, change := range map[string]func(*journal){
		"the text before":  func(*journal) {},
		"its size":         func(j *journal) { j.Input.Bytes++ },
		"its time":         func(j *journal) { j.Input.Modified = j.Input.Modified.Add(time.Second) },
		"fewer records":    func(j *journal) { j.Items = 3 },
		"another account":  func(j *journal) { j.Account = "x" },
		"another prefix":   func(j *journal) { j.Prefix = "x" },
		"an unknown state": func(j *journal) { j.Version++ },
	} {
		changed := state
		change(&changed)
		if err := changed.save(true); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := f.run(t, "", "import", fakeNamespace, file, "--resume"); code != exitUsage {
			t.Errorf("%s: code %d: %s", name, code, stderr)
		}
	}
	if len(f.writes) != 0 {
		t.Fatalf("wrote %q", f.writes)
	}
}

// elementOf is a JSON array of one string of n bytes with its quotes.
func elementOf(n int) io.Reader {
	return io.MultiReader(strings.NewReader(`["`), io.LimitReader(letters{}, int64(n-2)), strings.NewReader(`"]`))
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestElementLimit(t *testing.T) {
	if _, err := newElements(elementOf(maxElementBytes)).next(); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	for _, n := range []int{maxElementBytes + 1, maxElementBytes + 2<<20} {
		if _, err := newElements(elementOf(n)).next(); !errors.Is(err, errTooLarge) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestWranglerNumbers(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "60": 60, "60.0": 60, "6e1": 60} {
		if got, err := seconds(json.Number(text)); got != want || err != nil {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"0", "-1", "1.5", "1e300"} {
		if got, err := seconds(json.Number(text)); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
