package main

import "time"

// Config is everything about a server that can be configured. The comment of each
// field is its documentation: 'nearkey config' and the help of the flags are made
// of this file.
type Config struct {
	// The directory of the records, the catalog and the credentials. It is
	// created if it does not exist.
	Data string `toml:"data"`

	// The address to listen on, host:port. Port 0 lets the system choose. An
	// empty host means all addresses of this machine.
	Listen string `toml:"listen"`

	// The memory that the server may use, such as "512MiB". It is divided among
	// the cache of the store, the values of requests in progress, and the rest.
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

	// Rules that differ from those of the profile.
	Limits LimitsConfig `toml:"limits"`
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
	}
}
