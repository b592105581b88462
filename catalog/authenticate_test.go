package catalog

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNewSecret(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := NewSecret()
		if err := checkSecret("secret", s); len(s) != 40 || err != nil || seen[s] {
			t.Fatalf("secret %q: %v", s, err)
		}
		seen[s] = true
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	c, _ := newCatalog(t)
	_, secret := createToken(t, c, Scope{Permission: Read})
	for _, wrong := range []string{
		"", "x", NewSecret(), secret[:39], secret + "x", strings.ToUpper(secret), " " + secret,
		strings.Repeat("x", MaxSecretChars), strings.Repeat("x", MaxSecretChars+1), strings.Repeat("x", 1<<20),
		testRoot().Key, "' or 1 = 1 --",
	} {
		g, err := c.Authenticate(t.Context(), wrong)
		wantError(t, err, ErrUnauthenticated)
		if err != nil && wrong != "" && len(wrong) > 1 && strings.Contains(err.Error(), wrong) {
			t.Errorf("the error shows the token: %v", err)
		}
		if g.Token.ID != "" || len(g.Scopes) != 0 {
			t.Errorf("grant %+v for a wrong token", g)
		}
	}
	if n := len(c.tokens.entries); n != 0 {
		t.Errorf("%d wrong tokens are kept in memory", n)
	}
}

// A secret that is longer than what is hashed must not match its beginning.
func TestLongSecretIsNotCutOff(t *testing.T) {
	c, _ := newCatalog(t)
	root := testRoot()
	root.Token = strings.Repeat("t", MaxSecretChars)
	root.Key = strings.Repeat("k", MaxSecretChars)
	if _, err := c.EnsureRoot(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	_, err := c.Authenticate(t.Context(), root.Token+"t")
	wantError(t, err, ErrUnauthenticated)
	_, err = c.AuthenticateKey(t.Context(), root.Email, root.Key+"k")
	wantError(t, err, ErrUnauthenticated)
}

func TestTokenTimes(t *testing.T) {
	c, _ := newCatalog(t)
	start := time.Now().Truncate(time.Microsecond)
	c.at(start)
	_, secret, err := c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "t", Scopes: []Scope{{Permission: Read}},
		NotBefore: start.Add(time.Second), Expires: start.Add(3 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	// All within CacheFor: the cached grant must obey its times too.
	for _, step := range []struct {
		after time.Duration
		want  error
	}{
		{0, ErrTokenNotYetValid},
		{time.Second - 1, ErrTokenNotYetValid},
		{time.Second, nil},
		{3*time.Second - 1, nil},
		{3 * time.Second, ErrTokenExpired},
		{time.Hour, ErrTokenExpired},
	} {
		c.at(start.Add(step.after))
		g, err := c.Authenticate(t.Context(), secret)
		if !errors.Is(err, step.want) || step.want != nil && !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("after %s: error %v, want %v", step.after, err, step.want)
		}
		if g.SeesAccount(testAccount) != (step.want == nil) {
			t.Errorf("after %s: grant %+v", step.after, g)
		}
	}
}

func TestAuthenticateKey(t *testing.T) {
	c, _ := newCatalog(t)
	root := testRoot()
	for range 2 { // from the database, then from memory
		for _, email := range []string{root.Email, strings.ToUpper(root.Email)} {
			g, err := c.AuthenticateKey(t.Context(), email, root.Key)
			if err != nil || !g.Account(testAccount, Write) || g.User.Email != root.Email || len(g.User.ID) != 32 || g.Token.ID != "" {
				t.Errorf("grant %+v (%v), want every right", g, err)
			}
		}
		for _, wrong := range [][2]string{
			{root.Email, ""}, {"", root.Key}, {root.Email, root.Token}, {"x" + root.Email, root.Key},
			{root.Email, root.Key + "x"}, {root.Email, NewSecret()}, {root.Email, strings.Repeat("x", MaxSecretChars+1)},
		} {
			g, err := c.AuthenticateKey(t.Context(), wrong[0], wrong[1])
			wantError(t, err, ErrUnauthenticated)
			if g.SeesAccount(testAccount) {
				t.Errorf("grant %+v for a wrong key", g)
			}
		}
	}
}

func TestUseByManyAtOnce(t *testing.T) {
	c, path := newCatalog(t)
	other := openAt(t, path)
	_, secret := createToken(t, c, Scope{Permission: Write})
	kept := createNamespace(t, c, "kept")
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			c := []*Catalog{c, other}[worker%2]
			for i := range 5 {
				if _, err := c.Authenticate(t.Context(), secret); err != nil {
					t.Error(err)
				}
				if _, err := c.Namespace(t.Context(), testAccount, kept.ID); err != nil {
					t.Error(err)
				}
				n, err := c.CreateNamespace(t.Context(), testAccount, strings.Repeat("x", 8*worker+i+1), "", 0)
				if err != nil {
					t.Error(err)
					return
				}
				token, _, err := c.CreateToken(t.Context(), Token{AccountID: testAccount, Name: "t", Scopes: []Scope{{Permission: Read, Namespace: n.ID}}})
				if err != nil {
					t.Error(err)
				}
				if err := c.RevokeToken(t.Context(), testAccount, token.ID); err != nil {
					t.Error(err)
				}
				if err := c.DeleteNamespace(t.Context(), testAccount, n.ID); err != nil {
					t.Error(err)
				}
				if _, err := c.Tokens(t.Context(), testAccount); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAuthenticate(b *testing.B) {
	c, _ := newCatalog(b)
	_, secret := createToken(b, c, Scope{Permission: Write})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Authenticate(b.Context(), secret); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthenticateUnknown(b *testing.B) {
	c, _ := newCatalog(b)
	secret := NewSecret()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Authenticate(b.Context(), secret); !errors.Is(err, ErrUnauthenticated) {
			b.Fatal(err)
		}
	}
}

func BenchmarkNamespace(b *testing.B) {
	c, _ := newCatalog(b)
	n := createNamespace(b, c, "a")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Namespace(b.Context(), testAccount, n.ID); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCachedAnswersDoNotAllocate(t *testing.T) {
	c, _ := newCatalog(t)
	now := time.Now()
	c.at(now)
	n := createNamespace(t, c, "a")
	ctx, root := t.Context(), testRoot()
	for name, call := range map[string]func() error{
		"Authenticate":    func() error { _, err := c.Authenticate(ctx, root.Token); return err },
		"AuthenticateKey": func() error { _, err := c.AuthenticateKey(ctx, root.Email, root.Key); return err },
		"Namespace":       func() error { _, err := c.Namespace(ctx, testAccount, n.ID); return err },
	} {
		allocs := testing.AllocsPerRun(100, func() {
			if err := call(); err != nil {
				t.Error(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s makes %v allocations", name, allocs)
		}
	}
}
