package hot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

func catalogScope(ns kv.NamespaceID, prefix string) catalog.Scope {
	return catalog.Scope{Permission: catalog.Read, Namespace: ns, Prefix: prefix}
}

// said is an Authorizer that says what it is told to.
type said struct {
	right Right
	err   error
	epoch atomic.Uint64
	asked atomic.Int64
	while func() // called while it is asked
}

func (s *said) Epoch() uint64 { return s.epoch.Load() }

func (s *said) Read(context.Context, string, string, kv.NamespaceID) (Right, error) {
	s.asked.Add(1)
	right, err := s.right, s.err
	if s.while != nil {
		s.while()
	}
	return right, err
}

// rightOf asks for the right of a token in a namespace, as a new connection.
func rightOf(s *Server, token string, account, space byte) *entry {
	id := func(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 16) }
	var h head
	request := "GET " + pathAccount + id(account) + pathNamespace + id(space) + pathValue + "k HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + token + "\r\n\r\n"
	if _, v := h.read([]byte(request)); v != understood {
		panic("not understood: " + request)
	}
	return s.right(context.Background(), &h, time.Now())
}

func serverWith(auth Authorizer) *Server {
	s, _ := (&world{}).unserved(auth)
	return s
}

func (w *world) unserved(auth Authorizer) (*Server, Config) {
	cfg := w.config()
	cfg.Rights = auth
	return New(cfg), cfg
}

func TestRightIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := &said{right: Right{Prefixes: []string{""}}}
		s := serverWith(auth)
		asked := func(want int64, why string) {
			t.Helper()
			if rightOf(s, "token-a", 1, 1) == nil {
				t.Errorf("%s: no right", why)
			}
			if got := auth.asked.Load(); got != want {
				t.Errorf("%s: asked %d times, want %d", why, got, want)
			}
		}
		asked(1, "first")
		asked(1, "again")
		time.Sleep(RightFor - time.Nanosecond)
		asked(1, "just before its end")
		time.Sleep(time.Nanosecond)
		asked(2, "at its end")
		auth.epoch.Add(1)
		asked(3, "another epoch")
		auth.right.Until = time.Now().Add(time.Second)
		auth.epoch.Add(1)
		asked(4, "a right that ends")
		time.Sleep(time.Second - time.Nanosecond)
		asked(4, "just before it ends")
		time.Sleep(time.Nanosecond)
		if rightOf(s, "token-a", 1, 1) != nil {
			t.Error("a right that has ended is used, because the Authorizer still tells it")
		}
	})
}

func TestRightIsOfOnePlace(t *testing.T) {
	auth := &said{right: Right{Prefixes: []string{""}}}
	s := serverWith(auth)
	rightOf(s, "token-a", 1, 1)
	auth.err = errors.New("no")
	for _, other := range []struct {
		token          string
		account, space byte
	}{{"token-b", 1, 1}, {"token-a", 2, 1}, {"token-a", 1, 2}, {"token-", 1, 1}, {"token-a0", 1, 1}} {
		if rightOf(s, other.token, other.account, other.space) != nil {
			t.Errorf("%v has the right of another", other)
		}
	}
	if rightOf(s, "token-a", 1, 1) == nil {
		t.Error("the right is gone")
	}
}

// TestRightThatEndsWhileAsked: what was told before the epoch changed is not used
// after it.
func TestRightThatEndsWhileAsked(t *testing.T) {
	auth := &said{right: Right{Prefixes: []string{""}}}
	s := serverWith(auth)
	auth.while = func() { auth.epoch.Add(1) }
	rightOf(s, "token-a", 1, 1)
	auth.while, auth.err = nil, errors.New("revoked")
	if rightOf(s, "token-a", 1, 1) != nil {
		t.Error("a right that was told before its end is used after it")
	}
}

func TestRightsAreBounded(t *testing.T) {
	auth := &said{right: Right{Prefixes: []string{""}}}
	s := serverWith(auth)
	const many = 4 * rightSets * rightWays
	for i := range many {
		if rightOf(s, fmt.Sprintf("token-%d", i), 1, 1) == nil {
			t.Fatal("no right")
		}
	}
	kept := 0
	for i := range s.rights {
		for j := range s.rights[i] {
			if s.rights[i][j].Load() != nil {
				kept++
			}
		}
	}
	if kept > rightSets*rightWays || kept < rightSets*rightWays/2 {
		t.Errorf("%d rights are kept", kept)
	}
	rightOf(s, fmt.Sprintf("token-%d", many-1), 1, 1)
	if got := auth.asked.Load(); got != many {
		t.Errorf("asked %d times: the last right was not kept", got)
	}
	for size, want := range map[int]bool{maxPrefixBytes - 16: true, maxPrefixBytes - 15: false} {
		auth.right.Prefixes = []string{strings.Repeat("p", size)}
		if got := rightOf(s, fmt.Sprint("long-", size), 1, 1) != nil; got != want {
			t.Errorf("a right of %d bytes is kept: %v", size, got)
		}
	}
	auth.right.Prefixes = nil
	if rightOf(s, "nothing", 1, 1) != nil {
		t.Error("a right to nothing is one")
	}
}

// TestRevocation: the real catalog, and a token that is revoked on a connection
// that goes on.
func TestRevocation(t *testing.T) {
	w := newWorld(t)
	w.put("img/a", kv.Record{Value: []byte("a")})
	w.put("doc/b", kv.Record{Value: []byte("b")})
	id, secret := w.token(catalogScope(w.space, "img/"), catalogScope(w.space, "css/"))
	s := New(w.config())
	l := &loop{left: 1 << 20}
	c := looped(s, l)
	send := func(key string, hits, handled uint64) {
		t.Helper()
		before := s.Stats()
		l.request = []byte(strings.Replace(w.get(key), rootToken, secret, 1))
		c.turn(t)
		after := s.Stats()
		if after.Hits-before.Hits != hits || after.Handled-before.Handled != handled {
			t.Errorf("%s: %d answered from near, %d by the handler; want %d and %d", key, after.Hits-before.Hits, after.Handled-before.Handled, hits, handled)
		}
	}
	send("img/a", 1, 0)
	send("doc/b", 0, 1)
	send("img/a", 1, 0)
	if err := w.catalog.RevokeToken(t.Context(), accountID, id); err != nil {
		t.Fatal(err)
	}
	w.grants.epoch.Add(1)
	send("img/a", 0, 1)
	send("img/a", 0, 1)
}

func TestEqual(t *testing.T) {
	for n := range 40 {
		a := bytes.Repeat([]byte("x"), n)
		if !equal(a, bytes.Clone(a)) {
			t.Errorf("%d bytes are not equal to themselves", n)
		}
		for i := range n {
			b := bytes.Clone(a)
			b[i] ^= 0x80
			if equal(a, b) {
				t.Errorf("%d bytes that differ at %d are equal", n, i)
			}
		}
	}
}
