// The tests run Workers on the real binary and the real workerd, deployed by the
// requests that wrangler sends.
package workers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// binary is the real nearkey, runtimePath the real workerd.
var binary, runtimePath string

func TestMain(m *testing.M) {
	var err error
	if runtimePath, err = nearkeytest.Workerd(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(nearkeytest.Main(context.Background(), m, func(built string) { binary = built }))
}

// world is a running server with Workers.
type world struct {
	*process.Server
	t       *testing.T
	data    string
	args    []string
	workers string // host:port where they answer
	domain  string // dev.<domain>:<port>
}

// start runs a server on a new data directory.
func start(t *testing.T, args ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "nk") // short: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return startIn(t, dir, args...)
}

// startIn runs a server on a data directory.
func startIn(t *testing.T, dir string, args ...string) *world {
	t.Helper()
	w := &world{t: t, data: dir, args: append([]string{"--workers-listen", "127.0.0.1:0", "--workers-runtime", runtimePath}, args...)}
	w.begin()
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.Output())
		}
	})
	return w
}

// begin starts the server's process, once more if it ended.
func (w *world) begin() {
	w.t.Helper()
	server, err := process.Serve(context.Background(), binary, w.data, w.args...)
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(w.data, "listen-address.workers"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.Server = server
	w.domain = strings.TrimPrefix(strings.TrimSpace(string(text)), "http://")
	_, port, err := net.SplitHostPort(w.domain)
	if err != nil {
		w.t.Fatal(err)
	}
	w.workers = "127.0.0.1:" + port
}

// answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request whose Host is host to an address.
func do(ctx context.Context, method, address, host, path, body string, header ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text)}, err
}

// get asks a Worker on its subdomain.
func (w *world) get(name, path string, header ...string) answer {
	w.t.Helper()
	a, err := do(w.t.Context(), http.MethodGet, w.workers, name+"."+w.domain, path, "", header...)
	if err != nil {
		w.t.Fatalf("get %s%s: %v", name, path, err)
	}
	return a
}

// want complains if a Worker does not answer with a body.
func (w *world) want(name, path, body string) {
	w.t.Helper()
	if a := w.get(name, path); a.status != http.StatusOK || a.body != body {
		w.t.Fatalf("%s%s: %d %q, want %q", name, path, a.status, a.body, body)
	}
}

// envelope is the frame of every answer of the API.
type envelope struct {
	Success bool `json:"success"`
	Errors  []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
	Result json.RawMessage `json:"result"`
}

// call asks the API for something of the account. The path begins behind it.
func (w *world) call(method, path, kind string, body []byte) (int, envelope) {
	w.t.Helper()
	return w.callWithin(w.t.Context(), method, path, kind, body)
}

// callWithin is call, for as long as ctx lasts.
func (w *world) callWithin(ctx context.Context, method, path, kind string, body []byte) (int, envelope) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, w.URL+"/client/v4/accounts/"+w.AccountID+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		w.t.Fatalf("%s %s: %d %.300q: %v", method, path, res.StatusCode, text, err)
	}
	return res.StatusCode, e
}

// must is call for what has to succeed; it reads the result into to, unless nil.
func (w *world) must(method, path string, body, to any) {
	w.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	status, e := w.call(method, path, "application/json", text)
	if !e.Success {
		w.t.Fatalf("%s %s: %d %+v", method, path, status, e.Errors)
	}
	if to != nil {
		if err := json.Unmarshal(e.Result, to); err != nil {
			w.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// script is a module Worker.
type script struct {
	code     string
	bindings []map[string]any
	date     string
	flags    []string
	keep     []string // types of bindings of the version before
}

// form is the upload form of a script.
func (s script) form(t *testing.T) (kind string, body []byte) {
	t.Helper()
	if s.date == "" {
		s.date = "2026-01-01"
	}
	metadata, err := json.Marshal(map[string]any{
		"main_module": "index.js", "compatibility_date": s.date, "compatibility_flags": s.flags,
		"bindings": append([]map[string]any{}, s.bindings...), "keep_bindings": s.keep,
	})
	if err != nil {
		t.Fatal(err)
	}
	buffer := &bytes.Buffer{}
	form := multipart.NewWriter(buffer)
	part := func(name, kind, text string) {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + name + `"`}}
		if kind != "" {
			h.Set("Content-Disposition", `form-data; name="`+name+`"; filename="`+name+`"`)
			h.Set("Content-Type", kind)
		}
		p, err := form.CreatePart(h)
		if err == nil {
			_, err = io.WriteString(p, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	part("metadata", "", string(metadata))
	part("index.js", "application/javascript+module", s.code)
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return form.FormDataContentType(), buffer.Bytes()
}

// deploy uploads a Worker, which then answers on its subdomain.
func (w *world) deploy(name string, s script) {
	w.t.Helper()
	kind, form := s.form(w.t)
	if status, e := w.call(http.MethodPut, "/workers/scripts/"+name, kind, form); !e.Success {
		w.t.Fatalf("deploy %s: %d %+v", name, status, e.Errors)
	}
	w.must(http.MethodPost, "/workers/scripts/"+name+"/subdomain", map[string]bool{"enabled": true}, nil)
}

// namespace creates a namespace and returns its id.
func (w *world) namespace(title string) string {
	w.t.Helper()
	var made struct{ ID string }
	w.must(http.MethodPost, "/storage/kv/namespaces", map[string]string{"title": title}, &made)
	return made.ID
}

func kvBinding(name, id string) map[string]any {
	return map[string]any{"type": "kv_namespace", "name": name, "namespace_id": id}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	nearkeytest.Eventually(t, what, func() error {
		if !is() {
			return errors.New("not yet")
		}
		return nil
	})
}
