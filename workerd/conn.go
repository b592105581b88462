package workerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxKept       = 64        // idle connections to a process
	readBuffer    = 16 << 10  // of a connection; a shorter line of a head costs no copy
	maxHead       = 256 << 10 // of an answer
	copyBuffer    = 32 << 10
	wholeBody     = 4 << 10 // a body of known size that is awaited whole; less than readBuffer
	maxInformal   = 16      // answers 1xx before the one that counts
	headerContent = "Content-Length"
)

// A conn is a connection to a process.
type conn struct {
	*net.UnixConn
	raw   syscall.RawConn
	in    *bufio.Reader
	buf   []byte // what is sent, kept for the next request
	ask   asking
	used  bool // had a request before this one
	heard bool // something came back for this request
}

// A pool keeps idle connections to a socket, the last used first.
type pool struct {
	socket string

	mu     sync.Mutex // guards idle and closed
	idle   []*conn
	closed bool
}

// get returns a connection, a kept one if there is. With sure, it was open a moment
// ago: a request that can be sent again saves the look.
func (l *pool) get(ctx context.Context, sure bool) (*conn, error) {
	for {
		l.mu.Lock()
		var c *conn
		if n := len(l.idle); n > 0 {
			c = l.idle[n-1]
			l.idle = l.idle[:n-1]
		}
		l.mu.Unlock()
		if c == nil {
			return dial(ctx, l.socket)
		}
		if !sure || c.quiet() {
			return c, nil
		}
		_ = c.Close()
	}
}

func dial(ctx context.Context, socket string) (*conn, error) {
	d := net.Dialer{}
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to a Worker: %w", err)
	}
	c := &conn{UnixConn: nc.(*net.UnixConn)}
	if c.raw, err = c.SyscallConn(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to a Worker: %w", err)
	}
	c.in = bufio.NewReaderSize(c, readBuffer)
	c.ask.step = c.ask.do
	return c, nil
}

// asking is a write and the read of its answer in one go: it waits for the answer
// as soon as all is written, instead of trying in vain to read it at once.
type asking struct {
	out, in []byte // what is still to be written; where the answer goes
	waits   bool   // all is written
	n       int    // read
	err     error
	step    func(fd uintptr) bool // do, made once
}

// do is called by the poller: at first, and when the answer may be there. It
// returns true when it has done all that it can.
func (a *asking) do(fd uintptr) bool {
	if !a.waits {
		n, err := syscall.Write(int(fd), a.out)
		if err != nil && err != syscall.EAGAIN && err != syscall.EINTR {
			a.err = err
			return true
		}
		a.out = a.out[max(n, 0):]
		a.waits = len(a.out) == 0
		return !a.waits // the rest is written as usual
	}
	n, err := syscall.Read(int(fd), a.in)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return false
	case err != nil:
		a.err = err
	case n == 0:
		a.err = io.EOF
	default:
		a.n = n
	}
	return true
}

// Read reads, after it has written what asks for what it reads.
func (c *conn) Read(into []byte) (int, error) {
	a := &c.ask
	if len(a.out) == 0 {
		return c.UnixConn.Read(into)
	}
	a.in, a.waits, a.n, a.err = into, false, 0, nil
	err := c.raw.Read(a.step)
	rest := a.out
	a.out, a.in = nil, nil
	switch {
	case a.err != nil:
		return 0, a.err
	case err != nil:
		return 0, err
	case a.waits:
		return a.n, nil
	}
	if _, err := c.UnixConn.Write(rest); err != nil {
		return 0, err
	}
	return c.UnixConn.Read(into)
}

// quiet reports whether an idle connection is open and nothing came on it.
func (c *conn) quiet() bool {
	quiet := false
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, err := syscall.Read(int(fd), b[:])
		quiet = err == syscall.EAGAIN
		return true
	})
	return err == nil && quiet
}

func (l *pool) put(c *conn) {
	c.used, c.heard = true, false
	if cap(c.buf) > 2*smallBody {
		c.buf = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.idle) >= maxKept || c.in.Buffered() > 0 {
		_ = c.Close()
		return
	}
	l.idle = append(l.idle, c)
}

func (l *pool) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, c := range l.idle {
		_ = c.Close()
	}
	l.idle = nil
}

// sendBody sends what a request has after its head.
func (c *conn) sendBody(body io.Reader, chunked bool) error {
	buf := make([]byte, copyBuffer)
	if !chunked {
		_, err := io.CopyBuffer(struct{ io.Writer }{c.UnixConn}, struct{ io.Reader }{body}, buf)
		return err
	}
	w := httputil.NewChunkedWriter(c.UnixConn)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{body}, buf); err != nil {
		return err // without an end: workerd sees that it is cut
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(c.UnixConn, "\r\n")
	return err
}

// A head is the first part of an answer; its headers are where they belong.
type head struct {
	status  int
	ok      bool  // made by the Worker
	chunked bool  // framed so
	length  int64 // -1: not told
	closing bool  // the connection ends with this answer
}

// readHead reads a head and puts its headers into h, but for those of the
// connection and ours.
func (c *conn) readHead(h http.Header) (head, error) {
	room := maxHead
	for range maxInformal {
		line, err := c.line(&room)
		if err != nil {
			return head{}, err
		}
		status := 0
		if len(line) >= 12 && bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
			status, _ = strconv.Atoi(string(line[9:12]))
		}
		if status < 100 {
			return head{}, fmt.Errorf("read an answer: status line %q", line)
		}
		at := head{status: status, length: -1}
		informal := status < 200 && status != http.StatusSwitchingProtocols
		for {
			line, err := c.line(&room)
			if err != nil {
				return head{}, err
			}
			if len(line) == 0 {
				break
			}
			if informal {
				continue
			}
			if err := at.header(line, h); err != nil {
				return head{}, err
			}
		}
		if !informal {
			return at, nil
		}
	}
	return head{}, errors.New("read an answer: too many before it")
}

// header takes in one header line.
func (at *head) header(line []byte, h http.Header) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return fmt.Errorf("read an answer: header %q", line)
	}
	name, value := headerName(line[:colon]), string(bytes.TrimSpace(line[colon+1:]))
	switch name {
	case headerContent:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("read an answer: content length %q", value)
		}
		at.length = n
	case "Transfer-Encoding":
		at.chunked = strings.EqualFold(value, "chunked")
		return nil
	case "Connection":
		at.closing = at.closing || strings.EqualFold(value, "close")
		return nil
	case "Keep-Alive", "Proxy-Connection", "Trailer":
		return nil
	case "X-Nk-Ok":
		at.ok = true
		return nil
	}
	if !strings.HasPrefix(name, "X-Nk-") {
		h[name] = append(h[name], value)
	}
	return nil
}

// headerName is the canonical form of a name, without an allocation for those
// that nearly every answer has.
func headerName(name []byte) string {
	switch string(name) {
	case "Content-Length", "content-length":
		return headerContent
	case "Content-Type", "content-type":
		return "Content-Type"
	case "Transfer-Encoding":
		return "Transfer-Encoding"
	case headerOK:
		return "X-Nk-Ok"
	case "Cache-Control", "cache-control":
		return "Cache-Control"
	}
	return textproto.CanonicalMIMEHeaderKey(string(name))
}

// line reads a line of a head, of which room bytes are left.
func (c *conn) line(room *int) ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	c.heard = c.heard || len(line) > 0
	if err == bufio.ErrBufferFull {
		var rest []byte
		line = bytes.Clone(line)
		for err == bufio.ErrBufferFull && len(line) <= *room {
			rest, err = c.in.ReadSlice('\n')
			line = append(line, rest...)
		}
	}
	if *room -= len(line); *room < 0 {
		return nil, errors.New("read an answer: its head is too long")
	}
	if err != nil {
		return nil, fmt.Errorf("read an answer: %w", err)
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

// answer passes the answer on and reports whether the connection can be kept.
func (x *exchange) answer(at head) (keep bool, err error) {
	h, c := x.w.Header(), x.c
	if at.chunked {
		delete(h, headerContent)
	}
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // net/http must not guess
	}
	h["Cf-Ray"] = []string{x.ray}
	x.answered = true
	x.extend()
	x.w.WriteHeader(at.status)
	if x.r.Method == http.MethodHead || at.status == http.StatusNoContent || at.status == http.StatusNotModified {
		return !at.closing, nil
	}
	switch {
	case at.chunked:
		if err := x.copy(httputil.NewChunkedReader(c.in), -1); err != nil {
			return false, err
		}
		return !at.closing, c.trailer()
	case at.length >= 0:
		return !at.closing, x.copy(c.in, at.length)
	}
	return false, x.copy(c.in, -1)
}

// trailer skips what follows the last chunk.
func (c *conn) trailer() error {
	room := maxHead
	for {
		line, err := c.line(&room)
		if err != nil || len(line) == 0 {
			return err
		}
	}
}

// copy passes n bytes on (-1: until the end). What the Worker has sent is not held
// back, unless it is part of a body so small that it is one packet: when nothing
// more is there, the client gets what there was.
func (x *exchange) copy(from io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	if n > 0 && (n <= wholeBody || int64(x.c.in.Buffered()) >= n) {
		body, err := x.c.in.Peek(int(n))
		if err != nil {
			return fmt.Errorf("read an answer: %w", err)
		}
		_, err = x.w.Write(body)
		_, _ = x.c.in.Discard(int(n))
		return err
	}
	flush := http.NewResponseController(x.w)
	buf := x.p.rt.buffer()
	defer x.p.rt.buffers.Put(buf)
	for n != 0 {
		chunk := buf[:]
		if n > 0 && n < int64(len(chunk)) {
			chunk = chunk[:n]
		}
		if x.c.in.Buffered() == 0 {
			x.extend()
			if err := flush.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return err
			}
		}
		got, err := from.Read(chunk)
		if got > 0 {
			x.p.progress.Add(1)
			x.extend()
			if _, err := x.w.Write(chunk[:got]); err != nil {
				return err
			}
		}
		if n > 0 {
			n -= int64(got)
		}
		switch {
		case err == io.EOF && n <= 0:
			return nil
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return fmt.Errorf("read an answer: %w", err)
		}
	}
	return nil
}

// upgrade joins the client's connection with the Worker's until both have said
// all, as a WebSocket does.
func (x *exchange) upgrade(at head) error {
	h := x.w.Header()
	client, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return fmt.Errorf("take a connection over: %w", err)
	}
	defer func() { _ = client.Close() }()
	_ = client.SetDeadline(time.Time{}) // those of the server end with its part
	x.answered = true
	h.Set("Connection", "Upgrade")
	if h.Get("Upgrade") == "" {
		h.Set("Upgrade", x.r.Header.Get("Upgrade"))
	}
	out := &bytes.Buffer{}
	fmt.Fprintf(out, "HTTP/1.1 %d %s\r\n", at.status, http.StatusText(at.status))
	_ = h.Write(out)
	out.WriteString("\r\n")
	if _, err := client.Write(out.Bytes()); err != nil {
		return nil // the client is gone
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		_, _ = io.CopyBuffer(struct{ io.Writer }{x.c.UnixConn}, struct{ io.Reader }{buffered.Reader}, make([]byte, copyBuffer))
		_ = x.c.CloseWrite()
	}()
	x.pump(client)
	_ = client.Close()
	<-up
	return nil
}

// buffer returns a buffer that goes back to r.buffers.
func (r *Runtime) buffer() *[copyBuffer]byte {
	if b, ok := r.buffers.Get().(*[copyBuffer]byte); ok {
		return b
	}
	return new([copyBuffer]byte)
}

// pump passes on what the Worker sends.
func (x *exchange) pump(client io.Writer) {
	buf := make([]byte, copyBuffer)
	for {
		n, err := x.c.in.Read(buf)
		if n > 0 {
			x.p.progress.Add(1)
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
