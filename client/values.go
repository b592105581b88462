package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"

	"github.com/nearkey/nearkey/kv"
)

// Value is the value of a key on its way from the server.
type Value struct {
	io.ReadCloser
	Bytes      int64 // -1 if the server did not say
	Expiration int64 // seconds since 1970; 0: never
}

// Get opens the value of a key. The caller closes it.
func (c *Client) Get(ctx context.Context, namespace, key string) (*Value, error) {
	if err := kv.CheckKey(key); err != nil {
		return nil, err
	}
	get := call{method: http.MethodGet, path: c.namespacesPath(namespace, "values", key), idempotent: true}
	var res *http.Response
	err := c.retry(ctx, get, func() (err error) {
		res, err = c.send(ctx, get)
		return err
	})
	if err != nil {
		return nil, err
	}
	value := &Value{ReadCloser: res.Body, Bytes: res.ContentLength}
	if s := res.Header.Get("Expiration"); s != "" {
		if value.Expiration, err = strconv.ParseInt(s, 10, 64); err != nil {
			res.Body.Close()
			return nil, fmt.Errorf("get %q: header expiration: %w", key, err)
		}
	}
	return value, nil
}

// GetBytes returns the value of a key, at most kv.MaxValueBytes, and its
// expiration. A connection that breaks within the value is repeated.
func (c *Client) GetBytes(ctx context.Context, namespace, key string) (value []byte, expiration int64, err error) {
	if err := kv.CheckKey(key); err != nil {
		return nil, 0, err
	}
	get := call{method: http.MethodGet, path: c.namespacesPath(namespace, "values", key), idempotent: true}
	once := *c
	once.config.Attempts = 1
	err = c.retry(ctx, get, func() error {
		v, err := once.Get(ctx, namespace, key)
		if err != nil {
			return err
		}
		defer v.Close()
		value, err = readValue(v)
		if err != nil && ctx.Err() == nil {
			return &connectionError{call: get, err: err}
		}
		expiration = v.Expiration
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if len(value) > kv.MaxValueBytes {
		return nil, 0, fmt.Errorf("get %q: the value is larger than %d bytes", key, kv.MaxValueBytes)
	}
	return value, expiration, nil
}

// readValue reads a value and, of one that is too large, one byte too many.
func readValue(v *Value) ([]byte, error) {
	if v.Bytes >= 0 && v.Bytes <= kv.MaxValueBytes {
		value := make([]byte, v.Bytes)
		_, err := io.ReadFull(v, value)
		return value, err
	}
	return io.ReadAll(io.LimitReader(v, kv.MaxValueBytes+1))
}

// Metadata returns the metadata of a key as JSON text, nil if it has none.
func (c *Client) Metadata(ctx context.Context, namespace, key string) (json.RawMessage, error) {
	if err := kv.CheckKey(key); err != nil {
		return nil, err
	}
	env, err := fetch[json.RawMessage](ctx, c, call{
		method: http.MethodGet, path: c.namespacesPath(namespace, "metadata", key), idempotent: true,
	})
	if err != nil {
		return nil, err
	}
	return someJSON(env.Result), nil
}

// someJSON is the text, or nil for null.
func someJSON(text json.RawMessage) json.RawMessage {
	if string(bytes.TrimSpace(text)) == "null" {
		return nil
	}
	return text
}

// PutOptions are what a put says beside the value. A put without metadata or
// expiration clears those that the key had.
type PutOptions struct {
	Expiration int64           // seconds since 1970; 0: never
	TTL        int64           // seconds from now; it wins over Expiration; 0: none
	Metadata   json.RawMessage // JSON text; nil: none
}

func (o PutOptions) query() url.Values {
	query := url.Values{}
	if o.Expiration != 0 {
		query.Set("expiration", strconv.FormatInt(o.Expiration, 10))
	}
	if o.TTL != 0 {
		query.Set("expiration_ttl", strconv.FormatInt(o.TTL, 10))
	}
	return query
}

// Put writes a key. The body is streamed.
func (c *Client) Put(ctx context.Context, namespace, key string, value Body, opts PutOptions) error {
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	put := call{
		method: http.MethodPut, path: c.namespacesPath(namespace, "values", key),
		query: opts.query(), body: &value, contentType: "application/octet-stream", idempotent: true,
	}
	if len(opts.Metadata) > 0 {
		if !json.Valid(opts.Metadata) {
			return fmt.Errorf("put %q: metadata is not valid JSON", key)
		}
		var err error
		if put.body, put.contentType, err = formBody(value, opts.Metadata); err != nil {
			return err
		}
	}
	_, err := fetch[any](ctx, c, put)
	return err
}

// PutBytes writes a key with a value in memory.
func (c *Client) PutBytes(ctx context.Context, namespace, key string, value []byte, opts PutOptions) error {
	return c.Put(ctx, namespace, key, BytesBody(value), opts)
}

// formBody is a multipart form of the metadata and then the value: a server can
// check the metadata before the value arrives.
func formBody(value Body, metadata []byte) (*Body, string, error) {
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	field, err := form.CreateFormField("metadata")
	if err != nil {
		return nil, "", err
	}
	if _, err := field.Write(metadata); err != nil {
		return nil, "", err
	}
	if _, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="value"; filename="blob"`},
		"Content-Type":        {"application/octet-stream"},
	}); err != nil {
		return nil, "", err
	}
	head := bytes.Clone(buf.Bytes())
	if err := form.Close(); err != nil {
		return nil, "", err
	}
	tail := bytes.Clone(buf.Bytes()[len(head):])
	return &Body{
		Bytes: int64(len(head)) + value.Bytes + int64(len(tail)),
		Open: func() (io.ReadCloser, error) {
			body, err := value.Open()
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(bytes.NewReader(head), body, bytes.NewReader(tail)), body}, nil
		},
	}, form.FormDataContentType(), nil
}

// Delete removes a key. Deleting a key that does not exist succeeds.
func (c *Client) Delete(ctx context.Context, namespace, key string) error {
	if err := kv.CheckKey(key); err != nil {
		return err
	}
	_, err := fetch[any](ctx, c, call{
		method: http.MethodDelete, path: c.namespacesPath(namespace, "values", key), idempotent: true,
	})
	return err
}
