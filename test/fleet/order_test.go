package fleet

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// lone is a fleet of one centre, one regional tier and one edge that the test
// starts and ends itself.
type lone struct {
	*fleet
	dir                     string
	central, regional, edge *process.Program
	wire, api, middle       string // addresses
	health, public          string
}

// freeAddress is an address of this machine that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// stalenessOfLone is how old a copy may be that answers in a lone fleet.
const stalenessOfLone = 200 * time.Millisecond

func newLone(t *testing.T) *lone {
	l := &lone{fleet: &fleet{}, dir: t.TempDir(), wire: freeAddress(t), api: freeAddress(t), middle: freeAddress(t), health: freeAddress(t), public: freeAddress(t)}
	if err := os.WriteFile(filepath.Join(l.dir, "secret"), []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.add("edge", l.public)
	return l
}

func (l *lone) serve(t *testing.T, role, listen string, args ...string) *process.Program {
	t.Helper()
	return start(t, []string{"NEARKEY_PROFILE=open"}, append([]string{"serve", "--listen", listen, "--fleet-role", role, "--fleet-secret-file", filepath.Join(l.dir, "secret"),
		"--fleet-max-age", stalenessOfLone.String()}, args...)...)
}

func (l *lone) startCentral(t *testing.T) {
	t.Helper()
	l.central = l.serve(t, "central", l.api, "--data", filepath.Join(l.dir, "data"), "--fleet-wire-listen", l.wire)
}

func (l *lone) startRegional(t *testing.T) {
	t.Helper()
	l.regional = l.serve(t, "regional", l.health, "--fleet-far", "http://"+l.wire, "--fleet-wire-listen", l.middle)
}

func (l *lone) startEdge(t *testing.T) {
	t.Helper()
	l.edge = l.serve(t, "edge", l.public, "--fleet-far", "http://"+l.middle, "--fleet-api-far", "http://"+l.api)
}

// TestOrder starts the edge first and the centre last, ends the centre for as long
// as the test wants, and starts all again in another order.
func TestOrder(t *testing.T) {
	l := newLone(t)
	e := l.edges[0]
	l.startEdge(t)
	saysWhy := func(e *edge) func() error {
		return func() error {
			a, err := e.ask("", "GET", "/readyz", nil)
			if err == nil && (a.status != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "nothing was heard of the centre")) {
				err = errors.New(a.String())
			}
			return err
		}
	}
	nearkeytest.Eventually(t, "the edge says why it is not ready", saysWhy(e))
	if err := statusOf(e, strings.Repeat("0", 40), "GET", "/client/v4/accounts/"+strings.Repeat("0", 32)+"/storage/kv/namespaces/"+strings.Repeat("0", 32)+"/values/k", http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	l.startRegional(t)
	health := &edge{fleet: l.fleet, name: "regional tier", url: "http://" + l.health}
	nearkeytest.Eventually(t, "the regional tier says why it is not ready", saysWhy(health))
	l.startCentral(t)
	nearkeytest.Eventually(t, "the edge is ready by itself", e.ready)
	nearkeytest.Eventually(t, "the regional tier is ready by itself", health.ready)
	l.credentials(t, filepath.Join(l.dir, "data"))
	s := e.createSpace(t, "first")
	e.put(t, s, "hot", "1")
	e.warm(t, s, "hot", "1")

	centreAway(t, l, s)
	l.startCentral(t)
	recovers(t, l.fleet, s, "after the centre came back")

	for _, p := range []*process.Program{l.edge, l.central, l.regional} {
		if err := p.End(syscall.SIGTERM, nearkeytest.Patience); err != nil {
			t.Errorf("%v: %s", err, p.Output())
		}
	}
	l.startRegional(t)
	l.startEdge(t)
	l.startCentral(t)
	recovers(t, l.fleet, s, "after all started again")
	if err := e.reads(s, "hot", "1"); err != nil {
		t.Error(err)
	}
}

// centreAway kills the centre: what is near is served and marked as it ages, and
// everything else is refused, not invented.
func centreAway(t *testing.T, l *lone, s space) {
	e := l.edges[0]
	l.central.Kill()
	nearkeytest.Eventually(t, "a copy is served stale", func() error {
		a, err := e.get(s, "hot")
		switch {
		case err != nil:
		case a.status != http.StatusOK || string(a.body) != "1":
			t.Fatalf("a hot copy, while the centre is away: %s", a)
		case a.cache() != "STALE":
			err = fmt.Errorf("the cache status is %s", a)
		}
		return err
	})
	for _, refused := range []struct{ method, path string }{
		{"GET", l.valuePath(s, "never read")},
		{"PUT", l.valuePath(s, "hot")},
		{"GET", l.spacePath(s) + "/keys"},
		{"GET", l.path() + "/storage/kv/namespaces"},
	} {
		a, err := e.ask(e.token, refused.method, refused.path, nil)
		if err != nil || a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || !strings.Contains(string(a.body), `"success":false`) {
			t.Errorf("%s %s, while the centre is away: %v %v, %v", refused.method, refused.path, a, a.header, err)
		}
	}
	if err := e.reads(s, "hot", "1"); err != nil {
		t.Errorf("after a write that was refused: %v", err)
	}
	if err := e.ready(); err != nil {
		t.Errorf("an edge that serves what it has is ready: %v", err)
	}
}
