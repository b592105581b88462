package rest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// TestWorkerSubdomain: every account has one, and a Worker is under it or not.
func TestWorkerSubdomain(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	w.at("GET", "subdomain").is(`{"subdomain":"dev"}`)
	w.at("GET", "subdomains/dev").is(`{"subdomain":"dev"}`)
	w.at("GET", "subdomains/other").fails(404, 10032, "This subdomain is available.")
	w.at("PUT", "subdomain", `{"subdomain":"other"}`).is(`{"subdomain":"other"}`)
	w.at("PUT", "subdomain", `{"subdomain":"Not.One"}`).fails(400, 10012, catalog.ErrSubdomainName.Error())
	w.at("GET", "scripts/a/subdomain").is(`{"enabled":false,"previews_enabled":false}`)
	w.at("POST", "scripts/a/subdomain", `{"enabled":true}`).is(`{"enabled":true,"previews_enabled":true}`)
	w.at("POST", "scripts/a/subdomain", `{"enabled":true,"previews_enabled":false}`).is(`{"enabled":true,"previews_enabled":false}`)
	w.at("POST", "scripts/a/subdomain", `{}`).fails(400, 10012, "set script subdomain: 'The field 'enabled' must be true or false'")
	show := decode[shownWorker](w.at("GET", "workers/a"))
	if show.Subdomain.URL != "http://a.other.workers.localhost:8791" || !show.Subdomain.Enabled {
		t.Errorf("subdomain %+v", show.Subdomain)
	}
	w.at("DELETE", "scripts/a/subdomain").is(`{"enabled":false,"previews_enabled":false}`)
}

// TestWorkerTriggers: routes, domains and crons of a Worker are replaced as a whole.
func TestWorkerTriggers(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	w.deploy("b", "")
	w.at("PUT", "scripts/a/routes", `[{"pattern":"example.com/*","zone_name":"example.com"},{"pattern":"api.example.com/x*"}]`).
		is(`["example.com/*","api.example.com/x*"]`)
	w.at("PUT", "scripts/b/routes", `[{"pattern":"example.com/*"}]`).fails(400, 10020, "A route with the same pattern already exists, of another Worker.")
	if a := w.at("PUT", "scripts/a/routes", `[{"pattern":"example.com/*/x"}]`); a.status != 400 || a.Errors[0].Code != 10022 {
		t.Errorf("a bad pattern: %d %s", a.status, a.body)
	}
	w.at("PUT", "scripts/nowhere/routes", `[]`).fails(404, 10007, notOnAccount)

	w.at("PUT", "scripts/a/schedules", `[{"cron":"*/5 * * * *"},{"cron":"*/5 * * * *"},{"cron":"0 0 * * *"}]`).ok()
	var crons struct{ Schedules []shownSchedule }
	w.at("GET", "scripts/a/schedules").result(&crons)
	if len(crons.Schedules) != 2 || crons.Schedules[0].Cron != "*/5 * * * *" || crons.Schedules[0].Created == "" {
		t.Errorf("schedules %+v", crons)
	}
	if a := w.at("PUT", "scripts/a/schedules", `[{"cron":"61 * * * *"}]`); a.status != 400 || a.Errors[0].Code != 10005 || !strings.Contains(a.body, "61 * * * *") {
		t.Errorf("a bad cron: %d %s", a.status, a.body)
	}
	w.at("GET", "scripts/a/schedules").result(&crons)
	if len(crons.Schedules) != 2 {
		t.Errorf("schedules %+v after a bad one", crons)
	}
	w.at("PUT", "scripts/a/schedules", `[]`).is(`{"schedules":[]}`)

	w.at("PUT", "scripts/a/domains/records", `{"override_scope":true,"origins":[{"hostname":"foo.example.org"}]}`).ok()
	changes := decode[struct{ Added, Removed, Updated, Conflicting []shownDomain }](
		w.at("POST", "scripts/b/domains/changeset?replace_state=true", `[{"hostname":"foo.example.org"},{"hostname":"new.example.org"}]`))
	if len(changes.Added) != 1 || len(changes.Updated) != 1 || changes.Updated[0].Service != "a" || len(changes.Removed) != 0 {
		t.Errorf("changes %+v", changes)
	}
	domains := decode[[]shownDomain](w.at("GET", "domains/records?page=0&per_page=5&service=a&environment=production"))
	if len(domains) != 1 || domains[0].Hostname != "foo.example.org" {
		t.Fatalf("domains %+v", domains)
	}
	w.at("GET", "domains/"+domains[0].ID).ok()
	w.at("GET", "domains/records/"+domains[0].ID).ok()
	w.at("DELETE", "domains/"+domains[0].ID).is("null")
	w.at("DELETE", "domains/"+domains[0].ID).fails(404, 100114, "The domain could not be found.")
}

// TestZones: zones by name and by id, those that are not yet, and their routes.
func TestZones(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", "")
	w.deploy("b", "")
	zones := func(query string) []shownZone {
		t.Helper()
		return decode[[]shownZone](w.get(basePath + "/zones" + query))
	}
	// A zone that nobody has is the asker's as soon as a route names it.
	future := zones("?name=Example.com&account.id=" + accountID)
	if len(future) != 1 || future[0].Name != "example.com" || len(zones("")) != 0 || len(zones("?name=no_host..x")) != 0 {
		t.Fatalf("zones %+v, %+v", future, zones(""))
	}
	at := basePath + "/zones/" + future[0].ID
	w.get(at + "/workers/routes").is("[]")
	w.get(at).fails(404, 7003, "The zone could not be found.")
	w.at("PUT", "scripts/a/routes", `[{"pattern":"example.com/*","zone_name":"example.com"}]`).ok()
	if got := zones("?name=example.com"); len(got) != 1 || got[0].ID != future[0].ID || got[0].Account.ID != accountID {
		t.Errorf("zone %+v, was to be %+v", got, future)
	}
	if got := zones("?name=sub.example.com"); len(got) != 0 {
		t.Errorf("a host in a zone is another zone: %+v", got)
	}
	routes := decode[[]shownRoute](w.get(at + "/workers/routes"))
	if len(routes) != 1 || routes[0].Script != "a" || routes[0].Pattern != "example.com/*" {
		t.Fatalf("routes %+v", routes)
	}
	made := decode[shownRoute](w.post(at+"/workers/routes", `{"pattern":"example.com/none*"}`))
	w.post(at+"/workers/routes", `{"pattern":"example.com/none*","script":"b"}`).fails(400, 10020, "A route with the same pattern already exists, of another Worker.")
	w.post(at+"/workers/routes", `{"pattern":"example.com/x*","script":"nowhere"}`).fails(404, 10007, notOnAccount)
	w.put(at+"/workers/routes/"+made.ID, `{"pattern":"example.com/b*","script":"b"}`).ok()
	w.get(at + "/workers/routes/" + made.ID).is(`{"id":"` + made.ID + `","pattern":"example.com/b*","script":"b"}`)
	w.delete(at + "/workers/routes/" + made.ID).ok()
	w.get(at+"/workers/routes/"+made.ID).fails(404, 10009, "The route could not be found.")
	w.post(basePath+"/zones", `{"name":"example.org","account":{"id":"`+accountID+`"}}`).ok()
	if got := zones("?per_page=1&page=2"); len(got) != 1 || got[0].Name != "example.org" {
		t.Errorf("page %+v", got)
	}
	if a := w.post(basePath+"/zones", `{"name":"not a host"}`); a.status != 400 {
		t.Errorf("a bad zone: %d %s", a.status, a.body)
	}
	w.delete(at).ok()
	w.get(at).fails(404, 7003, "The zone could not be found.")
}

// TestWorkerReferences: a Worker that others are bound to is not deleted unless it
// is forced.
func TestWorkerReferences(t *testing.T) {
	w := newWorkersWorld(t)
	w.deploy("a", `{"name":"SELF","type":"service","service":"a"}`)
	w.deploy("b", `{"name":"A","type":"service","service":"a","environment":"production"}`)
	w.at("GET", "scripts/a/references").is(`{"dispatch_outbounds":[],"durable_objects":[],"services":{"incoming":[{"service":"b","environment":"production","name":"A"}],"outgoing":[],"pages_function":false}}`)
	w.at("GET", "tails/by-consumer/a").is("[]")
	w.at("GET", "durable_objects/namespaces?per_page=1000&page=1").is("[]")
	w.at("DELETE", "services/a?force=false").fails(400, 10064,
		"Cannot delete this Worker as it is still referenced by service bindings of the Worker 'b'. Delete them first, or use force.")
	w.at("DELETE", "services/a?force=true").is("null")
	if list := decode[[]shownScript](w.at("GET", "scripts")); len(list) != 1 || list[0].ID != "b" {
		t.Errorf("scripts %+v", list)
	}
}

// TestWorkersForwarded: on an edge everything about Workers goes to the centre,
// uploads of many modules too.
func TestWorkersForwarded(t *testing.T) {
	centre := newWorkersWorld(t)
	edge := newWorkersWorld(t, func(cfg *Config) {
		cfg.Authority, cfg.Catalog, cfg.Workers = cfg.Catalog, nil, nil
		cfg.Forward = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			centre.server.ServeHTTP(rec, r)
			for name, values := range rec.Header() {
				w.Header()[name] = values
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
		})
	})
	edge.send("PUT", "scripts/a", metadata(""), hello, part{"a", "application/octet-stream", strings.Repeat("x", 1<<20)}).ok()
	if got := centre.last(); len(got.Modules["a"]) != 1<<20 {
		t.Errorf("%d bytes arrived", len(got.Modules["a"]))
	}
	edge.at("PATCH", "scripts/a/script-settings", `{"tags":["t"]}`).ok()
	edge.get(basePath + "/zones?name=example.com").ok()
}

// TestChecksAreBounded: only so many Workers are tried out at once; the others wait,
// and no longer than their client does.
func TestChecksAreBounded(t *testing.T) {
	w := newWorkersWorld(t)
	enter, leave := make(chan struct{}), make(chan struct{})
	w.before = func(Bundle) {
		enter <- struct{}{}
		<-leave
	}
	body, contentType := formOf(t, metadata(""), hello)
	const clients = maxChecks + 1
	done := make(chan int, clients)
	for range clients {
		go func() {
			r := w.request(request{method: "PUT", path: in("/workers/scripts/a"), body: body, header: map[string]string{"Content-Type": contentType}})
			done <- recordOf(w.world, r).Code
		}()
	}
	for range maxChecks {
		<-enter
	}
	select {
	case <-enter:
		t.Fatal("one more than allowed was tried out at once")
	case <-time.After(50 * time.Millisecond): // that it happens is the failure
	}
	close(leave)
	for ended := 0; ended < clients; {
		select {
		case <-enter: // the one that waited, and those that were overtaken
		case code := <-done:
			if ended++; code != 200 {
				t.Errorf("answer %d", code)
			}
		}
	}
}
