package catalog

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"
	"strings"
)

const (
	// MinSecretChars is the least length of a token or key that an operator
	// chooses: shorter ones can be guessed from their hash, or outright.
	MinSecretChars = 16
	// MaxSecretChars is the greatest length of a token or key.
	MaxSecretChars = 256
)

// secretHash is what is kept of a token or key.
type secretHash [sha256.Size]byte

// hashSecret hashes a secret of at most MaxSecretChars without allocating.
func hashSecret(secret string) secretHash {
	var buf [MaxSecretChars]byte
	return sha256.Sum256(buf[:copy(buf[:], secret)])
}

func hashOf(secret string) []byte {
	h := hashSecret(secret)
	return h[:]
}

// NewSecret returns 40 random characters, what tokens and keys look like: 160
// bits in hexadecimal, which no shell, header or URL changes.
func NewSecret() string {
	var b [20]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// checkSecret refuses a secret that cannot be sent in a header or is too weak.
func checkSecret(what, secret string) error {
	if len(secret) < MinSecretChars || len(secret) > MaxSecretChars {
		return invalid("a %s has %d to %d characters, this one has %d", what, MinSecretChars, MaxSecretChars, len(secret))
	}
	for _, b := range []byte(secret) {
		if b <= ' ' || b > '~' {
			return invalid("a %s has only visible ASCII characters", what)
		}
	}
	return nil
}

// Authenticate returns what the holder of a token may do. A token that is known
// but not valid now is returned with the error, in a Grant without any right, so
// that its holder can be told which it is.
func (c *Catalog) Authenticate(ctx context.Context, token string) (Grant, error) {
	if token == "" || len(token) > MaxSecretChars {
		return Grant{}, ErrUnauthenticated
	}
	hash, now := hashSecret(token), c.now()
	g, ok := c.tokens.get(hash, now)
	if !ok {
		var err error
		if g, err = c.loadToken(ctx, hash); err != nil {
			return Grant{}, err
		}
	}
	return g.at(now)
}

func (c *Catalog) loadToken(ctx context.Context, hash secretHash) (*Grant, error) {
	return c.tokens.load(ctx, hash, func(ctx context.Context) (*Grant, error) {
		rows, err := c.tokenRows(ctx, `t.hash = $1`, hash[:])
		if err == nil && (len(rows) == 0 || subtle.ConstantTimeCompare(rows[0].hash, hash[:]) != 1) {
			err = ErrUnauthenticated
		}
		if err != nil {
			return nil, failure(ctx, "authenticate", err)
		}
		g := Grant{Token: tokensOf(rows)[0]}
		g.Scopes = g.Token.Scopes
		if g.User, err = c.owner(ctx); err != nil {
			return nil, failure(ctx, "authenticate", err)
		}
		return &g, nil
	})
}

func (c *Catalog) owner(ctx context.Context) (u User, err error) {
	err = c.db.read.QueryRowContext(ctx, `select id, email from users`).Scan(&u.ID, &u.Email)
	return u, err
}

// AuthenticateKey returns what the owner may do, who shows e-mail and key: what
// the root token may.
func (c *Catalog) AuthenticateKey(ctx context.Context, email, key string) (Grant, error) {
	if email == "" || key == "" || len(key) > MaxSecretChars {
		return Grant{}, ErrUnauthenticated
	}
	hash := hashSecret(key)
	g, ok := c.keys.get(hash, c.now())
	if !ok {
		var err error
		if g, err = c.loadKey(ctx, hash); err != nil {
			return Grant{}, err
		}
	}
	if !strings.EqualFold(g.User.Email, email) {
		return Grant{}, ErrUnauthenticated
	}
	return *g, nil
}

func (c *Catalog) loadKey(ctx context.Context, hash secretHash) (*Grant, error) {
	return c.keys.load(ctx, hash, func(ctx context.Context) (*Grant, error) {
		g := Grant{Scopes: rootScopes()}
		var keyHash []byte
		err := c.db.read.QueryRowContext(ctx, `select id, email, key_hash from users where key_hash = $1`, hash[:]).
			Scan(&g.User.ID, &g.User.Email, &keyHash)
		if errors.Is(err, sql.ErrNoRows) || err == nil && subtle.ConstantTimeCompare(keyHash, hash[:]) != 1 {
			err = ErrUnauthenticated
		}
		if err != nil {
			return nil, failure(ctx, "authenticate", err)
		}
		return &g, nil
	})
}
