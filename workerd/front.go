package workerd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	smallBody = 64 << 10 // a body of known size that goes out with its head, in one write
	deathWait = time.Second
	bodyGrace = 20 * time.Millisecond // for the end of a body whose request is answered
)

// Handler returns what answers the requests of a Worker, and starts it if it does
// not run. What comes from the client is passed on as it came, except for what
// tells the Worker where it came from: that is ours to say, from the request's
// RemoteAddr, TLS and Host.
func (r *Runtime) Handler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !r.Serve(w, req, name) {
			r.refuse(w, req, r.newRay(), ErrNotFound)
		}
	})
}

// Serve answers a request as Handler does, but if there is no such Worker it
// answers nothing and returns false: the caller may load it and try again.
func (r *Runtime) Serve(w http.ResponseWriter, req *http.Request, name string) (found bool) {
	return r.ServeEntrypoint(w, req, name, "")
}

// ServeEntrypoint does what Serve does by an entrypoint of the Worker other than
// its default export. The first request to one replaces the process, as a deploy.
func (r *Runtime) ServeEntrypoint(w http.ResponseWriter, req *http.Request, name, entrypoint string) (found bool) {
	s := r.script(name, false)
	if s == nil {
		return false
	}
	p, err := s.enterBy(req.Context(), entrypoint)
	if errors.Is(err, ErrNotFound) {
		return false // it was removed meanwhile
	}
	s.count(tallyRequests, 1)
	ray := r.newRay()
	if err == nil && s.pass(p, p.doors[entrypoint], w, req, ray, true) {
		if p, err = s.enterBy(req.Context(), entrypoint); err == nil {
			s.pass(p, p.doors[entrypoint], w, req, ray, false)
		}
	}
	if err != nil {
		r.refuse(w, req, ray, err)
	}
	return true
}

// pass passes a request to a process that has counted it in. It reports whether
// the process ended without the request having been seen, as far as one can
// tell: then another one may have it, if mayRepeat.
func (s *script) pass(p *process, door *pool, w http.ResponseWriter, req *http.Request, ray string, mayRepeat bool) (again bool) {
	defer p.leave()
	x := exchange{p: p, door: door, w: w, r: req, ray: ray}
	err := x.run()
	switch {
	case err == nil:
		return false
	case x.answered:
		panic(http.ErrAbortHandler) // the client must see that the answer is cut
	case req.Context().Err() != nil:
		return false
	case errors.Is(err, errRequest):
		errorPage(w, req, http.StatusBadRequest, 0, "the request cannot be passed on", ray)
		return false
	}
	reason := ""
	if errors.Is(err, errThrew) {
		reason = p.swollen()
	} else {
		var dead bool
		reason, dead = p.fate(req.Context())
		if mayRepeat && dead && reason == "" && !x.heard() && repeatable(req) {
			return true
		}
	}
	s.count(tallyExceptions, 1)
	if reason != "" {
		errorPage(w, req, http.StatusServiceUnavailable, codeLimited, "Worker exceeded resource limits ("+reason+")", ray)
		return false
	}
	errorPage(w, req, http.StatusInternalServerError, codeThrew, "Worker threw exception", ray)
	return false
}

// swollen looks whether a Worker threw because it got no more memory, which is
// noticed here before the watch has looked. It ends the process then.
func (p *process) swollen() (reason string) {
	if _, resident, err := usage(p.pid); err != nil || resident <= p.rt.opts.MemoryBytes {
		return ""
	}
	p.kill(overMemory)
	return overMemory
}

// fate tells whether a process whose connection broke has ended, which is noticed
// a moment later, and which limit it exceeded.
func (p *process) fate(ctx context.Context) (reason string, dead bool) {
	wait := time.NewTimer(deathWait)
	defer wait.Stop()
	select {
	case <-p.dead:
		dead = true
	case <-wait.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason, dead
}

// refuse answers a request for which there is no process.
func (r *Runtime) refuse(w http.ResponseWriter, req *http.Request, ray string, err error) {
	var fault *StartError
	switch {
	case req.Context().Err() != nil:
	case errors.Is(err, ErrNotFound):
		errorPage(w, req, http.StatusNotFound, codeUnknown, err.Error(), ray)
	case errors.Is(err, errEntrypoint):
		errorPage(w, req, http.StatusNotFound, 0, err.Error(), ray)
	case errors.As(err, &fault):
		errorPage(w, req, http.StatusInternalServerError, codeThrew, "Worker threw exception while it started", ray)
	case errors.Is(err, ErrMissing):
		errorPage(w, req, http.StatusServiceUnavailable, 0, ErrMissing.Error()+": the server's log and documentation say how it gets there", ray)
	case errors.Is(err, ErrBusy), errors.Is(err, ErrCrashing), errors.Is(err, ErrClosed):
		w.Header().Set("Retry-After", "1")
		errorPage(w, req, http.StatusServiceUnavailable, 0, err.Error(), ray)
	default:
		r.complain("start a Worker", err)
		errorPage(w, req, http.StatusServiceUnavailable, 0, "the Worker cannot be started", ray)
	}
}

// complain logs why something is not started; of many in a second it is one line.
func (r *Runtime) complain(doing string, err error, more ...any) {
	now, told := time.Now().UnixNano(), r.told.Load()
	if (now < told || now-told > int64(time.Second)) && r.told.CompareAndSwap(told, now) {
		r.opts.Logger.Error(doing, append(more, "error", err)...)
	}
}

var (
	errThrew   = errors.New("the Worker threw")
	errRequest = errors.New("pass on a request")
	errStale   = errors.New("a kept connection had ended")
)

// An exchange is one request and its answer.
type exchange struct {
	p        *process
	door     *pool
	w        http.ResponseWriter
	r        *http.Request
	ray      string
	c        *conn
	answered bool
	over     atomic.Bool // nobody wants the rest of the request's body
	body     chan error  // of what is sent beside the answer; nil: all was sent with the head
}

// run passes the request to the process and its answer to the client. A request
// is sent again only if it has no body, may be repeated by its method, and a kept
// connection broke before anything came back.
func (x *exchange) run() error {
	for {
		c, err := x.door.get(x.r.Context(), !repeatable(x.r))
		if err != nil {
			return err
		}
		x.c = c
		err = x.once()
		if errors.Is(err, errStale) && repeatable(x.r) && x.p.alive() {
			continue
		}
		return err
	}
}

func repeatable(r *http.Request) bool {
	return r.ContentLength == 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions)
}

func (x *exchange) heard() bool { return x.c != nil && x.c.heard }

func (p *process) alive() bool {
	select {
	case <-p.dead:
		return false
	default:
		return true
	}
}

func (x *exchange) once() (err error) {
	c, keep := x.c, false
	stop := context.AfterFunc(x.r.Context(), func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() && keep && err == nil {
			x.door.put(c)
			return
		}
		_ = c.Close()
	}()
	if err := x.send(); err != nil {
		return err
	}
	defer func() {
		if x.body == nil {
			return
		}
		if x.answered {
			_ = http.NewResponseController(x.w).Flush()
		}
		grace := time.NewTimer(bodyGrace)
		defer grace.Stop()
		select {
		case sent := <-x.body:
			keep = keep && sent == nil
		case <-grace.C: // the answer is complete, the request is not: nobody wants the rest
			keep = false
			_ = c.Close()
			x.over.Store(true)
			_ = http.NewResponseController(x.w).SetReadDeadline(time.Unix(1, 0))
			<-x.body
		}
	}()
	head, err := c.readHead(x.w.Header())
	if err != nil {
		if c.used && !c.heard {
			return errors.Join(errStale, err)
		}
		return err
	}
	x.p.progress.Add(1)
	if head.status == http.StatusInternalServerError && !head.ok {
		clear(x.w.Header())
		return errThrew
	}
	if head.status == http.StatusSwitchingProtocols {
		return x.upgrade(head)
	}
	keep, err = x.answer(head)
	return err
}

// send writes the request; a body that is not small follows beside the answer.
func (x *exchange) send() error {
	c, r := x.c, x.r
	var ok bool
	if c.buf, ok = x.appendHead(c.buf[:0]); !ok {
		return errRequest
	}
	if n := r.ContentLength; n > 0 && n <= smallBody {
		at := len(c.buf)
		c.buf = append(c.buf, make([]byte, n)...)
		if _, err := io.ReadFull(x.patiently(), c.buf[at:]); err != nil {
			return errors.Join(errRequest, err)
		}
	}
	if r.ContentLength <= smallBody && r.ContentLength >= 0 {
		c.ask.out = c.buf // goes out with the first read
		return nil
	}
	if _, err := c.Write(c.buf); err != nil {
		if c.used {
			return errors.Join(errStale, err)
		}
		return err
	}
	_ = http.NewResponseController(x.w).EnableFullDuplex() // HTTP/2 is, always
	x.body = make(chan error, 1)
	go func() { x.body <- c.sendBody(x.patiently(), r.ContentLength < 0) }()
	return nil
}

// appendHead writes the head of the request, or reports that it must not be sent.
func (x *exchange) appendHead(b []byte) ([]byte, bool) {
	r := x.r
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		target = r.URL.RequestURI()
	}
	if r.Host == "" || r.Method == http.MethodConnect || !strings.HasPrefix(target, "/") ||
		!plain(target) || !plain(r.Host) || !plain(r.Method) {
		return b, false
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = appendLine(b, "Host", r.Host)
	hop := connectionNames(r.Header)
	for name, values := range r.Header {
		drop := dropped(name) || hop != nil && hop[name]
		for _, v := range values {
			if !plain(name) || strings.ContainsAny(v, "\r\n\x00") {
				return b, false
			}
			if !drop {
				b = appendLine(b, name, v)
			}
		}
	}
	switch {
	case r.ContentLength < 0:
		b = appendLine(b, "Transfer-Encoding", "chunked")
	case r.ContentLength > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, r.ContentLength, 10)
		b = append(b, "\r\n"...)
	}
	if upgrade := r.Header.Get("Upgrade"); upgrade != "" && hop["Upgrade"] {
		b = appendLine(b, "Connection", "Upgrade")
		b = appendLine(b, "Upgrade", upgrade)
	}
	b = x.appendOrigin(b)
	return append(b, "\r\n"...), true
}

// plain reports whether s may stand in a request line.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

func appendLine(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// appendOrigin says where the request came from.
func (x *exchange) appendOrigin(b []byte) []byte {
	r, scheme := x.r, "http"
	if r.TLS != nil {
		scheme = "https"
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	forwarded := client
	if before := r.Header["X-Forwarded-For"]; len(before) > 0 {
		forwarded = strings.Join(before, ", ") + ", " + client
	}
	b = appendLine(b, "CF-Connecting-IP", client)
	b = appendLine(b, "X-Real-IP", client)
	b = appendLine(b, "X-Forwarded-For", forwarded)
	b = appendLine(b, "X-Forwarded-Proto", scheme)
	b = appendLine(b, "CF-Ray", x.ray)
	b = appendLine(b, HeaderProto, scheme)
	b = append(b, HeaderCF+`: {"colo":"`...)
	b = append(b, x.p.rt.opts.Place...)
	b = append(b, `","httpProtocol":"`...)
	b = append(b, strings.TrimSuffix(r.Proto, ".0")...)
	if r.TLS != nil {
		b = append(b, `","tlsVersion":"`...)
		b = append(b, strings.Replace(tls.VersionName(r.TLS.Version), " ", "v", 1)...)
		b = append(b, `","tlsCipher":"`...)
		b = append(b, tls.CipherSuiteName(r.TLS.CipherSuite)...)
	}
	return append(b, "\"}\r\n"...)
}

// connectionNames are the headers that a Connection header calls the
// connection's own. Nil: none.
func connectionNames(h http.Header) map[string]bool {
	var names map[string]bool
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if names == nil {
				names = map[string]bool{}
			}
			names[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	return names
}

// dropped reports whether a client's header is not passed on: those of the
// connection, and those that only we may set.
func dropped(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Expect", "Content-Length", "Host",
		"X-Real-Ip", "X-Forwarded-For", "X-Forwarded-Proto", "True-Client-Ip":
		return true
	}
	if strings.HasPrefix(name, "Cf-") { // CF-Connecting-IP, CF-IPCountry and all that may come to be
		return true
	}
	const ours = "X-Nk-"
	return len(name) >= len(ours) && strings.EqualFold(name[:len(ours)], ours)
}
