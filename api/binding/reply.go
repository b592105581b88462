package binding

import (
	"io"
	"net"
	"syscall"
)

// maxReply is the greatest answer that waits to be written by the next read.
const maxReply = 4 << 10

// reply is an answer and the wait for the next request in one go: as soon as all is
// written the poller waits, instead of trying in vain to read at once. That is for
// clients that send nothing before they have their answer, as workerd does; from one
// that does, what it sent is found when more comes, or when the connection has been
// idle for too long.
type reply struct {
	c     *conn
	raw   syscall.RawConn // nil: answers are written at once
	out   []byte          // what is still to be written; empty: nothing waits
	in    []byte          // where the next request goes
	waits bool            // all is written
	n     int             // read
	err   error
	step  func(fd uintptr) bool // do, made once
}

func (r *reply) begin(c *conn) {
	r.c, r.step = c, r.do
	if unix, ok := c.net.(*net.UnixConn); ok {
		r.raw, _ = unix.SyscallConn() // without it answers are written at once
	}
}

func (r *reply) waiting() bool { return len(r.out) > 0 }

// take takes an answer to be written by the next read, if it can.
func (r *reply) take(out []byte) bool {
	if r.raw == nil || len(out) > maxReply {
		return false
	}
	r.out = out
	return true
}

// do is called by the poller: at first, and when the next request may be there. It
// returns true when it has done all that it can.
func (r *reply) do(fd uintptr) bool {
	if !r.waits {
		n, err := syscall.Write(int(fd), r.out)
		if err != nil && err != syscall.EAGAIN && err != syscall.EINTR {
			r.err = err
			return true
		}
		r.out = r.out[max(n, 0):]
		if len(r.out) > 0 {
			return true // the rest is written as usual
		}
		r.waits = true
		r.c.state.Store(idle)
		if r.c.server.closing.Load() { // who closes may not have seen that it is idle
			r.err = net.ErrClosed
		}
		return r.err != nil
	}
	n, err := syscall.Read(int(fd), r.in)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return false
	case err != nil:
		r.err = err
	case n == 0:
		r.err = io.EOF
	default:
		r.n = n
	}
	return true
}

// read reads, after it has written the answer that waits.
func (c *conn) read(into []byte) (int, error) {
	r := &c.reply
	if !r.waiting() {
		return c.net.Read(into)
	}
	r.in, r.waits, r.n, r.err = into, false, 0, nil
	err := r.raw.Read(r.step)
	r.in = nil
	switch {
	case r.err != nil:
		r.out = nil
		return 0, r.err
	case r.waits:
		return r.n, err
	case err != nil:
		r.out = nil
		return 0, err
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	c.state.Store(idle)
	return c.net.Read(into)
}

// flush writes the answer that waits.
func (c *conn) flush() error {
	if !c.reply.waiting() {
		return nil
	}
	_, err := c.net.Write(c.reply.out)
	c.reply.out = nil
	return err
}
