// Package listing makes the cursors by which the users of both APIs go on with a
// listing. It keeps nothing and loses nothing: a cursor says all by itself.
package listing

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/nearkey/nearkey/kv"
)

// ErrCursor is the error for what is no cursor of ours.
var ErrCursor = errors.New("not a cursor of this service")

// A cursor is, in base64url: its version (1 byte), the key to go on after, and a
// CRC-32 of both (4 bytes), so that one that was cut or mistyped is found out
// rather than taken for another place.
const cursorVersion = 1

// MaxCursorBytes is the greatest length of a cursor's text.
const MaxCursorBytes = (1+kv.MaxKeyBytes+crc32.Size)*4/3 + 4

// Cursor returns the cursor of the page after a key.
func Cursor(after string) string {
	raw := append(append(make([]byte, 0, 1+len(after)+crc32.Size), cursorVersion), after...)
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	return base64.RawURLEncoding.EncodeToString(raw)
}

// After returns the key that a cursor goes on after, or ErrCursor.
func After(cursor string) (key string, err error) {
	if len(cursor) > MaxCursorBytes {
		return "", ErrCursor
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= 1+crc32.Size || raw[0] != cursorVersion {
		return "", ErrCursor
	}
	body, sum := raw[:len(raw)-crc32.Size], raw[len(raw)-crc32.Size:]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(sum) {
		return "", ErrCursor
	}
	return string(body[1:]), nil
}
