package tail

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/websocket"
)

// Each follower gets what passes its filters, and nothing of other Workers.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		everything, errs := w.follow(""), w.follow(`[{"outcome":["exception"]}]`)
		synctest.Wait()
		w.hub.Publish(account, "other", request("ok", "GET", "not yours"))
		w.hub.Publish("another account", name, request("ok", "GET", "not yours"))
		w.hub.Publish(account, name, request("ok", "GET", "fine"))
		w.hub.Publish(account, name, request("exception", "GET", "bad"))
		for _, want := range []string{"ok [fine map[a:1]]", "exception [bad map[a:1]]"} {
			if got := everything.next(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		if got := errs.next(); got != "exception [bad map[a:1]]" {
			t.Errorf("got %s", got)
		}
		if !w.hub.Deliver(errs.tail, []json.RawMessage{request("ok", "GET", "an edge has filtered it")}) {
			t.Error("nobody follows the tail")
		}
		if got := errs.next(); got != "ok [an edge has filtered it map[a:1]]" {
			t.Errorf("got %s", got)
		}
		if w.hub.Deliver(catalog.Tail{ID: "unknown"}, nil) {
			t.Error("somebody follows a tail that nobody opened")
		}
		synctest.Wait()
		if s := w.hub.Stats(); s.Sessions != 2 || s.Sent != 4 || s.Dropped != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A follower who goes away ends the tail, and so do its deletion, its expiry, the
// end of the server, and another follower of the same tail.
func TestEnd(t *testing.T) {
	for _, c := range []struct {
		name, want string
		end        func(*world, *follower)
		after      time.Duration
	}{
		{"follower", "1000 ", func(w *world, f *follower) { f.conn.WriteClose(websocket.CloseNormal, "") }, 0},
		{"cut off", "", func(w *world, f *follower) { f.conn.Close() }, 0},
		{"deleted here", "1000 the tail was closed", func(w *world, f *follower) { w.hub.End(f.tail.ID) }, 0},
		{"deleted elsewhere", "1000 the tail was closed", func(w *world, f *follower) {
			w.register.CloseTail(t.Context(), account, name, f.tail.ID)
		}, renewEvery + time.Second},
		{"silent", "", func(*world, *follower) {}, 2 * idle},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				f := w.follow("")
				synctest.Wait()
				ended := make(chan string, 1)
				if c.name != "silent" {
					go func() { ended <- f.ends() }()
				}
				c.end(w, f)
				time.Sleep(c.after)
				synctest.Wait()
				if c.want != "" {
					if got := <-ended; got != c.want {
						t.Errorf("the end is %q, want %q", got, c.want)
					}
				}
				time.Sleep(2 * closeWait)
				if s := w.hub.Stats(); s.Sessions != 0 || w.register.count() != 0 {
					t.Errorf("%d sessions, %d tails are left", s.Sessions, w.register.count())
				}
			})
		})
	}
}

// A session lives for as long as it may, kept by pings and by its lease.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.follow("")
		began := time.Now()
		if got := f.ends(); got != "1000 the tail has expired" || time.Since(began) != MaxSession {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		if want := int(MaxSession / renewEvery); w.register.renewed < want-1 {
			t.Errorf("renewed %d times, want about %d", w.register.renewed, want)
		}
	})
}

// The session goes on while the catalog cannot be asked.
func TestCatalogDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.follow("")
		synctest.Wait()
		w.register.mu.Lock()
		w.register.fault = catalog.ErrUnavailable
		w.register.mu.Unlock()
		go func() {
			time.Sleep(10*renewEvery + time.Second)
			w.hub.Publish(account, name, request("ok", "GET", "still here"))
		}()
		if got := f.next(); got != "ok [still here map[a:1]]" {
			t.Errorf("got %s", got)
		}
	})
}

// The server's end ends all sessions, and Run waits for them.
func TestServerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var ends []chan string
		for range 3 {
			f := w.follow("")
			end := make(chan string, 1)
			go func() { end <- f.ends() }()
			ends = append(ends, end)
		}
		frozen := w.follow("") // takes nothing
		synctest.Wait()
		began := time.Now()
		w.hub.close()
		if took := time.Since(began); took > 2*closeWait {
			t.Errorf("the end took %v", took)
		}
		for _, end := range ends {
			if got := <-end; got != "1001 the server ends" {
				t.Errorf("the end is %s", got)
			}
		}
		if got := w.attach(frozen.tail).ends(); got != "1013 the server ends" {
			t.Errorf("a new session: %s", got)
		}
	})
}

// Who follows the same tail again takes its place.
func TestReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.follow("")
		synctest.Wait()
		end := make(chan string, 1)
		go func() { end <- old.ends() }()
		again := w.attach(old.tail)
		if got := <-end; got != "1000 the tail is followed anew" {
			t.Errorf("the end is %s", got)
		}
		synctest.Wait()
		w.hub.Publish(account, name, request("ok", "GET", "once"))
		if got := again.next(); got != "ok [once map[a:1]]" {
			t.Errorf("got %s", got)
		}
		if n := w.hub.Stats().Sessions; n != 1 || w.register.count() != 1 {
			t.Errorf("%d sessions, %d tails", n, w.register.count())
		}
	})
}

// A follower who reads too slowly holds nothing up: it is told what it missed, and
// when it has caught up.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		slow, quick := w.follow(""), w.follow("")
		synctest.Wait()
		got := make(chan int)
		go func() {
			n := 0
			for quick.next() != "ok [the last map[a:1]]" {
				n++
			}
			got <- n
		}()
		const extra = 500
		began := time.Now()
		for i := range MaxQueue + extra {
			w.hub.Publish(account, name, request("ok", "GET", fmt.Sprint(i)))
			if i%100 == 0 {
				synctest.Wait() // for the quick one
			}
		}
		w.hub.Publish(account, name, request("ok", "GET", "the last"))
		if took := time.Since(began); took != 0 {
			t.Errorf("publishing took %v", took)
		}
		if n := <-got; n != MaxQueue+extra {
			t.Errorf("the quick one got %d events", n)
		}
		kinds := map[string]int{}
		for kinds["okoverload-stop"] == 0 {
			kinds[strings.Fields(slow.next())[0]]++
		}
		lost := int(w.hub.Stats().Dropped)
		if kinds["okoverload"] != 1 || kinds["ok"]+lost != MaxQueue+extra+1 || lost < extra/2 {
			t.Errorf("it got %v and lost %d", kinds, lost)
		}
	})
}

// A follower who takes nothing at all is cut off; the bytes that wait for it are
// bounded.
func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.follow("")
		synctest.Wait()
		big := request("ok", "GET", strings.Repeat("x", MaxEventBytes-1000))
		for range 10 {
			w.hub.Publish(account, name, big)
		}
		w.hub.mu.Lock()
		s := w.hub.byTail[f.tail.ID]
		w.hub.mu.Unlock()
		s.mu.Lock()
		if s.bytes > MaxQueueBytes || s.lost == 0 {
			t.Errorf("%d bytes wait, %d events were lost", s.bytes, s.lost)
		}
		s.mu.Unlock()
		time.Sleep(stall + closeWait)
		if n := w.hub.Stats().Sessions; n != 0 {
			t.Error("it is still there")
		}
	})
}

func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range MaxSessions {
			w.follow("")
		}
		synctest.Wait()
		if got := w.follow("").ends(); !strings.HasPrefix(got, "1013 200 tails") {
			t.Errorf("the session after the last: %s", got)
		}
		if n := w.hub.Stats().Sessions; n != MaxSessions {
			t.Errorf("%d sessions", n)
		}
		synctest.Wait()
		if n := w.register.count(); n != MaxSessions { // that of the one that was refused was closed
			t.Errorf("%d tails are open", n)
		}
	})
}

// What is no WebSocket is answered, and disturbs no session.
func TestNoWebSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.follow("")
		synctest.Wait()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://hub/"+f.tail.ID, nil)
		res, err := w.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUpgradeRequired || w.hub.Stats().Sessions != 1 {
			t.Errorf("status %d, %d sessions", res.StatusCode, w.hub.Stats().Sessions)
		}
		_, err = websocket.Dial(t.Context(), w.client, "http://hub/"+f.tail.ID, nil, "chat", websocket.Options{})
		var refusal *websocket.HandshakeError
		if !errors.As(err, &refusal) || refusal.Status != http.StatusBadRequest {
			t.Errorf("another protocol: %v", err)
		}
	})
}

// An event that is too large loses its logs first, then all that is large.
func TestFitting(t *testing.T) {
	within := request("ok", "GET", strings.Repeat("x", MaxEventBytes-len(request("ok", "GET", ""))))
	if got := fitting(within); len(got) != MaxEventBytes || &got[0] != &within[0] {
		t.Errorf("an event of %d bytes was changed", len(within))
	}
	got := fitting(request("exception", "GET", strings.Repeat("x", MaxEventBytes)))
	if len(got) > MaxEventBytes || short(got) != "exception" || !strings.Contains(string(got), `"truncated":true`) || !strings.Contains(string(got), "https://shop/") {
		t.Errorf("got %.300s", got)
	}
	got = fitting([]byte(`{"outcome":"exception","event":{"request":{"url":"` + strings.Repeat("x", MaxEventBytes) + `"}},"logs":[],"exceptions":[]}`))
	if short(got) != "exception" || !strings.Contains(string(got), `"event":null`) {
		t.Errorf("got %.300s", got)
	}
	for _, odd := range []string{`{"other":"` + strings.Repeat("x", MaxEventBytes) + `"}`, strings.Repeat("x", MaxEventBytes+1)} {
		if got := fitting([]byte(odd)); len(got) > MaxEventBytes || !json.Valid(got) {
			t.Errorf("got %.300s", got)
		}
	}
}

// Lines that were logged are kept for a bounded time, and sent to who asks.
func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		line := func(text string) []byte {
			return fmt.Appendf(nil, `{"timestamp":%d.5,"level":"warn","message":%q}`, time.Now().UnixMilli(), text)
		}
		w.hub.Log(account, name, "v1", line("old"))
		time.Sleep(RecentAge - time.Minute)
		w.hub.Log(account, name, "v1", line("first"))
		w.hub.Log(account, "other", "v1", line("not yours"))
		w.hub.Log(account, name, "v2", []byte("no JSON"))
		time.Sleep(2 * time.Minute)
		w.hub.Log(account, name, "v2", line("second"))

		w.mu.Lock()
		w.since = time.Now().Add(-24 * time.Hour)
		w.mu.Unlock()
		f := w.follow("")
		for _, want := range []string{" [first]", " [no JSON]", " [second]"} {
			if got := f.next(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		if got := w.follow(`[{"scriptVersion":"v2"},{"query":"sec"},{"outcome":["ok"]}]`).next(); got != " [second]" {
			t.Errorf("got %q", got)
		}
		w.mu.Lock()
		w.since = time.Now().Add(-time.Minute)
		w.mu.Unlock()
		if got := w.follow("").next(); got != " [second]" {
			t.Errorf("got %q", got)
		}
		time.Sleep(RecentAge + 2*time.Minute)
		if s := w.hub.Stats(); s.RecentBytes != 0 {
			t.Errorf("%d bytes are kept", s.RecentBytes)
		}
	})
}

// The memory of kept lines is bounded, for a Worker and for all.
func TestRecentBounds(t *testing.T) {
	h := NewHub(Options{})
	for range 2 * RecentWorkerBytes / 100 {
		h.Log(account, name, "v1", []byte(`{"timestamp":1,"level":"log","message":"x"}`))
	}
	if n := h.Stats().RecentBytes; n > RecentWorkerBytes || n < RecentWorkerBytes/2 {
		t.Errorf("one Worker has %d bytes", n)
	}
	line := []byte(`{"timestamp":1,"level":"log","message":"` + strings.Repeat("x", MaxLineBytes) + `"}`)
	for i := range RecentBytes / MaxLineBytes {
		h.Log(account, fmt.Sprint(i), "v1", line)
	}
	for range 16 { // the busiest is not forgotten for it
		h.Log(account, "busy", "v1", line)
	}
	if n := h.Stats().RecentBytes; n > RecentBytes || n < RecentBytes/2 {
		t.Errorf("all have %d bytes", n)
	}
	if got := h.recent.since(worker{account, name}, time.Time{}); got != nil {
		t.Errorf("the Worker that was silent for longest still has %d lines", len(got))
	}
	if got := h.recent.since(worker{account, "busy"}, time.Time{}); len(got) < 10 {
		t.Errorf("the busy Worker has only %d lines", len(got))
	}
	if at, entry := logEntry(line, time.Now()); len(entry) > MaxLineBytes+200 || at.IsZero() {
		t.Errorf("an entry of %d bytes", len(entry))
	}
}
