package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	headerProto = "X-Nk-Proto" // the scheme of the URL
	ours        = "X-Nk-"      // whatever begins so is between workerd and us
	headerLoop  = "Cdn-Loop"   // RFC 8586
	loopName    = "nearkey"

	// workersAddress is where requests come from that a Worker makes to a host which is
	// not its own, for programs that know it from Cloudflare.
	workersAddress = "2a06:98c0:3600::103"
)

// A trip is a request on its way.
type trip struct {
	server    *Server
	scheme    string
	host      string   // without a port
	origin    *url.URL // nil: it goes outside
	loop      string
	handshake atomic.Bool // with the server, has begun and not succeeded
	cancel    context.CancelFunc
}

type tripKey struct{}

func tripOf(ctx context.Context) *trip { return ctx.Value(tripKey{}).(*trip) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.counts.requests.Add(1)
	c := r.Context().Value(connKey{}).(*client)
	defer func() {
		if c.taken.Load() {
			s.leave()
		}
	}()
	if r.Method == http.MethodConnect {
		s.connect(w, r)
		return
	}
	_ = http.NewResponseController(w).EnableFullDuplex() // both ways at once; HTTP/1.1 can
	if worker, ok := s.admit(w, r, r.Header.Get(HeaderToken)); ok {
		s.forward(w, r, worker)
	}
	if !c.taken.Load() {
		drain(w, r)
	}
}

// drainBytes and drainTime bound what is read of a body that nobody wants.
const (
	drainBytes = 256 << 20
	drainTime  = 30 * time.Second
)

// drain reads what is left of a request that was answered before its end: workerd
// goes on to write it, and would take a closed connection for the answer.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Body == http.NoBody {
		return
	}
	_ = http.NewResponseController(w).Flush()
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime))
	if n, err := io.Copy(io.Discard, io.LimitReader(r.Body, drainBytes)); err == nil && n < drainBytes {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a closed connection tells at the next read
	}
}

// admit finds out who asks, and whether they may; if not it has answered.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, token string) (worker string, ok bool) {
	worker, ok = s.config.Identify(token)
	if token == "" || !ok {
		s.counts.denied.Add(1)
		fault{http.StatusForbidden, 0, "egress denied: nobody knows who asks"}.answer(w, r)
		return "", false
	}
	if !s.config.Spend(token) {
		s.counts.spent.Add(1)
		fault{http.StatusTooManyRequests, 0, tooManySubrequests}.answer(w, r)
		return "", false
	}
	return worker, true
}

// forward answers a request with what a Worker of ours, an origin or a server outside
// answers.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, worker string) {
	t := &trip{server: s, scheme: r.Header.Get(headerProto)}
	if t.scheme != "http" && t.scheme != "https" || r.Host == "" || !strings.HasPrefix(r.RequestURI, "/") && r.RequestURI != "*" {
		fault{http.StatusBadRequest, 0, "the request has no URL that can be fetched"}.answer(w, r)
		return
	}
	t.host = strings.ToLower(strings.TrimSuffix((&url.URL{Host: r.Host}).Hostname(), "."))
	var hops int
	if t.loop, hops = nextHop(r.Header[headerLoop]); hops > MaxHops {
		s.counts.failed.Add(1)
		fault{http.StatusLoopDetected, codeLoop, "the request came by here more than " + strconv.Itoa(MaxHops) + " times"}.answer(w, r)
		return
	}
	if local := s.config.Local(r.Context(), t.scheme, r.Host, r.URL.EscapedPath(), worker); local != nil {
		s.counts.local.Add(1)
		local.ServeHTTP(w, t.localRequest(r))
		return
	}
	if origin, ok := s.config.Origin(t.host); ok {
		s.counts.origins.Add(1)
		t.origin = origin
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	t.cancel = cancel
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeStart: func() { t.handshake.Store(true) },
		TLSHandshakeDone:  func(_ tls.ConnectionState, err error) { t.handshake.Store(err != nil) },
	})
	out := r.WithContext(context.WithValue(ctx, tripKey{}, t))
	out.Body = open{r.Body}
	s.proxy.ServeHTTP(final{w}, out)
}

// open is a body that is drained when it was closed.
type open struct{ io.Reader }

func (open) Close() error { return nil }

// final is where an answer goes: workerd would take an interim one (1xx) for it.
type final struct{ http.ResponseWriter }

func (f final) WriteHeader(status int) {
	if status < 200 {
		return
	}
	for _, name := range []string{"Content-Type", "Date"} { // the server's own or none: nothing is guessed
		if h := f.Header(); h[name] == nil {
			h[name] = nil
		}
	}
	f.ResponseWriter.WriteHeader(status)
}

// Unwrap lets a WebSocket take the connection over.
func (f final) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// localRequest is a request as a Worker of ours gets it: as from another machine.
func (t *trip) localRequest(r *http.Request) *http.Request {
	to := r.Clone(r.Context())
	dropOurs(to.Header)
	to.Header.Set(headerLoop, t.loop)
	to.RemoteAddr = "[" + workersAddress + "]:0"
	if t.scheme == "https" {
		to.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, HandshakeComplete: true, ServerName: t.host}
	}
	return to
}

func dropOurs(h http.Header) {
	for name := range h {
		if len(name) >= len(ours) && strings.EqualFold(name[:len(ours)], ours) {
			delete(h, name)
		}
	}
}

// nextHop returns the CDN-Loop header of a request that passes by once more, and how
// often it then has. What others wrote there stays.
func nextHop(lines []string) (next string, hops int) {
	var others []string
	for _, line := range lines {
		for element := range strings.SplitSeq(line, ",") {
			element = strings.TrimSpace(element)
			name, parameters, _ := strings.Cut(element, ";")
			if !strings.EqualFold(strings.TrimSpace(name), loopName) {
				if element != "" {
					others = append(others, element)
				}
				continue
			}
			n := 1
			if text, ok := strings.CutPrefix(strings.TrimSpace(parameters), "hops="); ok {
				if n, _ = strconv.Atoi(text); n < 1 || n > MaxHops {
					n = MaxHops // what we never wrote
				}
			}
			hops = max(hops, n)
		}
	}
	hops++
	return strings.Join(append(others, loopName+"; hops="+strconv.Itoa(hops)), ", "), hops
}

func (s *Server) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      roundTripper{s},
		FlushInterval:  -1, // what comes goes on at once
		BufferPool:     &buffers{},
		ModifyResponse: s.received,
		ErrorHandler:   s.failed,
		ErrorLog:       slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
}

// rewrite makes the request that goes out: what the Worker sent, less what is between
// workerd and us.
func rewrite(p *httputil.ProxyRequest) {
	t := tripOf(p.In.Context())
	out := p.Out
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := p.In.Header[name]; ok { // the Worker's to say
			out.Header[name] = values
		}
	}
	dropOurs(out.Header)
	out.Header.Set(headerLoop, t.loop)
	if t.origin == nil {
		out.Header.Set("CF-Connecting-IP", workersAddress)
	}
	// The target goes out byte by byte as it came; net/url would escape anew.
	path, query, _ := strings.Cut(p.In.RequestURI, "?")
	out.URL = &url.URL{Scheme: t.scheme, Host: p.In.Host, Path: p.In.URL.Path, RawPath: p.In.URL.RawPath, RawQuery: query, ForceQuery: p.In.URL.ForceQuery}
	if !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path
	}
	if t.origin != nil {
		out.URL.Scheme, out.URL.Host = t.origin.Scheme, t.origin.Host
	}
}

// roundTripper sends each request by its own way.
type roundTripper struct{ server *Server }

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	transport := r.server.outside
	if tripOf(req.Context()).origin != nil {
		transport = r.server.origins
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	// workerd knows no trailers: what the body leaves in its own response is not seen.
	seen := *res
	seen.Trailer = nil
	return &seen, nil
}

// received looks at an answer before it goes on.
func (s *Server) received(res *http.Response) error {
	dropOurs(res.Header)
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = &paced{ReadCloser: res.Body, pause: s.config.BodyPause, cancel: tripOf(res.Request.Context()).cancel}
	}
	return nil
}

// failed answers for a server that did not.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	t := tripOf(r.Context())
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the Worker no longer wants to know
	}
	s.report(r, t.host, err)
	faultOf(err, t.host, t.handshake.Load()).answer(w, r)
}

// report counts and logs what did not go as the Worker wanted.
func (s *Server) report(r *http.Request, host string, err error) {
	var denied *deniedError
	count := &s.counts.failed
	if errors.As(err, &denied) {
		count = &s.counts.denied
	}
	count.Add(1)
	s.config.Logger.DebugContext(r.Context(), "a Worker's request went wrong", "host", host, "error", err)
}

// paced reads the body of an answer, and gives up on a server that sends nothing for
// too long.
type paced struct {
	io.ReadCloser
	pause  time.Duration
	cancel context.CancelFunc
}

func (p *paced) Read(b []byte) (int, error) {
	defer time.AfterFunc(p.pause, p.cancel).Stop()
	return p.ReadCloser.Read(b)
}

// bufferBytes is what is copied at once.
const bufferBytes = 32 << 10

// buffers are for copying.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if kept, ok := b.pool.Get().(*[]byte); ok {
		return *kept
	}
	return make([]byte, bufferBytes)
}

func (b *buffers) Put(buffer []byte) { b.pool.Put(&buffer) }
