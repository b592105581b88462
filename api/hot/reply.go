package hot

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"time"
)

// gatheredBytes is the greatest body that a handler may give without having told
// its length. A longer one cuts the connection.
const gatheredBytes = 1 << 20

// handle has the handler answer a request that was understood, and leaves the
// last of the answer in b. The strict reader having taken it, it is read again by
// net/http's own, so that the handler sees what it always sees.
func (c *conn) handle(ctx context.Context, b *batch, request []byte) (result outcome) {
	s, began := c.server, c.now
	ctx, cancel := context.WithCancel(context.WithValue(context.WithValue(ctx,
		http.LocalAddrContextKey, c.net.LocalAddr()), http.ServerContextKey, s.http))
	defer cancel()
	r, err := b.parse(request)
	if err != nil {
		return givenAway
	}
	r = r.WithContext(ctx)
	r.TLS = c.secure
	if address := c.net.RemoteAddr(); address != nil {
		r.RemoteAddr = address.String()
	}
	w := &reply{conn: c, batch: b, header: http.Header{}, length: -1}
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(ctx, p)
			b.out, result = b.out[:0], closed
		}
	}()
	s.http.Handler.ServeHTTP(w, r)
	result = w.end()
	c.now = time.Now()
	if c.extended {
		c.extended, c.writeSet = false, time.Time{}
	}
	c.shard.handled(w.sentHeader.Get(statusHeader), c.now.Sub(began))
	return result
}

// parse reads a request as net/http does. It has no body, so nothing refers to
// the readers afterwards.
func (b *batch) parse(request []byte) (*http.Request, error) {
	b.text.Reset(request)
	if b.reader == nil {
		b.reader = bufio.NewReaderSize(&b.text, headBytes)
	}
	b.reader.Reset(&b.text)
	return http.ReadRequest(b.reader)
}

// reply is the answer of the handler to a GET, written as net/http writes it.
type reply struct {
	conn   *conn
	batch  *batch
	header http.Header

	status     int         // 0: not begun
	sentHeader http.Header // as it was when the answer began
	length     int64       // of the body, as the handler told; -1: it did not
	sent       int64       // of the body
	gathered   []byte      // the body, if its length is not known
	begun      bool        // the head is in the batch
	last       bool        // the connection is to be closed
	failed     error       // what writing to the connection came to
}

func (w *reply) Header() http.Header { return w.header }

// WriteHeader begins the answer. Answers of status 1xx are for those who wait for
// a body's turn, and are left out.
func (w *reply) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return
	}
	w.status = status
	w.sentHeader = w.header.Clone()
	if text := w.sentHeader.Get("Content-Length"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			w.sentHeader.Del("Content-Length")
			return
		}
		w.length = n
	}
}

func (w *reply) bodyAllowed() bool {
	return w.status != http.StatusNoContent && w.status != http.StatusNotModified
}

func (w *reply) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case !w.bodyAllowed():
		return 0, http.ErrBodyNotAllowed
	case w.length < 0 && len(w.gathered)+len(p) > gatheredBytes:
		w.failed = io.ErrShortBuffer
		return 0, w.failed
	case w.length < 0:
		w.gathered = append(w.gathered, p...)
		return len(p), nil
	case w.sent+int64(len(p)) > w.length:
		w.sent = w.length + 1 // the connection does not outlive such an answer
		return 0, http.ErrContentLength
	}
	w.begin(p)
	w.write(p)
	return len(p), w.failed
}

// write puts a part of the body behind what is in the batch.
func (w *reply) write(p []byte) {
	w.sent += int64(len(p))
	b := w.batch
	switch {
	case w.failed != nil || len(p) == 0:
	case len(p) <= copiedBytes && len(b.out)+len(p) <= batchBytes:
		b.out = append(b.out, p...)
	case w.conn.write(b, p) != goesOn:
		w.failed = io.ErrClosedPipe
	}
}

// begin puts the head of the answer into the batch. p is the beginning of the body.
func (w *reply) begin(p []byte) {
	if w.begun {
		return
	}
	w.begun = true
	h := w.sentHeader
	_, dated := h["Date"]
	_, typed := h["Content-Type"]
	if !w.bodyAllowed() {
		h.Del("Content-Length")
		h.Del("Transfer-Encoding")
		if w.status == http.StatusNotModified {
			h.Del("Content-Type")
		}
	}
	closing := w.conn.server.closing.Load()
	w.last = closing || h.Get("Connection") == "close"
	if closing {
		h.Del("Connection")
	}
	h.Del("Transfer-Encoding")
	out := bytes.NewBuffer(w.batch.out)
	out.WriteString("HTTP/1.1 " + strconv.Itoa(w.status) + " " + statusText(w.status) + "\r\n")
	_ = h.Write(out) // to memory
	if !dated {
		out.WriteString("Date: " + string(w.conn.server.date.at(time.Now())[:]) + "\r\n")
	}
	if w.length < 0 && w.bodyAllowed() {
		out.WriteString("Content-Length: " + strconv.Itoa(len(p)) + "\r\n")
	}
	if w.bodyAllowed() && !typed && h.Get("Content-Encoding") == "" && len(p) > 0 {
		out.WriteString("Content-Type: " + http.DetectContentType(p) + "\r\n")
	}
	if closing {
		out.WriteString("Connection: close\r\n")
	}
	out.WriteString("\r\n")
	w.batch.out = out.Bytes()
}

func statusText(status int) string {
	if text := http.StatusText(status); text != "" {
		return text
	}
	return "status code " + strconv.Itoa(status)
}

// end completes the answer.
func (w *reply) end() outcome {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.begin(w.gathered)
	w.write(w.gathered)
	if w.failed != nil || w.length >= 0 && w.sent != w.length && w.bodyAllowed() {
		w.last = true
	}
	if w.last {
		w.conn.flush(w.batch)
		return closed
	}
	return goesOn
}

// SetWriteDeadline is for handlers that write much, by http.ResponseController.
func (w *reply) SetWriteDeadline(by time.Time) error {
	w.conn.extended = true
	return w.conn.net.SetWriteDeadline(by)
}
