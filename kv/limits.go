package kv

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// What no configuration can exceed.
const (
	MaxKeyBytes      = 512
	MaxValueBytes    = 25 << 20
	MaxMetadataBytes = 64 << 10
)

// Limits are the rules of the product that may be chosen. CloudflareLimits are
// those of Workers KV (reference/rest-api.md H.1).
type Limits struct {
	ValueBytes     int           // greatest value, at most MaxValueBytes
	MetadataBytes  int           // greatest metadata as JSON text, at most MaxMetadataBytes
	MinTTL         time.Duration // least distance of an expiration, at least one second
	MinCacheTTL    time.Duration // least cacheTtl that a reader may ask for
	ListKeys       int           // most keys in a page of a listing
	GetManyKeys    int           // most keys in a bulk get
	GetManyBytes   int           // most bytes of values in the answer to a bulk get
	PutManyPairs   int           // most pairs in a bulk write
	DeleteManyKeys int           // most keys in a bulk delete
	WriteInterval  time.Duration // least time between two writes of one key; 0: no such rule
}

// CloudflareLimits returns the limits of Workers KV, except that writes to one
// key are not limited to one a second; set WriteInterval for that.
func CloudflareLimits() Limits {
	return Limits{
		ValueBytes:     MaxValueBytes,
		MetadataBytes:  1024,
		MinTTL:         60 * time.Second,
		MinCacheTTL:    30 * time.Second,
		ListKeys:       1000,
		GetManyKeys:    100,
		GetManyBytes:   25 << 20,
		PutManyPairs:   10_000,
		DeleteManyKeys: 10_000,
	}
}

// CheckKey returns a RuleError if key is not a name that a user may choose: 1 to
// MaxKeyBytes bytes of UTF-8, and not "." or "..".
func CheckKey(key string) error {
	switch {
	case key == "":
		return broken(RuleKeyEmpty, "Key names must not be empty")
	case key == "." || key == "..":
		return broken(RuleKeyName, "Illegal key name %q. Please use a different name.", key)
	case len(key) > MaxKeyBytes:
		return broken(RuleKeyBytes, "UTF-8 encoded length of %d exceeds key length limit of %d.", len(key), MaxKeyBytes)
	case !utf8.ValidString(key):
		return broken(RuleKeyEncoding, "Key names must be valid UTF-8")
	}
	return nil
}

// CheckMetadata returns the metadata in the form in which it is stored: the JSON
// text without insignificant space, or nil for JSON null and for no text.
func (l Limits) CheckMetadata(text []byte) ([]byte, error) {
	if len(text) == 0 {
		return nil, nil
	}
	if len(text) > 2*MaxMetadataBytes {
		return nil, broken(RuleMetadataBytes, "Metadata length of %d exceeds limit of %d.", len(text), l.MetadataBytes)
	}
	if !json.Valid(text) || !utf8.Valid(text) {
		return nil, broken(RuleMetadata, "metadata must be valid json")
	}
	compact := compactJSON(text)
	if len(compact) > l.MetadataBytes {
		return nil, broken(RuleMetadataBytes, "Metadata length of %d exceeds limit of %d.", len(compact), l.MetadataBytes)
	}
	if string(compact) == "null" {
		return nil, nil
	}
	return compact, nil
}

// CheckValue returns a RuleError if a value of n bytes is too large.
func (l Limits) CheckValue(n int64) error {
	if n > int64(l.ValueBytes) {
		return broken(RuleValueBytes, "Value length of %d exceeds limit of %d.", n, l.ValueBytes)
	}
	return nil
}

// CheckExpiration returns the second at which a record written at now expires,
// or 0 for never. expiration (seconds since 1970) and ttl (seconds from now) are
// decimal numbers as the client sent them, empty for none; ttl wins.
func (l Limits) CheckExpiration(now time.Time, expiration, ttl string) (int64, error) {
	minTTL := int64(max(l.MinTTL, time.Second) / time.Second)
	if ttl != "" {
		n, ok := wholeNumber(ttl)
		if !ok || n <= 0 {
			return 0, broken(RuleExpirationTTL, "Invalid expiration_ttl of %s. Please specify integer greater than 0.", shown(ttl))
		}
		if n < minTTL {
			return 0, broken(RuleExpirationTTL, "Invalid expiration_ttl of %s. Expiration TTL must be at least %d.", shown(ttl), minTTL)
		}
		if n > maxExpiration-now.Unix() {
			return 0, broken(RuleExpirationTTL, "Invalid expiration_ttl of %s. Expiration TTL must be at most %d.", shown(ttl), maxExpiration-now.Unix())
		}
		return now.Unix() + n, nil
	}
	if expiration == "" {
		return 0, nil
	}
	n, ok := wholeNumber(expiration)
	if !ok || n <= now.Unix() {
		return 0, broken(RuleExpiration, "Invalid expiration of %s. Please specify integer greater than the current number of seconds since the UNIX epoch.", shown(expiration))
	}
	if n < now.Unix()+minTTL {
		return 0, broken(RuleExpiration, "Invalid expiration of %s. Expiration times must be at least %d seconds in the future.", shown(expiration), minTTL)
	}
	if n > maxExpiration {
		return 0, broken(RuleExpiration, "Invalid expiration of %s. Expiration times must be at most %d.", shown(expiration), maxExpiration)
	}
	return n, nil
}

// CheckCacheTTL returns the staleness that a reader accepts who asks for a cacheTtl
// of so many seconds, a decimal number.
func (l Limits) CheckCacheTTL(text string) (time.Duration, error) {
	seconds, err := strconv.ParseInt(text, 10, 64)
	least := int64(l.MinCacheTTL / time.Second)
	switch {
	case err != nil:
		return 0, broken(RuleCacheTTL, "Invalid cache_ttl of %s. Please specify an integer.", shown(text))
	case seconds < least:
		return 0, broken(RuleCacheTTL, "Invalid cache_ttl of %s. Cache TTL must be at least %d.", shown(text), least)
	}
	return time.Duration(min(seconds, math.MaxInt64/int64(time.Second))) * time.Second, nil
}

// maxExpiration is the last second that a client's 64-bit float can hold exactly.
const maxExpiration = 1<<53 - 1

// wholeNumber reads an integer in any way JSON can write it: 60, 60.0, 6e1.
func wholeNumber(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, n <= maxExpiration
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > maxExpiration || strings.ContainsAny(s, "xXpP_") {
		return 0, false
	}
	return int64(f), true
}

// shown is a client's own text, short enough for an error message.
func shown(s string) string {
	const most = 40
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
