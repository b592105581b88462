package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// adminPath is where the administration of a nearkey server begins. It is no part
// of the dialect that others speak.
const adminPath = "/nearkey/v1"

// maxAdminLineBytes bounds a line of an answer that comes in lines.
const maxAdminLineBytes = 1 << 20

// Admin makes a call to the administration of a nearkey server, which the root
// token alone may: path is what follows /nearkey/v1, escaped. in is sent as JSON
// unless it is nil; the result is read into out unless that is nil. A call that
// only reads is repeated when the server cannot be reached.
func (c *Client) Admin(ctx context.Context, method, path string, in, out any) error {
	call, err := c.adminCall(method, path, in)
	if err != nil {
		return err
	}
	env, err := fetch[json.RawMessage](ctx, c, call)
	if err != nil {
		return notNearkey(err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(env.Result, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what was expected: %w", method, call.path, err)
	}
	return nil
}

// adminLine is a line of an answer that comes while the work goes on: word of how
// far it has come or, as the last line, what came of it.
type adminLine struct {
	Progress json.RawMessage `json:"progress"`
	Result   json.RawMessage `json:"result"`
	Error    *Detail         `json:"error"`
}

// AdminWork makes a call to the administration that takes its time. Word of how
// far it has come is given to progress, which may keep it; the result is read into
// out unless that is nil. When ctx ends, so does the work.
func (c *Client) AdminWork(ctx context.Context, method, path string, in any, progress func(json.RawMessage), out any) error {
	body, err := c.AdminStream(ctx, method, path, in)
	if err != nil {
		return err
	}
	return readWork(ctx, method, path, body, progress, out)
}

// AdminUpload makes a call as AdminWork does, with a body of any length that is
// sent while the answer is read. It is sent once.
func (c *Client) AdminUpload(ctx context.Context, method, path string, body io.Reader, progress func(json.RawMessage), out any) error {
	made, err := c.adminCall(method, path, nil)
	if err != nil {
		return err
	}
	made.contentType = "application/octet-stream"
	made.body = &Body{Bytes: -1, Open: func() (io.ReadCloser, error) { return io.NopCloser(body), nil }}
	res, err := c.send(ctx, made)
	if err != nil {
		return notNearkey(err)
	}
	return readWork(ctx, method, path, res.Body, progress, out)
}

// readWork reads an answer in lines.
func readWork(ctx context.Context, method, path string, body io.ReadCloser, progress func(json.RawMessage), out any) error {
	defer body.Close()
	doing := method + " " + adminPath + path
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4<<10), maxAdminLineBytes)
	for lines.Scan() {
		var line adminLine
		switch err := json.Unmarshal(lines.Bytes(), &line); {
		case err != nil:
			return fmt.Errorf("%s: the answer is not what was expected: %w", doing, err)
		case line.Error != nil:
			return &Error{Method: method, Path: adminPath + path, StatusCode: http.StatusOK, Errors: []Detail{*line.Error}}
		case line.Progress != nil:
			progress(line.Progress)
		case out == nil:
			return nil
		default:
			if err := json.Unmarshal(line.Result, out); err != nil {
				return fmt.Errorf("%s: the answer is not what was expected: %w", doing, err)
			}
			return nil
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %s: the answer ended early: %w", ErrUnreachable, doing, err)
}

// AdminStream makes a call whose answer is of any length. The caller closes it.
func (c *Client) AdminStream(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	call, err := c.adminCall(method, path, in)
	if err != nil {
		return nil, err
	}
	var body io.ReadCloser
	err = c.retry(ctx, call, func() error {
		res, err := c.send(ctx, call)
		if err == nil {
			body = res.Body
		}
		return err
	})
	return body, notNearkey(err)
}

func (c *Client) adminCall(method, path string, in any) (call, error) {
	path, query, _ := strings.Cut(path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return call{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	made := call{method: method, path: path, query: values, idempotent: method == http.MethodGet, admin: true}
	if in != nil {
		if made.body, err = jsonBody(in); err != nil {
			return call{}, err
		}
		made.contentType = "application/json"
	}
	return made, nil
}

// ErrNotNearkey: the server has no administration of nearkey.
var ErrNotNearkey = errors.New("this server is no centre of nearkey; name one with --api-url")

// notNearkey says what the answer of another server to an unknown path means: one
// of nearkey has a code in each of its answers, and never that of an unknown path.
func notNearkey(err error) error {
	var answer *Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound && (answer.Code() == 0 || answer.Code() == codeNoRoute) {
		return fmt.Errorf("%w: %w", ErrNotNearkey, err)
	}
	return err
}

// codeNoRoute is how servers of the dialect answer to a path that they do not know.
const codeNoRoute = 7003
