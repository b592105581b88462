package hot

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// maxAnswerHead is more than the head of an answer from near has, what
// Config.Told appends included.
const maxAnswerHead = 1024

// The head of an answer, in the order in which net/http writes it.
const (
	answerBegin   = "HTTP/1.1 200 OK\r\n"
	answerLength  = "Content-Length: "
	answerType    = "\r\nContent-Type: application/octet-stream\r\n"
	answerExpires = "Expiration: "
	answerSniff   = "X-Content-Type-Options: nosniff\r\nX-Request-Id: "
	answerDate    = "\r\nDate: "
	answerEnd     = "\r\n\r\n"
)

// appendHead appends the head of the answer to the request that was read last.
func (s *Server) appendHead(out []byte, h *head, rec *kv.Record, age time.Duration, now time.Time) []byte {
	out = append(out, answerBegin...)
	if s.told != nil {
		out = s.told(out, age)
	}
	out = append(out, answerLength...)
	out = strconv.AppendInt(out, int64(len(rec.Value)), 10)
	out = append(out, answerType...)
	if rec.Expiration != 0 {
		out = append(out, answerExpires...)
		out = strconv.AppendInt(out, rec.Expiration, 10)
		out = append(out, "\r\n"...)
	}
	out = append(out, answerSniff...)
	if id, ok := h.fields.requestIDOf(h.block); ok {
		out = append(out, id...)
	} else {
		out = appendRequestID(out)
	}
	out = append(out, answerDate...)
	out = append(out, s.date.at(now)[:]...)
	return append(out, answerEnd...)
}

// appendRequestID appends an id that no other request has: 16 hexadecimal digits.
func appendRequestID(out []byte) []byte {
	const digits = "0123456789abcdef"
	id := rand.Uint64()
	for range 16 {
		out = append(out, digits[id>>60])
		id <<= 4
	}
	return out
}

// date is the time of a Date header, which changes once a second.
type date struct{ last atomic.Pointer[dated] }

type dated struct {
	second int64
	text   [len(http.TimeFormat)]byte
}

func (d *date) at(now time.Time) *[len(http.TimeFormat)]byte {
	last := d.last.Load()
	if second := now.Unix(); last == nil || last.second != second {
		last = &dated{second: second}
		now.UTC().AppendFormat(last.text[:0], http.TimeFormat)
		d.last.Store(last)
	}
	return &last.text
}

// CacheHeaders appends Age, in whole seconds, and CF-Cache-Status as a handler
// before a tier sends them with a hit. It is a Config.Told.
func CacheHeaders(dst []byte, age time.Duration) []byte {
	dst = append(dst, "Age: "...)
	dst = strconv.AppendInt(dst, int64(age/time.Second), 10)
	return append(dst, "\r\n"+statusHeader+": HIT\r\n"...)
}

// statusHeader is how a handler before a tier tells how the tier answered.
const statusHeader = "Cf-Cache-Status"
