package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

// How often a tail is opened anew that broke; each wait is twice the one before.
const (
	tailAttempts  = 5
	tailFirstWait = time.Second
)

// tailFlags are what 'nearkey tail' is asked for.
type tailFlags struct {
	filter client.TailFilter
	status []string
	header string
	format string
	since  string
	asJSON bool
}

func (m *Main) tailCommand() *cobra.Command {
	var (
		conn connection
		f    tailFlags
	)
	cmd := &cobra.Command{
		Use:   "tail NAME",
		Short: "Show what a Worker does and logs, as it happens",
		Long: `Show what a Worker does and logs, as it happens, until interrupted. Of what
happens only that is shown which fits all of the filters; each filter fits one of
its values. While a Worker is followed, it costs more CPU time.

With --since, lines of the time before are shown first, without what they belong
to: those of the last hour, if they are not too many, of Workers that ran at the
centre. What edges logged is not kept.`,
		Example: `  nearkey tail shop
  nearkey tail shop --status error --since 30m
  nearkey tail shop --json | jq .logs`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			since, err := f.parse(time.Now())
			if err != nil {
				return err
			}
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			return m.tail(cmd.Context(), cl, args[0], &f, since)
		},
	}
	conn.flags(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&f.asJSON, "json", false, "print each event as JSON, on a line of its own")
	fs.StringVar(&f.format, "format", "", "`FORMAT`: pretty or json (default: pretty)")
	fs.StringVar(&f.since, "since", "", "also lines of so long ago: a `TIME` such as 10m, or a date such as 2027-01-31T12:00:00Z")
	fs.StringSliceVar(&f.status, "status", nil, "`STATUS`: ok, error or canceled; may be repeated")
	fs.StringSliceVar(&f.filter.Methods, "method", nil, "HTTP `METHOD` of requests; may be repeated")
	fs.StringVar(&f.header, "header", "", "requests that have a `HEADER`: NAME, or NAME:TEXT that is in its value")
	fs.StringSliceVar(&f.filter.ClientIPs, "ip", nil, "`ADDRESS` that requests come from; self is this one; may be repeated")
	fs.StringVar(&f.filter.Text, "search", "", "`TEXT` in what is logged")
	fs.StringVar(&f.filter.Version, "version-id", "", "`ID` of the version of the Worker")
	fs.Float64Var(&f.filter.SamplingRate, "sampling-rate", 0, "show a `SHARE` of all, such as 0.1")
	return cmd
}

// parse makes the filter, and says since when lines are wanted.
func (f *tailFlags) parse(now time.Time) (since time.Time, err error) {
	switch {
	case !slices.Contains([]string{"", "pretty", "json"}, f.format):
		return since, usagef("--format %q: want pretty or json", f.format)
	case f.asJSON && f.format == "pretty":
		return since, usagef("--json and --format pretty cannot be given together")
	case f.filter.SamplingRate < 0 || f.filter.SamplingRate >= 1:
		return since, usagef("--sampling-rate %v: want more than 0 and less than 1", f.filter.SamplingRate)
	}
	f.asJSON = f.asJSON || f.format == "json"
	for _, status := range f.status {
		switch status {
		case "ok", "canceled":
			f.filter.Outcomes = append(f.filter.Outcomes, status)
		case "error":
			f.filter.Outcomes = append(f.filter.Outcomes, "exception", "exceededCpu", "exceededMemory", "unknown")
		default:
			return since, usagef("--status %q: want ok, error or canceled%s", status, didYouMean(status, []string{"ok", "error", "canceled"}))
		}
	}
	f.filter.Header, f.filter.HeaderText, _ = strings.Cut(f.header, ":")
	f.filter.Header, f.filter.HeaderText = strings.TrimSpace(f.filter.Header), strings.TrimSpace(f.filter.HeaderText)
	if f.since == "" {
		return since, nil
	}
	var ago Duration
	if err := ago.UnmarshalText([]byte(f.since)); err == nil {
		return now.Add(-time.Duration(ago)), nil
	}
	if since, err = time.Parse(time.RFC3339, f.since); err != nil {
		return since, usagef("--since %q: want how long ago, such as 10m, or a date such as 2027-01-31T12:00:00Z", f.since)
	}
	return since, nil
}

// tail shows events until it is interrupted. A tail that breaks is opened anew; one
// that cannot be opened at first is not.
func (m *Main) tail(ctx context.Context, cl *client.Client, name string, f *tailFlags, since time.Time) error {
	wait, attempts := tailFirstWait, tailAttempts
	for {
		tail, err := cl.Tail(ctx, name, f.filter, since)
		if err == nil {
			m.say("Following Worker %q; interrupt to end.", name)
			began := time.Now()
			err = m.showEvents(tail, f.asJSON)
			_ = tail.Close() // its end was told by err
			since = time.Time{}
			if attempts == tailAttempts || time.Since(began) > time.Minute {
				wait, attempts = tailFirstWait, 0
			}
		}
		attempts++
		switch {
		case ctx.Err() != nil: // interrupted, as it should be
			return nil
		case !errors.Is(err, client.ErrUnreachable) || attempts > tailAttempts:
			return fmt.Errorf("follow Worker %q: %w", name, err)
		}
		m.say("%v; trying again in %v.", err, wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		wait *= 2
	}
}

// showEvents shows events until the tail ends, and returns why it did.
func (m *Main) showEvents(tail *client.Tail, asJSON bool) error {
	for {
		event, err := tail.Next()
		if err != nil {
			return err
		}
		text := string(event)
		if !asJSON {
			text = prettyEvent(event)
		}
		if _, err := fmt.Fprintln(m.Stdout, text); err != nil {
			return fmt.Errorf("show an event: %w", err)
		}
	}
}

// tailEvent is what is shown of an event.
type tailEvent struct {
	Outcome    *string `json:"outcome"`
	Exceptions []struct {
		Name    string `json:"name"`
		Message any    `json:"message"`
		Stack   string `json:"stack"`
	} `json:"exceptions"`
	Logs []struct {
		Message json.RawMessage `json:"message"`
		Level   string          `json:"level"`
		Time    int64           `json:"timestamp"`
	} `json:"logs"`
	Time  int64 `json:"eventTimestamp"`
	Event *struct {
		Request *struct {
			URL    string `json:"url"`
			Method string `json:"method"`
		} `json:"request"`
		Response *struct {
			Status int `json:"status"`
		} `json:"response"`
		Cron      string `json:"cron"`
		Scheduled any    `json:"scheduledTime"`
		RPC       string `json:"rpcMethod"`
		Message   string `json:"message"`
		Type      string `json:"type"`
	} `json:"event"`
}

// prettyEvent is an event for people: a line for what happened, and one for each
// line that was logged, and for what was thrown. Whatever a Worker or its clients
// say cannot do harm to the terminal.
func prettyEvent(text json.RawMessage) string {
	var e tailEvent
	if err := json.Unmarshal(text, &e); err != nil {
		return printable(string(text))
	}
	var lines []string
	if head := e.head(); head != "" {
		lines = append(lines, head)
	}
	for _, l := range e.Logs {
		line := fmt.Sprintf("  (%s) %s", printable(l.Level), printable(logText(l.Message)))
		if e.Outcome == nil { // a line alone
			line = clock(l.Time) + line
		}
		lines = append(lines, line)
	}
	for _, x := range e.Exceptions {
		line := fmt.Sprintf("  %s: %s", printable(x.Name), printable(fmt.Sprint(x.Message)))
		for frame := range strings.SplitSeq(x.Stack, "\n") {
			if frame != "" {
				line += "\n  " + printable(frame)
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// head says what happened; empty: nothing but that something was logged.
func (e *tailEvent) head() string {
	if e.Outcome == nil {
		return ""
	}
	end := fmt.Sprintf(" - %s @ %s", prettyOutcome(*e.Outcome), clock(e.Time))
	switch v := e.Event; {
	case v == nil:
		return "Unknown event" + end
	case v.Request != nil && v.Response != nil:
		return fmt.Sprintf("%s %s - %d%s", printable(v.Request.Method), printable(v.Request.URL), v.Response.Status, end)
	case v.Request != nil:
		return printable(v.Request.Method+" "+v.Request.URL) + end
	case v.Cron != "":
		return fmt.Sprintf("%q%s", v.Cron, end)
	case v.RPC != "":
		return "RPC " + printable(v.RPC) + end
	case v.Type != "" && v.Message != "":
		return printable(v.Message)
	case v.Scheduled != nil:
		return "Alarm" + end
	}
	return "Unknown event" + end
}

func clock(millis int64) string { return time.UnixMilli(millis).UTC().Format(time.RFC3339) }

func prettyOutcome(outcome string) string {
	switch outcome {
	case "ok":
		return "Ok"
	case "canceled":
		return "Canceled"
	case "exception":
		return "Exception Thrown"
	case "exceededCpu":
		return "Exceeded CPU Limit"
	case "exceededMemory":
		return "Exceeded Memory Limit"
	}
	return printable(outcome)
}

// logText is what was logged: texts as they are, all else as JSON.
func logText(message json.RawMessage) string {
	var parts []json.RawMessage
	if json.Unmarshal(message, &parts) != nil {
		parts = []json.RawMessage{message}
	}
	texts := make([]string, len(parts))
	for i, part := range parts {
		if json.Unmarshal(part, &texts[i]) != nil {
			texts[i] = string(part)
		}
	}
	return strings.Join(texts, " ")
}
