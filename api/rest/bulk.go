package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/jsontext"
	"github.com/nearkey/nearkey/kv"
)

const (
	// bulkBodyBytes is the greatest body of a bulk request: 100 MB.
	bulkBodyBytes = 100_000_000
	// itemOverheadBytes is about what an item takes beside its bytes.
	itemOverheadBytes = 256
	// numberBytes is the greatest length of a number that is looked at.
	numberBytes = 100
)

// newBulk begins to read the body of a bulk request. All of it is paid for at the
// door before the first byte is read: what is decoded is not longer.
func (c *call) newBulk() (*scanner, error) {
	err := c.body.limit(bulkBodyBytes, func(n int64) error {
		return &failure{status: http.StatusRequestEntityTooLarge, code: codeValueLimit,
			text: fmt.Sprintf("Request body of %d bytes exceeds limit of %d.", n, bulkBodyBytes)}
	})
	if err != nil {
		return nil, err
	}
	if err := c.hold.prepay(max(c.body.length(), 0)); err != nil {
		return nil, err
	}
	return newScanner(&c.body, &c.hold), nil
}

// finish reads what may follow the JSON, to be sure that the body is whole.
func (c *call) finish(in *scanner) error {
	if err := in.end(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, &c.body)
	return err
}

// putBulk serves PUT …/bulk. One item that breaks a rule fails the whole request,
// and nothing is stored.
func (s *Server) putBulk(ctx context.Context, c *call) error {
	pairs, err := s.readPairs(c)
	if err != nil {
		return bodyFailure(err)
	}
	if err := c.mayKeys(catalog.Write, c.keys); err != nil {
		return err
	}
	failed, err := c.ns(s).PutMany(ctx, pairs)
	if err != nil {
		return err
	}
	var total int64
	for i := range pairs {
		total += int64(len(pairs[i].Value))
	}
	s.metrics.Written(total)
	return c.giveBulk(failed)
}

func (s *Server) readPairs(c *call) ([]kv.Pair, error) {
	in, err := c.newBulk()
	if err != nil {
		return nil, err
	}
	most := s.rules.Limits.PutManyPairs
	var pairs []kv.Pair
	err = in.array(func() error {
		if len(pairs) == most {
			return &kv.RuleError{Rule: kv.RulePutManyPairs, Text: fmt.Sprintf("You can write a maximum of %d pairs", most)}
		}
		pair, err := s.readPair(in)
		if err != nil {
			return err
		}
		pairs, c.keys = append(pairs, pair), append(c.keys, pair.Key)
		return in.hold.use(int64(len(pair.Key)+len(pair.Options.Metadata)) + itemOverheadBytes)
	})
	if err != nil {
		return nil, err
	}
	return pairs, c.finish(in)
}

// readPair reads one item of a bulk write. Unknown fields are ignored.
func (s *Server) readPair(in *scanner) (kv.Pair, error) {
	limits := s.rules.Limits
	valueBytes := base64.StdEncoding.EncodedLen(limits.ValueBytes) + 4
	var pair kv.Pair
	var hasKey, hasValue, encoded bool
	err := in.object(func(name string) (err error) {
		switch name {
		case "key":
			hasKey = true
			pair.Key, err = in.key()
		case "value":
			hasValue = true
			pair.Value, err = in.value(valueBytes)
			if err == errLong {
				err = limits.CheckValue(int64(valueBytes) + 1)
			}
		case "base64":
			encoded, err = in.bool()
		case "expiration":
			pair.Options.Expiration, err = in.number64(notExpiration)
		case "expiration_ttl":
			pair.Options.TTL, err = in.number64(notExpiration)
		case "metadata":
			pair.Options.Metadata, err = in.metadata(limits)
		default:
			err = in.skip()
		}
		return err
	})
	switch {
	case err != nil:
		return pair, err
	case !hasKey:
		return pair, invalid("An item of the array has no 'key'")
	case !hasValue:
		return pair, invalid("An item of the array has no 'value'")
	}
	if encoded {
		pair.Value, err = in.decodeBase64(pair.Value)
	}
	if err == nil {
		err = limits.CheckValue(int64(len(pair.Value)))
	}
	return pair, err
}

// decodeBase64 decodes what JavaScript's atob would: the standard alphabet, with
// or without padding, and with white space. It takes text for itself.
func (s *scanner) decodeBase64(text []byte) ([]byte, error) {
	held := int64(len(text))
	n := 0
	for _, b := range text {
		if b != ' ' && b != '\t' && b != '\n' && b != '\f' && b != '\r' {
			text[n] = b
			n++
		}
	}
	text = text[:n]
	for i := 0; i < 2 && n%4 == 0 && len(text) > 0 && text[len(text)-1] == '='; i++ {
		text = text[:len(text)-1]
	}
	n, err := base64.RawStdEncoding.Decode(text, text)
	if err != nil {
		return nil, invalid("A value with 'base64' is not valid base64")
	}
	if err := s.hold.use(int64(n)); err != nil {
		return nil, err
	}
	s.hold.drop(held)
	return append(make([]byte, 0, n), text[:n]...), nil
}

// deleteBulk serves DELETE …/bulk and POST …/bulk/delete.
func (s *Server) deleteBulk(ctx context.Context, c *call) error {
	most := s.rules.Limits.DeleteManyKeys
	in, err := c.newBulk()
	if err != nil {
		return err
	}
	err = in.array(func() error {
		if len(c.keys) == most {
			return &kv.RuleError{Rule: kv.RuleDeleteManyKeys, Text: fmt.Sprintf("You can remove a maximum of %d keys", most)}
		}
		return c.readKey(in)
	})
	if err == nil {
		err = c.finish(in)
	}
	if err != nil {
		return bodyFailure(err)
	}
	if err := c.mayKeys(catalog.Write, c.keys); err != nil {
		return err
	}
	failed, err := c.ns(s).DeleteMany(ctx, c.keys)
	if err != nil {
		return err
	}
	return c.giveBulk(failed)
}

// readKey reads a string into the request's keys.
func (c *call) readKey(in *scanner) error {
	key, err := in.key()
	if err != nil {
		return err
	}
	c.keys = append(c.keys, key)
	return in.hold.use(int64(len(key)) + itemOverheadBytes)
}

// giveBulk answers a bulk write or delete.
func (c *call) giveBulk(failed []string) error {
	type answer struct {
		Successful   int      `json:"successful_key_count"`
		Unsuccessful []string `json:"unsuccessful_keys"`
	}
	a := answer{len(c.keys), []string{}}
	if len(failed) > 0 {
		again := make(map[string]bool, len(failed))
		for _, key := range failed {
			again[key] = true
		}
		for _, key := range c.keys {
			if again[key] {
				a.Successful--
			}
		}
		a.Unsuccessful = failed
	}
	return c.give(a, nil)
}

// bulkGet is the body of a bulk get.
type bulkGet struct {
	json         bool // parse values
	withMetadata bool
	cacheTTL     string
}

// getBulk serves POST …/bulk/get.
func (s *Server) getBulk(ctx context.Context, c *call) error {
	query, err := s.readBulkGet(c)
	if err != nil {
		return bodyFailure(err)
	}
	if err := c.mayKeys(catalog.Read, c.keys); err != nil {
		return err
	}
	limits, total := s.rules.Limits, int64(0)
	// The limit on all values together is met before more than it is in memory.
	reserve := func(n int64) error {
		if total += n; total > int64(limits.GetManyBytes) {
			return tooManyBytes(limits)
		}
		return c.hold.use(n)
	}
	maxAge, err := s.maxAge(c, query.cacheTTL)
	if err != nil {
		return err
	}
	recs, err := c.ns(s).GetMany(kv.WithReserver(ctx, reserve), c.keys, maxAge)
	if err != nil {
		return err
	}
	small := int64(0)
	for i := range recs {
		if recs[i].Absent() {
			continue
		}
		if n := int64(len(recs[i].Value)); n < kv.ReserveBytes {
			small += n
		}
		if !utf8.Valid(recs[i].Value) || query.json && !json.Valid(recs[i].Value) {
			return &failure{status: http.StatusBadRequest, code: 10029, text: "At least one of the requested keys corresponds to a non-text value"}
		}
	}
	if err := c.holdSmall(small); err != nil {
		return err
	}
	return c.giveValues(s, query, recs)
}

// holdSmall accounts for what was read in many small pieces, for which the store
// did not ask, if it has become much.
func (c *call) holdSmall(n int64) error {
	if n < kv.ReserveBytes {
		return nil
	}
	return c.hold.use(n)
}

func tooManyBytes(limits kv.Limits) error {
	return &kv.RuleError{Rule: kv.RuleGetManyBytes, Text: fmt.Sprintf("Total size of request exceeds the limit of %dMB", limits.GetManyBytes>>20)}
}

func (s *Server) readBulkGet(c *call) (query bulkGet, err error) {
	in, err := c.newBulk()
	if err != nil {
		return query, err
	}
	most := s.rules.Limits.GetManyKeys
	err = in.object(func(name string) (err error) {
		switch name {
		case "keys":
			c.keys = nil
			return in.array(func() error {
				if len(c.keys) == most {
					return &kv.RuleError{Rule: kv.RuleGetManyKeys, Text: fmt.Sprintf("You can request a maximum of %d keys", most)}
				}
				return c.readKey(in)
			})
		case "type":
			query.json, err = in.isJSON()
		case "withMetadata":
			query.withMetadata, err = in.bool()
		case "cacheTtl":
			query.cacheTTL, err = in.number64("A cacheTtl must be a number")
		default:
			err = in.skip()
		}
		return err
	})
	if err != nil {
		return query, err
	}
	return query, c.finish(in)
}

// giveValues answers a bulk get. Each key is in the answer once.
func (c *call) giveValues(s *Server, query bulkGet, recs []kv.Record) error {
	out := &stream{call: c, buf: s.buffer()}
	defer s.recycle(out)
	out.buf = append(out.buf, openResult+`{"values":{`...)
	seen := make(map[string]bool, len(c.keys))
	for i, key := range c.keys {
		if seen[key] {
			continue
		}
		if seen[key] = true; i > 0 {
			out.buf = append(out.buf, ',')
		}
		out.buf = append(jsontext.AppendString(out.buf, key), ':')
		s.metrics.Read(int64(len(recs[i].Value)))
		out.record(query, &recs[i])
		out.step()
	}
	out.buf = append(out.buf, `}}`+closeResult...)
	return out.end()
}

func (t *stream) record(query bulkGet, rec *kv.Record) {
	if rec.Absent() {
		t.buf = append(t.buf, "null"...)
		return
	}
	if query.withMetadata {
		t.buf = append(t.buf, `{"value":`...)
	}
	if query.json {
		t.appendRaw(rec.Value)
	} else {
		t.appendText(rec.Value)
	}
	if !query.withMetadata {
		return
	}
	t.buf = append(t.buf, `,"metadata":`...)
	if len(rec.Metadata) == 0 {
		t.buf = append(t.buf, "null"...)
	}
	t.buf = append(t.buf, rec.Metadata...)
	t.buf = append(appendExpiration(t.buf, rec.Expiration), '}')
}
