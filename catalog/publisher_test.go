package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// outlet is where the tests publish to: a memory store that can fail.
type outlet struct {
	*kvtest.Faulty
	memory *memory.Store
	fault  atomic.Int64 // of every write
	reads  atomic.Int64 // of every read and listing
	stamp  *kv.Stamper
}

func newOutlet() *outlet {
	o := &outlet{memory: memory.New(), stamp: kv.NewStamper(1, nil)}
	o.Faulty = &kvtest.Faulty{Store: o.memory, Inject: func(op kvtest.Op, _ kv.Ref) kvtest.Fault {
		if op == kvtest.OpPut || op == kvtest.OpPutMany {
			return kvtest.Fault(o.fault.Load())
		}
		return kvtest.Fault(o.reads.Load())
	}}
	return o
}

func reserved(key string) kv.Ref { return kv.Ref{Namespace: Reserved, Key: key} }

// writeOf is a write of a record of Reserved.
func writeOf(key string, value []byte, at kv.Version) kv.Write {
	kind := publication{namespace: Reserved}
	return kind.write(newPublished(key, value), at)
}

func (o *outlet) publisher(c *Catalog) *Publisher { return NewPublisher(c, o, o.stamp, nil) }

// records are all records that are published, by key; nil: a tombstone.
func (o *outlet) records(t testing.TB) map[string][]byte {
	t.Helper()
	page, err := o.memory.List(t.Context(), Reserved, kv.ListOptions{})
	if err != nil || page.More {
		t.Fatal(err, page.More)
	}
	recs := map[string][]byte{}
	for _, k := range page.Keys {
		rec, err := o.memory.Get(t.Context(), reserved(k.Key), 0)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Tombstone {
			rec.Value = nil
		}
		recs[k.Key] = rec.Value
	}
	return recs
}

// live are the keys of the records that are no tombstones.
func (o *outlet) live(t testing.TB) []string {
	t.Helper()
	recs := o.records(t)
	maps.DeleteFunc(recs, func(_ string, value []byte) bool { return value == nil })
	return slices.Sorted(maps.Keys(recs))
}

func compare(t testing.TB, p *Publisher) {
	t.Helper()
	if err := p.compare(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// random is a catalog that changes at random, and everything that ever was in it.
type random struct {
	t       testing.TB
	c       *Catalog
	rng     *rand.Rand
	root    Root
	secrets []string
	tokens  []Token
	keys    []string // of owners, one after the other
	spaces  []Namespace
}

func newRandom(t testing.TB) *random {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c, _ := newCatalog(t)
	root := testRoot()
	return &random{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0)), root: root, secrets: []string{root.Token}, keys: []string{root.Key}}
}

func (r *random) scope() Scope {
	s := Scope{Permission: Read + Permission(r.rng.IntN(2))}
	if len(r.spaces) > 0 && r.rng.IntN(3) > 0 {
		s.Namespace = r.spaces[r.rng.IntN(len(r.spaces))].ID
		s.Prefix = []string{"", "a/", "\xff\x00<&", "é"}[r.rng.IntN(4)]
	}
	return s
}

// change makes one change.
func (r *random) change() {
	var err error
	ctx := r.t.Context()
	switch n := r.rng.IntN(20); {
	case n < 6:
		var s Namespace
		s, err = r.c.CreateNamespace(ctx, testAccount, fmt.Sprint("title <\xfe> ", r.rng.Uint64()), []string{"", "eu"}[r.rng.IntN(2)], 0)
		r.spaces = append(r.spaces, s)
	case n < 13:
		token := Token{AccountID: testAccount, Name: "n\xffame", Scopes: []Scope{r.scope(), r.scope()}}
		if r.rng.IntN(3) == 0 {
			token.NotBefore, token.Expires = r.c.now().Add(time.Hour), r.c.now().Add(2*time.Hour)
		}
		var secret string
		token, secret, err = r.c.CreateToken(ctx, token)
		if !errors.Is(err, ErrNotFound) { // a scope in a namespace that was deleted
			r.tokens, r.secrets = append(r.tokens, token), append(r.secrets, secret)
		}
	case n < 15 && len(r.tokens) > 0:
		err = r.c.RevokeToken(ctx, testAccount, r.tokens[r.rng.IntN(len(r.tokens))].ID)
	case n < 17 && len(r.spaces) > 0:
		err = r.c.DeleteNamespace(ctx, testAccount, r.spaces[r.rng.IntN(len(r.spaces))].ID)
	case n < 19 && len(r.spaces) > 0:
		_, err = r.c.RenameNamespace(ctx, testAccount, r.spaces[r.rng.IntN(len(r.spaces))].ID, fmt.Sprint("other ", r.rng.Uint64()))
	default:
		r.root.Token, r.root.Key = NewSecret(), NewSecret()
		r.secrets, r.keys = append(r.secrets, r.root.Token), append(r.keys, r.root.Key)
		_, err = r.c.EnsureRoot(ctx, r.root)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		r.t.Fatal(err)
	}
}

// kinds are what the errors of a Catalog and of a Replica have in common.
func kindOf(err error) error {
	for _, kind := range []error{ErrTokenNotYetValid, ErrUnauthenticated, ErrNotFound} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}

// same demands that a replica answers everything as the catalog does.
func (r *random) same(replica *Replica) {
	r.t.Helper()
	ctx := r.t.Context()
	check := func(what string, got, want any, gotErr, wantErr error) {
		r.t.Helper()
		if kindOf(gotErr) != kindOf(wantErr) || wantErr == nil && fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			r.t.Fatalf("%s:\nreplica %+v, error %v\ncatalog %+v, error %v", what, got, gotErr, want, wantErr)
		}
	}
	for _, secret := range r.secrets {
		got, gotErr := replica.Authenticate(ctx, secret)
		want, wantErr := r.c.Authenticate(ctx, secret)
		check("token", got, want, gotErr, wantErr)
	}
	for _, key := range r.keys {
		got, gotErr := replica.AuthenticateKey(ctx, "OWNER@example.com", key)
		want, wantErr := r.c.AuthenticateKey(ctx, "OWNER@example.com", key)
		check("key", got, want, gotErr, wantErr)
		_, err := replica.AuthenticateKey(ctx, "other@example.com", key)
		wantError(r.t, err, ErrUnauthenticated)
	}
	for _, s := range r.spaces {
		for _, account := range []string{testAccount, "another", strings.Repeat("0", 32)} {
			got, gotErr := replica.Namespace(ctx, account, s.ID)
			want, wantErr := r.c.Namespace(ctx, account, s.ID)
			check("namespace", got, want, gotErr, wantErr)
		}
	}
}

// TestReplicaEqualsCatalog: what was published when a change returned is what a
// comparison finds right, and a replica answers as the catalog does.
func TestReplicaEqualsCatalog(t *testing.T) {
	for range 4 {
		r, out := newRandom(t), newOutlet()
		for range r.rng.IntN(20) {
			r.change()
		}
		p, replica := out.publisher(r.c), NewReplica(out, ReplicaOptions{})
		compare(t, p)
		r.same(replica)
		for range 40 {
			r.change()
			r.same(replica)
		}
		before := out.records(t)
		compare(t, p)
		if after := out.records(t); !maps.EqualFunc(before, after, func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Errorf("a comparison changed what the changes had published:\n%s\n%s", before, after)
		}
	}
}

// TestComparisonRepairs: records that are missing, wrong, or too many, over
// several pages.
func TestComparisonRepairs(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	p := out.publisher(c)
	for i := range publishPage + 3 {
		createNamespace(t, c, fmt.Sprint(i))
	}
	compare(t, p)
	want := out.records(t)
	if got := len(out.live(t)); got != publishPage+3+2 {
		t.Fatalf("%d records, want %d", got, publishPage+3+2)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for key := range want {
		switch rng.IntN(4) {
		case 0:
			err := out.Put(t.Context(), reserved(key), kv.Tombstone(version(stampOf(t, out))))
			if err != nil {
				t.Fatal(err)
			}
		case 1:
			broken := writeOf(key, []byte(`{"format":1}`), stampOf(t, out))
			if err := out.Put(t.Context(), broken.Ref, broken.Record); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, key := range []string{"namespace/0", "namespace/zzz", "token/0", "token/zzz", "key/zzz"} {
		extra := writeOf(key, []byte(`{"format":1}`), stampOf(t, out))
		if err := out.Put(t.Context(), extra.Ref, extra.Record); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, p)
	got := out.records(t)
	maps.DeleteFunc(got, func(_ string, value []byte) bool { return value == nil })
	if !maps.EqualFunc(got, want, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Error("the comparison did not repair everything")
	}
	writes := len(changesOf(t, out))
	compare(t, p)
	if again := len(changesOf(t, out)); again != writes {
		t.Errorf("a comparison that found nothing wrote %d records", again-writes)
	}
}

func stampOf(t testing.TB, out *outlet) kv.Version {
	t.Helper()
	v, err := out.stamp.Stamp()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// changesOf are all changes of the outlet, of which there are few.
func changesOf(t testing.TB, out *outlet) (list []kv.Change) {
	t.Helper()
	_, head, err := out.memory.Changes(t.Context(), kv.Cursor{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	list, _, err = out.memory.Changes(t.Context(), kv.Cursor{Epoch: head.Epoch}, kv.MaxChanges)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestUnpublishedChangeIsRepaired: a change whose publication failed, or was cut
// off by a crash, is published by Run.
func TestUnpublishedChangeIsRepaired(t *testing.T) {
	for name, fault := range map[string]kvtest.Fault{"refused": kvtest.Refused, "done but not acknowledged": kvtest.Unacknowledged, "hung": kvtest.Hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := newCatalog(t)
				out := newOutlet()
				p := out.publisher(c)
				compare(t, p)
				token, secret := createToken(t, c, Scope{Permission: Read})
				out.fault.Store(int64(fault))
				began := time.Now()
				if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > PublishWait {
					t.Errorf("the change waited %s", took)
				}
				replica := NewReplica(out, ReplicaOptions{})
				if _, err := replica.Authenticate(t.Context(), secret); (err == nil) != (fault != kvtest.Unacknowledged) {
					t.Errorf("before the repair: %v", err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- p.Run(ctx) }()
				time.Sleep(compareTimeout)
				synctest.Wait()
				out.fault.Store(int64(kvtest.None))
				time.Sleep(PublishEvery + compareTimeout)
				synctest.Wait()
				_, err := replica.Authenticate(t.Context(), secret)
				wantError(t, err, ErrUnauthenticated)
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				c.Close()
			})
		})
	}
}

// TestRunIsWoken: a change that failed to be published is published soon, not at
// the next comparison.
func TestRunIsWoken(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	p := out.publisher(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	eventually(t, "the first comparison", func() bool { return len(out.live(t)) == 2 })
	out.fault.Store(int64(kvtest.Refused))
	createNamespace(t, c, "a")
	out.fault.Store(int64(kvtest.None))
	eventually(t, "the repair", func() bool { return len(out.live(t)) == 3 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("did not come to pass: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestCrashBeforePublication: the database has a change, the store does not.
func TestCrashBeforePublication(t *testing.T) {
	c, path := newCatalog(t)
	out := newOutlet()
	compare(t, out.publisher(c))
	other := openAt(t, path) // publishes nothing, as if it ended before
	token, secret := createToken(t, other, Scope{Permission: Read})
	n := createNamespace(t, other, "a")
	replica := NewReplica(out, ReplicaOptions{})
	_, err := replica.Authenticate(t.Context(), secret)
	wantError(t, err, ErrUnauthenticated)
	p := out.publisher(c)
	compare(t, p)
	if _, err := replica.Authenticate(t.Context(), secret); err != nil {
		t.Error(err)
	}
	if _, err := replica.Namespace(t.Context(), testAccount, n.ID); err != nil {
		t.Error(err)
	}
	if err := other.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
		t.Fatal(err)
	}
	if err := other.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
		t.Fatal(err)
	}
	compare(t, p)
	_, err = replica.Authenticate(t.Context(), secret)
	wantError(t, err, ErrUnauthenticated)
	_, err = replica.Namespace(t.Context(), testAccount, n.ID)
	wantError(t, err, ErrNotFound)
}

// TestPublishedAtOnce: at the limit all records of a change are published before
// it returns; one past it is left to Run.
func TestPublishedAtOnce(t *testing.T) {
	for tokens, late := range map[int]int{publishAtOnce - 1: 0, publishAtOnce: 1} {
		c, _ := newCatalog(t)
		out := newOutlet()
		n := createNamespace(t, c, "a")
		for range tokens {
			createToken(t, c, Scope{Permission: Read, Namespace: n.ID})
		}
		p := out.publisher(c)
		compare(t, p)
		before := len(changesOf(t, out))
		if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
			t.Fatal(err)
		}
		if got := len(changesOf(t, out)) - before; got != tokens+1-late {
			t.Errorf("%d records published at once, want %d", got, tokens+1-late)
		}
		if woken := len(p.wake) == 1; woken != (late > 0) {
			t.Errorf("%d records left, Run woken: %v", late, woken)
		}
		compare(t, p)
		if got := len(changesOf(t, out)) - before; got != tokens+1 {
			t.Errorf("%d records published in the end, want %d", got, tokens+1)
		}
	}
}

// TestExpiredTokens are tombstones after the next comparison.
func TestExpiredTokens(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	p := out.publisher(c)
	clock := time.Now()
	c.now = func() time.Time { return clock }
	replica := NewReplica(out, ReplicaOptions{Now: c.now})
	_, secret, err := c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "a", Expires: clock.Add(time.Hour), Scopes: []Scope{{Permission: Read}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replica.Authenticate(t.Context(), secret); err != nil {
		t.Error(err)
	}
	clock = clock.Add(time.Hour)
	g, err := replica.Authenticate(t.Context(), secret)
	if wantError(t, err, ErrTokenExpired); g.Token.Name != "a" || g.Scopes != nil {
		t.Errorf("the grant of an expired token: %+v", g)
	}
	compare(t, p)
	if value, ok := out.records(t)[tokenKey(hashOf(secret))]; !ok || value != nil {
		t.Errorf("the record of an expired token: %q", value)
	}
}

// TestPublishedSecrets: none of them is in the bytes of the store.
func TestPublishedSecrets(t *testing.T) {
	r, out := newRandom(t), newOutlet()
	compare(t, out.publisher(r.c))
	for range 60 {
		r.change()
	}
	for _, key := range changesOf(t, out) {
		rec, err := out.memory.Get(t.Context(), key.Ref, 0)
		if err != nil {
			t.Fatal(err)
		}
		text := key.Ref.Key + string(rec.Value) + string(rec.Metadata)
		for _, secret := range slices.Concat(r.secrets, r.keys) {
			if secret != "" && strings.Contains(text, secret) {
				t.Fatalf("a secret is in record %s", key.Ref.Key)
			}
		}
	}
}

// TestPublishRaces: changes of one namespace at once end with what the database
// says, although their publications may come in any order.
func TestPublishRaces(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	out.publisher(c)
	n := createNamespace(t, c, "a")
	done := make(chan error)
	for i := range 8 {
		go func() {
			var err error
			for j := 0; j < 20 && err == nil; j++ {
				_, err = c.RenameNamespace(t.Context(), testAccount, n.ID, fmt.Sprint(i, "-", j))
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	want, err := c.Namespace(t.Context(), testAccount, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := NewReplica(out, ReplicaOptions{}).Namespace(t.Context(), testAccount, n.ID); err != nil || got != want {
		t.Errorf("published %+v (%v), want %+v", got, err, want)
	}
}

func TestPublisherLogs(t *testing.T) {
	c, _ := newCatalog(t)
	out := newOutlet()
	var log strings.Builder
	NewPublisher(c, out, out.stamp, slog.New(slog.NewTextHandler(&log, nil)))
	out.fault.Store(int64(kvtest.Refused))
	_, secret := createToken(t, c, Scope{Permission: Read})
	if text := log.String(); !strings.Contains(text, "level=WARN") || strings.Contains(text, secret) {
		t.Errorf("log: %s", text)
	}
}
