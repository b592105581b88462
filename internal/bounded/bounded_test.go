package bounded_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/bounded"
	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// failing is a listener whose first accept fails.
type failing struct {
	net.Listener
	failed bool
}

func (f *failing) Accept() (net.Conn, error) {
	if !f.failed {
		f.failed = true
		return nil, errors.New("too many open files")
	}
	return f.Listener.Accept()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// At the limit a connection is accepted, one past it when another is closed, be it
// closed twice.
func TestLimit(t *testing.T) {
	const most = 2
	inner := listen(t)
	l := bounded.New(inner, most, nil)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range most + 1 {
		dial(t, inner)
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Fatal("one past the limit was accepted")
	case <-time.After(50 * time.Millisecond): // a control of absence has to end some time
	}
	if n := l.Len(); n != most {
		t.Errorf("%d connections, want %d", n, most)
	}
	_ = first.Close()
	_ = first.Close()
	third := <-accepted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, more := <-accepted; more {
		t.Error("accepted after the end")
	}
	_ = third.Close()
	nearkeytest.Eventually(t, "one is left", func() error {
		if n := l.Len(); n != 1 {
			return errors.New("not yet")
		}
		return nil
	})
}

// An accept that fails for a moment does not end the server.
func TestFailedAccept(t *testing.T) {
	inner := listen(t)
	l := bounded.New(&failing{Listener: inner}, 1, nil)
	dial(t, inner)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}
