package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/cron"
	"github.com/spf13/cobra"
)

func (m *Main) cronCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "cron",
		Aliases: []string{"crons"},
		Short:   "List, run and review the cron triggers of Workers",
		Example: `  nearkey cron list
  nearkey cron run shop
  nearkey cron history shop`,
	})
	cmd.AddCommand(m.cronListCommand(), m.cronRunCommand(), m.cronHistoryCommand())
	return cmd
}

// cronJSON is a trigger as --json shows it.
type cronJSON struct {
	Worker string     `json:"worker"`
	Cron   string     `json:"cron"`
	Next   *time.Time `json:"next"`
}

func (m *Main) cronListCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list [NAME]",
		Aliases: []string{"ls"},
		Short:   "List the cron triggers of all Workers, or of one, and when each fires next",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			names := args
			if len(args) == 0 {
				workers, err := cl.Workers(cmd.Context())
				if err != nil {
					return fmt.Errorf("list Workers: %w", err)
				}
				for _, w := range workers {
					names = append(names, w.Name)
				}
			}
			rows := m.rows(asJSON, "WORKER", "CRON", "NEXT (UTC)")
			for _, name := range names {
				if err := addCrons(cmd.Context(), cl, rows, name); err != nil {
					return err
				}
			}
			return rows.close()
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

// addCrons adds the triggers of a Worker.
func addCrons(ctx context.Context, cl *client.Client, rows *rows, name string) error {
	schedules, err := cl.Schedules(ctx, name)
	if err != nil {
		return fmt.Errorf("list the cron triggers of Worker %q: %w", name, err)
	}
	for _, s := range schedules {
		j, next := cronJSON{Worker: name, Cron: s.Cron}, ""
		if e, err := cron.Parse(s.Cron); err == nil { // else it is of a server that knows more
			at := e.Next(time.Now())
			j.Next, next = &at, at.Format(time.RFC3339)
		}
		if err := rows.add(j, name, s.Cron, next); err != nil {
			return err
		}
	}
	return nil
}

// How often, and how long, a run is looked at until it has ended.
const (
	runLookEvery = time.Second
	runLookFor   = 20 * time.Minute
	runLookBack  = 100 // runs, among which it must be
)

func (m *Main) cronRunCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
		text   string
	)
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Call the scheduled handler of a Worker now",
		Long: `Call the scheduled handler of a Worker now, and wait for it to end. It is told
the only cron trigger that it has, or the one of --cron, which it need not have.
A run that fails is not tried again.`,
		Example: "  nearkey cron run shop --cron '0 0 * * *'",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			run, err := cl.RunCron(cmd.Context(), args[0], text)
			if err != nil {
				return fmt.Errorf("run Worker %q: %w", args[0], err)
			}
			if run.Ended == nil {
				m.say("It runs; waiting for it to end.")
				if run, err = awaitRun(cmd.Context(), cl, args[0], run); err != nil {
					return err
				}
			}
			if asJSON {
				if err := m.printJSON(run); err != nil {
					return err
				}
			}
			if run.Outcome != "ok" {
				return fmt.Errorf("run Worker %q, told %q: %s", args[0], run.Cron, outcomeOf(run))
			}
			if !asJSON {
				m.say("Worker %q, told %q: ok, after %s.", args[0], run.Cron, tookOf(run))
			}
			return nil
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&text, "cron", "", "the cron `TRIGGER` that the Worker is told (default: the only one that it has)")
	return cmd
}

// awaitRun looks at the history until a run has ended.
func awaitRun(ctx context.Context, cl *client.Client, worker string, run client.CronRun) (client.CronRun, error) {
	ctx, cancel := context.WithTimeout(ctx, runLookFor)
	defer cancel()
	for {
		timer := time.NewTimer(runLookEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return run, fmt.Errorf("wait for the run of Worker %q: %w", worker, ctx.Err())
		case <-timer.C:
		}
		runs, err := cl.CronRuns(ctx, worker, runLookBack)
		if err != nil {
			return run, fmt.Errorf("wait for the run of Worker %q: %w", worker, err)
		}
		for _, r := range runs {
			if r.ID == run.ID && r.Ended != nil {
				return r, nil
			}
		}
	}
}

// outcomeOf is how a run ended, for people.
func outcomeOf(r client.CronRun) string {
	switch {
	case r.Ended == nil:
		return "running"
	case r.Error != "":
		return r.Outcome + ": " + r.Error
	}
	return r.Outcome
}

func tookOf(r client.CronRun) string {
	if r.Ended == nil {
		return ""
	}
	return r.Ended.Sub(r.Started).Round(time.Millisecond).String()
}

func (m *Main) cronHistoryCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
		limit  int
	)
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "Show the last runs of a Worker's cron triggers, the newest first",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 || limit > runLookBack {
				return usagef("--limit %d: want 1 to %d", limit, runLookBack)
			}
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			runs, err := cl.CronRuns(cmd.Context(), args[0], limit)
			if err != nil {
				return fmt.Errorf("list the runs of Worker %q: %w", args[0], err)
			}
			rows := m.rows(asJSON, "SCHEDULED (UTC)", "CRON", "ATTEMPT", "STARTED (UTC)", "TOOK", "OUTCOME")
			for _, r := range runs {
				text := r.Cron
				if r.Manual {
					text += " (by hand)"
				}
				if err := rows.add(r, r.Scheduled.UTC().Format(time.RFC3339), text, strconv.Itoa(r.Attempt),
					r.Started.UTC().Format(time.RFC3339), tookOf(r), outcomeOf(r)); err != nil {
					return err
				}
			}
			return rows.close()
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().IntVar(&limit, "limit", 20, "at most so many `RUNS`")
	return cmd
}
