// Command demo is the main job on real input: it loads the files of a directory
// into a namespace through the API, kills the server half-way as a power switch
// does, starts it again, resumes, and compares every file with what is stored, by
// SHA-256. It works in a temporary directory and loses that at the end.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

func main() {
	files := flag.String("files", "test/compat/node_modules", "the directory whose files are loaded")
	flag.Parse()
	if err := run(context.Background(), *files, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	valueBytes  = 25 << 20 // the greatest value; greater files are not loaded
	partialCode = 6        // exit code of an import that some records could not join
	readers     = 8        // files that are compared at once
	pollEvery   = 20 * time.Millisecond
)

// demo is one run.
type demo struct {
	out       io.Writer
	binary    string
	dir       string // temporary
	files     string
	paths     []string // that can be loaded, relative to files
	bytes     int64    // in them
	tooLarge  int
	server    *process.Server
	namespace string
}

func run(ctx context.Context, files string, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "nearkey-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := &demo{out: out, dir: dir, files: files}
	if err := d.survey(); err != nil {
		return err
	}
	if d.binary, err = process.Build(ctx, dir); err != nil {
		return err
	}
	if d.server, err = process.Serve(ctx, d.binary, d.data()); err != nil {
		return err
	}
	defer func() { d.server.Kill() }()
	for _, step := range []func(context.Context) error{d.create, d.loadAndKill, d.resume, d.verify, d.control} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.server.Stop()
}

func (d *demo) data() string { return filepath.Join(d.dir, "data") }

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// survey lists the files.
func (d *demo) survey() error {
	err := filepath.WalkDir(d.files, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() > valueBytes {
			d.tooLarge++
			return nil
		}
		rel, err := filepath.Rel(d.files, path)
		d.paths = append(d.paths, filepath.ToSlash(rel))
		d.bytes += info.Size()
		return err
	})
	if err != nil {
		return fmt.Errorf("list the files (make deps installs them): %w", err)
	}
	d.say("%s: %d files, %.1f MB; %d more are larger than a value can be", d.files, len(d.paths), float64(d.bytes)/1e6, d.tooLarge)
	return nil
}

func (d *demo) create(ctx context.Context) error {
	out, err := d.nearkey(ctx, "namespace", "create", "files", "--json").Output()
	if err != nil {
		return fmt.Errorf("create a namespace: %w", err)
	}
	var created struct{ ID string }
	if err := json.Unmarshal(out, &created); err != nil || created.ID == "" {
		return fmt.Errorf("create a namespace: answer %q: %w", out, err)
	}
	d.namespace = created.ID
	return nil
}

// nearkey is a command of the binary for the running server.
func (d *demo) nearkey(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.binary, append([]string{"--data", d.data()}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

func (d *demo) importFiles(ctx context.Context) *exec.Cmd {
	return d.nearkey(ctx, "import", d.namespace, d.files, "--resume", "--state", filepath.Join(d.dir, "state"))
}

// loadAndKill starts the import and kills the server when half of the files are
// stored. The import ends by itself, with an error.
func (d *demo) loadAndKill(ctx context.Context) error {
	start := time.Now()
	cmd := d.importFiles(ctx)
	cmd.Stderr = nil // it will complain that the server is gone
	if err := cmd.Start(); err != nil {
		return err
	}
	stored := 0
	for stored < len(d.paths)/2 {
		var err error
		if stored, err = d.listed(ctx); err != nil {
			return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		time.Sleep(pollEvery)
	}
	d.server.Kill()
	killed := time.Since(start)
	if err := cmd.Wait(); err == nil {
		return errors.New("the import ended well although the server was killed")
	}
	d.say("kill -9 after %.1f s, with %d files stored; the import: %s", killed.Seconds(), stored, cmd.ProcessState)
	return nil
}

// resume starts the server on the same data and address and lets the import end.
func (d *demo) resume(ctx context.Context) error {
	start := time.Now()
	address := strings.TrimPrefix(d.server.URL, "http://")
	server, err := process.Serve(ctx, d.binary, d.data(), "--listen", address)
	if err != nil {
		return err
	}
	d.server = server
	ready := time.Since(start)
	cmd := d.importFiles(ctx)
	out, err := cmd.Output()
	if code := cmd.ProcessState.ExitCode(); err != nil && (code != partialCode || d.tooLarge == 0) {
		return fmt.Errorf("resume the import: %w\n%s", err, out)
	}
	d.say("started again, ready in %.2f s; resumed and done in %.1f s", ready.Seconds(), time.Since(start).Seconds())
	return nil
}

// verify compares every file with what is stored.
func (d *demo) verify(ctx context.Context) error {
	start := time.Now()
	same, err := d.compare(ctx)
	if err != nil {
		return err
	}
	listed, err := d.listed(ctx)
	if err != nil {
		return err
	}
	d.say("compared %d files by SHA-256 in %.1f s: %d equal; %d keys listed", len(d.paths), time.Since(start).Seconds(), same, listed)
	if same != len(d.paths) || listed != len(d.paths) {
		return fmt.Errorf("%d of %d files differ or are missing", len(d.paths)-same, len(d.paths))
	}
	return nil
}

func (d *demo) compare(ctx context.Context) (same int, err error) {
	work := make(chan string)
	var equal atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, readers)
	for range readers {
		wg.Go(func() {
			for path := range work {
				ok, err := d.equal(ctx, path)
				if err != nil {
					select {
					case failures <- fmt.Errorf("%s: %w", path, err):
					default:
					}
				}
				if ok {
					equal.Add(1)
				}
			}
		})
	}
	for _, path := range d.paths {
		work <- path
	}
	close(work)
	wg.Wait()
	close(failures)
	return int(equal.Load()), <-failures
}

func (d *demo) equal(ctx context.Context, path string) (bool, error) {
	want, err := os.ReadFile(filepath.Join(d.files, filepath.FromSlash(path)))
	if err != nil {
		return false, err
	}
	got, err := d.get(ctx, d.base()+"/values/"+url.PathEscape(path))
	if err != nil {
		return false, err
	}
	return sha256.Sum256(got) == sha256.Sum256(want), nil
}

func (d *demo) base() string {
	return d.server.URL + "/client/v4/accounts/" + d.server.AccountID + "/storage/kv/namespaces/" + d.namespace
}

// listed counts the keys of the namespace, page by page.
func (d *demo) listed(ctx context.Context) (n int, err error) {
	for cursor := ""; ; {
		body, err := d.get(ctx, d.base()+"/keys?limit=1000&cursor="+url.QueryEscape(cursor))
		if err != nil {
			return 0, err
		}
		var page struct {
			Result     []struct{ Name string }
			ResultInfo struct{ Cursor string } `json:"result_info"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return 0, err
		}
		n += len(page.Result)
		if cursor = page.ResultInfo.Cursor; cursor == "" {
			return n, nil
		}
	}
}

func (d *demo) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+d.server.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, body)
	}
	return body, err
}

// control shows that the comparison can fail: one value is overwritten with other
// bytes, and exactly that one must differ.
func (d *demo) control(ctx context.Context) error {
	cmd := d.nearkey(ctx, "kv", "put", "--namespace", d.namespace, "--", d.paths[len(d.paths)/2], "other bytes")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("overwrite a value: %w", err)
	}
	same, err := d.compare(ctx)
	if err != nil {
		return err
	}
	if same != len(d.paths)-1 {
		return fmt.Errorf("one value was overwritten, the comparison finds %d that differ", len(d.paths)-same)
	}
	d.say("control: one value overwritten, one found to differ")
	return nil
}
