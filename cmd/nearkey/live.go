package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/kv"
)

// administrate makes the client of a command that speaks to the administration of a
// server, which knows no accounts.
func (m *Main) administrate(c connection) (*client.Client, error) {
	s, err := m.resolve(c)
	if err != nil {
		return nil, err
	}
	if s.token == "" {
		return nil, &exitError{exitDenied, fmt.Errorf("no root API token for %s: set NEARKEY_API_TOKEN, or give --token-file or --data", s.baseURL)}
	}
	cl, err := client.New(client.Config{BaseURL: s.baseURL, Token: s.token, UserAgent: "nearkey/" + buildVersion(), MaxWait: c.maxWait})
	if err != nil {
		return nil, usageError(err)
	}
	return cl, nil
}

// live is a line on a terminal that tells how far something has come; elsewhere it
// is silent.
type live struct {
	m     *Main
	shown bool
}

// show puts a text into the place of the last one.
func (l *live) show(format string, args ...any) {
	if !isTerminal(l.m.Stderr) {
		return
	}
	l.shown = true
	fmt.Fprintf(l.m.Stderr, "\r\x1b[K%s", printable(fmt.Sprintf(format, args...)))
}

// end takes the line away.
func (l *live) end() {
	if l.shown {
		fmt.Fprint(l.m.Stderr, "\r\x1b[K")
		l.shown = false
	}
}

// pollEvery is how often a command looks how far something has come.
const pollEvery = 500 * time.Millisecond

// poll calls look until it says that there is no more to wait for.
func poll(ctx context.Context, look func() (done bool, err error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ago is how long ago a moment was.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(time.Since(t)) + " ago"
}

// agoIf is how long ago a moment was, if it was.
func agoIf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return ago(*t)
}

// span is a time span in few characters.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%.1f days", d.Hours()/24)
}

// spanOf is a time span in seconds in few characters.
func spanOf(seconds float64) string { return span(time.Duration(seconds * float64(time.Second))) }

// moment is the time of a version for people; empty is what none is called.
func moment(version, empty string) string {
	if version == "" {
		return empty
	}
	v, err := kv.ParseVersion(version)
	if err != nil {
		return version
	}
	return v.Time().UTC().Format("2006-01-02T15:04:05.000Z")
}
