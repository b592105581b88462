package main

import (
	"fmt"
	"os"
	"strings"
)

// verdict is what became of a target.
type verdict struct {
	what   string
	got    float64
	target float64
	unit   string
	least  bool   // the target is the least that is wanted; otherwise the most
	why    string // what limits it
}

func (v verdict) met() bool {
	if v.least {
		return v.got >= v.target
	}
	return v.got <= v.target
}

func (v verdict) String() string {
	bound, said := "at most", "met"
	if v.least {
		bound = "at least"
	}
	if !v.met() {
		said = "FALLS SHORT: " + v.why
	}
	digits := 2
	if v.target >= 1000 {
		digits = 0
	}
	return fmt.Sprintf("%-52s %10.*f %-3s (want %s %.*f)  %s", v.what, digits, v.got, v.unit, bound, digits, v.target, said)
}

// atLeast and atMost note a figure and its target. A low figure is no error: it is
// printed again at the end, with what limits it.
func (b *bench) atLeast(what string, got, target float64, unit, why string) {
	b.verdicts = append(b.verdicts, verdict{what, got, target, unit, true, why})
}

func (b *bench) atMost(what string, got, target float64, unit, why string) {
	b.verdicts = append(b.verdicts, verdict{what, got, target, unit, false, why})
}

func (b *bench) printVerdicts() {
	if len(b.verdicts) == 0 {
		return
	}
	b.printf("\n== targets\n")
	for _, v := range b.verdicts {
		b.printf("  %s\n", v)
	}
}

// loadAverage is what the machine does besides.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
