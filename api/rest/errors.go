package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// Codes that more than one place uses.
const (
	codeKeyNotFound       = 10009
	codeInvalid           = 10012
	codeNamespaceNotFound = 10013
	codeKeyLimit          = 10022
	codeValueLimit        = 10024
	codeMetadataLimit     = 10030
	codeAuthentication    = 10000
	codeInternal          = 10001
	codeLater             = 7010
)

// failure is an answer that is not a success.
type failure struct {
	status     int
	code       int
	text       string
	bare       bool // text is the whole message, without the operation's name
	second     note // a further error of the envelope, if its code is not 0
	chain      note // the error_chain of the first error, if its code is not 0
	retryAfter time.Duration
	final      bool  // tells SDKs not to retry although the status suggests it
	cause      error // for the log
}

type note struct {
	code int
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

// invalid is the failure of a request that makes no sense.
func invalid(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: codeInvalid, text: fmt.Sprintf(format, args...)}
}

// noRoute is the answer to a path that leads nowhere.
func noRoute(path string) error {
	const most = 200
	if len(path) > most {
		path = path[:most] + "…"
	}
	return &failure{status: http.StatusNotFound, code: 7003, bare: true,
		text:   fmt.Sprintf("Could not route to %s, perhaps your object identifier is invalid?", strings.ToValidUTF8(path, "\uFFFD")),
		second: note{7000, "No route for that URI"}}
}

var (
	errUnauthorized = &failure{status: http.StatusForbidden, code: 9109, text: "Unauthorized to access requested resource", bare: true}
	errForbidden    = &failure{status: http.StatusForbidden, code: codeAuthentication, text: "Authentication error", bare: true}
	errKeyNotFound  = &failure{status: http.StatusNotFound, code: codeKeyNotFound, text: "key not found"}
)

// shown is a client's own text, short and clean enough for a message.
func shown(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// message is the text of a failure in the style of the service: op: 'reason'.
func (f *failure) message(op string) string {
	if f.bare || op == "" {
		return f.text
	}
	return op + ": '" + f.text + "'"
}

// failureOf finds the failure that an error is answered with.
func (s *Server) failureOf(c *call, err error) *failure {
	var f *failure
	var rule *kv.RuleError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &rule):
		return s.ruleFailure(c, rule)
	case errors.Is(err, kv.ErrOverloaded):
		return later(http.StatusServiceUnavailable, "The server holds as much as it may at this moment. Please try again shortly.", nil)
	case errors.Is(err, kv.ErrFull):
		full := later(http.StatusInsufficientStorage, "The server is out of disk space: nothing was stored.", err)
		full.final, full.retryAfter = true, 0
		return full
	case errors.Is(err, kv.ErrUnknown):
		return later(http.StatusServiceUnavailable, "It is not known whether the write was done. Please repeat it.", err)
	case errors.Is(err, kv.ErrUnavailable), errors.Is(err, kv.ErrFuture), errors.Is(err, catalog.ErrUnavailable):
		return later(http.StatusServiceUnavailable, "The service is not available at this moment. Please try again.", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return later(http.StatusServiceUnavailable, "The operation was not finished. Please repeat it.", err)
	}
	return &failure{status: http.StatusInternalServerError, code: codeInternal, bare: true,
		text: "internal error (request " + c.id + ")", cause: err}
}

// retryLater is what clients are told to wait before they try again.
const retryLater = time.Second

func later(status int, text string, cause error) *failure {
	return &failure{status: status, code: codeLater, text: text, bare: true, retryAfter: retryLater, cause: cause}
}

// ruleFailure is the answer to a request that broke a rule of the product.
func (s *Server) ruleFailure(c *call, e *kv.RuleError) *failure {
	f := &failure{status: http.StatusBadRequest, code: codeInvalid, text: e.Text}
	inPath := c.route.key != ""
	switch e.Rule {
	case kv.RuleKeyBytes:
		f.code = codeKeyLimit
		if inPath {
			f.status = http.StatusRequestURITooLong
		}
	case kv.RuleKeyEncoding:
		if inPath { // what decoding UTF-8 from the path fails with
			f.text = "Could not URL-decode key name"
		}
	case kv.RuleValueBytes:
		f.status, f.code = http.StatusRequestEntityTooLarge, codeValueLimit
	case kv.RuleMetadata:
		f.code, f.bare = 10147, true
	case kv.RuleMetadataBytes:
		f.status, f.code = http.StatusRequestEntityTooLarge, codeMetadataLimit
	case kv.RuleExpiration:
		f.code = 10033
	case kv.RuleExpirationTTL:
		f.code = 10034
	case kv.RuleGetManyKeys:
		f.code = 10029
	case kv.RuleGetManyBytes:
		f.status, f.code = http.StatusRequestEntityTooLarge, codeValueLimit
	case kv.RulePutManyPairs, kv.RuleDeleteManyKeys:
		f.code = codeKeyLimit
	case kv.RuleWriteRate:
		f.status, f.code = http.StatusTooManyRequests, 10429
		f.retryAfter = max(s.rules.Limits.WriteInterval, time.Second)
	}
	return f
}

// bodyFailure is the answer to a body that could not be read to its end.
func bodyFailure(err error) error {
	var f *failure
	switch {
	case errors.As(err, &f), errors.Is(err, kv.ErrOverloaded), errors.Is(err, kv.ErrRule):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &failure{status: http.StatusRequestTimeout, code: codeInvalid, text: "The request body arrived too slowly"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("The request body ended early; nothing was stored")
	}
	return invalid("The request body could not be read; nothing was stored")
}

// catalogFailure is the answer to what the catalog refuses.
func catalogFailure(err error) error {
	switch {
	case errors.Is(err, catalog.ErrTitleMissing):
		return &failure{status: http.StatusBadRequest, code: 10019, text: "request is missing a title definition", bare: true}
	case errors.Is(err, catalog.ErrTitleTaken):
		return &failure{status: http.StatusBadRequest, code: 10014, text: "a namespace with this account ID and title already exists"}
	case errors.Is(err, catalog.ErrTitleTooLong):
		return &failure{status: http.StatusBadRequest, code: 10035, text: "a title has at most 512 characters"}
	case errors.Is(err, catalog.ErrTooManyNamespaces):
		return &failure{status: http.StatusBadRequest, code: 10018, text: "this account has as many namespaces as it may have"}
	case errors.Is(err, catalog.ErrNotFound):
		return &failure{status: http.StatusNotFound, code: codeNamespaceNotFound, text: "namespace not found"}
	}
	return err
}
