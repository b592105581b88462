// Package admin is the administration of a nearkey server over HTTP: what its
// gateway, providers and shards do, and how they are told to do something else.
//
// It is no part of the dialect that clients speak, and lives beside it under
// /nearkey/v1/. Only the root token may use it. Answers are JSON in the frame of
// the dialect. Work that takes its time answers in lines of JSON while it goes on:
// any number of {"progress":…}, and one {"result":…} or {"error":…} at the end. It
// ends when its caller goes away or the server stops.
//
//	GET  /repair                        what providers and the repair of differences do
//	POST /repair/crawl                  compare all providers once, now (lines)
//	POST /verify                        compare, and tell or repair what differs (lines)
//	POST /providers/NAME/CHANGE         fill, promote, remove or distrust a provider
//	GET  /shards                        where the keys of providers are, and moves
//	POST /shards/PROVIDER/CHANGE        move, drain, rebalance or spread
//	GET  /namespaces/ID/ack             how writes of a namespace are acknowledged
//	PUT  /namespaces/ID/ack             choose that
//
// The package keeps nothing, and may lose calls that are under way: what they
// have begun goes on or can be asked for again.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// Prefix is where the paths of the administration begin.
const Prefix = "/nearkey/v1/"

// Limits of the administration.
const (
	MaxBodyBytes       = 64 << 10         // of a request
	MaxWork            = 8                // pieces of work that answer in lines, at once
	maxTokenBytes      = 1024             // of a token
	writeWithin        = 30 * time.Second // for a caller to take a part of an answer
	progressEvery      = 500 * time.Millisecond
	maxNamespacesAsked = 1000 // in a verification
)

// Codes of errors, beside those of the dialect.
const (
	CodeInvalid     = 20400 // something is wrong with the request
	CodeNotFound    = 20404 // there is no such thing on this server
	CodeRefused     = 20409 // it cannot be done as things are
	CodeOverloaded  = 20429 // too much of it at once
	CodeInternal    = 20500
	CodeUnavailable = 20503 // later perhaps
)

// Config says what is administered. What is nil does not exist on this server.
type Config struct {
	// IsRoot reports whether a token may do everything. It must be set. An error
	// that wraps kv.ErrUnavailable means that it cannot be known now.
	IsRoot func(ctx context.Context, token string) (bool, error)

	Gateway   Gateway
	Providers Providers
	Shards    map[string]Shards // by provider
	Acks      Acks

	Logger *slog.Logger // nil: no log
}

// Handler is the http.Handler of everything under Prefix.
type Handler struct {
	config Config
	mux    *http.ServeMux
	work   chan struct{}
	ending chan struct{} // closed by End
	end    sync.Once
}

var _ http.Handler = (*Handler)(nil)

// New returns a Handler.
func New(config Config) *Handler {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{config: config, mux: http.NewServeMux(), work: make(chan struct{}, MaxWork), ending: make(chan struct{})}
	for pattern, handle := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET " + Prefix + "repair":                      h.getRepair,
		"POST " + Prefix + "repair/crawl":               h.crawl,
		"POST " + Prefix + "verify":                     h.verify,
		"POST " + Prefix + "providers/{name}/{change}":  h.changeProvider,
		"GET " + Prefix + "shards":                      h.getShards,
		"POST " + Prefix + "shards/{provider}/{change}": h.changeShards,
		"GET " + Prefix + "namespaces/{namespace}/ack":  h.getAck,
		"PUT " + Prefix + "namespaces/{namespace}/ack":  h.putAck,
		Prefix: func(_ http.ResponseWriter, r *http.Request) error {
			return notFound("there is no %s %s in the administration of this server; is it of another version?", r.Method, r.URL.Path)
		},
	} {
		h.Handle(pattern, handle)
	}
	return h
}

// Handle adds a path, as a pattern of http.ServeMux that begins with Prefix, before
// anything is served. handle is called for the holder of the root token; an error
// that it returns is answered.
func (h *Handler) Handle(pattern string, handle func(w http.ResponseWriter, r *http.Request) error) {
	h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			h.Fail(w, r, err)
		}
	})
}

// End ends all work that answers in lines, now and from now on, so that a server
// can shut down.
func (h *Handler) End() { h.end.Do(func() { close(h.ending) }) }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if err := h.letIn(r); err != nil {
		h.Fail(w, r, err)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// letIn lets in who shows the root token.
func (h *Handler) letIn(r *http.Request) error {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case scheme == "":
		return &Error{http.StatusForbidden, 9106, "Missing Authorization header: the administration wants the root API token"}
	case !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxTokenBytes:
		return &Error{http.StatusForbidden, 10000, "Authentication error"}
	}
	root, err := h.config.IsRoot(r.Context(), token)
	switch {
	case errors.Is(err, catalog.ErrUnauthenticated):
		return &Error{http.StatusForbidden, 10000, "Authentication error"}
	case err != nil:
		return fmt.Errorf("authenticate: %w", err)
	case !root:
		return &Error{http.StatusForbidden, 9109, "Unauthorized: the administration is for the root API token alone"}
	}
	return nil
}

// Error is an error with the answer that it calls for.
type Error struct {
	Status int // of HTTP
	Code   int
	Text   string
}

func (e *Error) Error() string { return e.Text }

func invalid(format string, args ...any) error {
	return &Error{http.StatusBadRequest, CodeInvalid, fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &Error{http.StatusNotFound, CodeNotFound, fmt.Sprintf(format, args...)}
}

// Refused makes an error one of a request that cannot be done as things are; it
// keeps what is of another kind already.
func Refused(err error) error {
	if e := errorOf(err); e != nil && e.Code == CodeInternal {
		return &Error{http.StatusConflict, CodeRefused, err.Error()}
	}
	return err
}

// errorOf is the answer that an error calls for; nil for none.
func errorOf(err error) *Error {
	var known *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.Is(err, catalog.ErrNotFound):
		return &Error{http.StatusNotFound, CodeNotFound, err.Error()}
	case errors.Is(err, catalog.ErrInvalid), errors.Is(err, kv.ErrUnsupported), errors.Is(err, kv.ErrRule):
		return &Error{http.StatusBadRequest, CodeInvalid, err.Error()}
	case errors.Is(err, kv.ErrOverloaded):
		return &Error{http.StatusTooManyRequests, CodeOverloaded, err.Error()}
	case errors.Is(err, kv.ErrFull):
		return &Error{http.StatusInsufficientStorage, CodeUnavailable, err.Error()}
	case errors.Is(err, kv.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Error{http.StatusServiceUnavailable, CodeUnavailable, err.Error()}
	}
	return &Error{http.StatusInternalServerError, CodeInternal, err.Error()}
}

// note is an error in the frame of an answer.
type note struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// envelope is the frame of an answer.
type envelope struct {
	Success  bool   `json:"success"`
	Errors   []note `json:"errors"`
	Messages []note `json:"messages"`
	Result   any    `json:"result"`
}

// Fail answers with an error. The holder of the root token is told all of it.
func (h *Handler) Fail(w http.ResponseWriter, r *http.Request, err error) {
	e := errorOf(err)
	if e.Status >= http.StatusInternalServerError {
		h.config.Logger.WarnContext(r.Context(), "admin: a call went wrong", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	h.answer(w, e.Status, envelope{Errors: []note{{e.Code, e.Text}}, Messages: []note{}})
}

// Answer answers with a result; nil: none.
func (h *Handler) Answer(w http.ResponseWriter, result any) {
	h.answer(w, http.StatusOK, envelope{Success: true, Errors: []note{}, Messages: []note{}, Result: result})
}

func (h *Handler) answer(w http.ResponseWriter, status int, body envelope) {
	text := line(body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))                       // whole, also for who is still sending
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeWithin)) // a writer that knows none has no slow caller
	w.WriteHeader(status)
	_, _ = w.Write(text) // nobody is left to tell
}

// line is a value as a line of JSON, without the escapes that only HTML needs.
func line(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("admin: write an answer: " + err.Error()) // of types that are made for it
	}
	return buf.Bytes()
}

// read reads the body of a request into a struct, strictly. No body is an empty one.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBodyBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &Error{http.StatusRequestEntityTooLarge, CodeInvalid, fmt.Sprintf("a request has at most %d bytes", MaxBodyBytes)}
	case err != nil:
		return invalid("read the request: %v", err)
	case len(bytes.TrimSpace(text)) == 0:
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return invalid("read the request: %v", err)
	}
	if dec.More() {
		return invalid("read the request: there is something behind its end")
	}
	return nil
}

// parseNamespace reads the id of a namespace.
func parseNamespace(text string) (kv.NamespaceID, error) {
	id, err := kv.ParseNamespaceID(text)
	if err != nil || id == (kv.NamespaceID{}) {
		return kv.NamespaceID{}, invalid("%q is no id of a namespace: want 32 hexadecimal digits", text)
	}
	return id, nil
}
