// Package examples_test deploys each example with the real wrangler to the real
// binary, and uses it as its README says: one test a folder. All of it is in
// temporary folders and is lost at the end.
package examples_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// shared is what all tests use, set by TestMain.
var shared struct {
	dir     string // temporary, of this run
	binary  string // nearkey
	server  *process.Server
	env     []string // what 'nearkey env' prints, as NAME=VALUE
	workers *url.URL // where Workers answer, below it by their names
	origins *origins
	kv      *client.Client
	web     *http.Client  // reaches Workers by every host
	turns   chan struct{} // one for each wrangler that may run at once
}

const (
	wranglers = 2 // that run at once: each keeps more than one core busy
	runtime   = "../test/workerd/node_modules/@cloudflare/workerd-linux-64/bin/workerd"
)

// originHosts are the hosts whose servers tests play, see origins.
var originHosts = []string{
	"accounts.example", "api.example", "app.example", "blog.example", "data.example", "news.example", "old.example", "shop.example",
	"warehouse.example",
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "nearkey-examples-")
	if err != nil {
		return fatal(err)
	}
	defer os.RemoveAll(dir)
	shared.dir = dir
	shared.turns = make(chan struct{}, wranglers)
	shared.origins = newOrigins(originHosts)
	defer shared.origins.Close()
	if err := start(context.Background()); err != nil {
		return fatal(err)
	}
	defer func() { code = end(code) }()
	return m.Run()
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "examples:", err)
	return 1
}

// start starts the server that all examples are deployed to.
func start(ctx context.Context) (err error) {
	for _, needed := range []string{runtime, wranglerProgram} {
		if _, err := os.Stat(needed); err != nil {
			return fmt.Errorf("%w: run 'make deps'", err)
		}
	}
	if shared.binary, err = process.Build(ctx, shared.dir); err != nil {
		return err
	}
	config, err := writeConfig()
	if err != nil {
		return err
	}
	shared.server, err = process.Serve(ctx, shared.binary, dataDir(), "--config", config)
	if err != nil {
		return err
	}
	if err := connect(ctx); err != nil {
		return errors.Join(err, shared.server.Stop())
	}
	return nil
}

// connect makes the clients of the server.
func connect(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, shared.binary, "env", "--json", "--data", dataDir())
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("nearkey env: %w", err)
	}
	var variables map[string]string
	if err := json.Unmarshal(out, &variables); err != nil {
		return fmt.Errorf("nearkey env: %w", err)
	}
	for name, value := range variables {
		shared.env = append(shared.env, name+"="+value)
	}
	if shared.workers, err = url.Parse(variables["NEARKEY_WORKERS_URL"]); err != nil {
		return fmt.Errorf("nearkey env: %w", err)
	}
	address := net.JoinHostPort("127.0.0.1", shared.workers.Port())
	shared.web = &http.Client{
		Timeout:       nearkeytest.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			},
			DisableCompression: true, // what is sent is what is seen
		},
	}
	shared.kv, err = client.New(client.Config{
		BaseURL: shared.server.URL + "/client/v4", AccountID: shared.server.AccountID, Token: shared.server.Token,
	})
	return err
}

func dataDir() string { return filepath.Join(shared.dir, "data") }

// writeConfig writes the configuration of the server: where the origins of the
// examples are, and expirations short enough to wait for.
func writeConfig() (file string, err error) {
	binary, err := filepath.Abs(runtime)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "[workers]\nlisten = \"127.0.0.1:0\"\nruntime = %q\n[limits]\nmin_ttl = \"1s\"\n", binary)
	for _, host := range originHosts {
		fmt.Fprintf(&text, "[[origin]]\nhost = %q\nurl = %q\n", host, shared.origins.URL)
	}
	file = filepath.Join(shared.dir, "nearkey.toml")
	return file, errors.Join(os.Mkdir(dataDir(), 0o700), os.WriteFile(file, []byte(text.String()), 0o600))
}

// end stops the server and shows what it printed if anything was wrong.
func end(code int) int {
	shared.web.CloseIdleConnections()
	shared.kv.Close()
	err := shared.server.Stop()
	if err != nil {
		code = fatal(err)
	}
	if code != 0 {
		fmt.Fprintf(os.Stderr, "--- the server printed\n%s\n", shared.server.Output())
	}
	return code
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
