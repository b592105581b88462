package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// keepAlive finds out about a server that is gone without a word.
const keepAlive = 15 * time.Second

// minDial is the least that an address is given when there are more to try.
const minDial = 2 * time.Second

// deniedPort is that of mail servers: an open way to them is soon on the lists of
// those who block spam.
const deniedPort = "25"

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func (s *Server) transport(dial dialFunc) *http.Transport {
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{RootCAs: s.config.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    s.config.TLSTimeout,
		ResponseHeaderTimeout:  s.config.AnswerTimeout,
		MaxResponseHeaderBytes: int64(s.config.MaxHeaderBytes),
		IdleConnTimeout:        s.config.ConnIdle,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		DisableCompression:     true, // what the Worker asks for is what it gets
		ForceAttemptHTTP2:      true,
	}
}

// dialOrigin connects to what the operator named.
func (s *Server) dialOrigin(ctx context.Context, network, address string) (net.Conn, error) {
	return s.dial(ctx, network, address, func(netip.Addr) *deniedError { return nil })
}

// dialOutside connects to what a Worker named, if it may.
func (s *Server) dialOutside(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &dialError{err}
	}
	name := strings.TrimSuffix(host, ".")
	switch {
	case named(s.policy.denyHosts, name):
		return nil, &deniedError{host: name}
	case port == deniedPort:
		return nil, &deniedError{host: name, port: port}
	case named(s.policy.allowHosts, name):
		return s.dialOrigin(ctx, network, address)
	}
	return s.dial(ctx, network, address, s.policy.refuse)
}

// dial looks a name up, once, and connects to the first of its addresses that is not
// refused and answers. It dials addresses, never names: what a name becomes after it
// was judged does not matter.
func (s *Server) dial(ctx context.Context, network, address string, refuse func(netip.Addr) *deniedError) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.DialTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &dialError{err}
	}
	addresses, err := s.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var denied *deniedError
	open := addresses[:0:0]
	for _, a := range addresses {
		if no := refuse(a); no != nil {
			no.host, denied = strings.TrimSuffix(host, "."), no
			continue
		}
		open = append(open, a)
	}
	if len(open) == 0 && denied != nil {
		return nil, denied
	}
	conn, err := connect(ctx, network, open, port)
	if err != nil {
		return nil, err
	}
	return &outgoing{conn, s.config.BodyPause}, nil
}

// outgoing is a connection to a server, which must take what it is sent.
type outgoing struct {
	net.Conn
	pause time.Duration
}

func (o *outgoing) Write(b []byte) (int, error) {
	if err := o.SetWriteDeadline(time.Now().Add(o.pause)); err != nil {
		return 0, err
	}
	return o.Conn.Write(b)
}

func (o *outgoing) CloseWrite() error { return closeWrite(o.Conn) }

// lookup returns the addresses of a host, at least one.
func (s *Server) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	addresses, err := s.config.Resolver.LookupNetIP(ctx, "ip", host)
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return nil, err
	case err != nil:
		return nil, &net.DNSError{Err: err.Error(), Name: host, IsTimeout: timedOut(err)}
	case len(addresses) == 0:
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	return addresses, nil
}

// connect tries addresses in turn; each has its share of the time that is left.
func connect(ctx context.Context, network string, addresses []netip.Addr, port string) (net.Conn, error) {
	var first error
	for i, a := range addresses {
		dialer := net.Dialer{KeepAlive: keepAlive}
		if deadline, ok := ctx.Deadline(); ok {
			dialer.Timeout = max(time.Until(deadline)/time.Duration(len(addresses)-i), minDial)
		}
		conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &dialError{first}
}
