package proxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// A row is a record as Split gives it to the store of rows. What it adds stands
// at the end of the metadata and is known by its last byte, which is never that
// of a JSON text:
//
//	metadata                            as it is
//	metadata 0x00                       it ends in 0x00, 0x01 or 0x02 itself
//	metadata 0x00 <reference> 0x01      the value, empty in the row, is a blob
//	metadata 0x02                       the value is in the row, which repairs one with a reference
//
// Rows of one version are ordered as the records are, as far as a row can tell:
// by metadata, then by the first bytes of the value. So where two writes of a key
// share a version and an expiration and metadata, which no stamped write does, a
// value in a blob wins over one in a row whatever they hold, and two values that
// begin alike are ordered by their size and hash. Of one and the same record the
// row with the later blob wins, so that putting it again replaces a blob that was
// lost; the last form does so when the value has become small enough for its row.
const (
	endsPlain  = 0x00
	endsRef    = 0x01
	endsRepair = 0x02
)

// reference is what a row says of its value's blob. Written it has a fixed width,
// and begins with what orders it.
type reference struct {
	head [8]byte  // the value's first bytes
	size uint32   // of the value
	sum  [32]byte // SHA-256 of the value
	hour uint32   // of the put, since 1970, by this provider's clock
}

const referenceBytes = 8 + 4 + 32 + 4

func newReference(value []byte, now time.Time) reference {
	r := reference{size: uint32(len(value)), sum: sha256.Sum256(value), hour: uint32(now.Unix() / 3600)}
	copy(r.head[:], value)
	return r
}

func (r reference) append(b []byte) []byte {
	b = append(b, r.head[:]...)
	b = binary.BigEndian.AppendUint32(b, r.size)
	b = append(b, r.sum[:]...)
	return binary.BigEndian.AppendUint32(b, r.hour)
}

func parseReference(b []byte) reference {
	var r reference
	copy(r.head[:], b)
	r.size = binary.BigEndian.Uint32(b[8:])
	copy(r.sum[:], b[12:])
	r.hour = binary.BigEndian.Uint32(b[44:])
	return r
}

// inlineRow is the row of a record whose value stays in it. With repairs it wins
// over a row of the same record that has a reference.
func inlineRow(rec kv.Record, repairs bool) kv.Record {
	end := len(rec.Metadata) - 1
	switch {
	case repairs:
		rec.Metadata = append(bytes.Clone(rec.Metadata), endsRepair)
	case end >= 0 && rec.Metadata[end] <= endsRepair:
		rec.Metadata = append(bytes.Clone(rec.Metadata), endsPlain)
	}
	return rec
}

// referenceRow is the row of a record whose value is a blob.
func referenceRow(rec kv.Record, r reference) kv.Record {
	metadata := make([]byte, 0, len(rec.Metadata)+1+referenceBytes+1)
	metadata = append(append(metadata, rec.Metadata...), 0)
	rec.Metadata = append(r.append(metadata), endsRef)
	rec.Value = nil
	return rec
}

// openRow returns the record of a row, and the reference to its value if the
// record lacks it. What was never a row of Split is a record as it stands.
func openRow(row kv.Record) (rec kv.Record, r reference, isBlob bool) {
	end := len(row.Metadata) - 1
	if end < 0 {
		return row, reference{}, false
	}
	switch row.Metadata[end] {
	case endsPlain, endsRepair:
		row.Metadata = row.Metadata[:end:end]
	case endsRef:
		start := end - referenceBytes - 1
		if start < 0 || row.Metadata[start] != 0 || len(row.Value) > 0 {
			break
		}
		r = parseReference(row.Metadata[start+1 : end])
		row.Metadata = row.Metadata[:start:start]
		return row, r, true
	}
	return row, reference{}, false
}

// blobName is a blob's name without its namespace: the SHA-256 of the key, the
// version, the hour of the put, the beginning of the value's SHA-256. So a name
// is never that of other bytes, a put that is repeated within the hour writes the
// same blob, and no put writes a name whose hour is long over.
type blobName [32 + 16 + 4 + 8]byte

func (r reference) name(key string, v kv.Version) blobName {
	var n blobName
	sum := sha256.Sum256([]byte(key))
	copy(n[:32], sum[:])
	copy(n[32:48], v[:])
	binary.BigEndian.PutUint32(n[48:52], r.hour)
	copy(n[52:], r.sum[:8])
	return n
}

func (n blobName) hour() uint32 { return binary.BigEndian.Uint32(n[48:52]) }

// ended is the end of the hour in which the blob was put.
func (n blobName) ended() time.Time { return time.Unix((int64(n.hour())+1)*3600, 0) }

// blobRoot begins the name of every blob; another format will have another.
const blobRoot = "v1/"

func blobPrefix(ns kv.NamespaceID) string { return blobRoot + ns.String() + "/" }

// afterBlobs is greater than the name of every blob of ns, and less than that of
// every blob of the namespaces behind it.
func afterBlobs(ns kv.NamespaceID) string { return blobRoot + ns.String() + "0" }

// in writes the name in full. Its parts have a fixed width and only lower-case
// hexadecimal digits, so that names in text and in bytes have the same order.
func (n blobName) in(ns kv.NamespaceID) string {
	text := hex.EncodeToString(n[:])
	return blobPrefix(ns) + text[:64] + "/" + text[64:96] + "-" + text[96:104] + "-" + text[104:]
}

// parseBlobName reads what in has written.
func parseBlobName(name string) (ns kv.NamespaceID, n blobName, ok bool) {
	text, ok := strings.CutPrefix(name, blobRoot)
	if !ok || len(text) != 32+1+64+1+32+1+8+1+16 {
		return ns, n, false
	}
	ns, err := kv.ParseNamespaceID(text[:32])
	if err != nil {
		return ns, n, false
	}
	rest := text[33:97] + text[98:130] + text[131:139] + text[140:]
	if _, err := hex.Decode(n[:], []byte(rest)); err != nil {
		return ns, n, false
	}
	return ns, n, n.in(ns) == name
}

func (r reference) String() string {
	return strconv.Itoa(int(r.size)) + " bytes, SHA-256 " + hex.EncodeToString(r.sum[:])
}
