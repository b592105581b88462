package workerd

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

const maxVetted = 1000 // sets of flags that are remembered

// dated refuses a compatibility date that nobody can mean. Whether the runtime is
// young enough for it the runtime says itself.
func dated(date string, now time.Time) error {
	if _, err := time.Parse(time.DateOnly, date); err != nil {
		return &StartError{Text: "Invalid compatibility date: " + date}
	}
	if !now.IsZero() && date > now.UTC().Format(time.DateOnly) {
		return &StartError{Text: "Can't set compatibility date in the future: " + date}
	}
	return nil
}

// vet makes sure that all flags of a Worker are open to everyone, before a process
// is allowed what is experimental: that is for ours, not for the user's. The
// runtime itself tells which are, so that this holds for every release of it.
func (r *Runtime) vet(cancel <-chan struct{}, w *Worker) error {
	if len(w.Flags) == 0 {
		return nil
	}
	key := flagsKey(w)
	r.mu.Lock()
	_, known := r.vetted[key]
	r.mu.Unlock()
	if known {
		return nil
	}
	empty := &Worker{
		Name: w.Name, Version: w.Version, Main: "a", CompatibilityDate: w.CompatibilityDate, Flags: w.Flags,
		Modules: []Module{{Name: "a", Type: ESModule, Content: []byte("export default {}")}},
	}
	p, err := r.launch(cancel, empty, extras{})
	if err != nil {
		return err
	}
	p.end("", r.opts.Stop)
	return nil
}

// passed remembers that a process began with these flags and without what is
// experimental.
func (r *Runtime) passed(w *Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.vetted) >= maxVetted {
		clear(r.vetted)
	}
	r.vetted[flagsKey(w)] = struct{}{}
}

func flagsKey(w *Worker) string {
	flags := slices.Clone(w.Flags)
	slices.Sort(flags)
	return fmt.Sprintf("%s %q", w.CompatibilityDate, flags)
}

// What workerd says to someone who runs it by hand, in place of which a user of
// ours reads what he can do about it.
var (
	experimentalFlag    = regexp.MustCompile(`The compatibility flag (\S+) is experimental and may break[^\n]*`)
	experimentalFeature = regexp.MustCompile(`(is an experimental feature)[^\n]*--experimental[^\n]*`)
)

// What workerd says of itself when it ends by an exception of its own: places in
// its source and on this machine, which concern no user.
var (
	fatal = regexp.MustCompile(`\*\*\* Fatal uncaught kj::Exception: (\S+: )?(failed: )?(expected [^;\n]*; )?`)
	stack = regexp.MustCompile(`(?m)^\s*stack: .*$\n?`)
)

func reword(text string) string {
	text = strings.TrimSpace(stack.ReplaceAllString(fatal.ReplaceAllString(text, ""), ""))
	if !strings.Contains(text, "--experimental") {
		return text
	}
	text = experimentalFlag.ReplaceAllString(text, "The compatibility flag $1 is experimental and cannot yet be used in deployed Workers.")
	return experimentalFeature.ReplaceAllString(text, "$1 and cannot yet be used in deployed Workers.")
}
