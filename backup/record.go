package backup

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/nearkey/nearkey/kv"
)

// A record is
//
//	uvarint   length of the key, then the key
//	16 bytes  version
//	1 byte    flags
//	varint    expiration, if flagged
//	uvarint   length of the metadata, then the metadata, if flagged
//	uvarint   length of the value, then the value, unless it is a tombstone
const (
	flagTombstone  = 1 << 0
	flagExpiration = 1 << 1
	flagMetadata   = 1 << 2
	flagsKnown     = flagTombstone | flagExpiration | flagMetadata
)

// maxMetadata is more than any store lets through.
const maxMetadata = kv.MaxMetadataBytes + 1<<10

// appendHead appends all of a record but its value.
func appendHead(b []byte, key string, rec kv.Record) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = append(b, rec.Version[:]...)
	var flags byte
	if rec.Tombstone {
		flags |= flagTombstone
	}
	if rec.Expiration != 0 {
		flags |= flagExpiration
	}
	if len(rec.Metadata) > 0 {
		flags |= flagMetadata
	}
	b = append(b, flags)
	if rec.Expiration != 0 {
		b = binary.AppendVarint(b, rec.Expiration)
	}
	if len(rec.Metadata) > 0 {
		b = binary.AppendUvarint(b, uint64(len(rec.Metadata)))
		b = append(b, rec.Metadata...)
	}
	if !rec.Tombstone {
		b = binary.AppendUvarint(b, uint64(len(rec.Value)))
	}
	return b
}

// recordReader reads records one after the other.
type recordReader struct{ r *bufio.Reader }

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{bufio.NewReaderSize(r, 64<<10)}
}

// next returns the next record; io.EOF after the last one.
func (r *recordReader) next() (key string, rec kv.Record, err error) {
	if _, err := r.r.Peek(1); err != nil {
		return "", kv.Record{}, err
	}
	if key, rec, err = r.read(); err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("%w: a record is cut off", ErrDamaged)
	}
	return key, rec, err
}

func (r *recordReader) read() (key string, rec kv.Record, err error) {
	name, err := r.bytes("key", kv.MaxKeyBytes)
	if err != nil {
		return "", rec, err
	}
	if _, err := io.ReadFull(r.r, rec.Version[:]); err != nil {
		return "", rec, err
	}
	flags, err := r.r.ReadByte()
	if err != nil {
		return "", rec, err
	}
	if flags&^flagsKnown != 0 || len(name) == 0 || rec.Absent() {
		return "", rec, fmt.Errorf("%w: a record with flags %#x and a key of %d bytes", ErrDamaged, flags, len(name))
	}
	rec.Tombstone = flags&flagTombstone != 0
	if flags&flagExpiration != 0 {
		if rec.Expiration, err = binary.ReadVarint(r.r); err != nil {
			return "", rec, err
		}
	}
	if flags&flagMetadata != 0 {
		if rec.Metadata, err = r.bytes("metadata", maxMetadata); err != nil {
			return "", rec, err
		}
	}
	if !rec.Tombstone {
		rec.Value, err = r.bytes("value", kv.MaxValueBytes)
	}
	return string(name), rec, err
}

func (r *recordReader) bytes(what string, most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("%w: a %s of %d bytes, at most %d are possible", ErrDamaged, what, n, most)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r.r, b)
	return b, err
}
