package workerd_test

import (
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// A process that a signal stops is replaced: what it had not seen is answered by the
// next one, what it may have begun fails. A Worker that only waits is left alone.
func TestStopped(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	socket := service(t, func(http.ResponseWriter, *http.Request) { close(asked); <-answer })
	w := start(t, workerd.Options{Egress: socket})
	w.deploy(worker("waits", "1", `export default {async fetch() { await fetch("http://x/"); return new Response("at last") }}`))
	w.deploy(worker("stopped", "1", answering(`"ok " + await r.text()`)))
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { w.want("waits", "/", 200, "at last") })
	<-asked
	waits := w.status("waits").PID

	w.want("stopped", "/", 200, "ok ") // its connection is kept
	pid := w.status("stopped").PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second}
	for range 3 {
		all.Go(func() { w.want("stopped", "/", 200, "ok ") })
		all.Go(func() {
			res, err := client.Do(w.request("POST", "stopped", "/", strings.NewReader("body")))
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if res.StatusCode != 500 {
				t.Errorf("a request that may have been begun: %d", res.StatusCode)
			}
		})
	}
	until(t, "it is replaced", func() bool { s := w.status("stopped"); return s.Crashes == 1 && s.PID != 0 && s.PID != pid })
	if s := w.status("waits"); s.PID != waits || s.Crashes != 0 {
		t.Errorf("the Worker that waits: %+v, was %d", s, waits)
	}
	close(answer)
}
