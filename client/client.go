// Package client speaks the dialect of Workers KV's REST API, to nearkey and to
// any other server of that dialect alike: namespaces, values, metadata, key
// listings, bulk operations and tokens, Workers with their crons and tails, and the
// NDJSON form in which a namespace is exported and imported.
//
// Calls are retried, a bounded number of times, when the server is overloaded or
// cannot be reached and repeating them does no harm. A Client holds connections
// and nothing else; losing it loses nothing.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Config says which server to speak to, and as whom. Either Token or Email and
// Key must be set. AccountID is needed by every call about namespaces, their
// keys and tokens of the account.
type Config struct {
	BaseURL    string // of the API, such as http://127.0.0.1:8790/client/v4
	AccountID  string
	Token      string
	Email, Key string
	HTTPClient *http.Client // nil: one with its own connections
	UserAgent  string       // empty: nearkey
	Attempts   int          // most attempts of one call; 0: DefaultAttempts

	// MaxWait is the longest time that a server may ask to wait before the next
	// attempt; one that asks for more gets no other. 0: DefaultMaxWait
	MaxWait time.Duration
}

// Client is a client of one account on one server. All methods may be called at
// once from many goroutines.
type Client struct {
	config Config
	http   *http.Client
}

// Limits of the client's own.
const (
	// DefaultAttempts is how often a call is tried when Config does not say.
	DefaultAttempts = 6

	// DefaultMaxWait is Config.MaxWait when it does not say.
	DefaultMaxWait = time.Minute

	maxAnswerBytes  = 256 << 20 // of one JSON answer: 25 MiB of values, escaped, and room
	maxErrorBytes   = 1 << 20   // of the answer to a call that failed
	maxConnections  = 64        // idle ones that are kept
	connectTimeout  = 10 * time.Second
	headerTimeout   = 2 * time.Minute // from the end of a request to the begin of its answer
	defaultBasePath = "/client/v4"
)

// New returns a Client. A BaseURL without a path means the API's usual one,
// /client/v4. The credentials are sent to no other host: redirects are not followed.
func New(config Config) (*Client, error) {
	base, err := ParseBaseURL(config.BaseURL)
	if err != nil {
		return nil, err
	}
	config.BaseURL = base
	if config.Token == "" && (config.Email == "" || config.Key == "") {
		return nil, errors.New("client: no credentials: want a token, or an e-mail address and a key")
	}
	if strings.ContainsAny(config.Token+config.Email+config.Key, "\r\n\x00") {
		return nil, errors.New("client: the credentials contain a line break; was more than the token read?")
	}
	if config.Attempts == 0 {
		config.Attempts = DefaultAttempts
	}
	if config.MaxWait == 0 {
		config.MaxWait = DefaultMaxWait
	}
	if config.UserAgent == "" {
		config.UserAgent = "nearkey"
	}
	c := &Client{config: config, http: config.HTTPClient}
	if c.http == nil {
		c.http = &http.Client{
			Transport:     newTransport(),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c, nil
}

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          maxConnections,
		MaxIdleConnsPerHost:   maxConnections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: headerTimeout,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // values are stored bytes, not text to transform
	}
}

// ParseBaseURL returns the base URL of the API in the form that calls are
// appended to: without a slash at its end, and with /client/v4 if it has no path.
func ParseBaseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("API base URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("API base URL %q: want something like http://127.0.0.1:8790/client/v4", u.Redacted())
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	if path == "" {
		path = defaultBasePath
	}
	return u.Scheme + "://" + u.Host + path, nil
}

// AccountID is the account that the Client was made for.
func (c *Client) AccountID() string { return c.config.AccountID }

// BaseURL is the base URL of the API.
func (c *Client) BaseURL() string { return c.config.BaseURL }

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Body is what a request carries. It is opened anew for each attempt.
type Body struct {
	Bytes int64 // its length; negative: not known
	Open  func() (io.ReadCloser, error)
}

// BytesBody is a Body in memory; b must not change while it is in use.
func BytesBody(b []byte) Body {
	return Body{Bytes: int64(len(b)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// call is one request to the API.
type call struct {
	method      string
	path        string // escaped, after the base URL
	query       url.Values
	body        *Body
	contentType string
	idempotent  bool // repeating it, even after it was done, does no harm
	admin       bool // the path comes after that of the administration instead
}

// namespacesPath is the path of the namespaces of the account, followed by elements.
func (c *Client) namespacesPath(elements ...string) string {
	return c.accountPath(append([]string{"storage", "kv", "namespaces"}, elements...)...)
}

func (c *Client) accountPath(elements ...string) string {
	var b strings.Builder
	b.WriteString("/accounts/" + escapePath(c.config.AccountID))
	for _, e := range elements {
		b.WriteString("/" + escapePath(e))
	}
	return b.String()
}

// escapePath percent-encodes every byte that is not unreserved, so that neither a
// server nor a proxy between can take a part of a key for a part of the path.
func escapePath(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// jsonBody is the JSON text of v, with characters such as < as they are.
func jsonBody(v any) (*Body, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	body := BytesBody(buf.Bytes())
	return &body, nil
}

// envelope is what every JSON answer comes in.
type envelope[T any] struct {
	Success    *bool    `json:"success"` // some servers omit it
	Errors     []Detail `json:"errors"`
	Result     T        `json:"result"`
	ResultInfo struct {
		Page       int    `json:"page"`
		PerPage    int    `json:"per_page"`
		TotalPages int    `json:"total_pages"`
		TotalCount int    `json:"total_count"`
		Cursor     string `json:"cursor"`
		Cursors    struct {
			After string `json:"after"`
		} `json:"cursors"`
	} `json:"result_info"`
}

// fetch makes a call whose answer is an envelope around a T.
func fetch[T any](ctx context.Context, c *Client, call call) (*envelope[T], error) {
	var env *envelope[T]
	err := c.retry(ctx, call, func() error {
		res, err := c.send(ctx, call)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		env, err = decode[T](res, call)
		return err
	})
	if err != nil {
		return nil, err
	}
	return env, nil
}

func decode[T any](res *http.Response, call call) (*envelope[T], error) {
	body := &countingReader{r: io.LimitReader(res.Body, maxAnswerBytes+1)}
	var env envelope[T]
	switch err := json.NewDecoder(body).Decode(&env); {
	case err == io.EOF && body.n == 0: // 204 and its like
		return &env, nil
	case body.n > maxAnswerBytes:
		return nil, fmt.Errorf("%s %s: the answer is larger than %d bytes", call.method, call.path, maxAnswerBytes)
	case isJSONError(err):
		return nil, fmt.Errorf("%s %s: the answer is not of the KV API (is the base URL right?): %w", call.method, call.path, err)
	case err != nil:
		return nil, &connectionError{call: call, err: err}
	}
	if env.Success != nil && !*env.Success {
		return nil, &Error{Method: call.method, Path: call.path, StatusCode: res.StatusCode, Errors: env.Errors}
	}
	_, _ = io.Copy(io.Discard, body) // so that the connection can be used again
	return &env, nil
}

func isJSONError(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind)
}

// countingReader counts what is read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// send makes one attempt. The answer's status is a success; its body is the caller's.
func (c *Client) send(ctx context.Context, call call) (*http.Response, error) {
	req, err := c.request(ctx, call)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", call.method, call.path, ctx.Err())
		}
		return nil, &connectionError{call: call, err: err}
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, readError(res, call)
}

func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	address := c.config.BaseURL + call.path
	if call.admin {
		address = strings.TrimSuffix(c.config.BaseURL, defaultBasePath) + adminPath + call.path
	}
	if len(call.query) > 0 {
		address += "?" + call.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, call.method, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", call.method, call.path, err)
	}
	if call.body != nil {
		if req.Body, err = call.body.Open(); err != nil {
			return nil, fmt.Errorf("open the body of %s %s: %w", call.method, call.path, err)
		}
		req.ContentLength = call.body.Bytes
		if call.body.Bytes == 0 { // or it would be sent in chunks
			req.Body.Close()
			req.Body = http.NoBody
		}
	}
	if call.contentType != "" {
		req.Header.Set("Content-Type", call.contentType)
	}
	req.Header.Set("User-Agent", c.config.UserAgent)
	if c.config.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.config.Token)
		return req, nil
	}
	req.Header.Set("X-Auth-Email", c.config.Email)
	req.Header.Set("X-Auth-Key", c.config.Key)
	return req, nil
}
