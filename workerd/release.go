package workerd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"
)

const (
	releaseTimeout = 10 * time.Second
	// releaseAhead is how far beyond its own date a release takes compatibility dates.
	releaseAhead = 7 * 24 * time.Hour
)

var releaseForm = regexp.MustCompile(`\b\d{4}-\d\d-\d\d\b`)

// A release is the binary that processes are started from.
type release struct {
	path   string
	info   os.FileInfo
	newest string // compatibility date
}

// find returns the release that is at a path now: r, if it is still that.
func (r *release) find(path string) (*release, error) {
	binary, err := find(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(binary)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if r != nil && r.path == binary && os.SameFile(r.info, info) && r.info.Size() == info.Size() && r.info.ModTime().Equal(info.ModTime()) && r.newest != "" {
		return r, nil
	}
	return &release{binary, info, newestDate(binary)}, nil
}

// newestDate is the newest compatibility date that a binary takes; empty: it does not
// tell its own.
func newestDate(binary string) string {
	said := &bytes.Buffer{}
	cmd := exec.Command(binary, "--version")
	cmd.Stdout = said
	if cmd.Start() != nil {
		return "" // what is wrong with it the first start tells
	}
	late := time.AfterFunc(releaseTimeout, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if cmd.Wait() != nil {
		return ""
	}
	released, err := time.Parse(time.DateOnly, string(releaseForm.Find(said.Bytes())))
	if err != nil {
		return ""
	}
	return released.Add(releaseAhead).Format(time.DateOnly)
}

// compatibilityDate is the date that a Worker runs by: its own or, if the runtime is
// older than that, the newest that the runtime takes, as 'wrangler dev' does it too.
// What came to be between the two dates is not there.
func (w *Worker) compatibilityDate(newest string) string {
	if newest != "" && w.CompatibilityDate > newest {
		return newest
	}
	return w.CompatibilityDate
}
