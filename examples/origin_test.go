package examples_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// origins is the server behind all routes. The hosts are known before any test
// runs, since the server is configured with them; what they answer is each test's.
type origins struct {
	*httptest.Server
	hosts []string

	mu       sync.Mutex // guards handlers
	handlers map[string]http.Handler
}

func newOrigins(hosts []string) *origins {
	o := &origins{hosts: hosts, handlers: map[string]http.Handler{}}
	o.Server = httptest.NewServer(http.HandlerFunc(o.serve))
	return o
}

func (o *origins) serve(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	h := o.handlers[r.Host]
	o.mu.Unlock()
	if h == nil {
		http.Error(w, "nobody plays "+r.Host, http.StatusMisdirectedRequest)
		return
	}
	h.ServeHTTP(w, r)
}

// playOrigin answers what is asked of the server of a host until the test ends.
func playOrigin(t *testing.T, host string, h http.Handler) {
	t.Helper()
	o := shared.origins
	if !slices.Contains(o.hosts, host) {
		t.Fatalf("%s is not one of the hosts that the server is configured with", host)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.handlers[host] != nil {
		t.Fatalf("two tests play %s", host)
	}
	o.handlers[host] = h
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.handlers, host)
	})
}
