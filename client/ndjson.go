package client

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

// Record is a key with all that belongs to it, as it is exported and imported.
type Record struct {
	Key        string
	Value      []byte
	Metadata   json.RawMessage // JSON text; nil: none
	Expiration int64           // seconds since 1970; 0: never
}

// The NDJSON form of a namespace: one record a line,
//
//	{"key":"a","value":"text","metadata":{"type":"note"},"expiration":1893456000}
//	{"key":"b","value_base64":"/w=="}
//
// and at the end a line that says how many records there are and what the SHA-256
// of their lines, line breaks included, is:
//
//	{"trailer":{"count":2,"sha256":"…"}}
//
// Without the trailer the file is incomplete.
type recordJSON struct {
	Key        *string         `json:"key,omitempty"`
	Value      *string         `json:"value,omitempty"`
	Base64     *string         `json:"value_base64,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Expiration int64           `json:"expiration,omitempty"`
	Trailer    *Trailer        `json:"trailer,omitempty"`
}

// Trailer is the last line of the NDJSON form.
type Trailer struct {
	Count  int64  `json:"count"`
	SHA256 string `json:"sha256"`
}

// MaxLineBytes is the longest line that is read, line break included. The longest
// that is written has about 34 MiB: a value of 25 MiB in base64.
const MaxLineBytes = 64 << 20

// RecordWriter writes the NDJSON form. It holds one record in memory.
type RecordWriter struct {
	w     *bufio.Writer
	hash  hash.Hash
	line  bytes.Buffer
	count int64
	bytes int64
}

// NewRecordWriter returns a RecordWriter to w.
func NewRecordWriter(w io.Writer) *RecordWriter {
	return &RecordWriter{w: bufio.NewWriterSize(w, 64<<10), hash: sha256.New()}
}

// Count is the number of records written, Bytes that of bytes.
func (w *RecordWriter) Count() int64 { return w.count }

// Bytes is the number of bytes written, those that still wait in the buffer included.
func (w *RecordWriter) Bytes() int64 { return w.bytes }

// SHA256 is the hash of the lines of the records written.
func (w *RecordWriter) SHA256() string { return hex.EncodeToString(w.hash.Sum(nil)) }

// Write writes one record. Its value is written as text if it is valid UTF-8 and
// not longer so than in base64.
func (w *RecordWriter) Write(r Record) error {
	item := recordJSON{Key: &r.Key, Metadata: someJSON(r.Metadata), Expiration: r.Expiration}
	if !utf8.ValidString(r.Key) {
		return fmt.Errorf("write record %q: the key is not valid UTF-8", r.Key)
	}
	if utf8.Valid(r.Value) {
		text := string(r.Value)
		item.Value = &text
		if err := w.encode(item); err != nil {
			return fmt.Errorf("write record %q: %w", r.Key, err)
		}
	}
	const others = 1 << 10 // the key and the names; escaped text beyond it is unreadable anyway
	if item.Value == nil || w.line.Len() > base64.StdEncoding.EncodedLen(len(r.Value))+len(r.Metadata)+others {
		text := base64.StdEncoding.EncodeToString(r.Value)
		item.Value, item.Base64 = nil, &text
		if err := w.encode(item); err != nil {
			return fmt.Errorf("write record %q: %w", r.Key, err)
		}
	}
	if w.line.Len() > MaxLineBytes {
		return fmt.Errorf("write record %q: its line would have %d bytes, more than %d", r.Key, w.line.Len(), MaxLineBytes)
	}
	w.hash.Write(w.line.Bytes())
	w.count++
	return w.flushLine()
}

func (w *RecordWriter) encode(item recordJSON) error {
	w.line.Reset()
	enc := json.NewEncoder(&w.line)
	enc.SetEscapeHTML(false)
	return enc.Encode(item)
}

func (w *RecordWriter) flushLine() error {
	n, err := w.w.Write(w.line.Bytes())
	w.bytes += int64(n)
	return err
}

// Flush writes what is buffered to the underlying writer.
func (w *RecordWriter) Flush() error { return w.w.Flush() }

// Close writes the trailer and what is buffered. It does not close the
// underlying writer.
func (w *RecordWriter) Close() error {
	trailer := Trailer{Count: w.count, SHA256: w.SHA256()}
	if err := w.encode(recordJSON{Trailer: &trailer}); err != nil {
		return err
	}
	if err := w.flushLine(); err != nil {
		return err
	}
	return w.w.Flush()
}

// Resume makes the writer go on after the records that r has read: what follows
// is counted and hashed with them.
func (w *RecordWriter) Resume(r *RecordReader) {
	w.hash, w.count, w.bytes = r.hash, r.count, r.offset
}

// RecordError is a fault of the NDJSON form, and where it is.
type RecordError struct {
	Line   int64 // from 1
	Offset int64 // of the line's first byte
	Reason string
	Err    error // what was wrong with the line, if it was not its place
}

func (e *RecordError) Error() string {
	s := fmt.Sprintf("line %d (at byte %d): %s", e.Line, e.Offset, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *RecordError) Unwrap() error { return e.Err }

// RecordReader reads the NDJSON form. It holds one line in memory.
type RecordReader struct {
	// NoTrailer accepts input that ends without a trailer.
	NoTrailer bool

	r       *bufio.Reader
	hash    hash.Hash
	line    []byte
	lineNo  int64 // of the line that was read last
	start   int64 // its offset
	offset  int64 // of what follows it
	count   int64
	trailer bool
}

// NewRecordReader returns a RecordReader from r.
func NewRecordReader(r io.Reader) *RecordReader {
	return &RecordReader{r: bufio.NewReaderSize(r, 64<<10), hash: sha256.New()}
}

// Count is the number of records read.
func (r *RecordReader) Count() int64 { return r.count }

// Offset is the number of bytes read: the records' lines, and the trailer's.
func (r *RecordReader) Offset() int64 { return r.offset }

// SHA256 is the hash of the lines of the records read.
func (r *RecordReader) SHA256() string { return hex.EncodeToString(r.hash.Sum(nil)) }

// Read returns the next record. After the last it checks the trailer, and that
// nothing follows it, and returns io.EOF. Other errors are RecordErrors, or those
// of the underlying reader.
func (r *RecordReader) Read() (Record, error) {
	line, err := r.next()
	if err != nil {
		return Record{}, err
	}
	rec, trailer, err := parseRecord(line)
	if err != nil {
		return Record{}, r.fault("not a record", err)
	}
	if trailer != nil {
		return Record{}, r.finish(*trailer)
	}
	r.accept(line)
	return rec, nil
}

// Skip goes over n records without looking into them.
func (r *RecordReader) Skip(n int64) error {
	for range n {
		line, err := r.next()
		if err == io.EOF || err == nil && bytes.HasPrefix(line, []byte(`{"trailer"`)) {
			return r.fault(fmt.Sprintf("it ends after %d records", r.count), nil)
		}
		if err != nil {
			return err
		}
		r.accept(line)
	}
	return nil
}

func (r *RecordReader) accept(line []byte) {
	r.hash.Write(line)
	r.count++
}

// next reads the next line, with its line break. The line is valid until the
// next call.
func (r *RecordReader) next() ([]byte, error) {
	if r.trailer {
		return nil, io.EOF
	}
	r.start = r.offset
	r.lineNo++
	line, err := r.readLine()
	if err == io.EOF && len(line) == 0 {
		if r.NoTrailer {
			return nil, io.EOF
		}
		return nil, r.fault(fmt.Sprintf("the trailer is missing; the input was cut off after %d records", r.count), io.ErrUnexpectedEOF)
	}
	if err == io.EOF && !r.NoTrailer {
		return nil, r.fault("the line has no end; the input was cut off", io.ErrUnexpectedEOF)
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	return line, nil
}

// readLine reads up to a line break, in pieces, so that a line that is too long
// is noticed before it is in memory.
func (r *RecordReader) readLine() ([]byte, error) {
	r.line = r.line[:0]
	for {
		piece, err := r.r.ReadSlice('\n')
		r.offset += int64(len(piece))
		if len(r.line)+len(piece) > MaxLineBytes {
			return nil, r.fault(fmt.Sprintf("the line is longer than %d bytes", MaxLineBytes), nil)
		}
		if err == nil && len(r.line) == 0 {
			return piece, nil
		}
		r.line = append(r.line, piece...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return r.line, err
		}
	}
}

func (r *RecordReader) fault(reason string, err error) error {
	return &RecordError{Line: r.lineNo, Offset: r.start, Reason: reason, Err: err}
}

// finish checks the trailer against what was read.
func (r *RecordReader) finish(t Trailer) error {
	if t.Count != r.count {
		return r.fault(fmt.Sprintf("the trailer counts %d records, the input has %d", t.Count, r.count), nil)
	}
	if sum := r.SHA256(); !strings.EqualFold(t.SHA256, sum) {
		return r.fault(fmt.Sprintf("the records were changed: the trailer's SHA-256 is %.64q, theirs is %s", t.SHA256, sum), nil)
	}
	r.start = r.offset
	r.lineNo++
	trailing, err := r.readLine()
	if err != nil && err != io.EOF {
		return err
	}
	if len(trailing) > 0 {
		return r.fault("something follows the trailer; are these several exports in one file?", nil)
	}
	r.trailer = true
	return io.EOF
}

// parseRecord reads a line: a record or the trailer.
func parseRecord(line []byte) (Record, *Trailer, error) {
	if err := CheckText(line); err != nil {
		return Record{}, nil, err
	}
	var item recordJSON
	if err := strictJSON(line, &item); err != nil {
		return Record{}, nil, err
	}
	if item.Trailer != nil {
		if item.Key != nil || item.Value != nil || item.Base64 != nil || item.Metadata != nil || item.Expiration != 0 {
			return Record{}, nil, errors.New("a trailer has nothing beside it")
		}
		return Record{}, item.Trailer, nil
	}
	rec := Record{Metadata: someJSON(item.Metadata), Expiration: item.Expiration}
	switch {
	case item.Key == nil:
		return Record{}, nil, errors.New(`there is no "key"`)
	case item.Value != nil && item.Base64 != nil:
		return Record{}, nil, errors.New(`there are both "value" and "value_base64"`)
	case item.Value != nil:
		rec.Value = []byte(*item.Value)
	case item.Base64 != nil:
		value, err := base64.StdEncoding.DecodeString(*item.Base64)
		if err != nil {
			return Record{}, nil, fmt.Errorf("value_base64: %w", err)
		}
		rec.Value = value
	default:
		return Record{}, nil, errors.New(`there is neither "value" nor "value_base64"`)
	}
	rec.Key = *item.Key
	if len(rec.Value) > kv.MaxValueBytes {
		return Record{}, nil, fmt.Errorf("the value of %.100q has %d bytes, at most %d can be stored", rec.Key, len(rec.Value), kv.MaxValueBytes)
	}
	if rec.Expiration < 0 {
		return Record{}, nil, fmt.Errorf("expiration %d is before 1970", rec.Expiration)
	}
	if rec.Metadata != nil {
		rec.Metadata = bytes.Clone(rec.Metadata)
	}
	return rec, nil, nil
}

// strictJSON reads text that is one JSON value, in which every member is known.
func strictJSON(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if rest := bytes.TrimSpace(text[dec.InputOffset():]); len(rest) > 0 {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// CheckText returns an error if reading JSON text would change its strings: bytes
// that are not UTF-8 and escapes of half a surrogate pair would silently become
// U+FFFD.
func CheckText(text []byte) error {
	if !utf8.Valid(text) {
		return errors.New("it is not valid UTF-8; write the value as base64")
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		switch half := surrogate(text[i:]); {
		case half == 0:
			i++ // over what was escaped
		case half < 0xdc00 && surrogate(text[i+6:]) >= 0xdc00:
			i += 11
		default:
			return fmt.Errorf("the escape %s is half a character; write the value as base64", text[i:i+6])
		}
	}
	return nil
}

// surrogate is the half of a surrogate pair whose escape text begins with, or 0.
func surrogate(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	var unit [2]byte
	if _, err := hex.Decode(unit[:], text[2:6]); err != nil {
		return 0
	}
	if r := rune(unit[0])<<8 | rune(unit[1]); r >= 0xd800 && r <= 0xdfff {
		return r
	}
	return 0
}
