package websocket

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A HandshakeError is why a request does not become a connection, or what a
// server answered instead. Of a server's answer Body is the begin.
type HandshakeError struct {
	Status int
	Text   string
	Body   []byte
}

func (e *HandshakeError) Error() string { return e.Text }

func refused(status int, format string, args ...any) error {
	return &HandshakeError{Status: status, Text: fmt.Sprintf(format, args...)}
}

const version = "13"

// Upgrade makes a connection of a request that asks for one and speaks the
// protocol, and tells the client. If it does not, nothing was answered and the
// error is a *HandshakeError.
func Upgrade(w http.ResponseWriter, r *http.Request, protocol string, opts Options) (*Conn, error) {
	key := r.Header.Get("Sec-WebSocket-Key")
	random, err := base64.StdEncoding.DecodeString(key)
	switch {
	case r.Method != http.MethodGet || !listed(r.Header, "Connection", "upgrade") || !listed(r.Header, "Upgrade", "websocket"):
		return nil, refused(http.StatusUpgradeRequired, "this is the address of a WebSocket")
	case r.Header.Get("Sec-WebSocket-Version") != version:
		return nil, refused(http.StatusUpgradeRequired, "the version of the WebSocket protocol is not %s", version)
	case err != nil || len(random) != 16:
		return nil, refused(http.StatusBadRequest, "Sec-WebSocket-Key is not what it must be")
	case !slices.Contains(values(r.Header, "Sec-WebSocket-Protocol"), protocol):
		return nil, refused(http.StatusBadRequest, "the WebSocket must speak the protocol %s", protocol)
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2
		return nil, refused(http.StatusHTTPVersionNotSupported, "a WebSocket needs HTTP/1.1")
	}
	_ = conn.SetDeadline(time.Time{}) // those of HTTP
	c := newConn(conn, buffered.Reader, false, opts)
	head := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		accept(key) + "\r\nSec-WebSocket-Protocol: " + protocol + "\r\n\r\n"
	_ = conn.SetWriteDeadline(time.Now().Add(c.opts.Stall))
	if _, err := io.WriteString(conn, head); err != nil {
		return nil, errors.Join(fmt.Errorf("answer the handshake: %w", err), c.Close())
	}
	_ = conn.SetWriteDeadline(time.Time{})
	return c, nil
}

// Dial opens a connection to a URL of scheme http or https.
func Dial(ctx context.Context, client *http.Client, url string, head http.Header, protocol string, opts Options) (*Conn, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("open a WebSocket: %w", err)
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	key := base64.StdEncoding.EncodeToString(random)
	if head != nil {
		r.Header = head.Clone()
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Sec-WebSocket-Version", version)
	r.Header.Set("Sec-WebSocket-Key", key)
	r.Header.Set("Sec-WebSocket-Protocol", protocol)
	res, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("open a WebSocket: %w", err)
	}
	stream, ok := res.Body.(io.ReadWriteCloser)
	if res.StatusCode != http.StatusSwitchingProtocols || !ok {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		_ = res.Body.Close()
		return nil, &HandshakeError{res.StatusCode, "the server answered " + res.Status, body}
	}
	if res.Header.Get("Sec-WebSocket-Accept") != accept(key) || res.Header.Get("Sec-WebSocket-Protocol") != protocol {
		_ = stream.Close()
		return nil, &HandshakeError{Status: res.StatusCode, Text: "the server does not speak " + protocol}
	}
	return newConn(stream, bufio.NewReader(stream), true, opts), nil
}

// accept is the server's proof that it has understood: RFC 6455 says SHA-1.
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// values are those of a header that lists them with commas.
func values(h http.Header, name string) (all []string) {
	for _, line := range h.Values(name) {
		for value := range strings.SplitSeq(line, ",") {
			all = append(all, strings.TrimSpace(value))
		}
	}
	return all
}

func listed(h http.Header, name, value string) bool {
	return slices.ContainsFunc(values(h, name), func(v string) bool { return strings.EqualFold(v, value) })
}
