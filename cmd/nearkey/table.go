package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// screen is where 'nearkey dev' says what happens: on a terminal with a table
// below that is kept up to date, elsewhere in lines. All methods may be called at
// once.
type screen struct {
	terminal bool // what is written is a terminal, and a table is wanted
	silent   bool // no figures are wanted

	mu    sync.Mutex // guards the rest
	out   io.Writer
	table []string // as it is shown now
}

// newScreen returns a screen. table is what the flag says: "true", "false" or "".
func newScreen(out io.Writer, table string) *screen {
	return &screen{out: out, silent: table == "false", terminal: table != "false" && isTerminal(out)}
}

// every is how often figures are to be shown; 0: not at all.
func (s *screen) every() time.Duration {
	switch {
	case s.silent:
		return 0
	case s.terminal:
		return lookEvery
	}
	return sayEvery
}

// say writes a message above the table.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	table := s.table
	s.draw(nil)
	fmt.Fprintf(s.out, "nearkey dev: %s\n", text)
	s.draw(table)
}

// show brings the table up to date, or writes the rows as lines.
func (s *screen) show(rows []row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		s.draw(tableOf(rows))
		return
	}
	now := time.Now().Format(time.TimeOnly)
	for _, r := range rows {
		fmt.Fprintf(s.out, "%s %s %s requests=%.0f hit=%.0f miss=%.0f expired=%.0f stale=%.0f ratio=%s feed_age=%s copies=%.0f memory=%.0f restarts=%d\n",
			now, r.name, strings.ReplaceAll(r.state, " ", "-"), r.requests, r.hit, r.miss, r.expired, r.stale, r.ratio(), r.age(), r.copies, r.memory, r.restarts)
	}
}

// end leaves the table as it is, above what follows.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = nil
}

// draw puts a table in the place of the one that is shown. It is called with mu
// held.
func (s *screen) draw(table []string) {
	if len(s.table) > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", len(s.table))
	}
	s.table = table
	if len(table) == 0 {
		return
	}
	width := 0
	if f, ok := s.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			width = w
			if len(table) >= h { // what scrolls away cannot be drawn over
				s.table = table[:max(1, h-1)]
			}
		}
	}
	for _, line := range s.table {
		if width > 0 && len(line) > width {
			line = line[:width]
		}
		fmt.Fprintln(s.out, line)
	}
}

// tableOf is the table as lines of ASCII.
func tableOf(rows []row) []string {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	names := 0
	for _, r := range rows {
		names = max(names, len(r.name))
	}
	fmt.Fprintf(t, "%-*s\tport\tregion\tstate\trequests\thit ratio\tHIT\tMISS\tEXPIRED\tSTALE\tfeed age\tcopies\tmemory\trestarts\t\n", names, "process")
	for _, r := range rows {
		fmt.Fprintf(t, "%-*s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", names, r.name, r.port, firstNonEmpty(r.region, "-"), r.state,
			count(r.requests), r.ratio(), count(r.hit), count(r.miss), count(r.expired), count(r.stale), r.age(), count(r.copies), size(int64(r.memory)), r.restarts)
	}
	_ = t.Flush() // to memory
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}

func count(f float64) string { return grouped(int64(f)) }

// ratio is the share of reads that were answered from near.
func (r row) ratio() string {
	all := r.hit + r.miss + r.expired + r.stale
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*r.hit/all)
}

// age is that of the feed.
func (r row) age() string {
	if r.feedAge < 0 {
		return "-"
	}
	return time.Duration(r.feedAge * float64(time.Second)).Round(10 * time.Millisecond).String()
}
