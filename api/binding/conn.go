package binding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// The states of a connection.
const (
	idle   int32 = iota // between two requests: may be closed at any time
	busy                // has a part of a request, or more
	closed              // by Shutdown
)

const (
	copiedBytes = 8 << 10  // the greatest value that is copied behind its head
	nearBytes   = 1 << 20  // the greatest value answered from near, uncounted
	keptBytes   = 64 << 10 // the greatest buffers that a connection keeps
)

// conn is one connection of a workerd.
type conn struct {
	server *Server
	net    net.Conn
	reply  reply // an answer that waits to be written
	state  atomic.Int32

	buf        []byte
	start, end int // what is unread of buf
	head       head
	body       body
	hold       hold
	out        []byte
	key        []byte
	pair       [2][]byte // backs what is written with one call

	op     observe.Op     // what is asked
	space  kv.NamespaceID // of what is asked; zero: of none that is known
	status int            // of its answer; 0: there is none
	began  time.Time      // when its head had come

	now            time.Time // when the last bytes came
	idleSet        time.Time // when the deadlines of an idle connection were set; zero: they are not
	writeSet       time.Time // when the deadline for writing was set
	token, binding string    // of the request before, mostly the same
	ttlText        string    // the last cache_ttl that was asked for, and what it means
	ttl            time.Duration
}

// run serves the connection until it ends.
func (c *conn) run(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			c.server.config.Metrics.Panicked()
			c.server.config.Logger.ErrorContext(ctx, "panic in a KV binding", "panic", p, "stack", string(debug.Stack()))
		}
		c.hold.free()
	}()
	c.hold.server = c.server
	c.buf = make([]byte, firstBytes)
	c.reply.begin(c)
	// Requests that wait for a store end with ctx; one that waits for the peer is
	// woken by the end of the connection.
	stop := context.AfterFunc(ctx, func() { _ = c.net.Close() })
	defer stop()
	for c.next() {
		goesOn := c.answer(ctx)
		c.hold.free()
		c.count()
		c.trim()
		if !goesOn || c.head.last || c.server.closing.Load() {
			_ = c.flush()
			return
		}
	}
}

// next reads the next head; false: the connection is at its end.
func (c *conn) next() bool {
	seen, late := 0, false
	for {
		if c.end > c.start {
			size, p := readHead(c.buf[c.start:c.end], seen, &c.head)
			if p != nil {
				c.head.last = true
				_ = c.send(p.status, p.text, "", nil)
				return false
			}
			if size > 0 {
				c.start += size
				c.began = c.now
				c.state.Store(busy)
				if late {
					c.idleSet = time.Time{}
				}
				return true
			}
			seen = c.end - c.start
			if !late {
				late = true
				c.state.Store(busy)
				_ = c.net.SetReadDeadline(time.Now().Add(c.server.config.HeadTimeout))
			}
		} else {
			c.beIdle()
			if c.server.closing.Load() {
				_ = c.flush()
				return false
			}
		}
		if err := c.fill(); err != nil {
			return false
		}
		if !late && !c.state.CompareAndSwap(idle, busy) && c.state.Load() == closed {
			return false
		}
	}
}

// beIdle bounds the time between two requests. Moving a deadline is dear beside an
// answer, so it is moved only as often as it matters.
func (c *conn) beIdle() {
	c.start, c.end = 0, 0
	if !c.reply.waiting() { // else it is idle once that is written
		c.state.Store(idle)
	}
	if timeout := c.server.config.IdleTimeout; c.now.Sub(c.idleSet) > timeout/10 || c.idleSet.IsZero() {
		c.idleSet = time.Now()
		_ = c.net.SetReadDeadline(c.idleSet.Add(timeout + timeout/10))
	}
}

// fill reads more bytes behind those that are unread.
func (c *conn) fill() error {
	if c.start > 0 {
		c.end = copy(c.buf, c.buf[c.start:c.end])
		c.start = 0
	}
	if c.end == len(c.buf) {
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := c.read(c.buf[c.end:])
	c.end += n
	c.now = time.Now()
	if n > 0 {
		return nil
	}
	return err
}

// trim lets go of buffers that were needed for something great.
func (c *conn) trim() {
	if len(c.buf) > keptBytes && c.end-c.start <= firstBytes {
		small := make([]byte, firstBytes)
		c.end = copy(small, c.buf[c.start:c.end])
		c.buf, c.start = small, 0
	}
	if cap(c.out) > keptBytes {
		c.out = nil
	}
}

// send writes an answer: its head, with the lines of fields in it, and content.
func (c *conn) send(status int, reason, fields string, content []byte) error {
	c.begin(status, reason)
	c.out = append(c.out, fields...)
	return c.finish(content)
}

// begin begins the head of an answer. The reason is one line, whatever it is made of.
func (c *conn) begin(status int, reason string) {
	c.status = status
	c.out = append(c.out[:0], "HTTP/1.1 "...)
	c.out = append(strconv.AppendInt(c.out, int64(status), 10), ' ')
	for i := range len(reason) {
		b := reason[i]
		if b < ' ' || b == 0x7f {
			b = ' '
		}
		c.out = append(c.out, b)
	}
	c.out = append(c.out, "\r\n"...)
}

// finish ends the head and writes it with the content.
func (c *conn) finish(content []byte) error {
	if c.head.last || c.server.closing.Load() {
		c.head.last = true
		c.out = append(c.out, "Connection: close\r\n"...)
	}
	c.out = strconv.AppendInt(append(c.out, "Content-Length: "...), int64(len(content)), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	if len(content) <= copiedBytes {
		c.out = append(c.out, content...)
		content = nil
	}
	return c.write(content)
}

// write writes out, and content behind it.
func (c *conn) write(content []byte) error {
	timeout := c.server.config.WriteTime
	if now := time.Now(); content != nil || now.Sub(c.writeSet) > timeout/4 {
		c.writeSet = now
		_ = c.net.SetWriteDeadline(now.Add(timeout + timeout/4))
	}
	if content == nil && c.body.done && c.start == c.end && c.space != (kv.NamespaceID{}) && c.reply.take(c.out) {
		return nil
	}
	if content == nil {
		_, err := c.net.Write(c.out)
		return err
	}
	c.pair = [2][]byte{c.out, content}
	both := net.Buffers(c.pair[:])
	_, err := both.WriteTo(c.net)
	c.pair = [2][]byte{}
	return err
}

// body is what is unread of a request's body.
type body struct {
	left    int64 // of the body, or of its chunk
	chunked bool
	done    bool
	begun   bool // a chunk, at least
	total   int64
	until   time.Time // the deadline of the whole; zero: nothing was awaited yet
}

// errBody: a body that is not HTTP; the connection cannot go on.
var errBody = errors.New("the body is not HTTP")

func (c *conn) beginBody() {
	c.body = body{left: c.head.length, chunked: c.head.length < 0}
	if c.body.chunked {
		c.body.left = 0
	}
	c.body.done = !c.body.chunked && c.body.left == 0
}

// await reads more of the connection for the body, for as long as it may take.
func (c *conn) await() error {
	now, config := time.Now(), &c.server.config
	if c.body.until.IsZero() {
		c.body.until = now.Add(config.BodyTimeout)
	}
	pause := now.Add(config.BodyPause)
	if pause.After(c.body.until) {
		pause = c.body.until
	}
	c.idleSet = time.Time{}
	_ = c.net.SetReadDeadline(pause)
	if c.start == c.end && len(c.buf) < keptBytes {
		c.buf, c.start, c.end = make([]byte, keptBytes), 0, 0
	}
	err := c.fill()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// part returns the next bytes of the body, io.EOF after the last. They are valid
// until the next call.
func (c *conn) part() ([]byte, error) {
	b := &c.body
	for !b.done && b.left == 0 {
		if err := c.nextChunk(); err != nil {
			return nil, err
		}
	}
	if b.done {
		return nil, io.EOF
	}
	if c.start == c.end {
		if err := c.await(); err != nil {
			return nil, err
		}
	}
	n := int(min(b.left, int64(c.end-c.start)))
	bytes := c.buf[c.start : c.start+n]
	c.start += n
	b.left -= int64(n)
	b.total += int64(n)
	b.done = !b.chunked && b.left == 0
	return bytes, nil
}

// nextChunk reads the line before a chunk, and what follows the last.
func (c *conn) nextChunk() error {
	if c.body.begun {
		if line, err := c.line(2); err != nil || len(line) > 0 {
			return errors.Join(errBody, err)
		}
	}
	c.body.begun = true
	line, err := c.line(chunkLine)
	if err != nil {
		return err
	}
	digits := 0
	for digits < len(line) && hexDigit(line[digits]) >= 0 {
		digits++
	}
	if digits == 0 || digits > 12 || digits < len(line) && line[digits] != ';' && line[digits] != ' ' {
		return errBody
	}
	if c.body.left, err = strconv.ParseInt(string(line[:digits]), 16, 64); err != nil || c.body.left > 0 {
		return err
	}
	for room := trailerBytes; ; room -= len(line) + 2 {
		if room <= 0 {
			return errBody
		}
		if line, err = c.line(room); err != nil {
			return err
		}
		if len(line) == 0 {
			c.body.done = true
			return nil
		}
	}
}

// line reads up to a CRLF, at most so many bytes with it.
func (c *conn) line(most int) ([]byte, error) {
	for seen := 0; ; {
		unread := c.buf[c.start:c.end]
		for ; seen < len(unread) && seen < most; seen++ {
			if unread[seen] != '\n' {
				continue
			}
			if seen == 0 || unread[seen-1] != '\r' {
				return nil, errBody
			}
			c.start += seen + 1
			return unread[:seen-1], nil
		}
		if seen >= most {
			return nil, errBody
		}
		if err := c.await(); err != nil {
			return nil, err
		}
	}
}

// drainBytes is what is read of a body that is not wanted, so that workerd, which
// writes it first, reads the answer and keeps the connection.
const drainBytes = 256 << 20

// drain reads the rest of the body and forgets it.
func (c *conn) drain() error {
	for {
		_, err := c.part()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case c.body.total > drainBytes:
			return fmt.Errorf("a body of more than %d bytes: %w", drainBytes, errBody)
		}
	}
}

// lost answers a body that could not be read; the connection ends.
func (c *conn) lost(err error) bool {
	c.head.last = true
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = c.send(408, "Request Timeout", "", nil)
	case errors.Is(err, errBody):
		_ = c.send(400, "Bad Request", "", nil)
	}
	return false
}
