package rest

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// access is the kind of right that an operation needs.
type access uint8

const (
	accessOpen      access = iota // none: no credentials are asked for
	accessAny                     // any valid credentials
	accessSeen                    // any right in the account
	accessAccount                 // the permission on the account as a whole
	accessWhole                   // the same, and the namespace must exist
	accessNamespace               // the permission in the namespace, be it only on some keys
	accessKey                     // the permission on the key
)

// maxCredentialBytes is the greatest length of a token, a key or an e-mail.
const maxCredentialBytes = 1024

// malformed is the answer to credentials in a header that has another form.
func malformed(chain note) error {
	return &failure{status: http.StatusBadRequest, code: 6003, text: "Invalid request headers", bare: true, chain: chain}
}

// authenticate finds out whose request it is.
func (s *Server) authenticate(ctx context.Context, c *call) error {
	var err error
	h := c.r.Header
	switch bearer, email, key := h.Get("Authorization"), h.Get("X-Auth-Email"), h.Get("X-Auth-Key"); {
	case bearer != "":
		scheme, token, _ := strings.Cut(bearer, " ")
		if !strings.EqualFold(scheme, "Bearer") || !isCredential(token) {
			return malformed(note{6111, "Invalid format for Authorization header"})
		}
		c.grant, err = s.authority.Authenticate(ctx, token)
		if errors.Is(err, catalog.ErrUnauthenticated) {
			return badToken(c)
		}
	case email == "" && key == "":
		return &failure{status: http.StatusBadRequest, code: 9106, text: "Missing X-Auth-Key, X-Auth-Email or Authorization headers", bare: true}
	case !isCredential(email) || !strings.Contains(email, "@"):
		return malformed(note{6102, "Invalid format for X-Auth-Email header"})
	case !isCredential(key):
		return malformed(note{6103, "Invalid format for X-Auth-Key header"})
	default:
		c.grant, err = s.authority.AuthenticateKey(ctx, email, key)
		if errors.Is(err, catalog.ErrUnauthenticated) {
			return &failure{status: http.StatusForbidden, code: 9103, text: "Unknown X-Auth-Key or X-Auth-Email", bare: true}
		}
	}
	return err
}

// badToken is the answer to a token that is unknown, expired or revoked. Which of
// them it is, is not told to someone who has no valid one.
func badToken(c *call) error {
	if c.route.kind == routeVerify || c.route.kind == routeAccountVerify {
		return &failure{status: http.StatusUnauthorized, code: 1000, text: "Invalid API Token", bare: true}
	}
	return errForbidden
}

func isCredential(s string) bool {
	if s == "" || len(s) > maxCredentialBytes {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// authorize checks that the grant may do what the route and method ask for, and
// that the account, the namespace and the key have a form that can exist. A right
// is checked before existence: who may not look must not learn what is there.
func (s *Server) authorize(ctx context.Context, c *call) error {
	if c.op.access == accessAny {
		return nil
	}
	account := c.route.account
	if !c.grant.SeesAccount(account) {
		return errUnauthorized
	}
	switch c.op.access {
	case accessSeen, accessAccount:
		if c.op.access == accessAccount && !c.grant.Account(account, c.op.permission) {
			return errForbidden
		}
		_, err := s.catalog.Account(ctx, account)
		if errors.Is(err, catalog.ErrNotFound) { // the root token sees accounts that are not
			return errUnauthorized
		}
		return err
	}
	return s.authorizeNamespace(ctx, c)
}

func (s *Server) authorizeNamespace(ctx context.Context, c *call) error {
	id, err := parseNamespaceID(c.route.namespace)
	if err != nil {
		return err
	}
	account, p := c.route.account, c.op.permission
	allowed := false
	switch c.op.access {
	case accessWhole:
		allowed = c.grant.Account(account, p)
	case accessNamespace:
		allowed = c.grant.Namespace(account, id, p)
	case accessKey:
		key, err := decodeKey(c.route.key)
		if err != nil {
			return err
		}
		c.oneKey[0], c.keys = key, c.oneKey[:]
		allowed = c.grant.Key(account, id, key, p)
	}
	if !allowed {
		return errForbidden
	}
	if _, err := s.authority.Namespace(ctx, account, id); err != nil {
		return catalogFailure(err)
	}
	c.space = id
	return nil
}

// parseNamespaceID reads an id as 32 hexadecimal digits or as a UUID.
func parseNamespaceID(sent string) (kv.NamespaceID, error) {
	const uuidChars = 36
	text := sent
	if len(text) == uuidChars && text[8] == '-' && text[13] == '-' && text[18] == '-' && text[23] == '-' {
		text = text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	}
	id, err := kv.ParseNamespaceID(text)
	if err != nil {
		if decoded, err := url.PathUnescape(sent); err == nil {
			sent = decoded
		}
		return kv.NamespaceID{}, &failure{status: http.StatusBadRequest, code: 10011, bare: true,
			text: "could not parse UUID from request's namespace_id: 'invalid namespace format: " + shown(sent) + "'"}
	}
	return id, nil
}

// mayKeys checks a permission on every key of a bulk request.
func (c *call) mayKeys(p catalog.Permission, keys []string) error {
	if c.grant.Prefix(c.route.account, c.space, "", p) {
		return nil
	}
	for _, key := range keys {
		if !c.grant.Key(c.route.account, c.space, key, p) {
			return errForbidden
		}
	}
	return nil
}
