package binding

import (
	"bytes"
	"strconv"
)

// Bounds on what is read beside values.
const (
	headBytes     = 256 << 10 // of a head: metadata far beyond the limit is still told so
	firstBytes    = 4 << 10   // of the buffer that a head is read into, at first
	chunkLine     = 1 << 10   // of the line before a chunk
	trailerBytes  = 8 << 10   // of what follows the last chunk
	contentDigits = 15        // of a Content-Length
)

// head is a request's head. Its slices are parts of the connection's buffer.
type head struct {
	method, path, query      []byte
	token, binding, metadata []byte
	length                   int64 // of the body; -1: chunked
	hasMetadata              bool
	expects                  bool // 100 Continue, before it sends the body
	last                     bool // the connection ends with the answer
}

// problem is why a head is not understood; the connection cannot go on.
type problem struct {
	status int
	text   string
}

var (
	problemHead    = &problem{400, "Bad Request"}
	problemLong    = &problem{431, "Request Header Fields Too Large"}
	problemCoding  = &problem{501, "Unsupported transfer encoding"}
	problemVersion = &problem{505, "HTTP Version Not Supported"}
)

var headEnd = []byte("\r\n\r\n")

// readHead reads the head at the beginning of buf. size is its length, 0 if it is
// not whole yet. from is how much of buf was looked at before.
func readHead(buf []byte, from int, h *head) (size int, p *problem) {
	from = max(from-len(headEnd), 0)
	end := bytes.Index(buf[from:], headEnd)
	if end < 0 {
		if len(buf) >= headBytes {
			return 0, problemLong
		}
		return 0, nil
	}
	size = from + end + len(headEnd)
	if size > headBytes {
		return 0, problemLong
	}
	*h = head{}
	line, rest := cutLine(buf[:size])
	if p := h.readFirst(line); p != nil {
		return size, p
	}
	return size, h.readFields(rest)
}

// cutLine returns the text up to the first CRLF, and what follows it.
func cutLine(text []byte) (line, rest []byte) {
	i := bytes.Index(text, headEnd[:2])
	return text[:i], text[i+2:]
}

// readFirst reads the request line.
func (h *head) readFirst(line []byte) *problem {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok || !ok2 || !isToken(method) || !isTarget(target) {
		return problemHead
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.last = true
	default:
		return problemVersion
	}
	h.method = method
	h.path, h.query, _ = bytes.Cut(target, []byte{'?'})
	h.path = h.path[1:]
	return nil
}

func isTarget(target []byte) bool {
	if len(target) == 0 || target[0] != '/' {
		return false
	}
	for _, b := range target {
		if b <= ' ' || b == 0x7f {
			return false
		}
	}
	return true
}

// isToken: the characters of a method or of a header's name.
func isToken(text []byte) bool {
	for _, b := range text {
		letter := 'a' <= b|0x20 && b|0x20 <= 'z'
		if !letter && !('0' <= b && b <= '9') && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), b) < 0 {
			return false
		}
	}
	return len(text) > 0
}

// unfit reports whether a value has what none may have. Three looks of the machine's
// own are faster than one for any of a set.
func unfit(value []byte) bool {
	return bytes.IndexByte(value, '\n') >= 0 || bytes.IndexByte(value, '\r') >= 0 || bytes.IndexByte(value, 0) >= 0
}

// trimmed is a value without the spaces and tabs around it.
func trimmed(value []byte) []byte {
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	return value
}

// readFields reads the headers, each a line that ends with CRLF, and the empty
// line behind them.
func (h *head) readFields(rest []byte) *problem {
	seen := uint(0)
	for {
		var line []byte
		if line, rest = cutLine(rest); len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !isToken(name) || unfit(value) {
			return problemHead
		}
		bit, p := h.field(name, trimmed(value))
		if p != nil {
			return p
		}
		if seen&bit != 0 { // twice, and it matters
			return problemHead
		}
		seen |= bit
	}
	if seen&bitLength != 0 && seen&bitCoding != 0 {
		return problemHead
	}
	return nil
}

// The headers that may come once.
const (
	bitLength = 1 << iota
	bitCoding
	bitBinding
	bitToken
	bitMetadata
)

// field takes one header. Others than these are of no interest.
func (h *head) field(name, value []byte) (bit uint, p *problem) {
	switch {
	case is(name, "content-length"):
		if len(value) == 0 || len(value) > contentDigits || len(bytes.Trim(value, "0123456789")) > 0 {
			return 0, problemHead
		}
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil {
			return 0, problemHead
		}
		h.length = n
		return bitLength, nil
	case is(name, "transfer-encoding"):
		if !is(value, "chunked") {
			return 0, problemCoding
		}
		if h.last { // HTTP/1.0 has no chunks
			return 0, problemHead
		}
		h.length = -1
		return bitCoding, nil
	case is(name, "x-nk-ns"):
		h.binding = value
		return bitBinding, nil
	case is(name, "x-nk-token"):
		h.token = value
		return bitToken, nil
	case is(name, "cf-kv-metadata"):
		h.metadata, h.hasMetadata = value, true
		return bitMetadata, nil
	case is(name, "connection"):
		h.last = h.last || is(value, "close")
	case is(name, "expect"):
		h.expects = h.expects || is(value, "100-continue")
	}
	return 0, nil
}

// is compares text with a lower-case word, whatever the case of its letters.
func is(text []byte, word string) bool {
	if len(text) != len(word) {
		return false
	}
	for i, b := range text {
		if 'A' <= b && b <= 'Z' {
			b |= 0x20
		}
		if b != word[i] {
			return false
		}
	}
	return true
}
