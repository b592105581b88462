// Package examples_test deploys each example with the real wrangler to the real
// binary, and uses it as its README says: one test a folder. All of it is in
// temporary folders and is lost at the end.
package examples_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/process"
)

// shared is what all tests use, set by TestMain.
var shared struct {
	dir     string // temporary, of this run
	binary  string // nearkey
	server  *process.Server
	workers string // the address where Workers answer
	origins *origins
	kv      *client.Client
	web     *http.Client  // reaches Workers by every host
	turns   chan struct{} // one for each wrangler that may run at once
}

const (
	wranglers = 2 // that run at once: each keeps more than one core busy
	// patience is how long whatever must happen in the end may take on a busy machine.
	patience = time.Minute
	runtime  = "../test/workerd/node_modules/@cloudflare/workerd-linux-64/bin/workerd"
)

// originHosts are the hosts whose servers tests play, see origins.
var originHosts = []string{
	"api.example", "app.example", "blog.example", "old.example", "shop.example", "warehouse.example",
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
	at, err := os.ReadFile(filepath.Join(dataDir(), "workers-address"))
	if err != nil {
		return errors.Join(err, shared.server.Stop())
	}
	shared.workers = strings.TrimSpace(string(at))
	shared.web = &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, shared.workers)
			},
			DisableCompression: true, // what is sent is what is seen
		},
	}
	shared.kv, err = client.New(client.Config{
		BaseURL: shared.server.URL + "/client/v4", AccountID: shared.server.AccountID, Token: shared.server.Token,
	})
	if err != nil {
		return errors.Join(err, shared.server.Stop())
	}
	return nil
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

// eventually looks until what is so.
func eventually(t *testing.T, what string, so func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := so()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-tick.C:
		}
	}
}
