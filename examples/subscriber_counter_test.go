package examples_test

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// TestSubscriberCounter: what the server of a feed says in a header is on the display,
// and the feed is as ever.
func TestSubscriberCounter(t *testing.T) {
	t.Parallel()
	var subscribers atomic.Value // what the server says; empty: nothing
	subscribers.Store("")
	playOrigin(t, "blog.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s := subscribers.Load().(string); s != "" {
			w.Header().Set("X-Subscribers", s)
		}
		if r.URL.Path == "/feed.broken" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, "the "+r.URL.RequestURI()+" of "+r.Host)
	}))
	counters := newNamespace(t, "counters")
	const placeholder = "<id of the namespace>"
	deploy(t, "subscriber-counter/recorder", placeholder, counters.id)
	deploy(t, "subscriber-counter/device", placeholder, counters.id)
	blog, device := site("http://blog.example"), worker("subscriber-device")

	device.get(t, "/blog.example").want(t, http.StatusNotFound, "nobody has counted")
	device.get(t, "/").want(t, http.StatusNotFound, "")
	blog.get(t, "/feed.xml?page=2").want(t, http.StatusOK, "the /feed.xml?page=2 of blog.example")

	shows := func(text string) func() error {
		return func() error {
			var shown struct{ Frames []struct{ Text string } }
			a := device.get(t, "/blog.example")
			if a.status != http.StatusOK {
				return fmt.Errorf("status %d", a.status)
			}
			a.into(t, &shown)
			if len(shown.Frames) != 1 || shown.Frames[0].Text != text {
				return fmt.Errorf("the display shows %s", a.body)
			}
			return nil
		}
	}
	for _, step := range []struct{ says, shown string }{{"999", "999"}, {"1234", "1,234"}} {
		subscribers.Store(step.says)
		blog.get(t, "/feed.xml").want(t, http.StatusOK, "the /feed.xml").wantHeader(t, "X-Subscribers", step.says)
		nearkeytest.Eventually(t, "the display shows "+step.shown, shows(step.shown))
	}
	// What is no number, what is not the feed, and what failed is not counted. The last
	// request that counts is the proof that those before it were done with.
	for _, nonsense := range []string{"many", "-1", "1e3", "9999999999999"} {
		subscribers.Store(nonsense)
		blog.get(t, "/feed.xml").want(t, http.StatusOK, "the /feed.xml")
	}
	subscribers.Store("1")
	blog.get(t, "/about").want(t, http.StatusOK, "the /about of blog.example")
	blog.get(t, "/feed.broken").want(t, http.StatusInternalServerError, "")
	check(t, shows("1,234")())
	subscribers.Store("5")
	blog.get(t, "/feed.xml").want(t, http.StatusOK, "")
	nearkeytest.Eventually(t, "the display shows 5", shows("5"))
	if keys := counters.keys(t, ""); len(keys) != 1 || keys[0].Name != "blog.example" {
		t.Fatalf("the namespace holds %+v", keys)
	}
}
