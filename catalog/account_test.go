package catalog

import (
	"strings"
	"testing"
)

func TestEnsureRootIsIdempotent(t *testing.T) {
	c, _ := newCatalog(t)
	first, err := c.EnsureRoot(t.Context(), testRoot())
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Authenticate(t.Context(), testRoot().Token)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := c.EnsureRoot(t.Context(), testRoot())
		if err != nil || again != first {
			t.Errorf("account %+v (%v), want %+v", again, err, first)
		}
	}
	after, err := c.Authenticate(t.Context(), testRoot().Token)
	if err != nil || after.Token.ID != before.Token.ID || after.User != before.User {
		t.Errorf("grant %+v (%v), want %+v", after, err, before)
	}
	if list, err := c.Accounts(t.Context()); err != nil || len(list) != 1 || list[0] != first {
		t.Errorf("accounts %v (%v), want %v", list, err, first)
	}
	if tokens, err := c.Tokens(t.Context(), testAccount); err != nil || len(tokens) != 1 || !tokens[0].Root {
		t.Errorf("tokens %v (%v), want the root token", tokens, err)
	}
}

func TestEnsureRootWithoutAccount(t *testing.T) {
	c := openAt(t, t.TempDir()+"/catalog.db")
	root := Root{Token: NewSecret()}
	made, err := c.EnsureRoot(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if len(made.ID) != 32 || made.Name != "nearkey" || made.Created.IsZero() {
		t.Errorf("new account %+v", made)
	}
	if again, err := c.EnsureRoot(t.Context(), root); err != nil || again != made {
		t.Errorf("account %+v (%v), want the one that exists, %+v", again, err, made)
	}
	root.AccountName = "Other"
	if renamed, err := c.EnsureRoot(t.Context(), root); err != nil || renamed.ID != made.ID || renamed.Name != "Other" {
		t.Errorf("account %+v (%v), want it renamed", renamed, err)
	}
	root.AccountName = ""
	if kept, err := c.EnsureRoot(t.Context(), root); err != nil || kept.Name != "Other" {
		t.Errorf("account %+v (%v), want its name kept", kept, err)
	}
}

func TestEnsureRootReplacesCredentials(t *testing.T) {
	c, _ := newCatalog(t)
	old := testRoot()
	for _, authenticate := range []func() error{
		func() error { _, err := c.Authenticate(t.Context(), old.Token); return err },
		func() error { _, err := c.AuthenticateKey(t.Context(), old.Email, old.Key); return err },
	} {
		if err := authenticate(); err != nil {
			t.Fatal(err)
		}
	}
	const other = "ffffffffffffffffffffffffffffffff"
	replaced := Root{AccountID: other, Token: NewSecret(), Email: "other@example.com", Key: NewSecret()}
	if _, err := c.EnsureRoot(t.Context(), replaced); err != nil {
		t.Fatal(err)
	}
	_, err := c.Authenticate(t.Context(), old.Token)
	wantError(t, err, ErrUnauthenticated)
	_, err = c.AuthenticateKey(t.Context(), old.Email, old.Key)
	wantError(t, err, ErrUnauthenticated)
	g, err := c.Authenticate(t.Context(), replaced.Token)
	if err != nil || !g.Account(testAccount, Write) || !g.Account(other, Write) || g.Token.AccountID != other {
		t.Errorf("grant %+v (%v), want every right on both accounts", g, err)
	}
	if _, err := c.AuthenticateKey(t.Context(), replaced.Email, replaced.Key); err != nil {
		t.Error(err)
	}
	if list, err := c.Accounts(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("accounts %v (%v), want both", list, err)
	}
	if latest, err := c.EnsureRoot(t.Context(), Root{Token: replaced.Token}); err != nil || latest.ID != other {
		t.Errorf("account %+v (%v), want that of the last root", latest, err)
	}
	_, err = c.AuthenticateKey(t.Context(), replaced.Email, replaced.Key)
	wantError(t, err, ErrUnauthenticated) // no key is configured any more
}

func TestEnsureRootRefuses(t *testing.T) {
	c, _ := newCatalog(t)
	token, secret := createToken(t, c, Scope{Permission: Read})
	good := testRoot()
	for name, change := range map[string]func(*Root){
		"no token":                func(r *Root) { r.Token = "" },
		"a short token":           func(r *Root) { r.Token = strings.Repeat("x", MinSecretChars-1) },
		"a long token":            func(r *Root) { r.Token = strings.Repeat("x", MaxSecretChars+1) },
		"a token with a space":    func(r *Root) { r.Token = "0123456789 0123456789" },
		"a token not of ASCII":    func(r *Root) { r.Token = "0123456789é0123456789" },
		"a short key":             func(r *Root) { r.Key = "short" },
		"a key without an e-mail": func(r *Root) { r.Email = "" },
		"a short account id":      func(r *Root) { r.AccountID = testAccount[1:] },
		"an upper case id":        func(r *Root) { r.AccountID = strings.ToUpper(testAccount) },
		"an id with a letter":     func(r *Root) { r.AccountID = "x" + testAccount[1:] },
		"a token in use":          func(r *Root) { r.Token = secret },
	} {
		root := good
		change(&root)
		_, err := c.EnsureRoot(t.Context(), root)
		wantError(t, err, ErrInvalid)
		if err != nil && root.Token != "" && strings.Contains(err.Error(), root.Token) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
	if g, err := c.Authenticate(t.Context(), secret); err != nil || g.Token.ID != token.ID {
		t.Errorf("the token in use is now %+v (%v)", g.Token, err)
	}
	if _, err := c.Authenticate(t.Context(), good.Token); err != nil {
		t.Errorf("the root token is no longer valid: %v", err)
	}
	for _, n := range []int{MinSecretChars, MaxSecretChars} {
		root := good
		root.Token = strings.Repeat("x", n)
		if _, err := c.EnsureRoot(t.Context(), root); err != nil {
			t.Errorf("a token of %d characters: %v", n, err)
		}
		if _, err := c.Authenticate(t.Context(), root.Token); err != nil {
			t.Errorf("a token of %d characters: %v", n, err)
		}
	}
}

func TestAccountNotFound(t *testing.T) {
	c, _ := newCatalog(t)
	const unknown = "ffffffffffffffffffffffffffffffff"
	_, err := c.Account(t.Context(), unknown)
	wantError(t, err, ErrNotFound)
	_, err = c.CreateNamespace(t.Context(), unknown, "a", "", 0)
	wantError(t, err, ErrNotFound)
	_, _, err = c.Namespaces(t.Context(), unknown, NamespaceQuery{})
	wantError(t, err, ErrNotFound)
	_, err = c.Tokens(t.Context(), unknown)
	wantError(t, err, ErrNotFound)
	_, _, err = c.CreateToken(t.Context(), Token{AccountID: unknown, Name: "t", Scopes: []Scope{{Permission: Read}}})
	wantError(t, err, ErrNotFound)
}
