package catalog

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// publications are all kinds of published records, as the database has them.
func (c *Catalog) publications() []publication {
	return append([]publication{
		{
			namespace: Reserved, prefix: keyPrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedKeys(ctx, after, `key_hash > $1 order by key_hash`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedKeys(ctx, name, `key_hash = $1`)
			},
			same: sameRecord[grantRecord],
		}, {
			namespace: Reserved, prefix: namespacePrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedNamespaces(ctx, after, `id > $1 order by id`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedNamespaces(ctx, name, `id = $1`)
			},
			same: sameRecord[namespaceRecord],
		}, {
			namespace: Reserved, prefix: tokenPrefix, size: publishPage,
			page: func(ctx context.Context, after string) ([]published, error) {
				return c.publishedTokens(ctx, after, `hash > $1`)
			},
			one: func(ctx context.Context, name string) ([]published, error) {
				return c.publishedTokens(ctx, name, `hash = $1`)
			},
			same: sameRecord[grantRecord],
		},
	}, c.workerPublications()...)
}

// publishedKeys returns records of the owner's key whose hash, compared with one
// in hexadecimal digits, meets a condition.
func (c *Catalog) publishedKeys(ctx context.Context, hash, condition string) ([]published, error) {
	doing := "load keys to publish"
	sum, err := hex.DecodeString(hash)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		g := Grant{Scopes: rootScopes()}
		var keyHash []byte
		err := row.Scan(&g.User.ID, &g.User.Email, &keyHash)
		return newPublished(ownerKey(keyHash), marshalRecord(newGrantRecord(g))), err
	}, fmt.Sprintf(`select id, email, key_hash from users where %s limit %d`, condition, publishPage), notNil(sum))
	return list, failure(ctx, doing, err)
}

// notNil is b as the database is to see it: not as null.
func notNil(b []byte) []byte { return append([]byte{}, b...) }

func (c *Catalog) publishedNamespaces(ctx context.Context, id, condition string) ([]published, error) {
	list, err := all(ctx, c.db.read, func(row scanner) (published, error) {
		n, err := scanNamespace(row)
		return newPublished(namespaceKey(n.ID), marshalRecord(newNamespaceRecord(n))), err
	}, fmt.Sprintf(`select `+namespaceColumns+` from namespaces where %s limit %d`, condition, publishPage), id)
	return list, failure(ctx, "load namespaces to publish", err)
}

// publishedTokens returns the records of valid tokens. Those that are not valid
// yet are among them.
func (c *Catalog) publishedTokens(ctx context.Context, hash, condition string) ([]published, error) {
	doing := "load tokens to publish"
	sum, err := hex.DecodeString(hash)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	user, err := c.owner(ctx)
	if errors.Is(err, sql.ErrNoRows) { // there are no tokens before there is an owner
		return nil, nil
	}
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	rows, err := c.tokenRows(ctx, fmt.Sprintf(`t.hash in (select hash from tokens
		where %s and revoked = 0 and (expires = 0 or expires > $2) order by hash limit %d)`, condition, publishPage),
		notNil(sum), stored(c.now()))
	if err != nil {
		return nil, failure(ctx, doing, err)
	}
	hashes := make(map[string][]byte, len(rows))
	for _, r := range rows {
		hashes[r.token.ID] = r.hash
	}
	var list []published
	for _, t := range tokensOf(rows) {
		record := newGrantRecord(Grant{Token: t, User: user, Scopes: t.Scopes})
		list = append(list, newPublished(tokenKey(hashes[t.ID]), marshalRecord(record)))
	}
	slices.SortFunc(list, func(a, b published) int { return strings.Compare(a.key, b.key) })
	return list, nil
}
