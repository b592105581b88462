package cache

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxHead    = 256 << 10 // of a response
	maxFields  = 1000      // lines of a head
	firstChunk = 4 << 10
	wholeChunk = 64 << 10 // a body of known size up to this is received in one piece
	maxChunk   = 1 << 20
)

// response is an answer that a Worker puts, and what the rules say of it.
type response struct {
	status int
	text   int64 // bytes of the head, of which the fields are parts
	fields headers
	body   []byte
	vary   []selector

	made, stored time.Time
	age, life    time.Duration // when it was stored
}

func (r *response) first(name string) string {
	if values := r.fields[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// What an entry takes of memory beside its bytes, as measured: its structs, its
// places in maps and queues, and the map of a few fields.
const (
	entryCost    = 760
	fewFields    = 8
	moreCost     = 80 // of each field beyond the few
	valueCost    = 16
	selectorCost = 64
)

// cost is what the response with a body of so many bytes takes of the limit.
func (r *response) cost(key []byte, body int64) int64 {
	n := entryCost + int64(len(key)) + body + r.text + moreCost*max(int64(len(r.fields)-fewFields), 0)
	for _, values := range r.fields {
		n += valueCost * int64(len(values))
	}
	for i := range r.vary {
		n += selectorCost + int64(len(r.vary[i].name)+len(r.vary[i].value))
	}
	return n
}

// Why a put is not done.
var (
	errMalformed  = errors.New("what is put is no HTTP response")
	errIncomplete = errors.New("the response is not complete")
	errTooLarge   = errors.New("the response is too large")
	errFull       = errors.New("there is no room")
)

// A head is what comes before the body of a serialised response.
type head struct {
	text   int64 // bytes
	status int
	fields headers
	length int64 // of the body, as it says; -1: it does not
}

// parseHead reads a head, up to the empty line and with it (RFC 9112 §4, §5).
// Content-Length and Transfer-Encoding are taken out: the body that follows is
// never in chunks, whatever is said.
func parseHead(text string) (head, error) {
	h := head{text: int64(len(text)), fields: headers{}, length: -1}
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok || !h.parseStatus(line) {
		return head{}, fmt.Errorf("status line: %w", errMalformed)
	}
	for lines := 0; ; lines++ {
		line, rest, ok = strings.Cut(rest, "\r\n")
		if line == "" {
			break
		}
		name, value, colon := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !colon || !isToken(name) || !isValue(value) || lines == maxFields {
			return head{}, fmt.Errorf("header line: %w", errMalformed)
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		h.fields[name] = append(h.fields[name], value)
	}
	if !ok || rest != "" {
		return head{}, fmt.Errorf("end of the head: %w", errMalformed)
	}
	return h, h.parseFraming()
}

// parseStatus reads "HTTP/1.1 200 OK"; nobody needs the reason.
func (h *head) parseStatus(line string) bool {
	version, rest, ok := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(rest, " ")
	if !ok || version != "HTTP/1.1" && version != "HTTP/1.0" || len(code) != 3 || strings.Trim(code, "0123456789") != "" || !isValue(reason) {
		return false
	}
	h.status, _ = strconv.Atoi(code)
	return h.status >= 100
}

// parseFraming takes what is said of the body's length (RFC 9112 §6). Said twice, or
// in two ways, it is no response of workerd's.
func (h *head) parseFraming() error {
	lengths, codings := h.fields["Content-Length"], h.fields["Transfer-Encoding"]
	delete(h.fields, "Content-Length")
	delete(h.fields, "Transfer-Encoding")
	switch {
	case len(codings) == 1 && len(lengths) == 0 && strings.EqualFold(codings[0], "chunked"), len(codings)+len(lengths) == 0:
		return nil
	case len(codings) > 0 || len(lengths) > 1 || len(lengths[0]) > 15 || strings.Trim(lengths[0], "0123456789") != "" || lengths[0] == "":
		return fmt.Errorf("length of the body: %w", errMalformed)
	}
	h.length, _ = strconv.ParseInt(lengths[0], 10, 64)
	return nil
}

// isToken: the characters of a header's name (RFC 9110 §5.6.2).
func isToken(text string) bool {
	for i := range len(text) {
		b := text[i]
		letter := 'a' <= b|0x20 && b|0x20 <= 'z'
		if !letter && !('0' <= b && b <= '9') && strings.IndexByte("!#$%&'*+-.^_`|~", b) < 0 {
			return false
		}
	}
	return text != ""
}

// isValue: a value has no control characters but the tab (RFC 9110 §5.5).
func isValue(text string) bool {
	for i := range len(text) {
		if b := text[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}

// bodyless tells whether an answer of this status has no body (RFC 9110 §6.4.1).
func bodyless(status int) bool { return status == 204 || status == 304 }

// readers buffer bodies while their heads are read.
type readers struct{ pool sync.Pool }

func (p *readers) get(from io.Reader) *bufio.Reader {
	if r, ok := p.pool.Get().(*bufio.Reader); ok {
		r.Reset(from)
		return r
	}
	return bufio.NewReaderSize(from, firstChunk)
}

func (p *readers) put(r *bufio.Reader) {
	r.Reset(nil)
	p.pool.Put(r)
}

// readHead reads a head, which hold counts.
func readHead(from *bufio.Reader, hold *hold) (head, error) {
	text := []byte{}
	for !bytes.HasSuffix(text, []byte("\r\n\r\n")) {
		part, err := from.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return head{}, cut(err)
		}
		if len(text)+len(part) > maxHead {
			return head{}, fmt.Errorf("head: %w", errTooLarge)
		}
		if !hold.use(int64(len(part))) {
			return head{}, errFull
		}
		text = append(text, part...)
	}
	return parseHead(string(text))
}

// cut is the error of a response that ended too early, or was not read.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return errIncomplete
	}
	return fmt.Errorf("%w: %w", errRead, err)
}

// readBody reads a body, of length bytes or, if that is negative, to the end, and at
// most so many. Memory is taken as bytes come, never because of what is said.
func readBody(from io.Reader, length, most int64, hold *hold) (pieces [][]byte, total int64, err error) {
	if length > most {
		return nil, 0, errTooLarge
	}
	size := int64(firstChunk)
	if length >= 0 && length <= wholeChunk {
		size = length
	}
	for {
		left := most + 1 - total // one more shows that it is too large
		if length >= 0 {
			left = length - total
		}
		if size = min(size, left); size == 0 {
			break
		}
		if !hold.use(size) {
			return nil, 0, errFull
		}
		piece := make([]byte, size)
		n, err := io.ReadFull(from, piece)
		total += int64(n)
		pieces = append(pieces, piece[:n])
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && length < 0 && endOf(from):
			if length >= 0 {
				return nil, 0, errIncomplete
			}
			return pieces, total, nil
		case err != nil:
			return nil, 0, cut(err)
		case total > most:
			return nil, 0, errTooLarge
		}
		size = min(2*size, maxChunk)
	}
	if !endOf(from) {
		return nil, 0, errIncomplete
	}
	return pieces, total, nil
}

// endOf tells whether from ended as it should: a body that was cut gives another
// error than io.EOF, again and again.
func endOf(from io.Reader) bool {
	n, err := from.Read(make([]byte, 1))
	return n == 0 && err == io.EOF
}

// join makes one slice of the pieces, without a byte to spare.
func join(pieces [][]byte, total int64) []byte {
	if len(pieces) == 1 && len(pieces[0]) == cap(pieces[0]) {
		return pieces[0]
	}
	whole := make([]byte, 0, total)
	for _, piece := range pieces {
		whole = append(whole, piece...)
	}
	return whole
}
