package cron

import "strings"

// days says which days one of the two day fields allows.
type days struct {
	kind dayKind
	set  uint64 // of someDays and someWeekdays
	n    int    // the day, the weekday (Sunday is 0), or the distance from the end
	nth  int    // of nthWeekday
}

type dayKind uint8

const (
	anyDay         dayKind = iota // *
	someDays                      // 1,15-20
	lastDays                      // L, L-3
	lastWorkday                   // LW
	nearLastDays                  // L-3W: the weekday nearest to it
	nearestWorkday                // 15W
	someWeekdays                  // 2-6
	lastWeekday                   // 6L: the last Friday
	nthWeekday                    // 6#2: the second Friday
)

const (
	sunday    = 0
	monday    = 1
	friday    = 5
	saturday  = 6
	maxOffset = 30 // days before the last one
	maxNth    = 5
)

// matches reports whether the field allows a day of a month that has so many.
// What W means is Cloudflare's: the nearest weekday, never of another month.
func (d days) matches(day, weekday, last int) bool {
	workday := weekday != sunday && weekday != saturday
	switch d.kind {
	case someDays:
		return has(d.set, day)
	case lastDays:
		return day+d.n == last
	case lastWorkday:
		return workday && day == last || weekday == friday && last-day < 3
	case nearLastDays:
		// A day before the 1st matches nothing in that month.
		return last-d.n >= 1 && (workday && day+d.n == last ||
			weekday == monday && day+d.n == last+1 ||
			weekday == monday && day == 3 && last-d.n == 1 ||
			weekday == friday && day+d.n+1 == last)
	case nearestWorkday:
		// A day past the month's end matches nothing in that month.
		return d.n <= last && (workday && day == d.n ||
			weekday == monday && day-1 == d.n ||
			weekday == monday && day == 3 && d.n == 1 ||
			weekday == friday && day+1 == d.n ||
			weekday == friday && day+2 == d.n && d.n == last)
	case someWeekdays:
		return has(d.set, weekday+1)
	case lastWeekday:
		return weekday == d.n && day+7 > last
	case nthWeekday:
		return weekday == d.n && (day-1)/7+1 == d.nth
	}
	return true
}

func parseDayOfMonth(text string) (days, error) {
	switch {
	case text == "*":
		return days{}, nil
	case text == "L":
		return days{kind: lastDays}, nil
	case text == "LW":
		return days{kind: lastWorkday}, nil
	case strings.HasPrefix(text, "L-"):
		return parseOffset(text)
	case strings.HasSuffix(text, "W"):
		n, err := daysOfMonth.value(strings.TrimSuffix(text, "W"))
		return days{kind: nearestWorkday, n: n}, err
	}
	set, err := list(text, daysOfMonth)
	return days{kind: someDays, set: set}, err
}

// parseOffset reads L-3 and L-3W.
func parseOffset(text string) (days, error) {
	rest, near := strings.CutSuffix(strings.TrimPrefix(text, "L-"), "W")
	n, ok := number(rest)
	if !ok || n < 1 || n > maxOffset {
		return days{}, daysOfMonth.wrong("%q", text)
	}
	if near {
		return days{kind: nearLastDays, n: n}, nil
	}
	return days{kind: lastDays, n: n}, nil
}

func parseDayOfWeek(text string) (days, error) {
	switch {
	case text == "*":
		return days{}, nil
	case text == "L": // the week's last day
		return days{kind: someWeekdays, set: 1 << (saturday + 1)}, nil
	case strings.HasSuffix(text, "L"):
		n, err := daysOfWeek.value(strings.TrimSuffix(text, "L"))
		return days{kind: lastWeekday, n: n - 1}, err
	case strings.Contains(text, "#"):
		weekday, which, _ := strings.Cut(text, "#")
		n, err := daysOfWeek.value(weekday)
		if err != nil {
			return days{}, err
		}
		nth, ok := number(which)
		if !ok || nth < 1 || nth > maxNth {
			return days{}, daysOfWeek.wrong("%q", text)
		}
		return days{kind: nthWeekday, n: n - 1, nth: nth}, nil
	}
	set, err := list(text, daysOfWeek)
	return days{kind: someWeekdays, set: set}, err
}
