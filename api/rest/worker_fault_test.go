package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
)

// TestWorkerFaults: whatever fails of what an upload stands on, the client is told
// to try again, and what serves goes on; when it is mended the upload succeeds.
func TestWorkerFaults(t *testing.T) {
	var fault atomic.Int64
	var checking error
	w := newWorkersWorld(t)
	store := &kvtest.Faulty{Store: w.store, Inject: func(kvtest.Op, kv.Ref) kvtest.Fault { return kvtest.Fault(fault.Load()) }}
	w.catalog.UseWorkers(store, w.rules.Stamp)
	check := w.server.workers.Check
	w.server.workers.Check = func(ctx context.Context, b Bundle) (Started, error) {
		if checking != nil {
			return Started{}, checking
		}
		return check(ctx, b)
	}
	w.deploy("a", "")
	serving := w.serving("a").ID
	next := 0
	put := func() answer {
		next++ // modules that are not stored yet
		return w.send("PUT", "scripts/a", metadata(""), part{"index.js", esModule, fmt.Sprintf("fetch %d", next)})
	}
	for _, f := range []kvtest.Fault{kvtest.Refused, kvtest.Unacknowledged} {
		fault.Store(int64(f))
		a := put()
		fault.Store(int64(kvtest.None))
		if a.status != 503 || a.header.Get("Retry-After") == "" || w.serving("a").ID != serving {
			t.Errorf("fault %v: %d %s", f, a.status, a.body)
		}
		next-- // again
		put().ok()
		serving = w.serving("a").ID
	}
	checking = errors.New("the runtime is busy with what nobody may see")
	a := put()
	if a.status != 503 || a.header.Get("Retry-After") == "" || strings.Contains(a.body, "busy") || w.serving("a").ID != serving {
		t.Errorf("a check that failed: %d %s", a.status, a.body)
	}
	checking = nil
	fault.Store(int64(kvtest.Refused))
	for _, r := range []request{
		{method: "PUT", path: "secrets", body: `{"name":"S","text":"s","type":"secret_text"}`},
		{method: "GET", path: "content/v2"},
	} {
		if a := w.at(r.method, "scripts/a/"+r.path, r.body); a.status != 503 || w.serving("a").ID != serving {
			t.Errorf("%s: %d %s", r.path, a.status, a.body)
		}
	}
	fault.Store(int64(kvtest.None))
	put().ok()
}

// TestWorkerClientGone: who does not wait for the check of an upload has changed
// nothing, and nothing is held for them.
func TestWorkerClientGone(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	serving := w.serving("a").ID
	ctx, leave := context.WithCancel(t.Context())
	w.server.workers.Check = func(ctx context.Context, _ Bundle) (Started, error) {
		leave()
		<-ctx.Done()
		return Started{}, ctx.Err()
	}
	body, contentType := formOf(t, metadata(""), hello)
	r := w.request(request{method: "PUT", path: in("/workers/scripts/a"), body: body, header: map[string]string{"Content-Type": contentType}})
	recordOf(w.world, r.WithContext(ctx))
	if w.serving("a").ID != serving || w.server.door.held.Load() != 0 || len(w.server.workers.checks) != 0 {
		t.Errorf("%s serves, %d bytes are held, %d are checked", w.serving("a").ID, w.server.door.held.Load(), len(w.server.workers.checks))
	}
}

// TestWorkerDoor: an upload that does not fit beside what others hold is turned away
// for now, and one that never fits for good.
func TestWorkerDoor(t *testing.T) {
	w := newWorkersWorld(t, func(cfg *Config) { cfg.BodyBytes = 1 << 20 })
	big := part{"b", "application/octet-stream", strings.Repeat("x", 300<<10)}
	w.server.door.take(500 << 10)
	body, contentType := formOf(t, metadata(""), hello, big)
	r := request{method: "PUT", path: in("/workers/scripts/a"), body: body, header: map[string]string{"Content-Type": contentType}}
	if a := w.doHolding(r, 500<<10); a.status != 503 {
		t.Errorf("beside others: %d %s", a.status, a.body)
	}
	w.server.door.held.Store(0)
	w.do(r).ok()
	if a := w.send("PUT", "scripts/a", metadata(""), hello, big, part{"c", "text/plain", big.content}); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("more than the door: %d %s", a.status, a.body)
	}
}

// TestWorkerKeyLost: a secret whose key is gone stops what would have to open it,
// and tells nothing; when it is set anew or taken away all is well again.
func TestWorkerKeyLost(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", `{"name":"S","type":"secret_text","text":"`+secretText+`"}`)
	serving := w.serving("a").ID
	keys, err := catalog.CreateKeys(filepath.Join(t.TempDir(), "others"))
	if err != nil {
		t.Fatal(err)
	}
	w.server.workers.Keys = keys
	w.send("PUT", "scripts/a", metadata(""), hello).fails(500, 10001, "The secret 'S' cannot be opened with the keys that this server has. Please set it anew.")
	if w.serving("a").ID != serving {
		t.Error("it was deployed all the same")
	}
	w.at("PUT", "scripts/a/secrets", `{"name":"S","text":"anew","type":"secret_text"}`).ok()
	w.deploy("a", "")
	if got := w.last().Secrets["S"]; got != "anew" {
		t.Errorf("the secret is %q", got)
	}
	if strings.Contains(w.log.String(), secretText) {
		t.Error("the secret is in the log")
	}
}

// TestInherit: bindings of the latest version, of an older one, under another name,
// and none; strictly and not.
func TestInherit(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", `{"name":"OLD","type":"plain_text","text":"old"}`)
	old := w.serving("a").ID
	w.deploy("a", `{"name":"NEW","type":"plain_text","text":"new"}`)
	texts := func() string {
		var all []string
		for _, b := range w.last().Manifest.Bindings {
			all = append(all, b.Name+"="+b.Text)
		}
		return strings.Join(all, " ")
	}
	upload := func(query, bindings string) answer {
		return w.send("POST", "scripts/a/versions"+query, metadata(bindings), hello)
	}
	upload("", `{"name":"A","type":"inherit","old_name":"NEW"},{"name":"B","type":"inherit","old_name":"OLD","version_id":"`+old+`"},{"name":"C","type":"inherit"}`).ok()
	if got := texts(); got != "A=new B=old" {
		t.Errorf("bindings %s", got)
	}
	upload("?bindings_inherit=strict", `{"name":"A","type":"inherit","version_id":"latest"}`).ok()
	upload("?bindings_inherit=strict", `{"name":"C","type":"inherit"}`).fails(400, 10057, "Binding C cannot be inherited: the Worker's current version has no such binding.")
	upload("", `{"name":"C","type":"inherit","version_id":"nowhere"}`).fails(404, 10222, "The version could not be found. Please check its ID and try again.")
	w.deploy("sw", "")
	many := func(n int) string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf(`{"name":"B%d","type":"json","json":1}`, i)
		}
		return strings.Join(all, ",")
	}
	upload("", many(catalog.MaxBindings)).ok()
	upload("", many(catalog.MaxBindings+1)).fails(400, 10021, "A Worker has at most 1000 bindings.")
	for name, ok := range map[string]bool{strings.Repeat("n", maxBindingNameBytes): true, strings.Repeat("n", maxBindingNameBytes+1): false, "with-dash": true, "\\u0000": false} {
		if a := upload("", `{"name":"`+name+`","type":"json","json":1}`); (a.status == 200) != ok {
			t.Errorf("name %q: %d %s", name, a.status, a.body)
		}
	}
	for name, ok := range map[string]bool{strings.Repeat("n", maxModuleNameBytes): true, strings.Repeat("n", maxModuleNameBytes+1): false, "../up.mjs": true, "\x01": false} {
		if a := w.send("POST", "scripts/a/versions", metadata(""), hello, part{name, esModule, ""}); (a.status == 200) != ok {
			t.Errorf("module %q: %d %s", name, a.status, a.body)
		}
	}
}
