package assets

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// normalize returns a path as browsers and the WHATWG's URL standard have it:
// without dot segments, and with the bytes encoded that may not be in a path.
func normalize(path string) string {
	if path == "" {
		return "/"
	}
	if path[0] != '/' && path[0] != '\\' {
		path = "/" + path
	}
	plain := true
	for i := 0; i < len(path) && plain; i++ {
		c := path[i]
		plain = c != '\\' && c != '.' && c != '%' && !unsafe(c)
	}
	if plain {
		return path
	}
	segments := strings.FieldsFunc("x"+strings.ReplaceAll(strings.ReplaceAll(path[1:], `\`, "/"), "/", "/x"), func(r rune) bool { return r == '/' })
	kept := make([]string, 0, len(segments)) // each with an x in front, so that empty ones count
	for i, segment := range segments {
		last := i == len(segments)-1
		switch dots(segment[1:]) {
		case 1:
			if last {
				kept = append(kept, "x")
			}
		case 2:
			if len(kept) > 0 {
				kept = kept[:len(kept)-1]
			}
			if last {
				kept = append(kept, "x")
			}
		default:
			kept = append(kept, segment)
		}
	}
	var out strings.Builder
	for _, segment := range kept {
		out.WriteByte('/')
		escape(&out, segment[1:], unsafe)
	}
	if out.Len() == 0 {
		return "/"
	}
	return out.String()
}

// dots is 1 for a segment that is a dot, 2 for one of two dots, be they encoded,
// and else 0.
func dots(segment string) int {
	if len(segment) > len("%2e%2e") || !strings.HasPrefix(segment, ".") && !strings.HasPrefix(segment, "%") {
		return 0
	}
	switch strings.ReplaceAll(strings.ToLower(segment), "%2e", ".") {
	case ".":
		return 1
	case "..":
		return 2
	}
	return 0
}

// unsafe are the bytes that are encoded in a path.
func unsafe(c byte) bool {
	return c <= ' ' || c >= 0x7f || strings.IndexByte("\"#<>?^`{}", c) >= 0
}

// component are the bytes that encodeURIComponent encodes.
func component(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return false
	}
	return strings.IndexByte("-_.!~*'()", c) < 0
}

func escape(out *strings.Builder, text string, is func(byte) bool) {
	const digits = "0123456789ABCDEF"
	for i := range len(text) {
		c := text[i]
		if !is(c) {
			out.WriteByte(c)
			continue
		}
		out.WriteByte('%')
		out.WriteByte(digits[c>>4])
		out.WriteByte(digits[c&15])
	}
}

// decode decodes each segment of a path that can be decoded, and makes one slash
// of several.
func decode(path string) string {
	if strings.IndexByte(path, '%') < 0 && !strings.Contains(path, "//") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if decoded, err := url.PathUnescape(segment); err == nil && utf8.ValidString(decoded) {
			segments[i] = decoded
		}
	}
	return oneSlash(strings.Join(segments, "/"))
}

// oneSlash makes one slash of several. One that begins with two would be a host.
func oneSlash(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// encode encodes each segment of a path.
func encode(path string) string {
	var out strings.Builder
	escape(&out, path, func(c byte) bool { return c != '/' && component(c) })
	return out.String()
}
