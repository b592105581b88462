package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/jsontext"
	"github.com/nearkey/nearkey/kv"
)

// Tokens are made, shown and revoked in Cloudflare's dialect. Its resources are
// those of the real service, and one of our own for a namespace, which may name
// a prefix of its keys:
//
//	{"com.cloudflare.api.account.<account id>": "*"}
//	{"com.nearkey.kv.namespace.<namespace id>": "*"}
//	{"com.nearkey.kv.namespace.<namespace id>": {"prefix": "img/"}}

const (
	accountResource   = "com.cloudflare.api.account."
	namespaceResource = "com.nearkey.kv.namespace."
)

// The permission groups, with the ids that they have at Cloudflare: SDKs name
// groups by id.
var permissionGroups = [...]permissionGroup{
	{ID: "8b47d2786a534c08a1f94ee8f9f599ef", Name: "Workers KV Storage Read", permission: catalog.Read},
	{ID: "f7f0eda5697f475c90846e879bab8666", Name: "Workers KV Storage Write", permission: catalog.Write},
}

type permissionGroup struct {
	ID         string `json:"id,omitempty"`
	Name       string `json:"name,omitempty"`
	permission catalog.Permission
}

type policy struct {
	ID        string                     `json:"id,omitempty"`
	Effect    string                     `json:"effect"`
	Groups    []permissionGroup          `json:"permission_groups"`
	Resources map[string]json.RawMessage `json:"resources"`
}

// apiToken is a token as the API shows it. Value is its secret, which only the
// answer that creates it has.
type apiToken struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Status    string   `json:"status"`
	IssuedOn  string   `json:"issued_on"`
	NotBefore string   `json:"not_before,omitempty"`
	ExpiresOn string   `json:"expires_on,omitempty"`
	Policies  []policy `json:"policies"`
	Value     string   `json:"value,omitempty"`
}

// tokenFailure is the answer to a token that cannot be made.
func tokenFailure(format string, args ...any) error {
	return &failure{status: http.StatusBadRequest, code: 1001, text: fmt.Sprintf(format, args...), bare: true}
}

func tokenNotFound(err error) error {
	if errors.Is(err, catalog.ErrNotFound) {
		return &failure{status: http.StatusNotFound, code: 1003, text: "token not found", bare: true}
	}
	return err
}

func (s *Server) now() time.Time {
	if s.rules.Now != nil {
		return s.rules.Now()
	}
	return time.Now()
}

// verifyToken serves GET /user/tokens/verify and /accounts/{acc}/tokens/verify.
func (s *Server) verifyToken(_ context.Context, c *call) error {
	t := c.grant.Token
	if t.ID == "" { // an e-mail and key, which are no token
		return malformed(note{6111, "Invalid format for Authorization header"})
	}
	type verified struct {
		ID        string `json:"id"`
		Status    string `json:"status"`
		NotBefore string `json:"not_before,omitempty"`
		ExpiresOn string `json:"expires_on,omitempty"`
	}
	type message struct {
		Code    int     `json:"code"`
		Message string  `json:"message"`
		Type    *string `json:"type"`
	}
	return c.give(verified{t.ID, t.Status(s.now()), timeText(t.NotBefore), timeText(t.Expires)}, nil,
		message{Code: 10000, Message: "This API Token is valid and active"})
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// createToken serves POST /accounts/{acc}/tokens.
func (s *Server) createToken(ctx context.Context, c *call) error {
	var body struct {
		Name      string    `json:"name"`
		NotBefore time.Time `json:"not_before"`
		ExpiresOn time.Time `json:"expires_on"`
		Policies  []policy  `json:"policies"`
	}
	if err := c.readJSON(&body); err != nil {
		return err
	}
	t := catalog.Token{AccountID: c.route.account, Name: body.Name, NotBefore: body.NotBefore, Expires: body.ExpiresOn}
	for _, p := range body.Policies {
		scopes, err := p.scopes(c.route.account)
		if err != nil {
			return err
		}
		t.Scopes = append(t.Scopes, scopes...)
	}
	t, secret, err := s.catalog.CreateToken(ctx, t)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return tokenFailure("a policy names a namespace that does not exist in this account")
	case errors.Is(err, catalog.ErrInvalid), errors.Is(err, catalog.ErrTooManyTokens):
		return tokenFailure("%s", innermost(err))
	case err != nil:
		return err
	}
	shown := s.newToken(t)
	shown.Value = secret
	return c.give(shown, nil)
}

// innermost is the text of an error without what was being done.
func innermost(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil || inner == catalog.ErrInvalid {
			return err.Error()
		}
		err = inner
	}
}

// scopes are the rights that a policy gives in an account.
func (p policy) scopes(accountID string) ([]catalog.Scope, error) {
	if p.Effect != "allow" {
		return nil, tokenFailure("the effect of a policy must be 'allow'")
	}
	if len(p.Groups) == 0 || len(p.Resources) == 0 {
		return nil, tokenFailure("a policy must have permission_groups and resources")
	}
	var permission catalog.Permission
	for _, g := range p.Groups {
		known, ok := knownGroup(g)
		if !ok {
			return nil, tokenFailure("unknown permission group %q: want %q or %q", shown(g.ID+g.Name), permissionGroups[0].Name, permissionGroups[1].Name)
		}
		permission = max(permission, known.permission)
	}
	var scopes []catalog.Scope
	for _, resource := range slices.Sorted(maps.Keys(p.Resources)) {
		scope, err := resourceScope(accountID, resource, p.Resources[resource])
		if err != nil {
			return nil, err
		}
		scope.Permission = permission
		scopes = append(scopes, scope)
	}
	return scopes, nil
}

func knownGroup(g permissionGroup) (permissionGroup, bool) {
	for _, known := range permissionGroups {
		if g.ID == known.ID && (g.Name == "" || g.Name == known.Name) || g.ID == "" && g.Name == known.Name {
			return known, true
		}
	}
	return permissionGroup{}, false
}

func resourceScope(accountID, resource string, extent json.RawMessage) (catalog.Scope, error) {
	scope := catalog.Scope{AccountID: accountID}
	if id, ok := strings.CutPrefix(resource, accountResource); ok {
		if id != accountID {
			return scope, tokenFailure("a policy must be about this account and what is in it")
		}
		return scope, wantAll(extent)
	}
	id, ok := strings.CutPrefix(resource, namespaceResource)
	if !ok {
		return scope, tokenFailure("unknown resource %q: want %s<account id> or %s<namespace id>", shown(resource), accountResource, namespaceResource)
	}
	var err error
	if scope.Namespace, err = kv.ParseNamespaceID(id); err != nil {
		return scope, tokenFailure("the resource %q has no namespace id of 32 hexadecimal digits", shown(resource))
	}
	var part struct{ Prefix string }
	if len(extent) > 0 && extent[0] == '{' {
		if json.Unmarshal(extent, &part) != nil || part.Prefix == "" {
			return scope, tokenFailure("the extent of a namespace must be \"*\" or {\"prefix\": \"…\"}")
		}
		scope.Prefix = part.Prefix
		return scope, nil
	}
	return scope, wantAll(extent)
}

func wantAll(extent json.RawMessage) error {
	if string(extent) != `"*"` {
		return tokenFailure("the extent of a resource must be \"*\"")
	}
	return nil
}

// newToken shows a token: one policy for each scope.
func (s *Server) newToken(t catalog.Token) apiToken {
	shown := apiToken{
		ID: t.ID, Name: t.Name, Status: t.Status(s.now()), IssuedOn: timeText(t.Created),
		NotBefore: timeText(t.NotBefore), ExpiresOn: timeText(t.Expires), Policies: []policy{},
	}
	for _, scope := range t.Scopes {
		shown.Policies = append(shown.Policies, newPolicy(t.ID, scope))
	}
	return shown
}

func newPolicy(tokenID string, scope catalog.Scope) policy {
	resource, extent := accountResource+scope.AccountID, json.RawMessage(`"*"`)
	switch {
	case scope.AccountID == "":
		resource = accountResource + "*"
	case scope.Namespace != kv.NamespaceID{}:
		resource = namespaceResource + scope.Namespace.String()
	}
	if scope.Prefix != "" {
		extent = append(jsontext.AppendString([]byte(`{"prefix":`), scope.Prefix), '}')
	}
	groups := []permissionGroup{permissionGroups[0]}
	if scope.Permission == catalog.Write {
		groups[0] = permissionGroups[1]
	}
	id := sha256.Sum256([]byte(tokenID + " " + resource + string(extent) + groups[0].ID))
	return policy{hex.EncodeToString(id[:16]), "allow", groups, map[string]json.RawMessage{resource: extent}}
}

// listTokens serves GET /accounts/{acc}/tokens.
func (s *Server) listTokens(ctx context.Context, c *call) error {
	page, perPage, err := pageOf(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	all, err := s.catalog.Tokens(ctx, c.route.account)
	if err != nil {
		return err
	}
	items := []apiToken{}
	for _, t := range pageItems(all, page, perPage) {
		items = append(items, s.newToken(t))
	}
	return c.give(items, newPageInfo(page, perPage, len(items), len(all)))
}

// getToken serves GET /accounts/{acc}/tokens/{id}.
func (s *Server) getToken(ctx context.Context, c *call) error {
	t, err := s.catalog.Token(ctx, c.route.account, c.route.token)
	if err != nil {
		return tokenNotFound(err)
	}
	return c.give(s.newToken(t), nil)
}

// deleteToken serves DELETE /accounts/{acc}/tokens/{id}: the token is revoked.
func (s *Server) deleteToken(ctx context.Context, c *call) error {
	err := s.catalog.RevokeToken(ctx, c.route.account, c.route.token)
	if errors.Is(err, catalog.ErrRootToken) {
		return tokenFailure("%s", catalog.ErrRootToken)
	}
	if err != nil {
		return tokenNotFound(err)
	}
	return c.give(struct {
		ID string `json:"id"`
	}{c.route.token}, nil)
}
