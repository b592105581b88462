package workerd

import (
	"bytes"
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
