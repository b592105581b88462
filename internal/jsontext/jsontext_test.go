package jsontext

import (
	"encoding/json"
	"strings"
	"testing"
)

func FuzzAppendString(f *testing.F) {
	f.Add("")
	f.Add("plain é 😀 <&>\u2028")
	f.Add("\"\\\n\r\t\x00\x1f\x7f")
	f.Add("\xff\xc3(\xe2\x82 cut \xf0\x9f\x98")
	f.Fuzz(func(t *testing.T, s string) {
		text := AppendString([]byte("x"), s)
		var got string
		if err := json.Unmarshal(text[1:], &got); err != nil {
			t.Fatalf("%q became %s: %v", s, text, err)
		}
		if want := strings.ToValidUTF8(s, "\uFFFD"); len(got) < len(want) || strings.ToValidUTF8(got, "") != got || strings.ReplaceAll(got, "\uFFFD", "") != strings.ReplaceAll(want, "\uFFFD", "") {
			t.Errorf("%q became %q", s, got)
		}
	})
}
