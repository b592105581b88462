package hot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/kv"
)

const (
	// batchBytes is what answers to requests that came together gather to before
	// they are written, and batchRequests how many of them.
	batchBytes, batchRequests = 16 << 10, 64
	// copiedBytes is the greatest value that is copied behind its head.
	copiedBytes = 8 << 10
	// nearBytes is the greatest value that is answered from near: a slow client
	// holds it in memory until it has read it. The handler counts what it holds.
	nearBytes = 256 << 10
	// laterBytes are what net/http awaits of a request that is not the first of
	// its connection, before it looks at it.
	laterBytes = 4
)

// The states of a connection.
const (
	idle  int32 = iota // between two requests: may be closed at any time
	busy               // has a part of a request, or more
	ended              // closed
)

// conn is a connection, from its first byte until it is closed or given away.
type conn struct {
	server *Server
	net    net.Conn
	away   *away
	shard  *shard
	state  atomic.Int32

	head       head
	buf        []byte
	start, end int       // what is unread of buf
	now        time.Time // when the last bytes came, or the last answer of the handler was done

	answered bool      // a request, at least
	begun    bool      // the time of the head that is being read runs
	idleSet  time.Time // when the deadline of an idle connection was set; zero: it is not
	writeSet time.Time // when the deadline for writing was set
	extended bool      // by the handler, which sees to it itself

	verbose bool      // the handler answers everything
	pair    [2][]byte // backs what is written with one call
	secure  *tls.ConnectionState
}

// batch is what is answered with one write.
type batch struct {
	out   []byte
	hits  [batchRequests]hit // the answers in out that came from near
	count int

	text   bytes.Reader // what reads requests for the handler
	reader *bufio.Reader
}

// hit is an answer that came from near.
type hit struct {
	space kv.NamespaceID
	bytes int
}

// run serves the connection until it ends.
func (c *conn) run(ctx context.Context) {
	s := c.server
	defer c.recover(ctx)
	c.now = time.Now()
	if !c.handshake(ctx) {
		s.give(c, c.net)
		return
	}
	memory := s.heads.Get().(*[headBytes]byte)
	defer s.heads.Put(memory)
	c.buf = memory[:]
	c.deadlineOfHead() // the first request has the time of a head from here
	for c.fill() {
		switch c.answer(ctx) {
		case givenAway:
			unread := bytes.Clone(c.buf[c.start:c.end])
			_ = c.net.SetDeadline(time.Time{})
			s.give(c, replay(c.net, unread))
			return
		case closed:
			s.ended(c)
			return
		}
	}
	s.ended(c)
}

// recover cuts the connection off when there was a bug, as net/http does.
func (c *conn) recover(ctx context.Context) {
	if p := recover(); p != nil {
		c.server.logPanic(ctx, p)
		c.server.ended(c)
	}
}

func (s *Server) logPanic(ctx context.Context, p any) {
	if p != http.ErrAbortHandler {
		s.log.ErrorContext(ctx, "panic on the hot path", "panic", p, "stack", string(debug.Stack()))
	}
}

// handshake does that of TLS. It is false if the HTTP server is to go on: with
// HTTP/2, or with an answer to what went wrong.
func (c *conn) handshake(ctx context.Context) bool {
	secure, ok := c.net.(*tls.Conn)
	if !ok {
		return true
	}
	if t := c.server.headTimeout(); t > 0 {
		_ = secure.SetDeadline(c.now.Add(t))
	}
	err := secure.HandshakeContext(ctx)
	_ = secure.SetDeadline(time.Time{})
	if err != nil {
		return false
	}
	c.secure = new(tls.ConnectionState)
	*c.secure = secure.ConnectionState()
	return c.secure.NegotiatedProtocol == "" || c.secure.NegotiatedProtocol == "http/1.1"
}

// headTimeout and idleTimeout are the HTTP server's, with its defaults.
func (s *Server) headTimeout() time.Duration {
	if s.http.ReadHeaderTimeout != 0 {
		return s.http.ReadHeaderTimeout
	}
	return s.http.ReadTimeout
}

func (s *Server) idleTimeout() time.Duration {
	if s.http.IdleTimeout != 0 {
		return s.http.IdleTimeout
	}
	return s.http.ReadTimeout
}

// fill reads more bytes; false: the connection is at its end.
func (c *conn) fill() bool {
	if c.start > 0 {
		c.end = copy(c.buf, c.buf[c.start:c.end])
		c.start = 0
	}
	switch {
	case c.end > 0:
		c.deadlineOfHead()
	case !c.begun: // else it is a new connection, which has the time of a head
		c.deadlineOfIdle()
	}
	c.state.Store(idle)
	if c.server.closing.Load() {
		return false
	}
	n, err := c.net.Read(c.buf[c.end:])
	if n <= 0 {
		return err == nil
	}
	c.now = time.Now()
	c.end += n
	return c.state.CompareAndSwap(idle, busy) // else the server was shut down
}

// deadlineOfHead bounds the time of a whole head, however it arrives.
func (c *conn) deadlineOfHead() {
	if c.begun {
		return
	}
	c.begun, c.idleSet = true, time.Time{}
	c.setReadDeadline(c.server.headTimeout())
}

// deadlineOfIdle bounds the time between two requests. Moving a deadline is dear
// beside an answer, so it is moved only as often as it matters.
func (c *conn) deadlineOfIdle() {
	c.head.forgetLong()
	if c.now.Sub(c.idleSet) < c.server.coarse {
		return
	}
	c.idleSet = c.now
	if t := c.server.idleTimeout(); t > 0 {
		c.setReadDeadline(t + c.server.coarse)
		return
	}
	c.setReadDeadline(0)
}

func (c *conn) setReadDeadline(t time.Duration) {
	by := time.Time{}
	if t > 0 {
		by = c.now.Add(t)
	}
	_ = c.net.SetReadDeadline(by) // a connection that has ended says so when it is read
}

// mayWrite bounds the time of what is written next.
func (c *conn) mayWrite() {
	t := c.server.http.WriteTimeout
	if t <= 0 || c.extended || c.now.Sub(c.writeSet) < c.server.coarse {
		return
	}
	c.writeSet = c.now
	_ = c.net.SetWriteDeadline(c.now.Add(t + c.server.coarse))
}

// outcome is what becomes of a connection.
type outcome uint8

const (
	goesOn outcome = iota
	givenAway
	closed
)

// answer answers the requests that are in the buffer.
func (c *conn) answer(ctx context.Context) outcome {
	s := c.server
	b := s.batches.Get().(*batch)
	result := goesOn
	for result == goesOn && c.start < c.end {
		if c.answered && c.end-c.start < laterBytes {
			break
		}
		size, v := c.head.read(c.buf[c.start:c.end])
		if v == partial && c.end-c.start < len(c.buf) {
			break
		}
		if v != understood {
			result = givenAway
			break
		}
		request := c.buf[c.start : c.start+size]
		c.start += size
		c.answered, c.begun = true, false
		if rec, age, ok := c.near(ctx); ok {
			result = c.hit(b, rec, age)
			continue
		}
		if result = c.flush(b); result == goesOn {
			result = c.handle(ctx, b, request)
		}
		if result == givenAway {
			c.start -= size
		}
	}
	if flushed := c.flush(b); flushed != goesOn {
		result = flushed
	}
	s.batches.Put(b)
	return result
}

// near returns the record that answers the request which was read last, if its
// sender may read it and it is near.
func (c *conn) near(ctx context.Context) (rec *kv.Record, age time.Duration, ok bool) {
	s, h := c.server, &c.head
	if c.verbose || s.closing.Load() {
		return nil, 0, false
	}
	right := s.right(ctx, h, c.now)
	if right == nil || !right.allows(h.key) {
		return nil, 0, false
	}
	rec, age, ok = s.values.Near(h.space, h.key, s.maxAge)
	return rec, age, ok && rec.Visible(c.now) && len(rec.Value) <= nearBytes
}

// hit answers the request that was read last.
func (c *conn) hit(b *batch, rec *kv.Record, age time.Duration) outcome {
	copied := len(rec.Value)
	if copied > copiedBytes {
		copied = 0
	}
	if b.count == batchRequests || len(b.out)+maxAnswerHead+copied > batchBytes {
		if c.flush(b) == closed {
			return closed
		}
	}
	b.out = c.server.appendHead(b.out, &c.head, rec, age, c.now)
	b.hits[b.count] = hit{c.head.space, len(rec.Value)}
	b.count++
	if copied == len(rec.Value) {
		b.out = append(b.out, rec.Value...)
		return goesOn
	}
	return c.write(b, rec.Value)
}

// flush writes the answers that have gathered.
func (c *conn) flush(b *batch) outcome {
	if len(b.out) == 0 {
		return goesOn
	}
	return c.write(b, nil)
}

// write writes the answers that have gathered, and value behind them.
func (c *conn) write(b *batch, value []byte) outcome {
	c.mayWrite()
	var err error
	if value == nil {
		_, err = c.net.Write(b.out)
	} else {
		c.pair = [2][]byte{b.out, value}
		both := net.Buffers(c.pair[:])
		_, err = both.WriteTo(c.net)
		c.pair = [2][]byte{}
	}
	took := time.Since(c.now)
	c.shard.hit(b.hits[:b.count], took)
	if c.server.served != nil {
		for _, h := range b.hits[:b.count] {
			c.server.served(h.space, h.bytes, took)
		}
	}
	b.out, b.count = b.out[:0], 0
	if err != nil {
		return closed
	}
	return goesOn
}
