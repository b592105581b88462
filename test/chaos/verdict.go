package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/postgres"
	"github.com/nearkey/nearkey/store/s3"
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
		if l.w.centre.away(f.begin, f.end) || f.entry.away(f.begin, f.end) {
			honest++
		} else {
			errs++
		}
	}
	return honest, errs
}

// found is what was read from a provider itself.
type found struct {
	name   string
	keys   map[string]kv.Record
	errors []string
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
		for writer := range l.keys {
			for _, k := range l.keys[writer] {
				l.read(ctx, k, e, true)
			}
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
	v.lost = max(lost, lostIn)
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
		if len(v.examples) < 2*maxExamples && !w.centre.away(f.begin, f.end) && !f.entry.away(f.begin, f.end) {
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
	v.add("1 durability", v.lost, "%d acknowledged writes of %d keys; wrong after heal: %d read through nearkey, %d in the databases themselves", l.acked.Load(),
		writers*(keysOfEach+stableKeys), lost, lostIn)
	v.add("3 no invention", l.sum(invented), "%d reads, %d of them of blobs", reads, l.blobs.Load())
	v.add("5 no resurrection", l.sum("read", resurrected), "the same reads")
	v.add("7 bounded staleness", l.sum("a read", stale)+l.sum("a read", missing)-l.sum(ownWrite, stale)-l.sum(ownWrite, missing),
		"%d reads of others; %d of all showed a write that was not the newest, %d said that they are old", reads-l.own.Load(), l.old.Load(), l.marked.Load())
	v.add("8 read your write", l.sum(ownWrite, stale)+l.sum(ownWrite, missing), "%d reads through the entry that writes the key", l.own.Load())
	v.add("9 listings", l.sum(aListing), "%d listings of %d keys, in pages of %d", lists, l.listed.Load(), listLimit)
	v.add("10 expiration", l.sum("read", expired)+l.sum("read", expiredSoon), "the same reads")
	v.add("12 availability", errs, "%d requests; the slowest answer took %s; errors while nearkey itself was down: %d",
		l.acked.Load()+reads+lists+int64(honest+errs), seconds(l.slowest), honest)
}

// readProvider reads everything from a provider, past gateway and lines.
func (w *world) readProvider(ctx context.Context, p *provider) (found, error) {
	f := found{name: p.name, keys: map[string]kv.Record{}}
	rows, err := postgres.Open(ctx, p.direct, postgres.Options{MaxConns: 2})
	if err != nil {
		return f, err
	}
	defer func() { _ = rows.Close() }() // it was only read from
	bucket, err := s3.Open(s3.Options{Endpoint: p.blobs.Endpoint, Region: p.blobs.Region, Bucket: p.blobs.Bucket,
		AccessKeyID: p.blobs.AccessKeyID, SecretKeyFile: p.blobs.SecretKeyFile, PathStyle: true})
	if err != nil {
		return f, err
	}
	split := proxy.NewSplit(rows, bucket, bucket, proxy.SplitOptions{})
	ns, err := kv.ParseNamespaceID(w.namespace)
	if err != nil {
		return f, err
	}
	for after := ""; ; {
		page, err := split.List(ctx, ns, kv.ListOptions{After: after})
		if err != nil {
			return f, fmt.Errorf("list provider %s: %w", p.name, err)
		}
		for _, k := range page.Keys {
			rec, err := split.Get(ctx, kv.Ref{Namespace: ns, Key: k.Key}, 0)
			if err != nil {
				f.errors = append(f.errors, fmt.Sprintf("provider %s, %q: %v", p.name, k.Key, err))
				rec = k.Record
			}
			f.keys[k.Key] = rec
		}
		if after = page.Last; !page.More {
			return f, nil
		}
	}
}

// lostIn counts the keys whose newest acknowledged write is in no provider.
func (l *load) lostIn(all []found) (lost int) {
	now := time.Now()
	for _, keys := range l.keys {
		for _, k := range keys {
			var newest kv.Record
			for _, f := range all {
				newest = kv.Merge(newest, f.keys[k.name])
			}
			s := sight{begin: now, end: now}
			if newest.Visible(now) {
				if s.seq = seqOf(l.w.seed, k.name, newest.Value); s.seq == 0 {
					l.judged(k, l.w.centre, s, "the databases", invented, false)
					lost++
					continue
				}
			}
			if wrong := k.judge(s); wrong != "" {
				l.judged(k, l.w.centre, s, "the databases", wrong, false)
				lost++
			}
		}
	}
	return lost
}

// compare says in how many keys the providers differ.
func (l *load) compare(v *verdict, all []found, repaired time.Duration) {
	if len(all) < 2 {
		return
	}
	differ, keys := 0, map[string]bool{}
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
		if a.Compare(b) != 0 {
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
