package hot

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

const (
	// headBytes is the greatest head that is understood; it is what a connection
	// holds while it is idle.
	headBytes = 4096
	// rememberedBytes is the greatest block of header fields that a connection
	// remembers, so as not to read the same again.
	rememberedBytes = 1024
	// maxNameBytes is the greatest length of a header's name that is understood.
	maxNameBytes = 48
	// maxTokenBytes is the greatest length of a token that is understood.
	maxTokenBytes = 1024
)

// The one path that is understood.
const (
	pathAccount   = "/client/v4/accounts/"
	pathNamespace = "/storage/kv/namespaces/"
	pathValue     = "/values/"
	idChars       = 32

	accountAt   = len(pathAccount)
	spaceSlash  = accountAt + idChars
	namespaceAt = spaceSlash + len(pathNamespace)
	valueSlash  = namespaceAt + idChars
	keyAt       = valueSlash + len(pathValue)
)

const (
	lineBegin = "GET "
	lineEnd   = " HTTP/1.1\r\n"
)

// verdict is what the strict reader says of the bytes of a connection.
type verdict uint8

const (
	partial    verdict = iota // a head that may yet be understood is not complete
	foreign                   // not understood
	understood                // a request, from its first to its last byte
)

// span is a part of the block of header fields.
type span struct{ from, to int }

func (s span) of(block []byte) []byte { return block[s.from:s.to] }

// fields are what the answer depends on in the header fields of a request.
type fields struct {
	authorization, requestID     span
	authorized, named, addressed bool // the header was there; so was Host
}

// head reads the heads of one connection's requests. Clients repeat themselves:
// what is equal to what was understood before is understood.
type head struct {
	place  [keyAt]byte // the path of the last request up to its key
	placed bool
	space  kv.NamespaceID
	key    []byte // of keyBuf

	block  []byte // the header fields of the last request, with the empty line
	fields fields
	right  *entry // to place, of who sent block; nil: not known

	keyBuf [kv.MaxKeyBytes]byte
}

// read reads the request at the beginning of buf. size is that of its head.
//
// A line is judged as soon as it is complete: a request that is not understood
// must not wait for an empty line that another reader does not need.
func (h *head) read(buf []byte) (size int, v verdict) {
	end := bytes.IndexByte(buf, '\n')
	if end < 0 {
		return 0, partial
	}
	line, rest := buf[:end+1], buf[end+1:]
	if !h.line(line) {
		return 0, foreign
	}
	if n := len(h.block); n > 0 && len(rest) >= n && equal(rest[:n], h.block) {
		return len(line) + n, understood
	}
	n, f, v := readFields(rest)
	if v != understood {
		return 0, v
	}
	h.fields, h.right = f, nil
	h.block = append(h.block[:0], rest[:n]...)
	return len(line) + n, understood
}

// forgetLong gives up a block that is too long to be kept while idle.
func (h *head) forgetLong() {
	if cap(h.block) > rememberedBytes {
		h.block, h.right = nil, nil
	}
}

func (h *head) account() []byte { return h.place[accountAt:spaceSlash] }

// line reads the request line.
func (h *head) line(line []byte) bool {
	path, ok := bytes.CutSuffix(line, []byte(lineEnd))
	if !ok {
		return false
	}
	if path, ok = bytes.CutPrefix(path, []byte(lineBegin)); !ok || len(path) <= keyAt {
		return false
	}
	if !h.placed || string(path[:keyAt]) != string(h.place[:]) {
		if !h.readPlace(path[:keyAt]) {
			return false
		}
	}
	return h.readKey(path[keyAt:])
}

// readPlace reads the path up to the key.
func (h *head) readPlace(path []byte) bool {
	if string(path[:accountAt]) != pathAccount || string(path[spaceSlash:namespaceAt]) != pathNamespace ||
		string(path[valueSlash:]) != pathValue {
		return false
	}
	if !isLowerHex(path[accountAt:spaceSlash]) || !isLowerHex(path[namespaceAt:valueSlash]) {
		return false
	}
	if _, err := hex.Decode(h.space[:], path[namespaceAt:valueSlash]); err != nil {
		return false
	}
	copy(h.place[:], path)
	h.placed, h.right = true, nil
	return true
}

func isLowerHex(s []byte) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// readKey decodes a key, once. Only characters that every reader of a path takes
// as they are may stand in it.
func (h *head) readKey(sent []byte) bool {
	n, ascii := 0, true
	for i := 0; i < len(sent); i++ {
		c := sent[i]
		if c == '%' {
			if i+2 >= len(sent) {
				return false
			}
			high, low := unhex(sent[i+1]), unhex(sent[i+2])
			if high > 15 || low > 15 {
				return false
			}
			c = high<<4 | low
			ascii = ascii && c < utf8.RuneSelf
			i += 2
		} else if pathChars[c>>6]>>(c&63)&1 == 0 {
			return false
		}
		if n == len(h.keyBuf) {
			return false
		}
		h.keyBuf[n] = c
		n++
	}
	h.key = h.keyBuf[:n]
	return (ascii || utf8.Valid(h.key)) && string(h.key) != "." && string(h.key) != ".."
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// set is a set of characters.
type set [4]uint64

func setOf(chars string) (s set) {
	for _, c := range []byte(chars) {
		s[c>>6] |= 1 << (c & 63)
	}
	return s
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

var (
	pathChars = setOf(alphanumeric + "-._~!$&'()*+,;=:@/")
	hostChars = setOf(alphanumeric + "-._:[]")
)

// readFields reads header fields up to the empty line.
func readFields(block []byte) (size int, f fields, v verdict) {
	for {
		end := bytes.IndexByte(block[size:], '\n')
		if end < 0 {
			return 0, f, partial
		}
		line := block[size : size+end]
		if end == 0 || line[end-1] != '\r' {
			return 0, f, foreign
		}
		line = line[:end-1]
		if len(line) == 0 {
			if !f.addressed {
				return 0, f, foreign
			}
			return size + end + 1, f, understood
		}
		if !f.read(line, size) {
			return 0, f, foreign
		}
		size += end + 1
	}
}

// read reads one header field, which begins at the place at of the block.
func (f *fields) read(line []byte, at int) bool {
	colon := bytes.IndexByte(line, ':')
	if colon < 1 || colon > maxNameBytes {
		return false
	}
	var lower [maxNameBytes]byte
	for i, c := range line[:colon] {
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		default:
			return false
		}
		lower[i] = c
	}
	from, to := colon+1, len(line)
	for from < to && line[from] == ' ' {
		from++
	}
	for from < to && line[to-1] == ' ' {
		to--
	}
	value := line[from:to]
	for _, c := range value {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return f.take(lower[:colon], value, span{at + from, at + to})
}

// take judges a header field by its name. Those that the answer does not depend
// on are listed: one that is not known might change what another reader does.
func (f *fields) take(name, value []byte, at span) bool {
	switch string(name) {
	case "host":
		if f.addressed || len(value) == 0 {
			return false
		}
		for _, c := range value {
			if hostChars[c>>6]>>(c&63)&1 == 0 {
				return false
			}
		}
		f.addressed = true
		return true
	case "authorization":
		if f.authorized {
			return false
		}
		f.authorized, f.authorization = true, at
		return true
	case "x-request-id":
		if f.named {
			return false
		}
		f.named, f.requestID = true, at
		return true
	case "connection":
		return bytes.EqualFold(value, []byte("keep-alive"))
	case "accept", "accept-charset", "accept-encoding", "accept-language", "content-type", "cookie", "dnt",
		"forwarded", "origin", "pragma", "priority", "referer", "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform",
		"sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site", "sec-fetch-user", "traceparent", "tracestate", "user-agent",
		"via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip":
		return true
	}
	return bytes.HasPrefix(name, []byte("x-stainless-"))
}

// requestIDOf returns the request id that the client chose, if it may be used as
// it is: 8 to 64 letters, digits, "-" and "_".
func (f *fields) requestIDOf(block []byte) ([]byte, bool) {
	id := f.requestID.of(block)
	if len(id) < minRequestIDBytes || len(id) > maxRequestIDBytes {
		return nil, false
	}
	for _, c := range id {
		if idSet[c>>6]>>(c&63)&1 == 0 {
			return nil, false
		}
	}
	return id, true
}

const (
	minRequestIDBytes = 8
	maxRequestIDBytes = 64
)

var idSet = setOf(alphanumeric + "-_")

// token returns the token of an Authorization header, if it has the one form that
// is understood.
func (f *fields) token(block []byte) ([]byte, bool) {
	scheme, token, _ := bytes.Cut(f.authorization.of(block), []byte(" "))
	if !bytes.EqualFold(scheme, []byte("Bearer")) || len(token) == 0 || len(token) > maxTokenBytes {
		return nil, false
	}
	return token, bytes.IndexByte(token, ' ') < 0
}

// equal compares bytes of equal length, which may hold a token, in a time that
// does not depend on where they differ.
func equal(a, b []byte) bool {
	const word = 8
	var differ uint64
	for len(a) >= word && len(b) >= word {
		differ |= binary.LittleEndian.Uint64(a) ^ binary.LittleEndian.Uint64(b)
		a, b = a[word:], b[word:]
	}
	return differ == 0 && subtle.ConstantTimeCompare(a, b) == 1
}
