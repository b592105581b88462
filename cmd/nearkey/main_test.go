package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

func TestPrintedConfigIsReadAgain(t *testing.T) {
	config := defaultConfig()
	config.Limits.MinTTL = new(Duration(time.Second))
	config.Limits.Namespaces = new(Count(0))
	config.Log.Format = "json"
	var text bytes.Buffer
	if err := printConfig(&text, config); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "nearkey.toml")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got := Config{}
	if err := readConfig(file, &got); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := printConfig(&again, got); err != nil {
		t.Fatal(err)
	}
	if again.String() != text.String() {
		t.Fatalf("got\n%s\nwant\n%s", again.String(), text.String())
	}
}

// TestEverySettingIsDocumented and can be set by flag and variable.
func TestEverySettingIsDocumented(t *testing.T) {
	examples := map[string]string{
		"memory_bytes": "256MiB", "profile": "open", "log.level": "warn", "log.format": "json",
		"listen": "127.0.0.1:9", "account_id": strings.Repeat("a", 32),
		"gateway.ack": "both", "gateway.deadline": "2s", "gateway.hedge": "5ms", "gateway.max_queued": "2000",
		"workers.listen": "127.0.0.1:9", "workers.egress": "all", "workers.egress_allow": "10.0.0.0/8", "workers.cpu": "2s",
		"workers.heap_bytes": "64MiB", "workers.process_bytes": "256MiB", "workers.require_isolation": "true",
	}
	var config Config
	for _, s := range settings(&config) {
		if len(s.doc) < 10 || !strings.HasSuffix(s.doc, ".") {
			t.Errorf("%s has no documentation: %q", s.key, s.doc)
		}
		text := examples[s.key]
		switch {
		case text != "":
		case strings.HasSuffix(s.key, "_bytes"):
			text = "1KiB"
		case !s.quoted():
			text = "7"
		case s.field.Kind().String() == "string":
			text = "x"
		default:
			text = "2h"
		}
		if strings.HasPrefix(s.key, "tls.") || strings.HasPrefix(s.key, "fleet.") {
			continue // they go together
		}
		want := s.key[strings.LastIndex(s.key, ".")+1:] + " = " + text
		if s.quoted() {
			want = s.key[strings.LastIndex(s.key, ".")+1:] + ` = "` + text + `"`
		}
		_, byFlag, stderr := run(t, "", nil, "config", "--"+s.flag()+"="+text)
		if !strings.Contains(byFlag, "\n"+want+"\n") {
			t.Errorf("flag --%s: %s is not printed %s", s.flag(), want, stderr)
		}
		if _, byEnv, stderr := run(t, "", []string{s.env() + "=" + text}, "config"); byEnv != byFlag {
			t.Errorf("variable %s: another configuration than by flag %s", s.env(), stderr)
		}
	}
}

func TestFlagsGoBeforeVariablesBeforeTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("listen = \"h:1\"\nprofile = \"open\"\n[limits]\nmin_ttl = \"2s\"\nlist_keys = 10_0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"NEARKEY_CONFIG=" + file, "NEARKEY_LISTEN=h:2", "NEARKEY_LIMITS_MIN_TTL=3s"}
	_, out, stderr := run(t, "", environ, "config", "--limits-min-ttl", "4s")
	for _, want := range []string{`listen = "h:2"`, `profile = "open"`, "\nmin_ttl = \"4s\"", "\nlist_keys = 100", "# metadata_bytes = \"64KiB\""} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s%s", want, out, stderr)
		}
	}
}

func TestLimitsOfProfiles(t *testing.T) {
	c := defaultConfig()
	if got := c.limits(); got != kv.CloudflareLimits() {
		t.Errorf("cloudflare: %+v", got)
	}
	c.Profile = "open"
	c.Limits.WriteInterval = new(Duration(time.Second))
	if got := c.limits(); got.MinTTL != time.Second || got.MetadataBytes != kv.MaxMetadataBytes || got.WriteInterval != time.Second {
		t.Errorf("open: %+v", got)
	}
}

func TestChecksAtTheirLimits(t *testing.T) {
	for name, c := range map[string]struct {
		good, bad func(*Config)
	}{
		"memory":         {func(c *Config) { c.MemoryBytes = 192 << 20 }, func(c *Config) { c.MemoryBytes = 192<<20 - 1 }},
		"retention":      {func(c *Config) { c.TombstoneRetention = Duration(time.Minute) }, func(c *Config) { c.TombstoneRetention = Duration(time.Minute - 1) }},
		"port":           {func(c *Config) { c.Listen = ":65535" }, func(c *Config) { c.Listen = ":65536" }},
		"min ttl":        {func(c *Config) { c.Limits.MinTTL = new(Duration(time.Second)) }, func(c *Config) { c.Limits.MinTTL = new(Duration(time.Second - 1)) }},
		"value":          {func(c *Config) { c.Limits.ValueBytes = new(Size(kv.MaxValueBytes)) }, func(c *Config) { c.Limits.ValueBytes = new(Size(kv.MaxValueBytes + 1)) }},
		"metadata":       {func(c *Config) { c.Limits.MetadataBytes = new(Size(kv.MaxMetadataBytes)) }, func(c *Config) { c.Limits.MetadataBytes = new(Size(kv.MaxMetadataBytes + 1)) }},
		"heap":           {func(c *Config) { c.Workers.HeapBytes = 16 << 20 }, func(c *Config) { c.Workers.HeapBytes = 16<<20 - 1 }},
		"great heap":     {func(c *Config) { c.Workers.HeapBytes = 16 << 30 }, func(c *Config) { c.Workers.HeapBytes = 16<<30 + 1 }},
		"process":        {func(c *Config) { c.Workers.ProcessBytes = 64 << 20 }, func(c *Config) { c.Workers.ProcessBytes = 64<<20 - 1 }},
		"processes":      {func(c *Config) { c.Workers.Processes = 1 }, func(c *Config) { c.Workers.Processes = 0 }},
		"many processes": {func(c *Config) { c.Workers.Processes = maxProcesses }, func(c *Config) { c.Workers.Processes = maxProcesses + 1 }},
		"cpu":            {func(c *Config) { c.Workers.CPU = Duration(minWorkerCPU) }, func(c *Config) { c.Workers.CPU = Duration(minWorkerCPU - 1) }},
		"idle":           {func(c *Config) { c.Workers.Idle = Duration(time.Second) }, func(c *Config) { c.Workers.Idle = Duration(time.Second - 1) }},
		"list":           {func(c *Config) { c.Limits.ListKeys = new(Count(kv.MaxListLimit)) }, func(c *Config) { c.Limits.ListKeys = new(Count(kv.MaxListLimit + 1)) }},
	} {
		good, bad := defaultConfig(), defaultConfig()
		c.good(&good)
		c.bad(&bad)
		if err := good.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := bad.check(); exitCode(err) != exitUsage {
			t.Errorf("%s: one past the limit: %v", name, err)
		}
	}
}

// The API and Workers do not have one address.
func TestTwoListeners(t *testing.T) {
	c := defaultConfig()
	c.Workers.Listen = c.Listen
	if err := c.check(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "workers.listen") {
		t.Errorf("one address: %v", err)
	}
	c.Listen, c.Workers.Listen = "127.0.0.1:0", "127.0.0.1:0"
	if err := c.check(); err != nil {
		t.Errorf("any port twice: %v", err)
	}
}

// Sizes are told as they are written.
func TestSizesInFaults(t *testing.T) {
	_, _, stderr := run(t, "", nil, "config", "--workers-heap-bytes=1KiB")
	if want := "1KiB: want 16MiB to 16GiB"; !strings.Contains(stderr, want) {
		t.Errorf("%q is not in %q", want, stderr)
	}
}

func TestQuantities(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1024": 1024, "512MiB": 512 << 20, "1.5 KiB": 1536, "1GB": 1e9, "7B": 7} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
		written, _ := s.MarshalText()
		var again Size
		if err := again.UnmarshalText(written); err != nil || again != s {
			t.Errorf("%q is written %q, which is %d, %v", text, written, again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5", "inf", "NaN", "0x10", "1e300GiB", "5 apples"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a size", text)
		}
	}
	for text, want := range map[string]time.Duration{"0s": 0, "90s": 90 * time.Second, "30d": 720 * time.Hour, "1h30m": 90 * time.Minute} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q: %v, %v", text, time.Duration(d), err)
		}
	}
	for _, text := range []string{"", "5", "-5s", "d", "1000000000d"} {
		if err := new(Duration).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a time span", text)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Minute: "1m", 10 * time.Second: "10s", time.Hour + time.Second: "1h0m1s"} {
		if got, _ := Duration(d).MarshalText(); string(got) != want {
			t.Errorf("%d is written %q, want %q", d, got, want)
		}
	}
}

// TestTokenGoesToItsOwnServerOnly: which credentials go where.
func TestTokenGoesToItsOwnServerOnly(t *testing.T) {
	data := t.TempDir()
	for name, text := range map[string]string{addressFileName: "0.0.0.0:81", tokenFileName: "local", accountFileName: "local-account"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const local, remote = "http://127.0.0.1:81/client/v4", "http://remote/client/v4"
	cloudflare := []string{"CLOUDFLARE_API_TOKEN=cf", "CLOUDFLARE_ACCOUNT_ID=cf-account"}
	for name, c := range map[string]struct {
		environ             []string
		conn                connection
		url, token, account string
	}{
		"the data directory":                    {nil, connection{data: data}, local, "local", "local-account"},
		"not Cloudflare's token for it":         {cloudflare, connection{data: data}, local, "local", "local-account"},
		"its address by hand":                   {cloudflare, connection{data: data, apiURL: "http://127.0.0.1:81"}, local, "local", "local-account"},
		"nor its token for another":             {nil, connection{data: data, apiURL: "http://remote"}, remote, "", ""},
		"Cloudflare's variables together":       {append(cloudflare, "CLOUDFLARE_API_BASE_URL=http://remote", "NEARKEY_DATA="+data), connection{}, remote, "cf", "cf-account"},
		"after eval of nearkey env":             {append(cloudflare, "CLOUDFLARE_API_BASE_URL="+local, "NEARKEY_DATA="+data), connection{}, local, "cf", "cf-account"},
		"a flag goes before the environment":    {append(cloudflare, "CLOUDFLARE_API_BASE_URL=http://remote"), connection{data: data}, local, "local", "local-account"},
		"our variables go before Cloudflare's":  {append(cloudflare, "NEARKEY_API_TOKEN=own", "NEARKEY_API_BASE_URL=http://remote"), connection{}, remote, "own", "cf-account"},
		"our token for our own data directory":  {[]string{"NEARKEY_API_TOKEN=own", "NEARKEY_DATA=" + data}, connection{}, local, "own", "local-account"},
		"the last of a variable that is double": {[]string{"NEARKEY_DATA=x", "NEARKEY_DATA=" + data}, connection{}, local, "local", "local-account"},
	} {
		m := Main{Environ: c.environ}
		s, err := m.resolve(c.conn)
		if err != nil || s.baseURL != c.url || s.token != c.token || s.accountID != c.account {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	for word, want := range map[string]string{"improt": "import", "exprt": "export", "sessions2": "", "x": "", "kv": ""} {
		got := didYouMean(word, []string{"import", "export"})
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", word, got, want)
		}
	}
}

func TestNothingHarmsATerminal(t *testing.T) {
	for in, want := range map[string]string{
		"a b/é.🐎": "a b/é.🐎", "tab\there": `tab\there`, "\x1b[31m": `\x1b[31m`, "back\\slash": `back\\slash`, `"q"`: `"q"`, "\"\n": `"\n`, "\xff": `\xff`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for text, want := range map[string]bool{"line\nline\t": false, "\x1b": true, "\x00": true, "\xff": true} {
		if binary([]byte(text)) != want {
			t.Errorf("%q: binary %v", text, !want)
		}
	}
}

func TestSecretsOfOneLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for text, ok := range map[string]bool{
		"token\n": true, " token \r\n": true, "": false, "\n": false, "a\nb\n": false,
		strings.Repeat("x", maxSecretBytes): true, strings.Repeat("x", maxSecretBytes+1): false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSecret(file); (err == nil) != ok {
			t.Errorf("%.20q (%d bytes): %v", text, len(text), err)
		}
	}
}

func TestMemoryIsDivided(t *testing.T) {
	for role := range shares {
		for _, offHeap := range []bool{false, true} {
			for _, total := range []Size{leastMemory(role), 512 << 20, 16 << 30} {
				for _, near := range []Size{0, 1 << 20, mostNear(role, total)} {
					m := divideMemory(role, total, near, offHeap)
					store := m.cache + memTables*m.memTable
					whole := m.heap
					if offHeap {
						whole += store
					}
					given := m.near + store + m.door + m.wire
					if whole >= int64(total) || given > int64(total)*13/16 || whole-given < int64(total)/16 {
						t.Errorf("%s %d, near %d, off heap %v: %+v", role, total, near, offHeap, m)
					}
					if near != 0 && m.near != int64(near) || m.far < leastFar || max(m.door, m.wire) < leastDoor {
						t.Errorf("%s %d, near %d: %+v", role, total, near, m)
					}
				}
			}
		}
	}
}

func TestScopeNeedsAKnownWord(t *testing.T) {
	for _, text := range []string{"", "delete", "read:", "write::p"} {
		if _, err := parseScope(t.Context(), nil, text); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", text, err)
		}
	}
	id := strings.Repeat("ab", 16)
	scope, err := parseScope(t.Context(), nil, "write:"+id+":a:b/")
	if err != nil || scope.String() != "write:"+id+":a:b/" {
		t.Errorf("got %v, %v", scope, err)
	}
}
