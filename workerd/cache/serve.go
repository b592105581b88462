package cache

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// The headers of a request that say what is meant, by canonical name.
const (
	headerCF        = "X-Nk-Cf"    // the cf of the request, as JSON
	headerProto     = "X-Nk-Proto" // the scheme of the URL
	headerNamespace = "Cf-Cache-Namespace"
	methodPurge     = "PURGE"
)

// The words of CF-Cache-Status. Without one that it knows, workerd takes an answer
// for a miss.
var (
	hit     = []string{"HIT"}
	miss    = []string{"MISS"}
	nothing = []string{"0"}
)

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	x := exchange{server: s, w: w, r: r, control: http.NewResponseController(w)}
	token := r.Header.Get(HeaderToken)
	scope, ok := s.config.Identify(token)
	if token == "" || !ok {
		x.deny(http.StatusForbidden)
		return
	}
	if !strings.HasPrefix(r.RequestURI, "/") || r.Host == "" {
		x.deny(http.StatusBadRequest)
		return
	}
	if !s.config.Spend(token) {
		x.deny(http.StatusTooManyRequests)
		return
	}
	key := keyOf(scope, r)
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		x.match(key)
	case http.MethodPut:
		x.put(key)
	case methodPurge:
		x.purge(key)
	default:
		x.send(http.StatusMethodNotAllowed)
	}
}

// keyOf is under what a response is kept: whose it is, the cache's name, and the
// URL or what the Worker says instead of it. Each part says how long it is.
func keyOf(scope string, r *http.Request) []byte {
	name, named := r.Header[headerNamespace]
	own, hasOwn := cacheKey(r.Header.Get(headerCF))
	key := make([]byte, 0, len(scope)+len(r.Host)+len(r.RequestURI)+len(own)+64)
	add := func(part string) {
		key = binary.AppendUvarint(key, uint64(len(part)))
		key = append(key, part...)
	}
	add(scope)
	if named {
		add("named")
		add(name[0])
	} else {
		add("default")
	}
	if hasOwn {
		add("key")
		add(own)
		return key
	}
	add(r.Header.Get(headerProto))
	add(strings.ToLower(r.Host))
	add(r.RequestURI)
	return key
}

// cacheKey is cf.cacheKey of a request.
func cacheKey(cf string) (string, bool) {
	if !strings.Contains(cf, "cacheKey") {
		return "", false
	}
	var blob struct {
		CacheKey *string `json:"cacheKey"`
	}
	if json.Unmarshal([]byte(cf), &blob) != nil || blob.CacheKey == nil || *blob.CacheKey == "" {
		return "", false
	}
	return *blob.CacheKey, true
}

// exchange is one request and its answer.
type exchange struct {
	server  *Server
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	hold    hold
}

// send answers without a body.
func (x *exchange) send(status int) {
	out := x.w.Header()
	noType(out)
	if !bodyless(status) {
		out["Content-Length"] = nothing
	}
	x.mayWrite()
	x.w.WriteHeader(status)
}

func (x *exchange) deny(status int) {
	x.server.counts.denied.Add(1)
	if x.drain(x.body()) != nil {
		x.w.Header().Set("Connection", "close")
	}
	x.send(status)
}

// match answers with what is stored, or with 504: the Worker asks for nothing that
// would have to be fetched (RFC 9111 §5.2.1.7).
func (x *exchange) match(key []byte) {
	s, now := x.server, x.server.config.Now()
	e := s.store.get(key, x.r.Header, now)
	if e == nil {
		s.counts.misses.Add(1)
		x.w.Header()["Cf-Cache-Status"] = miss
		x.send(http.StatusGatewayTimeout)
		return
	}
	defer s.store.release(e)
	s.counts.hits.Add(1)
	status, parts := e.plan(x.r)
	switch status {
	case http.StatusNotModified:
		s.counts.notModified.Add(1)
	case http.StatusPartialContent:
		s.counts.partial.Add(1)
	}
	body := e.answer(x.w.Header(), status, parts, now)
	x.mayWrite()
	x.w.WriteHeader(status)
	if x.r.Method == http.MethodHead {
		return
	}
	for _, piece := range body {
		if x.write(piece) != nil {
			return // nobody is there to be told
		}
	}
}

// writePiece is what is written before the client must have taken as much.
const writePiece = 1 << 20

func (x *exchange) write(body []byte) error {
	for len(body) > 0 {
		n := min(len(body), writePiece)
		if _, err := x.w.Write(body[:n]); err != nil {
			return err
		}
		if body = body[n:]; len(body) > 0 {
			x.mayWrite()
		}
	}
	return nil
}

// mayWrite bounds how long the client may take from now on.
func (x *exchange) mayWrite() {
	_ = x.control.SetWriteDeadline(time.Now().Add(x.server.config.WriteTime)) // a closed connection tells at the write
}

// purge forgets all responses of a key.
func (x *exchange) purge(key []byte) {
	s := x.server
	if s.store.purge(key, s.config.Now()) {
		s.counts.purged.Add(1)
		x.send(http.StatusOK)
		return
	}
	s.counts.unknown.Add(1)
	x.send(http.StatusNotFound)
}

// put keeps a response, or answers 413: the Worker is not told which rule it was.
func (x *exchange) put(key []byte) {
	s := x.server
	body := x.body()
	x.hold.server = s
	defer x.hold.free()
	err := x.store(key, body)
	s.countPut(err)
	if err == nil {
		x.send(http.StatusNoContent)
		return
	}
	x.hold.free()
	if x.drain(body) != nil {
		x.w.Header().Set("Connection", "close")
	}
	s.config.Logger.DebugContext(x.r.Context(), "a response is not kept", "reason", err)
	x.send(http.StatusRequestEntityTooLarge)
}

// store reads the response that is the body of the request, and keeps it.
func (x *exchange) store(key []byte, body io.Reader) error {
	s := x.server
	from := s.readers.get(body)
	defer s.readers.put(from)
	head, err := readHead(from, &x.hold)
	if err != nil {
		return err
	}
	began := s.config.Now()
	e := &entry{response: response{text: head.text, status: head.status, fields: head.fields}}
	if err := e.admit(x.r.Header, began); err != nil {
		return err
	}
	pieces, total, err := readBody(from, head.length, s.config.MaxObject, &x.hold)
	switch {
	case err != nil:
		return err
	case bodyless(e.status) && total > 0:
		return errMalformed
	}
	now := s.config.Now()
	if e.cost = e.response.cost(key, total); !s.store.reserve(e.cost, now) {
		return errFull
	}
	e.body = join(pieces, total)
	s.store.put(key, x.r.Header, e)
	return nil
}

func (s *Server) countPut(err error) {
	c := &s.counts
	count := &c.refused
	switch {
	case err == nil:
		count = &c.stored
	case errors.Is(err, errTooLarge):
		count = &c.tooLarge
	case errors.Is(err, errFull):
		count = &c.noRoom
	case errors.Is(err, errMalformed), errors.Is(err, errIncomplete), errors.Is(err, errRead):
		count = &c.incomplete
	}
	count.Add(1)
}

// body is the body of the request, which must come in time.
func (x *exchange) body() io.Reader {
	now := time.Now()
	return &paced{exchange: x, until: now.Add(x.server.config.BodyTimeout)}
}

// paced reads a body; the deadline moves as bytes come, up to the one of the whole.
type paced struct {
	exchange *exchange
	until    time.Time
	set      time.Time // when the deadline was set
}

func (p *paced) Read(b []byte) (int, error) {
	pause := p.exchange.server.config.BodyPause
	if now := time.Now(); now.Sub(p.set) > pause/10 {
		p.set = now
		deadline := now.Add(pause + pause/10)
		if deadline.After(p.until) {
			deadline = p.until
		}
		if err := p.exchange.control.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
	}
	return p.exchange.r.Body.Read(b)
}

// drainBytes is what is read of a body that is not wanted, so that workerd, which
// writes it first, reads the answer and keeps the connection, and the Worker's own
// copy of the stream flows on.
const drainBytes = 256 << 20

var errRead = errors.New("the body was not read")

func (x *exchange) drain(body io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(body, drainBytes+1))
	if err != nil || n > drainBytes {
		return errRead
	}
	return nil
}
