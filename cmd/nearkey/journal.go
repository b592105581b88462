package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// journal is the state of an import or export that may be interrupted: what it
// works on, and how far it has come. It is a small file beside the input or
// output, written atomically; it never says more than was acknowledged, so a
// crash costs doing a little again.
type journal struct {
	Version   int    `json:"version"`
	Operation string `json:"operation"` // import or export
	Server    string `json:"server"`
	Account   string `json:"account"`
	Namespace string `json:"namespace"`
	Format    string `json:"format"`
	Prefix    string `json:"prefix"`

	Input  identity `json:"input,omitzero"`   // of an import
	Items  int64    `json:"items"`            // that are done, from the first on
	Digest string   `json:"digest,omitempty"` // of these items
	Cursor string   `json:"cursor,omitempty"` // of an export: the page to go on with
	Offset int64    `json:"offset,omitempty"` // of an export: bytes written

	Counts counts `json:"counts"`

	path  string    // empty: it is kept nowhere
	saved time.Time // the last time
}

const (
	journalVersion = 1
	journalSuffix  = ".nearkey-resume"
	journalEvery   = 500 * time.Millisecond // between two writes of it
	maxJournal     = 1 << 20
)

// counts are what became of the items of an import or export.
type counts struct {
	Records  int64 `json:"records"`  // written
	Bytes    int64 `json:"bytes"`    // of their values
	Expired  int64 `json:"expired"`  // left out: their time is over
	TooSoon  int64 `json:"too_soon"` // refused: they expire sooner than the server allows
	Refused  int64 `json:"refused"`  // refused for another reason
	Skipped  int64 `json:"skipped"`  // left out: neither file nor directory
	Vanished int64 `json:"vanished"` // of an export: expired or deleted while it ran
}

func (c *counts) add(o counts) {
	c.Records += o.Records
	c.Bytes += o.Bytes
	c.Expired += o.Expired
	c.TooSoon += o.TooSoon
	c.Refused += o.Refused
	c.Skipped += o.Skipped
	c.Vanished += o.Vanished
}

// journalPath is where the journal of a file or directory is.
func journalPath(of string) string { return strings.TrimRight(of, `/\`) + journalSuffix }

// loadJournal reads the journal at path; none is (nil, nil).
func loadJournal(path string) (*journal, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := &journal{}
	if err := json.Unmarshal(text, j); err != nil || len(text) > maxJournal {
		return nil, fmt.Errorf("%s is no journal of an import or export; remove it to begin anew", path)
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("%s was written by another version of nearkey; remove it to begin anew", path)
	}
	return j, nil
}

// continues returns an error unless the work that old was about is that of j.
func (j *journal) continues(old *journal) error {
	for _, c := range []struct{ what, old, now string }{
		{"operation", old.Operation, j.Operation},
		{"account", old.Account, j.Account},
		{"namespace", old.Namespace, j.Namespace},
		{"format", old.Format, j.Format},
		{"prefix", old.Prefix, j.Prefix},
	} {
		if c.old != c.now {
			return usagef("--resume: what was interrupted had another %s (%q, now %q); to begin anew, leave out --resume", c.what, c.old, c.now)
		}
	}
	same := j.Input.Bytes == old.Input.Bytes && j.Input.Listing == old.Input.Listing && j.Input.Modified.Equal(old.Input.Modified)
	if !same {
		return usagef("--resume: the input was changed since; to begin anew, leave out --resume")
	}
	return nil
}

// save writes the journal, at most once in journalEvery unless it must.
func (j *journal) save(must bool) error {
	if j.path == "" || !must && time.Since(j.saved) < journalEvery {
		return nil
	}
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(j.path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the state for --resume: %w", err)
	}
	j.saved = time.Now()
	return nil
}

// remove takes the journal away, when all is done.
func (j *journal) remove() error {
	if j.path == "" {
		return nil
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
