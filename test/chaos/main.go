// Command chaos runs the real nearkey on two providers of real PostgreSQL and S3
// servers, keeps writing and reading through its centre and its edges, and
// meanwhile kills, freezes, fills, slows and cuts one part after the other. At the
// end it heals everything, looks into both providers, and prints a verdict for each
// invariant, with counts. The exit code is 1 if one of them does not hold.
//
// All that it starts listens on loopback and ends with it, however it ends. It
// works in a temporary directory and loses that at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are what a person may choose of a run.
type options struct {
	seed     uint64
	duration time.Duration // of the faults; those that every run has are made in any case
	hold     time.Duration // of each fault
	only     string        // faults whose name has it; empty: all
	short    bool          // one fault of each kind
	logs     string        // directory for what the processes say; empty: not kept
	out      io.Writer

	// For the controls.
	async bool // provider a does not wait for its standbys
	alone bool // there is no provider b
}

const (
	defaultDuration = 3 * time.Minute
	defaultHold     = 4 * time.Second
)

func main() {
	if code, done := inSandbox(); done {
		os.Exit(code)
	}
	o := options{out: os.Stdout}
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "what decides everything that is random")
	flag.DurationVar(&o.duration, "duration", defaultDuration, "how long faults are made, after one of each kind")
	flag.DurationVar(&o.hold, "hold", defaultHold, "how long a fault lasts")
	flag.StringVar(&o.only, "only", "", "make only faults whose name has this `TEXT`")
	flag.BoolVar(&o.short, "short", false, "make one fault of each kind")
	flag.StringVar(&o.logs, "logs", "", "keep what the centre and the edges say in a `DIRECTORY`, with times as the clock has them")
	controls := flag.Bool("controls", true, "show as well that the checks find what they look for")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(exitCode(runAll(ctx, o, *controls)))
}

// errViolated: the run came to its end, and an invariant does not hold.
var errViolated = errors.New("an invariant does not hold")

const (
	exitViolated = 1
	exitBroken   = 2 // the run did not come to its end
)

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errViolated):
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return exitViolated
	}
	fmt.Fprintln(os.Stderr, "chaos:", err)
	return exitBroken
}

func runAll(ctx context.Context, o options, controls bool) error {
	v, err := run(ctx, o)
	if err != nil {
		return err
	}
	if err := v.violated(); err != nil || !controls || o.only != "" {
		return err
	}
	return controlLoss(ctx, o)
}

// run is one run: start, faults under load, heal, verdict.
func run(ctx context.Context, o options) (v *verdict, err error) {
	silence()
	s := &site{}
	defer func() { err = errors.Join(err, broken(recover()), s.close()) }()
	w, err := newWorld(ctx, s, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			w.diagnose(ctx)
		}
	}()
	w.say("seed %d; %s", o.seed, time.Now().UTC().Format(time.RFC3339))
	if err := w.start(ctx); err != nil {
		return nil, err
	}
	l := newLoad(w)
	if err := l.prepare(ctx); err != nil {
		return nil, err
	}
	loading, stop := context.WithCancel(ctx)
	defer stop()
	l.begin(loading)
	defer l.wait()
	defer stop()
	faulty := w.nemesis
	if w.alone {
		faulty = w.losses
	}
	err = faulty(ctx, l)
	stop()
	l.wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return l.judgeAll(ctx)
}

// site is what is started, and ends in the opposite order.
type site struct{ cleanups []func() }

// brokenError ends a run that cannot go on.
type brokenError struct{ text string }

func (e brokenError) Error() string { return e.text }

// Helper implements nearkeytest.TB.
func (s *site) Helper() {}

// Cleanup implements nearkeytest.TB.
func (s *site) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

// Fatalf implements nearkeytest.TB.
func (s *site) Fatalf(format string, args ...any) { panic(brokenError{fmt.Sprintf(format, args...)}) }

// broken is the error of a recovered panic; a panic of another kind goes on.
func broken(recovered any) error {
	if recovered == nil {
		return nil
	}
	if e, ok := recovered.(brokenError); ok {
		return e
	}
	panic(recovered)
}

// close ends what was started. What cannot be ended does not keep the rest.
func (s *site) close() error {
	var errs []error
	for len(s.cleanups) > 0 {
		last := len(s.cleanups) - 1
		f := s.cleanups[last]
		s.cleanups = s.cleanups[:last]
		func() {
			defer func() { errs = append(errs, broken(recover())) }()
			f()
		}()
	}
	return errors.Join(errs...)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, strings.TrimSuffix(what, "s"))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", math.Max(0, d.Seconds())) }
