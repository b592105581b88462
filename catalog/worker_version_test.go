package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestManifestLimits(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	base := manifestOf(t, c, "x")
	hash := base.Modules[0].Hash
	with := func(change func(m *Manifest)) Manifest {
		m := base
		m.Modules = slices.Clone(base.Modules)
		change(&m)
		return m
	}
	modules := func(n int) Manifest {
		return with(func(m *Manifest) {
			for i := len(m.Modules); i < n; i++ {
				m.Modules = append(m.Modules, WorkerModule{Name: fmt.Sprint(i), Hash: hash})
			}
		})
	}
	bindings := func(n int, kind, sealed string) Manifest {
		return with(func(m *Manifest) {
			for i := range n {
				m.Bindings = append(m.Bindings, WorkerBinding{Name: fmt.Sprint(i), Type: kind, Sealed: sealed})
			}
		})
	}
	sized := func(size int) Manifest {
		return with(func(m *Manifest) {
			m.Bindings = []WorkerBinding{{Name: "A", Type: "plain_text", Text: "x"}}
			text, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			m.Bindings[0].Text = strings.Repeat("x", size-len(text)+1)
		})
	}
	last := ""
	for _, tt := range []struct {
		what string
		m    Manifest
		want error
	}{
		{"all modules", modules(MaxModules), nil},
		{"one module too many", modules(MaxModules + 1), ErrInvalid},
		{"all bindings", bindings(MaxBindings, "json", ""), nil},
		{"one binding too many", bindings(MaxBindings+1, "json", ""), ErrInvalid},
		{"all secrets", bindings(MaxSecrets, "secret_text", "v1.x"), nil},
		{"one secret too many", bindings(MaxSecrets+1, "secret_key", "v1.x"), ErrInvalid},
		{"as large as may be", sized(MaxManifestBytes), nil},
		{"one byte too large", sized(MaxManifestBytes + 1), ErrInvalid},
		{"the largest module", with(func(m *Manifest) { m.Modules[0].Size = MaxModuleBytes }), nil},
		{"a larger module", with(func(m *Manifest) { m.Modules[0].Size = MaxModuleBytes + 1 }), ErrInvalid},
		{"no main", with(func(m *Manifest) { m.Main = "" }), ErrInvalid},
		{"another main", with(func(m *Manifest) { m.Main = "other.js" }), ErrInvalid},
		{"a module twice", with(func(m *Manifest) { m.Modules = append(m.Modules, m.Modules[0]) }), ErrInvalid},
		{"a module without a name", with(func(m *Manifest) { m.Modules = append(m.Modules, WorkerModule{Hash: hash}) }), ErrInvalid},
		{"a name that is no UTF-8", with(func(m *Manifest) { m.Modules = append(m.Modules, WorkerModule{Name: "\xff", Hash: hash}) }), ErrInvalid},
		{"no hash", with(func(m *Manifest) { m.Modules[0].Hash = hash[1:] }), ErrInvalid},
		{"a hash in upper case", with(func(m *Manifest) { m.Modules[0].Hash = strings.ToUpper(hash) }), ErrInvalid},
		{"a module that is not stored", with(func(m *Manifest) { m.Modules[0].Hash = hashModule([]byte("y")) }), ErrConflict},
		{"a binding twice", with(func(m *Manifest) { m.Bindings = []WorkerBinding{{Name: "A", Type: "x"}, {Name: "A", Type: "y"}} }), ErrInvalid},
		{"a binding without a name", with(func(m *Manifest) { m.Bindings = []WorkerBinding{{Type: "x"}} }), ErrInvalid},
		{"a binding without a type", with(func(m *Manifest) { m.Bindings = []WorkerBinding{{Name: "A"}} }), ErrInvalid},
		{"a text that is no UTF-8", with(func(m *Manifest) { m.Bindings = []WorkerBinding{{Name: "A", Type: "plain_text", Text: "\xff"}} }), ErrInvalid},
		{"JSON that is none", with(func(m *Manifest) { m.Bindings = []WorkerBinding{{Name: "A", Type: "json", JSON: []byte(`{`)}} }), ErrInvalid},
	} {
		_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: tt.m, Base: last, Create: true})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.want)
		}
		if err == nil {
			last = v.ID
		}
	}
	for size, want := range map[int]error{MaxAnnotationBytes: nil, MaxAnnotationBytes + 1: ErrInvalid} {
		annotations := map[string]string{"workers/message": strings.Repeat("m", size-len("workers/message"))}
		_, err := c.AddDeployment(t.Context(), testAccount, "w", Deployment{Versions: []Share{{last, 100}}, Annotations: annotations})
		if !errors.Is(err, want) {
			t.Errorf("annotations of %d bytes: %v, want %v", size, err, want)
		}
	}
	_, err := c.AddDeployment(t.Context(), testAccount, "w", Deployment{Versions: []Share{{last, 100}}, Annotations: map[string]string{"\xff": "x"}})
	wantError(t, err, ErrInvalid)
}

// Everything that a client may have sent comes back.
func TestManifestIsKept(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	m := manifestOf(t, c, "x")
	m.ServiceWorker, m.Flags, m.CPUMillis, m.UsageModel = true, []string{"nodejs_compat"}, 50, "standard"
	m.Placement, m.Other = []byte(`{"mode":"smart"}`), []byte(`{"limits":{"a":[1,2]},"x":"<&>"}`)
	m.Handlers, m.NamedHandlers, m.StartupMillis, m.Etag = []string{"fetch"}, []string{"A"}, 7, "abc"
	m.Bindings = []WorkerBinding{
		{Name: "T", Type: "plain_text", Text: "<é\x00>"}, {Name: "J", Type: "json", JSON: []byte(`{"a":[1.50,"<é>"]}`)},
		{Name: "K", Type: "kv_namespace", NamespaceID: strings.Repeat("a", 32)}, {Name: "S", Type: "service", Service: "o", Entrypoint: "E"},
		{Name: "W", Type: "wasm_module", Part: "index.js"}, {Name: "X", Type: "secret_key", Sealed: "v1.x"}, {Name: "V", Type: "version_metadata"},
	}
	_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Create: true, Source: "\xff", AuthorEmail: "a\x00"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Version(t.Context(), testAccount, "w", v.ID)
	if err != nil || got.Source != "\xff" || got.AuthorEmail != "a\x00" {
		t.Errorf("%+v, %v", got, err)
	}
	want, errWant := json.Marshal(m)
	have, errHave := json.Marshal(got.Manifest)
	if errors.Join(errWant, errHave) != nil || string(want) != string(have) {
		t.Errorf("got %s\nwant %s", have, want)
	}
}

func TestShares(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	_, a := addVersion(t, c, "w", false)
	_, b := addVersion(t, c, "w", false)
	_, foreign := addVersion(t, c, "other", false)
	for _, tt := range []struct {
		shares []Share
		want   error
	}{
		{[]Share{{a.ID, 100}}, nil},
		{[]Share{{a.ID, 33.333}, {b.ID, 66.667}}, nil},
		{[]Share{{a.ID, 0.000001}, {b.ID, 99.999999}}, nil},
		{[]Share{{a.ID, 0}, {b.ID, 100}}, nil},
		{nil, ErrShares},
		{[]Share{{a.ID, 99.9}}, ErrShares},
		{[]Share{{a.ID, 100.000001}}, ErrShares},
		{[]Share{{a.ID, 50}, {b.ID, 50.1}}, ErrShares},
		{[]Share{{a.ID, 50}, {a.ID, 50}}, ErrShares},
		{[]Share{{a.ID, -1}, {b.ID, 101}}, ErrShares},
		{[]Share{{a.ID, math.NaN()}, {b.ID, 100}}, ErrShares},
		{[]Share{{a.ID, math.Inf(1)}}, ErrShares},
		{[]Share{{a.ID, 50}, {b.ID, 25}, {foreign.ID, 25}}, ErrShares},
		{[]Share{{foreign.ID, 100}}, ErrVersionNotFound},
		{[]Share{{"none", 100}}, ErrVersionNotFound},
	} {
		d, err := c.AddDeployment(t.Context(), testAccount, "w", Deployment{Versions: tt.shares, Strategy: "percentage", Source: "api", AuthorID: "i", AuthorEmail: "e"})
		if !errors.Is(err, tt.want) || err == nil && (!slices.Equal(d.Versions, tt.shares) || d.Source != "api" || d.ID == "" || d.Created.IsZero()) {
			t.Errorf("%v: %+v, %v; want %v", tt.shares, d, err, tt.want)
		}
		list, err := c.Deployments(t.Context(), testAccount, "w", 1)
		if err != nil || tt.want == nil && !slices.Equal(list[0].Versions, tt.shares) {
			t.Errorf("%v: %+v, %v", tt.shares, list, err)
		}
	}
	if list, err := c.Deployments(t.Context(), testAccount, "w", 0); err != nil || len(list) != 4 {
		t.Errorf("%d deployments, %v", len(list), err)
	}
	if list, err := c.Deployments(t.Context(), testAccount, "other", 0); err != nil || len(list) != 0 {
		t.Errorf("%d deployments of a Worker that was never deployed, %v", len(list), err)
	}
}

// Of versions the newest are kept, and those that a deployment names; of
// deployments the newest.
func TestOldVersionsGo(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	out.publisher(c)
	m := manifestOf(t, c, "x")
	var ids []string
	add := func(deploy bool) {
		t.Helper()
		base := ""
		if len(ids) > 0 {
			base = ids[len(ids)-1]
		}
		_, v, err := c.AddVersion(t.Context(), testAccount, "w", NewVersion{Manifest: m, Base: base, Create: true, Deploy: deploy})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	add(true)
	for range MaxVersions {
		add(false)
	}
	there := func(i int, want bool) {
		t.Helper()
		_, err := c.Version(t.Context(), testAccount, "w", ids[i])
		if (err == nil) != want || err != nil && !errors.Is(err, ErrVersionNotFound) {
			t.Errorf("version %d: %v, want %v", i+1, err, want)
		}
		if published := workerRecords(t, out)[versionKey(ids[i])] != nil; published != want {
			t.Errorf("version %d is published: %v, want %v", i+1, published, want)
		}
	}
	there(0, true)
	there(1, true)
	add(false)
	there(0, true)
	there(1, false)
	there(2, true)
	list, total, err := c.Versions(t.Context(), testAccount, "w", 0, 1000)
	if err != nil || len(list) != MaxVersions || total != MaxVersions+1 || list[0].Number != MaxVersions+2 {
		t.Errorf("%d versions of %d, %v", len(list), total, err)
	}
	if list, _, err = c.Versions(t.Context(), testAccount, "w", MaxVersions, 1000); err != nil || len(list) != 1 || list[0].ID != ids[0] {
		t.Errorf("%+v, %v", list, err)
	}
	if list, _, err = c.Versions(t.Context(), testAccount, "w", -1, 2); err != nil || len(list) != 2 || list[0].ID != ids[len(ids)-1] {
		t.Errorf("%+v, %v", list, err)
	}

	deploy := func() {
		t.Helper()
		if _, err := c.AddDeployment(t.Context(), testAccount, "w", Deployment{Versions: []Share{{ids[len(ids)-1], 100}}}); err != nil {
			t.Fatal(err)
		}
	}
	for range MaxDeployments - 1 {
		deploy()
	}
	deployments, err := c.Deployments(t.Context(), testAccount, "w", 1000)
	if err != nil || len(deployments) != MaxDeployments || deployments[MaxDeployments-1].Versions[0].VersionID != ids[0] {
		t.Errorf("%d deployments, %v", len(deployments), err)
	}
	deploy()
	deployments, err = c.Deployments(t.Context(), testAccount, "w", 1000)
	if err != nil || len(deployments) != MaxDeployments || deployments[MaxDeployments-1].Versions[0].VersionID == ids[0] {
		t.Errorf("%d deployments after one more, %v", len(deployments), err)
	}
	add(false) // ids[0] is nowhere deployed any more
	there(0, false)
	if w, err := c.Worker(t.Context(), testAccount, "w"); err != nil || len(w.Deployment.Versions) != 1 {
		t.Errorf("%s, %v", plus(w), err)
	}
}
