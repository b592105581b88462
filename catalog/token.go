package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

const (
	// MaxTokens is the greatest number of tokens in an account, dead ones included.
	MaxTokens = 10_000
	// MaxScopes is the greatest number of scopes of a token.
	MaxScopes = 100
	// MaxTokenNameChars is the greatest number of characters in a token's name.
	MaxTokenNameChars = 120
	// DeadTokensFor is how long a token is listed after it was revoked or expired.
	DeadTokensFor = 30 * 24 * time.Hour
)

// Token is what the catalog knows of an API token; its secret is not in it.
type Token struct {
	ID, AccountID, Name string
	Scopes              []Scope
	Created             time.Time
	NotBefore           time.Time // zero: valid from the beginning
	Expires             time.Time // from then on it is not valid; zero: never
	Revoked             time.Time // zero: not
	Root                bool      // the token of the configuration; it may do everything
}

// Status is what Cloudflare's API calls the state of a token: "active",
// "disabled" (revoked or not valid yet) or "expired".
func (t Token) Status(now time.Time) string {
	switch err := t.check(now); {
	case err == nil:
		return "active"
	case errors.Is(err, ErrTokenExpired):
		return "expired"
	}
	return "disabled"
}

func (t *Token) check(now time.Time) error {
	switch {
	case !t.Revoked.IsZero():
		return ErrTokenRevoked
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return ErrTokenExpired
	case now.Before(t.NotBefore):
		return ErrTokenNotYetValid
	}
	return nil
}

// CreateToken creates a token with the account, name, scopes and times of t and
// returns it with its secret, which is told this once. A scope without an account
// is one in the token's account.
func (c *Catalog) CreateToken(ctx context.Context, t Token) (Token, string, error) {
	doing := fmt.Sprintf("create token %q", t.Name)
	t.ID, t.Root, t.Created, t.Revoked = newID(), false, loaded(stored(c.now())), time.Time{}
	t.NotBefore, t.Expires = loaded(stored(t.NotBefore)), loaded(stored(t.Expires))
	t.Scopes = append([]Scope(nil), t.Scopes...)
	for i := range t.Scopes {
		if t.Scopes[i].AccountID == "" {
			t.Scopes[i].AccountID = t.AccountID
		}
	}
	if err := t.validate(); err != nil {
		return Token{}, "", fmt.Errorf("%s: %w", doing, err)
	}
	secret := NewSecret()
	hash := hashSecret(secret)
	made := func() { c.publish(ctx, tokenKey(hash[:])) }
	err := c.change(ctx, doing, made, func(tx *sql.Tx) error { return insertToken(ctx, tx, t, hash) })
	if err != nil {
		return Token{}, "", err
	}
	return t, secret, nil
}

// validate checks a token that is about to be created.
func (t *Token) validate() error {
	switch chars := utf8.RuneCountInString(t.Name); {
	case strings.TrimSpace(t.Name) == "":
		return invalid("a token must have a name")
	case chars > MaxTokenNameChars:
		return invalid("the name of a token has at most %d characters, this one has %d", MaxTokenNameChars, chars)
	case !t.Expires.IsZero() && !t.Created.Before(t.Expires):
		return invalid("the token would expire in the past, at %s", t.Expires.Format(time.RFC3339))
	case !t.Expires.IsZero() && !t.NotBefore.Before(t.Expires):
		return invalid("the token would expire before it is valid")
	case len(t.Scopes) == 0:
		return invalid("a token must have a scope")
	case len(t.Scopes) > MaxScopes:
		return invalid("a token has at most %d scopes, this one has %d", MaxScopes, len(t.Scopes))
	}
	for _, s := range t.Scopes {
		if err := s.validate(t.AccountID); err != nil {
			return err
		}
	}
	return nil
}

func (s Scope) validate(accountID string) error {
	switch {
	case s.AccountID != accountID:
		return invalid("a scope must be in the account of the token")
	case s.Permission != Read && s.Permission != Write:
		return invalid("a scope must permit to read or to write")
	case s.Prefix != "" && s.Namespace == kv.NamespaceID{}:
		return invalid("a scope with a prefix must name a namespace")
	case len(s.Prefix) > kv.MaxKeyBytes:
		return invalid("a prefix has at most %d bytes, as keys have; this one has %d", kv.MaxKeyBytes, len(s.Prefix))
	}
	return nil
}

func insertToken(ctx context.Context, tx *sql.Tx, t Token, hash secretHash) error {
	if err := lockAccount(ctx, tx, t.AccountID); err != nil {
		return err
	}
	if err := removeDead(ctx, tx, t.AccountID, t.Created); err != nil {
		return err
	}
	var count int
	if err := tx.QueryRowContext(ctx, `select count(*) from tokens where account_id = $1`, t.AccountID).Scan(&count); err != nil {
		return err
	}
	if count >= MaxTokens {
		return ErrTooManyTokens
	}
	if _, err := tx.ExecContext(ctx, `insert into tokens (id, account_id, name, hash, root, created, not_before, expires, revoked)
		values ($1, $2, $3, $4, 0, $5, $6, $7, 0)`,
		t.ID, t.AccountID, []byte(t.Name), hash[:], stored(t.Created), stored(t.NotBefore), stored(t.Expires)); err != nil {
		return err
	}
	for i, s := range t.Scopes {
		if err := insertScope(ctx, tx, t.ID, i, s); err != nil {
			return err
		}
	}
	return nil
}

func insertScope(ctx context.Context, tx *sql.Tx, tokenID string, position int, s Scope) error {
	var namespace sql.NullString
	if s.Namespace != (kv.NamespaceID{}) {
		namespace = sql.NullString{String: s.Namespace.String(), Valid: true}
		var n int
		if err := tx.QueryRowContext(ctx, `select count(*) from namespaces where id = $1 and account_id = $2`,
			namespace.String, s.AccountID).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("namespace %s: %w", s.Namespace, ErrNotFound)
		}
	}
	_, err := tx.ExecContext(ctx, `insert into token_scopes (token_id, position, permission, namespace_id, prefix) values ($1, $2, $3, $4, $5)`,
		tokenID, position, s.Permission.String(), namespace, append([]byte{}, s.Prefix...))
	return err
}

// removeDead removes the tokens that have been of no use for DeadTokensFor. It
// is done where tokens are created, so that they do not pile up.
func removeDead(ctx context.Context, tx *sql.Tx, accountID string, now time.Time) error {
	_, err := tx.ExecContext(ctx, `delete from tokens where account_id = $1 and root = 0
		and ((revoked <> 0 and revoked <= $2) or (expires <> 0 and expires <= $2))`,
		accountID, stored(now.Add(-DeadTokensFor)))
	return err
}

// Tokens returns the tokens of an account, the oldest first: also those that
// were revoked or have expired, for DeadTokensFor.
func (c *Catalog) Tokens(ctx context.Context, accountID string) ([]Token, error) {
	rows, err := c.tokenRows(ctx, `t.account_id = $1`, accountID)
	if err != nil {
		return nil, failure(ctx, "list tokens of account "+accountID, err)
	}
	if len(rows) == 0 {
		_, err := c.Account(ctx, accountID)
		return nil, err
	}
	return tokensOf(rows), nil
}

// Token returns one of the tokens that Tokens lists.
func (c *Catalog) Token(ctx context.Context, accountID, id string) (Token, error) {
	rows, err := c.tokenRows(ctx, `t.account_id = $1 and t.id = $2`, accountID, id)
	if err == nil && len(rows) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Token{}, failure(ctx, "token "+id, err)
	}
	return tokensOf(rows)[0], nil
}

// RevokeToken makes a token invalid for ever. Through this process it is so when
// RevokeToken returns, through others within CacheFor, or sooner where the
// changefeed tells of what is published. Revoking it again changes
// nothing.
func (c *Catalog) RevokeToken(ctx context.Context, accountID, id string) error {
	var hash []byte
	made := func() {
		c.forgetRights()
		c.publish(ctx, tokenKey(hash))
	}
	return c.change(ctx, "revoke token "+id, made, func(tx *sql.Tx) error {
		var root int
		err := tx.QueryRowContext(ctx, `select root, hash from tokens where account_id = $1 and id = $2`, accountID, id).Scan(&root, &hash)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return ErrNotFound
		case err != nil:
			return err
		case root != 0:
			return ErrRootToken
		}
		_, err = tx.ExecContext(ctx, `update tokens set revoked = $1 where id = $2 and revoked = 0`, stored(c.now()), id)
		return err
	})
}

// tokenRow is a token with one of its scopes, or with none.
type tokenRow struct {
	token Token
	hash  []byte
	scope *Scope
}

// tokenRows returns the tokens that meet a condition, a row for each scope.
func (c *Catalog) tokenRows(ctx context.Context, condition string, args ...any) ([]tokenRow, error) {
	return all(ctx, c.db.read, scanTokenRow, `select
		t.id, t.account_id, t.name, t.hash, t.root, t.created, t.not_before, t.expires, t.revoked,
		s.permission, s.namespace_id, s.prefix
		from tokens t left join token_scopes s on s.token_id = t.id
		where `+condition+` order by t.created, t.id, s.position`, args...)
}

func scanTokenRow(row scanner) (tokenRow, error) {
	var (
		r                                          tokenRow
		name, prefix                               []byte
		root, created, notBefore, expires, revoked int64
		permission, namespace                      sql.NullString
	)
	t := &r.token
	if err := row.Scan(&t.ID, &t.AccountID, &name, &r.hash, &root, &created, &notBefore, &expires, &revoked,
		&permission, &namespace, &prefix); err != nil {
		return tokenRow{}, err
	}
	t.Name, t.Root, t.Created = string(name), root != 0, loaded(created)
	t.NotBefore, t.Expires, t.Revoked = loaded(notBefore), loaded(expires), loaded(revoked)
	if !permission.Valid {
		return r, nil
	}
	p, err := ParsePermission(permission.String)
	if err != nil {
		return tokenRow{}, err
	}
	r.scope = &Scope{AccountID: t.AccountID, Permission: p, Prefix: string(prefix)}
	if namespace.Valid {
		r.scope.Namespace, err = kv.ParseNamespaceID(namespace.String)
	}
	return r, err
}

// tokensOf puts the rows of each token together.
func tokensOf(rows []tokenRow) []Token {
	var list []Token
	for _, r := range rows {
		if len(list) == 0 || list[len(list)-1].ID != r.token.ID {
			if r.token.Root {
				r.token.Scopes = rootScopes()
			}
			list = append(list, r.token)
		}
		if r.scope != nil {
			t := &list[len(list)-1]
			t.Scopes = append(t.Scopes, *r.scope)
		}
	}
	return list
}

// rootScopes are the rights of the root credentials.
func rootScopes() []Scope { return []Scope{{Permission: Write}} }
