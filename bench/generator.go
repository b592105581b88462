package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// answerBytes is room for the answers of one link that are under way.
const answerBytes = 64 << 10

// drainWithin is how long an open loop waits for its last answers.
const drainWithin = 10 * time.Second

// generator is a client of one thread over many connections that costs less than
// the servers it drives: it waits for all sockets at once, sends prepared bytes,
// and checks the status, the length and the bytes of every answer.
type generator struct {
	epoll  int
	links  []*link
	events []syscall.EpollEvent
	status int // of every answer
}

// link is one connection of a generator.
type link struct {
	fd      int
	request []byte // depth times the same request
	want    []byte // the body of each answer
	depth   int
	left    int       // answers that are awaited
	due     time.Time // of what is awaited
	buf     []byte
	end     int
}

// newGenerator connects to a server. request makes the request of a link and the
// body of its answer; it is sent depth at a time.
func newGenerator(s *server, conns, depth int, request func(i int) (wire, want []byte)) (*generator, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	g := &generator{epoll: epoll, events: make([]syscall.EpollEvent, conns), status: 200}
	for i := range conns {
		wire, want := request(i)
		fd, err := connect(s.addr)
		if err == nil {
			event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}
			err = syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &event)
		}
		if err != nil {
			g.close()
			return nil, fmt.Errorf("connect to %s: %w", s.addr, err)
		}
		g.links = append(g.links, &link{fd: fd, request: bytes.Repeat(wire, depth), want: want, depth: depth, buf: make([]byte, answerBytes)})
	}
	return g, nil
}

// connect returns a socket that the runtime's own poller knows nothing of.
func connect(addr string) (int, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return -1, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1),
		syscall.SetNonblock(fd, true))
	return fd, err
}

func (g *generator) close() {
	for _, l := range g.links {
		_ = syscall.Close(l.fd) // nothing is under way on it that matters
	}
	_ = syscall.Close(g.epoll)
}

// closed sends the next request of each link when the answer to the last one is
// there, for so long. A latency is that of depth answers.
func (g *generator) closed(ctx context.Context, length time.Duration) (ops int, latencies []time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	latencies = make([]time.Duration, 0, 1<<20)
	began := time.Now()
	for _, l := range g.links {
		if err := l.send(time.Now()); err != nil {
			return 0, nil, err
		}
	}
	for now := began; now.Sub(began) < length; {
		ready, err := g.wait(ctx, 100)
		if err != nil {
			return 0, nil, err
		}
		now = time.Now()
		for _, e := range ready {
			l := g.links[e.Fd]
			n, err := l.receive(g.status)
			if err != nil {
				return 0, nil, err
			}
			ops += n
			if l.left > 0 {
				continue
			}
			latencies = append(latencies, now.Sub(l.due))
			if err := l.send(now); err != nil {
				return 0, nil, err
			}
		}
	}
	return ops, latencies, nil
}

// settle takes the answers that are still under way.
func (g *generator) settle(ctx context.Context) error {
	for began := time.Now(); ; {
		waiting := slices.ContainsFunc(g.links, func(l *link) bool { return l.left > 0 })
		if !waiting {
			return nil
		}
		if time.Since(began) > drainWithin {
			return fmt.Errorf("answers did not come within %s", drainWithin)
		}
		ready, err := g.wait(ctx, 100)
		if err != nil {
			return err
		}
		for _, e := range ready {
			if _, err := g.links[e.Fd].receive(g.status); err != nil {
				return err
			}
		}
	}
}

// open sends requests at a fixed rate, whatever the answers do. A latency counts
// from the moment at which the request was due, also if no link was free then.
// late is how late they were sent.
func (g *generator) open(ctx context.Context, rate float64, length time.Duration) (latencies, late []time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	total := int(rate * length.Seconds())
	latencies, late = make([]time.Duration, 0, total), make([]time.Duration, 0, total)
	free := slices.Clone(g.links)
	began := time.Now()
	due := func(i int) time.Time { return began.Add(time.Duration(float64(i) / rate * float64(time.Second))) }
	for len(latencies) < total {
		now := time.Now()
		if now.Sub(began) > length+drainWithin {
			return nil, nil, fmt.Errorf("%d of %d answers did not come within %s after the end", total-len(latencies), total, drainWithin)
		}
		for len(late) < total && len(free) > 0 && !due(len(late)).After(now) {
			l := free[0]
			free = free[1:]
			if err := l.send(due(len(late))); err != nil {
				return nil, nil, err
			}
			late = append(late, now.Sub(l.due))
		}
		ready, err := g.wait(ctx, 0) // spinning: a sleep would be late by more than is measured
		if err != nil {
			return nil, nil, err
		}
		for _, e := range ready {
			l := g.links[e.Fd]
			if _, err := l.receive(g.status); err != nil {
				return nil, nil, err
			}
			if l.left == 0 {
				latencies = append(latencies, time.Since(l.due))
				free = append(free, l)
			}
		}
	}
	return latencies, late, nil
}

// wait returns which links have something to read.
func (g *generator) wait(ctx context.Context, milliseconds int) ([]syscall.EpollEvent, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := syscall.EpollWait(g.epoll, g.events, milliseconds)
	if err != nil && err != syscall.EINTR {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return g.events[:max(n, 0)], nil
}

// send sends what a link sends. It always fits into the socket: all that was sent
// before has been answered.
func (l *link) send(due time.Time) error {
	n, err := syscall.Write(l.fd, l.request)
	if err != nil || n < len(l.request) {
		return fmt.Errorf("send %d bytes: %d sent, %v", len(l.request), n, err)
	}
	l.left, l.due = l.depth, due
	return nil
}

// receive reads what is there and returns how many answers became complete.
func (l *link) receive(status int) (answers int, err error) {
	n, err := syscall.Read(l.fd, l.buf[l.end:])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return 0, nil
	}
	if n <= 0 {
		return 0, fmt.Errorf("read an answer: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	l.end += n
	next := 0
	for next < l.end {
		size, err := l.whole(l.buf[next:l.end], status)
		if err != nil {
			return 0, err
		}
		if size == 0 {
			break
		}
		next += size
		answers++
	}
	l.end = copy(l.buf, l.buf[next:l.end])
	if l.left -= answers; l.left < 0 {
		return 0, errors.New("more answers than requests")
	}
	return answers, nil
}

// whole returns the size of the answer at the beginning of b, zero if it is not
// yet complete.
func (l *link) whole(b []byte, want int) (int, error) {
	head := bytes.Index(b, []byte("\r\n\r\n"))
	if head < 0 {
		return 0, nil
	}
	status, length, chunked, err := parseHead(b[:head])
	if err != nil {
		return 0, err
	}
	end := head + 4 + length
	if chunked || status != want || length != len(l.want) {
		return 0, fmt.Errorf("status %d, %d bytes: %.300s", status, length, b)
	}
	if end > len(b) {
		return 0, nil
	}
	if !bytes.Equal(b[head+4:end], l.want) {
		return 0, fmt.Errorf("not the value: %.300s", b[head+4:end])
	}
	return end, nil
}
