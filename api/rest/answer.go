package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/nearkey/nearkey/internal/jsontext"
)

// How an answer leaves: in chunks, each within writeStall. A client that takes
// longer holds memory, and is cut off.
const (
	writeChunk = 256 << 10
	writeStall = 60 * time.Second
	// writeSoon is how long after its beginning a request's small answer is still
	// within the deadline that the HTTP server set.
	writeSoon = 5 * time.Second
)

// Header values that are the same in every answer.
var (
	typeJSON  = []string{"application/json"}
	typeBytes = []string{"application/octet-stream"}
	noSniff   = []string{"nosniff"}
	closing   = []string{"close"}
)

// nothing is the envelope of a success that has no result.
const nothing = `{"success":true,"errors":[],"messages":[],"result":null}`

// The parts of an envelope around a result that is written by hand.
const (
	openResult  = `{"success":true,"errors":[],"messages":[],"result":`
	closeResult = `}`
)

// envelope is the frame of every answer in JSON.
type envelope struct {
	Success    bool  `json:"success"`
	Errors     []any `json:"errors"`
	Messages   []any `json:"messages"`
	Result     any   `json:"result"`
	ResultInfo any   `json:"result_info,omitempty"`
}

// done answers with no result.
func (c *call) done() error { return c.send(http.StatusOK, typeJSON, []byte(nothing)) }

// give answers with a result. For the listings and values that are asked for
// often there are faster ways.
func (c *call) give(result, info any, messages ...any) error {
	if messages == nil {
		messages = []any{}
	}
	text, err := marshal(envelope{Success: true, Errors: []any{}, Messages: messages, Result: result, ResultInfo: info})
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return c.send(http.StatusOK, typeJSON, text)
}

// marshal is json.Marshal without the escapes that only HTML needs.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// send answers with body, whole.
func (c *call) send(status int, contentType []string, body []byte) error {
	h := c.w.Header()
	h["Content-Type"] = contentType
	h["X-Content-Type-Options"] = noSniff
	c.lengthHeader[0] = strconv.Itoa(len(body))
	h["Content-Length"] = c.lengthHeader[:]
	c.head(status)
	c.write(body)
	return nil
}

func (c *call) head(status int) {
	c.status = status
	c.w.WriteHeader(status)
}

// write sends a part of the answer's body. An error means that the client went
// away; there is nobody to tell, and what follows is not written either.
func (c *call) write(p []byte) {
	if len(p) <= writeChunk && time.Since(c.began) < writeSoon {
		n, _ := c.w.Write(p)
		c.sent += int64(n)
		return
	}
	control := http.NewResponseController(c.w)
	for len(p) > 0 {
		chunk := p[:min(len(p), writeChunk)]
		p = p[len(chunk):]
		// A writer that knows no deadlines has no slow client behind it.
		_ = control.SetWriteDeadline(time.Now().Add(writeStall))
		n, err := c.w.Write(chunk)
		c.sent += int64(n)
		if err != nil {
			return
		}
	}
}

// stream is an answer in JSON of any length: it is sent whole if it is short, and
// piece by piece otherwise. Once it is begun only success can be told, so all
// that may fail comes before.
type stream struct {
	call  *call
	buf   []byte
	begun bool
}

// step sends what has gathered, if it is much.
func (t *stream) step() {
	if len(t.buf) < writeChunk {
		return
	}
	if !t.begun {
		t.begun = true
		h := t.call.w.Header()
		h["Content-Type"], h["X-Content-Type-Options"] = typeJSON, noSniff
		t.call.head(http.StatusOK)
	}
	t.call.write(t.buf)
	t.buf = t.buf[:0]
}

// end sends the rest.
func (t *stream) end() error {
	if t.begun {
		t.call.write(t.buf)
		return nil
	}
	return t.call.send(http.StatusOK, typeJSON, t.buf)
}

// fail answers with an error.
func (s *Server) fail(ctx context.Context, c *call, err error) {
	c.hold.close()
	f := s.failureOf(c, err)
	c.cause, c.code = f.cause, f.code
	if c.status != 0 {
		c.cause, c.status = err, statusAborted
		return
	}
	h := c.w.Header()
	h["Cf-Ray"] = c.idHeader[:]
	if f.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.retryAfter+time.Second-1)/time.Second)))
	}
	if f.final {
		h.Set("X-Should-Retry", "false")
	}
	drain := c.body.left()
	if drain {
		h["Connection"] = closing
	}
	_ = c.send(f.status, typeJSON, f.envelope(c.op.name))
	if c.isCanceled(err) {
		c.status, drain = statusCanceled, false
	}
	if drain && !c.body.awaited() {
		c.body.drain()
	}
}

// envelope is the JSON text of a failure.
func (f *failure) envelope(op string) []byte {
	out := append([]byte(nil), `{"success":false,"errors":[`...)
	out = appendNote(out, note{f.code, f.message(op)})
	if f.chain.code != 0 {
		out = append(out[:len(out)-1], `,"error_chain":[`...)
		out = append(appendNote(out, f.chain), `]}`...)
	}
	if f.second.code != 0 {
		out = appendNote(append(out, ','), f.second)
	}
	return append(out, `],"messages":[],"result":null}`...)
}

func appendNote(out []byte, n note) []byte {
	out = append(out, `{"code":`...)
	out = strconv.AppendInt(out, int64(n.code), 10)
	out = append(out, `,"message":`...)
	return append(jsontext.AppendString(out, n.text), '}')
}

// buffer returns a piece of memory for a stream, which recycle takes back.
func (s *Server) buffer() []byte {
	if buf, ok := s.buffers.Get().(*[]byte); ok {
		return (*buf)[:0]
	}
	return make([]byte, 0, 64<<10)
}

func (s *Server) recycle(t *stream) {
	if cap(t.buf) <= 2*writeChunk {
		s.buffers.Put(&t.buf)
	}
}
