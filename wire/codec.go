package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// errMalformed: bytes that are not of this protocol.
var errMalformed = errors.New("malformed message")

// payload is a body on its way out: small parts gathered, large values by
// reference.
type payload struct {
	parts [][]byte // complete
	tail  []byte   // is appended to
	size  int64    // of parts
}

// byReference is the size from which on a value is not copied into a payload.
const byReference = 4 << 10

func (p *payload) len() int64 { return p.size + int64(len(p.tail)) }

// begin starts a section; end, with what begin returned, completes it.
func (p *payload) begin() int {
	p.tail = append(p.tail, 0)
	return len(p.tail)
}

func (p *payload) end(mark int) {
	n := len(p.tail) - mark
	if n < 0x80 {
		p.tail[mark-1] = byte(n)
		return
	}
	var length [binary.MaxVarintLen64]byte
	prefix := binary.PutUvarint(length[:], uint64(n))
	p.tail = append(p.tail, length[:prefix-1]...)
	copy(p.tail[mark+prefix-1:], p.tail[mark:mark+n])
	copy(p.tail[mark-1:], length[:prefix])
}

func (p *payload) u8(b byte)        { p.tail = append(p.tail, b) }
func (p *payload) uvarint(n uint64) { p.tail = binary.AppendUvarint(p.tail, n) }
func (p *payload) varint(n int64)   { p.tail = binary.AppendVarint(p.tail, n) }
func (p *payload) id(id [16]byte)   { p.tail = append(p.tail, id[:]...) }

func (p *payload) bytes(b []byte) {
	p.uvarint(uint64(len(b)))
	p.tail = append(p.tail, b...)
}

func (p *payload) text(s string) {
	p.uvarint(uint64(len(s)))
	p.tail = append(p.tail, s...)
}

// raw adds bytes without a length, which are not copied if they are many.
func (p *payload) raw(b []byte) {
	if len(b) < byReference {
		p.tail = append(p.tail, b...)
		return
	}
	p.cut()
	p.parts = append(p.parts, b)
	p.size += int64(len(b))
}

// cut makes the tail a part.
func (p *payload) cut() {
	if len(p.tail) == 0 {
		return
	}
	p.parts = append(p.parts, p.tail)
	p.size += int64(len(p.tail))
	p.tail = nil
}

// writeTo writes the payload; it remains as it was.
func (p *payload) writeTo(w io.Writer) error {
	for _, part := range p.parts {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	_, err := w.Write(p.tail)
	return err
}

// reader returns a new reader of the payload.
func (p *payload) reader() io.ReadCloser {
	if p.len() == 0 {
		return http.NoBody
	}
	return &payloadReader{parts: p.parts, tail: p.tail}
}

type payloadReader struct {
	parts [][]byte
	tail  []byte
	off   int // in the first part, or the tail
}

func (r *payloadReader) Close() error { return nil }

func (r *payloadReader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		part := r.tail
		if len(r.parts) > 0 {
			part = r.parts[0]
		}
		c := copy(b[n:], part[r.off:])
		n, r.off = n+c, r.off+c
		if r.off < len(part) {
			break
		}
		if len(r.parts) == 0 {
			if n == 0 {
				return 0, io.EOF
			}
			break
		}
		r.parts, r.off = r.parts[1:], 0
	}
	return n, nil
}

// reader reads a body.
type reader struct {
	*bufio.Reader
	section []byte // the last one; used again by the next
}

// next reads a section of at most most bytes. Its fields are valid until the next
// call.
func (r *reader) next(most int) (fields, error) {
	n, err := r.length()
	if err != nil {
		return fields{}, err
	}
	if n > uint64(most) {
		return fields{}, fmt.Errorf("%w: a section of %d bytes, at most %d are expected", errMalformed, n, most)
	}
	if cap(r.section) < int(n) {
		r.section = make([]byte, n)
	}
	r.section = r.section[:n]
	if _, err := io.ReadFull(r.Reader, r.section); err != nil {
		return fields{}, ended(err)
	}
	return fields{rest: r.section}, nil
}

// length reads the length of a section.
func (r *reader) length() (n uint64, err error) {
	for shift := 0; shift < 7*binary.MaxVarintLen32; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, ended(err)
		}
		if n |= uint64(b&0x7f) << shift; b < 0x80 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: the length of a section is too long", errMalformed)
}

// value reads n bytes of their own.
func (r *reader) value(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	value := make([]byte, n)
	if _, err := io.ReadFull(r.Reader, value); err != nil {
		return nil, ended(err)
	}
	return value, nil
}

// ended makes an end that comes too early an error of its own.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read a message: %w", err)
}

// fields are what is left of a section. The first mistake is kept; after it every
// field is zero.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) fail(what string) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s", errMalformed, what)
	}
	f.rest = nil
}

func (f *fields) u8() byte {
	if len(f.rest) == 0 {
		f.fail("a byte is missing")
		return 0
	}
	b := f.rest[0]
	f.rest = f.rest[1:]
	return b
}

func (f *fields) uvarint() uint64 {
	v, n := binary.Uvarint(f.rest)
	if n <= 0 {
		f.fail("a number is missing or too long")
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

// count is a uvarint of at most most.
func (f *fields) count(most int) int {
	n := f.uvarint()
	if n > uint64(most) {
		f.fail(fmt.Sprintf("a count of %d, at most %d are expected", n, most))
		return 0
	}
	return int(n)
}

func (f *fields) varint() int64 {
	v, n := binary.Varint(f.rest)
	if n <= 0 {
		f.fail("a number is missing or too long")
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) id() (id [16]byte) {
	if len(f.rest) < len(id) {
		f.fail("an id is missing")
		return id
	}
	copy(id[:], f.rest)
	f.rest = f.rest[len(id):]
	return id
}

// bytes are part of the section: who keeps them copies them.
func (f *fields) bytes(most int) []byte {
	n := f.count(most)
	if n > len(f.rest) {
		f.fail("bytes are missing")
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) text(most int) string { return string(f.bytes(most)) }

// section is a section within the section.
func (f *fields) section() fields {
	return fields{rest: f.bytes(len(f.rest)), err: f.err}
}
