package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written like 512MiB, 64KiB, 100MB or 1024.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := strings.TrimSpace(string(text)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	n := f * float64(unit)
	if err != nil || n < 0 || n != math.Trunc(n) || n > 1<<53 || strings.ContainsAny(number, "xXpP_nN") {
		return fmt.Errorf(`%q is no size; write "512MiB", "64KiB" or a number of bytes`, text)
	}
	*s = Size(n)
	return nil
}

// MarshalText writes the size in the greatest unit that it is a multiple of.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/u.bytes, u.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(s), 10), nil
}

// Duration is a time span, written like 10s, 1h30m or 30d.
type Duration time.Duration

const day = 24 * time.Hour

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseInt(days, 10, 64); err == nil && n >= 0 && n <= math.MaxInt64/int64(day) {
			*d = Duration(n * int64(day))
			return nil
		}
	}
	n, err := time.ParseDuration(s)
	if err != nil || n < 0 {
		return fmt.Errorf(`%q is no time span; write "500ms", "10s", "1h30m" or "30d"`, text)
	}
	*d = Duration(n)
	return nil
}

// MarshalText writes the duration without units that are zero.
func (d Duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// Count is a number of things.
type Count int

// UnmarshalText reads a count.
func (c *Count) UnmarshalText(text []byte) error {
	n, err := strconv.ParseInt(strings.ReplaceAll(string(text), "_", ""), 10, 32)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no number of 0 or more", text)
	}
	*c = Count(n)
	return nil
}

// MarshalText writes the count.
func (c Count) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(c), 10), nil }

// Switch is yes or no.
type Switch bool

// UnmarshalText reads a switch.
func (s *Switch) UnmarshalText(text []byte) error {
	switch string(text) {
	case "true":
		*s = true
	case "false":
		*s = false
	default:
		return fmt.Errorf("%q: want true or false", text)
	}
	return nil
}

// MarshalText writes the switch.
func (s Switch) MarshalText() ([]byte, error) { return strconv.AppendBool(nil, bool(s)), nil }

// Weight is the share of something, compared with the shares of others.
type Weight float64

// UnmarshalText reads a weight.
func (w *Weight) UnmarshalText(text []byte) error {
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return fmt.Errorf("%q is no number", text)
	}
	*w = Weight(f)
	return nil
}

// MarshalText writes the weight.
func (w Weight) MarshalText() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(w), 'f', -1, 64), nil
}
