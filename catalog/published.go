package catalog

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/nearkey/nearkey/kv"
)

// Reserved is the namespace of published records: what edges need of the catalog
// to serve without its database. It is in no account, so that no request of a
// user reaches it.
//
// The keys of its records, in hexadecimal digits of lower case:
//
//	key/<SHA-256 of the owner's key>
//	namespace/<id>
//	token/<SHA-256 of the token>
//
// Their values are JSON, their metadata a digest of the value. A token that was
// revoked or has expired and a namespace that was deleted are tombstones.
var Reserved = kv.NamespaceID{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
}

const (
	keyPrefix       = "key/"
	namespacePrefix = "namespace/"
	tokenPrefix     = "token/"
)

func ownerKey(keyHash []byte) string        { return keyPrefix + hex.EncodeToString(keyHash) }
func namespaceKey(id kv.NamespaceID) string { return namespacePrefix + id.String() }
func tokenKey(hash []byte) string           { return tokenPrefix + hex.EncodeToString(hash) }

// recordFormat is the format of the records that this program writes, and the
// newest that it understands. A format may get more fields: programs ignore those
// that they do not know. What must not be ignored, because a reader would then
// permit too much, makes another format, which older programs refuse.
const recordFormat = 1

// every stands for every account, and for every namespace of an account. A field
// that is missing stands for none.
const every = "*"

// grantRecord is a Grant as it is published. Text that users choose is bytes, for
// it need not be UTF-8. Times are microseconds since 1970.
type grantRecord struct {
	Format int           `json:"format"`
	Token  *tokenRecord  `json:"token,omitempty"`
	User   userRecord    `json:"user"`
	Scopes []scopeRecord `json:"scopes"`
}

type tokenRecord struct {
	ID        string `json:"id"`
	Account   string `json:"account"`
	Name      []byte `json:"name"`
	Root      bool   `json:"root,omitempty"`
	Created   int64  `json:"created"`
	NotBefore int64  `json:"not_before,omitempty"`
	Expires   int64  `json:"expires,omitempty"`
}

type userRecord struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

type scopeRecord struct {
	Account    string `json:"account"`
	Permission string `json:"permission"`
	Namespace  string `json:"namespace"`
	Prefix     []byte `json:"prefix,omitempty"`
}

// namespaceRecord is a Namespace as it is published; the id is in the key.
type namespaceRecord struct {
	Format       int    `json:"format"`
	Account      string `json:"account"`
	Title        []byte `json:"title"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
	Created      int64  `json:"created"`
}

func newGrantRecord(g Grant) grantRecord {
	r := grantRecord{Format: recordFormat, User: userRecord{g.User.ID, g.User.Email}, Scopes: []scopeRecord{}}
	if t := g.Token; t.ID != "" {
		r.Token = &tokenRecord{ID: t.ID, Account: t.AccountID, Name: []byte(t.Name), Root: t.Root,
			Created: stored(t.Created), NotBefore: stored(t.NotBefore), Expires: stored(t.Expires)}
	}
	for _, s := range g.Scopes {
		scope := scopeRecord{Account: s.AccountID, Permission: s.Permission.String(), Namespace: every, Prefix: []byte(s.Prefix)}
		if s.AccountID == "" {
			scope.Account = every
		}
		if s.Namespace != (kv.NamespaceID{}) {
			scope.Namespace = s.Namespace.String()
		}
		r.Scopes = append(r.Scopes, scope)
	}
	return r
}

func newNamespaceRecord(n Namespace) namespaceRecord {
	return namespaceRecord{Format: recordFormat, Account: n.AccountID, Title: []byte(n.Title),
		Jurisdiction: n.Jurisdiction, Created: stored(n.Created)}
}

func (r grantRecord) grant() *Grant {
	g := &Grant{User: User{r.User.ID, r.User.Email}}
	for _, s := range r.Scopes {
		if scope, ok := s.scope(); ok {
			g.Scopes = append(g.Scopes, scope)
		}
	}
	if t := r.Token; t != nil {
		g.Token = Token{ID: t.ID, AccountID: t.Account, Name: string(t.Name), Scopes: g.Scopes, Root: t.Root,
			Created: loaded(t.Created), NotBefore: loaded(t.NotBefore), Expires: loaded(t.Expires)}
	}
	return g
}

// scope reports false for a scope that this program does not understand: it then
// gives nothing.
func (r scopeRecord) scope() (s Scope, ok bool) {
	s = Scope{AccountID: r.Account, Prefix: string(r.Prefix)}
	if s.AccountID == every {
		s.AccountID = ""
	}
	var err error
	if r.Namespace != every {
		s.Namespace, err = kv.ParseNamespaceID(r.Namespace)
		if err != nil || s.Namespace == (kv.NamespaceID{}) {
			return Scope{}, false
		}
	}
	s.Permission, err = ParsePermission(r.Permission)
	return s, err == nil && r.Account != ""
}

// parseGrant reads the value of a record of a token or an owner's key.
func parseGrant(value []byte) (*Grant, error) {
	r, err := parseRecord[grantRecord](value)
	if err != nil {
		return nil, err
	}
	return r.grant(), nil
}

// parseNamespace reads the value of the record of a namespace.
func parseNamespace(id kv.NamespaceID, value []byte) (*Namespace, error) {
	r, err := parseRecord[namespaceRecord](value)
	if err != nil {
		return nil, err
	}
	return &Namespace{ID: id, AccountID: r.Account, Title: string(r.Title), Jurisdiction: r.Jurisdiction, Created: loaded(r.Created)}, nil
}

// parseRecord reads a record of a format that this program understands.
func parseRecord[R any](value []byte) (r R, err error) {
	format, err := formatOf(value)
	switch {
	case err != nil:
		return r, err
	case format > recordFormat:
		return r, fmt.Errorf("a record of format %d, this nearkey understands %d: a newer nearkey has published it; start that or a newer one", format, recordFormat)
	}
	err = json.Unmarshal(value, &r)
	return r, err
}

func formatOf(value []byte) (int, error) {
	var r struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return 0, err
	}
	if r.Format < 1 {
		return 0, fmt.Errorf("a record without a format")
	}
	return r.Format, nil
}

// marshalRecord writes the value of a record.
func marshalRecord(r any) []byte {
	value, err := json.Marshal(r)
	if err != nil {
		panic("catalog: writing a record: " + err.Error()) // it has nothing that can fail
	}
	return value
}

// sameRecord reports whether a published value says what wanted says, as far as
// this program understands it. So it leaves alone what a newer one has added, or
// has published in a newer format, and both can run at once.
func sameRecord[R any](published, wanted []byte) bool {
	if format, err := formatOf(published); err == nil && format > recordFormat {
		return true
	}
	r, err := parseRecord[R](published)
	return err == nil && string(marshalRecord(r)) == string(wanted)
}
