package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// How long a request may take that is answered elsewhere.
const (
	forwardTimeout       = 30 * time.Second
	forwardUploadTimeout = 5 * time.Minute
)

// ofCatalog reports whether what is at the route is in the catalog, all of it.
func (k routeKind) ofCatalog() bool {
	return k >= routeUser && k <= routeNamespace || k.ofWorkers()
}

// errNoForward: this server has no catalog, and nobody to ask.
var errNoForward = errors.New("there is no catalog, and no server that requests about it are forwarded to")

// passOn has a request answered by Config.Forward. It is sent as it came, with its
// id, whether its credentials are known here or not: the catalog knows better. An
// answer that is not the API's own becomes one.
func (s *Server) passOn(ctx context.Context, c *call) error {
	if op := s.endpoints[c.route.kind].operation(c.r.Method); op != nil {
		c.op = op // for the log
	}
	if s.forward == nil {
		return unreachable(errNoForward)
	}
	timeout, err := c.limitPassed()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &passedAnswer{call: c, header: http.Header{}}
	w.late = time.AfterFunc(timeout, cancel)
	defer w.late.Stop()
	r := c.r.WithContext(ctx)
	r.Header = c.r.Header.Clone()
	r.Header["X-Request-Id"] = c.idHeader[:]
	if c.r.Body != nil && c.r.Body != http.NoBody {
		r.Body = &w.body
		w.body.body = &c.body
	}
	defer w.body.Close()
	s.forward.ServeHTTP(w, r)
	w.body.Close()
	switch {
	case c.status != 0:
		return nil
	case w.body.err != nil:
		return bodyFailure(w.body.err)
	case w.refused == nil:
		w.refused = errors.New("the server that was asked gave no answer")
	}
	return unreachable(w.refused)
}

// limitPassed bounds the body of a request that is passed on, as where it is
// answered, and returns how long it may take. It is not held here.
func (c *call) limitPassed() (time.Duration, error) {
	switch c.route.kind {
	case routeScript, routeScriptContent, routeScriptSettings, routeScriptVersions:
		return forwardUploadTimeout, c.body.limit(scriptFormBytes, scriptTooLarge)
	case routeScriptAssets:
		return forwardUploadTimeout, c.body.limit(maxAssetListBytes, assetListTooLong)
	case routeAssetsUpload:
		return forwardUploadTimeout, c.body.limit(assetFormBytes, assetFormTooLong)
	}
	return forwardTimeout, c.body.limit(controlBodyBytes, controlBodyTooLong)
}

func unreachable(cause error) error {
	return later(http.StatusServiceUnavailable, "Accounts, namespaces and tokens cannot be reached at this moment. Please try again.", cause)
}

// passedBody is the body of a request that is passed on. Whoever reads it may go
// on after the answer: Close waits for it and ends it.
type passedBody struct {
	mu     sync.Mutex // guards the rest
	body   *body
	err    error // that reading ended with, other than io.EOF
	closed bool
}

func (b *passedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.body.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *passedBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// failed reports whether the body could not be read as it should be.
func (b *passedBody) failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil
}

// passedAnswer passes an answer on to the client, unless it is to be another one.
type passedAnswer struct {
	call    *call
	header  http.Header
	body    passedBody
	refused error // why the answer is not passed on
	dropped bool
	late    *time.Timer // ends the request
}

// Hijack is for a request that becomes a WebSocket: what then goes to and fro is
// no answer, and has all the time that both sides give it.
func (w *passedAnswer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.call.w).Hijack()
	if err == nil {
		w.call.status = http.StatusSwitchingProtocols
		w.late.Stop()
		err = conn.SetDeadline(time.Time{})
	}
	return conn, buffered, err
}

func (w *passedAnswer) Header() http.Header { return w.header }

// WriteHeader refuses what a proxy says of its own: the API's answers are JSON.
func (w *passedAnswer) WriteHeader(status int) {
	c := w.call
	if status < 200 || c.status != 0 || w.dropped {
		return
	}
	isJSON := strings.HasPrefix(w.header.Get("Content-Type"), "application/json")
	if w.dropped = w.body.failed() || status >= 500 && !isJSON; w.dropped {
		w.refused = fmt.Errorf("the server that was asked answered with status %d", status)
		return
	}
	maps.Copy(c.w.Header(), w.header)
	c.head(status)
}

func (w *passedAnswer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.dropped {
		return len(p), nil
	}
	n, err := w.call.w.Write(p)
	w.call.sent += int64(n)
	return n, err
}

// Unwrap lets a http.ResponseController reach the connection.
func (w *passedAnswer) Unwrap() http.ResponseWriter { return w.call.w }
