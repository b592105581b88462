package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/backup"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/blob"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

// installation is a server with backups, and an archive.
type installation struct {
	t       *testing.T
	store   kv.Store
	catalog *catalog.Catalog
	stamp   *kv.Stamper
	account string
	handler *admin.Handler
	client  *client.Client
	archive *backup.Archive
}

func install(t *testing.T, store kv.Store) *installation {
	t.Helper()
	s := &installation{t: t, store: store, stamp: kv.NewStamper(1, nil), archive: backup.NewArchive(&blob.Memory{})}
	var err error
	s.catalog, err = catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	s.check(err)
	t.Cleanup(func() { _ = s.catalog.Close() })
	root, err := s.catalog.EnsureRoot(t.Context(), catalog.Root{Token: strings.Repeat("r", 40), Email: "a@example.com"})
	s.check(err)
	s.account = root.ID
	barrier := backup.NewBarrier(store)
	handler, address := serve(t, newWorld().config())
	admin.NewBackups(admin.BackupConfig{
		Barrier: barrier, Front: barrier, Catalog: s.catalog, Stamp: s.stamp, Account: root.ID, Retention: 24 * time.Hour, Version: "test",
	}).Register(handler)
	s.handler = handler
	s.client, err = client.New(client.Config{BaseURL: strings.TrimSuffix(address, "/nearkey/v1"), AccountID: root.ID, Token: rootToken, Attempts: 1})
	s.check(err)
	t.Cleanup(s.client.Close)
	return s
}

func (s *installation) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *installation) namespace(title string, keys ...string) kv.NamespaceID {
	s.t.Helper()
	n, err := s.catalog.CreateNamespace(s.t.Context(), s.account, title, "", 0)
	s.check(err)
	s.put(n.ID, keys...)
	return n.ID
}

func (s *installation) put(ns kv.NamespaceID, keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		v, err := s.stamp.Stamp()
		s.check(err)
		s.check(s.store.Put(s.t.Context(), kv.Ref{Namespace: ns, Key: key}, kv.Record{Version: v, Value: []byte("value of " + key)}))
	}
}

func (s *installation) keys(ns kv.NamespaceID) (keys []string) {
	s.t.Helper()
	page, err := s.store.List(s.t.Context(), ns, kv.ListOptions{})
	s.check(err)
	for _, k := range page.Keys {
		if !k.Record.Tombstone {
			keys = append(keys, k.Key)
		}
	}
	return keys
}

func (s *installation) there() admin.BackupNamespaces {
	s.t.Helper()
	var there admin.BackupNamespaces
	s.check(s.client.Admin(s.t.Context(), http.MethodGet, "/backup/namespaces", nil, &there))
	return there
}

func (s *installation) backUp(request admin.BackupRequest) (*backup.Manifest, error) {
	body, err := s.client.AdminStream(s.t.Context(), http.MethodPost, "/backup/snapshot", request)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return s.archive.Save(s.t.Context(), body, backup.SaveOptions{Whole: true})
}

func (s *installation) everything() admin.BackupRequest {
	var request admin.BackupRequest
	for _, n := range s.there().Namespaces {
		request.Namespaces = append(request.Namespaces, backup.Wanted{Namespace: backup.Namespace{ID: n.ID}})
	}
	return request
}

// restore puts back everything that is in an archive.
func (s *installation) restore(archive *backup.Archive, target backup.Target) error {
	s.t.Helper()
	plan, err := archive.Plan(s.t.Context(), backup.PlanOptions{})
	s.check(err)
	for _, r := range plan {
		to := target
		if to.ID == "" {
			to.Namespace = r.Content.Namespace
		}
		body, feed := io.Pipe()
		go func() { _ = feed.CloseWithError(archive.Send(s.t.Context(), feed, r, to, nil)) }()
		err := s.upload(body, nil)
		_ = body.CloseWithError(io.ErrClosedPipe)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *installation) upload(body io.Reader, progress func(json.RawMessage)) error {
	if progress == nil {
		progress = func(json.RawMessage) {}
	}
	var result backup.Result
	return s.client.AdminUpload(s.t.Context(), http.MethodPost, "/backup/restore", body, progress, &result)
}

func TestBackupAndRestoreOverHTTP(t *testing.T) {
	s := install(t, memory.New())
	one := s.namespace("one", "a", "b")
	s.namespace("empty")
	there := s.there()
	if len(there.Namespaces) != 2 || there.Origin != s.account || there.RetentionSeconds != 86400 {
		t.Errorf("there is %+v", there)
	}
	m, err := s.backUp(s.everything())
	if err != nil {
		t.Fatal(err)
	}
	if m.Records != 2 || len(m.Contents) != 2 || m.Content(one.String()).Title != "one" || m.Origin != s.account || m.Version != "test" {
		t.Errorf("the snapshot is %+v", m)
	}
	other := install(t, memory.New())
	for range 2 {
		if err := other.restore(s.archive, backup.Target{}); err != nil {
			t.Fatal(err)
		}
		if got := other.there().Namespaces; len(got) != 2 || got[0].Account != other.account || !slices.Equal(other.keys(one), []string{"a", "b"}) {
			t.Errorf("restored: %+v with %q", got, other.keys(one))
		}
	}
	into := other.namespace("into", "own")
	if err := other.restore(s.archive, backup.Target{Namespace: backup.Namespace{ID: into.String()}}); err != nil {
		t.Fatal(err)
	}
	if got := other.keys(into); !slices.Equal(got, []string{"a", "b", "own"}) {
		t.Errorf("restored into another: %q", got)
	}
}

// code is that of an answer.
func code(err error) int {
	var answer *client.Error
	if errors.As(err, &answer) {
		return answer.Code()
	}
	return 0
}

func TestBackupsThatAreRefused(t *testing.T) {
	s := install(t, memory.New())
	one := s.namespace("one", "a")
	wanted := func(since kv.Version, ids ...string) (request admin.BackupRequest) {
		for _, id := range ids {
			w := backup.Wanted{Namespace: backup.Namespace{ID: id}}
			if since != (kv.Version{}) {
				w.Since = since.String()
			}
			request.Namespaces = append(request.Namespaces, w)
		}
		return request
	}
	version := func(ago time.Duration) kv.Version { return kv.NewVersion(time.Now().Add(-ago).UnixNano(), 1, 1) }
	pause := func(ms int64) admin.BackupRequest {
		r := wanted(kv.Version{}, one.String())
		r.MaxPauseMillis = ms
		return r
	}
	for name, c := range map[string]struct {
		request admin.BackupRequest
		code    int
	}{
		"fine":             {wanted(kv.Version{}, one.String()), 0},
		"incremental":      {wanted(version(23*time.Hour), one.String()), admin.CodeRefused}, // with a margin of an hour
		"incremental, new": {wanted(version(22*time.Hour), one.String()), -1},                // it continues nothing that Save was told of
		"no id":            {wanted(kv.Version{}, "one"), admin.CodeInvalid},
		"twice":            {wanted(kv.Version{}, one.String(), strings.ToUpper(one.String())), admin.CodeInvalid},
		"of its own":       {wanted(kv.Version{}, catalog.Reserved.String()), admin.CodeRefused},
		"of Workers":       {wanted(kv.Version{}, catalog.Workers.String()), admin.CodeRefused},
		"pause":            {pause(10_000), 0},
		"longer pause":     {pause(10_001), admin.CodeInvalid},
		"negative pause":   {pause(-1), admin.CodeInvalid},
	} {
		_, err := s.backUp(c.request)
		if got := code(err); got != max(c.code, 0) || (err == nil) != (c.code == 0) {
			t.Errorf("%s: %v, want code %d", name, err, c.code)
		}
	}
	large := `{"namespaces":[` + strings.Repeat(" ", 16<<20) + `]}`
	if status, text := ask(t, http.MethodPost, strings.TrimSuffix(s.client.BaseURL(), "/client/v4")+"/nearkey/v1/backup/snapshot", large); status != http.StatusBadRequest {
		t.Errorf("a request that is too large: %d %s", status, text)
	}
}

func TestRestoresThatAreRefused(t *testing.T) {
	s := install(t, memory.New())
	one := s.namespace("one", "a")
	if _, err := s.backUp(s.everything()); err != nil {
		t.Fatal(err)
	}
	taken := install(t, memory.New())
	taken.namespace("one")
	if err := taken.restore(s.archive, backup.Target{}); code(err) != admin.CodeRefused || !strings.Contains(err.Error(), "OLD=NEW") {
		t.Errorf("a title that is taken: %v", err)
	}
	if got := taken.keys(one); got != nil {
		t.Errorf("a title that is taken: %q was restored", got)
	}
	s.check(s.catalog.DeleteNamespace(t.Context(), s.account, one))
	if err := s.restore(s.archive, backup.Target{}); code(err) != admin.CodeRefused || !strings.Contains(err.Error(), "2h") {
		t.Errorf("a namespace that was just deleted: %v", err)
	}
	if err := s.restore(s.archive, backup.Target{Namespace: backup.Namespace{ID: one.String()}}); code(err) != admin.CodeNotFound {
		t.Errorf("into a namespace that does not exist: %v", err)
	}
	if err := s.upload(strings.NewReader("something else"), nil); code(err) != admin.CodeInvalid {
		t.Errorf("something else: %v", err)
	}
	// What is refused at once is told although the caller has gigabytes to send.
	endless := io.MultiReader(strings.NewReader(strings.Repeat("x", 100)), endless{})
	if err := s.upload(endless, nil); code(err) != admin.CodeInvalid {
		t.Errorf("something else without end: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A restore that was cut off does not make the namespace known.
func TestCutRestoreMakesNoNamespace(t *testing.T) {
	s := install(t, memory.New())
	s.namespace("one", "a", "b")
	if _, err := s.backUp(s.everything()); err != nil {
		t.Fatal(err)
	}
	plan, err := s.archive.Plan(t.Context(), backup.PlanOptions{})
	s.check(err)
	var whole bytes.Buffer
	s.check(s.archive.Send(t.Context(), &whole, plan[0], backup.Target{Namespace: plan[0].Content.Namespace}, nil))
	other := install(t, memory.New())
	if err := other.upload(bytes.NewReader(whole.Bytes()[:whole.Len()-5]), nil); err == nil {
		t.Error("it was not noticed")
	}
	if got := other.there().Namespaces; len(got) != 0 {
		t.Errorf("it made %v", got)
	}
	if err := other.upload(&whole, nil); err != nil {
		t.Error(err)
	}
	if got := other.there().Namespaces; len(got) != 1 {
		t.Errorf("whole, it made %v", got)
	}
}

// slowStore is a store whose listings wait for something.
type slowStore struct {
	*memory.Store
	asked chan struct{}
	wait  chan struct{}
}

func (s *slowStore) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	select {
	case s.asked <- struct{}{}:
	default:
	}
	select {
	case <-s.wait:
		return s.Store.List(ctx, ns, opts)
	case <-ctx.Done():
		return kv.Page{}, fmt.Errorf("list: %w", ctx.Err())
	}
}

// One backup and one restore at once; progress is told meanwhile; and a server that
// is to end ends them.
func TestOneAtATimeUntilTheEnd(t *testing.T) {
	store := &slowStore{memory.New(), make(chan struct{}, 1), make(chan struct{})}
	s := install(t, store)
	one := s.namespace("one", "a")
	request := s.everything()
	took := make(chan error, 1)
	go func() {
		_, err := s.backUp(request)
		took <- err
	}()
	<-store.asked
	if _, err := s.backUp(request); code(err) != admin.CodeRefused {
		t.Errorf("a second backup: %v", err)
	}
	body, feed := io.Pipe()
	told, restored := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		restored <- s.upload(body, func(json.RawMessage) {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	var whole bytes.Buffer
	target := backup.Target{Namespace: backup.Namespace{ID: one.String()}}
	content := &backup.Content{}
	v, err := s.stamp.Stamp()
	s.check(err)
	content.Cut = v.String()
	s.check(s.archive.Send(t.Context(), &whole, backup.Restoration{Content: content}, target, nil))
	_, err = feed.Write(whole.Bytes()[:whole.Len()-1]) // the last byte does not come
	s.check(err)
	<-told // while the body is not read to its end
	if err := s.upload(bytes.NewReader(whole.Bytes()), nil); code(err) != admin.CodeRefused {
		t.Errorf("a second restore: %v", err)
	}
	s.handler.End()
	for name, ended := range map[string]chan error{"backup": took, "restore": restored} {
		if err := <-ended; err == nil {
			t.Errorf("the %s went on", name)
		}
	}
	_ = feed.Close()
}
