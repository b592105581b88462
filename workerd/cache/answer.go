package cache

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// maxRanges is how many parts of a response are sent at most; asked for more, it is
// sent whole (RFC 9110 §14.2).
const maxRanges = 16

// span is a part of a body: from start up to, not with, end.
type span struct{ start, end int64 }

func (s span) content(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", s.start, s.end-1, size)
}

// plan decides how a request is answered with a stored response: 304, 206, 416 or
// as it is. Conditions and ranges count only for what would be a plain 200
// (RFC 9110 §13.2.1, §14.2); those that ask for the state of the origin are none of
// a cache's (RFC 9111 §4.3.2).
func (r *response) plan(request *http.Request) (status int, parts []span) {
	if r.status != http.StatusOK {
		return r.status, nil
	}
	if r.unchanged(request.Header) {
		return http.StatusNotModified, nil
	}
	wanted := request.Header["Range"] // some clients ask so of everything, and of nothing there is no part
	if request.Method != http.MethodGet || len(wanted) != 1 || len(r.body) == 0 || !r.inRange(request.Header) {
		return http.StatusOK, nil
	}
	parts, ok := parseRange(wanted[0], int64(len(r.body)))
	switch {
	case !ok:
		return http.StatusOK, nil
	case len(parts) == 0:
		return http.StatusRequestedRangeNotSatisfiable, nil
	}
	return http.StatusPartialContent, parts
}

// unchanged tells whether what the client has is what is stored (RFC 9110 §13.1.2,
// §13.1.3, in the order of §13.2.2).
func (r *response) unchanged(request headers) bool {
	if lines := request["If-None-Match"]; len(lines) > 0 {
		tag := r.first("Etag")
		for _, line := range lines {
			if strings.TrimSpace(line) == "*" || tag != "" && listsTag(line, tag) {
				return true
			}
		}
		return false
	}
	lines := request["If-Modified-Since"]
	if len(lines) != 1 {
		return false
	}
	since, err := http.ParseTime(lines[0])
	if err != nil {
		return false
	}
	return !r.modified().After(since)
}

// modified is when the response last changed, as far as it tells (RFC 9111 §4.3.2).
func (r *response) modified() time.Time {
	if t, err := http.ParseTime(r.first("Last-Modified")); err == nil {
		return t
	}
	return r.made.Truncate(time.Second)
}

// listsTag tells whether a list of entity tags has this one, by weak comparison
// (RFC 9110 §8.8.3.2).
func listsTag(list, tag string) bool {
	tag = strings.TrimPrefix(tag, "W/")
	for {
		list = strings.TrimLeft(list, " \t,")
		list = strings.TrimPrefix(list, "W/")
		if !strings.HasPrefix(list, `"`) {
			return false
		}
		end := strings.IndexByte(list[1:], '"')
		if end < 0 {
			return false
		}
		if list[:end+2] == tag {
			return true
		}
		list = list[end+2:]
	}
}

// inRange tells whether the range is asked of this very response (RFC 9110 §13.1.5):
// by strong comparison, of tags or of dates that are strong (§8.8.2.2).
func (r *response) inRange(request headers) bool {
	lines := request["If-Range"]
	if len(lines) == 0 {
		return true
	}
	if strings.HasPrefix(lines[0], `"`) {
		return len(lines) == 1 && lines[0] == r.first("Etag")
	}
	asked, err := http.ParseTime(lines[0])
	modified, err2 := http.ParseTime(r.first("Last-Modified"))
	return len(lines) == 1 && err == nil && err2 == nil && asked.Equal(modified) && r.made.Sub(modified) >= time.Second
}

// parseRange reads what is asked of a body of so many bytes (RFC 9110 §14.1.2). false:
// it is to be ignored. No spans: none of it is there.
func parseRange(text string, size int64) (parts []span, ok bool) {
	unit, set, found := strings.Cut(text, "=")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, false
	}
	count, total := 0, int64(0)
	for spec := range strings.SplitSeq(set, ",") {
		if spec = strings.Trim(spec, " \t"); spec == "" {
			continue
		}
		part, ok := parseSpan(spec, size)
		if count++; !ok || count > maxRanges {
			return nil, false
		}
		if part.start < part.end {
			parts = append(parts, part)
			total += part.end - part.start
		}
	}
	if count == 0 || total > size { // they overlap: less is more
		return nil, false
	}
	return parts, true
}

// parseSpan reads "0-499", "500-" or "-500"; false: it is none. What is not there
// is empty.
func parseSpan(spec string, size int64) (span, bool) {
	from, to, found := strings.Cut(spec, "-")
	first, hasFirst := parsePosition(from)
	last, hasLast := parsePosition(to)
	switch {
	case !found || from != "" && !hasFirst || to != "" && !hasLast || !hasFirst && !hasLast:
		return span{}, false
	case !hasFirst:
		return span{max(size-last, 0), size}, true
	case !hasLast:
		return span{min(first, size), size}, true
	case last < first:
		return span{}, false
	}
	return span{min(first, size), min(last, size-1) + 1}, true
}

// maxPosition is what a greater one is taken for; no body is so large.
const maxPosition = 1 << 60

func parsePosition(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > maxPosition {
		n = maxPosition
	}
	return n, true
}

// answer makes the head and the body of an answer in the headers of w.
func (r *response) answer(out http.Header, status int, parts []span, now time.Time) (body [][]byte) {
	for name, values := range r.fields {
		out[name] = values
	}
	age, _ := r.currentAge(now)
	out["Age"] = []string{strconv.FormatInt(int64(age/time.Second), 10)}
	out["Cf-Cache-Status"] = hit
	size := int64(len(r.body))
	switch {
	case status == http.StatusNotModified: // RFC 9110 §15.4.5
		for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Language"} {
			delete(out, name)
		}
		noType(out)
		return nil
	case status == http.StatusRequestedRangeNotSatisfiable: // §15.5.17
		for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Language", "Etag", "Last-Modified"} {
			delete(out, name)
		}
		noType(out)
		out.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		out.Set("Content-Length", "0")
		return nil
	case len(parts) == 1: // §15.3.7.1
		out.Set("Content-Range", parts[0].content(size))
		body = [][]byte{r.body[parts[0].start:parts[0].end]}
	case len(parts) > 1:
		body = r.multipart(out, parts)
	case !bodyless(status):
		body = [][]byte{r.body}
	default:
		noType(out)
		return nil
	}
	noType(out)
	total := 0
	for _, piece := range body {
		total += len(piece)
	}
	out["Content-Length"] = []string{strconv.Itoa(total)}
	return body
}

// noType keeps net/http from guessing a type.
func noType(out http.Header) {
	if _, has := out["Content-Type"]; !has {
		out["Content-Type"] = nil
	}
}

// multipart makes the body of several parts (RFC 9110 §14.6, §15.3.7.2).
func (r *response) multipart(out http.Header, parts []span) (body [][]byte) {
	heads := &bytes.Buffer{}
	w := multipart.NewWriter(heads)
	for _, part := range parts {
		line := textproto.MIMEHeader{"Content-Range": {part.content(int64(len(r.body)))}}
		if kind := r.fields["Content-Type"]; len(kind) > 0 {
			line["Content-Type"] = kind
		}
		_, _ = w.CreatePart(line) // a buffer takes all
		body = append(body, bytes.Clone(heads.Bytes()), r.body[part.start:part.end])
		heads.Reset()
	}
	_ = w.Close()
	out["Content-Type"] = []string{"multipart/byteranges; boundary=" + w.Boundary()}
	return append(body, heads.Bytes())
}
