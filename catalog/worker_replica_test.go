package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

// randomWorkers is a catalog whose Workers change at random, and all names that
// ever were in it.
type randomWorkers struct {
	t        testing.TB
	c        *Catalog
	rng      *rand.Rand
	versions []string
	names    map[string]bool // of subdomains
}

const (
	randomScripts = 5
	randomHosts   = 6
)

func (r *randomWorkers) script() string { return fmt.Sprint("w", r.rng.IntN(randomScripts)) }
func (r *randomWorkers) host() string {
	return fmt.Sprintf("h%d.example", r.rng.IntN(randomHosts))
}

// change makes one change; that it may not be possible is no failure.
func (r *randomWorkers) change() {
	ctx, name := r.t.Context(), r.script()
	var err error
	switch n := r.rng.IntN(20); {
	case n < 5:
		w, errWorker := r.c.Worker(ctx, testAccount, name)
		if errWorker != nil && !errors.Is(errWorker, ErrNotFound) {
			r.t.Fatal(errWorker)
		}
		m := manifestOf(r.t, r.c, fmt.Sprint(r.rng.IntN(9)))
		m.Bindings = []WorkerBinding{{Name: "T", Type: "plain_text", Text: fmt.Sprint("<é>", r.rng.Uint64())}}
		var v WorkerVersion
		_, v, err = r.c.AddVersion(ctx, testAccount, name, NewVersion{Manifest: m, Base: w.LatestID, Create: true, Deploy: r.rng.IntN(2) == 0})
		r.versions = append(r.versions, v.ID)
	case n < 7:
		var list []WorkerVersion
		if list, _, err = r.c.Versions(ctx, testAccount, name, 0, 2); len(list) == 2 {
			_, err = r.c.AddDeployment(ctx, testAccount, name, Deployment{Versions: []Share{{list[0].ID, 12.5}, {list[1].ID, 87.5}}})
		}
	case n < 8:
		_, err = r.c.SetWorkerSubdomain(ctx, testAccount, name, r.rng.IntN(2) == 0, r.rng.IntN(2) == 0)
	case n < 9:
		err = r.c.DeleteWorker(ctx, testAccount, name)
	case n < 12:
		var in []RouteInput
		for range r.rng.IntN(4) {
			in = append(in, RouteInput{Pattern: r.host() + []string{"/", "/*", "/a*"}[r.rng.IntN(3)]})
		}
		if _, err = r.c.ReplaceWorkerRoutes(ctx, testAccount, name, in); errors.Is(err, ErrRouteTaken) {
			err = nil
		}
	case n < 13:
		_, err = r.c.AddRoute(ctx, testAccount, ZoneID(r.host()), r.host()+"/off", "")
		if errors.Is(err, ErrRouteTaken) || errors.Is(err, ErrRouteZone) {
			err = nil
		}
	case n < 14:
		err = r.c.DeleteZone(ctx, testAccount, ZoneID(r.host()))
	case n < 16:
		_, err = r.c.ReplaceWorkerDomains(ctx, testAccount, name, []string{r.host(), r.host()})
	case n < 17:
		subdomain := fmt.Sprint("s", r.rng.IntN(3))
		r.names[subdomain] = true
		err = r.c.SetSubdomain(ctx, testAccount, subdomain)
	default:
		_, err = r.c.OpenTail(ctx, testAccount, name, []byte(`[{"sampling_rate":0.5}]`), time.Hour)
		if errors.Is(err, ErrTooManyTails) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		r.t.Fatal(err)
	}
}

// same demands that a replica tells everything as the catalog does.
func (r *randomWorkers) same(replica *WorkerReplica) {
	r.t.Helper()
	ctx := r.t.Context()
	check := func(what string, got, want any, gotErr, wantErr error) {
		r.t.Helper()
		if kindOf(gotErr) != kindOf(wantErr) || wantErr == nil && fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			r.t.Fatalf("%s:\nreplica %+v, error %v\ncatalog %+v, error %v", what, got, gotErr, want, wantErr)
		}
	}
	for i := range randomScripts {
		name := fmt.Sprint("w", i)
		got, gotErr := replica.Worker(ctx, testAccount, name)
		w, wantErr := r.c.Worker(ctx, testAccount, name)
		tails, _ := r.c.Tails(ctx, testAccount, name)
		want := PublishedWorker{ID: w.ID, AccountID: w.AccountID, Name: w.Name, Subdomain: w.Subdomain, Previews: w.Previews}
		if w.Deployment != nil {
			want.Versions = w.Deployment.Versions
		}
		for _, t := range tails {
			want.Tails = append(want.Tails, PublishedTail{t.ID, t.Ingest, t.Filters, t.Expires})
		}
		if gotErr != nil {
			got = &PublishedWorker{}
		}
		check(name, *got, want, gotErr, wantErr)
	}
	for i := range randomHosts {
		host := fmt.Sprintf("h%d.example", i)
		zone, gotErr := replica.Zone(ctx, host)
		routes, wantErr := r.c.Routes(ctx, ZoneID(host))
		got, want := map[string]string{}, map[string]string{}
		if gotErr == nil {
			for _, route := range zone.Routes {
				got[route.ID+" "+route.Pattern.String()] = route.Script
			}
			if !slices.IsSortedFunc(zone.Routes, func(a, b PublishedRoute) int { return a.Pattern.Compare(b.Pattern) }) {
				r.t.Fatal("the routes are in disorder")
			}
		}
		for _, route := range routes {
			want[route.ID+" "+pattern(r.t, route.Pattern).String()] = route.Script
		}
		check(host, got, want, gotErr, wantErr)
		domains, err := r.c.WorkerDomains(ctx, testAccount)
		if err != nil {
			r.t.Fatal(err)
		}
		account, script, gotErr := replica.Domain(ctx, host)
		i := slices.IndexFunc(domains, func(d WorkerDomain) bool { return d.Host == host })
		if i < 0 {
			wantError(r.t, gotErr, ErrNotFound)
		} else {
			check("domain "+host, account+script, testAccount+domains[i].Script, gotErr, nil)
		}
	}
	for name := range r.names {
		account, gotErr := replica.Subdomain(ctx, name)
		taken, err := r.c.SubdomainTaken(ctx, name)
		if err != nil || (gotErr == nil) != taken || taken && account != testAccount {
			r.t.Fatalf("subdomain %q: %q, %v; taken %v, %v", name, account, gotErr, taken, err)
		}
	}
	fresh := NewWorkerReplica(replica.records.store, ReplicaOptions{}) // which remembers no version
	var texts map[string]string
	rows, err := all(ctx, r.c.db.read, func(row scanner) (string, error) {
		var id string
		var text []byte
		err := row.Scan(&id, &text)
		if texts == nil {
			texts = map[string]string{}
		}
		texts[id] = string(text)
		return id, err
	}, `select id, manifest from worker_versions`)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, id := range slices.Concat(r.versions, rows) {
		m, err := fresh.Manifest(ctx, id)
		if text, ok := texts[id]; !ok {
			wantError(r.t, err, ErrVersionNotFound)
		} else if err != nil || string(marshalRecord(manifestRecord{recordFormat, *m})) != text {
			r.t.Fatalf("version %s: %+v, %v; want %s", id, m, err, text)
		}
	}
}

// TestWorkerReplicaEqualsCatalog: what was published when a change returned is what
// a comparison finds right, and a replica tells what the catalog does. What was
// lost on the way, or damaged, a comparison repairs.
func TestWorkerReplicaEqualsCatalog(t *testing.T) {
	for range 2 {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		c, _ := newCatalog(t)
		out := useWorkers(t, c)
		r := &randomWorkers{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0)), names: map[string]bool{}}
		for range r.rng.IntN(20) {
			r.change()
		}
		p, replica := out.publisher(c), NewWorkerReplica(out, ReplicaOptions{})
		compare(t, p)
		r.same(replica)
		for range 30 {
			r.change()
			r.same(replica)
		}
		before := workerRecords(t, out)
		compare(t, p)
		if after := workerRecords(t, out); !maps.EqualFunc(before, after, func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Errorf("a comparison changed what the changes had published:\n%s\n%s", before, after)
		}
		c.publisher.Store(nil) // publications are lost, as by a crash
		for range 25 {
			r.change()
		}
		for key, value := range workerRecords(t, out) {
			if strings.HasPrefix(key, modulePrefix) || value == nil {
				continue
			}
			rec := kv.Tombstone(stampOf(t, out))
			if r.rng.IntN(2) == 0 {
				rec = kv.Record{Version: stampOf(t, out), Value: []byte(`{"format":1}`)}
			}
			if r.rng.IntN(4) == 0 {
				if err := out.memory.Put(t.Context(), kv.Ref{Namespace: Workers, Key: key}, rec); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, key := range []string{"version/0", "version/zzz", "script/" + testAccount + "/gone", "zone/zzz", "domain/-", "subdomain/zzz"} {
			if err := out.memory.Put(t.Context(), kv.Ref{Namespace: Workers, Key: key}, kv.Record{Version: stampOf(t, out), Value: []byte(`{"format":1}`)}); err != nil {
				t.Fatal(err)
			}
		}
		compare(t, p)
		r.same(replica)
		writes := workerChanges(t, out)
		if compare(t, p); workerChanges(t, out) != writes {
			t.Error("a comparison that found nothing wrote something")
		}
	}
}

// TestVersionIsPublishedBeforeItsWorker: an edge never sees a Worker whose version
// it cannot find, and what could not be published is repaired.
func TestVersionIsPublishedBeforeItsWorker(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	p := out.publisher(c)
	_, v := addVersion(t, c, "w", true)
	keys := func() (list []string) {
		for _, change := range changesOf(t, out) {
			list = append(list, change.Ref.Key)
		}
		return list
	}
	script := scriptKey(testAccount, "w")
	if got := keys(); !slices.Equal(got[len(got)-2:], []string{versionKey(v.ID), script}) {
		t.Errorf("published in the order %q", got)
	}
	writes := len(keys())
	failed := 0
	inject := out.Faulty.Inject
	out.Faulty.Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if op == kvtest.OpPutMany && failed == 1 { // the first is of the module
			failed++
			return kvtest.Refused
		}
		if op == kvtest.OpPutMany {
			failed++
		}
		return inject(op, ref)
	}
	_, second := addVersion(t, c, "w", true)
	if got := keys()[writes:]; slices.Contains(got, script) {
		t.Errorf("the Worker was published without its version: %q", got)
	}
	if len(p.wake) != 1 {
		t.Error("nobody was told that something is left to be published")
	}
	out.Faulty.Inject = inject
	compare(t, p)
	w, err := NewWorkerReplica(out, ReplicaOptions{}).Worker(t.Context(), testAccount, "w")
	if err != nil || w.Versions[0].VersionID != second.ID {
		t.Errorf("%+v, %v", w, err)
	}
}

// TestWorkerReplicaWithoutStore: when the store fails, at once or by hanging, what
// is near is used.
func TestWorkerReplicaWithoutStore(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "hung": kvtest.Hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := newCatalog(t)
				defer c.Close()
				near := newCopies(newOutlet())
				near.publisher(c)
				c.UseWorkers(near.outlet, near.stamp)
				_, v := addVersion(t, c, "w", true)
				addVersion(t, c, "unknown", true)
				setRoutes(t, c, "w", "a.example/*")
				if _, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"d.example"}); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Subdomain(t.Context(), testAccount); err != nil {
					t.Fatal(err)
				}
				r := NewWorkerReplica(near, ReplicaOptions{})
				use := func() error {
					_, err := r.Worker(t.Context(), testAccount, "w")
					_, errZone := r.Zone(t.Context(), "a.example")
					_, _, errDomain := r.Domain(t.Context(), "d.example")
					_, errSub := r.Subdomain(t.Context(), "dev")
					_, errManifest := r.Manifest(t.Context(), v.ID)
					return errors.Join(err, errZone, errDomain, errSub, errManifest)
				}
				if err := use(); err != nil {
					t.Fatal(err)
				}
				near.reads.Store(int64(fault))
				time.Sleep(CacheFor + time.Second)
				for range 10 {
					if err := use(); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := r.Worker(t.Context(), testAccount, "unknown"); !errors.Is(err, ErrUnavailable) {
					t.Errorf("a Worker of which nothing is near: %v", err)
				}
				_, err := r.Module(t.Context(), hashModule(nil))
				wantError(t, err, ErrUnavailable)
				_, err = r.Manifest(t.Context(), "none")
				wantError(t, err, ErrUnavailable)
				time.Sleep(2 * StaleFor)
				if err := use(); !errors.Is(err, ErrUnavailable) {
					t.Errorf("past MaxStale: %v", err)
				}
				if _, err := r.Manifest(t.Context(), v.ID); err != nil {
					t.Errorf("what never changes: %v", err)
				}
				near.reads.Store(int64(kvtest.None))
				if err := use(); err != nil {
					t.Errorf("when the store is back: %v", err)
				}
			})
		})
	}
}

// TestWorkerReplicaKeepsWhatIsSuperseded: who is told of a change and cannot read it,
// since the store is gone by then, goes on with what was there, but not for longer than
// a copy may be old.
func TestWorkerReplicaKeepsWhatIsSuperseded(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "hung": kvtest.Hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := newCatalog(t)
				defer c.Close()
				near := newCopies(newOutlet())
				near.publisher(c)
				c.UseWorkers(near.outlet, near.stamp)
				addVersion(t, c, "w", true)
				r := NewWorkerReplica(near, ReplicaOptions{})
				before, err := r.Worker(t.Context(), testAccount, "w")
				if err != nil {
					t.Fatal(err)
				}
				_, v := addVersion(t, c, "w", true)
				near.mu.Lock()
				for key := range near.recs {
					near.told[key] = true
				}
				near.mu.Unlock()
				near.reads.Store(int64(fault))
				r.records.epoch.Add(1)
				for range 10 {
					if w, err := r.Worker(t.Context(), testAccount, "w"); err != nil || w != before {
						t.Fatalf("%v, %v", w, err)
					}
					time.Sleep(retryAfter / 2)
				}
				time.Sleep(StaleFor)
				if _, err := r.Worker(t.Context(), testAccount, "w"); !errors.Is(err, ErrUnavailable) {
					t.Errorf("past MaxStale: %v", err)
				}
				near.reads.Store(int64(kvtest.None))
				time.Sleep(loadTimeout + retryAfter)
				if w, err := r.Worker(t.Context(), testAccount, "w"); err != nil || w.Versions[0].VersionID != v.ID {
					t.Errorf("when the store is back: %+v, %v", w, err)
				}
			})
		})
	}
}

// TestModuleThatWasNotThere: that a module is absent, or was removed, is not
// believed for long.
func TestModuleThatWasNotThere(t *testing.T) {
	once(t) // its tier and clock are of the test's own
	c, _ := newCatalog(t)
	near := newCopies(newOutlet())
	c.UseWorkers(near.outlet, near.stamp)
	r := NewWorkerReplica(agedCopies{near}, ReplicaOptions{})
	hash := hashModule([]byte("a"))
	_, err := r.Module(t.Context(), hash)
	wantError(t, err, ErrNotFound)
	putModules(t, c, "a")
	if content, err := r.Module(t.Context(), hash); err != nil || string(content) != "a" {
		t.Errorf("%q, %v", content, err)
	}
	asks := near.asks.Load()
	if _, err := r.Module(t.Context(), hash); err != nil || near.asks.Load() != asks {
		t.Errorf("%v; the store was asked for what never changes", err)
	}
}

// agedCopies are copies that Get uses too.
type agedCopies struct{ *copies }

func (c agedCopies) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	a, err := c.GetAnswer(ctx, ref, maxAge)
	return a.Record, err
}

func TestWorkerReplicaAllocatesNothing(t *testing.T) {
	c, _ := newCatalog(t)
	near := newCopies(newOutlet())
	near.publisher(c)
	c.UseWorkers(near.outlet, near.stamp)
	_, v := addVersion(t, c, "w", true)
	setRoutes(t, c, "w", "a.example/*")
	if _, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"d.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Subdomain(t.Context(), testAccount); err != nil {
		t.Fatal(err)
	}
	r := NewWorkerReplica(near, ReplicaOptions{MaxAge: time.Hour})
	for name, use := range map[string]func() error{
		"Worker":    func() error { _, err := r.Worker(t.Context(), testAccount, "w"); return err },
		"Zone":      func() error { _, err := r.Zone(t.Context(), "a.example"); return err },
		"Domain":    func() error { _, _, err := r.Domain(t.Context(), "d.example"); return err },
		"Subdomain": func() error { _, err := r.Subdomain(t.Context(), "dev"); return err },
		"Manifest":  func() error { _, err := r.Manifest(t.Context(), v.ID); return err },
	} {
		if err := use(); err != nil {
			t.Fatal(err)
		}
		if got := testing.AllocsPerRun(100, func() { _ = use() }); got > 0 {
			t.Errorf("%s allocates %v times", name, got)
		}
	}
}

func TestWorkerReplicaEpoch(t *testing.T) {
	once(t)
	r := NewWorkerReplica(newOutlet(), ReplicaOptions{})
	r.Changed([]kv.Change{{Ref: reserved("script/x")}, {Ref: kv.Ref{Key: "script/x"}}})
	if r.Epoch() != 0 {
		t.Error("it takes changes of other namespaces for its own")
	}
	r.Changed([]kv.Change{{Ref: kv.Ref{Namespace: Workers, Key: "script/x"}}})
	if r.Epoch() != 1 {
		t.Errorf("epoch %d", r.Epoch())
	}
}

// TestWorkerRecordFormats: a newer format is refused, what a newer program added is
// ignored, and neither is overwritten.
func TestWorkerRecordFormats(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	p := out.publisher(c)
	_, v := addVersion(t, c, "w", true)
	setRoutes(t, c, "w", "a.example/*")
	if _, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"d.example"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Subdomain(t.Context(), testAccount); err != nil {
		t.Fatal(err)
	}
	for key, use := range map[string]func(r *WorkerReplica) error{
		scriptKey(testAccount, "w"): func(r *WorkerReplica) error { _, err := r.Worker(t.Context(), testAccount, "w"); return err },
		zoneKey("a.example"):        func(r *WorkerReplica) error { _, err := r.Zone(t.Context(), "a.example"); return err },
		domainKey("d.example"):      func(r *WorkerReplica) error { _, _, err := r.Domain(t.Context(), "d.example"); return err },
		subdomainKey("dev"):         func(r *WorkerReplica) error { _, err := r.Subdomain(t.Context(), "dev"); return err },
		versionKey(v.ID):            func(r *WorkerReplica) error { _, err := r.Manifest(t.Context(), v.ID); return err },
	} {
		value := string(workerRecords(t, out)[key])
		put := func(value string) {
			t.Helper()
			rec := kv.Record{Version: stampOf(t, out), Value: []byte(value), Metadata: digest([]byte(value))}
			if err := out.memory.Put(t.Context(), kv.Ref{Namespace: Workers, Key: key}, rec); err != nil {
				t.Fatal(err)
			}
		}
		newer, more := strings.Replace(value, `"format":1`, `"format":2`, 1), strings.Replace(value, `{`, `{"later":[1],`, 1)
		put(newer)
		if err := use(NewWorkerReplica(out, ReplicaOptions{})); err == nil || !strings.Contains(err.Error(), "newer nearkey") {
			t.Errorf("%s: %v", key, err)
		}
		put(more)
		if err := use(NewWorkerReplica(out, ReplicaOptions{})); err != nil {
			t.Errorf("%s with what a newer program added: %v", key, err)
		}
		if strings.HasPrefix(key, versionPrefix) {
			continue // the database's is as the newer program wrote it
		}
		for _, kept := range []string{newer, more} {
			put(kept)
			if compare(t, p); string(workerRecords(t, out)[key]) != kept {
				t.Errorf("%s was overwritten", kept)
			}
		}
		put(`{"format":0}`)
		if err := use(NewWorkerReplica(out, ReplicaOptions{})); err == nil {
			t.Errorf("%s without a format is read", key)
		}
		if compare(t, p); string(workerRecords(t, out)[key]) != value {
			t.Errorf("%s was not repaired", key)
		}
	}
}

// TestWorkersAreComparedInPages: more zones than are compared at once, and more
// bytes of manifests than are put at once.
func TestWorkersAreComparedInPages(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	m := manifestOf(t, c, "x")
	m.Bindings = []WorkerBinding{{Name: "T", Type: "plain_text", Text: strings.Repeat("x", MaxManifestBytes-1000)}}
	base := ""
	for range 5 { // three of them are as much as is put at once
		_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Base: base, Create: true})
		if err != nil {
			t.Fatal(err)
		}
		base = v.ID
	}
	var routes []RouteInput
	for i := range 2*publishZones + 3 {
		routes = append(routes, RouteInput{Pattern: fmt.Sprintf("z%d.example/*", i)}, RouteInput{Pattern: fmt.Sprintf("www.z%d.example/", i)})
	}
	if _, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "w", routes); err != nil {
		t.Fatal(err)
	}
	puts := 0
	inject := out.Faulty.Inject
	out.Faulty.Inject = func(op kvtest.Op, ref kv.Ref) kvtest.Fault {
		if op == kvtest.OpPutMany {
			puts++
		}
		return inject(op, ref)
	}
	p := out.publisher(c)
	compare(t, p)
	if want := 2 + 2 + 1 + 3; puts != want { // of the owner's key and token, of versions, of the Worker, of zones
		t.Errorf("published in %d parts, want %d", puts, want)
	}
	r := NewWorkerReplica(out, ReplicaOptions{})
	for i := range 2*publishZones + 3 {
		if z, err := r.Zone(t.Context(), fmt.Sprintf("z%d.example", i)); err != nil || len(z.Routes) != 2 {
			t.Errorf("%+v, %v", z, err)
		}
	}
	if _, err := r.Manifest(t.Context(), base); err != nil {
		t.Error(err)
	}
	for i := range publishZones { // those of the first page, and some of the second
		if err := c.DeleteZone(t.Context(), testAccount, ZoneID(fmt.Sprintf("z%d.example", i))); err != nil {
			t.Fatal(err)
		}
	}
	writes := workerChanges(t, out)
	if compare(t, p); workerChanges(t, out) != writes {
		t.Error("a comparison that found nothing wrote something")
	}
}
