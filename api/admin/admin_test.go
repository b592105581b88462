package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

const rootToken = "the root token"

// world is a server whose parts do what the test says.
type world struct {
	mu      sync.Mutex // guards the rest
	repair  admin.Repair
	changes []string
	refuse  error
	verify  func(ctx context.Context, opts admin.VerifyOptions, each func(admin.VerifyProgress)) (admin.Drift, error)
	crawl   func(ctx context.Context) error
	acks    map[kv.NamespaceID]catalog.Ack
}

func (w *world) Repair() admin.Repair {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.repair
}

func (w *world) Verify(ctx context.Context, opts admin.VerifyOptions, each func(admin.VerifyProgress)) (admin.Drift, error) {
	return w.verify(ctx, opts, each)
}

func (w *world) Crawl(ctx context.Context) error { return w.crawl(ctx) }

func (w *world) change(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse == nil {
		w.changes = append(w.changes, fmt.Sprintf(format, args...))
	}
	return w.refuse
}

func (w *world) made() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.changes)
}

type providers struct{ *world }

func (p providers) Change(_ context.Context, name, change string, how admin.ProviderRequest) error {
	return p.change("%s %s %v %v", change, name, how.Force, how.Wipe)
}

type shards struct{ *world }

func (s shards) Table() admin.Table {
	return admin.Table{Epoch: 7, Clusters: []admin.Cluster{{Name: "a1", Slots: 4096, Up: true}, {Name: "a2"}}, Moves: []admin.Move{}}
}

func (s shards) Change(change string, r admin.ShardsRequest) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.change("%s %s", change, text)
}

func (w *world) Get(_ context.Context, id kv.NamespaceID) (catalog.Ack, error) {
	ack, ok := w.acks[id]
	if !ok {
		return "", fmt.Errorf("namespace: %w", catalog.ErrNotFound)
	}
	return ack, nil
}

func (w *world) Set(ctx context.Context, id kv.NamespaceID, ack catalog.Ack) error {
	if _, err := w.Get(ctx, id); err != nil {
		return err
	}
	w.acks[id] = ack
	return nil
}

var someNamespace = kv.NamespaceID{0xab}

func newWorld() *world {
	return &world{
		repair: admin.Repair{Providers: []admin.Provider{{Name: "a", State: "active"}, {Name: "b", State: "filling"}}, Queue: admin.Queue{Depth: 3}},
		acks:   map[kv.NamespaceID]catalog.Ack{someNamespace: catalog.AckDefault},
	}
}

func (w *world) config() admin.Config {
	return admin.Config{
		IsRoot: func(_ context.Context, token string) (bool, error) {
			switch token {
			case rootToken:
				return true, nil
			case "some token":
				return false, nil
			case "any token":
				return false, fmt.Errorf("look it up: %w", kv.ErrUnavailable)
			}
			return false, catalog.ErrUnauthenticated
		},
		Gateway: w, Providers: providers{w}, Shards: map[string]admin.Shards{"a": shards{w}}, Acks: w,
	}
}

// serve puts a handler on loopback.
func serve(t *testing.T, config admin.Config) (*admin.Handler, string) {
	t.Helper()
	h := admin.New(config)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return h, server.URL + "/nearkey/v1"
}

// ask makes a request as the holder of the root token.
func ask(t *testing.T, method, url, body string) (status int, text string) {
	t.Helper()
	return askAs(t, "Bearer "+rootToken, method, url, body)
}

func askAs(t *testing.T, authorization, method, url, body string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

func TestOnlyTheRootTokenIsLetIn(t *testing.T) {
	_, url := serve(t, newWorld().config())
	for authorization, c := range map[string]struct {
		status int
		code   int
	}{
		"":                                    {403, 9106},
		"Bearer":                              {403, 10000},
		"Basic " + rootToken:                  {403, 10000},
		"Bearer unknown":                      {403, 10000},
		"Bearer some token":                   {403, 9109},
		"Bearer any token":                    {503, admin.CodeUnavailable},
		"bearer " + rootToken:                 {200, 0},
		"Bearer " + rootToken:                 {200, 0},
		"Bearer  " + rootToken:                {403, 10000},
		"Bearer " + strings.Repeat("x", 1025): {403, 10000},
	} {
		status, text := askAs(t, authorization, "GET", url+"/repair", "")
		if status != c.status || c.code != 0 && !strings.Contains(text, fmt.Sprintf(`"code":%d`, c.code)) {
			t.Errorf("%.40q: %d %s", authorization, status, text)
		}
		for _, path := range []string{"/verify", "/providers/a/remove", "/shards/a/drain", "/nothing"} {
			if c.status == 200 {
				continue
			}
			if status, _ := askAs(t, authorization, "POST", url+path, ""); status != c.status {
				t.Errorf("%.40q %s: %d", authorization, path, status)
			}
		}
	}
}

func TestAnswers(t *testing.T) {
	w := newWorld()
	_, url := serve(t, w.config())
	id := someNamespace.String()
	for _, c := range []struct {
		method, path, body string
		status             int
		text               string
		made               string // the change
	}{
		{"GET", "/repair", "", 200, `{"success":true,"errors":[],"messages":[],"result":{"providers":[{"name":"a","state":"active"`, ""},
		{"GET", "/shards", "", 200, `"result":[{"provider":"a","epoch":7,"slots":0,"clusters":[{"name":"a1"`, ""},
		{"POST", "/providers/b/promote", "", 200, `"result":{"name":"b"`, "promote b false false"},
		{"POST", "/providers/b/remove", `{"force":true}`, 200, `"success":true`, "remove b true false"},
		{"POST", "/providers/b/fill", `{"wipe":true}`, 200, `"success":true`, "fill b false true"},
		{"POST", "/providers/c/fill", "", 404, `there is no provider \"c\"`, ""},
		{"POST", "/providers/b/eat", "", 404, `cannot be told to eat`, ""},
		{"POST", "/providers/b/fill", `{"fource":true}`, 400, `unknown field`, ""},
		{"POST", "/providers/b/fill", `{}{}`, 400, `behind its end`, ""},
		{"POST", "/shards/a/move", `{"slot":5,"to":"a2"}`, 200, `"provider":"a"`, `move {"slot":5,"to":"a2"}`},
		{"POST", "/shards/a/move", `{"to":"a2"}`, 400, `which slot`, ""},
		{"POST", "/shards/a/move", `{"slot":5,"to":"a3"}`, 404, `there is no cluster \"a3\"`, ""},
		{"POST", "/shards/a/drain", `{"cluster":"a1"}`, 200, `"success":true`, `drain {"cluster":"a1"}`},
		{"POST", "/shards/a/drain", `{}`, 404, `there is no cluster \"\"`, ""},
		{"POST", "/shards/a/rebalance", ``, 200, `"success":true`, `rebalance {}`},
		{"POST", "/shards/a/spread", `{"namespace":"` + id + `","bits":2}`, 200, `"success":true`, `spread {"namespace":"` + id + `","bits":2}`},
		{"POST", "/shards/a/spread", `{"namespace":"x","bits":2}`, 400, `no id of a namespace`, ""},
		{"POST", "/shards/a/spread", `{"namespace":"` + id + `"}`, 400, `how many buckets`, ""},
		{"POST", "/shards/b/rebalance", ``, 404, `no provider \"b\"`, ""},
		{"POST", "/shards/a/eat", ``, 404, `cannot be told to eat`, ""},
		{"GET", "/namespaces/" + id + "/ack", "", 200, `"result":{"ack":"default"}`, ""},
		{"PUT", "/namespaces/" + id + "/ack", `{"ack":"both"}`, 200, `"result":{"ack":"both"}`, ""},
		{"GET", "/namespaces/" + id + "/ack", "", 200, `"result":{"ack":"both"}`, ""},
		{"PUT", "/namespaces/" + id + "/ack", `{"ack":"most"}`, 400, `want first, both or default`, ""},
		{"GET", "/namespaces/" + strings.Repeat("1", 32) + "/ack", "", 404, `not found`, ""},
		{"GET", "/namespaces/" + strings.Repeat("0", 32) + "/ack", "", 400, `no id`, ""},
		{"GET", "/verify", "", 404, `there is no GET /nearkey/v1/verify`, ""},
		{"GET", "/", "", 404, `of another version`, ""},
		{"POST", "/verify", `{"namespaces":["x"]}`, 400, `no id`, ""},
		{"POST", "/verify", `{"rate":-1}`, 400, `keys a second`, ""},
	} {
		before := len(w.made())
		status, text := ask(t, c.method, url+c.path, c.body)
		made := strings.Join(w.made()[before:], "")
		if status != c.status || !strings.Contains(text, c.text) || made != c.made {
			t.Errorf("%s %s %s: %d %s, changed %q", c.method, c.path, c.body, status, text, made)
		}
	}
}

func TestLimitOfABody(t *testing.T) {
	_, url := serve(t, newWorld().config())
	for n, want := range map[int]int{admin.MaxBodyBytes: 200, admin.MaxBodyBytes + 1: 413} {
		body := `{"force":true}` + strings.Repeat(" ", n-14)
		if status, text := ask(t, "POST", url+"/providers/a/fill", body); status != want {
			t.Errorf("a body of %d bytes: %d %s", n, status, text)
		}
	}
	ids := func(n int) string {
		return `{"namespaces":[` + strings.TrimSuffix(strings.Repeat(`"`+someNamespace.String()+`",`, n), ",") + `]}`
	}
	w := newWorld()
	w.verify = func(context.Context, admin.VerifyOptions, func(admin.VerifyProgress)) (admin.Drift, error) {
		return admin.Drift{}, nil
	}
	_, url = serve(t, w.config())
	for n, want := range map[int]int{1000: 200, 1001: 400} {
		if status, text := ask(t, "POST", url+"/verify", ids(n)); status != want {
			t.Errorf("%d namespaces: %d %s", n, status, text)
		}
	}
}

// TestRefusals: what cannot be done is told with the kind that it is of.
func TestRefusals(t *testing.T) {
	w := newWorld()
	_, url := serve(t, w.config())
	for err, want := range map[error]int{
		errors.New("b is not filled yet"):                  409,
		fmt.Errorf("keep: %w", kv.ErrUnavailable):          503,
		fmt.Errorf("keep: %w", kv.ErrFull):                 507,
		fmt.Errorf("slot 9: %w", catalog.ErrInvalid):       400,
		fmt.Errorf("too much of it: %w", kv.ErrOverloaded): 429,
	} {
		w.refuse = err
		for _, path := range []string{"/providers/b/promote", "/shards/a/rebalance"} {
			if status, text := ask(t, "POST", url+path, ""); status != want || !strings.Contains(text, strings.Split(err.Error(), ":")[0]) {
				t.Errorf("%s: %v: %d %s", path, err, status, text)
			}
		}
	}
}

func TestServerWithoutProviders(t *testing.T) {
	config := newWorld().config()
	_, url := serve(t, admin.Config{IsRoot: config.IsRoot})
	for _, c := range [][2]string{{"GET", "/repair"}, {"POST", "/repair/crawl"}, {"POST", "/verify"}, {"POST", "/providers/a/fill"}, {"GET", "/shards"}, {"POST", "/shards/a/move"}, {"GET", "/namespaces/" + someNamespace.String() + "/ack"}} {
		if status, text := ask(t, c[0], url+c[1], ""); status != 404 || !strings.Contains(text, "20404") {
			t.Errorf("%s: %d %s", c[1], status, text)
		}
	}
}

func TestMorePaths(t *testing.T) {
	h := admin.New(newWorld().config())
	h.Handle("GET /nearkey/v1/more/{what}", func(w http.ResponseWriter, r *http.Request) error {
		if r.PathValue("what") == "nothing" {
			return errors.New("there is nothing")
		}
		h.Answer(w, r.PathValue("what"))
		return nil
	})
	server := httptest.NewServer(h)
	defer server.Close()
	if status, text := ask(t, "GET", server.URL+"/nearkey/v1/more/x", ""); status != 200 || !strings.Contains(text, `"result":"x"`) {
		t.Errorf("%d %s", status, text)
	}
	if status, text := ask(t, "GET", server.URL+"/nearkey/v1/more/nothing", ""); status != 500 || !strings.Contains(text, "there is nothing") {
		t.Errorf("%d %s", status, text)
	}
	if status, _ := askAs(t, "", "GET", server.URL+"/nearkey/v1/more/x", ""); status != 403 {
		t.Errorf("without a token: %d", status)
	}
}

func TestWorkAnswersInLines(t *testing.T) {
	w := newWorld()
	told := make(chan struct{})
	w.verify = func(ctx context.Context, opts admin.VerifyOptions, each func(admin.VerifyProgress)) (admin.Drift, error) {
		if len(opts.Namespaces) != 1 || opts.Namespaces[0] != someNamespace || !opts.Values || !opts.Repair || opts.Rate != 9 {
			t.Errorf("asked for %+v", opts)
		}
		each(admin.VerifyProgress{Key: "k1"})
		each(admin.VerifyProgress{Key: "k2", Drift: admin.Drift{Compared: 2}})
		<-told
		return admin.Drift{Compared: 3, Missing: 1, PerProvider: map[string]uint64{"b": 1}}, nil
	}
	_, url := serve(t, w.config())
	body := `{"namespaces":["` + someNamespace.String() + `"],"values":true,"repair":true,"rate":9}`
	lines := begin(t, url+"/verify", body)
	if first := <-lines; !strings.Contains(first, `{"progress":{"namespace":"","key":"k2","drift":{"compared":2`) {
		t.Errorf("first line: %s", first)
	}
	close(told)
	var last string
	for line := range lines {
		last = line
	}
	if want := `{"result":{"compared":3,"missing":1,"older":0,"content":0,"values":0,"per_provider":{"b":1}}}`; last != want {
		t.Errorf("last line: %s", last)
	}
}

// begin makes a request and returns the lines of its answer as they come.
func begin(t *testing.T, url, body string) <-chan string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+rootToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		t.Fatalf("%s", resp.Status)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body)
		for {
			var line json.RawMessage
			if dec.Decode(&line) != nil {
				return
			}
			lines <- string(line)
		}
	}()
	return lines
}

func TestWorkThatFails(t *testing.T) {
	w := newWorld()
	fail := make(chan struct{})
	w.crawl = func(context.Context) error { <-fail; return fmt.Errorf("compare: %w", kv.ErrUnavailable) }
	_, url := serve(t, w.config())
	lines := begin(t, url+"/repair/crawl", "")
	<-lines
	close(fail)
	var last string
	for line := range lines {
		last = line
	}
	if !strings.Contains(last, `{"error":{"code":20503,"message":"compare: store unavailable"}}`) {
		t.Errorf("after it was begun: %s", last)
	}
	if status, text := ask(t, "POST", url+"/repair/crawl", ""); status != 503 || !strings.Contains(text, "compare") {
		t.Errorf("at once: %d %s", status, text)
	}
}

// TestWorkEnds with its caller, and with the server.
func TestWorkEnds(t *testing.T) {
	for _, how := range []string{"the caller goes away", "the server stops"} {
		w := newWorld()
		ended := make(chan struct{})
		w.crawl = func(ctx context.Context) error { <-ctx.Done(); close(ended); return ctx.Err() }
		h, url := serve(t, w.config())
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "POST", url+"/repair/crawl", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+rootToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if how == "the server stops" {
			h.End()
			text, err := io.ReadAll(resp.Body)
			if err != nil || !strings.Contains(string(text), "the server is stopping") {
				t.Errorf("%s: %s %v", how, text, err)
			}
		}
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the work goes on", how)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestWorkThatPanics: nothing is written after the handler has ended.
func TestWorkThatPanics(t *testing.T) {
	h := admin.New(newWorld().config())
	w := httptest.NewRecorder()
	defer func() {
		if recover() == nil {
			t.Error("the panic is lost")
		}
	}()
	_ = h.Work(w, httptest.NewRequest("POST", "/", nil), func(context.Context, func(any)) (any, error) { panic("a bug") })
}

func TestLimitOfWork(t *testing.T) {
	w := newWorld()
	begun, end := make(chan struct{}, admin.MaxWork), make(chan struct{})
	w.crawl = func(context.Context) error { begun <- struct{}{}; <-end; return nil }
	_, url := serve(t, w.config())
	var all sync.WaitGroup
	for range admin.MaxWork {
		all.Go(func() {
			if status, text := ask(t, "POST", url+"/repair/crawl", ""); status != 200 {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	for range admin.MaxWork {
		<-begun
	}
	if status, text := ask(t, "POST", url+"/repair/crawl", ""); status != 429 {
		t.Errorf("one more: %d %s", status, text)
	}
	close(end)
	all.Wait()
}
