package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/s3test"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/store/s3"
)

func openBucket(t *testing.T, server *s3test.Server, opts s3.Options) *s3.Bucket {
	t.Helper()
	opts.Endpoint, opts.Region, opts.Bucket, opts.PathStyle = server.Endpoint, server.Region, server.Bucket, true
	opts.AccessKeyID, opts.SecretKeyFile = server.AccessKeyID, server.SecretKeyFile
	b, err := s3.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// real is a Split whose blobs are in a real S3 server.
func real(t *testing.T, server *s3test.Server, opts s3.Options) (*fixture, *s3.Bucket) {
	b := openBucket(t, server, opts)
	f := newFixture(t, SplitOptions{})
	f.blobs, f.index = b, b
	return f, b
}

// objectOf is the name of the object that keeps a record's value.
func objectOf(server *s3test.Server, rec kv.Record) string {
	objects := server.Objects()
	return objects[slices.IndexFunc(objects, func(name string) bool { return strings.Contains(name, rec.Version.String()) })]
}

func TestSplitLawsOnS3(t *testing.T) {
	server := s3test.Start(t)
	b := openBucket(t, server, s3.Options{})
	for name, inline := range lawThresholds {
		t.Run(name, func(t *testing.T) {
			kvtest.Run(t, func(*testing.T) kv.Store {
				return NewSplit(memory.New(), b, b, SplitOptions{InlineBytes: inline})
			})
		})
	}
}

func TestBlobsThatS3Lost(t *testing.T) {
	server := s3test.Start(t)
	f, _ := real(t, server, s3.Options{})
	value := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{2})
	_, _ = rng.Read(value) // it always reads all
	for name, ruin := range map[string]func(object string){
		"wiped":     func(object string) { server.Wipe(object) },
		"corrupted": func(object string) { server.Corrupt(object) },
		"wiped while the server was down": func(object string) {
			server.Kill()
			server.Wipe(object)
			server.Restart()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			rec := f.put("k", value)
			ruin(objectOf(server, rec))
			f.mustBeDamaged("k")
			f.must(f.Put(t.Context(), testRef("k"), rec))
			f.mustGet("k", rec)
		})
	}
}

// While the bucket does not serve, small values go on, large ones fail in a way
// that says so, and nothing is left half done.
func TestSplitWhileS3DoesNotServe(t *testing.T) {
	server := s3test.Start(t)
	f, _ := real(t, server, s3.Options{Timeout: 300 * time.Millisecond})
	old := f.put("large", large("old", InlineBytes+1))
	for name, fault := range map[string]struct{ begin, end func() }{
		"killed": {server.Kill, server.Restart},
		"frozen": {server.Stop, server.Cont},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			fault.begin()
			small := f.put("small", []byte(name))
			f.mustGet("small", small)
			rec := kv.Record{Version: f.next(), Value: large(name, InlineBytes+1)}
			_, getErr := f.Get(t.Context(), testRef("large"), 0)
			_, sweepErr := f.Sweep(t.Context())
			for what, err := range map[string]error{
				"get": getErr, "sweep": sweepErr,
				"put":      f.Put(t.Context(), testRef("large"), rec),
				"put many": f.PutMany(t.Context(), []kv.Write{{Ref: testRef("large"), Record: rec}, {Ref: testRef("other"), Record: rec}}),
			} {
				if !errors.Is(err, kv.ErrUnavailable) {
					t.Errorf("%s: %v, want ErrUnavailable", what, err)
				}
			}
			fault.end()
			f.mustGet("large", old)
			f.must(f.Put(t.Context(), testRef("large"), rec))
			f.mustGet("large", rec)
			f.must(f.Forget(t.Context(), nil))
			old = rec
		})
	}
}

func TestSweepAndDropOnS3(t *testing.T) {
	server := s3test.Start(t)
	f, b := real(t, server, s3.Options{})
	var wg sync.WaitGroup
	recs := make([]kv.Record, 40)
	for i := range recs {
		recs[i] = kv.Record{Version: f.next(), Value: large(fmt.Sprint(i), InlineBytes+1)}
		wg.Go(func() {
			if err := f.Put(t.Context(), testRef(fmt.Sprint(i)), recs[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	orphan := func(key string, age time.Duration) {
		value := []byte(key)
		name := newReference(value, time.Now().Add(-age)).name(key, f.next())
		f.must(b.Put(t.Context(), name.in(testNamespace), value))
	}
	orphan("old", OrphanAge+time.Hour)
	orphan("young", OrphanAge-time.Hour)
	server.Wipe(objectOf(server, recs[0]))
	f.mustSweep(SweepReport{Namespaces: 1, Rows: 40, Blobs: 41, Orphans: 1, Young: 1}) // whose blob is gone was put just now
	if n := len(server.Objects()); n != 40 {
		t.Errorf("%d objects are left, want 40", n)
	}
	f.mustBeDamaged("0")
	for i, rec := range recs[1:] {
		f.mustGet(fmt.Sprint(i+1), rec)
	}
	f.must(f.Drop(t.Context(), testNamespace))
	if left := server.Objects(); len(left) != 0 {
		t.Errorf("%v are left after the drop", left)
	}
}
