package rest

import (
	"context"
	"net/http"
	"strconv"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/jsontext"
	"github.com/nearkey/nearkey/internal/listing"
	"github.com/nearkey/nearkey/kv"
)

// listKeys serves GET …/keys.
func (s *Server) listKeys(ctx context.Context, c *call) error {
	opts, err := listOptions(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	c.oneKey[0], c.keys = opts.Prefix, c.oneKey[:]
	if !c.grant.Prefix(c.route.account, c.space, opts.Prefix, catalog.Read) {
		return errForbidden
	}
	page, err := c.ns(s).List(ctx, opts)
	if err != nil {
		return err
	}
	held := int64(0)
	for i := range page.Keys {
		held += int64(len(page.Keys[i].Key) + len(page.Keys[i].Record.Metadata))
	}
	if err := c.holdSmall(held); err != nil {
		return err
	}
	out := &stream{call: c, buf: s.buffer()}
	defer s.recycle(out)
	out.buf = append(out.buf, openResult+`[`...)
	for i := range page.Keys {
		if i > 0 {
			out.buf = append(out.buf, ',')
		}
		out.buf = appendKey(out.buf, &page.Keys[i])
		out.step()
	}
	cursor := ""
	if page.More {
		cursor = listing.Cursor(page.Keys[len(page.Keys)-1].Key)
	}
	// Clients differ in which of the two cursors they read.
	out.buf = append(out.buf, `],"result_info":{"count":`...)
	out.buf = strconv.AppendInt(out.buf, int64(len(page.Keys)), 10)
	out.buf = append(jsontext.AppendString(append(out.buf, `,"cursor":`...), cursor), `,"cursors":{"after":`...)
	out.buf = append(jsontext.AppendString(out.buf, cursor), `}}`+closeResult...)
	return out.end()
}

// appendKey appends a key of a listing. What it does not have is left out.
func appendKey(out []byte, k *kv.Listed) []byte {
	out = append(out, `{"name":`...)
	out = appendExpiration(jsontext.AppendString(out, k.Key), k.Record.Expiration)
	if len(k.Record.Metadata) > 0 {
		out = append(append(out, `,"metadata":`...), k.Record.Metadata...)
	}
	return append(out, '}')
}

// appendExpiration appends the field of an expiration, if there is one.
func appendExpiration(out []byte, expiration int64) []byte {
	if expiration == 0 {
		return out
	}
	return strconv.AppendInt(append(out, `,"expiration":`...), expiration, 10)
}

func listOptions(query string) (opts kv.ListOptions, err error) {
	if opts.Prefix, err = parameter(query, "prefix"); err != nil {
		return opts, err
	}
	limit, err := parameter(query, "limit")
	if err != nil {
		return opts, err
	}
	if limit != "" {
		if opts.Limit, err = strconv.Atoi(limit); err != nil || opts.Limit == 0 { // 0 means the default to kv
			return opts, &failure{status: http.StatusBadRequest, code: codeInvalid,
				text: "Invalid limit of " + shown(limit) + ". Please specify an integer greater than 0."}
		}
	}
	cursor, err := parameter(query, "cursor")
	if err != nil || cursor == "" {
		return opts, err
	}
	if opts.After, err = listing.After(cursor); err != nil {
		return opts, &failure{status: http.StatusBadRequest, code: codeInvalid,
			text: "Invalid cursor. Please use the cursor of the previous page, or none to begin anew.", cause: err}
	}
	return opts, nil
}
