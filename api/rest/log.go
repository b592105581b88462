package rest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// slowRequest is how long a request takes that is worth a line in the log.
const slowRequest = 5 * time.Second

// The log never holds values, tokens, metadata or keys: of a key only its length.
// Requests that went as they should are logged at Debug, slow ones at Info, and
// those that failed through our fault at Warn, with what was behind it.

// logEnd writes the line of a request.
func (s *Server) logEnd(c *call, took time.Duration) {
	level := slog.LevelDebug
	switch {
	case c.status >= 500:
		level = slog.LevelWarn
	case took >= slowRequest && c.status != http.StatusSwitchingProtocols: // which is meant to last
		level = slog.LevelInfo
	}
	// The request is over and its context with it; the line carries its id itself.
	ctx := context.WithoutCancel(c.r.Context())
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request_id", c.id),
		slog.String("method", knownMethod(c.r.Method)),
		slog.String("op", c.op.name),
		slog.Int("status", c.status),
		slog.Duration("took", took),
		slog.Int64("bytes_in", c.body.got),
		slog.Int64("bytes_out", c.sent),
	}
	if c.code != 0 {
		attrs = append(attrs, slog.Int("code", c.code))
	}
	if c.space != [16]byte{} {
		attrs = append(attrs, slog.String("namespace", c.space.String()))
	}
	if len(c.keys) == 1 {
		attrs = append(attrs, slog.Int("key_bytes", len(c.keys[0])))
	}
	if len(c.keys) > 1 {
		attrs = append(attrs, slog.Int("keys", len(c.keys)))
	}
	if id := c.grant.Token.ID; id != "" {
		attrs = append(attrs, slog.String("token_id", id))
	}
	if c.cause != nil {
		attrs = append(attrs, slog.String("error", c.redact(c.cause.Error())))
	}
	s.log.LogAttrs(ctx, level, "request", attrs...)
}

// knownMethod is the method, unless the client made it up.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodPatch, http.MethodOptions:
		return method
	}
	return "other"
}

// redact takes what may be a user's own out of a text: the keys of the request,
// and whatever is quoted, for errors of stores quote the keys that they meet.
func (c *call) redact(text string) string {
	for _, key := range c.keys {
		if key != "" {
			text = strings.ReplaceAll(text, strconv.Quote(key), "[key]")
			text = strings.ReplaceAll(text, key, "[key]")
		}
	}
	var out strings.Builder
	for {
		before, after, found := strings.Cut(text, `"`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		quoted, err := strconv.QuotedPrefix(`"` + after)
		if err != nil { // cut off: what follows may be a part of a key
			return out.String() + "[…"
		}
		out.WriteString("[quoted]")
		text = after[len(quoted)-1:]
	}
}

// panicked answers a request whose handler had a bug. The server lives on.
func (s *Server) panicked(c *call, p any) {
	if p == http.ErrAbortHandler {
		c.status = statusAborted
		return
	}
	s.metrics.Panicked()
	s.log.LogAttrs(context.WithoutCancel(c.r.Context()), slog.LevelError, "panic in a request handler",
		slog.String("request_id", c.id), slog.String("op", c.op.name),
		slog.String("panic", c.redact(fmt.Sprint(p))), slog.String("stack", string(debug.Stack())))
	s.fail(c.r.Context(), c, fmt.Errorf("panic: %v", p))
}
