package main

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/wire"
)

// When a write is acknowledged.
const (
	ackFirst = "first"
	ackBoth  = "both"
)

// The bounds of what may be configured of providers.
const (
	maxProviders    = 8
	maxClusters     = 64
	maxConnsOfOne   = 1000
	maxWeight       = 1000
	maxInline       = 1 << 20
	minInline       = 1 << 10
	minForgetAfter  = time.Hour
	maxGatewayNode  = 1<<16 - 1
	minCallDeadline = 100 * time.Millisecond
	maxCallDeadline = time.Minute
	maxQueuedKeys   = 10_000_000
	maxNameBytes    = 32
)

// faulter notes what is wrong with a setting.
type faulter func(key, format string, args ...any)

// hasProviders reports whether records are kept by providers and not by a store in
// the data directory.
func (c *Config) hasProviders() bool { return len(c.Providers) > 0 }

// asksByWire reports whether a provider is reached by the wire.
func (c *Config) asksByWire() bool {
	return slices.ContainsFunc(c.Providers, func(p ProviderConfig) bool { return p.URL != "" })
}

// checkStorage checks the gateway and its providers.
func (c *Config) checkStorage(fault faulter) {
	c.checkGateway(fault)
	role := c.Fleet.Role
	switch n := len(c.Providers); {
	case role == roleProxy && n != 1:
		fault("provider", "the role proxy has one provider; the file names %d", n)
	case role == roleProxy && c.Providers[0].URL != "":
		fault("provider.url", "the provider of the role proxy has clusters of its own")
	case (role == roleEdge || role == roleRegional) && n > 0:
		fault("provider", "the role %s keeps no records and has no use for providers", role)
	case n > maxProviders:
		fault("provider", "%d providers; want at most %d", n, maxProviders)
	}
	if c.Catalog.DatabaseFile != "" && role != roleSingle && role != roleCentral {
		fault("catalog.database_file", "the role %s has no use for it", role)
	}
	names := map[string]bool{}
	for i := range c.Providers {
		p := &c.Providers[i]
		c.checkProvider(p, func(key, format string, args ...any) {
			fault(fmt.Sprintf("provider.%s of provider %q", key, p.Name), format, args...)
		})
		if names[p.Name] {
			fault("provider.name", "%q is the name of two providers", p.Name)
		}
		names[p.Name] = true
	}
}

func (c *Config) checkGateway(fault faulter) {
	g := &c.Gateway
	if g.Ack != ackFirst && g.Ack != ackBoth {
		fault("gateway.ack", "%q: want %q or %q", g.Ack, ackFirst, ackBoth)
	}
	span := func(key string, d Duration, least, most time.Duration) {
		if time.Duration(d) < least || time.Duration(d) > most {
			fault("gateway."+key, "%s: want %s to %s", time.Duration(d), least, most)
		}
	}
	span("deadline", g.Deadline, minCallDeadline, maxCallDeadline)
	span("hedge", g.Hedge, 0, max(minCallDeadline, time.Duration(g.Deadline)))
	span("crawl_every", g.CrawlEvery, time.Minute, 365*day)
	span("forget_after", g.ForgetAfter, minForgetAfter, 10*365*day)
	number := func(key string, n Count, least, most Count) {
		if n < least || n > most {
			fault("gateway."+key, "%d: want %d to %d", n, least, most)
		}
	}
	number("crawl_rate", g.CrawlRate, 1, 10_000_000)
	number("max_queued", g.MaxQueued, 1000, maxQueuedKeys)
	number("node", g.Node, 0, maxGatewayNode)
}

// checkProvider checks one provider; fault knows which.
func (c *Config) checkProvider(p *ProviderConfig, fault faulter) {
	if !isPlainName(p.Name) {
		fault("name", "want 1 to %d of a-z, 0-9 and -", maxNameBytes)
	}
	if p.CopyRate < 0 {
		fault("copy_rate", "%d: want 0 (no limit) or more", p.CopyRate)
	}
	if p.URL != "" {
		if len(p.Clusters) > 0 || p.Blobs != nil {
			fault("url", "a provider has a url or clusters and blobs of its own, not both")
		}
		if err := c.checkWireURL(p.URL); err != nil {
			fault("url", "%w", err)
		}
		return
	}
	if p.InlineBytes < minInline || p.InlineBytes > maxInline {
		fault("inline_bytes", "%d: want %d to %d", p.InlineBytes, minInline, maxInline)
	}
	if n := len(p.Clusters); n == 0 || n > maxClusters {
		fault("cluster", "%d clusters; want a url, or 1 to %d tables [[provider.cluster]] below the provider", n, maxClusters)
	}
	names := map[string]bool{}
	for i := range p.Clusters {
		cluster := &p.Clusters[i]
		cluster.check(func(key, format string, args ...any) {
			fault(fmt.Sprintf("cluster.%s of cluster %q", key, cluster.Name), format, args...)
		})
		if names[cluster.Name] {
			fault("cluster.name", "%q is the name of two clusters", cluster.Name)
		}
		names[cluster.Name] = true
	}
	if p.Blobs != nil {
		p.Blobs.check(func(key, format string, args ...any) { fault("blobs."+key, format, args...) })
	}
}

// isPlainName reports whether a text can name a provider or a cluster.
func isPlainName(s string) bool {
	return s != "" && len(s) <= maxNameBytes && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (c *ClusterConfig) check(fault faulter) {
	if !isPlainName(c.Name) {
		fault("name", "want 1 to %d of a-z, 0-9 and -", maxNameBytes)
	}
	if w := float64(*c.Weight); !(w > 0 && w <= maxWeight) {
		fault("weight", "%g: want more than 0 and at most %d; 'nearkey shards drain' empties a cluster", w, maxWeight)
	}
	if c.Connections < 1 || c.Connections > maxConnsOfOne {
		fault("connections", "%d: want 1 to %d", c.Connections, maxConnsOfOne)
	}
	switch {
	case (c.Postgres == "") == (c.PostgresFile == ""):
		fault("postgres", "want either postgres or postgres_file")
	case c.Postgres != "":
		if err := checkPostgres(c.Postgres, false); err != nil {
			fault("postgres", "%w", err)
		}
	}
}

// checkPostgres checks the URL of a database. What it says never holds the URL,
// which may have a password.
func checkPostgres(text string, mayHavePassword bool) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return fmt.Errorf("want postgres://USER@HOST:PORT/DATABASE")
	}
	query := u.Query()
	if _, has := u.User.Password(); !mayHavePassword && (has || query.Has("password")) {
		return fmt.Errorf("a password must not stand in the configuration; give the URL by postgres_file, or the password by passfile=FILE in the URL")
	}
	if query.Get("sslmode") != "" {
		return nil // whoever wrote it has decided
	}
	hosts := strings.Split(u.Host, ",")
	hosts = append(hosts, strings.Split(query.Get("host"), ",")...)
	for _, host := range hosts {
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		if name != "" && !strings.HasPrefix(name, "/") && !isLoopback(strings.Trim(name, "[]")) {
			return fmt.Errorf("%s is beyond this machine; add ?sslmode=verify-full to the URL, or say sslmode=disable if the network itself encrypts", name)
		}
	}
	return nil
}

func (b *BlobsConfig) check(fault faulter) {
	u, err := url.Parse(b.Endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		fault("endpoint", "want http://HOST:PORT or https://HOST:PORT")
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !bool(b.Plain):
		fault("endpoint", "%s is beyond this machine, and without encryption values can be read on the way; use https, or set plain = true if the network itself encrypts", u.Host)
	}
	if b.Bucket == "" {
		fault("bucket", "want the name of a bucket")
	}
	if (b.AccessKeyID == "") != (b.SecretKeyFile == "") {
		fault("access_key_id", "want both access_key_id and secret_key_file, or neither")
	}
}

// checkWireURL checks the wire of another process.
func (c *Config) checkWireURL(text string) error {
	f := &c.Fleet
	if err := wire.CheckURL(text); err != nil {
		return err
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return err
	case u.Scheme != "https" && f.SecretFile == "":
		return fmt.Errorf("%s: without a secret_file the wire needs certificates, and https", text)
	case u.Scheme == "http" && !isLoopback(u.Hostname()) && !bool(f.WirePlain):
		return fmt.Errorf("%s", plainWire(text))
	}
	return nil
}
