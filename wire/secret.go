package wire

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
)

// Bounds of a shared secret.
const (
	MinSecretBytes = 16
	MaxSecretBytes = 1024
)

// ReadSecret reads a shared secret from a file that others cannot read. Space
// around it is not part of it.
func ReadSecret(path string) (secret []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the shared secret: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the shared secret: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("the shared secret %s has mode %#o: others must have no right to it (chmod o= FILE)", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxSecretBytes+64))
	if err != nil {
		return nil, fmt.Errorf("read the shared secret: %w", err)
	}
	secret = bytes.TrimSpace(text)
	if len(secret) < MinSecretBytes || len(secret) > MaxSecretBytes {
		return nil, fmt.Errorf("the shared secret %s has %d bytes; it must have %d to %d", path, len(secret), MinSecretBytes, MaxSecretBytes)
	}
	return secret, nil
}

// ServerTLS returns the configuration of a listener from PEM files: TLS 1.3
// alone, with the key exchanges that Go prefers, the hybrid post-quantum
// X25519MLKEM768 first. With clientCA every caller must show a certificate of
// that authority.
func ServerTLS(certFile, keyFile, clientCA string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate of the listener: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if clientCA != "" {
		if c.ClientCAs, err = authority(clientCA); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// ClientTLS returns the configuration of a caller from PEM files: TLS 1.3 alone.
// serverCA is the authority of the certificate that the other side must show;
// empty: those that the system knows. certFile and keyFile are the caller's own
// certificate; empty: none.
func ClientTLS(serverCA, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if serverCA != "" {
		roots, err := authority(serverCA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = roots
	}
	if certFile != "" || keyFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("load the certificate of this process: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

func authority(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read a certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read a certificate authority: %s holds no certificate in PEM", file)
	}
	return pool, nil
}
