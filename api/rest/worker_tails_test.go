package rest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/hot"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/websocket"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/workerd/tail"
)

// tailWorld is a world with a Hub, served as in production: by the hot path, with
// net/http behind it.
type tailWorld struct {
	*workersWorld
	hub *tail.Hub
	url string
}

// nothingNear has the hot path answer nothing by itself.
type nothingNear struct{}

func (nothingNear) Near(kv.NamespaceID, []byte, time.Duration) (*kv.Record, time.Duration, bool) {
	return nil, 0, false
}
func (nothingNear) Epoch() uint64 { return 0 }
func (nothingNear) Read(context.Context, string, string, kv.NamespaceID) (hot.Right, error) {
	return hot.Right{}, errors.New("nobody may")
}

// serveHot serves a handler by the hot path and returns its address.
func serveHot(t testing.TB, handler http.Handler) string { return serveHotTLS(t, handler, nil) }

func serveHotTLS(t testing.TB, handler http.Handler, config *tls.Config) string {
	t.Helper()
	server := hot.New(hot.Config{HTTP: HTTPServer(handler), Values: nothingNear{}, Rights: nothingNear{}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http"
	if config != nil {
		l, scheme = tls.NewListener(l, config), "https"
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), server.Close()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return scheme + "://" + l.Addr().String()
}

func newTailWorld(t testing.TB, change ...func(*Config)) *tailWorld {
	t.Helper()
	w := &tailWorld{}
	change = append([]func(*Config){func(cfg *Config) {
		w.hub = tail.NewHub(tail.Options{Tails: cfg.Catalog})
		cfg.Workers.Tails = w.hub
	}}, change...)
	w.workersWorld = newWorkersWorld(t, change...)
	w.url = serveHot(t, w.server)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.hub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	w.deploy("shop", "")
	return w
}

// open opens a tail by HTTP, as wrangler does.
func (w *tailWorld) open(base, body string) (opened shownTail) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, base+in("/workers/scripts/shop/tails"), strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+rootToken)
	r.Header.Set("Content-Type", "text/plain;charset=UTF-8")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	var env struct {
		Success bool
		Result  shownTail
	}
	if err := json.NewDecoder(res.Body).Decode(&env); err != nil || !env.Success {
		w.t.Fatalf("open a tail: %s, %v", res.Status, err)
	}
	return env.Result
}

func (w *tailWorld) follow(address string) (*websocket.Conn, error) {
	return websocket.Dial(w.t.Context(), http.DefaultClient, "http"+strings.TrimPrefix(address, "ws"), nil, tail.Protocol, websocket.Options{})
}

func (w *tailWorld) mustFollow(address string) *websocket.Conn {
	w.t.Helper()
	conn, err := w.follow(address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	sessions := func() bool { return w.hub.Stats().Sessions > 0 }
	nearkeytest.Until(w.t, "the session begins", sessions)
	return conn
}

func (w *tailWorld) publish(text string) {
	w.hub.Publish(accountID, "shop", fmt.Appendf(nil, `{"outcome":"ok","logs":[{"message":[%q]}],"exceptions":[],"event":null}`, text))
}

func wantEvent(t testing.TB, conn *websocket.Conn, text string) {
	t.Helper()
	got, err := conn.Read()
	if err != nil || !strings.Contains(string(got), `"`+text+`"`) {
		t.Fatalf("got %s, %v, want the event %s", got, err, text)
	}
}

// A tail, from its opening to its end, through the hot path.
func TestTail(t *testing.T) {
	w := newTailWorld(t)
	opened := w.open(w.url, `{"filters":[{"query":"wanted"}]}`)
	if want := "ws" + strings.TrimPrefix(w.url, "http") + in("/workers/scripts/shop/tails/"+opened.ID+"/socket?token="); !strings.HasPrefix(opened.URL, want) || len(opened.URL) < len(want)+20 {
		t.Errorf("the address is %s", opened.URL)
	}
	expires, err := time.Parse(time.RFC3339, opened.Expires)
	if left := time.Until(expires); err != nil || left < tailLife-time.Minute || left > tailLife || tailLife != tail.MaxSession || tailIngest != tail.HeaderIngest {
		t.Errorf("it expires at %s (%v)", opened.Expires, err)
	}
	conn := w.mustFollow(opened.URL)
	if err := conn.WriteText([]byte(`{"debug":false}`)); err != nil {
		t.Fatal(err)
	}
	w.publish("no")
	w.publish("wanted")
	wantEvent(t, conn, "wanted")

	var list []shownTail
	w.at("GET", "scripts/shop/tails").result(&list)
	if len(list) != 1 || list[0].ID != opened.ID || list[0].URL != "" || list[0].Expires != opened.Expires || string(list[0].Filters) != `[{"query":"wanted"}]` {
		t.Errorf("the tails are %+v", list)
	}
	var one shownTail
	if w.at("GET", "scripts/shop/tails/"+opened.ID).result(&one); one.ID != opened.ID || one.URL != "" {
		t.Errorf("the tail is %+v", one)
	}
	secret, _ := url.Parse(opened.URL)
	if text := w.log.String(); strings.Contains(text, secret.Query().Get("token")) {
		t.Error("the log has the token")
	}
	w.at("DELETE", "scripts/shop/tails/"+opened.ID).is("null")
	var end *websocket.CloseError
	if _, err := conn.Read(); !errors.As(err, &end) || end.Code != websocket.CloseNormal {
		t.Errorf("the end is %v", err)
	}
	w.at("DELETE", "scripts/shop/tails/"+opened.ID).is("null") // again
	w.at("GET", "scripts/shop/tails").is("[]")
	w.at("GET", "scripts/shop/tails/"+opened.ID).fails(404, 10336, "The tail could not be found, or it has ended.")
	nearkeytest.Until(t, "the session ends", func() bool { return w.hub.Stats().Sessions == 0 })
	if _, err := w.follow(opened.URL); err == nil {
		t.Error("a tail that was closed can be followed")
	}
	nearkeytest.Until(t, "its request is logged", func() bool {
		return strings.Contains(w.log.String(), `"op":"follow tail","status":101`)
	})
}

// A tail is followed over TLS, also by a client that speaks HTTP/2 otherwise.
func TestTailTLS(t *testing.T) {
	w := newTailWorld(t)
	other := httptest.NewUnstartedServer(nil) // for its certificate
	other.EnableHTTP2 = true
	other.StartTLS()
	defer other.Close()
	base := serveHotTLS(t, w.server, &tls.Config{Certificates: other.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}})
	c, err := client.New(client.Config{BaseURL: base, AccountID: accountID, Token: rootToken, HTTPClient: other.Client()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Workers(t.Context()); err != nil {
		t.Fatal(err)
	}
	followed, err := c.Tail(t.Context(), "shop", client.TailFilter{Text: "secure"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	nearkeytest.Until(t, "the session begins", func() bool { return w.hub.Stats().Sessions > 0 })
	w.publish("secure")
	if event, err := followed.Next(); err != nil || !strings.Contains(string(event), "secure") {
		t.Errorf("got %s, %v", event, err)
	}
	if err := followed.Close(); err != nil {
		t.Error(err)
	}
	nearkeytest.Until(t, "the session ends", func() bool { return w.hub.Stats().Sessions == 0 })
}

// A follower that leaves ends the tail.
func TestTailLeft(t *testing.T) {
	w := newTailWorld(t)
	conn := w.mustFollow(w.open(w.url, "").URL)
	conn.Close()
	nearkeytest.Until(t, "the tail ends", func() bool {
		tails, err := w.catalog.Tails(t.Context(), accountID, "shop")
		return err == nil && len(tails) == 0 && w.hub.Stats().Sessions == 0
	})
}

// Only who was told the token follows a tail; it needs no other credentials. And
// only an edge that knows the other secret delivers to it.
func TestTailSecrets(t *testing.T) {
	w := newTailWorld(t)
	opened := w.open(w.url, "")
	other := w.open(w.url, "")
	without, _, _ := strings.Cut(opened.URL, "?")
	secret, _ := url.Parse(other.URL)
	for name, address := range map[string]string{
		"no token": without, "a wrong token": without + "?token=x", "another's token": without + "?token=" + secret.Query().Get("token"),
		"an unknown tail":   strings.Replace(opened.URL, opened.ID, strings.Repeat("0", 32), 1),
		"no id":             strings.Replace(opened.URL, opened.ID, "x", 1),
		"an unknown Worker": strings.Replace(opened.URL, "/shop/", "/none/", 1),
	} {
		_, err := w.follow(address)
		var refusal *websocket.HandshakeError
		if !errors.As(err, &refusal) || refusal.Status != http.StatusForbidden || !strings.Contains(string(refusal.Body), `"code":10000`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := request{method: "GET", path: in("/workers/scripts/shop/tails/" + opened.ID + "/socket?" + strings.SplitN(opened.URL, "?", 2)[1]), token: "none"}
	w.do(r).fails(426, 10012, "this is the address of a WebSocket")
	r.path += "&since=x"
	w.do(r).fails(400, 10012, "follow tail: 'Invalid since of x. Please specify a time in milliseconds since 1970.'")

	conn := w.mustFollow(opened.URL)
	t0, err := w.catalog.Tail(t.Context(), accountID, "shop", opened.ID)
	if err != nil {
		t.Fatal(err)
	}
	events := request{method: "POST", path: in("/workers/scripts/shop/tails/" + opened.ID + "/events"), token: "none",
		body: `[{"outcome":"ok","logs":[{"message":["from an edge"]}]}]`}
	w.do(events).fails(403, 10000, "Authentication error")
	events.header = map[string]string{tailIngest: "wrong"}
	w.do(events).fails(403, 10000, "Authentication error")
	events.header[tailIngest] = t0.Ingest
	w.do(events).is(`{"delivered":true}`)
	wantEvent(t, conn, "from an edge")
	events.body = "no JSON"
	w.do(events).fails(400, 10012, "deliver to tail: 'The request body is not valid JSON'")
	events.body = "[" + strings.Repeat(" ", tailEventsBytes) + "]"
	w.do(events).fails(413, 10012, fmt.Sprintf("deliver to tail: 'The request body of %d bytes is too large'", tailEventsBytes+2))
	events.path = strings.Replace(events.path, opened.ID, other.ID, 1)
	w.do(events).fails(403, 10000, "Authentication error")
	t1, _ := w.catalog.Tail(t.Context(), accountID, "shop", other.ID)
	events.header[tailIngest], events.body = t1.Ingest, "[]"
	w.do(events).is(`{"delivered":false}`) // nobody follows it yet

	reader := w.token(catalog.Scope{Permission: catalog.Read})
	w.do(request{method: "GET", path: in("/workers/scripts/shop/tails"), token: reader}).ok()
	space := w.token(catalog.Scope{Permission: catalog.Write, Namespace: w.ns.ID})
	w.do(request{method: "POST", path: in("/workers/scripts/shop/tails"), token: space}).fails(403, 10000, "Authentication error")
	w.do(request{method: "POST", path: in("/workers/scripts/shop/tails"), token: "none"}).fails(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
}

// What cannot be opened is refused.
func TestTailRefused(t *testing.T) {
	w := newTailWorld(t)
	w.at("POST", "scripts/none/tails", `{"filters":[]}`).fails(404, 10007, notOnAccount)
	w.at("DELETE", "scripts/none/tails/x").fails(404, 10007, notOnAccount)
	w.at("GET", "scripts/none/tails").fails(404, 10007, notOnAccount)
	w.at("POST", "scripts/shop/tails", `{"filters":[{"colour":"red"}]}`).fails(400, 10012,
		"open tail: 'Invalid filters: filter 1: want one of sampling_rate, outcome, method, header, client_ip, query, scriptVersion.'")
	w.at("POST", "scripts/shop/tails", `{"filters":`).fails(400, 10012, "open tail: 'The request body is not valid JSON'")
	for _, body := range []string{"", "{}", `{"filters":null}`} {
		w.at("POST", "scripts/shop/tails", body).ok()
	}
	for range catalog.MaxTails - 3 {
		w.at("POST", "scripts/shop/tails", "").ok()
	}
	w.at("POST", "scripts/shop/tails", "").fails(400, codeTooMany, catalog.ErrTooManyTails.Error())

	bare := newWorkersWorld(t)
	bare.deploy("shop", "")
	bare.at("POST", "scripts/shop/tails", "").fails(501, 10001, "Workers cannot be followed on this server.")
}

// The address of a tail is that by which the client came.
func TestTailAddress(t *testing.T) {
	w := newTailWorld(t)
	for name, c := range map[string]struct {
		header map[string]string
		want   string
	}{
		"plain":        {nil, "ws://example.com/"},
		"a proxy":      {map[string]string{"X-Forwarded-Host": "api.test:8790", "X-Forwarded-Proto": "https"}, "wss://api.test:8790/"},
		"two proxies":  {map[string]string{"X-Forwarded-Host": "a.test, b.test", "X-Forwarded-Proto": "https, http"}, "wss://a.test/"},
		"not a host":   {map[string]string{"X-Forwarded-Host": "a.test/path"}, "ws://example.com/"},
		"user in host": {map[string]string{"X-Forwarded-Host": "me@a.test"}, "ws://example.com/"},
	} {
		var opened shownTail
		w.do(request{method: "POST", path: in("/workers/scripts/shop/tails"), header: c.header}).result(&opened)
		if !strings.HasPrefix(opened.URL, c.want) {
			t.Errorf("%s: the address is %s", name, opened.URL)
		}
	}
	r := httptest.NewRequest("POST", "/", nil)
	r.TLS = &tls.ConnectionState{}
	if got := followAddress(r, &catalog.Tail{AccountID: "a", Worker: "w", ID: "i", Token: "t"}); got != "wss://example.com/client/v4/accounts/a/workers/scripts/w/tails/i/socket?token=t" {
		t.Errorf("the address is %s", got)
	}
	var opened shownTail
	w.do(request{method: "POST", path: in("/workers/scripts/shop/tails"), body: `{"filters":[{"client_ip":["self"]}]}`,
		header: map[string]string{"X-Forwarded-For": "203.0.113.7, 10.0.0.1"}}).result(&opened)
	if string(opened.Filters) != `[{"client_ip":["203.0.113.7"]}]` {
		t.Errorf("the filters are %s", opened.Filters)
	}
	w.do(request{method: "POST", path: in("/workers/scripts/shop/tails"), body: `{"filters":[{"client_ip":["self"]}]}`}).result(&opened)
	if string(opened.Filters) != `[{"client_ip":["192.0.2.1"]}]` { // of httptest
		t.Errorf("the filters are %s", opened.Filters)
	}
}

// Through an edge a tail is opened and followed as at the centre, for longer than
// an edge waits for an answer.
func TestTailThroughEdge(t *testing.T) {
	w := newTailWorld(t)
	target, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	p := newPoint(t, func(cfg *Config) {
		cfg.Forward = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		}}
	})
	base := serveHot(t, p.server)
	opened := w.open(base, `{"filters":[]}`)
	if !strings.HasPrefix(opened.URL, "ws"+strings.TrimPrefix(base, "http")) {
		t.Errorf("the address is %s, want the edge %s", opened.URL, base)
	}
	conn := w.mustFollow(opened.URL)
	w.publish("far away")
	wantEvent(t, conn, "far away")
	if err := errors.Join(conn.Ping(), conn.WriteText([]byte("{}"))); err != nil {
		t.Error(err)
	}
	w.publish("still there")
	wantEvent(t, conn, "still there")
	conn.Close()
	nearkeytest.Until(t, "the session ends", func() bool { return w.hub.Stats().Sessions == 0 })
	nearkeytest.Until(t, "the edge's request ends", func() bool {
		return strings.Contains(p.log.String(), `"op":"follow tail","status":101`)
	})
	if _, err := w.follow(strings.Replace(opened.URL, "token=", "token=x", 1)); err == nil {
		t.Error("a wrong token passes the edge")
	}
}

// A run that is asked for is that of the cron that was named, or of the only one.
func TestRunSchedule(t *testing.T) {
	var fired []string
	w := newTailWorld(t, func(cfg *Config) {
		cfg.Workers.Fire = func(ctx context.Context, account, worker, cron string) (catalog.CronRun, error) {
			fired = append(fired, account+" "+worker+" "+cron)
			return cfg.Catalog.StartRun(ctx, account, worker, cron, "test", time.Minute)
		}
	})
	w.at("POST", "scripts/none/schedules/run", "").fails(404, 10007, notOnAccount)
	w.at("POST", "scripts/none/schedules/run", `{"cron":"* * * * *"}`).fails(404, 10007, notOnAccount)
	w.at("POST", "scripts/shop/schedules/run", "").fails(400, 10005, "This Worker has no cron triggers; say as which it is to be run.")
	w.at("PUT", "scripts/shop/schedules", `[{"cron":"0 0 * * *x"}]`).fails(400, 10005, `Invalid cron trigger "0 0 * * *x": day of week field has "*x" instead of 1-7`)
	w.at("PUT", "scripts/shop/schedules", `[{"cron":"0 0 * * *"}]`).ok()
	fired = nil
	var run shownRun
	w.at("POST", "scripts/shop/schedules/run", "").result(&run)
	if run.Cron != "0 0 * * *" || !run.Manual || run.Ended != nil || run.Attempt != 1 || run.ID == 0 {
		t.Errorf("%+v", run)
	}
	w.at("POST", "scripts/shop/schedules/run", `{"cron":"any"}`).ok()
	w.at("PUT", "scripts/shop/schedules", `[{"cron":"0 0 * * *"},{"cron":"1 0 * * *"}]`).ok()
	w.at("POST", "scripts/shop/schedules/run", `{}`).fails(400, 10005, "This Worker has several cron triggers; say as which it is to be run: '0 0 * * *', '1 0 * * *'.")
	w.at("POST", "scripts/shop/schedules/run", `{"cron":"`+strings.Repeat("x", catalog.MaxCronBytes+1)+`"}`).fails(400, 10005, "A cron trigger has at most 256 bytes.")
	if got := strings.Join(fired, ","); got != accountID+" shop 0 0 * * *,"+accountID+" shop any" {
		t.Errorf("fired were %s", got)
	}
	var runs []shownRun
	w.at("GET", "scripts/shop/schedules/runs").result(&runs)
	if len(runs) != 2 || runs[0].Cron != "any" {
		t.Errorf("the runs are %+v", runs)
	}
	w.at("GET", "scripts/shop/schedules/runs?limit=1").result(&runs)
	if len(runs) != 1 {
		t.Errorf("%d runs", len(runs))
	}
	w.at("GET", "scripts/shop/schedules/runs?limit=101").fails(400, 10012, "list runs: 'Invalid limit of 101. Please specify an integer between 1 and 100.'")
	w.at("GET", "scripts/none/schedules/runs").fails(404, 10007, notOnAccount)
	reader := w.token(catalog.Scope{Permission: catalog.Read})
	w.do(request{method: "POST", path: in("/workers/scripts/shop/schedules/run"), token: reader}).fails(403, 10000, "Authentication error")

	bare := newWorkersWorld(t)
	bare.deploy("shop", "")
	bare.at("POST", "scripts/shop/schedules/run", "").fails(501, 10001, "Workers do not run on this server.")
}
