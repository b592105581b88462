package disk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nearkey/nearkey/kv"
)

// The keys of Pebble. Numbers are big-endian, so that they sort.
//
//	d <namespace 16> <key>                    → a row: the record
//	x <expiration 8> <namespace 16> <key>     → nothing; rows that expire, by time
//	t <version 16> <namespace 16> <key>       → nothing; tombstones, by age
//	f <sequence 8>                            → <namespace 16> <version 16> <key>: the change log
//	m <name>                                  → what the store keeps about itself
const (
	spaceRows        = 'd'
	spaceExpirations = 'x'
	spaceTombstones  = 't'
	spaceChanges     = 'f'
)

var (
	keyEpoch = []byte("mepoch") // 8 bytes: the epoch of the change log
	keyHigh  = []byte("mhigh")  // 8 bytes: every version is older than this, ns since 1970
)

const (
	namespaceBytes = len(kv.NamespaceID{})
	versionBytes   = len(kv.Version{})
)

func appendRowKey(b []byte, ref kv.Ref) []byte {
	b = append(b, spaceRows)
	b = append(b, ref.Namespace[:]...)
	return append(b, ref.Key...)
}

// rowRange is the range of the rows of a namespace whose keys begin with prefix.
func rowRange(ns kv.NamespaceID, prefix string) (lower, upper []byte) {
	whole := string(appendRowKey(nil, kv.Ref{Namespace: ns, Key: prefix}))
	return []byte(whole), []byte(kv.PrefixSuccessor(whole))
}

func appendExpirationKey(b []byte, expiration int64, ref kv.Ref) []byte {
	b = append(b, spaceExpirations)
	b = binary.BigEndian.AppendUint64(b, uint64(expiration))
	b = append(b, ref.Namespace[:]...)
	return append(b, ref.Key...)
}

func appendTombstoneKey(b []byte, v kv.Version, ref kv.Ref) []byte {
	b = append(b, spaceTombstones)
	b = append(b, v[:]...)
	b = append(b, ref.Namespace[:]...)
	return append(b, ref.Key...)
}

func appendChangeKey(b []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, spaceChanges), seq)
}

var errCorrupt = errors.New("corrupt")

// parseRef reads the namespace and key behind the first n bytes of an index key.
func parseRef(key []byte, n int) (kv.Ref, error) {
	if len(key) < n+namespaceBytes {
		return kv.Ref{}, fmt.Errorf("key %x: %w", key, errCorrupt)
	}
	return kv.Ref{Namespace: kv.NamespaceID(key[n : n+namespaceBytes]), Key: string(key[n+namespaceBytes:])}, nil
}

func appendChange(b []byte, ref kv.Ref, v kv.Version) []byte {
	b = append(b, ref.Namespace[:]...)
	b = append(b, v[:]...)
	return append(b, ref.Key...)
}

func parseChange(data []byte) (kv.Ref, kv.Version, error) {
	if len(data) < namespaceBytes+versionBytes {
		return kv.Ref{}, kv.Version{}, fmt.Errorf("change %x: %w", data, errCorrupt)
	}
	return kv.Ref{Namespace: kv.NamespaceID(data[:namespaceBytes]), Key: string(data[namespaceBytes+versionBytes:])},
		kv.Version(data[namespaceBytes : namespaceBytes+versionBytes]), nil
}

// A row is
//
//	<version 16> <flags 1> [expiration 8] [metadata length uvarint, metadata] value
//
// where value is the value itself or, with flagFile, a fileRef.
const (
	flagTombstone = 1 << iota
	flagExpiration
	flagMetadata
	flagFile
)

// row is a record as it is stored: with its value, or with the file that has it.
type row struct {
	kv.Record         // Value is nil if file is set
	file      fileRef // zero: none
}

func (r row) append(b []byte) []byte {
	var flags byte
	if r.Tombstone {
		flags |= flagTombstone
	}
	if r.Expiration != 0 {
		flags |= flagExpiration
	}
	if len(r.Metadata) > 0 {
		flags |= flagMetadata
	}
	if r.file != (fileRef{}) {
		flags |= flagFile
	}
	b = append(b, r.Version[:]...)
	b = append(b, flags)
	if flags&flagExpiration != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Expiration))
	}
	if flags&flagMetadata != 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Metadata)))
		b = append(b, r.Metadata...)
	}
	if flags&flagFile != 0 {
		return r.file.append(b)
	}
	return append(b, r.Value...)
}

// parseRow reads a row. Metadata and Value are parts of data.
func parseRow(data []byte) (row, error) {
	if len(data) < versionBytes+1 {
		return row{}, fmt.Errorf("row of %d bytes: %w", len(data), errCorrupt)
	}
	r := row{Record: kv.Record{Version: kv.Version(data[:versionBytes])}}
	flags, rest := data[versionBytes], data[versionBytes+1:]
	if flags&^(flagTombstone|flagExpiration|flagMetadata|flagFile) != 0 {
		return row{}, fmt.Errorf("row with flags %#x: %w", flags, errCorrupt)
	}
	r.Tombstone = flags&flagTombstone != 0
	if flags&flagExpiration != 0 {
		if len(rest) < 8 {
			return row{}, fmt.Errorf("row without its expiration: %w", errCorrupt)
		}
		r.Expiration, rest = int64(binary.BigEndian.Uint64(rest)), rest[8:]
	}
	if flags&flagMetadata != 0 {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			return row{}, fmt.Errorf("row without its metadata: %w", errCorrupt)
		}
		r.Metadata, rest = rest[size:size+int(n):size+int(n)], rest[size+int(n):]
	}
	if flags&flagFile != 0 {
		file, err := parseFileRef(rest)
		r.file = file
		return r, err
	}
	r.Value = rest
	return r, nil
}
