// Package compat runs real, unmodified clients against the real binary: wrangler,
// the Cloudflare SDKs for Go and TypeScript, and curl. Where a client and the
// server disagree, the client is right.
//
// The binary is built from ../.. unless NEARKEY_BIN names one. The JavaScript
// clients are those of package-lock.json, a newer wrangler is in ../wrangler and the
// runtime of Workers in ../workerd; npm installs them if they are missing. All data
// is in a temporary folder and is lost at the end.
package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// shared is what all tests use, set by TestMain.
var shared struct {
	dir    string  // temporary, of this run
	binary string  // nearkey
	server *server // profile cloudflare, with Workers
	open   *server // profile open: a TTL may be as short as a second
}

const (
	prepareTimeout = 15 * time.Minute // to build the binary and to install the clients
	logTailBytes   = 16 << 10         // of a server's log, shown when a test fails
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "nearkey-compat-")
	if err != nil {
		return fatal(err)
	}
	defer os.RemoveAll(dir)
	shared.dir = dir
	if err := errors.Join(installClients(ctx), build(ctx)); err != nil {
		return fatal(err)
	}
	workerd, err := runtimePath()
	if err != nil {
		return fatal(err)
	}
	if shared.server, err = startServer(filepath.Join(dir, "cloudflare"), "cloudflare",
		"--workers-listen", "127.0.0.1:0", "--workers-runtime", workerd); err != nil {
		return fatal(err)
	}
	defer func() { code = ended(shared.server, code) }()
	if shared.open, err = startServer(filepath.Join(dir, "open"), "open"); err != nil {
		return fatal(err)
	}
	defer func() { code = ended(shared.open, code) }()
	return m.Run()
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "compat:", err)
	return 1
}

// ended stops a server and shows its log if anything was wrong. A server that
// does not stop in order fails the run.
func ended(s *server, code int) int {
	if err := s.stop(); err != nil {
		code = fatal(err)
	}
	if code != 0 {
		fmt.Fprintf(os.Stderr, "--- log of the server with profile %s\n%s\n", s.profile, s.logTail())
	}
	return code
}

// installClients installs the JavaScript clients.
func installClients(ctx context.Context) error {
	for _, dir := range []string{".", newerDir, runtimeDir} {
		if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err == nil {
			continue
		}
		install := exec.CommandContext(ctx, "npm", "ci", "--no-fund", "--no-audit")
		install.Dir = dir
		if err := command(install); err != nil {
			return err
		}
	}
	return nil
}

// Where the newer wrangler and the runtime of Workers are.
var newerDir, runtimeDir = filepath.Join("..", "wrangler"), filepath.Join("..", "workerd")

// runtimePath is the binary of workerd.
func runtimePath() (string, error) {
	arch := map[string]string{"amd64": "64", "arm64": "arm64"}[runtime.GOARCH]
	return filepath.Abs(filepath.Join(runtimeDir, "node_modules", "@cloudflare", "workerd-"+runtime.GOOS+"-"+arch, "bin", "workerd"))
}

func build(ctx context.Context) error {
	if bin := os.Getenv("NEARKEY_BIN"); bin != "" {
		abs, err := filepath.Abs(bin)
		shared.binary = abs
		return err
	}
	shared.binary = filepath.Join(shared.dir, "nearkey")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", shared.binary, "./cmd/nearkey")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return command(cmd)
}

// command runs a program to its end. The error has what it printed.
func command(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out.Bytes())
	}
	return nil
}
