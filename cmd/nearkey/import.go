package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

// importer is the import command.
type importer struct {
	*Main
	target
	input
	state       string
	resume      bool
	dryRun      bool
	once        bool // without a state: it cannot be resumed
	asJSON      bool
	concurrency int
}

const importHelp = `Write the records of a file, of standard input (-) or of a directory into a
namespace. What is there already is replaced, key by key; nothing is deleted.

Formats, told apart by how the input begins, or named by --format:
  ndjson     what 'nearkey export' writes: a record a line, and a trailer by which
             an input that was cut off or changed is noticed
  json       wrangler's bulk JSON: [{"key", "value", "base64", "expiration",
             "expiration_ttl", "metadata"}, ...]
  directory  every file below it; its key is its path, with slashes

Inputs of any size are read as a stream. Records whose expiration has passed are
left out and counted. Records that the server refuses, such as those that expire
sooner than it allows, are counted and named; the others are written all the
same, and the exit code is 6. Symbolic links, sockets and the like in a directory
are skipped and named; empty files are empty values.

While it runs its state is kept in a small file beside the input
(INPUT.nearkey-resume). After an interruption of any kind the same command with
--resume goes on where it was; it refuses an input that was changed since.`

func (m *Main) importCommand() *cobra.Command {
	im := &importer{Main: m}
	cmd := &cobra.Command{
		Use:   "import NAMESPACE FILE|DIR|-",
		Short: "Write a file, a directory or a stream of records into a namespace",
		Long:  importHelp,
		Example: `  nearkey import sessions sessions.ndjson
  nearkey import site ./public --prefix assets/
  gunzip -c backup.ndjson.gz | nearkey import sessions -
  nearkey import sessions big.ndjson --resume`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := im.split(args, 1)
			if err == nil {
				err = exact(cmd, args, 1)
			}
			if err != nil {
				return err
			}
			im.path = args[0]
			return im.run(cmd.Context())
		},
	}
	im.target.flags(cmd)
	jsonFlag(cmd, &im.asJSON)
	fs := cmd.Flags()
	fs.StringVar(&im.format, "format", "", "`FORMAT` of the input: ndjson, json or directory (default: detected)")
	fs.StringVar(&im.prefix, "prefix", "", "`PREFIX` that is put before every key")
	fs.BoolVar(&im.noTrailer, "no-trailer", false, "accept NDJSON without a trailer, which cannot be told from one that was cut off")
	fs.BoolVar(&im.resume, "resume", false, "go on after an interruption; begin anew if there was none")
	fs.StringVar(&im.state, "state", "", "`FILE` for the state (default: INPUT.nearkey-resume)")
	fs.BoolVar(&im.dryRun, "dry-run", false, "read and check everything, write nothing")
	fs.IntVar(&im.concurrency, "concurrency", usualConcurrency, "requests under way at once")
	return cmd
}

// longWait is how long an import or export waits when the server asks for it:
// one that limits the rate of requests may ask for minutes.
const longWait = 10 * time.Minute

func (im *importer) run(ctx context.Context) error {
	if im.concurrency < 1 || im.concurrency > maxConcurrency {
		return usagef("--concurrency %d: want 1 to %d", im.concurrency, maxConcurrency)
	}
	if im.path == "-" && im.resume {
		return usagef("--resume: standard input cannot be resumed; import a file")
	}
	im.maxWait = longWait
	cl, ns, err := im.open(ctx, im.target)
	if err != nil {
		return err
	}
	began := time.Now()
	source, format, err := im.openSource(im.input)
	if err != nil {
		return err
	}
	defer source.Close()
	j := &journal{
		Version: journalVersion, Operation: "import", Server: cl.BaseURL(), Account: cl.AccountID(), Namespace: ns.ID,
		Format: format, Prefix: im.prefix, Input: source.identity,
	}
	if err := im.prepare(j, source); err != nil {
		return err
	}
	progress := im.progress("importing", source.bytes)
	resumed := j.Items
	offset, _ := source.place()
	progress.add(resumed, offset)
	load := &loader{
		client: cl, namespace: ns.ID, source: source, journal: j, progress: progress,
		say: im.say, dryRun: im.dryRun, concurrency: im.concurrency,
	}
	err = load.run(ctx)
	progress.end()
	im.warnUnknown(source)
	if err != nil {
		return im.interrupted(err, j)
	}
	if err := j.remove(); err != nil {
		return err
	}
	return im.report(ns, j.Counts, j.Items-resumed, time.Since(began))
}

// prepare decides where the state is kept, and goes to where an interrupted
// import was.
func (im *importer) prepare(j *journal, source *source) error {
	if im.dryRun || im.once || im.path == "-" && im.state == "" {
		return nil
	}
	j.path = firstNonEmpty(im.state, journalPath(im.path))
	if im.resume {
		old, err := loadJournal(j.path)
		if err != nil {
			return usageError(err)
		}
		if old != nil {
			return im.goOn(j, old, source)
		}
		im.say("There is nothing to resume; beginning anew.")
	}
	if err := j.save(true); err != nil {
		if im.state != "" || im.resume {
			return err
		}
		im.say("This import cannot be resumed if it is interrupted: %v; --state names another file.", err)
		j.path = ""
	}
	return nil
}

func (im *importer) goOn(j, old *journal, source *source) error {
	if err := j.continues(old); err != nil {
		return err
	}
	if err := source.skip(old.Items); err != nil {
		return usagef("--resume: the input was changed since: %w", err)
	}
	if _, digest := source.place(); digest != old.Digest && old.Items > 0 {
		return usagef("--resume: the input was changed since; to begin anew, leave out --resume")
	}
	j.Items, j.Digest, j.Counts = old.Items, old.Digest, old.Counts
	im.say("Going on after %s.", plural(old.Items, "record"))
	return nil
}

// interrupted is the error of an import that did not come to its end, with what to do.
func (im *importer) interrupted(err error, j *journal) error {
	if errors.Is(err, context.Canceled) {
		err = context.Canceled
	}
	if j.path == "" {
		return fmt.Errorf("import: %w", err)
	}
	return fmt.Errorf("import: %w\n%s dealt with; the same command with --resume goes on from there", err, plural(j.Items, "record"))
}

// warnUnknown tells of properties in the input that were ignored.
func (im *importer) warnUnknown(s *source) {
	if r, ok := s.itemReader.(*pairReader); ok && len(r.unknown) > 0 {
		names := slices.Sorted(maps.Keys(r.unknown))
		im.say("Properties that mean nothing were ignored: %s.", strings.Join(names, ", "))
	}
}

// report says what became of the items, and is an error if some were refused.
func (im *importer) report(ns client.Namespace, c counts, items int64, took time.Duration) error {
	if im.asJSON {
		if err := im.printJSON(struct {
			Namespace string `json:"namespace"`
			DryRun    bool   `json:"dry_run,omitempty"`
			counts
			Seconds float64 `json:"seconds"`
		}{ns.ID, im.dryRun, c, took.Seconds()}); err != nil {
			return err
		}
	}
	did := "Imported"
	if im.dryRun {
		did = "Would import"
	}
	im.say("%s %s (%s) into %q in %s%s.", did, plural(c.Records, "record"), size(c.Bytes), ns.Title,
		took.Round(time.Millisecond), rate(items, took))
	for _, n := range []struct {
		n    int64
		text string
	}{
		{c.Expired, "left out: expired"},
		{c.Skipped, "skipped: neither a file nor a directory"},
		{c.TooSoon, "refused: they expire sooner than the server allows"},
		{c.Refused, "refused"},
	} {
		if n.n > 0 {
			im.say("%s %s.", grouped(n.n), n.text)
		}
	}
	if refused := c.TooSoon + c.Refused; refused > 0 {
		return &exitError{exitPartial, fmt.Errorf("%s not imported because they were refused", plural(refused, "record"))}
	}
	return nil
}

// rate is how fast something went, if that can be said.
func rate(items int64, took time.Duration) string {
	if took < 100*time.Millisecond || items == 0 {
		return ""
	}
	return fmt.Sprintf(", %s a second", grouped(int64(float64(items)/took.Seconds())))
}
