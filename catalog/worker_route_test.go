package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func setRoutes(t testing.TB, c *Catalog, name string, patterns ...string) []WorkerRoute {
	t.Helper()
	var in []RouteInput
	for _, p := range patterns {
		in = append(in, RouteInput{Pattern: p})
	}
	list, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, name, in)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestZones(t *testing.T) {
	c, _ := newCatalog(t)
	addAccount(t, c, otherAccount)
	z, err := c.AddZone(t.Context(), testAccount, "Example.COM.")
	if err != nil || z.Name != "example.com" || z.ID != ZoneID("example.com") || z.AccountID != testAccount || z.Created.IsZero() {
		t.Fatalf("%+v, %v", z, err)
	}
	again, errAgain := c.AddZone(t.Context(), testAccount, "example.com")
	byID, errID := c.Zone(t.Context(), z.ID)
	byName, errName := c.ZoneByName(t.Context(), "EXAMPLE.com")
	list, errList := c.Zones(t.Context(), testAccount)
	if err := errors.Join(errAgain, errID, errName, errList); err != nil || again != z || byID != z || byName != z || len(list) != 1 || list[0] != z {
		t.Errorf("%+v %+v %+v %+v, %v", again, byID, byName, list, err)
	}
	for _, name := range []string{"example.com", "sub.example.com", "a.b.example.com"} {
		_, err := c.AddZone(t.Context(), otherAccount, name)
		wantError(t, err, ErrZoneTaken)
	}
	for _, name := range []string{"notexample.com", "com"} {
		if _, err := c.AddZone(t.Context(), otherAccount, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "a b", "a/b", "*.a", "a:80", "é.example", strings.Repeat("a", maxLabel+1)} {
		_, err := c.AddZone(t.Context(), testAccount, name)
		wantError(t, err, ErrZoneName)
		if IsZoneName(name) {
			t.Errorf("%q is a zone's name", name)
		}
	}
	if !IsZoneName("a.example") || IsZoneName("A.example") || IsZoneName("a.example.") {
		t.Error("IsZoneName")
	}
	_, err = c.AddZone(t.Context(), "no account", "x.example")
	wantError(t, err, ErrNotFound)
	wantError(t, c.DeleteZone(t.Context(), otherAccount, z.ID), ErrZoneNotFound)
	if err := c.DeleteZone(t.Context(), testAccount, z.ID); err != nil {
		t.Error(err)
	}
	_, err = c.Zone(t.Context(), z.ID)
	wantError(t, err, ErrZoneNotFound)
	_, err = c.ZoneByName(t.Context(), "example.com")
	wantError(t, err, ErrNotFound)
	_, err = c.Routes(t.Context(), z.ID)
	wantError(t, err, ErrZoneNotFound)
}

func TestZoneLimit(t *testing.T) {
	c, _ := newCatalog(t)
	tx, err := c.db.write.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxZones - 1 {
		name := fmt.Sprintf("z%d.example", i)
		if _, err := tx.ExecContext(t.Context(), `insert into worker_zones (id, account_id, name, created) values ($1, $2, $3, 1)`, ZoneID(name), testAccount, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddZone(t.Context(), testAccount, "last.example"); err != nil {
		t.Error(err)
	}
	_, err = c.AddZone(t.Context(), testAccount, "more.example")
	wantError(t, err, ErrTooManyZones)
	if _, err := c.AddZone(t.Context(), testAccount, "last.example"); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}

func TestRoutes(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addAccount(t, c, otherAccount)
	addVersion(t, c, "w", true)
	addVersion(t, c, "v", true)
	z, err := c.AddZone(t.Context(), testAccount, "example.com")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.Routes(t.Context(), z.ID); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	r, err := c.AddRoute(t.Context(), testAccount, z.ID, "Example.com/A*", "w")
	if err != nil || r.Pattern != "Example.com/A*" || r.Script != "w" || r.ZoneID != z.ID || len(r.ID) != 32 {
		t.Fatalf("%+v, %v", r, err)
	}
	off, err := c.AddRoute(t.Context(), testAccount, z.ID, "example.com/A/off", "")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.Routes(t.Context(), z.ID); err != nil || !slices.Equal(list, []WorkerRoute{r, off}) && !slices.Equal(list, []WorkerRoute{off, r}) {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := c.WorkerRoutes(t.Context(), testAccount, "w"); err != nil || !slices.Equal(list, []WorkerRoute{r}) {
		t.Errorf("%+v, %v", list, err)
	}
	for _, tt := range []struct {
		account, zone, pattern, script string
		want                           error
	}{
		{testAccount, z.ID, "example.com/A*", "w", ErrRouteTaken},
		{testAccount, z.ID, "example.com/A*", "v", ErrRouteTaken},
		{testAccount, z.ID, "example.com/a*b", "w", ErrRoutePattern},
		{testAccount, z.ID, "example.org/*", "w", ErrRouteZone},
		{testAccount, z.ID, "notexample.com/*", "w", ErrRouteZone},
		{testAccount, z.ID, "*com/*", "w", ErrRouteZone},
		{testAccount, z.ID, "example.com/b", "none", ErrWorkerNotFound},
		{testAccount, "none", "example.com/b", "w", ErrZoneNotFound},
		{otherAccount, z.ID, "example.com/b", "", ErrZoneNotFound},
		{"no account", z.ID, "example.com/b", "", ErrNotFound},
	} {
		_, err := c.AddRoute(t.Context(), tt.account, tt.zone, tt.pattern, tt.script)
		wantError(t, err, tt.want)
		_, err = c.UpdateRoute(t.Context(), tt.account, tt.zone, off.ID, tt.pattern, tt.script)
		wantError(t, err, tt.want)
	}
	for _, fine := range []string{"*/*", "*.example.com/*", "*example.com/*", "*.sub.example.com/x"} {
		if _, err := c.AddRoute(t.Context(), testAccount, z.ID, fine, "v"); err != nil {
			t.Errorf("%q: %v", fine, err)
		}
	}
	if got, err := c.UpdateRoute(t.Context(), testAccount, z.ID, off.ID, "example.com/other", "v"); err != nil || got.ID != off.ID || got.Script != "v" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = c.UpdateRoute(t.Context(), testAccount, z.ID, "none", "example.com/more", "v")
	wantError(t, err, ErrRouteNotFound)
	wantError(t, c.DeleteRoute(t.Context(), testAccount, z.ID, "none"), ErrRouteNotFound)
	wantError(t, c.DeleteRoute(t.Context(), otherAccount, z.ID, off.ID), ErrZoneNotFound)
	if err := c.DeleteRoute(t.Context(), testAccount, z.ID, off.ID); err != nil {
		t.Error(err)
	}
	if list, err := c.WorkerRoutes(t.Context(), testAccount, "v"); err != nil || len(list) != 4 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestRoutesOfAWorkerAreReplaced(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addAccount(t, c, otherAccount)
	addVersion(t, c, "w", true)
	addVersion(t, c, "v", true)
	first := setRoutes(t, c, "w", "a.example/*", "b.example/x", "a.example/*", "A.example/*")
	if len(first) != 2 || first[0].Script != "w" || first[0].ZoneID != ZoneID("a.example") {
		t.Fatalf("%+v", first)
	}
	second := setRoutes(t, c, "w", "c.example/*", "a.example/*")
	if second[1] != first[0] {
		t.Errorf("a route that stays is %+v, was %+v", second[1], first[0])
	}
	if list, err := c.WorkerRoutes(t.Context(), testAccount, "w"); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if got := setRoutes(t, c, "v", "sub.a.example/*"); got[0].ZoneID != ZoneID("a.example") {
		t.Errorf("a host in a zone got another: %+v", got)
	}
	if _, err := c.AddZone(t.Context(), otherAccount, "foreign.example"); err != nil {
		t.Fatal(err)
	}
	before := dump(t, c)
	for _, tt := range []struct {
		in   RouteInput
		want error
	}{
		{RouteInput{Pattern: "a.example/*"}, ErrRouteTaken},
		{RouteInput{Pattern: "a.*/*"}, ErrRoutePattern},
		{RouteInput{Pattern: "*/*"}, ErrInvalid},
		{RouteInput{Pattern: "www.foreign.example/*"}, ErrZoneTaken},
		{RouteInput{Pattern: "foreign.example/*", ZoneName: "foreign.example"}, ErrZoneTaken},
		{RouteInput{Pattern: "foreign.example/*", ZoneID: ZoneID("foreign.example")}, ErrZoneTaken},
		{RouteInput{Pattern: "x.example/*", ZoneID: "none"}, ErrZoneNotFound},
		{RouteInput{Pattern: "x.example/*", ZoneName: "y.example"}, ErrRouteZone},
		{RouteInput{Pattern: "x.example/*", ZoneName: "*"}, ErrZoneName},
	} {
		_, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "v", []RouteInput{{Pattern: "new.example/*"}, tt.in})
		if wantError(t, err, tt.want); dump(t, c) != before {
			t.Fatalf("%+v changed something", tt.in)
		}
	}
	for _, in := range []RouteInput{{Pattern: "*/*", ZoneName: "every.example"}, {Pattern: "www.known.example/*", ZoneID: ZoneID("known.example")},
		{Pattern: "www.named.example/*", ZoneName: "Named.example"}, {Pattern: "*.wild.example/*"}} {
		list, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "v", []RouteInput{in})
		if err != nil || len(list) != 1 {
			t.Errorf("%+v: %+v, %v", in, list, err)
		}
	}
	for _, name := range []string{"every.example", "known.example", "named.example", "wild.example"} {
		if _, err := c.ZoneByName(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list := setRoutes(t, c, "v"); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestRouteLimit(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addVersion(t, c, "w", true)
	var in []RouteInput
	for i := range MaxRoutes + 1 {
		in = append(in, RouteInput{Pattern: fmt.Sprintf("a.example/%d", i)})
	}
	_, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "w", in)
	wantError(t, err, ErrInvalid)
	if list, err := c.ReplaceWorkerRoutes(t.Context(), testAccount, "w", in[:MaxRoutes]); err != nil || len(list) != MaxRoutes {
		t.Fatalf("%d routes, %v", len(list), err)
	}
	zone := ZoneID("a.example")
	_, err = c.AddRoute(t.Context(), testAccount, zone, "a.example/more", "")
	wantError(t, err, ErrTooManyRoutes)
	list, err := c.Routes(t.Context(), zone)
	if err != nil || len(list) != MaxRoutes {
		t.Fatalf("%d routes, %v", len(list), err)
	}
	if err := c.DeleteRoute(t.Context(), testAccount, zone, list[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddRoute(t.Context(), testAccount, zone, "a.example/more", ""); err != nil {
		t.Error(err)
	}
	addVersion(t, c, "v", true)
	_, err = c.ReplaceWorkerRoutes(t.Context(), testAccount, "v", []RouteInput{{Pattern: "a.example/another"}})
	wantError(t, err, ErrTooManyRoutes)
}

func TestCustomDomains(t *testing.T) {
	c, _ := newCatalog(t)
	useWorkers(t, c)
	addAccount(t, c, otherAccount)
	addVersion(t, c, "w", true)
	addVersion(t, c, "v", true)
	replace := func(name string, hosts ...string) []WorkerDomain {
		t.Helper()
		list, err := c.ReplaceWorkerDomains(t.Context(), testAccount, name, hosts)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	first := replace("w", "b.example", "A.example.", "a.example")
	if len(first) != 2 || first[0].Host != "a.example" || first[1].Host != "b.example" || first[0].Script != "w" {
		t.Fatalf("%+v", first)
	}
	if second := replace("w", "a.example", "c.example"); second[0] != first[0] || len(second) != 2 {
		t.Errorf("%+v", second)
	}
	if taken := replace("v", "c.example"); taken[0].Script != "v" {
		t.Errorf("%+v", taken)
	}
	all, err := c.WorkerDomains(t.Context(), testAccount)
	if err != nil || len(all) != 2 || all[0] != first[0] || all[1].Host != "c.example" || all[1].Script != "v" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := c.AddZone(t.Context(), otherAccount, "foreign.example"); err != nil {
		t.Fatal(err)
	}
	before := dump(t, c)
	for host, want := range map[string]error{"www.foreign.example": ErrZoneTaken, "*.a.example": ErrZoneName, "a.example/x": ErrZoneName, "": ErrZoneName} {
		_, err := c.ReplaceWorkerDomains(t.Context(), testAccount, "w", []string{"new.example", host})
		if wantError(t, err, want); dump(t, c) != before {
			t.Errorf("%q changed something", host)
		}
	}
	if _, err := c.db.write.ExecContext(t.Context(), `insert into workers select 'x', $1, name, created, modified, subdomain, previews,
		settings, latest, latest_id, deployments, deployment_id from workers where name = $2`, otherAccount, []byte("w")); err != nil {
		t.Fatal(err)
	}
	_, err = c.ReplaceWorkerDomains(t.Context(), otherAccount, "w", []string{"a.example"})
	wantError(t, err, ErrDomainTaken)
	wantError(t, c.DeleteWorkerDomain(t.Context(), otherAccount, first[0].ID), ErrDomainNotFound)
	if err := c.DeleteWorkerDomain(t.Context(), testAccount, first[0].ID); err != nil {
		t.Error(err)
	}
	wantError(t, c.DeleteWorkerDomain(t.Context(), testAccount, first[0].ID), ErrDomainNotFound)
	if _, err := c.ReplaceWorkerDomains(t.Context(), otherAccount, "w", []string{"a.example"}); err != nil {
		t.Errorf("a host that was given up: %v", err)
	}
	var hosts []string
	for i := range MaxDomains + 1 {
		hosts = append(hosts, fmt.Sprintf("h%d.example", i))
	}
	_, err = c.ReplaceWorkerDomains(t.Context(), testAccount, "w", hosts)
	wantError(t, err, ErrInvalid)
	if list := replace("w", hosts[1:]...); len(list) != MaxDomains {
		t.Errorf("%d domains", len(list))
	}
}

func TestSubdomains(t *testing.T) {
	c, path := newCatalog(t)
	for _, id := range []string{otherAccount, "third", "fourth"} {
		addAccount(t, c, id)
	}
	subdomain := func(account string) string {
		t.Helper()
		name, err := c.Subdomain(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	taken := func(name string) bool {
		t.Helper()
		is, err := c.SubdomainTaken(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if err := c.SetSubdomain(t.Context(), "fourth", "dev-2"); err != nil {
		t.Fatal(err)
	}
	if taken("dev") || !taken("dev-2") {
		t.Error("taken before it was given")
	}
	if a, b, again := subdomain(testAccount), subdomain(otherAccount), subdomain(testAccount); a != "dev" || b != "dev-3" || again != a {
		t.Errorf("%q, %q, %q", a, b, again)
	}
	wantError(t, c.SetSubdomain(t.Context(), testAccount, "dev-3"), ErrSubdomainTaken)
	if err := c.SetSubdomain(t.Context(), testAccount, "dev"); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := c.SetSubdomain(t.Context(), testAccount, "mine"); err != nil || subdomain(testAccount) != "mine" || taken("dev") {
		t.Errorf("%v", err)
	}
	if subdomain("third") != "dev" {
		t.Error("a name that was given up is not free")
	}
	long := strings.Repeat("a", MaxSubdomainChars)
	for _, fine := range []string{"a", "0-a", long} {
		if err := c.SetSubdomain(t.Context(), testAccount, fine); err != nil {
			t.Errorf("%q: %v", fine, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a_b", "é", long + "a"} {
		wantError(t, c.SetSubdomain(t.Context(), testAccount, bad), ErrSubdomainName)
	}
	_, err := c.Subdomain(t.Context(), "no account")
	wantError(t, err, ErrNotFound)
	wantError(t, c.SetSubdomain(t.Context(), "no account", "x"), ErrNotFound)
	if got, err := openAt(t, path).Subdomain(t.Context(), testAccount); err != nil || got != long {
		t.Errorf("%q, %v", got, err)
	}
}
