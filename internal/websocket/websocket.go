// Package websocket is for messages over one connection in both directions
// (RFC 6455), on the side of the server and of the client. There are good
// libraries for it; all of them end a connection whose client does not mask its
// frames, as the RFC wants, and wrangler, the client that matters most here, does
// not. A server of this package takes such frames, and nothing else that is
// wrong. It knows no extensions. Nothing is kept: the loss of a connection costs
// the messages in flight, and it may lose what its peer did not read.
package websocket

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"
)

// Options are the bounds of a connection. Fields that are zero mean the default.
type Options struct {
	Limit int64         // bytes of a message that is read
	Idle  time.Duration // without a frame from the peer, until the connection is closed
	Stall time.Duration // for the peer to take a frame, until the connection is closed
}

// The defaults.
const (
	DefaultLimit = 64 << 10
	DefaultIdle  = time.Minute
	DefaultStall = 10 * time.Second
)

func (o Options) filled() Options {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Idle == 0 {
		o.Idle = DefaultIdle
	}
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	return o
}

// Codes with which a connection ends.
const (
	CloseNormal    = 1000 // all is said
	CloseGoingAway = 1001 // this side ends
	CloseProtocol  = 1002
	CloseNoCode    = 1005 // the peer gave none
	CloseInvalid   = 1007 // text that is not UTF-8
	CloseTooLarge  = 1009
	CloseTryAgain  = 1013 // there is too much to do
)

// A CloseError is how the peer ended a connection in order.
type CloseError struct {
	Code   int
	Reason string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("the peer closed the connection with code %d %s", e.Code, e.Reason)
}

// frameError is what a peer did wrong, and the code that it is told.
type frameError struct {
	code int
	text string
}

func (e *frameError) Error() string { return "the peer broke the protocol: " + e.text }

// A Conn is one connection. One goroutine may read while others write.
type Conn struct {
	stream io.ReadWriteCloser
	in     *bufio.Reader
	client bool
	opts   Options
	idle   *time.Timer // closes stream

	mu    sync.Mutex // guards writing to stream, and the rest
	ended bool       // a close frame was written
}

// newConn returns the connection that stream has become; in may hold bytes of it.
func newConn(stream io.ReadWriteCloser, in *bufio.Reader, client bool, opts Options) *Conn {
	c := &Conn{stream: stream, in: in, client: client, opts: opts.filled()}
	c.idle = time.AfterFunc(c.opts.Idle, func() { _ = stream.Close() })
	return c
}

// Close cuts the connection off. WriteClose says so to the peer before.
func (c *Conn) Close() error {
	c.idle.Stop()
	return c.stream.Close()
}

// The kinds of frame.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

const maxControl = 125 // bytes of the payload of a control frame

// header is the head of a frame.
type header struct {
	final  bool
	op     byte
	masked bool
	mask   [4]byte
	size   int64
}

// Read returns the next message. It answers pings, with what they carry; a frame
// that closes the connection is answered and returned as a *CloseError. What the
// peer does wrong ends the connection.
func (c *Conn) Read() ([]byte, error) {
	message, err := c.message()
	var wrong *frameError
	if errors.As(err, &wrong) {
		_ = c.WriteClose(wrong.code, wrong.text)
	}
	return message, err
}

func (c *Conn) message() (message []byte, err error) {
	var kind byte // of the message that was begun; 0: none
	for {
		h, err := c.readHeader()
		if err != nil {
			return nil, err
		}
		if h.op >= opClose {
			if err := c.control(h); err != nil {
				return nil, err
			}
			continue
		}
		switch {
		case h.op > opBinary:
			return nil, &frameError{CloseProtocol, "a frame of an unknown kind"}
		case (h.op == opContinuation) != (kind != 0):
			return nil, &frameError{CloseProtocol, "fragments of messages are mixed up"}
		case h.size > c.opts.Limit-int64(len(message)):
			return nil, &frameError{CloseTooLarge, "the message is too large"}
		}
		if kind == 0 {
			kind = h.op
		}
		part, err := c.payload(h)
		if err != nil {
			return nil, err
		}
		if message = append(message, part...); !h.final {
			continue
		}
		if kind == opText && !utf8.Valid(message) {
			return nil, &frameError{CloseInvalid, "the text is not UTF-8"}
		}
		return message, nil
	}
}

// control handles a frame that is no part of a message.
func (c *Conn) control(h header) error {
	if !h.final || h.size > maxControl {
		return &frameError{CloseProtocol, "a control frame that is too large or a fragment"}
	}
	payload, err := c.payload(h)
	if err != nil {
		return err
	}
	switch h.op {
	case opPing:
		return c.write(opPong, payload)
	case opPong:
		return nil
	case opClose:
		return c.closed(payload)
	}
	return &frameError{CloseProtocol, "a control frame of an unknown kind"}
}

// closed answers the peer's close frame.
func (c *Conn) closed(payload []byte) error {
	end := &CloseError{Code: CloseNoCode}
	if len(payload) == 1 || len(payload) > 2 && !utf8.Valid(payload[2:]) {
		return &frameError{CloseProtocol, "a close frame that cannot be read"}
	}
	if len(payload) >= 2 {
		end.Code, end.Reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
	}
	_ = c.WriteClose(end.Code, "") // who has ended need not hear it
	return end
}

func (c *Conn) readHeader() (h header, err error) {
	var b [8]byte
	if _, err := io.ReadFull(c.in, b[:2]); err != nil {
		return h, fmt.Errorf("read a frame: %w", err)
	}
	c.idle.Reset(c.opts.Idle)
	h.final, h.op, h.masked, h.size = b[0]&0x80 != 0, b[0]&0x0f, b[1]&0x80 != 0, int64(b[1]&0x7f)
	switch {
	case b[0]&0x70 != 0:
		return h, &frameError{CloseProtocol, "a frame of an extension that was not agreed on"}
	case h.masked && c.client:
		return h, &frameError{CloseProtocol, "a server's frame is masked"}
	}
	more := 0
	switch h.size {
	case 126:
		more = 2
	case 127:
		more = 8
	}
	if more > 0 {
		if _, err := io.ReadFull(c.in, b[8-more:]); err != nil {
			return h, fmt.Errorf("read a frame: %w", unexpected(err))
		}
		clear(b[:8-more])
		if h.size = int64(binary.BigEndian.Uint64(b[:])); h.size < 0 {
			return h, &frameError{CloseProtocol, "a length of more than 63 bits"}
		}
	}
	if h.masked {
		if _, err := io.ReadFull(c.in, h.mask[:]); err != nil {
			return h, fmt.Errorf("read a frame: %w", unexpected(err))
		}
	}
	return h, nil
}

// payload reads the content of a frame whose size was found to be allowed.
func (c *Conn) payload(h header) ([]byte, error) {
	p := make([]byte, h.size)
	if _, err := io.ReadFull(c.in, p); err != nil {
		return nil, fmt.Errorf("read a frame: %w", unexpected(err))
	}
	if h.masked {
		apply(h.mask, p)
	}
	return p, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func apply(mask [4]byte, p []byte) {
	for i := range p {
		p[i] ^= mask[i&3]
	}
}

// WriteText sends a message of text.
func (c *Conn) WriteText(p []byte) error { return c.write(opText, p) }

// Ping asks the peer for a sign of life, which keeps the connection from being
// idle.
func (c *Conn) Ping() error { return c.write(opPing, nil) }

// WriteClose tells the peer that this side ends, and why. Nothing can be written
// after it. Read returns the peer's answer, as a *CloseError.
func (c *Conn) WriteClose(code int, reason string) error {
	const most = maxControl - 2
	var payload []byte
	if code != CloseNoCode {
		payload = append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason[:min(len(reason), most)]...)
	}
	return c.write(opClose, payload)
}

// errEnded: the close frame was written.
var errEnded = errors.New("the connection was closed")

func (c *Conn) write(op byte, payload []byte) error {
	frame := make([]byte, 0, 14+len(payload))
	frame = append(frame, 0x80|op)
	masked := byte(0)
	if c.client {
		masked = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, masked|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, masked|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, masked|127), uint64(n))
	}
	if c.client {
		var mask [4]byte
		_, _ = rand.Read(mask[:]) // never fails
		frame = append(append(frame, mask[:]...), payload...)
		apply(mask, frame[len(frame)-len(payload):])
	} else {
		frame = append(frame, payload...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return errEnded
	}
	c.ended = op == opClose
	// A peer that takes nothing holds this lock until its time is over.
	stalled := time.AfterFunc(c.opts.Stall, func() { _ = c.stream.Close() })
	defer stalled.Stop()
	if _, err := c.stream.Write(frame); err != nil {
		return fmt.Errorf("write a frame: %w", err)
	}
	return nil
}
