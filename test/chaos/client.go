package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"time"
)

// answerTimeout is how long a client waits. Nothing may take that long.
const answerTimeout = 20 * time.Second

// request is a request of the API.
type request struct {
	method, path string // path from the root of the server
	body         []byte
	contentType  string
	newest       bool // nothing older than what is acknowledged
}

// answer is what an entry answered.
type answer struct {
	status int
	stale  bool // it says so itself
	body   []byte
}

func (a answer) String() string { return fmt.Sprintf("%d %.300q", a.status, a.body) }

// ask makes a request of an entry.
func (w *world) ask(ctx context.Context, e *entry, r request) (answer, error) {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://"+e.address+r.path, body)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.newest {
		req.Header.Set("Cache-Control", "no-cache")
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("Cf-Cache-Status") == "STALE", text}, err
}

func (w *world) base() string {
	return "/client/v4/accounts/" + w.account + "/storage/kv/namespaces/" + w.namespace
}

func (w *world) valuePath(key string) string { return w.base() + "/values/" + url.PathEscape(key) }

// put is the request of a write.
func (w *world) put(key string, o *op, value []byte) request {
	r := request{method: http.MethodPut, path: w.valuePath(key), body: value, contentType: "application/octet-stream"}
	if o.expires != 0 {
		r.path += fmt.Sprintf("?expiration=%d", o.expires)
	}
	metadata := o.metadata()
	if metadata == "" {
		return r
	}
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	_ = parts.WriteField("metadata", metadata) // a buffer takes everything
	_ = parts.WriteField("value", string(value))
	_ = parts.Close()
	r.body, r.contentType = form.Bytes(), parts.FormDataContentType()
	return r
}

// page is a page of a listing.
type page struct {
	names    []string
	metadata []string
	cursor   string
}

func (w *world) list(ctx context.Context, e *entry, prefix, cursor string, limit int) (p page, err error) {
	path := fmt.Sprintf("%s/keys?limit=%d&prefix=%s&cursor=%s", w.base(), limit, url.QueryEscape(prefix), url.QueryEscape(cursor))
	a, err := w.ask(ctx, e, request{method: http.MethodGet, path: path})
	if err != nil {
		return page{}, err
	}
	if a.status != http.StatusOK {
		return page{}, fmt.Errorf("list: %s", a)
	}
	var text struct {
		Result []struct {
			Name     string
			Metadata json.RawMessage
		}
		ResultInfo struct{ Cursor string } `json:"result_info"`
	}
	if err := json.Unmarshal(a.body, &text); err != nil {
		return page{}, fmt.Errorf("list: %w in %s", err, a)
	}
	for _, k := range text.Result {
		p.names = append(p.names, k.Name)
		p.metadata = append(p.metadata, string(k.Metadata))
	}
	p.cursor = text.ResultInfo.Cursor
	return p, nil
}
