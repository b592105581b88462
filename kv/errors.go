package kv

import (
	"errors"
	"fmt"
)

// The kinds of error. They are the only ones that cross a process boundary;
// whatever else goes wrong is an internal error of the side that met it. "Not
// there" is not among them: absent is an answer.
var (
	// ErrUnavailable: the store cannot serve now; the same call may succeed later.
	ErrUnavailable = errors.New("store unavailable")
	// ErrFull: no space is left to store the record; nothing was changed.
	ErrFull = errors.New("store is out of space")
	// ErrOverloaded: a bound on work in progress is reached; try again shortly.
	ErrOverloaded = errors.New("overloaded")
	// ErrFuture: a version is further ahead of the clock than MaxFuture.
	ErrFuture = errors.New("version from the future")
	// ErrUnknown: the outcome of a write is not known; repeat it unchanged.
	ErrUnknown = errors.New("outcome unknown")
	// ErrDamaged: the record is there, but its value is missing or damaged here;
	// another copy may have it. Putting the record again repairs it.
	ErrDamaged = errors.New("the value is missing or damaged")
	// ErrUnsupported: the store lacks the ability.
	ErrUnsupported = errors.New("not supported by this store")
	// ErrCursorGone: the changes after the cursor are no longer kept.
	ErrCursorGone = errors.New("cursor is too old")
	// ErrRule: a rule of the product was broken; errors of this kind are RuleErrors.
	ErrRule = errors.New("rule broken")
)

// Rule names the rule of the product that a request broke.
type Rule string

// The rules.
const (
	RuleKeyEmpty       Rule = "key empty"
	RuleKeyName        Rule = "key name"
	RuleKeyBytes       Rule = "key bytes"
	RuleKeyEncoding    Rule = "key encoding"
	RuleValueBytes     Rule = "value bytes"
	RuleMetadata       Rule = "metadata"
	RuleMetadataBytes  Rule = "metadata bytes"
	RuleExpiration     Rule = "expiration"
	RuleExpirationTTL  Rule = "expiration TTL"
	RuleCacheTTL       Rule = "cacheTtl"
	RuleListLimit      Rule = "list limit"
	RuleListCursor     Rule = "list cursor"
	RuleGetManyKeys    Rule = "keys in a bulk get"
	RuleGetManyBytes   Rule = "bytes in a bulk get"
	RulePutManyPairs   Rule = "pairs in a bulk write"
	RuleDeleteManyKeys Rule = "keys in a bulk delete"
	RuleWriteRate      Rule = "write rate"
)

// RuleError says which rule a request broke, in the words that Workers KV uses
// (reference/rest-api.md B.1). It wraps ErrRule.
type RuleError struct {
	Rule Rule
	Text string
}

func (e *RuleError) Error() string { return e.Text }

// Unwrap makes every RuleError an ErrRule.
func (e *RuleError) Unwrap() error { return ErrRule }

func broken(rule Rule, format string, args ...any) error {
	return &RuleError{Rule: rule, Text: fmt.Sprintf(format, args...)}
}
