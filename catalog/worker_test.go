package catalog

import (
	"fmt"
	"testing"
)

// useWorkers gives a catalog a store of its own for modules.
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

// deploy adds a version to a Worker and deploys it.
func deploy(t testing.TB, c *Catalog, name string) (Worker, WorkerVersion) {
	t.Helper()
	w, err := c.Worker(t.Context(), testAccount, name)
	if err != nil {
		wantError(t, err, ErrWorkerNotFound)
	}
	w, v, err := c.AddVersion(t.Context(), testAccount, name, NewVersion{Manifest: manifestOf(t, c, fmt.Sprint("export ", name, w.Latest)),
		Base: w.LatestID, Create: true, Deploy: true, Source: "wrangler", AuthorEmail: "owner@example.com",
		Annotations: map[string]string{"workers/triggered_by": "upload"}})
	if err != nil {
		t.Fatal(err)
	}
	return w, v
}

func TestWorkerIsWhatWasAdded(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	w, v := deploy(t, c, "hello")
	if got, err := c.Worker(t.Context(), testAccount, "hello"); err != nil || fmt.Sprintf("%+v", *got.Deployment) != fmt.Sprintf("%+v", *w.Deployment) || got.LatestID != v.ID || got.Latest != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	w, v2 := deploy(t, c, "hello")
	if w.Latest != 2 || w.Deployment.Versions[0] != (Share{v2.ID, 100}) {
		t.Errorf("%+v", w)
	}
	list, total, err := c.Versions(t.Context(), testAccount, "hello", 0, 0)
	if err != nil || total != 2 || list[0].ID != v2.ID || list[1].ID != v.ID {
		t.Errorf("%+v, %d, %v", list, total, err)
	}
	if fmt.Sprintf("%+v", list[0]) != fmt.Sprintf("%+v", v2) {
		t.Errorf("got %+v\nwant %+v", list[0], v2)
	}
	if d, err := c.Deployments(t.Context(), testAccount, "hello", 0); err != nil || len(d) != 2 || d[0].Versions[0].VersionID != v2.ID {
		t.Errorf("%+v, %v", d, err)
	}
	if err := c.DeleteWorker(t.Context(), testAccount, "hello"); err != nil {
		t.Error(err)
	}
	_, err = c.Worker(t.Context(), testAccount, "hello")
	wantError(t, err, ErrWorkerNotFound)
}

func TestWorkerReplicaEqualsCatalog(t *testing.T) {
	c, _ := newCatalog(t)
	out := useWorkers(t, c)
	p := out.publisher(c)
	r := NewWorkerReplica(out, ReplicaOptions{})
	w, v := deploy(t, c, "hello")
	for range 2 {
		got, err := r.Worker(t.Context(), testAccount, "hello")
		if err != nil || got.ID != w.ID || got.Versions[0].VersionID != v.ID {
			t.Fatalf("%+v, %v", got, err)
		}
		m, err := r.Manifest(t.Context(), v.ID)
		if err != nil || fmt.Sprintf("%+v", *m) != fmt.Sprintf("%+v", v.Manifest) {
			t.Fatalf("%+v, %v", m, err)
		}
		if content, err := r.Module(t.Context(), m.Modules[0].Hash); err != nil || string(content) != "export hello0" {
			t.Fatalf("%q, %v", content, err)
		}
		compare(t, p)
	}
	name, err := c.Subdomain(t.Context(), testAccount)
	if err != nil || name != "dev" {
		t.Fatal(name, err)
	}
	if account, err := r.Subdomain(t.Context(), name); err != nil || account != testAccount {
		t.Error(account, err)
	}
}
