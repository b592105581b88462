package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/wire"
)

// fleetConfig is a good configuration of a role.
func fleetConfig(role string) Config {
	c := defaultConfig()
	c.Fleet.Role = role
	if role != roleSingle {
		c.Fleet.SecretFile = "secret"
	}
	if role == roleRegional || role == roleEdge {
		c.Fleet.Far = "http://127.0.0.1:1"
	}
	if role == roleProxy {
		c.Providers = []ProviderConfig{goodProvider("a")}
	}
	if role == roleRegional || role == roleCentral || role == roleProxy {
		c.Fleet.WireListen = "127.0.0.1:2"
	}
	if role == roleEdge {
		c.Fleet.APIFar = "http://[::1]:3"
	}
	return c
}

// set sets one setting of a configuration.
func set(t *testing.T, c *Config, key, text string) {
	t.Helper()
	for _, s := range settings(c) {
		if s.key == key {
			if err := s.set(text); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("there is no setting %s", key)
}

// TestRolesRefuse: a role refuses to be without what it needs and to be told what
// has no effect.
func TestRolesRefuse(t *testing.T) {
	examples := map[string]string{
		"fleet.far": "http://localhost:1", "fleet.api_far": "https://centre", "fleet.wire_listen": "unix:///tmp/x", "fleet.secret_file": "s",
		"fleet.wire_plain": "true", "fleet.pop": "fra", "fleet.pop_shared": "true", "account_id": strings.Repeat("a", 32), "api_token_file": "x", "api_key_file": "x",
	}
	for _, n := range fleetNeeds {
		for _, role := range []string{roleSingle, roleCentral, roleRegional, roleEdge, roleProxy} {
			c := fleetConfig(role)
			need, _ := n.of(&c)
			if err := c.check(); err != nil {
				t.Fatalf("%s: %v", role, err)
			}
			if n.key != "fleet.wire_plain" && n.key != "fleet.pop_shared" {
				set(t, &c, n.key, "")
			}
			if err := c.check(); need == must && (err == nil || !strings.Contains(err.Error(), n.key)) {
				t.Errorf("%s without %s: %v", role, n.key, err)
			}
			text, ok := examples[n.key]
			if !ok {
				continue // certificates go together
			}
			set(t, &c, n.key, text)
			if n.key == "fleet.pop_shared" && role == roleEdge {
				c.Fleet.PoP = "fra"
			}
			if err := c.check(); (err == nil) != (need != never) || err != nil && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), n.key)) {
				t.Errorf("%s with %s: %v", role, n.key, err)
			}
		}
	}
}

func TestFleetChecks(t *testing.T) {
	for name, c := range map[string]struct {
		role      string
		good, bad func(*Config)
		says      string
	}{
		"no role":           {roleSingle, nil, func(c *Config) { c.Fleet.Role = "central tier" }, "did you mean"},
		"the wire in clear": {roleCentral, func(c *Config) { c.Fleet.WireListen, c.Fleet.WirePlain = ":2", true }, func(c *Config) { c.Fleet.WireListen = ":2" }, "wire_plain"},
		"far in clear":      {roleEdge, func(c *Config) { c.Fleet.Far, c.Fleet.WirePlain = "http://centre:1", true }, func(c *Config) { c.Fleet.Far = "http://centre:1" }, "wire_plain"},
		"the API in clear":  {roleEdge, func(c *Config) { c.Fleet.APIFar = "https://centre" }, func(c *Config) { c.Fleet.APIFar = "http://centre" }, "wire_plain"},
		"no proof": {roleCentral, func(c *Config) {
			c.Fleet.SecretFile, c.Fleet.WireCert, c.Fleet.WireKey, c.Fleet.WireCA = "", "c", "k", "a"
		}, func(c *Config) { c.Fleet.SecretFile = "" }, "secret_file"},
		"no proof in clear": {roleEdge, func(c *Config) {
			c.Fleet.SecretFile, c.Fleet.WireCert, c.Fleet.WireKey, c.Fleet.WireCA, c.Fleet.Far = "", "c", "k", "a", "https://x:1"
		}, func(c *Config) {
			c.Fleet.SecretFile, c.Fleet.WireCert, c.Fleet.WireKey, c.Fleet.WireCA = "", "c", "k", "a"
		}, "https"},
		"half a certificate": {roleCentral, func(c *Config) { c.Fleet.WireCert, c.Fleet.WireKey = "c", "k" }, func(c *Config) { c.Fleet.WireCert = "c" }, "wire_key"},
		"a socket, no secret": {roleCentral, func(c *Config) { c.Fleet.WireListen = "unix:///s" }, func(c *Config) {
			c.Fleet.SecretFile, c.Fleet.WireCert, c.Fleet.WireKey, c.Fleet.WireCA, c.Fleet.WireListen = "", "c", "k", "a", "unix:///s"
		}, "unix socket"},
		"a socket of no path": {roleCentral, nil, func(c *Config) { c.Fleet.WireListen = "unix://s" }, "whole path"},
		"no address":          {roleCentral, nil, func(c *Config) { c.Fleet.WireListen = "2" }, "host:port"},
		"a URL with more":     {roleEdge, func(c *Config) { c.Fleet.APIFar = "http://127.0.0.1:3/" }, func(c *Config) { c.Fleet.APIFar = "http://127.0.0.1:3/client/v4" }, "no more"},
		"a URL of the wire":   {roleEdge, func(c *Config) { c.Fleet.Far = "unix:///s" }, func(c *Config) { c.Fleet.Far = "http://127.0.0.1:1/wire" }, "fleet.far"},
		"shared with nobody":  {roleEdge, func(c *Config) { c.Fleet.PoPShared, c.Fleet.PoP = true, "fra" }, func(c *Config) { c.Fleet.PoPShared = true }, "needs a name"},
		"a long name":         {roleEdge, func(c *Config) { c.Fleet.PoP = strings.Repeat("x", maxPoPBytes) }, func(c *Config) { c.Fleet.PoP = strings.Repeat("x", maxPoPBytes+1) }, "fleet.pop"},
		"a name with a space": {roleEdge, nil, func(c *Config) { c.Fleet.PoP = "f a" }, "fleet.pop"},
		"near":                {roleEdge, func(c *Config) { c.Fleet.NearBytes = mostNear(roleEdge, c.MemoryBytes) }, func(c *Config) { c.Fleet.NearBytes = mostNear(roleEdge, c.MemoryBytes) + 1 }, "near_bytes"},
		"memory of a centre":  {roleCentral, func(c *Config) { c.MemoryBytes = 256 << 20 }, func(c *Config) { c.MemoryBytes = 256<<20 - 1 }, "memory_bytes"},
		"age":                 {roleEdge, func(c *Config) { c.Fleet.MaxAge = Duration(minCloudflareAge) }, func(c *Config) { c.Fleet.MaxAge = Duration(minCloudflareAge - 1) }, "max_age"},
	} {
		for i, change := range []func(*Config){c.good, c.bad} {
			config := fleetConfig(c.role)
			if change == nil {
				continue
			}
			change(&config)
			err := config.check()
			if i == 0 && err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if i == 1 && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%s is not refused: %v", name, err)
			}
		}
	}
	open := fleetConfig(roleEdge)
	open.Profile, open.Fleet.MaxAge, open.Fleet.MaxStale = "open", 0, 0
	if err := open.check(); err != nil || tierStale(open) >= 0 {
		t.Errorf("an open profile: %v, %v", err, tierStale(open))
	}
}

// TestFleetSettings: those of a fleet can be set by flag, variable and file.
func TestFleetSettings(t *testing.T) {
	args := []string{"config", "--fleet-role", "edge", "--fleet-far", "http://127.0.0.1:1", "--fleet-api-far", "http://127.0.0.1:2",
		"--fleet-secret-file", "s", "--fleet-pop", "fra", "--fleet-pop-shared", "--fleet-near-bytes", "64MiB", "--fleet-max-age", "45s"}
	_, byFlag, stderr := run(t, "", nil, args...)
	for _, want := range []string{`role = "edge"`, `pop_shared = true`, `near_bytes = "64MiB"`, `max_age = "45s"`, `max_stale = "1h"`} {
		if !strings.Contains(byFlag, "\n"+want+"\n") {
			t.Errorf("%s is not printed %s", want, stderr)
		}
	}
	environ := []string{"NEARKEY_FLEET_POP_SHARED=true", "NEARKEY_FLEET_NEAR_BYTES=64MiB", "NEARKEY_FLEET_MAX_AGE=45s", "NEARKEY_FLEET_POP=fra",
		"NEARKEY_FLEET_SECRET_FILE=s", "NEARKEY_FLEET_ROLE=edge", "NEARKEY_FLEET_FAR=http://127.0.0.1:1", "NEARKEY_FLEET_API_FAR=http://127.0.0.1:2"}
	if _, byEnv, stderr := run(t, "", environ, "config"); byEnv != byFlag {
		t.Errorf("variables make another configuration than flags: %s", stderr)
	}
	file := filepath.Join(t.TempDir(), "edge.toml")
	if err := writeFile(file, []byte(byFlag), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, byFile, stderr := run(t, "", nil, "config", "--config", file); byFile != byFlag {
		t.Errorf("the file makes another configuration than flags: %s", stderr)
	}
	for _, text := range []string{"", "yes", "1"} {
		if code, _, _ := run(t, "", nil, "config", "--fleet-pop-shared="+text); code != exitUsage {
			t.Errorf("pop_shared = %q: exit code %d", text, code)
		}
	}
}

// An edge and the Workers of another do not get one port.
func TestPortsAreGivenOnce(t *testing.T) {
	var p ports
	given := p.free(t.Context())
	if _, err := p.consecutive(t.Context(), "--workers-listen", given, 1); exitCode(err) != exitUsage {
		t.Errorf("%s once more: %v", given, err)
	}
}

func TestPlan(t *testing.T) {
	d := dev{edges: 3, regions: 2, listen: "127.0.0.1:0", data: t.TempDir(), memory: "256MiB"}
	children, err := d.plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	args := map[string]string{}
	ports := map[string]bool{}
	for _, c := range children {
		args[c.name] = " " + strings.Join(c.args, " ") + " "
		if ports[c.port] {
			t.Errorf("%s has the port %s of another", c.name, c.port)
		}
		ports[c.port] = true
	}
	value := func(name, flag string) string {
		_, rest, _ := strings.Cut(args[name], " --"+flag+" ")
		text, _, _ := strings.Cut(rest, " ")
		return text
	}
	if len(children) != 6 || children[0].role != roleCentral {
		t.Fatalf("children: %v", args)
	}
	for edge, region := range map[string]string{"edge-1": "region-1", "edge-2": "region-2", "edge-3": "region-1"} {
		if value(edge, "fleet-far") != "http://"+value(region, "fleet-wire-listen") || value(edge, "fleet-api-far") != "http://"+value("central", "listen") {
			t.Errorf("%s:%s", edge, args[edge])
		}
		if value(region, "fleet-far") != "http://"+value("central", "fleet-wire-listen") || value(edge, "fleet-pop") != edge || strings.Contains(args[edge], "shared") {
			t.Errorf("%s:%s\n%s:%s", edge, args[edge], region, args[region])
		}
	}
	if value("edge-1", "address-file") != filepath.Join(d.data, addressFileName) || value("edge-2", "address-file") == value("edge-3", "address-file") {
		t.Errorf("addresses: %v", args)
	}
	d.regions, d.shared = 0, true
	if children, err = d.plan(t.Context()); err != nil || len(children) != 4 {
		t.Fatalf("%v, %v", children, err)
	}
	for _, c := range children[1:] {
		if text := strings.Join(c.args, " "); !strings.Contains(text, "--fleet-pop pop-1 --fleet-pop-shared") || c.region != "" {
			t.Errorf("shared: %s", text)
		}
	}
	for _, c := range children { // each is a configuration that serve takes
		config := append([]string{"config"}, c.args[1:]...)
		if code, _, stderr := run(t, "", nil, config...); code != exitOK {
			t.Errorf("%s: %s", c.name, stderr)
		}
	}
}

func TestDevRefuses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for text, want := range map[string]int{
		"--edges 0": exitUsage, "--edges 65": exitUsage, "--regions -1": exitUsage, "--regions 17": exitUsage, "--table=maybe": exitUsage,
		"--memory-bytes 255MiB": exitUsage, "--memory-bytes x": exitUsage, "--listen x": exitUsage, "--listen 127.0.0.1:65534 --edges 3": exitUsage,
		"--listen " + busy.Addr().String(): exitFailed,
	} {
		args := append([]string{"dev", "--data", t.TempDir()}, strings.Fields(text)...)
		if code, _, stderr := run(t, "", nil, args...); code != want {
			t.Errorf("dev %s: exit code %d, want %d: %s", text, code, want, stderr)
		}
	}
	for _, d := range []dev{{edges: 1, data: "d", memory: "256MiB"}, {edges: maxEdges, regions: maxRegions, data: "d", memory: "1GiB", table: "true"}} {
		if err := d.check(); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func TestSecretOfAFleetIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), secretName)
	if err := ensureSecret(file); err != nil {
		t.Fatal(err)
	}
	first, err := wire.ReadSecret(file)
	if err != nil || len(first) != 40 {
		t.Fatalf("%q, %v", first, err)
	}
	if err := ensureSecret(file); err != nil {
		t.Fatal(err)
	}
	if again, err := wire.ReadSecret(file); err != nil || !bytes.Equal(first, again) {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
}

func TestChildrenInheritWhatHoldsForAll(t *testing.T) {
	m := Main{Environ: []string{"PATH=/bin", "NEARKEY_DATA=d", "NEARKEY_CONFIG=c", "NEARKEY_LISTEN=l", "NEARKEY_PROFILE=open", "NEARKEY_LIMITS_MIN_TTL=1s", "NEARKEY_LOG_LEVEL=warn", "NEARKEY_API_TOKEN=t", "NEARKEY_FLEET_ROLE=edge"}}
	if got := strings.Join(m.childEnviron(), " "); got != "PATH=/bin NEARKEY_PROFILE=open NEARKEY_LIMITS_MIN_TTL=1s NEARKEY_LOG_LEVEL=warn NEARKEY_API_TOKEN=t" {
		t.Error(got)
	}
}

func TestFigures(t *testing.T) {
	got, err := readFigures(strings.NewReader("# HELP x y\nx 1\ny{a=\"b c\"} 2\ny{a=\"}\"} 3.5e1\n\nz NaN\n"))
	if err != nil || got["x"] != 1 || got["y"] != 37 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := readFigures(strings.NewReader("x much\n")); err == nil {
		t.Error("what is no number is read")
	}
}

func TestTable(t *testing.T) {
	rows := []row{{name: "central", port: "1", state: "ready", feedAge: -1}, {name: "edge-1", port: "8790", region: "region-1", state: "not ready", requests: 12345, hit: 3, miss: 1, feedAge: .256, memory: 3 << 20}}
	lines := tableOf(rows)
	if len(lines) != 3 || len(lines[0]) != len(lines[2]) {
		t.Fatalf("%s", strings.Join(lines, "\n"))
	}
	for _, want := range []string{"edge-1", "8790", "region-1", "not ready", "12,345", "75.0%", "260ms", "3.0 MiB"} {
		if !strings.Contains(lines[2], want) {
			t.Errorf("%s is not in %s", want, lines[2])
		}
	}
	var out bytes.Buffer
	s := &screen{out: &out, terminal: true}
	s.show(rows)
	s.say("a message")
	s.show(rows)
	s.end()
	s.say("the end")
	if got := strings.Count(out.String(), "\x1b[3A\x1b[J"); got != 2 {
		t.Errorf("drawn over %d times, want 2: %q", got, out.String())
	}
	lineByLine := newScreen(&out, "")
	out.Reset()
	lineByLine.show(rows)
	if text := out.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, " edge-1 not-ready requests=12345 hit=3 ") || strings.Contains(text, "\x1b") {
		t.Errorf("%q", text)
	}
	if newScreen(&out, "false").every() != 0 || lineByLine.every() != sayEvery {
		t.Error("figures are shown when they should not be, or not as often as they should be")
	}
}

func TestLogsAreBounded(t *testing.T) {
	dir := t.TempDir()
	l := &logFile{path: filepath.Join(dir, "x.log")}
	if err := l.begin(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	half := bytes.Repeat([]byte("x"), maxLogBytes/2)
	for range 5 {
		if n, err := l.Write(half); n != len(half) || err != nil {
			t.Fatal(n, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 2 || l.written != len(half) {
		t.Errorf("%v, %d bytes, %v", files, l.written, err)
	}
}
