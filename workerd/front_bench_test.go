package workerd_test

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// BenchmarkHandler tells what a request costs this process on its way to a hello
// world and back (cpu-µs/op), without the server before it.
func BenchmarkHandler(b *testing.B) {
	w := start(b, workerd.Options{})
	w.deploy(worker("a", "1", answering(`"Hello World!"`)))
	h := w.rt.Handler("a")
	request := httptest.NewRequest("GET", "http://a.dev.localhost/", nil)
	for _, name := range []string{"Accept", "Accept-Encoding", "User-Agent"} {
		request.Header.Set(name, "something of a usual length")
	}
	b.ReportAllocs()
	b.SetParallelism(16)
	before := used()
	b.RunParallel(func(pb *testing.PB) {
		rw := &discard{header: http.Header{}}
		for pb.Next() {
			clear(rw.header)
			h.ServeHTTP(rw, request)
			if rw.status != 200 {
				b.Errorf("status %d", rw.status)
			}
		}
	})
	b.ReportMetric(float64((used()-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/op")
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

// used is the CPU time of this process.
func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
