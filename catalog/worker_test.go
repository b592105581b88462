package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nearkey/nearkey/kv"
)

// useWorkers gives a catalog a store for modules.
func useWorkers(t testing.TB, c *Catalog) *outlet {
	t.Helper()
	out := newOutlet()
	c.UseWorkers(out, out.stamp)
	return out
}

// manifestOf is a manifest with one module, which is stored.
func manifestOf(t testing.TB, c *Catalog, content string) Manifest {
	t.Helper()
	hashes, err := c.PutModules(t.Context(), [][]byte{[]byte(content)})
	if err != nil {
		t.Fatal(err)
	}
	return Manifest{Main: "index.js", CompatibilityDate: "2026-01-01", Modules: []WorkerModule{
		{Name: "index.js", Type: "application/javascript+module", Hash: hashes[0], Size: len(content)}}}
}

// addVersion adds a version to a Worker, upon its latest.
func addVersion(t testing.TB, c *Catalog, name string, deploy bool) (Worker, WorkerVersion) {
	t.Helper()
	w, err := c.Worker(t.Context(), testAccount, name)
	if err != nil && !errors.Is(err, ErrWorkerNotFound) {
		t.Fatal(err)
	}
	w, v, err := c.AddVersion(t.Context(), testAccount, name, NewVersion{Manifest: manifestOf(t, c, fmt.Sprint("export ", name, w.Latest)),
		Base: w.LatestID, Create: true, Deploy: deploy, Source: "wrangler", AuthorID: "me", AuthorEmail: "owner@example.com",
		Annotations: map[string]string{"workers/triggered_by": "upload"}})
	if err != nil {
		t.Fatal(err)
	}
	return w, v
}

// plus is a Worker as text, in which all that it points to can be compared.
func plus(w Worker) string {
	d := w.Deployment
	w.Deployment = nil
	if d == nil {
		return fmt.Sprintf("%+v, never deployed", w)
	}
	return fmt.Sprintf("%+v, deployed %+v", w, *d)
}

// addAccount makes another account.
func addAccount(t testing.TB, c *Catalog, id string) {
	t.Helper()
	if _, err := c.db.write.ExecContext(t.Context(), `insert into accounts (id, name, created) values ($1, 'other', 1)`, id); err != nil {
		t.Fatal(err)
	}
}

const otherAccount = "ffffffffffffffffffffffffffffffff"

func TestWorkerIsWhatWasAdded(t *testing.T) {
	c, path := newCatalog(t)
	useWorkers(t, c)
	_, err := c.Worker(t.Context(), testAccount, "hello")
	wantError(t, err, ErrWorkerNotFound)
	wantError(t, err, ErrNotFound)
	w, v := addVersion(t, c, "hello", false)
	if w.Name != "hello" || w.AccountID != testAccount || len(w.ID) != 32 || w.Latest != 1 || w.LatestID != v.ID || w.Deployment != nil || w.Created.IsZero() {
		t.Errorf("a version that is not deployed: %s", plus(w))
	}
	w, second := addVersion(t, c, "hello", true)
	if d := w.Deployment; w.Latest != 2 || d.Versions[0] != (Share{second.ID, 100}) || d.Strategy != "percentage" || d.Source != "wrangler" || d.Annotations["workers/triggered_by"] != "upload" {
		t.Errorf("a deployed version: %s", plus(w))
	}
	settings := WorkerSettings{Tags: []string{"a", "é"}, Logpush: true, Observability: []byte(`{"enabled":true}`), TailConsumers: []byte(`[{"service":"t"}]`)}
	if w, err = c.SetWorkerSettings(t.Context(), testAccount, "hello", settings); err != nil || fmt.Sprint(w.Settings) != fmt.Sprint(settings) {
		t.Errorf("settings %+v, %v", w.Settings, err)
	}
	if w, err = c.SetWorkerSubdomain(t.Context(), testAccount, "hello", true, false); err != nil || !w.Subdomain || w.Previews {
		t.Errorf("%s, %v", plus(w), err)
	}
	for _, c := range []*Catalog{c, openAt(t, path)} {
		got, err := c.Worker(t.Context(), testAccount, "hello")
		if err != nil || plus(got) != plus(w) {
			t.Errorf("got %s, %v\nwant %s", plus(got), err, plus(w))
		}
		if list, err := c.WorkerList(t.Context(), testAccount); err != nil || len(list) != 1 || plus(list[0]) != plus(w) {
			t.Errorf("list %+v, %v", list, err)
		}
		if got, err := c.Version(t.Context(), testAccount, "hello", v.ID); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", v) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, v)
		}
		if got, err := c.LatestVersion(t.Context(), testAccount, "hello"); err != nil || got.ID != second.ID {
			t.Errorf("latest %+v, %v", got, err)
		}
	}
}

func TestWorkersOfOtherAccountsAreUnknown(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addAccount(t, c, otherAccount)
	_, v := addVersion(t, c, "mine", true)
	for name, call := range map[string]func(ctx context.Context, account, name string) error{
		"Worker":        func(ctx context.Context, a, n string) error { _, err := c.Worker(ctx, a, n); return err },
		"Version":       func(ctx context.Context, a, n string) error { _, err := c.Version(ctx, a, n, v.ID); return err },
		"LatestVersion": func(ctx context.Context, a, n string) error { _, err := c.LatestVersion(ctx, a, n); return err },
		"Versions":      func(ctx context.Context, a, n string) error { _, _, err := c.Versions(ctx, a, n, 0, 0); return err },
		"Deployments":   func(ctx context.Context, a, n string) error { _, err := c.Deployments(ctx, a, n, 0); return err },
		"AddDeployment": func(ctx context.Context, a, n string) error {
			_, err := c.AddDeployment(ctx, a, n, Deployment{Versions: []Share{{v.ID, 100}}})
			return err
		},
		"AddVersion": func(ctx context.Context, a, n string) error {
			_, _, err := c.AddVersion(ctx, a, n, NewVersion{Manifest: v.Manifest, Base: v.ID})
			return err
		},
		"SetWorkerSettings": func(ctx context.Context, a, n string) error {
			_, err := c.SetWorkerSettings(ctx, a, n, WorkerSettings{})
			return err
		},
		"SetWorkerSubdomain": func(ctx context.Context, a, n string) error {
			_, err := c.SetWorkerSubdomain(ctx, a, n, true, true)
			return err
		},
		"DeleteWorker": func(ctx context.Context, a, n string) error { return c.DeleteWorker(ctx, a, n) },
		"ReplaceWorkerRoutes": func(ctx context.Context, a, n string) error {
			_, err := c.ReplaceWorkerRoutes(ctx, a, n, nil)
			return err
		},
		"WorkerRoutes": func(ctx context.Context, a, n string) error { _, err := c.WorkerRoutes(ctx, a, n); return err },
		"ReplaceWorkerDomains": func(ctx context.Context, a, n string) error {
			_, err := c.ReplaceWorkerDomains(ctx, a, n, nil)
			return err
		},
		"ReplaceSchedules": func(ctx context.Context, a, n string) error {
			_, err := c.ReplaceSchedules(ctx, a, n, nil)
			return err
		},
		"Schedules": func(ctx context.Context, a, n string) error { _, err := c.Schedules(ctx, a, n); return err },
		"CronRuns":  func(ctx context.Context, a, n string) error { _, err := c.CronRuns(ctx, a, n, 0); return err },
		"StartRun":  func(ctx context.Context, a, n string) error { _, err := c.StartRun(ctx, a, n, "x", "h", 1); return err },
		"ClaimRun": func(ctx context.Context, a, n string) error {
			_, _, err := c.ClaimRun(ctx, a, n, "x", c.now(), "h", 1)
			return err
		},
		"OpenTail": func(ctx context.Context, a, n string) error { _, err := c.OpenTail(ctx, a, n, nil, 1); return err },
		"Tails":    func(ctx context.Context, a, n string) error { _, err := c.Tails(ctx, a, n); return err },
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, call(t.Context(), otherAccount, "mine"), ErrWorkerNotFound)
			wantError(t, call(t.Context(), testAccount, "none"), ErrWorkerNotFound)
			if err := call(t.Context(), "no account", "mine"); !errors.Is(err, ErrNotFound) {
				t.Errorf("of an account that does not exist: %v", err)
			}
		})
	}
	if list, err := c.WorkerList(t.Context(), otherAccount); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	_, err := c.WorkerList(t.Context(), "no account")
	wantError(t, err, ErrNotFound)
	t.Run("unavailable", func(t *testing.T) {
		breakDatabase(t, c)
		_, err := c.Worker(t.Context(), testAccount, "mine")
		wantError(t, err, kv.ErrUnavailable)
		_, err = c.PutModules(t.Context(), [][]byte{[]byte("x")})
		wantError(t, err, kv.ErrUnavailable)
		_, _, err = c.AddVersion(t.Context(), testAccount, "mine", NewVersion{Manifest: v.Manifest, Base: v.ID})
		wantError(t, err, kv.ErrUnavailable)
	})
}

func TestWorkerLimits(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	m := manifestOf(t, c, "x")
	add := func(name string) error {
		_, _, err := c.AddVersion(t.Context(), testAccount, name, NewVersion{Manifest: m, Create: true})
		return err
	}
	long := strings.Repeat("w", MaxWorkerNameChars)
	for _, name := range []string{long, "_", "0", "a-b_c-"} {
		if err := add(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", long + "w", "-a", "A", "a.b", "a/b", "é", "a\n", "a b"} {
		err := add(name)
		wantError(t, err, ErrWorkerName)
		wantError(t, err, ErrInvalid)
	}
	if _, err := c.db.write.ExecContext(t.Context(), `update accounts set name = name`); err != nil {
		t.Fatal(err)
	}
	for i := 4; i < MaxWorkers; i++ {
		if _, err := c.db.write.ExecContext(t.Context(), `insert into workers select $1, account_id, $2, created, modified, subdomain, previews,
			settings, latest, latest_id, deployments, deployment_id from workers where name = $3`, newID(), fmt.Appendf(nil, "w%d", i), []byte("_")); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, add("one-more"), ErrTooManyWorkers)
	if err := c.DeleteWorker(t.Context(), testAccount, "w9"); err != nil {
		t.Fatal(err)
	}
	if err := add("one-more"); err != nil {
		t.Errorf("the last of %d: %v", MaxWorkers, err)
	}
	list, err := c.WorkerList(t.Context(), testAccount)
	if err != nil || len(list) != MaxWorkers || !slices.IsSortedFunc(list, func(a, b Worker) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%d Workers, %v", len(list), err)
	}

	empty := len(`{"tags":[""]}`)
	for size, want := range map[int]error{MaxSettingsBytes: nil, MaxSettingsBytes + 1: ErrInvalid} {
		_, err := c.SetWorkerSettings(t.Context(), testAccount, "_", WorkerSettings{Tags: []string{strings.Repeat("t", size-empty)}})
		if !errors.Is(err, want) {
			t.Errorf("settings of %d bytes: %v, want %v", size, err, want)
		}
	}
	_, err = c.SetWorkerSettings(t.Context(), testAccount, "_", WorkerSettings{Observability: []byte(`{`)})
	wantError(t, err, ErrInvalid)
}

// dump is everything in the database.
func dump(t testing.TB, c *Catalog) string {
	t.Helper()
	var b strings.Builder
	for _, table := range tables {
		rows, err := c.db.read.QueryContext(t.Context(), `select * from `+table)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for rows.Next() {
			values := make([]any, len(columns))
			places := make([]any, len(columns))
			for i := range values {
				places[i] = &values[i]
			}
			if err := rows.Scan(places...); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("%s %q\n", table, values))
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

var tables = []string{"accounts", "workers", "worker_versions", "worker_modules", "worker_version_modules", "worker_deployments", "worker_shares",
	"worker_subdomains", "worker_zones", "worker_routes", "worker_domains", "worker_schedules", "worker_runs", "worker_tails"}

// A change that is cut off at any of its steps leaves the database as it was.
func TestNothingIsHalfDone(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	_, v := addVersion(t, c, "w", true)
	_, second := addVersion(t, c, "w", true)
	if _, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "w", []RouteInput{{Pattern: "a.example/*"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"b.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplaceSchedules(t.Context(), testAccount, "w", []string{"* * * * *"}); err != nil {
		t.Fatal(err)
	}
	m := manifestOf(t, c, "new")
	for name, call := range map[string]struct {
		steps []string // tables that it writes
		run   func() error
	}{
		"AddVersion": {[]string{"worker_versions", "worker_version_modules", "worker_modules", "worker_deployments", "worker_shares"}, func() error {
			_, _, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Base: second.ID, Deploy: true, Settings: &WorkerSettings{Logpush: true}})
			return err
		}},
		"AddVersion of a new Worker": {[]string{"worker_versions", "worker_version_modules", "worker_modules", "worker_deployments", "worker_shares"}, func() error {
			_, _, err := c.AddVersion(t.Context(), testAccount, "new", NewVersion{Manifest: m, Create: true, Deploy: true})
			return err
		}},
		"AddDeployment": {[]string{"worker_deployments", "worker_shares"}, func() error {
			_, err := c.AddDeployment(t.Context(), testAccount, "w", Deployment{Versions: []Share{{v.ID, 50}, {second.ID, 50}}})
			return err
		}},
		"ReplaceWorkerRoutes": {[]string{"worker_routes"}, func() error {
			_, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "w", []RouteInput{{Pattern: "new.example/*"}, {Pattern: "other.example/*"}})
			return err
		}},
		"ReplaceWorkerDomains": {[]string{"worker_zones"}, func() error {
			_, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"new.example"})
			return err
		}},
		"ReplaceSchedules": {[]string{"worker_schedules"}, func() error {
			_, err := c.ReplaceSchedules(t.Context(), testAccount, "w", []string{"0 * * * *"})
			return err
		}},
	} {
		before := dump(t, c)
		for _, table := range call.steps {
			rename := func(from, to string) {
				if _, err := c.db.write.ExecContext(t.Context(), fmt.Sprintf(`alter table %s rename to %s`, from, to)); err != nil {
					t.Fatal(err)
				}
			}
			rename(table, "away")
			if err := call.run(); err == nil {
				t.Errorf("%s without %s succeeded", name, table)
			}
			rename("away", table)
			if after := dump(t, c); after != before {
				t.Errorf("%s without %s left\n%s\nfrom\n%s", name, table, after, before)
			}
		}
		if err := call.run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if dump(t, c) == before {
			t.Errorf("%s changes nothing that is compared", name)
		}
		if name == "AddVersion" { // the next are upon it
			w, err := c.Worker(t.Context(), testAccount, "w")
			if err != nil {
				t.Fatal(err)
			}
			second.ID = w.LatestID
		}
	}
}

// Of many who add a version upon the same one, one does; the others are told.
func TestVersionsAtOnce(t *testing.T) {
	c, path := newCatalog(t)
	useWorkers(t, c)
	other := openAt(t, path)
	useWorkers(t, other)
	w, _ := addVersion(t, c, "w", true)
	m := manifestOf(t, c, "next")
	race := func(base func(i int) string) (added, conflicts int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				c := []*Catalog{c, other}[i%2]
				_, _, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Base: base(i), Deploy: i%3 == 0})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					added++
				case errors.Is(err, ErrConflict):
					conflicts++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return added, conflicts
	}
	if added, conflicts := race(func(int) string { return w.LatestID }); added != 1 || conflicts != 11 {
		t.Errorf("%d added, %d conflicts", added, conflicts)
	}
	// The control: those who look for themselves which is the latest get further.
	if added, _ := race(func(int) string {
		w, err := c.Worker(t.Context(), testAccount, "w")
		if err != nil {
			t.Error(err)
		}
		return w.LatestID
	}); added == 0 {
		t.Error("nobody got further")
	}
	got, err := c.Worker(t.Context(), testAccount, "w")
	if err != nil {
		t.Fatal(err)
	}
	list, total, err := c.Versions(t.Context(), testAccount, "w", 0, 0)
	if err != nil || total != got.Latest || list[0].Number != got.Latest || list[0].ID != got.LatestID {
		t.Errorf("%d versions, the latest is %d, %v", total, got.Latest, err)
	}
	_, _, err = c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true})
	wantError(t, err, ErrConflict) // it exists
	_, _, err = c.AddVersion(t.Context(), testAccount, "new", NewVersion{Manifest: m, Create: true, Base: got.LatestID})
	wantError(t, err, ErrConflict) // it was deleted
}

func TestDeletedWorkerLeavesNothing(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	p := out.publisher(c)
	addVersion(t, c, "stays", true)
	if _, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "stays", []RouteInput{{Pattern: "a.example/stays*"}}); err != nil {
		t.Fatal(err)
	}
	before := dump(t, c)
	records := strings.Join(out.live(t), "\n") + strings.Join(liveWorkers(t, out), "\n")

	addVersion(t, c, "goes", true)
	addVersion(t, c, "goes", false)
	if _, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "goes", []RouteInput{{Pattern: "a.example/*"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "goes", []string{"b.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReplaceSchedules(t.Context(), testAccount, "goes", []string{"* * * * *"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ClaimRun(t.Context(), testAccount, "goes", "* * * * *", c.now(), "h", MaxTickAge); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OpenTail(t.Context(), testAccount, "goes", nil, MaxTailLife); err != nil {
		t.Fatal(err)
	}
	if dump(t, c) == before {
		t.Fatal("nothing is there that could stay")
	}
	if err := c.DeleteWorker(t.Context(), testAccount, "goes"); err != nil {
		t.Fatal(err)
	}
	notes := func(text string) string { // the modules' are left to the sweep
		lines := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.HasPrefix(line, "worker_modules ") })
		return strings.Join(lines, "\n")
	}
	if after := dump(t, c); notes(after) != notes(before) {
		t.Errorf("left\n%s\nwant\n%s", notes(after), notes(before))
	}
	live := func() string {
		keys := slices.DeleteFunc(liveWorkers(t, out), func(key string) bool { return strings.HasPrefix(key, modulePrefix) })
		return strings.Join(keys, "\n")
	}
	for range 2 {
		if got := live(); strings.Contains(got, "goes") || strings.Contains(got, "b.example") || strings.Count(got, versionPrefix) != 1 {
			t.Errorf("published: %s\nbefore: %s", got, records)
		}
		compare(t, p)
	}
	wantError(t, c.DeleteWorker(t.Context(), testAccount, "goes"), ErrWorkerNotFound)
}

// Secrets are nowhere in plain text: not in the database's bytes, not in records.
func TestWorkerSecretsAreSealed(t *testing.T) {
	c, path := newCatalog(t)
	out := useWorkers(t, c)
	out.publisher(c)
	keys := testKeys(t, testKey(7))
	const secret, plain = "s3cret-hunter2-of-the-user", "plain-text-of-the-user"
	sealed, err := keys.Seal(testAccount, "w", "TOKEN", secret)
	if err != nil {
		t.Fatal(err)
	}
	m := manifestOf(t, c, "x")
	m.Bindings = []WorkerBinding{{Name: "TOKEN", Type: "secret_text", Sealed: sealed}, {Name: "VAR", Type: "plain_text", Text: plain}}
	_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true, Deploy: true})
	if err != nil {
		t.Fatal(err)
	}
	tail, err := c.OpenTail(t.Context(), testAccount, "w", nil, MaxTailLife)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []WorkerBinding{{Name: "A", Type: "secret_text", Text: secret}, {Name: "A", Type: "secret_key", JSON: []byte(`"` + secret + `"`), Sealed: sealed},
		{Name: "A", Type: "secret_text"}, {Name: "A", Type: "secret_text", Text: secret, Sealed: sealed}} {
		m.Bindings = []WorkerBinding{b}
		_, _, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Base: v.ID})
		wantError(t, err, ErrInvalid)
		if strings.Contains(fmt.Sprint(err), secret) {
			t.Errorf("the secret is in the error: %v", err)
		}
	}
	where := map[string]string{"the database": dump(t, c), "the records": fmt.Sprintf("%s", workerRecords(t, out))}
	if os.Getenv(serverURL) == "" {
		for _, name := range []string{path, path + "-wal"} {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			where["the files"] += string(data)
		}
	}
	for what, text := range where {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is in %s", what)
		}
		if strings.Contains(text, tail.Token) {
			t.Errorf("the token of a tail is in %s", what)
		}
		if !strings.Contains(text, plain) || !strings.Contains(text, tail.Ingest) { // the control
			t.Errorf("what is no secret is not found in %s", what)
		}
	}
	got, err := c.Version(t.Context(), testAccount, "w", v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := keys.Open(testAccount, "w", "TOKEN", got.Manifest.Bindings[0].Sealed); err != nil || text != secret {
		t.Errorf("%q, %v", text, err)
	}
	_, err = testKeys(t, testKey(8)).Open(testAccount, "w", "TOKEN", got.Manifest.Bindings[0].Sealed)
	wantError(t, err, ErrSealed)
}

// workerRecords are all records of Workers, by key; nil: a tombstone.
func workerRecords(t testing.TB, o *outlet) map[string][]byte {
	t.Helper()
	recs := map[string][]byte{}
	for opts, more := (kv.ListOptions{}), true; more; {
		page, err := o.memory.List(t.Context(), Workers, opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range page.Keys {
			rec, err := o.memory.Get(t.Context(), kv.Ref{Namespace: Workers, Key: k.Key}, 0)
			if err != nil {
				t.Fatal(err)
			}
			recs[k.Key] = rec.Value
			if rec.Tombstone {
				recs[k.Key] = nil
			}
		}
		opts.After, more = page.Last, page.More
	}
	return recs
}

// liveWorkers are the keys of the records of Workers that are no tombstones.
func liveWorkers(t testing.TB, o *outlet) []string {
	t.Helper()
	var keys []string
	for key, value := range workerRecords(t, o) {
		if value != nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
