package hot

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearkey/nearkey/api/rest"
	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
)

const (
	accountID = "0123456789abcdef0123456789abcdef"
	rootToken = "root-token-of-the-tests-0123456789abcdef"
)

// nearMap is near memory that holds what it is told to.
type nearMap struct {
	mu   sync.RWMutex // guards recs
	recs map[kv.NamespaceID]map[string]*kv.Record
	age  time.Duration
}

func (m *nearMap) Near(ns kv.NamespaceID, key []byte, maxAge time.Duration) (*kv.Record, time.Duration, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	rec, ok := m.recs[ns][string(key)]
	return rec, m.age, ok && m.age <= maxAge
}

func (m *nearMap) set(ref kv.Ref, rec kv.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.recs[ref.Namespace] == nil {
		m.recs[ref.Namespace] = map[string]*kv.Record{}
	}
	m.recs[ref.Namespace][ref.Key] = &rec
}

// grants is an Authorizer that stands on a catalog.
type grants struct {
	catalog *catalog.Catalog
	epoch   atomic.Uint64
	asked   atomic.Int64
}

func (g *grants) Epoch() uint64 { return g.epoch.Load() }

func (g *grants) Read(ctx context.Context, token, accountID string, ns kv.NamespaceID) (Right, error) {
	g.asked.Add(1)
	grant, err := g.catalog.Authenticate(ctx, token)
	if err != nil {
		return Right{}, err
	}
	right := Right{Until: grant.Token.Expires}
	for _, scope := range grant.Scopes {
		if (catalog.Grant{Scopes: []catalog.Scope{scope}}).Namespace(accountID, ns, catalog.Read) {
			right.Prefixes = append(right.Prefixes, scope.Prefix)
		}
	}
	if len(right.Prefixes) == 0 {
		return Right{}, errors.New("no right")
	}
	_, err = g.catalog.Namespace(ctx, accountID, ns)
	return right, err
}

// world is what a server of the tests stands on, all real but near memory.
type world struct {
	t       testing.TB
	catalog *catalog.Catalog
	store   *memory.Store
	stamp   *kv.Stamper
	near    *nearMap
	grants  *grants
	handler http.Handler
	space   kv.NamespaceID
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, store: memory.New(), near: &nearMap{recs: map[kv.NamespaceID]map[string]*kv.Record{}}, stamp: kv.NewStamper(1, nil)}
	var err error
	if w.catalog, err = catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.catalog.Close() })
	if _, err := w.catalog.EnsureRoot(t.Context(), catalog.Root{AccountID: accountID, AccountName: "Tests", Token: rootToken, Email: "owner@example.com", Key: "root-key-of-the-tests-0123"}); err != nil {
		t.Fatal(err)
	}
	space, err := w.catalog.CreateNamespace(t.Context(), accountID, "first", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	w.space, w.grants = space.ID, &grants{catalog: w.catalog}
	w.handler = rest.New(rest.Config{Store: w.store, Catalog: w.catalog, Rules: &kv.Rules{Limits: kv.CloudflareLimits(), Stamp: w.stamp}})
	return w
}

// config is a Config of the world.
func (w *world) config() Config {
	return Config{HTTP: rest.HTTPServer(w.handler), Values: w.near, Rights: w.grants}
}

func (w *world) version() kv.Version {
	w.t.Helper()
	v, err := w.stamp.Stamp()
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// far stores a record.
func (w *world) far(key string, rec kv.Record) kv.Record {
	w.t.Helper()
	if rec.Version == (kv.Version{}) {
		rec.Version = w.version()
	}
	if err := w.store.Put(w.t.Context(), kv.Ref{Namespace: w.space, Key: key}, rec); err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// put stores a record, and has it near as well.
func (w *world) put(key string, rec kv.Record) {
	w.t.Helper()
	w.near.set(kv.Ref{Namespace: w.space, Key: key}, w.far(key, rec))
}

// token makes a token with scopes in the world's account.
func (w *world) token(scopes ...catalog.Scope) (id, secret string) {
	w.t.Helper()
	for i := range scopes {
		scopes[i].AccountID = accountID
	}
	token, secret, err := w.catalog.CreateToken(w.t.Context(), catalog.Token{AccountID: accountID, Name: "of a test", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	return token.ID, secret
}

// path is the path of a key as it is sent.
func (w *world) path(key string) string {
	return pathAccount + accountID + pathNamespace + w.space.String() + pathValue + key
}

// get is a request as clients send it.
func (w *world) get(key string) string {
	return "GET " + w.path(key) + " HTTP/1.1\r\nHost: localhost:8790\r\nAuthorization: Bearer " + rootToken + "\r\n\r\n"
}

// serve serves the world's hot path on a network until the test ends.
func serve(t testing.TB, s *Server, network, address string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr()
}
