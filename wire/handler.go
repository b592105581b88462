package wire

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// Bounds of a handler, unless HandlerConfig says otherwise.
const (
	DefaultBodyBytes     = 256 << 20
	DefaultCalls         = 4096
	DefaultSubscriptions = 1024
)

// HandlerConfig is what the owner of a handler may choose. Store must be set.
type HandlerConfig struct {
	Store kv.Store
	Hub   *feed.Hub // nil: no feed, and no shared points of presence

	// Secret is what callers must show; see ReadSecret. nil: only callers with a
	// certificate that the listener has verified are let in (ServerTLS).
	Secret []byte

	Logger        *slog.Logger // nil: no log
	BodyBytes     int64        // bytes of bodies and values that all calls hold at once; 0: DefaultBodyBytes
	Calls         int          // calls at once; 0: DefaultCalls
	Subscriptions int          // readers of the feed at once; 0: DefaultSubscriptions
}

// Handler is the http.Handler of everything under /wire/.
type Handler struct {
	store  kv.Store
	hub    *feed.Hub
	secret []byte // hash of the header; nil: certificates only
	logger *slog.Logger
	door   door
	calls  chan struct{}
	feeds  chan struct{}
	ending chan struct{} // closed by EndFeeds
	end    sync.Once

	mu            sync.Mutex // guards subscriptions
	subscriptions map[uint64]*feed.Subscription
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler.
func NewHandler(c HandlerConfig) *Handler {
	h := &Handler{store: c.Store, hub: c.Hub, logger: c.Logger, ending: make(chan struct{}), subscriptions: map[uint64]*feed.Subscription{}}
	if len(c.Secret) > 0 {
		h.secret = hashed(bearer(c.Secret))
	}
	if h.logger == nil {
		h.logger = slog.New(slog.DiscardHandler)
	}
	h.door.size = or(c.BodyBytes, DefaultBodyBytes)
	h.calls = make(chan struct{}, or(c.Calls, DefaultCalls))
	h.feeds = make(chan struct{}, or(c.Subscriptions, DefaultSubscriptions))
	return h
}

func or[T int | int64](n, otherwise T) T {
	if n <= 0 {
		return otherwise
	}
	return n
}

func bearer(secret []byte) string {
	return "Bearer " + base64.RawURLEncoding.EncodeToString(secret)
}

func hashed(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

// EndFeeds ends every reading of the feed, now and from now on, so that a server
// can shut down: readers come back to whoever serves then.
func (h *Handler) EndFeeds() { h.end.Do(func() { close(h.ending) }) }

// call is one request that was let in.
type call struct {
	h    *Handler
	w    http.ResponseWriter
	conn *http.ResponseController
	req  *http.Request
	body *reader
	hold *hold
}

// operations do their work and return the answer.
var operations = map[string]func(*call, context.Context) (*payload, error){
	opGet: (*call).get, opPut: (*call).put, opList: (*call).list, opGetMany: (*call).getMany, opPutMany: (*call).putMany,
	opForget: (*call).forget, opDrop: (*call).drop, opNamespaces: (*call).namespaces, opAck: (*call).ack,
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(versionHeader, version)
	w.Header().Set("Content-Type", contentType)
	conn := http.NewResponseController(w)
	op, err := h.letIn(r)
	if err != nil {
		refuse(w, conn, err)
		return
	}
	places := h.calls
	if op == opFeed {
		places = h.feeds
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		refuse(w, conn, fmt.Errorf("%d calls are under way: %w", cap(places), kv.ErrOverloaded))
		return
	}
	c := &call{h: h, w: w, conn: conn, req: r, hold: &hold{door: &h.door}}
	defer c.hold.close()
	c.serve(op)
}

// letIn returns the operation of a request, if its sender may ask for it.
func (h *Handler) letIn(r *http.Request) (op string, err error) {
	if !h.knows(r) {
		return "", errUnauthenticated
	}
	major, op, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, pathPrefix), "/")
	switch _, known := operations[op]; {
	case !ok || major != "v"+version:
		return "", fmt.Errorf("%w: this process speaks /wire/v%s/, it was asked for %s", errVersion, version, shown(r.URL.Path))
	case !known && op != opFeed:
		return "", fmt.Errorf("operation %s: %w", shown(op), kv.ErrUnsupported)
	case r.Method != http.MethodPost:
		return "", fmt.Errorf("%w: the method is POST, not %s", errMalformed, shown(r.Method))
	case r.ContentLength < 0 || r.ContentLength > MaxBodyBytes:
		return "", fmt.Errorf("%w: a body of %d bytes; its length must be told and at most %d", errMalformed, r.ContentLength, MaxBodyBytes)
	}
	return op, nil
}

// knows reports whether the sender of a request has shown who it is.
func (h *Handler) knows(r *http.Request) bool {
	if h.secret == nil {
		return r.TLS != nil && len(r.TLS.VerifiedChains) > 0
	}
	return subtle.ConstantTimeCompare(hashed(r.Header.Get("Authorization")), h.secret) == 1
}

func shown(s string) string { return strconv.QuoteToASCII(s[:min(len(s), 80)]) }

// refuse answers with an error.
func refuse(w http.ResponseWriter, conn *http.ResponseController, err error) {
	_, status := kindOf(err)
	var p payload
	mark := p.begin()
	p.error(err)
	p.end(mark)
	_ = conn.SetWriteDeadline(time.Now().Add(grace)) // where there is no such thing, the server has its own
	w.Header().Set("Content-Length", strconv.FormatInt(p.len(), 10))
	w.WriteHeader(status)
	_ = p.writeTo(w) // nobody is left to tell
}

// deadline is how long a caller waits.
func deadline(r *http.Request) time.Duration {
	ms, err := strconv.ParseInt(r.Header.Get(deadlineHeader), 10, 64)
	if err != nil || ms < 0 {
		return DefaultTimeout
	}
	return min(time.Duration(min(ms, int64(maxDeadline/time.Millisecond)))*time.Millisecond, maxDeadline)
}

var bodies = sync.Pool{New: func() any { return &reader{Reader: bufio.NewReaderSize(nil, 16<<10)} }}

// serve does the operation within the deadline.
func (c *call) serve(op string) {
	within := deadline(c.req)
	_ = c.conn.SetReadDeadline(time.Now().Add(within + grace)) // as in refuse
	ctx, cancel := context.WithTimeout(c.req.Context(), within)
	defer cancel()
	ctx = kv.WithReserver(ctx, c.hold.take)

	c.body = bodies.Get().(*reader)
	c.body.Reset(c.req.Body)
	defer func() {
		c.body.Reset(nil)
		bodies.Put(c.body)
	}()
	if op == opFeed {
		c.feed()
		return
	}
	p, err := operations[op](c, ctx)
	if err != nil {
		if kind, _ := kindOf(err); kind == kindInternal {
			c.h.logger.Error("wire: a call went wrong", "operation", op, "error", err)
		}
		refuse(c.w, c.conn, err)
		return
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(within + grace)) // as in refuse
	c.w.Header().Set("Content-Length", strconv.FormatInt(p.len(), 10))
	if err := p.writeTo(c.w); err != nil && !errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // the answer ends in its middle, and so must the connection
	}
}
