package rest

import (
	"bufio"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON as it arrives, item by item, so that a bulk request is never
// in memory as text and as values at once: encoding/json needs several times the
// size of a string to decode it. Its own memory is one piece of scratch, as long
// as the longest string, accounted for at the door. It accepts what RFC 8259
// calls JSON, in UTF-8, and nothing else.
type scanner struct {
	in      *bufio.Reader
	hold    *hold
	scratch []byte
	depth   int
}

const (
	scanBufferBytes = 32 << 10
	scratchBytes    = 4 << 10
	// largeScratchBytes is the size from which on the scratch grows by a quarter: a
	// body of the greatest size that is full of the greatest values must pass a door
	// of DefaultBodyBytes.
	largeScratchBytes = 16 << 20
	// maxDepth is how deep arrays and objects may lie in each other.
	maxDepth = 1000
)

func newScanner(body io.Reader, h *hold) *scanner {
	return &scanner{in: bufio.NewReaderSize(body, scanBufferBytes), hold: h}
}

var (
	errSyntax = invalid("The request body is not valid JSON")
	errDeep   = invalid("The request body nests arrays and objects too deeply")
)

// byte reads the next byte; there must be one.
func (s *scanner) byte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == io.EOF {
		return 0, errSyntax
	}
	return b, err
}

// peek returns the next byte that is not space, without reading it.
func (s *scanner) peek() (byte, error) {
	for {
		b, err := s.byte()
		if err != nil {
			return 0, err
		}
		if b != ' ' && b != '\n' && b != '\r' && b != '\t' {
			return b, s.in.UnreadByte()
		}
	}
}

// want reads the next byte that is not space, which must be b.
func (s *scanner) want(b byte) error {
	got, err := s.peek()
	if err != nil {
		return err
	}
	if got != b {
		return errSyntax
	}
	_, err = s.byte()
	return err
}

// end checks that nothing but space follows.
func (s *scanner) end() error {
	for {
		switch b, err := s.in.ReadByte(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case b != ' ' && b != '\n' && b != '\r' && b != '\t':
			return errSyntax
		}
	}
}

// array reads an array and calls item before each of its items, which item reads.
func (s *scanner) array(item func() error) error {
	return s.list('[', ']', item)
}

// object reads an object and calls field with each name, to read what belongs to
// it. The name is valid until field reads.
func (s *scanner) object(field func(name string) error) error {
	return s.list('{', '}', func() error {
		name, err := s.string(maxNameBytes)
		if err != nil {
			return err
		}
		known := string(name)
		if err := s.want(':'); err != nil {
			return err
		}
		return field(known)
	})
}

// maxNameBytes is the greatest length of a name in an object that is looked at.
const maxNameBytes = 64 << 10

func (s *scanner) list(opening, closing byte, item func() error) error {
	if err := s.want(opening); err != nil {
		return err
	}
	if s.depth++; s.depth > maxDepth {
		return errDeep
	}
	defer func() { s.depth-- }()
	b, err := s.peek()
	if err != nil {
		return err
	}
	if b == closing {
		_, err := s.byte()
		return err
	}
	for {
		if err := item(); err != nil {
			return err
		}
		b, err := s.peek()
		if err != nil {
			return err
		}
		if _, err := s.byte(); err != nil {
			return err
		}
		switch b {
		case closing:
			return nil
		case ',':
		default:
			return errSyntax
		}
	}
}

// put appends to the scratch, which is accounted for as it grows.
func (s *scanner) put(most int, p ...byte) error {
	if len(s.scratch)+len(p) > most {
		return errLong
	}
	if need := len(s.scratch) + len(p); need > cap(s.scratch) {
		grown := 2 * cap(s.scratch)
		if grown > largeScratchBytes {
			grown = cap(s.scratch) + cap(s.scratch)/4
		}
		grown = max(scratchBytes, min(grown, most), need)
		if err := s.hold.use(int64(grown)); err != nil {
			return err
		}
		old := s.scratch
		s.scratch = append(make([]byte, 0, grown), old...)
		s.hold.drop(int64(cap(old)))
	}
	s.scratch = append(s.scratch, p...)
	return nil
}

// errLong is returned for what is longer than the caller takes; the caller says
// what it was.
var errLong = invalid("The request body has a text that is too long")

// string reads a string of at most most bytes. It is valid until the next read.
func (s *scanner) string(most int) ([]byte, error) {
	s.scratch = s.scratch[:0]
	if err := s.want('"'); err != nil {
		return nil, err
	}
	for {
		if err := s.plain(most); err != nil {
			return nil, err
		}
		b, err := s.byte()
		if err != nil {
			return nil, err
		}
		switch b {
		case '"':
			if !utf8.Valid(s.scratch) {
				return nil, errSyntax
			}
			return s.scratch, nil
		case '\\':
			if err := s.escape(most); err != nil {
				return nil, err
			}
		default: // a control character
			return nil, errSyntax
		}
	}
}

// plain takes over the bytes of a string up to one that is special.
func (s *scanner) plain(most int) error {
	for {
		if _, err := s.in.Peek(1); err != nil {
			if err == io.EOF {
				return errSyntax
			}
			return err
		}
		ready, _ := s.in.Peek(s.in.Buffered())
		n := 0
		for n < len(ready) && ready[n] >= ' ' && ready[n] != '"' && ready[n] != '\\' {
			n++
		}
		if err := s.put(most, ready[:n]...); err != nil {
			return err
		}
		if _, err := s.in.Discard(n); err != nil {
			return err
		}
		if n < len(ready) {
			return nil
		}
	}
}

// escape takes over what follows a backslash.
func (s *scanner) escape(most int) error {
	b, err := s.byte()
	if err != nil {
		return err
	}
	switch b {
	case '"', '\\', '/':
		return s.put(most, b)
	case 'b':
		return s.put(most, '\b')
	case 'f':
		return s.put(most, '\f')
	case 'n':
		return s.put(most, '\n')
	case 'r':
		return s.put(most, '\r')
	case 't':
		return s.put(most, '\t')
	case 'u':
		r, err := s.unicode()
		if err != nil {
			return err
		}
		return s.put(most, utf8.AppendRune(nil, r)...)
	}
	return errSyntax
}

// unicode reads the digits of \uXXXX, and a second half if it is the first of a
// pair. A half on its own becomes U+FFFD, as everywhere.
func (s *scanner) unicode() (rune, error) {
	first, err := s.hex4()
	if err != nil || !utf16.IsSurrogate(first) {
		return first, err
	}
	next, err := s.in.Peek(6)
	if err != nil || next[0] != '\\' || next[1] != 'u' {
		return utf8.RuneError, nil
	}
	second, err := strconv.ParseUint(string(next[2:]), 16, 16)
	if err != nil {
		return utf8.RuneError, nil // the next escape is wrong, and found to be
	}
	r := utf16.DecodeRune(first, rune(second))
	if r == utf8.RuneError {
		return r, nil
	}
	_, err = s.in.Discard(6)
	return r, err
}

func (s *scanner) hex4() (rune, error) {
	var r rune
	for range 4 {
		b, err := s.byte()
		if err != nil {
			return 0, err
		}
		switch {
		case b >= '0' && b <= '9':
			r = r<<4 | rune(b-'0')
		case b >= 'a' && b <= 'f':
			r = r<<4 | rune(b-'a'+10)
		case b >= 'A' && b <= 'F':
			r = r<<4 | rune(b-'A'+10)
		default:
			return 0, errSyntax
		}
	}
	return r, nil
}

// text reads any value and returns it as JSON text without needless space. It is
// valid until the next read, and at most most bytes.
func (s *scanner) text(most int) ([]byte, error) {
	s.scratch = s.scratch[:0]
	if err := s.copy(most); err != nil {
		return nil, err
	}
	return s.scratch, nil
}

// skip reads any value and forgets it.
func (s *scanner) skip() error { return s.copy(0) }

// copy takes over the text of any value; nothing is kept if most is 0.
func (s *scanner) copy(most int) error {
	b, err := s.peek()
	if err != nil {
		return err
	}
	switch {
	case b == '{':
		return s.copyList('{', '}', most, func() error {
			if err := s.copyString(most); err != nil {
				return err
			}
			if err := s.want(':'); err != nil {
				return err
			}
			if err := s.keep(most, ':'); err != nil {
				return err
			}
			return s.copy(most)
		})
	case b == '[':
		return s.copyList('[', ']', most, func() error { return s.copy(most) })
	case b == '"':
		return s.copyString(most)
	case b == 't':
		return s.literal("true", most)
	case b == 'f':
		return s.literal("false", most)
	case b == 'n':
		return s.literal("null", most)
	case b == '-' || b >= '0' && b <= '9':
		return s.number(most)
	}
	return errSyntax
}

func (s *scanner) keep(most int, p ...byte) error {
	if most == 0 {
		return nil
	}
	return s.put(most, p...)
}

func (s *scanner) copyList(opening, closing byte, most int, item func() error) error {
	first := true
	if err := s.keep(most, opening); err != nil {
		return err
	}
	err := s.list(opening, closing, func() error {
		if !first {
			if err := s.keep(most, ','); err != nil {
				return err
			}
		}
		first = false
		return item()
	})
	if err != nil {
		return err
	}
	return s.keep(most, closing)
}

func (s *scanner) literal(word string, most int) error {
	for i := range len(word) {
		if b, err := s.byte(); err != nil || b != word[i] {
			return cmpErr(err, errSyntax)
		}
	}
	return s.keep(most, []byte(word)...)
}

// cmpErr is err, or otherwise if there is none.
func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// copyString takes over a string with its escapes as they are. UTF-8 is checked
// as it goes by, for a string that is skipped may be long.
func (s *scanner) copyString(most int) error {
	if err := s.want('"'); err != nil {
		return err
	}
	if err := s.keep(most, '"'); err != nil {
		return err
	}
	for {
		r, size, err := s.in.ReadRune()
		switch {
		case err == io.EOF, r == utf8.RuneError && size == 1, err == nil && r < ' ':
			return errSyntax
		case err != nil:
			return err
		}
		if err := s.keep(most, utf8.AppendRune(nil, r)...); err != nil {
			return err
		}
		switch r {
		case '"':
			return nil
		case '\\':
			if err := s.copyEscape(most); err != nil {
				return err
			}
		}
	}
}

func (s *scanner) copyEscape(most int) error {
	b, err := s.byte()
	if err != nil {
		return err
	}
	if err := s.keep(most, b); err != nil {
		return err
	}
	switch b {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		digits, err := s.in.Peek(4)
		if err != nil {
			return cmpErr(bodyEnd(err), errSyntax)
		}
		if err := s.keep(most, digits...); err != nil {
			return err
		}
		_, err = s.hex4()
		return err
	}
	return errSyntax
}

// bodyEnd is err unless it is the end of the body.
func bodyEnd(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// number takes over a number: -?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?
func (s *scanner) number(most int) error {
	if _, err := s.one(most, "-"); err != nil {
		return err
	}
	zero, err := s.one(most, "0")
	if err != nil {
		return err
	}
	if !zero {
		if err := s.digits(most); err != nil {
			return err
		}
	}
	if dot, err := s.one(most, "."); err != nil {
		return err
	} else if dot {
		if err := s.digits(most); err != nil {
			return err
		}
	}
	exp, err := s.one(most, "eE")
	if err != nil || !exp {
		return err
	}
	if _, err := s.one(most, "+-"); err != nil {
		return err
	}
	return s.digits(most)
}

// digits takes over one digit or more.
func (s *scanner) digits(most int) error {
	for n := 0; ; n++ {
		more, err := s.one(most, "0123456789")
		if err != nil {
			return err
		}
		if !more && n == 0 {
			return errSyntax
		}
		if !more {
			return nil
		}
	}
}

// one takes over the next byte if it is one of set.
func (s *scanner) one(most int, set string) (bool, error) {
	next, err := s.in.Peek(1)
	if err != nil {
		return false, bodyEnd(err)
	}
	for i := range len(set) {
		if next[0] == set[i] {
			if err := s.keep(most, set[i]); err != nil {
				return false, err
			}
			_, err := s.in.Discard(1)
			return err == nil, err
		}
	}
	return false, nil
}
