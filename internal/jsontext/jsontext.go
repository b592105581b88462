// Package jsontext writes JSON where encoding/json would make a copy of each text.
// It keeps nothing and has nothing to lose.
package jsontext

import "unicode/utf8"

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD, as JSON has no way to say them.
func AppendString(out []byte, s string) []byte {
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
		out = AppendEscape(out, c)
		i++
		start = i
	}
	return append(append(out, s[start:]...), '"')
}

// AppendEscape appends an ASCII character that may not stand for itself.
func AppendEscape(out []byte, c byte) []byte {
	const digits = "0123456789abcdef"
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
	return append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
}
