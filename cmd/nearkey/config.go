package main

import "time"

// Config is everything about a server that can be configured. The comment of each
// field is its documentation: 'nearkey config' and the help of the flags are made
// of this file.
type Config struct {
	// The directory of the records, the catalog and the credentials. It is
	// created if it does not exist. The roles regional and edge keep nothing and
	// do not use it.
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

	// How long a deletion is remembered. It must be longer than a write can be
	// under way: a write older than a deletion that was forgotten would bring
	// the key back.
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
}

// FleetConfig is the place of a process in a fleet.
type FleetConfig struct {
	// What this process is: "single" (store and API in one), "central" (the same,
	// and the wire for others), "regional" (a tier on the wire, no API) or "edge"
	// (a tier with the API).
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
	}
}
