package fleet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
	"github.com/nearkey/nearkey/internal/process"
)

// certificates makes a certificate authority and a certificate of this machine by
// it, as files.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	authorityKey, caDER := certificate(t, nil, nil)
	authority, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	ownKey, der := certificate(t, authority, authorityKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	return write("ca.pem", "CERTIFICATE", caDER), write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER)
}

// certificate makes a certificate by an authority, or the authority's own.
func certificate(t *testing.T, authority *x509.Certificate, authorityKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "nearkey test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if authority == nil {
		template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		authority, authorityKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority, &key.PublicKey, authorityKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// TestSecure: a fleet whose processes know each other by their certificates, and
// an API behind one. All of it is TLS 1.3 with the hybrid key exchange.
func TestSecure(t *testing.T) {
	ca, cert, key := certificates(t)
	wire, api, public, dir := freeAddress(t), freeAddress(t), freeAddress(t), t.TempDir()
	trusting := []string{"SSL_CERT_FILE=" + ca} // an edge forwards to an API with this certificate
	wireTLS := []string{"--fleet-wire-cert", cert, "--fleet-wire-key", key, "--fleet-wire-ca", ca, "--tls-cert", cert, "--tls-key", key}
	start(t, trusting, append([]string{"serve", "--data", dir, "--listen", api, "--fleet-role", "central", "--fleet-wire-listen", wire}, wireTLS...)...)
	start(t, trusting, append([]string{"serve", "--listen", public, "--fleet-role", "edge", "--fleet-far", "https://" + wire, "--fleet-api-far", "https://" + api}, wireTLS...)...)

	f := &fleet{}
	f.add("edge", public)
	e := f.edges[0]
	pool, pair := x509.NewCertPool(), certificatePair(t, cert, key)
	authority, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(authority) {
		t.Fatal(err)
	}
	e.url = "https://" + public
	e.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: false}
	nearkeytest.Eventually(t, "the edge is ready", e.ready)
	f.credentials(t, dir)
	s := e.createSpace(t, "first")
	e.put(t, s, "key", "value")
	e.warm(t, s, "key", "value")

	for name, c := range map[string]struct {
		address string
		config  *tls.Config
	}{
		"the API of the edge":   {public, &tls.Config{RootCAs: pool}},
		"the API of the centre": {api, &tls.Config{RootCAs: pool}},
		"the wire":              {wire, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}},
	} {
		conn, err := tls.Dial("tcp", c.address, c.config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		state := conn.ConnectionState()
		if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("%s: %s with %s", name, tls.VersionName(state.Version), state.CurveID)
		}
		_ = conn.Close()
	}
	// The control: the wire knows nobody without a certificate.
	stranger := &edge{fleet: f, name: "stranger", url: "https://" + wire, http: http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
	if a, err := stranger.ask(f.token, "POST", "/wire/v1/get", []byte{}); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a caller without a certificate: %v, %v", a, err)
	}
}

func certificatePair(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestSocket: a fleet over a unix socket that only its owner can use, and that a
// killed process leaves behind.
func TestSocket(t *testing.T) {
	l := newLone(t)
	socket := filepath.Join(l.dir, "wire.sock")
	central := func() *process.Program {
		return l.serve(t, "central", l.api, "--data", filepath.Join(l.dir, "data"), "--fleet-wire-listen", "unix://"+socket)
	}
	first := central()
	l.serve(t, "edge", l.public, "--fleet-far", "unix://"+socket, "--fleet-api-far", "http://"+l.api)
	e := l.edges[0]
	nearkeytest.Eventually(t, "the edge is ready", e.ready)
	l.credentials(t, filepath.Join(l.dir, "data"))
	s := e.createSpace(t, "first")
	e.put(t, s, "key", "1")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	first.Kill()
	central()
	recovers(t, l.fleet, s, "after the centre was killed")
	if err := e.reads(s, "key", "1"); err != nil {
		t.Error(err)
	}
	// A wrong secret opens nothing.
	secret := filepath.Join(l.dir, "secret of another fleet")
	if err := os.WriteFile(secret, []byte(strings.Repeat("x", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	start(t, nil, "serve", "--listen", address, "--fleet-role", "edge", "--fleet-secret-file", secret, "--fleet-far", "unix://"+socket, "--fleet-api-far", "http://"+l.api)
	stranger := &edge{fleet: l.fleet, name: "stranger", url: "http://" + address}
	nearkeytest.Eventually(t, "the stranger answers", func() error { return statusOf(stranger, "", "GET", "/readyz", http.StatusServiceUnavailable) })
	if err := statusOf(stranger, l.token, "GET", l.valuePath(s, "key"), http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
}
