package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
	"golang.org/x/sync/semaphore"
)

// exporter is the export command.
type exporter struct {
	*Main
	target
	output      string
	format      string
	prefix      string
	resume      bool
	asJSON      bool
	concurrency int
}

const exportHelp = `Write all records of a namespace to a file or to standard output, in the order of
their keys: keys, values, metadata and expirations, byte for byte. What is
imported from it elsewhere is an equal namespace.

Formats:
  ndjson   a record a line: {"key", "value" or "value_base64", "metadata",
           "expiration"}; the last line counts them and has their SHA-256
  json     wrangler's bulk JSON, which 'wrangler kv bulk put' reads

A file is written beside its place (FILE.partial) and takes it when it is
complete. After an interruption the same command with --resume goes on where it
was. Records that expire or are deleted while it runs are left out and counted.
An export is not a snapshot: each record is whole, but what is written while it
runs may be in it or not. 'nearkey backup' takes snapshots.`

func (m *Main) exportCommand() *cobra.Command {
	ex := &exporter{Main: m}
	cmd := &cobra.Command{
		Use:   "export NAMESPACE [-o FILE]",
		Short: "Write all records of a namespace to a file or a stream",
		Long:  exportHelp,
		Example: `  nearkey export sessions -o sessions.ndjson
  nearkey export sessions | gzip > sessions.ndjson.gz
  nearkey export sessions --prefix user: --format json > users.json`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := ex.split(args, 0); err != nil {
				return err
			}
			return ex.run(cmd.Context())
		},
	}
	ex.target.flags(cmd)
	jsonFlag(cmd, &ex.asJSON)
	fs := cmd.Flags()
	fs.StringVarP(&ex.output, "output", "o", "-", "`FILE` to write; - is standard output")
	fs.StringVar(&ex.format, "format", formatNDJSON, "`FORMAT`: ndjson or json")
	fs.StringVar(&ex.prefix, "prefix", "", "only keys that begin with `PREFIX`")
	fs.BoolVar(&ex.resume, "resume", false, "go on after an interruption; begin anew if there was none")
	fs.IntVar(&ex.concurrency, "concurrency", usualReads, "requests under way at once")
	return cmd
}

func (ex *exporter) check() error {
	switch {
	case ex.format != formatNDJSON && ex.format != formatJSON:
		return usagef("--format %q: want ndjson or json%s", ex.format, didYouMean(ex.format, []string{formatNDJSON, formatJSON}))
	case ex.concurrency < 1 || ex.concurrency > maxConcurrency:
		return usagef("--concurrency %d: want 1 to %d", ex.concurrency, maxConcurrency)
	case ex.output == "-" && ex.asJSON:
		return usagef("--json: the records go to standard output; name a file with -o")
	case ex.resume && (ex.output == "-" || ex.format != formatNDJSON):
		return usagef("--resume: only an export to a file (-o) in the format ndjson can be resumed")
	}
	return nil
}

func (ex *exporter) run(ctx context.Context) error {
	if err := ex.check(); err != nil {
		return err
	}
	ex.maxWait = longWait
	cl, ns, err := ex.open(ctx, ex.target)
	if err != nil {
		return err
	}
	j := &journal{
		Version: journalVersion, Operation: "export", Server: cl.BaseURL(), Account: cl.AccountID(),
		Namespace: ns.ID, Format: ex.format, Prefix: ex.prefix,
	}
	out, err := ex.openOutput(j)
	if err != nil {
		return err
	}
	began, resumed := time.Now(), j.Counts.Records
	progress := ex.progress("exporting", -1)
	dump := &dumper{
		client: cl, namespace: ns.ID, prefix: ex.prefix, counts: &j.Counts,
		requests: semaphore.NewWeighted(int64(ex.concurrency)),
		write: func(r client.Record) error {
			progress.add(1, int64(len(r.Value)))
			return out.records.Write(r)
		},
		pageDone: func(cursor string) error {
			j.Cursor = cursor
			return out.save(j, false)
		},
	}
	err = dump.run(ctx, j.Cursor)
	progress.end()
	if err != nil {
		return ex.interrupted(err, out, j)
	}
	if err := errors.Join(out.finish(), j.remove()); err != nil {
		return err
	}
	return ex.report(ns, j.Counts, j.Counts.Records-resumed, time.Since(began))
}

func (ex *exporter) interrupted(err error, out *output, j *journal) error {
	if errors.Is(err, context.Canceled) {
		err = context.Canceled
	}
	err = fmt.Errorf("export: %w", err)
	if closeErr := out.abandon(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	if j.path == "" || j.Cursor == "" {
		return err
	}
	return fmt.Errorf("%w\n%s written; the same command with --resume goes on from there", err, plural(j.Items, "record"))
}

func (ex *exporter) report(ns client.Namespace, c counts, records int64, took time.Duration) error {
	if ex.asJSON {
		if err := ex.printJSON(struct {
			Namespace string  `json:"namespace"`
			Records   int64   `json:"records"`
			Bytes     int64   `json:"bytes"`
			Vanished  int64   `json:"vanished"`
			Seconds   float64 `json:"seconds"`
		}{ns.ID, c.Records, c.Bytes, c.Vanished, took.Seconds()}); err != nil {
			return err
		}
	}
	ex.say("Exported %s (%s) from %q in %s%s.", plural(c.Records, "record"), size(c.Bytes), ns.Title,
		took.Round(time.Millisecond), rate(records, took))
	if c.Vanished > 0 {
		ex.say("%s left out: expired or deleted meanwhile.", plural(c.Vanished, "record"))
	}
	return nil
}

// recordWriter writes records in a format.
type recordWriter interface {
	Write(client.Record) error
	Flush() error
	Close() error // writes the end; the file is the caller's
}

// output is where an export goes.
type output struct {
	records recordWriter
	ndjson  *client.RecordWriter // records, if it is in that format
	file    *os.File             // nil: standard output
	final   string               // the name that file takes when it is complete
}

const partialSuffix = ".partial"

func (ex *exporter) openOutput(j *journal) (*output, error) {
	out := &output{final: ex.output}
	var w io.Writer = ex.Stdout
	if ex.output != "-" {
		flags := os.O_RDWR | os.O_CREATE
		old, err := ex.journal(j)
		if err != nil {
			return nil, err
		}
		if old == nil {
			flags |= os.O_TRUNC
		}
		// What a namespace holds is for whoever may read the namespace.
		if out.file, err = os.OpenFile(ex.output+partialSuffix, flags, 0o600); err != nil {
			return nil, usageError(err)
		}
		if old != nil {
			return out, ex.goOn(out, j, old)
		}
		w = out.file
	}
	if ex.format == formatJSON {
		out.records = &pairWriter{w: bufio.NewWriter(w)}
		return out, nil
	}
	out.ndjson = client.NewRecordWriter(w)
	out.records = out.ndjson
	return out, nil
}

// journal prepares the journal of an export to a file, and returns that of the
// export to be resumed, if there is one.
func (ex *exporter) journal(j *journal) (old *journal, err error) {
	if ex.format != formatNDJSON {
		return nil, nil
	}
	j.path = journalPath(ex.output)
	if !ex.resume {
		return nil, j.remove()
	}
	if old, err = loadJournal(j.path); err != nil {
		return nil, usageError(err)
	}
	if old == nil {
		ex.say("There is nothing to resume; beginning anew.")
		return nil, nil
	}
	return old, j.continues(old)
}

// goOn makes the output go on after the records that an interrupted export wrote
// and noted. That they are still those is seen by their hash.
func (ex *exporter) goOn(out *output, j, old *journal) error {
	records := client.NewRecordReader(io.LimitReader(out.file, old.Offset))
	err := records.Skip(old.Items)
	if err != nil || records.SHA256() != old.Digest || records.Offset() != old.Offset {
		return errors.Join(usagef("--resume: %s is not what was written before; to begin anew, leave out --resume", out.file.Name()), err, out.file.Close())
	}
	if err := out.file.Truncate(old.Offset); err != nil {
		return errors.Join(err, out.file.Close())
	}
	if _, err := out.file.Seek(old.Offset, io.SeekStart); err != nil {
		return errors.Join(err, out.file.Close())
	}
	out.ndjson = client.NewRecordWriter(out.file)
	out.ndjson.Resume(records)
	out.records = out.ndjson
	path := j.path
	*j = *old
	j.path = path
	ex.say("Going on after %s.", plural(old.Items, "record"))
	return nil
}

// save notes that all records so far are in the file.
func (o *output) save(j *journal, must bool) error {
	if j.path == "" || !must && time.Since(j.saved) < journalEvery {
		return nil
	}
	if err := o.records.Flush(); err != nil {
		return err
	}
	j.Items, j.Offset, j.Digest = o.ndjson.Count(), o.ndjson.Bytes(), o.ndjson.SHA256()
	return j.save(true)
}

// finish ends the output and gives the file its name.
func (o *output) finish() error {
	if err := o.records.Close(); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	if o.file == nil {
		return nil
	}
	if err := errors.Join(o.file.Sync(), o.file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", o.file.Name(), err)
	}
	return replaceFile(o.file.Name(), o.final)
}

// abandon leaves what there is for --resume, or takes it away if it cannot be resumed.
func (o *output) abandon() error {
	if o.file == nil {
		return o.records.Flush()
	}
	err := o.file.Close()
	if _, statErr := os.Stat(journalPath(o.final)); errors.Is(statErr, fs.ErrNotExist) {
		return errors.Join(err, os.Remove(o.file.Name()))
	}
	return err
}

// pairWriter writes wrangler's bulk JSON.
type pairWriter struct {
	w     *bufio.Writer
	count int64
}

func (p *pairWriter) Write(r client.Record) error {
	text, err := client.Pair{Key: r.Key, Value: r.Value, PutOptions: client.PutOptions{
		Expiration: r.Expiration, Metadata: r.Metadata,
	}}.MarshalJSON()
	if err != nil {
		return err
	}
	begin := ",\n"
	if p.count == 0 {
		begin = "[\n"
	}
	p.count++
	if _, err := p.w.WriteString(begin); err != nil {
		return err
	}
	_, err = p.w.Write(text)
	return err
}

func (p *pairWriter) Flush() error { return p.w.Flush() }

func (p *pairWriter) Close() error {
	end := "\n]\n"
	if p.count == 0 {
		end = "[]\n"
	}
	if _, err := p.w.WriteString(end); err != nil {
		return err
	}
	return p.w.Flush()
}
