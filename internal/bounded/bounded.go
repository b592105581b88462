// Package bounded is for listeners with a number of connections at most: further ones
// wait to be accepted. It keeps nothing and has nothing to lose.
package bounded

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// pause is waited after an accept that failed, such as for want of files.
const pause = 20 * time.Millisecond

// Listener is a listener that has a number of connections at most. A connection
// counts until it is closed.
type Listener struct {
	net.Listener
	logger *slog.Logger
	slots  chan struct{} // one token for each connection
	once   sync.Once
	closed chan struct{}
}

// New returns a listener of at most most connections of l. It logs to logger why
// none can be accepted for a moment; nil: nowhere.
func New(l net.Listener, most int, logger *slog.Logger) *Listener {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Listener{Listener: l, logger: logger, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

// Len is how many connections there are, with one that is awaited.
func (b *Listener) Len() int { return len(b.slots) }

// Accept implements net.Listener. It fails when the listener is closed, and goes on
// after any other error.
func (b *Listener) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	for {
		c, err := b.Listener.Accept()
		if err == nil {
			return &Conn{Conn: c, free: sync.OnceFunc(func() { <-b.slots })}, nil
		}
		if !errors.Is(err, net.ErrClosed) {
			b.logger.Warn("accept a connection", "error", err)
			select {
			case <-time.After(pause):
				continue
			case <-b.closed:
				err = net.ErrClosed
			}
		}
		<-b.slots
		return nil, err
	}
}

// Close implements net.Listener.
func (b *Listener) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// Conn is a connection of a Listener.
type Conn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// CloseWrite tells the other end that no more comes, where the connection can.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// SyscallConn implements syscall.Conn, where the connection does.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
