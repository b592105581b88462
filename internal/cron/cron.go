// Package cron is for knowing when a Worker's cron triggers fire: expressions
// of Cloudflare's dialect, in UTC. It differs from Vixie cron: weekdays are 1 to
// 7 from Sunday, so that 1-5 is Sunday to Thursday; the day fields know L, W and
// #; and a day matches when either day field does, if both are restricted. Two
// readings of Cloudflare's own parser that surprise everyone are refused: a
// range that goes down, and * inside a list. It keeps nothing and has nothing
// to lose.
package cron

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// MaxText is how long an expression may be: one that names every value of every
// field is shorter.
const MaxText = 512

// lookahead is how far Next looks: the calendar repeats every 400 years, so what
// does not match within them never does.
const lookahead = 400 * 12 // months

// An Expr is a cron expression that was understood. It is comparable; equal
// expressions were written alike.
type Expr struct {
	text   string
	minute uint64 // one bit per minute, hour, month
	hour   uint64
	month  uint64
	dom    days
	dow    days
}

// String returns the expression as it was written.
func (e Expr) String() string { return e.text }

// Parse reads an expression. The error says which field is wrong, and how.
func Parse(text string) (Expr, error) {
	e, err := parse(text)
	if err != nil {
		return Expr{}, fmt.Errorf("cron trigger %q: %w", shorten(text), err)
	}
	return e, nil
}

// shorten cuts what is too long to be repeated in an error.
func shorten(text string) string {
	if len(text) > MaxText {
		return text[:32] + "…"
	}
	return text
}

func parse(text string) (e Expr, err error) {
	if len(text) > MaxText {
		return e, fmt.Errorf("%d bytes, at most %d are allowed", len(text), MaxText)
	}
	f := strings.Fields(text)
	if len(f) != 5 {
		return e, fmt.Errorf("%d fields, not 5", len(f))
	}
	e.text = strings.TrimSpace(text)
	if e.minute, err = list(f[0], minutes); err != nil {
		return e, err
	}
	if e.hour, err = list(f[1], hours); err != nil {
		return e, err
	}
	if e.dom, err = parseDayOfMonth(f[2]); err != nil {
		return e, err
	}
	if e.month, err = list(f[3], months); err != nil {
		return e, err
	}
	if e.dow, err = parseDayOfWeek(f[4]); err != nil {
		return e, err
	}
	if e.Next(time.Unix(0, 0)).IsZero() {
		return e, fmt.Errorf("it never matches")
	}
	return e, nil
}

// Matches reports whether the minute that holds at is one of the expression's.
func (e Expr) Matches(at time.Time) bool {
	at = at.UTC()
	if !has(e.hour, at.Hour()) || !has(e.minute, at.Minute()) || !has(e.month, int(at.Month())) {
		return false
	}
	return e.day(at.Day(), int(at.Weekday()), lastDay(at.Year(), at.Month()))
}

// Next returns the first moment strictly after the given one at which the
// expression fires: the start of a minute, in UTC. It is the zero time if there
// is none, which no expression that Parse accepts knows.
func (e Expr) Next(after time.Time) time.Time {
	from := after.UTC().Truncate(time.Minute).Add(time.Minute)
	year, month, first := from.Year(), from.Month(), from.Day()
	minute := from.Hour()*60 + from.Minute()
	for range lookahead + 1 {
		if has(e.month, int(month)) {
			last := lastDay(year, month)
			weekday := int(time.Date(year, month, first, 0, 0, 0, 0, time.UTC).Weekday())
			for day := first; day <= last; day++ {
				if e.day(day, weekday, last) {
					if at, ok := e.timeOfDay(minute); ok {
						return time.Date(year, month, day, 0, at, 0, 0, time.UTC)
					}
				}
				minute, weekday = 0, (weekday+1)%7
			}
		}
		minute, first = 0, 1
		if month++; month > time.December {
			year, month = year+1, time.January
		}
	}
	return time.Time{}
}

// timeOfDay returns the first minute of a day, at or after the given one, that
// the fields of hour and minute allow.
func (e Expr) timeOfDay(from int) (minute int, ok bool) {
	hour := from / 60
	if has(e.hour, hour) {
		if rest := e.minute >> (from % 60); rest != 0 {
			return from + bits.TrailingZeros64(rest), true
		}
	}
	later := e.hour >> (hour + 1)
	if later == 0 {
		return 0, false
	}
	hour += 1 + bits.TrailingZeros64(later)
	return hour*60 + bits.TrailingZeros64(e.minute), true
}

// day reports whether a day matches: either of the two fields that are
// restricted, or both if one is not.
func (e Expr) day(day, weekday, last int) bool {
	switch {
	case e.dom.kind == anyDay:
		return e.dow.matches(day, weekday, last)
	case e.dow.kind == anyDay:
		return e.dom.matches(day, weekday, last)
	}
	return e.dom.matches(day, weekday, last) || e.dow.matches(day, weekday, last)
}

// lastDay returns the number of days of a month.
func lastDay(year int, month time.Month) int {
	return time.Date(year, month+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

func has(set uint64, n int) bool { return set>>n&1 == 1 }
