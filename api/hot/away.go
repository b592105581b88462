package hot

import (
	"crypto/tls"
	"net"
	"sync"
)

// away is the listener by which the HTTP server gets the connections that the
// strict reader gives away.
type away struct {
	address net.Addr
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (a *away) Accept() (net.Conn, error) {
	select {
	case c := <-a.conns:
		return c, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

func (a *away) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

func (a *away) Addr() net.Addr { return a.address }

// replayed is a connection of which some bytes were read: they are read again.
type replayed struct {
	net.Conn
	unread []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.unread) > 0 {
		n := copy(p, r.unread)
		r.unread = r.unread[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// CloseWrite lets the HTTP server end a connection so that its last answer
// arrives, if the connection can.
func (r *replayed) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// replayedTLS tells the HTTP server, which does not see the *tls.Conn itself,
// what was negotiated.
type replayedTLS struct {
	replayed
	secure *tls.Conn
}

func (r *replayedTLS) ConnectionState() tls.ConnectionState { return r.secure.ConnectionState() }

// replay returns c with unread before what is yet to come.
func replay(c net.Conn, unread []byte) net.Conn {
	if secure, ok := c.(*tls.Conn); ok {
		return &replayedTLS{replayed{c, unread}, secure}
	}
	return &replayed{c, unread}
}
