package client

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Codes of the KV API that callers decide by.
const (
	CodeKeyNotFound          = 10009
	CodeNamespaceID          = 10011
	CodeNamespaceNotFound    = 10013
	CodeTitleTaken           = 10014
	CodeBulkGet              = 10029 // among others: a value that is not text
	CodeExpiration           = 10033
	CodeExpirationTTL        = 10034
	CodeAuthentication       = 10000
	CodeUnauthorized         = 9109
	CodeMissingAuthorization = 9106
)

// Detail is one of the errors that the server named.
type Detail struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Error is an answer of the server that is not a success.
type Error struct {
	Method, Path string // of the call
	StatusCode   int    // of HTTP
	Errors       []Detail
	Text         string        // the begin of an answer that was not of the API
	RetryAfter   time.Duration // as the server asked for; 0: it did not
	RequestID    string        // by which the server's log names the request, if it said
}

// Code is the first code that the server named, or 0.
func (e *Error) Code() int {
	if len(e.Errors) == 0 {
		return 0
	}
	return e.Errors[0].Code
}

// Message is what the server said.
func (e *Error) Message() string {
	if len(e.Errors) == 0 {
		if e.Text != "" {
			return e.Text
		}
		return http.StatusText(e.StatusCode)
	}
	messages := make([]string, len(e.Errors))
	for i, d := range e.Errors {
		messages[i] = d.Message
	}
	return strings.Join(messages, "; ")
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s (HTTP %d", e.Message(), e.StatusCode)
	if code := e.Code(); code != 0 {
		s += fmt.Sprintf(", code %d", code)
	}
	if e.RequestID != "" && e.StatusCode >= http.StatusInternalServerError {
		s += ", request " + e.RequestID
	}
	return s + ")"
}

// NotFound reports whether the key, namespace or token of the call does not exist.
func (e *Error) NotFound() bool { return e.StatusCode == http.StatusNotFound }

// Denied reports whether the credentials were missing, not accepted, or lack a right.
func (e *Error) Denied() bool {
	switch e.Code() {
	case CodeAuthentication, CodeUnauthorized, CodeMissingAuthorization:
		return true
	}
	return e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden
}

// Overloaded reports whether the server could not take the call now, and may later.
func (e *Error) Overloaded() bool {
	switch e.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// ErrUnreachable is wrapped by errors of calls that got no answer from a server.
var ErrUnreachable = errors.New("server unreachable")

// connectionError is a call without an answer. Its outcome is not known.
type connectionError struct {
	call call
	err  error
}

func (e *connectionError) Error() string {
	err := e.err
	var address *url.Error
	if errors.As(err, &address) { // which repeats what is said here anyway
		err = address.Err
	}
	return fmt.Sprintf("%v: %s %s: %v", ErrUnreachable, e.call.method, e.call.path, err)
}

func (e *connectionError) Unwrap() []error { return []error{ErrUnreachable, e.err} }

// notSent reports whether the request cannot have reached the server.
func (e *connectionError) notSent() bool {
	var op *net.OpError
	return errors.As(e.err, &op) && op.Op == "dial"
}

// notTrusted reports whether the server's certificate was not accepted, which
// another attempt does not change.
func (e *connectionError) notTrusted() bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(e.err, &certificate)
}

// readError is the Error of an answer.
func readError(res *http.Response, call call) error {
	e := &Error{
		Method: call.method, Path: call.path, StatusCode: res.StatusCode,
		RetryAfter: retryAfter(res.Header.Get("Retry-After"), time.Now()),
		RequestID:  firstOf(res.Header, "X-Request-Id", "Cf-Ray"),
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes))
	var env envelope[json.RawMessage]
	if err != nil || json.Unmarshal(body, &env) != nil {
		e.Text = firstLine(body)
		return e
	}
	e.Errors = env.Errors
	return e
}

func firstOf(h http.Header, names ...string) string {
	for _, name := range names {
		if v := h.Get(name); v != "" {
			return v
		}
	}
	return ""
}

// firstLine is the begin of an answer, short enough for an error message.
func firstLine(body []byte) string {
	const most = 200
	s, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s), "\uFFFD")
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseInt(s, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
