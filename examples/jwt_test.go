package examples_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// claims are what a token says, and its header.
type claims map[string]any

func (c claims) with(name string, value any) claims {
	c = maps.Clone(c)
	c[name] = value
	return c
}

func (c claims) without(name string) claims {
	c = maps.Clone(c)
	delete(c, name)
	return c
}

// ada are good claims.
func ada() claims {
	now := time.Now().Unix()
	return claims{"iss": "https://accounts.example", "aud": "https://data.example", "sub": "ada", "exp": now + 600, "nbf": now, "iat": now}
}

// seal is a token with a header, claims, and the signature that sign makes of them.
func seal(t *testing.T, header, payload claims, sign func(text []byte) []byte) string {
	t.Helper()
	var parts []string
	for _, part := range []claims{header, payload} {
		text, err := json.Marshal(part)
		check(t, err)
		parts = append(parts, b64(text))
	}
	text := strings.Join(parts, ".")
	return text + "." + b64(sign([]byte(text)))
}

// jwtKeys are the keys of those who sign.
type jwtKeys struct {
	rsa   *rsa.PrivateKey
	ecdsa *ecdsa.PrivateKey
	other *ecdsa.PrivateKey // nobody knows it
}

func newJWTKeys(t *testing.T) (k jwtKeys) {
	t.Helper()
	var err error
	k.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	k.ecdsa, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	k.other, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return k
}

func signRSA(t *testing.T, key *rsa.PrivateKey) func([]byte) []byte {
	return func(text []byte) []byte {
		hash := sha256.Sum256(text)
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, hash[:])
		check(t, err)
		return signature
	}
}

func signECDSA(t *testing.T, key *ecdsa.PrivateKey) func([]byte) []byte {
	return func(text []byte) []byte {
		hash := sha256.Sum256(text)
		r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
		check(t, err)
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

func signHMAC(secret []byte) func([]byte) []byte {
	return func(text []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(text)
		return mac.Sum(nil)
	}
}

func publicRSA(kid string, key *rsa.PrivateKey) claims {
	return claims{"kty": "RSA", "kid": kid, "alg": "RS256", "use": "sig", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())}
}

func publicECDSA(t *testing.T, kid string, key *ecdsa.PrivateKey) claims {
	t.Helper()
	point, err := key.PublicKey.Bytes() // 4, x, y
	check(t, err)
	return claims{"kty": "EC", "crv": "P-256", "kid": kid, "x": b64(point[1:33]), "y": b64(point[33:])}
}

// dataAPI is the API behind the Worker.
type dataAPI struct {
	site
	p *project
}

// publish gives the Worker these keys.
func (d dataAPI) publish(t *testing.T, keys ...claims) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	check(t, err)
	d.p.nearkey(t, "kv", "put", "jwt-keys", "jwks", string(text))
}

// allowed complains unless a token is good.
func (d dataAPI) allowed(t *testing.T, token string) error {
	a := d.get(t, "/", "Authorization: Bearer "+token)
	if a.status != http.StatusOK || string(a.body) != "hello ada" {
		return fmt.Errorf("status %d: %s", a.status, a.body)
	}
	return nil
}

// refused complains unless a token is refused for this reason.
func (d dataAPI) refused(t *testing.T, token, reason string) error {
	a := d.get(t, "/", "Authorization: Bearer "+token)
	if a.status != http.StatusUnauthorized || !strings.Contains(string(a.body), reason) {
		return fmt.Errorf("status %d, want %d because %q: %s", a.status, http.StatusUnauthorized, reason, a.body)
	}
	return nil
}

// TestJWT: good tokens of known keys are let in, and no others.
func TestJWT(t *testing.T) {
	t.Parallel()
	playOrigin(t, "data.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, "hello "+strings.Join(r.Header.Values("X-User"), ", "))
	}))
	data := dataAPI{"http://data.example", deploy(t, "jwt")}
	keys := newJWTKeys(t)
	rs, es := claims{"alg": "RS256", "kid": "r1", "typ": "JWT"}, claims{"alg": "ES256", "kid": "e1"}
	byRSA, byECDSA := seal(t, rs, ada(), signRSA(t, keys.rsa)), seal(t, es, ada(), signECDSA(t, keys.ecdsa))

	check(t, data.refused(t, byRSA, "the key is unknown")) // there is none yet
	data.publish(t, publicRSA("r1", keys.rsa), publicECDSA(t, "e1", keys.ecdsa))
	nearkeytest.Eventually(t, "the keys are known", func() error { return data.allowed(t, byRSA) })
	check(t, data.allowed(t, byECDSA))
	data.get(t, "/", "Authorization: bearer "+byECDSA, "X-User: root").want(t, http.StatusOK, "hello ada")
	for _, header := range []string{"X: y", "Authorization: Basic YTpi", "Authorization: Bearer", "X-Token: " + byRSA} {
		data.get(t, "/?token="+byRSA, header).want(t, http.StatusUnauthorized, "needed").wantHeader(t, "WWW-Authenticate", `Bearer realm="data"`)
	}
	t.Run("claims", func(t *testing.T) { jwtClaims(t, data, keys) })
	t.Run("attacks", func(t *testing.T) { jwtAttacks(t, data, keys) })
	t.Run("rotation", func(t *testing.T) { jwtRotation(t, data, keys) })
	t.Run("script", func(t *testing.T) { jwtScript(t, data) })
}

// jwtClaims: what a well-signed token must say.
func jwtClaims(t *testing.T, data dataAPI, keys jwtKeys) {
	now := time.Now().Unix()
	header := claims{"alg": "ES256", "kid": "e1"}
	for what, good := range map[string]claims{
		"one of several audiences":     ada().with("aud", []string{"x", "https://data.example"}),
		"neither nbf nor iat":          ada().without("nbf").without("iat"),
		"a clock that is a bit behind": ada().with("exp", now-5),
		"a clock that is a bit ahead":  ada().with("nbf", now+5).with("iat", now+5),
		"more":                         ada().with("scope", "all"),
	} {
		if err := data.allowed(t, seal(t, header, good, signECDSA(t, keys.ecdsa))); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, bad := range map[string]struct {
		payload claims
		reason  string
	}{
		"expired":           {ada().with("exp", now-60), "expired"},
		"no exp":            {ada().without("exp"), "expired"},
		"exp in words":      {ada().with("exp", "9999999999"), "expired"},
		"exp null":          {ada().with("exp", nil), "expired"},
		"not yet":           {ada().with("nbf", now+120), "not good yet"},
		"nbf in words":      {ada().with("nbf", "0"), "not good yet"},
		"of the future":     {ada().with("iat", now+120), "not good yet"},
		"other audience":    {ada().with("aud", "https://other.example"), "for somebody else"},
		"part of it":        {ada().with("aud", "https://data.example.evil.example"), "for somebody else"},
		"no audience":       {ada().without("aud"), "for somebody else"},
		"nested audience":   {ada().with("aud", [][]string{{"https://data.example"}}), "for somebody else"},
		"other issuer":      {ada().with("iss", "https://accounts.example/"), "somebody else's"},
		"no issuer":         {ada().without("iss"), "somebody else's"},
		"nobody":            {ada().without("sub"), "nobody's"},
		"a number":          {ada().with("sub", 1), "nobody's"},
		"lines in a header": {ada().with("sub", "ada\r\nX-Admin: yes"), "nobody's"},
	} {
		if err := data.refused(t, seal(t, header, bad.payload, signECDSA(t, keys.ecdsa)), bad.reason); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// jwtAttacks are tokens that nobody signed who may.
func jwtAttacks(t *testing.T, data dataAPI, keys jwtKeys) {
	der, err := x509.MarshalPKIXPublicKey(&keys.rsa.PublicKey)
	check(t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk, err := json.Marshal(publicRSA("r1", keys.rsa))
	check(t, err)
	nothing := func([]byte) []byte { return nil }
	byRSA, byECDSA, byOther := signRSA(t, keys.rsa), signECDSA(t, keys.ecdsa), signECDSA(t, keys.other)
	good := seal(t, claims{"alg": "RS256", "kid": "r1"}, ada(), byRSA)
	parts := strings.Split(good, ".")
	root, err := json.Marshal(ada().with("sub", "root"))
	check(t, err)
	inDER := func(text []byte) []byte {
		hash := sha256.Sum256(text)
		signature, err := ecdsa.SignASN1(rand.Reader, keys.ecdsa, hash[:])
		check(t, err)
		return signature
	}
	header := func(alg, kid string) claims { return claims{"alg": alg, "kid": kid} }
	const notAllowed, notSigned, unknown, noToken = "not allowed", "signature is not good", "key is unknown", "no token"
	for what, attack := range map[string]struct{ token, reason string }{
		"alg none":                        {seal(t, header("none", "r1"), ada(), nothing), notAllowed},
		"alg None":                        {seal(t, header("None", "r1"), ada(), nothing), notAllowed},
		"alg none with a signature":       {seal(t, header("none", "r1"), ada(), byRSA), notAllowed},
		"no alg":                          {seal(t, claims{"kid": "r1"}, ada(), byRSA), notAllowed},
		"alg of all objects":              {seal(t, header("constructor", "r1"), ada(), byRSA), notAllowed},
		"a list of algs":                  {seal(t, claims{"alg": []string{"RS256", "none"}, "kid": "r1"}, ada(), nothing), notAllowed},
		"HS256 with the public key (PEM)": {seal(t, header("HS256", "r1"), ada(), signHMAC(public)), notAllowed},
		"HS256 with the public key (DER)": {seal(t, header("HS256", "r1"), ada(), signHMAC(der)), notAllowed},
		"HS256 with the public key (JWK)": {seal(t, header("HS256", "r1"), ada(), signHMAC(jwk)), notAllowed},
		"HS256 with the modulus":          {seal(t, header("HS256", "r1"), ada(), signHMAC(keys.rsa.N.Bytes())), notAllowed},
		"HS256 called RS256":              {seal(t, header("RS256", "r1"), ada(), signHMAC(public)), notSigned},
		"the key's own alg is not asked":  {seal(t, header("RS384", "r1"), ada(), byRSA), notAllowed},
		"the wrong key's kid":             {seal(t, header("ES256", "r1"), ada(), byECDSA), "for something else"},
		"the other wrong key's kid":       {seal(t, header("RS256", "e1"), ada(), byRSA), "for something else"},
		"an unknown kid":                  {seal(t, header("ES256", "e2"), ada(), byECDSA), unknown},
		"no kid":                          {seal(t, claims{"alg": "ES256"}, ada(), byECDSA), unknown},
		"a kid that is a path":            {seal(t, header("ES256", "../../dev/null"), ada(), byOther), unknown},
		"another key under a known kid":   {seal(t, header("ES256", "e1"), ada(), byOther), notSigned},
		"a key in the token": {
			seal(t, header("ES256", "e1").with("jwk", publicECDSA(t, "e1", keys.other)), ada(), byOther), notSigned,
		},
		"a key elsewhere":            {seal(t, header("ES256", "mine").with("jku", "https://evil.example/jwks"), ada(), byOther), unknown},
		"a demand":                   {seal(t, header("ES256", "e1").with("crit", []string{"b64"}), ada(), byECDSA), "demands"},
		"another kind of token":      {seal(t, header("ES256", "e1").with("typ", "logout+jwt"), ada(), byECDSA), "something else"},
		"a signature of zeros":       {seal(t, header("ES256", "e1"), ada(), func([]byte) []byte { return make([]byte, 64) }), notSigned},
		"a signature in DER":         {seal(t, header("ES256", "e1"), ada(), inDER), notSigned},
		"no signature":               {parts[0] + "." + parts[1] + ".", notSigned},
		"two parts":                  {parts[0] + "." + parts[1], noToken},
		"four parts":                 {good + "." + parts[2], noToken},
		"other claims":               {parts[0] + "." + b64(root) + "." + parts[2], notSigned},
		"half a signature":           {good[:len(good)-102], notSigned},
		"another way to write it":    {good[:len(good)-1] + string(good[len(good)-1]+1), noToken},
		"a character more":           {parts[0] + "." + parts[1] + "-." + parts[2], ""},
		"a header that is no object": {b64([]byte("null")) + "." + parts[1] + "." + parts[2], noToken},
		"a header that is a list":    {b64([]byte(`["RS256"]`)) + "." + parts[1] + "." + parts[2], noToken},
		"claims that are a text":     {parts[0] + "." + b64([]byte(`"root"`)) + "." + parts[2], noToken},
		"bytes that are no text":     {parts[0] + "." + b64([]byte("{\"sub\":\"\xff\"}")) + "." + parts[2], noToken},
		"too long":                   {seal(t, header("ES256", "e1"), ada().with("x", strings.Repeat("x", 8<<10)), byECDSA), noToken},
	} {
		if err := data.refused(t, attack.token, attack.reason); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	check(t, data.allowed(t, good))
}

// jwtRotation: keys come and go while the Worker runs.
func jwtRotation(t *testing.T, data dataAPI, keys jwtKeys) {
	first, second := publicRSA("r1", keys.rsa), publicECDSA(t, "e2", keys.other)
	older := seal(t, claims{"alg": "RS256", "kid": "r1"}, ada(), signRSA(t, keys.rsa))
	newer := seal(t, claims{"alg": "ES256", "kid": "e2"}, ada(), signECDSA(t, keys.other))
	check(t, data.refused(t, newer, "key is unknown"))
	data.publish(t, first, second)
	nearkeytest.Eventually(t, "the new key is known", func() error { return data.allowed(t, newer) })
	check(t, data.allowed(t, older))
	data.publish(t, second)
	nearkeytest.Eventually(t, "the old key is not", func() error { return data.refused(t, older, "key is unknown") })
	check(t, data.allowed(t, newer))

	// Keys that are not for this, weak ones, and two of one name.
	weak := publicRSA("r1", keys.rsa).with("n", b64(bytes.Repeat([]byte{0xc5}, 255)))
	for _, step := range []struct {
		reason string
		keys   []claims
	}{
		{"for something else", []claims{first.with("use", "enc")}},
		{"key is unknown", []claims{first, first}},
		{"for something else", []claims{first.with("alg", "PS256")}},
		{"too weak", []claims{weak}},
		{"key is unknown", nil},
	} {
		data.publish(t, step.keys...)
		nearkeytest.Eventually(t, "it is refused: "+step.reason, func() error { return data.refused(t, older, step.reason) })
	}
	data.publish(t, first.without("alg").without("use"))
	nearkeytest.Eventually(t, "a key that says little is known", func() error { return data.allowed(t, older) })
}

// jwtScript does what the README says.
func jwtScript(t *testing.T, data dataAPI) {
	node := func(args ...string) string {
		return data.p.command(t, "node", append([]string{"keys.mjs"}, args...)...)
	}
	tokens := map[string]string{}
	for kid, alg := range map[string]string{"2026-01": "ES256", "2026-02": "RS256"} {
		node("create", kid, alg)
		tokens[kid] = node("sign", kid, `{"sub": "ada"}`)
	}
	if _, err := data.p.try(t.Context(), "node", "keys.mjs", "create", "2026-01", "ES256"); err == nil {
		t.Error("a key was written over another one")
	}
	data.p.nearkey(t, "kv", "put", "jwt-keys", "jwks", "--path", "jwks.json")
	for kid, token := range tokens {
		nearkeytest.Eventually(t, kid+" is known", func() error { return data.allowed(t, token) })
	}
	node("retire", "2026-01")
	data.p.nearkey(t, "kv", "put", "jwt-keys", "jwks", "--path", "jwks.json")
	nearkeytest.Eventually(t, "the key is retired", func() error { return data.refused(t, tokens["2026-01"], "key is unknown") })
	check(t, data.allowed(t, tokens["2026-02"]))
}
