package egress

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// connect gives a Worker the socket that it asked for with connect().
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	if s.config.Peer != nil && peerKnown {
		c := r.Context().Value(connKey{}).(*client)
		token, _ := s.config.Peer(peerOf(c.Conn)) // "" is nobody's
		if _, ok := s.admit(w, r, token); !ok {
			return
		}
	}
	host := strings.ToLower(strings.TrimSuffix((&url.URL{Host: r.Host}).Hostname(), "."))
	server, err := s.dialOutside(r.Context(), "tcp", r.Host)
	if err != nil {
		s.report(r, host, err)
		faultOf(err, host, false).answer(w, r)
		return
	}
	defer func() { _ = server.Close() }()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic("egress: HTTP/1.1 can always be taken over: " + err.Error())
	}
	defer func() { _ = conn.Close() }()
	s.counts.sockets.Add(1)
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	// What was read ahead comes first. The rest is read past http.Server, which would
	// take the end of this way for the end of the request.
	ahead, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err != nil {
		panic("egress: what is buffered can be read: " + err.Error())
	}
	join(r.Context(), conn, io.MultiReader(bytes.NewReader(ahead), conn), server)
}

// join copies both ways until both have ended, one is broken, or ctx ends. The end of
// one way is told at its other end.
func join(ctx context.Context, worker net.Conn, fromWorker io.Reader, server net.Conn) {
	cut := func() {
		_ = worker.Close()
		_ = server.Close()
	}
	defer context.AfterFunc(ctx, cut)()
	var wait sync.WaitGroup
	copyTo := func(to net.Conn, from io.Reader) {
		_, err := io.Copy(to, from)
		if err == nil {
			err = closeWrite(to)
		}
		if err != nil {
			cut()
		}
	}
	wait.Go(func() { copyTo(server, fromWorker) })
	wait.Go(func() { copyTo(worker, server) })
	wait.Wait()
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
