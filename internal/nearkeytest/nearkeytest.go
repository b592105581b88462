// Package nearkeytest holds what the tests of several packages need to run the
// real binary and to wait for it. It keeps nothing and has nothing to lose.
package nearkeytest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nearkey/nearkey/internal/process"
)

// TB is the part of testing.TB that is needed here and by the servers of tests, so
// that programs can have them as well.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Main builds nearkey, says where, and runs tests; it is what a TestMain exits with.
func Main(ctx context.Context, m interface{ Run() int }, built func(binary string)) int {
	dir, err := os.MkdirTemp("", "nearkey-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary, err := process.Build(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built(binary)
	return m.Run()
}

// Patience is how long whatever must happen in the end may take on a busy machine.
const Patience = time.Minute

// lookEvery is the time between two looks at what is waited for.
const lookEvery = 10 * time.Millisecond

// Eventually looks until check is nil, and ends the test if it never is.
func Eventually(tb TB, what string, check func() error) {
	tb.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within %s: %v", what, Patience, err)
		}
		time.Sleep(lookEvery)
	}
}

// Until looks until a condition is met, and ends the test if it never is.
func Until(tb TB, what string, met func() bool) {
	tb.Helper()
	Eventually(tb, what, func() error {
		if !met() {
			return errors.New("it is not so")
		}
		return nil
	})
}
