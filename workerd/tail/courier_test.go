package tail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// centre is where a Courier delivers to.
type centre struct {
	mu      sync.Mutex
	batches map[string][]string // by tail
	fault   func(ctx context.Context, tail string) error
}

func (c *centre) deliver(ctx context.Context, accountID, worker string, t catalog.PublishedTail, events []byte) error {
	c.mu.Lock()
	fault := c.fault
	c.mu.Unlock()
	if fault != nil {
		if err := fault(ctx, t.ID); err != nil {
			return err
		}
	}
	var list []json.RawMessage
	if err := json.Unmarshal(events, &list); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	kinds := []string{}
	for _, e := range list {
		kinds = append(kinds, short(e))
	}
	c.batches[t.ID] = append(c.batches[t.ID], strings.Join(kinds, ","))
	return nil
}

func (c *centre) got(tail string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.batches[tail], "|")
}

// edge is a Courier of a Worker's tails.
type edge struct {
	*Courier
	tails []catalog.PublishedTail
}

func (e *edge) Publish(event json.RawMessage) { e.Courier.Publish(account, name, e.tails, event) }

// newCourier returns a Courier that runs in a bubble, and where it delivers to.
func newCourier(t *testing.T, tails ...catalog.PublishedTail) (*edge, *centre) {
	for i := range tails {
		tails[i].Expires = time.Now().Add(time.Hour)
	}
	to := &centre{batches: map[string][]string{}}
	c := &edge{NewCourier(CourierOptions{Deliver: to.deliver}), tails}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	return c, to
}

// Each tail gets what passes its filters, in batches; an expired one gets nothing.
func TestCourier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, to := newCourier(t, catalog.PublishedTail{ID: "a"}, catalog.PublishedTail{ID: "b", Filters: json.RawMessage(`[{"outcome":["exception"]}]`)},
			catalog.PublishedTail{ID: "c", Filters: json.RawMessage(`[{"later":"version"}]`)})
		c.Publish(request("ok", "GET", "1"))
		c.Courier.Publish(account, "other", nil, request("ok", "GET", "2"))
		c.Publish(request("exception", "GET", "3"))
		time.Sleep(time.Second)
		c.Publish(request("ok", "GET", "4"))
		time.Sleep(time.Second)
		if got := to.got("a"); got != "ok [1 map[a:1]],exception [3 map[a:1]]|ok [4 map[a:1]]" {
			t.Errorf("a got %s", got)
		}
		if got := to.got("b"); got != "exception [3 map[a:1]]" {
			t.Errorf("b got %s", got)
		}
		if got := to.got("c"); got != "" {
			t.Errorf("a tail with filters that are not understood got %s", got)
		}
		time.Sleep(time.Hour)
		c.Publish(request("ok", "GET", "5"))
		time.Sleep(2 * outboxIdle)
		if got := to.got("a"); strings.Contains(got, "5") {
			t.Errorf("an expired tail got %s", got)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.boxes) != 0 {
			t.Errorf("%d outboxes are left", len(c.boxes))
		}
	})
}

// A tail whose centre hangs holds no other up, loses what is too much, and is told.
func TestCourierHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, to := newCourier(t, catalog.PublishedTail{ID: "a"}, catalog.PublishedTail{ID: "b"})
		var hangs atomic.Bool
		hangs.Store(true)
		to.fault = func(ctx context.Context, tail string) error {
			if tail == "a" && hangs.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		for i := range MaxQueue {
			c.Publish(request("ok", "GET", fmt.Sprint(i)))
			if i%100 == 0 {
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Second)
		if got := to.got("b"); strings.Count(got, "map") != MaxQueue {
			t.Errorf("b got %d events", strings.Count(got, "map"))
		}
		for i := range 2 * MaxQueue {
			c.Publish(request("ok", "GET", fmt.Sprint(i)))
		}
		hangs.Store(false)
		time.Sleep(time.Minute)
		if got := to.got("a"); !strings.Contains(got, "okoverload") || strings.Count(got, "map") > MaxQueue {
			t.Errorf("a got %d events, told of the loss: %v", strings.Count(got, "map"), strings.Contains(got, "okoverload"))
		}
		if c.Dropped() == 0 {
			t.Error("nothing was lost")
		}
	})
}

// A tail that nobody follows any more gets nothing.
func TestCourierClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, to := newCourier(t, catalog.PublishedTail{ID: "a"})
		asked := 0
		to.fault = func(context.Context, string) error { asked++; return ErrTailClosed }
		for range 10 {
			c.Publish(request("ok", "GET", "x"))
			time.Sleep(time.Second)
		}
		if asked != 1 {
			t.Errorf("it was delivered to %d times", asked)
		}
	})
}

func TestMaxOutboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tails []catalog.PublishedTail
		for i := range MaxOutboxes + 1 {
			tails = append(tails, catalog.PublishedTail{ID: fmt.Sprint(i)})
		}
		c, to := newCourier(t, tails...)
		c.Publish(request("ok", "GET", "x"))
		time.Sleep(time.Second)
		if to.got(fmt.Sprint(MaxOutboxes-1)) == "" || to.got(fmt.Sprint(MaxOutboxes)) != "" || c.Dropped() != 1 {
			t.Errorf("the last got %q, one more %q", to.got(fmt.Sprint(MaxOutboxes-1)), to.got(fmt.Sprint(MaxOutboxes)))
		}
	})
}

// What the API answers is understood.
func TestDeliverTo(t *testing.T) {
	status := http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/client/v4/accounts/"+account+"/workers/scripts/shop/tails/tail-1/events" || r.Header.Get(HeaderIngest) != "secret" {
			t.Errorf("%s %s %s", r.Method, r.URL, r.Header)
		}
		w.WriteHeader(status)
	}))
	defer s.Close()
	deliver := DeliverTo(s.URL+"/client/v4", s.Client())
	for status = range map[int]bool{200: true, 403: true, 404: true, 503: true} {
		err := deliver(t.Context(), account, name, catalog.PublishedTail{ID: "tail-1", Ingest: "secret"}, []byte("[]"))
		if (err == nil) != (status == 200) || errors.Is(err, ErrTailClosed) != (status == 403 || status == 404) {
			t.Errorf("status %d: %v", status, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}
