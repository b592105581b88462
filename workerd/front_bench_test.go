package workerd_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
		ctx, cancel := context.WithCancel(b.Context()) // as a server's, which ends with the connection
		defer cancel()
		request := request.WithContext(ctx)
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

// BenchmarkRedeploy replaces a Worker that is under load again and again: how long
// a version takes from its deploy to its first answer (live-ms/op), and what is lost
// meanwhile, which is nothing. Run it with -benchtime 100x.
func BenchmarkRedeploy(b *testing.B) {
	w := start(b, workerd.Options{Linger: 100 * time.Millisecond})
	w.deploy(worker("a", "first", answering(`"first"`)))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var requests, lost atomic.Int64
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := client.Do(w.request("POST", "a", "/", strings.NewReader("body")))
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
				if err != nil || res.StatusCode != 200 {
					lost.Add(1)
				}
				requests.Add(1)
			}
		})
	}
	var live time.Duration
	for i := range b.N {
		version := strconv.Itoa(i)
		begun := time.Now()
		w.deploy(worker("a", version, answering(`"`+version+`"`)))
		w.want("a", "/", 200, version)
		live += time.Since(begun)
	}
	close(stop)
	clients.Wait()
	b.ReportMetric(float64(live.Milliseconds())/float64(b.N), "live-ms/op")
	b.ReportMetric(float64(requests.Load())/float64(b.N), "requests/op")
	b.ReportMetric(float64(lost.Load()), "lost")
	if lost.Load() > 0 {
		b.Errorf("%d of %d requests lost", lost.Load(), requests.Load())
	}
}

// SetWriteDeadline is a server's, which knows deadlines.
func (d *discard) SetWriteDeadline(time.Time) error { return nil }
