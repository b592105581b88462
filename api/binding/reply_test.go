package binding

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// pair is a connection of a server, as it is while it runs, and its client.
func pair(t *testing.T) (*conn, net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	_ = client.SetDeadline(time.Now().Add(nearkeytest.Patience))
	c := &conn{server: New(Config{}), net: server, buf: make([]byte, firstBytes)}
	c.reply.begin(c)
	c.state.Store(busy)
	return c, client
}

// A connection whose answer is not written yet is not idle: Shutdown would close it.
// Once it is written it is, and the next read gets what comes then.
func TestReplyIsWrittenBeforeIdle(t *testing.T) {
	c, client := pair(t)
	answer := []byte("answer")
	if !c.reply.take(answer) {
		t.Fatal("it is not taken")
	}
	c.beIdle()
	if c.state.Load() == idle {
		t.Fatal("idle before its answer is written")
	}
	got := make(chan error, 1)
	into := make([]byte, 10)
	n := 0
	go func() {
		var err error
		n, err = c.read(into)
		got <- err
	}()
	if _, err := io.ReadFull(client, make([]byte, len(answer))); err != nil {
		t.Fatal(err)
	}
	nearkeytest.Until(t, "it is idle", func() bool { return c.state.Load() == idle })
	if _, err := client.Write([]byte("next")); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil || string(into[:n]) != "next" {
		t.Fatalf("%q, %v", into[:n], err)
	}
}

// A server that began to close in between ends the connection when all is written.
func TestReplyOfAClosingServer(t *testing.T) {
	c, client := pair(t)
	c.server.closing.Store(true)
	c.reply.take([]byte("answer"))
	if _, err := c.read(make([]byte, 10)); err == nil {
		t.Fatal("it goes on reading")
	}
	if _, err := io.ReadFull(client, make([]byte, len("answer"))); err != nil {
		t.Fatal(err)
	}
}

// An answer that the socket has no room for is written as others are, and a peer that
// is gone is an error.
func TestReplyWithoutRoom(t *testing.T) {
	c, client := pair(t)
	filler := bytes.Repeat([]byte("x"), 1<<20)
	wrote := make(chan int, 1)
	go func() {
		_ = c.net.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, _ := c.net.Write(filler) // until there is no more room
		_ = c.net.SetWriteDeadline(time.Time{})
		wrote <- n
	}()
	before := <-wrote
	c.reply.take(bytes.Repeat([]byte("y"), maxReply))
	read := make(chan error, 1)
	go func() {
		_, err := c.read(make([]byte, 10))
		read <- err
	}()
	got := make([]byte, before+maxReply)
	if _, err := io.ReadFull(client, got); err != nil || bytes.Count(got, []byte("y")) != maxReply {
		t.Fatalf("%d of %d: %v", bytes.Count(got, []byte("y")), maxReply, err)
	}
	_ = client.Close()
	if err := <-read; err == nil {
		t.Fatal("the peer is gone, and that is no error")
	}
	c.reply.take([]byte("answer"))
	if _, err := c.read(make([]byte, 10)); err == nil {
		t.Fatal("written to a peer that is gone")
	}
}

// An answer at the limit waits, one past it does not.
func TestReplyLimit(t *testing.T) {
	c, _ := pair(t)
	if c.reply.take(make([]byte, maxReply+1)) {
		t.Error("one past the limit waits")
	}
	if !c.reply.take(make([]byte, maxReply)) {
		t.Error("at the limit it does not wait")
	}
}
