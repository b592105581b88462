package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// goodProvider is a provider of one cluster and a bucket.
func goodProvider(name string) ProviderConfig {
	p := ProviderConfig{
		Name:     name,
		Clusters: []ClusterConfig{{Name: name + "1", Postgres: "postgres://127.0.0.1/nearkey"}},
		Blobs:    &BlobsConfig{Endpoint: "http://127.0.0.1:7070", Bucket: "nearkey-" + name},
	}
	p.fill()
	return p
}

// readText reads a configuration from a file of this text.
func readText(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config := defaultConfig()
	err := readConfig(file, &config)
	return config, err
}

const twoProviders = `
[gateway]
ack = "both"

[[provider]]
name = "a"
inline_bytes = "32KiB"

[[provider.cluster]]
name = "a1"
weight = 2
postgres_file = "/run/a1"
connections = 5
portable = true

[[provider.cluster]]
name = "a2"
postgres = "postgres://127.0.0.1,db2/nearkey?sslmode=verify-full"

[provider.blobs]
endpoint = "https://s3.example"
bucket = "b"

[[provider]]
name = "b"
url = "https://proxy.example:8700"
`

func TestProvidersAreRead(t *testing.T) {
	config, err := readText(t, twoProviders)
	if err != nil {
		t.Fatal(err)
	}
	a := config.Providers[0]
	got := fmt.Sprint(a.Name, a.InlineBytes, a.Clusters[0].Name, *a.Clusters[0].Weight, a.Clusters[0].Connections, a.Clusters[0].Portable,
		*a.Clusters[1].Weight, a.Clusters[1].Connections, a.Blobs.Region, config.Providers[1].Name, config.Providers[1].URL, config.Gateway.Ack)
	if want := "a32768a12 5 true1 16us-east-1bhttps://proxy.example:8700both"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got %s, want %s", got, want)
	}
	config.Fleet.SecretFile = "secret"
	if err := config.check(); err != nil {
		t.Error(err)
	}
	var text, again bytes.Buffer
	if err := printConfig(&text, config); err != nil {
		t.Fatal(err)
	}
	config, err = readText(t, text.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	if err := printConfig(&again, config); err != nil || again.String() != text.String() {
		t.Errorf("printed and read it is (%v)\n%s", err, again.String())
	}
}

// TestSettingsOfProvidersAreDocumented, and the example of 'nearkey config' is one.
func TestSettingsOfProvidersAreDocumented(t *testing.T) {
	for _, section := range providerSections(exampleProvider()) {
		for _, s := range section.settings {
			if len(s.doc) < 10 || !strings.HasSuffix(s.doc, ".") {
				t.Errorf("%s has no documentation: %q", s.key, s.doc)
			}
		}
	}
	var text bytes.Buffer
	if err := printConfig(&text, defaultConfig()); err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(text.String(), "# [[provider]]")
	var lines []string
	for line := range strings.Lines("# [[provider]]" + example) {
		if setting, ok := strings.CutPrefix(line, "# "); ok && (strings.HasPrefix(setting, "[") || strings.Contains(setting, " = ")) {
			lines = append(lines, setting)
		}
	}
	config, err := readText(t, strings.Join(lines, ""))
	if err != nil || len(config.Providers) != 1 || len(config.Providers[0].Clusters) != 1 || config.Providers[0].Blobs == nil {
		t.Errorf("the example is %+v (%v)", config.Providers, err)
	}
}

// TestExampleOfTwoProviders: the file that operators begin with is a good one.
func TestExampleOfTwoProviders(t *testing.T) {
	config := defaultConfig()
	if err := readConfig(filepath.Join("..", "..", "deploy", "two-providers.toml"), &config); err != nil {
		t.Fatal(err)
	}
	if err := config.check(); err != nil {
		t.Error(err)
	}
	if len(config.Providers) != 2 || len(config.Providers[0].Clusters) != 2 || config.Providers[1].Blobs == nil {
		t.Errorf("its providers are %+v", config.Providers)
	}
}

func TestMisspeltProviders(t *testing.T) {
	for text, want := range map[string]string{
		"[[provider]]\nnmae = 'a'":                              "c.toml:2: there is no setting provider.nmae; did you mean provider.name?",
		"[[provider]]\n[[provider.cluster]]\npostgre = 'x'":     "c.toml:3: there is no setting provider.cluster.postgre; did you mean provider.cluster.postgres?",
		"[[provider]]\n[provider.blobs]\nbuket = 'x'":           "c.toml:3: there is no setting provider.blobs.buket; did you mean provider.blobs.bucket?",
		"[[providers]]\nname = 'a'":                             "did you mean provider?",
		"[[provider]]\ninline_bytes = 'much'":                   "c.toml:2:",
		"[[provider]]\n[[provider.cluster]]\nweight = 'heavy'":  "c.toml:3:",
		"[[provider]]\nname = 'a'\nname = 'b'":                  "c.toml:3:",
		"[[provider]]\n[[provider.cluster]]\nportable = 'some'": "c.toml:3:",
	} {
		if _, err := readText(t, text); err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != exitUsage {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestChecksOfProviders(t *testing.T) {
	type change = func(*Config)
	provider := func(f func(*ProviderConfig)) change { return func(c *Config) { f(&c.Providers[0]) } }
	cluster := func(f func(*ClusterConfig)) change { return func(c *Config) { f(&c.Providers[0].Clusters[0]) } }
	blobs := func(f func(*BlobsConfig)) change { return func(c *Config) { f(c.Providers[0].Blobs) } }
	postgres := func(url string) change { return cluster(func(c *ClusterConfig) { c.Postgres = url }) }
	many := func(n int) change {
		return func(c *Config) {
			for len(c.Providers) < n {
				c.Providers = append(c.Providers, goodProvider(fmt.Sprint("p", len(c.Providers))))
			}
		}
	}
	manyClusters := func(n int) change {
		return provider(func(p *ProviderConfig) {
			for len(p.Clusters) < n {
				p.Clusters = append(p.Clusters, goodProvider(fmt.Sprint("c", len(p.Clusters))).Clusters[0])
			}
		})
	}
	weight := func(w float64) change { return cluster(func(c *ClusterConfig) { c.Weight = new(Weight(w)) }) }
	for name, c := range map[string]struct {
		good, bad change
		says      string
	}{
		"providers":        {many(maxProviders), many(maxProviders + 1), "at most 8"},
		"names":            {nil, func(c *Config) { c.Providers[1].Name = "a" }, "two providers"},
		"a name":           {provider(func(p *ProviderConfig) { p.Name = strings.Repeat("n", maxNameBytes) }), provider(func(p *ProviderConfig) { p.Name = strings.Repeat("n", maxNameBytes+1) }), "1 to 32"},
		"no name":          {nil, provider(func(p *ProviderConfig) { p.Name = "" }), "1 to 32"},
		"a name of others": {nil, provider(func(p *ProviderConfig) { p.Name = "A" }), "a-z"},
		"inline, least":    {provider(func(p *ProviderConfig) { p.InlineBytes = minInline }), provider(func(p *ProviderConfig) { p.InlineBytes = minInline - 1 }), "inline_bytes"},
		"inline, most":     {provider(func(p *ProviderConfig) { p.InlineBytes = maxInline }), provider(func(p *ProviderConfig) { p.InlineBytes = maxInline + 1 }), "inline_bytes"},
		"copy rate":        {provider(func(p *ProviderConfig) { p.CopyRate = 1 }), provider(func(p *ProviderConfig) { p.CopyRate = -1 }), "copy_rate"},
		"clusters":         {manyClusters(maxClusters), manyClusters(maxClusters + 1), "65 clusters"},
		"no clusters":      {nil, provider(func(p *ProviderConfig) { p.Clusters = nil }), "[[provider.cluster]]"},
		"names of clusters": {nil, provider(func(p *ProviderConfig) {
			p.Clusters = append(p.Clusters, p.Clusters[0])
		}), "two clusters"},
		"weight":          {weight(maxWeight), weight(maxWeight + 1), "weight"},
		"no weight":       {weight(0.01), weight(0), "drain"},
		"a strange one":   {nil, weight(math.NaN()), "weight"},
		"connections":     {cluster(func(c *ClusterConfig) { c.Connections = maxConnsOfOne }), cluster(func(c *ClusterConfig) { c.Connections = maxConnsOfOne + 1 }), "connections"},
		"no connections":  {cluster(func(c *ClusterConfig) { c.Connections = 1 }), cluster(func(c *ClusterConfig) { c.Connections = -1 }), "connections"},
		"two databases":   {nil, cluster(func(c *ClusterConfig) { c.PostgresFile = "f" }), "either"},
		"no database":     {cluster(func(c *ClusterConfig) { c.Postgres, c.PostgresFile = "", "f" }), postgres(""), "either"},
		"a password":      {postgres("postgres://u@127.0.0.1/d?passfile=p"), postgres("postgres://u:secret@127.0.0.1/d"), "postgres_file"},
		"password, other": {nil, postgres("postgres://u@127.0.0.1/d?password=secret"), "postgres_file"},
		"in clear":        {postgres("postgres://u@db/d?sslmode=verify-full"), postgres("postgres://u@db/d"), "sslmode=verify-full"},
		"one in clear":    {postgres("postgres://u@127.0.0.1,localhost:1/d"), postgres("postgres://u@127.0.0.1,db:1/d"), "db is beyond"},
		"by parameter":    {postgres("postgres:///d?host=/run/postgresql"), postgres("postgres:///d?host=db"), "db is beyond"},
		"no URL":          {nil, postgres("host=db"), "postgres://USER"},
		"URL and more":    {nil, provider(func(p *ProviderConfig) { p.URL = "unix:///s" }), "not both"},
		"bucket":          {nil, blobs(func(b *BlobsConfig) { b.Bucket = "" }), "bucket"},
		"endpoint":        {blobs(func(b *BlobsConfig) { b.Endpoint = "https://s3" }), blobs(func(b *BlobsConfig) { b.Endpoint = "s3" }), "endpoint"},
		"blobs in clear":  {blobs(func(b *BlobsConfig) { b.Endpoint, b.Plain = "http://s3", true }), blobs(func(b *BlobsConfig) { b.Endpoint = "http://s3" }), "plain = true"},
		"half a key":      {blobs(func(b *BlobsConfig) { b.AccessKeyID, b.SecretKeyFile = "k", "f" }), blobs(func(b *BlobsConfig) { b.AccessKeyID = "k" }), "secret_key_file"},
		"ack":             {func(c *Config) { c.Gateway.Ack = ackBoth }, func(c *Config) { c.Gateway.Ack = "most" }, "gateway.ack"},
		"deadline":        {func(c *Config) { c.Gateway.Deadline = Duration(maxCallDeadline) }, func(c *Config) { c.Gateway.Deadline = Duration(maxCallDeadline + 1) }, "gateway.deadline"},
		"no deadline":     {func(c *Config) { c.Gateway.Deadline = Duration(minCallDeadline) }, func(c *Config) { c.Gateway.Deadline = Duration(minCallDeadline - 1) }, "gateway.deadline"},
		"hedge":           {func(c *Config) { c.Gateway.Hedge = c.Gateway.Deadline }, func(c *Config) { c.Gateway.Hedge = c.Gateway.Deadline + 1 }, "gateway.hedge"},
		"crawl":           {func(c *Config) { c.Gateway.CrawlEvery = Duration(time.Minute) }, func(c *Config) { c.Gateway.CrawlEvery = Duration(time.Minute - 1) }, "gateway.crawl_every"},
		"forget":          {func(c *Config) { c.Gateway.ForgetAfter = Duration(minForgetAfter) }, func(c *Config) { c.Gateway.ForgetAfter = Duration(minForgetAfter - 1) }, "gateway.forget_after"},
		"queue":           {func(c *Config) { c.Gateway.MaxQueued = maxQueuedKeys }, func(c *Config) { c.Gateway.MaxQueued = maxQueuedKeys + 1 }, "gateway.max_queued"},
		"rate":            {func(c *Config) { c.Gateway.CrawlRate = 1 }, func(c *Config) { c.Gateway.CrawlRate = 0 }, "gateway.crawl_rate"},
		"node":            {func(c *Config) { c.Gateway.Node = maxGatewayNode }, func(c *Config) { c.Gateway.Node = maxGatewayNode + 1 }, "gateway.node"},
	} {
		t.Run(name, func(t *testing.T) {
			config := func(change change) *Config {
				c := defaultConfig()
				c.Providers = []ProviderConfig{goodProvider("a"), goodProvider("b")}
				if change != nil {
					change(&c)
				}
				return &c
			}
			if err := config(c.good).check(); err != nil {
				t.Errorf("good: %v", err)
			}
			err := config(c.bad).check()
			if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret@") || strings.Contains(err.Error(), "=secret") {
				t.Errorf("bad: %v, want %q", err, c.says)
			}
		})
	}
}

func TestRolesOfProviders(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		says   string // empty: good
	}{
		"a proxy":            {fleetConfig(roleProxy), ""},
		"a proxy of two":     {with(fleetConfig(roleProxy), goodProvider("b")), "one provider"},
		"a proxy of a proxy": {proxyOfAProxy(), "clusters of its own"},
		"an edge":            {with(fleetConfig(roleEdge), goodProvider("a")), "no use for providers"},
		"a centre":           {with(fleetConfig(roleCentral), goodProvider("a"), ProviderConfig{Name: "b", URL: "unix:///s"}), ""},
		"single, by wire": {func() Config {
			c := with(fleetConfig(roleSingle), ProviderConfig{Name: "b", URL: "unix:///s"})
			c.Fleet.SecretFile = "s"
			return c
		}(), ""},
		"single, no secret":   {with(fleetConfig(roleSingle), ProviderConfig{Name: "b", URL: "unix:///s"}), "secret_file"},
		"by wire in clear":    {with(fleetConfig(roleCentral), ProviderConfig{Name: "b", URL: "http://proxy:1"}), "wire_plain"},
		"catalog of an edge":  {func() Config { c := fleetConfig(roleEdge); c.Catalog.DatabaseFile = "f"; return c }(), "catalog.database_file"},
		"catalog of a single": {func() Config { c := fleetConfig(roleSingle); c.Catalog.DatabaseFile = "f"; return c }(), ""},
	} {
		err := c.config.check()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func with(c Config, providers ...ProviderConfig) Config {
	c.Providers = append(c.Providers, providers...)
	return c
}

func proxyOfAProxy() Config {
	c := fleetConfig(roleProxy)
	c.Providers = []ProviderConfig{{Name: "a", URL: "unix:///s"}}
	return c
}
