package client

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Scope is a right that a token gives: to read, or to read and write, the whole
// account, a namespace, or the keys of a namespace that begin with a prefix.
type Scope struct {
	Write     bool
	Namespace string // id; empty: the whole account
	Prefix    string // empty: the whole namespace
}

// String is the scope in the form of the command line: write, read:NAMESPACE,
// read:NAMESPACE:PREFIX.
func (s Scope) String() string {
	text := "read"
	if s.Write {
		text = "write"
	}
	if s.Namespace != "" {
		text += ":" + s.Namespace
	}
	if s.Prefix != "" {
		text += ":" + s.Prefix
	}
	return text
}

// Token is an API token of the account. Times are zero if there is none.
type Token struct {
	ID        string
	Name      string
	Status    string // active, disabled or expired
	Secret    string // only in the answer to CreateToken
	NotBefore time.Time
	Expires   time.Time
	Issued    time.Time
	Scopes    []Scope
}

// tokenJSON is a Token as the API writes it.
type tokenJSON struct {
	ID        string       `json:"id,omitempty"`
	Name      string       `json:"name,omitempty"`
	Status    string       `json:"status,omitempty"`
	Value     string       `json:"value,omitempty"`
	NotBefore *time.Time   `json:"not_before,omitempty"`
	Expires   *time.Time   `json:"expires_on,omitempty"`
	Issued    *time.Time   `json:"issued_on,omitempty"`
	Policies  []policyJSON `json:"policies,omitempty"`
}

type policyJSON struct {
	Effect    string         `json:"effect"`
	Groups    []groupJSON    `json:"permission_groups"`
	Resources map[string]any `json:"resources"`
}

type groupJSON struct {
	Name string `json:"name"`
}

const (
	readGroup         = "Workers KV Storage Read"
	writeGroup        = "Workers KV Storage Write"
	accountResource   = "com.cloudflare.api.account."
	namespaceResource = "com.nearkey.kv.namespace."
)

// policy is the scope in the words of the API.
func (c *Client) policy(s Scope) policyJSON {
	p := policyJSON{Effect: "allow", Groups: []groupJSON{{readGroup}}, Resources: map[string]any{}}
	if s.Write {
		p.Groups[0].Name = writeGroup
	}
	switch {
	case s.Namespace == "":
		p.Resources[accountResource+c.config.AccountID] = "*"
	case s.Prefix == "":
		p.Resources[namespaceResource+s.Namespace] = "*"
	default:
		p.Resources[namespaceResource+s.Namespace] = map[string]string{"prefix": s.Prefix}
	}
	return p
}

// scopes are the rights that a policy of the API gives.
func (p policyJSON) scopes() []Scope {
	var write bool
	for _, g := range p.Groups {
		write = write || strings.HasSuffix(g.Name, "Write")
	}
	var scopes []Scope
	for _, name := range slices.Sorted(maps.Keys(p.Resources)) {
		s := Scope{Write: write}
		if id, ok := strings.CutPrefix(name, namespaceResource); ok {
			s.Namespace = id
		}
		if within, ok := p.Resources[name].(map[string]any); ok {
			s.Prefix, _ = within["prefix"].(string)
		}
		scopes = append(scopes, s)
	}
	return scopes
}

func (t tokenJSON) token() Token {
	token := Token{
		ID: t.ID, Name: t.Name, Status: t.Status, Secret: t.Value,
		NotBefore: value(t.NotBefore), Expires: value(t.Expires), Issued: value(t.Issued),
	}
	for _, p := range t.Policies {
		token.Scopes = append(token.Scopes, p.scopes()...)
	}
	return token
}

func value(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// CreateToken makes a token with the given name, scopes and expiration (zero:
// never). Its Secret is in the answer, and nowhere else.
func (c *Client) CreateToken(ctx context.Context, name string, scopes []Scope, expires time.Time) (Token, error) {
	ask := tokenJSON{Name: name}
	if !expires.IsZero() {
		at := expires.UTC().Truncate(time.Second)
		ask.Expires = &at
	}
	for _, s := range scopes {
		if s.Prefix != "" && s.Namespace == "" {
			return Token{}, fmt.Errorf("create token %q: a prefix needs a namespace", name)
		}
		ask.Policies = append(ask.Policies, c.policy(s))
	}
	body, err := jsonBody(ask)
	if err != nil {
		return Token{}, err
	}
	env, err := fetch[tokenJSON](ctx, c, call{
		method: http.MethodPost, path: c.accountPath("tokens"), body: body, contentType: "application/json",
	})
	if err != nil {
		return Token{}, err
	}
	return env.Result.token(), nil
}

// tokensPage is how many tokens are asked for at once.
const tokensPage = 50

// Tokens are the tokens of the account.
func (c *Client) Tokens(ctx context.Context) iter.Seq2[Token, error] {
	return func(yield func(Token, error) bool) {
		seen := map[string]bool{}
		for page := 1; ; page++ {
			env, err := fetch[[]tokenJSON](ctx, c, call{
				method: http.MethodGet, path: c.accountPath("tokens"), idempotent: true,
				query: url.Values{"page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(tokensPage)}},
			})
			if err != nil {
				yield(Token{}, err)
				return
			}
			fresh := false
			for _, t := range env.Result {
				if seen[t.ID] { // a server that does not page answers all each time
					continue
				}
				seen[t.ID], fresh = true, true
				if !yield(t.token(), nil) {
					return
				}
			}
			if !fresh || len(env.Result) < tokensPage {
				return
			}
		}
	}
}

// RevokeToken makes a token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := fetch[any](ctx, c, call{method: http.MethodDelete, path: c.accountPath("tokens", id)})
	return err
}

// VerifyToken returns the id and status of the token that the Client uses.
func (c *Client) VerifyToken(ctx context.Context) (Token, error) {
	env, err := fetch[tokenJSON](ctx, c, call{method: http.MethodGet, path: "/user/tokens/verify", idempotent: true})
	if err != nil {
		return Token{}, err
	}
	return env.Result.token(), nil
}

// Account is an account that the credentials may see.
type Account struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Accounts returns the first page of accounts that the credentials may see.
func (c *Client) Accounts(ctx context.Context) ([]Account, error) {
	env, err := fetch[[]Account](ctx, c, call{method: http.MethodGet, path: "/accounts", idempotent: true})
	if err != nil {
		return nil, err
	}
	return env.Result, nil
}
