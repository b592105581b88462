package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/internal/websocket"
)

// Worker is a Worker of the account.
type Worker struct {
	Name     string    `json:"id"`
	Handlers []string  `json:"handlers"`
	Created  time.Time `json:"created_on"`
	Modified time.Time `json:"modified_on"`
	From     string    `json:"last_deployed_from"` // what deployed it
}

// Schedule is a cron trigger of a Worker.
type Schedule struct {
	Cron     string    `json:"cron"`
	Created  time.Time `json:"created_on"`
	Modified time.Time `json:"modified_on"`
}

// CronRun is a run of a Worker by a cron trigger, or by somebody who asked for it.
type CronRun struct {
	ID        int64      `json:"id"`
	Cron      string     `json:"cron"`
	Scheduled time.Time  `json:"scheduled_time"`
	Started   time.Time  `json:"started_on"`
	Ended     *time.Time `json:"ended_on"` // nil: it runs
	Retry     *time.Time `json:"retry_on"` // nil: it is not tried again
	Attempt   int        `json:"attempt"`
	Outcome   string     `json:"outcome"` // empty: there is none yet
	Error     string     `json:"error"`
	Manual    bool       `json:"manual"`
}

func (c *Client) scriptsPath(elements ...string) string {
	return c.accountPath(append([]string{"workers", "scripts"}, elements...)...)
}

// Workers are the Workers of the account, by name.
func (c *Client) Workers(ctx context.Context) ([]Worker, error) {
	env, err := fetch[[]Worker](ctx, c, call{method: http.MethodGet, path: c.scriptsPath(), idempotent: true})
	if err != nil {
		return nil, err
	}
	return env.Result, nil
}

// Schedules are the cron triggers of a Worker.
func (c *Client) Schedules(ctx context.Context, worker string) ([]Schedule, error) {
	type result struct {
		Schedules []Schedule `json:"schedules"`
	}
	env, err := fetch[result](ctx, c, call{method: http.MethodGet, path: c.scriptsPath(worker, "schedules"), idempotent: true})
	if err != nil {
		return nil, err
	}
	return env.Result.Schedules, nil
}

// RunCron has a Worker's scheduled handler called now. cron is what it is told;
// empty: the only trigger that it has. A run that takes long is returned while it
// goes on.
func (c *Client) RunCron(ctx context.Context, worker, cron string) (CronRun, error) {
	body, err := jsonBody(map[string]string{"cron": cron})
	if err != nil {
		return CronRun{}, err
	}
	env, err := fetch[CronRun](ctx, c, call{
		method: http.MethodPost, path: c.scriptsPath(worker, "schedules", "run"), body: body, contentType: "application/json",
	})
	if err != nil {
		return CronRun{}, err
	}
	return env.Result, nil
}

// CronRuns are the last runs of a Worker, the newest first.
func (c *Client) CronRuns(ctx context.Context, worker string, limit int) ([]CronRun, error) {
	env, err := fetch[[]CronRun](ctx, c, call{
		method: http.MethodGet, path: c.scriptsPath(worker, "schedules", "runs"), idempotent: true,
		query: url.Values{"limit": {strconv.Itoa(limit)}},
	})
	if err != nil {
		return nil, err
	}
	return env.Result, nil
}

// TailFilter says which events a tail is to tell. All that is set must fit; of a
// list one.
type TailFilter struct {
	Outcomes     []string
	Methods      []string
	Header       string // a name
	HeaderText   string // in the value of Header
	ClientIPs    []string
	Text         string // in what was logged
	Version      string
	SamplingRate float64 // 0: all
}

// list is the filter in the words of the API.
func (f TailFilter) list() []map[string]any {
	list := []map[string]any{}
	add := func(name string, value any) { list = append(list, map[string]any{name: value}) }
	if f.SamplingRate != 0 {
		add("sampling_rate", f.SamplingRate)
	}
	if len(f.Outcomes) > 0 {
		add("outcome", f.Outcomes)
	}
	if len(f.Methods) > 0 {
		add("method", f.Methods)
	}
	if f.Header != "" {
		header := map[string]string{"key": f.Header}
		if f.HeaderText != "" {
			header["query"] = f.HeaderText
		}
		add("header", header)
	}
	if len(f.ClientIPs) > 0 {
		add("client_ip", f.ClientIPs)
	}
	if f.Text != "" {
		add("query", f.Text)
	}
	if f.Version != "" {
		add("scriptVersion", f.Version)
	}
	return list
}

// The bounds of a tail.
const (
	maxEventBytes = 4 << 20
	tailIdle      = time.Minute // without a sign of the server
	tailProtocol  = "trace-v1"
)

// Tail is what a Worker does, as it happens. One goroutine reads it.
type Tail struct {
	conn *websocket.Conn
	stop func() bool
}

// ErrTailEnded: the server has ended the tail in order.
var ErrTailEnded = errors.New("the tail has ended")

// Tail follows a Worker until ctx ends or the Tail is closed. since is from when on
// lines are told first that the server has kept; the zero time: none.
func (c *Client) Tail(ctx context.Context, worker string, filter TailFilter, since time.Time) (*Tail, error) {
	body, err := jsonBody(map[string]any{"filters": filter.list()})
	if err != nil {
		return nil, err
	}
	type opened struct {
		ID  string `json:"id"`
		URL string `json:"url"`
	}
	env, err := fetch[opened](ctx, c, call{method: http.MethodPost, path: c.scriptsPath(worker, "tails"), body: body, contentType: "application/json"})
	if err != nil {
		return nil, err
	}
	conn, err := c.dialTail(ctx, env.Result.URL, since)
	if err != nil {
		// Nobody will follow it; that it could not be deleted either adds nothing.
		_, _ = fetch[any](ctx, c, call{method: http.MethodDelete, path: c.scriptsPath(worker, "tails", env.Result.ID), idempotent: true})
		return nil, fmt.Errorf("follow Worker %q: %w", worker, err)
	}
	return &Tail{conn, context.AfterFunc(ctx, func() { _ = conn.Close() })}, nil
}

// dialTail opens the address that a server has told, which has all that it asks for.
func (c *Client) dialTail(ctx context.Context, address string, since time.Time) (*websocket.Conn, error) {
	u, err := url.Parse(address)
	if err != nil || !strings.HasPrefix(u.Scheme, "ws") {
		return nil, errors.New("the server tells no address of a WebSocket")
	}
	u.Scheme = "http" + strings.TrimPrefix(u.Scheme, "ws")
	if !since.IsZero() {
		query := u.Query()
		query.Set("since", strconv.FormatInt(since.UnixMilli(), 10))
		u.RawQuery = query.Encode()
	}
	head := http.Header{"User-Agent": {c.config.UserAgent}}
	conn, err := websocket.Dial(ctx, c.http, u.String(), head, tailProtocol, websocket.Options{Limit: maxEventBytes, Idle: tailIdle})
	var secret *url.Error
	switch {
	case errors.As(err, &secret): // its URL has the token
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, secret.Err)
	case err != nil:
		return nil, err
	}
	return conn, nil
}

// Next waits for the next event: JSON. ErrTailEnded says that the server has ended
// the tail; after any other error it may be opened anew.
func (t *Tail) Next() (json.RawMessage, error) {
	message, err := t.conn.Read()
	var end *websocket.CloseError
	switch {
	case errors.As(err, &end) && end.Code == websocket.CloseNormal:
		return nil, fmt.Errorf("%w: %s", ErrTailEnded, end.Reason)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return message, nil
}

// Close ends the tail. The server is told, but not waited for.
func (t *Tail) Close() error {
	t.stop()
	_ = t.conn.WriteClose(websocket.CloseNormal, "")
	return t.conn.Close()
}
