package rest

import (
	"unicode/utf8"

	"github.com/nearkey/nearkey/internal/jsontext"
)

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
				t.buf = jsontext.AppendEscape(t.buf, c)
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
