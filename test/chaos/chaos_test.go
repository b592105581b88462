package main

import (
	"bytes"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if code, done := inSandbox(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// logged is where a run prints in a test.
type logged struct {
	t    *testing.T
	rest []byte
}

func (l *logged) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.t.Logf("%s", l.rest[:i])
		l.rest = l.rest[i+1:]
	}
}

// TestChaos makes one fault of each kind, and what `make chaos` says of the
// invariants must be good. Then it shows that the checks look.
func TestChaos(t *testing.T) {
	o := options{seed: uint64(time.Now().UnixNano()), hold: 2 * time.Second, short: true, out: &logged{t: t}}
	if err := runAll(t.Context(), o, true); err != nil {
		t.Error(err)
	}
}
