package wire_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/store/memory"
	"github.com/nearkey/nearkey/wire"
)

// authority signs certificates for tests and writes them to files.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, "ca", true)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue writes NAME.pem and NAME.key.
func (a *authority) issue(t *testing.T, name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	parent, signer := a.cert, a.key
	if ca {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// serveTLS serves a store and tells each connection's state.
func serveTLS(t *testing.T, config *tls.Config, c wire.HandlerConfig) (url string, states <-chan tls.ConnectionState) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan tls.ConnectionState, 100)
	handler := wire.NewHandler(c)
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- *r.TLS
		handler.ServeHTTP(w, r)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tls.NewListener(l, config)) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return "https://" + l.Addr().String(), seen
}

func TestTLSIsHybridPostQuantum(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "server", false)
	server, err := wire.ServerTLS(a.file("server.pem"), a.file("server.key"), "")
	if err != nil {
		t.Fatal(err)
	}
	url, states := serveTLS(t, server, wire.HandlerConfig{Store: memory.New(), Secret: secret})
	client, err := wire.ClientTLS(a.file("ca.pem"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := dial(t, wire.ClientConfig{URL: url, TLS: client}).Put(t.Context(), k, record(1)); err != nil {
		t.Fatal(err)
	}
	if s := <-states; s.CurveID != tls.X25519MLKEM768 || s.Version != tls.VersionTLS13 {
		t.Errorf("negotiated %s with key exchange %s", tls.VersionName(s.Version), s.CurveID)
	}
	old := client.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := dial(t, wire.ClientConfig{URL: url, TLS: old}).Get(t.Context(), k, 0); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	if _, err := dial(t, wire.ClientConfig{URL: url}).Get(t.Context(), k, 0); !errors.Is(err, kv.ErrUnavailable) {
		t.Errorf("a certificate of an unknown authority: %v", err)
	}
}

func TestMutualTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	a.issue(t, "server", false)
	a.issue(t, "edge", false)
	other.issue(t, "edge", false)
	server, err := wire.ServerTLS(a.file("server.pem"), a.file("server.key"), a.file("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	url, _ := serveTLS(t, server, wire.HandlerConfig{Store: memory.New()}) // no secret: certificates alone
	for name, c := range map[string]struct {
		cert, key string
		good      bool
	}{
		"the authority's": {a.file("edge.pem"), a.file("edge.key"), true},
		"another's":       {other.file("edge.pem"), other.file("edge.key"), false},
		"none":            {"", "", false},
	} {
		config, err := wire.ClientTLS(a.file("ca.pem"), c.cert, c.key)
		if err != nil {
			t.Fatal(err)
		}
		client := wire.NewClient(wire.ClientConfig{URL: url, TLS: config})
		if err := client.Put(t.Context(), k, record(1)); (err == nil) != c.good {
			t.Errorf("a certificate of %s: %v", name, err)
		}
		client.Close()
	}
}

func TestFilesOfTLSAreChecked(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "server", false)
	if err := os.WriteFile(a.file("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ServerTLS(a.file("none"), a.file("server.key"), ""); err == nil {
		t.Error("a certificate that is not there")
	}
	if _, err := wire.ServerTLS(a.file("server.pem"), a.file("server.key"), a.file("empty")); err == nil {
		t.Error("an authority without a certificate")
	}
	if _, err := wire.ClientTLS(a.file("none"), "", ""); err == nil {
		t.Error("an authority that is not there")
	}
	if _, err := wire.ClientTLS("", a.file("server.pem"), ""); err == nil {
		t.Error("a certificate without its key")
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"least":     {strings.Repeat("s", wire.MinSecretBytes), 0o600, strings.Repeat("s", wire.MinSecretBytes)},
		"spaced":    {"  " + strings.Repeat("s", 20) + "\n", 0o440, strings.Repeat("s", 20)},
		"most":      {strings.Repeat("s", wire.MaxSecretBytes), 0o600, strings.Repeat("s", wire.MaxSecretBytes)},
		"too short": {strings.Repeat("s", wire.MinSecretBytes-1), 0o600, ""},
		"too long":  {strings.Repeat("s", wire.MaxSecretBytes+1), 0o600, ""},
		"empty":     {"", 0o600, ""},
		"readable":  {strings.Repeat("s", 20), 0o604, ""},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := wire.ReadSecret(path)
		if string(got) != c.want || (err == nil) != (c.want != "") || err != nil && strings.Contains(err.Error(), "sss") {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := wire.ReadSecret(filepath.Join(dir, "none")); !os.IsNotExist(errors.Unwrap(err)) {
		t.Errorf("a file that is not there: %v", err)
	}
}
