package egress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
)

// The statuses of Cloudflare for what goes wrong on the way to a server.
const (
	statusUnknown      = 520
	statusDown         = 521
	statusDialTimeout  = 522
	statusUnreachable  = 523
	statusTimeout      = 524
	statusHandshake    = 525
	statusCertificate  = 526
	statusOther        = 530 // with a code in the body
	codeDNS            = 1016
	codeLoop           = 1019
	tooManySubrequests = "Too many subrequests."
)

// A deniedError is what the policy says no to.
type deniedError struct {
	host string
	kind string // of the address; empty: it is the host itself
	port string // that nobody may reach
}

func (d *deniedError) Error() string {
	switch {
	case d.port != "":
		return fmt.Sprintf("egress denied: port %s, of mail servers, may not be reached from Workers", d.port)
	case d.kind == "":
		return fmt.Sprintf("egress denied: the host %q may not be reached from Workers", d.host)
	case d.kind == "public":
		return fmt.Sprintf("egress denied: %q may not be reached from Workers, because workers.egress is \"none\"; the setting workers.egress_allow of the server allows hosts and ranges", d.host)
	}
	return fmt.Sprintf("egress denied: %q is at a %s address, which Workers may not reach; the setting workers.egress_allow of the server allows hosts and ranges", d.host, d.kind)
}

// A dialError is why there is no connection.
type dialError struct{ err error }

func (d *dialError) Error() string { return d.err.Error() }
func (d *dialError) Unwrap() error { return d.err }

// A fault is what a Worker is answered instead of what it wanted.
type fault struct {
	status, code int
	text         string
}

// faultOf finds the answer to an error on the way to a server.
func faultOf(err error, host string, handshake bool) fault {
	var denied *deniedError
	var dial *dialError
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	q := strconv.Quote(host)
	switch {
	case errors.As(err, &denied):
		return fault{http.StatusForbidden, 0, denied.Error()}
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return fault{statusOther, codeDNS, "the name " + q + " does not resolve"}
		}
		return fault{statusOther, codeDNS, "the name " + q + " cannot be looked up at the moment"}
	case errors.As(err, &dial):
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return fault{statusDown, 0, "the server " + q + " refuses connections"}
		case timedOut(err):
			return fault{statusDialTimeout, 0, "the server " + q + " does not take the connection in time"}
		}
		return fault{statusUnreachable, 0, "the server " + q + " cannot be reached"}
	case errors.As(err, &certificate):
		return fault{statusCertificate, 0, "the certificate of " + q + " is not valid: " + certificate.Err.Error()}
	case handshake:
		return fault{statusHandshake, 0, "there is no TLS handshake with the server " + q}
	case timedOut(err):
		return fault{statusTimeout, 0, "the server " + q + " does not answer in time"}
	}
	return fault{statusUnknown, 0, "the server " + q + " closed the connection, or answered what is not HTTP"}
}

func timedOut(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// answer answers with a fault, as a page of Cloudflare's for programs: the code, if
// there is one, comes first.
func (f fault) answer(w http.ResponseWriter, r *http.Request) {
	text := f.text + "\n"
	if f.code != 0 {
		text = "error code: " + strconv.Itoa(f.code) + "\n" + text
	}
	h := w.Header()
	clear(h)
	h["Date"] = nil
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "private, no-store")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(f.status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text) // a Worker that is gone needs no error
	}
	_ = http.NewResponseController(w).Flush()
}
