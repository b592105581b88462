package rest

import (
	"context"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/nearkey/nearkey/kv"
)

// get reads the key of the request, as fresh as it is asked for.
func (s *Server) get(ctx context.Context, c *call) (kv.Record, error) {
	ttl, err := cacheTTL(c.r.URL.RawQuery)
	if err != nil {
		return kv.Record{}, err
	}
	maxAge, err := s.maxAge(c, ttl)
	if err != nil {
		return kv.Record{}, err
	}
	a, err := c.ns(s).GetAnswer(kv.WithReserver(ctx, c.hold.use), c.keys[0], maxAge)
	if err != nil {
		return kv.Record{}, err
	}
	s.tell(c, &a)
	if a.Absent() {
		return kv.Record{}, errKeyNotFound
	}
	return a.Record, nil
}

// getValue serves GET …/values/{key}: the bytes, bare.
func (s *Server) getValue(ctx context.Context, c *call) error {
	rec, err := s.get(ctx, c)
	if err != nil {
		return err
	}
	if rec.Expiration != 0 {
		c.w.Header()["Expiration"] = []string{strconv.FormatInt(rec.Expiration, 10)}
	}
	s.metrics.Read(int64(len(rec.Value)))
	return c.send(http.StatusOK, typeBytes, rec.Value)
}

// getMetadata serves GET …/metadata/{key}.
func (s *Server) getMetadata(ctx context.Context, c *call) error {
	rec, err := s.get(ctx, c)
	if err != nil {
		return err
	}
	metadata := rec.Metadata
	if len(metadata) == 0 {
		metadata = []byte("null")
	}
	text := make([]byte, 0, len(openResult)+len(metadata)+len(closeResult))
	text = append(append(append(text, openResult...), metadata...), closeResult...)
	return c.send(http.StatusOK, typeJSON, text)
}

// deleteValue serves DELETE …/values/{key}. A missing key is a success.
func (s *Server) deleteValue(ctx context.Context, c *call) error {
	if err := c.ns(s).Delete(ctx, c.keys[0]); err != nil {
		return err
	}
	return c.done()
}

// putValue serves PUT …/values/{key}. All that can be known to be wrong before
// the body is read is refused before it is read.
func (s *Server) putValue(ctx context.Context, c *call) error {
	opts, err := putOptions(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	ns, key := c.ns(s), c.keys[0]
	if err := ns.CheckPut(key, opts); err != nil {
		return err
	}
	boundary, isForm, err := formBoundary(c.r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	var value []byte
	if isForm {
		value, err = s.readForm(c, boundary, &opts, func() error { return ns.CheckPut(key, opts) })
	} else {
		value, err = s.readValue(c)
	}
	if err != nil {
		return bodyFailure(err)
	}
	if err := ns.Put(ctx, key, value, opts); err != nil {
		return err
	}
	s.metrics.Written(int64(len(value)))
	return c.done()
}

// putOptions reads the expiration from a query string.
func putOptions(query string) (opts kv.PutOptions, err error) {
	if query == "" {
		return opts, nil
	}
	if opts.Expiration, err = parameter(query, "expiration"); err != nil {
		return opts, err
	}
	opts.TTL, err = parameter(query, "expiration_ttl")
	return opts, err
}

// readValue reads a body that is the value, whatever its type.
func (s *Server) readValue(c *call) ([]byte, error) {
	most := int64(s.rules.Limits.ValueBytes)
	if err := c.body.limit(most, s.rules.Limits.CheckValue); err != nil {
		return nil, err
	}
	return c.readAll(&c.body, c.body.length(), most)
}

// formBoundary tells a form from a value: only multipart/form-data is special.
func formBoundary(contentType string) (boundary string, isForm bool, err error) {
	const form = "multipart/form-data"
	if len(contentType) < len(form) || !strings.EqualFold(contentType[:len(form)], form) {
		return "", false, nil
	}
	kind, params, err := mime.ParseMediaType(contentType)
	if err == nil && kind != form {
		return "", false, nil // multipart/form-data-of-another-kind
	}
	if err != nil || params["boundary"] == "" {
		return "", true, invalid("The Content-Type multipart/form-data must name a boundary")
	}
	return params["boundary"], true, nil
}
