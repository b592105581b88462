package workerd

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A question of any length is written before its answer is awaited, and the answer
// may come at once, late, in parts, or never.
func TestAsking(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 100, 200 << 10, 4 << 20} { // the last ones fill the kernel's buffer
		question := bytes.Repeat([]byte("q"), size)
		heard := make(chan int, 1)
		go func() {
			n, _ := io.ReadFull(server, make([]byte, size))
			_, _ = io.WriteString(server, "first\n")
			_, _ = io.WriteString(server, "second\n")
			heard <- n
		}()
		c.ask.out = question
		for _, want := range []string{"first\n", "second\n"} {
			if got, err := c.in.ReadString('\n'); err != nil || got != want {
				t.Fatalf("%d bytes: %q %v", size, got, err)
			}
		}
		if n := <-heard; n != size {
			t.Errorf("%d of %d bytes arrived", n, size)
		}
	}
	c.ask.out = []byte("q")
	_ = c.SetDeadline(time.Unix(1, 0))
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("a deadline in the past was not seen")
	}
	_ = c.SetDeadline(time.Time{})
	time.AfterFunc(20*time.Millisecond, func() { _ = server.Close() })
	c.ask.out = []byte("q")
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("the end while it waits was not seen")
	}
	c.ask.out = []byte("q")
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("a write to nobody was not seen")
	}
}

// A log is cut to so many lines a second, and says so.
func TestLineRate(t *testing.T) {
	now, rate := time.Unix(1000, 0), lineRate{}
	for i := range maxLines {
		if ok, dropped := rate.allow(now); !ok || dropped > 0 {
			t.Fatalf("line %d: %v %d", i, ok, dropped)
		}
	}
	for range 7 {
		if ok, _ := rate.allow(now.Add(time.Second - 1)); ok {
			t.Error("one past the limit is allowed")
		}
	}
	if ok, dropped := rate.allow(now.Add(time.Second)); !ok || dropped != 7 {
		t.Errorf("the next second: %v %d", ok, dropped)
	}
	for line, want := range map[string]bool{
		``: false,
		`{"timestamp":"1","level":"info","message":"\"source\":\"x\""}`:      false,
		`{"timestamp":"1","level":"error","source":"a.c++:1","message":"x"}`: true,
		`#
# Fatal JavaScript out of memory`: true,
	} {
		if ofRuntime([]byte(line)) != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}
