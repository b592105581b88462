package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/websocket"
)

// script answers requests for the paths of Workers with what is at method and path.
func script(t *testing.T, answers map[string]string) (*client.Client, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		path := strings.TrimPrefix(r.URL.RequestURI(), "/client/v4/accounts/"+account+"/workers/scripts")
		mu.Lock()
		asked = append(asked, strings.TrimSpace(r.Method+" "+path+" "+string(body)))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		result, ok := answers[r.Method+" "+path]
		if !ok {
			w.WriteHeader(404)
			io.WriteString(w, `{"success":false,"errors":[{"code":10007,"message":"This Worker does not exist on your account."}]}`)
			return
		}
		fmt.Fprintf(w, `{"success":true,"errors":[],"messages":[],"result":%s}`, result)
	}))
	t.Cleanup(server.Close)
	return newClient(t, client.Config{BaseURL: server.URL}), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
}

func TestWorkers(t *testing.T) {
	c, asked := script(t, map[string]string{
		"GET ":                              `[{"id":"a b","handlers":["fetch","scheduled"],"modified_on":"2026-01-02T03:04:05.000006Z","last_deployed_from":"wrangler"}]`,
		"GET /a%20b/schedules":              `{"schedules":[{"cron":"* * * * *","created_on":"2026-01-02T03:04:05Z"}]}`,
		"POST /a%20b/schedules/run":         `{"id":7,"cron":"x","ended_on":null,"retry_on":null,"attempt":1,"manual":true}`,
		"GET /a%20b/schedules/runs?limit=3": `[{"id":7,"cron":"x","started_on":"2026-01-02T03:04:05Z","ended_on":"2026-01-02T03:04:06Z","outcome":"ok"}]`,
	})
	workers, err := c.Workers(t.Context())
	if err != nil || len(workers) != 1 || workers[0].Name != "a b" || len(workers[0].Handlers) != 2 || workers[0].Modified.Year() != 2026 || workers[0].From != "wrangler" {
		t.Errorf("%+v, %v", workers, err)
	}
	schedules, err := c.Schedules(t.Context(), "a b")
	if err != nil || len(schedules) != 1 || schedules[0].Cron != "* * * * *" {
		t.Errorf("%+v, %v", schedules, err)
	}
	run, err := c.RunCron(t.Context(), "a b", "x")
	if err != nil || run.ID != 7 || run.Ended != nil || !run.Manual {
		t.Errorf("%+v, %v", run, err)
	}
	runs, err := c.CronRuns(t.Context(), "a b", 3)
	if err != nil || len(runs) != 1 || runs[0].Outcome != "ok" || runs[0].Ended.Sub(runs[0].Started) != time.Second {
		t.Errorf("%+v, %v", runs, err)
	}
	if got := asked()[2]; got != `POST /a%20b/schedules/run {"cron":"x"}` {
		t.Errorf("asked %s", got)
	}
	var answer *client.Error
	if _, err := c.Schedules(t.Context(), "none"); !errors.As(err, &answer) || !answer.NotFound() {
		t.Errorf("a Worker that is not there: %v", err)
	}
}

// tails is a server with one Worker whose tails do what serve does.
func tails(t *testing.T, serve func(c *websocket.Conn)) (*client.Client, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		mu.Unlock()
		if r.Header.Get("Upgrade") == "" {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"success":true,"result":{"id":"tail-1","url":"ws://%s/socket?token=hidden"}}`, r.Host)
			return
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the address of a tail is shown the API token")
		}
		if serve == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		conn, err := websocket.Upgrade(w, r, "trace-v1", websocket.Options{})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		serve(conn)
	}))
	t.Cleanup(server.Close)
	return newClient(t, client.Config{BaseURL: server.URL}), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
}

func TestTail(t *testing.T) {
	left := make(chan error, 1)
	c, asked := tails(t, func(conn *websocket.Conn) {
		_ = conn.WriteText([]byte(`{"outcome":"ok"}`))
		_, err := conn.Read()
		left <- err
	})
	filter := client.TailFilter{Outcomes: []string{"ok"}, Methods: []string{"GET"}, Header: "X", HeaderText: "v", ClientIPs: []string{"self"}, Text: "t", Version: "u", SamplingRate: 0.5}
	tail, err := c.Tail(t.Context(), "shop", filter, time.UnixMilli(1234))
	if err != nil {
		t.Fatal(err)
	}
	event, err := tail.Next()
	if err != nil || string(event) != `{"outcome":"ok"}` {
		t.Errorf("%s, %v", event, err)
	}
	if err := tail.Close(); err != nil {
		t.Error(err)
	}
	var end *websocket.CloseError
	if err := <-left; !errors.As(err, &end) || end.Code != websocket.CloseNormal {
		t.Errorf("the server heard %v", err)
	}
	_, sent, _ := strings.Cut(asked()[0], "/tails ")
	want := `{"filters":[{"sampling_rate":0.5},{"outcome":["ok"]},{"method":["GET"]},{"header":{"key":"X","query":"v"}},{"client_ip":["self"]},{"query":"t"},{"scriptVersion":"u"}]}`
	var got, wanted any
	if json.Unmarshal([]byte(sent), &got) != nil || json.Unmarshal([]byte(want), &wanted) != nil || fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("sent %s", sent)
	}
	if !strings.HasPrefix(asked()[1], "GET /socket?since=1234&token=hidden") {
		t.Errorf("asked %s", asked()[1])
	}
}

// A tail ends with its context, with the server's word, or with the connection.
func TestTailEnds(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	c, _ := tails(t, func(*websocket.Conn) { <-hang })
	ctx, cancel := context.WithCancel(t.Context())
	tail, err := c.Tail(ctx, "shop", client.TailFilter{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := tail.Next(); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("after its context: %v", err)
	}
	tail.Close()

	for code, ended := range map[int]bool{websocket.CloseNormal: true, websocket.CloseGoingAway: false, 0: false} {
		c, _ := tails(t, func(conn *websocket.Conn) {
			if code != 0 {
				_ = conn.WriteClose(code, "why")
			}
		})
		tail, err := c.Tail(t.Context(), "shop", client.TailFilter{}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tail.Next(); errors.Is(err, client.ErrTailEnded) != ended || err == nil {
			t.Errorf("code %d: %v", code, err)
		}
		tail.Close()
	}
}

// A tail that cannot be followed is deleted; errors do not tell its token.
func TestTailRefused(t *testing.T) {
	c, asked := tails(t, nil)
	_, err := c.Tail(t.Context(), "shop", client.TailFilter{}, time.Time{})
	if err == nil || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v", err)
	}
	if all := asked(); len(all) != 3 || !strings.HasPrefix(all[2], "DELETE ") || !strings.HasSuffix(all[2], "/tails/tail-1") {
		t.Errorf("asked %q", all)
	}
	gone := newClient(t, client.Config{BaseURL: "http://kv.test", HTTPClient: &http.Client{Transport: &roundTripper{answer: func(n int, r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet {
			return nil, errors.New("refused")
		}
		return answer(200, `{"success":true,"result":{"id":"tail-1","url":"wss://other.test/socket?token=hidden"}}`), nil
	}}}})
	if _, err := gone.Tail(t.Context(), "shop", client.TailFilter{}, time.Time{}); !errors.Is(err, client.ErrUnreachable) || strings.Contains(err.Error(), "hidden") {
		t.Errorf("%v", err)
	}
}
