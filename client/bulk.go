package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

// What the API takes at most in one bulk call.
const (
	MaxPutPairs     = 10_000
	MaxDeleteKeys   = 10_000
	MaxGetKeys      = 100
	MaxRequestBytes = 100_000_000 // of the JSON text of a bulk call
)

// Pair is one item of a bulk write.
type Pair struct {
	Key   string
	Value []byte
	PutOptions
}

// pairJSON is a Pair as the API writes it.
type pairJSON struct {
	Key        string          `json:"key"`
	Value      string          `json:"value"`
	Base64     bool            `json:"base64,omitempty"`
	Expiration int64           `json:"expiration,omitempty"`
	TTL        int64           `json:"expiration_ttl,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
}

// MarshalJSON writes the pair as one element of wrangler's bulk JSON: the value as
// text if it is valid UTF-8, in base64 otherwise.
func (p Pair) MarshalJSON() ([]byte, error) {
	item := pairJSON{Key: p.Key, Expiration: p.Expiration, TTL: p.TTL, Metadata: p.Metadata}
	if utf8.Valid(p.Value) {
		item.Value = string(p.Value)
	} else {
		item.Value, item.Base64 = base64.StdEncoding.EncodeToString(p.Value), true
	}
	return plainJSON(item)
}

// plainJSON is the JSON text of v with characters such as < as they are.
func plainJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// BulkResult says what became of the items of a bulk write or delete.
type BulkResult struct {
	Successful   int      `json:"successful_key_count"`
	Unsuccessful []string `json:"unsuccessful_keys"` // may be tried again
}

// PutMany writes at most MaxPutPairs pairs. If one of them breaks a rule none is
// written. Which pairs the server could not store at the moment is in the result.
func (c *Client) PutMany(ctx context.Context, namespace string, pairs []Pair) (BulkResult, error) {
	if len(pairs) > MaxPutPairs {
		return BulkResult{}, fmt.Errorf("bulk put: %d pairs, at most %d are taken", len(pairs), MaxPutPairs)
	}
	var buf bytes.Buffer
	buf.WriteByte('[')
	for i, p := range pairs {
		if err := kv.CheckKey(p.Key); err != nil {
			return BulkResult{}, fmt.Errorf("bulk put %q: %w", p.Key, err)
		}
		item, err := p.MarshalJSON()
		if err != nil {
			return BulkResult{}, fmt.Errorf("bulk put %q: %w", p.Key, err)
		}
		if i > 0 {
			buf.WriteByte(',')
		}
		buf.Write(item)
	}
	buf.WriteByte(']')
	body := BytesBody(buf.Bytes())
	return c.bulk(ctx, http.MethodPut, c.namespacesPath(namespace, "bulk"), &body)
}

// DeleteMany removes at most MaxDeleteKeys keys.
func (c *Client) DeleteMany(ctx context.Context, namespace string, keys []string) (BulkResult, error) {
	if len(keys) > MaxDeleteKeys {
		return BulkResult{}, fmt.Errorf("bulk delete: %d keys, at most %d are taken", len(keys), MaxDeleteKeys)
	}
	for _, key := range keys {
		if err := kv.CheckKey(key); err != nil {
			return BulkResult{}, fmt.Errorf("bulk delete %q: %w", key, err)
		}
	}
	body, err := jsonBody(keys)
	if err != nil {
		return BulkResult{}, err
	}
	return c.bulk(ctx, http.MethodPost, c.namespacesPath(namespace, "bulk", "delete"), body)
}

func (c *Client) bulk(ctx context.Context, method, path string, body *Body) (BulkResult, error) {
	if body.Bytes > MaxRequestBytes {
		return BulkResult{}, fmt.Errorf("%s %s: the request has %d bytes, at most %d are taken", method, path, body.Bytes, MaxRequestBytes)
	}
	env, err := fetch[BulkResult](ctx, c, call{
		method: method, path: path, body: body, contentType: "application/json", idempotent: true,
	})
	if err != nil {
		return BulkResult{}, err
	}
	return env.Result, nil
}

// TextValue is a value of a bulk get, which carries text only.
type TextValue struct {
	Value      string          `json:"value"`
	Metadata   json.RawMessage `json:"metadata"`
	Expiration int64           `json:"expiration"`
}

// GetMany returns the values of at most MaxGetKeys keys, with their metadata and
// expiration; a key that does not exist is not in the result. If a value is not
// text, or the values are too large together, the call fails (CodeBulkGet, or
// status 413) and the caller asks for fewer keys, or for one with Get.
func (c *Client) GetMany(ctx context.Context, namespace string, keys []string) (map[string]TextValue, error) {
	body, err := jsonBody(struct {
		Keys         []string `json:"keys"`
		WithMetadata bool     `json:"withMetadata"`
	}{keys, true})
	if err != nil {
		return nil, err
	}
	type result struct {
		Values map[string]*TextValue `json:"values"`
	}
	env, err := fetch[result](ctx, c, call{
		method: http.MethodPost, path: c.namespacesPath(namespace, "bulk", "get"),
		body: body, contentType: "application/json", idempotent: true,
	})
	if err != nil {
		return nil, err
	}
	values := make(map[string]TextValue, len(env.Result.Values))
	for key, v := range env.Result.Values {
		if v != nil {
			v.Metadata = someJSON(v.Metadata)
			values[key] = *v
		}
	}
	return values, nil
}
