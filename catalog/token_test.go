package catalog

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
)

// at sets the clock of the catalog.
func (c *Catalog) at(now time.Time) { c.now = func() time.Time { return now } }

func TestCreateToken(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "a")
	now := time.Now()
	asked := Token{
		ID: "chosen", Root: true, Revoked: now, Created: now.Add(-time.Hour), // all of them not for the caller to say
		AccountID: testAccount, Name: "CI, ümlaut \x00",
		NotBefore: now.Add(-time.Minute), Expires: now.Add(time.Hour),
		Scopes: []Scope{
			{Permission: Write, Namespace: n.ID, Prefix: "img/\xff"},
			{AccountID: testAccount, Permission: Read},
			{Permission: Read, Namespace: n.ID},
		},
	}
	made, secret, err := c.CreateToken(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if len(made.ID) != 32 || made.Root || !made.Revoked.IsZero() || made.Created.Before(now.Truncate(time.Microsecond)) {
		t.Errorf("created %+v", made)
	}
	if len(secret) != 40 || secret == made.ID {
		t.Errorf("secret of %d characters", len(secret))
	}
	want := []Scope{
		{AccountID: testAccount, Permission: Write, Namespace: n.ID, Prefix: "img/\xff"},
		{AccountID: testAccount, Permission: Read},
		{AccountID: testAccount, Permission: Read, Namespace: n.ID},
	}
	if fmt.Sprint(made.Scopes) != fmt.Sprint(want) {
		t.Errorf("scopes %v, want %v", made.Scopes, want)
	}
	if asked.Scopes[0].AccountID != "" {
		t.Error("the caller's scopes were changed")
	}
	got, err := c.Token(t.Context(), testAccount, made.ID)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(made) {
		t.Errorf("token %+v (%v), want %+v", got, err, made)
	}
	g, err := c.Authenticate(t.Context(), secret)
	if err != nil || fmt.Sprint(g.Token) != fmt.Sprint(made) || fmt.Sprint(g.Scopes) != fmt.Sprint(want) || g.User.Email != testRoot().Email {
		t.Errorf("grant %+v (%v), want token %+v", g, err, made)
	}
	list, err := c.Tokens(t.Context(), testAccount)
	if err != nil || len(list) != 2 || !list[0].Root || fmt.Sprint(list[1]) != fmt.Sprint(made) {
		t.Errorf("tokens %+v (%v)", list, err)
	}
}

func TestCreateTokenRefuses(t *testing.T) {
	c, _ := newCatalog(t)
	n := createNamespace(t, c, "a")
	now := time.Now()
	for name, tc := range map[string]struct {
		change func(*Token)
		want   error
	}{
		"no name":                    {func(k *Token) { k.Name = "" }, ErrInvalid},
		"a blank name":               {func(k *Token) { k.Name = " \t" }, ErrInvalid},
		"the longest name":           {func(k *Token) { k.Name = strings.Repeat("é", MaxTokenNameChars) }, nil},
		"a name too long":            {func(k *Token) { k.Name = strings.Repeat("é", MaxTokenNameChars+1) }, ErrInvalid},
		"no scope":                   {func(k *Token) { k.Scopes = nil }, ErrInvalid},
		"the most scopes":            {func(k *Token) { k.Scopes = manyScopes(n.ID, MaxScopes) }, nil},
		"too many scopes":            {func(k *Token) { k.Scopes = manyScopes(n.ID, MaxScopes+1) }, ErrInvalid},
		"another account":            {func(k *Token) { k.Scopes[0].AccountID = "ffffffffffffffffffffffffffffffff" }, ErrInvalid},
		"no permission":              {func(k *Token) { k.Scopes[0].Permission = 0 }, ErrInvalid},
		"an unknown permission":      {func(k *Token) { k.Scopes[0].Permission = 3 }, ErrInvalid},
		"a prefix of no namespace":   {func(k *Token) { k.Scopes[0] = Scope{Permission: Read, Prefix: "p"} }, ErrInvalid},
		"the longest prefix":         {func(k *Token) { k.Scopes[0].Prefix = strings.Repeat("p", kv.MaxKeyBytes) }, nil},
		"a prefix too long":          {func(k *Token) { k.Scopes[0].Prefix = strings.Repeat("p", kv.MaxKeyBytes+1) }, ErrInvalid},
		"an unknown namespace":       {func(k *Token) { k.Scopes[0].Namespace = kv.NamespaceID{1} }, ErrNotFound},
		"expired":                    {func(k *Token) { k.Expires = now.Add(-time.Second) }, ErrInvalid},
		"expires before it is valid": {func(k *Token) { k.NotBefore, k.Expires = now.Add(time.Hour), now.Add(time.Hour) }, ErrInvalid},
	} {
		token := Token{AccountID: testAccount, Name: "t", Scopes: []Scope{{Permission: Read, Namespace: n.ID}}}
		tc.change(&token)
		before, err := c.Tokens(t.Context(), testAccount)
		if err != nil {
			t.Fatal(err)
		}
		_, secret, err := c.CreateToken(t.Context(), token)
		if tc.want == nil {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		wantError(t, err, tc.want)
		if secret != "" {
			t.Errorf("%s: a secret was returned", name)
		}
		if after, err := c.Tokens(t.Context(), testAccount); err != nil || len(after) != len(before) {
			t.Errorf("%s: %d tokens after, %d before (%v)", name, len(after), len(before), err)
		}
	}
}

func TestTokenStatus(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		token Token
		want  string
	}{
		"no times":            {Token{}, "active"},
		"just valid":          {Token{NotBefore: now}, "active"},
		"not valid yet":       {Token{NotBefore: now.Add(1)}, "disabled"},
		"just not expired":    {Token{Expires: now.Add(1)}, "active"},
		"just expired":        {Token{Expires: now}, "expired"},
		"revoked":             {Token{Revoked: now}, "disabled"},
		"revoked and expired": {Token{Revoked: now, Expires: now}, "disabled"},
	} {
		if got := tc.token.Status(now); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestRevokeToken(t *testing.T) {
	c, _ := newCatalog(t)
	token, secret := createToken(t, c, Scope{Permission: Write})
	if _, err := c.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
		t.Fatal(err)
	}
	g, err := c.Authenticate(t.Context(), secret)
	wantError(t, err, ErrTokenRevoked)
	wantError(t, err, ErrUnauthenticated)
	if g.Token.ID != token.ID || len(g.Scopes) != 0 || g.SeesAccount(testAccount) {
		t.Errorf("grant %+v of a revoked token, want its name and no right", g)
	}
	revoked, err := c.Token(t.Context(), testAccount, token.ID)
	if err != nil || revoked.Status(time.Now()) != "disabled" {
		t.Errorf("token %+v (%v), want it disabled", revoked, err)
	}
	if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
		t.Errorf("revoke it again: %v", err)
	}
	if again, err := c.Token(t.Context(), testAccount, token.ID); err != nil || again.Revoked != revoked.Revoked {
		t.Errorf("token %+v (%v), want the time of the first revocation", again, err)
	}
}

func TestRevokeTokenRefuses(t *testing.T) {
	c, _ := newCatalog(t)
	token, secret := createToken(t, c, Scope{Permission: Write})
	root, err := c.Authenticate(t.Context(), testRoot().Token)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, c.RevokeToken(t.Context(), testAccount, root.Token.ID), ErrRootToken)
	wantError(t, c.RevokeToken(t.Context(), testAccount, "unknown"), ErrNotFound)
	wantError(t, c.RevokeToken(t.Context(), "ffffffffffffffffffffffffffffffff", token.ID), ErrNotFound)
	_, err = c.Token(t.Context(), "ffffffffffffffffffffffffffffffff", token.ID)
	wantError(t, err, ErrNotFound)
	for _, s := range []string{testRoot().Token, secret} {
		if _, err := c.Authenticate(t.Context(), s); err != nil {
			t.Error(err)
		}
	}
}

func TestDeadTokensAreRemoved(t *testing.T) {
	c, _ := newCatalog(t)
	start := time.Now()
	c.at(start)
	revoked, _ := createToken(t, c, Scope{Permission: Read})
	if err := c.RevokeToken(t.Context(), testAccount, revoked.ID); err != nil {
		t.Fatal(err)
	}
	expiring := Token{AccountID: testAccount, Name: "expires", Expires: start.Add(time.Hour), Scopes: []Scope{{Permission: Read}}}
	if _, _, err := c.CreateToken(t.Context(), expiring); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		want  int // with the root token and the ones that this loop creates
	}{
		{DeadTokensFor - time.Second, 4},
		{DeadTokensFor, 4},
		{DeadTokensFor + time.Hour - time.Second, 5},
		{DeadTokensFor + time.Hour, 5},
	} {
		c.at(start.Add(step.after))
		createToken(t, c, Scope{Permission: Read})
		if list, err := c.Tokens(t.Context(), testAccount); err != nil || len(list) != step.want {
			t.Errorf("after %s: %d tokens (%v), want %d", step.after, len(list), err, step.want)
		}
	}
}

func TestTooManyTokens(t *testing.T) {
	c, _ := newCatalog(t)
	err := c.change(t.Context(), "fill", nil, func(tx *sql.Tx) error {
		for i := range MaxTokens - 2 { // all but the root token and one more
			id := fmt.Sprint(i)
			if _, err := tx.ExecContext(t.Context(), `insert into tokens (id, account_id, name, hash, root, created, not_before, expires, revoked)
				values ($1, $2, $3, $3, 0, 0, 0, 0, 0)`, id, testAccount, []byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	createToken(t, c, Scope{Permission: Read})
	_, _, err = c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "one more", Scopes: []Scope{{Permission: Read}}})
	wantError(t, err, ErrTooManyTokens)
}
