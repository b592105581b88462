package workerd_test

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// Clients that take nothing of their answers, or send nothing of their requests, do
// not keep a Worker from others.
func TestDeafAndDumbClients(t *testing.T) {
	w := start(t, workerd.Options{Requests: 2, Pause: 200 * time.Millisecond})
	w.deploy(worker("a", "1", `export default { async fetch(request) {
		if (request.method === "POST") return new Response((await request.text()).length);
		if (request.url.endsWith("/big")) return new Response(new Uint8Array(32 << 20));
		return new Response("here");
	} }`))
	for name, head := range map[string]string{
		"takes nothing":                     "GET /big HTTP/1.1\r\nHost: a.dev.localhost\r\n\r\n",
		"sends half of a small body":        "POST / HTTP/1.1\r\nHost: a.dev.localhost\r\nContent-Length: 10\r\n\r\nhalf",
		"sends half of a large body":        "POST / HTTP/1.1\r\nHost: a.dev.localhost\r\nContent-Length: 1000000\r\n\r\nhalf",
		"sends a chunk and then no further": "POST / HTTP/1.1\r\nHost: a.dev.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := fmt.Fprint(c, head); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "both have a place", func() bool { return w.status("a").InFlight == 2 })
			until(t, "both have lost it", func() bool { return w.status("a").InFlight == 0 })
			w.want("a", "/", 200, "here")
		})
	}
}

// A Worker that is silent for longer than a client may be is still heard.
func TestSilentWorker(t *testing.T) {
	const pause = 100 * time.Millisecond
	w := start(t, workerd.Options{Pause: pause})
	w.deploy(worker("a", "1", `export default { async fetch(request) {
		await scheduler.wait(300);
		const { readable, writable } = new TransformStream();
		const out = writable.getWriter(), text = new TextEncoder();
		(async () => {
			await out.write(text.encode("one "));
			await scheduler.wait(300);
			await out.write(text.encode("two"));
			await out.close();
		})();
		return new Response(readable);
	} }`))
	w.want("a", "/", 200, "one two")
}

// What only we may tell a Worker a client cannot.
func TestHeadersThatAreOurs(t *testing.T) {
	w := start(t, workerd.Options{})
	names := []string{"CF-IPCountry", "CF-Visitor", "CF-Worker", "CF-EW-Via", "CF-Connecting-IPv6", "CF-Pseudo-IPv4", "True-Client-IP", "X-Real-IP", "CF-Connecting-IP"}
	list, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	w.deploy(worker("a", "1", `export default { fetch(request) { return Response.json(`+string(list)+`.map((n) => request.headers.get(n))); } }`))
	r := w.request("GET", "a", "/", nil)
	for _, name := range names {
		r.Header.Set(name, "spoofed")
	}
	_, body := w.do(r)
	var seen []*string
	if err := json.Unmarshal([]byte(body), &seen); err != nil || len(seen) != len(names) {
		t.Fatal(body, err)
	}
	if i := slices.IndexFunc(seen, func(s *string) bool { return s != nil && strings.Contains(*s, "spoofed") }); i >= 0 {
		t.Errorf("%s came through: %s", names[i], body)
	}
}
