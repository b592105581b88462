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
	o := options{seed: uint64(time.Now().UnixNano()), hold: 3 * time.Second, short: true, out: &logged{t: t}}
	if err := runAll(t.Context(), o, true); err != nil {
		t.Error(err)
	}
}

// at is a moment of a made-up history.
func at(seconds float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

// TestJudge is the control of the checks: a key is written, overwritten, removed,
// written with an expiration, and written without being acknowledged.
func TestJudge(t *testing.T) {
	k := &key{ops: []op{
		{seq: 1, sent: at(0), acked: at(1)},
		{seq: 2, sent: at(10), acked: at(11)},
		{seq: 3, sent: at(20), acked: at(21), remove: true},
		{seq: 4, sent: at(30), acked: at(31), expires: at(40).Unix()},
		{seq: 5, sent: at(50), acked: at(51)},
		{seq: 6, sent: at(60)},
	}}
	for _, c := range []struct {
		name       string
		seq        int
		begin, end float64
		bound      time.Duration
		want       string
	}{
		{"before all", 0, -1, 0.5, 0, ""},
		{"the first under way", 1, 0.5, 0.6, 0, ""},
		{"the first", 1, 2, 3, 0, ""},
		{"gone", 0, 2, 3, 0, missing},
		{"gone within the bound", 0, 2, 3, 2 * time.Second, ""},
		{"old", 1, 12, 13, 0, stale},
		{"old within the bound", 1, 12, 13, 2 * time.Second, ""},
		{"old beyond the bound", 1, 14, 15, 2 * time.Second, stale},
		{"the second under way", 2, 9, 10.5, 0, ""},
		{"before it was sent", 2, 8, 9, 0, invented},
		{"more than were sent", 7, 70, 71, 0, invented},
		{"a removal has no value", 3, 22, 23, 0, invented},
		{"removed", 0, 22, 23, 0, ""},
		{"back", 2, 22, 23, 0, resurrected},
		{"back, but old", 2, 22, 23, 2 * time.Second, ""},
		{"expires later", 4, 32, 33, 0, ""},
		{"gone too soon", 0, 32, 33, 0, expiredSoon},
		{"expired", 0, 41, 42, 0, ""},
		{"expired while it was read", 4, 39, 42, 0, ""},
		{"still there", 4, 42, 43, 0, expired},
		{"not acknowledged", 6, 61, 62, 0, ""},
		{"nor made", 5, 61, 62, 0, ""},
	} {
		s := sight{seq: c.seq, begin: at(c.begin), end: at(c.end), bound: c.bound}
		if got := k.judge(s); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for _, c := range []struct {
		name       string
		listed     bool
		begin, end float64
		want       string
	}{
		{"listed", true, 2, 3, ""},
		{"not listed", false, 2, 3, missing},
		{"listed though removed", true, 22, 23, resurrected},
		{"removed", false, 22, 23, ""},
		{"removed meanwhile", true, 12, 23, ""},
		{"listed though expired", true, 42, 43, expired},
	} {
		if got := k.judgeListed(sight{listed: c.listed, begin: at(c.begin), end: at(c.end)}); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestValues: a value that differs in one bit, or is of another key, is nobody's.
func TestValues(t *testing.T) {
	for seq := 1; seq < 300; seq++ {
		v := value(7, "key", seq)
		if got := seqOf(7, "key", v); got != seq {
			t.Fatalf("value %d is said to be %d", seq, got)
		}
		if seqOf(8, "key", v) != 0 && len(v) > 40 || seqOf(7, "other", v) != 0 {
			t.Errorf("value %d is that of another seed or key", seq)
		}
		v[len(v)-1] ^= 1
		if got := seqOf(7, "key", v); got != 0 {
			t.Errorf("a changed value is said to be %d", got)
		}
	}
}
