package wire

import (
	"bytes"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	flagTombstone = 1 << iota
	flagAbsent
)

// maxCacheBytes bounds a cache status.
const maxCacheBytes = 32

func (p *payload) ref(ref kv.Ref) {
	mark := p.begin()
	p.id(ref.Namespace)
	p.text(ref.Key)
	p.end(mark)
}

func (r *reader) ref() (ref kv.Ref, err error) {
	f, err := r.next(maxSectionBytes)
	if err != nil {
		return kv.Ref{}, err
	}
	ref.Namespace, ref.Key = f.id(), f.text(kv.MaxKeyBytes)
	if f.err == nil && ref.Key == "" {
		f.fail("an empty key")
	}
	return ref, f.err
}

// record adds a record. A value of a listing is not there and not sent.
func (p *payload) record(rec kv.Record) {
	mark := p.begin()
	switch {
	case rec.Absent():
		p.u8(flagAbsent)
	default:
		var flags byte
		if rec.Tombstone {
			flags = flagTombstone
		}
		p.u8(flags)
		p.id(rec.Version)
		p.varint(rec.Expiration)
		p.bytes(rec.Metadata)
		p.uvarint(uint64(len(rec.Value)))
	}
	p.end(mark)
	if !rec.Absent() {
		p.raw(rec.Value)
	}
}

// record reads a record. reserve is asked before the value is read into memory.
func (r *reader) record(reserve func(int64) error) (rec kv.Record, err error) {
	f, err := r.next(maxSectionBytes)
	if err != nil {
		return kv.Record{}, err
	}
	flags := f.u8()
	if flags&flagAbsent != 0 {
		return kv.Record{}, f.err
	}
	rec.Version, rec.Tombstone = f.id(), flags&flagTombstone != 0
	rec.Expiration = f.varint()
	if metadata := f.bytes(kv.MaxMetadataBytes); len(metadata) > 0 {
		rec.Metadata = bytes.Clone(metadata)
	}
	n := f.count(kv.MaxValueBytes)
	if f.err == nil && rec.Absent() {
		f.fail("a record without a version")
	}
	if f.err != nil {
		return kv.Record{}, f.err
	}
	if n >= kv.ReserveBytes {
		if err := reserve(int64(n)); err != nil {
			return kv.Record{}, err
		}
	}
	if rec.Value, err = r.value(n); err != nil {
		return kv.Record{}, err
	}
	return rec, nil
}

// checkWrite refuses what no handler accepts, before it is sent.
func checkWrite(ref kv.Ref, rec kv.Record) error {
	switch {
	case ref.Key == "" || len(ref.Key) > kv.MaxKeyBytes:
		return fmt.Errorf("a key of %d bytes; 1 to %d are possible", len(ref.Key), kv.MaxKeyBytes)
	case rec.Absent():
		panic("wire: put of an absent record")
	case len(rec.Value) > kv.MaxValueBytes:
		return fmt.Errorf("a value of %d bytes; at most %d are possible", len(rec.Value), kv.MaxValueBytes)
	case len(rec.Metadata) > kv.MaxMetadataBytes:
		return fmt.Errorf("metadata of %d bytes; at most %d are possible", len(rec.Metadata), kv.MaxMetadataBytes)
	}
	return nil
}

func (p *payload) answer(a kv.Answer) {
	mark := p.begin()
	p.varint(int64(a.Age))
	p.text(string(a.Cache))
	p.end(mark)
	p.record(a.Record)
}

func (r *reader) answer(reserve func(int64) error) (a kv.Answer, err error) {
	f, err := r.next(maxSectionBytes)
	if err != nil {
		return kv.Answer{}, err
	}
	a.Age = time.Duration(f.varint())
	a.Cache = cacheStatus(f.bytes(maxCacheBytes))
	if f.err != nil {
		return kv.Answer{}, f.err
	}
	a.Record, err = r.record(reserve)
	return a, err
}

// cacheStatus spares the allocation of a known status.
func cacheStatus(b []byte) kv.CacheStatus {
	for _, s := range [...]kv.CacheStatus{kv.NoCache, kv.Hit, kv.Miss, kv.Expired, kv.Stale} {
		if string(b) == string(s) {
			return s
		}
	}
	return kv.CacheStatus(b)
}

// page adds as much of a page as an answer may hold.
func (p *payload) page(page kv.Page) {
	size := 0
	for i, k := range page.Keys {
		size += len(k.Key) + len(k.Record.Metadata) + 64 // more than the rest of an entry takes
		if size > MaxAnswerBytes && i > 0 {
			page.Keys = page.Keys[:i]
			page.Last, page.More = page.Keys[i-1].Key, true
			break
		}
	}
	mark := p.begin()
	p.uvarint(uint64(len(page.Keys)))
	p.u8(boolByte(page.More))
	p.text(page.Last)
	p.end(mark)
	for _, k := range page.Keys {
		mark := p.begin()
		p.text(k.Key)
		p.end(mark)
		k.Record.Value = nil
		p.record(k.Record)
	}
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (r *reader) page() (page kv.Page, err error) {
	f, err := r.next(maxSectionBytes)
	if err != nil {
		return kv.Page{}, err
	}
	n := f.count(kv.MaxListLimit)
	page.More = f.u8() != 0
	page.Last = f.text(kv.MaxKeyBytes)
	if f.err != nil {
		return kv.Page{}, f.err
	}
	for range n {
		f, err := r.next(maxSectionBytes)
		if err != nil {
			return kv.Page{}, err
		}
		key := f.text(kv.MaxKeyBytes)
		if f.err != nil {
			return kv.Page{}, f.err
		}
		rec, err := r.record(noValue)
		if err != nil {
			return kv.Page{}, err
		}
		page.Keys = append(page.Keys, kv.Listed{Key: key, Record: rec})
	}
	return page, nil
}

// noValue is asked for memory for a value where there is none.
func noValue(n int64) error {
	return fmt.Errorf("%w: a value of %d bytes in a listing", errMalformed, n)
}
