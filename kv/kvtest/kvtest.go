// Package kvtest is what every kv.Store must obey, leaf or combinator, near or
// behind a wire: the laws, each as a check that runs on any store, and Faulty, a
// store that fails on demand. It keeps nothing and has nothing to lose.
package kvtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// T is the part of *testing.T that a law needs, so that a test can watch a law
// fail.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// A Law is one thing that every store must obey.
type Law struct {
	Name  string
	Check func(t T, s *Subject)
}

// Subject is the store under test with what a law needs to use it.
type Subject struct {
	kv.Store
	Namespace kv.NamespaceID // empty at the start of each law
	Seed      uint64         // of the law's random choices
	rng       *rand.Rand
	time      int64
}

// Ref is a key in the subject's namespace.
func (s *Subject) Ref(key string) kv.Ref { return kv.Ref{Namespace: s.Namespace, Key: key} }

// Next returns a version newer than all that it returned before.
func (s *Subject) Next() kv.Version {
	s.time += 1 + s.rng.Int64N(1000)
	return kv.NewVersion(s.time, uint16(s.rng.Uint32()), s.rng.Uint64())
}

// Run checks every law on stores made by open, which registers its own clean-up.
// A law whose ability the store lacks is skipped. Random laws print their seed;
// the variable KVTEST_SEED repeats one.
func Run(t *testing.T, open func(t *testing.T) kv.Store) {
	seed := rand.Uint64()
	if text := os.Getenv("KVTEST_SEED"); text != "" {
		parsed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("KVTEST_SEED=%q: %v", text, err)
		}
		seed = parsed
	}
	t.Logf("KVTEST_SEED=%d", seed)
	for _, law := range Laws() {
		t.Run(strings.ReplaceAll(law.Name, " ", "_"), func(t *testing.T) {
			law.Check(t, NewSubject(open(t), seed))
		})
	}
}

// NewSubject returns a subject for one law. Its namespace is random: a store may
// serve many subjects.
func NewSubject(store kv.Store, seed uint64) *Subject {
	s := &Subject{Store: store, Seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), time: time.Now().UnixNano()}
	for i := range s.Namespace {
		s.Namespace[i] = byte(rand.Uint32())
	}
	return s
}

// Laws returns every law, the simple ones first.
func Laws() []Law {
	return []Law{
		{"absent is an answer", absent},
		{"read your write", readYourWrite},
		{"newest wins in any order", newestWins},
		{"repeating changes nothing", repeating},
		{"ties are broken the same way", ties},
		{"a tombstone is a record", tombstone},
		{"stores hide nothing", hideNothing},
		{"empty is a value", emptyValue},
		{"overwriting clears metadata and expiration", overwriteClears},
		{"large values", largeValues},
		{"awkward keys", awkwardKeys},
		{"pages are in byte order", pages},
		{"prefixes", prefixes},
		{"namespaces are apart", namespacesApart},
		{"many at once", many},
		{"forget only that tombstone", forget},
		{"drop only that namespace", drop},
		{"namespaces that hold records", namespaces},
		{"changes name every write", changes},
		{"a change wakes who awaits it", awaitChange},
		{"a cancelled context ends a call", cancelled},
		{"concurrent writers agree", concurrent},
		{"random operations match the model", model},
	}
}

func mustGet(t T, s *Subject, key string) kv.Record {
	t.Helper()
	rec, err := s.Get(context.Background(), s.Ref(key), 0)
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	return rec
}

func mustPut(t T, s *Subject, key string, rec kv.Record) {
	t.Helper()
	if err := s.Put(context.Background(), s.Ref(key), rec); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func mustList(t T, s *Subject, opts kv.ListOptions) kv.Page {
	t.Helper()
	page, err := s.List(context.Background(), s.Namespace, opts)
	if err != nil {
		t.Fatalf("list %+v: %v", opts, err)
	}
	return page
}

// listAll follows pages of the given limit to the end and checks what holds for
// every page: order, no key twice, the prefix, the limit, progress.
func listAll(t T, s *Subject, prefix string, limit int) []kv.Listed {
	t.Helper()
	var all []kv.Listed
	opts := kv.ListOptions{Prefix: prefix, Limit: limit}
	for {
		page := mustList(t, s, opts)
		if len(page.Keys) > limit {
			t.Fatalf("list %+v: %d keys in a page of at most %d", opts, len(page.Keys), limit)
		}
		for _, k := range page.Keys {
			if !strings.HasPrefix(k.Key, prefix) {
				t.Fatalf("list %+v: key %q lacks the prefix", opts, k.Key)
			}
			if k.Record.Value != nil {
				t.Fatalf("list %+v: key %q carries a value", opts, k.Key)
			}
			if len(all) > 0 && all[len(all)-1].Key >= k.Key {
				t.Fatalf("list %+v: key %q after %q", opts, k.Key, all[len(all)-1].Key)
			}
			all = append(all, k)
		}
		if !page.More {
			return all
		}
		if len(page.Keys) > 0 && page.Last < page.Keys[len(page.Keys)-1].Key || page.Last <= opts.After {
			t.Fatalf("list %+v: the page ends at %q", opts, page.Last)
		}
		opts.After = page.Last
	}
}

// same fails unless two records are equal in every part.
func same(t T, what string, got, want kv.Record) {
	t.Helper()
	if got.Compare(want) != 0 {
		t.Fatalf("%s: got %s, want %s", what, show(got), show(want))
	}
}

func show(r kv.Record) string {
	if r.Absent() {
		return "absent"
	}
	if len(r.Value) > 40 {
		return fmt.Sprintf("{%s tombstone=%v exp=%d meta=%q value of %d bytes}", r.Version, r.Tombstone, r.Expiration, r.Metadata, len(r.Value))
	}
	return fmt.Sprintf("{%s tombstone=%v exp=%d meta=%q value=%q}", r.Version, r.Tombstone, r.Expiration, r.Metadata, r.Value)
}
