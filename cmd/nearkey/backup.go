package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/store/s3"
	"github.com/spf13/cobra"
)

// backupper is the backup command.
type backupper struct {
	*Main
	connection
	place       place
	namespaces  []string
	incremental bool
	margin      time.Duration
	maxPause    time.Duration
	asJSON      bool
}

const backupHelp = `Take a snapshot of all namespaces, or of some, while they are written, and store
it in a directory or an S3 bucket (s3://BUCKET/PREFIX).

The snapshot of a namespace is its state at one moment: everything that was
acknowledged before is in it, nothing that was written later. Writes are held
back only for the last small part of it, at most --max-pause. Namespaces are
taken one after the other, each with a moment of its own.

With --incremental it has only what changed since the last snapshot at the same
place, and continues that one; a namespace that is not there yet is taken in
full. Deletions are remembered for a time only (tombstone_retention), and an
incremental snapshot is refused when the last one is older.

Records keep their versions, expirations and metadata, and deletions are in it
too: 'nearkey restore' puts them back into an empty or a live system, to any
moment of which there is a snapshot. That is the difference to 'nearkey export',
which writes what a user sees of one namespace, as text that other programs read,
not of one moment and without deletions; use that to move data elsewhere.

It needs the root token. API tokens and accounts are not in a backup.`

func (m *Main) backupCommand() *cobra.Command {
	b := &backupper{Main: m}
	cmd := &cobra.Command{
		Use:   "backup --to DIR|s3://BUCKET/PREFIX",
		Short: "Take consistent snapshots of namespaces, and list and verify them",
		Long:  backupHelp,
		Example: `  nearkey backup --to /var/backups/nearkey
  nearkey backup --to /var/backups/nearkey --incremental
  nearkey backup --to s3://backups/nearkey --s3-endpoint https://s3.example.net --s3-secret-key-file key
  nearkey backup list --from /var/backups/nearkey
  nearkey backup verify --from /var/backups/nearkey
  nearkey backup prune --from /var/backups/nearkey --before 720h`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd.Context()) },
	}
	cmd.SuggestionsMinimumDistance = 2
	b.connection.flags(cmd)
	b.place.flags(cmd, "to")
	jsonFlag(cmd, &b.asJSON)
	fs := cmd.Flags()
	fs.StringArrayVarP(&b.namespaces, "namespace", "n", nil, "`TITLE` or id of a namespace; may be repeated (default: all)")
	fs.BoolVar(&b.incremental, "incremental", false, "only what changed since the last snapshot at the same place")
	fs.DurationVar(&b.margin, "margin", 0, "with --incremental: take again what is so much older than the last snapshot, for writes that arrived late (default: 1h, at most a quarter of the retention)")
	fs.DurationVar(&b.maxPause, "max-pause", 0, "longest time to hold the writes of a namespace back (default: 500ms, at most 10s)")
	cmd.AddCommand(m.backupListCommand(), m.backupVerifyCommand(), m.backupPruneCommand())
	return cmd
}

// serverSilence is how long a server may say nothing while a backup or a restore
// is under way. It says something every few seconds.
const serverSilence = time.Minute

func (b *backupper) run(ctx context.Context) error {
	archive, err := b.place.open(b.Main)
	if err != nil {
		return err
	}
	cl, there, err := b.backups(ctx, b.connection)
	if err != nil {
		return err
	}
	chosen, err := chooseNamespaces(there.Namespaces, b.namespaces)
	if err != nil {
		return err
	}
	request := admin.BackupRequest{MarginMillis: b.margin.Milliseconds(), MaxPauseMillis: b.maxPause.Milliseconds()}
	options := backup.SaveOptions{Whole: b.namespaces == nil, Origin: there.Origin}
	if b.incremental {
		request.Namespaces, options.Parents, err = b.parents(ctx, archive, chosen, there.Origin)
	} else {
		for _, n := range chosen {
			request.Namespaces = append(request.Namespaces, backup.Wanted{Namespace: n})
		}
	}
	if err != nil {
		return err
	}
	for i := range request.Namespaces { // the server knows the rest
		request.Namespaces[i].Namespace = backup.Namespace{ID: request.Namespaces[i].ID}
	}
	began := time.Now()
	m, err := b.save(ctx, cl, archive, request, options)
	if err != nil {
		return fmt.Errorf("back up to %s: %w", b.place.text, err)
	}
	return b.report(m, time.Since(began))
}

// backups connects to a server and asks what there is to back up.
func (m *Main) backups(ctx context.Context, c connection) (*client.Client, admin.BackupNamespaces, error) {
	var there admin.BackupNamespaces
	cl, err := m.connect(ctx, c)
	if err != nil {
		return nil, there, err
	}
	if err := cl.Admin(ctx, http.MethodGet, "/backup/namespaces", nil, &there); err != nil {
		return nil, there, fmt.Errorf("list what can be backed up: %w", err)
	}
	return cl, there, nil
}

// chooseNamespaces finds namespaces by title or id; nil names: all.
func chooseNamespaces(there []backup.Namespace, names []string) ([]backup.Namespace, error) {
	if names == nil {
		return there, nil
	}
	var chosen []backup.Namespace
	for _, name := range names {
		n, err := chooseNamespace(there, name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, n)
	}
	return chosen, nil
}

func chooseNamespace(there []backup.Namespace, name string) (backup.Namespace, error) {
	var found []backup.Namespace
	var titles []string
	for _, n := range there {
		if strings.EqualFold(n.ID, name) {
			return n, nil
		}
		if n.Title == name {
			found = append(found, n)
		}
		titles = append(titles, n.Title)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return backup.Namespace{}, usagef("several accounts have a namespace %q: name it by its id, such as %s", name, found[0].ID)
	}
	return backup.Namespace{}, &exitError{exitNotFound, fmt.Errorf("there is no namespace %q%s\n'nearkey namespace list' shows the namespaces there are",
		name, didYouMean(name, titles))}
}

// parents finds the snapshots that are to be continued.
func (b *backupper) parents(ctx context.Context, archive *backup.Archive, chosen []backup.Namespace, origin string) ([]backup.Wanted, map[string]string, error) {
	wanted, parents, had, err := archive.Parents(ctx, chosen)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("look for the last snapshot: %w", err)
	case had != "" && had != origin:
		return nil, nil, usagef("--incremental: the snapshots at %s are of another installation (%s, this one is %s); take a full one, at a place of its own", b.place.text, had, origin)
	case had == "":
		b.say("There is no snapshot to continue; taking a full one.")
	}
	return wanted, parents, nil
}

// save has the server take the snapshot, and stores it.
func (b *backupper) save(ctx context.Context, cl *client.Client, archive *backup.Archive, request admin.BackupRequest, options backup.SaveOptions) (*backup.Manifest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := cl.AdminStream(ctx, http.MethodPost, "/backup/snapshot", request)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	progress := b.progress("backing up", -1)
	defer progress.end()
	done, received := 0, int64(0)
	options.Progress = func(namespaces int, bytes int64) {
		progress.add(0, bytes-received)
		done, received = namespaces, bytes
	}
	m, err := archive.Save(ctx, &listened{r: body, cancel: cancel}, options)
	if err != nil && context.Cause(ctx) != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nNothing was kept of it; %s were complete", err, plural(int64(done), "namespace"))
	}
	return m, nil
}

// listened is a stream that is given up when nothing comes for serverSilence.
type listened struct {
	r      io.Reader
	cancel context.CancelCauseFunc
}

func (w *listened) Read(p []byte) (int, error) {
	timer := time.AfterFunc(serverSilence, func() { w.cancel(errSilent) })
	defer timer.Stop()
	return w.r.Read(p)
}

var errSilent = fmt.Errorf("%w: it said nothing for %s", client.ErrUnreachable, serverSilence)

// snapshotRow is a snapshot as it is shown.
type snapshotRow struct {
	ID         string           `json:"id"`
	Cut        time.Time        `json:"cut"`
	Kind       string           `json:"kind"`
	Whole      bool             `json:"whole"`
	Namespaces int              `json:"namespaces"`
	Records    int64            `json:"records"`
	Bytes      int64            `json:"bytes"`
	Damaged    int64            `json:"damaged,omitempty"`
	Contents   []backup.Content `json:"contents,omitempty"`
}

func newSnapshotRow(m *backup.Manifest) snapshotRow {
	row := snapshotRow{ID: m.ID, Cut: m.Cut(), Kind: "incremental", Whole: m.Whole, Namespaces: len(m.Contents), Records: m.Records, Bytes: m.Bytes, Damaged: m.Damaged(), Contents: m.Contents}
	if m.Full() {
		row.Kind = "full"
	}
	return row
}

func (b *backupper) report(m *backup.Manifest, took time.Duration) error {
	row := newSnapshotRow(m)
	if b.asJSON {
		if err := b.printJSON(row); err != nil {
			return err
		}
	}
	b.say("Took %s snapshot %s: %s of %s (%s) in %s%s.", article(row.Kind), m.ID, plural(m.Records, "record"),
		plural(int64(len(m.Contents)), "namespace"), size(m.Bytes), took.Round(time.Millisecond), rate(m.Records, took))
	if row.Damaged == 0 {
		return nil
	}
	for i := range m.Contents {
		for _, key := range m.Contents[i].Examples {
			b.say("damaged in namespace %q, key %q", m.Contents[i].Title, key)
		}
	}
	return &exitError{exitPartial, fmt.Errorf("%s could not be read and are not in the snapshot", plural(row.Damaged, "damaged record"))}
}

func article(kind string) string {
	if strings.HasPrefix(kind, "i") {
		return "an " + kind
	}
	return "a " + kind
}

// place is where snapshots are: a directory or a bucket of an S3 server.
type place struct {
	text string
	flag string
	s3   s3.Options
}

func (p *place) flags(cmd *cobra.Command, flag string) {
	p.flag = flag
	fs := cmd.Flags()
	fs.StringVar(&p.text, flag, "", "where the snapshots are: `DIR|s3://BUCKET/PREFIX`")
	fs.StringVar(&p.s3.Endpoint, "s3-endpoint", "", "`URL` of the S3 server (default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or Amazon's)")
	fs.StringVar(&p.s3.Region, "s3-region", "", "`REGION` of the bucket (default: AWS_REGION, or "+s3.Region+")")
	fs.StringVar(&p.s3.AccessKeyID, "s3-access-key-id", "", "`ID` of the access key (default: AWS_ACCESS_KEY_ID)")
	fs.StringVar(&p.s3.SecretKeyFile, "s3-secret-key-file", "", "`FILE` that holds the secret key (default: AWS_SECRET_ACCESS_KEY)")
	fs.BoolVar(&p.s3.PathStyle, "s3-path-style", false, "name the bucket in the path of the URL and not in its host")
	fs.StringVar(&p.s3.CAFile, "s3-ca-file", "", "`FILE` of certificates that are trusted instead of the system's")
}

// open opens the archive; nothing is dialled or made yet.
func (p *place) open(m *Main) (*backup.Archive, error) {
	scheme, rest, isURL := strings.Cut(p.text, "://")
	switch {
	case p.text == "":
		return nil, usagef("--%s is missing: name a directory, or s3://BUCKET/PREFIX", p.flag)
	case isURL && scheme == "s3":
		return p.openS3(m, rest)
	case isURL:
		return nil, usagef("--%s %s: %s:// is not known; name a directory, or s3://BUCKET/PREFIX", p.flag, p.text, scheme)
	}
	if info, err := os.Stat(p.text); err == nil && !info.IsDir() {
		return nil, usagef("--%s %s: it is a file; name a directory", p.flag, p.text)
	}
	return backup.NewArchive(backup.OpenDir(p.text)), nil
}

func (p *place) openS3(m *Main, name string) (*backup.Archive, error) {
	options := p.s3
	options.Bucket, options.Prefix, _ = strings.Cut(name, "/")
	options.Endpoint = firstNonEmpty(options.Endpoint, m.getenv("AWS_ENDPOINT_URL_S3"), m.getenv("AWS_ENDPOINT_URL"))
	options.Region = firstNonEmpty(options.Region, m.getenv("AWS_REGION"))
	bucket, err := s3.Open(options)
	if err != nil {
		return nil, usagef("--%s %s: %w", p.flag, p.text, err)
	}
	return backup.NewArchive(bucket), nil
}

func (m *Main) backupListCommand() *cobra.Command {
	var (
		from   place
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list --from DIR|s3://BUCKET/PREFIX",
		Aliases: []string{"ls"},
		Short:   "List snapshots, the oldest first",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			archive, err := from.open(m)
			if err != nil {
				return err
			}
			ids, err := archive.IDs(cmd.Context())
			if err != nil {
				return err
			}
			rows := m.rows(asJSON, "ID", "CUT", "KIND", "NAMESPACES", "RECORDS", "SIZE")
			for _, id := range ids {
				manifest, err := archive.Manifest(cmd.Context(), id)
				if err != nil {
					return err
				}
				row := newSnapshotRow(manifest)
				if err := rows.add(row, row.ID, row.Cut.Format(time.RFC3339), row.Kind, grouped(int64(row.Namespaces)), grouped(row.Records), size(row.Bytes)); err != nil {
					return err
				}
			}
			return rows.close()
		},
	}
	from.flags(cmd, "from")
	jsonFlag(cmd, &asJSON)
	return cmd
}

const verifyHelp = `Read snapshots in full and compare them with the checksums that were made when
they were taken: of each frame as it left the server, of each segment, of the
manifest, and with the number of records. Whatever is damaged or missing is
named, and the exit code is 1.`

func (m *Main) backupVerifyCommand() *cobra.Command {
	var (
		from   place
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "verify --from DIR|s3://BUCKET/PREFIX [ID...]",
		Short: "Check that snapshots are what was written",
		Long:  verifyHelp,
		RunE: func(cmd *cobra.Command, ids []string) error {
			archive, err := from.open(m)
			if err == nil && len(ids) == 0 {
				ids, err = archive.IDs(cmd.Context())
			}
			if err != nil {
				return err
			}
			return m.verifySnapshots(cmd.Context(), archive, ids, asJSON)
		},
	}
	from.flags(cmd, "from")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (m *Main) verifySnapshots(ctx context.Context, archive *backup.Archive, ids []string, asJSON bool) error {
	rows := m.rows(asJSON, "ID", "RESULT")
	bad := 0
	for _, id := range ids {
		progress := m.progress("verifying "+id, -1)
		_, wrong := archive.Verify(ctx, id, func(n int64) { progress.add(0, n) })
		progress.end()
		if err := ctx.Err(); err != nil {
			return err
		}
		result := struct {
			ID    string   `json:"id"`
			OK    bool     `json:"ok"`
			Wrong []string `json:"wrong,omitempty"`
		}{ID: id, OK: len(wrong) == 0}
		for _, err := range wrong {
			result.Wrong = append(result.Wrong, err.Error())
			m.say("%v", err)
		}
		text := "ok"
		if !result.OK {
			bad++
			text = "damaged"
		}
		if err := rows.add(result, id, text); err != nil {
			return err
		}
	}
	if err := rows.close(); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%s of %d damaged or not whole", plural(int64(bad), "snapshot"), len(ids))
	}
	return nil
}

const pruneHelp = `Remove the snapshots that are not needed to restore the state of any moment since
--before, and what snapshots that failed more than a day ago have left. The one
before that moment stays, and all that later ones continue: take a full snapshot
now and then, or nothing can be removed.`

func (m *Main) backupPruneCommand() *cobra.Command {
	var (
		from   place
		before string
		dry    bool
		yes    bool
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "prune --from DIR|s3://BUCKET/PREFIX --before TIME",
		Short: "Remove snapshots that are not needed any more",
		Long:  pruneHelp,
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			archive, err := from.open(m)
			if err != nil {
				return err
			}
			since, err := parseMoment(before, time.Now())
			if err != nil {
				return usagef("--before: %w", err)
			}
			plan, err := archive.Prune(cmd.Context(), since, time.Now(), true)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("%s and %s of failed ones (%s)", plural(int64(len(plan.Snapshots)), "snapshot"), plural(int64(len(plan.Orphans)), "segment"), size(plan.Bytes))
			if !dry && len(plan.Snapshots)+len(plan.Orphans) > 0 {
				if err := m.confirm(yes, fmt.Sprintf("Remove %s?", what)); err != nil {
					return err
				}
				if plan, err = archive.Prune(cmd.Context(), since, time.Now(), false); err != nil {
					return err
				}
			}
			if asJSON {
				if err := m.printJSON(plan); err != nil {
					return err
				}
			}
			verb := "Removed"
			if dry {
				verb = "Would remove"
			}
			m.say("%s %s.", verb, what)
			return nil
		},
	}
	from.flags(cmd, "from")
	jsonFlag(cmd, &asJSON)
	yesFlags(cmd, &yes)
	cmd.Flags().StringVar(&before, "before", "", "`TIME` back to which moments can be restored, or how long ago that is, such as 720h")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	return cmd
}

// parseMoment reads a time, or how long ago it is.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, errors.New("name a time, such as 2026-11-21T14:00:00Z, or how long ago it is, such as 90m")
	}
	var ago Duration
	if ago.UnmarshalText([]byte(text)) == nil && ago >= 0 {
		return now.Add(-time.Duration(ago)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want one such as 2026-11-21T14:00:00Z, or how long ago it is, such as 90m", text)
}
