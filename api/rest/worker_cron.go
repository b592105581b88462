package rest

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// Fire calls the scheduled handler of a Worker now and returns how that ended. If
// ctx ends before, the run goes on, and is returned without an end.
type Fire func(ctx context.Context, accountID, worker, cron string) (catalog.CronRun, error)

const (
	// fireWait is how long the answer waits for a run to end. It is less than an edge
	// waits for an answer that it passes on.
	fireWait = 20 * time.Second
	// defaultRuns is how many runs are listed if nobody says.
	defaultRuns = 20
)

// addRuns adds the operations on runs of crons.
func (e *endpoints) addRuns() {
	e[routeWorkerCronRun] = endpoint{post: writes("run schedule", (*Server).runSchedule)}
	e[routeWorkerCronRuns] = endpoint{get: reads("list runs", (*Server).listRuns)}
}

// shownRun is a run as clients see it.
type shownRun struct {
	ID        int64   `json:"id"` // below 2^53
	Cron      string  `json:"cron"`
	Scheduled string  `json:"scheduled_time"`
	Started   string  `json:"started_on"`
	Ended     *string `json:"ended_on"` // null: it runs, or whoever ran it is gone
	Retry     *string `json:"retry_on"` // null: it is not tried again
	Attempt   int     `json:"attempt"`
	Outcome   string  `json:"outcome"` // of the last attempt; empty: there is none yet
	Error     string  `json:"error"`
	Manual    bool    `json:"manual"`
}

func newShownRun(r *catalog.CronRun) shownRun {
	optional := func(t time.Time) *string {
		if t.IsZero() {
			return nil
		}
		text := stampOf(t)
		return &text
	}
	return shownRun{ID: r.ID, Cron: r.Cron, Scheduled: stampOf(r.At), Started: stampOf(r.Started), Ended: optional(r.Ended),
		Retry: optional(r.RetryAt), Attempt: r.Attempt, Outcome: r.Outcome, Error: r.Error, Manual: r.Manual}
}

// runSchedule serves POST …/scripts/{name}/schedules/run.
func (s *Server) runSchedule(ctx context.Context, c *call) error {
	if s.workers.Fire == nil {
		return &failure{status: http.StatusNotImplemented, code: codeInternal, bare: true, final: true, text: "Workers do not run on this server."}
	}
	var sent struct {
		Cron string `json:"cron"`
	}
	if c.body.length() != 0 {
		if err := c.readJSON(&sent); err != nil {
			return err
		}
	}
	cron, err := s.cronToRun(ctx, c, sent.Cron)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fireWait)
	defer cancel()
	run, err := s.workers.Fire(ctx, c.route.account, c.workerName(), cron)
	if err != nil {
		return workerFailure(err)
	}
	return c.give(newShownRun(&run), nil)
}

// cronToRun is the cron that a Worker is told: the one that was sent, of which
// nothing is asked but that it is not too long, or the only one that the Worker has.
func (s *Server) cronToRun(ctx context.Context, c *call, sent string) (string, error) {
	if len(sent) > catalog.MaxCronBytes {
		return "", refuse(http.StatusBadRequest, codeSchedule, "A cron trigger has at most %d bytes.", catalog.MaxCronBytes)
	}
	if sent != "" {
		return sent, nil
	}
	schedules, err := s.catalog.Schedules(ctx, c.route.account, c.workerName())
	if err != nil {
		return "", workerFailure(err)
	}
	switch len(schedules) {
	case 0:
		return "", refuse(http.StatusBadRequest, codeSchedule, "This Worker has no cron triggers; say as which it is to be run.")
	case 1:
		return schedules[0].Cron, nil
	}
	all := make([]string, len(schedules))
	for i, schedule := range schedules {
		all[i] = "'" + schedule.Cron + "'"
	}
	return "", refuse(http.StatusBadRequest, codeSchedule, "This Worker has several cron triggers; say as which it is to be run: %s.", strings.Join(all, ", "))
}

// listRuns serves GET …/scripts/{name}/schedules/runs: the last runs, the newest
// first.
func (s *Server) listRuns(ctx context.Context, c *call) error {
	limit, err := numberParameter(c.r.URL.RawQuery, "limit", defaultRuns, catalog.MaxCronRuns)
	if err != nil {
		return err
	}
	runs, err := s.catalog.CronRuns(ctx, c.route.account, c.workerName(), limit)
	if err != nil {
		return workerFailure(err)
	}
	list := make([]shownRun, len(runs))
	for i := range runs {
		list[i] = newShownRun(&runs[i])
	}
	return c.give(list, nil)
}
