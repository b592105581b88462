package rest

import "unicode/utf8"

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD, as JSON has no way to say them.
func appendString(out []byte, s string) []byte {
	out = append(out, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				out = append(append(out, s[start:i]...), "\uFFFD"...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		out = append(out, s[start:i]...)
		out = appendEscape(out, c)
		i++
		start = i
	}
	return append(append(out, s[start:]...), '"')
}

// appendEscape appends an ASCII character that may not stand for itself.
func appendEscape(out []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(out, '\\', c)
	case '\n':
		return append(out, '\\', 'n')
	case '\r':
		return append(out, '\\', 'r')
	case '\t':
		return append(out, '\\', 't')
	}
	return append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// appendText appends a value as a JSON string, piece by piece, so that a large
// one is not in memory twice. text is valid UTF-8.
func (t *stream) appendText(text []byte) {
	const piece = 64 << 10
	t.buf = append(t.buf, '"')
	for len(text) > 0 {
		n := min(piece, len(text))
		for n < len(text) && !utf8.RuneStart(text[n]) {
			n++
		}
		for _, c := range text[:n] {
			if c >= ' ' && c != '"' && c != '\\' {
				t.buf = append(t.buf, c)
			} else {
				t.buf = appendEscape(t.buf, c)
			}
		}
		text = text[n:]
		t.step()
	}
	t.buf = append(t.buf, '"')
}

// appendRaw appends JSON text as it is, piece by piece.
func (t *stream) appendRaw(text []byte) {
	for len(text) > 0 {
		n := min(writeChunk, len(text))
		t.buf = append(t.buf, text[:n]...)
		text = text[n:]
		t.step()
	}
}
