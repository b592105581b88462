package main

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// The roles of a process.
const (
	roleSingle   = "single"
	roleCentral  = "central"
	roleRegional = "regional"
	roleEdge     = "edge"
	roleProxy    = "proxy"
)

// minCloudflareAge is the least cacheTtl of Workers KV.
const minCloudflareAge = 30 * time.Second

// maxPoPBytes is the greatest length of the name of a point of presence.
const maxPoPBytes = 64

// need is what a role makes of a setting.
type need uint8

const (
	never need = iota // it would have no effect
	may
	must
	providersByWire // may, if a provider is reached by the wire
)

// needs are what each role makes of a setting.
type needs struct{ single, central, regional, edge, proxy need }

// fleetNeeds are the settings that not every role has. A single process has use for
// what is of the wire if it reaches a provider by it.
var fleetNeeds = []struct {
	key  string
	text func(*Config) string
	needs
}{
	{"fleet.far", func(c *Config) string { return c.Fleet.Far }, needs{regional: must, edge: must}},
	{"fleet.api_far", func(c *Config) string { return c.Fleet.APIFar }, needs{edge: must}},
	{"fleet.wire_listen", func(c *Config) string { return c.Fleet.WireListen }, needs{central: must, regional: must, proxy: must}},
	{"fleet.secret_file", func(c *Config) string { return c.Fleet.SecretFile }, needs{providersByWire, may, may, may, may}},
	{"fleet.wire_cert", func(c *Config) string { return c.Fleet.WireCert }, needs{providersByWire, may, may, may, may}},
	{"fleet.wire_key", func(c *Config) string { return c.Fleet.WireKey }, needs{providersByWire, may, may, may, may}},
	{"fleet.wire_ca", func(c *Config) string { return c.Fleet.WireCA }, needs{providersByWire, may, may, may, may}},
	{"fleet.wire_plain", func(c *Config) string { return switchText(c.Fleet.WirePlain) }, needs{providersByWire, may, may, may, may}},
	{"fleet.pop", func(c *Config) string { return c.Fleet.PoP }, needs{edge: may}},
	{"fleet.pop_shared", func(c *Config) string { return switchText(c.Fleet.PoPShared) }, needs{edge: may}},
	{"account_id", func(c *Config) string { return c.AccountID }, needs{single: may, central: may}},
	{"api_token_file", func(c *Config) string { return c.APITokenFile }, needs{single: may, central: may, proxy: may}},
	{"api_key_file", func(c *Config) string { return c.APIKeyFile }, needs{single: may, central: may}},
}

// of returns what a role makes of the setting.
func (n needs) of(c *Config) (needs need, known bool) {
	needs, known = map[string]need{
		roleSingle: n.single, roleCentral: n.central, roleRegional: n.regional, roleEdge: n.edge, roleProxy: n.proxy,
	}[c.Fleet.Role]
	if needs == providersByWire {
		needs = never
		if c.asksByWire() {
			needs = may
		}
	}
	return needs, known
}

// switchText is empty for a switch that is off, which is as if it were not set.
func switchText(s Switch) string {
	if s {
		return "true"
	}
	return ""
}

// checkFleet refuses settings that cannot be together with the role, rather than
// let them have no effect.
func (c *Config) checkFleet(fault func(key, format string, args ...any)) {
	role := c.Fleet.Role
	for _, n := range fleetNeeds {
		needs, known := n.of(c)
		switch set := n.text(c) != ""; {
		case !known:
			return // the role itself is a fault
		case needs == must && !set:
			fault(n.key, "the role %s needs it", role)
		case needs == never && set:
			fault(n.key, "the role %s has no use for it", role)
		}
	}
	if role != roleSingle || c.asksByWire() {
		c.checkWire(fault)
	}
	if c.Fleet.PoPShared && c.Fleet.PoP == "" {
		fault("fleet.pop", "a point of presence that is shared needs a name")
	}
	if len(c.Fleet.PoP) > maxPoPBytes || strings.ContainsFunc(c.Fleet.PoP, func(r rune) bool { return r <= ' ' || r > '~' }) {
		fault("fleet.pop", "%q: want at most %d visible ASCII characters", c.Fleet.PoP, maxPoPBytes)
	}
	if most := mostNear(role, c.MemoryBytes); c.Fleet.NearBytes > most {
		fault("fleet.near_bytes", "%d is too much; want at most %d with this memory_bytes", c.Fleet.NearBytes, most)
	}
	if c.Profile == "cloudflare" && time.Duration(c.Fleet.MaxAge) < minCloudflareAge {
		fault("fleet.max_age", "want at least %s; the profile open allows less", minCloudflareAge)
	}
}

// checkWire checks how the processes of a fleet find and know each other.
func (c *Config) checkWire(fault func(key, format string, args ...any)) {
	f := &c.Fleet
	if (f.WireCert == "") != (f.WireKey == "") {
		fault("fleet.wire_cert", "want both wire_cert and wire_key, or neither")
	}
	if f.SecretFile == "" && (f.WireCert == "" || f.WireCA == "") {
		fault("fleet.secret_file", "want a secret_file; or wire_cert, wire_key and wire_ca, so that certificates say who calls")
	}
	if f.Far != "" {
		if err := c.checkWireURL(f.Far); err != nil {
			fault("fleet.far", "%w", err)
		}
	}
	if f.APIFar != "" {
		u, err := apiFarURL(f.APIFar)
		switch {
		case err != nil:
			fault("fleet.api_far", "%w", err)
		case u.Scheme == "http" && !isLoopback(u.Hostname()) && !bool(f.WirePlain):
			fault("fleet.api_far", "%s", plainWire(f.APIFar))
		}
	}
	if f.WireListen == "" {
		return
	}
	network, address := wireAddress(f.WireListen)
	if network == "unix" {
		if !filepath.IsAbs(address) {
			fault("fleet.wire_listen", "%q: want the whole path of a socket, unix:///PATH", f.WireListen)
		}
		if f.SecretFile == "" {
			fault("fleet.wire_listen", "a unix socket has no certificates: it needs a secret_file")
		}
		return
	}
	host, _, err := net.SplitHostPort(address)
	switch {
	case err != nil:
		fault("fleet.wire_listen", "%w; want host:port or unix:///PATH", err)
	case f.WireCert == "" && !isLoopback(host) && !bool(f.WirePlain):
		fault("fleet.wire_listen", "%s", plainWire(f.WireListen))
	}
}

func plainWire(where string) string {
	return fmt.Sprintf("%s is beyond this machine, and without encryption secrets and values can be read on the way; "+
		"use certificates and https, or set wire_plain = true if the network itself encrypts", where)
}

// isLoopback reports whether a host is this machine for certain.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// wireAddress is the network and address that wire_listen means.
func wireAddress(text string) (network, address string) {
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		return "unix", path
	}
	return "tcp", text
}

// apiFarURL is the root of the central process's API.
func apiFarURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("%q: want http://HOST:PORT or https://HOST:PORT and no more", u.Redacted())
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}
