package cron_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/cron"
)

// The dialect is Cloudflare's: the table is what a parser of theirs answers.
func TestDialect(t *testing.T) {
	file, err := os.Open("testdata/dialect.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	good, bad := 0, 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		part := strings.Split(lines.Text(), "|")
		switch part[0] {
		case "ok":
			good++
			checkNext(t, part[1], part[2], part[3:])
		case "bad":
			bad++
			if e, err := cron.Parse(part[1]); err == nil {
				t.Errorf("%q is accepted; its first time is %v", part[1], e.Next(time.Unix(0, 0)))
			}
		}
	}
	if good < 200 || bad < 40 {
		t.Errorf("the table has only %d good and %d bad lines", good, bad)
	}
}

func checkNext(t *testing.T, text, after string, want []string) {
	t.Helper()
	e, err := cron.Parse(text)
	if err != nil {
		t.Error(err)
		return
	}
	at, err := time.Parse(time.RFC3339Nano, after)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		at = e.Next(at)
		if got := at.Format("2006-01-02T15:04Z07:00"); got != w {
			t.Errorf("%q after %s: %s, want %s", text, after, got, w)
			return
		}
		if !e.Matches(at) || !e.Matches(at.Add(59*time.Second)) {
			t.Errorf("%q does not match its own time %v", text, at)
		}
	}
}

// The error names the field and what is wrong with it.
func TestErrors(t *testing.T) {
	long := strings.Repeat("1,", cron.MaxText/2)
	for text, want := range map[string]string{
		"60 * * * *":       `cron trigger "60 * * * *": minute field has 60 outside 0-59`,
		"* * * *":          `cron trigger "* * * *": 4 fields, not 5`,
		"* * * * SAT-SUN":  `cron trigger "* * * * SAT-SUN": day of week field has a range that goes down in "SAT-SUN"`,
		"* 1,* * * *":      `cron trigger "* 1,* * * *": hour field has * inside a list`,
		"* * * foo *":      `cron trigger "* * * foo *": month field has "foo" instead of 1-12`,
		"* */24 * * *":     `cron trigger "* */24 * * *": hour field has a bad step in "*/24"`,
		"0 0 30 2 *":       `cron trigger "0 0 30 2 *": it never matches`,
		long + "1 * * * *": `cron trigger "` + long[:32] + `…": 521 bytes, at most 512 are allowed`,
	} {
		if _, err := cron.Parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if _, err := cron.Parse("* * * * *" + strings.Repeat(" ", cron.MaxText-9)); err != nil {
		t.Errorf("an expression of %d bytes: %v", cron.MaxText, err)
	}
}

// Times are UTC, whatever the zone of the moment that is asked about.
func TestZone(t *testing.T) {
	e, err := cron.Parse("30 22 * * *")
	if err != nil {
		t.Fatal(err)
	}
	after := time.Date(2026, 3, 29, 1, 0, 0, 0, time.FixedZone("far east", 14*3600))
	if got, want := e.Next(after), time.Date(2026, 3, 28, 22, 30, 0, 0, time.UTC); !got.Equal(want) || got.Location() != time.UTC {
		t.Errorf("got %v, want %v", got, want)
	}
	if e.String() != "30 22 * * *" {
		t.Errorf("written as %q", e)
	}
}

// Next skips no minute that matches: against looking at each.
func TestNextAgainstEveryMinute(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		text := randomExpression(r)
		e, err := cron.Parse(text)
		if err != nil {
			continue // such as the 31st of June
		}
		after := time.Unix(r.Int64N(4e9), 0)
		checkMinutes(t, e, after, 5000)
	}
}

func checkMinutes(t *testing.T, e cron.Expr, after time.Time, minutes int) {
	t.Helper()
	next := e.Next(after)
	if !next.After(after) || !e.Matches(next) || next.Second() != 0 {
		t.Fatalf("%q after %v: %v", e, after, next)
	}
	at := after.Truncate(time.Minute)
	for range minutes {
		if at = at.Add(time.Minute); !at.Before(next) {
			return
		}
		if e.Matches(at) {
			t.Fatalf("%q after %v: %v, but %v matches", e, after, next, at)
		}
	}
}

func randomExpression(r *rand.Rand) string {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	day := pick("*", "*", "L", "LW", fmt.Sprintf("L-%d", 1+r.IntN(9)), fmt.Sprintf("L-%dW", 1+r.IntN(9)),
		fmt.Sprintf("%dW", 1+r.IntN(31)), fmt.Sprint(1+r.IntN(31)), "*/9")
	weekday := pick("*", "*", "L", fmt.Sprintf("%dL", 1+r.IntN(7)), fmt.Sprintf("%d#%d", 1+r.IntN(7), 1+r.IntN(5)), "2-6", "tue,SAT")
	return strings.Join([]string{
		pick("*", "*/7", fmt.Sprint(r.IntN(60)), "10-50/20"), pick("*", "*/5", fmt.Sprint(r.IntN(24))),
		day, pick("*", fmt.Sprint(1+r.IntN(12)), "feb", "*/5"), weekday,
	}, " ")
}

// No text is a crash or an endless search; what is accepted fires, and is read
// again as itself.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"* * * * *", "*/5 1-3,7 LW jan 6L", "0 0 L-3W 2 2#5", "0 0 30 2 *", "1,,2 * * * *", "0 0 29W 2 mon-fri/2"} {
		f.Add(text, int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, text string, after int64) {
		e, err := cron.Parse(text)
		if err != nil {
			return
		}
		checkMinutes(t, e, time.Unix(after%8e9, 0), 200)
		if again, err := cron.Parse(e.String()); err != nil || again != e {
			t.Fatalf("%q is read again as %+v, %v", text, again, err)
		}
	})
}
