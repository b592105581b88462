package binding

import (
	"context"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/nearkey/nearkey/internal/jsontext"
	"github.com/nearkey/nearkey/kv"
)

// bulkBytes is the greatest body of a bulk get: a hundred keys, each character
// escaped, are a third of it.
const bulkBytes = 1 << 20

// bulkGet is the body of a bulk get. workerd sends cacheTtl as a string.
type bulkGet struct {
	Keys         []string        `json:"keys"`
	Type         string          `json:"type"`
	WithMetadata bool            `json:"withMetadata"`
	CacheTTL     json.RawMessage `json:"cacheTtl"`
}

// getBulk answers POST /bulk/get.
func (c *conn) getBulk(ctx context.Context, space *Space) bool {
	if c.head.length > bulkBytes {
		return c.fail(ctx, errBulkBytes())
	}
	body, err := c.readBody(bulkBytes)
	if err != nil {
		return c.failBody(ctx, err)
	}
	if c.body.total > bulkBytes { // the length was not announced
		return c.fail(ctx, errBulkBytes())
	}
	ctx, cancel := context.WithTimeout(ctx, c.server.config.Timeout)
	defer cancel()
	text, err := c.bulk(ctx, space, body)
	if err != nil {
		return c.fail(ctx, err)
	}
	return c.send(200, "OK", "Content-Type: application/json\r\n", text) == nil
}

func errBulkBytes() error {
	return refuse(413, "Request body exceeds limit of %d.", bulkBytes)
}

// bulk reads the keys and returns the answer: each key once, in their order.
func (c *conn) bulk(ctx context.Context, space *Space, body []byte) ([]byte, error) {
	var query bulkGet
	if err := json.Unmarshal(body, &query); err != nil {
		return nil, refuse(400, "The request body is not a bulk get")
	}
	limits, maxAge := c.server.config.Limits, c.server.config.MaxAge
	if query.Type != "" && query.Type != "text" && query.Type != "json" {
		return nil, refuse(400, "\"%.40s\" is not a valid type. Use \"json\" or \"text\"", query.Type)
	}
	if ttl := strings.Trim(string(query.CacheTTL), `"`); ttl != "" && ttl != "null" {
		var err error
		if maxAge, err = limits.CheckCacheTTL(ttl); err != nil {
			return nil, err
		}
	}
	total := int64(0)
	reserve := func(n int64) error { // the limit is met before more than it is in memory
		if total += n; total > int64(limits.GetManyBytes) {
			return refuse(413, "Total size of request exceeds the limit of %dMB", limits.GetManyBytes>>20)
		}
		return c.hold.use(n)
	}
	keys := once(query.Keys, limits.GetManyKeys)
	recs, err := space.GetMany(kv.WithReserver(ctx, reserve), keys, maxAge)
	if err != nil {
		return nil, err
	}
	out, most := []byte{'{'}, int64(0)
	for i := range recs {
		most += int64(len(recs[i].Value) + len(recs[i].Metadata) + len(keys[i]))
	}
	if err := c.hold.use(most); err != nil { // of the answer's text, about
		return nil, err
	}
	for i := range recs {
		if i > 0 {
			out = append(out, ',')
		}
		c.server.config.Metrics.Read(int64(len(recs[i].Value)))
		out = append(jsontext.AppendString(out, keys[i]), ':')
		if out, err = query.record(out, &recs[i]); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

// once drops keys that were there before, unless they are too many anyway.
func once(keys []string, most int) []string {
	if len(keys) > most {
		return keys
	}
	seen := make(map[string]bool, len(keys))
	kept := keys[:0]
	for _, key := range keys {
		if !seen[key] {
			seen[key] = true
			kept = append(kept, key)
		}
	}
	return kept
}

func (q *bulkGet) record(out []byte, rec *kv.Record) ([]byte, error) {
	if rec.Absent() {
		return append(out, "null"...), nil
	}
	if q.WithMetadata {
		out = append(out, `{"value":`...)
	}
	switch {
	case q.Type == "json" && utf8.Valid(rec.Value) && json.Valid(rec.Value):
		out = append(out, rec.Value...)
	case q.Type == "json":
		return nil, refuse(400, "At least one of the requested keys corresponds to a non-json value")
	case !utf8.Valid(rec.Value):
		return nil, refuse(400, "At least one of the requested keys corresponds to a non-text value")
	default:
		out = jsontext.AppendString(out, string(rec.Value))
	}
	if !q.WithMetadata {
		return out, nil
	}
	out = append(out, `,"metadata":`...)
	if len(rec.Metadata) == 0 {
		out = append(out, "null"...)
	}
	return append(append(out, rec.Metadata...), '}'), nil
}
