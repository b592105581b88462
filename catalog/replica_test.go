package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

// copies is an outlet with near copies, as a tier has them. The tier itself is
// tried where it may be imported, in the tests of the API.
type copies struct {
	*outlet
	asks atomic.Int64 // of the far store

	mu   sync.Mutex // guards the rest
	recs map[string]*kv.Record
	asOf map[string]time.Time
	told map[string]bool // that the copy is superseded
}

func newCopies(o *outlet) *copies {
	return &copies{outlet: o, recs: map[string]*kv.Record{}, asOf: map[string]time.Time{}, told: map[string]bool{}}
}

func (c *copies) Near(_ kv.NamespaceID, key []byte, maxAge time.Duration) (*kv.Record, time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec, ok := c.recs[string(key)]
	age := time.Since(c.asOf[string(key)])
	return rec, age, ok && age <= maxAge && !c.told[string(key)]
}

func (c *copies) GetAnswer(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Answer, error) {
	if rec, age, ok := c.Near(ref.Namespace, []byte(ref.Key), maxAge); ok {
		return kv.Answer{Record: *rec, Age: age, Cache: kv.Hit}, nil
	}
	c.asks.Add(1)
	rec, err := c.outlet.Get(ctx, ref, maxAge)
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.recs[ref.Key]; err != nil && old != nil && ctx.Err() == nil {
		return kv.Answer{Record: *old, Age: time.Since(c.asOf[ref.Key]), Cache: kv.Stale}, nil
	}
	if err == nil {
		c.recs[ref.Key], c.asOf[ref.Key] = &rec, time.Now()
		delete(c.told, ref.Key)
	}
	return kv.Answer{Record: rec, Cache: kv.Miss}, err
}

// supersede is a notice of a change.
func (c *copies) supersede(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told[key] = true
}

// TestReplicaAge: an answer is as old as MaxAge, unless the tier was told.
func TestReplicaAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCatalog(t)
		defer c.Close()
		near := newCopies(newOutlet())
		near.publisher(c)
		replica := NewReplica(near, ReplicaOptions{})
		token, secret := createToken(t, c, Scope{Permission: Read})
		other, otherSecret := createToken(t, c, Scope{Permission: Read})
		for _, s := range []string{secret, otherSecret} {
			if _, err := replica.Authenticate(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		for _, token := range []Token{token, other} {
			if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
				t.Fatal(err)
			}
		}
		near.supersede(tokenKey(hashOf(otherSecret)))
		_, err := replica.Authenticate(t.Context(), otherSecret)
		wantError(t, err, ErrUnauthenticated)
		time.Sleep(CacheFor)
		if _, err := replica.Authenticate(t.Context(), secret); err != nil {
			t.Errorf("after MaxAge: %v", err)
		}
		time.Sleep(time.Nanosecond)
		_, err = replica.Authenticate(t.Context(), secret)
		wantError(t, err, ErrUnauthenticated)
	})
}

// TestReplicaWithoutStore: when the store fails, at once or by hanging, what is
// near is used up to MaxStale, and the store is asked now and then.
func TestReplicaWithoutStore(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "hung": kvtest.Hang} {
		t.Run(name, func(t *testing.T) { testWithoutStore(t, fault) })
	}
}

func testWithoutStore(t *testing.T, fault kvtest.Fault) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCatalog(t)
		defer c.Close()
		near := newCopies(newOutlet())
		near.publisher(c)
		replica := NewReplica(near, ReplicaOptions{})
		_, secret := createToken(t, c, Scope{Permission: Read})
		_, unknown := createToken(t, c, Scope{Permission: Read})
		n := createNamespace(t, c, "a")
		began := time.Now()
		use := func() error {
			_, err := replica.Authenticate(t.Context(), secret)
			_, otherErr := replica.Namespace(t.Context(), testAccount, n.ID)
			return errors.Join(err, otherErr)
		}
		if err := use(); err != nil {
			t.Fatal(err)
		}
		near.reads.Store(int64(fault))
		time.Sleep(CacheFor + time.Second)
		asks := near.asks.Load()
		for range 100 {
			if err := use(); err != nil {
				t.Fatal(err)
			}
		}
		if got := near.asks.Load() - asks; got != 1 {
			t.Errorf("the store was asked %d times at once, want 1", got)
		}
		if _, err := replica.Authenticate(t.Context(), unknown); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a token of which nothing is near: %v", err)
		}
		time.Sleep(2 * retryAfter)
		if err := use(); err != nil || near.asks.Load()-asks < 3 {
			t.Errorf("after the pause: %v, the store was asked %d times", err, near.asks.Load()-asks)
		}
		near.supersede(tokenKey(hashOf(secret)))
		if _, err := replica.Authenticate(t.Context(), secret); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a token that is known to be superseded: %v", err)
		}
		time.Sleep(StaleFor - loadTimeout - time.Since(began)) // the store may take that time
		if _, err := replica.Namespace(t.Context(), testAccount, n.ID); err != nil {
			t.Errorf("at MaxStale: %v", err)
		}
		time.Sleep(loadTimeout + time.Nanosecond)
		if _, err := replica.Namespace(t.Context(), testAccount, n.ID); !errors.Is(err, ErrUnavailable) {
			t.Errorf("past MaxStale: %v", err)
		}
		near.reads.Store(int64(kvtest.None))
		if err := use(); err != nil {
			t.Errorf("when the store is back: %v", err)
		}
	})
}

// TestReplicaOfAPlainStore has no copies to go on with.
func TestReplicaOfAPlainStore(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	out.publisher(c)
	replica := NewReplica(out, ReplicaOptions{})
	_, secret := createToken(t, c, Scope{Permission: Read})
	if _, err := replica.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	out.reads.Store(int64(kvtest.Refused))
	_, err := replica.Authenticate(t.Context(), secret)
	if wantError(t, err, ErrUnavailable); errors.Is(err, ErrUnauthenticated) {
		t.Error("a failure of the store is taken for an unknown token")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = replica.Authenticate(ctx, secret)
	wantError(t, err, context.Canceled)
}

// publishRaw publishes a value of a test's own.
func publishRaw(t testing.TB, out *outlet, key, value string) {
	t.Helper()
	w := writeOf(key, []byte(value), stampOf(t, out))
	if err := out.memory.Put(t.Context(), w.Ref, w.Record); err != nil {
		t.Fatal(err)
	}
}

// TestRecordFormats: what a newer program has added is ignored; what it says that
// must not be ignored is refused.
func TestRecordFormats(t *testing.T) {
	const space = "0123456789abcdef0123456789abcdee"
	known := `"user":{"id":"u","email":"a@b"},"token":{"id":"i","account":"` + testAccount + `","name":"bg=="}`
	for _, tt := range []struct {
		name, record string
		account      bool  // gives a right on the account
		err          error // of Authenticate
	}{
		{"known", `{"format":1,` + known + `,"scopes":[{"account":"` + testAccount + `","permission":"read","namespace":"*"}]}`, true, nil},
		{"further fields", `{"format":1,"region":["eu"],` + known + `,"scopes":[{"account":"` + testAccount + `","permission":"read","namespace":"*","note":1}]}`, true, nil},
		{"every account", `{"format":1,` + known + `,"scopes":[{"account":"*","permission":"write","namespace":"*"}]}`, true, nil},
		{"no account", `{"format":1,` + known + `,"scopes":[{"permission":"read","namespace":"*"}]}`, false, nil},
		{"no namespace", `{"format":1,` + known + `,"scopes":[{"account":"` + testAccount + `","permission":"read"}]}`, false, nil},
		{"zero namespace", `{"format":1,` + known + `,"scopes":[{"account":"` + testAccount + `","permission":"read","namespace":"` + strings.Repeat("0", 32) + `"}]}`, false, nil},
		{"unknown permission", `{"format":1,` + known + `,"scopes":[{"account":"` + testAccount + `","permission":"list","namespace":"*"}]}`, false, nil},
		{"no permission", `{"format":1,` + known + `,"scopes":[{"account":"` + testAccount + `","namespace":"*"}]}`, false, nil},
		{"newer format", `{"format":2,` + known + `,"scopes":[{"account":"*","permission":"write","namespace":"*"}]}`, false, ErrUnavailable},
		{"no format", `{` + known + `,"scopes":[{"account":"*","permission":"write","namespace":"*"}]}`, false, ErrUnavailable},
		{"no JSON", `{"format":1`, false, ErrUnavailable},
		{"wrong type", `{"format":1,"scopes":{}}`, false, ErrUnavailable},
		{"empty", ``, false, ErrUnavailable},
	} {
		out := newOutlet()
		secret := NewSecret()
		publishRaw(t, out, tokenKey(hashOf(secret)), tt.record)
		g, err := NewReplica(out, ReplicaOptions{}).Authenticate(t.Context(), secret)
		if !errors.Is(err, tt.err) || errors.Is(err, ErrUnauthenticated) || g.Account(testAccount, Read) != tt.account {
			t.Errorf("%s: %+v, error %v", tt.name, g, err)
		}
		if tt.err == nil && (g.Token.ID != "i" || g.Token.Name != "n" || g.User.Email != "a@b") {
			t.Errorf("%s: %+v", tt.name, g)
		}
	}
	out := newOutlet()
	id, err := kv.ParseNamespaceID(space)
	if err != nil {
		t.Fatal(err)
	}
	publishRaw(t, out, namespaceKey(id), `{"format":1,"account":"`+testAccount+`","title":"dA==","created":1,"size":7}`)
	replica := NewReplica(out, ReplicaOptions{})
	n, err := replica.Namespace(t.Context(), testAccount, id)
	if err != nil || n.Title != "t" || n.ID != id || n.Created != loaded(1) {
		t.Errorf("%+v, error %v", n, err)
	}
}

// TestOldAndNewPublishers do not undo each other's work.
func TestOldAndNewPublishers(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	p := out.publisher(c)
	_, secret := createToken(t, c, Scope{Permission: Read})
	_, other := createToken(t, c, Scope{Permission: Read})
	compare(t, p)
	key, otherKey := tokenKey(hashOf(secret)), tokenKey(hashOf(other))
	var fields map[string]any
	if err := json.Unmarshal(out.records(t)[key], &fields); err != nil {
		t.Fatal(err)
	}
	fields["further"] = "field"
	newer, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	publishRaw(t, out, key, string(newer))
	publishRaw(t, out, otherKey, `{"format":2}`)
	compare(t, p)
	if got := out.records(t); string(got[key]) != string(newer) || string(got[otherKey]) != `{"format":2}` {
		t.Errorf("what a newer publisher wrote was replaced: %s, %s", got[key], got[otherKey])
	}
	fields["user"] = userRecord{"u", "old@example.com"}
	newer, err = json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	publishRaw(t, out, key, string(newer))
	compare(t, p)
	if got := out.records(t)[key]; strings.Contains(string(got), "old@") {
		t.Errorf("what is wrong in a newer record was left: %s", got)
	}
}

// TestOwnNamespacesAreNone: neither a catalog nor a replica knows those of the
// catalog's own, whatever somebody has published.
func TestOwnNamespacesAreNone(t *testing.T) {
	for _, own := range []kv.NamespaceID{Reserved, Workers} {
		c, _ := newCatalog(t)
		out := newOutlet()
		p := out.publisher(c)
		publishRaw(t, out, namespaceKey(own), string(marshalRecord(newNamespaceRecord(Namespace{AccountID: testAccount, Title: "t"}))))
		_, err := NewReplica(out, ReplicaOptions{}).Namespace(t.Context(), testAccount, own)
		wantError(t, err, ErrNotFound)
		_, err = c.Namespace(t.Context(), testAccount, own)
		wantError(t, err, ErrNotFound)
		_, _, err = c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "a", Scopes: []Scope{{Permission: Read, Namespace: own}}})
		wantError(t, err, ErrNotFound)
		wantError(t, c.DeleteNamespace(t.Context(), testAccount, own), ErrNotFound)
		compare(t, p)
		if value := out.records(t)[namespaceKey(own)]; value != nil {
			t.Errorf("a record that should not be there: %s", value)
		}
	}
}

// TestReplicaMemory: what is kept is bounded, and made-up credentials and ids take
// no room.
func TestReplicaMemory(t *testing.T) {
	c, _ := newCatalog(t)
	near := newCopies(newOutlet())
	near.publisher(c)
	const room = 10_000
	replica := NewReplica(near, ReplicaOptions{CacheBytes: room})
	var secrets []string
	for i := range 30 {
		_, secret := createToken(t, c, Scope{Permission: Read})
		secrets = append(secrets, secret)
		n := createNamespace(t, c, fmt.Sprint(i))
		for _, secret := range secrets {
			if _, err := replica.Authenticate(t.Context(), secret); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := replica.Namespace(t.Context(), testAccount, n.ID); err != nil {
			t.Fatal(err)
		}
	}
	if used := replica.tokens.bytes; used > room || used < room/2 || len(replica.tokens.entries) == 0 {
		t.Errorf("%d bytes in %d grants, at most %d may be", used, len(replica.tokens.entries), room)
	}
	before := len(replica.tokens.entries)
	for range 100 {
		_, err := replica.Authenticate(t.Context(), NewSecret())
		wantError(t, err, ErrUnauthenticated)
	}
	if got := len(replica.tokens.entries); got != before {
		t.Errorf("%d grants after made-up tokens, %d before", got, before)
	}
	for _, secret := range []string{"", strings.Repeat("x", MaxSecretChars+1)} {
		_, err := replica.Authenticate(t.Context(), secret)
		wantError(t, err, ErrUnauthenticated)
		_, err = replica.AuthenticateKey(t.Context(), "owner@example.com", secret)
		wantError(t, err, ErrUnauthenticated)
	}
}

// TestEpochs change when a right may have ended.
func TestEpochs(t *testing.T) {
	c, _ := newCatalog(t)
	token, _ := createToken(t, c, Scope{Permission: Read})
	n := createNamespace(t, c, "a")
	last := c.Epoch()
	for what, change := range map[string]func() error{
		"revocation": func() error { return c.RevokeToken(t.Context(), testAccount, token.ID) },
		"deletion":   func() error { return c.DeleteNamespace(t.Context(), testAccount, n.ID) },
		"new root":   func() error { _, err := c.EnsureRoot(t.Context(), testRoot()); return err },
	} {
		if err := change(); err != nil || c.Epoch() == last {
			t.Errorf("%s: %v, epoch %d then %d", what, err, last, c.Epoch())
		}
		last = c.Epoch()
	}
	replica := NewReplica(newOutlet(), ReplicaOptions{})
	replica.Changed([]kv.Change{{Ref: kv.Ref{Namespace: n.ID, Key: "k"}}})
	if replica.Epoch() != 0 {
		t.Error("a change elsewhere changed the replica's epoch")
	}
	replica.Changed([]kv.Change{{Ref: kv.Ref{Namespace: n.ID, Key: "k"}}, {Ref: reserved("token/0")}})
	if replica.Epoch() != 1 {
		t.Error("a change of what is published did not change the replica's epoch")
	}
}

// oneCopy is a near copy that costs nothing.
type oneCopy struct {
	*outlet
	rec kv.Record
}

func (o *oneCopy) Near(kv.NamespaceID, []byte, time.Duration) (*kv.Record, time.Duration, bool) {
	return &o.rec, 0, true
}

// cachedReplica is a replica with a token that it has parsed.
func cachedReplica(t testing.TB) (*Replica, string) {
	c, _ := newCatalog(t)
	out := newOutlet()
	out.publisher(c)
	_, secret := createToken(t, c, Scope{Permission: Read})
	rec, err := out.Get(t.Context(), reserved(tokenKey(hashOf(secret))), 0)
	if err != nil {
		t.Fatal(err)
	}
	replica := NewReplica(&oneCopy{outlet: out, rec: rec}, ReplicaOptions{})
	if _, err := replica.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	return replica, secret
}

func TestReplicaAllocatesNothing(t *testing.T) {
	replica, secret := cachedReplica(t)
	if got := testing.AllocsPerRun(100, func() { replica.Authenticate(t.Context(), secret) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkReplicaAuthenticate(b *testing.B) {
	replica, secret := cachedReplica(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := replica.Authenticate(b.Context(), secret); err != nil {
			b.Fatal(err)
		}
	}
}
