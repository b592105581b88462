package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strconv"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// cloudflareNamespaces is how many namespaces an account of Workers KV may have.
const cloudflareNamespaces = 1000

// check returns an error that names every setting that cannot be.
func (c *Config) check() error {
	var errs []error
	fault := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting %s: %w", key, fmt.Errorf(format, args...)))
	}
	if c.Data == "" {
		fault("data", "want a directory")
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil {
		fault("listen", "%w; want host:port, such as %s", err, defaultListen)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		fault("listen", "port %q: want a number from 0 (any) to 65535, not %d", port, n)
	}
	if least := leastMemory(c.Fleet.Role); c.MemoryBytes < least {
		fault("memory_bytes", "%d is too little; want at least %dMiB", c.MemoryBytes, least>>20)
	}
	oneOf := func(key, value string, choices ...string) {
		for _, choice := range choices {
			if value == choice {
				return
			}
		}
		fault(key, "%q: want one of %q%s", value, choices, didYouMean(value, choices))
	}
	oneOf("fleet.role", c.Fleet.Role, roleSingle, roleCentral, roleRegional, roleEdge, roleProxy)
	oneOf("profile", c.Profile, "cloudflare", "open")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	if time.Duration(c.TombstoneRetention) < time.Minute {
		fault("tombstone_retention", "want at least 1m")
	}
	if c.AccountID != "" && !isID(c.AccountID) {
		fault("account_id", "%q: want 32 hexadecimal digits", c.AccountID)
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		fault("tls", "want both cert and key, or neither")
	}
	c.checkFleet(fault)
	c.checkLimits(fault)
	c.checkStorage(fault)
	c.checkWorkers(fault)
	if err := errors.Join(errs...); err != nil {
		return usageError(err)
	}
	return nil
}

func (c *Config) checkLimits(fault func(key, format string, args ...any)) {
	limits := c.limits()
	between := func(key string, value, least, most int64) {
		if value < least || value > most {
			fault("limits."+key, "%d: want %d to %d", value, least, most)
		}
	}
	between("value_bytes", int64(limits.ValueBytes), 1, kv.MaxValueBytes)
	between("metadata_bytes", int64(limits.MetadataBytes), 0, kv.MaxMetadataBytes)
	between("list_keys", int64(limits.ListKeys), 1, kv.MaxListLimit)
	between("bulk_get_keys", int64(limits.GetManyKeys), 1, 10_000)
	between("bulk_get_bytes", int64(limits.GetManyBytes), 1, 100<<20)
	between("bulk_put_pairs", int64(limits.PutManyPairs), 1, 100_000)
	between("bulk_delete_keys", int64(limits.DeleteManyKeys), 1, 100_000)
	if limits.MinTTL < time.Second {
		fault("limits.min_ttl", "%s: want at least 1s", limits.MinTTL)
	}
}

// profileLimits are all rules of the profile, in the form of LimitsConfig.
func (c *Config) profileLimits() LimitsConfig {
	limits, namespaces := kv.CloudflareLimits(), Count(cloudflareNamespaces)
	if c.Profile == "open" {
		namespaces = 0
		limits.MinTTL = time.Second
		limits.MetadataBytes = kv.MaxMetadataBytes
	}
	return LimitsConfig{
		ValueBytes:     new(Size(limits.ValueBytes)),
		MetadataBytes:  new(Size(limits.MetadataBytes)),
		MinTTL:         new(Duration(limits.MinTTL)),
		WriteInterval:  new(Duration(limits.WriteInterval)),
		ListKeys:       new(Count(limits.ListKeys)),
		BulkGetKeys:    new(Count(limits.GetManyKeys)),
		BulkGetBytes:   new(Size(limits.GetManyBytes)),
		BulkPutPairs:   new(Count(limits.PutManyPairs)),
		BulkDeleteKeys: new(Count(limits.DeleteManyKeys)),
		Namespaces:     &namespaces,
	}
}

// effectiveLimits are the rules of the profile with those that were changed.
func (c *Config) effectiveLimits() LimitsConfig {
	limits := c.profileLimits()
	from, to := reflect.ValueOf(c.Limits), reflect.ValueOf(&limits).Elem()
	for i := range from.NumField() {
		if !from.Field(i).IsNil() {
			to.Field(i).Set(from.Field(i))
		}
	}
	return limits
}

// limits are the rules that a server goes by.
func (c *Config) limits() kv.Limits {
	l, limits := c.effectiveLimits(), kv.CloudflareLimits()
	limits.ValueBytes = int(*l.ValueBytes)
	limits.MetadataBytes = int(*l.MetadataBytes)
	limits.MinTTL = time.Duration(*l.MinTTL)
	limits.WriteInterval = time.Duration(*l.WriteInterval)
	limits.ListKeys = int(*l.ListKeys)
	limits.GetManyKeys = int(*l.BulkGetKeys)
	limits.GetManyBytes = int(*l.BulkGetBytes)
	limits.PutManyPairs = int(*l.BulkPutPairs)
	limits.DeleteManyKeys = int(*l.BulkDeleteKeys)
	return limits
}

func (c *Config) logLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		panic("nearkey: log level was checked: " + err.Error())
	}
	return level
}
