package postgres

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/nearkey/nearkey/internal/pgtest"
	"github.com/nearkey/nearkey/kv"
)

// The benchmarks compare concurrent calls that travel together with the same
// calls one by one, and with plain pgx.

const benchKeys = 20_000

func benchServer(b *testing.B) *pgtest.Server {
	return pgtest.Start(b, "fsync=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB")
}

func benchRecord(time int64) kv.Record {
	return kv.Record{Version: kv.NewVersion(time, 1, 1), Value: make([]byte, 288), Metadata: []byte(`{"n":1}`)}
}

func BenchmarkPut(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		for name, opts := range map[string]Options{"together": {}, "alone": {alone: true}} {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				server := benchServer(b)
				s := mustOpen(b, server.URL(), opts)
				var version atomic.Int64
				parallel(b, server, callers, func(rng *rand.Rand) error {
					return s.Put(b.Context(), kv.Ref{Key: fmt.Sprint(rng.IntN(benchKeys))}, benchRecord(version.Add(1)))
				})
				b.ReportMetric(float64(s.Stats().Puts)/float64(max(1, s.Stats().PutStatements)), "puts/statement")
			})
		}
		b.Run(fmt.Sprintf("pgx/%d", callers), func(b *testing.B) {
			server := benchServer(b)
			url := server.URL()
			mustOpen(b, url, Options{}) // makes the tables
			pool, err := pgxpool.New(b.Context(), url+"&pool_max_conns=64")
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			var version atomic.Int64
			parallel(b, server, callers, func(rng *rand.Rand) error {
				w := kv.Write{Ref: kv.Ref{Key: fmt.Sprint(rng.IntN(benchKeys))}, Record: benchRecord(version.Add(1))}
				_, err := pool.Exec(b.Context(), sqlPut, putArguments(w)...)
				return err
			})
		})
	}
}

func BenchmarkGet(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		for name, opts := range map[string]Options{"together": {}, "alone": {alone: true}} {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				server := benchServer(b)
				s := mustOpen(b, server.URL(), opts)
				var writes []kv.Write
				for i := range benchKeys {
					writes = append(writes, kv.Write{Ref: kv.Ref{Key: fmt.Sprint(i)}, Record: benchRecord(1)})
				}
				if err := s.PutMany(b.Context(), writes); err != nil {
					b.Fatal(err)
				}
				parallel(b, server, callers, func(rng *rand.Rand) error {
					_, err := s.Get(b.Context(), kv.Ref{Key: fmt.Sprint(rng.IntN(benchKeys))}, 0)
					return err
				})
				b.ReportMetric(float64(s.Stats().Gets)/float64(max(1, s.Stats().GetStatements)), "gets/statement")
			})
		}
	}
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parallel has so many callers do b.N operations, and reports what an operation
// cost this process and the server.
func parallel(b *testing.B, server *pgtest.Server, callers int, operation func(*rand.Rand) error) {
	own, theirs := ownCPU(), server.CPU()
	defer func() {
		each := func(used time.Duration) float64 { return float64(used.Microseconds()) / float64(b.N) }
		b.ReportMetric(each(ownCPU()-own), "own-µs/op")
		b.ReportMetric(each(server.CPU()-theirs), "server-µs/op")
		b.ReportMetric(0, "ns/op")
	}()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error, callers)
	for i := range callers {
		go func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			var err error
			for err == nil && left.Add(-1) >= 0 {
				err = operation(rng)
			}
			done <- err
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
