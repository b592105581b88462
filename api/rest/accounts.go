package rest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// account is an account as the API shows it.
type account struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Type    string `json:"type"`
	Created string `json:"created_on"`
}

func newAccount(a catalog.Account) account {
	return account{a.ID, a.Name, "standard", a.Created.UTC().Format(time.RFC3339)}
}

// visibleAccounts are the accounts that the grant has a right in.
func (s *Server) visibleAccounts(ctx context.Context, c *call) ([]catalog.Account, error) {
	all, err := s.catalog.Accounts(ctx)
	if err != nil {
		return nil, err
	}
	seen := make([]catalog.Account, 0, len(all))
	for _, a := range all {
		if c.grant.SeesAccount(a.ID) {
			seen = append(seen, a)
		}
	}
	return seen, nil
}

// listAccounts serves GET /accounts.
func (s *Server) listAccounts(ctx context.Context, c *call) error {
	return listAccountsAs(ctx, s, c, newAccount)
}

// membership says what the user is in an account. wrangler shows the accounts
// that are in both lists, so they are made from one.
type membership struct {
	ID          string                     `json:"id"`
	Status      string                     `json:"status"`
	Account     membershipAccount          `json:"account"`
	Roles       []string                   `json:"roles"`
	Permissions map[string]map[string]bool `json:"permissions"`
}

type membershipAccount struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// listMemberships serves GET /memberships.
func (s *Server) listMemberships(ctx context.Context, c *call) error {
	return listAccountsAs(ctx, s, c, func(a catalog.Account) membership {
		id := sha256.Sum256([]byte(c.grant.User.ID + " in " + a.ID))
		m := membership{
			ID:          hex.EncodeToString(id[:16]),
			Status:      "accepted",
			Account:     membershipAccount{a.ID, a.Name},
			Roles:       []string{"Workers KV Storage"},
			Permissions: map[string]map[string]bool{"workers_kv_storage": {"read": true, "write": c.grant.Account(a.ID, catalog.Write)}},
		}
		if c.grant.Account(a.ID, catalog.Write) {
			m.Roles = []string{"Administrator"}
		}
		return m
	})
}

func listAccountsAs[T any](ctx context.Context, s *Server, c *call, as func(catalog.Account) T) error {
	page, perPage, err := pageOf(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	all, err := s.visibleAccounts(ctx, c)
	if err != nil {
		return err
	}
	items := []T{}
	for _, a := range pageItems(all, page, perPage) {
		items = append(items, as(a))
	}
	return c.give(items, newPageInfo(page, perPage, len(items), len(all)))
}

// getAccount serves GET /accounts/{acc}.
func (s *Server) getAccount(ctx context.Context, c *call) error {
	a, err := s.catalog.Account(ctx, c.route.account)
	if err != nil {
		return err
	}
	return c.give(newAccount(a), nil)
}

// getUser serves GET /user. Who the owner is, is told to those who may read an
// account as a whole, not to the holder of a token for some keys.
func (s *Server) getUser(ctx context.Context, c *call) error {
	all, err := s.visibleAccounts(ctx, c)
	if err != nil {
		return err
	}
	for _, a := range all {
		if c.grant.Account(a.ID, catalog.Read) {
			return c.give(struct {
				ID    string `json:"id"`
				Email string `json:"email"`
			}{c.grant.User.ID, c.grant.User.Email}, nil)
		}
	}
	return errUnauthorized
}
