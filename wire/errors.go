package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/nearkey/nearkey/kv"
)

// The kinds of error that cross the wire.
const (
	kindInternal = iota
	kindUnavailable
	kindFull
	kindOverloaded
	kindFuture
	kindUnknown
	kindUnsupported
	kindCursorGone
	kindRule
	kindDeadline
	kindMalformed
	kindUnauthenticated
	kindVersion
	kindDamaged
)

var (
	errUnauthenticated = errors.New("the secret or certificate is not accepted")
	errVersion         = errors.New("version of the protocol not spoken")
	errInternal        = errors.New("internal error")
)

// kinds in the order in which an error is looked through: one that is several is
// the first.
var kinds = []struct {
	kind   uint64
	err    error
	status int
}{
	{kindRule, kv.ErrRule, http.StatusBadRequest},
	{kindCursorGone, kv.ErrCursorGone, http.StatusGone},
	{kindUnsupported, kv.ErrUnsupported, http.StatusNotImplemented},
	{kindFuture, kv.ErrFuture, http.StatusServiceUnavailable},
	{kindFull, kv.ErrFull, http.StatusInsufficientStorage},
	{kindDamaged, kv.ErrDamaged, http.StatusInternalServerError},
	{kindOverloaded, kv.ErrOverloaded, http.StatusServiceUnavailable},
	{kindUnknown, kv.ErrUnknown, http.StatusServiceUnavailable},
	{kindUnavailable, kv.ErrUnavailable, http.StatusServiceUnavailable},
	{kindDeadline, context.DeadlineExceeded, http.StatusGatewayTimeout},
	{kindDeadline, context.Canceled, http.StatusGatewayTimeout},
	{kindMalformed, errMalformed, http.StatusBadRequest},
	{kindUnauthenticated, errUnauthenticated, http.StatusUnauthorized},
	{kindVersion, errVersion, http.StatusNotFound},
	{kindInternal, errInternal, http.StatusInternalServerError},
}

// kindOf returns the kind of an error and its HTTP status.
func kindOf(err error) (kind uint64, status int) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.kind, k.status
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return kindMalformed, http.StatusBadRequest // a body that ends early
	}
	return kindInternal, http.StatusInternalServerError
}

// error adds the fields of an error.
func (p *payload) error(err error) {
	kind, _ := kindOf(err)
	text, rule := err.Error(), ""
	var broken *kv.RuleError
	if errors.As(err, &broken) {
		text, rule = broken.Text, string(broken.Rule)
	}
	p.uvarint(kind)
	p.text(text[:min(len(text), maxErrorText)])
	p.text(rule[:min(len(rule), maxErrorText)])
}

// remote is an error that the other side has told.
type remote struct {
	kind error // its kind here
	text string
}

func (e *remote) Error() string { return e.text }
func (e *remote) Unwrap() error { return e.kind }

// remoteError reads the fields of an error. It never returns nil.
func (f *fields) remoteError() error {
	kind, text, rule := f.uvarint(), f.text(maxErrorText), f.text(maxErrorText)
	if f.err != nil {
		return f.err
	}
	if kind == kindRule {
		return &kv.RuleError{Rule: kv.Rule(rule), Text: text}
	}
	e := &remote{kind: errInternal, text: fmt.Sprintf("the other side: %s", text)}
	for _, k := range kinds {
		if k.kind == kind {
			e.kind = k.err
			break
		}
	}
	return e
}

// toldByOther reports whether err is what the other side said, and not what became of
// the connection.
func toldByOther(err error) bool {
	var e *remote
	return errors.As(err, &e) || errors.Is(err, kv.ErrRule)
}
