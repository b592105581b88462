package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// Key is a key of a listing.
type Key struct {
	Name       string          `json:"name"`
	Expiration int64           `json:"expiration,omitempty"` // seconds since 1970; 0: never
	Metadata   json.RawMessage `json:"metadata,omitempty"`   // JSON text; nil: none
}

// ListOptions says which keys a page holds.
type ListOptions struct {
	Prefix string // only keys that begin with it
	Cursor string // of the page before; empty: the first page
	Limit  int    // most keys of the page; 0: as many as the server gives
}

// KeyPage is a part of a listing, in byte order. Cursor is empty on the last.
type KeyPage struct {
	Keys   []Key
	Cursor string
}

// List returns one page of the keys of a namespace.
func (c *Client) List(ctx context.Context, namespace string, opts ListOptions) (KeyPage, error) {
	query := url.Values{}
	if opts.Prefix != "" {
		query.Set("prefix", opts.Prefix)
	}
	if opts.Cursor != "" {
		query.Set("cursor", opts.Cursor)
	}
	if opts.Limit != 0 {
		query.Set("limit", strconv.Itoa(opts.Limit))
	}
	env, err := fetch[[]Key](ctx, c, call{
		method: http.MethodGet, path: c.namespacesPath(namespace, "keys"), query: query, idempotent: true,
	})
	if err != nil {
		return KeyPage{}, err
	}
	for i := range env.Result {
		env.Result[i].Metadata = someJSON(env.Result[i].Metadata)
	}
	cursor := env.ResultInfo.Cursor
	if cursor == "" {
		cursor = env.ResultInfo.Cursors.After
	}
	if cursor != "" && cursor == opts.Cursor {
		return KeyPage{}, fmt.Errorf("list keys: the server answered the cursor it was asked with; the listing would not end")
	}
	return KeyPage{Keys: env.Result, Cursor: cursor}, nil
}

// Keys are all keys of a namespace that begin with prefix, in byte order. It asks
// for a page when the one before is used up.
func (c *Client) Keys(ctx context.Context, namespace, prefix string) iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		opts := ListOptions{Prefix: prefix}
		for {
			page, err := c.List(ctx, namespace, opts)
			if err != nil {
				yield(Key{}, err)
				return
			}
			for _, key := range page.Keys {
				if !yield(key, nil) {
					return
				}
			}
			if page.Cursor == "" {
				return
			}
			opts.Cursor = page.Cursor
		}
	}
}
