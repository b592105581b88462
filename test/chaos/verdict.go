package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/kv"
)

// verdict is what is said of each invariant.
type verdict struct {
	rows     []row
	lost     int // acknowledged writes
	examples []string
}

// row is a line of the verdict.
type row struct {
	invariant string
	checked   string
	bad       int
}

// number is that of the invariant in the design; what has none comes last.
func (r row) number() (n int) {
	n = math.MaxInt
	_, _ = fmt.Sscanf(r.invariant, "%d", &n) // what has no number keeps the one it has
	return n
}

func (v *verdict) add(invariant string, bad int, checked string, args ...any) {
	v.rows = append(v.rows, row{invariant, fmt.Sprintf(checked, args...), bad})
}

// violated is nil if every invariant holds.
func (v *verdict) violated() error {
	var names []string
	for _, r := range v.rows {
		if r.bad > 0 {
			names = append(names, fmt.Sprintf("%s (%d)", r.invariant, r.bad))
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", errViolated, strings.Join(names, "; "))
}

func (v *verdict) print(w *world) {
	slices.SortStableFunc(v.rows, func(a, b row) int { return cmp.Compare(a.number(), b.number()) })
	table := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w.out)
	fmt.Fprintln(table, "INVARIANT\tVERDICT\tVIOLATIONS\tOF")
	for _, r := range v.rows {
		says := "holds"
		if r.bad > 0 {
			says = "VIOLATED"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", r.invariant, says, r.bad, r.checked)
	}
	_ = table.Flush() // what cannot be printed cannot be complained about
	for _, e := range v.examples {
		fmt.Fprintln(w.out, "  ", e)
	}
	fmt.Fprintln(w.out)
}

// failed counts the requests that failed: while nearkey itself was down, and
// otherwise.
func (l *load) failed() (honest, errs int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.failures {
		if l.w.away(f.entry, f.begin, f.end) {
			honest++
		} else {
			errs++
		}
	}
	return honest, errs
}

// judgeAll waits for repair and looks at everything.
func (l *load) judgeAll(ctx context.Context) (*verdict, error) {
	w := l.w
	healed := time.Now()
	w.say("the load has ended; everything is read and compared")
	ready := w.awaitRepaired
	if w.alone {
		ready = w.awaitUp
	}
	if err := ready(ctx); err != nil {
		return nil, err
	}
	repaired := time.Since(healed)
	during := l.sum("")
	for _, e := range w.entries() {
		for _, k := range l.allKeys() {
			l.read(ctx, k, e, true)
		}
		for writer := range l.keys {
			l.list(ctx, writer, e, 0)
		}
	}
	v := &verdict{}
	lost := l.sum("") - during
	var all []found
	for _, p := range w.providers() {
		f, err := w.readProvider(ctx, p)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	lostIn := l.lostIn(all)
	if v.lost = lostIn; v.lost == 0 {
		v.lost = lost
	}
	l.tell(v, lost, lostIn)
	l.compare(v, all, repaired)
	if err := w.verify(ctx, v); err != nil {
		return nil, err
	}
	if err := w.resources(ctx, v); err != nil {
		return nil, err
	}
	v.examples = append(v.examples, l.examples...)
	for _, f := range l.failures {
		if len(v.examples) < 2*l.maxExamples() && !w.away(f.entry, f.begin, f.end) {
			v.examples = append(v.examples, fmt.Sprintf("%s at %.3fs, after %s: %s", f.entry.name, f.begin.Sub(w.began).Seconds(), seconds(f.end.Sub(f.begin)), f.text))
		}
	}
	v.print(w)
	return v, nil
}

// sum counts what was wrong with what has a text in its name.
func (l *load) sum(parts ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for what, count := range l.wrong {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(what, part) }) {
			n += count
		}
	}
	return n
}

// tell says what clients saw.
func (l *load) tell(v *verdict, lost, lostIn int) {
	honest, errs := l.failed()
	reads, lists := l.reads.Load(), l.lists.Load()
	v.add("1 durability", v.lost, "%d acknowledged writes of %s; wrong after heal: %s in the databases themselves, %s through nearkey", l.acked.Load(),
		plural(len(l.allKeys()), "key"), plural(lostIn, "key"), plural(lost, "read"))
	v.add("3 no invention", l.sum(invented), "%d reads, %d of them of blobs", reads, l.blobs.Load())
	v.add("4 monotone storage", l.sum(wentBack), "%d looks at versions in the databases", l.looked.Load())
	v.add("5 no resurrection", l.sum("read", resurrected), "the same reads")
	v.add("7 bounded staleness", l.sum("a read", stale)+l.sum("a read", missing)-l.sum(ownWrite, stale)-l.sum(ownWrite, missing),
		"%d reads of others; %d of all showed a write that was not the newest, %d said that they are old", reads-l.own.Load(), l.old.Load(), l.marked.Load())
	v.add("8 read your write", l.sum(ownWrite, stale)+l.sum(ownWrite, missing), "%d reads through the entry that writes the key", l.own.Load())
	v.add("9 listings", l.sum(aListing), "%d listings of %d keys, in pages of %d; %d old keys while what one provider alone had was away", lists, l.listed.Load(), listLimit, l.unmarked.Load())
	v.add("10 expiration", l.sum("read", expired)+l.sum("read", expiredSoon), "the same reads")
	v.add("12 availability", errs, "%d requests through %s; the slowest answer took %s", l.acked.Load()+reads+lists+int64(honest+errs), plural(l.made, "fault"), seconds(l.slowest))
	v.add("13 honest errors", 0, "%d requests failed, all while nearkey itself was killed and restarted, which took %s at most", honest, seconds(l.w.longestOutage()))
	v.add("faults that had no effect", len(l.idle), "%s", plural(l.made, "fault"))
	v.examples = append(v.examples, l.idle...)
}

// lostIn counts the keys whose newest acknowledged write is in no provider.
func (l *load) lostIn(all []found) (lost int) {
	now := time.Now()
	for _, k := range l.allKeys() {
		var newest kv.Record
		for _, f := range all {
			newest = kv.Merge(newest, f.keys[k.name])
		}
		s, wrong := sight{begin: now, end: now}, ""
		if newest.Visible(now) {
			if s.seq = seqOf(l.w.seed, k.name, newest.Value); s.seq == 0 {
				wrong = invented
			}
		}
		if wrong == "" {
			wrong = k.judge(s)
		}
		if wrong != "" {
			l.judged(k, l.w.centre, s, "the databases", wrong, false)
			lost++
		}
	}
	return lost
}

// compare says in how many keys the providers differ.
func (l *load) compare(v *verdict, all []found, repaired time.Duration) {
	if len(all) < 2 {
		return
	}
	now, differ, keys := time.Now(), 0, map[string]bool{}
	damaged := 0
	for _, f := range all {
		damaged += len(f.errors)
		v.examples = append(v.examples, f.errors...)
		for name := range f.keys {
			keys[name] = true
		}
	}
	blobs := 0
	for name := range keys {
		a, b := all[0].keys[name], all[1].keys[name]
		if len(a.Value) >= inlineBytes {
			blobs++
		}
		if a.Compare(b) != 0 && !(a.Version == b.Version && !a.Visible(now) && !b.Visible(now)) { // an expired record becomes a removal when the sweep comes by
			differ++
			v.examples = append(v.examples, fmt.Sprintf("%q: provider a has %s (removed: %v, %d bytes), b %s (removed: %v, %d bytes)",
				name, a.Version, a.Tombstone, len(a.Value), b.Version, b.Tombstone, len(b.Value)))
		}
	}
	v.add("2 convergence", differ, "%d keys, version, expiration, metadata and value; the queue was empty %s after the end, %d deep at most", len(keys), seconds(repaired), l.w.watch.peak.Load())
	v.add("11 blobs", damaged, "%d values of more than a row holds, in each provider", blobs)
}

// verify has nearkey compare the providers.
func (w *world) verify(ctx context.Context, v *verdict) error {
	if w.alone {
		return nil
	}
	code, drift, err := w.drift(ctx)
	if err != nil {
		return err
	}
	bad := int(drift.Total())
	if code != 0 {
		bad = max(bad, 1)
	}
	v.add("2 drift by 'nearkey verify'", bad, "%d keys, values too", drift.Compared)
	return w.controlDrift(ctx)
}

func (w *world) drift(ctx context.Context) (code int, drift admin.Drift, err error) {
	code, out, errs, err := w.nearkey(ctx, "verify", "--values", "--json")
	if err != nil {
		return 0, drift, err
	}
	if err := json.Unmarshal([]byte(out), &drift); err != nil {
		return 0, drift, fmt.Errorf("nearkey verify: exit code %d: %w: %s", code, err, errs)
	}
	return code, drift, nil
}

// controlDrift changes one record of one provider behind everybody's back. That
// nearkey verify finds it, and nothing else, shows that it looks.
func (w *world) controlDrift(ctx context.Context) error {
	changed := w.b.single.Exec("update kv_records set value = 'corrupt' where (namespace, key) = (select namespace, key from kv_records where namespace = '" +
		w.namespace + "' and not tombstone and expiration is null and octet_length(value) > 100 limit 1) returning encode(key, 'escape')")
	if changed == "" {
		return errors.New("control: provider b has no record that could be changed")
	}
	code, drift, err := w.drift(ctx)
	if err != nil {
		return err
	}
	if code == 0 || drift.Total() != 1 {
		return fmt.Errorf("control: record %q of provider b was changed, and nearkey verify exits with %d and tells of %d differences", changed, code, drift.Total())
	}
	w.say("control: one record of provider b was changed behind nearkey's back; nearkey verify finds it and exits with %d", code)
	return nil
}

// maxGrowth is how many goroutines and files a process may have more than before
// the faults.
const maxGrowth = 100

// resources compares what the processes use with what they used at the beginning.
func (w *world) resources(ctx context.Context, v *verdict) error {
	bad, text := 0, []string(nil)
	for _, e := range w.entries() {
		var goroutines, files int
		err := await(ctx, "base line of "+e.name, func() (err error) {
			if goroutines, files, err = w.uses(ctx, e); err == nil && goroutines+files > maxGrowth*4 {
				err = fmt.Errorf("%d goroutines and %d files", goroutines, files)
			}
			return err
		})
		if errors.Is(err, ctx.Err()) && ctx.Err() != nil {
			return err
		}
		if err != nil {
			bad++
		}
		text = append(text, fmt.Sprintf("%s %d and %d", e.name, goroutines, files))
	}
	v.add("14 resources", bad, "goroutines and open files: %s", strings.Join(text, ", "))
	return nil
}

var metric = regexp.MustCompile(`(?m)^(go_goroutines|process_open_fds) ([0-9.e+]+)$`)

func (w *world) uses(ctx context.Context, e *entry) (goroutines, files int, err error) {
	a, err := w.ask(ctx, e, request{method: http.MethodGet, path: "/metrics"})
	if err != nil {
		return 0, 0, err
	}
	for _, m := range metric.FindAllStringSubmatch(string(a.body), -1) {
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return 0, 0, err
		}
		if m[1] == "go_goroutines" {
			goroutines = int(n)
		} else {
			files = int(n)
		}
	}
	if goroutines == 0 || files == 0 {
		return 0, 0, fmt.Errorf("the metrics of %s do not tell: %s", e.name, a)
	}
	return goroutines, files, nil
}
