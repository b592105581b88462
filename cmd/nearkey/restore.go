package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

// restorer is the restore command.
type restorer struct {
	*Main
	connection
	place      place
	moment     string
	namespaces []string
	rewind     bool
	withLater  bool
	bringBack  bool
	yes        bool
	dry        bool
	asJSON     bool
}

const restoreHelp = `Put namespaces back as they were at a moment: that of the newest snapshot, or of
the newest one at --to-moment or before it.

Records are put back with their own versions, and what is newer stays: into a
live system a restore brings what is lost, overwrites nothing and undoes no
deletion. A namespace that does not exist is made, with its id and title, when
its records are there.

  --rewind             makes a live namespace equal to what it was instead, by new
                       writes: what was written since is undone, too. Stop those who
                       write to it, or they write on while it is rewound.
  --namespace OLD=NEW  restores one namespace into another that exists

Deletions are remembered for a time only (tombstone_retention). A state that is
older is not put into a namespace that has records, because keys that were
deleted since would come back: rewind the namespace, restore into a new one, or
say --bring-back.

The state is that of one moment (of each namespace). --with-later also takes what
the next snapshot has of writes up to --to-moment, which is nearer to it, but a
mixture: keys that were written again afterwards stay at the older state.

An interrupted restore is repeated with the same command.`

func (m *Main) restoreCommand() *cobra.Command {
	r := &restorer{Main: m}
	cmd := &cobra.Command{
		Use:   "restore --from DIR|s3://BUCKET/PREFIX",
		Short: "Put namespaces back from snapshots",
		Long:  restoreHelp,
		Example: `  nearkey restore --from /var/backups/nearkey
  nearkey restore --from /var/backups/nearkey --namespace sessions --to-moment 2026-11-21T14:00:00Z --rewind
  nearkey restore --from /var/backups/nearkey --namespace sessions=sessions-of-yesterday --to-moment 24h`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context()) },
	}
	r.connection.flags(cmd)
	r.place.flags(cmd, "from")
	jsonFlag(cmd, &r.asJSON)
	yesFlags(cmd, &r.yes)
	fs := cmd.Flags()
	fs.StringVar(&r.moment, "to-moment", "", "`TIME` of the state, how long ago that is (90m), or the id of a snapshot (default: the newest)")
	fs.StringArrayVarP(&r.namespaces, "namespace", "n", nil, "title or id of a namespace, or `OLD=NEW`; may be repeated (default: all that there were)")
	fs.BoolVar(&r.rewind, "rewind", false, "make the namespaces equal to the state, and undo what was written since")
	fs.BoolVar(&r.withLater, "with-later", false, "also take what the next snapshot has of writes up to --to-moment")
	fs.BoolVar(&r.bringBack, "bring-back", false, "accept that keys come back that were deleted too long ago to be remembered")
	fs.BoolVar(&r.dry, "dry-run", false, "only say what would be restored")
	return cmd
}

// wish is a namespace that is to be restored, and where.
type wish struct{ from, to string }

// wishes reads --namespace. A title may have an equals sign if what is before it
// is a snapshot's namespace; name one that is ambiguous by its id.
func (r *restorer) wishes() ([]wish, error) {
	var list []wish
	seen := map[string]bool{}
	for _, text := range r.namespaces {
		from, to, mapped := strings.Cut(text, "=")
		if from == "" || mapped && to == "" {
			return nil, usagef("--namespace %s: want the title or id of a namespace, or OLD=NEW", text)
		}
		if seen[from] {
			return nil, usagef("--namespace %s is given twice", from)
		}
		seen[from] = true
		list = append(list, wish{from, to})
	}
	return list, nil
}

func (r *restorer) run(ctx context.Context) error {
	wishes, err := r.wishes()
	if err != nil {
		return err
	}
	if r.withLater && r.moment == "" {
		return usagef("--with-later: there is nothing later than the newest snapshot; name a time with --to-moment")
	}
	archive, err := r.place.open(r.Main)
	if err != nil {
		return err
	}
	options := backup.PlanOptions{WithLater: r.withLater}
	for _, w := range wishes {
		options.Namespaces = append(options.Namespaces, w.from)
	}
	if options.Moment, err = r.at(ctx, archive); err != nil {
		return err
	}
	plan, err := archive.Plan(ctx, options)
	if err != nil {
		return planError(err)
	}
	if r.dry {
		return r.show(plan)
	}
	cl, there, err := r.backups(ctx, r.connection)
	if err != nil {
		return err
	}
	targets, err := r.targets(plan, wishes, there.Namespaces)
	if err != nil {
		return err
	}
	if r.rewind {
		if err := r.confirm(r.yes, fmt.Sprintf("Rewind %s to what it was at %s, and undo what was written since?", r.named(plan), plan[0].Content.CutTime().Format(time.RFC3339))); err != nil {
			return err
		}
	}
	return r.all(ctx, cl, archive, plan, targets)
}

// planError is an error of usage if nothing such was ever backed up.
func planError(err error) error {
	switch {
	case errors.Is(err, backup.ErrMissing):
		return &exitError{exitNotFound, err}
	case errors.Is(err, backup.ErrRefused):
		return usageError(err)
	}
	return err
}

// at is the moment that was asked for; zero: the newest.
func (r *restorer) at(ctx context.Context, archive *backup.Archive) (time.Time, error) {
	if r.moment == "" {
		return time.Time{}, nil
	}
	if strings.Contains(r.moment, "Z-") { // no time has that
		m, err := archive.Manifest(ctx, r.moment)
		if err != nil {
			return time.Time{}, planError(fmt.Errorf("--to-moment %s: %w", r.moment, err))
		}
		return m.Cut(), nil
	}
	at, err := parseMoment(r.moment, time.Now())
	if err != nil {
		return at, usagef("--to-moment: %w", err)
	}
	return at, nil
}

func (r *restorer) named(plan []backup.Restoration) string {
	if len(plan) == 1 {
		return fmt.Sprintf("namespace %q", plan[0].Content.Title)
	}
	return plural(int64(len(plan)), "namespace")
}

// targets are where the namespaces of a plan go, in its order.
func (r *restorer) targets(plan []backup.Restoration, wishes []wish, there []backup.Namespace) ([]backup.Target, error) {
	into := map[string]string{}
	for _, w := range wishes {
		into[strings.ToLower(w.from)] = w.to
	}
	targets := make([]backup.Target, len(plan))
	for i, p := range plan {
		targets[i] = backup.Target{Namespace: p.Content.Namespace, Rewind: r.rewind, BringBack: r.bringBack}
		to := firstNonEmpty(into[strings.ToLower(p.Content.Title)], into[p.Content.ID])
		if to == "" && targets[i].Title != "" {
			continue
		}
		n, err := chooseNamespace(there, firstNonEmpty(to, p.Content.ID))
		if err != nil {
			return nil, fmt.Errorf("restore %q: %w; 'nearkey namespace create' makes one", p.Content.Title, err)
		}
		targets[i].Namespace = backup.Namespace{ID: n.ID}
	}
	return targets, nil
}

// restoredRow is a namespace that was restored, as it is shown.
type restoredRow struct {
	Namespace string    `json:"namespace"`
	Into      string    `json:"into"`
	Title     string    `json:"title"`
	Cut       time.Time `json:"cut"`
	Snapshots []string  `json:"snapshots"`
	backup.Result
}

func newRestoredRow(p backup.Restoration) restoredRow {
	row := restoredRow{Namespace: p.Content.ID, Into: p.Content.ID, Title: p.Content.Title, Cut: p.Content.CutTime()}
	for _, l := range p.Links {
		row.Snapshots = append(row.Snapshots, l.Manifest.ID)
	}
	return row
}

// show says what would be restored.
func (r *restorer) show(plan []backup.Restoration) error {
	rows := r.rows(r.asJSON, "NAMESPACE", "TITLE", "STATE OF", "SNAPSHOTS", "RECORDS")
	for _, p := range plan {
		row := newRestoredRow(p)
		row.Received = p.Records()
		if err := rows.add(row, row.Namespace, row.Title, row.Cut.Format(time.RFC3339), fmt.Sprint(len(p.Links)), grouped(p.Records())); err != nil {
			return err
		}
	}
	return rows.close()
}

// all restores one namespace after the other. The first failure ends it: what is
// restored stays, and the same command does it again and goes on.
func (r *restorer) all(ctx context.Context, cl *client.Client, archive *backup.Archive, plan []backup.Restoration, targets []backup.Target) error {
	done := make([]restoredRow, 0, len(plan))
	for i, p := range plan {
		began := time.Now()
		row := newRestoredRow(p)
		row.Into = targets[i].ID
		result, err := r.one(ctx, cl, archive, p, targets[i])
		if err != nil {
			if len(done) > 0 {
				err = fmt.Errorf("%w\n%s restored before; the same command may be repeated", err, plural(int64(len(done)), "namespace"))
			}
			return fmt.Errorf("restore namespace %q: %w", p.Content.Title, err)
		}
		row.Result = result
		done = append(done, row)
		r.told(row, p, time.Since(began))
	}
	if r.asJSON {
		return r.printJSON(done)
	}
	return nil
}

func (r *restorer) told(row restoredRow, p backup.Restoration, took time.Duration) {
	text := fmt.Sprintf("Restored %q to the state of %s: %s written", row.Title, row.Cut.Format(time.RFC3339), plural(row.Written, "record"))
	for _, part := range []struct {
		n    int64
		what string
	}{{row.Deleted, "deleted"}, {row.Unchanged, "as they were"}, {row.Newer, "newer, left alone"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %s %s", grouped(part.n), part.what)
		}
	}
	r.say("%s, in %s%s.", text, took.Round(time.Millisecond), rate(row.Received, took))
	if !p.Next.IsZero() && !r.withLater {
		r.say("The next snapshot of %q is of %s.", row.Title, p.Next.Format(time.RFC3339))
	}
}

// one restores one namespace: it sends the records while it reads how far the
// server is.
func (r *restorer) one(ctx context.Context, cl *client.Client, archive *backup.Archive, p backup.Restoration, target backup.Target) (result backup.Result, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(serverSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	progress := r.progress("restoring "+p.Content.Title, p.Bytes())
	defer progress.end()
	body, feed := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := archive.Send(ctx, feed, p, target, func(n int64) { progress.add(0, n) })
		_ = feed.CloseWithError(err) // a pipe's never fails
		sent <- err
	}()
	records := int64(0)
	err = cl.AdminUpload(ctx, http.MethodPost, "/backup/restore", body, func(line json.RawMessage) {
		silence.Reset(serverSilence)
		var sofar backup.Result
		if json.Unmarshal(line, &sofar) == nil && sofar.Received > records {
			progress.add(sofar.Received-records, 0)
			records = sofar.Received
		}
	}, &result)
	_ = body.CloseWithError(errAnswered)
	sendErr := <-sent
	switch {
	case err == nil:
		return result, nil
	case sendErr != nil && !errors.Is(sendErr, errAnswered) && ctx.Err() == nil:
		return result, sendErr // the server only saw that the stream was cut
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), errSilent):
		return result, errSilent
	}
	return result, err
}

// errAnswered ends the sending of what nobody reads any more.
var errAnswered = errors.New("the server has answered")
