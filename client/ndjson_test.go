package client_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
)

func written(t testing.TB, records ...client.Record) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := client.NewRecordWriter(&buf)
	for _, r := range records {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Bytes() != int64(buf.Len()) || w.Count() != int64(len(records)) {
		t.Fatalf("Bytes %d, Count %d; want %d, %d", w.Bytes(), w.Count(), buf.Len(), len(records))
	}
	return buf.Bytes()
}

func readAll(r *client.RecordReader) ([]client.Record, error) {
	var records []client.Record
	for {
		rec, err := r.Read()
		if err == io.EOF {
			return records, nil
		}
		if err != nil {
			return records, err
		}
		records = append(records, rec)
	}
}

func sameRecords(a, b []client.Record) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d and %d records", len(a), len(b))
	}
	for i := range a {
		if a[i].Key != b[i].Key || !bytes.Equal(a[i].Value, b[i].Value) ||
			!bytes.Equal(a[i].Metadata, b[i].Metadata) || a[i].Expiration != b[i].Expiration {
			return fmt.Errorf("record %d: %.200q and %.200q", i, fmt.Sprint(a[i]), fmt.Sprint(b[i]))
		}
	}
	return nil
}

func TestRecordsSurvive(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	records := []client.Record{
		{Key: "empty"},
		{Key: "html", Value: []byte("<b>&\u2028</b>"), Metadata: []byte(`{"<":"&"}`), Expiration: 1893456000},
		{Key: "replacement", Value: []byte("\uFFFD")},
		{Key: "nul\x00key", Value: bytes.Repeat([]byte{0}, 5000)},
		{Key: "binary", Value: []byte{0xff, 0xfe}, Metadata: []byte(`"s"`)},
		{Key: "almost text", Value: []byte("text\xed\xa0\x80")},
	}
	for i := range 200 {
		value := make([]byte, random.IntN(300))
		for j := range value {
			value[j] = byte(random.IntN(256))
			if i%2 == 0 {
				value[j] &= 0x7f
			}
		}
		records = append(records, client.Record{Key: fmt.Sprint("k", i), Value: value})
	}
	got, err := readAll(client.NewRecordReader(bytes.NewReader(written(t, records...))))
	if err != nil {
		t.Fatal(err)
	}
	if err := sameRecords(got, records); err != nil {
		t.Fatal(err)
	}
}

func TestRecordTextIsReadable(t *testing.T) {
	text := string(written(t, client.Record{Key: "a/é", Value: []byte("<ü>"), Metadata: []byte(`{"a":1}`), Expiration: 5}, client.Record{Key: "b", Value: []byte{0xff}}))
	const want = `{"key":"a/é","value":"<ü>","metadata":{"a":1},"expiration":5}
{"key":"b","value_base64":"/w=="}
{"trailer":{"count":2,"sha256":"`
	if !strings.HasPrefix(text, want) {
		t.Fatalf("got\n%s\nwant\n%s", text, want)
	}
}

func TestRecordFaults(t *testing.T) {
	good := string(written(t, client.Record{Key: "a", Value: []byte("1")}, client.Record{Key: "b", Value: []byte("2")}))
	lines := strings.SplitAfter(good, "\n")
	for name, c := range map[string]struct {
		input string
		line  int64
		begin int
		text  string
	}{
		"empty input":         {"", 1, 0, "trailer is missing"},
		"no trailer":          {lines[0] + lines[1], 3, len(lines[0] + lines[1]), "cut off after 2 records"},
		"cut in a line":       {lines[0] + lines[1][:7], 2, len(lines[0]), "cut off"},
		"cut in the trailer":  {strings.TrimSuffix(good, "\n"), 3, len(lines[0] + lines[1]), "cut off"},
		"a record is missing": {lines[0] + lines[2], 2, len(lines[0]), "counts 2 records, the input has 1"},
		"a record twice":      {lines[0] + lines[0] + lines[2], 3, 2 * len(lines[0]), "were changed"},
		"changed":             {strings.Replace(good, `"2"`, `"3"`, 1), 3, len(lines[0] + lines[1]), "were changed"},
		"two exports":         {good + good, 4, len(good), "follows the trailer"},
		"blank line":          {lines[0] + "\n" + lines[1] + lines[2], 2, len(lines[0]), "not a record"},
		"not JSON":            {"key,value\n", 1, 0, "not a record"},
		"unknown member":      {`{"key":"a","value":"1","ttl":5}` + "\n", 1, 0, `unknown field "ttl"`},
		"no key":              {`{"value":"1"}` + "\n", 1, 0, `no "key"`},
		"no value":            {`{"key":"a"}` + "\n", 1, 0, "neither"},
		"null value":          {`{"key":"a","value":null}` + "\n", 1, 0, "neither"},
		"two values":          {`{"key":"a","value":"","value_base64":""}` + "\n", 1, 0, "both"},
		"not base64":          {`{"key":"a","value_base64":"*"}` + "\n", 1, 0, "value_base64"},
		"two on a line":       {`{"key":"a","value":""}{"key":"b","value":""}` + "\n", 1, 0, "follows"},
		"not UTF-8":           {"{\"key\":\"a\",\"value\":\"\xff\"}\n", 1, 0, "UTF-8"},
		"half a character":    {`{"key":"a","value":"\ud83d"}` + "\n", 1, 0, "half a character"},
		"negative expiration": {`{"key":"a","value":"","expiration":-1}` + "\n", 1, 0, "before 1970"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(client.NewRecordReader(strings.NewReader(c.input)))
			var fault *client.RecordError
			if !errors.As(err, &fault) {
				t.Fatalf("got %v, want a RecordError", err)
			}
			if fault.Line != c.line || fault.Offset != int64(c.begin) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got line %d, offset %d: %v; want line %d, offset %d, %q", fault.Line, fault.Offset, err, c.line, c.begin, c.text)
			}
		})
	}
}

func TestSurrogatePairIsText(t *testing.T) {
	r := client.NewRecordReader(strings.NewReader(`{"key":"a","value":"\uD83D\ude00 \\ud83d \u0041"}` + "\n"))
	rec, err := r.Read()
	if err != nil || string(rec.Value) != `😀 \ud83d A` {
		t.Fatalf("got %q, %v", rec.Value, err)
	}
}

func TestNoTrailerIsAllowedWhenAskedFor(t *testing.T) {
	for _, input := range []string{"", `{"key":"a","value":"1"}`, `{"key":"a","value":"1"}` + "\n"} {
		r := client.NewRecordReader(strings.NewReader(input))
		r.NoTrailer = true
		records, err := readAll(r)
		if err != nil || len(records) != strings.Count(input, "key") {
			t.Fatalf("%q: %d records, %v", input, len(records), err)
		}
	}
}

func TestSkipCountsAndHashes(t *testing.T) {
	data := written(t, client.Record{Key: "a"}, client.Record{Key: "b"}, client.Record{Key: "c", Value: []byte("3")})
	r := client.NewRecordReader(bytes.NewReader(data))
	if err := r.Skip(2); err != nil {
		t.Fatal(err)
	}
	records, err := readAll(r)
	if err != nil || len(records) != 1 || records[0].Key != "c" || r.Count() != 3 {
		t.Fatalf("got %v, count %d, %v", records, r.Count(), err)
	}
	if err := client.NewRecordReader(bytes.NewReader(data)).Skip(4); err == nil {
		t.Fatal("skipped more records than there are")
	}
}

func TestWriterResumes(t *testing.T) {
	all := []client.Record{{Key: "a"}, {Key: "b", Value: []byte{0xff}}, {Key: "c"}}
	want := written(t, all...)
	var buf bytes.Buffer
	first := client.NewRecordWriter(&buf)
	for _, rec := range all[:2] {
		if err := first.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Flush(); err != nil {
		t.Fatal(err)
	}
	r := client.NewRecordReader(bytes.NewReader(buf.Bytes()))
	if err := r.Skip(2); err != nil {
		t.Fatal(err)
	}
	second := client.NewRecordWriter(&buf)
	second.Resume(r)
	if err := second.Write(all[2]); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf.Bytes(), want) {
		t.Fatalf("got\n%s\nwant\n%s", buf.Bytes(), want)
	}
}

// lineOf is a record's line of exactly n bytes.
func lineOf(n int) io.Reader {
	const begin, end = `{"key":"a","value":"1"`, "}\n"
	return io.MultiReader(strings.NewReader(begin), io.LimitReader(spaces{}, int64(n-len(begin)-len(end))), strings.NewReader(end))
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestLineLimit(t *testing.T) {
	if _, err := client.NewRecordReader(lineOf(client.MaxLineBytes)).Read(); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	_, err := client.NewRecordReader(lineOf(client.MaxLineBytes + 1)).Read()
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Fatalf("one past the limit: %v", err)
	}
}

func TestLargestValueFitsALine(t *testing.T) {
	for _, fill := range []byte{'a', 0, 0xff} {
		value := bytes.Repeat([]byte{fill}, kv.MaxValueBytes)
		data := written(t, client.Record{Key: "k", Value: value})
		got, err := readAll(client.NewRecordReader(bytes.NewReader(data)))
		if err != nil || len(got) != 1 || !bytes.Equal(got[0].Value, value) {
			t.Fatalf("fill %#x: %v", fill, err)
		}
	}
	r := client.NewRecordReader(strings.NewReader(`{"key":"k","value":"` + strings.Repeat("a", kv.MaxValueBytes+1) + "\"}\n"))
	if _, err := r.Read(); err == nil {
		t.Fatal("a value one byte too large was read")
	}
}

func compact(text json.RawMessage) json.RawMessage {
	if text == nil {
		return nil
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, text); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func FuzzNDJSON(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte(`{"key":"a","value":"1"}` + "\n"))
	f.Add(written(f, client.Record{Key: "a", Value: []byte{0xff}, Metadata: []byte(`[1]`), Expiration: 9}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := client.NewRecordReader(bytes.NewReader(data))
		r.NoTrailer = true
		records, err := readAll(r)
		if err != nil {
			var fault *client.RecordError
			if !errors.As(err, &fault) || fault.Offset > int64(len(data)) {
				t.Fatalf("error without a place: %v", err)
			}
		}
		again, err := readAll(client.NewRecordReader(bytes.NewReader(written(t, records...))))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		for i := range records { // a writer compacts metadata
			records[i].Metadata = compact(records[i].Metadata)
		}
		if err := sameRecords(records, again); err != nil {
			t.Fatal(err)
		}
	})
}
