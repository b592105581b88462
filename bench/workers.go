package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

const (
	workerDate = "2026-01-01" // the compatibility date of every Worker
	workerKey  = "key"        // what Workers get
	tenGets    = 10           // of the Worker that gets more than once
)

// The Workers that are compared, the same code in every runtime.
const (
	helloCode = `export default { fetch() { return new Response("hello from a Worker"); } };`
	getCode   = `export default { async fetch(request, env) { return new Response(await env.KV.get("key")); } };`
	tenCode   = `export default { async fetch(request, env) {
	let value;
	for (let i = 0; i < 10; i++) value = await env.KV.get("key");
	return new Response(value);
} };`
	helloBody = "hello from a Worker"
)

// workersScale are the sizes of what is done with Workers.
type workersScale struct {
	deploys   int // each timed from its upload to its first answer
	idle      int // Workers that nobody asks for
	redeploys int // under load
}

var usualWorkers = workersScale{deploys: 30, idle: 50, redeploys: 100}

// workers is a running nearkey that runs Workers.
type workers struct {
	*nearkey
	domain    string // dev.<domain>:<port>
	listen    string // the address at which they answer
	namespace string // the id of the namespace that is bound as KV
}

// startWorkers runs nearkey with one workerd, and with a namespace that holds one
// value.
func (b *bench) startWorkers(ctx context.Context, name, runtime string, pinned bool) (*workers, error) {
	data := filepath.Join(b.dir, name)
	n, err := b.startNearkey(context.WithoutCancel(ctx), data, pinned, "--workers-listen", "127.0.0.1:0", "--workers-runtime", runtime)
	if err != nil {
		return nil, err
	}
	w := &workers{nearkey: n}
	if err := w.prepare(); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

// end stops the server in order, so that it ends its Workers.
func (w *workers) end() {
	if err := w.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

func (w *workers) prepare() error {
	at, err := readLine(filepath.Join(w.data, "listen-address.workers"))
	if err != nil {
		return err
	}
	w.domain = strings.TrimPrefix(at, "http://")
	_, port, err := net.SplitHostPort(w.domain)
	if err != nil {
		return err
	}
	w.listen = net.JoinHostPort("127.0.0.1", port)
	path, err := w.nearkey.namespace("workers")
	if err != nil {
		return err
	}
	w.namespace = path[strings.LastIndexByte(path, '/')+1:]
	_, err = w.call("PUT", path+"/values/"+workerKey, "application/octet-stream", []byte(workerValue()))
	return err
}

// workerValue is the value that Workers get.
func workerValue() string {
	return string(keyspace{seed: 21, dirs: keyDirs}.appendValue(nil, 0))
}

// call asks the API, and returns the result of what has to succeed.
func (w *workers) call(method, path, kind string, body []byte) (json.RawMessage, error) {
	c, err := dial(w.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	status, answer, err := c.do(w.requestOf(method, path, kind, body))
	if err != nil {
		return nil, err
	}
	var envelope struct {
		Success bool
		Result  json.RawMessage
	}
	if err := json.Unmarshal(answer, &envelope); err != nil || !envelope.Success {
		return nil, fmt.Errorf("%s %s: status %d, %.500s", method, path, status, answer)
	}
	return envelope.Result, nil
}

// requestOf is a request to the API with a body of some kind.
func (w *workers) requestOf(method, path, kind string, body []byte) []byte {
	head := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n",
		method, path, w.addr, w.token, kind, len(body))
	return append(head, body...)
}

// scripts is the path of a Worker in the API.
func (w *workers) scripts(name string) string {
	return "/client/v4/accounts/" + w.account + "/workers/scripts/" + name
}

// upload is what wrangler sends to deploy a Worker.
func (w *workers) upload(name, code string) ([]byte, error) {
	kind, form, err := w.form(code)
	return w.requestOf("PUT", w.scripts(name)+"?include_subdomain_availability=true&excludeScript=true", kind, form), err
}

// form is the upload form of a Worker with the namespace bound.
func (w *workers) form(code string) (kind string, form []byte, err error) {
	metadata := fmt.Sprintf(`{"main_module":"index.js","compatibility_date":%q,"bindings":[{"type":"kv_namespace","name":"KV","namespace_id":%q}]}`, workerDate, w.namespace)
	buffer := &bytes.Buffer{}
	out := multipart.NewWriter(buffer)
	err = out.WriteField("metadata", metadata)
	if err == nil {
		var part io.Writer
		part, err = out.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {`form-data; name="index.js"; filename="index.js"`}, "Content-Type": {"application/javascript+module"},
		})
		if err == nil {
			_, err = io.WriteString(part, code)
		}
	}
	err = errors.Join(err, out.Close())
	return out.FormDataContentType(), buffer.Bytes(), err
}

// deploy uploads a Worker, which then answers on its subdomain.
func (w *workers) deploy(name, code string) error {
	kind, form, err := w.form(code)
	if err == nil {
		_, err = w.call("PUT", w.scripts(name), kind, form)
	}
	if err == nil {
		_, err = w.call("POST", w.scripts(name)+"/subdomain", "application/json", []byte(`{"enabled":true}`))
	}
	return err
}

// ask is a request to a Worker.
func (w *workers) ask(name string) []byte { return ask(name + "." + w.domain) }

func ask(host string) []byte { return []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n") }

// answers sends a request until the answer is the right one, as it is when a server
// has just begun.
func answers(addr string, request []byte, want string) error {
	var last error
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		c, err := dial(addr)
		if err != nil {
			last = err
			continue
		}
		status, body, err := c.do(request)
		last = expect(status, body, err, func(got []byte) bool { return string(got) == want })
		c.close()
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("a Worker at %s does not answer: %w", addr, last)
}

//go:embed miniflare.mjs
var miniflareProgram []byte

// startMiniflare serves a Worker with Miniflare on a workerd.
func (b *bench) startMiniflare(ctx context.Context, name, code string, pinned bool) (*server, error) {
	module, err := filepath.Abs(filepath.Join(b.miniflare, "dist", "src", "index.js"))
	if err != nil {
		return nil, err
	}
	runtime, err := filepath.Abs(b.workerd)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(b.dir, "miniflare.mjs")
	if err := os.WriteFile(program, miniflareProgram, 0o600); err != nil {
		return nil, err
	}
	log := filepath.Join(b.dir, "miniflare-"+name+".log")
	s, err := start(context.WithoutCancel(ctx), log, pinned, "env", "MINIFLARE_WORKERD_PATH="+runtime,
		"node", program, module, code, workerDate, workerKey, workerValue())
	if err != nil {
		return nil, err
	}
	return s, s.adopt(func() (string, error) { return readLine(log) })
}

// adopt waits until a server tells its address, and counts its children as parts of
// it. One that does not is ended.
func (s *server) adopt(addr func() (string, error)) error {
	err := s.failed("it does not say where it listens")
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		select {
		case <-s.Done():
			return s.failed("it ended at start")
		default:
		}
		at, notYet := addr()
		if notYet != nil {
			continue
		}
		if _, _, notYet = net.SplitHostPort(at); notYet != nil {
			err = s.failed("it says " + at)
			break
		}
		children, notYet := process.Children(s.pids[0])
		s.addr, s.pids = at, append(s.pids, children...)
		if notYet == nil {
			return nil
		}
		err = notYet
		break
	}
	return errors.Join(err, s.stop())
}

// startBare runs workerd alone with one Worker; with kv, its own KV serves the
// binding.
func (b *bench) startBare(ctx context.Context, name, runtime, code string, kv, pinned bool) (*server, error) {
	dir := filepath.Join(b.dir, "bare-"+name)
	addr, err := freeAddress()
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, "kv"), 0o700)
	}
	if err != nil {
		return nil, err
	}
	services, bindings, rest := "", "", ""
	if kv {
		services = fmt.Sprintf(bundledServices, strconv.Quote(filepath.Join(dir, "kv")))
		bindings = `(name = "KV", kvNamespace = (name = "kv", props = (json = "{\"namespace\":\"one\"}"))),`
		rest = bundledKV
	}
	config := filepath.Join(dir, "c.capnp")
	text := fmt.Sprintf(bareConfig, strconv.Quote(addr), strconv.Quote(code), bindings, services, rest, workerDate)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s, err := start(ctx, filepath.Join(dir, "log"), pinned, runtime, "serve", "--experimental", config)
	if err != nil {
		return nil, err
	}
	s.addr = addr
	return s, nil
}

const bareConfig = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "user", worker = .user), %[4]s],
  sockets = [(name = "http", address = %[1]s, service = "user", http = ())],
);
const user :Workerd.Worker = (
  modules = [(name = "index.js", esModule = %[2]s)],
  compatibilityDate = "%[6]s",
  bindings = [%[3]s],
);
%[5]s`

const bundledServices = `(name = "kv", worker = .kv), (name = "data", disk = (path = %s, writable = true))`

// bundledKV is workerd's own KV as the head of its source asks for it.
const bundledKV = `const kv :Workerd.Worker = (
  modules = [(name = "kv.js", bundled = "/workerd/kv.js")],
  compatibilityDate = "` + workerDate + `",
  durableObjectNamespaces = [(className = "KVNamespace", uniqueKey = "kv", enableSql = true)],
  durableObjectStorage = (localDisk = "data"),
  bindings = [(name = "SHARD", durableObjectNamespace = "KVNamespace"), (name = "BLOBS", service = "data")],
);
`
