package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/client"
)

func TestMomentsAsPeopleWriteThem(t *testing.T) {
	now := time.Date(2026, 11, 21, 14, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"2026-11-21T13:00:00Z":      time.Date(2026, 11, 21, 13, 0, 0, 0, time.UTC),
		"2026-11-21T13:00:00.5Z":    time.Date(2026, 11, 21, 13, 0, 0, 500_000_000, time.UTC),
		"2026-11-21T13:00:00+02:00": time.Date(2026, 11, 21, 11, 0, 0, 0, time.UTC),
		"2026-11-21 13:00":          time.Date(2026, 11, 21, 13, 0, 0, 0, time.Local),
		"2026-11-21":                time.Date(2026, 11, 21, 0, 0, 0, 0, time.Local),
		"90m":                       now.Add(-90 * time.Minute),
		"2d":                        now.Add(-48 * time.Hour),
	} {
		if got, err := parseMoment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "yesterday", "13:00", "-1h", "2026-13-01"} {
		if got, err := parseMoment(text, now); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestNamespacesAsTheyAreNamed(t *testing.T) {
	there := []backup.Namespace{
		{ID: strings.Repeat("a", 32), Title: "one", Account: "x"}, {ID: strings.Repeat("b", 32), Title: "one", Account: "y"}, {ID: strings.Repeat("c", 32), Title: "two"},
	}
	for name, want := range map[string]int{"two": 2, strings.Repeat("a", 32): 0, strings.Repeat("B", 32): 1} {
		if got, err := chooseNamespace(there, name); err != nil || got != there[want] {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, code := range map[string]int{"one": exitUsage, "tow": exitNotFound, "": exitNotFound} {
		if _, err := chooseNamespace(there, name); exitCode(err) != code {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestWishes(t *testing.T) {
	got, err := (&restorer{namespaces: []string{"one", "two=three=four"}}).wishes()
	if err != nil || !slices.Equal(got, []wish{{"one", ""}, {"two", "three=four"}}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, texts := range [][]string{{"="}, {"one="}, {"=one"}, {"one", "one"}, {"one", "one=two"}} {
		if got, err := (&restorer{namespaces: texts}).wishes(); exitCode(err) != exitUsage {
			t.Errorf("%q: %v, %v", texts, got, err)
		}
	}
}

// A server that says nothing any more is not waited for without end.
func TestSilentServerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		r, w := io.Pipe()
		stop := context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) }) // as a connection does
		defer stop()
		go func() {
			for range 3 { // it takes its time, but speaks
				time.Sleep(serverSilence - time.Second)
				_, _ = w.Write([]byte("x"))
			}
		}()
		began := time.Now()
		_, err := io.Copy(io.Discard, &listened{r: r, cancel: cancel})
		if !errors.Is(err, client.ErrUnreachable) || time.Since(began) != 3*(serverSilence-time.Second)+serverSilence {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}
