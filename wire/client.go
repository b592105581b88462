package wire

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/feed"
	"github.com/nearkey/nearkey/kv"
)

// Connections of a client.
const (
	maxConnections     = 256 // for calls; those of the feed and its acknowledgements are beside them
	maxIdleConnections = 64
	idleFor            = 90 * time.Second
	expectFrom         = 256 << 10 // a request of this size asks whether it is welcome before it is sent
)

// ClientConfig is what the owner of a client may choose. URL must be set.
type ClientConfig struct {
	URL    string      // http://HOST:PORT, https://HOST:PORT or unix:///PATH; see CheckURL
	Secret []byte      // of the handler; nil: the certificate in TLS says who calls
	TLS    *tls.Config // for https; nil: the system's authorities, TLS 1.3

	// PoP is the point of presence of this process, if it is shared with others
	// that follow the same handler. Its writes are acknowledged when the others
	// know of them; see package feed.
	PoP string

	Timeout time.Duration // of a call whose context sets none, and the most that one may take; 0: DefaultTimeout

	// Dial makes connections; nil: the network that URL names.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is the store behind a handler elsewhere, and its feed. It is a kv.Store
// with every optional ability but the change log. Consistency and durability are
// those of the store behind it. It need not be closed, but Close gives idle
// connections back.
type Client struct {
	base    string // the URL as the HTTP client wants it
	invalid error  // why URL cannot be used
	bearer  string
	member  feed.Member
	timeout time.Duration

	calls *http.Client // connections are used again
	fresh *http.Client // every call has its own: for second attempts
	feeds *http.Client // of the feed
}

var (
	_ kv.Store    = (*Client)(nil)
	_ feed.Stream = (*Client)(nil)
)

// CheckURL returns an error if a client cannot use a URL.
func CheckURL(text string) error {
	_, _, err := parseURL(text)
	return err
}

// parseURL returns the URL as the HTTP client wants it, and the path of the unix
// socket if it names one.
func parseURL(text string) (base, socket string, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", fmt.Errorf("wire: %w", err)
	}
	switch {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", "", fmt.Errorf("wire: URL %q: nothing but scheme, host and port, or the path of a unix socket, is possible", u.Redacted())
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		return "http://unix", u.Path, nil
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.Trim(u.Path, "/") == "":
		return u.Scheme + "://" + u.Host, "", nil
	}
	return "", "", fmt.Errorf("wire: URL %q: want http://HOST:PORT, https://HOST:PORT or unix:///PATH", text)
}

// NewClient returns a Client; nothing is connected before the first call. With a
// URL that CheckURL refuses every call fails.
func NewClient(c ClientConfig) *Client {
	base, socket, err := parseURL(c.URL)
	client := &Client{base: base, invalid: err, timeout: c.Timeout}
	if client.timeout <= 0 {
		client.timeout = DefaultTimeout
	}
	if len(c.Secret) > 0 {
		client.bearer = bearer(c.Secret)
	}
	if c.PoP != "" {
		client.member.PoP = c.PoP
		_, _ = rand.Read(client.member.ID[:]) // never fails
	}
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: connectWithin}).DialContext
	}
	if socket != "" {
		inner := dial
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return inner(ctx, "unix", socket) }
	}
	config := c.TLS
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	client.calls = &http.Client{Transport: transport(dial, config, maxConnections), CheckRedirect: noRedirect}
	alone := transport(dial, config, maxConnections)
	alone.DisableKeepAlives = true
	client.fresh = &http.Client{Transport: alone, CheckRedirect: noRedirect}
	client.feeds = &http.Client{Transport: transport(dial, config, 0), CheckRedirect: noRedirect}
	return client
}

// transport returns one for HTTP/1.1 alone: many connections, each used again.
func transport(dial func(ctx context.Context, network, address string) (net.Conn, error), config *tls.Config, connections int) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: dial, TLSClientConfig: config.Clone(), TLSHandshakeTimeout: 2 * connectWithin, Protocols: protocols,
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: maxIdleConnections, IdleConnTimeout: idleFor,
		ExpectContinueTimeout: time.Second, DisableCompression: true,
		ReadBufferSize: 16 << 10, WriteBufferSize: 16 << 10,
	}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close gives idle connections back. The client can still be used.
func (c *Client) Close() {
	c.calls.CloseIdleConnections()
	c.fresh.CloseIdleConnections()
	c.feeds.CloseIdleConnections()
}

// do makes a call and gives the answer to read. A connection that fails is
// replaced once. write says that the call changes the store.
func (c *Client) do(ctx context.Context, op string, p *payload, write bool, read func(*reader) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wire: %s: %w", op, err)
	}
	if c.invalid != nil {
		return c.invalid
	}
	within, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.attempt(within, c.calls, op, p, read)
	if err == nil {
		return nil
	}
	notDone := unsent(err)
	if !toldByOther(err) && !errors.Is(err, errMalformed) && !errors.Is(err, kv.ErrOverloaded) && within.Err() == nil {
		err = c.attempt(within, c.fresh, op, p, read)
		notDone = notDone && unsent(err)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("wire: %s: %w", op, c.explain(ctx, err, write && !notDone))
}

// explain gives an error its kind for the caller. maybeDone says that the call
// may have changed the store.
func (c *Client) explain(ctx context.Context, err error, maybeDone bool) error {
	kind := kv.ErrUnavailable
	if maybeDone {
		kind = kv.ErrUnknown
	}
	switch {
	case ctx.Err() != nil && maybeDone:
		return fmt.Errorf("%w: %w: %w", kind, ctx.Err(), err)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case errors.Is(err, errUnauthenticated) || errors.Is(err, errVersion):
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err) // of this hop, not of the caller's
	case errors.Is(err, errMalformed) || errors.Is(err, kv.ErrOverloaded):
		return err
	case toldByOther(err) && !errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// unsent reports whether a call has failed before anything was sent.
func unsent(err error) bool {
	if errors.Is(err, errUnauthenticated) || errors.Is(err, errVersion) {
		return true
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// attempt makes a call over one connection.
func (c *Client) attempt(ctx context.Context, over *http.Client, op string, p *payload, read func(*reader) error) error {
	resp, err := c.ask(ctx, over, op, p)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // nothing is left to be read
	body := bodies.Get().(*reader)
	body.Reset(resp.Body)
	defer func() {
		body.Reset(nil)
		bodies.Put(body)
	}()
	if resp.StatusCode != http.StatusOK {
		return refusal(body)
	}
	if err := read(body); err != nil {
		return err
	}
	return drain(body.Reader)
}

// ask sends a request and returns an answer of this protocol.
func (c *Client) ask(ctx context.Context, over *http.Client, op string, p *payload) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+pathPrefix+"v"+version+"/"+op, p.reader())
	if err != nil {
		return nil, err
	}
	req.ContentLength = p.len()
	req.Header["Content-Type"] = []string{contentType}
	if c.bearer != "" {
		req.Header["Authorization"] = []string{c.bearer}
	}
	if until, ok := ctx.Deadline(); ok {
		req.Header[deadlineHeader] = []string{strconv.FormatInt(max(0, time.Until(until).Milliseconds()), 10)}
	}
	if p.len() >= expectFrom {
		req.Header["Expect"] = []string{"100-continue"}
	}
	resp, err := over.Do(req)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // the method and URL say nothing here
		}
		return nil, err
	}
	if resp.Header.Get(versionHeader) == "" {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the answer %q is not of this protocol: what answers at %s is no nearkey, or something is between", resp.Status, c.base)
	}
	return resp, nil
}

// refusal reads the error that an answer is.
func refusal(body *reader) error {
	f, err := body.next(maxSectionBytes)
	if err != nil {
		return err
	}
	return f.remoteError()
}

// drain reads what a later version may have added, so that the connection can be
// used again, and finds out whether the answer is complete.
func drain(body *bufio.Reader) error {
	const most = 64 << 10
	n, err := body.WriteTo(limited{left: most})
	switch {
	case errors.Is(err, errMuch):
		return nil // the connection is not used again
	case err != nil:
		return fmt.Errorf("read a message: after %d further bytes: %w", n, err)
	}
	return nil
}

var errMuch = errors.New("more than is read")

// limited takes a number of bytes and does nothing with them.
type limited struct{ left int }

func (l limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		return 0, errMuch
	}
	return len(b), nil
}
