package catalog

import (
	"fmt"
	"strings"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// Permission is what a scope allows. The zero Permission allows nothing.
type Permission uint8

// The permissions; Write includes Read.
const (
	Read Permission = iota + 1
	Write
)

func (p Permission) String() string {
	switch p {
	case Read:
		return "read"
	case Write:
		return "write"
	}
	return fmt.Sprintf("permission %d", uint8(p))
}

// ParsePermission reads what Permission.String writes.
func ParsePermission(s string) (Permission, error) {
	switch s {
	case "read":
		return Read, nil
	case "write":
		return Write, nil
	}
	return 0, invalid("permission %q: want read or write", s)
}

// Scope is one right: to a whole account, to one namespace in it, or to the keys
// of a namespace that begin with a prefix.
type Scope struct {
	AccountID  string // empty: every account, which only the root credentials have
	Permission Permission
	Namespace  kv.NamespaceID // zero: the whole account
	Prefix     string         // empty: the whole namespace
}

// allows reports whether the scope gives p on anything in the account.
func (s Scope) allows(accountID string, p Permission) bool {
	return (s.AccountID == "" || s.AccountID == accountID) && p != 0 && s.Permission >= p
}

// covers reports whether the namespace, or a part of it, is within the scope.
func (s Scope) covers(ns kv.NamespaceID) bool {
	return s.Namespace == kv.NamespaceID{} || s.Namespace == ns
}

// Grant is what the holder of valid credentials may do. The zero Grant allows
// nothing.
type Grant struct {
	Token  Token // zero for an e-mail and key
	User   User
	Scopes []Scope
}

// Account reports whether the grant gives p on the account as a whole: its
// namespaces and tokens.
func (g Grant) Account(accountID string, p Permission) bool {
	for i := range g.Scopes {
		s := &g.Scopes[i]
		if s.allows(accountID, p) && s.Namespace == (kv.NamespaceID{}) && s.Prefix == "" {
			return true
		}
	}
	return false
}

// SeesAccount reports whether the grant gives any right in the account.
func (g Grant) SeesAccount(accountID string) bool {
	for i := range g.Scopes {
		if g.Scopes[i].allows(accountID, Read) {
			return true
		}
	}
	return false
}

// Namespace reports whether the grant gives p in the namespace, be it only on
// the keys with some prefix.
func (g Grant) Namespace(accountID string, ns kv.NamespaceID, p Permission) bool {
	for i := range g.Scopes {
		if s := &g.Scopes[i]; s.allows(accountID, p) && s.covers(ns) {
			return true
		}
	}
	return false
}

// Key reports whether the grant gives p on one key.
func (g Grant) Key(accountID string, ns kv.NamespaceID, key string, p Permission) bool {
	for i := range g.Scopes {
		if s := &g.Scopes[i]; s.allows(accountID, p) && s.covers(ns) && strings.HasPrefix(key, s.Prefix) {
			return true
		}
	}
	return false
}

// Prefix reports whether the grant gives p on every key that begins with prefix,
// so that they may be listed.
func (g Grant) Prefix(accountID string, ns kv.NamespaceID, prefix string, p Permission) bool {
	return g.Key(accountID, ns, prefix, p)
}

// at returns the grant as it is at now: nothing but the token's name, and an
// error, if the token is not valid then.
func (g *Grant) at(now time.Time) (Grant, error) {
	if err := g.Token.check(now); err != nil {
		return Grant{Token: g.Token}, err
	}
	return *g, nil
}

// bytes is about the memory that a grant takes.
func (g *Grant) bytes() int {
	total := 512 + len(g.Token.Name)
	for i := range g.Scopes {
		total += 96 + len(g.Scopes[i].Prefix)
	}
	return total
}
