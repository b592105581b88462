package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

func reading(b []byte) *reader {
	return &reader{Reader: bufio.NewReader(bytes.NewReader(b))}
}

func written(p *payload) []byte {
	b, err := io.ReadAll(p.reader())
	if err != nil {
		panic(err)
	}
	return b
}

func plenty(int64) error { return nil }

var someVersion = kv.NewVersion(1<<60, 3, 12345)

// someRecords are of every kind, and at every limit.
func someRecords() []kv.Record {
	return []kv.Record{
		{},
		kv.Tombstone(someVersion),
		{Version: someVersion},
		{Version: someVersion, Value: []byte("v"), Metadata: []byte(`{"a":1}`), Expiration: 1 << 40},
		{Version: someVersion, Value: bytes.Repeat([]byte("v"), byReference), Expiration: -1},
		{Version: someVersion, Value: bytes.Repeat([]byte("v"), byReference-1), Metadata: bytes.Repeat([]byte("m"), kv.MaxMetadataBytes)},
		{Version: someVersion, Value: bytes.Repeat([]byte("v"), kv.MaxValueBytes)},
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	var p payload
	for _, rec := range someRecords() {
		p.record(rec)
		p.answer(kv.Answer{Record: rec, Age: time.Second, Cache: kv.Stale})
	}
	if got := int64(len(written(&p))); got != p.len() {
		t.Fatalf("a payload of %d bytes reads as %d", p.len(), got)
	}
	var direct bytes.Buffer
	if err := p.writeTo(&direct); err != nil || !bytes.Equal(direct.Bytes(), written(&p)) {
		t.Fatalf("written and read payloads differ (%v)", err)
	}
	r := reading(written(&p))
	for i, want := range someRecords() {
		got, err := r.record(plenty)
		if err != nil || got.Compare(want) != 0 {
			t.Fatalf("record %d: %v", i, err)
		}
		answer, err := r.answer(plenty)
		if err != nil || answer.Compare(want) != 0 || answer.Age != time.Second || answer.Cache != kv.Stale {
			t.Fatalf("answer %d: %+v, %v", i, answer.Cache, err)
		}
	}
}

func someMessages() []feed.Message {
	cursor := func(seq uint64) kv.Cursor { return kv.Cursor{Epoch: 1<<63 + 5, Seq: seq} }
	change := func(ns byte, key string, c kv.Cursor) kv.Change {
		return kv.Change{Ref: kv.Ref{Namespace: kv.NamespaceID{ns}, Key: key}, Version: someVersion, Cursor: c}
	}
	full := feed.Message{From: cursor(1), To: cursor(1 << 40)}
	for i := range feed.MaxMessageChanges {
		full.Changes = append(full.Changes, change(byte(i), strings.Repeat("k", kv.MaxKeyBytes), cursor(1<<40)))
		full.Told = append(full.Told, change(byte(i), strings.Repeat("k", kv.MaxKeyBytes), kv.Cursor{}))
	}
	return []feed.Message{
		{To: cursor(7)},
		{From: cursor(7), To: cursor(7), Elapsed: time.Hour, Lag: feed.LagUnknown, Acks: 9},
		{From: cursor(7), To: cursor(9), Elapsed: 1, Lag: time.Minute, Changes: []kv.Change{change(1, "a", cursor(8)), change(1, "\xff", cursor(9))}},
		{From: cursor(7), To: cursor(7), Acks: 2, Told: []kv.Change{change(1, "a", kv.Cursor{}), change(2, "b", kv.Cursor{})}},
		full,
	}
}

func sameMessage(a, b feed.Message) bool {
	return a.From == b.From && a.To == b.To && a.Elapsed == b.Elapsed && a.Lag == b.Lag && a.Acks == b.Acks &&
		slices.Equal(a.Changes, b.Changes) && slices.Equal(a.Told, b.Told)
}

func TestMessagesRoundTrip(t *testing.T) {
	for i, want := range someMessages() {
		var p payload
		p.message(want)
		if p.len() > maxFrameBytes {
			t.Fatalf("message %d has %d bytes, a frame has at most %d", i, p.len(), maxFrameBytes)
		}
		got, err := reading(written(&p)).frame()
		if err != nil || !sameMessage(got, want) {
			t.Errorf("message %d: %+v, %v", i, got.From, err)
		}
	}
	typical := feed.Message{From: kv.Cursor{Epoch: 1 << 63, Seq: 1000}, To: kv.Cursor{Epoch: 1 << 63, Seq: 1001}, Elapsed: time.Minute, Lag: time.Millisecond}
	typical.Changes = []kv.Change{{Cursor: typical.To, Ref: kv.Ref{Key: "a key of twenty-four b."}, Version: someVersion}}
	var p payload
	p.message(typical)
	t.Logf("a message of one change of a key of %d bytes has %d bytes", len(typical.Changes[0].Ref.Key), p.len())
}

// later returns what a later version of the protocol sends: every section has
// further fields, and something follows the last.
func later(sections [][]byte) []byte {
	var p payload
	for _, s := range sections {
		p.bytes(append(slices.Clone(s), "fields of a later version"...))
	}
	p.text("a section of a later version")
	return p.tail
}

// split returns the sections of a body that has nothing else.
func split(t *testing.T, body []byte) (sections [][]byte) {
	t.Helper()
	for r := reading(body); ; {
		f, err := r.next(maxFrameBytes)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return sections
		}
		if err != nil {
			t.Fatal(err)
		}
		sections = append(sections, slices.Clone(f.rest))
	}
}

func TestFieldsOfALaterVersionAreIgnored(t *testing.T) {
	rec := kv.Record{Version: someVersion, Metadata: []byte("1"), Expiration: 7}
	var p payload
	p.answer(kv.Answer{Record: rec, Age: 3, Cache: kv.Hit})
	p.ref(kv.Ref{Key: "k"})
	r := reading(later(split(t, written(&p))))
	if a, err := r.answer(plenty); err != nil || a.Compare(rec) != 0 || a.Age != 3 || a.Cache != kv.Hit {
		t.Errorf("answer %+v, %v", a, err)
	}
	if ref, err := r.ref(); err != nil || ref.Key != "k" {
		t.Errorf("ref %+v, %v", ref, err)
	}
	for i, want := range someMessages() {
		var p payload
		p.message(want)
		if got, err := reading(later(split(t, written(&p)))).frame(); err != nil || !sameMessage(got, want) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	var e payload
	mark := e.begin()
	e.error(kv.ErrFull)
	e.end(mark)
	f, err := reading(later(split(t, written(&e)))).next(maxSectionBytes)
	if err != nil || !errors.Is(f.remoteError(), kv.ErrFull) {
		t.Errorf("error: %v", err)
	}
}

func TestMalformedAndTruncated(t *testing.T) {
	var p payload
	p.record(kv.Record{Version: someVersion, Value: []byte("value"), Metadata: []byte("1")})
	whole := written(&p)
	for n := range whole {
		if rec, err := reading(whole[:n]).record(plenty); err == nil {
			t.Errorf("%d of %d bytes read as %+v", n, len(whole), rec)
		}
	}
	p = payload{}
	p.message(someMessages()[2])
	whole = written(&p)
	for n := range whole {
		if m, err := reading(whole[:n]).frame(); err == nil {
			t.Errorf("%d of %d bytes read as %+v", n, len(whole), m)
		}
	}
	long := &payload{}
	long.bytes(make([]byte, maxSectionBytes+1))
	if _, err := reading(written(long)).next(maxSectionBytes); !errors.Is(err, errMalformed) {
		t.Errorf("a section of one byte too many: %v", err)
	}
	exact := &payload{}
	exact.bytes(make([]byte, maxSectionBytes))
	if _, err := reading(written(exact)).next(maxSectionBytes); err != nil {
		t.Errorf("a section at the limit: %v", err)
	}
	large := &payload{}
	mark := large.begin()
	large.u8(0)
	large.id(someVersion)
	large.varint(0)
	large.bytes(nil)
	large.uvarint(kv.MaxValueBytes + 1)
	large.end(mark)
	asked := false
	if _, err := reading(written(large)).record(func(int64) error { asked = true; return nil }); !errors.Is(err, errMalformed) || asked {
		t.Errorf("a value of one byte too many: %v", err)
	}
}

func TestReserveIsAskedBeforeTheValueIsRead(t *testing.T) {
	for n, want := range map[int]int64{kv.ReserveBytes - 1: 0, kv.ReserveBytes: kv.ReserveBytes} {
		var p payload
		p.record(kv.Record{Version: someVersion, Value: make([]byte, n)})
		asked := int64(0)
		_, err := reading(written(&p)).record(func(n int64) error { asked = n; return kv.ErrOverloaded })
		if asked != want || (want > 0) != errors.Is(err, kv.ErrOverloaded) {
			t.Errorf("a value of %d bytes: asked for %d, %v", n, asked, err)
		}
	}
}

func TestErrorsCross(t *testing.T) {
	for _, k := range kinds {
		var p payload
		mark := p.begin()
		p.error(k.err)
		p.end(mark)
		f, err := reading(written(&p)).next(maxSectionBytes)
		if err != nil {
			t.Fatal(err)
		}
		got := f.remoteError()
		if k.kind == kindDeadline {
			k.err = context.DeadlineExceeded
		}
		if !errors.Is(got, k.err) || !strings.Contains(got.Error(), k.err.Error()) && k.kind != kindDeadline {
			t.Errorf("%v crosses as %v", k.err, got)
		}
	}
	rule := &kv.RuleError{Rule: kv.RuleKeyBytes, Text: "too long"}
	var p payload
	mark := p.begin()
	p.error(rule)
	p.end(mark)
	f, _ := reading(written(&p)).next(maxSectionBytes)
	var got *kv.RuleError
	if err := f.remoteError(); !errors.As(err, &got) || *got != *rule {
		t.Errorf("a rule crosses as %v", err)
	}
	unknown := &payload{}
	unknown.uvarint(99)
	unknown.text(strings.Repeat("x", maxErrorText))
	unknown.text("")
	f = fields{rest: unknown.tail}
	if err := f.remoteError(); !errors.Is(err, errInternal) {
		t.Errorf("a kind that is not known crosses as %v", err)
	}
	var long payload
	long.error(errors.New(strings.Repeat("x", maxErrorText+1)))
	f = fields{rest: long.tail}
	if err := f.remoteError(); !errors.Is(err, errInternal) || len(err.Error()) > maxErrorText+20 {
		t.Errorf("a long error crosses with %d bytes", len(err.Error()))
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, rec := range someRecords()[:5] {
		var p payload
		p.record(rec)
		f.Add(written(&p))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := reading(data).record(func(n int64) error {
			if n > int64(len(data)) {
				return kv.ErrOverloaded // memory for what cannot be there
			}
			return nil
		})
		if err != nil {
			return
		}
		var p payload
		p.record(rec)
		again, err := reading(written(&p)).record(plenty)
		if err != nil || again.Compare(rec) != 0 {
			t.Fatalf("%+v became %+v, %v", rec, again, err)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	for _, m := range someMessages()[:4] {
		var p payload
		p.message(m)
		f.Add(written(&p))
	}
	var p payload
	p.endFrame(kv.ErrCursorGone)
	f.Add(written(&p))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := reading(data).frame()
		if err != nil {
			return
		}
		var p payload
		p.message(m)
		again, err := reading(written(&p)).frame()
		if err != nil || !sameMessage(again, m) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzDecodePage(f *testing.F) {
	var p payload
	p.page(kv.Page{Keys: []kv.Listed{{Key: "k", Record: kv.Tombstone(someVersion)}, {Key: "l", Record: kv.Record{Version: someVersion, Metadata: []byte("1")}}}, More: true, Last: "l"})
	f.Add(written(&p))
	f.Fuzz(func(t *testing.T, data []byte) {
		page, err := reading(data).page()
		if err != nil {
			return
		}
		var p payload
		p.page(page)
		again, err := reading(written(&p)).page()
		if err != nil || len(again.Keys) != len(page.Keys) || again.Last != page.Last || again.More != page.More {
			t.Fatalf("%+v became %+v, %v", page, again, err)
		}
	})
}
