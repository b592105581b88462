package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestGenerator(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.URL.Path))
	}))
	defer web.Close()
	s := &server{addr: web.Listener.Addr().String()}
	right := func(int) (wire, want []byte) {
		return []byte("GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"), []byte("/a")
	}
	g, err := newGenerator(s, 3, 4, right)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	for answered := 0; answered == 0; { // a busy machine may give it no time
		ops, latencies, err := g.closed(t.Context(), 50*time.Millisecond)
		if err != nil || len(latencies) > ops/4 {
			t.Fatalf("closed: %d answers, %d latencies, %v", ops, len(latencies), err)
		}
		answered = len(latencies)
		if err := g.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	latencies, late, err := g.open(t.Context(), 200, 100*time.Millisecond)
	if err != nil || len(latencies) != 20 || len(late) != 20 {
		t.Fatalf("open: %d latencies, %d sent, %v", len(latencies), len(late), err)
	}
	wrong, err := newGenerator(s, 1, 1, func(int) (wire, want []byte) { wire, _ = right(0); return wire, []byte("/b") })
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.close()
	if _, _, err := wrong.closed(t.Context(), time.Minute); err == nil || !strings.Contains(err.Error(), "not the value") {
		t.Errorf("a wrong value is taken: %v", err)
	}
}

// TestOpenCountsFromDue: a request that could not be sent, since the only
// connection waited for its answer, was due all the same.
func TestOpenCountsFromDue(t *testing.T) {
	const stall = 100 * time.Millisecond
	first := true
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			<-time.After(stall)
		}
		first = false
	}))
	defer web.Close()
	g, err := newGenerator(&server{addr: web.Listener.Addr().String()}, 1, 1, func(int) (wire, want []byte) {
		return []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	latencies, _, err := g.open(t.Context(), 100, stall)
	if err != nil || len(latencies) != 10 {
		t.Fatalf("%d answers, %v", len(latencies), err)
	}
	for i, took := range latencies {
		if least := stall - time.Duration(i)*10*time.Millisecond; took < least {
			t.Errorf("request %d was due %s before the stall ended, and counts %s", i, least, took)
		}
	}
}

func TestDirectives(t *testing.T) {
	got := directives("HTTP/1.1 200 OK\r\nAge: 0\r\nContent-Length: 5\r\nDate: now\r\nX-Request-Id: ab cd")
	if want := ` add_header Age "0"; add_header X-Request-Id "ab cd";`; !strings.HasSuffix(got, want) || strings.Contains(got, "Date") {
		t.Errorf("got %s", got)
	}
}

func TestVerdicts(t *testing.T) {
	var out strings.Builder
	b := &bench{out: &out}
	b.atLeast("ratio", 1.5, 1.5, "", "why it is low")
	b.atLeast("rate", 99, 100, "/s", "one core")
	b.atMost("p99", 1.1, 1, "ms", "a stall")
	b.printVerdicts()
	text := out.String()
	if strings.Count(text, "met") != 1 || strings.Contains(text, "low") || !strings.Contains(text, "FALLS SHORT: one core") || !strings.Contains(text, "FALLS SHORT: a stall") {
		t.Error(text)
	}
}

func TestDay(t *testing.T) {
	with, err := newDay(time.Hour, 10, 1, true).run(t.Context())
	if err != nil || with.perChange > 1 || with.far < with.first || with.changes < 3000 {
		t.Errorf("with the feed: %+v, %v", with, err)
	}
	without, err := newDay(time.Hour, 10, 1, false).run(t.Context())
	if err != nil || without.hits >= with.hits || without.far <= with.far {
		t.Errorf("without: %+v, with: %+v, %v", without, with, err)
	}
	deaf := newDay(time.Hour, 10, 1, true)
	deaf.deaf = true
	if _, err := deaf.run(t.Context()); err == nil || !strings.Contains(err.Error(), "before a change") {
		t.Errorf("a tier that is not told of changes is not noticed: %v", err)
	}
}

func TestTelling(t *testing.T) {
	const changes = 300
	ctx, cancel := context.WithCancel(t.Context())
	told, err := newTelling(ctx, changes, 1, func(int) time.Duration { return time.Millisecond })
	defer told.close(cancel)
	if err == nil {
		err = told.tell(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	known := told.since(func(p *place) []instant { return p.known }, 0)
	visible := told.since(func(p *place) []instant { return p.visible }, 0)
	if len(known) != changes*tellTiers || len(visible) != 2*tellTiers {
		t.Errorf("%d known, %d visible", len(known), len(visible))
	}
}

func TestDistant(t *testing.T) {
	const oneWay = 20 * time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 5)
		n, _ := c.Read(buf)
		_, _ = c.Write(buf[:n])
		c.Close()
	}()
	began := time.Now()
	c, err := distant(oneWay)(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	n, err := c.Read(buf)
	if took := time.Since(began); err != nil || string(buf[:n]) != "hello" || took < 4*oneWay {
		t.Errorf("%q after %s, %v", buf[:n], took, err)
	}
	if _, err := c.Read(buf); err == nil {
		t.Error("the other side has closed, and this one is open")
	}
}

func TestAvailableMemory(t *testing.T) {
	if free, err := availableMemory(); err != nil || free < 1<<20 {
		t.Errorf("%d, %v", free, err)
	}
}

func TestSystemShare(t *testing.T) {
	if share, err := systemShare(os.Getpid()); err != nil || share < 0 || share > 1 {
		t.Errorf("%v, %v", share, err)
	}
	if waitOf([]int{os.Getpid(), 1 << 30}) < 0 {
		t.Error("waited for less than nothing")
	}
}
