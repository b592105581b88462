package kvtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

// broken is a memory store of which a method is replaced by a wrong one.
type broken struct {
	*memory.Store
	get     func(s *memory.Store, ctx context.Context, ref kv.Ref) (kv.Record, error)
	put     func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error
	list    func(s *memory.Store, ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error)
	putMany func(s *memory.Store, ctx context.Context, writes []kv.Write) error
	forget  func(s *memory.Store, ctx context.Context, tombs []kv.Tomb) error
	drop    func(s *memory.Store, ctx context.Context, ns kv.NamespaceID) error
	changes func(s *memory.Store, ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error)
	await   func(s *memory.Store, ctx context.Context, after kv.Cursor) error
	spaces  func(s *memory.Store, ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error)
}

func (b *broken) Namespaces(ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
	if b.spaces != nil {
		return b.spaces(b.Store, ctx, after, limit)
	}
	return b.Store.Namespaces(ctx, after, limit)
}

func (b *broken) Get(ctx context.Context, ref kv.Ref, maxAge time.Duration) (kv.Record, error) {
	if b.get != nil {
		return b.get(b.Store, ctx, ref)
	}
	return b.Store.Get(ctx, ref, maxAge)
}

func (b *broken) Put(ctx context.Context, ref kv.Ref, rec kv.Record) error {
	if b.put != nil {
		return b.put(b.Store, ctx, ref, rec)
	}
	return b.Store.Put(ctx, ref, rec)
}

func (b *broken) List(ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
	if b.list != nil {
		return b.list(b.Store, ctx, ns, opts)
	}
	return b.Store.List(ctx, ns, opts)
}

func (b *broken) PutMany(ctx context.Context, writes []kv.Write) error {
	if b.putMany != nil {
		return b.putMany(b.Store, ctx, writes)
	}
	for _, w := range writes {
		if err := b.Put(ctx, w.Ref, w.Record); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (b *broken) Forget(ctx context.Context, tombs []kv.Tomb) error {
	if b.forget != nil {
		return b.forget(b.Store, ctx, tombs)
	}
	return b.Store.Forget(ctx, tombs)
}

func (b *broken) Drop(ctx context.Context, ns kv.NamespaceID) error {
	if b.drop != nil {
		return b.drop(b.Store, ctx, ns)
	}
	return b.Store.Drop(ctx, ns)
}

func (b *broken) Changes(ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
	if b.changes != nil {
		return b.changes(b.Store, ctx, after, limit)
	}
	return b.Store.Changes(ctx, after, limit)
}

func (b *broken) AwaitChange(ctx context.Context, after kv.Cursor) error {
	if b.await != nil {
		return b.await(b.Store, ctx, after)
	}
	return b.Store.AwaitChange(ctx, after)
}

// replace puts rec whatever the store has, as no store may.
func replace(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
	all, err := s.List(ctx, ref.Namespace, kv.ListOptions{})
	if err != nil {
		return err
	}
	records := map[string]kv.Record{}
	for _, k := range all.Keys {
		if records[k.Key], err = s.Get(ctx, kv.Ref{Namespace: ref.Namespace, Key: k.Key}, 0); err != nil {
			return err
		}
	}
	records[ref.Key] = rec
	if err := s.Drop(ctx, ref.Namespace); err != nil {
		return err
	}
	for key, rec := range records {
		if err := s.Put(ctx, kv.Ref{Namespace: ref.Namespace, Key: key}, rec); err != nil {
			return err
		}
	}
	return nil
}

// putIf puts rec unless keep prefers the old record, in the place of Merge.
func putIf(keep func(old, rec kv.Record) bool) func(*memory.Store, context.Context, kv.Ref, kv.Record) error {
	return func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		old, err := s.Get(ctx, ref, 0)
		if err != nil || keep(old, rec) {
			return err
		}
		return replace(s, ctx, ref, rec)
	}
}

// putChanged puts a record that change has spoiled.
func putChanged(change func(rec *kv.Record)) func(*memory.Store, context.Context, kv.Ref, kv.Record) error {
	return func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		change(&rec)
		return s.Put(ctx, ref, rec)
	}
}

// putAt puts under another key or namespace.
func putAt(move func(ref kv.Ref) kv.Ref) func(*memory.Store, context.Context, kv.Ref, kv.Record) error {
	return func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		return s.Put(ctx, move(ref), rec)
	}
}

// listChanged spoils the pages of a listing.
func listChanged(change func(opts kv.ListOptions, page *kv.Page)) func(*memory.Store, context.Context, kv.NamespaceID, kv.ListOptions) (kv.Page, error) {
	return func(s *memory.Store, ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
		page, err := s.List(ctx, ns, opts)
		change(opts, &page)
		return page, err
	}
}

// breakages has at least one deliberate breakage for every law.
var breakages = []struct {
	law    string
	name   string
	broken broken
}{
	{"absent is an answer", "absence is an error", broken{get: func(s *memory.Store, ctx context.Context, ref kv.Ref) (kv.Record, error) {
		rec, err := s.Get(ctx, ref, 0)
		if rec.Absent() {
			return rec, errors.New("not found")
		}
		return rec, err
	}}},
	{"read your write", "puts are dropped", broken{put: func(*memory.Store, context.Context, kv.Ref, kv.Record) error { return nil }}},
	{"newest wins in any order", "the last put wins", broken{put: putIf(func(_, _ kv.Record) bool { return false })}},
	{"newest wins in any order", "the first put wins", broken{put: putIf(func(old, _ kv.Record) bool { return !old.Absent() })}},
	{"repeating changes nothing", "the last put wins", broken{put: putIf(func(_, _ kv.Record) bool { return false })}},
	{"ties are broken the same way", "of equal versions the last put wins", broken{put: putIf(func(old, rec kv.Record) bool { return old.Version.Compare(rec.Version) > 0 })}},
	{"ties are broken the same way", "of equal versions the first put wins", broken{put: putIf(func(old, rec kv.Record) bool { return old.Version.Compare(rec.Version) >= 0 })}},
	{"a tombstone is a record", "a delete removes the record", broken{put: func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		if err := s.Put(ctx, ref, rec); err != nil || !rec.Tombstone {
			return err
		}
		return s.Forget(ctx, []kv.Tomb{{Ref: ref, Version: rec.Version}})
	}}},
	{"stores hide nothing", "expired records are hidden", broken{get: func(s *memory.Store, ctx context.Context, ref kv.Ref) (kv.Record, error) {
		rec, err := s.Get(ctx, ref, 0)
		if rec.Expired(time.Now()) {
			return kv.Record{}, err
		}
		return rec, err
	}}},
	{"stores hide nothing", "tombstones are not listed", broken{list: listChanged(func(_ kv.ListOptions, page *kv.Page) {
		page.Keys = slices.DeleteFunc(page.Keys, func(k kv.Listed) bool { return k.Record.Tombstone })
	})}},
	{"empty is a value", "an empty value is a delete", broken{put: putChanged(func(rec *kv.Record) { rec.Tombstone = rec.Tombstone || len(rec.Value) == 0 })}},
	{"overwriting clears metadata and expiration", "metadata stays", broken{put: func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		old, err := s.Get(ctx, ref, 0)
		if err == nil && len(rec.Metadata) == 0 && !rec.Tombstone {
			rec.Metadata = old.Metadata
		}
		return errors.Join(err, s.Put(ctx, ref, rec))
	}}},
	{"large values", "large values are cut", broken{put: putChanged(func(rec *kv.Record) { rec.Value = rec.Value[:min(len(rec.Value), kv.ReserveBytes)] })}},
	{"awkward keys", "keys end at a zero byte", broken{put: putAt(func(ref kv.Ref) kv.Ref {
		ref.Key, _, _ = strings.Cut(ref.Key, "\x00")
		return ref
	})}},
	{"awkward keys", "keys are cleaned like paths", broken{put: putAt(func(ref kv.Ref) kv.Ref {
		ref.Key = strings.ReplaceAll(ref.Key, "//", "/")
		return ref
	})}},
	{"pages are in byte order", "a page repeats the last key of the one before", broken{list: func(s *memory.Store, ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
		if opts.After != "" {
			opts.After = opts.After[:len(opts.After)-1]
		}
		return s.List(ctx, ns, opts)
	}}},
	{"pages are in byte order", "every other key is lost at the page's end", broken{list: listChanged(func(_ kv.ListOptions, page *kv.Page) {
		if page.More && len(page.Keys) > 1 {
			page.Keys = page.Keys[:len(page.Keys)-1]
		}
	})}},
	{"prefixes", "the successor of 0xff is lost", broken{list: func(s *memory.Store, ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
		if strings.HasPrefix(opts.Prefix, "\xff") {
			return kv.Page{}, nil
		}
		return s.List(ctx, ns, opts)
	}}},
	{"prefixes", "the prefix is ignored", broken{list: func(s *memory.Store, ctx context.Context, ns kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
		opts.Prefix = ""
		return s.List(ctx, ns, opts)
	}}},
	{"namespaces are apart", "there is one namespace", broken{
		get: func(s *memory.Store, ctx context.Context, ref kv.Ref) (kv.Record, error) {
			return s.Get(ctx, kv.Ref{Key: ref.Key}, 0)
		},
		put: putAt(func(ref kv.Ref) kv.Ref { return kv.Ref{Key: ref.Key} }),
		list: func(s *memory.Store, ctx context.Context, _ kv.NamespaceID, opts kv.ListOptions) (kv.Page, error) {
			return s.List(ctx, kv.NamespaceID{}, opts)
		}}},
	{"many at once", "of two writes of a key in a batch the later in it wins", broken{putMany: func(s *memory.Store, ctx context.Context, writes []kv.Write) error {
		for _, w := range writes {
			if err := replace(s, ctx, w.Ref, w.Record); err != nil {
				return err
			}
		}
		return nil
	}}},
	{"forget only that tombstone", "whatever the key holds is forgotten", broken{forget: func(s *memory.Store, ctx context.Context, tombs []kv.Tomb) error {
		for _, tomb := range tombs {
			rec, err := s.Get(ctx, tomb.Ref, 0)
			if err != nil || rec.Absent() {
				continue
			}
			if err := s.Put(ctx, tomb.Ref, kv.Tombstone(kv.NewVersion(1<<62, 0, 0))); err != nil {
				return err
			}
			if err := s.Forget(ctx, []kv.Tomb{{Ref: tomb.Ref, Version: kv.NewVersion(1<<62, 0, 0)}}); err != nil {
				return err
			}
		}
		return nil
	}}},
	{"drop only that namespace", "nothing is dropped", broken{drop: func(*memory.Store, context.Context, kv.NamespaceID) error { return nil }}},
	{"namespaces that hold records", "the first of a page is lost", broken{spaces: func(s *memory.Store, ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
		page, err := s.Namespaces(ctx, after, limit)
		return page[min(len(page), 1):], err
	}}},
	{"namespaces that hold records", "pages begin with the cursor", broken{spaces: func(s *memory.Store, ctx context.Context, after kv.NamespaceID, limit int) ([]kv.NamespaceID, error) {
		page, err := s.Namespaces(ctx, after, limit-1)
		if len(page) == 0 || after == (kv.NamespaceID{}) {
			return page, err
		}
		return append([]kv.NamespaceID{after}, page...), err
	}}},
	{"changes name every write", "a change is lost now and then", broken{changes: func(s *memory.Store, ctx context.Context, after kv.Cursor, limit int) ([]kv.Change, kv.Cursor, error) {
		all, next, err := s.Changes(ctx, after, limit)
		if len(all) > 3 {
			all = slices.Delete(all, 1, 2)
		}
		return all, next, err
	}}},
	{"a change wakes who awaits it", "it wakes at once", broken{await: func(*memory.Store, context.Context, kv.Cursor) error { return nil }}},
	{"a cancelled context ends a call", "the context is ignored", broken{
		get: func(s *memory.Store, _ context.Context, ref kv.Ref) (kv.Record, error) {
			return s.Get(context.Background(), ref, 0)
		}}},
	{"concurrent writers agree", "reading and writing are apart", broken{put: func(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
		old, err := s.Get(ctx, ref, 0)
		if err != nil || old.Compare(rec) >= 0 {
			return err
		}
		for range 20 {
			runtime.Gosched()
		}
		return replaceOne(s, ctx, ref, rec)
	}}},
	{"random operations match the model", "one key in a hundred loses its metadata", broken{get: func(s *memory.Store, ctx context.Context, ref kv.Ref) (kv.Record, error) {
		rec, err := s.Get(ctx, ref, 0)
		if rec.Version[15]%100 == 7 {
			rec.Metadata = nil
			rec.Value = bytes.Clone(rec.Value[:len(rec.Value)/2])
		}
		return rec, err
	}}},
}

// replaceOne puts rec over whatever ref holds by way of forgetting it.
func replaceOne(s *memory.Store, ctx context.Context, ref kv.Ref, rec kv.Record) error {
	top := kv.NewVersion(1<<62, 0, 0)
	return errors.Join(s.Put(ctx, ref, kv.Tombstone(top)), s.Forget(ctx, []kv.Tomb{{Ref: ref, Version: top}}), s.Put(ctx, ref, rec))
}

// witness watches a law and remembers that it failed.
type witness struct {
	mu      sync.Mutex // guards failure
	failure string
}

func (w *witness) Helper()             {}
func (w *witness) Logf(string, ...any) {}
func (w *witness) Fatalf(format string, args ...any) {
	w.mu.Lock()
	w.failure = fmt.Sprintf(format, args...)
	w.mu.Unlock()
	runtime.Goexit()
}

// check runs a law and returns how it failed, or "".
func check(law kvtest.Law, s kv.Store, seed uint64) string {
	w := &witness{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		law.Check(w, kvtest.NewSubject(s, seed))
	}()
	<-done
	return w.failure
}

func TestEveryBreakageIsCaught(t *testing.T) {
	covered := map[string]bool{}
	for _, b := range breakages {
		covered[b.law] = true
		t.Run(b.name, func(t *testing.T) {
			i := slices.IndexFunc(kvtest.Laws(), func(l kvtest.Law) bool { return l.Name == b.law })
			if i < 0 {
				t.Fatalf("no law %q", b.law)
			}
			// Laws of chance need more than one throw.
			for seed := range uint64(50) {
				b.broken.Store = memory.New()
				if failure := check(kvtest.Laws()[i], &b.broken, seed); failure != "" {
					t.Logf("law %q: %s", b.law, failure)
					return
				}
			}
			t.Errorf("law %q holds although %s", b.law, b.name)
		})
	}
	for _, law := range kvtest.Laws() {
		if !covered[law.Name] {
			t.Errorf("law %q has no breakage that shows that it can fail", law.Name)
		}
	}
}

func TestWholeWrapperIsLawful(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return &broken{Store: memory.New()} })
}

func TestFaultyWithoutFaultsIsLawful(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store {
		return &kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.None }}
	})
}

func TestFaults(t *testing.T) {
	ctx, ref := context.Background(), kv.Ref{Key: "k"}
	rec := kv.Record{Version: kv.NewVersion(1, 1, 1), Value: []byte("v")}
	for fault, stored := range map[kvtest.Fault]bool{kvtest.None: true, kvtest.Refused: false, kvtest.Unacknowledged: true, kvtest.Hang: false} {
		for _, op := range []kvtest.Op{kvtest.OpPut, kvtest.OpPutMany} {
			inner := memory.New()
			s := &kvtest.Faulty{Store: inner, Inject: func(o kvtest.Op, _ kv.Ref) kvtest.Fault {
				if o == op {
					return fault
				}
				return kvtest.None
			}}
			ctx, cancel := context.WithCancel(ctx)
			if fault == kvtest.Hang {
				time.AfterFunc(time.Millisecond, cancel)
			}
			var err error
			if op == kvtest.OpPut {
				err = s.Put(ctx, ref, rec)
			} else {
				err = s.PutMany(ctx, []kv.Write{{Ref: ref, Record: rec}})
			}
			cancel()
			if (err == nil) != (fault == kvtest.None) {
				t.Errorf("%s under fault %d: %v", op, fault, err)
			}
			got, err := inner.Get(context.Background(), ref, 0)
			if err != nil || got.Absent() == stored {
				t.Errorf("%s under fault %d: stored %v, want %v (%v)", op, fault, !got.Absent(), stored, err)
			}
		}
	}
	s := &kvtest.Faulty{Store: memory.New(), Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Refused }}
	if _, err := s.Get(ctx, ref, 0); !errors.Is(err, kvtest.ErrInjected) || !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("refused get: %v", err)
	}
	if _, err := s.List(ctx, ref.Namespace, kv.ListOptions{}); !errors.Is(err, kvtest.ErrInjected) {
		t.Errorf("refused list: %v", err)
	}
}
