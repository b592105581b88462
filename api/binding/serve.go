package binding

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/internal/jsontext"
	"github.com/nearkey/nearkey/internal/listing"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
)

// refusal is an answer that is no success: what the Worker reads in its error.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// errSpent is what a Worker reads that has done more than one invocation may.
var errSpent = &refusal{429, "Too many API requests by single Worker invocation."}

// answer answers the request whose head was read last, and reads its body to the
// end. false: the connection cannot go on.
func (c *conn) answer(ctx context.Context) bool {
	c.beginBody()
	c.op, c.status = c.operation(), 0
	space, err := c.identify()
	c.space = space.ID
	switch {
	case err != nil:
		return c.fail(ctx, err)
	case c.op == observe.OpNone:
		return c.fail(ctx, refuse(405, "Method Not Allowed"))
	case !c.server.config.Spend(c.token):
		return c.fail(ctx, errSpent)
	}
	switch c.op {
	case observe.OpGet:
		return c.get(ctx, &space)
	case observe.OpBulkGet:
		return c.getBulk(ctx, &space)
	case observe.OpPut:
		return c.put(ctx, &space)
	case observe.OpDelete:
		return c.delete(ctx, &space)
	}
	return c.list(ctx, &space)
}

// operation is what the head asks for.
func (c *conn) operation() observe.Op {
	switch method := string(c.head.method); {
	case method == "GET" && len(c.head.path) == 0:
		return observe.OpList
	case method == "GET":
		return observe.OpGet
	case method == "POST" && string(c.head.path) == "bulk/get":
		return observe.OpBulkGet
	case method == "PUT":
		return observe.OpPut
	case method == "DELETE":
		return observe.OpDelete
	}
	return observe.OpNone
}

// count closes the books of a request.
func (c *conn) count() {
	s := c.server
	s.requests.Count(c.space, c.op, c.result(), time.Since(c.began))
	if reason := observe.Rejection(c.status); reason != "" {
		s.config.Metrics.Rejected(reason)
	}
}

// result is what came of a request, for the metrics.
func (c *conn) result() observe.Result {
	switch {
	case c.status == 0:
		return observe.Canceled
	case c.status == 200 && c.op == observe.OpGet:
		return observe.Hit
	case c.status == 404:
		return observe.Miss
	}
	return observe.ResultOf(c.status)
}

// identify finds the namespace of the request.
func (c *conn) identify() (Space, error) {
	if c.token != string(c.head.token) {
		c.token = string(c.head.token)
	}
	if c.binding != string(c.head.binding) {
		c.binding = string(c.head.binding)
	}
	if c.token == "" || c.binding == "" {
		return Space{}, refuse(403, "Forbidden")
	}
	space, err := c.server.config.Identify(c.token, c.binding)
	if err != nil && !errors.Is(err, kv.ErrUnavailable) {
		return Space{}, refuse(403, "Forbidden")
	}
	return space, err
}

// fail answers with an error, when the body was read.
func (c *conn) fail(ctx context.Context, err error) bool {
	if lost := c.proceed(); lost != nil {
		return c.lost(lost)
	}
	r := refusalOf(err)
	if r.status >= 500 {
		c.server.config.Logger.WarnContext(ctx, "KV binding", "status", r.status, "error", err)
	}
	return c.send(r.status, r.text, "", nil) == nil
}

// proceed reads what is left of the body; of a client that awaits our word for it,
// nothing was sent and nothing will be.
func (c *conn) proceed() error {
	if c.head.expects && !c.body.done && c.body.total == 0 {
		c.head.last = true
		return nil
	}
	return c.drain()
}

func refusalOf(err error) *refusal {
	var r *refusal
	var rule *kv.RuleError
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &rule):
		return &refusal{ruleStatus(rule.Rule), ruleText(rule)}
	case errors.Is(err, kv.ErrFull):
		return &refusal{507, "Insufficient Storage"}
	case errors.Is(err, kv.ErrUnavailable), errors.Is(err, kv.ErrOverloaded), errors.Is(err, kv.ErrUnknown), errors.Is(err, kv.ErrFuture),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &refusal{503, "Service Unavailable"}
	}
	return &refusal{500, "Internal Server Error"}
}

func ruleStatus(rule kv.Rule) int {
	switch rule {
	case kv.RuleKeyBytes:
		return 414
	case kv.RuleValueBytes, kv.RuleMetadataBytes, kv.RuleGetManyBytes:
		return 413
	case kv.RuleWriteRate:
		return 429
	}
	return 400
}

func ruleText(e *kv.RuleError) string {
	if e.Rule == kv.RuleWriteRate {
		return "Too Many Requests"
	}
	return e.Text
}

// readKey decodes the path into the connection's key. Only %XX is decoded, and only
// if the request says so: a plus sign is one.
func (c *conn) readKey() error {
	path := c.head.path
	encoded, err := parameter(c.head.query, "urlencoded")
	if err != nil {
		return err
	}
	c.key = c.key[:0]
	if !strings.EqualFold(encoded, "true") {
		c.key = append(c.key, path...)
		return nil
	}
	for i := 0; i < len(path); i++ {
		b := path[i]
		if b == '%' {
			if i+2 >= len(path) || hexDigit(path[i+1]) < 0 || hexDigit(path[i+2]) < 0 {
				return refuse(400, "Could not URL-decode key name")
			}
			b = byte(hexDigit(path[i+1])<<4 | hexDigit(path[i+2]))
			i += 2
		}
		c.key = append(c.key, b)
	}
	return nil
}

func hexDigit(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b|0x20 && b|0x20 <= 'f':
		return int(b|0x20-'a') + 10
	}
	return -1
}

// parameter returns the first value of a parameter in a query, "" if it is not there.
func parameter(query []byte, name string) (string, error) {
	value := escaped(query, name)
	if string(value) == "true" {
		return "true", nil
	}
	text, err := url.QueryUnescape(string(value))
	if err != nil {
		return "", refuse(400, "Could not URL-decode %s", name)
	}
	return text, nil
}

// escaped is the first value of a parameter as it is in a query.
func escaped(query []byte, name string) []byte {
	for len(query) > 0 {
		var item []byte
		item, query, _ = bytes.Cut(query, []byte{'&'})
		if len(item) > len(name) && item[len(name)] == '=' && string(item[:len(name)]) == name {
			return item[len(name)+1:]
		}
	}
	return nil
}

// get answers GET of a key.
func (c *conn) get(ctx context.Context, space *Space) bool {
	maxAge := c.server.config.MaxAge
	err := c.readKey()
	if err == nil {
		maxAge, err = c.maxAge(maxAge)
	}
	if err != nil {
		return c.fail(ctx, err)
	}
	if !c.body.done {
		if err := c.proceed(); err != nil {
			return c.lost(err)
		}
	}
	if near := c.server.config.Near; near != nil {
		rec, _, ok := near.Near(space.ID, c.key, maxAge)
		if ok && len(rec.Value) <= nearBytes {
			return c.give(space.Shown(rec), kv.Hit)
		}
	}
	ctx, cancel := context.WithTimeout(kv.WithReserver(ctx, c.hold.use), c.server.config.Timeout)
	defer cancel()
	a, err := space.GetAnswer(ctx, string(c.key), maxAge)
	if err != nil {
		return c.fail(ctx, err)
	}
	return c.give(&a.Record, a.Cache)
}

// maxAge is the staleness that a get accepts. A Worker mostly asks for the same.
func (c *conn) maxAge(standard time.Duration) (time.Duration, error) {
	asked := escaped(c.head.query, "cache_ttl")
	if len(asked) == 0 {
		return standard, nil
	}
	if string(asked) == c.ttlText {
		return c.ttl, nil
	}
	text, err := parameter(c.head.query, "cache_ttl")
	if err != nil {
		return 0, err
	}
	ttl, err := c.server.config.Limits.CheckCacheTTL(text)
	if err == nil {
		c.ttl, c.ttlText = ttl, string(asked)
	}
	return ttl, err
}

// give answers with a record, or with 404 if it is absent.
func (c *conn) give(rec *kv.Record, status kv.CacheStatus) bool {
	if rec.Absent() {
		c.begin(404, "Not Found")
	} else {
		c.begin(200, "OK")
	}
	c.server.cache.Count(status)
	c.server.config.Metrics.Read(int64(len(rec.Value)))
	if status != kv.NoCache {
		c.out = append(append(append(c.out, "CF-Cache-Status: "...), status...), "\r\n"...)
	}
	if len(rec.Metadata) > 0 {
		c.out = append(append(append(c.out, "CF-KV-Metadata: "...), rec.Metadata...), "\r\n"...)
	}
	return c.finish(rec.Value) == nil
}

// put answers PUT. What is known to be wrong before the body is read is refused
// without keeping any of it.
func (c *conn) put(ctx context.Context, space *Space) bool {
	opts, err := c.putOptions()
	key := string(c.key)
	if err == nil {
		err = space.CheckPut(key, opts)
	}
	if err != nil {
		return c.fail(ctx, err)
	}
	value, err := c.readBody(int64(c.server.config.Limits.ValueBytes))
	if err != nil {
		return c.failBody(ctx, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.server.config.Timeout)
	defer cancel()
	if err := space.Put(ctx, key, value, opts); err != nil {
		return c.fail(ctx, err)
	}
	c.server.config.Metrics.Written(int64(len(value)))
	return c.send(200, "OK", "", nil) == nil
}

func (c *conn) putOptions() (opts kv.PutOptions, err error) {
	if err = c.readKey(); err != nil {
		return opts, err
	}
	if opts.Expiration, err = parameter(c.head.query, "expiration"); err != nil {
		return opts, err
	}
	if opts.TTL, err = parameter(c.head.query, "expiration_ttl"); err != nil {
		return opts, err
	}
	if c.head.hasMetadata {
		opts.Metadata = append([]byte(nil), c.head.metadata...)
	}
	return opts, nil
}

// transportError: the body did not arrive.
type transportError struct{ error }

// firstValue is what a value gets at first if it says that it is greater: memory
// follows what arrives, not what is announced.
const firstValue = 1 << 20

// readBody reads a body of at most so many bytes. Of a greater one all is read and
// none is kept, and the error tells its length.
func (c *conn) readBody(most int64) ([]byte, error) {
	if c.head.length > most {
		return nil, c.server.config.Limits.CheckValue(c.head.length)
	}
	if c.head.expects {
		if _, err := c.net.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return nil, transportError{err}
		}
	}
	var value []byte
	room := min(max(c.head.length, 0), firstValue)
	if room > 0 {
		if err := c.hold.use(room); err != nil {
			return nil, err
		}
		value = make([]byte, 0, room)
	}
	for {
		part, err := c.part()
		if err == io.EOF {
			return value, nil
		}
		if err != nil {
			return nil, transportError{err}
		}
		if c.body.total > most {
			if err := c.drain(); err != nil {
				return nil, transportError{err}
			}
			return nil, c.server.config.Limits.CheckValue(c.body.total)
		}
		if need := len(value) + len(part); need > cap(value) {
			grown := min(max(2*int64(cap(value)), int64(need), firstBytes), most)
			if err := c.hold.use(grown - int64(cap(value))); err != nil {
				return nil, err
			}
			value = append(make([]byte, 0, grown), value...)
		}
		value = append(value, part...)
	}
}

// failBody answers what readBody failed with.
func (c *conn) failBody(ctx context.Context, err error) bool {
	if t, ok := err.(transportError); ok {
		return c.lost(t.error)
	}
	return c.fail(ctx, err)
}

// delete answers DELETE. A key that is not there is a success.
func (c *conn) delete(ctx context.Context, space *Space) bool {
	if err := c.readKey(); err != nil {
		return c.fail(ctx, err)
	}
	if err := c.proceed(); err != nil {
		return c.lost(err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.server.config.Timeout)
	defer cancel()
	if err := space.Delete(ctx, string(c.key)); err != nil {
		return c.fail(ctx, err)
	}
	return c.send(200, "OK", "", nil) == nil
}

// list answers a listing. Metadata is in it as text that is JSON: workerd parses it.
// No tier keeps listings, so that none has a cache status.
func (c *conn) list(ctx context.Context, space *Space) bool {
	opts, err := c.listOptions()
	if err != nil {
		return c.fail(ctx, err)
	}
	if err := c.proceed(); err != nil {
		return c.lost(err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.server.config.Timeout)
	defer cancel()
	page, err := space.List(ctx, opts)
	if err != nil {
		return c.fail(ctx, err)
	}
	text := append(make([]byte, 0, 64+64*len(page.Keys)), `{"keys":[`...)
	for i := range page.Keys {
		if i > 0 {
			text = append(text, ',')
		}
		rec := &page.Keys[i].Record
		text = jsontext.AppendString(append(text, `{"name":`...), page.Keys[i].Key)
		if rec.Expiration != 0 {
			text = strconv.AppendInt(append(text, `,"expiration":`...), rec.Expiration, 10)
		}
		if len(rec.Metadata) > 0 {
			text = jsontext.AppendString(append(text, `,"metadata":`...), string(rec.Metadata))
		}
		text = append(text, '}')
	}
	if page.More {
		cursor := listing.Cursor(page.Keys[len(page.Keys)-1].Key)
		text = append(append(append(text, `],"list_complete":false,"cursor":"`...), cursor...), `"}`...)
	} else {
		text = append(text, `],"list_complete":true}`...)
	}
	return c.send(200, "OK", "Content-Type: application/json\r\n", text) == nil
}

func (c *conn) listOptions() (opts kv.ListOptions, err error) {
	query := c.head.query
	if opts.Prefix, err = parameter(query, "prefix"); err != nil {
		return opts, err
	}
	if len(opts.Prefix) > kv.MaxKeyBytes {
		return opts, kv.CheckKey(opts.Prefix)
	}
	limit, err := parameter(query, "key_count_limit")
	if err != nil {
		return opts, err
	}
	if limit != "" {
		most := c.server.config.Limits.ListKeys
		opts.Limit, err = strconv.Atoi(limit)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange), opts.Limit < 1:
			return opts, refuse(400, "Invalid key_count_limit of %.40s. Please specify an integer greater than 0.", limit)
		case opts.Limit > most:
			return opts, refuse(400, "Invalid key_count_limit of %.40s. Please specify an integer less than %d.", limit, most)
		}
	}
	cursor, err := parameter(query, "cursor")
	if err != nil || cursor == "" {
		return opts, err
	}
	if opts.After, err = listing.After(cursor); err != nil {
		return opts, refuse(400, "Invalid cursor. Please use the cursor of the previous page, or none to begin anew.")
	}
	return opts, nil
}
