package main

import (
	"time"

	"github.com/nearkey/nearkey/workerd"
	"github.com/nearkey/nearkey/workerd/host"
)

// Config is everything about a server that can be configured. The comment of each
// field is its documentation: 'nearkey config' and the help of the flags are made
// of this file.
type Config struct {
	// The directory of the records, the catalog and the credentials; with providers,
	// of the gateway's journal and the tables of where keys are. It is created if it
	// does not exist. The roles regional and edge keep nothing and do not use it.
	Data string `toml:"data"`

	// The address to listen on, host:port. Port 0 lets the system choose. An
	// empty host means all addresses of this machine.
	Listen string `toml:"listen"`

	// The file that tells clients on this machine, such as 'nearkey env', where
	// the server listens. Empty: the file listen-address of the data directory; the
	// roles without one write none.
	AddressFile string `toml:"address_file"`

	// The memory that the server may use, such as "512MiB". It is divided among
	// copies of what is read, the cache of the store, the values of requests in
	// progress, and the rest.
	MemoryBytes Size `toml:"memory_bytes"`

	// The rules of the product: "cloudflare" (those of Workers KV, so that what
	// works here works there) or "open" (expirations from 1 s, metadata of
	// 64 KiB, any number of namespaces). Single rules are changed under [limits].
	Profile string `toml:"profile"`

	// How long requests in progress may go on after the server was told to stop.
	ShutdownGrace Duration `toml:"shutdown_grace"`

	// How long a deletion is remembered by the store of the data directory. It must be
	// longer than a write can be under way: a write older than a deletion that was
	// forgotten would bring the key back. Providers have gateway.forget_after instead.
	TombstoneRetention Duration `toml:"tombstone_retention"`

	// The id of the account, 32 hexadecimal digits. Empty: that of the data
	// directory; a new directory gets a random one.
	AccountID string `toml:"account_id"`

	// A file that holds the root API token, which may do everything. Empty: the
	// file api-token of the data directory, written at the first start. The
	// variable NEARKEY_API_TOKEN may hold the token itself instead.
	APITokenFile string `toml:"api_token_file"`

	// The e-mail address that belongs to the API key, for clients that use the
	// older pair of credentials.
	Email string `toml:"email"`

	// A file that holds the API key, which may do everything. Empty: the file
	// api-key of the data directory, written at the first start. The variable
	// NEARKEY_API_KEY may hold the key itself instead.
	APIKeyFile string `toml:"api_key_file"`

	// What is logged, on standard error.
	Log LogConfig `toml:"log"`

	// Encryption of connections. Without it listen on a loopback address only,
	// or behind something that encrypts.
	TLS TLSConfig `toml:"tls"`

	// The place of this process in a fleet: a central process holds the records,
	// edges answer clients near to them, regional tiers stand between. A single
	// process is all in one. Start them in any order.
	Fleet FleetConfig `toml:"fleet"`

	// Rules that differ from those of the profile. They are the same in all
	// processes of a fleet.
	Limits LimitsConfig `toml:"limits"`

	// Where accounts, namespaces, tokens and what is known of Workers are kept.
	Catalog CatalogConfig `toml:"catalog"`

	// Workers: users' code, run by the real workerd beside the data that it reads.
	Workers WorkersConfig `toml:"workers"`

	// How records are kept by several providers. It has an effect where providers
	// are named below.
	Gateway GatewayConfig `toml:"gateway"`

	// The providers that keep the records, instead of a store in the data directory:
	// normally two, which fail independently of each other. Each has all records. The
	// role proxy has one, and others reach it by the wire. Providers are named in this
	// file alone; there are no flags or variables for them.
	Providers []ProviderConfig `toml:"provider"`

	// The servers of hosts that Workers have routes on. A fetch of such a host goes
	// there, and so does a request that no Worker answers. Origins are named in this
	// file alone.
	Origins []OriginConfig `toml:"origin"`
}

// OriginConfig says where the server of a host lives that Workers stand before.
type OriginConfig struct {
	// The host, such as "example.com", or "*.example.com" for all below it.
	Host string `toml:"host"`

	// The URL of its server, such as "http://10.0.0.7:8080". Requests keep their host.
	URL string `toml:"url"`
}

// WorkersConfig says how Workers are run.
type WorkersConfig struct {
	// The address where Workers answer, host:port. Empty: the port after that of
	// listen (127.0.0.1:8791) for a single process, none for others. "off": none.
	Listen string `toml:"listen"`

	// Workers answer at <name>.<subdomain>.<domain>. The domain workers.localhost
	// needs no DNS: browsers and curl take it for this machine.
	Domain string `toml:"domain"`

	// The binary of workerd. Empty: the workerd in PATH. Without one KV works, and
	// Workers say why they do not.
	Runtime string `toml:"runtime"`

	// A file with the keys that secrets of Workers are encrypted with, one of 64
	// hexadecimal digits per line: the first encrypts, all decrypt. Empty: the file
	// workers-keys of the data directory, written at the first start. Edges that run
	// Workers with secrets need a copy of it.
	KeyFile string `toml:"key_file"`

	// What Workers may reach beside their bindings: "public" (everything but private
	// and loopback addresses), "none", or "all".
	Egress string `toml:"egress"`

	// What Workers may reach all the same: addresses, ranges and hosts with commas
	// between them, such as "10.1.0.0/16, api.internal".
	EgressAllow string `toml:"egress_allow"`

	// The JavaScript heap of a Worker's process.
	HeapBytes Size `toml:"heap_bytes"`

	// The resident memory of a Worker's process. Beyond it the process is killed.
	ProcessBytes Size `toml:"process_bytes"`

	// The CPU time that a Worker may use without answering anything. Beyond it the
	// process is killed.
	CPU Duration `toml:"cpu"`

	// Most processes of Workers at once. Beyond it the one that was idle longest ends.
	Processes Count `toml:"processes"`

	// How long a process lives without a request.
	Idle Duration `toml:"idle"`

	// The memory of the Cache API. It is not a part of memory_bytes.
	CacheBytes Size `toml:"cache_bytes"`

	// Whether Workers are refused where the kernel gives their processes no
	// namespaces of their own.
	RequireIsolation Switch `toml:"require_isolation"`
}

// CatalogConfig says where accounts, namespaces and tokens are kept.
type CatalogConfig struct {
	// A file that holds the URL of a PostgreSQL database, such as
	// postgres://nearkey@db.example:5432/nearkey?sslmode=verify-full&passfile=/etc/nearkey/pgpass.
	// Several central processes may share it. Empty: the file catalog.db of the data
	// directory.
	DatabaseFile string `toml:"database_file"`
}

// GatewayConfig says how records are kept by several providers.
type GatewayConfig struct {
	// When a write is acknowledged: when the "first" provider has it, or when "both"
	// have. Single namespaces choose with 'nearkey namespace ack'. With "both" nothing
	// is lost with one provider, and no write succeeds while one is away.
	Ack string `toml:"ack"`

	// How long a provider may take for one call before it counts as failed.
	Deadline Duration `toml:"deadline"`

	// How long a read waits for the provider that was fastest before it asks the
	// others too; 0: all are asked at once, which answers soonest and costs each
	// provider every read.
	Hedge Duration `toml:"hedge"`

	// The time from the end of one comparison of the providers to the next.
	CrawlEvery Duration `toml:"crawl_every"`

	// Most keys that a comparison goes through in a second.
	CrawlRate Count `toml:"crawl_rate"`

	// How long a deletion is remembered. It must be longer than a provider may be
	// away, or a backup old, that is to come back by itself; a provider that went back
	// further in time must be filled anew.
	ForgetAfter Duration `toml:"forget_after"`

	// Most keys that wait for repair. Beyond it whole namespaces are compared instead.
	MaxQueued Count `toml:"max_queued"`

	// The number of this process among those that write to the same providers, 0 to
	// 65535.
	Node Count `toml:"node"`
}

// ProviderConfig is a provider: a set of PostgreSQL clusters with or without a
// bucket for large values, or the wire of a process that has one.
type ProviderConfig struct {
	// The name of the provider, 1 to 32 of a-z, 0-9 and "-". The journal of the
	// gateway knows it by this: a provider that is renamed is a new one.
	Name string `toml:"name"`

	// The wire of a process of the role proxy that has the provider, instead of
	// clusters: http://HOST:PORT, https://HOST:PORT or unix:///PATH.
	URL string `toml:"url"`

	// Values of this size or more go to the bucket.
	InlineBytes Size `toml:"inline_bytes"`

	// Most records a second that are copied when keys move to another cluster; 0: no
	// limit.
	CopyRate Count `toml:"copy_rate"`

	// The PostgreSQL clusters among which the keys of the provider are divided.
	Clusters []ClusterConfig `toml:"cluster"`

	// The bucket of large values. Without it they stay in the clusters.
	Blobs *BlobsConfig `toml:"blobs"`
}

// ClusterConfig is a PostgreSQL cluster, or a server that speaks its protocol.
type ClusterConfig struct {
	// The name of the cluster, 1 to 32 of a-z, 0-9 and "-". It stays the same for
	// ever: keys are where the table of the provider says by this name.
	Name string `toml:"name"`

	// The share of the keys that the cluster takes, compared with others.
	Weight *Weight `toml:"weight"`

	// The URL of the database without a password, such as
	// postgres://nearkey@db1.example,db2.example/nearkey?sslmode=verify-full&passfile=/etc/nearkey/pgpass.
	Postgres string `toml:"postgres"`

	// A file that holds the URL, which may then have a password.
	PostgresFile string `toml:"postgres_file"`

	// Most connections to the database.
	Connections Count `toml:"connections"`

	// Whether to leave out what CockroachDB and YugabyteDB do not have.
	Portable Switch `toml:"portable"`
}

// BlobsConfig is a bucket of an S3 server.
type BlobsConfig struct {
	// The URL of the server, such as https://s3.eu-central-1.amazonaws.com.
	Endpoint string `toml:"endpoint"`

	// The region that requests are signed for.
	Region string `toml:"region"`

	// The name of the bucket, which exists already.
	Bucket string `toml:"bucket"`

	// What the names of all objects begin with.
	Prefix string `toml:"prefix"`

	// The id of the access key. Empty: from the environment, AWS_ACCESS_KEY_ID.
	AccessKeyID string `toml:"access_key_id"`

	// A file that holds the secret of the access key. Empty: from the environment,
	// AWS_SECRET_ACCESS_KEY.
	SecretKeyFile string `toml:"secret_key_file"`

	// Whether the name of the bucket goes into the path of requests instead of the
	// name of the host, as most servers but Amazon's want it.
	PathStyle Switch `toml:"path_style"`

	// A file with the authority of the server's certificate, PEM. Empty: those that
	// the system knows.
	CAFile string `toml:"ca_file"`

	// Whether requests may go unencrypted beyond this machine. Say true only where
	// the network itself encrypts.
	Plain Switch `toml:"plain"`
}

// FleetConfig is the place of a process in a fleet.
type FleetConfig struct {
	// What this process is: "single" (store and API in one), "central" (the same,
	// and the wire for others), "regional" (a tier on the wire, no API), "edge"
	// (a tier with the API) or "proxy" (one provider of a gateway, on the wire).
	Role string `toml:"role"`

	// The wire of the next process towards the centre, a URL: http://HOST:PORT,
	// https://HOST:PORT or unix:///PATH.
	Far string `toml:"far"`

	// The API of the central process, a URL such as https://HOST:8790. An edge
	// forwards to it what changes namespaces and tokens.
	APIFar string `toml:"api_far"`

	// Where this process takes calls of the wire from others, host:port or
	// unix:///PATH.
	WireListen string `toml:"wire_listen"`

	// A file with the secret that the processes of the fleet share, 16 to 1024
	// bytes that others cannot read. Without it callers show certificates of
	// wire_ca.
	SecretFile string `toml:"secret_file"`

	// A file with the certificate chain that this process shows on the wire, PEM.
	WireCert string `toml:"wire_cert"`

	// A file with the private key of wire_cert, PEM.
	WireKey string `toml:"wire_key"`

	// A file with the authority of the certificates that others show on the wire,
	// PEM. Empty: those that the system knows.
	WireCA string `toml:"wire_ca"`

	// Whether the wire may go unencrypted beyond this machine. Say true only where
	// the network itself encrypts: the secret and all values pass there.
	WirePlain Switch `toml:"wire_plain"`

	// The name of the point of presence that an edge belongs to.
	PoP string `toml:"pop"`

	// Whether other edges of the same point of presence answer the same clients.
	// A write by one of them is then acknowledged when all of them know of it. They
	// have the same far.
	PoPShared Switch `toml:"pop_shared"`

	// The memory for copies of what is read; 0: a share of memory_bytes.
	NearBytes Size `toml:"near_bytes"`

	// How old a copy may be that answers a read. While word of changes arrives a
	// copy is current, however long it is there; this bounds its age when word does
	// not arrive. The profile cloudflare has at least 30s.
	MaxAge Duration `toml:"max_age"`

	// How old a copy may be that answers a read while the centre cannot be reached;
	// 0: none does.
	MaxStale Duration `toml:"max_stale"`
}

// LogConfig says what is logged.
type LogConfig struct {
	// The least level: "debug", "info", "warn" or "error".
	Level string `toml:"level"`

	// "text" or "json".
	Format string `toml:"format"`
}

// TLSConfig names the files of a certificate. Both or none are set.
type TLSConfig struct {
	// A file with the certificate chain, PEM.
	Cert string `toml:"cert"`

	// A file with the private key, PEM.
	Key string `toml:"key"`
}

// LimitsConfig are the rules that may differ from the profile's.
type LimitsConfig struct {
	// The greatest value, at most 25 MiB.
	ValueBytes *Size `toml:"value_bytes"`

	// The greatest metadata as JSON text, at most 64 KiB.
	MetadataBytes *Size `toml:"metadata_bytes"`

	// The least distance of an expiration, at least one second.
	MinTTL *Duration `toml:"min_ttl"`

	// The least time between two writes of one key; 0: no such rule. Workers KV
	// has 1 s.
	WriteInterval *Duration `toml:"write_interval"`

	// Most keys in a page of a listing, at most 10,000.
	ListKeys *Count `toml:"list_keys"`

	// Most keys in a bulk get.
	BulkGetKeys *Count `toml:"bulk_get_keys"`

	// Most bytes of values in the answer to a bulk get.
	BulkGetBytes *Size `toml:"bulk_get_bytes"`

	// Most pairs in a bulk put.
	BulkPutPairs *Count `toml:"bulk_put_pairs"`

	// Most keys in a bulk delete.
	BulkDeleteKeys *Count `toml:"bulk_delete_keys"`

	// Most namespaces of the account; 0: any number.
	Namespaces *Count `toml:"namespaces"`
}

const (
	defaultData   = "./nearkey-data"
	defaultListen = "127.0.0.1:8790"
)

// defaultConfig is the configuration of a server that is told nothing.
func defaultConfig() Config {
	return Config{
		Data:               defaultData,
		Listen:             defaultListen,
		MemoryBytes:        512 << 20,
		Profile:            "cloudflare",
		ShutdownGrace:      Duration(10 * time.Second),
		TombstoneRetention: Duration(24 * time.Hour),
		Email:              "owner@localhost",
		Log:                LogConfig{Level: "info", Format: "text"},
		Fleet:              FleetConfig{Role: roleSingle, MaxAge: Duration(time.Minute), MaxStale: Duration(time.Hour)},
		Workers: WorkersConfig{
			Domain: host.DefaultDomain, Egress: egressPublic,
			HeapBytes: workerd.DefaultHeapBytes, ProcessBytes: workerd.DefaultMemoryBytes, CPU: Duration(workerd.DefaultCPU),
			Processes: workerd.DefaultProcesses, Idle: Duration(workerd.DefaultIdle), CacheBytes: 64 << 20,
		},
		Gateway: GatewayConfig{
			Ack: ackFirst, Deadline: Duration(10 * time.Second), CrawlEvery: Duration(time.Hour), CrawlRate: 20_000,
			ForgetAfter: Duration(7 * 24 * time.Hour), MaxQueued: 500_000,
		},
	}
}

// fill gives what the file does not say about a provider its default.
func (p *ProviderConfig) fill() {
	if p.InlineBytes == 0 {
		p.InlineBytes = 16 << 10
	}
	for i := range p.Clusters {
		c := &p.Clusters[i]
		if c.Weight == nil {
			c.Weight = new(Weight(1))
		}
		if c.Connections == 0 {
			c.Connections = 16
		}
	}
	if p.Blobs != nil && p.Blobs.Region == "" {
		p.Blobs.Region = "us-east-1"
	}
}
