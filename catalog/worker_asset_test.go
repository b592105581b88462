package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv/kvtest"
)

// hashOf is a hash as clients give files.
func assetHashOf(n int) string { return fmt.Sprintf("%032x", n) }

func begin(t testing.TB, c *Catalog, account string, files AssetSet) (set string, missing []string) {
	t.Helper()
	set, missing, err := c.BeginAssets(t.Context(), account, files)
	if err != nil {
		t.Fatal(err)
	}
	return set, missing
}

func putAsset(t testing.TB, c *Catalog, account, set, hash, content string) bool {
	t.Helper()
	complete, err := c.PutAssets(t.Context(), account, set, []AssetContent{{hash, "text/html", []byte(content)}})
	if err != nil {
		t.Fatal(err)
	}
	return complete
}

func TestAssets(t *testing.T) {
	c, _ := newCatalog(t)
	_, _, err := c.BeginAssets(t.Context(), testAccount, nil)
	wantError(t, err, ErrUnavailable)
	_, err = c.PutAssets(t.Context(), testAccount, "", nil)
	wantError(t, err, ErrUnavailable)
	out := useWorkers(t, c)
	files := AssetSet{"/a": {assetHashOf(1), 1}, "/b": {assetHashOf(2), 2}, "/again": {assetHashOf(1), 1}}
	set, missing := begin(t, c, testAccount, files)
	if !slices.Equal(missing, []string{assetHashOf(1), assetHashOf(2)}) {
		t.Errorf("missing %q", missing)
	}
	if got, err := c.AssetSet(t.Context(), testAccount, set); err != nil || len(got) != 3 || got["/b"] != files["/b"] {
		t.Errorf("%v, %v", got, err)
	}
	_, err = c.AssetSet(t.Context(), "another", set)
	wantError(t, err, ErrNotFound)

	m := Manifest{Assets: &WorkerAssets{Set: set}}
	if putAsset(t, c, testAccount, set, assetHashOf(1), "a") {
		t.Error("complete without b")
	}
	if complete, err := c.AssetsComplete(t.Context(), set); err != nil || complete {
		t.Errorf("%v, %v", complete, err)
	}
	_, _, err = c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true})
	wantError(t, err, ErrInvalid)
	if !strings.Contains(err.Error(), assetHashOf(2)) {
		t.Errorf("%v does not name the file", err)
	}
	if !putAsset(t, c, testAccount, set, assetHashOf(2), "bb") {
		t.Error("not complete")
	}
	writes := workerChanges(t, out)
	if putAsset(t, c, testAccount, set, assetHashOf(2), "bb"); workerChanges(t, out) != writes {
		t.Error("a file that is stored is written again")
	}
	_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true, Deploy: true})
	if err != nil || v.Manifest.Assets.Set != set {
		t.Fatal(v, err)
	}
	if again, missing := begin(t, c, testAccount, files); again != set || len(missing) != 0 {
		t.Errorf("%q is missing of what is stored", missing)
	}
	// Nobody learns by a hash what another account has.
	if _, missing := begin(t, c, "another", files); len(missing) != 2 {
		t.Errorf("%q is missing in another account", missing)
	}

	r := NewWorkerReplica(out, ReplicaOptions{})
	if got, err := r.Assets(t.Context(), testAccount, set); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	_, err = r.Assets(t.Context(), "another", set)
	wantError(t, err, ErrNotFound)
	if got, err := r.Asset(t.Context(), testAccount, assetHashOf(2)); err != nil || string(got.Content) != "bb" || got.Type != "text/html" {
		t.Errorf("%v, %v", got, err)
	}
	_, err = r.Asset(t.Context(), "another", assetHashOf(2))
	wantError(t, err, ErrNotFound)
}

// TestAssetsInAnotherStore: a store that is another than it was, as after a loss,
// gets the files again, and files beyond a page are found.
func TestAssetsInAnotherStore(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	files := AssetSet{"/a": {assetHashOf(1), 1}, "/b": {assetHashOf(2), 1}}
	set, _ := begin(t, c, testAccount, files)
	putAsset(t, c, testAccount, set, assetHashOf(1), "a")
	putAsset(t, c, testAccount, set, assetHashOf(2), "b")
	other := newOutlet()
	c.UseWorkers(other, other.stamp)
	set, missing := begin(t, c, testAccount, files)
	if len(missing) != 2 {
		t.Errorf("missing %q", missing)
	}
	putAsset(t, c, testAccount, set, assetHashOf(1), "a")
	if _, missing := begin(t, c, testAccount, files); !slices.Equal(missing, []string{assetHashOf(2)}) {
		t.Errorf("missing %q", missing)
	}
	other.reads.Store(int64(kvtest.Refused))
	_, _, err := c.BeginAssets(t.Context(), testAccount, files)
	wantError(t, err, ErrUnavailable)
}

// TestAssetLimits: sets and files at their limits, and past them.
func TestAssetLimits(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	one := func(path, hash string, size int64) AssetSet { return AssetSet{path: {hash, size}} }
	for name, files := range map[string]AssetSet{
		"no slash": one("a", assetHashOf(1), 1), "long": one("/"+strings.Repeat("a", 1024), assetHashOf(1), 1), "control": one("/\n", assetHashOf(1), 1),
		"no hash": one("/a", "x", 1), "large": one("/a", assetHashOf(1), MaxAssetBytes+1), "negative": one("/a", assetHashOf(1), -1),
		"sizes": {"/a": {assetHashOf(1), 1}, "/b": {assetHashOf(1), 2}},
	} {
		if _, _, err := c.BeginAssets(t.Context(), testAccount, files); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	begin(t, c, testAccount, one("/"+strings.Repeat("a", 1023), assetHashOf(1), MaxAssetBytes))
	many := AssetSet{}
	for i := range MaxAssets {
		many[fmt.Sprintf("/%d", i)] = Asset{assetHashOf(i), int64(i)}
	}
	set, missing := begin(t, c, testAccount, many)
	if len(missing) != MaxAssets {
		t.Errorf("%d missing", len(missing))
	}
	many["/x"] = Asset{assetHashOf(0), 0}
	_, _, err := c.BeginAssets(t.Context(), testAccount, many)
	wantError(t, err, ErrInvalid)
	content := make([]byte, MaxAssetBytes+1)
	put := func(f AssetContent) error {
		_, err := c.PutAssets(t.Context(), testAccount, set, []AssetContent{f})
		return err
	}
	if err := put(AssetContent{assetHashOf(1), strings.Repeat("x", MaxAssetTypeBytes), content[1:]}); err != nil {
		t.Error(err)
	}
	wantError(t, put(AssetContent{assetHashOf(2), "", content}), ErrInvalid)
	wantError(t, put(AssetContent{assetHashOf(2), strings.Repeat("x", MaxAssetTypeBytes+1), nil}), ErrInvalid)
	_, _, err = c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: Manifest{Assets: &WorkerAssets{Set: "x"}}, Create: true})
	wantError(t, err, ErrInvalid)
}

// TestAssetsAreSwept: files are there as long as the set of a version has them, and
// an hour longer.
func TestAssetsAreSwept(t *testing.T) {
	s := newSweeper(t)
	r := NewWorkerReplica(s.out, ReplicaOptions{})
	has := func(n int) bool {
		t.Helper()
		_, err := r.Asset(t.Context(), testAccount, assetHashOf(n))
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	set, _ := begin(t, s.c, testAccount, AssetSet{"/a": {assetHashOf(1), 1}, "/b": {assetHashOf(2), 1}})
	putAsset(t, s.c, testAccount, set, assetHashOf(1), "a")
	putAsset(t, s.c, testAccount, set, assetHashOf(2), "b")
	idle, _ := begin(t, s.c, testAccount, AssetSet{"/b": {assetHashOf(2), 1}, "/c": {assetHashOf(3), 1}})
	putAsset(t, s.c, testAccount, idle, assetHashOf(3), "c")
	if _, _, err := s.c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: Manifest{Assets: &WorkerAssets{Set: set}}, Create: true}); err != nil {
		t.Fatal(err)
	}
	s.pass(ModuleGrace - time.Microsecond)
	if s.sweep(); !has(1) || !has(2) || !has(3) {
		t.Error("swept before its time")
	}
	s.pass(time.Microsecond)
	if s.sweep(); !has(1) || !has(2) || has(3) {
		t.Error("what no version has stays, or what one has goes")
	}
	if _, missing := begin(t, s.c, testAccount, AssetSet{"/b": {assetHashOf(2), 1}, "/c": {assetHashOf(3), 1}}); !slices.Equal(missing, []string{assetHashOf(3)}) {
		t.Errorf("missing %q", missing)
	}
	if !putAsset(t, s.c, testAccount, idle, assetHashOf(3), "c") || !has(3) {
		t.Error("a file that was swept cannot be put again")
	}
	if err := s.c.DeleteWorker(t.Context(), testAccount, "w"); err != nil {
		t.Fatal(err)
	}
	s.pass(ModuleGrace)
	if s.sweep(); has(1) || has(2) || has(3) {
		t.Error("the files of a deleted Worker stay")
	}
	_, err := s.c.PutAssets(t.Context(), testAccount, set, []AssetContent{{assetHashOf(1), "", nil}})
	wantError(t, err, ErrNotFound)
}

// A store that fails, before or after it was done, fails the call; the next is
// right.
func TestAssetsAndAFailingStore(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "done but not acknowledged": kvtest.Unacknowledged} {
		c, _ := newCatalog(t)
		out := useWorkers(t, c)
		set, _ := begin(t, c, testAccount, AssetSet{"/a": {assetHashOf(1), 1}})
		out.fault.Store(int64(fault))
		_, err := c.PutAssets(t.Context(), testAccount, set, []AssetContent{{assetHashOf(1), "", []byte("a")}})
		wantError(t, err, ErrUnavailable)
		if complete, err := c.AssetsComplete(t.Context(), set); err != nil || complete {
			t.Errorf("%s: %v, %v", name, complete, err)
		}
		out.fault.Store(int64(kvtest.None))
		if !putAsset(t, c, testAccount, set, assetHashOf(1), "a") {
			t.Errorf("%s: not complete", name)
		}
	}
}

func TestSignatures(t *testing.T) {
	line := func(digit string) string { return strings.Repeat(digit, 64) }
	keys, older, other := testKeys(t, line("a"), line("b")), testKeys(t, line("b")), testKeys(t, line("c"))
	text := []byte("text")
	for name, c := range map[string]struct {
		signature []byte
		want      bool
	}{"own": {keys.Sign(text), true}, "of the older key": {older.Sign(text), true}, "of another": {other.Sign(text), false},
		"of another text": {keys.Sign([]byte("x")), false}, "none": {nil, false}} {
		if keys.Signed(text, c.signature) != c.want {
			t.Error(name)
		}
	}
}

func TestAssetSetIsCanonical(t *testing.T) {
	a, _ := json.Marshal(AssetSet{"/a": {assetHashOf(1), 1}, "/b": {assetHashOf(2), 2}})
	if want := `{"/a":{"hash":"` + assetHashOf(1) + `","size":1},"/b":{"hash":"` + assetHashOf(2) + `","size":2}}`; string(a) != want {
		t.Errorf("%s, want %s", a, want)
	}
}
