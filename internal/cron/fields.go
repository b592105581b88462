package cron

import (
	"fmt"
	"strconv"
	"strings"
)

// A field is one of the five: what its numbers may be, and their names.
type field struct {
	name     string
	min, max int
	names    string // of three letters each, the first is min
}

var (
	minutes     = field{"minute", 0, 59, ""}
	hours       = field{"hour", 0, 23, ""}
	daysOfMonth = field{"day of month", 1, 31, ""}
	months      = field{"month", 1, 12, "janfebmaraprmayjunjulaugsepoctnovdec"}
	daysOfWeek  = field{"day of week", 1, 7, "sunmontuewedthufrisat"}
)

// wrong says what a field has that it may not have.
func (f field) wrong(format string, args ...any) error {
	return fmt.Errorf("%s field has %s", f.name, fmt.Sprintf(format, args...))
}

// number reads digits and nothing else: no sign, no fraction.
func number(text string) (n int, ok bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

// value reads one number or name of a field.
func (f field) value(text string) (int, error) {
	for i := 0; i < len(f.names); i += 3 {
		if strings.EqualFold(text, f.names[i:i+3]) {
			return f.min + i/3, nil
		}
	}
	n, ok := number(text)
	if !ok {
		return 0, f.wrong("%q instead of %d-%d", text, f.min, f.max)
	}
	if n < f.min || n > f.max {
		return 0, f.wrong("%d outside %d-%d", n, f.min, f.max)
	}
	return n, nil
}

// list reads values, ranges and steps, with commas between them, as the set of
// what they name.
func list(text string, f field) (set uint64, err error) {
	items := strings.Split(text, ",")
	for _, item := range items {
		if item == "*" && len(items) > 1 {
			return 0, f.wrong("* inside a list")
		}
		first, last, step, err := f.item(item)
		if err != nil {
			return 0, err
		}
		for v := first; v <= last; v += step {
			set |= 1 << v
		}
	}
	return set, nil
}

// item reads one value, range or step of a list.
func (f field) item(item string) (first, last, step int, err error) {
	spec, stepText, stepped := strings.Cut(item, "/")
	step = 1
	if stepped {
		n, ok := number(stepText)
		if !ok || n < 1 || n > f.max-f.min {
			return 0, 0, 0, f.wrong("a bad step in %q", item)
		}
		step = n
	}
	if spec == "*" {
		return f.min, f.max, step, nil
	}
	from, to, ranged := strings.Cut(spec, "-")
	if first, err = f.value(from); err != nil {
		return 0, 0, 0, err
	}
	switch {
	case ranged:
		if last, err = f.value(to); err != nil {
			return 0, 0, 0, err
		}
	case stepped:
		last = f.max
	default:
		last = first
	}
	if first > last {
		return 0, 0, 0, f.wrong("a range that goes down in %q", item)
	}
	return first, last, step, nil
}
