package listing

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

func TestCursor(t *testing.T) {
	for _, key := range []string{"a", strings.Repeat("k", kv.MaxKeyBytes), "\x00\xff", "é"} {
		if got, err := After(Cursor(key)); got != key || err != nil {
			t.Errorf("cursor of %q became %q, %v", key, got, err)
		}
		if n := len(Cursor(key)); n > MaxCursorBytes {
			t.Errorf("cursor of %d bytes, at most %d are read", n, MaxCursorBytes)
		}
	}
	good := Cursor("k0001")
	// The last character of this cursor has bits to spare; they must be zero.
	loose := good[:len(good)-1] + string(good[len(good)-1]+1)
	other := []byte{2}
	other = append(other, "key and sum"...)
	for _, bad := range []string{"", "x", "null", loose, good[1:], good[:len(good)-1], good + "A", "B" + good[1:], strings.ToUpper(good),
		base64.RawURLEncoding.EncodeToString(other), Cursor(""), strings.Repeat("A", MaxCursorBytes+1), "+/=", "AQ"} {
		if key, err := After(bad); err != ErrCursor {
			t.Errorf("the cursor %q goes on after %q, %v", bad, key, err)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add(Cursor("a"))
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, cursor string) {
		after, err := After(cursor)
		if err != nil {
			return
		}
		if Cursor(after) != cursor {
			t.Errorf("two cursors for %q: %q and %q", after, cursor, Cursor(after))
		}
	})
}
