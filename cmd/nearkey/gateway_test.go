package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/gateway"
	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/observe"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/proxy"
	"github.com/nearkey/nearkey/store/disk"
	ram "github.com/nearkey/nearkey/store/memory"
)

func openTestJournal(t *testing.T, dir string) *disk.Journal {
	t.Helper()
	journal, err := disk.OpenJournal(dir, disk.Options{MinFreeBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = journal.Close() })
	return journal
}

// background runs something until the test ends, or until what it returns is called.
func background(t *testing.T, run func(context.Context) error) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return end
}

// TestMark: after a restart no version is stamped below one that was seen, whatever
// the clock says.
func TestMark(t *testing.T) {
	dir := t.TempDir()
	journal := openTestJournal(t, dir)
	m, err := loadMark(journal)
	if err != nil || m.start != (kv.Version{}) {
		t.Fatalf("a new mark is %s, %v", m.start, err)
	}
	end := background(t, m.Run)
	seen := kv.NewVersion(time.Now().UnixNano(), 7, 7)
	m.see([]kv.Change{{Version: seen}, {Version: kv.NewVersion(5, 1, 1)}})
	nearkeytest.Until(t, "the mark is kept", func() bool { return m.kept.Load() > seen.UnixNano() })
	first := m.kept.Load()
	m.see([]kv.Change{{Version: kv.NewVersion(first-1, 1, 1)}}) // need not be kept
	m.see([]kv.Change{{Version: kv.NewVersion(first+1, 1, 1)}})
	nearkeytest.Until(t, "the mark is kept anew", func() bool { return m.kept.Load() > first+1 })
	end()
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := loadMark(openTestJournal(t, dir))
	if err != nil || again.start.UnixNano() != m.kept.Load() {
		t.Fatalf("opened again the mark is %s, %v", again.start, err)
	}
	back := kv.NewStamper(0, func() time.Time { return time.Unix(0, seen.UnixNano()).Add(-5 * time.Second) })
	back.Observe(again.start)
	if v, err := back.Stamp(); err != nil || v.Compare(seen) <= 0 {
		t.Errorf("stamped %s after %s with a clock that was set back (%v)", v, seen, err)
	}
}

func TestMarkThatIsDamaged(t *testing.T) {
	journal := openTestJournal(t, t.TempDir())
	if err := journal.Apply(t.Context(), []disk.JournalEntry{{Key: keyMark, Value: []byte("x")}}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := loadMark(journal); err == nil {
		t.Error("a damaged mark is believed")
	}
}

// TestEntries: the journal is one that a gateway relies on, beside the mark.
func TestEntries(t *testing.T) {
	journal := openTestJournal(t, t.TempDir())
	e := entries{journal}
	if err := journal.Apply(t.Context(), []disk.JournalEntry{{Key: keyMark, Value: []byte("7")}}, true); err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(t.Context(), []gateway.Entry{{Key: "q/1", Value: []byte{}}, {Key: "q/2", Value: []byte("v")}, {Key: "q/3"}}, true); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := e.Load(func(e gateway.Entry) error { got = append(got, e.Key+"="+string(e.Value)); return nil })
	if want := []string{"q/1=", "q/2=v"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

func openTestCatalog(t *testing.T) (*catalog.Catalog, catalog.Account) {
	t.Helper()
	cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cat.Close() })
	account, err := cat.EnsureRoot(t.Context(), catalog.Root{Token: strings.Repeat("r", 40), Email: "o@h", Key: strings.Repeat("k", 40)})
	if err != nil {
		t.Fatal(err)
	}
	return cat, account
}

func TestAckOf(t *testing.T) {
	cat, account := openTestCatalog(t)
	acks, err := catalog.NewAcks(t.Context(), cat, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n, err := cat.CreateNamespace(t.Context(), account.ID, "n", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		chosen    catalog.Ack
		otherwise string
		want      bool
	}{
		{catalog.AckDefault, ackFirst, false}, {catalog.AckDefault, ackBoth, true},
		{catalog.AckFirst, ackBoth, false}, {catalog.AckBoth, ackFirst, true},
	} {
		if err := acks.Set(t.Context(), n.ID, c.chosen); err != nil {
			t.Fatal(err)
		}
		if got := ackOf(acks, c.otherwise)(n.ID); got != c.want {
			t.Errorf("%s, by default %s: both %v", c.chosen, c.otherwise, got)
		}
	}
}

func TestOnlyTheRootTokenAdministers(t *testing.T) {
	cat, account := openTestCatalog(t)
	_, secret, err := cat.CreateToken(t.Context(), catalog.Token{AccountID: account.ID, Name: "all", Scopes: []catalog.Scope{{AccountID: account.ID, Permission: catalog.Write}}})
	if err != nil {
		t.Fatal(err)
	}
	config := far{}.administration(cat, nil)
	for token, want := range map[string]bool{strings.Repeat("r", 40): true, secret: false} {
		if root, err := config.IsRoot(t.Context(), token); err != nil || root != want {
			t.Errorf("%.5s…: %v, %v", token, root, err)
		}
	}
	if _, err := config.IsRoot(t.Context(), "unknown"); !errors.Is(err, catalog.ErrUnauthenticated) {
		t.Errorf("an unknown token: %v", err)
	}
	if config.Gateway != nil || config.Shards != nil || config.Acks != nil {
		t.Error("a server without providers has something to administer")
	}
	if root, err := isToken("the token")(t.Context(), "the token"); !root || err != nil {
		t.Errorf("the token of a proxy: %v, %v", root, err)
	}
	if root, _ := isToken("the token")(t.Context(), "the token "); root {
		t.Error("another token administers a proxy")
	}
}

// TestAdministeredGateway: what the administration says and does is what the
// gateway knows and does.
func TestAdministeredGateway(t *testing.T) {
	ctx := t.Context()
	a, b := ram.New(), ram.New()
	g, err := gateway.New([]gateway.Provider{{Name: "a", Store: a}, {Name: "b", Store: b}}, gateway.Options{Journal: entries{openTestJournal(t, t.TempDir())}, Deadline: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	gatewayMetrics(observe.New(), g)
	cat, _ := openTestCatalog(t)
	acks, err := catalog.NewAcks(ctx, cat, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	config := far{gateway: g, acks: acks}.administration(cat, nil)
	background(t, g.Run)
	nearkeytest.Until(t, "both providers are believed", func() bool {
		r := config.Gateway.Repair()
		return len(r.Providers) == 2 && r.Providers[0].Trusted && r.Providers[1].Trusted && !r.Crawl.Running
	})
	ns := kv.NamespaceID{1}
	for i := range 10 {
		rec := kv.Record{Version: kv.NewVersion(int64(1000+i), 1, 1), Value: []byte("v")}
		if err := a.Put(ctx, kv.Ref{Namespace: ns, Key: fmt.Sprint(i)}, rec); err != nil {
			t.Fatal(err)
		}
	}
	var last admin.VerifyProgress
	drift, err := config.Gateway.Verify(ctx, admin.VerifyOptions{}, func(p admin.VerifyProgress) { last = p })
	if err != nil || drift.Missing != 10 || drift.Total() != 10 || drift.PerProvider["b"] != 10 || len(drift.Examples) != 10 {
		t.Errorf("verified: %+v, %v", drift, err)
	}
	if e := drift.Examples[0]; e.Namespace != ns.String() || e.Versions["b"] != "" || moment(e.Versions["a"], "") != "1970-01-01T00:00:00.000Z" {
		t.Errorf("an example: %+v", e)
	}
	if last.Namespace != ns.String() || last.Drift.Compared != 10 || last.Drift.Examples != nil {
		t.Errorf("progress: %+v", last)
	}
	if err := config.Gateway.Crawl(ctx); err != nil {
		t.Fatal(err)
	}
	nearkeytest.Until(t, "what differed is repaired", func() bool { return config.Gateway.Repair().Queue.Depth == 0 })
	if r := config.Gateway.Repair(); r.Crawl.Drift != 10 || r.Crawl.Finished == nil || r.Providers[1].Repaired != 10 {
		t.Errorf("after a crawl: %+v", r)
	}
	change := func(name, change string, how admin.ProviderRequest) string {
		if err := config.Providers.Change(ctx, name, change, how); err != nil {
			return err.Error()
		}
		i := slices.IndexFunc(config.Gateway.Repair().Providers, func(p admin.Provider) bool { return p.Name == name })
		return config.Gateway.Repair().Providers[i].State
	}
	if got := change("b", admin.ChangeFill, admin.ProviderRequest{Wipe: true}); got != "filling" {
		t.Errorf("fill: %s", got)
	}
	nearkeytest.Until(t, "b is filled", func() bool { p := config.Gateway.Repair().Providers[1]; return p.Filled && p.Queued == 0 })
	if got := change("b", admin.ChangePromote, admin.ProviderRequest{}); got != "active" {
		t.Errorf("promote: %s", got)
	}
	if got := change("b", admin.ChangeDistrust, admin.ProviderRequest{}); got != "active" {
		t.Errorf("distrust: %s", got)
	}
	if got := change("a", admin.ChangeRemove, admin.ProviderRequest{Force: true}); got != "removed" {
		t.Errorf("remove: %s", got)
	}
	if got := change("b", admin.ChangeRemove, admin.ProviderRequest{Force: true}); !strings.Contains(got, "only active") {
		t.Errorf("remove the last: %s", got)
	}
}

func TestAdministeredShards(t *testing.T) {
	shards, err := proxy.NewShards([]proxy.Cluster{{Name: "a1", Weight: 1, Store: ram.New()}, {Name: "a2", Weight: 0.001, Store: ram.New()}},
		proxy.ShardsOptions{Keeper: proxy.FileKeeper(filepath.Join(t.TempDir(), "table")), Logger: slog.New(slog.DiscardHandler), DropAfter: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	shardsMetrics(observe.New(), "a", shards)
	background(t, shards.Run)
	d := divided{shards}
	nearkeytest.Until(t, "there is a table", func() bool { return d.Table().Epoch > 0 })
	slot, bits, ns := 7, 1, kv.NamespaceID{1}
	for change, r := range map[string]admin.ShardsRequest{
		admin.ChangeMove: {Slot: &slot, To: "a2"}, admin.ChangeSpread: {Namespace: ns.String(), Bits: &bits},
	} {
		if err := d.Change(change, r); err != nil {
			t.Errorf("%s: %v", change, err)
		}
	}
	nearkeytest.Until(t, "all has moved", func() bool { return len(d.Table().Moves) == 0 })
	if got := d.Table(); len(got.Spread) != 1 || got.Spread[0].Buckets != 2 || got.Slots != 4096 || !got.Clusters[0].Up {
		t.Errorf("the table is %+v", got)
	}
	if err := d.Change(admin.ChangeSpread, admin.ShardsRequest{Namespace: "x", Bits: &bits}); err == nil {
		t.Error("a namespace without an id is spread")
	}
	if err := d.Change(admin.ChangeRebalance, admin.ShardsRequest{}); err != nil {
		t.Error(err)
	}
	if err := d.Change(admin.ChangeDrain, admin.ShardsRequest{Cluster: "a2"}); err != nil {
		t.Error(err)
	}
	nearkeytest.Until(t, "a2 is drained", func() bool { table := d.Table(); return len(table.Moves) == 0 && table.Clusters[1].Slots == 0 })
}

func TestAnyUp(t *testing.T) {
	up, down := proxy.ClusterStatus{Up: true}, proxy.ClusterStatus{Error: "gone"}
	for _, c := range []struct {
		status proxy.ShardsStatus
		ready  bool
	}{
		{proxy.ShardsStatus{Clusters: []proxy.ClusterStatus{down, up}}, true},
		{proxy.ShardsStatus{Clusters: []proxy.ClusterStatus{down, down}}, false},
		{proxy.ShardsStatus{Clusters: []proxy.ClusterStatus{up}, Refusal: "an older table"}, false},
	} {
		if err := anyUp(c.status); (err == nil) != c.ready || err != nil && !errors.Is(err, kv.ErrUnavailable) {
			t.Errorf("%+v: %v", c.status, err)
		}
	}
}
