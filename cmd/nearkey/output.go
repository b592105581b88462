package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
)

func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON, and nothing else, on stdout")
}

// printJSON writes one JSON value, with characters such as < as they are.
func (m *Main) printJSON(v any) error {
	enc := json.NewEncoder(m.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// done tells what a command has made: as JSON, or with a message for people.
func (m *Main) done(asJSON bool, made any, format string, args ...any) error {
	if asJSON {
		return m.printJSON(made)
	}
	m.say(format, args...)
	return nil
}

// rows writes a list row by row: a JSON array, a table on a terminal, or lines
// of tab-separated fields.
type rows struct {
	out    *bufio.Writer
	table  *tabwriter.Writer // on a terminal
	asJSON bool
	header []string
	count  int
}

// tableRows is after how many rows a table is shown and the next one begun, so
// that a long listing appears at once and stays out of memory.
const tableRows = 1000

func (m *Main) rows(asJSON bool, header ...string) *rows {
	r := &rows{out: bufio.NewWriter(m.Stdout), asJSON: asJSON, header: header}
	if !asJSON && isTerminal(m.Stdout) {
		r.table = tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	}
	return r
}

// add writes a row: v as JSON, or its cells.
func (r *rows) add(v any, cells ...string) error {
	defer func() { r.count++ }()
	if r.asJSON {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		enc.SetIndent("  ", "  ")
		if err := enc.Encode(v); err != nil {
			return err
		}
		begin := ",\n  "
		if r.count == 0 {
			begin = "[\n  "
		}
		_, err := r.out.WriteString(begin + strings.TrimSuffix(buf.String(), "\n"))
		return err
	}
	for i := range cells {
		cells[i] = printable(cells[i])
	}
	if r.table == nil {
		_, err := fmt.Fprintln(r.out, strings.Join(cells, "\t"))
		return err
	}
	if r.count%tableRows == 0 {
		if err := r.flushTable(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(r.table, strings.Join(cells, "\t"))
	return err
}

func (r *rows) flushTable() error {
	if r.count == 0 {
		_, err := fmt.Fprintln(r.table, strings.Join(r.header, "\t"))
		return err
	}
	return r.flush()
}

// flush shows what there is of a list that will not be ended.
func (r *rows) flush() error {
	if r.table != nil {
		if err := r.table.Flush(); err != nil {
			return err
		}
	}
	return r.out.Flush()
}

// close ends the list.
func (r *rows) close() error {
	if r.asJSON {
		end := "\n]\n"
		if r.count == 0 {
			end = "[]\n"
		}
		if _, err := r.out.WriteString(end); err != nil {
			return err
		}
	}
	return r.flush()
}

// printable is text that can stand in a line and in a terminal: control
// characters and what is not UTF-8 are written as in a Go string, and so is a
// backslash.
func printable(s string) string {
	ok := strings.IndexFunc(s, func(r rune) bool {
		return r == '\\' || r == unicode.ReplacementChar || !unicode.IsPrint(r)
	}) < 0
	if ok {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// binary reports whether bytes would do harm to a terminal.
func binary(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool {
		return r == unicode.ReplacementChar || unicode.IsControl(r) && !strings.ContainsRune("\n\r\t", r)
	})
}

// confirm asks before something that cannot be undone. Without a terminal to ask
// on it refuses.
func (m *Main) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(m.Stdin) {
		return usagef("%s Nobody is there to be asked; -y says yes", question)
	}
	fmt.Fprintf(m.Stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(io.LimitReader(m.Stdin, 100)).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &exitError{exitFailed, fmt.Errorf("not confirmed; nothing was done")}
}

// yesFlags are -y and its other spellings.
func yesFlags(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(yes, "force", "f", false, "do not ask")
}

// plural is a count with its noun: 1 record, 25,000 records.
func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(n) + " " + noun + "s"
}

// grouped is a number with commas between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return plural(n, "byte")
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[unit])
}
