package rest

import (
	"io"
	"net/http"
	"time"
)

// How slowly a body may arrive. A client that is slower holds a connection and a
// part of the door, and is cut off.
const (
	bodyStall = 30 * time.Second // longest wait for the next bytes
	bodyGrace = 30 * time.Second // after which the average must reach bodyRate
	bodyRate  = 8 << 10          // bytes a second
)

// What is read and thrown away of a body that was refused, after the answer: a
// client that sends before it reads must find the answer, not a broken pipe.
const (
	drainBytes = 32 << 20
	drainTime  = 10 * time.Second

	// serverDrainBytes is what net/http drains by itself to keep the connection.
	serverDrainBytes = 256 << 10
)

// deadlineStep is how old a deadline may be before it is set anew.
const deadlineStep = time.Second

// body reads the body of a request: no more than it may have, and no slower.
type body struct {
	call    *call
	control *http.ResponseController
	most    int64
	over    func(n int64) error // the answer to a body of n bytes, more than most
	began   time.Time
	set     time.Time // when the deadline was last set
	got     int64
	done    bool // the end was seen
}

func (b *body) begin(c *call) { b.call = c }

// limit says how long the body may be, and refuses one that is known to be longer.
// over is the answer to one of n bytes.
func (b *body) limit(most int64, over func(n int64) error) error {
	b.most, b.over = most, over
	if n := b.length(); n > most {
		return over(n)
	}
	return nil
}

// length is the length that the client announced, -1 if it did not.
func (b *body) length() int64 { return b.call.r.ContentLength }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	if left := b.most - b.got; int64(len(p)) > left+1 {
		p = p[:left+1] // one more than allowed tells that there is more
	}
	b.expect(time.Now())
	n, err := b.call.r.Body.Read(p)
	b.got += int64(n)
	if b.got > b.most {
		return 0, b.over(max(b.got, b.length()))
	}
	if err == io.EOF {
		b.done = true // net/http takes the deadline away
	}
	return n, err
}

// expect sets the time by which the next bytes must have come.
func (b *body) expect(now time.Time) {
	if b.control == nil {
		b.control, b.began = http.NewResponseController(b.call.w), now
	}
	if now.Sub(b.set) < deadlineStep {
		return
	}
	b.set = now
	stalled := now.Add(bodyStall)
	slow := b.began.Add(bodyGrace + time.Duration(b.got)*time.Second/bodyRate)
	if slow.Before(stalled) {
		stalled = slow
	}
	// A writer that knows no deadlines is a test's: there is no client to wait for.
	b.control.SetReadDeadline(stalled)
}

// left reports whether so much of the body has not been read that net/http will
// not keep the connection for it.
func (b *body) left() bool {
	if b.done || b.call.r.Body == nil || b.call.r.Body == http.NoBody {
		return false
	}
	n := b.call.r.ContentLength
	return n < 0 || n-b.got > serverDrainBytes
}

// awaited reports whether the client waits for a go-ahead that it never got. It
// will not send the body, so there is nothing to drain.
func (b *body) awaited() bool {
	return b.control == nil && b.call.r.Header.Get("Expect") != ""
}

// drain throws away a bounded part of what is left. The answer has been sent.
func (b *body) drain() {
	control := http.NewResponseController(b.call.w)
	if control.Flush() != nil || control.SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return
	}
	// However it ends, the connection is closed.
	_, _ = io.CopyN(io.Discard, b.call.r.Body, drainBytes)
}

// The steps in which memory for a body of unknown length grows.
const (
	firstStep = 4 << 10
	lastStep  = 16 << 20
)

// readAll reads src to its end, which comes after at most most bytes. announced is
// what the client said of its length, -1 if nothing. The bytes are accounted for
// at the door before they are allocated.
func (c *call) readAll(src io.Reader, announced, most int64) ([]byte, error) {
	step := int64(firstStep)
	if announced >= 0 {
		step = min(announced, most)
	}
	if err := c.hold.use(step); err != nil {
		return nil, err
	}
	buf := make([]byte, 0, step)
	for {
		if len(buf) == cap(buf) {
			more, err := c.more(src, &buf, most)
			if err != nil || !more {
				return buf, err
			}
		}
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return c.fit(buf)
		}
		if err != nil {
			return nil, err
		}
	}
}

// more makes room in a full buffer if src has not ended.
func (c *call) more(src io.Reader, buf *[]byte, most int64) (bool, error) {
	var next [1]byte
	switch n, err := io.ReadFull(src, next[:]); {
	case n == 0 && err == io.EOF:
		return false, nil
	case err != nil:
		return false, err
	}
	old := cap(*buf)
	grown := max(int64(old)+1, min(int64(old)+min(max(int64(old), firstStep), lastStep), most))
	if err := c.hold.use(grown); err != nil {
		return false, err
	}
	bigger := append(make([]byte, 0, grown), *buf...)
	*buf = append(bigger, next[0])
	c.hold.drop(int64(old))
	return true, nil
}

// fit returns buf without much room to spare, as the store may keep it.
func (c *call) fit(buf []byte) ([]byte, error) {
	if spare := cap(buf) - len(buf); spare <= cap(buf)/8 {
		return buf, nil
	}
	if err := c.hold.use(int64(len(buf))); err != nil {
		return nil, err
	}
	c.hold.drop(int64(cap(buf)))
	return append(make([]byte, 0, len(buf)), buf...), nil
}
