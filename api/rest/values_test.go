package rest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestPutVerbatim(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []string{"", "text/plain;charset=UTF-8", "application/json", "application/x-www-form-urlencoded", "application/octet-stream",
		"multipart/mixed; boundary=x", "multipart/form-data-not", "nonsense", "multipart/form-dat"} {
		body := `{"metadata":{"a":1},"value":"v"}` + "\x00\xff"
		w.do(request{method: "PUT", path: "values/a", body: body, header: map[string]string{"Content-Type": kind}}).is("null")
		if got := w.value("a"); got != body {
			t.Errorf("%q: stored %q", kind, got)
		}
	}
	w.put("values/empty", "").ok()
	if a := w.get("values/empty").ok(); a.body != "" || a.header.Get("Content-Length") != "0" {
		t.Errorf("empty value: %q %v", a.body, a.header)
	}
}

func TestPutWithoutLength(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{0, 1, firstStep - 1, firstStep, firstStep + 1, 100_000, 3 << 20} {
		body := strings.Repeat("x", n)
		req := w.request(request{method: "PUT", path: "values/a", body: body})
		req.ContentLength = -1
		if rec := recordOf(w, req); rec.Code != 200 {
			t.Fatalf("%d bytes: %d %s", n, rec.Code, rec.Body)
		}
		if got := w.value("a"); got != body {
			t.Errorf("%d bytes came back as %d", n, len(got))
		}
		if rec, _ := w.store.Get(t.Context(), ref(w, "a"), 0); cap(rec.Value) > n+n/7+1 {
			t.Errorf("%d bytes are kept in %d", n, cap(rec.Value))
		}
		if held := w.server.door.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
	}
}

func TestOverwriteClears(t *testing.T) {
	w := newWorld(t)
	w.putForm("values/a?expiration_ttl=100", field{"value", "v"}, field{"metadata", `{"a": 1}`}).ok()
	w.get("metadata/a").is(`{"a":1}`)
	if a := w.get("values/a").ok(); a.header.Get("Expiration") == "" {
		t.Error("no expiration header")
	}
	w.put("values/a", "w").ok()
	w.get("metadata/a").is("null")
	if a := w.get("values/a").ok(); a.header.Get("Expiration") != "" {
		t.Error("the expiration survived an overwrite")
	}
}

func TestExpiration(t *testing.T) {
	w := newWorld(t)
	now := w.rules.Now().Unix()
	past := "put: 'Invalid expiration of %s. Please specify integer greater than the current number of seconds since the UNIX epoch.'"
	soon := "put: 'Invalid expiration of %s. Expiration times must be at least 60 seconds in the future.'"
	noTTL := "put: 'Invalid expiration_ttl of %s. Please specify integer greater than 0.'"
	shortTTL := "put: 'Invalid expiration_ttl of %s. Expiration TTL must be at least 60.'"
	for _, tt := range []struct {
		name, value string
		code        int
		message     string
	}{
		{"expiration", "1", 10033, past}, {"expiration", "0", 10033, past}, {"expiration", "-5", 10033, past},
		{"expiration", "soon", 10033, past}, {"expiration", strconv.FormatInt(now-1, 10), 10033, past},
		{"expiration", strconv.FormatInt(now+50, 10), 10033, soon},
		{"expiration_ttl", "0", 10034, noTTL}, {"expiration_ttl", "-1", 10034, noTTL}, {"expiration_ttl", "1.5", 10034, noTTL},
		{"expiration_ttl", "x", 10034, noTTL}, {"expiration_ttl", "1", 10034, shortTTL}, {"expiration_ttl", "59", 10034, shortTTL},
	} {
		w.put("values/a?"+tt.name+"="+tt.value, "v").fails(400, tt.code, fmt.Sprintf(tt.message, tt.value))
	}
	w.get("values/a").fails(404, 10009, "get: 'key not found'")

	expires := func() int64 {
		n, _ := strconv.ParseInt(w.get("values/a").ok().header.Get("Expiration"), 10, 64)
		return n - now
	}
	w.put("values/a?expiration_ttl=60", "v").ok()
	if got := expires(); got < 60 || got > 70 {
		t.Errorf("ttl 60 expires in %d", got)
	}
	// Both, as wrangler sends them: the TTL wins.
	w.put(fmt.Sprintf("values/a?expiration=%d&expiration_ttl=300", now+1000), "v").ok()
	if got := expires(); got < 300 || got > 310 {
		t.Errorf("expires in %d, want 300", got)
	}
	w.put(fmt.Sprintf("values/a?expiration=%d", now+1000), "v").ok()
	if got := expires(); got != 1000 {
		t.Errorf("expires in %d, want 1000", got)
	}
	w.put("values/a?expiration=&expiration_ttl=&unknown=1", "v").ok()
	if got := expires(); got != -now {
		t.Errorf("expires in %d, want never", got)
	}
}

func TestExpired(t *testing.T) {
	w := newWorld(t)
	w.put("values/a?expiration_ttl=60", "v").ok()
	w.put("values/b", "v").ok()
	w.clock.Store(int64(61 * time.Second))
	w.get("values/a").fails(404, 10009, "get: 'key not found'")
	w.get("metadata/a").fails(404, 10009, "get: 'key not found'")
	w.post("bulk/get", `{"keys":["a","b"]}`).is(`{"values":{"a":null,"b":"v"}}`)
	if got := w.names(""); len(got) != 1 || got[0] != "b" {
		t.Errorf("listing: %v", got)
	}
}

func TestKeyLimit(t *testing.T) {
	w := newWorld(t)
	for _, char := range []string{"k", "é", "%2F", "%C3%A9"} {
		bytesOf := map[string]int{"k": 1, "é": 2, "%2F": 1, "%C3%A9": 2}[char]
		most := strings.Repeat(char, 512/bytesOf)
		w.put("values/"+most, "v").ok()
		if got := w.value(most); got != "v" {
			t.Errorf("value %q", got)
		}
		w.put("values/"+most+"x", "v").fails(414, 10022, "put: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'")
		w.get("values/"+most+"x").fails(414, 10022, "get: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'")
		w.delete("values/"+most+"x").fails(414, 10022, "remove key: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'")
		w.get("metadata/"+most+"x").fails(414, 10022, "get: 'UTF-8 encoded length of 513 exceeds key length limit of 512.'")
	}
}

func TestEveryByteInAKey(t *testing.T) {
	w := newWorld(t)
	for b := range 128 {
		path := fmt.Sprintf("values/a%%%02Xb", b)
		w.put(path, "v"+strconv.Itoa(b)).ok()
		if got := w.get(path).ok().body; got != "v"+strconv.Itoa(b) {
			t.Errorf("byte %d: %q", b, got)
		}
	}
	if got := len(w.names("")); got != 128 {
		t.Errorf("%d keys, want 128", got)
	}
	for b := 128; b < 256; b++ {
		w.put(fmt.Sprintf("values/a%%%02Xb", b), "v").fails(400, 10012, "put: 'Could not URL-decode key name'")
	}
}

func TestValueLimit(t *testing.T) {
	w := newWorld(t)
	most := strings.Repeat("v", 25<<20)
	over := "put: 'Value length of 26214401 exceeds limit of 26214400.'"
	for _, chunked := range []bool{false, true} {
		put := func(key, body string) (int, string) {
			req := w.request(request{method: "PUT", path: "values/" + key, body: body})
			if chunked {
				req.ContentLength = -1
			}
			rec := recordOf(w, req)
			return rec.Code, rec.Body.String()
		}
		if code, text := put("a", most); code != 200 {
			t.Errorf("25 MiB (chunked %v): %d %s", chunked, code, text)
		}
		if got := w.value("a"); got != most {
			t.Errorf("25 MiB came back as %d bytes", len(got))
		}
		if code, text := put("b", most+"v"); code != 413 || !strings.Contains(text, over) || !strings.Contains(text, `"code":10024`) {
			t.Errorf("25 MiB and one (chunked %v): %d %s", chunked, code, text)
		}
		w.get("values/b").fails(404, 10009, "get: 'key not found'")
	}
}

func TestUnknownNamespace(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ method, path, body, op string }{
		{"PUT", "/values/a", "v", "put"}, {"GET", "/values/a", "", "get"}, {"DELETE", "/values/a", "", "remove key"},
		{"GET", "/metadata/a", "", "get"}, {"GET", "/keys", "", "list keys"},
		{"PUT", "/bulk", `[{"key":"a","value":"v"}]`, "bulk put keys"}, {"DELETE", "/bulk", `["a"]`, "bulk remove keys"},
		{"POST", "/bulk/delete", `["a"]`, "bulk remove keys"}, {"POST", "/bulk/get", `{"keys":["a"]}`, "bulk get keys"},
		{"GET", "", "", "get namespace"}, {"PUT", "", `{"title":"x"}`, "rename namespace"}, {"DELETE", "", "", "remove namespace"},
	} {
		r := request{method: tt.method, path: in("/storage/kv/namespaces/" + nsID + tt.path), body: tt.body}
		w.do(r).fails(404, 10013, tt.op+": 'namespace not found'")
		r.path = in("/storage/kv/namespaces/not%20an%20id" + tt.path)
		w.do(r).fails(400, 10011, "could not parse UUID from request's namespace_id: 'invalid namespace format: not an id'")
	}
	// The same id as a UUID.
	id := w.ns.ID.String()
	uuid := id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	w.get(in("/storage/kv/namespaces/" + uuid)).ok()
	w.get(in("/storage/kv/namespaces/" + strings.ToUpper(id))).ok()
}

func TestWriteRate(t *testing.T) {
	w := newWorld(t)
	w.rules.Limits.WriteInterval = time.Second
	w.rules.Rate = newRate(w)
	w.put("values/a", "v").ok()
	a := w.put("values/a", "w")
	a.fails(429, 10429, "put: 'KV PUT failed: 429 Too Many Requests: a key may be written once in 1s'")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	w.put("values/b", "v").ok()
	w.clock.Add(int64(time.Second))
	w.put("values/a", "x").ok()
}

func TestAnswerHeaders(t *testing.T) {
	w := newWorld(t)
	for _, a := range []answer{w.put("values/a", "v"), w.get("keys"), w.get("values/none"), w.get("/nowhere"), w.post("keys", "")} {
		if got := a.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("Content-Type %q of %s", got, a.body)
		}
		if n, _ := strconv.Atoi(a.header.Get("Content-Length")); n != len(a.body) {
			t.Errorf("Content-Length %d of %d bytes", n, len(a.body))
		}
		if a.status >= 400 && a.header.Get("Cf-Ray") != a.header.Get("X-Request-Id") {
			t.Errorf("an error without Cf-Ray: %v", a.header)
		}
	}
	for sent, kept := range map[string]bool{"abcdefgh": true, "A-b_12345678": true, strings.Repeat("x", 64): true,
		"short": false, strings.Repeat("x", 65): false, "with space 123": false, "line\\nbreak12": false} {
		a := w.do(request{method: "GET", path: "keys", header: map[string]string{"X-Request-Id": sent}})
		if got := a.header.Get("X-Request-Id"); (got == sent) != kept {
			t.Errorf("request id %q was answered with %q", sent, got)
		}
	}
	if http.CanonicalHeaderKey("X-Request-Id") != "X-Request-Id" {
		t.Error("the header is set under a name that is not canonical")
	}
}
