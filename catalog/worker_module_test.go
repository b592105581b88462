package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

func putModules(t testing.TB, c *Catalog, contents ...string) []string {
	t.Helper()
	var list [][]byte
	for _, content := range contents {
		list = append(list, []byte(content))
	}
	hashes, err := c.PutModules(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	return hashes
}

// workerChanges is how many records of Workers were written.
func workerChanges(t testing.TB, o *outlet) int { return len(changesOf(t, o)) }

func TestModulesAreStoredOnce(t *testing.T) {
	c, _ := newCatalog(t)
	_, err := c.PutModules(t.Context(), nil)
	wantError(t, err, ErrUnavailable)
	_, err = c.ModuleContent(t.Context(), hashModule(nil))
	wantError(t, err, ErrUnavailable)

	out := useWorkers(t, c)
	hashes := putModules(t, c, "a", "", "b", "a", "\x00\xff")
	if len(hashes) != 5 || hashes[0] != hashes[3] || workerChanges(t, out) != 4 {
		t.Errorf("%q, %d writes", hashes, workerChanges(t, out))
	}
	for i, want := range []string{"a", "", "b", "a", "\x00\xff"} {
		if got, err := c.ModuleContent(t.Context(), hashes[i]); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if putModules(t, c, "b", "c"); workerChanges(t, out) != 5 {
		t.Errorf("%d writes, want one more", workerChanges(t, out))
	}
	_, err = c.ModuleContent(t.Context(), hashModule([]byte("d")))
	wantError(t, err, ErrNotFound)
	if none, err := c.PutModules(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("%q, %v", none, err)
	}

	// A store that is another than it was, as after a loss, gets them again.
	other := newOutlet()
	c.UseWorkers(other, other.stamp)
	if putModules(t, c, "a"); workerChanges(t, other) != 1 {
		t.Error("a module that the store does not have was not written")
	}

	// What is stored under a hash and is something else is no module.
	ref := moduleRef(hashes[0])
	if err := other.memory.Put(t.Context(), ref, kv.Record{Version: stampOf(t, other), Value: []byte("evil")}); err != nil {
		t.Fatal(err)
	}
	_, err = c.ModuleContent(t.Context(), hashes[0])
	wantError(t, err, kv.ErrDamaged)
	_, err = NewWorkerReplica(other, ReplicaOptions{}).Module(t.Context(), hashes[0])
	wantError(t, err, kv.ErrDamaged)
}

func TestModuleBytes(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	content := make([]byte, MaxModuleBytes+1)
	if _, err := c.PutModules(t.Context(), [][]byte{content[1:]}); err != nil {
		t.Errorf("the largest: %v", err)
	}
	_, err := c.PutModules(t.Context(), [][]byte{content})
	wantError(t, err, ErrInvalid)
}

// A store that fails, before or after it was done, fails the call; the next is
// right.
func TestModulesAndAFailingStore(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "done but not acknowledged": kvtest.Unacknowledged} {
		t.Run(name, func(t *testing.T) {
			c, _ := newCatalog(t)
			out := useWorkers(t, c)
			out.fault.Store(int64(fault))
			_, err := c.PutModules(t.Context(), [][]byte{[]byte("a")})
			wantError(t, err, ErrUnavailable)
			m := Manifest{Main: "a", Modules: []WorkerModule{{Name: "a", Hash: hashModule([]byte("a")), Size: 1}}}
			_, _, err = c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true})
			wantError(t, err, ErrConflict) // nobody knows that it is stored
			out.fault.Store(int64(kvtest.None))
			putModules(t, c, "a")
			if _, _, err = c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true}); err != nil {
				t.Error(err)
			}
		})
	}
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.PutModules(ctx, [][]byte{[]byte("a")})
	wantError(t, err, context.Canceled)
	if n := workerChanges(t, out); n != 0 {
		t.Errorf("%d writes", n)
	}
}

// sweeper is a catalog whose clock is set by hand, of which modules are swept.
type sweeper struct {
	t     testing.TB
	c     *Catalog
	out   *outlet
	clock atomic.Int64 // in nanoseconds since 1970
}

func newSweeper(t testing.TB) *sweeper {
	c, _ := newCatalog(t)
	s := &sweeper{t: t, c: c, out: newOutlet()}
	s.clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, s.clock.Load()) }
	s.out.stamp = kv.NewStamper(1, now)
	c.UseWorkers(s.out, s.out.stamp)
	c.now = now
	return s
}

func (s *sweeper) pass(d time.Duration) { s.clock.Add(int64(d)) }

func (s *sweeper) sweep() {
	s.t.Helper()
	if err := s.c.sweepModules(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// has reports whether a module is stored.
func (s *sweeper) has(content string) bool {
	s.t.Helper()
	_, err := s.c.ModuleContent(s.t.Context(), hashModule([]byte(content)))
	if err != nil && !errors.Is(err, ErrNotFound) {
		s.t.Fatal(err)
	}
	return err == nil
}

// notes is how many modules the database knows.
func (s *sweeper) notes() (n int) {
	s.t.Helper()
	if err := s.c.db.read.QueryRowContext(s.t.Context(), `select count(*) from worker_modules`).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func TestModulesThatNothingNeedsAreSwept(t *testing.T) {
	s := newSweeper(t)
	_, v := addVersion(t, s.c, "w", true)
	used := "export w0"
	putModules(t, s.c, "idle")
	s.pass(ModuleGrace - time.Microsecond)
	if s.sweep(); !s.has("idle") || !s.has(used) {
		t.Error("swept before its time")
	}
	s.pass(time.Microsecond)
	if s.sweep(); s.has("idle") || !s.has(used) {
		t.Error("at its time: what is idle stays, or what is used goes")
	}
	if s.notes() != 2 {
		t.Errorf("%d notes, want that of the tombstone still", s.notes())
	}
	s.pass(ModuleGrace)
	if s.sweep(); s.notes() != 1 {
		t.Errorf("%d notes, want one", s.notes())
	}
	putModules(t, s.c, "idle") // the clock has passed the tombstone
	if !s.has("idle") {
		t.Error("a module that was swept cannot be put again")
	}
	s.pass(ModuleGrace)
	if err := s.c.DeleteWorker(t.Context(), testAccount, "w"); err != nil {
		t.Fatal(err)
	}
	s.pass(ModuleGrace - time.Microsecond)
	if s.sweep(); !s.has(used) || s.has("idle") {
		t.Error("the module of a deleted Worker is swept before its time")
	}
	s.pass(time.Microsecond)
	if s.sweep(); s.has(used) || s.has("idle") {
		t.Error("the module of a deleted Worker stays")
	}
	_, _, err := s.c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: v.Manifest, Create: true})
	wantError(t, err, ErrConflict)
}

// A module is put again while it is swept, and by a process whose clock is behind
// that of the one that swept it: it is there.
func TestModulePutWhileItIsSwept(t *testing.T) {
	s := newSweeper(t)
	putModules(t, s.c, "a")
	s.pass(ModuleGrace)
	behind := newOutlet()
	behind.Faulty = s.out.Faulty
	behind.stamp = kv.NewStamper(2, func() time.Time { return s.c.now().Add(-5 * time.Second) })
	s.sweep()
	if s.has("a") {
		t.Fatal("it was not swept")
	}
	s.c.UseWorkers(behind, behind.stamp)
	putModules(t, s.c, "a")
	if !s.has("a") {
		t.Error("the tombstone won over what was put after it")
	}

	// Between the note and the tombstone.
	s.pass(ModuleGrace)
	at := stampOf(t, s.out)
	before := stored(s.c.now().Add(-ModuleGrace))
	doomed, err := s.c.doomModules(t.Context(), at, before)
	if err != nil || len(doomed) != 1 {
		t.Fatal(doomed, err)
	}
	putModules(t, s.c, "a")
	if err := s.out.Put(t.Context(), moduleRef(doomed[0]), kv.Tombstone(at)); err != nil {
		t.Fatal(err)
	}
	if err := s.c.noteGone(t.Context(), at, before, doomed); err != nil {
		t.Fatal(err)
	}
	if !s.has("a") {
		t.Error("a module that was put during the sweep is gone")
	}
	if _, _, err := s.c.AddVersion(t.Context(), testAccount, "w", NewVersion{Create: true,
		Manifest: Manifest{Main: "a", Modules: []WorkerModule{{Name: "a", Hash: doomed[0], Size: 1}}}}); err != nil {
		t.Error(err)
	}
	s.pass(2 * ModuleGrace)
	if s.sweep(); !s.has("a") {
		t.Error("a module that a version has was swept")
	}
}

// A sweep that waits for a transaction in which a version gets the module leaves
// the module alone.
func TestSweepWaitsForAVersion(t *testing.T) {
	s := newSweeper(t)
	_, v := addVersion(t, s.c, "w", true)
	if err := s.c.DeleteWorker(t.Context(), testAccount, "w"); err != nil {
		t.Fatal(err)
	}
	addVersion(t, s.c, "other", true)
	s.pass(ModuleGrace)
	before := stored(s.c.now().Add(-ModuleGrace))
	at := stampOf(t, s.out)
	tx, err := s.c.db.write.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.c.LatestVersion(t.Context(), testAccount, "other")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.c.holdModules(t.Context(), tx, other.ID, &v.Manifest); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		doomed []string
		err    error
	}
	done := make(chan answer)
	go func() {
		doomed, err := s.c.doomModules(t.Context(), at, before)
		done <- answer{doomed, err}
	}()
	if os.Getenv(serverURL) != "" { // on SQLite it waits for its turn to write
		eventually(t, "the sweep waits", func() bool {
			var waiting int
			err := s.c.db.read.QueryRowContext(t.Context(), `select count(*) from pg_stat_activity where wait_event_type = 'Lock'
				and query like 'update worker_modules%'`).Scan(&waiting)
			return err == nil && waiting > 0
		})
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if a := <-done; a.err != nil || len(a.doomed) != 0 {
		t.Errorf("%q, %v", a.doomed, a.err)
	}
}

// A sweep that ends half way is done again.
func TestSweepThatIsCutOff(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "done but not acknowledged": kvtest.Unacknowledged} {
		t.Run(name, func(t *testing.T) {
			s := newSweeper(t)
			putModules(t, s.c, "a")
			s.pass(ModuleGrace)
			s.out.fault.Store(int64(fault))
			if err := s.c.sweepModules(t.Context()); err == nil {
				t.Fatal("no error")
			}
			s.out.fault.Store(int64(kvtest.None))
			s.sweep()
			if s.has("a") || s.notes() != 1 {
				t.Errorf("stored %v, %d notes", s.has("a"), s.notes())
			}
			s.pass(ModuleGrace)
			if s.sweep(); s.notes() != 0 {
				t.Errorf("%d notes", s.notes())
			}
		})
	}
}

// However Workers come and go: what a version has is stored, and in the end
// nothing else is.
func TestModulesAtRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSweeper(t)
	content := func() string { return fmt.Sprint("module ", rng.IntN(12)) }
	for range 150 {
		s.pass(time.Duration(rng.Int64N(int64(ModuleGrace / 4))))
		switch rng.IntN(6) {
		case 0, 1:
			name := fmt.Sprint("w", rng.IntN(4))
			w, err := s.c.Worker(t.Context(), testAccount, name)
			if err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			if _, _, err := s.c.AddVersion(t.Context(), testAccount, name, NewVersion{Manifest: manifestOf(t, s.c, content()), Base: w.LatestID, Create: true}); err != nil {
				t.Fatal(err)
			}
		case 2:
			if err := s.c.DeleteWorker(t.Context(), testAccount, fmt.Sprint("w", rng.IntN(4))); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		case 3:
			putModules(t, s.c, content(), content())
		default:
			s.sweep()
		}
		for _, hash := range s.held() {
			if _, err := s.c.ModuleContent(t.Context(), hash); err != nil {
				t.Fatalf("a module that a version has: %v", err)
			}
		}
	}
	for range 3 {
		s.pass(ModuleGrace)
		s.sweep()
	}
	var live []string
	for _, key := range liveWorkers(t, s.out) {
		live = append(live, key[len(modulePrefix):])
	}
	if held := s.held(); !slices.Equal(live, held) || s.notes() != len(held) {
		t.Errorf("%d modules are stored, %d are noted, %d are held", len(live), s.notes(), len(held))
	}
}

// held are the hashes of the modules that versions have.
func (s *sweeper) held() []string {
	s.t.Helper()
	list, err := keysOf(s.t.Context(), s.c.db.read, func(hash string) string { return hash }, `select distinct hash from worker_version_modules order by hash`)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// The janitor sweeps them.
func TestJanitorSweepsModules(t *testing.T) {
	s := newSweeper(t)
	putModules(t, s.c, "a")
	s.pass(ModuleGrace)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- NewJanitor(s.c, s.out.memory, nil).Run(ctx) }()
	eventually(t, "the sweep", func() bool { return !bytes.Contains(fmt.Append(nil, liveWorkers(t, s.out)), []byte(modulePrefix)) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
